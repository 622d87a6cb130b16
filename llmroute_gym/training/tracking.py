"""Where the course of a training goes: files, TensorBoard, Weights & Biases, the console."""

import csv
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any, cast

from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.logger import CSVOutputFormat, Logger, TensorBoardOutputFormat
from tqdm import tqdm

from llmroute_gym.config import TrainConfig
from llmroute_gym.errors import InputError
from llmroute_gym.runs.folder import RunFolder

METRICS_FILE = "metrics.csv"
_STEP = "time/total_timesteps"


@contextmanager
def training_logger(folder: RunFolder, timesteps: int = 0) -> Iterator[Logger]:
    """Opens SB3's logger on ``metrics.csv`` (there only when complete) and on TensorBoard.

    Args:
        folder: of the run.
        timesteps: of an interrupted run, up to which its rows are kept.
    """
    part = folder.path / f"{METRICS_FILE}.part"
    complete = folder.path / METRICS_FILE
    kept = _rows_until(part if part.exists() else complete, timesteps)
    table = CSVOutputFormat(str(part))
    for row in kept:
        table.write(dict(row), {name: () for name in row}, int(row[_STEP]))
    logger = Logger(
        str(folder.path), [table, TensorBoardOutputFormat(str(folder.path / "tensorboard"))]
    )
    try:
        yield logger
    finally:
        logger.close()
    _sort_columns(part)
    part.replace(complete)


def _sort_columns(file: Path) -> None:
    """Orders the columns by name: SB3's writer takes them as a set gives them."""
    with file.open(newline="", encoding="utf-8") as opened:
        rows = list(csv.DictReader(opened))
    names = sorted({name for row in rows for name in row})
    with file.open("w", newline="", encoding="utf-8") as opened:
        writer = csv.DictWriter(opened, names, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def _rows_until(file: Path, timesteps: int) -> list[dict[str, Any]]:
    if timesteps == 0 or not file.exists():
        return []
    with file.open(newline="", encoding="utf-8") as opened:
        complete = (row for row in csv.DictReader(opened) if None not in row.values())
        return [
            # Numbers as they are written: the CSV writer quotes strings.
            {name: int(value) if value.isdigit() else float(value) for name, value in row.items()}
            for row in ({k: v for k, v in row.items() if v} for row in complete)
            if row.get(_STEP) and int(row[_STEP]) <= timesteps
        ]


@contextmanager
def wandb_run(settings: TrainConfig, folder: RunFolder, files: Sequence[str]) -> Iterator[None]:
    """Mirrors a run to Weights & Biases where ``logger.wandb`` asks for it.

    TensorBoard's values are synced as they come. At the end, however the block is left, the files
    become artifacts and the run is finished, so that the next job of a multirun gets its own.

    Args:
        settings: of the run.
        folder: that holds the files, and gets wandb's own.
        files: names of the artifacts; a file that is not there is left out.

    Raises:
        InputError: the service cannot be reached or wants a login.
    """
    if settings.logger.wandb == "disabled":
        yield
        return
    import wandb
    from wandb.integration import tensorboard

    try:
        run = wandb.init(
            project=settings.logger.project,
            mode=cast(Any, settings.logger.wandb),
            dir=folder.path,
            config=asdict(settings),
            sync_tensorboard=True,
            reinit="finish_previous",
        )
    except wandb.errors.Error as error:
        raise InputError(
            f"logger.wandb={settings.logger.wandb} failed ({error}); run 'wandb login' or choose "
            "logger.wandb=offline"
        ) from error
    exit_code = 1
    try:
        yield
        exit_code = 0
    finally:
        for name in files:
            if (folder.path / name).exists():
                artifact = wandb.Artifact(f"{run.id}-{Path(name).stem}", Path(name).suffix[1:])
                artifact.add_file(str(folder.path / name))
                run.log_artifact(artifact)
        run.finish(exit_code=exit_code)
        # Without it the next run of this process would get no TensorBoard values.
        tensorboard.unpatch()


class ProgressBar(BaseCallback):
    """Shows on standard error how many requests were routed.

    Args:
        total: requests in all.
    """

    def __init__(self, total: int) -> None:
        super().__init__()
        self.total = total

    def _on_training_start(self) -> None:
        self.bar = tqdm(
            total=self.total,
            initial=self.num_timesteps,
            desc="training",
            unit="request",
            unit_scale=True,
        )

    def _on_step(self) -> bool:
        self.bar.update(self.training_env.num_envs)
        return True

    def _on_training_end(self) -> None:
        self.bar.close()
