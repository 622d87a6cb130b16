"""Publishes what a suite found, or checks it: ``python -m llmroute_gym.suite``.

``leaderboard RUN`` writes Markdown of a suite's folder; ``verify FILE`` computes a published table
again and ends with 0 where all is equal, with 2 where something differs.
"""

import argparse
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from llmroute_gym.compare.suites.leaderboard import leaderboard, write_readme
from llmroute_gym.compare.suites.result import SuiteResult
from llmroute_gym.compare.suites.running import Execution
from llmroute_gym.compare.suites.verify import verify
from llmroute_gym.config import LAUNCHERS
from llmroute_gym.errors import InputError
from llmroute_gym.ground.files import complete_or_absent
from llmroute_gym.training.entrant import policy_router


def publish(options: argparse.Namespace) -> int:
    """Writes the page, and the README's table where one is named."""
    found = SuiteResult.read(options.run)
    with complete_or_absent(options.out) as part:
        part.write_text(leaderboard(found), encoding="utf-8")
    if options.readme is not None:
        write_readme(found, options.readme)
    print(options.out)
    return 0


def check(options: argparse.Namespace) -> int:
    """Computes a table again, and says what differs."""

    def execution(folder: Path) -> Execution:
        load = partial(policy_router, trusted=False)
        return Execution(folder, options.launcher, options.workers, options.traces, load)

    names, different = verify(options.file, options.scenario, execution)
    print("\n".join(different or [f"equal: {', '.join(names)}"]))
    return 2 if different else 0


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command.

    Args:
        arguments: command-line words; None takes them from the process.

    Returns:
        0, or 2 after one sentence on standard error or a list of what differs.
    """
    parser = argparse.ArgumentParser(prog="python -m llmroute_gym.suite")
    commands = parser.add_subparsers(required=True)
    page = commands.add_parser("leaderboard", help="write Markdown of a suite's folder")
    page.add_argument("run", type=Path, metavar="RUN", help="folder of a suite, or results.json")
    page.add_argument("--out", type=Path, default=Path("docs/leaderboard.md"), metavar="FILE")
    page.add_argument("--readme", type=Path, metavar="FILE", help="whose table to replace, too")
    page.set_defaults(run_command=publish)
    again = commands.add_parser("verify", help="compute a published table again")
    again.add_argument("file", type=Path, metavar="FILE", help="leaderboard or results.json")
    again.add_argument("--scenario", action="append", default=[], metavar="NAME", help="only this")
    again.add_argument("--traces", default=".", metavar="DIR", help="folder of public traces")
    again.add_argument("--workers", type=int, default=2, metavar="N", help="processes")
    again.add_argument("--launcher", choices=LAUNCHERS, default=LAUNCHERS[0])
    again.set_defaults(run_command=check)
    options = parser.parse_args(arguments)
    try:
        return int(options.run_command(options))
    except InputError as error:
        print(error, file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
