"""Watching workers: what one is doing, why one died, and what to change."""

from __future__ import annotations

import faulthandler
import json
import os
import select
import signal
import tempfile
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from radiodata.loading.machine import OomKills, memory_limit, oom_kills, shm_space, show_bytes

if TYPE_CHECKING:
    from radiodata.loading.cache import UnitKey

_STACKS = 4096
_STATES = {
    "T": "it is stopped (SIGSTOP, or a debugger)",
    "D": "it waits for a disk or a network file system that does not answer",
    "Z": "it has ended",
}


class Board:
    """A file without a name that a worker writes what it does to, and its stacks when asked or crashing.

    Parameters
    ----------
    file
        Its open file; by default a new one.
    """

    def __init__(self, file: int | None = None) -> None:
        self.file = nameless_file("radiodata-board") if file is None else file
        self._lock, self._doing = threading.Lock(), dict[str, Any]()

    def show_stacks(self) -> None:
        """Have Python write the stacks of this process here: on SIGUSR1, and when native code crashes."""
        os.lseek(self.file, _STACKS, os.SEEK_SET)
        faulthandler.enable(self.file)
        faulthandler.register(signal.SIGUSR1, self.file)

    def note(self, **doing: Any) -> None:
        """Write what is going on."""
        with self._lock:
            self._doing.update(doing)
            os.pwrite(self.file, json.dumps(self._doing).encode()[:_STACKS].ljust(_STACKS), 0)

    def note_reads(self, units: list[UnitKey]) -> None:
        """Write which units are being read."""
        self.note(units=units[:32])

    def doing(self) -> dict[str, Any]:
        """Read what is going on."""
        try:
            return dict(json.loads(os.pread(self.file, _STACKS, 0)))
        except (OSError, ValueError):
            return {}

    def stacks(self) -> str:
        """Read the stacks, if they were written."""
        return os.pread(self.file, 1 << 16, _STACKS).decode(errors="replace").strip()

    def close(self) -> None:
        """Close the file here."""
        os.close(self.file)


def nameless_file(name: str) -> int:
    """Open a file that has no place in the file system; `name` is for those who list open files."""
    if hasattr(os, "memfd_create"):
        return os.memfd_create(name)
    with tempfile.TemporaryFile() as file:
        return os.dup(file.fileno())


def ask_for_stacks(pid: int, board: Board, seconds: float = 1.0) -> str:
    """Have a process write its stacks to its board, and read them."""
    try:
        os.kill(pid, signal.SIGUSR1)
    except ProcessLookupError:
        return ""
    deadline = time.monotonic() + seconds
    while not (text := board.stacks()) and time.monotonic() < deadline:
        time.sleep(0.02)
    time.sleep(0.05 if text else 0)  # they are written line by line
    return board.stacks()


def state_of(pid: int) -> str:
    """Say what the kernel says of a process, where that explains why it does not go on."""
    try:
        letter = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return ""
    return _STATES.get(letter, "")


def end_with_parent(parent: int) -> None:
    """End this process as soon as its parent has ended, whatever it is doing then."""
    threading.Thread(target=_wait_for_end, args=(parent,), name="radiodata-watch", daemon=True).start()


def _wait_for_end(parent: int) -> None:
    try:
        file = os.pidfd_open(parent)
    except ProcessLookupError:
        os._exit(0)
    except (AttributeError, OSError):  # no Linux, or a sandbox without the call
        mine = os.getppid()
        while os.getppid() == mine:
            time.sleep(1.0)
        os._exit(0)
    ended = select.poll()
    ended.register(file, select.POLLIN)
    ended.poll()
    os._exit(0)


@dataclass(frozen=True)
class Settings:
    """What a user can change when memory runs out."""

    workers: int
    prefetch: int
    cache_bytes: int

    def __str__(self) -> str:
        return (
            f"num_workers (now {self.workers}), prefetch ({self.prefetch}) or the dataset's cache_bytes "
            f"({show_bytes(self.cache_bytes)} in each worker)"
        )


def explain_exit(exitcode: int | None, before: OomKills, peak: int, settings: Settings) -> str:
    """Say why a worker ended, as far as can be known, and what to do.

    Parameters
    ----------
    exitcode
        As ``multiprocessing`` gives it: minus the signal that killed it.
    before
        What the out-of-memory killer had done when the worker began.
    peak
        Most memory that the worker reported, in bytes.
    settings
        What to lower.
    """
    if exitcode is None or exitcode >= 0:
        return (
            f"It left with exit code {exitcode}: something in it, such as a transform, ended the process. What it "
            "wrote to the standard error is above."
        )
    name = signal.Signals(-exitcode).name if -exitcode in set(signal.Signals) else f"signal {-exitcode}"
    if -exitcode == signal.SIGKILL:
        return f"It was killed by {name}. {_out_of_memory(before, peak)} Lower {settings}, or give the job more memory."
    if -exitcode == signal.SIGBUS:
        return f"It was killed by {name}: memory behind a file was not there. {_shared_memory()}"
    if -exitcode == signal.SIGTERM:
        return f"It was told to end ({name}): by a scheduler that reached its limit, or a user."
    return (
        f"It was killed by {name}: native code crashed (TileDB, torch, or a library that a transform uses). Try "
        "num_workers=0 under a debugger, or another multiprocessing_context."
    )


def _out_of_memory(before: OomKills, peak: int) -> str:
    now, limit = oom_kills(), memory_limit()
    of = f" Its limit is {show_bytes(limit)}." if limit else ""
    used = f" This worker had had up to {show_bytes(peak)}." if peak else ""
    if now.group > before.group:
        who = f"The out-of-memory killer ended {now.group - before.group} process(es) in this container meanwhile:"
        return f"{who} memory ran out.{of}{used}"
    if now.machine > before.machine:
        return f"The out-of-memory killer was at work on this machine meanwhile: memory ran out.{used}"
    return (
        f"The kernel does so when memory runs out, but counts no such kill here: perhaps a scheduler, or a user, did "
        f"it.{of}{used}"
    )


def _shared_memory() -> str:
    space = shm_space()
    has = f"/dev/shm has {show_bytes(space[1])} free of {show_bytes(space[0])}; " if space else ""
    return (
        f"{has}radiodata does not use it, but a transform may. Make it larger (docker run --shm-size=8g, or an "
        "emptyDir volume of medium Memory in Kubernetes); or a file that is mapped into memory was cut short."
    )
