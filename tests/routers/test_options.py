"""Rules with options, one way for Python and commands."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from llmroute_gym.compare.entrants import rule_routers
from llmroute_gym.config import (
    CollectDemosConfig,
    EvaluateConfig,
    EvaluationConfig,
    WarmStartConfig,
)
from llmroute_gym.errors import InputError
from llmroute_gym.evaluate import main
from llmroute_gym.ground.rules import rule_text
from llmroute_gym.routers import LeastOutstandingHybrid, make
from llmroute_gym.routers.simulation import simulate
from llmroute_gym.sim import Cluster, Workload


def test_a_text_and_a_mapping_make_the_same_router() -> None:
    for rule in ("lor_hybrid:a=0.7", {"name": "lor_hybrid", "a": 0.7}, " lor_hybrid : a = 0.7 "):
        router = make(rule)
        assert isinstance(router, LeastOutstandingHybrid)
        assert router.a == 0.7
        assert rule_text(rule) == "lor_hybrid:a=0.7"
    assert make("lor_hybrid").a == make({"name": "lor_hybrid"}).a == 0.5  # type: ignore[attr-defined]


def test_an_option_changes_what_the_rule_does() -> None:
    rng = np.random.default_rng(0)
    n = 300
    workload = Workload(np.sort(rng.random(n)) * 60, rng.integers(1, 3000, n), [200] * n)
    cluster = Cluster.from_profile("a100-internlm-20b", replicas=3)
    by_load, by_memory = (
        simulate(workload, cluster, rule).replica.tolist()
        for rule in ("lor_hybrid:a=1", {"name": "lor_hybrid", "a": 0})
    )
    assert by_load != by_memory
    assert by_load == simulate(workload, cluster, LeastOutstandingHybrid(1.0)).replica.tolist()


def test_settings_take_both_forms_and_tables_call_them_alike() -> None:
    rules = ["lor", "lor_hybrid:a=0.7", {"name": "lor_hybrid", "a": 0.2}]
    texts = ["lor", "lor_hybrid:a=0.7", "lor_hybrid:a=0.2"]
    assert list(rule_routers(EvaluationConfig(routers=rules), with_policy=False)) == texts
    assert EvaluateConfig(routers=rules).evaluation.routers == texts
    assert CollectDemosConfig(policies=rules).policies == texts
    assert WarmStartConfig(policies=rules).policies == texts


def test_a_file_is_a_router(tmp_path: Path) -> None:
    file = tmp_path / "router.yaml"
    file.write_text("name: lor_hybrid\na: 0.7\n")
    router = make(str(file))
    assert isinstance(router, LeastOutstandingHybrid)
    assert router.a == 0.7
    assert EvaluationConfig(routers=[str(file)], baseline=str(file)) == EvaluationConfig(
        routers=["lor_hybrid:a=0.7"], baseline="lor_hybrid:a=0.7"
    )


def test_a_title_is_what_tables_say(tmp_path: Path) -> None:
    file = tmp_path / "router.yml"
    file.write_text("name: lor_hybrid\na: 0.7\ntitle: tuned by us\n")
    config = EvaluationConfig(routers=["lor", str(file)], baseline=str(file))
    assert config.baseline == "tuned by us"
    # What a run's config.yaml holds says the same without the file.
    file.unlink()
    assert config.routers == ["lor", "lor_hybrid:a=0.7,title=tuned by us"]
    routers = rule_routers(config, with_policy=False)
    assert list(routers) == ["lor", "tuned by us"]
    assert routers["tuned by us"].a == 0.7  # type: ignore[attr-defined]
    twice = EvaluationConfig(routers=["lor", "lor_hybrid:title=lor"])
    with pytest.raises(InputError, match="routers names lor twice"):
        rule_routers(twice, with_policy=False)
    with pytest.raises(InputError, match="the title of lor must be a text without commas"):
        EvaluationConfig(routers=[{"name": "lor", "title": "a, b"}])


@pytest.mark.parametrize(
    ("held", "message"),
    [
        (None, r"cannot read the router .*router.yaml: No such file or directory; give a file"),
        ("[", r"cannot read the router .*router.yaml: while parsing"),
        ("a: 1", r"router.yaml holds no router; it is a mapping with the rule's name"),
        ("name: lor_hybrd", r"unknown router 'lor_hybrd'.*did you mean 'lor_hybrid'"),
        ("name: lor_hybrid\na: 2", "a of lor_hybrid must be a number from 0 to 1, got 2"),
    ],
)
def test_wrong_files_get_one_sentence(held: str | None, message: str, tmp_path: Path) -> None:
    file = tmp_path / "router.yaml"
    if held is not None:
        file.write_text(held)
    with pytest.raises(InputError, match=message):
        make(str(file))


@pytest.mark.cli
def test_the_command_compares_one_rule_under_two_constants(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    rules = "routers=[lor,{name:lor_hybrid,a:0.2},'lor_hybrid:a=0.9']"
    small = ["runs=2", "requests=20", "resamples=20", f"run_dir={tmp_path}/run"]
    monkeypatch.setattr("sys.argv", ["evaluate", rules, "baseline='lor_hybrid:a=0.9'", *small])
    main()
    lines = (tmp_path / "run" / "comparison.csv").read_text().splitlines()[1:]
    assert [line.split(",")[0] for line in lines] == ["lor", "lor_hybrid:a=0.2", "lor_hybrid:a=0.9"]
    assert "change: against lor_hybrid:a=0.9" in capsys.readouterr().out


def test_settings_refuse_what_is_no_rule() -> None:
    with pytest.raises(InputError, match="a router is a name, such as lor, or a name with options"):
        EvaluationConfig(routers=[5])


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        ("lor_hybrid:a=2", "a of lor_hybrid must be a number from 0 to 1, got 2"),
        ("lor_hybrid:a=x", "a of lor_hybrid must be a number from 0 to 1, got 'x'"),
        ("lor_hybrid:b=1", "unknown option of router 'lor_hybrid': 'b'; available: a"),
        ("lor:a=1", "unknown option of router 'lor': 'a'"),
        ("lor_hybrid:a", "'lor_hybrid:a' is no router with options; write name:option=value"),
        ("lor_hybrid:", "is no router with options"),
        ("lor_hybrid:a=0.1,a=0.2", "gives an option twice"),
        ("lor_hybrd:a=1", r"unknown router 'lor_hybrd'.*did you mean 'lor_hybrid'"),
        ({"a": 1}, r"unknown router {'a': 1}; available: "),
        ({"name": 5}, "a router is a name, such as lor, or a name with options"),
    ],
)
def test_wrong_options_get_one_sentence(rule: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        make(rule)
