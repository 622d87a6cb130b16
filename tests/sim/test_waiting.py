"""Requests that wait for the end of others: closed forms, order, wrong input."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from llmroute_gym.config import ObservationConfig
from llmroute_gym.errors import InputError
from llmroute_gym.routers.simulation import simulate
from llmroute_gym.sim import Cluster, FormulaBatchTime, Replica, Workload
from llmroute_gym.sim.engines import ENGINES, EngineName

ONE_S = FormulaBatchTime(c0=1.0, c1=0.0, n0=0.0, c2=0.0, c3=0.0)
"""Every batch takes one second."""


class ChatSessions:
    """A toy source: users who send the next message some time after they have read the last."""

    qps = 1.0

    def __init__(self, users: int, turns: int) -> None:
        self.users, self.turns = users, turns

    def sample(self, n_requests: int, rng: np.random.Generator) -> Workload:
        n = self.users * self.turns
        first = np.sort(rng.exponential(1.0, self.users))
        after = np.arange(n) - self.users
        return Workload(
            np.concatenate([first, first[-1] + np.arange(1, n - self.users + 1)]),
            rng.integers(20, 800, n),
            rng.integers(1, 60, n),
            after=np.maximum(after, -1),
            gap_s=rng.exponential(2.0, n) + 1e-3,
        )


def test_a_conversation_takes_the_sum_of_its_turns(engine: EngineName) -> None:
    talk = Workload(
        [0.0, 0.5, 0.6], [10, 10, 10], [3, 1, 2], after=[-1, 0, 1], gap_s=[0, 4.0, 0.25]
    )
    outcome = simulate(talk, Cluster((Replica(ONE_S),) * 2), "round_robin", engine=engine)
    assert outcome.arrived_at_s.tolist() == [0.0, 7.0, 8.25]
    assert outcome.finished_at_s.tolist() == [3.0, 8.0, 10.25]
    assert outcome.e2e_s.tolist() == [3.0, 1.0, 2.0]


def test_sessions_agree_between_the_engines_at_every_decision() -> None:
    workload = ChatSessions(users=6, turns=8).sample(48, np.random.default_rng(3))
    cluster = Cluster.from_profile("a100-internlm-20b", replicas=3)
    observation = ObservationConfig(signal_interval_s=0.7)
    reference, compiled = (
        ENGINES[name](workload, cluster, observation=observation)
        for name in ("reference", "compiled")
    )
    seen = []
    while not reference.done:
        assert compiled.request == reference.request
        assert compiled.now_s == pytest.approx(reference.now_s, rel=1e-6)
        np.testing.assert_allclose(compiled.rows(), reference.rows(), rtol=1e-5, atol=1e-7)
        seen.append(reference.request)
        for run in (reference, compiled):
            run.place(seen[-1] % 3)
    assert sorted(seen) == list(range(48))
    assert seen != sorted(seen)  # who answers sooner is asked sooner
    outcome = reference.outcome()
    waits = workload.after >= 0
    expected = outcome.finished_at_s[workload.after[waits]] + workload.gap_s[waits]
    np.testing.assert_allclose(outcome.arrived_at_s[waits], expected)
    np.testing.assert_allclose(compiled.outcome().finished_at_s, outcome.finished_at_s, rtol=1e-6)


def test_slower_replicas_are_asked_less_in_a_closed_loop(engine: EngineName) -> None:
    workload = ChatSessions(users=4, turns=10).sample(40, np.random.default_rng(0))
    fast = Cluster.from_profile("a100-internlm-20b", replicas=1)
    slow = fast.with_speeds([0.25])
    spans = [
        simulate(workload, cluster, "lor", engine=engine).arrived_at_s.max()
        for cluster in (fast, slow)
    ]
    assert spans[1] > 2 * spans[0]


def test_what_waits_for_a_rejected_request_arrives_after_the_rejection(engine: EngineName) -> None:
    small = Cluster((Replica(ONE_S, num_blocks=4, oversize="reject"),))
    talk = Workload([1.0, 1.5], [1000, 10], [1, 1], after=[-1, 0], gap_s=[0.0, 2.0])
    outcome = simulate(talk, small, "lor", engine=engine)
    assert outcome.rejected.tolist() == [True, False]
    assert outcome.arrived_at_s.tolist() == [1.0, 3.0]


def test_order_and_windows_keep_who_waits_for_whom() -> None:
    talk = Workload(
        [5.0, 0.0, 1.0, 2.0], [4, 1, 2, 3], [1] * 4, after=[3, -1, 1, 2], gap_s=[4.0, 0.0, 2.0, 3.0]
    )
    assert talk.prompt_tokens.tolist() == [1, 2, 3, 4]
    assert talk.after is not None
    assert talk.after.tolist() == [-1, 0, 1, 2]
    assert talk.gap_s is not None
    assert talk.gap_s.tolist() == [0.0, 2.0, 3.0, 4.0]
    window = talk.slice(2)
    assert window.after is not None
    assert window.after.tolist() == [-1, 0]
    assert talk.with_qps(7.0).after is not None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"after": [-1, 1]}, r"after\[1\] must be -1 or a request that comes earlier, got 1"),
        ({"after": [1, -1]}, r"after\[0\] must be -1 or a request that comes earlier, got 1"),
        ({"after": [-1, 7]}, r"after\[1\] must be -1 or a request that comes earlier, got 7"),
        ({"after": [-1]}, "after has 1 entries"),
        ({"gap_s": [0.0]}, "gap_s has 1 entries for 2 requests"),
        ({"gap_s": [0.0, 0.0]}, r"gap_s\[1\] must be finite and > 0 seconds, got 0"),
        ({"gap_s": None}, "after and gap_s belong together"),
    ],
)
def test_wrong_dependencies_get_one_sentence(change: dict[str, Any], message: str) -> None:
    good = Workload([0.0, 1.0], [1, 1], [1, 1], after=[-1, 0], gap_s=[0.0, 1.0])
    with pytest.raises(InputError, match=message):
        replace(good, **change)
