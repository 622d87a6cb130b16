"""What the benchmark of served rules makes of a log."""

import numpy as np
import pytest
from served_order import BACKENDS, PROFILE, Found, compared, summary

from llmroute_gym import Cluster, Workload, simulate
from llmroute_gym.sim.request_log import LoggedRequest

CLUSTER = Cluster.from_profile(PROFILE, len(BACKENDS), speed=8.0)


def log_of(slower: float, outcome: str = "ok") -> list[LoggedRequest]:
    """Returns the log of engines that take so many times what they are simulated to, last first."""
    rng = np.random.default_rng(0)
    workload = Workload(
        np.sort(rng.uniform(0, 3, 80)), rng.integers(100, 900, 80), rng.integers(2, 90, 80)
    )
    routes = rng.integers(len(BACKENDS), size=80)
    e2e_s = slower * simulate(workload, CLUSTER, routes).e2e_s
    columns = (workload.arrived_at_s, routes, workload.prompt_tokens, workload.output_tokens, e2e_s)
    return [
        LoggedRequest(
            9e8 + at_s, BACKENDS[route], prompt, output, None, None, 9e8 + at_s + took_s, outcome
        )
        for at_s, route, prompt, output, took_s in reversed(list(zip(*columns, strict=True)))
    ]


@pytest.mark.parametrize(("slower", "met"), [(1.0, True), (1.04, True), (1.06, False)])
def test_a_log_differs_as_much_as_its_engines(slower: float, met: bool) -> None:
    found = compared(log_of(slower), "round_robin", CLUSTER)
    assert found.error == pytest.approx(slower - 1, abs=1e-4)
    assert sum(found.shares) == pytest.approx(1)
    assert found.own_routes_s != found.same_routes_s
    assert ("**missed**" not in summary({"round_robin": found})) is met


def test_a_request_that_was_not_served_spoils_the_log() -> None:
    with pytest.raises(SystemExit, match="80 of 80 requests were not served"):
        compared(log_of(1.0, "cut"), "lor", CLUSTER)


def test_the_table_names_the_rules() -> None:
    text = summary({"lor": Found(2.0, 1.98, 2.1, [0.25] * 4)})
    assert "| `lor` | 2.000 | 1.980 | +1.0% | 2.100 | 25% 25% 25% 25% |" in text
