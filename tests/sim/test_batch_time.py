"""Batch-time models against numbers worked by hand and against measured tables."""

import math
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from llmroute_gym.errors import InputError
from llmroute_gym.sim.batch_time import BatchSums, FormulaBatchTime, TableBatchTime
from tests.oracle import DATA, NO_DATA, read_columns

COMBOS = sorted(path.stem for path in (DATA / "batch_time").glob("*.npz")) if DATA else []
PARTS = {"decode", "num", "prefill", "sum"}
FORMULA = {"c0": 0.01, "c1": 2e-4, "n0": 60.0, "c2": 3e-7, "c3": 5e-9, "c4": 1e-5}


def small_table(gqa: bool = False) -> TableBatchTime:
    """Each cell a number of its own: linear 1, 2, 4, 8; KV save 0.01 N; grids by row and column."""
    count = np.arange(25, dtype=np.float64)
    return TableBatchTime(
        linear_s=np.array([1.0, 2.0, 4.0, 8.0]),
        kv_save_s=np.multiply(0.01, count[1:]),
        decode_s=np.add.outer(np.multiply(100.0, count[1:5]), count[:4]),
        prefill_s=np.add.outer(np.multiply(1000.0, count[1:4]), count[:20]),
        gqa=gqa,
    )


def test_sums_of_a_batch() -> None:
    sums = BatchSums.of([100, 28], [0, 65], [10, 20, 31])
    assert sums == BatchSums(
        decodes=3,
        decode_context=61,
        prefills=2,
        prefill_tokens=128,
        chunk_squares=100**2 + 28**2,
        chunk_context=28 * 65,
        context_buckets=2,
    )
    assert sums.tokens == 131


def test_formula_by_hand() -> None:
    model = FormulaBatchTime(**FORMULA)
    # 131 tokens, 61 of decode context, 100 x 50 + 28 x (65 + 14) pairs.
    expected = 0.01 + 2e-4 * 71 + 1e-5 * 131 + 3e-7 * 61 + 5e-9 * (5000 + 28 * 79)
    assert model([100, 28], [0, 65], [10, 20, 31]) == pytest.approx(expected, rel=1e-12)
    assert model([], [], [10]) == pytest.approx(0.01 + 1e-5 + 3e-6, rel=1e-12)


@pytest.mark.parametrize("name", FORMULA)
@pytest.mark.parametrize("value", [-1e-9, math.nan, math.inf, "x", None, True, [0.01]])
def test_formula_takes_finite_numbers_from_zero(name: str, value: Any) -> None:
    with pytest.raises(InputError, match=rf"FormulaBatchTime\.{name} must be .* >= 0, got "):
        FormulaBatchTime(**{**FORMULA, name: value})


@pytest.mark.parametrize(("c1", "n0"), [(0, 0), (1e-4, 1), (1e-4, 60), (0, 0.5)])
def test_a_batch_below_the_knee_takes_time(c1: float, n0: float) -> None:
    with pytest.raises(InputError, match=r"one token 0 s with c0 = 0, c4 = 0 and n0 = .*; set c0"):
        FormulaBatchTime(0, c1, n0, 1e-6, 1e-6)
    for least in ({"c0": 1e-3, "c4": 0}, {"c0": 0, "c4": 1e-3}):
        assert FormulaBatchTime(**least, c1=c1, n0=n0, c2=0, c3=0)([1], [0], []) > 0


def test_a_knee_below_one_token_leaves_no_batch_without_time() -> None:
    assert FormulaBatchTime(0, 1e-4, 0.5, 0, 0)([1], [0], []) == pytest.approx(0.5e-4)


def test_table_by_hand() -> None:
    table = small_table()
    # One decode of context 64: ceil(1 / 8) = 1, KV save of 1 token, row 0, ceil(64 / 64) = 1.
    assert table([], [], [64]) == pytest.approx(2.0 + 0.01 + 101.0)
    # The mean context is floored before its bucket is taken: floor(64.5) is still in bucket 1.
    assert table([], [], [64, 65]) == pytest.approx(2.0 + 0.02 + 201.0)
    assert table([], [], [65, 65]) == pytest.approx(2.0 + 0.02 + 202.0)
    # Two chunks 3 and 4: root of 25 is column 4; contexts 0 and 1 are 1 bucket.
    assert table([3, 4], [0, 1], []) == pytest.approx(2.0 + 0.07 + 2004.0)
    # 9 tokens are 2 groups of 8; both parts are there.
    assert table([8], [0], [1]) == pytest.approx(4.0 + 0.09 + 101.0 + 1007.0)


def test_grouped_query_attention_costs_more_from_two_requests_on() -> None:
    table = small_table(gqa=True)
    assert table([], [], [64]) == pytest.approx(2.0 + 0.01 + 101.0)
    assert table([], [], [64, 64]) == pytest.approx(2.0 + 0.02 + 1.1 * 201.0)
    assert table([3, 4], [0, 1], [64]) == pytest.approx(2.0 + 0.08 + 101.0 + 1.1 * 2004.0)


def test_outside_its_range_a_table_goes_on_linearly_and_says_so_once() -> None:
    table = small_table()
    with pytest.warns(UserWarning, match="outside the batch-time table"):
        # ceil(40 / 8) = 5 is two past the end, 8 + 2 x 4; KV save 0.40; column 39 of row 0.
        assert table([40], [0], []) == pytest.approx(16.0 + 0.40 + 1039.0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        # Row 5 (6 decodes), column 10: 600 + 10.
        assert table([], [], [640] * 6) == pytest.approx(2.0 + 0.06 + 610.0)


@pytest.mark.parametrize("combo", COMBOS or [pytest.param("", marks=pytest.mark.skip(NO_DATA))])
def test_tables_give_the_measured_iteration_times(combo: str, data: Path) -> None:
    table = TableBatchTime.from_npz(data / "batch_time" / f"{combo}.npz")
    batches = read_columns(data / "iterations" / f"{combo}_design_batches.csv.gz")
    # Of several chunks only the sum of the contexts is recorded, not of their buckets.
    known = np.flatnonzero(
        (batches["num_prefill_reqs"] <= 1) | (batches["prefill_ctx_tokens"] == 0)
    )
    assert len(known) > 1000
    ours = []
    for i in known.tolist():
        row = {name: round(batches[name][i]) for name in batches if name.split("_")[0] in PARTS}
        ours.append(
            table.seconds(
                BatchSums(
                    decodes=row["decode_reqs"],
                    decode_context=row["decode_kv_tokens"],
                    prefills=row["num_prefill_reqs"],
                    prefill_tokens=row["prefill_tokens"],
                    chunk_squares=row["sum_chunk_sq"],
                    chunk_context=row["sum_chunk_ctx"],
                    context_buckets=-(-row["prefill_ctx_tokens"] // 64),
                )
            )
        )
    np.testing.assert_allclose(ours, batches["t"][known], rtol=1e-6)


def arrays(**changes: Any) -> dict[str, Any]:
    named = {
        "layers": 32,
        "gqa": True,
        "linear_ms_per_layer_by_ceil8N": np.array([1.0, 2.0]),
        "kvsave_ms_per_layer_by_N": np.array([0.5, 1.0]),
        "decode_ms_per_layer": np.ones((2, 2)),
        "prefill_ms_per_layer": np.ones((2, 2)),
    }
    return {**named, **changes}


def test_npz_files_hold_milliseconds_per_layer(tmp_path: Path) -> None:
    np.savez(tmp_path / "table.npz", **arrays())
    table = TableBatchTime.from_npz(tmp_path / "table.npz")
    assert table.gqa is True
    np.testing.assert_allclose(table.linear_s, [0.032, 0.064])
    assert table([], [], [0]) == pytest.approx(32e-3 * (2.0 + 0.5 + 1.0))


def test_unreadable_tables_are_one_clear_error(tmp_path: Path) -> None:
    (tmp_path / "text.npz").write_text("not a table")
    lacking = arrays()
    del lacking["decode_ms_per_layer"]
    np.savez(tmp_path / "lacking.npz", **lacking)
    for name in ("absent.npz", "text.npz", "lacking.npz"):
        with pytest.raises(InputError, match=rf"cannot read batch-time tables from .*{name}"):
            TableBatchTime.from_npz(tmp_path / name)


TABLES = {
    "linear_s": np.ones(4),
    "kv_save_s": np.zeros(3),
    "decode_s": np.ones((2, 3)),
    "prefill_s": np.ones((3, 2)),
}


@pytest.mark.parametrize("name", TABLES)
def test_a_table_that_cannot_be_one_is_named(name: str) -> None:
    good = TABLES[name]
    negative, unknown = good.copy(), good.copy()
    negative[(1,) * good.ndim] = -1e-3
    unknown[(1,) * good.ndim] = np.nan
    where = ", ".join("1" * good.ndim)
    wrong = [
        (good[..., None], f"must be an array with {good.ndim} axes, got shape"),
        (0.5, rf"must be an array with {good.ndim} axes, got shape \(\)"),
        (good[:1], "needs at least 2 entries per axis to be continued, got shape"),
        (good[..., :0], "needs at least 2 entries per axis to be continued, got shape"),
        (negative, f"must hold finite numbers >= 0, got -0.001 at index {where}"),
        (unknown, f"must hold finite numbers >= 0, got nan at index {where}"),
        ("table", "must be an array of numbers, got 'table'"),
        ([[1.0], [1.0, 2.0]], "must be an array of numbers, got "),
    ]
    for table, sentence in wrong:
        with pytest.raises(InputError, match=rf"TableBatchTime\.{name} {sentence}") as error:
            TableBatchTime(**{**TABLES, name: table})
        assert "\n" not in str(error.value)


def test_a_table_gives_every_batch_a_time() -> None:
    with pytest.raises(
        InputError, match=r"linear_s must be > 0 from index 1 on, got 0\.0: a batch"
    ):
        TableBatchTime(**{**TABLES, "linear_s": np.array([1.0, 1.0, 0.0])})
    first_unused = TableBatchTime(**{**TABLES, "linear_s": np.array([0.0, 1.0])})
    assert first_unused([1], [0], []) == 2.0


def test_a_table_is_a_copy_that_nobody_changes() -> None:
    linear_s = [1, 2, 4]
    table = TableBatchTime(**{**TABLES, "linear_s": linear_s})  # type: ignore[arg-type]
    linear_s[1] = 50
    assert table([1], [0], []) == 3.0
    with pytest.raises(ValueError, match="read-only"):
        table.linear_s[1] = 50.0


def test_a_file_with_a_wrong_table_is_named(tmp_path: Path) -> None:
    np.savez(tmp_path / "short.npz", **arrays(decode_ms_per_layer=np.ones((1, 2))))
    with pytest.raises(InputError, match=r"cannot read .*short\.npz: .*decode_s needs at least 2"):
        TableBatchTime.from_npz(tmp_path / "short.npz")
