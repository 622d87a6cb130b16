"""What a log says of requests and their times, in the form that is simulated again."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np

from llmroute_gym.compare.calibration.prefixes import guessed_content
from llmroute_gym.errors import InputError, unknown_name
from llmroute_gym.ground.arrays import BoolArray, FloatArray, IntArray
from llmroute_gym.sim import Replica, Workload
from llmroute_gym.sim.request_log import SERVED, LoggedRequest, read_request_log

LEAST = 50
"""Requests that were served, without which nothing is fitted."""


@dataclass(frozen=True, eq=False)
class Recorded:
    """The requests of a log that reached a backend, in order of arrival.

    Attributes:
        workload: the requests; of those that broke off, the tokens that came out; with prompts that
            begin alike where tokens were found in prefix caches.
        backend: (n_requests,) index of the backend of each.
        backends: their names, sorted.
        ttft_s: (n_requests,) recorded, NaN where nothing tells.
        e2e_s: (n_requests,) recorded, NaN where the request broke off.
        computed_tokens: (n_requests,) of each prompt, but for those found in a prefix cache.
        cached_share: of all prompt tokens, that was found in prefix caches.
        explained_share: of those, that simulated prefix caches may find too.
    """

    workload: Workload
    backend: IntArray
    backends: tuple[str, ...]
    ttft_s: FloatArray
    e2e_s: FloatArray
    computed_tokens: IntArray
    cached_share: float
    explained_share: float

    @classmethod
    def read(cls, path: str | Path, backends: Sequence[str] = (), limit: int | None = None) -> Self:
        """Reads a log.

        Args:
            path: of it.
            backends: names of those whose requests count; none means all.
            limit: how many of the latest requests are kept; None keeps all.

        Raises:
            InputError: it cannot be read, a backend is not in it, or too few were served.
        """
        logged = read_request_log(path)
        found = {one.backend for one in logged if one.backend}
        for name in backends:
            if name not in found:
                raise unknown_name("backend of the log:", name, found)
        names = tuple(sorted(backends or found))
        kept = [one for one in logged if one.backend in names and one.output_tokens > 0]
        kept = sorted(
            (one for one in kept if one.prompt_tokens > 0), key=lambda one: one.arrived_at_s
        )
        kept = kept if limit is None else kept[-limit:]
        served = sum(one.outcome == SERVED for one in kept)
        if served < LEAST:
            raise InputError(
                f"{path} has {served} requests that were served, expected at least {LEAST}; log "
                "more of them"
            )
        return cls._of(kept, names)

    @classmethod
    def _of(cls, kept: list[LoggedRequest], names: tuple[str, ...]) -> Self:
        arrived_at_s = np.array([one.arrived_at_s for one in kept])
        prompts = np.array([one.prompt_tokens for one in kept])
        cached = np.array([one.cached_tokens or 0 for one in kept])
        content, explained_share = guessed_content(kept) if cached.any() else (None, 1.0)
        first = [np.nan if one.first_token_at_s is None else one.first_token_at_s for one in kept]
        ended = [one.ended_at_s if one.outcome == SERVED else np.nan for one in kept]
        return cls(
            Workload(
                arrived_at_s - arrived_at_s[0],
                prompts,
                np.array([one.output_tokens for one in kept]),
                content,
            ),
            np.array([names.index(one.backend) for one in kept]),
            names,
            np.array(first) - arrived_at_s,
            np.array(ended) - arrived_at_s,
            np.maximum(prompts - cached, 1),
            float(cached.sum() / prompts.sum()),
            explained_share,
        )

    def check_fits(self, replica: Replica) -> None:
        """Checks that a replica can run every request.

        Raises:
            InputError: it cannot; the message names the request and the limit.
        """
        sizes = zip(
            self.workload.prompt_tokens.tolist(), self.workload.output_tokens.tolist(), strict=True
        )
        for prompt, output in set(sizes):
            if (why := replica.why_oversize(prompt, output)) is not None:
                raise InputError(
                    f"the log has a request that these limits do not allow: {why.split(';')[0]}; "
                    "give those of your servers, as in num_blocks=27000 max_batched_tokens=8192"
                )

    def first_part(self, share: float) -> BoolArray:
        """Returns which requests are among the first ones, (n_requests,)."""
        return np.arange(len(self.workload)) < round(share * len(self.workload))
