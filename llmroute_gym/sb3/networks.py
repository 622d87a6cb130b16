"""Which networks a policy has, in words that a file can carry, and how they are built anew."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

from sb3_contrib.common.maskable.policies import MaskableActorCriticPolicy
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.torch_layers import FlattenExtractor
from torch import nn

from llmroute_gym.config import ModelConfig
from llmroute_gym.sb3.policies import TemperedMaskableMlpPolicy, TemperedMlpPolicy
from llmroute_gym.sb3.replica_set import (
    MaskableReplicaSetPolicy,
    ReplicaSetMixin,
    ReplicaSetPolicy,
)
from llmroute_gym.sb3.residual import ResidualPolicy, ScoredRows
from llmroute_gym.sb3.row_normalizer import NormalizedRows, RelativeRows

POLICIES = {
    "mlp": "MlpPolicy",
    "replica_set": "ReplicaSetPolicy",
    "residual": "ResidualPolicy",
}
"""`ModelConfig.policy` to what `RouterPPO` and `RouterMaskablePPO` call it."""

EXTRACTORS: dict[str, type[nn.Module]] = {
    "mlp": NormalizedRows,
    "replica_set": RelativeRows,
    "residual": ScoredRows,
}
"""`ModelConfig.policy` to what a training puts before its networks."""

ACTIVATIONS: dict[str, type[nn.Module]] = {"tanh": nn.Tanh, "relu": nn.ReLU}
"""Those of `ModelConfig.activation`."""

TEMPERED: dict[type, type] = {
    ActorCriticPolicy: TemperedMlpPolicy,
    MaskableActorCriticPolicy: TemperedMaskableMlpPolicy,
}
"""Stock policies and what takes over their weights."""

KNOWN_POLICIES: dict[str, type] = {
    kind.__name__: kind
    for kind in (
        *TEMPERED,
        *TEMPERED.values(),
        ReplicaSetPolicy,
        MaskableReplicaSetPolicy,
        ResidualPolicy,
    )
}
"""Those that can be built anew from a file's words alone."""

KNOWN_EXTRACTORS: dict[str, type] = {
    kind.__name__: kind for kind in (FlattenExtractor, NormalizedRows, RelativeRows, ScoredRows)
}
"""The same of what goes before the networks."""

_OF_RULE = ("rule", "inverse_temperature")
"""Arguments of a `ResidualPolicy`, which `ModelConfig` calls so too."""
_READ_OPTIONS = {
    *("net_arch", "activation_fn", "features_extractor_class", "ortho_init"),
    *_OF_RULE,
}
"""Arguments of a policy that a description allows; `ortho_init` acts on random weights only."""


@dataclass(frozen=True)
class Networks:
    """A policy's networks: all that is needed to build it anew, its weights aside.

    Attributes:
        policy: its class, one of `KNOWN_POLICIES`.
        extractor: what goes before its networks, one of `KNOWN_EXTRACTORS`.
        model: kind, sizes and activation.
    """

    policy: type
    extractor: type
    model: ModelConfig

    @classmethod
    def of(cls, policy: type, options: Mapping[str, Any]) -> Self | None:
        """Describes a policy; None where it cannot be built anew from a description.

        Args:
            policy: its class.
            options: the other arguments that it was made with (`policy_kwargs`).
        """
        model = model_of(policy, options)
        usual = _usual_extractor(policy)
        extractor = options.get("features_extractor_class", usual)
        known = policy in KNOWN_POLICIES.values() and extractor in KNOWN_EXTRACTORS.values()
        if not known or model is None or not _READ_OPTIONS.issuperset(options):
            return None
        return cls(policy, extractor, model)

    def options(self) -> dict[str, Any]:
        """Returns the arguments that the policy is made with, `policy_kwargs`."""
        return {**network_options(self.model), "features_extractor_class": self.extractor}


def _usual_extractor(policy: type) -> type:
    if issubclass(policy, ResidualPolicy):
        return ScoredRows
    return RelativeRows if issubclass(policy, ReplicaSetMixin) else FlattenExtractor


def _kind(policy: type) -> str:
    if issubclass(policy, ResidualPolicy):
        return "residual"
    return "replica_set" if issubclass(policy, ReplicaSetMixin) else "mlp"


def network_options(model: ModelConfig) -> dict[str, Any]:
    """Returns the arguments of a policy that settings describe, `policy_kwargs`."""
    of_rule = _OF_RULE if model.policy == "residual" else ()
    return {
        **{name: getattr(model, name) for name in of_rule},
        "net_arch": {"pi": list(model.actor_sizes), "vf": list(model.critic_sizes)},
        "activation_fn": ACTIVATIONS[model.activation],
        "features_extractor_class": EXTRACTORS[model.policy],
    }


def model_of(policy: type, options: Mapping[str, Any]) -> ModelConfig | None:
    """Returns kind and sizes of a policy's networks; None where settings cannot describe them.

    Args:
        policy: its class.
        options: the other arguments that it was made with (`policy_kwargs`).
    """
    sizes = options.get("net_arch")
    if not isinstance(sizes, dict):
        # As Stable-Baselines3 reads it.
        both = [64, 64] if sizes is None else sizes
        sizes = {"pi": both, "vf": both}
    actor, critic = sizes.get("pi", []), sizes.get("vf", [])
    activation = options.get("activation_fn", nn.Tanh)
    names = [name for name, kind in ACTIVATIONS.items() if kind is activation]
    whole = all(
        isinstance(one, list | tuple) and all(type(size) is int for size in one)
        for one in (actor, critic)
    )
    if not whole or not names:
        return None
    return ModelConfig(
        policy=_kind(policy),
        actor_sizes=list(actor),
        critic_sizes=list(critic),
        activation=names[0],
        **{name: options[name] for name in _OF_RULE if name in options},
    )
