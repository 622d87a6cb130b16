"""Whether a real vLLM server makes the steps that `vllm_v1` makes, with memory to spare and short.

python benchmarks/real_vllm.py [--requests N] [--rates R R] [--write]

See `vllm_server.py` for what must be installed. The measured times of the steps are given to the
scheduler, so how fast the machine is does not matter.
"""

import argparse
import asyncio
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from measuring import load_average, origin, table, write_section
from vllm_load import Answered, random_load, send_all
from vllm_server import replica, serving, why_absent
from vllm_steps import Added, Replay, Started, as_at_the_api, read_steps, replay

from llmroute_gym.ground.arrays import FloatArray

BLOCKS = (256, 96)
"""Of KV memory: to spare, and short."""
BAR, LATENCY_BAR = 0.98, 0.01
"""Share of equal steps at least, relative error of percentiles of latency at the most."""
PERCENTILES = (50, 90, 99)


class Found(NamedTuple):
    """One server's steps and the simulator's."""

    blocks: int
    rate_rps: float
    requests: int
    preemptions: int
    replayed: Replay
    """By when requests came to the engine."""
    at_the_api: Replay
    """By when they came to the API."""
    errors: FloatArray
    """Relative errors of the percentiles of E2E latency, as clients saw it."""

    @property
    def shares(self) -> tuple[float, float, float]:
        """Shares of equal steps, of those with equal memory too, and of equal ones at the API."""
        one, other = self.replayed, self.at_the_api
        return one.same / one.steps, one.same_memory / one.steps, other.same / other.steps

    @property
    def met(self) -> bool:
        """Whether both bars are."""
        return self.shares[0] >= BAR and bool((np.abs(self.errors) <= LATENCY_BAR).all())


def measure(blocks: int, rate_rps: float, requests: int, seed: int, folder: Path) -> Found:
    """Has a server serve random requests, and replays its steps.

    Args:
        blocks: of its KV memory.
        rate_rps: arrivals per second.
        requests: how many.
        seed: of the requests.
        folder: an empty one.
    """
    load = random_load(requests, rate_rps, seed)
    with serving(folder, blocks) as server:
        # The first steps of a server take far longer; they are part of the log nevertheless.
        warm = [one._replace(number=requests + one.number) for one in random_load(4, 4.0, seed + 1)]
        asyncio.run(send_all(server.port, warm))
        answers = asyncio.run(send_all(server.port, load))
        events = read_steps(server.step_log)
    one = replica(blocks)
    by_engine = replay(events, one)
    arrived_at_s = {
        event.request: event.arrived_at_s for event in events if isinstance(event, Added)
    }
    return Found(
        blocks,
        rate_rps,
        requests,
        sum(event.preempted for event in events if isinstance(event, Started)),
        by_engine,
        replay(as_at_the_api(events), one),
        latency_errors(answers, arrived_at_s, by_engine.finished_at_s),
    )


def latency_errors(
    answers: Mapping[int, Answered],
    arrived_at_s: Mapping[int, float],
    finished_at_s: Mapping[int, float],
) -> FloatArray:
    """Returns the relative errors of the percentiles of E2E latency; NaN if not all finished.

    Args:
        answers: what clients saw, by request.
        arrived_at_s: at the API.
        finished_at_s: in the simulator.
    """
    seen = [one.ended_s - one.sent_s for one in answers.values()]
    simulated = [finished_at_s.get(one, np.nan) - arrived_at_s[one] for one in answers]
    return np.percentile(simulated, PERCENTILES) / np.percentile(seen, PERCENTILES) - 1


def section(all_found: Sequence[Found], load: float) -> str:
    """Returns the README's section.

    Args:
        all_found: one row each.
        load: average before the start.
    """
    columns = [
        *("server", "requests", "steps", "preemptions real / simulated", "same steps"),
        *("and memory", "same steps by arrivals at the API", "E2E P50, P90, P99", "met"),
    ]
    rows = [
        [
            f"{found.blocks} blocks, {found.rate_rps:g} requests/s",
            found.requests,
            found.replayed.steps,
            f"{found.preemptions} / {found.replayed.preemptions}",
            *(f"{share:.2%}" for share in found.shares),
            ", ".join(f"{error:+.2%}" for error in found.errors),
            "yes" if found.met else "**no**",
        ]
        for found in all_found
    ]
    rates = " ".join(f"{found.rate_rps:g}" for found in all_found)
    return "\n\n".join(
        [
            "## Real vLLM",
            origin(f"python benchmarks/real_vllm.py --rates {rates}", load),
            "A vLLM 0.32 server without a GPU (8 layers, hidden 768, random weights; at most 512 "
            "tokens a step, 64 requests, blocks of 32 tokens, a prefix cache, "
            "`--no-async-scheduling`), Poisson arrivals, log-normal prompts of 200 and outputs of "
            "30 tokens in the mean. Its steps are logged, and the "
            "reference scheduler `vllm_v1` is told when requests came to the engine and when steps "
            "began and ended. A step is the same if it has the same requests in the same order "
            "with the same tokens after as many computed ones; memory is the number of free "
            "blocks. The errors are of the simulated E2E latency, from the API to the end of a "
            "request's last step, against what clients saw. Bars: "
            f"{BAR:.0%} of the steps, {LATENCY_BAR:.0%}.",
            table(columns, rows),
        ]
    )


def main() -> None:
    """Measures, prints, and writes where asked to."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--requests", type=int, default=300)
    parser.add_argument(
        "--rates",
        type=float,
        nargs=2,
        default=(3.0, 6.0),
        help=f"requests per second with {BLOCKS[0]} and with {BLOCKS[1]} blocks of KV memory",
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--write", action="store_true", help="put it into benchmarks/README.md")
    options = parser.parse_args()
    if reason := why_absent():
        raise SystemExit(reason)
    load, all_found = load_average(), []
    for blocks, rate_rps in zip(BLOCKS, options.rates, strict=True):
        with tempfile.TemporaryDirectory() as folder:
            found = measure(blocks, rate_rps, options.requests, options.seed, Path(folder))
        print(f"{blocks} blocks: {found.shares[0]:.2%} same steps", flush=True)
        all_found.append(found)
    text = section(all_found, load)
    print(text)
    if options.write:
        write_section("real-vllm", text)


if __name__ == "__main__":
    main()
