"""The environment of drawn replicas: a rule's scores, rows of nobody, episodes of any length."""

import numpy as np
import pytest

from llmroute_gym import Cluster, Workload, simulate
from llmroute_gym.config import ObservationConfig, WorkloadConfig
from llmroute_gym.envs.drawn_env import FORBIDDEN, NOBODY, DrawnEnv
from llmroute_gym.envs.observation import Columns
from llmroute_gym.errors import InputError
from llmroute_gym.routers.residual import scored_rule
from llmroute_gym.sb3 import Replayable
from llmroute_gym.sim import Replica
from llmroute_gym.sim.build import build_source
from llmroute_gym.sim.engines import EngineName
from llmroute_gym.sim.profile_time import load_profile
from llmroute_gym.sim.sources import WorkloadSource

RULE = "estimated_latency:pace_per_request=0.05,prefill=2,in_flight=1.2,slowness=0.5"
METRICS = ObservationConfig(information="metrics", signal_interval_s=1.0)


class Mixed:
    """Replicas of speeds drawn anew, and a small one that some requests do not fit on."""

    def __init__(self, qps: float = 3.0, replicas: int = 3) -> None:
        self.source: WorkloadSource = build_source(WorkloadConfig(), qps)
        small = Replica(
            load_profile("a100-internlm-20b").batch_time, num_blocks=60, watermark_blocks=0
        )
        self.cluster = Cluster((*Cluster.from_profile("a100-internlm-20b", replicas), small))

    def draw(self, n_requests: int, rng: np.random.Generator) -> tuple[Workload, Cluster]:
        order = rng.permutation(len(self.cluster)).tolist()
        return self.source.sample(n_requests, rng), Cluster(tuple(self.cluster[i] for i in order))


def made(n_rows: int = 4, engine: str = "compiled", **options: float) -> DrawnEnv:
    return DrawnEnv(
        Mixed(),
        scored_rule(RULE),
        n_rows,
        requests_per_episode=int(options.pop("requests", 300)),
        observation=METRICS,
        engine=engine,
        **options,
    )


def best(observation: np.ndarray) -> int:
    scores = observation[:, -1]
    return int(np.where(scores > NOBODY, scores, np.inf).argmin())


def test_whoever_takes_the_lowest_score_decides_as_the_rule(engine: EngineName) -> None:
    env = made(engine=engine, requests=2000 if engine == "compiled" else 200)
    observation, _ = env.reset(seed=1)
    chosen, over = [], False
    while not over:
        assert env.observation_space.contains(observation)
        chosen.append(best(observation))
        observation, _, over, _, _ = env.step(chosen[-1])
    run = env.run
    expected = simulate(run.workload, run.cluster, scored_rule(RULE), observation=METRICS, seed=0)
    assert chosen == expected.replica.tolist()


def test_rows_beyond_the_replicas_are_nobodys() -> None:
    wide, narrow = made(7), made(4)
    seen = [env.reset(seed=3)[0] for env in (wide, narrow)]
    forbidden = 0
    for _ in range(100):
        np.testing.assert_array_equal(seen[0][:4], seen[1])
        assert (seen[0][4:, -1] == NOBODY).all()
        assert not seen[0][4:, :-1].any()
        masks = wide.action_masks()
        assert masks.shape == (7,)
        np.testing.assert_array_equal(masks[:4], narrow.action_masks())
        np.testing.assert_array_equal(seen[1][:, -1] == FORBIDDEN, masks[:4] == 0)
        forbidden += int((masks[:4] == 0).sum())
        action = best(seen[0])
        seen = [env.step(action)[0] for env in (wide, narrow)]
    assert forbidden > 0
    rows = narrow.rows()
    np.testing.assert_array_equal(seen[1][:, :-1], Columns(METRICS.columns).scaled(rows))
    with pytest.raises(InputError, match=r"must be an integer from 0 to 3, got 5"):
        wide.step(5)


def test_episodes_last_as_long_as_chance_will() -> None:
    env = made(spread=0.5, requests=100)
    lengths, orders = set(), set()
    for seed in range(20):
        env.reset(seed=seed)
        lengths.add(len(env.run.workload))
        orders.add(tuple(one.num_blocks for one in env.cluster))
    assert min(lengths) >= 50
    assert max(lengths) <= 150
    assert len(lengths) > 10
    assert len(orders) == 4


def test_an_episode_can_be_repeated() -> None:
    first, second = Replayable(made(spread=0.5)), Replayable(made(spread=0.5))
    observation, _ = first.reset(seed=5)
    for _ in range(50):
        observation, *_ = first.step(best(observation))
    second.reset(seed=0)
    np.testing.assert_array_equal(second.set_state(first.get_state()), observation)


def test_there_is_a_row_for_each_replica() -> None:
    with pytest.raises(InputError, match=r"n_rows must be at least 4, the number of replicas, got"):
        made(3)
