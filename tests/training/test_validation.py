"""A policy is served as it will be, and as it was trained, before it is trusted."""

import json
import math
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import numpy as np
import pytest
import torch

from llmroute_gym.config import ClusterConfig, ModelConfig, ObservationConfig, WorkloadConfig
from llmroute_gym.envs.observation import COLUMNS
from llmroute_gym.sb3.checkpoint import Checkpoint, Layout
from llmroute_gym.sim.build import build_cluster, build_source
from llmroute_gym.train import train
from llmroute_gym.training.validation import Tails, Validation, findings
from tests.training.test_learning import tiny

VERSION_1 = Path(__file__).parents[1] / "data" / "model_v1.zip"
OBSERVATION = ObservationConfig()


@pytest.fixture(scope="module")
def validation() -> Validation:
    cluster, source = build_cluster(ClusterConfig()), build_source(WorkloadConfig(), 2.5)
    return Validation.draw(cluster, source, OBSERVATION, 2.5, 50)


def loads_decide(weight: float) -> Checkpoint:
    """A policy whose logits are a weight times how loaded a replica is."""
    model = Checkpoint.load(VERSION_1).model
    score: Any = model.policy.action_net.score  # type: ignore[union-attr]
    with torch.no_grad():
        score.weight.zero_()
        differences = score.weight[0, -len(COLUMNS) :]
        differences[[COLUMNS.index("waiting"), COLUMNS.index("running")]] = weight
    return Checkpoint(model, Layout(4, OBSERVATION, ModelConfig()))


def test_a_sound_policy_has_no_findings(validation: Validation) -> None:
    assert validation.examine(loads_decide(-1e3)) == {}


def test_a_policy_that_is_level_only_by_chance_is_found(
    validation: Validation, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level("INFO"):
        found = validation.examine(loads_decide(1e-4))
    assert set(found) == {"argmax_differs", "worse_than_round_robin"}
    assert "by the policy's most probable replica" in found["argmax_differs"]
    assert "with the policy by its most probable replica" in found["worse_than_round_robin"]
    assert "validation: P99 of the end-to-end latency at 2.5 requests/s" in caplog.text
    assert "; at 3 requests/s" in caplog.text


def test_equal_policies_are_validated_equally(validation: Validation) -> None:
    first, second = (validation.tails(loads_decide(-1.0)) for _ in range(2))
    assert first == second
    assert [one.qps for one in first] == [2.5, 3.0]
    seeded = loads_decide(-1.0)  # SB3 seeds the generators when a model is made
    state, drawn = torch.get_rng_state(), np.random.get_state()[1]  # noqa: NPY002
    validation.tails(seeded)
    assert torch.equal(torch.get_rng_state(), state)
    assert np.array_equal(np.random.get_state()[1], drawn)  # noqa: NPY002


@pytest.mark.parametrize(
    ("tails", "found"),
    [
        ([Tails(2, 10, 10, 10), Tails(3, 10, 10, 10)], set()),
        ([Tails(2, 10.9, 10, 10), Tails(3, 9, 9.9, 10)], set()),
        ([Tails(2, 10, 10, 10), Tails(3, 8, 10, 10)], {"argmax_differs"}),
        ([Tails(2, 12, 10.5, 11), Tails(3, 10, 10, 10)], {"argmax_differs"}),
        ([Tails(2, 10, 10, 10), Tails(3, 12, 12, 10)], {"worse_than_round_robin"}),
        ([Tails(2, 10, 12, 10)], {"argmax_differs", "worse_than_round_robin"}),
        ([Tails(2, math.inf, math.inf, math.inf)], set()),
        ([Tails(2, math.inf, math.inf, 10)], {"worse_than_round_robin"}),
    ],
)
def test_what_is_apart_by_more_than_a_tenth_is_found(tails: list[Tails], found: set[str]) -> None:
    assert set(findings(tails)) == found


def test_the_load_where_it_is_worst_is_told() -> None:
    found = findings([Tails(2.5, 15, 10, 10), Tails(3, 40, 10, 10)])
    for sentence in found.values():
        assert "at 3 requests/s" in sentence
        assert "is 40 s" in sentence
        assert "(+300%)" in sentence


@pytest.mark.slow
def test_a_finding_comes_with_advice_and_changes_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train(tiny(tmp_path / "usual"))
    name = "llmroute_gym.training.validation.Validation.examine"
    monkeypatch.setattr(name, Mock(return_value={"argmax_differs": "they differ"}))
    train(tiny(tmp_path / "found"))
    told = json.loads((tmp_path / "found" / "findings.json").read_text())
    assert [(one["name"], one["timesteps"], one["found"]) for one in told] == [
        ("argmax_differs", 96, "they differ")
    ]
    assert "exploration.entropy_coef" in told[0]["advice"]
    first, second = (
        (tmp_path / name / "comparison.csv").read_bytes() for name in ("usual", "found")
    )
    assert first == second


@pytest.mark.slow
def test_a_network_that_fails_beyond_its_load_is_told_of(tmp_path: Path) -> None:
    train(tiny(tmp_path / "run", model=ModelConfig(policy="mlp")))
    told = json.loads((tmp_path / "run" / "findings.json").read_text())
    (one,) = (one for one in told if one["name"] == "mlp_beyond_load")
    assert "model=replica_set" in one["advice"]
