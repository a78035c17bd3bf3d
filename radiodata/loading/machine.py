"""What this machine, or the container it is, has: cores; memory that is free, its limit, who was killed for it."""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass
from pathlib import Path

_ROOT = Path("/sys/fs/cgroup")


@dataclass(frozen=True)
class OomKills:
    """Processes that the kernel's out-of-memory killer has ended so far.

    Attributes
    ----------
    group
        In this process's control groups (its container).
    machine
        On the whole machine.
    """

    group: int
    machine: int


def cores() -> int:
    """Processor cores that this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def oom_kills() -> OomKills:
    """Count what the out-of-memory killer has done so far; zero where the kernel does not tell."""
    files = [(g / "memory.events", g / "memory.oom_control") for g in _groups()]
    group = sum(_field(path, "oom_kill") for pair in files for path in pair)
    return OomKills(group, _field(Path("/proc/vmstat"), "oom_kill"))


def memory_limit() -> int | None:
    """Bytes that the control groups of this process allow it; None where there is no limit."""
    limits = [limit for limit, _ in _limits()]
    return min(limits) if limits else None


def memory_available() -> int | None:
    """Bytes that processes here can still take without swapping; None where the kernel does not tell."""
    free = _field(Path("/proc/meminfo"), "MemAvailable:") * 1024
    rooms = [max(0, limit - used) for limit, used in _limits()] + ([free] if free else [])
    return min(rooms) if rooms else None


def shm_space() -> tuple[int, int] | None:
    """Bytes of ``/dev/shm``: all, and free; None where there is none."""
    try:
        usage = shutil.disk_usage("/dev/shm")
    except OSError:
        return None
    return usage.total, usage.free


def peak_memory() -> int:
    """Most bytes that this process has had in memory (its resident set); 0 where the system does not tell."""
    return _field(Path("/proc/self/status"), "VmHWM:") * 1024


def show_bytes(n: float) -> str:
    """Bytes for a reader: 1.5 GB."""
    for unit, size in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if n >= size:
            return f"{n / size:.3g} {unit}"
    return f"{n:.0f} B"


def _groups() -> list[Path]:
    """Memory control groups of this process, innermost first: version 2 and 1, seen from inside or outside."""
    try:
        lines = Path("/proc/self/cgroup").read_text().splitlines()
    except OSError:
        return []
    found: dict[Path, None] = {}
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers and "memory" not in controllers.split(","):
            continue
        top = _ROOT / "memory" if controllers else _ROOT
        inner = top / path.lstrip("/")
        chain = [inner, *inner.parents]
        found.update(dict.fromkeys(chain[: chain.index(top) + 1]))
    return [g for g in found if g.is_dir()]


def _limits() -> list[tuple[int, int]]:
    """Limit and use of every control group that has a limit."""
    out = []
    for group in _groups():
        for limit_file, used_file, cache in (
            ("memory.max", "memory.current", "inactive_file"),
            ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
        ):
            limit, used = _number(group / limit_file), _number(group / used_file)
            if limit is not None and used is not None and limit < _physical():
                out.append((limit, max(0, used - _field(group / "memory.stat", cache))))
    return out


def _physical() -> int:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _number(path: Path) -> int | None:
    try:
        return int(path.read_text())
    except (OSError, ValueError):  # version 2 writes "max" for none
        return None


def _field(path: Path, name: str) -> int:
    try:
        rows = [line.split() for line in path.read_text().splitlines()]
    except OSError:
        return 0
    return next((int(row[1]) for row in rows if len(row) > 1 and row[0] == name), 0)
