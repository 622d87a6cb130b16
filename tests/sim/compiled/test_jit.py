"""What is said while kernels are compiled."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.cli

KERNEL = """
import logging
logging.basicConfig(level=logging.INFO, format="%(message)s")
import numpy as np
from llmroute_gym.sim.compiled.starting import write_replicas
idle = np.zeros((1, 200), dtype=np.int64)
write_replicas(0, idle, 1, np.zeros(400, dtype=np.int64))
write_replicas(0, idle, np.int32(1), np.zeros(400, dtype=np.int64))
"""


def said(code: str, cache: Path) -> list[str]:
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "NUMBA_CACHE_DIR": str(cache)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == ""
    return done.stderr.splitlines()


def test_the_first_compilation_is_said_once(tmp_path: Path) -> None:
    assert said(KERNEL, tmp_path) == [
        "compiling the simulator's kernels, up to a minute once per installation ..."
    ]
    assert said(KERNEL, tmp_path) == []


def test_a_library_is_silent_and_kernels_of_others_are_not_told_of(tmp_path: Path) -> None:
    assert said(KERNEL.replace("logging.INFO", "logging.WARNING"), tmp_path) == []
    others = """
import logging
logging.basicConfig(level=logging.INFO, format="%(message)s")
import numba
import llmroute_gym.sim.compiled.jit
numba.njit(lambda x: x + 1)(1)
"""
    assert [line for line in said(others, tmp_path) if "simulator" in line] == []
