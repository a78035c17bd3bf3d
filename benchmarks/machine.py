"""What a run was made on: processor, memory, versions, revision."""

from __future__ import annotations

import os
import platform
import subprocess
from importlib import metadata
from pathlib import Path

PACKAGES = (
    "radiodata",
    "radiobject",
    "tiledb",
    "zstandard",
    "numba",
    "torch",
    "numpy",
    "nibabel",
    "monai",
    "torchio",
    "simpleitk",
    "blosc2",
    "nnunetv2",
    "zarr",
    "psutil",
)
ROOT = Path(__file__).resolve().parents[1]


def machine() -> dict[str, str | int | None]:
    """Return the processor's name, the cores this process may use, memory in bytes and the platform."""
    return {
        "cpu": _cpu(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "memory_bytes": _memory(),
        "platform": platform.platform(),
        "python": platform.python_version(),
    }


def versions() -> dict[str, str | None]:
    """Return the installed version of every package that takes part; None for one that is not installed."""
    return {name: _version(name) for name in PACKAGES}


def revision() -> str | None:
    """Return the project's git revision, ``+dirty`` where files differ from it; None outside a repository."""
    head = _git("rev-parse", "HEAD")
    return f"{head}+dirty" if head and _git("status", "--porcelain") else head


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _git(*arguments: str) -> str | None:
    try:
        done = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.strip() or None


def _cpu() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def _memory() -> int | None:
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, OSError, ValueError):
        return None


def stamp(requires: tuple[str, ...]) -> dict[str, str | float | None]:
    """Return what a prepared format depends on: versions and, for radiodata, its newest source file."""
    of: dict[str, str | float | None] = {name: _version(name) for name in requires}
    if "radiodata" in requires:
        of["source"] = max((p.stat().st_mtime for p in (ROOT / "radiodata").rglob("*.py")), default=None)
    return of
