"""Drops cached kernels whose sources have changed.

Numba keys a cached kernel by its own file alone, so it would go on running a kernel whose callee
or constants, in another file, have been edited.
"""

import contextlib
import hashlib
from pathlib import Path
from typing import Any

from numba.core import config
from numba.core.caching import UserProvidedCacheLocator

from llmroute_gym.ground import signals
from llmroute_gym.sim import batch_time

_HERE = Path(__file__).parent


def drop_stale_kernels(folder: Path = _HERE, *further_sources: Path) -> None:
    """Deletes the kernel cache of a folder unless it was made from the present sources.

    Args:
        folder: holds modules with kernels; call this before any of them is imported.
        further_sources: files that its kernels are made of, beside those of this package.
    """
    ours = [*sorted(_HERE.rglob("*.py")), Path(batch_time.__file__), Path(signals.__file__)]
    sources = b"".join(path.read_bytes() for path in (*ours, *further_sources))
    digest = hashlib.sha256(sources).hexdigest()
    cache = _cache_of(folder)
    stamp = cache / "kernels.sha256"
    with contextlib.suppress(OSError):  # an installation that cannot be written does not change
        if stamp.exists() and stamp.read_text() == digest:
            return
        cache.mkdir(parents=True, exist_ok=True)
        for kernel in [*cache.glob("*.nbi"), *cache.glob("*.nbc")]:
            kernel.unlink(missing_ok=True)
        stamp.write_text(digest)


def _cache_of(folder: Path) -> Path:
    """Returns where Numba keeps the kernels of a folder's modules: $NUMBA_CACHE_DIR moves them."""
    moved: str = getattr(config, "CACHE_DIR", "")
    if not moved:
        return folder / "__pycache__"
    locator: Any = UserProvidedCacheLocator
    return Path(moved) / locator.get_suitable_cache_subpath(str(folder / "any.py"))
