"""What scenarios are drawn against."""

from dataclasses import replace

from llmroute_gym.compare.html.groups import grouped
from llmroute_gym.compare.suites.result import ScenarioResult
from tests.compare.suites.some import some_suite


def like(**changes: object) -> ScenarioResult:
    return replace(some_suite().scenarios[0], **changes)  # type: ignore[arg-type]


def test_loads_are_an_axis_in_their_order() -> None:
    (group,) = grouped([like(name="b", load=0.9), like(name="a", load=0.5)])
    assert group.positions == (50, 90)
    assert [one.name for one in group.scenarios] == ["a", "b"]
    assert group.axis == "Load (% of capacity)"


def test_rates_are_one_where_no_load_is_known() -> None:
    (group,) = grouped([like(load=None, qps=8.0), like(load=None, qps=4.0)])
    assert group.positions == (4, 8)
    assert group.axis == "Arrivals (requests/s)"


def test_others_stand_side_by_side() -> None:
    same_load = [like(load=0.7, qps=4.0), like(load=0.7, qps=9.0)]
    other_clusters = [like(load=None, qps=4.0, n_replicas=4), like(load=None, qps=8.0)]
    other_clusters[1] = replace(other_clusters[1], n_replicas=8)
    for scenarios in (same_load, other_clusters, [like()]):
        (group,) = grouped(scenarios)
        assert group.positions is None
        assert group.scenarios == tuple(scenarios)


def test_headings_keep_their_order() -> None:
    groups = grouped([like(group="z"), like(group="a"), like(group="z", load=0.8)])
    assert [(group.title, len(group.scenarios)) for group in groups] == [("z", 2), ("a", 1)]
