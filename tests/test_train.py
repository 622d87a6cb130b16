"""The main command, small: what it writes, keeps, repeats and refuses."""

import json
import signal
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

from llmroute_gym.config import (
    ClusterConfig,
    EnvConfig,
    EvaluateConfig,
    EvaluationConfig,
    GroupConfig,
    ModelConfig,
    ObservationConfig,
    StabilizationConfig,
    TrainingConfig,
    WarmStartConfig,
    WorkloadConfig,
)
from llmroute_gym.envs.observation import SCALE, scale_rows
from llmroute_gym.errors import InputError
from llmroute_gym.evaluate import evaluate
from llmroute_gym.sb3 import checkpoint
from llmroute_gym.sb3.checkpoint import Checkpoint, Layout
from llmroute_gym.sb3.policy_router import PolicyRouter
from llmroute_gym.sim import Workload
from llmroute_gym.train import train
from tests.config.test_config import composed
from tests.training.runs import RESULTS, rows, tiny

pytestmark = pytest.mark.cli


def test_everything_is_in_the_run_folder(finished: Path) -> None:
    assert {file.name for file in finished.iterdir()} == RESULTS | {"tensorboard"}
    assert list((finished / "tensorboard").iterdir())
    comparison = rows(finished / "comparison.csv")
    assert [row["router"] for row in comparison] == ["policy", "round_robin", "lor"]
    assert comparison[0]["e2e_p99_s_vs_baseline"] != ""
    assert comparison[1]["e2e_p99_s_vs_baseline"] == ""


def test_metrics_reach_the_last_update(finished: Path) -> None:
    metrics = rows(finished / "metrics.csv")
    assert metrics[-1]["time/total_timesteps"] == "96"
    assert metrics[-1]["train/n_updates"] == "4"
    shares = [float(metrics[0][f"replica/share_{index:02d}"]) for index in range(4)]
    assert sum(shares) == pytest.approx(1)
    assert float(metrics[0]["reward/latency"]) > 0


def test_written_settings_are_those_in_force(finished: Path) -> None:
    written = yaml.safe_load((finished / "config.yaml").read_text())
    assert written["training"]["ppo_requests"] == 96
    assert written["reward"]["latency_weight"] == 1.7


def test_checkpoint_is_one_file_that_carries_its_layout(finished: Path) -> None:
    with zipfile.ZipFile(finished / "model.zip") as archive:
        layout = json.loads(archive.read("llmroute/layout.json"))
    assert layout["replicas"] == 4
    assert layout["columns"][:2] == ["waiting", "running"]
    assert layout["model"]["actor_sizes"] == [64, 64]


def test_checkpoint_routes_like_the_model(finished: Path) -> None:
    checkpoint = Checkpoint.load(finished)
    router = PolicyRouter(checkpoint)
    rng = np.random.default_rng(0)
    assert type(checkpoint.model).__name__ == "RouterPPO"
    for _ in range(50):
        observed = rng.exponential(0.3, (4, len(SCALE))) / SCALE
        chosen = int(checkpoint.model.predict(scale_rows(observed), deterministic=True)[0])
        assert router.route(observed, np.ones(4, dtype=bool)) == chosen
        mask = np.arange(4) != chosen
        assert router.route(observed, mask) != chosen


def test_checkpoint_with_unknown_columns_is_refused(
    finished: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checkpoint, "SIGNAL_NAMES", ("waiting", "running"))
    with pytest.raises(InputError, match="this version knows waiting, running; train it again"):
        checkpoint.Checkpoint.load(finished).check_fits(4, ObservationConfig())


def test_same_seed_same_bytes(finished: Path, tmp_path: Path) -> None:
    p99 = train(tiny(tmp_path / "same"))
    assert p99 == pytest.approx(float(rows(finished / "comparison.csv")[0]["e2e_p99_s"]), rel=1e-5)
    train(tiny(tmp_path / "other", seed=1))
    first = (finished / "comparison.csv").read_bytes()
    assert (tmp_path / "same" / "comparison.csv").read_bytes() == first
    assert (tmp_path / "other" / "comparison.csv").read_bytes() != first


def test_a_finished_run_is_kept(finished: Path) -> None:
    before = {file: file.read_bytes() for file in finished.rglob("*") if file.is_file()}
    with pytest.raises(InputError, match="already holds a finished run"):
        train(tiny(finished, seed=9))
    assert {file: file.read_bytes() for file in finished.rglob("*") if file.is_file()} == before


def test_a_run_that_stops_in_training_leaves_no_results(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("llmroute_gym.training.learning.RouterMonitor._on_rollout_end", fail)
        with pytest.raises(KeyboardInterrupt):
            train(tiny(tmp_path / "run"))
    left = {file.name for file in (tmp_path / "run").iterdir()}
    assert left == {
        "config.yaml",
        "findings.json",
        "metrics.csv.part",
        "tensorboard",
        "training_state.zip",
    }
    kept = (tmp_path / "run" / "config.yaml").read_text()
    with pytest.raises(InputError, match=r"holds an interrupted training.*go on with resume="):
        train(tiny(tmp_path / "run", seed=9))
    assert (tmp_path / "run" / "config.yaml").read_text() == kept


@pytest.mark.parametrize(
    "settings",
    [
        {"evaluation": EvaluationConfig(routers=["lro"])},
        {"evaluation": EvaluationConfig(baseline="jsq")},
        {"cluster": ClusterConfig(profile="none")},
        {"cluster": ClusterConfig(num_blocks=30)},
        {"stabilization": StabilizationConfig(policy="lro")},
        {"warm_start": WarmStartConfig(policies=["lro"])},
        {"warm_start": WarmStartConfig(demos="none.parquet")},
        {"warm_start": WarmStartConfig(checkpoint="none.zip")},
        {"warm_start": WarmStartConfig(decisions=8)},
    ],
)
def test_wrong_input_is_found_before_anything_is_written(
    tmp_path: Path, settings: dict[str, object]
) -> None:
    with pytest.raises(InputError):
        train(tiny(tmp_path / "run", **settings))
    assert not (tmp_path / "run").exists()


def test_numbers_that_are_not_finite_end_the_training(tmp_path: Path) -> None:
    hot = TrainingConfig(ppo_requests=96, rollout_steps=24, epochs=2, learning_rate=1e30)
    with pytest.raises(InputError, match=r"not finite after .* lower training\.learning_rate"):
        train(tiny(tmp_path / "run", training=hot, warm_start=WarmStartConfig(cloning=False)))
    found = json.loads((tmp_path / "run" / "findings.json").read_text())
    assert found[-1]["name"] == "non_finite"
    weights = Checkpoint.load(tmp_path / "run").model.policy.parameters()
    assert all(torch.isfinite(weight).all() for weight in weights)
    assert not (tmp_path / "run" / "comparison.csv").exists()
    with pytest.raises(InputError, match="holds an interrupted training"):
        train(tiny(tmp_path / "run"))


def test_the_last_update_is_examined_too(finished: Path, tmp_path: Path) -> None:
    assert rows(finished / "metrics.csv")[-1]["health/value_loss_spike"] != ""
    hot = TrainingConfig(ppo_requests=48, rollout_steps=24, epochs=2, learning_rate=1e30)
    with pytest.raises(InputError, match="not finite after 48 requests"):
        train(tiny(tmp_path / "run", training=hot, warm_start=WarmStartConfig(cloning=False)))


@pytest.mark.parametrize(
    "settings",
    [
        {"env": EnvConfig(num_envs=2, requests_per_episode=20, engine="reference")},
        {"model": ModelConfig(policy="replica_set", actor_sizes=[8], critic_sizes=[8])},
        {"stabilization": StabilizationConfig(enabled=False)},
        {"stabilization": StabilizationConfig(steps=20, policy="lor")},
    ],
)
def test_every_kind_of_training_ends(tmp_path: Path, settings: dict[str, Any]) -> None:
    none = WarmStartConfig(cloning=False)
    given = tiny(tmp_path / "run", **{"warm_start": none, **settings})
    p99_s = train(given)
    assert {file.name for file in (tmp_path / "run").iterdir()} == RESULTS | {"tensorboard"}
    checkpoint = Checkpoint.load(tmp_path / "run")
    assert checkpoint.layout.model == given.model
    assert all(weight.isfinite().all() for weight in checkpoint.model.policy.parameters())
    policy, *_ = rows(tmp_path / "run" / "comparison.csv")
    assert p99_s == pytest.approx(float(policy["e2e_p99_s"]), rel=1e-5)


def test_rejected_requests_are_infinitely_slow_in_all_that_is_logged(
    tmp_path: Path, recwarn: pytest.WarningsRecorder
) -> None:
    cluster = ClusterConfig(num_blocks=150, watermark_blocks=1, oversize="reject")
    train(tiny(tmp_path / "run", cluster=cluster, warm_start=WarmStartConfig(cloning=False)))
    assert {file.name for file in (tmp_path / "run").iterdir()} == RESULTS | {"tensorboard"}
    logged = [row["latency/p99_s"] for row in rows(tmp_path / "run" / "metrics.csv")]
    assert [one for one in logged if one] == ["inf", "inf"]
    assert (tmp_path / "run" / "training.png").read_bytes().startswith(b"\x89PNG")
    assert rows(tmp_path / "run" / "comparison.csv")[0]["e2e_p99_s"] == "inf"
    assert not [one for one in recwarn if issubclass(one.category, RuntimeWarning)]


def test_engines_train_the_same_policy(tmp_path: Path) -> None:
    for engine in ("compiled", "reference"):
        env = EnvConfig(num_envs=2, requests_per_episode=20, engine=engine)
        train(tiny(tmp_path / engine, env=env, warm_start=WarmStartConfig(cloning=False)))
    first, second = (
        Checkpoint.load(tmp_path / engine).model.policy.state_dict()
        for engine in ("compiled", "reference")
    )
    for name, value in first.items():
        assert torch.allclose(value, second[name], atol=1e-5), name


@pytest.mark.filterwarnings("error::UserWarning:llmroute_gym")  # of a picture without room
def test_a_policy_learns_on_many_replicas(tmp_path: Path) -> None:
    settings = tiny(
        tmp_path,
        cluster=ClusterConfig(replicas=256),
        env=EnvConfig(num_envs=2),
        warm_start=WarmStartConfig(epochs=1, decisions=350),
    )
    train(settings)
    layout = Layout.read(tmp_path / "model.zip")
    assert layout is not None
    assert layout.replicas == 256
    assert np.isfinite(float(rows(tmp_path / "comparison.csv")[0]["e2e_p99_s"]))


@pytest.mark.parametrize(
    ("cluster", "fleet"),
    [
        (
            ClusterConfig(
                groups=[
                    GroupConfig("h100-codellama-34b", replicas=2),
                    GroupConfig("a100-llama-2-7b", speed=1.5),
                ]
            ),
            "2 x h100-codellama-34b, 1 x a100-llama-2-7b at speed 1.5",
        ),
        (
            ClusterConfig(speeds=[2.0, 1.0, 1.0, 0.5], slowdowns=[[[5, 3], [20, 1]]]),
            "4 x a100-internlm-20b at speeds 2, 1, 1, 0.5 (slowdowns of replica 0)",
        ),
    ],
)
def test_a_policy_learns_on_a_mixed_fleet_and_is_compared_there(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], cluster: ClusterConfig, fleet: str
) -> None:
    settings = tiny(tmp_path / "run", cluster=cluster)
    train(settings)
    again = EvaluateConfig(
        runs=2,
        requests=30,
        resamples=50,
        checkpoint=str(tmp_path / "run"),
        cluster=cluster,
        run_dir=str(tmp_path / "again"),
    )
    evaluate(again.validate())
    assert capsys.readouterr().out.count(f"to {fleet}\n") == 2
    one, two = (rows(tmp_path / name / "comparison.csv") for name in ("run", "again"))
    assert one == two


def test_a_training_at_a_traces_own_rate_is_in_all_one_at_that_rate(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    n = 200
    Workload(np.arange(n) / 40, np.full(n, 900), np.full(n, 200)).to_csv(tmp_path / "t.csv")
    own = WorkloadConfig(
        source="trace", path=str(tmp_path / "t.csv"), arrivals={"process": "trace"}, own_rate=True
    )
    at_rate = replace(own, own_rate=False, qps=40.0)
    with caplog.at_level("INFO"):
        train(tiny(tmp_path / "own", workload=own))
    assert "the trace's own rate reaches 40 requests/s, but the cluster serves" in caplog.text
    assert ", 40 requests/s; compiled engine" in caplog.text
    training = TrainingConfig(ppo_requests=96, rollout_steps=24, epochs=2, qps=40.0)
    train(tiny(tmp_path / "same", workload=at_rate, training=training))
    for name in ("comparison.csv", "metrics.csv"):
        rows_own, rows_same = (rows(tmp_path / run / name) for run in ("own", "same"))
        for one, other in zip(rows_own, rows_same, strict=True):
            for key in set(one) - {"time/fps", "time/time_elapsed"}:
                assert one[key] == other[key], key


Command = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def command(tmp_path: Path) -> Command:
    def run(*overrides: str, module: str = "train") -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", f"llmroute_gym.{module}", *overrides],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )

    return run


QUICK = (
    "training.ppo_requests=64",
    "env.num_envs=2",
    "env.requests_per_episode=40",
    "warm_start.decisions=60",
    "warm_start.epochs=1",
    "stabilization.steps=8",
    "evaluation.runs=2",
    "evaluation.requests=30",
    "evaluation.resamples=50",
)


def test_command_from_another_folder(command: Command, tmp_path: Path) -> None:
    done = command("+exp=latency_tuned", *QUICK)
    assert done.returncode == 0, done.stderr
    assert "round_robin" in done.stdout
    assert "no effect" not in done.stdout
    assert "reference of the KL: a clone of lor_hybrid, round_robin (120 decisions)" in done.stdout
    assert "1 thread" in done.stdout
    assert "training" in done.stderr  # the progress bar
    (folder,) = (tmp_path / "runs").glob("*/*")
    assert {file.name for file in folder.iterdir()} == RESULTS | {"tensorboard"}
    again = command("+exp=latency_tuned", *QUICK, f"run_dir={folder}")
    assert again.returncode == 2
    assert again.stderr.strip().startswith("the run folder ")
    assert len(again.stderr.strip().splitlines()) == 1


def test_a_grid_leaves_one_summary(command: Command, tmp_path: Path) -> None:
    rewards, loggers = ("original", "latency_tuned"), ("disabled", "offline")
    grid = (f"reward={','.join(rewards)}", f"logger={','.join(loggers)}")
    done = command("-m", *grid, "+exp=original", "run_dir=grid", *QUICK)
    assert done.returncode == 0, done.stderr
    summary = rows(tmp_path / "grid" / "summary.csv")
    options = [(row["job"], row["reward"], row["logger"]) for row in summary]
    assert options == [(str(job), *choice) for job, choice in enumerate(product(rewards, loggers))]
    for row in summary:
        folder = tmp_path / "grid" / row["job"]
        assert row["e2e_p99_s"] == rows(folder / "comparison.csv")[0]["e2e_p99_s"]
        config = yaml.safe_load((folder / "config.yaml").read_text())
        assert config["reward"]["latency_weight"] == (1.2 if row["reward"] == "original" else 1.7)
        mirrored = len(list((folder / "wandb").glob("offline-run-*")))
        assert mirrored == (row["logger"] == "offline")
    assert "summary: " in done.stdout


@pytest.mark.parametrize("exp", ["original", "latency_tuned", "conservative"])
@pytest.mark.parametrize("start", [(), ("warm_start=none",)])
def test_each_set_of_the_log_runs_whole(exp: str, start: tuple[str, ...], tmp_path: Path) -> None:
    quick = [one for one in QUICK if not (start and one.startswith("warm_start"))]
    settings = composed("train", f"+exp={exp}", *start, *quick)
    train(replace(settings, run_dir=str(tmp_path)).validate())
    assert {file.name for file in tmp_path.iterdir()} == RESULTS | {"tensorboard"}
    assert [row["router"] for row in rows(tmp_path / "comparison.csv")][:2] == [
        "policy",
        "round_robin",
    ]


def test_a_policy_learns_where_replicas_remember_what_prompts_share(tmp_path: Path) -> None:
    given = ("cluster=h100-llama-3.1-8b", "workload=shared_prefix", "workload.prompts.groups=3")
    quick = ("workload.prompts.output_tokens=40", "training.qps=8", *QUICK)
    settings = composed("train", *given, *quick)
    train(replace(settings, run_dir=str(tmp_path)).validate())
    metrics = {
        row["router"]: float(row["value"])
        for row in rows(tmp_path / "comparison_full.csv")
        if row["metric"] == "cached_token_share"
    }
    assert 0 < metrics["policy"] < 1


def test_a_grid_goes_on_after_a_job_that_is_refused(command: Command, tmp_path: Path) -> None:
    done = command("-m", "training.learning_rate=1e-3,1e30,1e-4", "run_dir=grid", *QUICK)
    assert done.returncode == 2
    assert [row["job"] for row in rows(tmp_path / "grid" / "summary.csv")] == ["0", "2"]
    assert "job 1: the training met numbers that are not finite" in done.stderr
    assert "refused: job 1" in done.stdout
    assert "lower training.learning_rate" in (tmp_path / "grid" / "1" / "refused.txt").read_text()


def test_ctrl_c_says_how_to_go_on(command: Command, tmp_path: Path) -> None:
    process = subprocess.Popen(
        [
            *(sys.executable, "-m", "llmroute_gym.train", "run_dir=run"),
            *(*QUICK, "training.ppo_requests=60000"),
        ],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    deadline = time.monotonic() + 120
    while not (tmp_path / "run" / "training_state.zip").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate()
    assert process.returncode == 130
    assert "Traceback" not in said
    assert f"interrupted; go on with resume={tmp_path / 'run'}" in said
    # Settings that were typed are compared, even where they are the package's defaults.
    done = command("resume=run", "env.num_envs=4")
    assert done.returncode == 2
    assert "goes on with env.num_envs=2, got 4" in done.stderr


def test_command_refuses_with_one_sentence(command: Command, tmp_path: Path) -> None:
    for overrides in (
        ("cluster.profile=a100",),
        ("evaluation.routers=[lor,lor]",),
        ("qps=2",),
        ("run_dir=",),
        ("resume=",),
    ):
        done = command(*overrides)
        assert done.returncode == 2
        assert len(done.stderr.strip().splitlines()) == 1
        assert done.stdout == ""
    assert not list(tmp_path.rglob("*.*"))
