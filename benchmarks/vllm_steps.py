"""A real engine's steps, as the plug-in in `vllm_step_log/` logs them, and the simulator's."""

import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

from llmroute_gym.sim import Replica
from llmroute_gym.sim.reference.block_names import BlockNames, Names
from llmroute_gym.sim.reference.request import Request
from llmroute_gym.sim.reference.schedulers import VllmV1

_NAME = re.compile(r"cmpl-r(\d+)-")
"""vLLM's name of a request whose X-Request-Id is `request_id`."""


class Added(NamedTuple):
    """A request comes into the engine's queue."""

    at_s: float
    request: int
    prompt_tokens: int
    output_tokens: int
    arrived_at_s: float
    """At the API."""


class Started(NamedTuple):
    """A step begins."""

    at_s: float
    scheduled: tuple[tuple[int, int, int], ...]
    """Request, its tokens in this step, its tokens computed before; in batch order."""
    free_blocks: int
    preempted: int
    """How many requests."""


class Ended(NamedTuple):
    """The step ends."""

    at_s: float


class Left(NamedTuple):
    """Clients have gone."""

    at_s: float
    requests: tuple[int, ...]


Event = Added | Started | Ended | Left


class Replay(NamedTuple):
    """What the simulator's scheduler did in the same steps."""

    steps: int
    same: int
    """Steps with the same requests, tokens and tokens computed before, in the same order."""
    same_memory: int
    """Those of them that left as many blocks free."""
    preemptions: int
    finished_at_s: dict[int, float]
    """By request; who had not finished by the last step lacks."""
    first_different: int | None
    """The number of the first step that was not the same, from 0."""


def request_id(number: int) -> str:
    """Returns the X-Request-Id by which a request is found in the log."""
    return f"r{number}"


def read_steps(path: Path) -> list[Event]:
    """Reads the log of a server all of whose requests were named by `request_id`."""
    return [_event(json.loads(line)) for line in path.read_text(encoding="utf-8").splitlines()]


def _event(line: dict[str, Any]) -> Event:
    at_s = line["at"]
    if "add" in line:
        return Added(at_s, _number(line["add"]), line["prompt"], line["output"], line["arrived"])
    if "start" in line:
        scheduled = tuple((_number(name), *sizes) for name, *sizes in line["start"])
        return Started(at_s, scheduled, line["free"], len(line["preempted"]))
    if "end" in line:
        return Ended(at_s)
    return Left(at_s, tuple(map(_number, line["abort"])))


def _number(name: str) -> int:
    found = _NAME.match(name)
    if found is None:
        raise SystemExit(f"the step log names a request {name!r}, which nobody here has sent")
    return int(found[1])


def as_at_the_api(events: Iterable[Event]) -> list[Event]:
    """Returns the events with every request in the queue since it came to the API.

    It may have come to the engine later, and it may have missed a step so.
    """
    moved = [
        one._replace(at_s=one.arrived_at_s) if isinstance(one, Added) else one for one in events
    ]
    return sorted(moved, key=lambda one: one.at_s)


def replay(events: Iterable[Event], replica: Replica) -> Replay:
    """Has the reference scheduler `vllm_v1` make the steps of a log.

    It is told when requests come and when steps begin and end, not what is in them. No prompt has
    tokens in common with another.

    Args:
        events: in order of time.
        replica: the engine's limits.
    """
    scheduler, names = VllmV1(replica), Names()
    requests: dict[int, Request] = {}
    steps = same = same_memory = 0
    first_different = None
    for event in events:
        if isinstance(event, Added):
            index, prompt = event.request, event.prompt_tokens
            output = replica.output_of(prompt, event.output_tokens)
            blocks = BlockNames(names, [(2 * index, prompt)], 2 * index + 1)
            request = Request(index, event.arrived_at_s, prompt, output, blocks)
            requests[index] = request
            scheduler.waiting.append(request)
        elif isinstance(event, Started):
            batch = scheduler.start_batch()
            before = (request.computed_tokens for request in batch.requests)
            numbers = (request.index for request in batch.requests)
            if tuple(zip(numbers, batch.tokens, before, strict=True)) == event.scheduled:
                same += 1
                same_memory += scheduler.pool.free_blocks == event.free_blocks
            elif first_different is None:
                first_different = steps
            steps += 1
        elif isinstance(event, Ended):
            scheduler.end_batch(event.at_s)
        else:
            for index in event.requests:
                if not requests[index].finished:
                    scheduler.abort(requests[index])
    return Replay(
        steps,
        same,
        same_memory,
        sum(request.preemptions for request in requests.values()),
        {index: one.finished_at_s for index, one in requests.items() if one.finished},
        first_different,
    )
