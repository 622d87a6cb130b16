"""The package as it is installed: a wheel, away from the checkout."""

import csv
import os
import subprocess
import sys
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PIP = (sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check")

pytestmark = [
    pytest.mark.cli,
    pytest.mark.slow,
    pytest.mark.skipif(
        not (find_spec("hatchling") and find_spec("pip")),
        reason="hatchling or pip is not installed; pip install -e '.[dev]'",
    ),
]

Python = Callable[..., str]


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with nothing but what a wheel of the checkout holds."""
    wheels, target = tmp_path_factory.mktemp("wheels"), tmp_path_factory.mktemp("installed")
    build = ("wheel", "--no-deps", "--no-build-isolation", f"--wheel-dir={wheels}", str(ROOT))
    subprocess.run([*PIP, *build], check=True)
    (wheel,) = wheels.glob("*.whl")
    subprocess.run([*PIP, "install", "--no-deps", f"--target={target}", str(wheel)], check=True)
    return target


@pytest.fixture
def python(installed: Path, tmp_path: Path) -> Python:
    """Runs Python in an empty folder with the wheel on its path; returns what it prints."""

    def run(*arguments: str) -> str:
        return subprocess.run(
            [sys.executable, *arguments],
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": str(installed)},
            capture_output=True,
            text=True,
            check=True,
        ).stdout

    return run


def test_all_that_is_no_python_is_inside(installed: Path) -> None:
    inside = {
        path.relative_to(installed / "llmroute_gym").as_posix()
        for path in (installed / "llmroute_gym").rglob("*")
        if path.is_file() and path.suffix not in (".py", ".pyc")
    }
    package, conf = ROOT / "llmroute_gym", ROOT / "conf"
    expected = {f"conf/{path.relative_to(conf).as_posix()}" for path in conf.rglob("*.yaml")}
    others = ("routers/*.yaml", "compare/html/page.*", "py.typed")
    for pattern in ("sim/profiles/*", "sim/data/*", *others):
        expected |= {path.relative_to(package).as_posix() for path in package.glob(pattern)}
    assert inside == expected


def test_the_root_serves_requests(python: Python, installed: Path) -> None:
    code = """
import numpy as np
import llmroute_gym as lg
from llmroute_gym.sim import PoissonArrivals, SyntheticWorkload, azure_conv

workload = SyntheticWorkload(azure_conv(), PoissonArrivals(), 2.5).sample(
    50, np.random.default_rng(0)
)
cluster = lg.Cluster.from_profile("a100-internlm-20b", replicas=4)
outcome = lg.simulate(workload, cluster, "lor", engine="reference")
print(lg.__file__, lg.__version__, np.isfinite(outcome.e2e_s).sum())
"""
    file, version, served = python("-c", code).split()
    assert Path(file).is_relative_to(installed)
    assert version == next(installed.glob("*.dist-info")).stem.split("-")[1]
    assert served == "50"


def test_a_command_finds_its_settings(python: Python, tmp_path: Path) -> None:
    small = ("runs=2", "requests=20", "resamples=20", "routers=[round_robin]", "run_dir=run")
    said = python("-m", "llmroute_gym.evaluate", *small)
    assert "4 x a100-internlm-20b" in said
    with (tmp_path / "run" / "comparison.csv").open() as file:
        assert [row["router"] for row in csv.DictReader(file)] == ["round_robin"]
