"""Lets Ctrl-C end a command in one line, also while it imports or compiles what it needs.

Imported before anything else of the package. Only a process that was started as
``python -m llmroute_gym.COMMAND`` is changed.
"""

import signal
import sys
from _thread import interrupt_main
from threading import Timer
from types import TracebackType
from typing import Any, NoReturn

INTERRUPTED = 130
"""The exit code of the shells for what Ctrl-C ended."""
AGAIN_S = 0.2
"""Seconds after which an interrupt that was swallowed is raised again."""

_swallowed: list[Any] = []


def due_to_interrupt(error: BaseException) -> bool:
    """Whether an error may well be due to Ctrl-C.

    It is where a callback from compiled code has swallowed the interrupt, which it cannot raise,
    and where closing what was half written failed while the interrupt was on its way.
    """
    before: BaseException | None = error
    seen: list[BaseException] = []
    while before is not None and before not in seen:
        if isinstance(before, KeyboardInterrupt):
            return True
        seen.append(before)
        before = before.__cause__ or before.__context__
    return bool(_swallowed)


def end_interrupted(words: str) -> NoReturn:
    """Ends the process in one line with the exit code `INTERRUPTED`.

    Args:
        words: what is said.
    """
    if _runs_a_command():
        # From here on a second Ctrl-C ends the process at once, without a word, and what was half
        # made is taken down without one.
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        sys.unraisablehook = lambda _: None
    print(f"\n{words}", file=sys.stderr)
    # Python remembers that text which it executed, as named tuples are made of, was interrupted,
    # and would end by the signal, until it executes another one.
    exec("")
    raise SystemExit(INTERRUPTED)


def _end_uncaught(
    kind: type[BaseException], error: BaseException, trace: TracebackType | None
) -> None:
    if issubclass(kind, KeyboardInterrupt):
        end_interrupted("interrupted; there is nothing yet to go on from")
    sys.__excepthook__(kind, error, trace)


def _raise_again(unraisable: Any) -> None:
    if not issubclass(unraisable.exc_type, KeyboardInterrupt):
        sys.__unraisablehook__(unraisable)
        return
    _swallowed.append(unraisable.exc_type)
    timer = Timer(AGAIN_S, interrupt_main)
    timer.daemon = True
    timer.start()


def _runs_a_command() -> bool:
    started = sys.orig_argv
    module = started[started.index("-m") + 1 :][:1] if "-m" in started else []
    return module != [] and module[0].split(".")[0] == __name__.split(".")[0]


if _runs_a_command():
    sys.excepthook = _end_uncaught
    sys.unraisablehook = _raise_again
