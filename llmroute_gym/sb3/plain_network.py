"""A policy's weights as plain arrays, from which the kernels choose as PyTorch does."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch as th
from torch import nn

from llmroute_gym.routers.policy_network import Layer, Network, Singles
from llmroute_gym.sb3.replica_set import (
    MaskableReplicaSetPolicy,
    ReplicaSetPolicy,
    RowNetworks,
    RowScore,
)
from llmroute_gym.sb3.residual import (
    ResidualPolicy,
    ResidualScore,
    ScoredNetworks,
    ScoredRows,
)
from llmroute_gym.sb3.row_normalizer import EPSILON, RelativeRows, RowNormalizer

_ROWS = RelativeRows, RowNetworks, RowScore
_PARTS: dict[type, tuple[type, type, type]] = {
    ReplicaSetPolicy: _ROWS,
    MaskableReplicaSetPolicy: _ROWS,
    ResidualPolicy: (ScoredRows, ScoredNetworks, ResidualScore),
}
"""Policies that `Network` describes, and of what classes their parts are."""


def plain_network(policy: nn.Module, signals: Sequence[int]) -> Network | None:
    """Returns all that a policy's most probable choice depends on.

    Args:
        policy: of any class; of a `ResidualPolicy` the network that corrects its rule.
        signals: (n_columns,) which columns of a router's rows it reads.

    Returns:
        None where the policy is of another kind than `Network` describes.
    """
    if type(policy) not in _PARTS:
        return None
    kinds = _PARTS[type(policy)]
    parts: Any = policy
    extractor, networks, action = (
        parts.pi_features_extractor,
        parts.mlp_extractor,
        parts.action_net,
    )
    rectified = {nn.Tanh: False, nn.ReLU: True}.get(type(networks.activation))
    known = (
        type(extractor),
        type(networks),
        type(action),
    ) == kinds and extractor.normalizer.mean.shape == (len(signals),)
    if not known or rectified is None:
        return None
    shift, factor = plain_affine(extractor.normalizer)
    return Network(
        signals=signals,
        shift=shift,
        factor=factor,
        layers=[plain_layer(part) for part in networks.actor.rows if isinstance(part, nn.Linear)],
        joint=plain_layer(networks.actor_joint),
        context=plain_layer(networks.actor.context),
        score=plain_layer(action.score),
        rectified=rectified,
        temperature=float(parts.temperature),
    )


def plain_affine(normalizer: RowNormalizer) -> tuple[Singles, Singles]:
    """Returns what a normaliser subtracts and multiplies by, as it computes them."""
    epsilon = normalizer.count.clamp(max=EPSILON)
    return _singles(normalizer.mean), _singles(th.rsqrt(normalizer.variance + epsilon))


def plain_layer(linear: nn.Linear) -> Layer:
    """Returns a linear map."""
    return Layer(_singles(linear.weight), _singles(linear.bias))


def _singles(tensor: th.Tensor) -> Singles:
    copied: Singles = tensor.detach().cpu().numpy().astype(np.float32)
    return copied
