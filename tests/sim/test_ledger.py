"""A router's books against sums over the requests themselves."""

import math
from dataclasses import dataclass

import numpy as np
import pytest

from llmroute_gym.errors import InputError
from llmroute_gym.ground.signals import FADED, RATE_TIME_S, Signal
from llmroute_gym.sim.ledger import TOLD, Ledger

N = 3


@dataclass
class Life:
    """A request as the test itself remembers it."""

    replica: int
    prompt: int
    uncached: int
    arrived_at_s: float
    sent_at_s: float
    silent: bool = True


def faded(values: list[tuple[float, float]], now_s: float) -> tuple[float, float]:
    """Returns weighted mean and rate of (value, time)."""
    weights = [math.exp((at_s - now_s) / RATE_TIME_S) for _, at_s in values]
    total = sum(weights)
    mean = sum(w * v for w, (v, _) in zip(weights, values, strict=True))
    return (mean / total if total > FADED else 0.0), total / RATE_TIME_S


@pytest.mark.parametrize("information", TOLD)
@pytest.mark.parametrize("seed", range(8))
def test_rows_are_sums_over_the_requests_in_flight(information: str, seed: int) -> None:
    rng = np.random.default_rng([seed, 5])
    ledger, now_s = Ledger(N, information, 0.0), 0.0
    lives: dict[int, Life] = {}
    waiting: dict[int, float] = {}
    arrivals: list[tuple[float, float]] = []
    latencies: list[tuple[float, float]] = []
    ttfts: list[list[tuple[float, float]]] = [[] for _ in range(N)]
    chosen_at, decisions = [-3, -2, -1], 0
    for step in range(400):
        now_s += float(rng.choice([0.0, rng.exponential(0.3)]))
        event = rng.random()
        if event < 0.4 or not lives:
            again = bool(waiting) and rng.random() < 0.5
            key = int(rng.choice(list(waiting))) if again else step
            replica, prompt = int(rng.integers(N)), int(rng.integers(1, 900))
            cached = int(rng.integers(prompt))
            ledger.placed(key, replica, prompt, cached, now_s)
            if key in waiting:
                arrived_at_s = waiting.pop(key)
            else:
                arrived_at_s = now_s
                arrivals.append((1.0, now_s))
            lives[key] = Life(replica, prompt, prompt - cached, arrived_at_s, now_s)
            chosen_at[replica], decisions = decisions, decisions + 1
        elif event < 0.45:
            ledger.rejected(now_s)
            arrivals.append((1.0, now_s))
            decisions += 1
        else:
            key = int(rng.choice(list(lives)))
            life = lives[key]
            if event < 0.65:
                ledger.first_token(key, now_s)
                if life.silent:
                    ttfts[life.replica].append((now_s - life.sent_at_s, now_s))
                life.silent = False
            elif event < 0.75:
                ledger.withdrawn(key)
                waiting[key] = lives.pop(key).arrived_at_s
            else:
                served = event < 0.95
                ledger.ended(key, now_s, served=served)
                if served:
                    latencies.append((now_s - life.arrived_at_s, now_s))
                del lives[key]
        rows = ledger.rows(now_s)
        for r in range(N):
            own = [life for life in lives.values() if life.replica == r]
            silent = [life for life in own if life.silent]
            row = rows[r]
            assert row[Signal.IN_FLIGHT] == ledger.in_flight[r] == len(own)
            assert row[Signal.UNCACHED_TOKENS] == sum(life.uncached for life in silent)
            assert row[Signal.UNCACHED_PAIRS] == sum(
                life.uncached * (life.prompt - life.uncached / 2) for life in silent
            )
            assert row[Signal.ROUNDS_SINCE_CHOSEN] == (decisions - chosen_at[r]) / N
            prompts = sum(life.prompt for life in silent)
            contexts = sum(life.prompt for life in own) - prompts
            oldest_s = min((life.sent_at_s for life in silent), default=now_s)
            work = [prompts, contexts, now_s - oldest_s]
            counted = information in ("router", "metrics")
            columns = Signal.PENDING_PROMPT_TOKENS, Signal.CONTEXT_TOKENS, Signal.OLDEST_WAITING_S
            assert row[list(columns)].tolist() == (work if counted else [0, 0, 0])
            mean = faded(ttfts[r], now_s)[0] if counted else 0.0
            assert row[Signal.TTFT_S] == pytest.approx(mean, abs=1e-12)
            queue = [len(silent), len(own) - len(silent)] if information == "router" else [0, 0]
            assert row[[Signal.WAITING, Signal.RUNNING]].tolist() == queue
        mean_s, rate = faded(latencies, now_s)
        assert rows[0, Signal.E2E_S] == pytest.approx(mean_s)
        assert rows[0, Signal.COMPLETION_RATE] == pytest.approx(rate / N)
        assert rows[0, Signal.ARRIVAL_RATE] == pytest.approx(faded(arrivals, now_s)[1] / N)
        assert ledger.previous_arrival_s == arrivals[-1][1]
    for key in [*lives, *waiting, 10**9]:
        ledger.ended(key, now_s, served=False)
        ledger.first_token(key, now_s)
    assert not ledger.in_flight.any()
    assert not ledger.rows(now_s)[:, list(TOLD["engine"][:6])].any()


def test_what_engines_tell_stands_until_they_tell_anew() -> None:
    ledger = Ledger(2, "metrics", 0.0)
    ledger.read(1, [3, 4, 0.5, 0.02, 0.25])
    ledger.placed(7, 1, 100, 0, 1.0)
    assert ledger.rows(2.0)[:, list(TOLD["metrics"])].tolist() == [[0] * 5, [3, 4, 0.5, 0.02, 0.25]]


def test_a_request_is_in_flight_once() -> None:
    ledger = Ledger(2, "router", 0.0)
    ledger.placed(7, 1, 100, 0, 1.0)
    with pytest.raises(InputError, match="request 7 is in flight at replica 1, got it placed at 0"):
        ledger.placed(7, 0, 100, 0, 1.0)
