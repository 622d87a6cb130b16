"""Drops cached kernels whose sources have changed.

Numba keys a cached kernel by its own file alone, so it would go on running a kernel whose callee
or constants, in another file, have been edited.
"""

import contextlib
import hashlib
from pathlib import Path

from llmroute_gym.sim import batch_time, signals

_HERE = Path(__file__).parent


def drop_stale_kernels() -> None:
    """Deletes this package's kernel cache unless it was made from the present sources."""
    sources = [*sorted(_HERE.glob("*.py")), Path(batch_time.__file__), Path(signals.__file__)]
    digest = hashlib.sha256(b"".join(path.read_bytes() for path in sources)).hexdigest()
    cache = _HERE / "__pycache__"
    stamp = cache / "kernels.sha256"
    with contextlib.suppress(OSError):  # an installation that cannot be written does not change
        if stamp.exists() and stamp.read_text() == digest:
            return
        cache.mkdir(exist_ok=True)
        for kernel in [*cache.glob("*.nbi"), *cache.glob("*.nbc")]:
            kernel.unlink(missing_ok=True)
        stamp.write_text(digest)
