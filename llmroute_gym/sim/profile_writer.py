"""Writes profile files, short enough to read and exact to the last digit."""

import os
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

from llmroute_gym.ground.arrays import FloatArray
from llmroute_gym.sim.batch_time import BatchTimeModel, FormulaBatchTime
from llmroute_gym.sim.piecewise_time import PiecewiseBatchTime
from llmroute_gym.sim.profile_time import Profile, ProfileBatchTime

LINE_LENGTH = 100


def write_profile(
    profile: Profile, path: str | Path, *, errors: Mapping[str, object] | None = None
) -> None:
    """Writes a profile file that `load_profile` reads, whole or not at all.

    Args:
        profile: what to write; its batch time is a formula, tables or piecewise linear.
        path: the YAML file, replaced if it exists.
        errors: measured errors, stated in the file for its readers.

    Raises:
        TypeError: the batch time is of another class.
    """
    import yaml

    entries: dict[str, object] = {
        name: getattr(profile, name)
        for name in ("name", "description", "model", "hardware", "source", "licence")
    }
    if profile.scheduler is not None:
        entries |= {"scheduler": profile.scheduler}
    entries |= {"limits": dict(profile.limits)}
    if profile.shared_reads:
        entries["shared_reads"] = profile.shared_reads
    if errors:
        entries["measured_error"] = dict(errors)
    head = yaml.safe_dump(entries, sort_keys=False, width=LINE_LENGTH, allow_unicode=True)
    _write_whole(Path(path), f"{head}batch_time:\n{_batch_time_yaml(profile.batch_time)}")


def _write_whole(path: Path, text: str) -> None:
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".part")
    part = Path(name)
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as stream:
            stream.write(text)
        part.chmod(0o644)
        part.replace(path)
    except BaseException:
        part.unlink(missing_ok=True)
        raise


def _batch_time_yaml(batch_time: BatchTimeModel) -> str:
    if isinstance(batch_time, FormulaBatchTime):
        lines = [f"  {name}: {_number_yaml(value)}" for name, value in asdict(batch_time).items()]
        return "\n".join(["  kind: formula", *lines, ""])
    if isinstance(batch_time, PiecewiseBatchTime):
        return _piecewise_yaml(batch_time)
    if not isinstance(batch_time, ProfileBatchTime):
        raise TypeError(
            f"cannot write a {type(batch_time).__name__}, only a formula, tables or piecewise times"
        )
    model = batch_time
    return "\n".join(
        [
            "  kind: tables",
            f"  gqa: {str(model.gqa).lower()}",
            "  linear:  # up to so many tokens in the batch; step table",
            _list_yaml("tokens", model.linear_tokens),
            _list_yaml("seconds", model.linear_s),
            f"    slope_s: {_number_yaml(model.linear_slope_s)}  # per token beyond the last",
            "  decode:  # one row per batch, one column per mean context in tokens",
            _list_yaml("batch", model.decode_batch),
            _list_yaml("mean_context", model.decode_context),
            _grid_yaml(model.decode_s),
            "  prefill:  # one row per root of summed squared chunks, one column per sum of",
            "    # contexts in buckets of 64 tokens",
            _list_yaml("root_chunk_squares", model.prefill_root),
            _list_yaml("context_buckets", model.prefill_context),
            _grid_yaml(model.prefill_s),
            "",
        ]
    )


def _piecewise_yaml(model: PiecewiseBatchTime) -> str:
    return "\n".join(
        [
            "  kind: piecewise",
            f"  time_factor: {_number_yaml(model.time_factor)}  # on all that follows",
            "  linear:  # by tokens in the batch",
            _list_yaml("tokens", model.linear_tokens),
            _list_yaml("seconds", model.linear_s),
            "  decode:  # one row per batch, one column per mean context in tokens",
            _list_yaml("batch", model.decode_batch),
            _list_yaml("mean_context", model.decode_context),
            _grid_yaml(model.decode_s),
            "  prefill:  # by root of summed squared chunks; a pair is a chunk's token and one of",
            "    # the context before it",
            f"    chunk_s: {_number_yaml(model.chunk_s)}  # per chunk",
            _list_yaml("root_chunk_squares", model.prefill_root),
            _list_yaml("seconds", model.prefill_s),
            _list_yaml("seconds_per_pair", model.prefill_pair_s),
            "",
        ]
    )


def _number_yaml(value: float) -> str:
    """Writes a number so that every YAML reader takes it for one, in its shortest exact form."""
    value = float(value)
    if value.is_integer() and abs(value) < 1e15:
        return str(int(value))
    text = repr(value)
    return text if "." in text else text.replace("e", ".0e")


def _list_yaml(name: str, values: Sequence[float] | FloatArray) -> str:
    lines, line = [], f"    {name}: ["
    for value in values:
        word = f"{_number_yaml(value)}, "
        if len(line) + len(word) > LINE_LENGTH:
            lines.append(line.rstrip())
            line = "      "
        line += word
    return "\n".join([*lines, line.rstrip(", ") + "]"])


def _grid_yaml(grid: FloatArray) -> str:
    rows = (", ".join(_number_yaml(value) for value in row) for row in grid)
    return "\n".join(["    seconds:", *(f"      - [{row}]" for row in rows)])
