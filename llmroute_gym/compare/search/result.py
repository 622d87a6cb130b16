"""What a search has found, as a router's file and as text."""

from typing import Any

import yaml

from llmroute_gym.compare.search.choice import Choice
from llmroute_gym.compare.search.space import Space
from llmroute_gym.compare.text import aligned
from llmroute_gym.config import SearchingConfig
from llmroute_gym.ground.metrics import METRICS
from llmroute_gym.ground.rules import TITLE, parsed_rule
from llmroute_gym.ground.version import __version__


def metric_title(settings: SearchingConfig) -> str:
    """Names what was searched by."""
    weights = settings.weights()
    if len(weights) == 1:
        (key,) = weights
        return METRICS[key].title if key in METRICS else key
    return "weighted tail" if settings.metric == "tail" else "weighted " + ", ".join(weights)


def router_text(space: Space, choice: Choice, settings: SearchingConfig) -> str:
    """Returns the router with its constants as every command takes it, in YAML."""
    name, options = parsed_rule(str(settings.router))
    options.pop(TITLE, None)
    router: dict[str, Any] = {"name": name, **options, **choice.constants}
    return (
        f"# Found by python -m llmroute_gym.search (llmroute-gym {__version__}, seed "
        f"{settings.seed}, {settings.budget} candidates):\n"
        f"# {metric_title(settings)} {_ratio(choice)} times that of {settings.router}.\n"
        + yaml.safe_dump(router, sort_keys=False)
    )


def result_text(space: Space, choice: Choice, settings: SearchingConfig, n_pools: int) -> str:
    """Lays the constants out as text, before and after, with what the change is worth."""
    start = space.start
    lines = [["constant", "from", "to", "before", "after"]]
    for name, one in space.ranges.items():
        numbers = (one.low, one.high, start[name], choice.constants[name])
        lines.append([name, *(f"{number:g}" for number in numbers)])
    table = aligned(lines)
    scenarios = f"{n_pools} scenario{'s' if n_pools > 1 else ''}"
    requests = settings.final_runs * settings.requests * n_pools
    if choice.constants == start:
        return f"{table}\nNo candidate did better than {settings.router} as it is ({scenarios})."
    return (
        f"{table}\n{metric_title(settings)}: {_ratio(choice)} times that of {settings.router} on "
        f"{requests:,} requests that nothing was chosen by ({scenarios}); "
        f"{choice.chosen_by:.3f} where it was chosen."
    )


def _ratio(choice: Choice) -> str:
    one = choice.proven
    return f"{one.value:.3f} ({one.low:.3f}..{one.high:.3f})"
