"""Scheduler `vllm_v1` on examples worked by hand; a batch takes a second unless said otherwise."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from llmroute_gym.config import ObservationConfig
from llmroute_gym.errors import InputError
from llmroute_gym.routers.simulation import simulate
from llmroute_gym.sim import Cluster, FormulaBatchTime, Outcome, Replica, Signal, Workload
from llmroute_gym.sim.content import Content
from llmroute_gym.sim.engines import ENGINES, EngineName
from tests.sim.monitor import watched_schedulers

ONE_SECOND = FormulaBatchTime(1.0, 0, 0, 0, 0)
BY_TOKENS = FormulaBatchTime(1.0, 0, 0, 0, 0, c4=0.125)  # 1 s + 1/8 s per token

Row = list[tuple[int, int]]


def requests(*triples: tuple[float, int, int], rows: Sequence[Row] = ()) -> Workload:
    """Returns a workload of (arrival, prompt, output) triples."""
    content = Content.of(rows) if rows else None
    return Workload(*map(np.array, zip(*triples, strict=True)), content=content)


def replica(batch_time: FormulaBatchTime = ONE_SECOND, **limits: Any) -> Cluster:
    settings = {"block_size": 4, "num_blocks": 100, **limits}
    return Cluster((Replica(batch_time, scheduler="vllm_v1", **settings),))


def serve(engine: EngineName, workload: Workload, cluster: Cluster) -> Outcome:
    return simulate(workload, cluster, "round_robin", engine=engine)


def test_one_budget_is_for_decodes_and_chunks(vllm_engine: EngineName) -> None:
    # 0.000: A 8 of 12 prompt tokens                    8 tokens, 2 s
    # 2.000: A its last 4, B 4 of 10                    8 tokens, 2 s
    # 4.000: A decodes, B its last 6                    7 tokens, 1.875 s
    # 5.875: A and B decode for the last time           2 tokens, 1.25 s
    workload = requests((0.0, 12, 3), (0.5, 10, 2))
    outcome = serve(vllm_engine, workload, replica(BY_TOKENS, max_batched_tokens=8))
    assert outcome.scheduled_at_s.tolist() == [0.0, 2.0]
    assert outcome.first_token_at_s.tolist() == [4.0, 5.875]
    assert outcome.finished_at_s.tolist() == [7.125, 7.125]


def test_decodes_leave_no_budget_for_the_queue(vllm_engine: EngineName) -> None:
    workload = requests(*[(0.0, 1, 4)] * 2, *[(0.0, 1, 2)] * 2)
    outcome = serve(vllm_engine, workload, replica(max_batched_tokens=2))
    assert outcome.scheduled_at_s.tolist() == [0, 0, 4, 4]
    assert outcome.finished_at_s.tolist() == [4, 4, 6, 6]


@pytest.mark.parametrize(
    ("triples", "first_token"),
    [
        ([(0.0, 12, 1)], [1]),  # alone: all at once
        ([(0.0, 12, 1), (0.0, 3, 1)], [2, 1]),  # 4 + 3, then, being alone, the last 8
        ([(0.0, 13, 1), (0.0, 3, 3)], [4, 1]),  # 4 + 3, 4 + 1, 4 + 1, and 1
    ],
)
def test_long_prefills_are_cut_only_in_company(
    vllm_engine: EngineName, triples: list[tuple[float, int, int]], first_token: list[float]
) -> None:
    cluster = replica(long_prefill_tokens=4, max_batched_tokens=64)
    outcome = serve(vllm_engine, requests(*triples), cluster)
    assert outcome.first_token_at_s.tolist() == first_token


def test_without_chunks_a_prompt_waits_for_the_whole_budget(vllm_engine: EngineName) -> None:
    workload = requests((0.0, 8, 2), (0.0, 6, 1), (0.0, 1, 1))
    outcome = serve(vllm_engine, workload, replica(chunked_prefill=False, max_batched_tokens=10))
    assert outcome.scheduled_at_s.tolist() == [0, 1, 1]  # the last waits behind the second


def test_what_a_step_computes_is_found_within_it_but_never_the_last_token(
    vllm_engine: EngineName,
) -> None:
    rows = [[(0, 8)], [(0, 8)], [(0, 9)], [(1, 8)]]
    workload = requests((0.0, 8, 1), (0.0, 8, 1), (0.0, 9, 1), (0.0, 8, 1), rows=rows)
    outcome = serve(vllm_engine, workload, replica())
    assert outcome.cached_tokens.tolist() == [0, 4, 8, 0]
    assert outcome.summary()["cached_token_share"] == pytest.approx(12 / 33)


def test_without_a_cache_nothing_is_found(vllm_engine: EngineName) -> None:
    workload = requests((0.0, 8, 1), (5.0, 8, 1), rows=[[(0, 8)], [(0, 8)]])
    outcome = serve(vllm_engine, workload, replica(prefix_caching=False))
    assert outcome.cached_tokens.tolist() == [0, 0]


@pytest.mark.parametrize(
    ("output", "arrived_s", "cached"),
    [
        (5, 10.0, 8),
        (4, 10.0, 4),  # the last output token is never computed
        (5, 2.75, 4),  # admitted at 3 s; the fourth output token is computed from 4 s on
        (5, 3.75, 8),
    ],
)
def test_outputs_are_found_by_the_next_turn(
    vllm_engine: EngineName, output: int, arrived_s: float, cached: int
) -> None:
    rows = [[(0, 4)], [(0, 4), (-1, output), (1, 1)]]
    workload = requests((0.0, 4, output), (arrived_s, 5 + output, 1), rows=rows)
    outcome = serve(vllm_engine, workload, replica())
    assert outcome.cached_tokens.tolist() == [0, cached]


def test_a_preempted_request_leads_the_queue_and_finds_what_is_left(
    vllm_engine: EngineName,
) -> None:
    # Both hold 2 of 4 blocks from 1 s on. At 5 s A needs a third: B goes, with 9 known tokens, and
    # A takes the block of its that was given back first, its last. At 6 s A is finished; B finds
    # its first block, computes 5 tokens and gives the sixth output.
    # The third request, which has been waiting since 1.5 s, waits on behind it.
    workload = requests((0.0, 4, 6), (0.0, 4, 6), (1.5, 8, 1))
    outcome = serve(vllm_engine, workload, replica(num_blocks=5))
    assert outcome.preemptions.tolist() == [0, 1, 0]
    assert outcome.recached_tokens.tolist() == [0, 4, 0]
    assert outcome.finished_at_s.tolist() == [6, 7, 8]
    without = serve(vllm_engine, workload, replica(num_blocks=5, prefix_caching=False))
    assert without.recached_tokens.tolist() == [0, 0, 0]
    np.testing.assert_array_equal(without.finished_at_s, outcome.finished_at_s)


def test_the_last_recomputed_token_counts_as_a_decode() -> None:
    # At 5 s A takes the fifth block and B, with 9 known tokens, preempts itself. At 8 s A is
    # finished, and B finds 8 of its 9.
    workload = requests((0.0, 4, 8), (0.0, 4, 6))
    with watched_schedulers() as logs:
        outcome = serve("reference", workload, replica(num_blocks=6))
    assert outcome.recached_tokens.tolist() == [0, 8]
    assert outcome.finished_at_s.tolist() == [8, 9]
    sums = logs[0].batches[-1].sums
    assert (sums.decodes, sums.decode_context, sums.prefills) == (1, 9, 0)


@pytest.mark.parametrize(("admission", "scheduled_s"), [("sequence", 2.0), ("chunk", 0.0)])
def test_what_must_fit_is_the_sequence_or_the_chunk(
    vllm_engine: EngineName, admission: str, scheduled_s: float
) -> None:
    # A holds 3 of 4 blocks; B has 8 tokens, of which the budget of 16 leaves 4.
    workload = requests((0.0, 12, 2), (0.0, 8, 1))
    cluster = replica(num_blocks=5, max_batched_tokens=16, admission=admission)
    outcome = serve(vllm_engine, workload, cluster)
    assert outcome.scheduled_at_s.tolist() == [0.0, scheduled_s]
    # Admitted too early, it has to go when A needs a block for its first output, and starts anew.
    assert outcome.finished_at_s.tolist() == [2.0, 3.0]
    assert outcome.preemptions.tolist() == [0, int(admission == "chunk")]


@pytest.mark.parametrize(("watermark", "scheduled_s"), [(0.0, 0.0), (0.2, 0.0), (0.4, 2.0)])
def test_the_watermark_is_kept_free_while_others_run(
    vllm_engine: EngineName, watermark: float, scheduled_s: float
) -> None:
    # Of 4 usable blocks A holds 2, B needs 1; the watermark is 0, 1 or 2 of 5 blocks.
    workload = requests((0.0, 8, 2), (0.0, 4, 1))
    outcome = serve(vllm_engine, workload, replica(num_blocks=5, watermark=watermark))
    assert outcome.scheduled_at_s.tolist() == [0.0, scheduled_s]


def test_a_request_ends_at_the_models_length(vllm_engine: EngineName) -> None:
    workload = requests((0.0, 4, 10), (20.0, 5, 1), (30.0, 2, 3))
    outcome = serve(vllm_engine, workload, replica(max_model_len=6, num_blocks=3))
    assert outcome.output_tokens.tolist() == [2, 1, 3]
    assert outcome.finished_at_s.tolist() == [2.0, 21.0, 33.0]
    assert workload.output_tokens.tolist() == [10, 1, 3]


@pytest.mark.parametrize(("share", "ends"), [(0.0, 8.25), (0.5, 7.25), (1.0, 6.25)])
def test_blocks_held_by_several_are_read_less_often(
    vllm_engine: EngineName, share: float, ends: float
) -> None:
    # 1 s + 1/8 s per token of a decode's context. Both hold the prompt's first 2 blocks of 4, the
    # second one by a hit in the same step, so that 8 tokens are read again. Step by step, with all
    # reads paid for: 1, then contexts of 10 + 10 tokens, 3.5 s, then 11 + 11, 3.75 s.
    by_context = FormulaBatchTime(1.0, 0, 0, 0.125, 0)
    workload = requests((0.0, 9, 3), (0.0, 9, 3), rows=[[(0, 9)]] * 2)
    outcome = serve(vllm_engine, workload, replica(by_context, shared_reads=share))
    assert outcome.cached_tokens.tolist() == [0, 8]
    assert outcome.finished_at_s.tolist() == [ends, ends]


def test_who_is_in_prefill_counts_as_sharing_alike(vllm_engine: EngineName) -> None:
    # The third comes into the second step: of 3 that run and read 16 tokens again, 2 decode, and
    # save 10 of their 20 tokens: 2.25 s. In the third step the other two are alone: 22 less 8.
    by_context = FormulaBatchTime(1.0, 0, 0, 0.125, 0)
    workload = requests((0.0, 9, 3), (0.0, 9, 3), (0.5, 9, 1), rows=[[(0, 9)]] * 3)
    outcome = serve(vllm_engine, workload, replica(by_context, shared_reads=1))
    assert outcome.finished_at_s.tolist() == [6.0, 6.0, 3.25]


def test_what_never_fits_is_an_error_or_rejected(vllm_engine: EngineName) -> None:
    workload = requests((0.0, 4, 1), (0.0, 6, 1))
    with pytest.raises(InputError, match=r"request 1 .*: 6 prompt tokens leave no room .* \(6\)"):
        serve(vllm_engine, workload, replica(max_model_len=6))
    outcome = serve(vllm_engine, workload, replica(max_model_len=6, oversize="reject"))
    assert outcome.rejected.tolist() == [False, True]
    assert outcome.output_tokens.tolist() == [1, 1]


def test_a_router_sees_what_is_computed_held_and_found(vllm_engine: EngineName) -> None:
    # 0 s: A computes 8 of 12 tokens; 1 s: its last 4, and B, which has the same prompt, its last 4.
    rows = [[(0, 12)], [(0, 12)], [(0, 12), (1, 4)]]
    workload = requests((0.0, 12, 3), (0.5, 12, 3), (1.5, 16, 1), rows=rows)
    run = ENGINES[vllm_engine](
        workload,
        replica(max_batched_tokens=8, num_blocks=11),
        observation=ObservationConfig(information="oracle"),
    )
    assert run.rows()[0, Signal.CACHED_PREFIX] == 0.0
    run.place(0)
    assert run.rows()[0, Signal.CACHED_PREFIX] == pytest.approx(8 / 12)  # being computed
    run.place(0)
    expected = {
        Signal.WAITING: 0,
        Signal.RUNNING: 2,
        Signal.KV_USAGE: 4 / 10,  # two blocks are shared
        Signal.PENDING_PROMPT_TOKENS: 4 + 4,  # a hit is computed from the admission on
        Signal.CONTEXT_TOKENS: 8 + 8,
        Signal.REMAINING_TOKENS: 7 + 7,
        Signal.CACHED_PREFIX: 12 / 16,
    }
    row = run.rows()[0]
    assert {signal: row[signal] for signal in expected} == pytest.approx(expected)


def test_only_a_replica_with_a_cache_shows_a_cached_prefix(vllm_engine: EngineName) -> None:
    workload = requests(*[(float(i), 8, 1) for i in range(4)], rows=[[(0, 8)]] * 4)
    old = Replica(ONE_SECOND)
    new = replica()[0]
    blank = replica(prefix_caching=False)[0]
    run = ENGINES[vllm_engine](workload, Cluster((old, new, blank)))
    for index in range(3):
        run.place(index)
    assert run.rows()[:, Signal.CACHED_PREFIX].tolist() == [0.0, 0.5, 0.0]
