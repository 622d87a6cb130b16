"""What a suite is made of: one router serving some runs of one scenario, and its kept result."""

import hashlib
import io
import json
import os
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from llmroute_gym.compare.serving import serve
from llmroute_gym.compare.suites.scenarios import built_scenario, scenario_text, slow_until_s
from llmroute_gym.config import EvaluationConfig, ObservationConfig, ScenarioConfig
from llmroute_gym.ground.files import complete_or_absent
from llmroute_gym.ground.version import __version__
from llmroute_gym.routers import Router, make
from llmroute_gym.sim import Cluster, Outcome, Workload

CHECKPOINT = ".zip"
"""What the path of a trained policy ends in."""
LoadPolicy = Callable[[str, int, ObservationConfig], Router]
"""Takes a checkpoint, the number of replicas and what a router is told."""


@dataclass(frozen=True)
class Cell:
    """A pure function's arguments: what a router does in some runs depends on nothing else.

    Attributes:
        scenario: settled.
        evaluation: the seed, how many runs there are in all, and how many requests each has.
        observation: what routers are told that do not ask for anything.
        router: a rule as text, or the path of a checkpoint.
        first: number of the first run.
        runs: how many.
    """

    scenario: ScenarioConfig
    evaluation: EvaluationConfig
    observation: ObservationConfig
    router: str
    first: int
    runs: int

    def key(self) -> str:
        """Names the cell by all that its result depends on; a checkpoint by its bytes."""
        evaluation = asdict(self.evaluation)
        told = {
            "version": __version__,
            "scenario": asdict(self.scenario),
            "observation": asdict(self.observation),
            "runs": [self.first, self.runs, evaluation["runs"]],
            **{name: evaluation[name] for name in ("requests", "seed", "engine")},
            "router": self.router,
        }
        digest = hashlib.sha256(json.dumps(told, sort_keys=True, default=str).encode())
        for path in (self.router, self.scenario.workload.path):
            # A rule with many options is too long for a path, at which `Path.is_file` would raise.
            if path is not None and os.path.isfile(path):  # noqa: PTH113
                digest.update(_digest_of(path, Path(path).stat().st_mtime_ns))
        return digest.hexdigest()[:32]


@lru_cache
def _digest_of(path: str, changed_ns: int) -> bytes:
    return hashlib.sha256(Path(path).read_bytes()).digest()


def is_policy(router: str) -> bool:
    """Whether an entrant is a checkpoint and no rule."""
    return router.endswith(CHECKPOINT)


def inputs_of(cell: Cell) -> tuple[list[Workload], list[Cluster]]:
    """Returns the requests and the replicas of each run of a cell."""
    built = built_scenario(scenario_text(cell.scenario))
    numbers = range(cell.first, cell.first + cell.runs)
    workloads = [built.workload(run, cell.evaluation) for run in numbers]
    clusters = [
        built.replicas(run, cell.evaluation, slow_until_s(workload))
        for run, workload in zip(numbers, workloads, strict=True)
    ]
    return workloads, clusters


def serve_cell(cell: Cell, load_policy: LoadPolicy | None = None) -> bytes:
    """Serves the runs of a cell.

    Args:
        cell: what is served by whom.
        load_policy: makes a router of a checkpoint, where one is an entrant.

    Returns:
        What `outcomes_of` reads.

    Raises:
        InputError: the rule is unknown or needs what the cluster lacks, or a request fits nowhere.
    """
    workloads, clusters = inputs_of(cell)
    if is_policy(cell.router):
        assert load_policy is not None
        router = load_policy(cell.router, len(clusters[0]), cell.observation)
    else:
        router = make(cell.router)
    outcomes = serve(
        *(router, workloads, clusters, cell.evaluation, cell.observation),
        first=cell.first,
        view=cell.scenario.view,
    )
    columns = [dict(one.columns()) for one in outcomes]
    arrays: dict[str, npt.NDArray[Any]] = {}
    for name in columns[0]:
        if name != "request":
            whole = np.stack([one[name] for one in columns])
            # No request has more tokens or restarts than that.
            arrays[name] = whole if whole.dtype.kind == "f" else whole.astype(np.int32)
    file = io.BytesIO()
    np.savez(file, allow_pickle=False, **arrays)
    return file.getvalue()


def outcomes_of(content: bytes) -> list[Outcome]:
    """Returns the outcomes of a cell's runs, in their order."""
    with np.load(io.BytesIO(content)) as arrays:
        whole = {name: _widened(arrays[name]) for name in arrays.files}
    n_runs = len(whole["arrived_at_s"])
    return [Outcome(**{name: one[run] for name, one in whole.items()}) for run in range(n_runs)]


def _widened(array: npt.NDArray[Any]) -> npt.NDArray[Any]:
    return array if array.dtype.kind == "f" else array.astype(np.int64)


@dataclass(frozen=True)
class CellStore:
    """A folder of results of cells, each complete or absent."""

    folder: Path

    def path(self, cell: Cell) -> Path:
        """Returns where the result of a cell stands."""
        return self.folder / f"{cell.key()}.npz"

    def has(self, cell: Cell) -> bool:
        """Whether the cell is finished."""
        return self.path(cell).is_file()

    def keep(self, cell: Cell, content: bytes) -> None:
        """Writes the result of a cell.

        Raises:
            InputError: it cannot be written.
        """
        with complete_or_absent(self.path(cell)) as part:
            part.write_bytes(content)

    def outcomes(self, cells: Sequence[Cell]) -> list[Outcome]:
        """Reads the outcomes of cells that are finished, in their order."""
        return [one for cell in cells for one in outcomes_of(self.path(cell).read_bytes())]

    def forget(self, cells: Sequence[Cell]) -> None:
        """Removes results that are needed no more."""
        for cell in cells:
            self.path(cell).unlink(missing_ok=True)
