"""PPO's update with one loss added: what RouterPPO and RouterMaskablePPO have in common."""

from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import torch as th
import torch.nn.functional as F  # noqa: N812
from gymnasium import spaces
from sb3_contrib.common.recurrent.policies import RecurrentActorCriticPolicy
from stable_baselines3 import PPO
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.distributions import Distribution
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.type_aliases import GymEnv
from stable_baselines3.common.utils import explained_variance

from llmroute_gym.errors import InputError
from llmroute_gym.sb3.pretrained import first_line, load_pretrained, read_weights
from llmroute_gym.sb3.regularization import (
    LinearDecay,
    check_entropy_floor,
    check_weight,
    entropy_shortfall,
    exact_kl,
    normalize_columns,
    rollout_kl,
    scheduled,
)

WEIGHTS = ("kl_coef", "kl_ref_coef", "entropy_min_coef")

if TYPE_CHECKING:
    _Base = PPO
else:
    _Base = object


class RegularizedUpdate(_Base):
    """Adds a reference, a regularisation loss and a counter of gradient steps to a PPO.

    Goes before PPO or MaskablePPO in the bases. The loss that is added to PPO's:

        kl_ref_coef * KL(policy, reference)           exact, over the minibatch
        + kl_coef * KL(policy of the rollout, policy)  on the rollout's own actions
        + entropy_min_coef * max(0, entropy_min - H)   H: the minibatch's mean entropy, nats

    With all three coefficients 0 nothing is added, and training equals the parent's bit for bit, as
    long as advantages are normalised over minibatches (`normalize_per_env=False`).
    Coefficients may follow a schedule over gradient steps, see `set_schedule`.

    Attributes:
        n_gradient_steps: minibatches that have changed the weights; saved with the model.
        reference_policy: the frozen policy, or None.
        reference_origin: what the reference was made from.
        non_finite: a loss or gradient was not finite; the weights are those before it, and
            `learn` ends.
    """

    def __init__(
        self,
        policy: Any,
        env: Any,
        *args: Any,
        kl_coef: float = 0.0,
        kl_ref_coef: float = 0.0,
        entropy_min: float = 0.0,
        entropy_min_coef: float = 0.0,
        normalize_per_env: bool = False,
        _init_setup_model: bool = True,
        **kwargs: Any,
    ) -> None:
        self.kl_coef = kl_coef
        self.kl_ref_coef = kl_ref_coef
        self.entropy_min = entropy_min
        self.entropy_min_coef = entropy_min_coef
        self.normalize_per_env = normalize_per_env
        self.schedules: dict[str, LinearDecay] = {}
        self.n_gradient_steps = 0
        self.has_reference = False
        self.reference_origin = ""
        self.reference_policy: Any = None
        self.non_finite = False
        kwargs["_init_setup_model"] = False
        super().__init__(policy, env, *args, **kwargs)
        if _init_setup_model:
            self._setup_model()

    def _setup_model(self) -> None:
        if issubclass(self.policy_class, RecurrentActorCriticPolicy):
            raise InputError(
                f"{type(self).__name__} cannot train {self.policy_class.__name__}; use "
                "RecurrentPPO (TemperedMlpLstmPolicy has a temperature) and set kl_coef, "
                "kl_ref_coef and entropy_min_coef to 0"
            )
        super()._setup_model()
        self._check_options()
        if self.has_reference:
            self.reference_policy = self._new_policy()

    def _check_options(self) -> None:
        for name in (*WEIGHTS, "entropy_min", "ent_coef"):
            check_weight(name, getattr(self, name))
        if self.entropy_min_coef > 0:
            check_entropy_floor(self.entropy_min, self.action_space)

    # Schedules

    def set_schedule(self, coefficient: str, schedule: LinearDecay) -> None:
        """Lets a coefficient follow a schedule over gradient steps, from now on and when resumed.

        Args:
            coefficient: `ent_coef`, `kl_coef`, `kl_ref_coef` or `entropy_min_coef`.
            schedule: its value at each gradient step since the model was made.
        """
        if coefficient not in ("ent_coef", *WEIGHTS):
            raise InputError(
                f"no schedule is possible for {coefficient!r}; choose ent_coef or one of "
                f"{', '.join(WEIGHTS)}"
            )
        self.schedules[coefficient] = schedule
        self._follow_schedules()

    def _follow_schedules(self) -> None:
        for name, value in scheduled(self.schedules, self.n_gradient_steps).items():
            setattr(self, name, value)

    # Reference

    def set_reference(
        self, source: str | Path | Mapping[str, Any] | BaseAlgorithm | BasePolicy | None = None
    ) -> None:
        """Freezes a policy as the reference.

        The reference keeps its own observation statistics, if the policy has any. It is always
        compared at the policy's current temperature, so that the KL measures what was learned.

        Args:
            source: a checkpoint's file, an algorithm, a policy, or a policy's state dict; None
                takes the policy as it is now.

        Raises:
            InputError: the file is no checkpoint, or its networks have another shape.
        """
        weights, origin = _policy_weights(self.policy if source is None else source)
        reference = self._new_policy()
        try:
            reference.load_state_dict(weights)
        except RuntimeError as error:
            raise InputError(
                f"the reference does not fit the policy ({first_line(error)}); "
                "use a checkpoint with the same observation and network sizes"
            ) from error
        self.reference_policy, self.has_reference = reference, True
        self.reference_origin = origin if source is not None else "the policy as it was set up"

    def clear_reference(self) -> None:
        """Removes the reference."""
        self.reference_policy, self.has_reference, self.reference_origin = None, False, ""

    def _check_reference(self) -> None:
        """Checks that there is a reference where its weight is, or will be, more than 0."""
        schedule = self.schedules.get("kl_ref_coef")
        highest = self.kl_ref_coef
        if schedule is not None:
            highest = max(schedule(self.n_gradient_steps), schedule.final)
        if highest > 0 and not self.has_reference:
            raise InputError(
                f"kl_ref_coef is {highest:g} but there is no reference; call set_reference() "
                "before learn(), or set kl_ref_coef (kl_ref_coef_initial and kl_ref_coef_final) "
                "to 0"
            )

    def _new_policy(self) -> Any:
        # A second policy must not draw from the generator that the training draws from.
        with th.random.fork_rng(devices=[]):
            policy: Any = self.policy_class(
                self.observation_space,
                self.action_space,
                self.lr_schedule,
                **({"use_sde": True} if self.use_sde else {}),
                **self.policy_kwargs,
            )
        policy = policy.to(self.device)
        policy.set_training_mode(False)
        return policy.requires_grad_(False)

    def _reference_kl(self, batch: Any, distribution: Distribution) -> th.Tensor:
        """Returns the mean KL of the policy's distribution to the reference, in nats."""
        temperature = getattr(self.policy, "temperature", None)
        if temperature is not None:
            self.reference_policy.set_temperature(float(temperature))
        with th.no_grad():
            reference = self._distribution(self.reference_policy, batch)
        return exact_kl(distribution, reference).mean()

    # What differs between PPO and MaskablePPO

    def _evaluate(self, batch: Any, actions: th.Tensor) -> Any:
        return self.policy.evaluate_actions(batch.observations, actions)

    def _distribution(self, policy: Any, batch: Any) -> Distribution:
        distribution: Distribution = policy.get_distribution(batch.observations)
        return distribution

    # Learning

    def _setup_learn(self, *args: Any, **kwargs: Any) -> Any:
        self._check_reference()
        self.non_finite = False
        return super()._setup_learn(*args, **kwargs)

    def collect_rollouts(self, *args: Any, **kwargs: Any) -> bool:
        """Collects a rollout as the parent does, unless the last update was not finite."""
        return False if self.non_finite else super().collect_rollouts(*args, **kwargs)

    def train(self) -> None:
        """Updates the policy from the rollout.

        Written after `PPO.train` and `MaskablePPO.train` of Stable-Baselines3 and sb3-contrib
        2.9 (MIT licence), which offer no hook for a loss. The changes are marked: the loss, the
        schedules of its weights, and that a loss or gradient which is not finite ends the
        training before it reaches the weights.
        """
        self._check_reference()
        self.policy.set_training_mode(True)
        self._update_learning_rate(self.policy.optimizer)
        if self.normalize_per_env:  # changed: not known elsewhere
            normalize_columns(self.rollout_buffer.advantages)
        log: dict[str, list[Any]] = defaultdict(list)
        completed = True
        for epoch in range(self.n_epochs):
            log["approx_kl"].clear()
            for batch in self.rollout_buffer.get(self.batch_size):
                completed = self._train_minibatch(batch, epoch, log)
                if not completed:
                    break
            self._n_updates += 1
            if not completed:
                break
        self._log_update(log, early_stop=not completed and not self.non_finite)

    def _train_minibatch(self, batch: Any, epoch: int, log: dict[str, list[Any]]) -> bool:
        """Takes one gradient step; returns whether the update goes on."""
        actions = batch.actions
        if isinstance(self.action_space, spaces.Discrete):
            actions = actions.long().flatten()
        values, log_prob, entropy = self._evaluate(batch, actions)
        policy_loss = self._policy_loss(batch, log_prob, log)
        value_loss = self._value_loss(batch, values.flatten())
        entropy_loss = -th.mean(-log_prob) if entropy is None else -th.mean(entropy)
        log["value_loss"].append(value_loss.item())
        log["entropy_loss"].append(entropy_loss.item())

        self._follow_schedules()  # changed: the weights of this gradient step
        loss = policy_loss + self.ent_coef * entropy_loss + self.vf_coef * value_loss
        # Changed: the loss of the class docstring; nothing where its weights are 0.
        loss = loss + self._regularization(batch, log_prob, -entropy_loss)

        log["loss"].append(loss.item())
        with th.no_grad():
            log_ratio = log_prob - batch.old_log_prob
            approx_kl = th.mean((th.exp(log_ratio) - 1) - log_ratio).cpu().numpy()
        log["approx_kl"].append(approx_kl)
        if self.target_kl is not None and approx_kl > 1.5 * self.target_kl:
            if self.verbose >= 1:
                print(f"Early stopping at step {epoch} due to reaching max kl: {approx_kl:.2f}")
            return False
        return self._gradient_step(loss)

    def _policy_loss(self, batch: Any, log_prob: th.Tensor, log: dict[str, list[Any]]) -> th.Tensor:
        clip_range = self.clip_range(self._current_progress_remaining)  # type: ignore[operator]
        advantages = batch.advantages
        if self.normalize_advantage and not self.normalize_per_env and len(advantages) > 1:
            advantages = (advantages - advantages.mean()) / (advantages.std() + 1e-8)
        ratio = th.exp(log_prob - batch.old_log_prob)
        clipped = advantages * th.clamp(ratio, 1 - clip_range, 1 + clip_range)
        loss: th.Tensor = -th.min(advantages * ratio, clipped).mean()
        log["policy_gradient_loss"].append(loss.item())
        log["clip_fraction"].append(th.mean((th.abs(ratio - 1) > clip_range).float()).item())
        return loss

    def _value_loss(self, batch: Any, values: th.Tensor) -> th.Tensor:
        if self.clip_range_vf is not None:
            reach = self.clip_range_vf(self._current_progress_remaining)  # type: ignore[operator]
            values = batch.old_values + th.clamp(values - batch.old_values, -reach, reach)
        loss: th.Tensor = F.mse_loss(batch.returns, values)
        return loss

    def _regularization(
        self, batch: Any, log_prob: th.Tensor, entropy: th.Tensor
    ) -> th.Tensor | float:
        loss: th.Tensor | float = 0.0
        if self.kl_ref_coef > 0:
            distribution: Any = self.policy.action_dist
            loss = loss + self.kl_ref_coef * self._reference_kl(batch, distribution)
        if self.kl_coef > 0:
            loss = loss + self.kl_coef * rollout_kl(log_prob, batch.old_log_prob)
        if self.entropy_min_coef > 0:
            loss = loss + self.entropy_min_coef * entropy_shortfall(entropy, self.entropy_min)
        return loss

    def _gradient_step(self, loss: th.Tensor) -> bool:
        """Changes the weights, unless that would spoil them; returns whether it did."""
        self.policy.optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        norm = th.nn.utils.clip_grad_norm_(self.policy.parameters(), self.max_grad_norm)
        if not (th.isfinite(loss) and th.isfinite(norm)):  # changed: not asked elsewhere
            self.non_finite = True
            return False
        self.policy.optimizer.step()
        self.n_gradient_steps += 1
        return True

    def _log_update(self, log: dict[str, list[Any]], *, early_stop: bool) -> None:
        record = self.logger.record
        for name in ("entropy_loss", "policy_gradient_loss", "value_loss", "approx_kl"):
            record(f"train/{name}", np.mean(log[name]))
        record("train/clip_fraction", np.mean(log["clip_fraction"]))
        record("train/loss", log["loss"][-1])
        buffer = self.rollout_buffer
        record(
            "train/explained_variance",
            explained_variance(buffer.values.flatten(), buffer.returns.flatten()),
        )
        if hasattr(self.policy, "log_std"):
            record("train/std", th.exp(self.policy.log_std).mean().item())
        record("train/n_updates", self._n_updates, exclude="tensorboard")
        progress = self._current_progress_remaining
        record("train/clip_range", self.clip_range(progress))  # type: ignore[operator]
        if self.clip_range_vf is not None:
            record("train/clip_range_vf", self.clip_range_vf(progress))  # type: ignore[operator]
        record("train/early_stop", int(early_stop))
        record("train/gradient_steps", self.n_gradient_steps, exclude="tensorboard")
        if self.has_reference:
            record("train/kl_ref", self.mean_reference_kl())

    def mean_reference_kl(self) -> float:
        """Returns the mean KL(policy, reference) over the last rollout, in nats.

        Raises:
            InputError: there is no reference, or no rollout that has been trained on.
        """
        if not (self.has_reference and getattr(self.rollout_buffer, "generator_ready", False)):
            raise InputError("mean_reference_kl() needs a reference and an update; train first")
        everything: Any = self.rollout_buffer
        batch = everything._get_samples(np.arange(everything.buffer_size * everything.n_envs))
        with th.no_grad():
            return self._reference_kl(batch, self._distribution(self.policy, batch)).item()

    # Saving and loading

    @classmethod
    def from_pretrained(
        cls,
        path: str | Path,
        env: GymEnv,
        *,
        device: str = "auto",
        trusted: bool = False,
        **settings: Any,
    ) -> Self:
        """Starts a new training from the weights of a checkpoint of PPO or of this class.

        Networks, weights, Adam's moments and all settings are those of the checkpoint; counters,
        schedules and reference are those of a new model. A stock MLP policy gets a temperature of
        1. Call `set_reference()` to keep near the pretrained policy.

        Args:
            path: the zip file of a saved model.
            env: to train on. Its number of replicas may differ from the checkpoint's where the
                policy is a ReplicaSetPolicy.
            device: for the networks.
            trusted: whether the file may be unpickled, which may run any code, where its policy
                or a setting that is not replaced is of no kind that this package knows.
            settings: keyword arguments of the constructor that replace the checkpoint's.

        Raises:
            InputError: the file is no checkpoint, would have to be unpickled, does not fit the
                environment, or a setting is unknown.
        """
        model: Self = load_pretrained(
            cls, path, env, device=device, trusted=trusted, settings=settings
        )
        return model

    def _excluded_save_params(self) -> list[str]:
        return [*super()._excluded_save_params(), "reference_policy"]

    def _get_torch_save_params(self) -> tuple[list[str], list[str]]:
        modules, variables = super()._get_torch_save_params()
        return ([*modules, "reference_policy"] if self.has_reference else modules), variables


def _policy_weights(source: Any) -> tuple[Mapping[str, Any], str]:
    """Returns a policy's state dict and the name of where it came from."""
    if isinstance(source, Mapping):
        return source, "given weights"
    if isinstance(source, BaseAlgorithm):
        return source.policy.state_dict(), f"the policy of a {type(source).__name__}"
    if isinstance(source, BasePolicy):
        return source.state_dict(), f"a {type(source).__name__}"
    return read_weights(source)["policy"], str(source)
