"""What the benchmarks of trainings share: settings, trainings kept between runs, what they serve.

A policy is trained and served once for the same settings, requests and source code; a benchmark
that was interrupted goes on with what it has. Percentiles and their intervals are those of
`llmroute_gym.compare.statistics`.
"""

import argparse
import csv
import hashlib
import json
import logging
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import contextmanager, redirect_stderr
from dataclasses import asdict, dataclass, replace
from functools import cache
from multiprocessing import get_context
from pathlib import Path
from typing import Any, NamedTuple, cast

import numpy as np
import numpy.typing as npt
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf
from tqdm import tqdm

import llmroute_gym
from llmroute_gym.compare.requests import common_workloads
from llmroute_gym.compare.serving import serve
from llmroute_gym.config import (
    ClusterConfig,
    EvaluationConfig,
    ObservationConfig,
    TrainConfig,
    WorkloadConfig,
)
from llmroute_gym.ground.files import complete_or_absent
from llmroute_gym.routers import Router, make
from llmroute_gym.runs.command import config_dir, register_schemas
from llmroute_gym.runs.folder import STATE_FILE, RunFolder
from llmroute_gym.sim import Workload
from llmroute_gym.sim.build import build_cluster, build_source

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]

CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
FOLDER = CACHE / "llmroute-gym" / "trainings"
"""Where trainings are kept between runs, unless another folder is given."""
LOG_FILE = "training.log"
LATENCIES = ("e2e", "ttft")
UNTRAINED = ("run_dir", "resume", "logger", "evaluation")
"""Settings that a trained policy does not depend on."""


class Options(NamedTuple):
    """What was asked for on the command line."""

    seeds: int
    jobs: int
    folder: Path
    quick: bool
    write: bool

    @classmethod
    def read(cls, about: str, seeds: int, quick_seeds: int) -> "Options":
        """Reads the command line; what is wrong ends in one sentence and exit code 2.

        Args:
            about: what the command does.
            seeds: trainings of each configuration, unless a number is given.
            quick_seeds: the same with ``--quick``.
        """
        parser = argparse.ArgumentParser(description=about)
        parser.add_argument("--seeds", type=int, help=f"trainings of each, default {seeds}")
        parser.add_argument("--jobs", type=int, default=1, help="processes, default %(default)s")
        parser.add_argument("--folder", type=Path, default=FOLDER, help="that keeps the trainings")
        parser.add_argument("--quick", action="store_true", help="short trainings")
        parser.add_argument("--write", action="store_true", help="report in benchmarks/README.md")
        given = parser.parse_args()
        if given.quick and given.write:
            parser.error("--quick only shows that the benchmark works; leave out --write")
        if given.seeds is None:
            given.seeds = quick_seeds if given.quick else seeds
        if given.seeds < 1 or given.jobs < 1:
            parser.error(
                f"expected at least 1 seed and 1 job, got --seeds {given.seeds} --jobs {given.jobs}"
            )
        return cls(**vars(given))


def composed(*overrides: str) -> TrainConfig:
    """Returns the settings that ``python -m llmroute_gym.train OVERRIDES`` trains with."""
    register_schemas()
    with initialize_config_dir(str(config_dir()), version_base="1.3"):
        settings = OmegaConf.to_object(compose("train", [*overrides, "run_dir=unset"]))
    return cast(TrainConfig, settings).validate()


# Training


class Training(NamedTuple):
    """A training and what it is called."""

    name: str
    settings: TrainConfig


def train_once(settings: TrainConfig, folder: Path, name: str = "training") -> Path:
    """Trains as the command does, without its comparison, unless that has been done before.

    Args:
        settings: of the training; `run_dir` is not used.
        folder: that holds the finished trainings.
        name: the beginning of the name of the training's own folder.

    Returns:
        The folder of the training with ``model.zip``, ``metrics.csv``, ``findings.json``,
        ``config.yaml`` and ``training.log``.

    Raises:
        InputError: a setting is wrong, or the training met numbers that are not finite.
    """
    finished = folder / f"{name}-{digest(settings)}"
    if finished.is_dir():
        return finished
    # Slow to import: not where nothing is trained.
    from llmroute_gym.training.learning import learn
    from llmroute_gym.training.warm_start import WarmStart

    part = folder / f".{finished.name}.{os.getpid()}.part"
    shutil.rmtree(part, ignore_errors=True)
    try:
        run = RunFolder(part)
        run.write_settings(replace(settings, run_dir=str(finished)))
        with _logged(part / LOG_FILE):
            source = build_source(settings.workload, settings.workload.rate(settings.training.qps))
            cluster = build_cluster(settings.cluster)
            learn(settings, cluster, source, run, WarmStart.find(settings, cluster))
        shutil.rmtree(part / "tensorboard", ignore_errors=True)
        (part / STATE_FILE).unlink()
        if not finished.is_dir():
            part.rename(finished)
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return finished


def digest(settings: TrainConfig) -> str:
    """Returns a short name of all that a training depends on: settings, files and source code."""
    stored = {key: value for key, value in asdict(settings).items() if key not in UNTRAINED}
    files = [_content(path) for path in _files(settings)]
    facts = json.dumps([stored, files, source_digest()], sort_keys=True)
    return hashlib.sha256(facts.encode()).hexdigest()[:16]


@cache
def source_digest() -> str:
    """Returns a digest of the package's source code and shipped profiles."""
    root = Path(llmroute_gym.__file__).parent
    kept = (path for path in root.rglob("*") if path.suffix in (".py", ".yaml", ".npz", ".csv"))
    whole = hashlib.sha256()
    for path in sorted(kept):
        whole.update(str(path.relative_to(root)).encode() + path.read_bytes())
    return whole.hexdigest()


def _files(settings: TrainConfig) -> Iterator[Path]:
    start = settings.warm_start
    for given, name in (
        (start.checkpoint, "model.zip"),
        (start.demos, "demos.parquet"),
        (settings.workload.path, ""),
    ):
        if given is not None:
            yield Path(given) / name if name and Path(given).is_dir() else Path(given)


def _content(path: Path) -> str:
    # A file that is missing is left to the training, which says so.
    return hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else "missing"


@contextmanager
def _logged(file: Path) -> Iterator[None]:
    """Sends what a training says, progress bars included, to a file."""
    logger = logging.getLogger("llmroute_gym")
    before = logger.level, logger.propagate
    with file.open("w", encoding="utf-8") as log, redirect_stderr(log):
        handler = logging.StreamHandler(log)
        handler.setFormatter(logging.Formatter("%(levelname)s %(message)s"))
        logger.addHandler(handler)
        logger.setLevel(logging.INFO)
        logger.propagate = False
        try:
            yield
        finally:
            logger.removeHandler(handler)
            logger.setLevel(before[0])
            logger.propagate = before[1]


# Serving


class Cell(NamedTuple):
    """A load that policies are compared at."""

    arrivals: str
    """``poisson`` or another option of the group workload/arrivals; ``trace`` replays a file."""
    qps: float


@dataclass(frozen=True, eq=False)
class Evaluation:
    """The requests that every policy serves.

    Attributes:
        cells: the loads.
        workloads: of each cell, one per run, all with the same number of runs and requests.
        cluster: the replicas.
        config: the seed of the requests, runs and resamples.
        observation: what a router is told.
    """

    cells: Sequence[Cell]
    workloads: Sequence[Sequence[Workload]]
    cluster: ClusterConfig
    config: EvaluationConfig
    observation: ObservationConfig

    @classmethod
    def draw(
        cls,
        cells: Sequence[Cell],
        config: EvaluationConfig,
        trace: Path | None = None,
        settings: TrainConfig | None = None,
    ) -> "Evaluation":
        """Draws the requests; run i of every synthetic cell has requests of the same lengths.

        Args:
            cells: the loads.
            config: runs, requests per run and the seed.
            trace: what the arrivals ``trace`` replay.
            settings: name the cluster, the lengths and the observation; None takes the defaults.

        Raises:
            InputError: the trace cannot be read.
        """
        settings = settings or TrainConfig()
        cluster = build_cluster(settings.cluster)
        workloads = []
        for cell in cells:
            source = build_source(_workload(cell, trace, settings.workload), cell.qps)
            workloads.append(common_workloads(source, cluster, config))
        return cls(tuple(cells), workloads, settings.cluster, config, settings.observation)

    def where(self, arrivals: str | None = None, qps: float | None = None) -> IntArray:
        """Returns the indices of the cells with these arrivals and this load; None takes all."""
        chosen = [
            arrivals in (None, cell.arrivals) and qps in (None, cell.qps) for cell in self.cells
        ]
        return np.flatnonzero(chosen)

    @property
    def digest(self) -> str:
        """A short name of the requests and of the source code."""
        whole = hashlib.sha256(source_digest().encode())
        whole.update(repr((self.cluster, self.observation, self.config.seed)).encode())
        for workload in (one for runs in self.workloads for one in runs):
            for column in (workload.arrived_at_s, workload.prompt_tokens, workload.output_tokens):
                whole.update(column.tobytes())
        return whole.hexdigest()[:16]


def _workload(cell: Cell, trace: Path | None, lengths_of: WorkloadConfig) -> WorkloadConfig:
    if cell.arrivals == "trace":
        arrivals = {"process": "trace", "path": str(trace)}
        return WorkloadConfig(source="trace", path=str(trace), arrivals=arrivals).validate()
    options = composed(f"workload/arrivals={cell.arrivals}").workload.arrivals
    return replace(lengths_of, arrivals=options)


class Served(NamedTuple):
    """Latencies in seconds, each of shape (n_seeds, n_cells, n_runs, n_requests)."""

    e2e: FloatArray
    ttft: FloatArray

    @classmethod
    def of_seeds(cls, served: Sequence["Served"]) -> "Served":
        """Puts the trainings of one configuration together."""
        return cls(*(np.concatenate(columns) for columns in zip(*served, strict=True)))

    def seed(self, index: int) -> "Served":
        """Returns one training."""
        return Served(*(column[index : index + 1] for column in self))

    def at(self, cells: IntArray) -> "Served":
        """Returns some of the cells."""
        return Served(*(column[:, cells] for column in self))


def serve_router(router: str | Router, evaluation: Evaluation) -> Served:
    """Serves all runs of all cells with one router, a network deciding in all of them at once."""
    together = [workload for runs in evaluation.workloads for workload in runs]
    router = make(router) if isinstance(router, str) else router
    cluster = build_cluster(evaluation.cluster)
    outcomes = serve(router, together, cluster, evaluation.config, evaluation.observation)
    shape = (1, len(evaluation.cells), evaluation.config.runs, evaluation.config.requests)
    columns = (
        np.concatenate([getattr(one, f"{latency}_s") for one in outcomes]).reshape(shape)
        for latency in LATENCIES
    )
    return Served(*columns)


def serve_once(training: Path, evaluation: Evaluation) -> Served:
    """Serves the common requests with a trained policy, unless its folder holds the result already.

    Args:
        training: from `train_once`.
        evaluation: what is served.
    """
    file = training / f"served-{evaluation.digest}.npz"
    if not file.is_file():
        from llmroute_gym.sb3.checkpoint import Checkpoint
        from llmroute_gym.sb3.policy_router import PolicyRouter

        served = serve_router(PolicyRouter(Checkpoint.load(training)), evaluation)
        with complete_or_absent(file) as part:
            np.savez(part, **served._asdict())
    with np.load(file) as stored:
        return Served(**stored)


def train_and_serve(training: Training, folder: Path, evaluation: Evaluation) -> Path:
    """Does what `train_once` and `serve_once` do; returns the training's folder."""
    import torch

    torch.set_num_threads(1)
    done = train_once(training.settings, folder, training.name)
    serve_once(done, evaluation)
    return done


def train_all(
    trainings: Sequence[Training],
    folder: Path,
    evaluation: Evaluation,
    jobs: int = 1,
    work: Callable[[Training, Path, Evaluation], Path] = train_and_serve,
) -> dict[str, Path]:
    """Trains and serves whatever is not there yet, with a progress bar.

    Args:
        trainings: with names of their own.
        folder: that holds the finished trainings.
        evaluation: what each policy serves.
        jobs: processes; the results are the same with any number.
        work: what is done for each training.

    Returns:
        Name to folder.
    """
    folder.mkdir(parents=True, exist_ok=True)
    found: dict[str, Path] = {}
    with tqdm(total=len(trainings), desc="trainings", unit="training") as bar:
        for training, path in _results(trainings, folder, evaluation, jobs, work):
            found[training.name] = path
            bar.set_postfix_str(training.name)
            bar.update()
    return {training.name: found[training.name] for training in trainings}


def _results(
    trainings: Sequence[Training],
    folder: Path,
    evaluation: Evaluation,
    jobs: int,
    work: Callable[[Training, Path, Evaluation], Path],
) -> Iterable[tuple[Training, Path]]:
    if jobs == 1:
        for training in trainings:
            yield training, work(training, folder, evaluation)
        return
    with ProcessPoolExecutor(jobs, mp_context=get_context("spawn")) as pool:
        futures = {pool.submit(work, one, folder, evaluation): one for one in trainings}
        for future in as_completed(futures):
            yield futures[future], future.result()


# The course of a training


def logged(training: Path, name: str) -> FloatArray:
    """Reads the known values of a column of a training's ``metrics.csv``, (n,)."""
    with (training / "metrics.csv").open(newline="", encoding="utf-8") as file:
        rows: list[Mapping[str, Any]] = list(csv.DictReader(file))
    return np.array([float(row[name]) for row in rows if row.get(name)])
