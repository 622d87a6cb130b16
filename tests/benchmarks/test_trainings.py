"""Trainings that are kept, common requests, and percentiles with two-level intervals."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import trainings
from trainings import (
    Cell,
    Evaluation,
    Served,
    Training,
    composed,
    logged,
    serve_once,
    serve_router,
    train_all,
    train_once,
)

from llmroute_gym.compare.serving import serve
from llmroute_gym.compare.statistics import Resampling, change, compare, estimate
from llmroute_gym.config import EvaluationConfig, TrainConfig
from llmroute_gym.errors import InputError
from llmroute_gym.routers import make
from llmroute_gym.routers.simulation import simulate
from llmroute_gym.sim import Workload
from llmroute_gym.sim.build import build_cluster

pytestmark = pytest.mark.slow

TINY = (
    "training.ppo_requests=96",
    "training.rollout_steps=24",
    "training.epochs=2",
    "env.num_envs=2",
    "env.requests_per_episode=20",
    "warm_start.epochs=1",
    "warm_start.decisions=60",
    "stabilization.steps=10",
)
CONFIG = EvaluationConfig(runs=3, requests=25, resamples=200)


@pytest.fixture(scope="module")
def evaluation() -> Evaluation:
    return Evaluation.draw([Cell("poisson", 2.5), Cell("bursty", 4.5)], CONFIG)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("trainings")


@pytest.fixture(scope="module")
def trained(folder: Path) -> Path:
    return train_once(composed(*TINY), folder, "tiny")


def weights(training: Path) -> dict[str, np.ndarray]:
    from llmroute_gym.sb3.checkpoint import Checkpoint

    parameters = Checkpoint.load(training).model.policy.state_dict()
    return {name: value.numpy() for name, value in parameters.items()}


def test_settings_are_those_of_the_command() -> None:
    assert composed() == replace(TrainConfig(), run_dir="unset")
    assert composed("+exp=original", "reward=latency_tuned").reward == TrainConfig().reward
    with pytest.raises(InputError, match="learning_rate"):
        composed("training.learning_rate=-1")


def test_training_leaves_a_checkpoint_and_its_course(trained: Path, folder: Path) -> None:
    found = {file.name for file in trained.iterdir()}
    assert {"model.zip", "metrics.csv", "findings.json", "config.yaml", "training.log"} <= found
    assert [one.name for one in folder.iterdir() if one.name.startswith(".")] == []
    assert len(logged(trained, "train/early_stop")) == 2
    assert len(logged(trained, "replica/swing")) == 1
    assert "PPO starts" in (trained / "training.log").read_text()


def test_finished_training_is_not_repeated(trained: Path, folder: Path) -> None:
    before = (trained / "model.zip").stat().st_mtime_ns
    assert train_once(composed(*TINY), folder, "tiny") == trained
    assert (trained / "model.zip").stat().st_mtime_ns == before


def test_other_training_in_between_changes_nothing(trained: Path, tmp_path: Path) -> None:
    other = train_once(composed(*TINY, "seed=1"), tmp_path, "tiny")
    again = train_once(composed(*TINY), tmp_path, "tiny")
    assert again.name == trained.name != other.name
    expected, found = weights(trained), weights(again)
    assert all(np.array_equal(expected[name], found[name]) for name in expected)


@pytest.mark.parametrize("override", ["seed=3", "reward=original", "cluster.replicas=3"])
def test_digest_follows_the_settings(override: str) -> None:
    assert trainings.digest(composed(override)) != trainings.digest(composed())


def test_digest_ignores_where_a_training_is_kept() -> None:
    assert trainings.digest(composed()) == trainings.digest(replace(composed(), run_dir="other"))


def test_digest_follows_the_files_that_settings_name(tmp_path: Path) -> None:
    def named(content: str) -> str:
        (tmp_path / "demos.parquet").write_text(content)
        return trainings.digest(composed(f"warm_start.demos={tmp_path}"))

    assert named("a") == named("a") != named("b")


def test_failed_training_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="missing"):
        train_once(composed(f"warm_start.demos={tmp_path}/missing"), tmp_path / "kept")
    assert list((tmp_path / "kept").iterdir()) == []


def test_policy_is_served_once(trained: Path, evaluation: Evaluation, folder: Path) -> None:
    training = Training("tiny", composed(*TINY))
    assert train_all([training], folder, evaluation) == {"tiny": trained}
    kept = list(trained.glob("served-*.npz"))
    assert len(kept) == 1
    before = kept[0].stat().st_mtime_ns
    served = serve_once(trained, evaluation)
    assert kept[0].stat().st_mtime_ns == before
    assert served.e2e.shape == (1, 2, 3, 25)
    assert np.isfinite(served.e2e).all()
    assert (served.ttft <= served.e2e).all()


def test_rule_is_served_as_by_simulate(evaluation: Evaluation) -> None:
    served = serve_router("lor", evaluation)
    cluster = build_cluster(evaluation.cluster)
    for cell, runs in enumerate(evaluation.workloads):
        for run, workload in enumerate(runs):
            outcome = simulate(workload, cluster, "lor")
            assert served.e2e[0, cell, run] == pytest.approx(outcome.e2e_s)
            assert served.ttft[0, cell, run] == pytest.approx(outcome.ttft_s)


def test_every_load_has_the_same_requests(evaluation: Evaluation) -> None:
    light, heavy = (runs[1] for runs in evaluation.workloads)
    assert np.array_equal(light.prompt_tokens, heavy.prompt_tokens)
    assert not np.array_equal(light.arrived_at_s, heavy.arrived_at_s)
    assert evaluation.where(arrivals="bursty").tolist() == [1]
    assert evaluation.where(qps=2.5).tolist() == [0]
    assert evaluation.where().tolist() == [0, 1]


def test_trace_is_stretched_to_the_load(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    tokens = rng.integers(1, 500, (2, 200))
    Workload(np.cumsum(rng.exponential(1, 200)), *tokens).to_csv(tmp_path / "trace.csv")
    drawn = Evaluation.draw([Cell("trace", 3.0)], CONFIG, tmp_path / "trace.csv")
    first, *_, last = drawn.workloads[0]
    assert first.prompt_tokens.tolist() == tokens[0, :25].tolist()
    assert last.prompt_tokens.tolist() == tokens[0, -25:].tolist()
    assert np.mean([one.qps for one in drawn.workloads[0]]) == pytest.approx(3.0, rel=0.2)


def test_estimates_are_those_of_the_comparison(evaluation: Evaluation) -> None:
    cluster = build_cluster(evaluation.cluster)
    workloads = evaluation.workloads[1]
    outcomes = {
        name: serve(make(name), workloads, cluster, CONFIG, evaluation.observation)
        for name in ("round_robin", "lor")
    }
    expected = compare(outcomes, "round_robin", CONFIG)[1]
    resampling = Resampling.draw(1, CONFIG)
    baseline, lor = (
        resampling.percentiles(serve_router(name, evaluation).at(np.array([1])).e2e, (99,))[:, 0]
        for name in outcomes
    )
    assert estimate(lor).value == pytest.approx(expected.metrics["e2e_p99_s"].value)
    difference = estimate(change(lor, baseline))
    assert difference.value == pytest.approx(expected.differences["e2e_p99_s"].value)
    assert difference.low <= difference.value <= difference.high


@pytest.mark.parametrize("infinite", [0, 9])
def test_percentiles_are_those_of_repeated_requests(infinite: int) -> None:
    rng = np.random.default_rng(1)
    latency = rng.exponential(10, (4, 2, 3, 5))
    latency[1, 0, 2, :infinite] = np.inf
    resampling = Resampling.draw(4, CONFIG)
    found = resampling.percentiles(latency, (50, 95))
    finite = np.where(np.isinf(latency), 1e9, latency)
    for row in (0, 1, 7):
        seeds, runs = resampling.seeds[row], resampling.runs[row]
        repeated = finite.repeat(seeds, axis=0).repeat(runs, axis=2)
        expected = np.percentile(repeated, (50, 95))
        assert found[row] == pytest.approx(np.where(expected > 1e6, np.inf, expected))
    assert resampling.seeds.sum(axis=1).tolist() == [4] * 201
    assert resampling.runs.sum(axis=1).tolist() == [3] * 201


def test_seeds_widen_the_interval() -> None:
    rng = np.random.default_rng(2)
    alike = np.broadcast_to(rng.exponential(10, (1, 1, 3, 200)), (5, 1, 3, 200))
    apart = alike * np.array([0.5, 0.9, 1.0, 1.1, 2.0])[:, None, None, None]
    resampling = Resampling.draw(5, CONFIG)
    narrow, wide = (estimate(resampling.percentiles(one, (99,))[:, 0]) for one in (alike, apart))
    assert wide.high - wide.low > 2 * (narrow.high - narrow.low)


def test_differences_are_paired() -> None:
    rng = np.random.default_rng(3)
    baseline = rng.exponential(10, (1, 2, 3, 50))
    resampling = Resampling.draw(2, CONFIG)
    slower = resampling.percentiles(np.concatenate([1.25 * baseline] * 2), (0, 100))
    found = estimate(change(slower[:, 1], resampling.percentiles(baseline, (0, 100))[:, 1]))
    assert tuple(vars(found).values()) == pytest.approx((0.25, 0.25, 0.25))


def test_seeds_are_put_together_in_order() -> None:
    parts = [Served(np.full((1, 1, 1, 2), i), np.full((1, 1, 1, 2), -i)) for i in range(3)]
    together = Served.of_seeds(parts)
    assert together.e2e[:, 0, 0, 0].tolist() == [0, 1, 2]
    assert together.seed(2).ttft.tolist() == parts[2].ttft.tolist()
