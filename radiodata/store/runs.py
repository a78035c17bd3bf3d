"""Marks of the runs that write to a cohort, and removal of what a run left behind that never finished.

A mark is an empty file whose name says all, ``RUN.MACHINE.PID.BORN.STARTED``: it is there or not, never half.
"""

from __future__ import annotations

import hashlib
import os
import socket
import time
import uuid
from pathlib import Path
from typing import TYPE_CHECKING

import tiledb

from radiodata.store import commits
from radiodata.store.context import context
from radiodata.store.layout import OBS_META, RUNS, VOXELS, join
from radiodata.store.lock import writer_lock
from radiodata.store.obs import OBS_ID
from radiodata.store.table import read_table

if TYPE_CHECKING:
    from collections.abc import Callable, Collection

    from radiodata.store.config import ReadConfig
    from radiodata.store.record import Record

_STALE_SECONDS = 7 * 24 * 3600
_ATTEMPTS = 8


def begin_run(uri: str, ctx: tiledb.Ctx) -> str:
    """Mark a run as going on, and give its id."""
    run, pid = uuid.uuid4().hex[:12], os.getpid()
    vfs = tiledb.VFS(ctx=ctx)
    if not vfs.is_dir(join(uri, RUNS)):
        vfs.create_dir(join(uri, RUNS))
    vfs.touch(join(uri, RUNS, f"{run}.{_machine()}.{pid}.{_birth(pid)}.{int(time.time())}"))
    return run


def end_run(uri: str, run: str, ctx: tiledb.Ctx) -> None:
    """Take the mark of a run away."""
    vfs = tiledb.VFS(ctx=ctx)
    for mark in _marks(uri, vfs):
        if mark.startswith(f"{run}."):
            vfs.remove_file(join(uri, RUNS, mark))


def clean_abandoned(uri: str, config: ReadConfig) -> list[str]:
    """Remove what dead runs wrote and no version of the cohort holds; give the runs' ids.

    A run is dead when its process on this machine is gone, or when it began a week ago elsewhere.
    """
    ctx = context(config)
    vfs = tiledb.VFS(ctx=ctx)
    dead = [mark for mark in _marks(uri, vfs) if not _alive(mark)]
    for mark in dead:
        _condemn(uri, mark, vfs)
    runs = [mark.split(".")[0] for mark in dead]
    for run in runs:
        clean_run(uri, run, config)
        end_run(uri, run, ctx)
    return runs


def mark_of(uri: str, run: str, ctx: tiledb.Ctx) -> str:
    """URI of the mark of a run: while it is there, the run may write."""
    (mark,) = (m for m in _marks(uri, tiledb.VFS(ctx=ctx)) if m.startswith(f"{run}."))
    return join(uri, RUNS, mark)


def may_write(mark: str, ctx: tiledb.Ctx) -> bool:
    """Whether a run goes on; a worker that outlives it must ask, for what it writes then is nobody's."""
    return bool(tiledb.VFS(ctx=ctx).is_file(mark))


def _condemn(uri: str, mark: str, vfs: tiledb.VFS) -> None:
    """Rename the mark of a dead run, so that workers which outlived it see that it is dead, and others clean it."""
    name = f"{mark.split('.')[0]}.dead.0.0.0"
    if mark != name:
        try:
            vfs.move_file(join(uri, RUNS, mark), join(uri, RUNS, name))
        except tiledb.TileDBError:
            if vfs.is_file(join(uri, RUNS, mark)):  # else another process was quicker
                raise


def _marks(uri: str, vfs: tiledb.VFS) -> list[str]:
    folder = join(uri, RUNS)
    return [_last(mark) for mark in vfs.ls(folder)] if vfs.is_dir(folder) else []


def clean_run(uri: str, run: str, config: ReadConfig) -> None:
    """Remove what one run wrote and no version of the cohort holds; nothing of the run may still write."""
    with writer_lock(uri, context(config)):
        _clean(uri, lambda other: other == run, config)


def clean_all(uri: str, config: ReadConfig) -> None:
    """Remove what no version of the cohort holds, of every run but those that go on; the caller holds the lock."""
    going_on = {mark.split(".")[0] for mark in _marks(uri, tiledb.VFS(ctx=context(config))) if _alive(mark)}
    _clean(uri, lambda run: run not in going_on, config)


def _clean(uri: str, gone: Callable[[str], bool], config: ReadConfig) -> None:
    held = [commits.read(uri, version, config) for version in commits.versions(uri, config)]
    needed = {path for record in held for path in record.segments()}
    vfs = tiledb.VFS(ctx=context(config))
    known = {collection.folder for record in held for collection in record.collections.values()}
    folders = known | {_last(u) for u in vfs.ls(uri) if _last(u)[:2] != "__" and vfs.is_dir(join(u, VOXELS))}
    for table in (OBS_META, *(join(folder, "obs") for folder in folders)):
        for segment in _of_runs(join(uri, table), gone, vfs):
            if join(table, _last(segment)) not in needed:
                _remove(segment, vfs)
    for folder in folders:
        shards = _of_runs(join(uri, folder, VOXELS), gone, vfs)
        slots = _slots(uri, folder, held, config) if shards else {}
        for shard in shards:
            _clean_shard(shard, slots.get(_last(shard), set()), vfs, context(config))
        voxels = join(uri, folder, VOXELS)
        if folder not in known and vfs.is_dir(voxels) and not vfs.ls(voxels):
            _remove(join(uri, folder), vfs)


def _of_runs(folder: str, gone: Callable[[str], bool], vfs: tiledb.VFS) -> list[str]:
    entries = vfs.ls(folder) if vfs.is_dir(folder) else []
    return [u for u in entries if "-" in _last(u) and gone(_last(u).split("-")[0])]


def _slots(uri: str, folder: str, held: list[Record], config: ReadConfig) -> dict[str, set[int]]:
    """Slots of each shard that a row of any version points to."""
    of_folder = [c.obs for record in held for c in record.collections.values() if c.folder == folder]
    found: dict[str, set[int]] = {}
    for path in {s.path for table in of_folder for s in table.segments if s.kind == "rows"}:
        rows = read_table(join(uri, path), OBS_ID, context(config), ["shard", "slot"])
        for shard, slot in zip(rows["shard"], rows["slot"], strict=True):
            found.setdefault(str(shard), set()).add(int(slot))
    return found


def _machine() -> str:
    """Name what a pid means something in: one boot of one machine, one process namespace."""
    boot, space = Path("/proc/sys/kernel/random/boot_id"), Path("/proc/self/ns/pid")
    parts = [socket.gethostname(), boot.read_text() if boot.exists() else ""]
    parts.append(str(space.readlink()) if space.is_symlink() else "")
    return hashlib.blake2b("/".join(parts).encode(), digest_size=8).hexdigest()


def _birth(pid: int) -> str | None:
    """When a process began, None where it is gone (or a zombie), "" where the system does not tell."""
    if Path("/proc/self/stat").exists():
        try:
            state, *rest = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        except (FileNotFoundError, ProcessLookupError):
            return None
        return None if state in "ZX" else rest[18]
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return None
    except PermissionError:
        pass
    return ""


def _alive(mark: str) -> bool:
    _, machine, pid, born, started = mark.split(".")
    if machine != _machine():
        return time.time() - int(started) < _STALE_SECONDS
    return str(_birth(int(pid))) == born


def _clean_shard(shard: str, kept: set[int], vfs: tiledb.VFS, ctx: tiledb.Ctx) -> None:
    if kept:
        _insist(lambda: _delete_slots_but(shard, kept, vfs, ctx), shard, vfs)
    else:
        _remove(shard, vfs)  # not tiledb.remove: a shard whose creation was cut short is no array


def _remove(folder: str, vfs: tiledb.VFS) -> None:
    _insist(lambda: vfs.remove_dir(folder), folder, vfs)


def _insist(remove: Callable[[], None], folder: str, vfs: tiledb.VFS) -> None:
    """Remove something that a worker which outlived its run may still write to, or another process may clean."""
    for attempt in range(_ATTEMPTS):
        try:
            remove()
        except tiledb.TileDBError:
            if not vfs.is_dir(folder):
                return
            if attempt == _ATTEMPTS - 1:
                raise
            time.sleep(0.1 * (attempt + 1))
        else:
            return


def _delete_slots_but(shard: str, kept: Collection[int], vfs: tiledb.VFS, ctx: tiledb.Ctx) -> None:
    merged = join(shard, "__fragment_meta")
    for cache in vfs.ls(merged) if vfs.is_dir(merged) else []:
        vfs.remove_file(cache)  # a copy of what the fragments hold; half written, it would bar the shard
    fragments = tiledb.array_fragments(shard, ctx=ctx)
    _delete_uncommitted(shard, fragments.uri, vfs)
    # not tiledb.Array.delete_fragments, which refuses while this process reads the shard
    for domain, fragment in zip(fragments.nonempty_domain, fragments.uri, strict=True):
        if int(domain[0][0]) not in kept:
            commit = join(shard, "__commits", f"{_last(fragment)}.wrt")
            if vfs.is_file(commit):
                vfs.remove_file(commit)  # first: without it, the rest does not exist
            vfs.remove_dir(fragment)


def _delete_uncommitted(shard: str, committed: Collection[str], vfs: tiledb.VFS) -> None:
    """Remove fragments whose writing was cut short: TileDB neither shows nor vacuums them."""
    known, folder = {_last(uri) for uri in committed}, join(shard, "__fragments")
    for fragment in vfs.ls(folder) if vfs.is_dir(folder) else []:
        if _last(fragment) not in known:
            vfs.remove_dir(fragment)


def _last(uri: str) -> str:
    return uri.rstrip("/").rsplit("/", 1)[-1]
