"""A trained policy as a router, beside the rules."""

import numpy as np
import numpy.typing as npt
import torch
from sb3_contrib.common.maskable.policies import MaskableActorCriticPolicy
from sb3_contrib.common.recurrent.policies import RecurrentActorCriticPolicy
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.policies import ActorCriticPolicy

from llmroute_gym.config import ObservationConfig
from llmroute_gym.envs.observation import Columns
from llmroute_gym.errors import InputError, shown
from llmroute_gym.routers import Router, register_adapter
from llmroute_gym.routers.policy_network import PolicyNetwork
from llmroute_gym.routers.residual import ResidualRule, scored_rule
from llmroute_gym.sb3.checkpoint import Checkpoint, check_observations
from llmroute_gym.sb3.plain_network import plain_network
from llmroute_gym.sb3.replica_set import ReplicaSetMixin
from llmroute_gym.sb3.residual import ResidualPolicy
from llmroute_gym.sb3.row_normalizer import observation_transform, observation_wrapper


class PolicyRouter(Router):
    """Routes each request to the replica that the policy finds most probable.

    Args:
        policy: a checkpoint, or any PPO that was trained on LLMRoute-v0. A `VecNormalize` around
            its environment that changes observations does so here too; a file does not hold one.

    Raises:
        InputError: it is something else, or reads other observations.
    """

    name = "policy"

    def __init__(self, policy: Checkpoint | BaseAlgorithm) -> None:
        model = policy.model if isinstance(policy, Checkpoint) else policy
        if not isinstance(model, BaseAlgorithm):
            raise InputError(
                f"PolicyRouter takes a Checkpoint or a PPO, got {shown(policy)}; give "
                "Checkpoint.load(FOLDER) of a run, or subclass Router for another policy"
            )
        network = model.policy
        if not isinstance(network, ActorCriticPolicy | MaskableActorCriticPolicy) or isinstance(
            network, RecurrentActorCriticPolicy
        ):
            raise InputError(
                f"PolicyRouter takes the policy of a PPO, got {type(network).__name__}; subclass "
                "Router for it"
            )
        if isinstance(network, ResidualPolicy):
            raise InputError(
                "PolicyRouter takes a policy that decides by its rows alone, got one that corrects "
                "a rule, which has a memory; take router_of(policy)"
            )
        self.observation = _told(policy)
        if not isinstance(policy, Checkpoint):
            shape, n_actions = model.observation_space.shape, getattr(model.action_space, "n", None)
            check_observations("the policy", shape, n_actions, self.observation)
        network.set_training_mode(False)
        self.policy = network
        self._columns = Columns(self.observation.columns)
        self._normalize = observation_transform(model)
        self._wrapped = observation_wrapper(model) is not None
        assert model.observation_space.shape is not None
        self._replicas = model.observation_space.shape[0]

    def route(self, rows: npt.NDArray[np.float64], mask: npt.NDArray[np.bool_]) -> int:
        """Returns the most probable replica among those that the mask allows."""
        return int(self.route_many(rows[None], mask[None])[0])

    def route_many(
        self, rows: npt.NDArray[np.float64], masks: npt.NDArray[np.bool_]
    ) -> npt.NDArray[np.int64]:
        """Decides in several clusters at once; a policy has no memory of its own.

        Args:
            rows: (n, n_replicas, N_SIGNALS), in physical units.
            masks: (n, n_replicas).

        Returns:
            (n,) replicas.

        Raises:
            InputError: the policy's networks take another number of replicas.
        """
        if rows.shape[1] != self._replicas and not isinstance(self.policy, ReplicaSetMixin):
            raise InputError(
                f"the policy was trained with {self._replicas} replicas and its network takes no "
                f"other number, got {rows.shape[1]}; train a ReplicaSetPolicy for any number"
            )
        observations = torch.from_numpy(self._normalize(self._columns.scaled(rows)))
        with torch.no_grad():
            distribution = self.policy.get_distribution(observations.to(self.policy.device))
            scores = distribution.distribution.logits.cpu().numpy()  # type: ignore[union-attr]
        return self._chosen(np.where(masks, scores, -np.inf))

    def sure_rule(self) -> PolicyNetwork | None:
        """Returns the rule by which the kernels choose as it does, but where scores nearly tie.

        None where they cannot: its networks are of another kind, or a subclass routes otherwise.
        """
        own = (PolicyRouter.route, PolicyRouter.route_many, PolicyRouter._chosen)
        kind = type(self)
        if self._wrapped or (kind.route, kind.route_many, kind._chosen) != own:
            return None
        network = plain_network(self.policy, self._columns.signals.tolist())
        return None if network is None else PolicyNetwork(network=network)

    def _chosen(self, scores: npt.NDArray[np.float32]) -> npt.NDArray[np.int64]:
        """Returns replicas (n,) by their log-probabilities (n, n_replicas), -inf where masked."""
        most_probable: npt.NDArray[np.int64] = np.argmax(scores, axis=1)
        return most_probable


class SampledPolicyRouter(PolicyRouter):
    """Routes each request by chance, as in training: with the probabilities of the policy.

    Args:
        policy: as of `PolicyRouter`.
        rng: draws the replicas.
    """

    name = "sampled_policy"

    def __init__(self, policy: Checkpoint | BaseAlgorithm, rng: np.random.Generator) -> None:
        super().__init__(policy)
        self._rng = rng

    def _chosen(self, scores: npt.NDArray[np.float32]) -> npt.NDArray[np.int64]:
        # The largest of logits with Gumbel noise is a draw from their softmax.
        return super()._chosen(scores + self._rng.gumbel(size=scores.shape).astype(np.float32))


def router_of(policy: Checkpoint | BaseAlgorithm, rng: np.random.Generator | None = None) -> Router:
    """Returns the router that a trained policy is.

    Args:
        policy: a checkpoint, or any PPO that was trained on LLMRoute-v0 or on `DrawnEnv`.
        rng: draws replicas with the probabilities of the policy, as in training; None takes the
            most probable one. A policy that corrects a rule draws from what a run gives it.

    Raises:
        InputError: it is something else, or reads other observations.
    """
    model = policy.model if isinstance(policy, Checkpoint) else policy
    network = model.policy if isinstance(model, BaseAlgorithm) else None
    if isinstance(network, ResidualPolicy):
        told = _told(policy)
        signals = Columns(told.columns).signals.tolist()
        plain = plain_network(network, signals)
        if plain is None:
            raise InputError(
                f"a ResidualPolicy with an activation of its own cannot route, got "
                f"{network.activation_fn.__name__}; train it with tanh or relu"
            )
        router = ResidualRule(
            rule=scored_rule(network.rule),
            network=plain,
            inverse_temperature=network.inverse_temperature,
            sampled=rng is not None,
        )
        router.observation = told
        return router
    return PolicyRouter(policy) if rng is None else SampledPolicyRouter(policy, rng)


def _told(policy: Checkpoint | BaseAlgorithm) -> ObservationConfig:
    """Returns what the environment of a policy told it."""
    if isinstance(policy, Checkpoint):
        return policy.layout.observation
    return _observation_of(policy)


def _observation_of(model: BaseAlgorithm) -> ObservationConfig:
    """Returns what a model's environment tells it, the default where it has none any more."""
    env = model.get_env()
    if env is None or not env.has_attr("observation_config"):
        return ObservationConfig()
    told: ObservationConfig = env.get_attr("observation_config")[0]
    return told


register_adapter(Checkpoint, router_of)
register_adapter(BaseAlgorithm, router_of)
