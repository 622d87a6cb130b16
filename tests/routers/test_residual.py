"""A rule with a learned correction: nothing learned is the rule, and chance is the softmax."""

from typing import Any

import numpy as np
import pytest

from llmroute_gym import Cluster, Workload, simulate
from llmroute_gym.config import ClusterConfig, ObservationConfig, WorkloadConfig
from llmroute_gym.errors import InputError
from llmroute_gym.ground.signals import N_SIGNALS, Signal
from llmroute_gym.routers.policy_network import Layer, Network
from llmroute_gym.routers.residual import ResidualRule, RuleScores, scored_rule
from llmroute_gym.sim import Replica
from llmroute_gym.sim.build import build_cluster, build_source
from llmroute_gym.sim.engines import EngineName
from llmroute_gym.sim.profile_time import load_profile
from tests.routers.hand import fresh, rows

RULE = (
    "estimated_latency:pace_per_request=0.05,prefill=2,kv_price=16,speed_power=1.5,in_flight=1.2,"
    "ttft=1.1,ttft_by_prompt=-0.8,slowness=0.4,remembered_s=100"
)
COLUMNS = [Signal.WAITING, Signal.RUNNING, Signal.SPEED, Signal.PROMPT_TOKENS]


def network(last: float) -> Network:
    """Returns random layers, with a last one of random numbers times `last`."""
    rng = np.random.default_rng(0)

    def layer(n_in: int, n_out: int, size: float = 1.0) -> Layer:
        weights = size * rng.normal(size=(n_out, n_in)) / np.sqrt(n_in)
        return Layer(weights.astype(np.float32), np.zeros(n_out, dtype=np.float32))

    n = len(COLUMNS)
    return Network(
        COLUMNS,
        np.zeros(n, dtype=np.float32),
        np.ones(n, dtype=np.float32),
        [layer(2 * n, 16), layer(16, 16)],
        layer(16, 16),
        layer(32, 16),
        layer(16 + n, 1, last),
    )


def corrected(last: float, **options: Any) -> ResidualRule:
    rule = scored_rule(RULE)
    given: dict[str, Any] = {"inverse_temperature": 6.0, **options}
    router = ResidualRule(rule=rule, network=network(last), **given)
    router.observation = rule.observation
    return router


def requests(qps: float, n: int = 3000) -> Workload:
    return build_source(WorkloadConfig(), qps).sample(n, np.random.default_rng(3))


@pytest.mark.parametrize("speeds", [[1.0] * 4, [2.0, 1.0, 1.0, 0.5], [1.0]])
def test_a_network_of_zeros_is_the_rule(speeds: list[float], engine: EngineName) -> None:
    own = build_cluster(ClusterConfig(replicas=len(speeds), speeds=speeds))
    small = Replica(load_profile("a100-internlm-20b").batch_time, num_blocks=60, watermark_blocks=0)
    cluster = Cluster((*own, small))
    workload = requests(len(speeds), 3000 if engine == "compiled" else 400)
    expected = simulate(workload, cluster, scored_rule(RULE), engine=engine, seed=0)
    zeros = simulate(workload, cluster, corrected(0.0), engine=engine, seed=0)
    assert zeros.replica.tolist() == expected.replica.tolist()
    learned = simulate(workload, cluster, corrected(3.0), engine=engine, seed=0)
    assert len(speeds) == 1 or learned.replica.tolist() != expected.replica.tolist()


def test_both_engines_correct_alike() -> None:
    cluster = build_cluster(ClusterConfig(replicas=4))
    workload = requests(3.0, 400)
    first, second = (
        simulate(workload, cluster, corrected(3.0), engine=engine, seed=0).replica.tolist()
        for engine in ("compiled", "reference")
    )
    assert first == second


def test_chance_is_the_softmax_of_the_scores() -> None:
    table = rows(3, in_flight=[3, 1, 2], prompt_tokens=500, running=[3, 1, 2])
    mask = np.array([True, True, False])
    scores = RuleScores(scored_rule(RULE), 3, ObservationConfig()).scores(table, mask)
    assert scores[1] == 0
    assert scores[2] == np.inf
    expected = np.exp(-1.5 * scores) / np.exp(-1.5 * scores).sum()
    router = fresh(corrected(0.0, inverse_temperature=1.5, sampled=True), 3, 4000)
    counts = np.zeros(3)
    for _ in range(4000):
        router.memory[:] = router.empty_memory(3, 0)
        counts[router.route(table, mask)] += 1
    assert counts[2] == 0
    np.testing.assert_allclose(counts / 4000, expected, atol=0.03)


def test_scores_that_are_looked_at_remember_what_the_rule_would() -> None:
    rule = fresh(scored_rule(RULE), 3, 300)
    looking, rng = RuleScores(scored_rule(RULE), 3, ObservationConfig()), np.random.default_rng(0)
    in_flight = np.zeros(3)
    for step in range(300):
        in_flight = np.maximum(in_flight - rng.integers(0, 2, 3) * [1, 1, 0], 0)
        table = rows(3, in_flight=in_flight, prompt_tokens=rng.integers(1, 3000), now_s=step / 3)
        mask = rng.random(3) < 0.8
        mask[rng.integers(3)] = True
        scores = looking.scores(table, mask)
        chosen = rule.route(table, mask)
        assert scores.argmin() == chosen
        assert table.shape == (3, N_SIGNALS)
        looking.chosen(chosen)
        in_flight[chosen] += 1


def test_only_a_rule_with_scores_can_be_corrected() -> None:
    with pytest.raises(InputError, match=r"must have scores .*, got lor; take one of est"):
        scored_rule("lor")
