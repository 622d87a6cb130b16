"""A trained policy as a router in NumPy alone: no PyTorch, no compiler, nothing unpickled."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np
import numpy.typing as npt

from llmroute_gym.errors import InputError, checked_name
from llmroute_gym.ground.arrays import BoolArray, FloatArray, IntArray
from llmroute_gym.ground.signals import SIGNAL_NAMES, Signal
from llmroute_gym.routers.base import Router
from llmroute_gym.routers.policy_file import DAMAGED, Arrays, PolicyFile, damaged

if TYPE_CHECKING:
    from llmroute_gym.routers.policy_network import Network, PolicyNetwork

Singles = npt.NDArray[np.float32]
ALL = tuple(Signal)


def _tanh(x: Singles) -> None:
    np.tanh(x, out=x)


def _rectify(x: Singles) -> None:
    np.maximum(x, np.float32(0.0), out=x)


ACTIVATIONS: Mapping[str, Callable[[Singles], None]] = {"tanh": _tanh, "relu": _rectify}
"""Those of `ModelConfig.activation`, in place."""


class Layer:
    """A linear map, from arrays ``NAME.weights`` (n_out, n_in) and ``NAME.bias`` (n_out,).

    Raises:
        ValueError: their shapes are others.
        KeyError: they are not there.
    """

    def __init__(self, arrays: Arrays, name: str, n_in: int) -> None:
        self.weights = arrays[f"{name}.weights"].astype(np.float32)
        self.bias = arrays[f"{name}.bias"].astype(np.float32)
        if self.weights.shape != (*self.bias.shape, n_in) or not len(self.bias):
            raise ValueError(f"{name} has weights {self.weights.shape}, bias {self.bias.shape}")
        self.n_out = len(self.bias)
        self._by_input = np.ascontiguousarray(self.weights.T)

    def __call__(self, x: Singles) -> Singles:
        """Maps numbers (n, n_in) to (n, n_out)."""
        mapped: Singles = np.dot(x, self._by_input)
        mapped += self.bias
        return mapped


class Logits(Protocol):
    """A network."""

    def __call__(self, z: Singles) -> Singles:
        """Returns logits (n, n_replicas) of normalised columns (n, n_replicas, n_columns)."""


class ReplicaSet:
    """The actor of `llmroute_gym.sb3.replica_set`: shared by all rows, in any number."""

    def __init__(self, arrays: Arrays, n_columns: int, activation: str) -> None:
        self._activate = ACTIVATIONS[activation]
        self.layers = _layers(arrays, 2 * n_columns)
        width = self.layers[-1].n_out
        self.joint = Layer(arrays, "joint", width)
        self.context = Layer(arrays, "context", 2 * width)
        self.score = Layer(arrays, "score", width + n_columns)
        if {self.joint.n_out, self.context.n_out} != {width} or self.score.n_out != 1:
            raise ValueError("its layers do not fit together")

    def __call__(self, z: Singles) -> Singles:
        """Returns logits (n, n_replicas) of normalised columns (n, n_replicas, n_columns)."""
        n, n_replicas, n_columns = z.shape
        # Reductions are called as such: the methods around them cost more than they do.
        mean = np.add.reduce(z, axis=1, keepdims=True) / np.float32(n_replicas)
        features: Singles = np.concatenate([z, z - mean], axis=2)
        np.arcsinh(features, out=features)
        codes = features = features.reshape(n * n_replicas, 2 * n_columns)
        for layer in self.layers:
            codes = layer(codes)
            self._activate(codes)
        by_set = codes.reshape(n, n_replicas, -1)
        mean = np.add.reduce(by_set, axis=1) / np.float32(n_replicas)
        pooled = np.concatenate([mean, np.maximum.reduce(by_set, axis=1)], axis=1)
        joint = self.joint(codes).reshape(by_set.shape)
        joint += self.context(pooled)[:, None]
        self._activate(joint)
        last = [joint.reshape(codes.shape), features[:, n_columns:]]
        return self.score(np.concatenate(last, axis=1)).reshape(n, n_replicas)


class Mlp:
    """An actor that reads all rows as one vector, so that their number is fixed."""

    def __init__(self, arrays: Arrays, n_columns: int, activation: str, n_replicas: int) -> None:
        self._activate = ACTIVATIONS[activation]
        self.layers = _layers(arrays, n_columns * n_replicas, at_least=0)
        width = self.layers[-1].n_out if self.layers else n_columns * n_replicas
        self.score = Layer(arrays, "score", width)
        if self.score.n_out != n_replicas:
            raise ValueError(f"it chooses among {self.score.n_out} of {n_replicas} replicas")

    def __call__(self, z: Singles) -> Singles:
        """Returns logits (n, n_replicas) of normalised columns (n, n_replicas, n_columns)."""
        codes = np.arcsinh(z).reshape(len(z), -1)
        for layer in self.layers:
            codes = layer(codes)
            self._activate(codes)
        return self.score(codes)


def _layers(arrays: Arrays, n_in: int, at_least: int = 1) -> list[Layer]:
    layers: list[Layer] = []
    while f"layers.{len(layers)}.weights" in arrays or len(layers) < at_least:
        layers.append(Layer(arrays, f"layers.{len(layers)}", n_in))
        n_in = layers[-1].n_out
    return layers


@dataclass(frozen=True)
class Scaling:
    """From rows in physical units to what a network takes in.

    Attributes:
        signals: (n_columns,) which columns of a row.
        scale: (n_columns,) what they are multiplied by.
        high: (n_columns,) what they are clipped to then, below by 0.
        shift: (n_columns,) what is subtracted then.
        factor: (n_columns,) what that is multiplied by.
    """

    signals: IntArray
    scale: FloatArray
    high: FloatArray
    shift: Singles
    factor: Singles

    @classmethod
    def of(cls, file: PolicyFile) -> "Scaling":
        """Reads it.

        Raises:
            ValueError: there is not one shift and one factor for each column.
        """
        signals = [ALL[SIGNAL_NAMES.index(name)] for name in file.observation.columns]
        shift, factor = (file.arrays[name].astype(np.float32) for name in ("shift", "factor"))
        if {shift.shape, factor.shape} != {(len(signals),)}:
            raise ValueError(f"it has {shift.shape} shifts and {factor.shape} factors")
        return cls(
            np.array(signals, dtype=np.int64),
            np.array([signal.scale for signal in signals]),
            np.array([signal.high for signal in signals]),
            shift,
            factor,
        )

    def __call__(self, rows: FloatArray) -> Singles:
        """Returns normalised columns (..., n_columns) of rows (..., N_SIGNALS)."""
        scaled = rows.take(self.signals, axis=-1)
        scaled *= self.scale
        np.maximum(scaled, 0.0, out=scaled)
        np.minimum(scaled, self.high, out=scaled)
        singles: Singles = scaled.astype(np.float32)
        singles -= self.shift
        singles *= self.factor
        return singles


class ExportedPolicy(Router):
    """Routes each request to the replica that an exported policy finds most probable.

    Args:
        file: of a policy over replicas, or of one with a fixed number of them.

    Attributes:
        reads: the signals that its choice depends on: those that differed in its training.
        file: what it was made of.

    Raises:
        ValueError: its arrays do not fit together.
        KeyError: it lacks some.
    """

    name = "policy"

    def __init__(self, file: PolicyFile) -> None:
        self.file = file
        self.observation = file.observation
        self.temperature = float(file.settings["temperature"])
        if not self.temperature > 0:
            raise ValueError(f"its temperature is {self.temperature}")
        self.scaling = Scaling.of(file)
        n_columns, activation = len(self.scaling.signals), str(file.settings["activation"])
        self._fixed = file.kind == "mlp"
        self.logits_of: Logits = (
            Mlp(file.arrays, n_columns, activation, file.replicas)
            if self._fixed
            else ReplicaSet(file.arrays, n_columns, activation)
        )
        varied = file.arrays["varied"].astype(bool)
        self.reads = frozenset(ALL[one] for one in self.scaling.signals[varied].tolist())

    def reset(self, n_replicas: int, n_requests: int, rng: np.random.Generator) -> None:
        """Starts a run; nothing is remembered of earlier ones.

        Raises:
            InputError: the policy takes another number of replicas.
        """
        self._check_number(n_replicas)

    def route(self, rows: FloatArray, mask: BoolArray) -> int:
        """Returns the most probable replica among those that the mask allows."""
        logits = self.logits(rows[None])[0]
        logits[~mask] = -np.inf
        return int(logits.argmax())

    def route_many(self, rows: FloatArray, masks: BoolArray) -> IntArray:
        """Decides in several clusters at once; a policy has no memory of its own.

        Args:
            rows: (n, n_replicas, N_SIGNALS), in physical units.
            masks: (n, n_replicas).

        Returns:
            (n,) replicas.

        Raises:
            InputError: the policy takes another number of replicas.
        """
        chosen: IntArray = np.where(masks, self.logits(rows), -np.inf).argmax(axis=1)
        return chosen

    def logits(self, rows: FloatArray) -> Singles:
        """Returns logarithms of the probabilities but for a constant, (n, n_replicas).

        Args:
            rows: (n, n_replicas, N_SIGNALS), in physical units.

        Raises:
            InputError: the policy takes another number of replicas.
        """
        self._check_number(rows.shape[1])
        logits: Singles = self.logits_of(self.scaling(rows)) / np.float32(self.temperature)
        return logits

    def _check_number(self, n_replicas: int) -> None:
        if self._fixed and n_replicas != self.file.replicas:
            raise InputError(
                f"the policy was trained with {self.file.replicas} replicas and its network takes "
                f"no other number, got {n_replicas}; train with model=replica_set for any number"
            )

    def sure_rule(self) -> "PolicyNetwork | None":
        """Returns the rule by which the kernels choose as it does, but where scores nearly tie."""
        network = self.network() if type(self) is ExportedPolicy else None
        if network is None:
            return None
        # Brings Numba, which nobody needs who only serves.
        from llmroute_gym.routers.policy_network import PolicyNetwork

        return PolicyNetwork(network=network)

    def network(self) -> "Network | None":
        """Returns the network as the kernels take it, None where it is of another kind."""
        if not isinstance(self.logits_of, ReplicaSet):
            return None
        from llmroute_gym.routers import policy_network as compiled

        def layer(one: Layer) -> compiled.Layer:
            return compiled.Layer(one.weights, one.bias)

        scaling, network = self.scaling, self.logits_of
        return compiled.Network(
            signals=scaling.signals.tolist(),
            shift=scaling.shift,
            factor=scaling.factor,
            layers=[layer(one) for one in network.layers],
            joint=layer(network.joint),
            context=layer(network.context),
            score=layer(network.score),
            rectified=self.file.settings["activation"] == "relu",
            temperature=self.temperature,
        )


def _residual(file: PolicyFile) -> Router:
    """Returns the rule with its correction; it is compiled, as the rule alone is too."""
    from llmroute_gym.routers.residual import ResidualRule, scored_rule

    network = ExportedPolicy(file).network()
    assert network is not None
    router = ResidualRule(
        rule=scored_rule(str(file.settings["rule"])),
        network=network,
        inverse_temperature=float(file.settings["inverse_temperature"]),
    )
    router.observation = file.observation
    return router


NETWORKS = ("replica_set", "mlp")
"""Those kinds of a policy that are a network alone."""
KINDS: Mapping[str, Callable[[PolicyFile], Router]] = {
    **dict.fromkeys(NETWORKS, ExportedPolicy),
    "residual": _residual,
}
"""`PolicyFile.kind` to what makes a router of such a file."""


def routed(file: PolicyFile) -> Router:
    """Returns the router that a file's policy is.

    Raises:
        ValueError: what it holds does not fit together.
        KeyError: it lacks something.
    """
    return KINDS[file.kind](file)


def load_policy(path: str | Path) -> Router:
    """Returns the router that a file of ``python -m llmroute_gym.export`` holds.

    Raises:
        InputError: there is no such file, or it is no complete policy of this version.
    """
    file = PolicyFile.read(path)
    checked_name(f"kind of policy in {path}:", file.kind, KINDS)
    try:
        return routed(file)
    except DAMAGED as error:
        raise damaged(path, error) from error
