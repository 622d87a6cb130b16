"""From a checkpoint to the file that serves its policy without PyTorch."""

from collections.abc import Iterable, Mapping
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from torch import nn

from llmroute_gym.envs.observation import Columns
from llmroute_gym.errors import InputError
from llmroute_gym.routers.exported import NETWORKS, ExportedPolicy
from llmroute_gym.routers.policy_file import Arrays, PolicyFile
from llmroute_gym.routers.policy_network import Layer
from llmroute_gym.sb3.checkpoint import Checkpoint
from llmroute_gym.sb3.networks import ACTIVATIONS
from llmroute_gym.sb3.plain_network import plain_affine, plain_layer, plain_network
from llmroute_gym.sb3.policies import TemperedMaskableMlpPolicy, TemperedMlpPolicy
from llmroute_gym.sb3.replica_set import MaskableReplicaSetPolicy, ReplicaSetPolicy
from llmroute_gym.sb3.residual import ResidualPolicy
from llmroute_gym.sb3.row_normalizer import NormalizedRows, RowNormalizer

_REPLICA_SETS: Final = (ReplicaSetPolicy, MaskableReplicaSetPolicy)
_MLPS: Final = (TemperedMlpPolicy, TemperedMaskableMlpPolicy)


def exported(checkpoint: Checkpoint, about: Mapping[str, Any]) -> ExportedPolicy:
    """Returns a policy that is a network alone, with nothing of PyTorch, see `policy_file`.

    Raises:
        InputError: its networks are of another kind, or correct a rule.
    """
    file = policy_file(checkpoint, about)
    if file.kind not in NETWORKS:
        raise InputError(
            f"a policy of model={file.kind} is no network alone, as ONNX takes it; leave "
            "format=onnx out, or take policy_file(checkpoint)"
        )
    return ExportedPolicy(file)


def policy_file(checkpoint: Checkpoint, about: Mapping[str, Any]) -> PolicyFile:
    """Returns all that the choices of a policy depend on.

    Args:
        checkpoint: of a training with ``model=replica_set``, ``mlp`` or ``residual``.
        about: what the file's card is to say beside what the checkpoint knows.

    Raises:
        InputError: its networks are of another kind.
    """
    policy: Any = checkpoint.model.policy
    layout = checkpoint.layout
    n_columns = len(layout.columns)
    if type(policy) in _REPLICA_SETS:
        kind, arrays = "replica_set", _replica_set(policy, Columns(layout.columns))
    elif type(policy) is ResidualPolicy:
        kind, arrays = "residual", _replica_set(policy, Columns(layout.columns))
    elif type(policy) in _MLPS and type(policy.features_extractor) is NormalizedRows:
        kind, arrays = "mlp", _mlp(policy)
    else:
        kind, arrays = type(policy).__name__, None
    names = [name for name, one in ACTIVATIONS.items() if one is policy.activation_fn]
    if arrays is None or not names or arrays["shift"].shape != (n_columns,):
        raise InputError(
            "export takes a policy whose networks are those of model=replica_set or model=mlp, got "
            f"{kind}; train one, or route with router_of(checkpoint)"
        )
    card = {
        "algorithm": type(checkpoint.model).__name__,
        "requests": int(checkpoint.model.num_timesteps),
        "sizes": list(layout.model.actor_sizes),
        **about,
    }
    settings: dict[str, Any] = {"activation": names[0], "temperature": float(policy.temperature)}
    if kind == "residual":
        settings |= {"rule": policy.rule, "inverse_temperature": policy.inverse_temperature}
    return PolicyFile(kind, layout.observation, layout.replicas, settings, arrays, card)


def _replica_set(policy: nn.Module, columns: Columns) -> Arrays | None:
    network = plain_network(policy, columns.signals.tolist())
    if network is None:
        return None
    parts: Any = policy
    last = {"joint": network.joint, "context": network.context, "score": network.score}
    return {
        **_normalizing(parts.pi_features_extractor.normalizer),
        **_named({**_numbered(network.layers), **last}),
    }


def _mlp(policy: nn.Module) -> Arrays:
    parts: Any = policy
    linear = [part for part in parts.mlp_extractor.policy_net if isinstance(part, nn.Linear)]
    layers = _numbered(plain_layer(part) for part in linear)
    return {
        **_normalizing(parts.pi_features_extractor.normalizer),
        **_named({**layers, "score": plain_layer(parts.action_net)}),
    }


def _normalizing(normalizer: RowNormalizer) -> dict[str, npt.NDArray[Any]]:
    """Returns what a normaliser does, and which columns have differed as far as it has seen."""
    shift, factor = plain_affine(normalizer)
    differed = (normalizer.variance > 0).cpu().numpy() | (float(normalizer.count) == 0)
    return {"shift": shift, "factor": factor, "varied": differed.astype(np.bool_)}


def _numbered(layers: Iterable[Layer]) -> dict[str, Layer]:
    return {f"layers.{number}": layer for number, layer in enumerate(layers)}


def _named(layers: Mapping[str, Layer]) -> dict[str, npt.NDArray[Any]]:
    return {
        f"{name}.{part}": numbers
        for name, layer in layers.items()
        for part, numbers in layer._asdict().items()
    }
