"""Where the requests of an episode come from: models of them, or a recorded workload."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from llmroute_gym.errors import InputError
from llmroute_gym.ground.checks import count, positive
from llmroute_gym.sim.arrivals import ArrivalProcess
from llmroute_gym.sim.conversations import AgentLoop, MultiTurn
from llmroute_gym.sim.lengths import LengthModel
from llmroute_gym.sim.prefixes import PrefixRepetition, PromptSource, SharedPrefix
from llmroute_gym.sim.registry import build
from llmroute_gym.sim.workload import Workload


class WorkloadSource(Protocol):
    """Where an episode's requests come from."""

    @property
    def qps(self) -> float:
        """Mean offered rate in requests/s."""

    def sample(self, n_requests: int, rng: np.random.Generator) -> Workload:
        """Draws a workload of ``n_requests`` requests; the generator is the only randomness."""

    def with_qps(self, qps: float) -> "WorkloadSource":
        """Returns the same source at another mean rate, in requests/s."""


@dataclass(frozen=True, eq=False)
class SyntheticWorkload:
    """Requests with lengths from a model and arrival times from a process.

    Lengths are drawn first: one seed gives the same requests under every arrival process and
    rate.

    Attributes:
        lengths: draws prompt and output tokens.
        arrivals: draws arrival times.
        qps: mean rate in requests/s, > 0.

    Raises:
        InputError: ``qps`` is not a finite number > 0.
    """

    lengths: LengthModel
    arrivals: ArrivalProcess
    qps: float

    def __post_init__(self) -> None:
        """Checks the rate."""
        object.__setattr__(self, "qps", positive("qps", self.qps))

    def sample(self, n_requests: int, rng: np.random.Generator) -> Workload:
        """Draws ``n_requests`` requests.

        Raises:
            InputError: ``n_requests`` is not an integer >= 1.
        """
        prompt_tokens, output_tokens = self.lengths.sample(n_requests, rng)
        arrived_at_s = self.arrivals.sample(n_requests, self.qps, rng)
        return Workload(arrived_at_s, prompt_tokens, output_tokens)

    def with_qps(self, qps: float) -> "SyntheticWorkload":
        """Returns the same source at another mean rate, in requests/s."""
        return SyntheticWorkload(self.lengths, self.arrivals, qps)


class TraceWorkload:
    """Random windows of consecutive requests of a recorded workload.

    A window keeps the trace's order of requests and hence its correlations over time. Its times
    are the trace's own, rebased to start at 0, or new ones from an arrival process. One factor
    rescales the whole trace, so a busy window stays busier than ``qps`` and a calm one calmer.

    Attributes:
        workload: the recorded requests.
        arrivals: the process that replaces the recorded times, or None to keep them.
        qps: mean rate in requests/s.
    """

    def __init__(
        self,
        workload: Workload,
        qps: float | None = None,
        arrivals: ArrivalProcess | None = None,
    ) -> None:
        """Builds the source.

        Args:
            workload: the recorded requests.
            qps: mean rate in requests/s; None keeps the trace's own.
            arrivals: draws new arrival times; None keeps the trace's own, rescaled.

        Raises:
            InputError: ``qps`` is not a finite number > 0, or it is needed and the trace has none.
        """
        if qps is None and arrivals is not None and not math.isfinite(workload.qps):
            raise InputError("this trace has no mean rate of its own (one instant); give qps")
        self.workload = workload
        self.arrivals = arrivals
        self.qps = workload.qps if qps is None else positive("qps", qps)
        self._timed = workload if qps is None or arrivals is not None else workload.with_qps(qps)

    def sample(self, n_requests: int, rng: np.random.Generator) -> Workload:
        """Draws a window of ``n_requests`` consecutive requests, each start equally likely.

        Raises:
            InputError: ``n_requests`` is not an integer >= 1, or exceeds the trace.
        """
        if count("n_requests", n_requests) > len(self.workload):
            raise InputError(
                f"n_requests={n_requests} is more than the trace's {len(self.workload)}; ask for "
                "fewer or use SyntheticWorkload with EmpiricalLengths"
            )
        start = int(rng.integers(len(self.workload) - n_requests + 1))
        window = self._timed.slice(start, start + n_requests)
        if self.arrivals is None:
            return window.rebased()
        return window.with_arrivals(self.arrivals.sample(n_requests, self.qps, rng))

    def with_qps(self, qps: float) -> "TraceWorkload":
        """Returns the same source at another mean rate, in requests/s."""
        return TraceWorkload(self.workload, qps, self.arrivals)


PROMPT_SOURCES: dict[str, Callable[..., PromptSource]] = {
    "agent_loop": AgentLoop,
    "multi_turn": MultiTurn,
    "prefix_repetition": PrefixRepetition,
    "shared_prefix": SharedPrefix,
}


def prompt_source(name: str, **options: Any) -> PromptSource:
    """Builds a source of requests that share parts of their prompts, by name.

    Args:
        name: ``agent_loop``, ``multi_turn``, ``prefix_repetition`` or ``shared_prefix``.
        **options: the source's own; all take ``qps`` and ``arrivals``.

    Raises:
        InputError: the name or an option is unknown, missing or out of range.
    """
    return build("workload source", PROMPT_SOURCES, name, options)
