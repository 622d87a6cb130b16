"""Writes a trained policy as it is served, without PyTorch: ``python -m llmroute_gym.export``."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from llmroute_gym.errors import InputError, checked_name, unknown_name
from llmroute_gym.routers.onnx_file import write_onnx
from llmroute_gym.routers.policy_file import check_suffix
from llmroute_gym.training.model_card import model_card

OPTIONS = {"format": ("npz", "onnx"), "trusted": ("true", "false")}
"""Option to what it may be."""


def export(run: Path, out: Path, *, onnx: bool, trusted: bool) -> None:
    """Writes the policy of a run, and says what it is.

    Args:
        run: its folder, or the zip file of a policy.
        out: what is written; what stands there stays until it is complete.
        onnx: whether the same goes to a file beside it in ONNX too.
        trusted: whether the policy may be unpickled.

    Raises:
        InputError: there is no policy, it is of a kind that cannot be exported, or the file cannot
            be written.
    """
    check_suffix(out)
    # Slow to import: only once the arguments have proved right.
    from llmroute_gym.sb3.checkpoint import Checkpoint
    from llmroute_gym.sb3.exporting import exported, policy_file

    checkpoint, card = Checkpoint.load(run, trusted=trusted), model_card(run)
    file = policy_file(checkpoint, card)
    if onnx:
        beside = out.with_suffix(".onnx")
        same = write_onnx(exported(checkpoint, card), beside)
        print(f"{beside}: {'the same numbers by' if same else 'not tried with'} ONNX Runtime")
    digest, told = file.write(out), file.observation
    print(f"{out}: {file.kind}, {len(told.columns)} columns, sha256 {digest}")
    if told.information not in ("router", "metrics"):
        print(
            f"note: it was trained with observation.information={told.information}, which engines "
            "do not publish; a gateway serves what was trained with observation=router",
            file=sys.stderr,
        )


def _chosen(words: Sequence[str]) -> dict[str, str]:
    """Returns options as given, each one of those that it may be."""
    chosen = {}
    for word in words:
        name, sign, value = word.partition("=")
        if name not in OPTIONS or not sign:
            raise unknown_name("option", word, [f"{one}={OPTIONS[one][0]}" for one in OPTIONS])
        chosen[name] = checked_name(name, value, OPTIONS[name])
    return chosen


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command; returns 0, or 2 after one sentence on standard error."""
    parser = argparse.ArgumentParser(prog="python -m llmroute_gym.export")
    parser.add_argument("run", type=Path, metavar="RUN", help="folder of a run, or a model.zip")
    parser.add_argument("out", type=Path, metavar="OUT.npz", help="what is written")
    parser.add_argument("options", nargs="*", metavar="format=onnx | trusted=true", default=[])
    options = parser.parse_args(arguments)
    try:
        chosen = _chosen(options.options)
        onnx, trusted = chosen.get("format") == "onnx", chosen.get("trusted") == "true"
        export(options.run, options.out, onnx=onnx, trusted=trusted)
    except InputError as error:
        print(error, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
