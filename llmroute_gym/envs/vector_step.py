"""One step of many environments in one kernel call: place, run on, reward, observe."""

import numpy as np
import numpy.typing as npt

from llmroute_gym.envs.reward import write_reward
from llmroute_gym.ground.arrays import FloatArray, IntArray
from llmroute_gym.sim.compiled import layout as at
from llmroute_gym.sim.compiled.jit import inlined, kernel
from llmroute_gym.sim.compiled.observing import pick_columns, write_rows
from llmroute_gym.sim.compiled.stepping import place

_write_reward = inlined(write_reward)


@inlined
def _observe(
    cluster: int,
    columns: IntArray,
    scale: FloatArray,
    high: FloatArray,
    whole: npt.NDArray[np.float32],
    out: npt.NDArray[np.float32],
    stores: at.Stores,
    ints: IntArray,
    floats: FloatArray,
) -> None:
    if len(columns) == 0:
        write_rows(cluster, scale, high, out, stores, ints, floats)
    else:
        write_rows(cluster, scale, high, whole, stores, ints, floats)
        pick_columns(whole, columns, out)


@kernel
def step_all(
    clusters: IntArray,
    actions: IntArray,
    units: FloatArray,
    weights: FloatArray,
    columns: IntArray,
    scale: FloatArray,
    high: FloatArray,
    whole: npt.NDArray[np.float32],
    out: npt.NDArray[np.float32],
    terms: FloatArray,
    rewards: FloatArray,
    now_s: FloatArray,
    numbers: IntArray,
    lowest: int,
    stores: at.Stores,
    ints: IntArray,
    floats: FloatArray,
) -> int:
    """Places every environment's request, runs on, rewards and observes.

    Args:
        clusters: (n_environments,) their words.
        actions: (n_environments,) replicas from `lowest` on; -1 drops the request.
        units: (4,) see `llmroute_gym.envs.reward`.
        weights: (4,) likewise.
        columns: (n_columns,) the signals that `out` shows, empty for those of version 1.
        scale: (N_SIGNALS,) factors of the observation.
        high: (N_SIGNALS,) its upper bounds.
        whole: (n_replicas, N_SIGNALS) room for a row that columns are chosen from.
        out: (n_environments, n_replicas, n_columns) is filled with observations.
        terms: (4, n_environments) is filled with unweighted reward terms.
        rewards: (n_environments,) is filled.
        now_s: (n_environments,) is filled with the times of the next decisions, seconds.
        numbers: (n_environments,) is filled with the numbers of the requests at hand.
        lowest: -1 or 0.
        stores: see `layout.Stores`.
        ints: memory.
        floats: the same memory.

    Returns:
        -1, or the first environment whose action is out of range; then nothing has happened.
    """
    for e in range(len(clusters)):
        if not lowest <= actions[e] < out.shape[1]:
            return e
    for e in range(len(clusters)):
        cluster = clusters[e]
        _, area, late_area, rate, spread = place(cluster, actions[e], stores, ints, floats)
        rewards[e] = _write_reward(area, late_area, rate, spread, units, weights, terms[:, e])
        _observe(cluster, columns, scale, high, whole, out[e], stores, ints, floats)
        now_s[e] = floats[cluster + at.NOW]
        done = ints[cluster + at.NEXT_REQUEST] - ints[cluster + at.FIRST_REQUEST]
        numbers[e] = done // at.REQUEST_WORDS
    return -1


@kernel
def observe_all(
    clusters: IntArray,
    columns: IntArray,
    scale: FloatArray,
    high: FloatArray,
    whole: npt.NDArray[np.float32],
    out: npt.NDArray[np.float32],
    stores: at.Stores,
    ints: IntArray,
    floats: FloatArray,
) -> None:
    """Observes some environments; arguments as in `step_all`."""
    for e in range(len(clusters)):
        _observe(clusters[e], columns, scale, high, whole, out[e], stores, ints, floats)
