"""Suites: the same bytes however they are run, honest intervals, and who is unstable."""

import json
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from omegaconf import OmegaConf

from llmroute_gym.compare.requests import common_workloads
from llmroute_gym.compare.suites import running
from llmroute_gym.compare.suites.bisection import capacity_of
from llmroute_gym.compare.suites.cells import serve_cell
from llmroute_gym.compare.suites.first_runs import suite_timelines
from llmroute_gym.compare.suites.leaderboard import MARKERS, leaderboard, write_readme
from llmroute_gym.compare.suites.result import SuiteResult
from llmroute_gym.compare.suites.running import Execution, run_suite
from llmroute_gym.compare.suites.scenarios import Rate, read_scenario, settled, trace_file
from llmroute_gym.compare.suites.stability import growth, growth_of
from llmroute_gym.compare.suites.summary import summed_up
from llmroute_gym.compare.suites.verify import verify
from llmroute_gym.config import (
    ClusterConfig,
    EvaluationConfig,
    ObservationConfig,
    ScenarioConfig,
    StragglerConfig,
    SuiteConfig,
    WorkloadConfig,
)
from llmroute_gym.errors import InputError
from llmroute_gym.routers import make
from llmroute_gym.routers.constants import constants_of
from llmroute_gym.routers.simulation import simulate
from llmroute_gym.runs.command import config_dir
from llmroute_gym.sim import Cluster, Outcome, Workload
from llmroute_gym.sim.build import build_cluster, build_source

RULES = ["round_robin", "random", "lor"]


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def at_rate(name: str, qps: float, **changes: Any) -> ScenarioConfig:
    scenario = ScenarioConfig(name=name, workload=WorkloadConfig(qps=qps))
    return replace(scenario, **changes).validate()


CALM = at_rate("calm", 3.0)
UNEVEN = at_rate(
    "uneven",
    2.5,
    cluster=ClusterConfig(replicas=4, speeds=[2.0, 1.0, 1.0, 0.5]),
    permute=True,
    stragglers=StragglerConfig(replicas=1, slow_s=10.0, every_s=30.0),
    view={"signal_interval_s": 1.0},
)
TINY = SuiteConfig(
    name="tiny",
    scenarios=["calm"],
    routers=RULES,
    runs=4,
    requests=60,
    block=2,
    resamples=40,
    date="2026-01-01",
)


def result(
    folder: Path,
    suite: SuiteConfig = TINY,
    scenarios: Sequence[ScenarioConfig] = (CALM, UNEVEN),
    **execution: Any,
) -> SuiteResult:
    return run_suite(suite, scenarios, ObservationConfig(), Execution(folder, **execution))


def test_twice_the_same_bytes(tmp_path: Path) -> None:
    first, again = (result(tmp_path / str(turn)).to_json() for turn in range(2))
    assert first == again
    for block in (1, 4):
        other = result(tmp_path / f"block{block}", replace(TINY, block=block))
        assert other.scenarios == SuiteResult.from_json(first).scenarios


def test_processes_change_nothing(tmp_path: Path) -> None:
    alone = result(tmp_path / "alone")
    assert result(tmp_path / "two", workers=2).to_json() == alone.to_json()


def test_ray_changes_nothing(tmp_path: Path) -> None:
    pytest.importorskip("ray", reason="Ray is not installed: pip install 'llmroute-gym[ray]'")
    alone = result(tmp_path / "alone")
    assert result(tmp_path / "ray", launcher="ray", workers=2).to_json() == alone.to_json()


@pytest.mark.parametrize("until", [0, 1, 5, 7, 11])
def test_a_killed_suite_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, until: int
) -> None:
    whole = result(tmp_path / "whole").to_json()
    served = []

    def breaking(cell: Any, load_policy: Any = None) -> bytes:
        if len(served) == until:
            raise KeyboardInterrupt
        served.append(cell)
        return serve_cell(cell, load_policy)

    monkeypatch.setattr(running, "serve_cell", breaking)
    with pytest.raises(KeyboardInterrupt):
        result(tmp_path / "broken")
    first = [cell.key() for cell in served]
    served.clear()
    until = -1
    assert result(tmp_path / "broken").to_json() == whole
    again = [cell.key() for cell in served]
    assert not {*first} & {*again}
    assert len(first) + len(again) == 12


def test_other_settings_are_served_anew(tmp_path: Path) -> None:
    before = result(tmp_path, scenarios=[CALM])
    after = result(tmp_path, replace(TINY, seed=5), [CALM])
    assert before.scenarios != after.scenarios


def test_a_rule_with_many_options_is_an_entrant(tmp_path: Path) -> None:
    family = make("estimated_latency")
    options = ",".join(f"{name}={getattr(family, name)}" for name in constants_of(family))
    long = f"estimated_latency:{options}"
    assert len(long) > 1000
    found = result(tmp_path, replace(TINY, routers=["round_robin", long]), [CALM])
    assert long in found.routers


def test_the_oracle_is_no_entrant(tmp_path: Path) -> None:
    suite = replace(TINY, routers=["round_robin", "lor", "oracle"], runs=2, requests=30)
    (scenario,) = result(tmp_path, suite, [CALM]).scenarios
    assert scenario.upper_bounds == ("oracle",)
    assert scenario.regret.keys() == {"round_robin", "lor", "oracle"}
    assert scenario.regret["oracle"].value == 0 < scenario.regret["round_robin"].value


def test_ratios_are_paired_and_the_best_has_one(tmp_path: Path) -> None:
    (scenario,) = result(tmp_path, scenarios=[CALM]).scenarios
    own = scenario.ratio_to_baseline["e2e_p99_s"]["round_robin"]
    assert (own.value, own.low, own.high) == (1.0, 1.0, 1.0)
    means = {one.router: one.metrics["e2e_mean_s"].value for one in scenario.results}
    best = min(means, key=means.__getitem__)
    assert scenario.ratio_to_best["e2e_mean_s"][best].value == 1.0
    assert all(one.value >= 1 for one in scenario.ratio_to_best["e2e_mean_s"].values())
    for router, ratio in scenario.ratio_to_baseline["e2e_mean_s"].items():
        assert ratio.value == pytest.approx(means[router] / means["round_robin"])


def test_who_cannot_cope_is_unstable_and_in_no_table(tmp_path: Path) -> None:
    slow = at_rate("slow", 4.5, cluster=ClusterConfig(replicas=2, speeds=[3.0, 0.5]))
    suite = replace(TINY, routers=["round_robin", "speed_lor"], runs=3, requests=1500)
    (scenario,) = result(tmp_path, suite, [slow]).scenarios
    assert [*scenario.unstable] == ["round_robin"]
    assert scenario.unstable["round_robin"] > 0.5
    assert [one.router for one in scenario.results] == ["speed_lor"]
    assert scenario.ratio_to_baseline == {}
    assert [*scenario.ratio_to_best["e2e_p99_s"]] == ["speed_lor"]


def test_growth_is_what_piles_up() -> None:
    arrived = np.arange(900.0)
    per_s, rate = growth_of(arrived, arrived * 1.25 + 5)
    assert rate == pytest.approx(1, rel=0.01)
    assert per_s == pytest.approx(0.2, rel=0.01)
    steady, _ = growth_of(arrived, arrived + 30)
    assert steady == pytest.approx(0, abs=1e-6)
    never, _ = growth_of(arrived, np.full(900, np.inf))
    assert never == 0


def test_capacity_separates_stable_from_unstable(tmp_path: Path) -> None:
    capacity = capacity_of(ClusterConfig(), WorkloadConfig())
    assert capacity == pytest.approx(5.9, rel=0.05)
    assert capacity_of(ClusterConfig(), WorkloadConfig(qps=3.0)) == capacity
    assert len([*(tmp_path / "cache").rglob("*.json")]) == 1
    for load, unstable in ((0.9, False), (1.15, True)):
        one = at_rate("one", load * capacity)
        suite = replace(TINY, routers=["round_robin", "lor"], runs=3, requests=4000)
        (scenario,) = result(tmp_path / str(load), suite, [one]).scenarios
        assert ("lor" in scenario.unstable) == unstable


def test_intervals_are_honest() -> None:
    """One rule under two names: the interval of the ratio holds 1 in 90 of 100 repetitions."""
    source, cluster = build_source(CALM.workload, 4.0), build_cluster(CALM.cluster)
    held = dict.fromkeys(("e2e_mean_s", "e2e_p99_s", "ttft_p99_s"), 0)
    for repetition in range(100):
        evaluation = EvaluationConfig(
            seed=repetition, baseline="one", runs=20, requests=80, resamples=200
        )
        workloads = common_workloads(source, cluster, evaluation)
        outcomes = {
            name: partial(_served_at_random, workloads, cluster, 1000 * repetition + 500 * turn)
            for turn, name in enumerate(("one", "other"))
        }
        found = summed_up(CALM, CALM, Rate(4.0, None), evaluation, outcomes)
        for key in held:
            ratio = found.ratio_to_baseline[key]["other"]
            held[key] += ratio.low <= 1 <= ratio.high
    assert min(held.values()) >= 90, held


def _served_at_random(workloads: Sequence[Workload], cluster: Cluster, seed: int) -> list[Outcome]:
    return [simulate(one, cluster, "random", seed=seed + n) for n, one in enumerate(workloads)]


def test_a_page_is_verified(tmp_path: Path) -> None:
    found = result(tmp_path / "run")
    page, numbers = tmp_path / "leaderboard.md", tmp_path / "results.json"
    page.write_text(leaderboard(found))
    numbers.write_text(found.to_json())
    for file in (page, numbers):
        assert verify(file, [], Execution) == (["calm", "uneven"], [])
        assert verify(file, ["uneven"], Execution) == (["uneven"], [])
    table = page.read_text().split("## calm")[1]
    line = next(one for one in table.splitlines() if one.startswith("| lor | "))
    page.write_text(page.read_text().replace(line, line.replace("[", "[9")))
    (sentence,) = verify(page, [], Execution)[1]
    assert sentence.startswith("calm: | lor |")
    changed = json.loads(numbers.read_text())
    changed["scenarios"][1]["results"][0]["metrics"]["e2e_p99_s"][0] *= 1.001
    numbers.write_text(json.dumps(changed))
    (sentence,) = verify(numbers, [], Execution)[1]
    assert sentence.startswith("uneven: results.0.metrics.e2e_p99_s.0 was")
    with pytest.raises(InputError, match="did you mean 'calm'"):
        verify(page, ["clam"], Execution)


def test_the_table_of_a_readme_is_replaced(tmp_path: Path) -> None:
    found = result(tmp_path / "run")
    readme = tmp_path / "README.md"
    readme.write_text(f"before\n{MARKERS[0]}\nold\n{MARKERS[1]}\nafter\n")
    write_readme(found, readme)
    once = readme.read_text()
    write_readme(found, readme)
    assert readme.read_text() == once
    assert once.startswith("before\n")
    assert once.endswith(f"{MARKERS[1]}\nafter\n")
    assert "old" not in once
    readme.write_text("no markers")
    with pytest.raises(InputError, match="no place for the table"):
        write_readme(found, readme)


def test_every_scenario_that_is_shipped_can_be_built(data: Path) -> None:
    for file in sorted((config_dir() / "scenario").glob("*.yaml")):
        scenario = read_scenario(file.stem)
        assert scenario.title
        assert scenario.section
        if scenario.load is None:
            settled(scenario, data / "traces")


def test_an_absent_trace_is_left_out_only_if_that_is_wanted(tmp_path: Path) -> None:
    azure = read_scenario("azure")
    with pytest.raises(InputError, match=r"fetch azure_conv_2023 --out .*traces=FOLDER"):
        result(tmp_path, scenarios=[azure], traces=tmp_path)
    suite = replace(TINY, leave_out=True)
    found = result(tmp_path, suite, [CALM, azure], traces=tmp_path)
    assert [one.name for one in found.scenarios] == ["calm"]
    assert "python -m llmroute_gym.fetch" in found.left_out["azure"]
    (tmp_path / "azure_conv_2023.csv").touch()
    assert trace_file("azure_conv_2023", tmp_path).name == "azure_conv_2023.csv"


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ("equal_71", "did you mean 'equal_70'"),
        (3, "a scenario is a name"),
        ({"name": "equal_70", "view": {"signal_interval": 5}}, "signal_interval_s"),
        ({"name": "equal_70", "workload": {"qps": 3}}, "either load or workload.qps"),
        ({"name": "equal_70", "trace": "azure_conv_2023"}, "set workload.source=trace"),
        ({"name": "straggler", "stragglers": {"replicas": 9}}, "at most 4"),
        ({"name": "straggler", "stragglers": {"slow_s": 600}}, "slow_s must be < every_s"),
        ({"name": "equal_70", "laod": 3}, "key of the scenario equal_70: 'laod'.*mean 'load'"),
        ({"name": "equal_70", "load": [3]}, "holds no scenario"),
    ],
)
def test_wrong_scenarios_end_in_a_sentence(given: Any, sentence: str) -> None:
    with pytest.raises(InputError, match=sentence):
        read_scenario(given)


def test_wrong_routers_end_in_a_sentence(tmp_path: Path) -> None:
    for routers, sentence in (
        (["round_robin", "lor_hybird"], "did you mean 'lor_hybrid'"),
        (["lor"], "unknown suite.baseline 'round_robin'"),
        (["round_robin", "none/model.zip"], "is no file"),
    ):
        with pytest.raises(InputError, match=sentence):
            result(tmp_path, replace(TINY, routers=routers))


def test_growth_of_a_burst_at_the_end_is_no_instability() -> None:
    rng = np.random.default_rng(0)
    outcomes = []
    for _ in range(10):
        arrived = np.sort(rng.random(600) * 600)
        outcomes.append(_Served(arrived, arrived + 20 + 10 * (arrived > 550)))
    assert not growth(outcomes).unstable  # type: ignore[arg-type]


class _Served:
    def __init__(self, arrived_at_s: Any, scheduled_at_s: Any) -> None:
        self.arrived_at_s, self.scheduled_at_s = arrived_at_s, scheduled_at_s


def test_suites_that_are_shipped_name_what_there_is() -> None:
    for file in sorted((config_dir() / "suite").glob("*.yaml")):
        merged = OmegaConf.merge(OmegaConf.structured(SuiteConfig), OmegaConf.load(file))
        suite = OmegaConf.to_object(merged)
        assert isinstance(suite, SuiteConfig)
        assert suite.validate().name == file.stem
        assert running.entrants_of(suite.routers, suite.baseline)
        assert all(read_scenario(one).name == one for one in suite.scenarios)


def test_timelines_show_the_first_run(tmp_path: Path) -> None:
    execution = Execution(tmp_path)
    scenarios, told = (CALM, UNEVEN), ObservationConfig()
    found = run_suite(TINY, scenarios, told, execution)
    shown = suite_timelines(found, TINY, scenarios, told, execution)
    assert [one.scenario for one in shown] == ["calm", "uneven"]
    for one in shown:
        first, second = one.courses
        assert first.router == "round_robin"
        assert second.router in ("random", "lor")
        np.testing.assert_array_equal(first.at_s, second.at_s)
        counts = np.bincount(first.replica, minlength=first.waiting.shape[1])
        assert counts.max() - counts.min() <= 1
