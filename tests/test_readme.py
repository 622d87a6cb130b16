"""What the README tells a reader to type."""

import importlib
import re
import shlex
import shutil
import subprocess
import sys
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hydra import compose, initialize_config_dir
from hydra.errors import HydraException
from omegaconf import OmegaConf

from llmroute_gym.config import Settings
from llmroute_gym.routers import available
from llmroute_gym.runs.command import SCHEMAS, config_dir, register_schemas
from llmroute_gym.sim.fetch import PUBLIC_TRACES

README = (Path(__file__).resolve().parents[1] / "README.md").read_text(encoding="utf-8")
COMMANDS = re.findall(r"python -m llmroute_gym\.([\w.]+)([^#`\n]*)", README)
PROSE = re.sub(r"```.*?```", "", README, flags=re.DOTALL)
SETTINGS = re.findall(r"`('[^`\n]+'|[a-z][a-z_./]*=[^`\"\n]+)`", PROSE)
"""What could be typed to a command; with double quotes only it is Python."""
PLACEHOLDERS = {"group=option", "key=value"}
BLOCKS = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
SMALLER = {"num_envs=64": "num_envs=8", "learn(100_000)": "learn(2_048)"}
"""What takes a minute, and a size that shows the same."""
CHECKPOINT = Path(__file__).parent / "data" / "model_v1.zip"


def composed(command: str, overrides: list[str]) -> Any:
    register_schemas()
    with initialize_config_dir(str(config_dir()), version_base="1.3"):
        return OmegaConf.to_object(compose(command, [*overrides, "run_dir=x"]))


def composes(command: str, overrides: list[str]) -> bool:
    try:
        composed(command, overrides)
    except HydraException:
        return False
    return True


def test_the_two_commands_stand_word_for_word() -> None:
    install = "python -m venv .venv && .venv/bin/pip install -c constraints.txt -e "
    assert f"\n{install}. && .venv/bin/python -m llmroute_gym.train +exp=latency_tuned\n" in README
    assert f"\n{install}'.[dev]' && .venv/bin/python -m pytest\n" in README


@pytest.mark.cli
@pytest.mark.parametrize(("command", "arguments"), COMMANDS)
def test_commands_compose(command: str, arguments: str) -> None:
    words = shlex.split(arguments)
    if command == "fetch":
        names = words[: words.index("--out")] if "--out" in words else words
        assert set(names) <= set(PUBLIC_TRACES)
        return
    if command not in SCHEMAS:
        assert callable(importlib.import_module(f"llmroute_gym.{command}").main)
        return
    sweep = "-m" in words
    choices = [
        [f"{key}={one}" for one in value.split(",")] if sweep else [word]
        for word in words
        if word != "-m"
        for key, _, value in [word.partition("=")]
    ]
    for overrides in product(*choices):
        settings = composed(command, list(overrides))
        assert isinstance(settings, Settings)
        settings.validate()


@pytest.mark.cli
@pytest.mark.parametrize("setting", sorted(set(SETTINGS) - PLACEHOLDERS))
def test_settings_in_the_text_compose(setting: str) -> None:
    assert any(composes(command, shlex.split(setting)) for command in SCHEMAS)


@pytest.mark.cli
def test_python_blocks_run_in_order(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    lines = ["TIMESTAMP,ContextTokens,GeneratedTokens"]
    for second, (prompt, output) in enumerate(rng.integers(1, 300, (60, 2)).tolist()):
        lines.append(f"2023-11-16 18:15:{second:02d}.0000000,{prompt},{output}")
    (tmp_path / "azure_conv_2023.csv").write_text("\n".join(lines) + "\n")
    (tmp_path / "runs" / "mine").mkdir(parents=True)
    shutil.copy(CHECKPOINT, tmp_path / "runs" / "mine" / "model.zip")
    script = "\n".join(BLOCKS)
    for large, small in SMALLER.items():
        assert large in script
        script = script.replace(large, small)
    done = subprocess.run(
        [sys.executable, "-c", script + "\nprint('end', len(outcome), outcome.rejected.any())"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "'e2e_p95_s': " in done.stdout
    assert done.stdout.endswith("end 5000 False\n")
    assert (tmp_path / "ppo.zip").is_file()


@pytest.mark.parametrize("target", re.findall(r"\]\(([^)#:]+)\)", README))
def test_links_lead_somewhere(target: str) -> None:
    assert (Path(__file__).resolve().parents[1] / target).exists()


def test_every_router_is_named() -> None:
    page = (Path(__file__).resolve().parents[1] / "docs" / "routers.md").read_text()
    assert "](docs/routers.md)" in README
    assert all(f"`{name}`" in page for name in available())


def test_every_group_is_named() -> None:
    for group in config_dir().iterdir():
        if group.is_dir():
            assert f"`{group.name}`" in README or f"`+{group.name}`" in README
