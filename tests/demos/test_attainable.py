"""How well a policy could imitate a rule from the rows alone."""

import pytest

from llmroute_gym.config import CollectDemosConfig
from llmroute_gym.demos.attainable import attainable_accuracy, imitation
from llmroute_gym.demos.collection import collect
from llmroute_gym.demos.file import Demos


@pytest.fixture(scope="module")
def recorded() -> Demos:
    return collect(
        CollectDemosConfig(
            policies=["lor", "round_robin", "random"],
            decisions=200,
            decisions_per_episode=30,
            requests_per_episode=40,
            disturbance=0.0,
            engine="reference",
        )
    )


def only(demos: Demos, name: str) -> Demos:
    return demos.select(demos.router == name)


def test_rules_without_memory_or_chance_are_wholly_attainable(recorded: Demos) -> None:
    for name in ("lor", "round_robin"):
        assert attainable_accuracy(only(recorded, name), ordered=True)[name] == (1.0, 1.0)


def test_chance_is_attainable_by_chance(recorded: Demos) -> None:
    known = attainable_accuracy(only(recorded, "random"), ordered=True)["random"].known
    assert known == pytest.approx(0.25, abs=0.1)


def test_ties_by_index_are_chance_for_a_policy_without_order(recorded: Demos) -> None:
    own = only(recorded, "lor")
    load = own.observation[:, :, 0] + own.observation[:, :, 1]
    tied = (load == load.min(axis=1, keepdims=True)).sum(axis=1)
    known = attainable_accuracy(own, ordered=False)["lor"].known
    assert known == pytest.approx((1 / tied).mean(), abs=0.1)
    assert attainable_accuracy(only(recorded, "round_robin"), ordered=False)["round_robin"] == (
        1,
        1,
    )


def test_choices_that_the_rule_might_have_made(recorded: Demos) -> None:
    own = only(recorded, "lor")
    load = own.observation[:, :, 0] + own.observation[:, :, 1]
    assert imitation(own, own.action, ordered=True)["lor"].consistent == 1
    # Any of the least loaded will do for a policy that does not know the order.
    last = load.shape[1] - 1 - load[:, ::-1].argmin(axis=1)
    assert imitation(own, last, ordered=False)["lor"].consistent == 1
    assert imitation(own, last, ordered=True)["lor"].consistent < 1
    all_tied = (load.min(axis=1) == load.max(axis=1)).mean()
    assert imitation(own, load.argmax(axis=1), ordered=False)["lor"].consistent == all_tied < 0.5


def test_a_mixture_is_less_attainable_where_the_rows_do_not_tell(recorded: Demos) -> None:
    both = recorded.select(recorded.router != "random")
    for attainable in attainable_accuracy(both, ordered=True).values():
        assert attainable.mixed < attainable.known == 1.0
