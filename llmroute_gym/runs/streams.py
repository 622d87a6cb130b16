"""What a command says to people: readers may leave, and notices stand above progress bars."""

import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from typing import Any, TextIO, cast

from tqdm import tqdm

from llmroute_gym.ground.notices import notices


class Unheard:
    """A text stream whose reader may leave, as that of ``| head`` does; the run goes on.

    Args:
        stream: what is written to; the operating system's null device once its reader has left.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def __getattr__(self, name: str) -> Any:
        """Returns what the stream itself has."""
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        """Writes, or drops the text if nobody reads it."""
        with self._unheard():
            self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        """Flushes, or drops the text if nobody reads it."""
        with self._unheard():
            self._stream.flush()

    @contextmanager
    def _unheard(self) -> Iterator[None]:
        try:
            yield
        except BrokenPipeError:
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self._stream.fileno())
            os.close(nowhere)
        except OSError as error:
            error.filename = error.filename or self._stream.name
            raise


class _AboveBars(logging.Handler):
    """Writes to standard error without tearing a progress bar apart."""

    def emit(self, record: logging.LogRecord) -> None:
        """Writes one line."""
        tqdm.write(self.format(record), file=sys.stderr)


@contextmanager
def to_people() -> Iterator[None]:
    """Lets readers of both streams leave, and sends notices to standard error."""
    handler = _AboveBars()
    before = notices.level, notices.propagate
    notices.addHandler(handler)
    notices.setLevel(logging.INFO)
    notices.propagate = False
    try:
        with (
            redirect_stdout(cast(TextIO, Unheard(sys.stdout))),
            redirect_stderr(cast(TextIO, Unheard(sys.stderr))),
        ):
            yield
    finally:
        notices.removeHandler(handler)
        notices.setLevel(before[0])
        notices.propagate = before[1]
