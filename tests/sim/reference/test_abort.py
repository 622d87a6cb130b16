"""Requests that are dropped: nothing of them stays, and nobody else is disturbed."""

from collections import defaultdict
from collections.abc import Iterator

import numpy as np

from llmroute_gym.sim.reference.block_names import block_names
from llmroute_gym.sim.reference.request import Request
from llmroute_gym.sim.reference.schedulers import Scheduler, VllmV1
from llmroute_gym.sim.replica import Replica
from tests.sim.monitor import watched_scheduler
from tests.sim.strategies import Case, random_case, seeds
from tests.sim.vllm_cases import random_vllm_case

AT_ONCE = 3  # requests that arrive during one batch
Steps = defaultdict[int, list[Request]]
"""Number of a batch to the requests that come or leave during it."""


def cases_of(seed: int) -> Iterator[tuple[Case, int, Replica]]:
    for case in (random_case(seed), random_vllm_case(seed)):
        for index, replica in enumerate(case.cluster):
            yield case, index, replica


def requests_of(case: Case, index: int) -> list[Request]:
    """The requests that a replica takes and can run, in order of arrival."""
    work, replica = case.workload, case.cluster[index]
    columns = (work.arrived_at_s, work.prompt_tokens, work.output_tokens)
    made = [
        Request(number, arrived_at_s, prompt, replica.output_of(prompt, output), names)
        for number, (arrived_at_s, prompt, output, names) in enumerate(
            zip(*(column.tolist() for column in columns), block_names(work), strict=True)
        )
        if case.assignment[number] == index and replica.why_oversize(prompt, output) is None
    ]
    return made


def arriving(requests: list[Request]) -> Steps:
    steps = Steps(list)
    for place, request in enumerate(requests):
        steps[place // AT_ONCE].append(request)
    return steps


def serve(scheduler: Scheduler, arrivals: Steps, aborts: Steps) -> set[int]:
    """Runs to the end, with the invariants of memory checked; returns who finished."""
    finished: list[Request] = []
    gone: set[int] = set()
    step, last = 0, max([0, *arrivals, *aborts])
    while scheduler.waiting or scheduler.running or step <= last:
        if scheduler.waiting or scheduler.running:
            scheduler.start_batch()
        scheduler.waiting.extend(arrivals.pop(step, []))
        for request in aborts.pop(step, []):
            if request not in finished:
                scheduler.abort(request)
                gone.add(request.index)
        if scheduler.batch.requests:
            finished += scheduler.end_batch(float(step))
        left = (*scheduler.waiting, *scheduler.running, *finished)
        assert not gone & {request.index for request in left}
        step += 1
    return {request.index for request in finished}


@seeds(100)
def test_nothing_stays_of_those_that_leave_at_any_time(seed: int) -> None:
    rng = np.random.default_rng([seed, 5])
    for case, index, replica in cases_of(seed):
        scheduler, requests = watched_scheduler(replica), requests_of(case, index)
        aborts, leaving, share = Steps(list), set(), rng.choice([0.1, 0.5, 1.0])
        for place, request in enumerate(requests):
            if rng.random() < share:
                aborts[place // AT_ONCE + int(rng.integers(0, 12))].append(request)
                leaving.add(request.index)
        finished = serve(scheduler, arriving(requests), aborts)
        assert {request.index for request in requests} - leaving <= finished
        assert scheduler.pool.holders == scheduler.pool.usage == 0
        assert not any(request.blocks for request in requests)
        if isinstance(scheduler, VllmV1):
            copies = sum(map(len, scheduler.pool._copies.values()))
            assert copies == len(scheduler.pool.remembered)


@seeds(100)
def test_who_comes_and_leaves_during_one_batch_changes_nothing(seed: int) -> None:
    rng = np.random.default_rng([seed, 6])
    for case, index, replica in cases_of(seed):
        alone, disturbed = watched_scheduler(replica), watched_scheduler(replica)
        serve(alone, arriving(requests_of(case, index)), Steps(list))
        arrivals, aborts = arriving(requests_of(case, index)), Steps(list)
        for guest in requests_of(case, index):
            guest.index += len(case.workload)
            step = int(rng.integers(0, len(arrivals)))
            arrivals[step].insert(0, guest)
            aborts[step].append(guest)
        serve(disturbed, arrivals, aborts)
        assert disturbed.log.batches == alone.log.batches
