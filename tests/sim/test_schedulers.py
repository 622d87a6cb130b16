"""Both schedulers on examples worked by hand."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from llmroute_gym.routers.simulation import simulate
from llmroute_gym.sim import Cluster, FormulaBatchTime, Outcome, Replica, Workload
from llmroute_gym.sim.engines import EngineName
from llmroute_gym.sim.replica import RestartMode

ONE_SECOND = FormulaBatchTime(1.0, 0, 0, 0, 0)
BY_TOKENS = FormulaBatchTime(1.0, 0, 0, 0, 0, c4=0.125)  # 1 s + 1/8 s per token

both_schedulers = pytest.mark.parametrize("scheduler", ["chunked", "prefill_first"])


def serve(
    engine: EngineName,
    requests: Sequence[tuple[float, int, int]],
    batch_time: FormulaBatchTime,
    **limits: Any,
) -> Outcome:
    """Serves (arrival, prompt, output) triples with one replica."""
    arrived, prompts, outputs = map(np.array, zip(*requests, strict=True))
    replica = Replica(batch_time, **limits)
    return simulate(
        Workload(arrived, prompts, outputs), Cluster((replica,)), "round_robin", engine=engine
    )


def assert_times(
    outcome: Outcome,
    scheduled: Sequence[float],
    first_token: Sequence[float],
    finished: Sequence[float],
) -> None:
    np.testing.assert_array_equal(outcome.scheduled_at_s, scheduled)
    np.testing.assert_array_equal(outcome.first_token_at_s, first_token)
    np.testing.assert_array_equal(outcome.finished_at_s, finished)


def test_chunked_mixes_decodes_and_chunks(engine: EngineName) -> None:
    # 0.000: A 8 of 12 prompt tokens                    8 tokens, 2 s
    # 2.000: A its last 4, B 4 of 10                    8 tokens, 2 s
    # 4.000: A decodes, B its last 6                    7 tokens, 1.875 s
    # 5.875: A and B decode for the last time           2 tokens, 1.25 s
    outcome = serve(
        engine, [(0.0, 12, 3), (0.5, 10, 2)], BY_TOKENS, scheduler="chunked", chunk_size=8
    )
    assert_times(outcome, [0.0, 2.0], [4.0, 5.875], [7.125, 7.125])


def test_prefill_first_runs_whole_prompts_up_to_the_padded_limit(engine: EngineName) -> None:
    # 0.000: prefill A                                  8 tokens, 2 s
    # 2.000: prefill B; with C it would pad to 2 x 10  10 tokens, 2.25 s
    # 4.250: prefill C, which finishes                  3 tokens, 1.375 s
    # 5.625: A and B decode, B finishes                 2 tokens, 1.25 s
    # 6.875: A decodes                                  1 token, 1.125 s
    outcome = serve(
        engine,
        [(0.0, 8, 3), (0.25, 10, 2), (0.5, 3, 1)],
        BY_TOKENS,
        scheduler="prefill_first",
        max_batched_tokens=16,
    )
    assert_times(outcome, [0.0, 2.0, 4.25], [2.0, 4.25, 5.625], [8.0, 6.875, 5.625])


def test_decodes_use_up_the_budget_of_prompts(engine: EngineName) -> None:
    # 0: A and B prefill; 1, 2, 3: they decode and leave no budget; 4: C and D prefill; 5: decode.
    outcome = serve(
        engine, [(0.0, 1, 4)] * 2 + [(0.0, 1, 2)] * 2, ONE_SECOND, scheduler="chunked", chunk_size=2
    )
    assert_times(outcome, [0, 0, 4, 4], [1, 1, 5, 5], [4, 4, 6, 6])


@both_schedulers
def test_no_more_than_max_batch_requests_are_admitted(scheduler: str, engine: EngineName) -> None:
    outcome = serve(engine, [(0.0, 4, 3)] * 5, ONE_SECOND, scheduler=scheduler, max_batch=2)
    assert outcome.scheduled_at_s.tolist() == [0, 0, 3, 3, 6]
    assert outcome.finished_at_s.tolist() == [3, 3, 6, 6, 9]


@both_schedulers
def test_an_admission_leaves_the_watermark_free(scheduler: str, engine: EngineName) -> None:
    # 3 blocks of 4 tokens each hold a prompt of 4; with a watermark of 1 only two are admitted.
    requests = [(0.0, 4, 1)] * 3
    limits: dict[str, Any] = {"scheduler": scheduler, "block_size": 4, "num_blocks": 3}
    assert serve(engine, requests, ONE_SECOND, **limits).finished_at_s.tolist() == [1, 1, 1]
    reserved = serve(engine, requests, ONE_SECOND, **limits, watermark_blocks=1)
    assert reserved.finished_at_s.tolist() == [1, 1, 2]


@both_schedulers
def test_a_head_that_does_not_fit_holds_up_the_queue(scheduler: str, engine: EngineName) -> None:
    # B needs all memory and waits for A to finish; C would fit beside A but stays behind B.
    outcome = serve(
        engine,
        [(0.0, 4, 3), (0.5, 16, 1), (0.5, 4, 1)],
        ONE_SECOND,
        scheduler=scheduler,
        block_size=4,
        num_blocks=4,
    )
    assert outcome.scheduled_at_s.tolist() == [0, 3, 4]


@pytest.mark.parametrize("restart", ["recompute", "vidur"])
def test_prefill_first_restarts_the_latest_arrival(
    restart: RestartMode, engine: EngineName
) -> None:
    # 4 blocks of 4 tokens. 0: prefill A and B; 1: both decode and take their second block. No
    # block is free from then on, so A's decodes at 2, 4, 6 and 8 each restart B, whose prompt has
    # grown by what it had: 6, 7, 8, 9 tokens, prefilled at 3, 5, 7 and, with A gone, at 9.
    outcome = serve(
        engine,
        [(0.0, 4, 6), (0.0, 4, 6)],
        ONE_SECOND,
        scheduler="prefill_first",
        block_size=4,
        num_blocks=4,
        restart=restart,
    )
    assert_times(outcome, [0, 0], [1, 1], [9, 10])
    assert outcome.preemptions.tolist() == [0, 4]


def restart_of_a_half_done_prefill(engine: EngineName, restart: RestartMode) -> Outcome:
    """5 blocks of 4 tokens, chunks of 4: A's decode at 2 s restarts B, 3 of 12 prompt tokens in."""
    return serve(
        engine,
        [(0.0, 4, 6), (0.0, 12, 2)],
        ONE_SECOND,
        scheduler="chunked",
        chunk_size=4,
        block_size=4,
        num_blocks=5,
        restart=restart,
    )


def test_recompute_keeps_a_half_done_prompt_whole(engine: EngineName) -> None:
    # B is admitted again at 2, 3 and 4 with its first 3 tokens, each time to be restarted by A's
    # next step; at 5 A takes its third block and B no longer fits. 6 to 9: B's prompt in chunks
    # of 4; 9: its decode.
    outcome = restart_of_a_half_done_prefill(engine, "recompute")
    assert_times(outcome, [0, 1], [1, 9], [6, 10])
    assert outcome.preemptions.tolist() == [0, 4]


def test_vidur_counts_the_rest_of_a_half_done_prompt_as_output(engine: EngineName) -> None:
    # B's prompt is now 3 tokens, prefilled at 2; it decodes at 3 and 4, restarts itself at 5 when
    # A has taken the last block, prefills 3 + 3 tokens at 5 and 6 and decodes from 7 to 14.
    outcome = restart_of_a_half_done_prefill(engine, "vidur")
    assert_times(outcome, [0, 1], [1, 3], [6, 14])
    assert outcome.preemptions.tolist() == [0, 2]


@both_schedulers
def test_an_arrival_precedes_a_batch_end_at_the_same_instant(
    scheduler: str, engine: EngineName
) -> None:
    outcome = serve(engine, [(0.0, 4, 5), (1.0, 4, 1)], ONE_SECOND, scheduler=scheduler)
    assert outcome.scheduled_at_s.tolist() == [0, 1]


@both_schedulers
def test_requests_of_one_instant_share_a_batch(scheduler: str, engine: EngineName) -> None:
    outcome = serve(engine, [(3.0, 4, 2)] * 4, ONE_SECOND, scheduler=scheduler)
    assert_times(outcome, [3] * 4, [4] * 4, [5] * 4)


@both_schedulers
def test_an_idle_replica_wakes_at_an_arrival(scheduler: str, engine: EngineName) -> None:
    outcome = serve(engine, [(0.0, 4, 2), (7.25, 4, 1)], ONE_SECOND, scheduler=scheduler)
    assert_times(outcome, [0, 7.25], [1, 8.25], [2, 8.25])


@both_schedulers
def test_speed_and_slowdowns_scale_each_batch_from_its_start(
    scheduler: str, engine: EngineName
) -> None:
    # Half a second each until 1 s, where a batch starts 3 times as slow; normal from 2 s on,
    # which the batch that runs from 1 to 2.5 s does not notice.
    outcome = serve(
        engine,
        [(0.0, 4, 5)],
        ONE_SECOND,
        scheduler=scheduler,
        speed=2.0,
        slowdowns=((1.0, 3.0), (2.0, 1.0)),
    )
    assert_times(outcome, [0], [0.5], [3.5])
    twice = serve(engine, [(0.0, 4, 5)], ONE_SECOND, scheduler=scheduler, slowdowns=((0.0, 2.0),))
    assert_times(twice, [0], [2], [10])
