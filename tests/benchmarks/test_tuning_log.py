"""The configurations, and what is reported of made-up latencies."""

import csv
import re
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
import tuning_log
from trainings import Evaluation, Served, Training, composed, digest
from tuning_log import (
    GROUPS,
    Policy,
    Sizes,
    Where,
    configurations,
    draw,
    estimate_all,
    findings,
    sampling_swing,
    section,
    write_csv,
)

from llmroute_gym.config import EvaluationConfig, TrainConfig

pytestmark = pytest.mark.slow

SIZES = Sizes(seeds=2, runs=3, requests=20, resamples=40)
FACTORS = {"original": 1.0, "original + kl": 1.2, "latency_tuned": 0.9, "lor": 0.8}
"""Of round robin's latencies; 1 where nothing stands."""
BAD_SEED = 3.0
"""Of ``conservative``'s second seed."""


@pytest.fixture(scope="module")
def evaluation() -> Evaluation:
    defaults = TrainConfig()
    config = EvaluationConfig(runs=3, requests=20, resamples=40)
    cells = [
        tuning_log.Cell(arrivals, qps)
        for arrivals in tuning_log.ARRIVALS
        for qps in tuning_log.LOADS
    ]
    return Evaluation(cells, [], defaults.cluster, config, defaults.observation)


@pytest.fixture(scope="module")
def policies() -> list[Policy]:
    # So few different values that copies of them have the same percentiles.
    latency = np.random.default_rng(0).integers(1, 4, (1, 9, 3, 20)) * 10.0
    learning = {"swing": np.array([0.02, 0.04]), "early_stop": np.array([0.5, 0.0])}
    found = []
    for one in configurations():
        seeds = np.concatenate([latency, latency]) * FACTORS.get(one.name, 1.0)
        if one.name == "conservative":
            seeds[1] *= BAD_SEED
        found.append(Policy(one.name, Served(seeds, seeds / 10), one.changed, learning))
    rules = (("round_robin", 1.0), ("lor", FACTORS["lor"]))
    return found + [Policy(name, Served(f * latency, f * latency / 10)) for name, f in rules]


@pytest.fixture(scope="module")
def numbers(policies: list[Policy], evaluation: Evaluation) -> tuning_log.Numbers:
    return estimate_all(policies, SIZES, evaluation)


@pytest.fixture(scope="module")
def trainings() -> dict[str, Training]:
    return {one.name: one.training(0) for one in configurations()}


def test_each_configuration_differs_in_what_its_name_says(trainings: dict[str, Training]) -> None:
    chosen = {name: asdict(training.settings) for name, training in trainings.items()}
    assert len(chosen) == 16
    for name in ("original", "latency_tuned", "conservative"):
        assert chosen[name] == asdict(composed(f"+exp={name}"))
        assert chosen[f"{name}, no demos"] == asdict(composed(f"+exp={name}", "warm_start=none"))
    for group in GROUPS:
        for name, base in ((f"original + {group}", "original"), (f"latency_tuned - {group}",) * 2):
            base = base.split(" - ")[0]
            other = {"original": "latency_tuned", "latency_tuned": "original"}[base]
            assert chosen[name] == chosen[base] | {group: chosen[other][group]}
            assert chosen[name] != chosen[base]


def test_trainings_have_folders_of_their_own(trainings: dict[str, Training]) -> None:
    assert len({digest(one.settings) for one in trainings.values()}) == 16
    assert len({one.name for one in trainings.values()}) == 16
    assert all(re.fullmatch(r"[\w+-]+-0", one.name) for one in trainings.values())


def test_changes_are_found(numbers: tuning_log.Numbers) -> None:
    for name, factor in FACTORS.items():
        for place in (Where(name), Where(name, qps=4.5), Where(name, "all", "trace", 2.5)):
            found = numbers[place]["e2e_p99_s_vs_round_robin"]
            assert (found.value, found.low, found.high) == pytest.approx((factor - 1,) * 3)
    assert numbers[Where("latency_tuned")]["e2e_p99_s_vs_changed"].value == pytest.approx(-0.1)
    back = numbers[Where("latency_tuned - kl")]["e2e_p99_s_vs_changed"]
    assert back.value == pytest.approx(1 / 0.9 - 1)
    assert "e2e_p99_s_vs_round_robin" not in numbers[Where("round_robin")]


def test_one_bad_seed_is_seen(numbers: tuning_log.Numbers) -> None:
    whole, good, bad = (
        numbers[Where("conservative", seed)]["e2e_p99_s_vs_round_robin"]
        for seed in ("all", "0", "1")
    )
    assert (good.value, bad.value) == pytest.approx((0, BAD_SEED - 1))
    assert whole.low == pytest.approx(0)
    assert whole.high == pytest.approx(BAD_SEED - 1)


def test_learning_is_averaged_over_seeds(numbers: tuning_log.Numbers) -> None:
    found = numbers[Where("original")]
    assert (found["swing"].value, found["early_stop"].value) == pytest.approx((0.03, 0.25))
    assert numbers[Where("original", "1")]["swing"].value == 0.04


def test_sentences_follow_the_numbers(numbers: tuning_log.Numbers) -> None:
    against_original, _, alone = findings(numbers)
    assert "P99 -10.0% (-10.0% to -10.0%)" in against_original
    assert "without demonstrations P99 changes by +0.0% (+0.0% to +0.0%)" in against_original
    assert "`kl` changes P99 by +20.0%" in alone
    assert "`reward`, `exploration`, `temperature`, `training` include no change. One" in alone


def test_report_has_a_line_for_each_policy(
    numbers: tuning_log.Numbers, policies: list[Policy], tmp_path: Path
) -> None:
    text = section(numbers, policies, SIZES, "command")
    rows = [line for line in text.splitlines() if line.startswith("| `")]
    assert [row.split("`")[1] for row in rows] == [one.name for one in policies]
    assert len({row.count("|") for row in rows}) == 1
    assert "nan" not in text

    write_csv(numbers, policies, tmp_path / "numbers.csv")
    with (tmp_path / "numbers.csv").open() as file:
        lines = list(csv.DictReader(file))
    assert len(lines) == 16 * (16 * 3 + 2)
    first = lines[0]
    assert (first["configuration"], first["seed"], first["arrivals"]) == (
        "original",
        "all",
        "poisson",
    )
    assert float(first["e2e_p99_s_low"]) <= float(first["e2e_p99_s"])
    assert first["e2e_p99_s_vs_changed"] == ""

    draw(numbers, policies, tmp_path / "picture.png")
    assert (tmp_path / "picture.png").read_bytes().startswith(b"\x89PNG")


def test_independent_decisions_swing_as_said() -> None:
    counts = np.random.default_rng(0).multinomial(512, [0.25] * 4, size=20_000) / 512
    swing = 0.5 * np.abs(np.diff(counts, axis=0)).sum(axis=1).mean()
    assert sampling_swing(512, 4) == pytest.approx(swing, rel=0.02)


def test_missing_data_is_said(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setattr(tuning_log, "TRACE", tmp_path / "trace.csv")
    monkeypatch.setattr("sys.argv", ["tuning_log.py", "--quick"])
    assert tuning_log.main() == 2
    assert "LLMROUTE_DATA" in capsys.readouterr().err
