"""A volume written into its slot of a packed shard on local disk, without a TileDB query.

Half of the time of a query that writes goes into work for each cell in plain code. So where `radiodata[fast]` is
installed, and the layout is one that we know byte by byte, tiles are encoded here. What comes out is what TileDB
would have written: whatever reads TileDB reads it.
"""

from __future__ import annotations

import os
import uuid
from pathlib import Path
from shutil import rmtree
from typing import TYPE_CHECKING, Any

import numpy as np
import tiledb

from radiodata.store.direct.compose import VERSION, compose
from radiodata.store.direct.listing import local_path
from radiodata.store.direct.packed import packer
from radiodata.store.direct.refusal import Refused, need
from radiodata.store.direct.schema import layout_of
from radiodata.store.durable import durable, sync

if TYPE_CHECKING:
    from collections.abc import Iterable

    from radiodata._typing import Voxels
    from radiodata.store.direct.packed import Packed
    from radiodata.store.direct.schema import Layout

LEAST = 1 << 26
"""Bytes of voxels that a process has to write: for fewer it compiles no kernel, which takes seconds."""
_seen = 0


def worthwhile(more: int = 0) -> bool:
    """Whether this process has written so much, or is about to with so many bytes more, that kernels pay."""
    return _seen + more >= LEAST


def write(uri: str, slot: int, voxels: Voxels, ctx: tiledb.Ctx) -> bool:
    """Write a volume, ``(channel, x, y, z)``, into its slot, or say that TileDB is to do it: nothing is left then.

    Raises
    ------
    OSError
        When the disk refuses.
    """
    global _seen
    _seen += voxels.nbytes
    try:
        place = local_path(uri)
        need(place is not None, "it is on an object store")
        need(worthwhile(), "little was written so far")
        need(ctx.config()["sm.encryption_type"] == "NO_ENCRYPTION", "it is encrypted")
        schema = tiledb.ArraySchema.load(uri, ctx=ctx)
        need(schema.version == VERSION, f"its format version is {schema.version}")
        layout = layout_of(schema)
        _check(voxels, layout)
        pack = packer(layout)
        need(pack, "there is no kernel")
        names = [n for n in os.listdir(f"{place}/__schema") if n != "__enumerations"]  # noqa: PTH208
        need(len(names) == 1, "its schema was changed")
        filters = schema.attr(0).filters
        level = filters[len(filters) - 1].level if layout.zstd else 0
        tiles = pack(np.ascontiguousarray(voxels), layout, level)  # type: ignore[misc]
        _write(Path(str(place)), names[0], slot, voxels.shape, layout, tiles)
    except Refused:
        return False
    return True


def _check(voxels: Voxels, layout: Layout) -> None:
    need(layout.dtype == voxels.dtype, "the voxels have another dtype")
    bits = 8 * layout.dtype.itemsize
    need(layout.dtype.kind == "f" or (bits < 64 and voxels.size < 1 << (63 - bits)), "their sum may not fit")


def _write(
    place: Path, schema: str, slot: int, shape: tuple[int, ...], layout: Layout, tiles: Iterable[Packed]
) -> None:
    name = f"__{slot + 1}_{slot + 1}_{uuid.uuid4().hex}_{VERSION}"
    folder, told = place / "__fragments" / name, list[tuple[Any, Any, Any]]()
    folder.mkdir()
    try:
        with durable(folder / "a0.tdb") as file:
            for packed in tiles:
                file.write(packed.data)
                told.append((packed.lengths, packed.ends, packed.sums))
        lengths, ends, sums = (np.concatenate(parts) for parts in zip(*told, strict=True))
        channels, x, y, z = shape
        with durable(folder / "__fragment_metadata.tdb") as file:
            file.write(compose(schema, slot, (channels, x, y, z), layout, np.cumsum([0, *lengths]), ends, sums))
        sync(folder)
        sync(place / "__fragments")
        with durable(place / "__commits" / f"{name}.wrt"):
            pass
    except BaseException:
        rmtree(folder, ignore_errors=True)
        raise
    sync(place / "__commits")
