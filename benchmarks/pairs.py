"""Compares the speed of two checkouts, turn by turn on one machine.

    python benchmarks/pairs.py OLD NEW            # folders of two checkouts
    python benchmarks/pairs.py OLD NEW --rounds 3
    python benchmarks/pairs.py OLD NEW --write    # and report it in benchmarks/README.md

Each round starts a process in the one checkout and then in the other; a row's number is the median
over the rounds of old seconds / new seconds, so that 1 is as fast as before. Only public names are
used, which both checkouts have. Reads `../shared/data` as the other benchmarks do.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from time import perf_counter
from typing import Any

from measuring import DATA, load_average, origin, table, write_section

BAR = 0.97
REPEATS = 5
ENV_STEPS = 160_000
"""Steps of all environments together in one timed stretch."""


def best(function: Callable[[], object], repeats: int = REPEATS) -> float:
    """Returns the shortest duration of a call, the one that was disturbed least."""
    found = []
    for _ in range(repeats):
        start_s = perf_counter()
        function()
        found.append(perf_counter() - start_s)
    return min(found)


def engine_rows() -> Iterator[tuple[str, float]]:
    """Yields whole `simulate` calls."""
    from llmroute_gym import Cluster, load_trace, simulate

    trace = load_trace(DATA / "traces" / "azure_conv_2023.csv", max_prompt_tokens=4000, qps=12.0)
    for profile in ("a100-llama-2-7b", "a100-internlm-20b"):
        for scheduler in ("chunked", "prefill_first"):
            cluster = Cluster.from_profile(profile, 4, scheduler=scheduler)
            simulate(trace, cluster, "round_robin")
            yield (
                f"round_robin, {profile}, {scheduler}",
                best(lambda c=cluster: simulate(trace, c, "round_robin"), 3 * REPEATS),  # type: ignore[misc]
            )
    for n_replicas in (4, 64, 256, 1024):
        for scheduler in ("chunked", "prefill_first"):
            cluster = Cluster.from_profile("a100-llama-2-7b", n_replicas, scheduler=scheduler)
            loaded = trace.with_qps(1.75 * n_replicas)
            simulate(loaded, cluster, "lor")
            yield (
                f"lor, {n_replicas} replicas, {scheduler}",
                best(lambda c=cluster, w=loaded: simulate(w, c, "lor")),  # type: ignore[misc]
            )
    few = trace.slice(0, 4000)
    cluster = Cluster.from_profile("a100-llama-2-7b", 4)
    yield "lor_hybrid, asked in Python", best(lambda: simulate(few, cluster, "lor_hybrid"))


def environment_rows() -> Iterator[tuple[str, float]]:
    """Yields stretches of steps of the vector environment, resets among them."""
    import gymnasium as gym
    import numpy as np

    import llmroute_gym  # noqa: F401  (registers the environment)

    for num_envs, replicas in ((1, 4), (8, 4), (64, 4), (256, 4), (64, 16), (64, 64)):
        env = gym.make_vec(
            "LLMRoute-v0", num_envs=num_envs, replicas=replicas, qps=2.5 * replicas / 4
        )
        env.reset(seed=0)
        rng = np.random.default_rng(0)
        steps = max(500, 500 * (ENV_STEPS // (num_envs * 500 * max(replicas // 8, 1))))
        if num_envs == 1:
            steps = 5000
        actions = rng.integers(replicas, size=(steps, num_envs))

        def stretch(env: Any = env, actions: Any = actions) -> None:
            for one in actions:
                env.step(one)

        stretch()
        yield f"{num_envs} environments, {replicas} replicas", best(stretch)


def training_rows() -> Iterator[tuple[str, float]]:
    """Yields stretches of PPO through the bridge, and of regularised PPO."""
    import gymnasium as gym
    import torch
    from stable_baselines3 import PPO
    from stable_baselines3.common.vec_env import VecMonitor

    from llmroute_gym.sb3 import ReplicaSetPolicy, RouterPPO, RouterVecEnv

    torch.set_num_threads(1)
    options = {"n_steps": 256, "batch_size": 2048, "n_epochs": 4, "seed": 0, "device": "cpu"}
    learners: list[tuple[str, Any, Any]] = [
        ("PPO, MlpPolicy", PPO, "MlpPolicy"),
        ("RouterPPO, ReplicaSetPolicy", RouterPPO, ReplicaSetPolicy),
    ]
    for name, algorithm, policy in learners:
        env = VecMonitor(RouterVecEnv(gym.make_vec("LLMRoute-v0", num_envs=64)))
        model = algorithm(policy, env, **options)
        model.learn(64 * 256)
        yield name, best(lambda m=model: m.learn(2 * 64 * 256, reset_num_timesteps=False), 3)  # type: ignore[misc]


def measure() -> None:
    """Prints the seconds of every row of this checkout as JSON."""
    rows = {}
    for kind in (engine_rows, environment_rows, training_rows):
        rows.update(kind())
    print(json.dumps(rows))


def measured(checkout: Path) -> dict[str, float]:
    """Returns the seconds of every row, measured in a process of its own."""
    environment = {
        **os.environ,
        "PYTHONPATH": str(checkout),
        "OMP_NUM_THREADS": "1",
        "LLMROUTE_DATA": str(DATA),
    }
    command = [sys.executable, str(Path(__file__).resolve()), "--measure"]
    done = subprocess.run(
        command, cwd=checkout, env=environment, stdout=subprocess.PIPE, text=True, check=True
    )
    rows: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return rows


def main() -> None:
    """Runs the command."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("old", nargs="?", type=Path)
    parser.add_argument("new", nargs="?", type=Path)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--write", action="store_true", help="fill benchmarks/README.md")
    parser.add_argument("--measure", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure:
        measure()
        return
    if arguments.old is None or arguments.new is None:
        parser.error("give the folders of two checkouts, the old one first")
    load = load_average()
    checkouts = [arguments.old.resolve(), arguments.new.resolve()]
    for checkout in checkouts:
        measured(checkout)  # compiles
    ratios: dict[str, list[float]] = {}
    for number in range(arguments.rounds):
        # In turn, the first one alternating.
        order = checkouts if number % 2 == 0 else checkouts[::-1]
        found = {checkout: measured(checkout) for checkout in order}
        for row, seconds in found[checkouts[0]].items():
            ratios.setdefault(row, []).append(seconds / found[checkouts[1]][row])
        print(f"round {number + 1} of {arguments.rounds}", file=sys.stderr)
    lines = [
        (row, f"{statistics.median(some):.3f}", f"{min(some):.3f} to {max(some):.3f}")
        for row, some in ratios.items()
    ]
    text = table(["speed against before", "median", "range"], lines)
    print(text)
    below = [row for row, some in ratios.items() if statistics.median(some) < BAR]
    print(f"\nbelow {BAR}: {'; '.join(below) or 'none'}")
    if arguments.write:
        command = f"python benchmarks/pairs.py OLD NEW --rounds {arguments.rounds}"
        write_section("pairs", f"## Before and after\n\n{text}\n\n{origin(command, load)}")


if __name__ == "__main__":
    main()
