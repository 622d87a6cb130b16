"""Signals may grow for ever: what was learned or recorded before stays valid."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from llmroute_gym.ground.signals import AGING, N_SIGNALS, SIGNAL_NAMES, VERSION_1, Signal

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = """
import json, sys
import numpy as np
from llmroute_gym import Cluster, Workload, simulate
from llmroute_gym.config import ObservationConfig
from llmroute_gym.demos.attainable import rule_probabilities
from llmroute_gym.demos.file import Demos
from llmroute_gym.envs import LLMRouteEnv
from llmroute_gym.ground.signals import N_SIGNALS, Signal
from llmroute_gym.sb3 import Checkpoint, PolicyRouter

told = ObservationConfig(predicted_output_sigma=0.5)
checkpoint, demos = Checkpoint.load(sys.argv[1]), Demos.load(sys.argv[2])
checkpoint.check_fits(4, told)
demos.check_fits(4, told)
rng = np.random.default_rng(0)
n = 60
workload = Workload(np.sort(rng.random(n)) * 10, rng.integers(1, 900, n), rng.integers(1, 90, n))
router, cluster = PolicyRouter(checkpoint), Cluster.from_profile("a100-internlm-20b")
outcome = simulate(workload, cluster, router, engine="reference", seed=0)
env = LLMRouteEnv(engine="reference", observation=told, requests_per_episode=9)
observation, _ = env.reset(seed=0)
columns = ["fits", Signal(N_SIGNALS - 1).name.lower()]
own = LLMRouteEnv(engine="reference", observation={"columns": columns})
possible = rule_probabilities("lor", demos, ordered=True, rng=rng)
print(json.dumps({
    "n_signals": N_SIGNALS,
    "replica": outcome.replica.tolist(),
    "observation": observation.tolist(),
    "row": env.rows().shape,
    "last": own.reset(seed=0)[0].tolist(),
    "agrees": float((possible.argmax(1) == demos.action)[demos.router == "lor"].mean()),
}))
"""


def answers(package_root: Path) -> dict[str, object]:
    files = [str(ROOT / "tests" / "data" / name) for name in ("model_v1.zip", "demos_v1.parquet")]
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, *files],
        env={**os.environ, "PYTHONPATH": str(package_root)},
        cwd=package_root,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found: dict[str, object] = json.loads(done.stdout)
    return found


@pytest.mark.cli
def test_one_more_signal_leaves_old_checkpoints_and_demonstrations_valid(tmp_path: Path) -> None:
    shutil.copytree(
        ROOT / "llmroute_gym", tmp_path / "llmroute_gym", ignore=shutil.ignore_patterns("*.nb?")
    )
    signals = tmp_path / "llmroute_gym" / "ground" / "signals.py"
    text = signals.read_text(encoding="utf-8")
    line = f"    MOOD = {N_SIGNALS}, 1.0, 1.0"
    grown = text.replace("\n\n\nN_SIGNALS =", f"\n{line}\n\n\nN_SIGNALS =")
    assert grown != text
    signals.write_text(grown, encoding="utf-8")
    before, after = answers(ROOT), answers(tmp_path)
    assert (before.pop("n_signals"), after.pop("n_signals")) == (N_SIGNALS, N_SIGNALS + 1)
    assert (before.pop("row"), after.pop("row")) == ([4, N_SIGNALS], [4, N_SIGNALS + 1])
    assert before["last"] == [[1.0, 0.0]] * 4
    assert before == after
    assert before["agrees"] == 1.0


def test_version_1_has_the_nineteen_columns_that_its_files_name() -> None:
    assert len(VERSION_1) == 19
    assert SIGNAL_NAMES[:19] == VERSION_1
    assert [signal.value for signal in Signal] == list(range(N_SIGNALS))
    assert [signal.name for signal in AGING] == [s.name for s in Signal if s.ages]


def test_every_scale_keeps_whole_numbers() -> None:
    for signal in Signal:
        mantissa, _ = signal.scale.hex().split("p")
        assert float.fromhex(mantissa) == 1.0, signal.name
