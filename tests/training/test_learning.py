"""From settings to what trains: every key reaches the thing that it is about."""

import csv
import os
import sys
from dataclasses import replace
from fnmatch import fnmatch
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from llmroute_gym.collect_demos import collect_demos
from llmroute_gym.config import (
    CloningConfig,
    ClusterConfig,
    CollectDemosConfig,
    CurriculumConfig,
    EnvConfig,
    EvaluationConfig,
    ExplorationConfig,
    KLConfig,
    LoggerConfig,
    ModelConfig,
    ObservationConfig,
    PretrainConfig,
    RewardConfig,
    StabilizationConfig,
    TemperatureConfig,
    TrainConfig,
    TrainingConfig,
    WarmStartConfig,
    WorkloadConfig,
)
from llmroute_gym.errors import InputError
from llmroute_gym.pretrain import pretrain
from llmroute_gym.runs.folder import RunFolder
from llmroute_gym.sb3 import (
    EntropyWarmup,
    KLReferenceDecay,
    LinearDecay,
    ObservationStatistics,
    PolicyRouter,
    TemperatureControl,
)
from llmroute_gym.sb3.callbacks.curriculum import QPSCurriculum
from llmroute_gym.sb3.checkpoint import Checkpoint, Layout
from llmroute_gym.sb3.row_normalizer import normalizers
from llmroute_gym.sim.build import build_cluster, build_source
from llmroute_gym.train import train
from llmroute_gym.training.dashboard import PANELS
from llmroute_gym.training.learning import callbacks, environments
from llmroute_gym.training.setup import (
    make_model,
    ppo_settings,
    reward_scale,
    set_threads,
)
from llmroute_gym.training.start import prepare
from llmroute_gym.training.tracking import wandb_run
from llmroute_gym.training.warm_start import WarmStart

# No value is the default of its key.
CHANGED = TrainConfig(
    reward=RewardConfig(1.1, 0.6, 2.1, 0.9, 0.8, 5.0),
    exploration=ExplorationConfig(0.21, 0.11, 900),
    kl=KLConfig(0.03, 0.4, 0.7, 0.25, 0.5, 0.1, 700),
    temperature=TemperatureConfig(1.2, 0.9, 1.9, 0.07, 0.08, 0.09, 3.1, 4.2),
    training=TrainingConfig(4096, 3.2, 0.9, 0.8, 0.2, 3, 64, 32, 1e-4, 0.4, 0.6),
    cluster=ClusterConfig(replicas=3),
    env=EnvConfig(num_envs=2, requests_per_episode=77),
    model=ModelConfig("mlp", [32, 16], [8], "relu"),
    stabilization=StabilizationConfig(steps=10, freeze=False),
    curriculum=CurriculumConfig([1.5, 3.5]),
    seed=5,
).validate()


def vec_env(settings: TrainConfig) -> Any:
    source = build_source(settings.workload, settings.workload.rate(settings.training.qps))
    return environments(settings, build_cluster(settings.cluster), source)


def made(settings: TrainConfig, folder: Path) -> tuple[Any, Any, dict[type, Any]]:
    """Returns model, environment and callbacks of a training."""
    env = vec_env(settings)
    ppo = ppo_settings(
        settings.training,
        settings.exploration,
        settings.kl,
        num_envs=env.num_envs,
        seed=settings.seed,
    )
    model = make_model(settings.model, env, ppo)
    model.set_reference()
    chosen = callbacks(settings, model, RunFolder(folder), total=4096)
    return model, env, {type(one): one for one in chosen}


def test_every_key_reaches_what_it_is_about(tmp_path: Path) -> None:
    model, env, chosen = made(CHANGED, tmp_path)
    training, kl = CHANGED.training, CHANGED.kl
    assert {
        "learning_rate": model.learning_rate,
        "gamma": model.gamma,
        "gae_lambda": model.gae_lambda,
        "clip_range": model.clip_range(1),
        "epochs": model.n_epochs,
        "rollout_steps": model.n_steps,
        "minibatch_size": model.batch_size,
        "value_coef": model.vf_coef,
        "max_grad_norm": model.max_grad_norm,
    }.items() <= vars(training).items()
    assert {
        name: getattr(model, name)
        for name in ("target_kl", "entropy_min", "entropy_min_coef", "kl_coef")
    }.items() <= vars(kl).items()
    assert env.gamma == training.gamma
    assert model.ent_coef == CHANGED.exploration.entropy_coef
    assert chosen[EntropyWarmup].schedule == LinearDecay(0.21 + 0.11, 0.21, 675)
    assert chosen[KLReferenceDecay].schedule == LinearDecay(0.5, 0.1, 525)
    assert chosen[TemperatureControl].config == CHANGED.temperature
    assert chosen[ObservationStatistics].freeze is False
    assert chosen[QPSCurriculum].config == CHANGED.curriculum
    assert (model.n_envs, model.action_space.n, model.seed) == (2, 3, 5)
    sizes = [list(weight.shape) for weight in model.policy.mlp_extractor.parameters()]
    assert [shape[0] for shape in sizes if len(shape) == 2] == [32, 16, 8]
    assert any(isinstance(one, torch.nn.ReLU) for one in model.policy.modules())
    under = env.unwrapped.env.unwrapped
    assert under.reward_config == CHANGED.reward
    assert under.requests_per_episode == 77
    assert under.source.qps == 1.5  # the first stage


def test_targets_of_the_temperature_follow_the_training(tmp_path: Path) -> None:
    settings = replace(CHANGED, temperature=TemperatureConfig())
    _, _, chosen = made(settings, tmp_path)
    config = chosen[TemperatureControl].config
    assert (config.target_qps, config.target_latency) == (3.2, 5.0)


def tiny(folder: Path, **settings: Any) -> TrainConfig:
    defaults: dict[str, Any] = {
        "training": TrainingConfig(ppo_requests=96, rollout_steps=24, epochs=2),
        "env": EnvConfig(num_envs=2, requests_per_episode=40),
        "warm_start": WarmStartConfig(cloning=False),
        "stabilization": StabilizationConfig(steps=20),
        "evaluation": EvaluationConfig(runs=2, requests=30, resamples=50),
        "run_dir": str(folder),
    }
    return TrainConfig(**{**defaults, **settings}).validate()


def rows(file: Path) -> list[dict[str, str]]:
    with file.open() as opened:
        return list(csv.DictReader(opened))


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "finished"
    start = WarmStartConfig(decisions=60, epochs=1)
    train(tiny(folder, curriculum=CurriculumConfig([2.5, 3.5]), warm_start=start))
    return folder


def test_the_temperature_in_force_is_that_of_its_pressures(finished: Path) -> None:
    config = TemperatureConfig()
    for row in rows(finished / "metrics.csv")[:-1]:
        wanted = (
            config.base_temperature
            - config.qps_sensitivity * float(row["temperature/qps_pressure"])
            - config.latency_sensitivity * float(row["temperature/latency_pressure"])
            + config.balance_sensitivity * (1 - float(row["temperature/balance"]))
        )
        # The pressures are the last rollout's, the temperature was set before it.
        assert config.min_temperature <= float(row["temperature/value"]) <= config.max_temperature
        assert float(row["temperature/value"]) == pytest.approx(wanted, abs=1e-6)


def test_the_dashboard_has_a_column_for_each_curve(finished: Path) -> None:
    columns = list(rows(finished / "metrics.csv")[0])
    assert columns == sorted(columns)
    for _, patterns in PANELS:
        for pattern in patterns:
            assert any(fnmatch(column, pattern) for column in columns), pattern


def test_the_value_head_speaks_of_the_scaled_rewards(finished: Path, tmp_path: Path) -> None:
    start = WarmStartConfig(checkpoint=str(finished), cloning=False)
    settings = tiny(tmp_path, warm_start=start, reward=RewardConfig(latency_weight=9.0))
    env = vec_env(settings)
    cluster = build_cluster(settings.cluster)
    source = build_source(settings.workload, settings.training.qps)
    model = prepare(settings, env, WarmStart.find(settings, cluster), cluster, source)
    layout, before = Layout.read(finished / "model.zip"), Checkpoint.load(finished).model
    assert layout is not None
    factor = layout.reward_scale / reward_scale(env)
    assert not 0.9 < factor < 1.1
    torch.testing.assert_close(
        model.policy.value_net.weight, before.policy.value_net.weight * factor
    )


@pytest.mark.slow
def test_random_weights_are_no_reference(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO"):
        train(tiny(tmp_path / "run"))
    assert "no reference: PPO starts from random weights" in caplog.text
    assert "reference of the KL" not in caplog.text
    model = Checkpoint.load(tmp_path / "run").model
    assert not model.has_reference
    metrics = rows(tmp_path / "run" / "metrics.csv")
    assert {row["coef/kl_ref"] for row in metrics} == {"", "0.0"}
    assert "train/kl_ref" not in metrics[0]
    # Without one, statistics that were filled go on with what the policy sees.
    (normalizer,) = normalizers(model.policy)
    filled = 2 * 20 * 4
    assert float(normalizer.count) > filled


@pytest.mark.slow
def test_stage_3_and_the_external_pretraining(tmp_path: Path) -> None:
    shared: dict[str, Any] = {
        "reward": RewardConfig(latency_weight=1.3),
        "observation": ObservationConfig(signal_interval_s=0.5),
    }
    collect_demos(
        CollectDemosConfig(
            policies=["lor"], decisions=120, run_dir=str(tmp_path / "demos"), **shared
        )
    )
    demos = str(tmp_path / "demos" / "demos.parquet")
    pretrain(
        PretrainConfig(
            demos=demos,
            cloning=CloningConfig(epochs=2),
            evaluation=EvaluationConfig(routers=[], runs=2, requests=30, resamples=50),
            run_dir=str(tmp_path / "clone"),
            **shared,
        )
    )
    stage_3 = WarmStartConfig(demos=demos, epochs=2)
    train(tiny(tmp_path / "stage_3", warm_start=stage_3, **shared))
    model = Checkpoint.load(tmp_path / "stage_3").model
    assert model.reference_origin == "a clone of lor (120 decisions)"

    external = WarmStartConfig(checkpoint=str(tmp_path / "clone"), cloning=False)
    train(tiny(tmp_path / "external", warm_start=external, **shared))
    clone = Checkpoint.load(tmp_path / "clone").model.policy.state_dict()
    reference = Checkpoint.load(tmp_path / "external").model.reference_policy.state_dict()
    for name, value in clone.items():
        if not name.startswith(("value_net", "temperature")):
            assert torch.equal(reference[name], value), name

    for changes, words in (
        ({"reward": RewardConfig()}, "latency_weight is 1.3 there and 1.7 here"),
        ({"observation": ObservationConfig()}, "signal_interval_s is 0.5 there and 0.0 here"),
        ({"cluster": ClusterConfig(replicas=3)}, "replicas is 4 there and 3 here"),
    ):
        with pytest.raises(InputError, match=words):
            train(tiny(tmp_path / "refused", warm_start=stage_3, **{**shared, **changes}))
    assert not (tmp_path / "refused").exists()


def test_other_replicas_behind_the_demonstrations_are_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    collect_demos(CollectDemosConfig(decisions=60, run_dir=str(tmp_path)))
    start = WarmStartConfig(demos=str(tmp_path), epochs=1)
    settings = tiny(tmp_path, warm_start=start, cluster=ClusterConfig("a100-llama-2-7b"))
    WarmStart.find(settings, build_cluster(settings.cluster))
    assert "cluster.profile is a100-internlm-20b there and a100-llama-2-7b here" in caplog.text


@pytest.mark.slow
def test_settings_without_effect_are_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    start = WarmStartConfig(cloning=False, epochs=3)
    calm, curriculum = (
        StabilizationConfig(False, 9, freeze=True),
        CurriculumConfig(advance="plateau"),
    )
    train(tiny(tmp_path, warm_start=start, stabilization=calm, curriculum=curriculum))
    assert "warm_start.epochs=3 has no effect with warm_start.cloning=false" in caplog.text
    assert "stabilization.steps=9 has no effect with stabilization.enabled=false" in caplog.text
    assert "stabilization.freeze=true has no effect with stabilization.enabled" in caplog.text
    assert "curriculum.advance=plateau has no effect with curriculum.stages=[]" in caplog.text


@pytest.mark.slow
def test_paths_are_kept_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    lines = ["TIMESTAMP,ContextTokens,GeneratedTokens"]
    lines += [f"2023-11-16 18:15:{second:02d}.0000000,100,10" for second in range(50)]
    Path("trace.csv").write_text("\n".join(lines) + "\n")
    workload = WorkloadConfig(source="trace", path="trace.csv", lengths={}, qps=2.5)
    train(tiny(tmp_path / "run", workload=workload, env=EnvConfig(2, 20)))
    assert f"path: {tmp_path / 'trace.csv'}" in (tmp_path / "run" / "config.yaml").read_text()


class FakeWandb(SimpleNamespace):
    """Notes what is asked of Weights & Biases."""

    def __init__(self) -> None:
        super().__init__(
            calls=[], errors=SimpleNamespace(Error=RuntimeError), Artifact=FakeArtifact
        )

    def init(self, **settings: Any) -> "FakeWandb":
        self.calls.append(("init", settings))
        self.id = "run"
        return self

    def log_artifact(self, artifact: "FakeArtifact") -> None:
        self.calls.append(("artifact", artifact.file))

    def finish(self, exit_code: int) -> None:
        self.calls.append(("finish", exit_code))


class FakeArtifact:
    def __init__(self, name: str, kind: str) -> None:
        self.name, self.kind = name, kind

    def add_file(self, path: str) -> None:
        self.file = Path(path).name


@pytest.mark.parametrize(
    ("end", "exit_code"), [(None, 0), (InputError("bad"), 1), (KeyboardInterrupt(), 1)]
)
def test_a_run_is_mirrored_and_finished_in_all_exits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, end: BaseException | None, exit_code: int
) -> None:
    wandb, unpatched = FakeWandb(), []
    tensorboard = SimpleNamespace(unpatch=lambda: unpatched.append(True))
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    monkeypatch.setitem(sys.modules, "wandb.integration", SimpleNamespace(tensorboard=tensorboard))
    settings = tiny(tmp_path, logger=LoggerConfig("offline", "mine"))

    def mirrored() -> None:
        with wandb_run(settings, RunFolder(tmp_path), ("model.zip", "missing.csv")):
            (tmp_path / "model.zip").touch()
            if end is not None:
                raise end

    if end is None:
        mirrored()
    else:
        with pytest.raises(type(end)):
            mirrored()
    (_, given), *rest = wandb.calls
    assert given["mode"] == "offline"
    assert given["project"] == "mine"
    assert given["sync_tensorboard"]
    assert given["dir"] == tmp_path
    assert given["config"]["training"]["ppo_requests"] == 96
    assert rest == [("artifact", "model.zip"), ("finish", exit_code)]
    assert unpatched == [True]


def test_threads_are_no_more_than_cores(caplog: pytest.LogCaptureFixture) -> None:
    before = torch.get_num_threads()
    try:
        set_threads(10_000)
        assert torch.get_num_threads() == os.cpu_count()
    finally:
        set_threads(before)
    assert "training.torch_threads=10000 is more than this machine's cores" in caplog.text


def test_a_short_trace_names_the_setting(tmp_path: Path) -> None:
    lines = ["TIMESTAMP,ContextTokens,GeneratedTokens"]
    lines += [f"2023-11-16 18:15:{second:02d}.0000000,100,10" for second in range(25)]
    (tmp_path / "trace.csv").write_text("\n".join(lines) + "\n")
    workload = WorkloadConfig(source="trace", path=str(tmp_path / "trace.csv"))
    words = r"env\.requests_per_episode=40 is more than the 25 requests of the trace; set env.requ"
    with pytest.raises(InputError, match=words):
        train(tiny(tmp_path / "run", workload=workload))
    assert not (tmp_path / "run").exists()


def test_a_policy_router_takes_a_checkpoint() -> None:
    with pytest.raises(
        InputError, match=r"got 'runs/mine'; give Checkpoint\.load\(FOLDER\) of a run"
    ):
        PolicyRouter("runs/mine")  # type: ignore[arg-type]
