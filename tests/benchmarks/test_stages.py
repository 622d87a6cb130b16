"""The stages of the tuning log: trainings that are watched, and what is read off their courses."""

import csv
from pathlib import Path

import numpy as np
import pytest
import torch
from courses import (
    END,
    START,
    WEIGHTS_FILE,
    CloneAccuracy,
    Course,
    KeepWeights,
    clone_accuracy,
    clone_once,
    course,
    first_within,
    movement,
    watch,
)
from stage_files import plot, write_csv
from stage_numbers import BASE, CLONES, CONFIGURATIONS, LOADS, RULES, Measured, demonstrated
from stages import section
from trainings import (
    Cell,
    Evaluation,
    Served,
    Training,
    composed,
    serve_once,
    serve_router,
    train_once,
)

from llmroute_gym.compare.statistics import Resampling
from llmroute_gym.config import EvaluationConfig
from llmroute_gym.sb3.checkpoint import Checkpoint

pytestmark = pytest.mark.slow

TINY = (
    "training.ppo_requests=144",
    "training.rollout_steps=12",
    "training.epochs=1",
    "env.num_envs=2",
    "env.requests_per_episode=20",
    "warm_start.epochs=1",
    "warm_start.decisions=60",
    "stabilization.steps=10",
)
ROLLOUT = 24


@pytest.fixture(scope="module")
def evaluation() -> Evaluation:
    config = EvaluationConfig(runs=2, requests=15, resamples=20)
    return Evaluation.draw([Cell("poisson", qps) for qps in LOADS], config)


@pytest.fixture(scope="module")
def watched(tmp_path_factory: pytest.TempPathFactory, evaluation: Evaluation) -> Path:
    return watch(Training("tiny", composed(*TINY)), tmp_path_factory.mktemp("watched"), evaluation)


def weights(training: Path) -> dict[str, torch.Tensor]:
    return Checkpoint.load(training).model.policy.state_dict()


def test_watching_changes_nothing(watched: Path, tmp_path: Path) -> None:
    alone = weights(train_once(composed(*TINY), tmp_path))
    kept = torch.load(watched / WEIGHTS_FILE, weights_only=True)
    assert [update for update, _, _ in kept] == [0, 1, 2, 3, 4, 5, 6]
    assert [decisions for _, decisions, _ in kept] == [ROLLOUT * update for update in range(7)]
    for name, value in weights(watched).items():
        assert torch.equal(value, alone[name])
        assert torch.equal(value, kept[-1][2][name])
    assert any(not torch.equal(kept[0][2][name], value) for name, value in alone.items())


def test_course_ends_where_the_trained_policy_is(watched: Path, evaluation: Evaluation) -> None:
    found, served = course(watched, evaluation), serve_once(watched, evaluation)
    np.testing.assert_array_equal(found.e2e[END], served.e2e[0])
    np.testing.assert_array_equal(found.ttft[END], served.ttft[0])
    np.testing.assert_allclose(found.p95_s[-1], np.percentile(served.e2e[0], 95, axis=(1, 2)))
    np.testing.assert_allclose(found.p95_s[0], np.percentile(found.e2e[START], 95, axis=(1, 2)))
    assert found.updates[found.points].tolist() == [0, 5, 6]


def test_a_reference_freezes_the_statistics(watched: Path, evaluation: Evaluation) -> None:
    assert movement(course(watched, evaluation), updates=6) == (0, 0, 0, 0)


def test_movement_is_relative_to_where_the_statistics_were() -> None:
    two, nothing = np.zeros((2, 3)), np.zeros((0,))
    updates = np.array([0, 1])
    mean = np.array([[0.0, 1.0, 1.0], [1.0, 1.5, 1.0]])
    variance = np.array([[4.0, 1.0, 0.0], [4.0, 0.5, 0.0]])
    found = Course(updates, updates, two, nothing, nothing, mean, variance)
    assert movement(found, updates=1) == pytest.approx((0.5, 0.5, 0.25, 0.5))
    assert movement(found, updates=0) == (0, 0, 0, 0)


@pytest.mark.parametrize(
    ("p95_s", "expected"),
    [
        ([1.0, 1.0, 1.0], 0),
        ([2.0, 1.0, 1.0], 10),
        ([1.0, 2.0, 1.0], 20),
        ([1.0, 1.0, 2.0], None),
        ([1.0, float("nan"), float("inf")], None),
    ],
)
def test_first_within_wants_all_later_points_too(p95_s: list[float], expected: int | None) -> None:
    assert first_within(np.array([0, 10, 20]), np.array(p95_s), 1.0) == expected


def test_weights_of_later_updates_are_kept_every_second_time(tmp_path: Path) -> None:
    settings = composed(*TINY, "training.ppo_requests=216", "warm_start=none")
    kept = torch.load(
        watch(Training("longer", settings), tmp_path, few_requests()) / WEIGHTS_FILE,
        weights_only=True,
    )
    assert [update for update, _, _ in kept] == [0, 1, 2, 3, 4, 5, 6, 8, 9]
    assert KeepWeights(tmp_path / "none").kept == []


def few_requests() -> Evaluation:
    return Evaluation.draw([Cell("poisson", 2.5)], EvaluationConfig(runs=2, requests=2))


def test_a_clone_is_examined_on_unseen_episodes(tmp_path: Path, evaluation: Evaluation) -> None:
    settings = composed("warm_start.policies=[round_robin]")
    clone = clone_once(Training("clone", settings), tmp_path, evaluation)
    found = clone_accuracy(clone)
    assert found.attainable == 1
    assert found.consistent == found.accuracy >= 0.99
    # A clone of round robin serves as round robin does.
    here, there = serve_once(clone, evaluation).e2e, serve_router("round_robin", evaluation).e2e
    assert abs(np.percentile(here, 99) / np.percentile(there, 99) - 1) < 0.02


def test_configurations_differ_in_what_they_are_called() -> None:
    base = composed(BASE)
    chosen = {name: composed(BASE, *options) for name, options in CONFIGURATIONS.items()}
    assert chosen["demos"] == base
    assert len({repr(one) for one in chosen.values()}) == len(chosen)
    assert demonstrated(base) == 1400
    for name, one in chosen.items():
        assert one.stabilization.enabled == ("unstabilised" not in name)
        assert (one.kl.kl_ref_coef_initial > 0) == ("no-reference" not in name)
        assert one.curriculum.stages == (list(LOADS) if name.endswith("ramp") else [])
        assert one.training.qps == (LOADS[-1] if name.endswith("heavy") else LOADS[0])
        assert (demonstrated(one) > 0) == name.startswith("demos")


@pytest.fixture(scope="module")
def measured(watched: Path, evaluation: Evaluation) -> Measured:
    served = serve_once(watched, evaluation)
    return Measured(
        evaluation,
        Resampling.draw(2, evaluation.config),
        {name: serve_router(name, evaluation) for name in RULES},
        {name: [course(watched, evaluation)] * 2 for name in CONFIGURATIONS},
        dict.fromkeys(CLONES, Served.of_seeds([served, served])),
        {name: [CloneAccuracy(0.5, 0.75, 1), CloneAccuracy(0.7, 0.75, 1)] for name in CLONES},
        {name: composed(BASE, *options) for name, options in CONFIGURATIONS.items()},
    )


def test_every_training_stands_in_the_table(measured: Measured, tmp_path: Path) -> None:
    write_csv(measured, tmp_path / "stages.csv")
    with (tmp_path / "stages.csv").open() as file:
        lines = list(csv.DictReader(file))
    # The rules; before, early and at the end of two trainings of each; two clones of each.
    assert len(lines) == len(LOADS) * (len(RULES) + 3 * 2 * len(CONFIGURATIONS) + 2 * len(CLONES))
    rule, *_ = (line for line in lines if line["configuration"] == "round_robin")
    assert float(rule["e2e_p95_vs_round_robin"]) == 0
    last = [line for line in lines if line["configuration"] == "demos" and line["updates"] == "6"]
    e2e = measured.courses["demos"][0].e2e[END]
    assert [(line["seed"], line["qps"]) for line in last] == [
        (seed, str(qps)) for seed in "01" for qps in LOADS
    ]
    assert float(last[0]["e2e_p95_s"]) == pytest.approx(np.percentile(e2e[0], 95), rel=1e-4)
    assert last[0]["demonstrations"] == "1400"
    clones = [line for line in lines if line["configuration"] == "clone-lor-mlp"]
    assert {line["accuracy"] for line in clones} == {"0.5", "0.7"}


def test_section_and_picture(measured: Measured, tmp_path: Path) -> None:
    text = section(measured, "python benchmarks/stages.py")
    for title in ("Stage 1", "Stage 2", "Stage 3", "Networks", "Cloning"):
        assert f"### {title}" in text
    assert "60.0% (50.0..70.0) | 75.0% (75.0..75.0)" in text
    assert "nan" not in text
    plot(measured, tmp_path / "stages.png")
    assert (tmp_path / "stages.png").read_bytes().startswith(b"\x89PNG")
