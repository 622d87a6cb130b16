"""What a log says of requests, in the form that is simulated."""

from pathlib import Path

import numpy as np
import pytest

from llmroute_gym.compare.calibration.recorded import Recorded
from llmroute_gym.errors import InputError
from llmroute_gym.sim import Replica
from llmroute_gym.sim.request_log import LoggedRequest
from tests.compare.calibration.logs import FORMULA, REPLICA, log_of, write


def logged(arrived_at_s: float, backend: str = "a", outcome: str = "ok") -> LoggedRequest:
    return LoggedRequest(
        *(arrived_at_s, backend, 100, 20, None, arrived_at_s + 0.5, arrived_at_s + 2, outcome)
    )


def test_requests_are_in_order_of_arrival_with_their_times(tmp_path: Path) -> None:
    written = sorted(log_of(tmp_path / "log.csv"), key=lambda one: one.arrived_at_s)
    recorded = Recorded.read(tmp_path / "log.csv")
    assert recorded.backends == ("a", "b")
    assert [recorded.backends[index] for index in recorded.backend] == [
        one.backend for one in written
    ]
    assert recorded.workload.arrived_at_s[0] == 0
    np.testing.assert_allclose(
        recorded.e2e_s, [one.ended_at_s - one.arrived_at_s for one in written], atol=2e-6
    )
    assert recorded.workload.prompt_tokens.tolist() == [one.prompt_tokens for one in written]
    assert recorded.first_part(0.7).sum() == 280
    assert recorded.first_part(0.7)[:280].all()


def test_what_broke_off_is_simulated_as_far_as_it_came_and_not_compared(tmp_path: Path) -> None:
    requests = [logged(float(index)) for index in range(60)]
    requests[3] = requests[3]._replace(outcome="cut", output_tokens=7)
    requests[4] = requests[4]._replace(outcome="left", output_tokens=0, first_token_at_s=None)
    requests[5] = requests[5]._replace(outcome="rejected", backend="", output_tokens=0)
    requests[6] = requests[6]._replace(first_token_at_s=None)
    write(tmp_path / "log.csv", requests)
    recorded = Recorded.read(tmp_path / "log.csv")
    assert len(recorded.workload) == 58
    assert recorded.workload.output_tokens[3] == 7
    assert np.isnan(recorded.e2e_s).tolist() == [index == 3 for index in range(58)]
    assert np.isnan(recorded.ttft_s).sum() == 1
    assert recorded.ttft_s[0] == pytest.approx(0.5, abs=2e-6)


def test_the_latest_requests_are_kept(tmp_path: Path) -> None:
    write(tmp_path / "log.csv", [logged(float(index)) for index in range(99, -1, -1)])
    recorded = Recorded.read(tmp_path / "log.csv", limit=60)
    assert recorded.workload.arrived_at_s.tolist() == list(range(60))


def test_backends_are_chosen(tmp_path: Path) -> None:
    log = tmp_path / "log.csv"
    write(log, [logged(float(index), "ab"[index % 2]) for index in range(120)])
    recorded = Recorded.read(log, ["b"])
    assert (recorded.backends, len(recorded.workload)) == (("b",), 60)
    with pytest.raises(InputError, match="unknown backend of the log: 'c'; available: a, b"):
        Recorded.read(log, ["c"])


def test_few_requests_are_refused(tmp_path: Path) -> None:
    write(tmp_path / "log.csv", [logged(float(index)) for index in range(49)])
    with pytest.raises(InputError, match="has 49 requests that were served, expected at least 50"):
        Recorded.read(tmp_path / "log.csv")


def test_limits_that_the_servers_cannot_have_are_refused(tmp_path: Path) -> None:
    log_of(tmp_path / "log.csv")
    recorded = Recorded.read(tmp_path / "log.csv")
    recorded.check_fits(REPLICA)
    with pytest.raises(InputError, match=r"these limits do not allow: .* need .* KV blocks"):
        recorded.check_fits(Replica(FORMULA, scheduler="vllm_v1", num_blocks=20))
