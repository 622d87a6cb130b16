"""Writing files that are complete or absent."""

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from llmroute_gym.errors import InputError


def check_writable(path: str | Path) -> None:
    """Tries to write where a file shall stand, before it has cost anything to make.

    Args:
        path: of the file; its folder is created.

    Raises:
        InputError: it cannot be written there.
    """
    path = Path(path)
    with complete_or_absent(path.with_name(f".{path.name}.try")) as part:
        part.touch()
    path.with_name(f".{path.name}.try").unlink()


@contextmanager
def complete_or_absent(path: str | Path) -> Iterator[Path]:
    """Gives a temporary path to write to, and renames it to `path` when all went well.

    Args:
        path: where the finished file shall stand; its folder is created.

    Yields:
        The temporary path, in the same folder and with the same last suffix.

    Raises:
        InputError: the path has no file name, or the file cannot be written there.
    """
    path = Path(path)
    if not path.name:
        raise InputError(f"cannot write {str(path)!r}: it names no file; give a file name")
    part = path.with_name(f"{path.stem}.part{path.suffix}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield part
        part.replace(path)
    except OSError as error:
        raise InputError(
            f"cannot write {path}: {error.strerror or error}; choose a folder that can be written"
        ) from error
    finally:
        with suppress(OSError):  # the error that led here says more
            part.unlink(missing_ok=True)
