"""What is reported of made-up ratios."""

from pathlib import Path

import numpy as np
import pytest
from frontier_cases import CASES
from residual import SEEDS, Gain, section, write_csv
from trainings import Options

from llmroute_gym.compare.statistics import estimate

pytestmark = pytest.mark.slow


@pytest.fixture
def gains() -> list[Gain]:
    rule = estimate(np.array([10.0, 9.0, 11.0]))
    seeds = np.array([0.98, 1.01])
    return [
        Gain(CASES[0], rule, np.array([0.9, 0.88, 0.92]), seeds),
        Gain(CASES[1], rule, np.array([1.0 / 0.9, 1.1, 1.12]), seeds),
    ]


def test_ratios_of_all_cases_have_a_mean(gains: list[Gain], tmp_path: Path) -> None:
    text = section(gains, Options(SEEDS, 1, tmp_path, quick=False, write=False))
    rows = [line for line in text.splitlines() if line.startswith("| ")]
    assert rows[-1].startswith("| **geometric mean** |  | **1.000 (0.98")
    assert f"| {CASES[0].name} | 10.00 | 0.900 (0.88" in rows[-3]
    assert rows[-3].endswith("| 0.980 to 1.010 |")
    assert "seeds 0 to 4" in text
    assert "python benchmarks/residual.py`" in text


def test_every_training_is_a_line(gains: list[Gain], tmp_path: Path) -> None:
    write_csv(gains, tmp_path / "residual.csv")
    lines = (tmp_path / "residual.csv").read_text().splitlines()
    assert lines[0] == "case,seed,p99_ratio"
    assert lines[2] == f'"{CASES[0].name}",1,1.01000'
    assert len(lines) == 5
