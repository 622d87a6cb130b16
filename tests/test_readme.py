"""What the README tells a reader to type."""

import importlib
import re
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from llmroute_gym.config import Settings
from llmroute_gym.routers import available
from llmroute_gym.runs.command import SCHEMAS, config_dir, register_schemas

README = (Path(__file__).resolve().parents[1] / "README.md").read_text(encoding="utf-8")
COMMANDS = re.findall(rf"python -m llmroute_gym\.({'|'.join(SCHEMAS)})\b([^#\n]*)", README)


def test_the_two_commands_stand_word_for_word() -> None:
    install = "python -m venv .venv && .venv/bin/pip install -c constraints.txt -e "
    assert f"\n{install}. && .venv/bin/python -m llmroute_gym.train +exp=latency_tuned\n" in README
    assert f"\n{install}'.[dev]' && .venv/bin/python -m pytest\n" in README


@pytest.mark.parametrize(("command", "arguments"), COMMANDS)
def test_commands_compose(command: str, arguments: str) -> None:
    register_schemas()
    overrides = [word for word in arguments.split() if word != "-m"]
    first = [word if "[" in word else word.split(",")[0] for word in overrides]
    with initialize_config_dir(str(config_dir()), version_base="1.3"):
        settings = OmegaConf.to_object(compose(command, [*first, "run_dir=x"]))
    assert isinstance(settings, Settings)
    settings.validate()


@pytest.mark.parametrize("target", re.findall(r"\]\(([^)#:]+)\)", README))
def test_links_lead_somewhere(target: str) -> None:
    assert (Path(__file__).resolve().parents[1] / target).exists()


@pytest.mark.parametrize(
    ("module", "names"), re.findall(r"^from (llmroute_gym[\w.]*) import ([^#\n]+)", README, re.M)
)
def test_imports_work(module: str, names: str) -> None:
    for name in names.split(", "):
        assert hasattr(importlib.import_module(module), name.strip())


def test_every_router_is_named() -> None:
    assert all(f"`{name}`" in README for name in available())


def test_every_group_is_named() -> None:
    for group in config_dir().iterdir():
        if group.is_dir():
            assert f"`{group.name}`" in README or f"`+{group.name}`" in README
