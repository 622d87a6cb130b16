"""Trained policies in ONNX, for whoever serves them without PyTorch."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch as th

from llmroute_gym.config import ModelConfig
from llmroute_gym.envs.observation import COLUMNS, Columns
from llmroute_gym.sb3 import RouterPPO, RowNormalizer
from llmroute_gym.sb3.networks import POLICIES, network_options
from llmroute_gym.sb3.row_normalizer import EPSILON, normalizers
from tests.sb3.toy import toy_vec_env

REPLICAS = 4


class Logits(th.nn.Module):
    """Observations (batch, n_replicas, n_columns) to logits (batch, n_replicas)."""

    def __init__(self, policy: Any) -> None:
        super().__init__()
        self.policy = policy

    def forward(self, observation: th.Tensor) -> th.Tensor:
        policy = self.policy
        features = policy.extract_features(observation)
        logits: th.Tensor = policy.action_net(policy.mlp_extractor.forward_actor(features))
        return logits / policy.temperature


def policy(kind: str, seen: bool) -> Any:
    model = ModelConfig(policy=kind, actor_sizes=[16], critic_sizes=[16])
    space = Columns().space(REPLICAS)
    made = RouterPPO(
        POLICIES[kind],
        toy_vec_env(),
        policy_kwargs=network_options(model),
        device="cpu",
        _init_setup_model=False,
    )
    made.observation_space = space
    made._setup_model()
    rng = np.random.default_rng(0)
    if seen:
        for normalizer in normalizers(made.policy):
            normalizer.update(rng.random(len(COLUMNS)), rng.random(len(COLUMNS)) + 0.1, 50)
    made.policy.set_temperature(1.3)
    made.policy.set_training_mode(False)
    return made.policy


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["mlp", "replica_set"])
@pytest.mark.parametrize("seen", [True, False])
def test_an_exported_policy_gives_the_same_logits(kind: str, seen: bool, tmp_path: Path) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    network = Logits(policy(kind, seen)).eval()
    observations = th.rand(7, REPLICAS, len(COLUMNS)) * 20
    batch = th.export.Dim("batch")
    program = th.onnx.export(
        network,
        (observations,),
        dynamo=True,
        input_names=["observation"],
        output_names=["logits"],
        dynamic_shapes={"observation": {0: batch}},
        verbose=False,
    )
    assert program is not None
    program.save(tmp_path / "policy.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "policy.onnx")
    for some in (observations, observations[:1]):
        (logits,) = session.run(["logits"], {"observation": some.numpy()})
        with th.no_grad():
            expected = network(some).numpy()
        np.testing.assert_allclose(logits, expected, atol=2e-5)


def test_the_normaliser_gives_the_numbers_of_its_formula() -> None:
    normalizer, rows = RowNormalizer(3), th.rand(5, 4, 3) * 100
    assert th.equal(normalizer(rows), rows)
    normalizer.update(np.array([1.0, 0.0, 7.0]), np.array([2.0, 0.0, 1e-9]), 3)
    scale = th.rsqrt(normalizer.variance + EPSILON).to(th.float32)
    assert th.equal(normalizer(rows), (rows - normalizer.mean.to(th.float32)) * scale)
