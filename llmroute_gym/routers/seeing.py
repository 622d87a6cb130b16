"""What a rule sees, said by its options."""

from dataclasses import dataclass
from typing import Any

from llmroute_gym.config import ObservationConfig
from llmroute_gym.errors import checked_name
from llmroute_gym.ground.checks import count
from llmroute_gym.routers.constants import constant
from llmroute_gym.routers.rule import Rule

BLOCK = 16
"""Tokens of a block of a router's own tree."""
VIEWS = ("tree", "events")


def poll(default: float) -> Any:
    """A field of a rule: seconds between two polls of the engines' metrics, 0 for always fresh."""
    return constant(default, 0.0, 3600.0, tuned=False)


@dataclass
class SeeingRule(Rule):
    """A rule that sees the router's own counts, and more where its options say so.

    With an option `poll_s` it sees the engines' metrics of that age. An option `view`, or an
    attribute, says what prefixes are looked up in, ``"tree"`` or ``"events"`` (if there is none).
    An option `tree_tokens`, or an attribute, says how many tokens of each replica a tree keeps
    (2^19 if there is none), the latest sent; it counts them in blocks of 16, and of replicas with
    other blocks keeps as many of those.

    Raises:
        InputError: a constant is out of its range, or no view has this name.
    """

    def __post_init__(self) -> None:
        """Checks the options and makes of them what the router is told."""
        super().__post_init__()
        polled = getattr(self, "poll_s", None)
        view = checked_name(f"view of {self.name}:", getattr(self, "view", "events"), VIEWS)
        kept = getattr(self, "tree_tokens", 2**19)
        self.observation = ObservationConfig(
            information="router" if polled is None else "metrics",
            signal_interval_s=polled or 0.0,
            prefix_view=view,
            tree_blocks=count(f"tree_tokens of {self.name}", kept, at_least=BLOCK) // BLOCK,
        )
