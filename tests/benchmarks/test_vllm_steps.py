"""A real engine's log of steps: the plug-in that writes it, and its replay."""

import importlib
import json
import sys
import time
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from vllm_server import PLUG_IN, replica
from vllm_steps import Added, Ended, Event, Left, Started, as_at_the_api, read_steps, replay

BUDGET = 512

# A prompt of two steps, and one that comes during the first of them.
TWO: list[Event] = [
    Added(0.0, 0, 600, 3, -0.1),
    Started(1.0, ((0, BUDGET, 0),), 255 - 16, 0),
    Ended(2.0),
    Added(2.1, 1, 40, 2, 0.9),
    Started(2.2, ((0, 88, BUDGET), (1, 40, 0)), 255 - 19 - 2, 0),
    Ended(3.0),
    Started(3.1, ((0, 1, 600), (1, 1, 40)), 255 - 19 - 2, 0),
    Ended(4.0),
    Started(4.1, ((0, 1, 601),), 255 - 19, 0),
    Ended(5.0),
]


def test_the_scheduler_makes_the_steps_that_follow_from_the_times() -> None:
    found = replay(TWO, replica(256))
    assert (found.steps, found.same, found.same_memory) == (4, 4, 4)
    assert found.first_different is None
    assert found.finished_at_s == {0: 5.0, 1: 4.0}


@pytest.mark.parametrize(
    ("place", "wrong"),
    [
        (6, ((1, 1, 40), (0, 1, 600))),
        (6, ((0, 1, 600),)),
        (6, ((0, 1, 600), (1, 1, 39))),
        (6, ((0, 2, 600), (1, 1, 40))),
    ],
)
def test_a_different_step_is_noticed(place: int, wrong: tuple[tuple[int, int, int], ...]) -> None:
    events = list(TWO)
    step = events[place]
    assert isinstance(step, Started)
    events[place] = step._replace(scheduled=wrong)
    found = replay(events, replica(256))
    assert (found.steps, found.same, found.first_different) == (4, 3, 2)
    events[place] = step._replace(free_blocks=0)
    found = replay(events, replica(256))
    assert (found.same, found.same_memory) == (4, 3)


def test_by_arrivals_at_the_api_a_request_is_in_time_for_an_earlier_step() -> None:
    events = as_at_the_api(TWO)
    assert [type(one) for one in events[:3]] == [Added, Added, Started]
    found = replay(events, replica(256))
    # 512 tokens are spent in the first step either way; both prompts share the second.
    assert found.same == found.steps
    first = TWO[1]
    assert isinstance(first, Started)
    earlier = [first._replace(at_s=0.95) if one is first else one for one in TWO]
    assert replay(as_at_the_api(earlier), replica(256)).same == found.same


def test_who_leaves_is_dropped() -> None:
    events = [*TWO[:4], Left(2.15, (1,)), TWO[4], TWO[5]]
    found = replay(events, replica(256))
    assert (found.same, found.first_different) == (1, 1)


def test_without_memory_the_latest_is_preempted() -> None:
    events: list[Event] = [Added(0.0, one, 64, 40, 0.0) for one in range(2)]
    for step in range(60):
        events += [Started(step + 1.0, (), 0, 0), Ended(step + 1.5)]
    # Either needs 4 blocks in the end; there are 6.
    found = replay(events, replica(7))
    assert found.preemptions == 1
    assert found.finished_at_s[0] < found.finished_at_s[1]


class Scheduler:
    """As far as the plug-in goes, vLLM's."""

    def __init__(self) -> None:
        pool = SimpleNamespace(get_num_free_blocks=lambda: 7)
        self.kv_cache_manager = SimpleNamespace(block_pool=pool)
        self.requests: dict[str, Any] = {}

    def add_request(self, request: Any) -> None:
        self.requests[request.request_id] = request

    def schedule(self, throttled: bool = False) -> Any:
        again = SimpleNamespace(req_ids=["cmpl-r0-0"], num_computed_tokens=[5])
        new = SimpleNamespace(req_id="cmpl-r1-0", num_computed_tokens=32)
        tokens = {"cmpl-r0-0": 1, "cmpl-r1-0": 8} if self.requests else {}
        return SimpleNamespace(
            total_num_scheduled_tokens=sum(tokens.values()),
            num_scheduled_tokens=tokens,
            scheduled_cached_reqs=again,
            scheduled_new_reqs=[new],
            preempted_req_ids={"cmpl-r2-0"},
        )

    def update_from_output(self, step: Any, output: Any) -> str:
        return "outputs"

    def finish_requests(self, request_ids: Any, status: Any) -> None:
        del self.requests[request_ids[0]]


def test_the_plug_in_tells_what_the_scheduler_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "steps.jsonl"
    monkeypatch.syspath_prepend(str(PLUG_IN))
    module: Any = ModuleType("vllm.v1.core.sched.scheduler")
    module.Scheduler = type("Scheduler", (Scheduler,), dict(vars(Scheduler)))
    for name in ("vllm", "vllm.v1", "vllm.v1.core", "vllm.v1.core.sched"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    monkeypatch.setitem(sys.modules, "vllm.v1.core.sched.scheduler", module)
    plug_in = importlib.import_module("llmroute_step_log")
    monkeypatch.delenv("LLMROUTE_STEP_LOG", raising=False)
    plug_in.register()
    assert module.Scheduler.schedule is Scheduler.schedule
    monkeypatch.setenv("LLMROUTE_STEP_LOG", str(path))
    plug_in.register()
    plug_in.register()
    assert not path.exists()  # until there is something to tell

    scheduler = module.Scheduler()
    assert scheduler.schedule().total_num_scheduled_tokens == 0
    request = SimpleNamespace(
        request_id="cmpl-r1-0-a1b2", num_prompt_tokens=40, max_tokens=9, arrival_time=12.5
    )
    began_s = time.time()
    scheduler.add_request(request)
    step = scheduler.schedule(False)
    assert scheduler.update_from_output(step, None) == "outputs"
    scheduler.finish_requests(["cmpl-r1-0-a1b2"], None)
    added, started, ended, left = read_steps(path)
    assert isinstance(added, Added)
    assert added[1:] == (1, 40, 9, 12.5)
    assert isinstance(started, Started)
    assert started[1:] == (((0, 1, 5), (1, 8, 32)), 7, 1)
    assert isinstance(ended, Ended)
    assert isinstance(left, Left)
    assert left.requests == (1,)
    assert began_s <= added.at_s <= started.at_s <= ended.at_s <= left.at_s <= time.time()


def test_requests_of_others_in_a_log_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "steps.jsonl"
    path.write_text(json.dumps({"at": 1.0, "end": 3}) + "\n", encoding="utf-8")
    assert read_steps(path) == [Ended(1.0)]
    path.write_text(json.dumps({"at": 1.0, "abort": ["cmpl-8a1b-0"]}) + "\n", encoding="utf-8")
    with pytest.raises(SystemExit, match="a request 'cmpl-8a1b-0', which nobody here has sent"):
        read_steps(path)
