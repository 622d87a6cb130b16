"""What an explanation shows of recorded decisions: responses, terms, duels."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from explain_decisions import (
    Decision,
    changed,
    duel,
    most_more,
    recorded,
    response,
    typical_row,
    without_terms,
)
from explain_pictures import PROMPTS, Duel, Line, Panel
from frontier_cases import CASES, INTERNLM, LLAMA, SHORT

from llmroute_gym.ground.arrays import FloatArray
from llmroute_gym.ground.signals import Signal
from llmroute_gym.routers.estimated_latency import EstimatedLatency

FLEETS = ("mixed", "equal")
LOADS = (50, 70, 85)
TYPICAL = 120
"""Rows that a response is the median over, half of them of mixed fleets."""
POINTS = 41
PROMPT_RANGE = np.geomspace(50, 6000, POINTS)
"""Prompt tokens in the pictures."""
DUELS = ((2.0, 0.5), (2.0, 1.0), (1.0, 0.5))
"""Speeds of the fast and the slow replica."""
OUTPUTS = (10, 30, 100, 300, 1000)
"""Ticks of predicted output tokens."""
VARIED = {
    Signal.KV_USAGE: "KV blocks in use (share)",
    Signal.CONTEXT_TOKENS: "Context (tokens)",
    Signal.UNCACHED_TOKENS: "Pending prefill (tokens)",
    Signal.OLDEST_WAITING_S: "Oldest waiting (s)",
    Signal.TTFT_S: "Average time to first token (s)",
    Signal.WAITING: "Waiting requests",
}


class Recordings(NamedTuple):
    """Decisions of a rule on mixed and on equal fleets."""

    internlm: Mapping[str, list[Decision]]
    """By fleet, of the memory-bound profile."""
    every: Mapping[str, list[Decision]]
    """Of both profiles."""


def recordings(rule: EstimatedLatency, traces: str, loads: Sequence[int] = LOADS) -> Recordings:
    """Records a run of each fleet, load and profile."""
    cases = {case.name: case for case in CASES}
    found: dict[str, dict[str, list[Decision]]] = {INTERNLM: {}, LLAMA: {}}
    for profile, fleets in found.items():
        for fleet in FLEETS:
            named = [cases[f"{fleet} {load}% ({SHORT[profile]})"] for load in loads]
            fleets[fleet] = [one for case in named for one in recorded(case, rule, traces)]
    every = {fleet: found[INTERNLM][fleet] + found[LLAMA][fleet] for fleet in FLEETS}
    return Recordings(found[INTERNLM], every)


def shares(
    rule: EstimatedLatency, decisions: Mapping[str, list[Decision]]
) -> dict[str, dict[str, float]]:
    """Returns how many decisions change without each term, by fleet."""
    return {
        title: {fleet: changed(rule, less, decisions[fleet]) for fleet in FLEETS}
        for title, less in without_terms(rule).items()
    }


def panels(rule: EstimatedLatency, decisions: Mapping[str, list[Decision]]) -> list[Panel]:
    """Returns how the score goes with each signal, all else as it typically is."""
    typical = _typical(decisions)
    rows = np.concatenate([one.rows for fleet in FLEETS for one in decisions[fleet]])
    usual = {Signal.SPEED: 1.0}
    short, middle, long = (
        float(f"{one:.1g}") for one in np.percentile(rows[:, Signal.PROMPT_TOKENS], [10, 50, 90])
    )
    by_prompt = {f"prompt of {one:g}": {Signal.PROMPT_TOKENS: one} for one in (short, middle, long)}
    by_speed = {f"speed {one:g}": {Signal.SPEED: one} for one in (2.0, 1.0, 0.5)}

    def panel(
        title: str,
        label: str,
        vary: Signal,
        values: FloatArray,
        each: Mapping[str, Mapping[Signal, float]],
        ticks: Sequence[float] = (),
    ) -> Panel:
        at = {vary: float(np.median(rows[:, vary]))} if vary not in usual else {}
        lines = []
        for name, also in each.items():
            found = response(rule, typical, {**at, **usual}, vary, values, also)
            low, median, high = np.percentile(found, [10, 50, 90], axis=0)
            lines.append(Line(name, values, median, low, high))
        return Panel(title, label, lines, ticks)

    def up_to(signal: Signal) -> FloatArray:
        return np.linspace(0.0, float(np.percentile(rows[:, signal], 99.5)), POINTS)

    speeds = np.geomspace(0.4, 2.5, POINTS)
    prompts = PROMPT_RANGE
    counts = float(np.median(rows[:, Signal.IN_FLIGHT]))
    pending = float(np.percentile(rows[:, Signal.UNCACHED_TOKENS], 95))
    slow_first = float(np.percentile(rows[:, Signal.TTFT_S], 90))
    others: dict[str, Mapping[Signal, float]] = {
        "speed 2": {Signal.SPEED: 2.0},
        "speed 0.5": {Signal.SPEED: 0.5},
        "twice in flight": {Signal.IN_FLIGHT: 2 * counts},
        f"{pending:.0f} tokens pending": {Signal.UNCACHED_TOKENS: pending},
        "KV 95% full": {Signal.KV_USAGE: 0.95},
        f"TTFT of {slow_first:.1f} s": {Signal.TTFT_S: slow_first},
    }
    found = [
        panel(
            "In flight", "Requests in flight", Signal.IN_FLIGHT, up_to(Signal.IN_FLIGHT), by_speed
        ),
        panel("Speed", "Speed", Signal.SPEED, speeds, by_prompt, (0.5, 1, 2)),
    ]
    for signal, label in VARIED.items():
        title = label.partition(" (")[0]
        found.append(panel(title, label, signal, up_to(signal), by_prompt))
    cached = np.linspace(0.0, 1.0, POINTS)
    found.append(
        panel("Cached share", "Share of the prompt", Signal.CACHED_PREFIX, cached, by_prompt)
    )
    busy = {Signal.IN_FLIGHT: counts}
    for title, vary, label in (
        ("Prompt length", Signal.PROMPT_TOKENS, "Prompt tokens"),
        ("Predicted output", Signal.PREDICTED_OUTPUT_TOKENS, "Predicted output tokens"),
    ):
        each = {name: {**busy, **also} for name, also in others.items()}
        whole = vary is Signal.PROMPT_TOKENS
        values = prompts if whole else np.geomspace(10, 1000, POINTS)
        found.append(panel(title, label, vary, values, each, PROMPTS if whole else OUTPUTS))
    return found


def duels(
    rules: Mapping[str, EstimatedLatency], decisions: Sequence[Decision], prompts: FloatArray
) -> list[Duel]:
    """Returns who wins between a fast busy replica and a slow one that has nothing to do.

    All signals of both are as they were recorded with so many requests in flight.
    """
    found = []
    for fast, slow in DUELS:
        own = np.concatenate([one.rows[one.rows[:, Signal.SPEED] == fast] for one in decisions])
        in_flight = np.arange(0.0, np.percentile(own[:, Signal.IN_FLIGHT], 99) + 1)
        rows = np.stack([typical_row(decisions, fast, count) for count in in_flight])
        idle = typical_row(decisions, slow, 0.0)
        leads = {title: duel(rule, rows, idle, prompts) for title, rule in rules.items()}
        found.append(Duel(f"Speed {fast:g} against idle {slow:g}", in_flight, prompts, leads))
    return found


def limits(
    rules: Mapping[str, EstimatedLatency], decisions: Sequence[Decision]
) -> list[tuple[str, str, list[str]]]:
    """Returns up to how many requests more the fast one is chosen: pair, rule, by prompt."""
    lines = []
    for one in duels(rules, decisions, np.array(PROMPTS, dtype=float)):
        for title, lead in one.leads.items():
            most = [most_more(row, one.in_flight) for row in lead]
            lines.append((one.title, title, [_count(value, one.in_flight[-1]) for value in most]))
    return lines


def _count(value: float, largest: float) -> str:
    if value < 0:
        return "never"
    return f"over {largest:.0f}" if np.isinf(value) else f"{value:.0f}"


def _typical(decisions: Mapping[str, list[Decision]]) -> FloatArray:
    """Returns rows of replicas of speed 1, drawn from both fleets alike."""
    rng, drawn = np.random.default_rng(0), []
    for fleet in FLEETS:
        rows = np.concatenate([one.rows for one in decisions[fleet]])
        rows = rows[rows[:, Signal.SPEED] == 1.0]
        drawn.append(rows[rng.choice(len(rows), TYPICAL // len(FLEETS), replace=False)])
    return np.concatenate(drawn)
