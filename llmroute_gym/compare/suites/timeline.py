"""What two routers did with the same requests in the same minute, decision by decision."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from llmroute_gym.compare.suites.result import ScenarioResult
from llmroute_gym.config import ObservationConfig
from llmroute_gym.errors import InputError, checked_name
from llmroute_gym.ground.arrays import FloatArray, IntArray
from llmroute_gym.ground.checks import positive
from llmroute_gym.ground.signals import N_SIGNALS, Signal
from llmroute_gym.sim import Cluster, Outcome, Workload
from llmroute_gym.sim.engines import ENGINES
from llmroute_gym.sim.run import Run

CACHED_OVER_S = 10.0
"""The cached share is that of the requests that came in so many seconds."""


@dataclass(frozen=True, eq=False)
class Course:
    """What one router did in a window of time, n decisions on N replicas.

    The signals are those of the engines at each decision, whatever the router was told of them.

    Attributes:
        router: its name.
        at_s: (n,), time of each decision, seconds.
        replica: (n,), which replica got the request, -1 where it was rejected.
        waiting: (n, N), requests in each queue.
        running: (n, N), requests in each batch or between two of them.
        kv_usage: (n, N), share of the KV blocks in use, 0 to 1.
        cached_share: (n, N), share of prompt tokens found in the prefix cache, of the requests sent
            there in the last `CACHED_OVER_S` seconds; NaN where there are none.
    """

    router: str
    at_s: FloatArray
    replica: IntArray
    waiting: FloatArray
    running: FloatArray
    kv_usage: FloatArray
    cached_share: FloatArray

    def latest(self, times_s: FloatArray) -> IntArray:
        """Returns the last decision by each time, 0 where there is none yet; shape of the times."""
        return np.maximum(np.searchsorted(self.at_s, times_s, side="right") - 1, 0)


@dataclass(frozen=True, eq=False)
class Timeline:
    """The same window of one run of a scenario under several routers.

    Attributes:
        scenario: its name.
        title: for people.
        start_s: of the window, seconds since the first arrival.
        duration_s: of the window, seconds.
        courses: one per router; one that decided nothing in the window is left out.
    """

    scenario: str
    title: str
    start_s: float
    duration_s: float
    courses: tuple[Course, ...]


def timeline(
    scenario: str,
    title: str,
    outcomes: Mapping[str, Outcome],
    workload: Workload,
    cluster: Cluster,
    *,
    engine: str = "compiled",
    start_s: float | None = None,
    duration_s: float = 60.0,
) -> Timeline:
    """Takes the decisions of finished runs again and records what the engines were like at each.

    A run is a function of workload, cluster and decisions, so nothing of the routers is needed.

    Args:
        scenario: its name.
        title: for people.
        outcomes: router to what it made of the workload, two of them to be seen side by side.
        workload: the common requests.
        cluster: what they were routed to.
        engine: of the simulation.
        start_s: of the window, seconds since the first arrival; None puts it in the middle of the
            arrivals.
        duration_s: of the window, seconds, > 0.

    Raises:
        InputError: the window holds no decision of any router, or the engine is unknown.
    """
    positive("duration_s", duration_s)
    start = ENGINES[checked_name("engine", engine, ENGINES)]
    # A request that waits for another one arrives when its router has let that one finish.
    arrived_at_s = np.concatenate([outcome.arrived_at_s for outcome in outcomes.values()])
    first, last = float(arrived_at_s.min()), float(arrived_at_s.max())
    if start_s is None:
        start_s = max(0.0, (last - first - duration_s) / 2)
    window = first + start_s, first + start_s + duration_s
    courses = tuple(
        _course(name, outcome, start(workload, cluster, observation=ObservationConfig()), window)
        for name, outcome in outcomes.items()
    )
    courses = tuple(course for course in courses if len(course.at_s))
    if not courses:
        raise InputError(
            f"no request of {scenario} arrives between {start_s:g} and {start_s + duration_s:g} s; "
            f"the last arrives at {last - first:g} s, choose another start_s"
        )
    return Timeline(scenario, title, start_s, duration_s, courses)


def side_by_side(scenario: ScenarioResult) -> tuple[str, ...]:
    """Chooses whom to show of a scenario: the baseline and the best of the others.

    The best has the least mean end-to-end latency; upper bounds and unstable routers are left out.

    Returns:
        At most two routers.
    """
    means = {
        one.router: one.metrics["e2e_mean_s"].value
        for one in scenario.results
        if one.router not in scenario.upper_bounds
    }
    others = sorted(
        (router for router in means if router != scenario.baseline), key=means.__getitem__
    )
    return (scenario.baseline, *others)[:2] if scenario.baseline in means else tuple(others[:2])


def _course(name: str, outcome: Outcome, run: Run, window: tuple[float, float]) -> Course:
    """Takes the decisions again, before the eyes of one who sees the engines as they are."""
    at_s, requests, rows = [], [], []
    while not run.done and run.now_s <= window[1]:
        if run.now_s >= window[0]:
            at_s.append(run.now_s)
            requests.append(run.request)
            rows.append(run.rows().copy())
        replica = int(outcome.replica[run.request])
        run.place(replica if replica >= 0 else int(np.flatnonzero(run.mask())[0]))
    n_replicas = len(run.cluster)
    signals = np.array(rows).reshape(len(rows), n_replicas, N_SIGNALS)
    times = np.array(at_s, dtype=np.float64)
    return Course(
        router=name,
        at_s=times - window[0],
        replica=outcome.replica[requests] if requests else np.zeros(0, dtype=np.int64),
        waiting=signals[:, :, Signal.WAITING],
        running=signals[:, :, Signal.RUNNING],
        kv_usage=signals[:, :, Signal.KV_USAGE],
        cached_share=_cached_share(outcome, times, n_replicas),
    )


def _cached_share(outcome: Outcome, times_s: FloatArray, n_replicas: int) -> FloatArray:
    """Returns the cached share of what arrived shortly before each time, (n_times, n_replicas)."""
    shares = np.full((len(times_s), n_replicas), np.nan)
    for replica in range(n_replicas):
        sent = np.flatnonzero(outcome.replica == replica)
        sent = sent[np.argsort(outcome.arrived_at_s[sent], kind="stable")]
        arrived = outcome.arrived_at_s[sent]
        since = np.searchsorted(arrived, times_s - CACHED_OVER_S, side="right")
        until = np.searchsorted(arrived, times_s, side="right")
        cached, prompts = (
            np.concatenate([[0], np.cumsum(tokens[sent])])
            for tokens in (outcome.cached_tokens, outcome.prompt_tokens)
        )
        some = until > since
        shares[some, replica] = (cached[until] - cached[since])[some] / (
            prompts[until] - prompts[since]
        )[some]
    return shares
