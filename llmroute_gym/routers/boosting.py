"""Gradient-boosted trees for a quantile, small enough to be asked within a decision.

Each tree is oblivious, as CatBoost's are: all nodes of a level ask the same question, so a tree of
`DEPTH` questions has 2^DEPTH leaves, numbered by the answers. Written here and not taken from a
library, as the trees have to be plain numbers that a compiled decision evaluates, and those of
scikit-learn are no better, take longer to learn, and seconds to import.
"""

import math
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from llmroute_gym.ground.arrays import FloatArray, IntArray
from llmroute_gym.routers.jit import block

TREES: Final = 32
DEPTH: Final = 3
RATE: Final = 0.3
"""Share of each tree's correction that is added."""
BINS: Final = 32
"""Answers that a feature is cut into, at its quantiles."""
LEAVES: Final = 2**DEPTH
TREE_WORDS: Final = 2 * DEPTH + LEAVES
MODEL_WORDS: Final = 1 + TREES * TREE_WORDS
"""Words of a model: where it starts from, then of each tree which features it asks, above what,
and what it adds in each leaf."""


@block
def predicted(model: FloatArray, features: FloatArray) -> float:
    """Returns what a model predicts from features, shape (n_features,)."""
    value = model[0]
    for tree in range(TREES):
        first = 1 + tree * TREE_WORDS
        leaf = 0
        for level in range(DEPTH):
            above = features[int(model[first + level])] > model[first + DEPTH + level]
            leaf = 2 * leaf + above
        value += model[first + 2 * DEPTH + leaf]
    return float(value)


def boosted(features: FloatArray, values: FloatArray, quantile: float) -> FloatArray:
    """Returns a model of a quantile of some values, shape (MODEL_WORDS,).

    The first half of the trees learns the mean, as the gradient of a quantile tells no more than a
    sign and would take many trees to tell small values apart.

    Args:
        features: (n, n_features), n >= 1.
        values: (n,).
        quantile: between 0 and 1.
    """
    shares = np.arange(1, BINS) / BINS
    cuts = np.quantile(features, shares, axis=0, method="higher")
    codes = np.stack(
        [np.searchsorted(cut, one) for cut, one in zip(cuts.T, features.T, strict=True)]
    )
    model = np.zeros(MODEL_WORDS)
    model[0] = values.mean()
    left = values - model[0]
    for tree in range(TREES):
        words = model[1 + tree * TREE_WORDS :][:TREE_WORDS]
        to_mean = tree < TREES // 2
        pull = left if to_mean else np.where(left > 0, quantile, quantile - 1.0)
        leaf = np.zeros(len(values), dtype=np.int64)
        for level in range(DEPTH):
            feature, code = _best_question(codes, leaf, 2**level, pull)
            words[level], words[DEPTH + level] = feature, cuts[code, feature]
            leaf = 2 * leaf + (codes[feature] > code)
        added = RATE * (_means(left, leaf) if to_mean else _quantiles(left, leaf, quantile))
        words[2 * DEPTH :] = added
        left = left - added[leaf]
    return model


def _best_question(
    codes: IntArray, leaf: IntArray, n_leaves: int, pull: FloatArray
) -> tuple[int, int]:
    """Returns the feature, and the code not to exceed, that part the pull best within the leaves.

    Args:
        codes: (n_features, n) the bin of each value.
        leaf: (n,) where each sample is.
        n_leaves: leaves so far.
        pull: (n,) which way each sample draws its leaf.
    """
    n_features = len(codes)
    shape = n_features, n_leaves, BINS
    places = (n_leaves * np.arange(n_features)[:, None] + leaf) * BINS + codes
    sums, counts = (
        np.cumsum(np.bincount(places.ravel(), weights, math.prod(shape)).reshape(shape), axis=2)
        for weights in (np.tile(pull, n_features), np.ones(codes.size))
    )
    gain = _squares(sums, counts) + _squares(sums[..., -1:] - sums, counts[..., -1:] - counts)
    # The last bin's question has one answer.
    gains = gain.sum(axis=1)[:, :-1]
    feature, code = divmod(int(gains.argmax()), BINS - 1)
    return feature, code


def _squares(sums: npt.NDArray[Any], counts: npt.NDArray[Any]) -> FloatArray:
    squares: FloatArray = sums * sums / np.maximum(counts, 1)
    return squares


def _means(values: FloatArray, leaf: IntArray) -> FloatArray:
    """Returns the mean of the values of each leaf, 0 of an empty one, shape (LEAVES,)."""
    sums, counts = (np.bincount(leaf, weights, LEAVES) for weights in (values, None))
    means: FloatArray = sums / np.maximum(counts, 1)
    return means


def _quantiles(values: FloatArray, leaf: IntArray, quantile: float) -> FloatArray:
    """Returns the quantile of the values of each leaf, 0 of an empty one, shape (LEAVES,)."""
    order = np.lexsort((values, leaf))
    counts = np.bincount(leaf, minlength=LEAVES)
    last = np.maximum(counts - 1, 0)
    places = np.cumsum(counts) - counts + np.ceil(last * quantile).astype(np.int64)
    found = values[order[np.minimum(places, len(values) - 1)]]
    return np.where(counts > 0, found, 0.0)
