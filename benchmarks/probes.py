"""What is measured inside a process, and how lists of it are summed up."""

from __future__ import annotations

import os
import statistics
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

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


def evict(path: Path) -> None:
    """Have Linux let go of the pages of a file, or of every file below a folder; those that are mapped stay."""
    files = [path] if path.is_file() else [p for p in path.rglob("*") if p.is_file()]
    for file in files:
        fd = os.open(file, os.O_RDONLY)
        try:
            os.fsync(fd)  # what is not on the disk yet is not let go of
            os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        finally:
            os.close(fd)


def device_bytes() -> int:
    """Return the bytes that this process has had Linux fetch from disks."""
    counts = Path("/proc/self/io").read_text().splitlines()
    return next(int(line.split()[1]) for line in counts if line.startswith("read_bytes"))


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
