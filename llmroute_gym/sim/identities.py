"""Names that rules know requests by: their conversations, and how their prompts begin."""

import numpy as np

from llmroute_gym.ground.arrays import FloatArray, IntArray
from llmroute_gym.ground.signals import NO_NAME
from llmroute_gym.sim.content import Content
from llmroute_gym.sim.workload import Workload

HEAD_TOKENS = 256
"""Leading tokens of a prompt that name it."""


def identities(workload: Workload) -> FloatArray:
    """Returns the session of each request and a name of its prompt's head, (n_requests, 2).

    Two heads have the same name if and only if the first 256 tokens of the prompts are the same, or
    all of them where there are fewer. A request that lacks one of the two has -1 there.
    """
    names = np.full((len(workload), 2), NO_NAME)
    if workload.session is not None:
        names[:, 0] = workload.session
    if workload.content is not None:
        names[:, 1] = _heads(workload.content)
    return names


def _heads(content: Content) -> IntArray:
    """Returns numbers >= 0, (n_requests,), equal where the heads are.

    A segment begins at its stream's first token, so that heads are equal if and only if they are
    cut into the same segments. All of them are looked at segment by segment.
    """
    n = len(content)
    names = np.zeros(n, dtype=np.int64)
    tokens = np.zeros(n, dtype=np.int64)
    place, end = content.offsets[:-1].copy(), content.offsets[1:]
    alone = np.flatnonzero(place == end)
    going = np.flatnonzero(place < end)
    different, streams = np.unique(content.streams, return_inverse=True)
    while going.size:
        at = place[going]
        lengths = np.minimum(content.lengths[at], HEAD_TOKENS - tokens[going])
        kinds = (names[going] * different.size + streams[at]) * (HEAD_TOKENS + 1) + lengths
        _, kind = np.unique(kinds, return_inverse=True)
        # Names from here on differ from those of heads that have ended.
        names[going] = names.max() + 1 + kind
        tokens[going] += lengths
        place[going] += 1
        going = going[(place[going] < end[going]) & (tokens[going] < HEAD_TOKENS)]
    names[alone] = names.max() + 1 + np.arange(alone.size)
    _, numbered = np.unique(names, return_inverse=True)
    return numbered
