"""The demonstrations' file: round trip, repetition, and what is refused."""

from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from llmroute_gym.config import ClusterConfig, GroupConfig, ObservationConfig, RewardConfig
from llmroute_gym.demos.file import ARRAYS, METADATA_KEY, Demos
from llmroute_gym.demos.layout import DemoLayout
from llmroute_gym.envs.observation import COLUMNS
from llmroute_gym.errors import InputError

pq = pytest.importorskip("pyarrow.parquet")

REPLICAS = 3
LAYOUT = DemoLayout(REPLICAS, ObservationConfig(), RewardConfig(), 0.95)


def some(n: int = 20, seed: int = 0, layout: DemoLayout = LAYOUT, **columns: Any) -> Demos:
    rng = np.random.default_rng(seed)
    action = rng.integers(layout.replicas, size=n)
    mask = rng.random((n, layout.replicas)) < 0.5
    mask[np.arange(n), action] = True
    arrays: dict[str, Any] = {
        "router": np.where(np.arange(n) % 2 == 0, "lor", "round_robin"),
        "seed": np.full(n, seed),
        "episode": np.arange(n) // 5,
        "step": np.arange(n),
        "qps": rng.random(n) + 1,
        "observation": rng.random((n, layout.replicas, len(layout.columns)), dtype=np.float32),
        "mask": mask,
        "action": action,
        "reward": rng.standard_normal(n),
        "return_to_go": rng.standard_normal(n),
    }
    return Demos(layout, ({"seed": seed},), **{**arrays, **columns})


def refused(path: Path) -> str:
    """The sentence that reading a file is refused with; the file stays as it is."""
    before = path.read_bytes() if path.is_file() else None
    with pytest.raises(InputError) as error:
        Demos.load(path)
    assert (path.read_bytes() if path.is_file() else None) == before
    message = str(error.value)
    assert "\n" not in message
    return message


def test_what_is_written_is_read_again(tmp_path: Path) -> None:
    written = some()
    written.save(tmp_path / "a.parquet")
    read = Demos.load(tmp_path / "a.parquet")
    assert read.layout == written.layout
    assert read.collections == written.collections
    for name in ARRAYS:
        np.testing.assert_array_equal(getattr(read, name), getattr(written, name))
        assert getattr(read, name).dtype.kind == getattr(written, name).dtype.kind
    assert [file.name for file in tmp_path.iterdir()] == ["a.parquet"]


def test_any_tool_reads_the_columns(tmp_path: Path) -> None:
    some(7).save(tmp_path / "a.parquet")
    table = pq.read_table(tmp_path / "a.parquet")
    assert tuple(table.column_names) == ARRAYS
    assert len(table.column("observation")[0].as_py()) == REPLICAS * len(COLUMNS)


def test_equal_decisions_give_equal_bytes(tmp_path: Path) -> None:
    some().save(tmp_path / "a.parquet")
    some().save(tmp_path / "b.parquet")
    assert (tmp_path / "a.parquet").read_bytes() == (tmp_path / "b.parquet").read_bytes()


def test_joined_decisions_come_after_the_others() -> None:
    first, second = some(seed=1), some(seed=2)
    both = first.joined(second)
    assert len(both) == 40
    assert both.collections == ({"seed": 1}, {"seed": 2})
    np.testing.assert_array_equal(both.action, np.concatenate([first.action, second.action]))


@pytest.mark.parametrize(
    ("change", "phrase"),
    [
        ({"replicas": 8}, "replicas is 3 there and 8 here"),
        ({"gamma": 0.9}, "gamma is 0.95 there and 0.9 here"),
        (
            {"observation": ObservationConfig(information="router")},
            "observation.information is engine there and router here",
        ),
        (
            {"observation": ObservationConfig(columns=list(COLUMNS[:2]))},
            "and (waiting, running) here; collect into another file",
        ),
    ],
)
def test_another_layout_is_not_mixed_in(change: dict[str, Any], phrase: str) -> None:
    other = replace(LAYOUT, **change)
    with pytest.raises(InputError, match=r"a\.parquet holds demonstrations of another layout") as e:
        some().check_addition(other, ClusterConfig(), ["lor"], 1, "a.parquet")
    assert phrase in str(e.value)


def test_the_same_requests_are_not_added_twice() -> None:
    with pytest.raises(InputError, match="already holds decisions of lor with seed 0"):
        some().check_addition(LAYOUT, ClusterConfig(), ["jsq", "lor"], 0, "a.parquet")
    some().check_addition(LAYOUT, ClusterConfig(), ["jsq"], 0, "a.parquet")
    some().check_addition(LAYOUT, ClusterConfig(), ["lor"], 1, "a.parquet")


def test_a_missing_file_says_how_to_make_it(tmp_path: Path) -> None:
    assert "do not exist; make them with" in refused(tmp_path / "a.parquet")


def test_an_empty_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.parquet").touch()
    assert "are an empty file" in refused(tmp_path / "a.parquet")


@pytest.mark.parametrize("share", [0.02, 0.3, 0.9, 0.999])
def test_a_truncated_file_is_refused(tmp_path: Path, share: float) -> None:
    path = tmp_path / "a.parquet"
    some().save(path)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(share * len(whole))])
    assert "cannot be read as Parquet" in refused(path)


def test_no_decisions_are_refused(tmp_path: Path) -> None:
    some(0).save(tmp_path / "a.parquet")
    assert "holds no decisions" in refused(tmp_path / "a.parquet")


def test_other_parquet_files_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"x": [1]}), path)
    assert "is a Parquet file without demonstrations" in refused(path)


def test_a_missing_column_is_named(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    some().save(path)
    pq.write_table(pq.read_table(path).drop_columns(["reward"]), path)
    assert "lacks the column reward" in refused(path)


def test_a_layout_that_the_columns_do_not_have_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    some().save(path)
    table = pq.read_table(path)
    told = table.schema.metadata[METADATA_KEY].replace(b'"replicas": 3', b'"replicas": 4')
    pq.write_table(table.replace_schema_metadata({METADATA_KEY: told}), path)
    assert "has columns of other types" in refused(path)


@pytest.mark.parametrize(
    ("column", "value", "phrase"),
    [
        ("action", REPLICAS, "row 3: action must be a replica from 0 to 2, got 3"),
        ("return_to_go", np.nan, "row 3: return_to_go must be finite, got nan"),
        ("observation", np.inf, "row 3: observation must be finite"),
    ],
)
def test_a_wrong_row_is_named(tmp_path: Path, column: str, value: float, phrase: str) -> None:
    demos = some()
    getattr(demos, column)[3] = value
    if column == "action":
        demos.mask[:] = True
    demos.save(tmp_path / "a.parquet")
    assert phrase in refused(tmp_path / "a.parquet")


def test_an_action_that_the_mask_forbids_is_named(tmp_path: Path) -> None:
    demos = some()
    demos.mask[6, demos.action[6]] = False
    demos.save(tmp_path / "a.parquet")
    assert "row 6: action must be a replica that its mask allows" in refused(tmp_path / "a.parquet")


def test_a_policy_of_another_layout_cannot_learn_from_them() -> None:
    some().check_fits(REPLICAS, ObservationConfig())
    with pytest.raises(InputError, match="replicas is 3 there and 4 here"):
        some().check_fits(4, ObservationConfig())
    with pytest.raises(InputError, match=r"signal_interval_s is 0\.0 there and 1\.0 here"):
        some().check_fits(REPLICAS, ObservationConfig(signal_interval_s=1.0))


def test_demonstrations_of_before_there_were_mixed_fleets_come_from_equal_replicas() -> None:
    demos = Demos.load(Path(__file__).parents[1] / "data" / "demos_v1.parquet")
    assert "groups" not in demos.collections[0]["cluster"]
    assert demos.layout.observation.prefix_view == "events"  # there was no other view either
    assert demos.cluster_differences(ClusterConfig()) == []
    assert demos.cluster_differences(ClusterConfig(speeds=[2.0, 1.0, 1.0, 0.5])) == [
        "cluster.speeds is [] there and [2.0, 1.0, 1.0, 0.5] here"
    ]


def test_a_fleet_is_stored_with_its_demonstrations(tmp_path: Path) -> None:
    fleet = ClusterConfig(
        groups=[GroupConfig("a100-llama-2-7b", 2), GroupConfig("a30-qwen2-7b", 1, speed=2.0)],
        slowdowns=[[[60, 3], [120, 1]]],
    )
    given = some()
    provenance = ({"seed": 0, "cluster": asdict(fleet)},)
    replace(given, collections=provenance).save(tmp_path / "a.parquet")
    read = Demos.load(tmp_path / "a.parquet")
    assert read.cluster_differences(fleet) == []
    (difference,) = read.cluster_differences(replace(fleet, groups=fleet.groups[:1]))
    assert difference.startswith("cluster.groups is [{'profile': 'a100-llama-2-7b', 'replicas': 2")


def test_returns_under_other_weights_are_refused() -> None:
    some().check_returns(RewardConfig(), 0.95, ClusterConfig())
    with pytest.raises(InputError, match=r"reward\.latency_weight is 1\.7 there and 1\.2 here"):
        some().check_returns(RewardConfig(latency_weight=1.2), 0.95, ClusterConfig())
    with pytest.raises(InputError, match=r"gamma is 0\.95 there and 0\.9 here"):
        some().check_returns(RewardConfig(), 0.9, ClusterConfig())
