"""What accuracy a clone can reach: how often the rules themselves foretell the demonstrations.

A clone sees the rows and neither a router's memory nor its random numbers. So each recorded
decision is put to the router's own rule, with its memory and random numbers drawn anew many times,
and the replica that it chooses most often is compared with the recorded one. (Whose turn it is in
round robin does stand in the rows.) Where several routers
decided on like states, that is done twice: as if the rows told whose decision it was, and as if
they told nothing of it, when the best guess is the most probable choice of the mixture.

A policy that does not know the replicas' order cannot break ties by index. For such a policy the
rows are shuffled before each question, which leaves ties to chance. Other columns may hint at the
order, so that a clone can come out a little better. So it is also counted how often a clone's own
choice is one that the rule might have made, whatever decides its ties: all of them, for a perfect
imitation.
"""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from llmroute_gym.demos.file import Demos
from llmroute_gym.envs.observation import Columns
from llmroute_gym.ground.arrays import FloatArray
from llmroute_gym.routers import make

DECISIONS = 1000
"""How many decisions are put to the rules at the most; more are thinned out evenly."""


class Attainable(NamedTuple):
    """Accuracy of the rules on the recorded decisions, shares from 0 to 1."""

    known: float
    """If the rows tell whose decision it is."""
    mixed: float
    """If they do not."""


class Imitation(NamedTuple):
    """What a clone makes of one router's decisions."""

    attainable: Attainable
    consistent: float
    """Share of the clone's own choices that the rule might have made."""


def imitation(
    demos: Demos, choices: npt.NDArray[np.int64], *, ordered: bool, seed: int = 0
) -> dict[str, Imitation]:
    """Compares a clone's choices with the rules it imitates, by router.

    Args:
        demos: decisions that were not learned from.
        choices: (n,) the clone's.
        ordered: whether the policy knows the replicas' order.
        seed: of the rules' random numbers and memories.
    """
    kept = np.unique(np.linspace(0, len(demos) - 1, DECISIONS).astype(np.int64))
    demos, choices = demos.select(kept), choices[kept]
    names = demos.routers()
    rng = np.random.default_rng(seed)
    possible = {name: rule_probabilities(name, demos, ordered=ordered, rng=rng) for name in names}
    attainable = _attainable(demos, possible, rng)
    result = {}
    for name in names:
        might = possible[name][np.arange(len(demos)), choices] > 0
        result[name] = Imitation(attainable[name], float(might[demos.router == name].mean()))
    return result


def attainable_accuracy(demos: Demos, *, ordered: bool, seed: int = 0) -> dict[str, Attainable]:
    """Returns what is attainable on decisions, by router.

    Args:
        demos: decisions that were not learned from.
        ordered: whether the policy knows the replicas' order.
        seed: of the rules' random numbers and memories.
    """
    found = imitation(demos, demos.action, ordered=ordered, seed=seed)
    return {name: one.attainable for name, one in found.items()}


def _attainable(
    demos: Demos, possible: Mapping[str, FloatArray], rng: np.random.Generator
) -> dict[str, Attainable]:
    shares = {name: float((demos.router == name).mean()) for name in possible}
    mixture = np.sum([shares[name] * possible[name] for name in possible], axis=0)
    # A hair of noise: what is left to chance must not go to the lowest index.
    noise = 1e-9 * rng.random((len(demos), demos.layout.replicas))
    guess = np.argmax(mixture + noise, axis=1)
    result = {}
    for name in possible:
        own = demos.router == name
        known = np.argmax(possible[name] + noise, axis=1)
        result[name] = Attainable(
            float((known == demos.action)[own].mean()), float((guess == demos.action)[own].mean())
        )
    return result


def rule_probabilities(
    name: str, demos: Demos, *, ordered: bool, rng: np.random.Generator
) -> FloatArray:
    """Returns how often a router chooses each replica, shape (n, n_replicas), sums 1.

    Args:
        name: of the router.
        demos: whose observations and masks it is asked about.
        ordered: whether it sees the replicas in their order.
        rng: draws its memories, its random numbers and the orders.
    """
    rows = Columns(demos.layout.columns).unscaled(demos.observation)
    router = make(name)
    return np.stack(
        [
            router.possible(table, mask, rng, ordered=ordered)
            for table, mask in zip(rows, demos.mask, strict=True)
        ]
    )
