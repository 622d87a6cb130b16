"""Searches from their settings to their files."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from llmroute_gym.compare.search import course
from llmroute_gym.compare.search.history import History
from llmroute_gym.compare.search.measuring import Batch, Measuring, Stage
from llmroute_gym.compare.search.pools import pools_of
from llmroute_gym.compare.search.scoring import objectives
from llmroute_gym.compare.search.space import Space
from llmroute_gym.config import (
    ClusterConfig,
    GroupConfig,
    SearchConfig,
    SearchingConfig,
    WorkloadConfig,
)
from llmroute_gym.errors import InputError
from llmroute_gym.routers import make
from llmroute_gym.search import search
from tests.compare.search.rules import InSpells, Lopsided

Make = Callable[..., SearchConfig]
FILES = ("history.csv", "router.yaml", "search.png")


def contents(settings: SearchConfig) -> list[bytes]:
    return [(Path(settings.run_dir) / name).read_bytes() for name in FILES]


def test_it_finds_the_known_optimum(settings: Make) -> None:
    found = search(settings(router="lopsided", budget=60, runs=4, requests=400, loads=[0.7]))
    assert found.constants["share"] == pytest.approx(0.5, abs=0.06)
    assert found.proven.high < 0.8, "85% of the requests on one of two replicas is far too many"


def test_it_finds_whole_and_logarithmic_constants(settings: Make) -> None:
    found = search(settings(budget=80, sigma=0.4))
    assert found.constants["spell"] <= 3
    assert found.constants["exceptions"] < 0.1
    assert found.chosen_by < 1


@pytest.mark.cli
@pytest.mark.parametrize("fresh", [True, False])
def test_the_same_bytes_with_any_number_of_processes(settings: Make, fresh: bool) -> None:
    one, two = settings("one", fresh=fresh), settings("two", fresh=fresh, workers=2)
    search(one)
    search(two)
    assert contents(one) == contents(two)


@pytest.mark.parametrize("lines", [0, 1, 9, 10, 21, 31])
def test_the_same_bytes_after_a_kill(settings: Make, lines: int) -> None:
    whole, killed = settings("whole"), settings("killed")
    search(whole)
    folder = Path(killed.run_dir)
    shutil.copytree(whole.run_dir, folder)
    (folder / "router.yaml").unlink()
    history = (folder / "history.csv").read_text().splitlines(keepends=True)
    torn = history[lines][:7] if lines < len(history) else ""
    (folder / "history.csv").write_text("".join(history[:lines]) + torn)
    with pytest.raises(InputError, match="holds an interrupted search, which is kept; go on with"):
        search(killed)
    search(SearchConfig(resume=str(folder)))
    assert contents(whole) == contents(killed)
    with pytest.raises(InputError, match="already holds a finished run"):
        search(killed)
    with pytest.raises(InputError, match="the run is finished"):
        search(SearchConfig(resume=str(folder)))


def test_what_is_written_is_not_measured_again(
    settings: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = settings()
    search(whole)
    file = Path(whole.run_dir) / "router.yaml"
    written = file.read_bytes()
    file.unlink()

    def unwanted(*_: Any) -> None:
        raise AssertionError

    monkeypatch.setattr(course, "score", unwanted)
    search(SearchConfig(resume=whole.run_dir))
    assert file.read_bytes() == written


def test_a_history_of_another_search_is_refused(settings: Make) -> None:
    one = settings()
    search(one)
    folder = Path(one.run_dir)
    (folder / "router.yaml").unlink()
    config = folder / "config.yaml"
    config.write_text(config.read_text().replace("  sigma: 0.25", "  sigma: 0.5"))
    with pytest.raises(InputError, match="holds candidates of another search"):
        search(SearchConfig(resume=str(folder)))
    (folder / "history.csv").write_text("a,b\n")
    with pytest.raises(InputError, match="holds candidates of another search"):
        search(SearchConfig(resume=str(folder)))


@pytest.mark.parametrize("seed", range(3))
def test_never_worse_than_it_starts_where_it_was_bred(settings: Make, seed: int) -> None:
    same = settings(fresh=False, seed=seed, router="lopsided:share=0.52", budget=10)
    found = search(same)
    measuring = Measuring(pools_of(same), same.search)
    bred, start = (
        measuring.measured(rule, Batch(Stage.BREEDING))
        for rule in (Lopsided(**found.constants), Lopsided(0.52))
    )
    assert objectives(measuring, bred, start)[0] <= 0
    assert found.chosen_by <= 1


def test_the_rule_stays_where_nothing_beats_it(settings: Make) -> None:
    found = search(settings(router="lopsided:share=0.5", budget=10, runs=8, loads=[0.9]))
    assert found.chosen_by == 1
    assert found.constants == {"share": 0.5}
    assert (found.proven.low, found.proven.high) == (1, 1)


def test_what_is_found_is_a_router(settings: Make, capsys: pytest.CaptureFixture[str]) -> None:
    one = settings(router="in_spells:delay=2")
    found = search(one)
    file = Path(one.run_dir) / "router.yaml"
    assert make(str(file)) == InSpells(**found.constants, delay=2.0)
    assert list(yaml.safe_load(file.read_text())) == ["name", "delay", "spell", "exceptions"]
    printed = capsys.readouterr().out
    assert f"spell          1  200      20  {found.constants['spell']:5d}" in printed
    assert "on 450 requests that nothing was chosen by (1 scenario)" in printed
    history = History(Path(one.run_dir) / "history.csv", Space.of("", InSpells(delay=2)))
    assert len(history.candidates) == 30
    assert history.candidates[0].constants == {"spell": 20, "exceptions": 0.2}
    assert history.candidates[0].score.objective == 0


def test_a_limit_is_kept(settings: Make) -> None:
    # Half of all on one of two replicas is the best; but no rule that is blind is as good as lor.
    found = search(
        settings(router="lopsided", ttft_p99_at_most=1e6, budget=12, metric="e2e_mean_s")
    )
    assert found.chosen_by < 1
    strict = settings("strict", router="lopsided", ttft_p99_at_most=1e-3, budget=12)
    assert search(strict).constants == {"share": 0.85}
    # A start that breaks the limit gives way to what keeps it, be that no better otherwise.
    broken = settings("broken", router="lopsided", metric="e2e_p50_s", ttft_p99_at_most=20)
    assert abs(search(broken).constants["share"] - 0.5) < 0.2


def test_scenarios_are_every_cluster_at_every_load(settings: Make) -> None:
    one = settings(loads=[0.5, 0.9], speeds=[[1.0], [2.0, 1.0, 0.5]], replicas=[2, 5])
    pools = pools_of(one)
    assert [[replica.speed for replica in pool.cluster] for pool in pools[::2]] == [
        [1, 1],
        [1, 1, 1, 1, 1],
        [2, 1],
        [2, 1, 0.5, 2, 1],
    ]
    half, most = pools[0].source.qps, pools[1].source.qps
    assert most / half == pytest.approx(1.8)
    orders = {
        tuple(replica.speed for replica in pools[-1].draw(5, np.random.default_rng(seed))[1])
        for seed in range(20)
    }
    assert len(orders) > 5
    assert {tuple(sorted(order)) for order in orders} == {(0.5, 1, 1, 2, 2)}


def test_generations_get_new_workloads_common_to_all(settings: Make) -> None:
    one = settings()
    measuring = Measuring(pools_of(one), one.search)
    first, again, later, choice, proof = (
        measuring.measured(InSpells(), batch)
        for batch in (
            *(Batch(Stage.BREEDING), Batch(Stage.BREEDING), Batch(Stage.BREEDING, 1)),
            *(Batch(Stage.CHOICE), Batch(Stage.PROOF)),
        )
    )
    assert first.shape == (1, 1, 1)
    assert first == again != later
    assert choice.shape == (1, 1, 1)
    assert choice not in (first, later)
    assert proof.shape == (2001, 1, 1)
    assert proof[0] not in (first, later, choice)


def test_metrics_are_those_of_the_table_and_further_percentiles(settings: Make) -> None:
    given = {"e2e_p975_s": 1, "e2e_p95_s": 1, "e2e_p99_s": 1, "e2e_mean_s": 1, "queue_std_s": 4}
    one = settings(metric=given)
    assert one.search.weights() == {**dict.fromkeys(list(given)[:4], 1 / 8), "queue_std_s": 0.5}
    measuring = Measuring(pools_of(one), one.search)
    logs = measuring.measured(InSpells(), Batch(Stage.BREEDING))[0, 0]
    p975, p95, p99, mean, _ = np.exp(logs)
    assert mean < p95 < p975 < p99
    assert sum(SearchingConfig(metric="tail").weights().values()) == pytest.approx(1)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"router": None}, "router is missing; name a rule with constants"),
        ({"router": "lor"}, "search.router=lor has no constants to search; name a rule that has"),
        ({"router": "in_spels"}, "unknown router 'in_spels'.*did you mean 'in_spells'"),
        ({"budget": 9}, "search.budget=9 is too small; one generation of 8.* need 10 candidates"),
        ({"ttft_p99_at_most": 1.1, "ttft_p99_of": "lorr"}, "unknown router 'lorr'"),
        ({"replicas": [0]}, "search.replicas must be >= 1, got 0"),
        ({"speeds": [[1, 0]]}, r"search.speeds\[0\] must be a list of numbers > 0, got \[1, 0\]"),
        ({"metric": "e2e_p98"}, "unknown search.metric 'e2e_p98'.*did you mean"),
        ({"metric": "throughput_rps"}, "unknown search.metric 'throughput_rps'"),
        ({"metric": {"e2e_p99_s": 0}}, "search.metric.e2e_p99_s must be a weight > 0, got 0"),
        ({"metric": {}}, "search.metric weighs nothing"),
    ],
)
def test_wrong_input_gets_one_sentence(
    settings: Make, changes: dict[str, Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=message):
        search(settings(**changes).validate())
    assert not list(tmp_path.iterdir())


def test_contradictions_are_refused(settings: Make) -> None:
    one = settings()
    one.workload = WorkloadConfig(qps=3.0)
    with pytest.raises(InputError, match=r"workload.qps=3 would not be read with search.loads"):
        search(one)
    two = settings(replicas=[2])
    two.cluster = ClusterConfig(groups=[GroupConfig()])
    with pytest.raises(InputError, match=r"cluster.groups fix replicas and speeds"):
        search(two)
