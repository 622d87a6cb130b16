"""The request log as a file that grows."""

import logging
import time
from io import TextIOWrapper
from pathlib import Path
from time import perf_counter

from llmroute_gym.errors import InputError
from llmroute_gym.sim.request_log import LoggedRequest

log = logging.getLogger(__name__)


class Record:
    """Writes a line per request; a file that is there goes on.

    Times of `perf_counter` become seconds since 1970 by what both clocks showed at the start.

    Args:
        path: of the file.

    Raises:
        InputError: it cannot be written, or is something else.
    """

    def __init__(self, path: str | Path) -> None:
        self._path = Path(path)
        self._offset_s = time.time() - perf_counter()
        self._lines: list[str] = []
        self._failed = False
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._file: TextIOWrapper = self._path.open("a+", encoding="utf-8", newline="")
            self._file.seek(0)
            first = self._file.readline()
            if first and first != LoggedRequest.header():
                self._file.close()
                raise InputError(
                    f"log={path} is a file of something else; name another, or move it away"
                )
            if not first:
                self._file.write(LoggedRequest.header())
                self._file.flush()
        except (OSError, UnicodeDecodeError) as error:
            reason = getattr(error, "strerror", None) or "it holds no text"
            raise InputError(f"cannot write log={path}: {reason}; name another file") from error

    def clock(self, at_s: float) -> float:
        """Returns a time of `perf_counter` in seconds since 1970."""
        return at_s + self._offset_s

    def add(self, request: LoggedRequest) -> None:
        """Keeps a line for the next `flush`."""
        self._lines.append(request.line())

    def flush(self) -> None:
        """Writes the lines; what cannot be written is lost, and said once."""
        if not self._lines:
            return
        lines, self._lines = self._lines, []
        try:
            self._file.write("".join(lines))
            self._file.flush()
            self._failed = False
        except OSError as error:
            if not self._failed:
                log.error("cannot write the log %s: %s", self._path, error.strerror)
            self._failed = True

    def close(self) -> None:
        """Writes what is left and closes the file."""
        self.flush()
        try:
            self._file.close()
        except OSError as error:
            log.error("cannot write the log %s: %s", self._path, error.strerror)
