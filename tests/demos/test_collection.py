"""Collecting demonstrations: what is recorded, and from which states."""

import hashlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from llmroute_gym.config import (
    ClusterConfig,
    CollectDemosConfig,
    WorkloadConfig,
)
from llmroute_gym.demos.collection import collect, planned_episodes, returns_to_go
from llmroute_gym.demos.file import Demos
from llmroute_gym.envs.observation import Columns
from llmroute_gym.ground.signals import Signal
from llmroute_gym.routers import make
from llmroute_gym.sim import Workload
from llmroute_gym.sim.build import build_cluster, build_source


def small(**settings: object) -> CollectDemosConfig:
    defaults: dict[str, object] = {
        "policies": ["round_robin", "lor"],
        "decisions": 60,
        "decisions_per_episode": 10,
        "requests_per_episode": 60,
        "loads": [0.6, 1.8],
        "burst": 8,
        "engine": "reference",
    }
    return CollectDemosConfig(**{**defaults, **settings}).validate()  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def demos() -> Demos:
    return collect(small())


def test_every_router_gives_the_decisions_asked_for(demos: Demos) -> None:
    assert [int((demos.router == name).sum()) for name in ("round_robin", "lor")] == [60, 60]
    assert set(demos.qps) == {0.6 * 2.5, 1.8 * 2.5}
    for name in demos.routers():
        own = demos.select(demos.router == name)
        places = set(zip(own.episode.tolist(), own.step.tolist(), strict=True))
        assert len(places) == len(own)


def test_round_robins_turn_stands_in_every_row_recorded(demos: Demos) -> None:
    own = demos.select(demos.router == "round_robin")
    turns = own.observation[:, :, Signal.ROUNDS_SINCE_CHOSEN]
    np.testing.assert_array_equal(turns.argmax(axis=1), own.action)


def test_lors_choice_follows_from_every_row_recorded(demos: Demos) -> None:
    own = demos.select(demos.router == "lor")
    router = make("lor")
    rows = Columns().unscaled(own.observation)
    again = [router.route(table, mask) for table, mask in zip(rows, own.mask, strict=True)]
    np.testing.assert_array_equal(again, own.action)


def test_disturbed_episodes_hold_uneven_states() -> None:
    def spread(disturbance: float) -> float:
        part = collect(
            small(
                policies=["lor"],
                loads=[1.8],
                requests_per_episode=120,
                decisions_per_episode=30,
                disturbance=disturbance,
                burst=20,
            )
        )
        load = part.observation[:, :, [Signal.WAITING, Signal.RUNNING]].sum(axis=2) * 32
        return float(np.ptp(load, axis=1).max())

    assert spread(0.5) > 1.5 * spread(0.0)


@pytest.mark.parametrize(
    ("settings", "n_replicas"),
    [
        ({"disturbance": 0.4}, 4),
        ({"disturbance": 0.9, "burst": 1000}, 4),  # nothing would be left of an episode
        ({"requests_per_episode": 500, "decisions": 300}, 256),
    ],
)
def test_only_settled_decisions_of_the_router_are_recorded(
    settings: dict[str, object], n_replicas: int
) -> None:
    cluster = ClusterConfig(replicas=n_replicas)
    plans = planned_episodes(small(cluster=cluster, **settings))
    assert any(plan.disturbed[: plan.recorded.max()].any() for plan in plans)
    for plan in plans:
        assert (np.diff(plan.recorded) > 0).all()
        for step in plan.recorded:
            assert not plan.disturbed[max(step - n_replicas, 0) : step + 1].any()


def test_few_replicas_are_disturbed_as_ever() -> None:
    """The plans that version 0.1.0 made, on which published numbers rest."""
    digest = hashlib.sha256()
    for plan in planned_episodes(CollectDemosConfig()):
        digest.update(plan.disturbed.tobytes() + plan.recorded.tobytes())
    assert digest.hexdigest()[:12] == "568a229fdbef"


@pytest.mark.slow
def test_too_many_replicas_for_an_episode_are_not_disturbed(
    caplog: pytest.LogCaptureFixture,
) -> None:
    settings = small(cluster=ClusterConfig(replicas=512), policies=["lor"], decisions=60)
    demos = collect(settings)
    assert demos.mask.shape == (60, 512)
    assert "too short to place some at random and let 512 replicas settle" in caplog.text
    caplog.clear()
    collect(small(decisions=20))
    assert not caplog.records


@pytest.mark.cli
def test_equal_seeds_give_equal_decisions_with_any_number_of_workers(demos: Demos) -> None:
    again = collect(small(workers=2))
    for name in ("observation", "action", "return_to_go", "step"):
        np.testing.assert_array_equal(getattr(again, name), getattr(demos, name))
    other = collect(small(seed=1))
    assert not np.array_equal(other.observation, demos.observation)


@pytest.mark.cli
def test_what_is_built_already_is_not_built_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rng = np.random.default_rng(0)
    trace = Workload(np.cumsum(rng.exponential(0.4, 90)), np.full(90, 400), np.full(90, 40))
    trace.to_csv(tmp_path / "t.csv")
    settings = small(
        workload=WorkloadConfig(
            source="trace", path=str(tmp_path / "t.csv"), arrivals={"process": "trace"}
        ),
        decisions=30,
    )
    expected = collect(settings)
    cluster, source = build_cluster(settings.cluster), build_source(settings.workload, settings.qps)
    (tmp_path / "t.csv").unlink()
    monkeypatch.setattr("llmroute_gym.demos.collection.build_cluster", None)
    for workers in (1, 2):
        demos = collect(replace(settings, workers=workers), cluster, source)
        for name in ("observation", "mask", "action", "return_to_go", "qps"):
            np.testing.assert_array_equal(getattr(demos, name), getattr(expected, name))


def test_a_router_decides_the_same_whoever_is_recorded_beside_it(demos: Demos) -> None:
    alone = collect(small(policies=["lor"]))
    both = demos.select(demos.router == "lor")
    np.testing.assert_array_equal(alone.observation, both.observation)


def test_loads_are_multiples_of_a_traces_own_rate(tmp_path: Path) -> None:
    Workload(np.arange(90) / 4, np.full(90, 400), np.full(90, 40)).to_csv(tmp_path / "t.csv")
    own = WorkloadConfig(
        source="trace", path=str(tmp_path / "t.csv"), arrivals={"process": "trace"}, own_rate=True
    )
    assert set(collect(small(workload=own, decisions=20)).qps) == {0.6 * 4.0, 1.8 * 4.0}


def test_returns_are_discounted_sums() -> None:
    rewards = np.array([1.0, -2.0, 4.0])
    np.testing.assert_allclose(returns_to_go(rewards, 0.5), [1.0, 0.0, 4.0])
    np.testing.assert_allclose(returns_to_go(rewards, 0.0), rewards)


def test_the_return_of_a_last_decision_is_its_reward() -> None:
    whole = collect(small(decisions_per_episode=60, disturbance=0.0, policies=["lor"]))
    last = whole.select(whole.step == 59)
    assert len(last) > 0
    np.testing.assert_array_equal(last.return_to_go, last.reward)
