"""The settings: every group against the design's table, and every kind of wrong input."""

from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from llmroute_gym.config import (
    ClusterConfig,
    EnvConfig,
    ModelConfig,
    ObservationConfig,
    RewardConfig,
    Settings,
    TemperatureConfig,
    TrainConfig,
)
from llmroute_gym.errors import InputError
from llmroute_gym.runs.command import SCHEMAS, config_dir, register_schemas, run_command

TUNED = ("original", "latency_tuned", "conservative")
TABLE = {
    "reward.latency_weight": (1.2, 1.7, 1.4),
    "reward.latency_penalty_scale": (0.5, 0.85, 0.5),
    "reward.throughput_target": (2.0, 1.85, 2.0),
    "exploration.entropy_coef": (0.2, 0.05, 0.1),
    "exploration.entropy_warmup_coef": (0.1, 0.02, 0.1),
    "kl.target_kl": (0.01, 0.02, 0.015),
    "kl.entropy_min": (0.5, 0.3, 0.5),
    "kl.kl_coef": (0.2, 0.15, 0.2),
    "kl.kl_ref_decay_steps": (2000, 5000, 2000),
    "temperature.base_temperature": (1.5, 1.0, 1.5),
    "temperature.max_temperature": (3.0, 2.0, 3.0),
    "temperature.qps_sensitivity": (0.1, 0.05, 0.1),
    "temperature.latency_sensitivity": (0.2, 0.1, 0.2),
    "training.ppo_requests": (2000, 20000, 8000),
    "training.qps": (3.0, 2.5, 3.0),
}
SHARED = {
    "cluster.replicas": 4,
    "cluster.profile": "a100-internlm-20b",
    "training.gamma": 0.95,
    "training.gae_lambda": 0.9,
    "training.clip_range": 0.15,
    "training.learning_rate": 3e-4,
    "training.max_grad_norm": 1.0,
    "reward.latency_threshold": 6.0,
    "reward.load_balance_penalty": 1.0,
    "kl.kl_ref_coef_initial": 0.3,
    "kl.kl_ref_coef_final": 0.0,
    "exploration.warmup_steps": 1000,
    "temperature.min_temperature": 0.8,
    "stabilization.steps": 200,
    "warm_start.epochs": 30,
    "warm_start.decisions": 700,
}
LEFT_OPEN = {
    "env.num_envs": (64, 4),
    "env.requests_per_episode": (100, 500),
    "training.rollout_steps": (16, 128),
    "training.minibatch_size": (1024, 64),
    "training.epochs": (4, 8),
    "warm_start.keep": ("better", "all"),
}
"""What the tuning log does not fix: with ``learner=large_batches``, the default, and with
``learner=small_batches``, as in the project that the log belongs to."""


def composed(command: str, *overrides: str) -> Any:
    register_schemas()
    with initialize_config_dir(str(config_dir()), version_base="1.3"):
        return OmegaConf.to_object(compose(command, [*overrides, "run_dir=somewhere"]))


def value(settings: Any, key: str) -> Any:
    for name in key.split("."):
        settings = getattr(settings, name)
    return settings


@pytest.mark.parametrize("column", range(3), ids=TUNED)
def test_experiment_sets_its_column_of_the_table(column: int) -> None:
    settings = composed("train", f"+exp={TUNED[column]}").validate()
    assert {key: value(settings, key) for key in TABLE} == {
        key: row[column] for key, row in TABLE.items()
    }
    assert {key: value(settings, key) for key in SHARED} == SHARED


@pytest.mark.parametrize("group", ["reward", "exploration", "kl", "temperature", "training"])
@pytest.mark.parametrize("column", range(3), ids=TUNED)
def test_group_chosen_alone_changes_nothing_else(group: str, column: int) -> None:
    settings = composed("train", f"{group}={TUNED[column]}")
    expected = {
        key: row[column if key.startswith(f"{group}.") else 1] for key, row in TABLE.items()
    }
    assert {key: value(settings, key) for key in TABLE} == expected


@pytest.mark.parametrize("column", [0, 1], ids=["large_batches", "small_batches"])
@pytest.mark.parametrize("experiment", TUNED)
def test_a_learner_sets_what_the_log_leaves_open(column: int, experiment: str) -> None:
    learner = f"learner={('large_batches', 'small_batches')[column]}"
    found = composed("train", f"+exp={experiment}", learner)
    assert {key: value(found, key) for key in LEFT_OPEN} == {
        key: row[column] for key, row in LEFT_OPEN.items()
    }
    for key in LEFT_OPEN:
        group, name = key.split(".")
        kept = getattr(getattr(composed("train", f"+exp={experiment}"), group), name)
        setattr(getattr(found, group), name, kept)
    assert found == composed("train", f"+exp={experiment}")


def test_a_single_key_goes_before_a_learner() -> None:
    settings = composed("train", "training.epochs=2", "learner=small_batches", "env.num_envs=8")
    assert (settings.training.epochs, settings.env.num_envs) == (2, 8)
    assert settings.training.minibatch_size == 64


@pytest.mark.parametrize("command", SCHEMAS)
def test_files_repeat_no_default(command: str) -> None:
    assert composed(command) == SCHEMAS[command](run_dir="somewhere")


@pytest.mark.parametrize("command", ["pretrain", "collect_demos"])
def test_warm_start_sees_what_the_training_sees(command: str) -> None:
    changes = ["observation=router", "reward=original", "cluster.replicas=3"]
    changes += ["model=mlp", "training.gamma=0.9"] if command == "pretrain" else []
    given, trained = composed(command, *changes), composed("train", *changes)
    for group in {change.split("=")[0].split(".")[0] for change in changes}:
        assert getattr(given, group) == getattr(trained, group)


def options() -> list[str]:
    root = config_dir()
    return sorted(
        f"{file.relative_to(root).parent}={file.stem}"
        for file in root.rglob("*/*.yaml")
        if file.parent.name not in ("exp", "scenario", "search", "suite")
    )


def test_there_are_options() -> None:
    assert {"curriculum=qps_ramp", "workload=trace", "workload/arrivals=bursty"} <= set(options())


@pytest.mark.parametrize("option", options())
def test_every_option_composes_and_is_valid(option: str) -> None:
    beside = ["workload=trace", "workload.path=trace.csv"] if option.endswith("=trace") else []
    beside += ["warm_start=none"] if option == "model=residual" else []
    settings = composed("train", *beside, option).validate()
    group, name = option.split("=")
    if group == "workload/arrivals":
        assert settings.workload.arrivals["process"] == name
    if group == "cluster" and name not in ("mixed", "straggler"):
        assert settings.cluster.profile == name


def test_an_option_is_seen_by_what_it_configures() -> None:
    assert composed("train", "stabilization=disabled").stabilization.enabled is False
    assert composed("train", "curriculum=qps_ramp").curriculum.stages == [2.5, 3.5, 4.5]
    assert composed("train", "warm_start=none").warm_start.cloning is False
    assert composed("train", "logger=offline").logger.wandb == "offline"
    assert composed("train", "workload=trace", "workload.path=x").workload.source == "trace"


def test_workload_follows_the_rate_of_the_training_unless_set() -> None:
    def rate(*overrides: str) -> float:
        settings = composed("train", *overrides)
        return float(settings.workload.rate(settings.training.qps))

    assert rate("+exp=original") == 3.0
    assert rate("training.qps=4") == 4.0
    assert rate("training.qps=4", "workload.qps=5") == 5.0


@pytest.fixture
def refused(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> Callable[..., str]:
    """Runs a command line that must be refused, and returns the one line it says."""
    monkeypatch.chdir(tmp_path)

    def run(*overrides: str, command: str = "train") -> str:
        monkeypatch.setattr("sys.argv", [command, *overrides])
        called: list[Any] = []
        with pytest.raises(SystemExit) as exit_:
            run_command(command, called.append)
        assert exit_.value.code == 2
        assert not called
        said = capsys.readouterr()
        assert said.out == ""
        assert "Traceback" not in said.err
        assert len(said.err.strip().splitlines()) == 1
        return said.err.strip()

    return run


@pytest.mark.cli
@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["reward.latncy_weight=1"], "unknown key reward.latncy_weight; did you mean reward.laten"),
        (["+reward.latncy_weight=1"], "unknown key reward.latncy_weight; did you mean reward.late"),
        (["rewrd=original"], "unknown key rewrd; did you mean reward?"),
        (["+anything=1"], "unknown key anything"),
        (
            ["learner.epochs=4"],
            "learner.epochs is no key: learner only takes large_batches or small_batches; did you "
            "mean training.epochs?",
        ),
        (["learner.lr=1"], "learner.lr is no key: learner only takes large_batches or small_bat"),
        (["learner=medium"], "unknown option of learner 'medium'; available: large_batches, "),
        (["warm_start.keep=best"], "unknown warm_start.keep 'best'"),
        (["exploration.entcoef=1"], "did you mean exploration.entropy_coef?"),
        (["+exp=orignal"], "did you mean 'original'"),
        (["exp=original"], "exp is not chosen by default; write +exp=original"),
        (["reward=orignal"], "unknown option of reward 'orignal'; available: conservative, "),
        (["workload/arrivals=posson"], "did you mean 'poisson'"),
        (["workload/arrivals=bursty", "workload.arrivals.factor=2"], "workload.arrivals.burst_fac"),
        (["reward.latency_weight=high"], "wrong value for reward.latency_weight: Value 'high'"),
        (["training.ppo_requests=1.5"], "wrong value for training.ppo_requests"),
        (["seed="], "wrong value for seed"),
        (["reward.latency_weight"], "missing EQUAL"),
        (["reward=null"], "must be a string"),
        (["seed=${nowhere}"], "nowhere"),
        (["reward=original,latency_tuned"], "--multirun"),
        (["workload.qps=-1"], "workload.qps must be > 0, got -1.0"),
        (["workload.qps=nan"], "workload.qps must be a number > 0, got nan"),
        (["training.qps=0"], "training.qps must be > 0, got 0.0"),
        (["workload=trace"], "workload.path is missing"),
        (["cluster.replicas=0"], "cluster.replicas must be >= 1, got 0"),
        (
            ["cluster.groups=[{profile: a30-qwen2-7b}]", "cluster.replicas=8"],
            "cluster.replicas=8 would not be read with cluster.groups",
        ),
        (
            ["cluster=a100-llama-2-7b", "cluster.groups=[{profile: a30-qwen2-7b}]"],
            "cluster.profile=a100-llama-2-7b would not be read with cluster.groups",
        ),
        (
            ["cluster.groups=[{profile: a30-qwen2-7b}]", "cluster.speeds=[1]"],
            "cluster.speeds=[1.0] would not be read with cluster.groups, which have their own",
        ),
        (["cluster.groups=[{profle: a30-qwen2-7b}]"], "unknown key profle; did you mean profile?"),
        (["cluster.groups=[{replicas: 0}]"], "cluster.groups[0].replicas must be >= 1, got 0"),
        (
            ["cluster.groups=[{profile: a30-qwen2-7b}]", "kl.entropy_min=0.5"],
            "kl.entropy_min must be at most ln 1",
        ),
        (["cluster.speeds=[2,1]"], "cluster.speeds must have one number per replica (4), got 2"),
        (["cluster.speeds=[1,1,1,0]"], "cluster.speeds must be > 0, got 0.0"),
        (["cluster.speeds=[1,1,1,2]", "cluster.speed=2"], "cluster.speed=2.0 would not be read"),
        (["cluster.slowdowns=[[],[],[],[],[]]"], "cluster.slowdowns has 5 lists for 4 replicas"),
        (
            ["cluster.slowdowns=[[60,3]]"],
            "cluster.slowdowns[0] must be a list of pairs [start_s, f",
        ),
        (["env.num_envs=0"], "env.num_envs must be >= 1, got 0"),
        (["env.engine=fast"], "unknown env.engine 'fast'; available: compiled, reference"),
        (["observation.information=all"], "unknown observation.information 'all'"),
        (["model.policy=cnn"], "unknown model.policy 'cnn'"),
        (["model.actor_sizes=[64,0]"], "model.actor_sizes must be >= 1, got 0"),
        (["curriculum.stages=[2.5,-1]"], "curriculum.stages must be > 0, got -1.0"),
        (["curriculum.stages=[3.5,2.5]"], "curriculum.stages must rise, got 2.5 after 3.5"),
        (["curriculum.advance=time"], "unknown curriculum.advance 'time'"),
        (
            ["curriculum=qps_ramp", "curriculum.requests=[100]"],
            "curriculum.requests must have one number per stage but the last (2), got 1",
        ),
        (
            ["curriculum=qps_ramp", "curriculum.requests=[9000,11000]"],
            "leaves nothing of training.ppo_requests (20000) for the last stage",
        ),
        (["stabilization.steps=0"], "stabilization.steps must be >= 1, got 0"),
        (["warm_start.epochs=0"], "warm_start.epochs must be >= 1, got 0"),
        (["warm_start.policies=[]"], "warm_start.policies is empty"),
        (["warm_start.policies=[lor,lor]"], "warm_start.policies names lor twice"),
        (["warm_start.demos=d", "warm_start.decisions=9"], "decisions=9 would not be read with"),
        (["warm_start.demos=d", "warm_start.cloning=false"], "demos=d would not be read with"),
        (["workload.path=trace.csv"], "workload.path=trace.csv would not be read with workload.s"),
        (["workload/arrivals=trace"], "add workload=trace workload.path=FILE, or choose workloa"),
        (["workload.limit=5"], "choose workload=trace or leave it out"),
        (["workload.own_rate=true"], "workload.own_rate=True would not be read with workload.sou"),
        (
            ["workload=trace", "workload.path=t", "workload.own_rate=true", "workload.qps=3"],
            "workload.qps=3.0 would not be read with workload.own_rate=true; leave one of them out",
        ),
        (
            ["workload=trace", "workload.path=t", "workload.own_rate=true", "curriculum=qps_ramp"],
            "curriculum.stages=[2.5, 3.5, 4.5] would not be read with workload.own_rate=true",
        ),
        (
            ["workload=trace", "workload.path=t", "workload.lengths.model=lognormal"],
            "would not be read with workload.source=trace; choose workload=azure_conv or leave",
        ),
        (
            ["curriculum=qps_ramp", "curriculum.plateau_episodes=2"],
            "with curriculum.advance=requests; choose curriculum.advance=plateau or leave it out",
        ),
        (["seed=5000000000"], "seed must be >= 0 and <= 4294967295, got 5000000000"),
        (["model.critic_sizes=[]"], "model.critic_sizes must have at least one layer"),
        (
            ["curriculum=qps_ramp", "curriculum.advance=plateau", "curriculum.requests=[9,9]"],
            "curriculum.requests=[9, 9] would not be read with curriculum.advance=plateau",
        ),
        (["exploration.warmup_steps=0"], "exploration.warmup_steps must be >= 1, got 0"),
        (["exploration.entropy_coef=-0.1"], "exploration.entropy_coef must be >= 0, got -0.1"),
        (["kl.entropy_min=1.5"], "kl.entropy_min must be at most ln 4 = 1.39"),
        (["kl.kl_ref_coef_initial=-1"], "kl.kl_ref_coef_initial must be >= 0, got -1.0"),
        (["temperature.qps_sensitivity=-1"], "temperature.qps_sensitivity must be >= 0"),
        (["kl.kl_coef=-1"], "kl.kl_coef must be >= 0, got -1.0"),
        (["kl.kl_ref_decay_steps=0"], "kl.kl_ref_decay_steps must be >= 1, got 0"),
        (["training.gamma=1.5"], "training.gamma must be >= 0 and <= 1, got 1.5"),
        (
            ["temperature.min_temperature=9"],
            "min_temperature must be <= temperature.max",
        ),
        (["temperature.base_temperature=5"], "temperature.base_temperature must lie between"),
        (["logger.wandb=on"], "logger.wandb"),
        (["evaluation.runs=1"], "evaluation.runs must be >= 2, got 1"),
        (["evaluation.runs=0"], "evaluation.runs must be >= 2, got 0"),
        (["run_dir=/dev/null/run"], "cannot write the run folder /dev/null/run"),
    ],
    ids=lambda given: given[-1] if isinstance(given, list) else "",
)
def test_wrong_input_ends_in_one_sentence(
    refused: Callable[..., str], overrides: list[str], words: str
) -> None:
    assert words in refused(*overrides)


@pytest.mark.cli
def test_evaluate_names_its_keys_without_a_group(refused: Callable[..., str]) -> None:
    assert refused("runs=1", command="evaluate") == "runs must be >= 2, got 1"
    assert "did you mean routers?" in refused("router=[lor]", command="evaluate")
    assert "did you mean workload.qps?" in refused("+qps=3", command="evaluate")
    assert "routers: expected a list, such as" in refused("routers=lor", command="evaluate")


@pytest.mark.cli
def test_right_input_reaches_the_function(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["train", "+exp=original", "run_dir=here", "seed=7"])
    called: list[TrainConfig] = []
    run_command("train", called.append)
    assert called[0].seed == 7
    assert called[0].run_dir == str(tmp_path / "here")
    assert asdict(called[0].reward)["latency_weight"] == 1.2


@pytest.mark.cli
def test_multirun_gives_each_job_its_folder(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(
        "sys.argv",
        [
            "train",
            "-m",
            "reward=original,latency_tuned",
            "temperature=original,latency_tuned",
            "run_dir=grid",
        ],
    )
    called: list[TrainConfig] = []
    run_command("train", called.append)
    assert [Path(job.run_dir).name for job in called] == ["0", "1", "2", "3"]
    assert [(job.reward.latency_weight, job.temperature.base_temperature) for job in called] == [
        (1.2, 1.5),
        (1.2, 1.0),
        (1.7, 1.5),
        (1.7, 1.0),
    ]


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (RewardConfig(latency_threshold="6"), "reward.latency_threshold must be a number > 0"),  # type: ignore[arg-type]
        (RewardConfig(latency_weight=float("inf")), "must be a number >= 0, got inf"),
        (EnvConfig(num_envs=2.5), "env.num_envs must be an integer >= 1, got 2.5"),  # type: ignore[arg-type]
        (EnvConfig(num_envs=True), "env.num_envs must be an integer >= 1, got True"),
        (ObservationConfig(predicted_output_sigma=-0.1), "must be >= 0, got -0.1"),
        (ObservationConfig(prefix_view="event"), "available: events, tree; did you mean 'events'?"),
        (ObservationConfig(events_lag_s=float("inf")), "events_lag_s must be a number >= 0"),
        (ObservationConfig(tree_blocks=0), "observation.tree_blocks must be >= 1, got 0"),
        (ObservationConfig(information="metric"), "did you mean 'metrics'?"),
        (ObservationConfig(gateways=0), "observation.gateways must be >= 1, got 0"),
        (ObservationConfig(gateways=1.5), "gateways must be an integer >= 1, got 1.5"),  # type: ignore[arg-type]
        (ObservationConfig(speed_hidden=1), "speed_hidden must be True or False, got 1"),  # type: ignore[arg-type]
        (ObservationConfig(speed_hidden="no"), "speed_hidden must be True or False, got 'no'"),  # type: ignore[arg-type]
        *(
            (
                ObservationConfig(columns=["waiting", name]),
                f"columns has {name}, which is a name, no",
            )
            for name in ("now_s", "session", "prompt_head")
        ),
        (ModelConfig(critic_sizes=[0]), "model.critic_sizes must be >= 1, got 0"),
        (TemperatureConfig(base_temperature=0.1), "temperature.base_temperature must lie between"),
    ],
)
def test_settings_made_in_python_are_checked_alike(settings: Settings, words: str) -> None:
    groups = "reward|env|observation|model|temperature"
    with pytest.raises(InputError, match=rf"^(unknown )?({groups})\.") as error:
        settings.validate()
    assert words in str(error.value)


def test_a_training_needs_the_column_that_its_temperature_reads() -> None:
    told = ObservationConfig(columns=["waiting", "running"])
    deaf = TemperatureConfig(latency_sensitivity=0)
    assert TrainConfig(observation=told, temperature=deaf).validate()
    with pytest.raises(InputError, match=r"^temperature\.latency_sensitivity=0\.1 needs e2e_s, wh"):
        TrainConfig(observation=told).validate()


def test_a_group_is_no_mapping_in_python() -> None:
    with pytest.raises(InputError, match=r"cluster\.groups\[0\] must be a GroupConfig, got {'prof"):
        ClusterConfig(groups=[{"profile": "a30-qwen2-7b"}]).validate()  # type: ignore[list-item]


def test_cluster_overrides_are_only_what_differs_from_the_profile() -> None:
    assert ClusterConfig().overrides() == {}
    assert ClusterConfig(chunk_size=256, speed=2.0).overrides() == {"chunk_size": 256, "speed": 2.0}
