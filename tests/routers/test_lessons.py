"""What a router may ask to be told: the cluster, the run, and what became of its decisions."""

import numpy as np

from llmroute_gym import Cluster, Replica, Workload, simulate
from llmroute_gym.config import ObservationConfig
from llmroute_gym.ground.arrays import BoolArray, FloatArray
from llmroute_gym.routers import Router
from llmroute_gym.routers.lessons import Lesson
from llmroute_gym.sim import FormulaBatchTime
from llmroute_gym.sim.engines import EngineName
from llmroute_gym.sim.run import Run

MODEL = FormulaBatchTime(0.01, 0, 0, 0, 0, 1e-4)
TWO = Cluster((Replica(MODEL), Replica(MODEL, speed=0.5)))


def workload(n: int = 60) -> Workload:
    rng = np.random.default_rng(0)
    arrived_at_s = np.cumsum(rng.exponential(0.05, n))
    return Workload(arrived_at_s, rng.integers(1, 300, n), rng.integers(1, 40, n))


class Pupil(Router):
    """Round robin that is taught before its decisions 10 and 40."""

    name = "pupil"

    def __init__(self) -> None:
        self.told: list[str] = []
        self.taught: list[Lesson] = []
        self.decided = 0

    def meet(self, cluster: Cluster) -> None:
        self.told.append(f"meet {len(cluster)}")

    def join(self, told: ObservationConfig, gateway: int) -> None:
        self.told.append(f"join as {gateway} of {told.gateways}")

    def reset(self, n_replicas: int, n_requests: int, rng: np.random.Generator) -> None:
        self.told.append("reset")

    def attend(self, run: Run) -> None:
        self.told.append(f"attend at decision {run.decision}")

    def lessons(self, n_requests: int) -> tuple[int, ...]:
        return 10, 40

    def learn(self, lesson: Lesson) -> None:
        self.told.append(f"learn before {self.decided}")
        self.taught.append(lesson)

    def route(self, rows: FloatArray, mask: BoolArray) -> int:
        self.decided += 1
        return self.decided % 2


def test_a_router_is_introduced_before_it_decides_and_taught_when_it_asks(
    engine: EngineName,
) -> None:
    pupil = Pupil()
    simulate(workload(), TWO, pupil, engine=engine)
    begun = ["meet 2", "join as 0 of 1", "reset", "attend at decision 0"]
    assert pupil.told == [*begun, "learn before 10", "learn before 40"]


def test_a_lesson_tells_of_what_has_ended_by_then_and_of_nothing_else(engine: EngineName) -> None:
    pupil, requests = Pupil(), workload()
    outcome = simulate(requests, TWO, pupil, engine=engine)
    for lesson, decision in zip(pupil.taught, (10, 40), strict=True):
        ended = np.flatnonzero(outcome.finished_at_s < requests.arrived_at_s[decision])
        assert 0 < len(ended) < decision
        np.testing.assert_array_equal(lesson.decisions, ended)
        np.testing.assert_allclose(lesson.ttft_s, outcome.ttft_s[ended], rtol=1e-9)
        np.testing.assert_allclose(lesson.tpot_s, outcome.tpot_s[ended], rtol=1e-9)


def test_a_lesson_counts_by_decisions_where_requests_wait_for_others(engine: EngineName) -> None:
    """Request 1 waits for request 0, so the second decision places request 2."""
    chain = Workload(
        [0.0, 0.1, 0.2, 90.0],
        [10, 20, 30, 40],
        [5, 5, 5, 5],
        after=[-1, 0, -1, -1],  # type: ignore[arg-type]
        gap_s=[1.0, 50.0, 1.0, 1.0],  # type: ignore[arg-type]
    )

    class Late(Pupil):
        def lessons(self, n_requests: int) -> tuple[int, ...]:
            return (3,)

    pupil = Late()
    outcome = simulate(chain, TWO, pupil, engine=engine)
    assert pupil.taught[0].decisions.tolist() == [0, 1, 2]
    np.testing.assert_allclose(pupil.taught[0].ttft_s, outcome.ttft_s[[0, 2, 1]], rtol=1e-9)
