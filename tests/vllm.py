"""The recorded runs of vLLM's own scheduler that the engines must reproduce."""

import csv
import gzip
import json
from functools import cache
from typing import Any, NamedTuple

from llmroute_gym.sim import Cluster, FormulaBatchTime, Replica, Workload
from llmroute_gym.sim.traces import load_trace
from tests.oracle import DATA, Columns, read_columns

_CASES = {
    config.parent.name: config.parent
    for config in (DATA.glob("vllm/*/config.json") if DATA else ())
}
"""Name to folder."""
WHOLE_NUMBERS = ("tokens", "decode_context", "running", "waiting", "free_blocks")


class VllmCase(NamedTuple):
    """One recorded run.

    Attributes:
        workload: the requests with what their prompts are made of.
        cluster: the one replica that served them.
        recorded: the columns of its `requests.csv.gz`, each (n_requests,).
    """

    workload: Workload
    cluster: Cluster
    recorded: Columns


class Step(NamedTuple):
    """A recorded step."""

    start_s: float
    duration_s: float
    tokens: int
    decode_context: int
    pairs: float
    running: int
    waiting: int
    free_blocks: int
    scheduled: tuple[tuple[int, int], ...]
    """Request and its tokens, in batch order."""
    preempted: tuple[int, ...]


def case_names(*, steps: bool = False) -> list[str]:
    """Returns the names of the recorded runs at hand, or those whose steps are recorded too."""
    return sorted(
        name for name, folder in _CASES.items() if not steps or (folder / "steps.csv.gz").is_file()
    )


@cache
def load_case(name: str) -> VllmCase:
    """Reads a recorded run."""
    config = json.loads((_CASES[name] / "config.json").read_text())
    workload = load_trace(_CASES[name] / "input.jsonl.gz", rebase=False)
    recorded = read_columns(_CASES[name] / "requests.csv.gz")
    return VllmCase(workload, Cluster((_replica(config),)), recorded)


def read_steps(name: str) -> list[Step]:
    """Reads the steps of a recorded run."""
    path = _CASES[name] / "steps.csv.gz"
    with gzip.open(path, "rt", encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    return [
        Step(
            **{key: float(row[key]) for key in ("start_s", "duration_s", "pairs")},
            **{key: int(row[key]) for key in WHOLE_NUMBERS},
            scheduled=tuple(
                (int(request), int(tokens))
                for request, tokens in (part.split(":") for part in row["scheduled"].split())
            ),
            preempted=tuple(map(int, row["preempted"].split())),
        )
        for row in rows
    ]


def _replica(config: dict[str, Any]) -> Replica:
    c0, c1, c2, c3 = (config["batch_time"][key] for key in ("c0", "c1", "c2", "c3"))
    return Replica(
        FormulaBatchTime(c0, c1, 0, c2, c3),
        scheduler="vllm_v1",
        max_batch=config["max_num_seqs"],
        max_batched_tokens=config["max_num_batched_tokens"],
        block_size=config["block_size"],
        num_blocks=config["num_gpu_blocks"],
        prefix_caching=bool(config["enable_prefix_caching"]),
        chunked_prefill=config["enable_chunked_prefill"],
        long_prefill_tokens=config["long_prefill_token_threshold"],
        admission="sequence" if config["scheduler_reserve_full_isl"] else "chunk",
        watermark=config["watermark"],
        max_model_len=config.get("max_model_len"),
    )
