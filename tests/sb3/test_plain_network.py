"""Policies over replicas choose in the kernels as they do in PyTorch."""

from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from sb3_contrib import MaskablePPO
from stable_baselines3 import PPO
from stable_baselines3.common.vec_env import VecNormalize

from llmroute_gym import Cluster, Workload, simulate
from llmroute_gym.compare.serving import serve
from llmroute_gym.config import EvaluationConfig, ModelConfig, ObservationConfig
from llmroute_gym.ground.signals import N_SIGNALS, Signal
from llmroute_gym.routers.kernels import serve_by_rule
from llmroute_gym.routers.policy_network import MARGIN, UNDECIDED, PolicyNetwork
from llmroute_gym.routers.simulation import route_all
from llmroute_gym.sb3 import Checkpoint, PolicyRouter, ReplicaSetPolicy, RouterVecEnv
from llmroute_gym.sb3.networks import network_options
from llmroute_gym.sb3.policy_router import SampledPolicyRouter
from llmroute_gym.sb3.replica_set import MaskableReplicaSetPolicy
from llmroute_gym.sb3.row_normalizer import NormalizedRows, normalizers
from llmroute_gym.sim import Replica
from llmroute_gym.sim.compiled import CompiledRun
from llmroute_gym.sim.profile_time import load_profile

VERSION_1 = Path(__file__).parents[1] / "data" / "model_v1.zip"
ROWS = 25_000
"""Of each number of replicas, 100,000 in all."""


def policy_of(model: ModelConfig, kind: Any = ReplicaSetPolicy, **told: Any) -> PolicyRouter:
    return PolicyRouter(ppo_of(model, kind, **told))


def ppo_of(model: ModelConfig, kind: Any = ReplicaSetPolicy, **told: Any) -> Any:
    """Returns a PPO with strong random weights, as a long training leaves them."""
    algorithm = MaskablePPO if kind is MaskableReplicaSetPolicy else PPO
    env = RouterVecEnv(gym.make_vec("LLMRoute-v0", num_envs=1, observation=told))
    ppo = algorithm(kind, env, policy_kwargs=network_options(model), seed=0, device="cpu")
    generator = th.Generator().manual_seed(1)
    with th.no_grad():
        for weights in ppo.policy.parameters():
            weights.add_(th.randn(weights.shape, generator=generator) * weights.shape[-1] ** -0.5)
    for normalizer in normalizers(ppo.policy):
        n_columns = len(normalizer.mean)
        rng = np.random.default_rng(2)
        normalizer.update(rng.exponential(1, n_columns), rng.exponential(1, n_columns), 1000)
    return ppo


def random_rows(rng: np.random.Generator, n: int, n_replicas: int) -> Any:
    """Draws rows (n, n_replicas, N_SIGNALS) of any load, and masks."""
    rows = rng.exponential(1.0, (n, n_replicas, N_SIGNALS))
    rows *= rng.choice([0.0, 0.01, 0.3, 1.0, 5.0, 1000.0], (n, 1, N_SIGNALS))
    rows /= [signal.scale for signal in Signal]
    masks = rng.random((n, n_replicas)) < 0.8
    masks[np.arange(n), rng.integers(n_replicas, size=n)] = True
    return rows, masks


def chosen(rule: PolicyNetwork, rows: Any, masks: Any) -> Any:
    rule.reset(rows.shape[1], len(rows), np.random.default_rng(0))
    constants, none = rule.constants(), np.zeros(0)
    return np.array(
        [
            rule.decide(some, mask.copy(), none, constants, rule.memory)
            for some, mask in zip(rows, masks, strict=True)
        ]
    )


POLICIES = [
    (ModelConfig(policy="replica_set"), ReplicaSetPolicy),
    (
        ModelConfig(policy="replica_set", actor_sizes=[7, 30, 9], activation="relu"),
        MaskableReplicaSetPolicy,
    ),
]


@pytest.mark.parametrize("n_replicas", [1, 2, 4, 8])
@pytest.mark.parametrize(("model", "kind"), POLICIES, ids=["tanh", "relu"])
def test_the_most_probable_is_that_of_pytorch(
    model: ModelConfig, kind: Any, n_replicas: int
) -> None:
    router = policy_of(model, kind)
    router.policy.set_temperature(0.7)
    rows, masks = random_rows(np.random.default_rng(n_replicas), ROWS, n_replicas)
    parts = [slice(i, i + 2500) for i in range(0, ROWS, 2500)]
    expected = np.concatenate([router.route_many(rows[part], masks[part]) for part in parts])
    rule = router.sure_rule()
    assert rule is not None
    answers = chosen(rule, rows, masks)
    undecided = answers == UNDECIDED
    assert undecided.mean() < 1e-3
    np.testing.assert_array_equal(answers[~undecided], expected[~undecided])
    assert n_replicas == 1 or len(set(expected)) == n_replicas
    all_alone = PolicyNetwork(network=rule.network, sure=False)
    assert (chosen(all_alone, rows[:500], masks[:500]) != UNDECIDED).all()
    assert (chosen(all_alone, rows[:500], masks[:500]) == expected[:500]).mean() > 0.99


def test_scores_are_well_within_the_margin() -> None:
    router = policy_of(ModelConfig(policy="replica_set"))
    rule = router.sure_rule()
    assert rule is not None
    rows, masks = random_rows(np.random.default_rng(0), 500, 4)
    observations = th.from_numpy(router._columns.scaled(rows))
    with th.no_grad():
        features = router.policy.extract_features(observations, router.policy.pi_features_extractor)
        latent = router.policy.mlp_extractor.forward_actor(features)
        score = router.policy.action_net.score
        expected = score(latent).squeeze(-1).numpy()
        sizes = (score.weight * latent).abs().sum(-1) + score.bias.abs()
    apart = 0.0
    rule.reset(4, 500, np.random.default_rng(0))
    for some, mask, scores, size in zip(rows, masks, expected, sizes.numpy(), strict=True):
        rule.decide(some, mask, np.zeros(0), rule.constants(), rule.memory)
        ours = rule.memory.view(np.float32)[:4]
        apart = max(apart, float(np.abs(ours - scores).max() / size.max()))
    assert apart < MARGIN / 10


def workload(n: int = 400) -> Workload:
    rng = np.random.default_rng(0)
    arrived_at_s = np.cumsum(rng.exponential(0.1, n))
    return Workload(arrived_at_s, rng.integers(1, 900, n), rng.integers(1, 200, n))


@pytest.mark.parametrize(
    "told",
    [
        {},
        {"information": "router"},
        {"signal_interval_s": 5.0, "columns": ["kv_usage", "oldest_waiting_s", "waiting", "fits"]},
    ],
)
@pytest.mark.parametrize("n_replicas", [1, 3, 4])
def test_a_run_is_the_same_as_when_pytorch_is_asked(told: dict[str, Any], n_replicas: int) -> None:
    router = policy_of(ModelConfig(policy="replica_set"), **told)
    small = Replica(load_profile("a100-internlm-20b").batch_time, num_blocks=60, watermark_blocks=0)
    cluster = Cluster((*Cluster.from_profile("a100-internlm-20b", replicas=n_replicas), small))
    outcome = simulate(workload(), cluster, router)
    run = CompiledRun(workload(), cluster, observation=router.observation)
    route_all(run, router, np.random.default_rng(0))
    for name in ("replica", "finished_at_s"):
        np.testing.assert_array_equal(getattr(outcome, name), getattr(run.outcome(), name))
    assert len(set(outcome.replica)) > 1


def test_pytorch_is_asked_only_where_scores_nearly_tie(monkeypatch: pytest.MonkeyPatch) -> None:
    four = Cluster.from_profile("a100-internlm-20b", replicas=4)
    router = policy_of(ModelConfig(policy="replica_set"))
    asked = []
    monkeypatch.setattr(router, "route", lambda rows, mask: asked.append(rows) or 0)
    simulate(workload(), four, router)
    assert len(asked) < 4
    equal = policy_of(ModelConfig(policy="replica_set"), columns=["prompt_tokens"])
    monkeypatch.setattr(equal, "route", lambda rows, mask: 2)
    assert simulate(workload(), four, equal).replica.tolist() == [2] * 400


def test_other_policies_are_asked_for_each_request() -> None:
    model = ModelConfig(policy="replica_set")
    known = ppo_of(model)
    assert PolicyRouter(known).sure_rule() is not None
    assert SampledPolicyRouter(known, np.random.default_rng(0)).sure_rule() is None

    class Own(PolicyRouter):
        def route(self, rows: Any, mask: Any) -> int:
            return 0

    assert Own(known).sure_rule() is None
    env = RouterVecEnv(gym.make_vec("LLMRoute-v0", num_envs=1))
    for ppo in (
        PPO("MlpPolicy", env, device="cpu"),
        PPO(ReplicaSetPolicy, VecNormalize(env, norm_obs=True), device="cpu"),
        PPO(
            ReplicaSetPolicy,
            env,
            device="cpu",
            policy_kwargs={"features_extractor_class": NormalizedRows},
        ),
        PPO(ReplicaSetPolicy, env, device="cpu", policy_kwargs={"activation_fn": th.nn.ELU}),
    ):
        router = PolicyRouter(ppo)
        assert router.sure_rule() is None
        run = CompiledRun(workload(20), Cluster.from_profile("a100-internlm-20b", replicas=4))
        assert not serve_by_rule(run, router, np.random.default_rng(0))


def test_a_comparison_has_the_numbers_of_pytorch(monkeypatch: pytest.MonkeyPatch) -> None:
    router = PolicyRouter(Checkpoint.load(VERSION_1))
    workloads = [workload(200), workload(100)]
    told = (
        Cluster.from_profile("a100-internlm-20b", replicas=4),
        EvaluationConfig(seed=3),
        ObservationConfig(),
    )
    runs: list[None] = []
    kernel = serve(router, workloads, *told, lambda: runs.append(None))
    assert len(runs) == 2
    monkeypatch.setattr(PolicyRouter, "sure_rule", lambda self: None)
    for ours, theirs in zip(kernel, serve(router, workloads, *told), strict=True):
        np.testing.assert_array_equal(ours.replica, theirs.replica)
        np.testing.assert_array_equal(ours.finished_at_s, theirs.finished_at_s)
