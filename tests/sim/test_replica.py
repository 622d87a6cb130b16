"""What a replica and a cluster accept, and what they say to the rest."""

import math
from dataclasses import FrozenInstanceError
from typing import Any

import numpy as np
import pytest

from llmroute_gym.errors import InputError
from llmroute_gym.sim import Cluster, FormulaBatchTime, Replica, Workload, available_profiles
from llmroute_gym.sim.submission import fitting

ONE_SECOND = FormulaBatchTime(1.0, 0, 0, 0, 0)
WHOLE: dict[str, Any] = {"scheduler": "vllm_v1", "chunked_prefill": False}

WRONG: list[tuple[dict[str, Any], str]] = [
    ({"scheduler": "chunkd"}, r"unknown scheduler 'chunkd'; .* did you mean 'chunked'\?"),
    ({"scheduler": "vllm"}, r"unknown scheduler 'vllm'; available: chunked, prefill_first"),
    ({"restart": "vidr"}, r"unknown restart 'vidr'; .* did you mean 'vidur'\?"),
    ({"oversize": "drop"}, r"unknown oversize 'drop'; available: raise, reject"),
    *(
        ({name: value}, rf"{name} must be an integer >= 1, got {value!r}")
        for name in ("max_batch", "max_batched_tokens", "chunk_size", "block_size", "num_blocks")
        for value in (0, -1, 1.5, True, "8")
    ),
    *(({name: None}, f"{name} must be an integer >= 1") for name in ("chunk_size", "num_blocks")),
    ({"watermark_blocks": -1}, "watermark_blocks must be an integer >= 0, got -1"),
    ({"watermark_blocks": 0.01}, r"watermark_blocks must be an integer >= 0, got 0\.01"),
    ({"num_blocks": 5, "watermark_blocks": 5}, r"watermark_blocks must be below num_blocks \(5\)"),
    *(
        ({"speed": value}, r"speed must be a finite number > 0, got")
        for value in (0.0, -1.0, math.nan, math.inf, None, "fast", True, 1j)
    ),
    *(
        ({"batch_time": value}, r"batch_time must be a BatchTimeModel or another object with .*got")
        for value in (None, 0.01, "a100", FormulaBatchTime, math.sqrt)
    ),
    ({"scheduler": None}, "unknown scheduler None; available: chunked, prefill_first"),
    ({"scheduler": ["chunked"]}, r"unknown scheduler \['chunked'\]; .* did you mean 'chunked'\?"),
    ({"num_blocks": np.array([1, 2])}, "num_blocks must be an integer >= 1, got array"),
    (
        {"slowdowns": None},
        r"slowdowns must be a list or tuple of \(start_s, factor\) pairs, got None",
    ),
    ({"slowdowns": (5,)}, r"a slowdown must be a list or tuple of 2 numbers, .* got 5"),
    ({"slowdowns": (1.0, 2.0)}, r"a slowdown must be a list or tuple of 2 numbers, .* got 1\.0"),
    ({"slowdowns": (("a", "b"),)}, r"a slowdown is \(start_s >= 0, factor > 0\), got \('a', 'b'\)"),
    ({"slowdowns": ((0.0, None),)}, r"a slowdown is \(start_s >= 0, factor > 0\)"),
    ({"slowdowns": ((-1.0, 2.0),)}, r"a slowdown is \(start_s >= 0, factor > 0\)"),
    ({"slowdowns": ((0.0, 0.0),)}, r"a slowdown is \(start_s >= 0, factor > 0\)"),
    ({"slowdowns": ((0.0, math.nan),)}, r"a slowdown is \(start_s >= 0, factor > 0\)"),
    ({"slowdowns": ((0.0, 1.0, 2.0),)}, r"a slowdown is \(start_s >= 0, factor > 0\)"),
    ({"admission": "whole"}, "unknown admission 'whole'; available: chunk, sequence"),
    ({"scheduler": "vllm_v1", "num_blocks": 1}, "num_blocks must be an integer >= 2, got 1"),
    ({"scheduler": "vllm_v1", "block_size": 0}, "block_size must be an integer >= 1, got 0"),
    ({"prefix_caching": 1}, "prefix_caching must be True or False, got 1"),
    ({"chunked_prefill": "no"}, "chunked_prefill must be True or False, got 'no'"),
    ({"long_prefill_tokens": -1}, "long_prefill_tokens must be an integer >= 0, got -1"),
    ({"watermark": -0.1}, r"watermark must be a finite number >= 0, got -0\.1"),
    ({"watermark": 1}, "watermark must be a share of the blocks below 1, got 1; 0.01 keeps"),
    ({"max_model_len": 1}, "max_model_len must be an integer >= 2, got 1"),
    ({"shared_reads": -0.1}, r"shared_reads must be a finite number >= 0, got -0\.1"),
    ({"shared_reads": 44}, "shared_reads must be a share of the repeated reads, 0 to 1, got 44; 1"),
    *(
        ({name: value}, f"{name}={value!r} would not be read by the scheduler 'chunked'; leave it")
        for name, value in {
            "prefix_caching": True,
            "chunked_prefill": False,
            "long_prefill_tokens": 9,
            "admission": "chunk",
            "watermark": 0.1,
            "max_model_len": 4096,
            "shared_reads": 0.5,
        }.items()
    ),
    ({"slowdowns": ((2.0, 2.0), (1.0, 1.0))}, "slowdowns must have increasing start_s"),
    ({"slowdowns": ((1.0, 2.0), (1.0, 1.0))}, "slowdowns must have increasing start_s"),
]


@pytest.mark.parametrize(("settings", "sentence"), WRONG, ids=lambda value: str(value)[:60])
def test_wrong_settings_are_named(settings: dict[str, Any], sentence: str) -> None:
    with pytest.raises(InputError, match=sentence) as error:
        Replica(**{"batch_time": ONE_SECOND, **settings})
    assert "\n" not in str(error.value)


def test_whole_numbers_of_numpy_are_welcome() -> None:
    settings: dict[str, Any] = {
        "num_blocks": np.int64(7),
        "chunk_size": np.int32(5),
        "watermark_blocks": np.uint8(1),
        "speed": np.float32(0.5),
        "slowdowns": np.array([[1, 2], [3, 1]]),
    }
    replica = Replica(ONE_SECOND, **settings)
    assert replica == Replica(
        ONE_SECOND,
        num_blocks=7,
        chunk_size=5,
        watermark_blocks=1,
        speed=0.5,
        slowdowns=((1.0, 2.0), (3.0, 1.0)),
    )
    assert type(replica.num_blocks) is int
    assert type(replica.speed) is float


def test_a_replica_is_frozen() -> None:
    replica = Replica(ONE_SECOND)
    with pytest.raises(FrozenInstanceError):
        replica.speed = 2.0  # type: ignore[misc]


def test_a_slowdown_holds_from_its_start_to_the_next() -> None:
    replica = Replica(ONE_SECOND, slowdowns=((1.0, 3.0), (2.0, 1.0)))
    factors = [replica.slowdown_at(t) for t in (0.0, 0.999, 1.0, 1.999, 2.0, 1e9)]
    assert factors == [1.0, 1.0, 3.0, 3.0, 1.0, 1.0]


@pytest.mark.parametrize(
    ("limits", "prompt", "output", "reason"),
    [
        ({"num_blocks": 2}, 16, 17, None),  # 32 tokens in KV: the last token needs none
        ({"num_blocks": 2}, 16, 18, r"need 3 KV blocks of 16 tokens, the replica has 2 for"),
        ({"num_blocks": 3, "watermark_blocks": 1}, 16, 18, r"the replica has 2 for"),
        ({"scheduler": "prefill_first", "max_batched_tokens": 99}, 99, 1, None),
        ({"scheduler": "prefill_first", "max_batched_tokens": 99}, 100, 1, r"\(99\); raise it or"),
        ({"scheduler": "chunked", "max_batched_tokens": 99}, 100, 1, None),
        ({"scheduler": "vllm_v1", "num_blocks": 3}, 16, 17, None),
        ({"scheduler": "vllm_v1", "num_blocks": 3}, 16, 18, r"has 2 for one request; raise num_"),
        ({"scheduler": "vllm_v1", "max_batched_tokens": 99}, 100, 1, None),
        ({**WHOLE, "max_batched_tokens": 99}, 90, 10, None),
        ({**WHOLE, "max_batched_tokens": 99}, 90, 11, r"max_batched_tokens \(99\); raise max_b"),
        ({**WHOLE, "max_batched_tokens": 99, "max_model_len": 100}, 90, 11, None),
        ({"scheduler": "vllm_v1", "max_model_len": 100}, 99, 500_000, None),
        ({"scheduler": "vllm_v1", "max_model_len": 100}, 100, 1, r"within max_model_len \(100\)"),
    ],
)
def test_what_can_never_run_is_explained(
    limits: dict[str, Any], prompt: int, output: int, reason: str | None
) -> None:
    why = Replica(ONE_SECOND, **limits).why_oversize(prompt, output)
    if reason is None:
        assert why is None
    else:
        assert why is not None
        with pytest.raises(AssertionError, match=reason):
            raise AssertionError(why)


def test_a_scheduler_has_defaults_of_its_own() -> None:
    old, new = Replica(ONE_SECOND), Replica(ONE_SECOND, scheduler="vllm_v1")
    assert (old.max_batch, old.max_batched_tokens, old.prefix_caching) == (128, 4096, False)
    assert (new.max_batch, new.max_batched_tokens, new.prefix_caching) == (1024, 8192, True)
    assert new.largest_batch(100_000) == 8192
    assert Replica(ONE_SECOND, scheduler="vllm_v1", prefix_caching=False, max_batch=7) == Replica(
        ONE_SECOND, "vllm_v1", max_batch=7, max_batched_tokens=8192, prefix_caching=False
    )


@pytest.mark.parametrize("max_model_len", [None, 30, 33, 34, 40])
def test_the_masks_are_of_what_is_explained(max_model_len: int | None) -> None:
    whole = Replica(ONE_SECOND, **WHOLE, max_batched_tokens=37, max_model_len=max_model_len)
    blocks = Replica(ONE_SECOND, "vllm_v1", num_blocks=3, max_model_len=max_model_len)
    cluster = Cluster((whole, blocks, Replica(ONE_SECOND, oversize="reject")))
    lengths = [(prompt, output) for prompt in range(1, 45) for output in (1, 2, 3, 10, 90)]
    workload = Workload(np.zeros(len(lengths)), *np.array(lengths).T)
    fits = fitting(workload, cluster)
    assert fits is not None
    explained = [[one.why_oversize(*pair) is None for one in cluster] for pair in lengths]
    np.testing.assert_array_equal(fits, explained)
    for one, held in zip(cluster[:2], fits.T, strict=False):
        sums = [
            prompt + one.output_of(prompt, output)
            for (prompt, output), fit in zip(lengths, held, strict=True)
            if fit
        ]
        assert max(sums) == one.longest_request


def test_a_cluster_needs_replicas() -> None:
    with pytest.raises(InputError, match="a cluster needs at least 1 replica, got 0"):
        Cluster(())
    with pytest.raises(InputError, match="replica 1 of the cluster is not a Replica: 'fast'"):
        Cluster((Replica(ONE_SECOND), "fast"))  # type: ignore[arg-type]
    for wrong in (None, 3, Replica(ONE_SECOND)):
        with pytest.raises(InputError, match="a cluster must be a list or tuple of Replicas, got"):
            Cluster(wrong)  # type: ignore[arg-type]


def test_a_cluster_is_a_sequence() -> None:
    one, other = Replica(ONE_SECOND), Replica(ONE_SECOND, speed=2.0)
    cluster = Cluster([one, other])  # type: ignore[arg-type]
    assert len(cluster) == 2
    assert list(cluster) == [one, other]
    assert cluster[1] is other


PROFILES = {  # blocks, largest batch
    "a100-internlm-20b": (1792, 128),
    "a100-llama-2-7b": (7424, 128),
    "a100x2-llama-2-70b": (3328, 128),
    "a100x2-codellama-34b": (27648, 128),
    "h100-codellama-34b": (3328, 128),
    "a30-qwen2-7b": (11008, 48),
}


def test_the_profiles_are_shipped() -> None:
    assert set(PROFILES) <= set(available_profiles())


@pytest.mark.parametrize("name", PROFILES)
def test_a_profile_has_the_limits_of_its_memory(name: str) -> None:
    num_blocks, max_batch = PROFILES[name]
    cluster = Cluster.from_profile(name)
    assert len(cluster) == 4
    for replica in cluster:
        assert (replica.num_blocks, replica.max_batch) == (num_blocks, max_batch)
        assert replica.watermark_blocks == int(0.01 * num_blocks)
        assert (replica.block_size, replica.chunk_size, replica.max_batched_tokens) == (
            16,
            512,
            4096,
        )
        assert (replica.scheduler, replica.restart, replica.oversize) == (
            "chunked",
            "recompute",
            "raise",
        )


@pytest.mark.parametrize("name", sorted(set(available_profiles()) - set(PROFILES)))
def test_a_profile_of_todays_models_has_the_limits_of_vllm(name: str) -> None:
    [replica] = Cluster.from_profile(name, 1)
    small = name.startswith(("a100", "l40s"))
    assert replica.scheduler == "vllm_v1"
    assert replica.prefix_caching
    assert (replica.max_batch, replica.max_batched_tokens) == (
        (256, 2048) if small else (1024, 8192)
    )
    assert (replica.block_size, replica.watermark) == (16, 0.0)
    [other] = Cluster.from_profile(name, 1, scheduler="chunked", max_batch=64)
    assert (other.scheduler, other.max_batch, other.chunk_size) == ("chunked", 64, 512)
    assert other.num_blocks == replica.num_blocks


def test_overrides_replace_the_profiles_limits() -> None:
    cluster = Cluster.from_profile("a30-qwen2-7b", replicas=2, speed=0.5, num_blocks=500)
    assert [(one.speed, one.num_blocks, one.max_batch) for one in cluster] == [(0.5, 500, 48)] * 2


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"name": "a100-lama-2-7b"}, r"unknown profile 'a100-lama-2-7b'; .*'a100-llama-2-7b'"),
        ({"replicas": 0}, "replicas must be an integer >= 1, got 0"),
        ({"replicas": -2}, "replicas must be an integer >= 1, got -2"),
        ({"replicas": 2.5}, r"replicas must be an integer >= 1, got 2\.5"),
        ({"num_block": 5}, r"unknown replica setting 'num_block'; .*'num_blocks'"),
        ({"num_blocks": 0}, "num_blocks must be an integer >= 1, got 0"),
        ({"name": "absent/profile.yaml"}, "cannot read profile absent/profile.yaml"),
        ({"name": None}, "unknown profile None; available: a100-"),
        ({"name": ["a30-qwen2-7b"]}, r"unknown profile \['a30-qwen2-7b'\]; .*'a30-qwen2-7b'"),
        ({"name": ""}, "unknown profile ''; available: a100-"),
        ({"replicas": "4"}, "replicas must be an integer >= 1, got '4'"),
        ({"speed": "fast"}, "speed must be a finite number > 0, got 'fast'"),
        ({"batch_time": None}, "batch_time must be a BatchTimeModel or another object .*got None"),
    ],
)
def test_a_wrong_profile_request_is_named(arguments: dict[str, Any], sentence: str) -> None:
    with pytest.raises(InputError, match=sentence) as error:
        Cluster.from_profile(**{"name": "a100-internlm-20b", **arguments})
    assert "\n" not in str(error.value)


def test_speeds_are_set_one_by_one() -> None:
    cluster = Cluster.from_profile("a100-internlm-20b", replicas=3).with_speeds([1.0, 0.5, 2.0])
    assert [replica.speed for replica in cluster] == [1.0, 0.5, 2.0]
    with pytest.raises(InputError, match="3 replicas need as many speeds"):
        cluster.with_speeds([1.0, 2.0])
    with pytest.raises(InputError, match="speed must be a finite number > 0, got 0"):
        cluster.with_speeds([1.0, 0.0, 2.0])
    for wrong, value in (["a", 1, 1], "'a'"), ([1, None, 1], "None"), ([1, 1, True], "True"):
        with pytest.raises(InputError, match=f"speed must be a finite number > 0, got {value}"):
            cluster.with_speeds(wrong)  # type: ignore[arg-type]
    with pytest.raises(InputError, match=r"speeds must be a list or tuple of numbers, got 2\.0"):
        cluster.with_speeds(2.0)  # type: ignore[arg-type]
