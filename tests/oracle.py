"""The recorded runs of Microsoft Vidur that the engines must reproduce."""

import csv
import gzip
import json
import os
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from llmroute_gym.sim.batch_time import BatchTimeModel, FormulaBatchTime, TableBatchTime
from llmroute_gym.sim.replica import Cluster, Replica
from llmroute_gym.sim.workload import Workload

Columns = dict[str, npt.NDArray[np.float64]]

SCHEDULERS: dict[str] = {"vllm": "prefill_first", "sarathi": "chunked"}
ROUTERS = {"round_robin": "round_robin", "lor": "lor_pending"}

NO_DATA = "no test data: set LLMROUTE_DATA to its folder, or put it at ../shared/data"


def _find_data() -> Path | None:
    default = Path(__file__).parents[2] / "shared" / "data"
    folder = Path(os.environ.get("LLMROUTE_DATA") or default)
    return folder if folder.is_dir() else None


DATA = _find_data()
SHIPPED = Path(__file__).parent / "data" / "oracle"
"""A few cases that are always at hand."""

_CASES = {
    config.parent.name: config.parent
    for config in (
        *SHIPPED.glob("*/config.json"),
        *(DATA.glob("oracle/*/config.json") if DATA else ()),
    )
}
"""Name to folder, where a case is in both places that of the data."""


class OracleCase(NamedTuple):
    """One recorded run.

    Attributes:
        config: as recorded.
        workload: the requests.
        cluster: what served them.
        recorded: the columns of its `requests.csv.gz`, each (n_requests,).
        router: the rule that placed them, or None where the placement can only be replayed.
    """

    config: dict[str, Any]
    workload: Workload
    cluster: Cluster
    recorded: Columns
    router: str | None

    @property
    def assignment(self) -> npt.NDArray[np.int64]:
        """The recorded replica of each request, (n_requests,)."""
        return self.recorded["replica_id"].astype(np.int64)


def case_names() -> list[str]:
    """Returns the names of the recorded runs at hand, of the data and shipped."""
    return sorted(_CASES)


def is_shipped(name: str) -> bool:
    """Returns whether a recorded run is at hand without the data."""
    return (SHIPPED / name).is_dir()


def batch_time(config: dict[str, Any]) -> BatchTimeModel:
    """Returns what the recorded run used: exact tables, or a formula."""
    if config["param"]:
        coef = config["param"]["coef"]
        return FormulaBatchTime(
            coef["c0"], coef["c_hinge"], config["param"]["N0"], coef["c_kv"], coef["c_A"]
        )
    shipped = SHIPPED / "batch_time" / f"{config['combo']}.npz"
    return TableBatchTime.from_npz(DATA / "batch_time" / shipped.name if DATA else shipped)


@cache
def load_case(name: str) -> OracleCase:
    """Reads a recorded run."""
    folder = _CASES[name]
    config = json.loads((folder / "config.json").read_text())
    recorded = read_columns(folder / "requests.csv.gz")
    replica = Replica(
        batch_time(config),
        scheduler=SCHEDULERS[config["replica_scheduler"]],
        max_batch=config["batch_size_cap"],
        max_batched_tokens=config["max_tokens_in_batch"] or 4096,
        chunk_size=config["chunk_size"] or 512,
        block_size=config["block_size"],
        num_blocks=config["num_blocks"],
        watermark_blocks=config["watermark_blocks"],
        restart="vidur",
    )
    return OracleCase(
        config=config,
        workload=Workload(
            recorded["arrived_at"],
            recorded["num_prefill_tokens"].astype(np.int64),
            recorded["num_decode_tokens"].astype(np.int64),
        ),
        cluster=Cluster((replica,) * config["num_replicas"]),
        recorded=recorded,
        router=ROUTERS.get(config["global_scheduler"]),
    )


def read_columns(path: Path) -> Columns:
    """Reads a compressed CSV file, without its columns of words; an empty cell is NaN."""
    with gzip.open(path, "rt", encoding="utf-8", newline="") as file:
        header, *rows = csv.reader(file)
    return {
        name: np.array([float(cell or "nan") for cell in column])
        for name, column in zip(header, zip(*rows, strict=True), strict=True)
        if not column[0].isalpha()
    }
