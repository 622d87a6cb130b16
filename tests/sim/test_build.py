"""From settings to clusters and sources of requests."""

from pathlib import Path

import numpy as np
import pytest
from omegaconf import OmegaConf

from llmroute_gym.config import ClusterConfig, GroupConfig, WorkloadConfig, simulation
from llmroute_gym.errors import InputError
from llmroute_gym.runs.command import config_dir
from llmroute_gym.sim import Cluster, Workload
from llmroute_gym.sim.build import build_cluster, build_source
from llmroute_gym.sim.sources import PROMPT_SOURCES

OWN, POISSON = {"process": "trace"}, {"process": "poisson"}


@pytest.fixture
def lengths_only(tmp_path: Path) -> Path:
    path = tmp_path / "lengths.csv"
    path.write_text("num_prefill_tokens,num_decode_tokens\n" + "374,44\n" * 30)
    return path


@pytest.fixture
def trace(tmp_path: Path) -> Path:
    """Thirty requests, one every quarter of a second."""
    path = tmp_path / "trace.csv"
    Workload(np.arange(30) / 4, np.full(30, 374), np.full(30, 44)).to_csv(path)
    return path


def recorded(path: Path, **settings: object) -> WorkloadConfig:
    given = {"source": "trace", "path": str(path), **settings}
    return WorkloadConfig(**given).validate()  # type: ignore[arg-type]


def test_times_are_drawn_for_a_file_of_lengths(lengths_only: Path) -> None:
    source = build_source(recorded(lengths_only, arrivals=POISSON), 2.5)
    workload = source.sample(20, np.random.default_rng(0))
    assert set(workload.prompt_tokens.tolist()) == {374}
    assert workload.qps == pytest.approx(2.5, rel=0.5)


@pytest.mark.parametrize("settings", [{"arrivals": OWN}, {"arrivals": POISSON, "own_rate": True}])
def test_a_file_of_lengths_has_no_times_of_its_own(
    lengths_only: Path, settings: dict[str, object]
) -> None:
    with pytest.raises(InputError, match=r"lengths\.csv has no arrival times") as error:
        build_source(recorded(lengths_only, **settings), 2.5)
    assert "choose workload/arrivals=poisson" in error.value.command_sentence


def test_a_trace_keeps_its_own_times_and_rate(trace: Path) -> None:
    source = build_source(recorded(trace, arrivals=OWN, own_rate=True), 2.5)
    assert source.qps == 4.0
    window = source.sample(20, np.random.default_rng(0))
    assert (np.diff(window.arrived_at_s) == 0.25).all()
    assert build_source(recorded(trace, arrivals=OWN), 2.5).qps == 2.5


def test_drawn_times_may_have_the_traces_rate(trace: Path) -> None:
    source = build_source(recorded(trace, arrivals=POISSON, own_rate=True), 2.5)
    assert source.qps == 4.0
    gaps_s = np.diff(source.sample(30, np.random.default_rng(0)).arrived_at_s)
    assert len(set(gaps_s)) > 20


def test_a_trace_at_one_instant_has_no_rate_to_keep(tmp_path: Path) -> None:
    Workload(np.zeros(3), np.ones(3), np.ones(3)).to_csv(tmp_path / "trace.csv")
    for arrivals in (OWN, POISSON):
        with pytest.raises(InputError, match=r"workload\.own_rate=true needs a rate"):
            build_source(recorded(tmp_path / "trace.csv", arrivals=arrivals, own_rate=True), 2.5)


def test_a_cluster_is_as_many_replicas_of_its_profile() -> None:
    cluster = build_cluster(ClusterConfig(replicas=3, chunk_size=256))
    one = Cluster.from_profile("a100-internlm-20b", 1, chunk_size=256)[0]
    assert len(cluster) == 3
    assert all(replica is cluster[0] for replica in cluster)
    assert repr(cluster[0]) == repr(one)


def test_every_replica_may_have_its_speed_and_slowdowns() -> None:
    config = ClusterConfig(
        speeds=[2.0, 1.0, 1.0, 0.5], slowdowns=[[], [[60, 3], [120, 1]]], max_batch=7
    ).validate()
    cluster = build_cluster(config)
    assert [one.speed for one in cluster] == [2.0, 1.0, 1.0, 0.5]
    assert [len(one.slowdowns) for one in cluster] == [0, 2, 0, 0]
    assert [cluster[1].slowdown_at(time_s) for time_s in (59.0, 60.0, 120.0)] == [1.0, 3.0, 1.0]
    assert {one.max_batch for one in cluster} == {7}
    assert config.title() == (
        "4 x a100-internlm-20b at speeds 2, 1, 1, 0.5 (slowdowns of replica 1)"
    )


def test_the_settings_of_vllm_reach_the_replicas() -> None:
    config = ClusterConfig(
        scheduler="vllm_v1",
        prefix_caching=False,
        chunked_prefill=True,
        long_prefill_tokens=1024,
        admission="chunk",
        watermark=0.01,
        max_model_len=8192,
    ).validate()
    replica = build_cluster(config)[3]
    assert {name: getattr(replica, name) for name in config.overrides()} == config.overrides()
    assert len(config.overrides()) == 7
    assert build_cluster(ClusterConfig(scheduler="vllm_v1"))[0].prefix_caching


def test_groups_stand_in_their_order() -> None:
    config = ClusterConfig(
        groups=[
            GroupConfig("h100-codellama-34b", replicas=2),
            GroupConfig("a100-llama-2-7b", speed=1.5, oversize="reject"),
        ]
    ).validate()
    big, small = Cluster.from_profile("h100-codellama-34b"), Cluster.from_profile("a100-llama-2-7b")
    cluster = build_cluster(config)
    assert [one.num_blocks for one in cluster] == [big[0].num_blocks] * 2 + [small[0].num_blocks]
    assert [one.oversize for one in cluster] == ["raise", "raise", "reject"]
    assert [one.speed for one in cluster] == [1.0, 1.0, 1.5]
    assert config.n_replicas == 3
    assert config.title() == "2 x h100-codellama-34b, 1 x a100-llama-2-7b at speed 1.5"


def test_many_speeds_are_named_by_their_ends() -> None:
    config = ClusterConfig(replicas=64, speeds=[1.0 + index for index in range(64)])
    assert config.title() == "64 x a100-internlm-20b at speeds 1 to 64"


def test_the_settings_know_the_sources_of_shared_prompts() -> None:
    assert sorted(PROMPT_SOURCES) == list(simulation.PROMPT_SOURCES)


@pytest.mark.parametrize("name", PROMPT_SOURCES)
def test_the_file_of_a_source_has_the_defaults_of_its_class(name: str) -> None:
    written = OmegaConf.load(Path(config_dir()) / "workload" / f"{name}.yaml")
    assert written.source == name
    made = build_source(WorkloadConfig(source=name, prompts=dict(written.prompts)).validate(), 3.0)
    usual = build_source(WorkloadConfig(source=name).validate(), 3.0)
    options = {key: value for key, value in vars(made).items() if key != "arrivals"}
    assert options == {key: value for key, value in vars(usual).items() if key != "arrivals"}
    assert set(options) == {"qps", *written.prompts}
    assert len(made.sample(20, np.random.default_rng(0))) == 20


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"source": "shared_prefix", "prompts": {"groups": 0}}, "groups must be an integer >= 1"),
        ({"source": "shared_prefix", "prompts": {"group": 3}}, "did you mean"),
        ({"source": "multi_turn", "prompts": {"qps": 3}}, "set workload.qps instead"),
        ({"prompts": {"groups": 3}}, "choose workload=shared_prefix or leave it out"),
        ({"source": "shared_prefix", "lengths": {"model": "fixed"}}, "choose workload=azure_conv"),
        ({"source": "shared_prefix", "path": "x.csv"}, "choose workload=trace"),
        ({"source": "agent_loop", "arrivals": OWN}, "workload/arrivals=trace replays the times"),
    ],
)
def test_wrong_options_of_sources_are_named(settings: dict[str, object], words: str) -> None:
    with pytest.raises(InputError, match=words):
        build_source(WorkloadConfig(**settings).validate(), 3.0)  # type: ignore[arg-type]
