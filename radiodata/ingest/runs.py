"""Marks of ingest runs in the root group, and removal of what a run left behind that never finished."""

from __future__ import annotations

import json
import os
import socket
import time
import uuid
from pathlib import Path
from typing import TYPE_CHECKING

import tiledb

from radiodata.store.layout import VOXELS, join, read_root
from radiodata.store.obs import OBS_ID, RUN, SUBJECT
from radiodata.store.table import read_table

if TYPE_CHECKING:
    from collections.abc import Collection

_MARK = "radiodata.run."
_STALE_SECONDS = 7 * 24 * 3600


def begin_run(uri: str, ctx: tiledb.Ctx) -> str:
    """Mark a run as going on, and give its id."""
    run = uuid.uuid4().hex[:12]
    pid = os.getpid()
    mark = {"machine": _machine(), "pid": pid, "born": _birth(pid), "started": time.time()}
    with tiledb.Group(uri, "w", ctx=ctx) as group:
        group.meta[_MARK + run] = json.dumps(mark)
    return run


def end_run(uri: str, run: str, ctx: tiledb.Ctx) -> None:
    """Take the mark of a run away."""
    with tiledb.Group(uri, "w", ctx=ctx) as group:
        del group.meta[_MARK + run]


def clean_abandoned(uri: str, ctx: tiledb.Ctx) -> list[str]:
    """Remove the voxels that dead runs wrote and no row of `obs` points to; give the runs' ids.

    A run is dead when its process on this machine is gone, or when it began a week ago elsewhere.
    """
    with tiledb.Group(uri, "r", ctx=ctx) as group:
        marks = {k.removeprefix(_MARK): json.loads(v) for k, v in group.meta.items() if k.startswith(_MARK)}
    dead = [run for run, mark in marks.items() if not _alive(mark)]
    for run in dead:
        clean_run(uri, run, ctx)
        end_run(uri, run, ctx)
    return dead


def clean_run(uri: str, run: str, ctx: tiledb.Ctx) -> None:
    """Remove the voxels that one run wrote and no row of `obs` points to; nothing of the run may still write."""
    subjects = set(read_table(join(uri, "obs_meta"), SUBJECT, ctx, [RUN]).index)
    for name in read_root(uri, ctx):
        _clean_collection(join(uri, name), run, subjects, ctx)


def _machine() -> str:
    """Name what a pid means something in: one boot of one machine, one process namespace."""
    boot, space = Path("/proc/sys/kernel/random/boot_id"), Path("/proc/self/ns/pid")
    parts = [socket.gethostname(), boot.read_text().strip() if boot.exists() else ""]
    return "/".join([*parts, str(space.readlink()) if space.is_symlink() else ""])


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


def _alive(mark: dict[str, object]) -> bool:
    if mark.get("machine") != _machine():
        return time.time() - float(str(mark["started"])) < _STALE_SECONDS
    return _birth(int(str(mark["pid"]))) == mark["born"]


def _clean_collection(uri: str, run: str, subjects: set[str], ctx: tiledb.Ctx) -> None:
    obs = read_table(join(uri, "obs"), OBS_ID, ctx, ["shard", "slot", SUBJECT])
    obs = obs[obs[SUBJECT].isin(subjects).to_numpy(bool)]
    vfs = tiledb.VFS(ctx=ctx)
    voxels = join(uri, VOXELS)
    listed = vfs.ls(voxels) if vfs.is_dir(voxels) else []
    for shard in [u for u in listed if _last(u).startswith(f"{run}-")]:
        kept = {int(s) for s in obs.loc[(obs["shard"] == _last(shard)).to_numpy(bool), "slot"]}
        try:
            if kept:
                _delete_slots_but(shard, kept, vfs, ctx)
            else:
                vfs.remove_dir(shard)  # not tiledb.remove: a shard whose creation was cut short is no array
        except tiledb.TileDBError:
            if vfs.is_dir(shard):  # else another process cleaned it first
                raise


def _delete_slots_but(shard: str, kept: Collection[int], vfs: tiledb.VFS, ctx: tiledb.Ctx) -> None:
    fragments = tiledb.array_fragments(shard, ctx=ctx)
    _delete_uncommitted(shard, fragments.uri, vfs)
    slots = [int(domain[0][0]) for domain in fragments.nonempty_domain]
    times = [tuple(int(t) for t in span) for span in fragments.timestamp_range]
    needed = {t for slot, t in zip(slots, times, strict=True) if slot in kept}
    for slot, span in zip(slots, times, strict=True):
        if slot not in kept and span not in needed:  # TileDB deletes by time: one of the same millisecond stays
            tiledb.Array.delete_fragments(shard, *span, ctx=ctx)


def _delete_uncommitted(shard: str, committed: Collection[str], vfs: tiledb.VFS) -> None:
    """Remove fragments whose writing was cut short: TileDB neither shows nor vacuums them."""
    known, folder = {_last(uri) for uri in committed}, join(shard, "__fragments")
    for fragment in vfs.ls(folder) if vfs.is_dir(folder) else []:
        if _last(fragment) not in known:
            vfs.remove_dir(fragment)


def _last(uri: str) -> str:
    return uri.rstrip("/").rsplit("/", 1)[-1]
