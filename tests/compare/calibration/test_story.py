"""A calibration from a log to a profile: times are found again, and errors stated."""

import csv
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import yaml

from llmroute_gym.compare.calibration.fitting import (
    RANGES,
    Fitted,
    first_guess,
    fit,
    loss,
    quantile_errors,
    simulated,
)
from llmroute_gym.compare.calibration.recorded import Recorded
from llmroute_gym.compare.calibration.story import calibrate
from llmroute_gym.config import CalibrateConfig
from llmroute_gym.errors import InputError
from llmroute_gym.sim import Cluster, FormulaBatchTime
from llmroute_gym.sim.profile_time import load_profile
from tests.compare.calibration.logs import FORMULA, REPLICA, log_of


def settings(folder: Path, **changes: object) -> CalibrateConfig:
    chosen = {"num_blocks": 4000, "candidates": 270, "run_dir": str(folder / "run"), **changes}
    return CalibrateConfig(log=str(folder / "log.csv"), **chosen).validate()  # type: ignore[arg-type]


def test_the_truth_has_no_loss(tmp_path: Path) -> None:
    log_of(tmp_path / "log.csv")
    recorded = Recorded.read(tmp_path / "log.csv")
    everything = recorded.first_part(1.0)
    times = simulated(recorded, REPLICA, Fitted(FORMULA, 0.004))
    assert loss(recorded, times, everything) < 2e-3  # a log has microseconds
    slower = Fitted(replace(FORMULA, c0=0.015), 0.004)
    assert loss(recorded, simulated(recorded, REPLICA, slower), everything) > 0.1


def test_percentiles_are_compared_by_their_ratio() -> None:
    values = np.arange(1.0, 1001.0)
    np.testing.assert_allclose(quantile_errors(2 * values, values), np.log(2))


def test_a_search_finds_times_that_hold_for_what_it_has_not_seen(tmp_path: Path) -> None:
    log_of(tmp_path / "log.csv")
    recorded = Recorded.read(tmp_path / "log.csv")
    first = recorded.first_part(0.7)
    told: list[tuple[int, float]] = []
    fitted = fit(recorded, REPLICA, first, 450, 0, lambda *at: told.append(at))
    assert told[0][0] == 9
    assert [best for _, best in told] == sorted((best for _, best in told), reverse=True)
    for key, (low, high) in RANGES.items():
        value = getattr(fitted if key == "besides_s" else fitted.batch_time, key)
        assert low <= value * 1.000001
        assert value <= high * 1.000001
    times = simulated(recorded, REPLICA, fitted)
    assert np.abs(quantile_errors(times.e2e_s[~first], recorded.e2e_s[~first])).max() < 0.05
    assert np.abs(quantile_errors(times.ttft_s[~first], recorded.ttft_s[~first])).max() < 0.12
    again = fit(recorded, REPLICA, first, 450, 0)
    assert again == fitted


def test_without_streams_the_first_guess_is_still_one(tmp_path: Path) -> None:
    log_of(tmp_path / "log.csv", streamed=False)
    recorded = Recorded.read(tmp_path / "log.csv")
    assert np.isnan(recorded.ttft_s).all()
    formula = first_guess(recorded).batch_time
    assert 0.2 * FORMULA.c0 < formula.c0 < 5 * FORMULA.c0


def test_it_writes_a_profile_with_its_errors(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    log_of(tmp_path / "log.csv")
    file = calibrate(settings(tmp_path, hardware="1 x L4"))
    assert file == tmp_path / "run" / "profile.yaml"
    (replica,) = Cluster.from_profile(file, 1)
    assert isinstance(replica.batch_time, FormulaBatchTime)
    assert (replica.scheduler, replica.num_blocks) == ("vllm_v1", 4000)
    profile = load_profile(file)
    assert (profile.name, profile.hardware) == ("log", "1 x L4")
    with (tmp_path / "run" / "calibration.csv").open() as table:
        rows = list(csv.DictReader(table))
    assert len(rows) == 2 * 2 * 3
    for row in rows:
        ratio = float(row["simulated_s"]) / float(row["recorded_s"])
        assert float(row["error"]) == pytest.approx(ratio - 1)
        assert abs(ratio - 1) < 0.3
    held_out = [float(row["error"]) for row in rows if row["part"] == "held out"]
    stated = yaml.safe_load(file.read_text())["measured_error"]
    for latency, errors in (("ttft", held_out[:3]), ("e2e", held_out[3:])):
        levels = zip((50, 90, 99), errors, strict=True)
        listed = " ".join(f"P{level} {error:+.1%}" for level, error in levels)
        assert stated[latency] == f"held out, 120 requests: {listed}"
    assert (tmp_path / "run" / "calibration.png").stat().st_size > 10_000
    said = capsys.readouterr().out
    assert f"cluster.profile={file}" in said
    assert "Median error of the end-to-end latency by backend: a " in said
    with pytest.raises(InputError, match="already holds a finished run, which is kept"):
        calibrate(settings(tmp_path))


def test_servers_of_two_kinds_are_told_apart(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    log_of(tmp_path / "log.csv", speeds=(1.0, 2.0))
    calibrate(settings(tmp_path, candidates=90))
    assert "The backends differ: calibrate each kind of server" in capsys.readouterr().out


def test_measured_steps_give_the_profile_and_the_log_its_errors(tmp_path: Path) -> None:
    log_of(tmp_path / "log.csv")
    rng = np.random.default_rng(0)
    lines = ["prefill_tokens,sum_chunk_sq,sum_chunk_ctx,decode_reqs,decode_kv_tokens,t"]
    for chunk, decodes in zip(rng.integers(0, 2000, 80), rng.integers(1, 60, 80), strict=True):
        context = int(decodes) * 500
        seconds = FORMULA([int(chunk)] if chunk else [], [0] if chunk else [], [500] * int(decodes))
        lines.append(f"{chunk},{int(chunk) ** 2},0,{decodes},{context},{seconds!r}")
    (tmp_path / "steps.csv").write_text("\n".join(lines))
    file = calibrate(settings(tmp_path, steps=str(tmp_path / "steps.csv"), held_out=0))
    found = load_profile(file)
    assert isinstance(found.batch_time, FormulaBatchTime)
    assert found.batch_time.c0 == pytest.approx(FORMULA.c0, rel=0.05)
    assert found.description == "formula fitted to the iterations of steps.csv"
    besides_s = float(found.source.split()[-6])
    assert 0.003 < besides_s < 0.006
    with (tmp_path / "run" / "calibration.csv").open() as table:
        rows = list(csv.DictReader(table))
    assert {row["part"] for row in rows} == {"fitted"}
    assert all(abs(float(row["error"])) < 0.05 for row in rows)
