import csv
import gzip
import math
import re
import subprocess
import sys
from copy import deepcopy
from dataclasses import replace
from itertools import islice, pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from llmroute_gym.errors import InputError
from llmroute_gym.routers.simulation import simulate
from llmroute_gym.sim import profile_time
from llmroute_gym.sim.batch_time import BatchSums, FormulaBatchTime, TableBatchTime
from llmroute_gym.sim.piecewise_time import PiecewiseBatchTime
from llmroute_gym.sim.profile_time import (
    Profile,
    ProfileBatchTime,
    available_profiles,
    load_profile,
)
from llmroute_gym.sim.profile_writer import write_profile
from llmroute_gym.sim.replica import Cluster
from tests.oracle import NO_DATA, case_names, load_case

PROFILES = Path(profile_time.__file__).parent / "profiles"
NUM_BLOCKS = {
    "a100-internlm-20b": 1792,
    "a100-llama-2-7b": 7424,
    "a100x2-llama-2-70b": 3328,
    "a100x2-codellama-34b": 27648,
    "h100-codellama-34b": 3328,
    "a30-qwen2-7b": 11008,
}
MODERN_BLOCKS = {
    "a100-llama-3.1-8b": 28189,
    "a100x4-llama-3.1-70b": 30098,
    "b200-llama-3.1-70b-fp8": 18024,
    "b200-llama-3.1-8b": 72046,
    "h100-gpt-oss-120b": 6023,
    "h100-llama-3.1-8b": 26344,
    "h100-llama-3.1-8b-fp8": 29672,
    "h100-qwen3-32b-fp8": 8596,
    "h100-qwen3-8b": 22884,
    "h100x2-qwen3-32b": 17719,
    "h100x4-llama-3.1-70b": 27145,
    "h200-llama-3.1-8b": 54282,
    "h200x4-qwen3-235b-a22b-fp8": 90451,
    "l40s-llama-3.1-8b": 12126,
}
UNCHECKED = ("h200", "b200", "l40s", "fp8")
COMPOSED_COLUMNS = (
    *("decode_reqs", "decode_kv_tokens", "num_prefill_reqs"),
    *("prefill_tokens", "sum_chunk_sq", "sum_chunk_ctx"),
)
COMBOS = {
    "a100-internlm-20b": "a100_internlm-20b_tp1",
    "a100-llama-2-7b": "a100_llama2-7b_tp1",
    "a100x2-llama-2-70b": "a100_llama2-70b_tp2",
    "a100x2-codellama-34b": "a100_codellama-34b_tp2",
    "h100-codellama-34b": "h100_codellama-34b_tp1",
    "a30-qwen2-7b": "a30_qwen2-7b_tp1",
}


def small(gqa: bool = False) -> ProfileBatchTime:
    return ProfileBatchTime(
        linear_tokens=np.array([8.0, 16.0, 64.0]),
        linear_s=np.array([1.0, 1.5, 3.0]),
        linear_slope_s=0.25,
        decode_batch=np.array([1.0, 3.0]),
        decode_context=np.array([0.0, 100.0, 300.0]),
        decode_s=np.array([[0.0, 2.0, 4.0], [1.0, 5.0, 11.0]]),
        prefill_root=np.array([0.0, 10.0]),
        prefill_context=np.array([0.0, 4.0]),
        prefill_s=np.array([[0.0, 0.0], [1.0, 3.0]]),
        gqa=gqa,
    )


def decoding(decodes: int, decode_context: int) -> BatchSums:
    return BatchSums(decodes, decode_context, 0, 0, 0, 0, 0)


@pytest.mark.parametrize(
    ("chunks", "contexts", "decode_contexts", "seconds"),
    [
        ((), (), (0,), 1.0),  # first step
        ((), (), (100,), 1.0 + 2.0),  # a knot
        ((), (), (50,), 1.0 + 1.0),  # half way in context
        ((), (), (50, 150), 1.0 + (2.0 + 5.0) / 2),  # half way in batch
        ((), (), (0, 100, 200), 1.0 + 5.0),  # the mean context counts
        ((), (), (500,), 1.0 + 6.0),  # the last segment in context goes on
        ((), (), (0,) * 5, 1.0 + 2.0),  # and in batch
        ((10,), (0,), (), 1.5 + 1.0),
        ((5,), (0,), (), 1.0 + 0.5),
        ((10,), (130,), (), 1.5 + 1.0 + 2.0 * 3 / 4),  # three buckets of context
        ((6, 8), (0, 0), (), 1.5 + 1.0),  # root of 36 + 64
        ((8,), (0,), (100,), 1.5 + 0.8 + 2.0),  # mixed: nine tokens
        ((80,), (0,), (), 3.0 + 0.25 * 16 + 8.0),  # beyond the last step
    ],
)
def test_time_is_the_sum_of_its_parts(
    chunks: tuple[int, ...],
    contexts: tuple[int, ...],
    decode_contexts: tuple[int, ...],
    seconds: float,
) -> None:
    assert small()(chunks, contexts, decode_contexts) == pytest.approx(seconds, rel=1e-12)


@pytest.mark.parametrize(("tokens", "step"), [(8, 1.0), (9, 1.5), (16, 1.5), (17, 3.0), (64, 3.0)])
def test_a_step_includes_its_last_token(tokens: int, step: float) -> None:
    free = replace(small(), decode_s=np.zeros((2, 3)))
    assert free((), (), (0,) * tokens) == step


def test_grouped_query_attention_costs_a_tenth_more_from_two_requests_on() -> None:
    plain, gqa = small(), small(gqa=True)
    assert gqa((), (), (100,)) == plain((), (), (100,))
    assert gqa((), (), (100, 100)) - 1.0 == pytest.approx(1.1 * (plain((), (), (100, 100)) - 1.0))
    assert gqa((10,), (0,), ()) == plain((10,), (0,), ())
    assert gqa((6, 8), (0, 0), ()) - 1.5 == pytest.approx(1.1 * (plain((6, 8), (0, 0), ()) - 1.5))


def test_available_profiles_are_those_documented() -> None:
    assert set(available_profiles()) == {*NUM_BLOCKS, *MODERN_BLOCKS}
    assert list(available_profiles()) == sorted(available_profiles())


@pytest.mark.parametrize("name", NUM_BLOCKS)
def test_shipped_profile_states_limits_source_and_errors(name: str) -> None:
    profile = load_profile(name)
    assert profile.name == name
    assert profile.limits == {
        "num_blocks": NUM_BLOCKS[name],
        "block_size": 16,
        "watermark_blocks": int(0.01 * NUM_BLOCKS[name]),
        "max_batch": 48 if name == "a30-qwen2-7b" else 128,
        "max_batched_tokens": 4096,
        "chunk_size": 512,
    }
    assert "Vidur" in profile.source
    assert profile.licence == "MIT"
    assert profile.scheduler is None
    assert "measured_error" in yaml.safe_load((PROFILES / f"{name}.yaml").read_text())


@pytest.mark.parametrize("name", MODERN_BLOCKS)
def test_shipped_profile_of_todays_models_says_what_it_is(name: str) -> None:
    profile = load_profile(name)
    small = name.startswith(("a100", "l40s"))
    assert profile.name == name
    assert profile.scheduler == "vllm_v1"
    assert profile.limits == {
        "num_blocks": MODERN_BLOCKS[name],
        "block_size": 16,
        "max_batch": 256 if small else 1024,
        "max_batched_tokens": 2048 if small else 8192,
    }
    assert isinstance(profile.batch_time, PiecewiseBatchTime)
    assert profile.batch_time.time_factor == 1.05
    assert "modelled from measured kernels" in profile.description
    unchecked = any(word in name for word in UNCHECKED)
    assert ("unchecked against any measurement" in profile.description) == unchecked
    assert "NVIDIA AIConfigurator (aiconfigurator-core 0.12.0, Copyright" in profile.source
    assert profile.licence == "Apache-2.0"
    text = (PROFILES / f"{name}.yaml").read_text()
    assert len(text) < 60_000
    errors = yaml.safe_load(text)["measured_error"]["per_iteration_held_out"]
    assert errors["median"] <= 0.007
    assert errors["p95"] <= 0.04


def test_the_licences_of_the_measurements_are_beside_the_profiles() -> None:
    assert "MIT License" in (PROFILES / "LICENSE-vidur.txt").read_text()
    assert "Apache License" in (PROFILES / "LICENSE-aiconfigurator.txt").read_text()


@pytest.mark.parametrize("name", available_profiles())
def test_decode_time_is_linear_in_context_between_knots(name: str) -> None:
    model = load_profile(name).batch_time
    assert isinstance(model, ProfileBatchTime | PiecewiseBatchTime)
    knots = [*model.decode_context.tolist(), 2 * model.decode_context[-1]]
    for decodes in (1, 2, 7, 31, 48, 200):
        for low, high in pairwise(knots):
            ends = [model.seconds(decoding(decodes, int(decodes * m))) for m in (low, high)]
            for share in (0.25, 0.5, 0.75):
                context = round(decodes * (low + share * (high - low)))
                at = (context / decodes - low) / (high - low)
                assert model.seconds(decoding(decodes, context)) == pytest.approx(
                    ends[0] + at * (ends[1] - ends[0]), rel=1e-12
                )


@pytest.mark.parametrize("name", available_profiles())
def test_every_batch_takes_time_far_beyond_the_tables_too(name: str) -> None:
    model = load_profile(name).batch_time
    rng = np.random.default_rng(0)
    for _ in range(500):
        chunks = rng.integers(1, 30_000, rng.integers(0, 5)).tolist()
        contexts = rng.integers(0, 100_000, len(chunks)).tolist()
        decode_contexts = rng.integers(1, 100_000, rng.integers(0, 400)).tolist()
        if chunks or decode_contexts:
            seconds = model(chunks, contexts, decode_contexts)
            assert math.isfinite(seconds)
            assert seconds > model((), (), (1,)) / 2


@pytest.mark.parametrize("name", NUM_BLOCKS)
def test_a_profile_stays_near_the_exact_tables(name: str, data: Path) -> None:
    model = load_profile(name).batch_time
    exact = TableBatchTime.from_npz(data / "batch_time" / f"{COMBOS[name]}.npz")
    rng = np.random.default_rng(1)
    errors = []
    for _ in range(1000):
        decodes, prompt = int(rng.integers(0, 48)), int(rng.integers(1, 2000))
        chunks = [prompt] if not decodes or rng.random() < 0.5 else []
        decode_contexts = rng.integers(1, 4000, decodes).tolist()
        members = (chunks, [0] * len(chunks), decode_contexts)
        errors.append(model(*members) / exact(*members) - 1.0)
    assert np.median(np.abs(errors)) < 0.01
    assert abs(np.mean(errors)) < 0.005
    assert np.max(np.abs(errors)) < 0.1


@pytest.mark.parametrize("name", MODERN_BLOCKS)
def test_a_profile_of_todays_models_stays_near_its_composed_iterations(
    name: str, data: Path
) -> None:
    model = load_profile(name).batch_time
    path = data / "modern" / f"{name}_design_batches.csv.gz"
    if not path.exists():
        pytest.skip(NO_DATA)
    errors = []
    with gzip.open(path, "rt", newline="") as stream:
        for row in islice(csv.DictReader(stream), 4, None, 5):  # what was held out of the fit
            sums = BatchSums(
                *(int(row[column]) for column in COMPOSED_COLUMNS),
                context_buckets=0,
            )
            errors.append(model.seconds(sums) / (1.05 * float(row["t"])) - 1.0)
    assert len(errors) == 1500
    assert np.median(np.abs(errors)) <= 0.007
    assert np.quantile(np.abs(errors), 0.95) <= 0.04
    assert abs(np.mean(errors)) < 0.001


@pytest.mark.oracle
@pytest.mark.parametrize(
    ("case", "profile"),
    [
        ("tiny_a100-7b_vllm_1rep", "a100-llama-2-7b"),
        ("tiny_a100-7b_sarathi256_1rep", "a100-llama-2-7b"),
        ("stress_a100-7b_vllm_round_robin_q6_blk700", "a100-llama-2-7b"),
        ("a100-internlm20b_sarathi_round_robin_q4.5", "a100-internlm-20b"),
        ("h100-34b_vllm_round_robin_q10", "h100-codellama-34b"),
    ],
)
def test_a_recorded_run_is_met_with_the_profile(case: str, profile: str) -> None:
    if case not in case_names():
        pytest.skip(NO_DATA)
    run = load_case(case)
    one = replace(run.cluster[0], batch_time=load_profile(profile).batch_time)
    outcome = simulate(
        run.workload, Cluster((one,) * len(run.cluster)), run.assignment, engine="reference"
    )
    assert np.quantile(outcome.ttft_s, 0.99) == pytest.approx(
        np.quantile(run.recorded["ttft"], 0.99), rel=0.03
    )
    assert np.quantile(outcome.e2e_s, 0.99) == pytest.approx(
        np.quantile(run.recorded["e2e"], 0.99), rel=0.01
    )


def test_arrays_are_plain_and_cannot_be_changed() -> None:
    arrays = small().arrays()
    assert set(arrays) >= {"linear_tokens", "linear_s", "decode_batch", "decode_s", "prefill_s"}
    for array in arrays.values():
        assert array.dtype == np.float64
        assert array.flags.c_contiguous
        with pytest.raises(ValueError, match="read-only"):
            array[...] = 0.0


def profile_of(batch_time: FormulaBatchTime | ProfileBatchTime) -> Profile:
    limits = dict.fromkeys(("num_blocks", "max_batch", "max_batched_tokens"), 100)
    limits |= {"block_size": 16, "watermark_blocks": 0, "chunk_size": 64}
    return Profile("mine", batch_time, limits, "a model", "a: colon", "it's mine", "me", "MIT")


def test_tables_survive_writing_and_reading(tmp_path: Path) -> None:
    rng = np.random.default_rng(3)
    model = replace(
        small(gqa=True), linear_s=rng.random(3) * 1e-7, decode_s=np.outer([1, 2], [0, 1e-9, 1 / 3])
    )
    write_profile(profile_of(model), tmp_path / "mine.yaml", errors={"median": 0.1})
    read = load_profile(str(tmp_path / "mine.yaml"))
    assert isinstance(read.batch_time, ProfileBatchTime)
    for name, array in model.arrays().items():
        np.testing.assert_array_equal(read.batch_time.arrays()[name], array)
    assert read.batch_time.linear_slope_s == model.linear_slope_s
    assert read.batch_time.gqa
    written = profile_of(model)
    for name in ("name", "limits", "model", "hardware", "description", "source", "licence"):
        assert getattr(read, name) == getattr(written, name)


def test_a_formula_survives_writing_and_reading(tmp_path: Path) -> None:
    formula = FormulaBatchTime(c0=0.0283159, c1=1 / 3e4, n0=72, c2=5.75623e-07, c3=1e-8, c4=0.0)
    write_profile(profile_of(formula), tmp_path / "mine.yml")
    assert load_profile(tmp_path / "mine.yml").batch_time == formula
    assert Cluster.from_profile(tmp_path / "mine.yml", 2)[1].batch_time == formula
    with pytest.raises(InputError, match="expected tables"):
        ProfileBatchTime.from_yaml(tmp_path / "mine.yml")


def test_a_failed_write_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("old")
    ones = np.ones(2)
    exact = TableBatchTime(ones, ones, np.ones((2, 2)), np.ones((2, 2)))
    with pytest.raises(TypeError, match="TableBatchTime"):
        write_profile(replace(profile_of(small()), batch_time=exact), path)
    assert [entry.name for entry in tmp_path.iterdir()] == ["mine.yaml"]
    assert path.read_text() == "old"


def test_an_unknown_name_suggests_a_known_one() -> None:
    with pytest.raises(InputError, match=r"unknown profile 'a100-internlm'.*did you mean 'a100-in"):
        load_profile("a100-internlm")


def edit(content: dict[str, Any], path: str, value: object) -> None:
    *parents, last = path.split(".")
    for name in parents:
        content = content[name]
    if value is None:
        del content[last]
    else:
        content[last] = value


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("limits", None, "lacks the entry 'limits'"),
        ("limits.num_blocks", 0, "num_blocks must be an integer >= 1, got 0"),
        ("limits.num_blocks", 1.5, "got 1.5"),
        ("limits.max_batch", True, "got True"),
        ("limits.max_bacth", 3, "unknown limit 'max_bacth'"),
        ("batch_time", 3, "must be a mapping"),
        ("batch_time.kind", "magic", "available: formula, piecewise, tables"),
        ("batch_time.gqa", "yes", "must be true or false"),
        ("batch_time.linear", None, "lacks the entry 'linear'"),
        ("batch_time.linear.tokens", [8, 8, 16], "linear_tokens must be"),
        ("batch_time.linear.seconds", [1, 2], "linear_s has shape"),
        ("batch_time.linear.seconds", [1, 2, 0], "linear_s must be > 0"),
        ("batch_time.linear.seconds", [1, 2, math.nan], "linear_s must hold finite"),
        ("batch_time.linear.slope_s", "x", "must be a number"),
        ("batch_time.decode.batch", [2, 3], "decode_batch must start at 1"),
        ("batch_time.decode.seconds", [[1, 2, 3], [1, 2]], "equally long lists"),
        ("batch_time.decode.seconds", [[1, 2, 3]], "decode_s has shape"),
        ("batch_time.decode.seconds", [[0, 2, 1], [1, 2, 3]], "must not fall"),
        ("batch_time.decode.seconds", [[0, 2, -1], [1, 2, 3]], "finite numbers >= 0"),
        ("batch_time.prefill.context_buckets", [1, 4], "prefill_context must start at 0"),
    ],
)
def test_a_malformed_profile_is_one_clear_error(
    path: str, value: object, message: str, tmp_path: Path
) -> None:
    file = tmp_path / "mine.yaml"
    write_profile(profile_of(small()), file)
    content = deepcopy(yaml.safe_load(file.read_text()))
    edit(content, path, value)
    file.write_text(yaml.safe_dump(content))
    with pytest.raises(InputError, match=re.escape(message)) as caught:
        load_profile(file)
    assert str(file) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("text", ["", "- 1", "a: [", "\t", "name: x"])
def test_what_is_no_profile_is_one_clear_error(text: str, tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text(text)
    with pytest.raises(InputError, match=r"mine\.yaml") as caught:
        load_profile(file)
    assert "\n" not in str(caught.value)


def test_a_missing_file_is_one_clear_error(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="No such file"):
        load_profile(tmp_path / "none.yaml")


@pytest.mark.cli
def test_profiles_load_without_scipy_and_pandas() -> None:
    code = (
        "import sys; from llmroute_gym.sim import fit, profile_time; "
        "profile_time.load_profile('a100-internlm-20b'); "
        "print([name for name in ('scipy', 'pandas', 'numba') if name in sys.modules])"
    )
    root = Path(__file__).parents[2]
    found = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=root, check=True
    )
    assert found.stdout.strip() == "[]"


def test_the_share_of_reads_comes_with_the_profile_and_its_scheduler(tmp_path: Path) -> None:
    name = "h100x2-qwen3-32b"
    profile = load_profile(name)
    assert profile.shared_reads == Cluster.from_profile(name)[0].shared_reads == 0.44
    assert Cluster.from_profile(name, scheduler="vllm_v1")[0].shared_reads == 0.44
    assert Cluster.from_profile(name, scheduler="chunked")[0].shared_reads == 0.0
    assert Cluster.from_profile(name, shared_reads=0.0)[0].shared_reads == 0.0
    path = tmp_path / "copy.yaml"
    write_profile(profile, path)
    assert load_profile(path).shared_reads == 0.44
    path.write_text(path.read_text().replace("shared_reads: 0.44", "shared_reads: half"))
    with pytest.raises(InputError, match="shared_reads must be a number, got 'half'"):
        load_profile(path)
