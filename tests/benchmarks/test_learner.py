"""The configurations, and what is reported of made-up latencies."""

import csv
from pathlib import Path

import learner
import numpy as np
import pytest
from learner import CONFIGURATIONS, LOADS, Measured, Sizes, compared, draw, section, write_csv
from trainings import Served, digest

from llmroute_gym.config import EvaluationConfig

pytestmark = pytest.mark.slow

CONFIG = EvaluationConfig(runs=3, requests=20, resamples=40)
GOOD, BAD = CONFIGURATIONS[0].name, CONFIGURATIONS[-1].name


@pytest.fixture(scope="module")
def measured() -> Measured:
    # So few different values that copies of them have the same percentiles.
    latency = np.random.default_rng(0).integers(1, 4, (1, len(LOADS), 3, 20)) * 10.0
    served = {}
    for one in CONFIGURATIONS:
        seeds = np.concatenate([latency, latency]) * (0.9 if one.name == GOOD else 1.0)
        if one.name == BAD:
            seeds[1, 2] *= 3.0  # one seed at one load
        served[one.name] = Served(seeds, seeds)
    for rule in learner.RULES:
        served[rule] = Served(0.8 * latency, latency)
    return compared(served, Served(latency, latency), CONFIG)


def test_each_configuration_is_one_of_its_own() -> None:
    trainings = [one.training(0) for one in CONFIGURATIONS]
    assert len({digest(one.settings) for one in trainings}) == 16
    assert len({one.name for one in trainings}) == 16
    few = CONFIGURATIONS[0].training(3, learner.QUICK_OVERRIDES).settings
    assert (few.env.num_envs, few.seed, few.warm_start.epochs) == (64, 3, 2)
    alone = CONFIGURATIONS[-1].training(0, learner.QUICK_OVERRIDES).settings
    assert (alone.env.num_envs, alone.warm_start.cloning, alone.model.policy) == (4, False, "mlp")
    assert alone.warm_start.epochs == 30


def test_ratios_are_found_pooled_and_for_each_seed(measured: Measured) -> None:
    for load in range(len(LOADS)):
        p95, p99 = measured[GOOD][load].pooled
        assert (p95.value, p99.low, p99.high) == pytest.approx((0.9, 0.9, 0.9))
        assert measured["lor"][load].seeds == pytest.approx(np.full((1, 2), 0.8))
    assert [one.worst for one in measured[BAD]] == pytest.approx([1, 1, 3, 1])


def test_a_seed_that_loses_at_one_load_is_counted(measured: Measured) -> None:
    text = section(measured, Sizes(2, 3, 20, 40), "python benchmarks/learner.py --seeds 2")
    lines = [line for line in text.splitlines() if line.startswith("| `mlp`")]
    assert lines[-1].endswith("| 1 of 2 |")
    assert all(line.endswith("| 0 of 2 |") for line in lines[:-1])
    assert "worst 3.000" in lines[-1]
    assert "64 environments x 16 decisions a rollout, minibatches of 1,024 x 4 epochs" in text


def test_files_hold_every_seed(measured: Measured, tmp_path: Path) -> None:
    write_csv(measured, tmp_path / "learner.csv")
    with (tmp_path / "learner.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == len(LOADS) * (16 * 3 + len(learner.RULES))
    bad = [row for row in rows if row["network"] == "mlp" and row["seed"] == "1"]
    assert max(float(row["p99"]) for row in bad) == pytest.approx(3)
    draw(measured, tmp_path / "learner.png")
    assert (tmp_path / "learner.png").stat().st_size > 10_000
