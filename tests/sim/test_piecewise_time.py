"""Batch times of lines: what they are by hand, far beyond their knots, and in the kernels."""

import math
import re
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from llmroute_gym.errors import InputError
from llmroute_gym.sim.batch_time import BatchSums
from llmroute_gym.sim.compiled import layout as at
from llmroute_gym.sim.compiled.batch_seconds import (
    decode_seconds,
    prefill_seconds,
    steps_seconds,
)
from llmroute_gym.sim.compiled.models import FlatModels
from llmroute_gym.sim.piecewise_time import PiecewiseBatchTime
from llmroute_gym.sim.profile_time import Profile, load_profile
from llmroute_gym.sim.profile_writer import write_profile
from llmroute_gym.sim.replica import Cluster
from tests.sim.strategies import random_piecewise


def small(time_factor: float = 1.0) -> PiecewiseBatchTime:
    return PiecewiseBatchTime(
        linear_tokens=np.array([1.0, 9.0, 17.0]),
        linear_s=np.array([1.0, 2.0, 4.0]),
        decode_batch=np.array([1.0, 3.0]),
        decode_context=np.array([0.0, 100.0, 300.0]),
        decode_s=np.array([[0.0, 2.0, 4.0], [1.0, 5.0, 11.0]]),
        prefill_root=np.array([0.0, 10.0]),
        prefill_s=np.array([0.5, 1.0]),
        prefill_pair_s=np.array([0.01, 0.02]),
        chunk_s=0.25,
        time_factor=time_factor,
    )


@pytest.mark.parametrize(
    ("chunks", "contexts", "decode_contexts", "seconds"),
    [
        ((), (), (0,), 1.0),  # a knot of each
        ((), (), (50,), 1.0 + 1.0),  # half way in context
        ((), (), (50, 150), 1.125 + (2.0 + 5.0) / 2),  # half way in batch
        ((), (), (500,), 1.0 + 6.0),  # the last segment in context goes on
        ((), (), (0,) * 5, 1.5 + 2.0),  # and in batch
        ((10,), (0,), (), 2.25 + 1.0 + 0.25),
        ((5,), (0,), (), 1.5 + 0.75 + 0.25),
        ((5,), (100,), (), 1.5 + 0.75 + 0.25 + 500 * 0.015),  # 500 pairs
        ((6, 8), (0, 3), (), 3.25 + 1.0 + 2 * 0.25 + 24 * 0.02),  # root of 36 + 64
        ((5,), (0,), (100,), 1.625 + 1.0 + 2.0),  # mixed: six tokens
        ((20,), (1,), (), 4.75 + 1.5 + 0.25 + 20 * 0.03),  # beyond the last knots
    ],
)
def test_time_is_the_sum_of_its_parts(
    chunks: tuple[int, ...],
    contexts: tuple[int, ...],
    decode_contexts: tuple[int, ...],
    seconds: float,
) -> None:
    members = (chunks, contexts, decode_contexts)
    assert small()(*members) == pytest.approx(seconds, rel=1e-12)
    assert small(1.05)(*members) == pytest.approx(1.05 * seconds, rel=1e-12)


MAX_TOKENS, MAX_CONTEXT, MAX_BATCH = 20_000, 200_000, 1500


def flat(model: PiecewiseBatchTime) -> tuple[int, np.ndarray, np.ndarray]:
    """The word of a model in a memory that holds nothing else."""
    models = FlatModels([model], 0, MAX_TOKENS, MAX_CONTEXT, MAX_BATCH)
    return models.word_of[0], models.words, models.words.view(np.float64)


def compiled_seconds(word: int, sums: BatchSums, ints: np.ndarray, floats: np.ndarray) -> float:
    seconds = floats[ints[word + at.DENSE] + sums.tokens]
    seconds += decode_seconds(word, sums.decodes, sums.decode_context, ints, floats)
    if sums.prefills:
        seconds += prefill_seconds(word, *sums[2:3], *sums[4:], ints, floats)
    return float(seconds)


def random_sums(rng: np.random.Generator) -> BatchSums:
    """A batch whose sums lie anywhere up to the largest, or beyond all that memory could hold."""

    def size(largest: int) -> int:
        return int(np.exp(rng.uniform(0, np.log(largest))))

    decodes = int(rng.choice([0, 1, size(MAX_BATCH), MAX_BATCH]))
    prefills = int(rng.choice([0, 1, size(500)])) if decodes else size(500)
    tokens = prefills and max(prefills, size(MAX_TOKENS - MAX_BATCH))
    context = int(rng.choice([0, size(MAX_CONTEXT), MAX_CONTEXT]))
    return BatchSums(
        decodes=decodes,
        decode_context=decodes * context + (size(decodes) - 1 if decodes else 0),
        prefills=prefills,
        prefill_tokens=tokens,
        chunk_squares=tokens * size(tokens) if tokens else 0,
        chunk_context=tokens * int(rng.choice([0, 1, size(MAX_CONTEXT), 10**9])),
        context_buckets=prefills * size(10**6) if prefills else 0,
    )


MODELS = [*range(8), "h100-llama-3.1-8b", "h100-gpt-oss-120b", "l40s-llama-3.1-8b"]


def model_of(which: int | str) -> PiecewiseBatchTime:
    if isinstance(which, int):
        return random_piecewise(np.random.default_rng(which))
    model = load_profile(which).batch_time
    assert isinstance(model, PiecewiseBatchTime)
    return model


@pytest.mark.parametrize("which", MODELS)
def test_the_kernels_agree_wherever_a_batch_lies(which: int | str) -> None:
    model = model_of(which)
    word, ints, floats = flat(model)
    rng = np.random.default_rng(1)
    for _ in range(1500):
        sums = random_sums(rng)
        seconds = model.seconds(sums)
        assert 0.0 < seconds < math.inf
        assert compiled_seconds(word, sums, ints, floats) == pytest.approx(seconds, rel=1e-9)


@pytest.mark.parametrize("which", MODELS)
def test_a_run_of_decode_steps_is_the_sum_of_its_batches(which: int | str) -> None:
    model = model_of(which)
    word, ints, floats = flat(model)
    rng = np.random.default_rng(2)
    for _ in range(30):
        decodes, steps = int(rng.integers(1, MAX_BATCH + 1)), int(rng.integers(1, 200))
        contexts = int(
            decodes * rng.choice([0, 10, 90, 250, 5000, 130_000]) + rng.integers(decodes)
        )
        one_by_one = sum(
            model.seconds(BatchSums(decodes, contexts + k * decodes, 0, 0, 0, 0, 0))
            for k in range(steps)
        )
        together = steps_seconds(word, decodes, contexts, steps, ints, floats)
        assert together == pytest.approx(one_by_one, rel=1e-9)
        bound = steps_seconds(ints[word + at.LEAST], decodes, contexts, steps, ints, floats)
        assert bound <= one_by_one * (1 + 1e-12)


def profile_of(model: PiecewiseBatchTime, scheduler: str | None = None) -> Profile:
    limits = {"num_blocks": 100, "block_size": 16, "max_batch": 8, "max_batched_tokens": 64}
    return Profile("mine", model, limits, "a model", "a GPU", "mine", scheduler=scheduler)


def test_it_survives_writing_and_reading(tmp_path: Path) -> None:
    model = random_piecewise(np.random.default_rng(5))
    write_profile(profile_of(model, "chunked"), tmp_path / "mine.yaml")
    read = load_profile(tmp_path / "mine.yaml")
    assert isinstance(read.batch_time, PiecewiseBatchTime)
    for field in fields(model):
        np.testing.assert_array_equal(
            getattr(read.batch_time, field.name), getattr(model, field.name)
        )


def test_a_profile_names_its_scheduler_and_overrides_win(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    write_profile(profile_of(small(), "prefill_first"), path)
    [one] = Cluster.from_profile(path, 1)
    assert (one.scheduler, one.max_batch, one.watermark_blocks) == ("prefill_first", 8, 0)
    [one] = Cluster.from_profile(path, 1, scheduler="chunked", max_batch=5)
    assert (one.scheduler, one.max_batch) == ("chunked", 5)
    write_profile(profile_of(small()), path)
    with pytest.raises(InputError, match="limits lacks the entry 'watermark_blocks'"):
        load_profile(path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"linear_tokens": [2, 9, 17]}, "linear_tokens must start at 1, got 2"),
        ({"linear_tokens": [1, 9, 9]}, "linear_tokens must be at least 2 ascending numbers"),
        ({"linear_s": [1, 2]}, "linear_s has shape (2,), expected (3,) as linear_tokens"),
        ({"linear_s": [1, 0, 1]}, "linear_s must be > 0 everywhere"),
        ({"linear_s": [1, 3, 2]}, "linear_s must not fall"),
        ({"decode_s": [[0, 2, 1], [1, 2, 3]]}, "decode_s must not fall"),
        ({"prefill_root": [1, 10]}, "prefill_root must start at 0, got 1"),
        ({"prefill_s": [1, math.nan]}, "prefill_s must hold finite numbers >= 0"),
        ({"prefill_s": [1, 0.5]}, "prefill_s must not fall"),
        ({"prefill_pair_s": [1, 2, 3]}, "prefill_pair_s has shape (3,)"),
        ({"chunk_s": -1.0}, "chunk_s must be a finite number >= 0, got -1"),
        ({"time_factor": 0}, "time_factor must be a finite number > 0, got 0"),
    ],
)
def test_what_is_malformed_is_one_clear_error(change: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=re.escape(message)) as error:
        replace(small(), **change)
    assert "\n" not in str(error.value)


def test_a_malformed_file_is_one_clear_error(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    write_profile(profile_of(small(), "chunked"), path)
    content = yaml.safe_load(path.read_text())
    del content["batch_time"]["prefill"]["seconds_per_pair"]
    path.write_text(yaml.safe_dump(content))
    with pytest.raises(InputError, match=r"mine\.yaml: prefill lacks the entry 'seconds_per_pair'"):
        load_profile(path)
