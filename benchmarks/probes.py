"""What is measured inside a process, and how lists of it are summed up."""

from __future__ import annotations

import os
import statistics
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

BLOCK = 1 << 22


def touch(path: Path) -> int:
    """Read a file, or every file below a folder, so that the page cache is warm; return the bytes."""
    files = [path] if path.is_file() else sorted(p for p in path.rglob("*") if p.is_file())
    total = 0
    for file in files:
        with file.open("rb") as stream:
            while data := stream.read(BLOCK):
                total += len(data)
    return total


def cpu_seconds() -> float | None:
    """Return the CPU seconds of this process and its children, living and reaped; None without psutil."""
    try:
        import psutil
    except ImportError:
        return None
    total = sum(os.times()[:4])
    for child in psutil.Process().children(recursive=True):
        try:
            times = child.cpu_times()
        except psutil.NoSuchProcess:
            continue
        total += times.user + times.system + times.children_user + times.children_system
    return total


def memory_bytes() -> int | None:
    """Return the memory of this process and its children, shared pages shared out (PSS); None without psutil."""
    try:
        import psutil
    except ImportError:
        return None
    me = psutil.Process()
    infos = [process.memory_full_info() for process in (me, *me.children(recursive=True))]
    return sum(int(getattr(info, "pss", info.uss)) for info in infos)  # PSS is known on Linux alone


def disk(path: Path) -> dict[str, int]:
    """Return the bytes and number of the files below a folder."""
    sizes = [p.stat().st_size for p in path.rglob("*") if p.is_file()]
    return {"bytes": sum(sizes), "files": len(sizes)}


def summary(values: Sequence[float]) -> dict[str, float | int]:
    """Return median, quartiles, interquartile range, least, most and number of some measurements."""
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive") if len(values) > 1 else [values[0]] * 3
    return {
        "median": middle,
        "q1": low,
        "q3": high,
        "iqr": high - low,
        "min": min(values),
        "max": max(values),
        "n": len(values),
    }
