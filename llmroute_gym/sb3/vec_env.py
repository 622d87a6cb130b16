"""The bridge from the vector environment to Stable-Baselines3's VecEnv."""

from collections.abc import Callable, Iterable, Sequence
from functools import cache
from typing import Any

import gymnasium as gym
import numpy as np
import numpy.typing as npt
from stable_baselines3.common.vec_env import VecEnv
from stable_baselines3.common.vec_env.base_vec_env import VecEnvIndices, VecEnvStepReturn

from llmroute_gym.errors import InputError

_FINAL = ("final_obs", "final_info")
_TRUNCATED = "TimeLimit.truncated"


class RouterVecEnv(VecEnv):
    """Any Gymnasium vector environment with SAME_STEP autoreset, as SB3 wants it.

    Wrap it in this order: `VecNormalize(VecMonitor(RouterVecEnv(env)))`. Rewards become float32,
    the last observation of an episode `infos[i]["terminal_observation"]`, and a truncation
    `infos[i]["TimeLimit.truncated"]`. `env_method("action_masks")` serves MaskablePPO.

    Args:
        env: such as `gym.make_vec("LLMRoute-v0", num_envs=64)`.

    Raises:
        InputError: it is no vector environment, or does not reset in the step that ends an
            episode.
    """

    def __init__(self, env: gym.vector.VectorEnv[Any, Any, Any]) -> None:
        if not isinstance(env, gym.vector.VectorEnv):
            raise InputError(
                f"RouterVecEnv needs a vector environment, got {type(env).__name__}; make it with "
                "gym.make_vec('LLMRoute-v0', num_envs=...)"
            )
        mode = env.metadata.get("autoreset_mode")
        if mode != gym.vector.AutoresetMode.SAME_STEP:
            raise InputError(
                f"RouterVecEnv needs a vector environment with SAME_STEP autoreset, got {mode}; "
                "pass autoreset_mode=AutoresetMode.SAME_STEP where the environment takes it"
            )
        self.env = env
        self.render_mode = getattr(env, "render_mode", None)
        self._actions: npt.NDArray[Any] | None = None
        self._never = np.zeros(env.num_envs, dtype=np.bool_)
        self._fixed: dict[str, tuple[npt.NDArray[Any], list[Any]]] = {}
        super().__init__(env.num_envs, env.single_observation_space, env.single_action_space)

    def reset(self) -> Any:
        """Starts episodes with the seeds given to `seed`; returns observations (num_envs, ...)."""
        seeds: Any = None if all(seed is None for seed in self._seeds) else self._seeds
        observations, infos = self.env.reset(seed=seeds, options=self._common_options())
        self.reset_infos = self._split(infos)
        self._reset_seeds()
        self._reset_options()
        return observations

    def step_async(self, actions: npt.NDArray[Any]) -> None:
        """Notes the actions, shape (num_envs,)."""
        self._actions = actions

    def step_wait(self) -> VecEnvStepReturn:
        """Takes the step; returns observations, float32 rewards, dones and one info per env."""
        observations, rewards, terminated, truncated, batch = self.env.step(self._actions)
        dones = terminated | truncated
        infos = self._split({**batch, _TRUNCATED: self._never})
        if "final_info" in batch:
            endings = self._split(batch["final_info"])
            partly = [
                (key[1:], present)
                for key, present in batch["final_info"].items()
                if key[0] == "_" and not present.all()
            ]
            for index in np.flatnonzero(dones):
                infos[index] = endings[index]
                for key, present in partly:
                    if not present[index]:
                        infos[index].pop(key, None)
                infos[index]["terminal_observation"] = batch["final_obs"][index]
                infos[index][_TRUNCATED] = bool(truncated[index] & ~terminated[index])
        return observations, rewards.astype(np.float32), dones, infos

    def close(self) -> None:
        """Closes the environment."""
        self.env.close()

    def get_attr(self, attr_name: str, indices: VecEnvIndices = None) -> list[Any]:
        """Returns an attribute of the environment, once for each index."""
        value = getattr(self.env.unwrapped, attr_name)
        return [value for _ in self._get_indices(indices)]

    def has_attr(self, attr_name: str) -> bool:
        """Whether the environment has the attribute."""
        return hasattr(self.env.unwrapped, attr_name)

    def set_attr(self, attr_name: str, value: Any, indices: VecEnvIndices = None) -> None:
        """Sets an attribute of the environment; it has one for all."""
        self._require_all(indices, f"set_attr({attr_name!r})")
        setattr(self.env.unwrapped, attr_name, value)

    def env_method(
        self,
        method_name: str,
        *method_args: Any,
        indices: VecEnvIndices = None,
        **method_kwargs: Any,
    ) -> list[Any]:
        """Calls a method once for all; an array (num_envs, ...) is split, else repeated."""
        chosen = list(self._get_indices(indices))
        method = getattr(self.env, method_name, None) or getattr(self.env.unwrapped, method_name)
        result = method(*method_args, **method_kwargs)
        if isinstance(result, np.ndarray) and result.shape[:1] == (self.num_envs,):
            return [result[index] for index in chosen]
        return [result for _ in chosen]

    def env_is_wrapped(
        self, wrapper_class: type[gym.Wrapper[Any, Any, Any, Any]], indices: VecEnvIndices = None
    ) -> list[bool]:
        """No single environment is wrapped: there are none."""
        return [False for _ in self._get_indices(indices)]

    def get_images(self) -> Sequence[npt.NDArray[np.uint8] | None]:
        """The vector environment draws nothing."""
        return [None] * self.num_envs

    def _common_options(self) -> dict[str, Any] | None:
        options = [option for option in self._options if option]
        return dict(options[0]) if options else None

    def _require_all(self, indices: VecEnvIndices, what: str) -> None:
        if len(list(self._get_indices(indices))) != self.num_envs:
            raise InputError(f"{what} works on all environments at once; leave indices out")

    def _column(self, key: str, values: npt.NDArray[Any]) -> Iterable[Any]:
        """Returns one entry per environment; the rows of an array that stays as it is only once."""
        if values.ndim == 1:
            listed: list[Any] = values.tolist()
            return listed
        if values.flags.writeable:
            return values
        if key not in self._fixed or self._fixed[key][0] is not values:
            self._fixed[key] = values, list(values)
        return self._fixed[key][1]

    def _split(self, batch: dict[str, Any]) -> list[dict[str, Any]]:
        """Turns a dictionary of arrays into one dictionary per environment."""
        keys = [key for key in batch if key[0] != "_" and key not in _FINAL]
        columns = [self._column(key, batch[key]) for key in keys]
        return _rows_of(tuple(keys))(columns) if keys else [{} for _ in range(self.num_envs)]


@cache
def _rows_of(keys: tuple[str, ...]) -> Callable[[Sequence[Iterable[Any]]], list[dict[str, Any]]]:
    """Returns a function that makes a dictionary with these keys of each row of columns.

    One is made for every environment and step, and a literal takes half the time of
    `dict(zip(keys, row))`: so its source is put together here, as `namedtuple` does with its own.
    """
    names = [f"value_{index}" for index in range(len(keys))]
    items = ", ".join(f"{key!r}: {name}" for key, name in zip(keys, names, strict=True))
    source = f"lambda columns: [{{{items}}} for {', '.join(names)}, in zip(*columns, strict=True)]"
    rows: Callable[[Sequence[Iterable[Any]]], list[dict[str, Any]]] = eval(source)
    return rows
