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
@pytest.mark.parametrize("value", [-1e-9, math.nan, math.inf])
def test_formula_takes_finite_numbers_from_zero(name: str, value: float) -> None:
    with pytest.raises(InputError, match=rf"FormulaBatchTime\.{name} must be .* >= 0, got "):
        FormulaBatchTime(**{**FORMULA, name: value})


def test_a_batch_takes_time() -> None:
    with pytest.raises(InputError, match="a batch must take time"):
        FormulaBatchTime(0, 0, 0, 1e-6, 1e-6)


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
