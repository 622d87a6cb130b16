"""Which replica can hold which request, and which one is asked to; shared by both engines."""

import operator
from typing import Any

import numpy as np
import numpy.typing as npt

from llmroute_gym.errors import InputError, shown
from llmroute_gym.ground.arrays import BoolArray, IntArray
from llmroute_gym.sim.replica import Cluster
from llmroute_gym.sim.workload import Workload

OVERSIZE_IN_COMMANDS = {
    "raise num_blocks or clip the request": "raise cluster.num_blocks, clip the requests with "
    "workload.max_prompt_tokens (of a trace) or +workload.lengths.max_total_tokens",
    "raise it or clip with max_prompt_tokens": "raise cluster.max_batched_tokens, clip the "
    "requests with workload.max_prompt_tokens (of a trace) or +workload.lengths.max_total_tokens",
    "raise max_model_len or clip the prompt": "raise cluster.max_model_len or clip the requests "
    "with workload.max_prompt_tokens (of a trace)",
    "raise max_batched_tokens or clip the request": "raise cluster.max_batched_tokens, clip the "
    "requests with workload.max_prompt_tokens (of a trace) or +workload.lengths.max_total_tokens",
    "oversize='reject'": "cluster.oversize=reject",
}
"""What `Replica.why_oversize` and `oversize_error` advise, in the words of the command line."""


def _fits_one(
    most_tokens: int | None, longest_prompt: int | None, workload: Workload
) -> BoolArray | None:
    """Returns which requests fit, shape (n_requests,); None if all do.

    Args:
        most_tokens: that a request may hold in KV, None for any number.
        longest_prompt: most prompt tokens, None for any number.
        workload: the requests.
    """
    if (most_tokens is None or workload.longest_request - 1 <= most_tokens) and (
        longest_prompt is None or workload.longest_prompt <= longest_prompt
    ):
        return None
    fits: BoolArray = np.ones(len(workload), dtype=np.bool_)
    if most_tokens is not None:
        fits = workload.prompt_tokens + workload.output_tokens - 1 <= most_tokens
    return fits if longest_prompt is None else fits & (workload.prompt_tokens <= longest_prompt)


def fitting(workload: Workload, cluster: Cluster) -> BoolArray | None:
    """Returns which replica can ever run which request.

    Args:
        workload: the requests.
        cluster: the replicas.

    Returns:
        (n_requests, n_replicas), or None where every replica can run every request.

    Raises:
        InputError: no replica can run some request, and none of them rejects oversize requests.
    """
    kinds = {limits: _fits_one(*limits, workload) for limits in cluster.kinds_of_limits}
    if all(fits is None for fits in kinds.values()):
        return None
    columns = [kinds[limits] for limits in cluster.limits]
    every = np.ones(len(workload), dtype=np.bool_)
    fits = np.stack([every if column is None else column for column in columns], axis=1)
    homeless = np.flatnonzero(~fits.any(axis=1))
    if len(homeless) and not any(replica.oversize == "reject" for replica in cluster):
        raise oversize_error(workload, cluster, int(homeless[0]), 0)
    return fits


def choosable(fits: BoolArray, cluster: Cluster) -> BoolArray:
    """Returns which replica may be chosen for which request: the mask of every decision.

    Those that can run the request; where none can, those that reject it.

    Args:
        fits: (n_requests, n_replicas), as `fitting` returns it.
        cluster: the replicas.

    Returns:
        (n_requests, n_replicas), read-only, with at least one replica in each row.
    """
    rejecting = np.array([replica.oversize == "reject" for replica in cluster])
    masks: BoolArray = np.where(fits.any(axis=1, keepdims=True), fits, rejecting)
    masks.flags.writeable = False
    return masks


def check_some_available(available: BoolArray, replica: int) -> None:
    """Checks that a replica still takes requests.

    Args:
        available: (n_replicas,) which ones would.
        replica: the one that was changed last.

    Raises:
        InputError: none would.
    """
    if not available.any():
        raise InputError(
            f"replica {replica} is the last one that takes requests; let another one take them "
            "first"
        )


def replica_index(value: Any, n_replicas: int) -> int | None:
    """Returns the index that an integer of Python or NumPy stands for, None if it names no replica.

    Args:
        value: what was given, of any type.
        n_replicas: replicas of the cluster.
    """
    try:
        index = -1 if isinstance(value, bool) else operator.index(value)
    except TypeError:
        return None
    return index if 0 <= index < n_replicas else None


def output_of(workload: Workload, cluster: Cluster, replica: IntArray) -> IntArray:
    """Returns how many tokens each request gives on its replica before `max_model_len` ends it.

    Args:
        workload: the requests.
        cluster: the replicas.
        replica: (n_requests,) where each one is, -1 for nowhere.
    """
    limits = [one.max_model_len for one in cluster]
    if all(limit is None for limit in limits):
        return workload.output_tokens
    unlimited = np.iinfo(np.int64).max
    lengths = np.array([unlimited if limit is None else limit for limit in limits] + [unlimited])
    outputs: IntArray = np.minimum(
        workload.output_tokens, lengths[replica] - workload.prompt_tokens
    )
    return outputs


def oversize_error(workload: Workload, cluster: Cluster, request: int, replica: int) -> InputError:
    """Returns the error for a request that the replica can never run."""
    reason = cluster.replicas[replica].why_oversize(
        int(workload.prompt_tokens[request]), int(workload.output_tokens[request])
    )
    return InputError(
        f"request {request} cannot run on replica {replica}: {reason}, or set oversize='reject'",
        in_commands=OVERSIZE_IN_COMMANDS,
    )


def checked_assignment(
    assignment: npt.ArrayLike, workload: Workload, cluster: Cluster
) -> npt.NDArray[np.int64]:
    """Returns the fixed replica of each request as an int64 array.

    Args:
        assignment: (n_requests,) replica indices.
        workload: the requests.
        cluster: the replicas.

    Raises:
        InputError: the shape, the type or a replica index is wrong.
    """
    try:
        array = np.asarray(assignment)
    except ValueError as error:
        raise InputError(
            f"an assignment needs one replica per request, shape ({len(workload)},); got "
            f"{shown(assignment)}"
        ) from error
    if array.shape != (len(workload),):
        raise InputError(
            f"an assignment needs one replica per request, shape ({len(workload)},); "
            f"got shape {array.shape}"
        )
    if not np.issubdtype(array.dtype, np.integer):
        raise InputError(f"an assignment needs integers, got dtype {array.dtype}")
    if array.min() < 0 or array.max() >= len(cluster):
        wrong = int(np.flatnonzero((array < 0) | (array >= len(cluster)))[0])
        raise InputError(
            f"request {wrong} is assigned to replica {array[wrong]}; "
            f"the cluster has replicas 0 to {len(cluster) - 1}"
        )
    return array.astype(np.int64)
