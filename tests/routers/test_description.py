"""Where rules are from and what they see, and the page that tells it."""

from pathlib import Path

import pytest

from llmroute_gym import routers
from llmroute_gym.ground.signals import PUBLISHED, Signal

PAGE = Path(__file__).resolve().parents[2] / "docs" / "routers.md"
DESCRIPTIONS = {one.name: one for one in routers.describe()}


def test_the_page_is_what_the_code_says() -> None:
    assert PAGE.read_text(encoding="utf-8") == routers.table(), (
        'python -c "from llmroute_gym import routers; print(routers.table(), end=str())" '
        "> docs/routers.md"
    )


def test_every_router_is_described() -> None:
    assert tuple(DESCRIPTIONS) == routers.available()
    assert all(one.system and one.version and one.read for one in DESCRIPTIONS.values())


def test_signals_are_read_from_the_decision_and_its_blocks() -> None:
    waiting, memory, prefix = Signal.WAITING, Signal.KV_USAGE, Signal.CACHED_PREFIX
    assert DESCRIPTIONS["llmd_default"].signals == (waiting, memory, prefix)
    assert DESCRIPTIONS["round_robin"].signals == ()
    behind = set(DESCRIPTIONS["smg_least_load"].signals)
    assert set(DESCRIPTIONS["smg_veto"].signals) == {Signal.IN_FLIGHT, *behind}


@pytest.mark.parametrize(
    ("name", "sees"),
    [
        ("lor", "own"),
        ("lor_pending", "engines, always fresh"),
        ("random", ""),
        ("least_tokens", "own"),
        ("jsq", "engines, always fresh"),
        ("vllm_dp", "poll [0.1 s]"),
        ("least_kv", "poll [0 s]"),
        ("smg_least_load", "own, poll [10 s]"),
        ("llmd_default", "poll [0.05 s], tree or events"),
        ("llmd_token", "own, tree or events"),
        ("aibrix_prefix", "own, tree"),
        ("dynamo_kv", "own, events"),
    ],
)
def test_what_a_rule_sees_is_said_in_words(name: str, sees: str) -> None:
    assert DESCRIPTIONS[name].sees == sees


@pytest.mark.parametrize("name", routers.available())
def test_a_rule_that_counts_by_itself_reads_nothing_that_only_engines_know(name: str) -> None:
    observation = routers.make(name).observation
    read = set(DESCRIPTIONS[name].signals)
    if observation is not None and observation.information == "router":
        assert not read.intersection({Signal.KV_USAGE, Signal.HIT_RATE, Signal.BATCH_TIME_S})
    if observation is not None and observation.information == "metrics" and read:
        assert read.intersection(PUBLISHED)
    if observation is None or observation.information != "oracle":
        assert Signal.REMAINING_TOKENS not in read
