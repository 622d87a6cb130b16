"""Exported policies choose as their checkpoints do."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch as th
from stable_baselines3 import PPO

from llmroute_gym import Workload, simulate
from llmroute_gym.config import ModelConfig, ObservationConfig
from llmroute_gym.errors import InputError
from llmroute_gym.ground.signals import Signal
from llmroute_gym.routers import make
from llmroute_gym.routers.exported import ExportedPolicy, load_policy
from llmroute_gym.routers.onnx_file import write_onnx
from llmroute_gym.sb3 import Checkpoint, PolicyRouter, ReplicaSetPolicy
from llmroute_gym.sb3.checkpoint import Layout
from llmroute_gym.sb3.exporting import exported
from llmroute_gym.sb3.policies import TemperedMlpPolicy
from llmroute_gym.sb3.row_normalizer import normalizers
from llmroute_gym.sim import Cluster
from tests.sb3.test_plain_network import POLICIES, ROWS, ppo_of, random_rows

MLPS: list[tuple[ModelConfig, Any]] = [
    (ModelConfig(policy="mlp"), TemperedMlpPolicy),
    (ModelConfig(policy="mlp", actor_sizes=[], activation="relu"), TemperedMlpPolicy),
]


def checkpoint_of(model: ModelConfig, kind: Any, **told: Any) -> Checkpoint:
    ppo = ppo_of(model, kind, **told)
    ppo.policy.set_temperature(0.7)
    return Checkpoint(ppo, Layout(4, ObservationConfig(**told), model))


def log_probabilities(logits: Any) -> Any:
    apart = logits - logits.max(axis=1, keepdims=True)
    return apart - np.log(np.exp(apart).sum(axis=1, keepdims=True))


def assert_alike(checkpoint: Checkpoint, policy: ExportedPolicy, n_replicas: int, n: int) -> None:
    """Compares choices and logits on random rows of any load."""
    router = PolicyRouter(checkpoint)
    rows, masks = random_rows(np.random.default_rng(n_replicas), n, n_replicas)
    for first in range(0, n, 2500):
        part = slice(first, first + 2500)
        observations = th.from_numpy(router._columns.scaled(rows[part]))
        with th.no_grad():
            distribution: Any = router.policy.get_distribution(observations).distribution
        logits = log_probabilities(policy.logits(rows[part]))
        np.testing.assert_allclose(logits, distribution.logits.numpy(), atol=1e-5, rtol=0)
        expected = router.route_many(rows[part], masks[part])
        np.testing.assert_array_equal(policy.route_many(rows[part], masks[part]), expected)
    alone = [policy.route(some, mask) for some, mask in zip(rows[:100], masks[:100], strict=True)]
    assert alone == router.route_many(rows[:100], masks[:100]).tolist()


@pytest.mark.parametrize("n_replicas", [1, 2, 4, 8])
@pytest.mark.parametrize(("model", "kind"), POLICIES, ids=["tanh", "relu"])
def test_it_chooses_as_the_policy_among_any_number_of_replicas(
    model: ModelConfig, kind: Any, n_replicas: int, tmp_path: Path
) -> None:
    checkpoint = checkpoint_of(model, kind)
    exported(checkpoint, {}).file.write(tmp_path / "policy.npz")
    policy = load_policy(tmp_path / "policy.npz")
    assert isinstance(policy, ExportedPolicy)
    assert_alike(checkpoint, policy, n_replicas, ROWS)


@pytest.mark.parametrize(("model", "kind"), MLPS, ids=["tanh", "relu"])
def test_a_policy_of_a_fixed_number_of_replicas_is_exported_too(
    model: ModelConfig, kind: Any, tmp_path: Path
) -> None:
    checkpoint = checkpoint_of(model, kind)
    exported(checkpoint, {}).file.write(tmp_path / "policy.npz")
    policy = load_policy(tmp_path / "policy.npz")
    assert isinstance(policy, ExportedPolicy)
    assert_alike(checkpoint, policy, 4, 5000)
    rows, masks = random_rows(np.random.default_rng(0), 1, 3)
    with pytest.raises(InputError, match="trained with 4 replicas and its network takes no other"):
        policy.route(rows[0], masks[0])


@pytest.mark.parametrize(("model", "kind"), [*POLICIES, *MLPS])
def test_onnx_runtime_gives_the_same_numbers(model: ModelConfig, kind: Any, tmp_path: Path) -> None:
    pytest.importorskip("onnx")
    onnxruntime = pytest.importorskip("onnxruntime")
    policy = exported(checkpoint_of(model, kind, columns=["waiting", "e2e_s"]), {"run": "mine"})
    assert write_onnx(policy, tmp_path / "policy.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "policy.onnx")
    told = session.get_modelmeta().custom_metadata_map
    assert told["columns"] == '["waiting", "e2e_s"]'
    assert '"run": "mine"' in told["about"]
    rows, _ = random_rows(np.random.default_rng(3), 200, 4)
    columns = rows[..., [Signal.WAITING, Signal.E2E_S]].astype(np.float32)
    (logits,) = session.run(["logits"], {"columns": columns})
    np.testing.assert_allclose(logits, policy.logits(rows), atol=1e-4)


def test_it_says_what_has_differed_in_training() -> None:
    checkpoint = checkpoint_of(*POLICIES[0], columns=["waiting", "cached_prefix"])
    (normalizer,) = normalizers(checkpoint.model.policy.pi_features_extractor)
    assert exported(checkpoint, {}).reads == {Signal.WAITING, Signal.CACHED_PREFIX}
    normalizer.variance[1] = 0.0
    assert exported(checkpoint, {}).reads == {Signal.WAITING}
    normalizer.count.zero_()
    assert exported(checkpoint, {}).reads == {Signal.WAITING, Signal.CACHED_PREFIX}


def test_it_routes_a_run_as_the_policy_does(tmp_path: Path) -> None:
    checkpoint = checkpoint_of(*POLICIES[0], information="router")
    path = tmp_path / "policy.npz"
    exported(checkpoint, {}).file.write(path)
    rng = np.random.default_rng(0)
    arrived_at_s = np.cumsum(rng.exponential(0.1, 300))
    workload = Workload(arrived_at_s, rng.integers(1, 900, 300), rng.integers(1, 200, 300))
    cluster = Cluster.from_profile("a100-llama-2-7b", replicas=4)
    expected = simulate(workload, cluster, PolicyRouter(checkpoint)).replica
    for router in (str(path), make({"name": str(path)}), load_policy(path)):
        np.testing.assert_array_equal(simulate(workload, cluster, router).replica, expected)
    in_reference = simulate(workload, cluster, str(path), engine="reference").replica
    np.testing.assert_array_equal(in_reference, expected)


@pytest.mark.cli
def test_it_is_served_without_pytorch_and_numba(tmp_path: Path) -> None:
    exported(checkpoint_of(*POLICIES[0], information="router"), {}).file.write(tmp_path / "p.npz")
    code = f"""
import sys
import numpy as np
from llmroute_gym.config import ObservationConfig
from llmroute_gym.gateway.deciding import Arrival, Decider
from llmroute_gym.routers import make
told = ObservationConfig(information="router")
decider = Decider(make({str(tmp_path / "p.npz")!r}), [1.0, 1.0], told, np.random.default_rng(0))
print(decider.decide(Arrival(5), np.array([False, True]), 1.0))
assert not {{"torch", "numba", "stable_baselines3", "onnx"}} & set(sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["1"]


def test_other_networks_are_refused(tmp_path: Path) -> None:
    class Own(ReplicaSetPolicy):
        pass

    for kind, model in ((Own, ModelConfig()), ("MlpPolicy", ModelConfig(policy="mlp"))):
        options = {} if kind == "MlpPolicy" else None
        ppo = ppo_of(model, kind) if options is None else PPO(kind, ppo_of(ModelConfig()).env)
        with pytest.raises(InputError, match="whose networks are those of model=replica_set"):
            exported(Checkpoint(ppo, Layout(4, ObservationConfig(), model)), {})
