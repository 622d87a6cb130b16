"""Logs what a vLLM engine schedules in each step; a plug-in of vLLM, made for 0.32.

Active where `LLMROUTE_STEP_LOG` names a file, to which lines of JSON are appended, in the order in
which the scheduler is called. `at` is in seconds since 1970.

* `{"at", "add": id, "prompt": tokens, "output": most tokens, "arrived": at the API}`
* `{"at", "start": [[id, tokens, computed before], ...], "free": blocks, "preempted": [id, ...]}`:
  a step, requests in batch order, free blocks once it has its own
* `{"at", "end": tokens}`: that step, or the oldest one that is open
* `{"at", "abort": [id, ...]}`
"""

import json
import os
import time
from functools import wraps
from typing import Any


class StepLog:
    """The file, opened by the process that schedules and by no other."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._file: Any = None

    def write(self, at_s: float, **fields: object) -> None:
        """Appends a line."""
        if self._file is None:
            self._file = open(self._path, "a", buffering=1, encoding="utf-8")  # noqa: PTH123, SIM115
        self._file.write(json.dumps({"at": at_s, **fields}) + "\n")


def register() -> None:
    """Makes vLLM's scheduler tell; vLLM calls it in every process."""
    path = os.environ.get("LLMROUTE_STEP_LOG")
    if not path:
        return
    from vllm.v1.core.sched.scheduler import Scheduler

    if hasattr(Scheduler.schedule, "__wrapped__"):  # registered before
        return
    log = StepLog(path)
    add, schedule, update, finish = (
        getattr(Scheduler, name)
        for name in ("add_request", "schedule", "update_from_output", "finish_requests")
    )

    @wraps(add)
    def added(self: Any, request: Any) -> Any:
        sizes = {"prompt": request.num_prompt_tokens, "output": request.max_tokens}
        arrived_at_s = request.arrival_time
        log.write(time.time(), add=request.request_id, **sizes, arrived=arrived_at_s)
        return add(self, request)

    @wraps(schedule)
    def scheduled(self: Any, *args: Any, **kwargs: Any) -> Any:
        at_s = time.time()
        step = schedule(self, *args, **kwargs)
        if step.total_num_scheduled_tokens:
            again = step.scheduled_cached_reqs
            computed = dict(zip(again.req_ids, again.num_computed_tokens, strict=True))
            computed |= {new.req_id: new.num_computed_tokens for new in step.scheduled_new_reqs}
            tokens = step.num_scheduled_tokens.items()
            log.write(
                at_s,
                start=[[request, number, computed[request]] for request, number in tokens],
                free=self.kv_cache_manager.block_pool.get_num_free_blocks(),
                preempted=sorted(step.preempted_req_ids or ()),
            )
        return step

    @wraps(update)
    def updated(self: Any, step: Any, *args: Any, **kwargs: Any) -> Any:
        outputs = update(self, step, *args, **kwargs)
        if step.total_num_scheduled_tokens:
            log.write(time.time(), end=step.total_num_scheduled_tokens)
        return outputs

    @wraps(finish)
    def finished(self: Any, request_ids: Any, *args: Any, **kwargs: Any) -> Any:
        if request_ids:
            ids = [request_ids] if isinstance(request_ids, str) else list(request_ids)
            log.write(time.time(), abort=[one for one in ids if one in self.requests])
        return finish(self, request_ids, *args, **kwargs)

    Scheduler.add_request, Scheduler.schedule = added, scheduled
    Scheduler.update_from_output, Scheduler.finish_requests = updated, finished
