"""Length models: the distribution asked for, in whole tokens, from the generator alone."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import spearmanr

from llmroute_gym.errors import InputError
from llmroute_gym.sim.lengths import (
    AZURE_CONV_TABLE,
    LENGTH_MODELS,
    EmpiricalLengths,
    LognormalLengths,
    TableLengths,
    azure_conv,
    length_model,
)
from llmroute_gym.sim.traces import load_trace
from llmroute_gym.sim.workload import Workload

ROOT = Path(__file__).resolve().parents[2]
AZURE = "traces/azure_conv_2023.csv"

RECORDED = Workload(np.arange(4.0), np.array([10, 20, 30, 40]), np.array([1, 2, 3, 4]))
OPTIONS: dict[str, dict[str, object]] = {
    "azure_conv": {},
    "empirical": {"workload": RECORDED},
    "fixed": {"prompt_tokens": 100, "output_tokens": 20},
    "lognormal": {"prompt_mean": 5, "output_mean": 2, "prompt_sigma": 3.0, "output_sigma": 3.0},
    "uniform": {"prompt_min": 1, "prompt_max": 9, "output_min": 1, "output_max": 1},
}


def test_every_model_is_tried_here() -> None:
    assert set(OPTIONS) == set(LENGTH_MODELS)


@pytest.mark.parametrize("name", OPTIONS)
def test_lengths_are_whole_tokens_from_the_generator_alone(name: str) -> None:
    model = length_model(name, **OPTIONS[name])
    prompts, outputs = model.sample(5000, np.random.default_rng(7))
    for tokens in (prompts, outputs):
        assert tokens.shape == (5000,)
        assert tokens.dtype == np.int64
        assert tokens.min() >= 1
    again = model.sample(5000, np.random.default_rng(7))
    assert (again[0] == prompts).all()
    assert (again[1] == outputs).all()
    with pytest.raises(InputError, match="n_requests must be an integer >= 1, got 0"):
        model.sample(0, np.random.default_rng(7))


@pytest.mark.parametrize("name", OPTIONS)
@pytest.mark.parametrize("limit", [2, 24, 2048])
def test_total_limit_cuts_prompts_first(name: str, limit: int) -> None:
    whole = length_model(name, **OPTIONS[name]).sample(3000, np.random.default_rng(7))
    model = length_model(name, max_total_tokens=limit, **OPTIONS[name])
    prompts, outputs = model.sample(3000, np.random.default_rng(7))
    assert (prompts + outputs <= limit).all()
    assert min(prompts.min(), outputs.min()) >= 1
    fits = whole[0] + whole[1] <= limit
    assert (prompts[fits] == whole[0][fits]).all()
    assert (outputs == np.minimum(whole[1], limit - 1)).all()
    assert (prompts + outputs)[~fits].tolist() == [limit] * int((~fits).sum())


def test_shipped_table_needs_no_trace() -> None:
    prompts, outputs = azure_conv().sample(200_000, np.random.default_rng(0))
    assert prompts.mean() == pytest.approx(1155, rel=0.01)
    assert outputs.mean() == pytest.approx(211, rel=0.01)
    assert np.percentile(prompts, 99) == pytest.approx(4142, rel=0.01)
    assert np.percentile(outputs, 99) == pytest.approx(601, rel=0.01)
    assert AZURE_CONV_TABLE.stat().st_size < 150_000
    assert "CC-BY 4.0" in AZURE_CONV_TABLE.with_name("ATTRIBUTION.md").read_text()


def test_shipped_table_matches_the_trace(data: Path) -> None:
    trace = load_trace(data / AZURE)
    drawn = azure_conv().sample(400_000, np.random.default_rng(1))
    originals = (trace.prompt_tokens, trace.output_tokens)
    for original, sampled in zip(originals, drawn, strict=True):
        assert sampled.mean() == pytest.approx(original.mean(), rel=0.01)
        assert sampled.std() == pytest.approx(original.std(), rel=0.02)
        for percentile in (10, 25, 50, 75, 90, 95, 99, 99.9):
            expected = np.percentile(original, percentile)
            assert np.percentile(sampled, percentile) == pytest.approx(expected, rel=0.03, abs=2)
        assert sampled.max() == original.max()
        assert sampled.min() == original.min()
    spearman = spearmanr(*originals).statistic
    assert spearmanr(*drawn).statistic == pytest.approx(spearman, abs=0.01)
    pearson = np.corrcoef(*originals)[0, 1]
    assert np.corrcoef(*drawn)[0, 1] == pytest.approx(pearson, abs=0.01)
    # The joint shape, not only the two axes: outputs by quarter of the prompts.
    for low, high in [(0, 25), (25, 50), (50, 75), (75, 100)]:
        ends = np.percentile(trace.prompt_tokens, [low, high])
        means = [
            outputs[(prompts >= ends[0]) & (prompts <= ends[1])].mean()
            for prompts, outputs in (originals, drawn)
        ]
        assert means[1] == pytest.approx(means[0], rel=0.03)


@pytest.mark.cli
def test_shipped_table_is_what_the_script_makes(tmp_path: Path, data: Path) -> None:
    script = ROOT / "benchmarks" / "fit_workload.py"
    out = tmp_path / "table.npz"
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    subprocess.run(
        [sys.executable, script, data / AZURE, "--out", out],
        check=True,
        capture_output=True,
        env=environment,
    )
    assert out.read_bytes() == AZURE_CONV_TABLE.read_bytes()


def test_table_of_few_lengths_is_exact(tmp_path: Path) -> None:
    table = TableLengths.fit([5, 5, 5, 80_000], [7, 7, 9, 1])
    prompts, outputs = table.sample(4000, np.random.default_rng(0))
    drawn = set(zip(prompts.tolist(), outputs.tolist(), strict=True))
    assert drawn == {(5, 7), (5, 9), (80_000, 1)}
    assert (prompts == 5).mean() == pytest.approx(0.75, abs=0.03)
    table.to_npz(tmp_path / "table.npz")
    again = TableLengths.from_npz(tmp_path / "table.npz").sample(4000, np.random.default_rng(0))
    assert (again[0] == prompts).all()
    assert (again[1] == outputs).all()


def test_table_file_that_is_none(tmp_path: Path) -> None:
    (tmp_path / "table.npz").write_text("no")
    with pytest.raises(InputError, match="cannot read a table of lengths"):
        TableLengths.from_npz(tmp_path / "table.npz")
    with pytest.raises(InputError, match="cannot read a table of lengths"):
        TableLengths.from_npz(tmp_path / "absent.npz")


def test_lognormal_has_the_mean_width_and_correlation_asked_for() -> None:
    model = LognormalLengths(1155, 211, prompt_p99=4142, output_sigma=0.8, correlation=-0.4)
    prompts, outputs = model.sample(400_000, np.random.default_rng(3))
    assert prompts.mean() == pytest.approx(1155, rel=0.01)
    assert np.percentile(prompts, 99) == pytest.approx(4142, rel=0.02)
    assert outputs.mean() == pytest.approx(211, rel=0.01)
    assert np.log(outputs).std() == pytest.approx(0.8, rel=0.01)
    assert np.corrcoef(np.log(prompts), np.log(outputs))[0, 1] == pytest.approx(-0.4, abs=0.01)


def test_lognormal_of_enormous_width_stays_in_range() -> None:
    model = LognormalLengths(1e9, 1e9, prompt_sigma=40.0, output_sigma=0.0)
    prompts, outputs = model.sample(10_000, np.random.default_rng(3))
    assert prompts.min() >= 1
    assert prompts.max() <= 2**31 - 1
    assert (outputs == 1_000_000_000).all()


def test_uniform_reaches_both_ends() -> None:
    model = length_model("uniform", prompt_min=3, prompt_max=5, output_min=1, output_max=2)
    prompts, outputs = model.sample(1000, np.random.default_rng(0))
    assert set(prompts.tolist()) == {3, 4, 5}
    assert set(outputs.tolist()) == {1, 2}


def test_empirical_keeps_pairs_and_reads_files(tmp_path: Path) -> None:
    prompts, outputs = EmpiricalLengths(RECORDED).sample(1000, np.random.default_rng(0))
    assert (prompts == 10 * outputs).all()
    assert set(outputs.tolist()) == {1, 2, 3, 4}
    RECORDED.to_csv(tmp_path / "trace.csv")
    read = length_model("empirical", path=tmp_path / "trace.csv")
    assert (read.sample(1000, np.random.default_rng(0))[0] == prompts).all()
    (tmp_path / "lengths.csv").write_text("num_prefill_tokens,num_decode_tokens\n30,3\n")
    lengths = length_model("empirical", path=tmp_path / "lengths.csv")
    assert set(lengths.sample(9, np.random.default_rng(0))[0].tolist()) == {30}
    with pytest.raises(InputError, match="exactly one of path and workload"):
        length_model("empirical")


LOGNORMAL: dict[str, object] = {"prompt_mean": 10, "output_mean": 10, "output_sigma": 1}


@pytest.mark.parametrize(
    ("name", "options", "expected"),
    [
        ("azur_conv", {}, "unknown length model 'azur_conv'.*did you mean 'azure_conv'"),
        ("fixed", {"prompt": 1}, "unknown option of length model 'fixed': 'prompt'"),
        ("fixed", {"prompt_tokens": 1}, r"'fixed' needs the option\(s\) output_tokens"),
        ("fixed", {"prompt_tokens": 0, "output_tokens": 1}, "prompt_tokens .* got 0"),
        ("fixed", {"prompt_tokens": 1, "output_tokens": 1.5}, "output_tokens .* got 1.5"),
        ("azure_conv", {"max_total_tokens": 1}, "max_total_tokens must be an integer >= 2"),
        (
            "uniform",
            {"prompt_min": 9, "prompt_max": 8, "output_min": 1, "output_max": 1},
            "prompt_max must be an integer >= 9, got 8",
        ),
        ("lognormal", LOGNORMAL, "exactly one of prompt_p99 and prompt_sigma"),
        ("lognormal", LOGNORMAL | {"prompt_p99": 5}, "prompt_p99=5 .* is not a lognormal"),
        ("lognormal", LOGNORMAL | {"prompt_p99": 150}, "expected prompt_p99 from 10 to 149"),
        ("lognormal", LOGNORMAL | {"prompt_sigma": -1}, "prompt_sigma .* got -1"),
        ("lognormal", LOGNORMAL | {"prompt_sigma": 1, "correlation": 1.1}, "correlation"),
        ("lognormal", LOGNORMAL | {"prompt_sigma": 1, "output_mean": 0}, "output_mean .* got 0"),
    ],
)
def test_wrong_options_are_named(name: str, options: dict[str, object], expected: str) -> None:
    with pytest.raises(InputError, match=expected):
        length_model(name, **options)
