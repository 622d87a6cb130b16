import csv
import gzip
from pathlib import Path

import numpy as np
import pytest

from llmroute_gym.errors import InputError
from llmroute_gym.sim.batch_time import BatchSums, FormulaBatchTime
from llmroute_gym.sim.fit import Measurements, fit_formula, main, read_measurements, report
from llmroute_gym.sim.profile_time import load_profile
from llmroute_gym.sim.replica import Cluster

FORMULA = FormulaBatchTime(c0=0.0283159, c1=1.84342e-4, n0=72, c2=5.75623e-7, c3=1.07955e-8)


def measure(
    path: Path, formula: FormulaBatchTime, rows: int = 400, noise: float = 0.0, seed: int = 0
) -> Path:
    """Writes a CSV file of iterations that take what the formula says, times lognormal noise."""
    rng = np.random.default_rng(seed)
    lines = []
    for _ in range(rows):
        chunks = rng.integers(1, 600, rng.integers(0, 3)).tolist()
        contexts = [int(rng.integers(0, 2000)) for _ in chunks]
        decode_contexts = rng.integers(1, 3000, rng.integers(0 if chunks else 1, 60)).tolist()
        batch = BatchSums.of(chunks, contexts, decode_contexts)
        seconds = formula.seconds(batch) * np.exp(noise * rng.standard_normal())
        lines.append(
            [
                batch.prefill_tokens,
                batch.chunk_squares,
                batch.chunk_context,
                batch.decodes,
                batch.decode_context,
                repr(float(seconds)),
                "ignored",
            ]
        )
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([[*Measurements._fields, "kind"], *lines])
    return path


@pytest.mark.parametrize(
    "formula",
    [
        FORMULA,
        FormulaBatchTime(c0=0.0098352, c1=6.34568e-5, n0=60, c2=2.91062e-7, c3=5.10153e-9),
        FormulaBatchTime(c0=0.01, c1=2e-5, n0=301, c2=3e-7, c3=6e-9, c4=4e-5),
    ],
)
def test_the_formula_behind_the_measurements_is_found(
    formula: FormulaBatchTime, tmp_path: Path
) -> None:
    found = fit_formula(measure(tmp_path / "m.csv", formula))
    assert found.n0 == formula.n0
    for name in ("c0", "c1", "c2", "c3", "c4"):
        assert getattr(found, name) == pytest.approx(getattr(formula, name), rel=1e-6, abs=1e-12)


def test_the_report_states_the_noise(tmp_path: Path) -> None:
    path = measure(tmp_path / "m.csv", FORMULA, rows=4000, noise=0.05)
    errors = report(read_measurements(path))
    assert errors.held_out
    assert errors.rows == 800
    assert errors.median == pytest.approx(0.6745 * 0.05, rel=0.1)  # median of |normal|
    assert errors.p90 == pytest.approx(1.645 * 0.05, rel=0.1)
    assert abs(errors.bias) < 0.01


def test_few_rows_are_fitted_but_not_held_out(tmp_path: Path) -> None:
    assert not report(read_measurements(measure(tmp_path / "m.csv", FORMULA, rows=20))).held_out


def test_gzipped_measurements_give_the_same_fit(tmp_path: Path) -> None:
    path = measure(tmp_path / "m.csv", FORMULA, rows=50)
    packed = tmp_path / "m.csv.gz"
    packed.write_bytes(gzip.compress(path.read_bytes()))
    assert fit_formula(packed) == fit_formula(path)


def test_the_command_writes_a_profile_for_a_cluster(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, out = measure(tmp_path / "m.csv", FORMULA), tmp_path / "mine.yaml"
    arguments = [str(path), "--out", str(out), "--num-blocks", "700", "--max-batch", "32"]
    assert main(arguments) == 0
    printed = capsys.readouterr().out
    assert "n0 = 72" in printed
    assert "80 held-out rows: median 0.00%" in printed
    cluster = Cluster.from_profile(str(out), replicas=2)
    assert cluster[0].batch_time == fit_formula(path)
    assert (cluster[0].num_blocks, cluster[0].max_batch) == (700, 32)
    assert load_profile(out).name == "mine"
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["m.csv", "mine.yaml"]


def test_the_command_says_what_the_measurements_cannot_tell(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = [f"0,0,0,{b},{b * 1000},{0.01 + b * 1e-4}" for b in range(1, 40)]
    path = tmp_path / "m.csv"
    path.write_text("\n".join([",".join(Measurements._fields), *lines]))
    assert main([str(path)]) == 0
    assert "no row has a prefill" in capsys.readouterr().err


GOOD = "512,262144,0,3,3000,0.05"


@pytest.mark.parametrize(
    ("header", "row", "message"),
    [
        ("prefill_tokens,t", "1,1", "lacks the columns sum_chunk_sq"),
        (None, "512,262144,0,3,3000,nan", "line 3: t must be a finite number >= 0, got 'nan'"),
        (None, "512,262144,0,3,3000,", "line 3: t must be a finite number >= 0, got ''"),
        (None, "512,262144,0,-3,3000,0.05", "line 3: decode_reqs must be"),
        (None, "x,262144,0,3,3000,0.05", "prefill_tokens must be a finite number >= 0, got 'x'"),
        (None, "512,262144,inf,3,3000,0.05", "sum_chunk_ctx must be"),
        (None, "512,262144,0,3,3000,0", "t must be > 0 seconds"),
        (None, "512,262144,0,3,3000", "line 3: 5 values, expected 6"),
        (None, "0,0,0,0,0,0.05", "must be > 0, got 0: a batch has a token"),
        (None, "512,262144,0,0,3000,0.05", "decode_kv_tokens must be 0 without decode_reqs"),
        (None, "512,262145,0,0,0,0.05", "sum_chunk_sq must lie above 0 and up to"),
        (None, "512,0,0,0,0,0.05", "sum_chunk_sq must lie above 0 and up to"),
        (None, "0,0,7,1,1,0.05", "sum_chunk_ctx must be 0 without prefill_tokens"),
        (None, GOOD, "has 2 rows, expected at least 12"),
        (None, '512,"262144,0,3,3000,0.05', "not valid CSV"),
        ("", "", "lacks the columns"),
    ],
)
def test_wrong_measurements_are_one_sentence_and_exit_code_2(
    header: str | None,
    row: str,
    message: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    path = tmp_path / "m.csv"
    first = ",".join(Measurements._fields) if header is None else header
    path.write_text("\n".join([first, *([GOOD] if header is None else []), row]))
    assert main([str(path), "--out", str(tmp_path / "out.yaml")]) == 2
    captured = capsys.readouterr()
    assert message in captured.err
    assert str(path) in captured.err
    assert captured.err.count("\n") == 1
    assert captured.out == ""
    assert not (tmp_path / "out.yaml").exists()
    with pytest.raises(InputError):
        fit_formula(path)


@pytest.mark.parametrize("content", [b"\xff\xfe\x00", b"\x1f\x8b broken"])
def test_a_file_that_is_no_text_is_one_sentence(
    content: bytes, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("m.csv", "m.csv.gz"):
        (tmp_path / name).write_bytes(content)
        assert main([str(tmp_path / name)]) == 2
        assert capsys.readouterr().err.startswith("cannot read")


def test_missing_files_and_folders_are_one_sentence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([str(tmp_path / "none.csv")]) == 2
    assert "No such file" in capsys.readouterr().err
    path = measure(tmp_path / "m.csv", FORMULA, rows=20)
    assert main([str(path), "--out", str(tmp_path / "none" / "mine.yaml")]) == 2
    assert "cannot write" in capsys.readouterr().err
    assert main([str(path), "--out", str(tmp_path / "mine.txt")]) == 2
    assert "must end in .yaml" in capsys.readouterr().err
    assert main([str(path), "--out", str(tmp_path / "mine.yaml"), "--num-blocks", "0"]) == 2
    assert "num_blocks" in capsys.readouterr().err


@pytest.mark.parametrize("combo", ["a100_internlm-20b_tp1", "h100_codellama-34b_tp1"])
def test_six_coefficients_follow_profiled_hardware_within_percents(combo: str, data: Path) -> None:
    measured = read_measurements(data / "iterations" / f"{combo}_design_batches.csv.gz")
    errors = report(measured)
    assert errors.median < 0.06
    assert errors.p99 < 0.25
    assert abs(errors.bias) < 0.01
