"""What `import llmroute_gym` costs."""

import json
import subprocess
import sys

import pytest

HEAVY = {"hydra", "matplotlib", "numba", "pandas", "sb3_contrib", "scipy", "stable_baselines3"}
HEAVY |= {"tensorboard", "torch", "wandb"}

MEASURE = """
import json, sys, time
start = time.process_time()
import llmroute_gym
print(json.dumps([time.process_time() - start, sorted(sys.modules)]))
"""


def fresh_import() -> tuple[float, set[str]]:
    """Returns what the import takes in a new process, and all that it loads.

    Seconds of this process alone: what else the machine is doing does not count.
    """
    done = subprocess.run(
        [sys.executable, "-c", MEASURE], capture_output=True, text=True, check=True
    )
    seconds, modules = json.loads(done.stdout)
    return seconds, set(modules)


@pytest.mark.cli
def test_the_root_imports_nothing_heavy() -> None:
    _, modules = fresh_import()
    assert not modules & HEAVY


@pytest.mark.cli
def test_the_import_takes_under_half_a_second() -> None:
    assert min(fresh_import()[0] for _ in range(5)) < 0.5


@pytest.mark.cli
def test_the_simulator_knows_nothing_of_learning() -> None:
    code = "import sys, llmroute_gym.sim.reference; print(*sorted(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    modules = set(done.stdout.split())
    assert not modules & {"stable_baselines3", "torch", "llmroute_gym.envs", "llmroute_gym.sb3"}


def test_every_public_name_is_there() -> None:
    import llmroute_gym
    from llmroute_gym import routers, sim

    for module in (llmroute_gym, sim, routers):
        missing = [name for name in module.__all__ if not hasattr(module, name)]
        assert not missing
