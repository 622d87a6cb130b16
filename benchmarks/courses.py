"""Trainings that are watched: their policies are kept and served as they learn, clones beside them.

Policies are kept before the first update, after each of the first few and then every second one,
with the observation statistics that the rollout and the update saw. Each serves all common
requests, which takes about a second.
"""

import csv
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import numpy as np
import torch
from stable_baselines3.common.callbacks import BaseCallback
from trainings import (
    LOG_FILE,
    Evaluation,
    FloatArray,
    IntArray,
    Training,
    digest,
    serve_once,
    serve_router,
    train_once,
)

import llmroute_gym.training.learning
from llmroute_gym.config import PretrainConfig, TrainConfig
from llmroute_gym.demos.collection import collect
from llmroute_gym.ground.files import complete_or_absent
from llmroute_gym.runs.folder import MODEL_FILE, RunFolder
from llmroute_gym.sb3.checkpoint import Checkpoint
from llmroute_gym.sb3.policy_router import PolicyRouter
from llmroute_gym.sb3.row_normalizer import normalizers
from llmroute_gym.sim.build import build_cluster, build_source
from llmroute_gym.sim.outcome import percentile
from llmroute_gym.training.imitation import (
    ACCURACY_FILE,
    clone_checkpoint,
    measure,
    write_accuracies,
)
from llmroute_gym.training.warm_start import cloning, collection

WEIGHTS_FILE = "weights.pt"
FIRST_UPDATES = 5
"""A policy is kept after each of so many updates at the beginning, ..."""
EVERY = 2
"""... and after every so many later on."""
UNSEEN_SEED = 1000
"""Added to a clone's seed for the episodes that it is examined on."""
UNSEEN_DECISIONS = 2000


class KeepWeights(BaseCallback):
    """Keeps the policy as it learns; goes before callbacks that change observation statistics.

    Args:
        path: of the file with a list of (updates, decisions, state of the policy).
    """

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.path = path
        self.kept: list[tuple[int, int, dict[str, torch.Tensor]]] = []

    def _on_rollout_start(self) -> None:
        update = self._updates()
        if update <= FIRST_UPDATES or update % EVERY == 0:
            self._keep(update)

    def _on_training_end(self) -> None:
        self._keep(self._updates())
        with complete_or_absent(self.path) as part:
            torch.save(self.kept, part)

    def _on_step(self) -> bool:
        return True

    def _updates(self) -> int:
        model: Any = self.model
        return int(self.num_timesteps // (model.n_steps * model.n_envs))

    def _keep(self, update: int) -> None:
        state = {name: value.clone() for name, value in self.model.policy.state_dict().items()}
        self.kept.append((update, self.num_timesteps, state))


@contextmanager
def _watched() -> Iterator[None]:
    """Lets trainings keep their weights; `learn` takes no further callbacks."""
    usual = llmroute_gym.training.learning.callbacks

    def callbacks(settings: TrainConfig, model: Any, folder: RunFolder, total: int) -> Any:
        return [KeepWeights(folder.path / WEIGHTS_FILE), *usual(settings, model, folder, total)]

    with mock.patch.object(llmroute_gym.training.learning, "callbacks", callbacks):
        yield


class Course(NamedTuple):
    """What became of the common requests as a training went on."""

    updates: IntArray
    """(n_points,), ascending from 0"""
    decisions: IntArray
    """(n_points,), of PPO alone"""
    p95_s: FloatArray
    """(n_points, n_cells), of the end-to-end latency over all runs together"""
    e2e: FloatArray
    """(3, n_cells, n_runs, n_requests), seconds: before PPO, after `FIRST_UPDATES`, at the end"""
    ttft: FloatArray
    """The same of the time to first token."""
    mean: FloatArray
    """(n_points, n_columns), the observation statistics in use"""
    variance: FloatArray

    @property
    def points(self) -> IntArray:
        """Which points `e2e` and `ttft` are of, (3,)."""
        return _whole_points(self.updates)


START, EARLY, END = range(3)


def _whole_points(updates: IntArray) -> IntArray:
    early = np.searchsorted(updates, FIRST_UPDATES, side="right") - 1
    return np.array([0, early, len(updates) - 1])


def watch(training: Training, folder: Path, evaluation: Evaluation) -> Path:
    """Trains, and serves the common requests with every kept policy, unless that has been done.

    Returns:
        The folder of the training, for `course`.
    """
    torch.set_num_threads(1)
    with _watched():
        done = train_once(training.settings, folder, training.name)
    file = done / _course_file(evaluation)
    if not file.is_file():
        served = _serve_kept(done, evaluation)
        with complete_or_absent(file) as part:
            np.savez(part, **served._asdict())
    return done


def course(training: Path, evaluation: Evaluation) -> Course:
    """Reads what `watch` has measured."""
    with np.load(training / _course_file(evaluation)) as stored:
        return Course(**stored)


def _course_file(evaluation: Evaluation) -> str:
    return f"course-{evaluation.digest}.npz"


def _serve_kept(training: Path, evaluation: Evaluation) -> Course:
    policy = Checkpoint.load(training)
    kept = torch.load(training / WEIGHTS_FILE, weights_only=True)
    updates, decisions = (np.array([one[index] for one in kept]) for index in range(2))
    whole = _whole_points(updates)
    p95_s, latencies, statistics = [], {}, []
    for point, (_, _, state) in enumerate(kept):
        policy.model.policy.load_state_dict(state)
        served = serve_router(PolicyRouter(policy), evaluation)
        p95_s.append([percentile(cell.ravel(), 95) for cell in served.e2e[0]])
        if point in whole:
            latencies[point] = served
        normalizer = normalizers(policy.model.policy)[0]
        statistics.append([normalizer.mean.numpy().copy(), normalizer.variance.numpy().copy()])
    return Course(
        updates,
        decisions,
        np.array(p95_s),
        np.concatenate([latencies[point].e2e for point in whole]),
        np.concatenate([latencies[point].ttft for point in whole]),
        *np.array(statistics).swapaxes(0, 1),
    )


def first_within(decisions: IntArray, p95_s: FloatArray, limit_s: float) -> int | None:
    """Returns the first number of decisions from which a P95 stays at or below a limit.

    Args:
        decisions: (n_points,), ascending.
        p95_s: (n_points,).
        limit_s: seconds.

    Returns:
        That of the first point which meets the limit, as all later ones do; None if there is none.
    """
    above = np.flatnonzero(~(p95_s <= limit_s))
    first = 0 if len(above) == 0 else int(above[-1]) + 1
    return int(decisions[first]) if first < len(decisions) else None


class Movement(NamedTuple):
    """How far observation statistics have moved, as shares, over the columns that vary."""

    mean: float
    """In standard deviations, on average over the columns."""
    mean_most: float
    """Of the column that moved most."""
    variance: float
    """Relative to itself, on average over the columns."""
    variance_most: float


def movement(watched: Course, updates: int) -> Movement:
    """Returns how far the observation statistics moved over the first updates.

    Statistics that have seen nothing have mean 0 and variance 1: they change nothing.
    """
    last = int(np.searchsorted(watched.updates, updates, side="right")) - 1
    before, after = watched.variance[0], watched.variance[last]
    varies = after > 0
    if not varies.any():
        return Movement(0.0, 0.0, 0.0, 0.0)
    with np.errstate(divide="ignore"):
        shift = np.abs(watched.mean[last] - watched.mean[0])[varies] / np.sqrt(before[varies])
        change = np.abs(after[varies] / before[varies] - 1)
    return Movement(*map(float, (shift.mean(), shift.max(), change.mean(), change.max())))


# Clones


class CloneAccuracy(NamedTuple):
    """How often a clone decides as its router does, on episodes that cloning never saw."""

    accuracy: float
    attainable: float
    """The router's own rule, its memory, random numbers and ties unknown."""
    consistent: float
    """Share of the clone's choices that the rule might have made, whatever decides its ties."""


def clone_once(training: Training, folder: Path, evaluation: Evaluation) -> Path:
    """Clones the routers that a training would start from, and serves the common requests.

    Returns:
        The clone's folder, for `clone_accuracy` and `serve_once`.
    """
    torch.set_num_threads(1)
    settings = training.settings
    finished = folder / f"{training.name}-{digest(settings)}"
    if not finished.is_dir():
        part = folder / f".{finished.name}.part"
        shutil.rmtree(part, ignore_errors=True)
        part.mkdir(parents=True)
        with (part / LOG_FILE).open("w", encoding="utf-8") as log, redirect_stderr(log):
            _clone(settings, part)
        part.rename(finished)
    serve_once(finished, evaluation)
    return finished


def _clone(settings: TrainConfig, folder: Path) -> None:
    wanted = collection(settings)
    pretraining = PretrainConfig(
        cloning=cloning(settings.warm_start),
        model=settings.model,
        observation=settings.observation,
        training=settings.training,
        reward=settings.reward,
        cluster=settings.cluster,
        workload=settings.workload,
        seed=settings.seed,
    ).validate()
    source = build_source(settings.workload, settings.workload.rate(settings.training.qps))
    checkpoint, learned = clone_checkpoint(
        pretraining, build_cluster(settings.cluster), source, collect(wanted)
    )
    unseen = collect(replace(wanted, seed=wanted.seed + UNSEEN_SEED, decisions=UNSEEN_DECISIONS))
    write_accuracies(
        measure(checkpoint, replace(learned, validation=unseen)), folder / ACCURACY_FILE
    )
    checkpoint.save(folder / MODEL_FILE)


def clone_accuracy(clone: Path) -> CloneAccuracy:
    """Reads the accuracy of a clone of one router."""
    with (clone / ACCURACY_FILE).open(newline="", encoding="utf-8") as file:
        row = next(csv.DictReader(file))
    return CloneAccuracy(
        float(row["accuracy"]), float(row["attainable_known"]), float(row["consistent"])
    )
