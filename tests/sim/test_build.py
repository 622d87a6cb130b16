"""From settings to clusters and sources of requests."""

from pathlib import Path

import numpy as np
import pytest

from llmroute_gym.config import WorkloadConfig
from llmroute_gym.errors import InputError
from llmroute_gym.sim.build import build_source

OWN, POISSON = {"process": "trace"}, {"process": "poisson"}


@pytest.fixture
def lengths_only(tmp_path: Path) -> Path:
    path = tmp_path / "lengths.csv"
    path.write_text("num_prefill_tokens,num_decode_tokens\n" + "374,44\n" * 30)
    return path


def recorded(path: Path, **settings: object) -> WorkloadConfig:
    given = {"source": "trace", "path": str(path), **settings}
    return WorkloadConfig(**given).validate()  # type: ignore[arg-type]


def test_times_are_drawn_for_a_file_of_lengths(lengths_only: Path) -> None:
    source = build_source(recorded(lengths_only, arrivals=POISSON), 2.5)
    workload = source.sample(20, np.random.default_rng(0))
    assert set(workload.prompt_tokens.tolist()) == {374}
    assert workload.qps == pytest.approx(2.5, rel=0.5)


@pytest.mark.parametrize("settings", [{"arrivals": OWN}])
def test_a_file_of_lengths_has_no_times_of_its_own(
    lengths_only: Path, settings: dict[str, object]
) -> None:
    with pytest.raises(InputError, match=r"lengths\.csv has no arrival times") as error:
        build_source(recorded(lengths_only, **settings), 2.5)
    assert "choose workload/arrivals=poisson" in error.value.command_sentence
