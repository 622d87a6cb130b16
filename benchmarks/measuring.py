"""What the benchmarks share: the data, the clock, the machine, and the sections of the README."""

import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from datetime import date
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[1]
DATA = Path(os.environ.get("LLMROUTE_DATA") or ROOT.parent / "shared" / "data")
README = ROOT / "benchmarks" / "README.md"
BUSY = 0.5
"""Load average from which other programs may disturb a measurement."""


class Target(NamedTuple):
    """Millions per second; nothing more than the bar may be asked for."""

    bar: float
    reach: float | None


def machine() -> str:
    """Returns processor, cores and Python version in a few words."""
    try:
        facts = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        names = [line.partition(":")[2].strip() for line in facts if line.startswith("model name")]
    except OSError:
        names = []
    processor = names[0] if names else platform.machine()
    return f"{processor}, {os.cpu_count()} cores, Python {platform.python_version()}"


def load_average() -> float:
    """Returns the load average of the last minute, and warns where it is no quiet machine's."""
    load = os.getloadavg()[0]
    if load > BUSY:
        print(
            f"warning: load average {load:.2f} before the start (quiet: at most {BUSY}); other "
            "programs are running, so these numbers are too low",
            file=sys.stderr,
        )
    return load


def origin(command: str, load: float | None = None) -> str:
    """Returns the line that says how, when and where the numbers were measured."""
    facts = [str(date.today()), machine()]
    if load is not None:
        facts.append(f"load average before the start {load:.2f}")
    return f"`{command}`, {', '.join(facts)}."


def seconds(function: Callable[[], object]) -> float:
    """Returns how long one call takes."""
    start_s = time.perf_counter()
    function()
    return time.perf_counter() - start_s


def median_seconds(function: Callable[[], object], repeats: int) -> float:
    """Returns the median duration of a call."""
    return statistics.median(seconds(function) for _ in range(repeats))


def millions(per_second: float) -> str:
    """Returns a rate in millions."""
    return f"{per_second / 1e6:.3g}"


def verdict(per_second: float, target: Target | None) -> list[str]:
    """Returns a table's cells for bar, reach and which of them is met."""
    if target is None:
        return ["", "", ""]
    speed = per_second / 1e6
    met = "bar" if speed >= target.bar else "**missed**"
    if target.reach is None:
        return [f"{target.bar:g}", "", met]
    met = "reach" if speed >= target.reach else met
    return [f"{target.bar:g}", f"{target.reach:g}", met]


def table(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Returns a Markdown table; all columns but the first are aligned to the right."""
    lines = [columns, ["---", *["---:"] * (len(columns) - 1)], *rows]
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines)


def write_section(name: str, text: str) -> None:
    """Puts a section between its markers in benchmarks/README.md, or at the end if it is new."""
    begin, end = f"<!-- {name}: begin -->", f"<!-- {name}: end -->"
    section = f"{begin}\n{text.strip()}\n\n{end}"
    old = README.read_text(encoding="utf-8") if README.exists() else "# Benchmarks\n"
    before, found, rest = old.partition(begin)
    after = rest.partition(end)[2]
    new = before + section + after if found else f"{old.rstrip()}\n\n{section}\n"
    README.write_text(new, encoding="utf-8")
