"""Commands, run in this process."""

from collections.abc import Callable
from typing import Any

import pytest

Command = Callable[..., tuple[int, str, str]]
"""Takes the words that are typed; returns the exit code, and what went to both streams."""


def in_process(
    name: str,
    main: Callable[[], object],
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> Command:
    """A command that is called as if it had been typed."""

    def run(*words: str) -> tuple[int, str, str]:
        monkeypatch.setattr("sys.argv", [name, *words])
        code: Any = 0
        try:
            main()
        except SystemExit as ended:
            code = ended.code
        return (code, *capfd.readouterr())

    return run
