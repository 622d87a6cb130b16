"""How a benchmark of trainings ends: its text, its files, its exit code."""

import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TypeVar

from measuring import ROOT, write_section
from trainings import Options

from llmroute_gym.errors import InputError
from llmroute_gym.ground.files import complete_or_absent

M = TypeVar("M")


def command_of(name: str, options: Options, usual_seeds: int) -> str:
    """Returns the command that makes a report anew."""
    command = f"python benchmarks/{name}.py"
    return command if options.seeds == usual_seeds else f"{command} --seeds {options.seeds}"


def report(
    name: str,
    options: Options,
    measure: Callable[[], M],
    section: Callable[[M], str],
    writers: Mapping[str, Callable[[M, Path], None]],
) -> int:
    """Measures, prints, and writes if asked; returns the exit code.

    Args:
        name: of the benchmark, its files and its section.
        options: of its command line.
        measure: all that is reported.
        section: the text of it.
        writers: suffix to what writes the file.
    """
    try:
        measured = measure()
        text = section(measured)
        place = ROOT / "benchmarks" if options.write else options.folder
        for suffix, write in writers.items():
            with complete_or_absent(place / f"{name}{suffix}") as part:
                write(measured, part)
    except InputError as error:
        print(error, file=sys.stderr)
        return 2
    print(text)
    if options.write:
        write_section(name, text)
    return 0
