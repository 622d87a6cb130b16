"""What the tests of a search share."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from llmroute_gym.config import ClusterConfig, SearchConfig, SearchingConfig
from llmroute_gym.routers import catalog
from tests.compare.search.rules import InSpells, Lopsided


@pytest.fixture(autouse=True)
def _own_rules(monkeypatch: pytest.MonkeyPatch) -> None:
    for rule in (InSpells, Lopsided):
        monkeypatch.setitem(catalog.ROUTERS, rule.name, rule)


@pytest.fixture
def settings(tmp_path: Path) -> Callable[..., SearchConfig]:
    """Makes settings of a small search, which writes to the folder of that name."""

    def make(folder: str = "run", **changes: Any) -> SearchConfig:
        small = {
            **{"router": "in_spells", "budget": 30, "runs": 2, "requests": 150, "workers": 1},
            **{"final_runs": 3, "loads": [0.8]},
        }
        return SearchConfig(
            search=SearchingConfig(**{**small, **changes}),
            cluster=ClusterConfig(replicas=2),
            run_dir=str(tmp_path / folder),
        )

    return make
