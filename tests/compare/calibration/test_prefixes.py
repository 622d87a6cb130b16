"""Prompts that begin alike where a log says that tokens were found."""

from pathlib import Path

import numpy as np
import pytest

from llmroute_gym.compare.calibration.fitting import Fitted, simulated
from llmroute_gym.compare.calibration.prefixes import guessed_content
from llmroute_gym.compare.calibration.recorded import Recorded
from llmroute_gym.routers.simulation import simulate
from llmroute_gym.sim import Cluster, Replica
from llmroute_gym.sim.arrivals import PoissonArrivals
from llmroute_gym.sim.request_log import LoggedRequest
from llmroute_gym.sim.sources import prompt_source
from tests.compare.calibration.logs import BEGAN_S, FORMULA, write


def logged(
    arrived_at_s: float, prompt: int, cached: int | None, backend: str = "a", session: int = 1
) -> LoggedRequest:
    ended_at_s = arrived_at_s + 2.0
    sizes = (prompt, 30, cached)
    return LoggedRequest(arrived_at_s, backend, *sizes, None, ended_at_s, "ok", session)


def test_a_prompt_begins_like_the_latest_that_is_long_enough() -> None:
    requests = [
        logged(0.0, 100, None),
        logged(1.0, 60, 0),
        logged(5.0, 200, 80, session=2),  # no prompt but the first has 80; all have ended
        logged(6.0, 300, 224, session=2),  # the third has 200 and has not ended
        logged(9.0, 300, 224, session=2),  # now it has
        logged(9.0, 50, 48, backend="b"),  # nobody was there
    ]
    content, explained = guessed_content(requests)
    assert explained == (80 + 224) / (80 + 224 + 224 + 48)
    first, _, third, fourth, fifth, last = content.rows()
    assert first == [(0, 100)]
    assert third == [(1, 60), (-2, 20), (2, 120)]
    assert fourth == [(3, 300)]
    assert fifth == [(3, 224), (4, 76)]
    assert last == [(5, 50)]


@pytest.mark.parametrize("source", ["multi_turn", "shared_prefix"])
def test_a_simulated_log_is_simulated_alike(tmp_path: Path, source: str) -> None:
    arrivals = PoissonArrivals()
    workload = prompt_source(source, qps=4.0, arrivals=arrivals).sample(
        200, np.random.default_rng(0)
    )
    replica = Replica(FORMULA, scheduler="vllm_v1", num_blocks=20_000)
    outcome = simulate(workload, Cluster((replica,)), "lor")
    cached_share = outcome.cached_tokens.sum() / outcome.prompt_tokens.sum()
    assert cached_share > 0.1
    session = [None] * 200 if workload.session is None else workload.session.tolist()
    columns = (
        *(outcome.arrived_at_s, outcome.prompt_tokens, outcome.output_tokens),
        *(outcome.cached_tokens, outcome.first_token_at_s, outcome.finished_at_s),
    )
    write(
        tmp_path / "log.csv",
        [
            LoggedRequest(
                *(BEGAN_S + arrived_at_s, "a", prompt, output, cached),
                *(BEGAN_S + first_s, BEGAN_S + ended_s, "ok", number),
            )
            for arrived_at_s, prompt, output, cached, first_s, ended_s, number in zip(
                *(column.tolist() for column in columns), session, strict=True
            )
        ],
    )
    recorded = Recorded.read(tmp_path / "log.csv")
    assert recorded.cached_share == pytest.approx(cached_share)
    assert recorded.explained_share > 0.95
    times = simulated(recorded, replica, Fitted(FORMULA, 0.0))
    error = np.abs(times.e2e_s / recorded.e2e_s - 1)
    assert np.median(error) < (0.01 if source == "multi_turn" else 0.1)
