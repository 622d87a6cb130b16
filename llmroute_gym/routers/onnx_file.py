"""An exported policy in ONNX, for whoever serves it with another runtime.

One input ``columns``, float32 (batch, replicas, columns): the policy's columns as they stand in a
row, in physical units; one output ``logits``, (batch, replicas). The number of replicas is free for
a policy over replicas. Card and column names are in the metadata.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from llmroute_gym.errors import InputError
from llmroute_gym.ground.files import complete_or_absent
from llmroute_gym.ground.signals import N_SIGNALS
from llmroute_gym.routers.exported import ExportedPolicy, Layer, Mlp, ReplicaSet

OPSET: Final = 18
IR_VERSION: Final = 9
"""Of the same time as the operators, so that older runtimes read it."""
APART: Final = 1e-4
"""Most that logits may differ by between NumPy and ONNX Runtime."""


def write_onnx(policy: ExportedPolicy, path: str | Path) -> bool:
    """Writes a policy; a file that stood there stays until the new one is complete.

    Returns:
        Whether ONNX Runtime is here and gave the same numbers.

    Raises:
        InputError: the package onnx is missing, the file cannot be written, or ONNX Runtime gives
            other numbers.
    """
    try:
        import onnx
    except ImportError as error:
        raise InputError(
            "format=onnx needs the package onnx, which is not here; pip install llmroute-gym[onnx]"
        ) from error
    model = _Graph(policy).model()
    onnx.checker.check_model(model)
    with complete_or_absent(path) as part:
        part.write_bytes(model.SerializeToString())
        return _same_numbers(policy, part)


class _Graph:
    """Nodes and constants of a policy, one operator after the other."""

    def __init__(self, policy: ExportedPolicy) -> None:
        self._policy = policy
        self._nodes: list[Any] = []
        self._constants: list[Any] = []

    def model(self) -> Any:
        """Returns the whole model."""
        from onnx import TensorProto, helper

        policy, scaling = self._policy, self._policy.scaling
        n_columns = len(scaling.signals)
        x = self._add("Mul", "columns", self._floats(scaling.scale))
        x = self._add("Max", x, self._floats(0.0))
        x = self._add("Min", x, self._floats(scaling.high))
        x = self._add("Sub", x, self._floats(scaling.shift))
        z = self._add("Mul", x, self._floats(scaling.factor))
        network = policy.logits_of
        if isinstance(network, ReplicaSet):
            scores = self._replica_set(network, z)
            replicas: int | str = "replicas"
        else:
            assert isinstance(network, Mlp)
            scores, replicas = self._mlp(network, z), policy.file.replicas
        self._add("Div", scores, self._floats(policy.temperature), out="logits")
        info = helper.make_tensor_value_info
        shape: list[int | str] = ["batch", replicas, n_columns]
        graph = helper.make_graph(
            self._nodes,
            "policy",
            [info("columns", TensorProto.FLOAT, shape)],
            [info("logits", TensorProto.FLOAT, shape[:2])],
            self._constants,
        )
        opset = [helper.make_opsetid("", OPSET)]
        model = helper.make_model(graph, opset_imports=opset, producer_name="llmroute-gym")
        model.ir_version = IR_VERSION
        told = {
            "columns": json.dumps(list(policy.file.observation.columns)),
            "about": json.dumps(dict(policy.file.card)),
        }
        helper.set_model_props(model, told)
        return model

    def _replica_set(self, network: ReplicaSet, z: str) -> str:
        rows = self._integers([1])
        apart = self._add("Sub", z, self._add("ReduceMean", z, rows, keepdims=1))
        apart = self._add("Asinh", apart)
        codes = self._add("Concat", self._add("Asinh", z), apart, axis=2)
        for layer in network.layers:
            codes = self._activated(self._linear(codes, layer))
        mean = self._add("ReduceMean", codes, rows, keepdims=1)
        most = self._add("ReduceMax", codes, rows, keepdims=1)
        context = self._linear(self._add("Concat", mean, most, axis=2), network.context)
        joint = self._activated(self._add("Add", self._linear(codes, network.joint), context))
        scores = self._linear(self._add("Concat", joint, apart, axis=2), network.score)
        return self._add("Squeeze", scores, self._integers([2]))

    def _mlp(self, network: Mlp, z: str) -> str:
        codes = self._add("Flatten", self._add("Asinh", z), axis=1)
        for layer in network.layers:
            codes = self._activated(self._linear(codes, layer))
        return self._linear(codes, network.score)

    def _linear(self, x: str, layer: Layer) -> str:
        product = self._add("MatMul", x, self._floats(layer.weights.T))
        return self._add("Add", product, self._floats(layer.bias))

    def _activated(self, x: str) -> str:
        kind = self._policy.file.settings["activation"]
        return self._add({"tanh": "Tanh", "relu": "Relu"}[kind], x)

    def _add(self, operator: str, *inputs: str, out: str | None = None, **options: Any) -> str:
        """Adds an operator; returns the name of what it gives."""
        from onnx import helper

        name = out or f"x{len(self._nodes)}"
        self._nodes.append(helper.make_node(operator, list(inputs), [name], **options))
        return name

    def _floats(self, numbers: npt.ArrayLike) -> str:
        return self._constant(np.asarray(numbers, dtype=np.float32))

    def _integers(self, numbers: Sequence[int]) -> str:
        return self._constant(np.asarray(numbers, dtype=np.int64))

    def _constant(self, numbers: npt.NDArray[Any]) -> str:
        from onnx import numpy_helper

        name = f"c{len(self._constants)}"
        self._constants.append(numpy_helper.from_array(np.ascontiguousarray(numbers), name))
        return name


def _same_numbers(policy: ExportedPolicy, path: Path) -> bool:
    """Compares with ONNX Runtime where that is installed; returns whether it is.

    Raises:
        InputError: it gives other numbers.
    """
    try:
        import onnxruntime
    except ImportError:
        return False
    rng, scaling = np.random.default_rng(0), policy.scaling
    sizes = [policy.file.replicas] if isinstance(policy.logits_of, Mlp) else [1, 4, 9]
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    for n_replicas in sizes:
        rows = np.zeros((50, n_replicas, N_SIGNALS))
        columns = rng.exponential(1.0, (50, n_replicas, len(scaling.signals))) / scaling.scale
        rows[..., scaling.signals] = columns
        (logits,) = session.run(["logits"], {"columns": columns.astype(np.float32)})
        apart = float(np.abs(logits - policy.logits(rows)).max())
        if not apart <= APART:
            raise InputError(
                f"ONNX Runtime {onnxruntime.__version__} gives logits that differ by {apart:.2g}; "
                "take the file for NumPy"
            )
    return True
