"""One step of many environments in one kernel call: place, run on, reward, observation."""

import numpy as np
from numba import njit

from llmroute_gym.sim.compiled.stepping import place, write_rows


@njit(cache=True)
def observe(cluster, information, masks, predicted, scale, high, rows, out, state):
    """Writes one environment's observation.

    Args:
        cluster: the environment.
        information: ENGINE, ROUTER or ORACLE.
        masks: (n_environments, n_replicas).
        predicted: predicted output tokens of all environments' requests.
        scale: (N_SIGNALS,) factors.
        high: (N_SIGNALS,) upper bounds.
        rows: (n_replicas, N_SIGNALS) scratch.
        out: (n_environments, n_replicas, N_SIGNALS) float32, one environment of it is filled.
        state: all arrays.
    """
    n_replicas, n_signals = rows.shape
    write_rows(cluster, n_replicas, information, masks[cluster], predicted, rows, state)
    for r in range(n_replicas):
        for column in range(n_signals):
            value = rows[r, column] * scale[column]
            out[cluster, r, column] = np.float32(min(max(value, 0.0), high[column]))


@njit(cache=True)
def step_all(actions, rejected, information, masks, predicted, scale, high, rows, out, intervals, state):
    """Places every environment's request, runs on, and observes.

    Args:
        actions: (n_environments,) replicas.
        rejected: (n_environments,) whether that replica rejects the request.
        information: as in `observe`, likewise the next six.
        masks: of the requests that come next.
        predicted: see `observe`.
        scale: see `observe`.
        high: see `observe`.
        rows: see `observe`.
        out: see `observe`.
        intervals: (n_environments, 5) is filled with the fields of `Interval`.
        state: all arrays.
    """
    n_replicas = rows.shape[0]
    for cluster in range(len(actions)):
        replica = -1 if rejected[cluster] else actions[cluster]
        result = place(cluster, n_replicas, replica, state)
        for field in range(5):
            intervals[cluster, field] = result[field]
        observe(cluster, information, masks, predicted, scale, high, rows, out, state)


@njit(cache=True)
def observe_all(information, masks, predicted, scale, high, rows, out, state):
    """Observes every environment; see `observe`."""
    for cluster in range(len(masks)):
        observe(cluster, information, masks, predicted, scale, high, rows, out, state)

