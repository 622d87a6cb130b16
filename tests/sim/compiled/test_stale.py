"""Kernels on disk that were made from other sources."""

from pathlib import Path

import pytest
from numba.core import config

from llmroute_gym.sim.compiled.stale import drop_stale_kernels


def cached_kernels(folder: Path) -> set[str]:
    return {path.name for path in folder.rglob("*.nb?")}


def leave_kernel(folder: Path) -> None:
    """Puts a kernel where the last clean-up left its stamp."""
    (stamp,) = folder.rglob("kernels.sha256")
    (stamp.parent / "kernel.py311.nbi").write_bytes(b"made from these sources")


@pytest.mark.parametrize("elsewhere", [False, True], ids=["beside the module", "NUMBA_CACHE_DIR"])
def test_kernels_are_dropped_when_a_source_changes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, elsewhere: bool
) -> None:
    package, cache = tmp_path / "package", tmp_path / "cache"
    package.mkdir()
    monkeypatch.setattr(config, "CACHE_DIR", str(cache) if elsewhere else "")
    source = package / "module.py"
    source.write_text("STEP = 1")
    drop_stale_kernels(package, source)
    leave_kernel(cache if elsewhere else package)

    drop_stale_kernels(package, source)
    assert cached_kernels(tmp_path) == {"kernel.py311.nbi"}

    source.write_text("STEP = 2")
    drop_stale_kernels(package, source)
    assert cached_kernels(tmp_path) == set()
