"""Lets an interrupt end a command in one line also while it still imports what it needs.

Imported before anything else of the package. Only a process that was started as
``python -m llmroute_gym.COMMAND`` is changed.
"""

import sys
from types import TracebackType

INTERRUPTED = 130
"""The exit code of the shells for what Ctrl-C ended."""


def end_in_one_line(
    kind: type[BaseException], error: BaseException, trace: TracebackType | None
) -> None:
    """Words an interrupt that nothing has caught; takes the place of `sys.excepthook`."""
    if not issubclass(kind, KeyboardInterrupt):
        sys.__excepthook__(kind, error, trace)
        return
    print("\ninterrupted; there is nothing yet to go on from", file=sys.stderr)
    raise SystemExit(INTERRUPTED)


def _runs_a_command() -> bool:
    started = sys.orig_argv
    module = started[started.index("-m") + 1 :][:1] if "-m" in started else []
    return module != [] and module[0].split(".")[0] == __package__.split(".")[0]


if _runs_a_command():
    sys.excepthook = end_in_one_line
