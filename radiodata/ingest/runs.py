"""Marks of ingest runs in the root group, and removal of what a run left behind that never finished."""

from __future__ import annotations

import json
import os
import socket
import time
import uuid
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
    mark = {"host": socket.gethostname(), "pid": os.getpid(), "started": time.time()}
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
        subjects = set(read_table(join(uri, "obs_meta"), SUBJECT, ctx, [RUN]).index)
        for name in read_root(uri, ctx):
            _clean_collection(join(uri, name), run, subjects, ctx)
        end_run(uri, run, ctx)
    return dead


def _alive(mark: dict[str, object]) -> bool:
    if mark["host"] != socket.gethostname():
        return time.time() - float(str(mark["started"])) < _STALE_SECONDS
    try:
        os.kill(int(str(mark["pid"])), 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _clean_collection(uri: str, run: str, subjects: set[str], ctx: tiledb.Ctx) -> None:
    obs = read_table(join(uri, "obs"), OBS_ID, ctx, ["shard", "slot", SUBJECT])
    obs = obs[obs[SUBJECT].isin(subjects).to_numpy(bool)]
    vfs = tiledb.VFS(ctx=ctx)
    voxels = join(uri, VOXELS)
    listed = vfs.ls(voxels) if vfs.is_dir(voxels) else []
    for shard in [u for u in listed if u.rstrip("/").rsplit("/", 1)[-1].startswith(f"{run}-")]:
        name = shard.rstrip("/").rsplit("/", 1)[-1]
        kept = {int(s) for s in obs.loc[(obs["shard"] == name).to_numpy(bool), "slot"]}
        if kept:
            _delete_slots_but(shard, kept, ctx)
        else:
            tiledb.remove(shard, ctx=ctx)


def _delete_slots_but(shard: str, kept: Collection[int], ctx: tiledb.Ctx) -> None:
    fragments = tiledb.array_fragments(shard, ctx=ctx)
    slots = [int(domain[0][0]) for domain in fragments.nonempty_domain]
    times = [tuple(int(t) for t in span) for span in fragments.timestamp_range]
    needed = {t for slot, t in zip(slots, times, strict=True) if slot in kept}
    for slot, span in zip(slots, times, strict=True):
        if slot not in kept and span not in needed:  # TileDB deletes by time: one of the same millisecond stays
            tiledb.Array.delete_fragments(shard, *span, ctx=ctx)
