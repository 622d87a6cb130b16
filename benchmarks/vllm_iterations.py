"""Makes the table that `calibrate` and `sim.fit` take of the step log of a vLLM server.

python benchmarks/vllm_iterations.py steps.jsonl steps.csv

The log is written by the plug-in in `vllm_step_log/`, which `pip install benchmarks/vllm_step_log`
puts into vLLM's environment; `LLMROUTE_STEP_LOG=steps.jsonl` has a server write it. Then
`python -m llmroute_gym.calibrate LOG steps=steps.csv`. The server must run with
`--no-async-scheduling`: else steps overlap, and their times are not theirs alone.
"""

import argparse
import csv
import json
from collections.abc import Iterable, Iterator
from pathlib import Path

from llmroute_gym.sim.fit import Measurements

WARM_UP = 4
"""Steps left out at the beginning: the first ones of a server take far longer."""


def iterations(lines: Iterable[str]) -> Iterator[tuple[float, ...]]:
    """Yields the values of `Measurements` for each step.

    A token that follows a first output is a decode; all else is prefill, after a preemption too.

    Args:
        lines: of the log.

    Raises:
        SystemExit: steps overlap.
    """
    prompts: dict[str, int] = {}
    step, began_s, steps = None, 0.0, 0
    for line in map(json.loads, lines):
        if "add" in line:
            prompts[line["add"]] = line["prompt"]
        elif "start" in line:
            if step is not None:
                raise SystemExit(
                    "a step begins before the one before has ended; run the server with "
                    "--no-async-scheduling"
                )
            step, began_s = line["start"], line["at"]
        elif "end" in line and step is not None:
            steps += 1
            if steps > WARM_UP:
                yield (*_sums(step, prompts), line["at"] - began_s)
            step = None


def _sums(step: list[tuple[str, int, int]], prompts: dict[str, int]) -> tuple[float, ...]:
    """Returns all values but the time."""
    decodes = [
        computed + 1 for name, tokens, computed in step if tokens == 1 and computed >= prompts[name]
    ]
    chunks = [
        (tokens, computed)
        for name, tokens, computed in step
        if tokens > 1 or computed < prompts[name]
    ]
    return (
        sum(tokens for tokens, _ in chunks),
        sum(tokens**2 for tokens, _ in chunks),
        sum(tokens * computed for tokens, computed in chunks),
        len(decodes),
        sum(decodes),
    )


def main() -> None:
    """Reads a log and writes a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("log", type=Path)
    parser.add_argument("table", type=Path)
    options = parser.parse_args()
    with (
        options.log.open(encoding="utf-8") as lines,
        options.table.open("w", encoding="utf-8", newline="") as file,
    ):
        writer = csv.writer(file)
        writer.writerow(Measurements._fields)
        writer.writerows(iterations(lines))


if __name__ == "__main__":
    main()
