"""Training what corrects a rule: on several scenarios at once, kept by others, resumed."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch as th

from llmroute_gym.config import (
    CurriculumConfig,
    DomainsConfig,
    EnvConfig,
    KLConfig,
    ModelConfig,
    ObservationConfig,
    PretrainConfig,
    TrainConfig,
    TrainingConfig,
    WarmStartConfig,
)
from llmroute_gym.errors import InputError
from llmroute_gym.evaluate import evaluate
from llmroute_gym.sb3 import Checkpoint, RouterMonitor
from llmroute_gym.sim.build import build_cluster, build_source
from llmroute_gym.train import train
from llmroute_gym.training.domains import Domains, mean_s
from llmroute_gym.training.keeping import KeepBest
from tests.config.test_config import composed
from tests.envs.test_drawn_env import METRICS, RULE
from tests.training.runs import Killed, rows, tiny

RESIDUAL = ModelConfig("residual", [8], [8], rule=RULE)
NONE = WarmStartConfig(cloning=False)


def named(name: str, profile: str = "a100-internlm-20b", **changes: Any) -> dict[str, Any]:
    """Names a scenario with a fixed rate: its capacity need not be found."""
    given = {"name": name, "load": None, "workload": {"qps": 2.5}}
    return {**given, "cluster": {"profile": profile}, **changes}


SCENARIOS = [
    named("mixed_speeds"),
    named("straggler"),
    named("equal_70", cluster={"profile": "a100-llama-2-7b", "replicas": 6}),
]


def settings(folder: Path, **changes: Any) -> TrainConfig:
    domains = DomainsConfig(
        scenarios=SCENARIOS,
        spread=0.5,
        late_after=2.0,
        kept_by=[named("mixed_speeds")],
        kept_every=1,
        kept_runs=2,
        kept_requests=100,
    )
    given: dict[str, Any] = {
        "model": RESIDUAL,
        "warm_start": NONE,
        "domains": domains,
        "observation": METRICS,
        "env": EnvConfig(num_envs=3, requests_per_episode=20),
        "training": TrainingConfig(
            ppo_requests=216,
            rollout_steps=24,
            minibatch_size=36,
            epochs=2,
            advantages="environment",
        ),
        "kl": KLConfig(entropy_min=0.1),
    }
    return tiny(folder, **{**given, **changes})


@pytest.fixture(scope="module")
def corrected(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "corrected"
    train(settings(folder))
    return folder


def test_environments_take_the_scenarios_in_turns(tmp_path: Path) -> None:
    given = settings(tmp_path, env=EnvConfig(num_envs=6, requests_per_episode=20))
    domains = Domains.of(given, build_cluster(given.cluster), build_source(given.workload, 2.5))
    env = domains.environments(given)
    assert env.observation_space.shape == (6, 20)
    observations: Any = env.reset()
    replicas = (observations[..., -1] >= 0).sum(axis=1)
    assert replicas.tolist() == [4, 4, 6, 4, 4, 6]
    speeds = np.sort(observations[0, :4, 8]).tolist()
    assert speeds == [0.5, 1.0, 1.0, 2.0]
    slow = env.get_attr("cluster")[1]
    assert sum(bool(one.slowdowns) for one in slow) == 1
    assert [one.latency_threshold for one in domains.rewards] == [
        pytest.approx(2 * mean_s(pool, domains.rule, given)) for pool in domains.pools
    ]
    env.close()


def test_its_reference_is_the_rule_and_its_best_weights_are_kept(corrected: Path) -> None:
    metrics = rows(corrected / "metrics.csv")
    assert float(metrics[0]["validation/tail"]) == 1.0
    assert float(metrics[-1]["train/kl_ref"]) > 0
    assert [one["validation/tail"] != "" for one in metrics] == [True] * len(metrics)
    checkpoint = Checkpoint.load(corrected)
    assert checkpoint.model.reference_origin.startswith("the rule estimated_latency:pace_per_req")
    assert checkpoint.layout.replicas == 6
    assert "weights" not in checkpoint.model.callback_state["keep_best"]
    reference: Any = checkpoint.model.reference_policy
    assert not reference.action_net.score.weight.any()


def test_the_weights_that_start_are_kept_where_none_are_better(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("llmroute_gym.training.keeping.score", Worse())
    train(settings(tmp_path / "run"))
    policy: Any = Checkpoint.load(tmp_path / "run").model.policy
    assert not policy.action_net.score.weight.any()
    assert any(weight.any() for weight in policy.mlp_extractor.parameters())


class Worse:
    """Finds every policy worse than the one before."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, *arguments: Any) -> Any:
        from llmroute_gym.compare.search.scoring import Score

        self.calls += 1
        return Score(float(self.calls), 1.0)


def test_a_run_compares_it_and_evaluate_takes_it(corrected: Path, tmp_path: Path) -> None:
    found = rows(corrected / "comparison.csv")
    assert found[0]["router"] == "policy"
    again = composed(
        "evaluate",
        f"checkpoint={corrected}",
        "observation=metrics",
        "cluster.replicas=3",
        "evaluation.runs=2",
        "evaluation.requests=50",
        "evaluation.resamples=50",
    )
    again.run_dir = str(tmp_path / "again")
    evaluate(again.validate())
    assert rows(tmp_path / "again" / "comparison.csv")[0]["router"] == "policy"


def test_an_interrupted_run_goes_on_to_the_same_end(
    corrected: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, calls = tmp_path / "run", []
    original = RouterMonitor._on_rollout_end

    def kill(monitor: RouterMonitor) -> None:
        calls.append(1)
        if len(calls) == 2:
            raise Killed
        original(monitor)

    with monkeypatch.context() as patch:
        patch.setattr(RouterMonitor, "_on_rollout_end", kill)
        with pytest.raises(Killed):
            train(settings(folder))
    train(TrainConfig(resume=str(folder), run_dir=str(folder)))
    for name in ("comparison.csv", "metrics.csv"):
        first, second = rows(corrected / name), rows(folder / name)
        for before, after in zip(first, second, strict=True):
            aside = [key for key in before if key.startswith(("time/", "latency/"))]
            assert {**before, **dict.fromkeys(aside)} == {**after, **dict.fromkeys(aside)}
    policies = [Checkpoint.load(one).model.policy.state_dict() for one in (corrected, folder)]
    for name, weights in policies[0].items():
        assert th.equal(weights, policies[1][name]), name


def test_one_scenario_is_that_of_the_settings(tmp_path: Path) -> None:
    train(settings(tmp_path / "run", domains=DomainsConfig()))
    checkpoint = Checkpoint.load(tmp_path / "run")
    assert checkpoint.layout.replicas == 4
    assert KeepBest.STATE not in checkpoint.model.callback_state


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"model": ModelConfig("residual")}, "corrects a rule; name it, such as model.rule="),
        (
            {"model": ModelConfig(rule=RULE)},
            "would not be read with model.policy=replica_set",
        ),
        ({"model": ModelConfig()}, r"domains\.scenarios=.* would not be read with .*residual or"),
        (
            {"warm_start": WarmStartConfig()},
            "got warm_start.cloning=true; add warm_start=none",
        ),
        ({"curriculum": CurriculumConfig([1.0, 2.0])}, "name a scenario per load in domains.scena"),
        (
            {"env": EnvConfig(num_envs=2)},
            "must be at least 3, one for each of domains.scen",
        ),
        (
            {"domains": DomainsConfig(kept_every=2)},
            "kept_every=2 would not be read with dom",
        ),
        ({"domains": DomainsConfig(spread=1.0)}, "domains.spread must be >= 0 and <= 0.9, got 1.0"),
    ],
)
def test_what_does_not_fit_a_corrected_rule_is_refused(
    tmp_path: Path, changes: dict[str, Any], words: str
) -> None:
    with pytest.raises(InputError, match=words):
        settings(tmp_path, **changes)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (
            {"model": ModelConfig("residual", rule="lor")},
            "must have scores that a network can",
        ),
        ({"model": ModelConfig("residual", rule="lore")}, "unknown router 'lore'"),
        ({"domains": DomainsConfig(scenarios=["equal"])}, "unknown scenario 'equal'"),
        ({"domains": DomainsConfig(kept_by=[{"name": "azure"}])}, "trace azure.* is not in"),
    ],
)
def test_wrong_names_are_refused_before_anything_is_written(
    tmp_path: Path, changes: dict[str, Any], words: str
) -> None:
    with pytest.raises(InputError, match=words):
        train(settings(tmp_path / "run", **changes))
    assert not (tmp_path / "run").exists()


def test_imitation_is_no_way_to_correct_a_rule() -> None:
    with pytest.raises(InputError, match="starts as a rule and imitates none; choose mod"):
        PretrainConfig(model=RESIDUAL).validate()


def test_the_experiment_of_the_shipped_rule_is_one() -> None:
    whole = composed("train", "+exp=frontier").validate()
    assert whole.model.policy == "residual"
    assert whole.observation == ObservationConfig(information="metrics", signal_interval_s=1.0)
    assert whole.env.num_envs % len(whole.domains.scenarios) == 0
