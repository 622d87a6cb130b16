"""The rule that times batches, against times worked out by hand."""

import warnings

import numpy as np
import pytest

from llmroute_gym import Cluster, InputError, Replica, Workload, simulate
from llmroute_gym.ground.arrays import FloatArray
from llmroute_gym.routers import make
from llmroute_gym.routers.latency_predictor import LatencyPredictor
from llmroute_gym.sim import FormulaBatchTime
from llmroute_gym.sim.engines import EngineName
from tests.routers.hand import ask, fresh, rows

MODEL = FormulaBatchTime(c0=0.01, c1=0, n0=0, c2=1e-6, c3=0, c4=1e-4)
"""10 ms, 0.1 ms per token, 1 us per token of decoded context."""


def replica(**settings: object) -> Replica:
    defaults: dict[str, object] = {"scheduler": "prefill_first", "max_batched_tokens": 4096}
    return Replica(MODEL, **{**defaults, **settings})  # type: ignore[arg-type]


def met(*replicas: Replica, **options: float) -> LatencyPredictor:
    rule = LatencyPredictor(**options)
    rule.meet(Cluster(replicas))
    fresh(rule, len(replicas))
    return rule


def predictions(rule: LatencyPredictor, table: FloatArray) -> FloatArray:
    ask(rule, table)
    return rule.memory[: len(table)]


def test_an_idle_replica_prefills_and_decodes_it_alone() -> None:
    """512 tokens: 10 + 51.2 ms. 256 decodes of context 640: 10 + 0.1 + 0.64 ms each.

    Between powers of two the times are interpolated, which is exact where they are linear.
    """
    table = rows(2, prompt_tokens=512)
    alone = 0.0612 + 256 * 0.01074
    both = predictions(met(replica(), replica(speed=2)), table)
    assert both == pytest.approx([alone, alone])  # the rows say that both have speed 1
    table = rows(2, prompt_tokens=512, speed=[1, 2])
    assert predictions(met(replica(), replica()), table) == pytest.approx([alone, alone / 2])


def test_what_is_there_is_prefilled_first_and_decodes_along() -> None:
    """3 in flight: one of 488 tokens without first token, two of 1000 in all past it.

    Prefill of 1000 tokens takes 110 ms. Four decode at a mean context of 500 + 50: 12.6 ms each,
    of which the request takes 100.
    """
    table = rows(
        1,
        prompt_tokens=512,
        in_flight=3,
        pending_prompt_tokens=488,
        context_tokens=1000,
        predicted_output_tokens=100,
    )
    assert predictions(met(replica()), table) == pytest.approx([0.11 + 100 * 0.0126])


def test_what_does_not_fit_into_the_batch_waits() -> None:
    """A batch of 2 for 4 requests: twice the decodes, of two."""
    table = rows(
        2,
        prompt_tokens=512,
        in_flight=3,
        context_tokens=1488,
        predicted_output_tokens=100,
    )
    narrow = replica(max_batch=2)
    small = replica(num_blocks=2 * 550 // 10, block_size=10)  # holds two of 550 tokens
    expected = 0.0612 + 2 * 100 * (0.01 + 0.0002 + 0.0011)
    assert predictions(met(narrow, small), table) == pytest.approx([expected] * 2)


def test_a_long_prompt_takes_several_batches() -> None:
    """4096 tokens in batches of 1024: 4 * 10 + 409.6 ms; then one token of context 4096.5."""
    table = rows(1, prompt_tokens=4096, predicted_output_tokens=1)
    rule = met(replica(scheduler="vllm_v1", max_batched_tokens=1024, num_blocks=9000))
    assert predictions(rule, table) == pytest.approx([0.4496 + 0.0101 + 4096.5e-6])


def test_it_takes_the_least_prediction_and_the_first_on_a_tie() -> None:
    rule = met(*[replica()] * 3)
    assert ask(rule, rows(3, prompt_tokens=9, in_flight=[1, 0, 0])) == 1
    assert ask(rule, rows(3, prompt_tokens=9, in_flight=[1, 0, 0]), without=[1]) == 2
    assert ask(rule, rows(3, prompt_tokens=9, pending_prompt_tokens=[9, 0, 0])) == 1
    assert ask(rule, rows(3, prompt_tokens=9, speed=[1, 1, 2], in_flight=[0, 0, 5])) == 2


def test_longer_outputs_than_it_takes_change_its_mind() -> None:
    """Replica 0 has to prefill, replica 1 decodes many: what weighs more depends on the output."""
    table = rows(
        2,
        prompt_tokens=100,
        in_flight=[1, 40],
        pending_prompt_tokens=[4000, 0],
        context_tokens=[0, 40000],
    )
    assert ask(met(replica(), replica(), output_tokens=8), table) == 1
    assert ask(met(replica(), replica(), output_tokens=2000), table) == 0


def test_it_makes_use_of_speeds(engine: EngineName) -> None:
    rng = np.random.default_rng(0)
    n = 150
    requests = Workload(
        np.cumsum(rng.exponential(0.25, n)), rng.integers(1, 900, n), rng.integers(1, 200, n)
    )
    mixed = Cluster.from_profile("a100-internlm-20b").with_speeds([2, 1, 1, 0.5])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        own = simulate(requests, mixed, "latency_predictor", engine=engine).e2e_s.mean()
    assert own < 0.9 * simulate(requests, mixed, "lor").e2e_s.mean()


def test_it_must_have_met_the_replicas() -> None:
    rule = make("latency_predictor")
    with pytest.raises(InputError, match="does not know the batch times of these 3 replicas"):
        rule.reset(3, 5, np.random.default_rng(0))
    rule.meet(Cluster((replica(),)))
    with pytest.raises(InputError, match="of these 2 replicas"):
        rule.reset(2, 5, np.random.default_rng(0))
