"""An episode as coloured text: a header and one line per replica."""

from itertools import groupby
from operator import itemgetter

import numpy as np
import numpy.typing as npt

from llmroute_gym.envs.view.snapshot import Scales, Snapshot, short
from llmroute_gym.ground.signals import Signal

WIDTH = 100
LINES = 16
"""Replicas that get a line; the rest is summed up in one."""
IN_FIRST = 5
"""Figures in the first of the two lines."""
BAR, GAUGE, STRIP = 28, 8, 18  # columns
HEIGHTS = "▁▂▃▄▅▆▇█"
BLUE, ORANGE, RED, GREEN, GREY, BOLD = "38;5;32", "38;5;214", "38;5;166", "38;5;36", "90", "1"


def text_view(snapshot: Snapshot, scales: Scales) -> str:
    """Returns lines of at most `WIDTH` columns, with ANSI colours; readable without them too.

    Args:
        snapshot: what to show.
        scales: ends of the bars.
    """
    order = np.arange(snapshot.n_replicas)
    if snapshot.n_replicas > LINES:
        order = np.argsort(-snapshot.in_system, kind="stable")
    shown, rest = order[:LINES], order[LINES:]
    figures = [f"{name} {value.replace(' ', '')}" for name, value in snapshot.figures()]
    lines = [
        _paint(snapshot.title[:WIDTH], BOLD),
        "  ".join(figures[:IN_FIRST])[:WIDTH],
        "  ".join(figures[IN_FIRST:])[:WIDTH],
        _paint(_columns(scales), GREY),
        *(_line(snapshot, scales, int(replica)) for replica in shown),
    ]
    if len(rest):
        lines.append(_paint(_summary(snapshot, rest), GREY))
    return "\n".join(lines)


def _columns(scales: Scales) -> str:
    requests = f"requests, 0 to {scales.requests:.0f}"
    strip = f"E2E, 0 to {scales.latency_s:g} s"
    return (
        f"{'replica':<11} {requests:<{BAR}}  run wait {'KV cache':<{GAUGE + 5}} "
        f"{strip:<{STRIP}} {'E2E':>5} {'TTFT':>5} P95"
    )


def _line(snapshot: Snapshot, scales: Scales, replica: int) -> str:
    chosen = replica == snapshot.last_replica
    running = float(snapshot.column(Signal.RUNNING)[replica])
    waiting = float(snapshot.column(Signal.WAITING)[replica])
    usage = min(max(float(snapshot.column(Signal.KV_USAGE)[replica]), 0.0), 1.0)
    name = f"{'>' if chosen else ' '}{replica:>3}"
    filled = round(usage * GAUGE)
    cells = [
        _paint(name, BOLD) if chosen else name,
        _paint(f"{snapshot.status(replica):<9}", GREY),
        _bar(running, waiting, scales.requests),
        f"{running:>4.0f} {waiting:>4.0f}",
        _paint("█" * filled, GREEN) + _paint("░" * (GAUGE - filled), GREY) + f" {usage:>4.0%}",
        _strip(snapshot, scales, replica),
        f"{short(snapshot.e2e_p95_s(replica)):>5} {short(snapshot.ttft_p95_s(replica)):>5}",
    ]
    return " ".join(cells)


def _bar(running: float, waiting: float, end: float) -> str:
    both = min(int(np.ceil((running + waiting) / end * BAR)), BAR)
    tail = min(int(np.ceil(waiting / end * BAR)), both)
    head = both - tail
    return _paint("█" * head, BLUE) + _paint("▒" * tail, ORANGE) + " " * (BAR - both)


def _strip(snapshot: Snapshot, scales: Scales, replica: int) -> str:
    latencies_s = snapshot.latencies_s(replica)[-STRIP:]
    heights = np.nan_to_num(latencies_s / scales.latency_s, nan=0.0, posinf=1.0)
    levels = np.clip(heights * len(HEIGHTS), 0, len(HEIGHTS) - 1).astype(int)
    late = latencies_s > snapshot.latency_threshold_s
    marks = zip(late.tolist(), (HEIGHTS[level] for level in levels), strict=True)
    painted = [
        _paint("".join(mark for _, mark in run), RED if is_late else BLUE)
        for is_late, run in groupby(marks, key=itemgetter(0))
    ]
    return " " * (STRIP - len(levels)) + "".join(painted)


def _summary(snapshot: Snapshot, rest: npt.NDArray[np.intp]) -> str:
    running = snapshot.column(Signal.RUNNING)[rest].sum()
    waiting = snapshot.column(Signal.WAITING)[rest].sum()
    return (
        f"and {len(rest)} more replicas with fewer requests: {running:.0f} running, "
        f"{waiting:.0f} waiting"
    )


def _paint(text: str, code: str) -> str:
    return f"\x1b[{code}m{text}\x1b[0m" if text else ""
