"""Writing voxels into packed shards, and tidying the shards afterwards."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

import numpy as np
import tiledb

from radiodata.errors import StoreError
from radiodata.store.context import LARGE_BYTES, context, patiently
from radiodata.store.direct import writing
from radiodata.store.layout import voxel_schema

_creating = threading.Lock()
_BUDGETS = (1 << 26, 1 << 28, 1 << 30, 1 << 32, 10 << 30)

if TYPE_CHECKING:
    from collections.abc import Iterable

    from radiodata._typing import Voxels
    from radiodata.store.config import ReadConfig, StoreConfig


def ensure_shard(uri: str, dtype: str, config: StoreConfig, ctx: tiledb.Ctx, kind: str = "image") -> None:
    """Create a packed shard for volumes of a kind unless it is there; threads and processes may ask at once."""

    def create() -> None:
        if not tiledb.array_exists(uri, ctx=ctx):
            tiledb.Array.create(uri, voxel_schema(dtype, kind, config, ctx), ctx=ctx)

    with _creating:
        patiently(create)  # where another process was quicker, it is there the next time


def store_volume(uri: str, slot: int, voxels: Voxels, config: ReadConfig) -> None:
    """Write one volume, ``(channel, x, y, z)``, into its slot: one fragment, atomic.

    Raises
    ------
    StoreError
        When TileDB, or the disk, refuses.
    """
    ctx = context(config, large=voxels.nbytes > LARGE_BYTES)
    try:
        done = config.direct and config.compiled and writing.write(uri, slot, voxels, ctx)
    except OSError as error:
        raise StoreError(f"cannot write a volume of shape {voxels.shape} to slot {slot} of {uri}: {error}") from error
    if not done:
        write_volume(uri, slot, voxels, ctx)


def write_volume(uri: str, slot: int, voxels: Voxels, ctx: tiledb.Ctx) -> None:
    """Write one volume, ``(channel, x, y, z)``, into its slot, by a TileDB query.

    Its timestamp is the slot's number, not the clock's: TileDB deletes fragments by time, and volumes that
    were written in the same millisecond could not be told apart.

    Raises
    ------
    StoreError
        When TileDB refuses.
    """
    slices = (slice(slot, slot + 1), *(slice(0, n) for n in voxels.shape))
    try:
        with tiledb.open(uri, "w", timestamp=slot + 1, ctx=ctx) as array:
            array[slices] = np.ascontiguousarray(voxels)[None]
    except tiledb.TileDBError as error:
        raise StoreError(f"cannot write a volume of shape {voxels.shape} to slot {slot} of {uri}: {error}") from error


def consolidate_metadata(uris: Iterable[str], ctx: tiledb.Ctx) -> None:
    """Merge the fragment metadata of arrays, so that opening one costs the same for any number of volumes."""
    for uri in uris:
        _consolidate(uri, "fragment_meta", ctx)


def consolidate_table(uri: str, ctx: tiledb.Ctx) -> None:
    """Merge the fragments of a table into one."""
    _consolidate(uri, "fragments", ctx)
    _consolidate(uri, "fragment_meta", ctx)


def _consolidate(uri: str, mode: str, ctx: tiledb.Ctx) -> None:
    """Consolidate and vacuum; again with more memory where cells are large, or another process was quicker.

    TileDB's own budget of 10 GiB makes it touch gigabytes of buffers for a table of a few rows.
    """
    for budget in _BUDGETS:
        settings = {"sm.consolidation.mode": mode, "sm.vacuum.mode": mode, "sm.mem.total_budget": str(budget)}
        settings["sm.query.sparse_global_order.preprocess_tile_merge"] = "0"  # see ReadConfig.to_tiledb
        held = ctx.config()
        settings |= {key: held[key] for key in ("sm.encryption_type", "sm.encryption_key")}
        config = tiledb.Config(settings)
        try:
            tiledb.consolidate(uri, config=config, ctx=ctx)
            tiledb.vacuum(uri, config=config, ctx=ctx)
        except tiledb.TileDBError as error:
            failed = error
        else:
            return
    raise StoreError(f"{uri} is whole, but its fragments could not be merged: {failed}") from failed
