"""Teaching a policy what routers do, and how well it learned it."""

import csv
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np

from llmroute_gym.config import EnvConfig, ExplorationConfig, KLConfig, PretrainConfig
from llmroute_gym.demos.attainable import imitation
from llmroute_gym.demos.file import Demos
from llmroute_gym.runs.folder import RunFolder
from llmroute_gym.sb3.checkpoint import Checkpoint
from llmroute_gym.sb3.cloning import Cloning, action_logits, clone, knows_order
from llmroute_gym.sim import Cluster
from llmroute_gym.sim.sources import WorkloadSource
from llmroute_gym.training.learning_curve import plot_learning_curve
from llmroute_gym.training.setup import (
    layout_of,
    make_model,
    make_vec_env,
    needs_masks,
    ppo_settings,
    set_threads,
)

ACCURACY_FILE = "accuracy.csv"
CURVE_FILE = "learning_curve.csv"
CURVE_PICTURE = "learning_curve.png"
CONFIDENCE_BINS = 10
ALL = "all"


@dataclass(frozen=True)
class RouterAccuracy:
    """How well a clone foretells one router on episodes that it has not seen.

    Attributes:
        router: its name; `ALL` stands for all decisions together.
        decisions: how many there are.
        accuracy: share of those whose most probable replica is the demonstrated one.
        attainable_known: the same of the router's own rule, see `llmroute_gym.demos.attainable`.
        attainable_mixed: the same where the rows do not tell whose decision it is.
        consistent: share of the clone's own choices that the rule might have made, its memory,
            random numbers and, where the clone does not know the replicas' order, ties left open.
        cross_entropy: of the demonstrated replicas, nats.
        calibration_error: mean distance of confidence and accuracy over bins of confidence,
            weighted by their decisions. Guo et al., "On calibration of modern neural networks",
            2017.
    """

    router: str
    decisions: int
    accuracy: float
    attainable_known: float
    attainable_mixed: float
    consistent: float
    cross_entropy: float
    calibration_error: float


def clone_checkpoint(
    settings: PretrainConfig, cluster: Cluster, source: WorkloadSource, demos: Demos
) -> tuple[Checkpoint, Cloning]:
    """Builds the model as a training does, and teaches it the demonstrations.

    Returns:
        What a training starts from or a router is made of, and how it was learned.
    """
    training, seed = settings.training, settings.seed
    set_threads(training.torch_threads)
    env = make_vec_env(
        EnvConfig(),
        settings.reward,
        settings.observation,
        cluster,
        source,
        gamma=training.gamma,
        seed=seed,
    )
    ppo = ppo_settings(training, ExplorationConfig(), KLConfig(), num_envs=env.num_envs, seed=seed)
    try:
        model = make_model(settings.model, env, ppo, masked=needs_masks(cluster))
        cloning = clone(model, demos, settings.cloning, seed)
        # The clone foresees rewards as they are, so their scale is 1.
        layout = layout_of(len(cluster), settings.observation, settings.model, reward_scale=1.0)
        return Checkpoint(model, layout), cloning
    finally:
        env.close()


def measure(checkpoint: Checkpoint, cloning: Cloning) -> list[RouterAccuracy]:
    """Measures the clone on the decisions held out, by router and over all."""
    demos = cloning.validation
    policy = cast(Any, checkpoint.model.policy)
    logs = action_logits(policy, demos.observation, demos.mask)
    found = imitation(demos, logs.argmax(axis=1), ordered=knows_order(policy))
    rows = []
    for name in demos.routers():
        own, (attainable, consistent) = demos.router == name, found[name]
        rows.append(_accuracy(name, logs[own], demos.action[own], *attainable, consistent))
    shares = np.array([row.decisions for row in rows]) / len(demos)
    over_all = [
        float(shares @ np.array([getattr(row, name) for row in rows]))
        for name in ("attainable_known", "attainable_mixed", "consistent")
    ]
    return [*rows, _accuracy(ALL, logs, demos.action, *over_all)]


def _accuracy(
    name: str, logs: Any, action: Any, known: float, mixed: float, consistent: float
) -> RouterAccuracy:
    right = logs.argmax(axis=1) == action
    confidence = np.exp(logs.max(axis=1))
    return RouterAccuracy(
        router=name,
        decisions=len(action),
        accuracy=float(right.mean()),
        attainable_known=known,
        attainable_mixed=mixed,
        consistent=consistent,
        cross_entropy=float(-logs[np.arange(len(action)), action].mean()),
        calibration_error=calibration_error(confidence, right),
    )


def calibration_error(confidence: Any, right: Any) -> float:
    """Returns the mean distance of confidence and accuracy over equal bins of confidence.

    Args:
        confidence: (n,) probabilities of the most probable replicas.
        right: (n,) bool, whether those were the demonstrated ones.
    """
    bins = np.minimum((confidence * CONFIDENCE_BINS).astype(np.int64), CONFIDENCE_BINS - 1)
    gaps = np.bincount(bins, confidence - right, CONFIDENCE_BINS)
    return float(np.abs(gaps).sum() / len(confidence))


def write_imitation(
    folder: RunFolder, accuracies: Sequence[RouterAccuracy], cloning: Cloning
) -> None:
    """Writes ``accuracy.csv`` and ``learning_curve.csv``, ``.png`` into the folder of a run."""
    with folder.writing(ACCURACY_FILE) as part:
        write_accuracies(accuracies, part)
    with folder.writing(CURVE_FILE) as part:
        write_curve(cloning, part)
    over_all = accuracies[-1]
    with folder.writing(CURVE_PICTURE) as part:
        plot_learning_curve(cloning, over_all.attainable_known, over_all.attainable_mixed, part)


def write_accuracies(accuracies: Sequence[RouterAccuracy], path: Path) -> None:
    """Writes one line per router and one over all."""
    with path.open("w", newline="", encoding="utf-8") as file:
        names = list(asdict(accuracies[0]))
        writer = csv.DictWriter(file, names, lineterminator="\n")
        writer.writeheader()
        for row in accuracies:
            writer.writerow(
                {
                    name: f"{value:.6g}" if isinstance(value, float) else value
                    for name, value in asdict(row).items()
                }
            )


def write_curve(cloning: Cloning, path: Path) -> None:
    """Writes one line per network and epoch, from 1: losses, accuracies, whether it was kept."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["network", "epoch", "kept", *cloning.actor[0]._fields])
        for network, records, kept in (
            ("actor", cloning.actor, cloning.actor_epoch),
            ("critic", cloning.critic, cloning.critic_epoch),
        ):
            for epoch, record in enumerate(records):
                numbers = ["" if np.isnan(value) else f"{value:.6g}" for value in record]
                writer.writerow([network, epoch + 1, int(epoch == kept), *numbers])


def accuracy_table(accuracies: Sequence[RouterAccuracy], cloning: Cloning) -> str:
    """Lays the accuracies out as text, with what the value head explains."""
    mixed = len(accuracies) > 2
    titles = ["decisions", "accuracy", "attainable", "consistent", "cross-entropy"]
    titles.append("calibration error")
    lines = [f"{'router':<20}" + "".join(f"{title:>19}" for title in titles)]
    for row in accuracies:
        attainable = f"{row.attainable_known:.1%}"
        if mixed:
            attainable = f"{row.attainable_mixed:.1%}..{attainable}"
        cells = [
            f"{row.decisions:,}",
            f"{row.accuracy:.1%}",
            attainable,
            f"{row.consistent:.1%}",
            f"{row.cross_entropy:.3f}",
            f"{row.calibration_error:.3f}",
        ]
        lines.append(f"{row.router:<20}" + "".join(f"{cell:>19}" for cell in cells))
    note = "On episodes that were not learned from; attainable: what the rules themselves foretell"
    note += " (less where the rows do not tell whose decision it is)" if mixed else ""
    note += "; consistent: choices of the clone that the rule might have made."
    return (
        "\n".join(lines)
        + f"\n{note}\nThe value head explains {cloning.explained_variance:.0%} of the variance of "
        f"the returns; kept: epoch {cloning.actor_epoch + 1} of {len(cloning.actor)} (actor), "
        f"{cloning.critic_epoch + 1} of {len(cloning.critic)} (critic)."
    )
