"""Reading boxes of voxels: straight from the tiles where that is possible, else by a bare TileDB query.

``array[...]`` probes for packages on every call (about 1 ms of Python); a bare query into our own
buffer costs 0.1 ms and lets the caller say where the voxels go.
"""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING, Any

import numpy as np
import tiledb
import tiledb.libtiledb as lt

from radiodata.errors import StoreError, TileReadError
from radiodata.store.context import DEFAULT_READ, bounded, context, handles
from radiodata.store.direct import Corrupt, Meter
from radiodata.store.direct.plan import spans_of

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

    from radiodata._typing import Box, Voxels
    from radiodata.store.config import ReadConfig
    from radiodata.store.direct.plan import Spans
    from radiodata.store.obs import VoxelSource


def read_box(
    source: VoxelSource,
    box: Box,
    *,
    channels: tuple[int, int] | None = None,
    config: ReadConfig = DEFAULT_READ,
    meter: Meter | None = None,
    empty: Callable[[Sequence[int], np.dtype[Any]], Voxels] = np.empty,
) -> Voxels:
    """Read a box of stored voxels.

    Tiles of a layout that is known are read from local disk without a TileDB query (``ReadConfig.direct``);
    everything else, and every tile that cannot be decoded, goes through TileDB.

    Parameters
    ----------
    source
        The volume.
    box
        Start and stop per axis in voxels, inside the volume; shape ``(3, 2)``.
    channels
        First and last + 1; by default all.
    meter
        Counts where the time goes.
    empty
        Gives the memory that is read into, by shape and dtype, in C order.

    Returns
    -------
    ndarray, shape (channel, x, y, z), stored dtype, C order

    Raises
    ------
    TileReadError
        When the array cannot be opened or read, or holds no voxels for this volume.
    """
    first, last = channels or (0, source.shape[0])
    spans = spans_of(box)
    _refuse_outside(source, spans, first, last)
    out = empty((last - first, *(hi - lo for lo, hi in spans)), np.dtype(source.dtype))
    meter = meter or Meter()

    def query() -> None:
        bounded(source.uri, config, lambda: _query(source, box, first, last, out, config))

    with meter.call():
        _learn(source, config)
        try:
            done = handles().direct.read(source, spans, (first, last), out, config, context, meter)
        except Corrupt as why:
            query()  # says more of it where TileDB notices, too
            raise TileReadError(_where(source, box, f"{why}: the tile is damaged")) from why
        if not done:
            query()
    return out


def read_crops(
    source: VoxelSource,
    box: Box,
    starts: NDArray[np.int64],
    crops: Sequence[Voxels],
    *,
    config: ReadConfig = DEFAULT_READ,
    meter: Meter | None = None,
    empty: Callable[[Sequence[int], np.dtype[Any]], Voxels] = np.empty,
) -> None:
    """Read crops that lie in one box, each into an array: what ``read_box`` and a copy of each part would give.

    Parameters
    ----------
    box
        Start and stop per axis in voxels, inside the volume; shape ``(3, 2)``.
    starts
        First voxel of each crop in the volume, int64, shape ``(crop, 3)``.
    crops
        Arrays ``(channel, x, y, z)`` of one shape, in C order and of the stored dtype; of every channel.
    meter
        Counts where the time goes.
    empty
        Gives the memory of the box, where it has to be read whole.

    Raises
    ------
    ValueError
        When a crop reaches beyond the box, or the box beyond the volume.
    TileReadError
        As ``read_box`` does.
    """
    spans, channels, meter = spans_of(box), source.shape[0], meter or Meter()
    _refuse_outside(source, spans, 0, channels)
    size, corners = crops[0].shape[1:], starts.tolist()
    if (starts < box[:, 0]).any() or (starts + size > box[:, 1]).any():
        raise ValueError(f"crops of {size} at {corners} are not all inside of the box {box.tolist()}")
    if any(crop.shape != (channels, *size) for crop in crops):
        raise ValueError(f"crops of shapes {sorted({c.shape for c in crops})}: all must be {(channels, *size)}")
    fits = crops[0].flags.c_contiguous and crops[0].dtype == source.dtype
    if len(crops) == 1 and fits and size == tuple(high - low for low, high in spans):
        read_box(source, box, config=config, meter=meter, empty=lambda shape, dtype: crops[0])
        return
    with meter.call():
        _learn(source, config)
        with suppress(Corrupt):  # read again, for an error that says where it is
            if handles().direct.read_crops(source, spans, corners, crops, config, context, meter):
                return
    block = read_box(source, box, config=config, meter=meter, empty=empty)
    for crop, start in zip(crops, starts - box[:, 0], strict=True):
        x, y, z = start.tolist()
        crop[...] = block[:, x : x + size[0], y : y + size[1], z : z + size[2]]


def _learn(source: VoxelSource, config: ReadConfig) -> None:
    """Read the index that a source names, once for this process."""
    if source.index is None or not config.direct or handles().direct.knows(source.index[0]):
        return
    from radiodata.store.index import read_index

    direct = handles().direct
    with direct.learning:  # once, however many threads need it
        if not direct.knows(source.index[0]):
            index = read_index(*source.index, config)
            direct.learn(source.index[0], index.shards, index.tiles)


def _query(source: VoxelSource, box: Box, first: int, last: int, out: Voxels, config: ReadConfig) -> None:
    ranges = [[(source.slot, source.slot)], [(first, last - 1)]]
    ranges += [[(int(lo), int(hi) - 1)] for lo, hi in box]
    try:
        with handles().reading(source.uri, source.token, config) as (array, ctx):
            status = _submit(array, ctx, ranges, out)
            written = not _could_be_fill(array, out) or _is_written(source, config)
    except (tiledb.TileDBError, StoreError, OSError, RuntimeError) as error:
        raise TileReadError(_where(source, box, f"{error}")) from error
    if status != lt.QueryStatus.COMPLETE:
        raise TileReadError(_where(source, box, f"the query ended as {status}"))
    if not written:
        raise TileReadError(_where(source, box, "the array holds no voxels for it (was a fragment deleted?)"))


def _refuse_outside(source: VoxelSource, spans: Spans, first: int, last: int) -> None:
    """The domain of a shard is wide: TileDB would answer a read beyond the volume with fill values."""
    (x0, x1), (y0, y1), (z0, z1) = spans
    channels, x, y, z = source.shape
    inside = 0 <= x0 < x1 <= x and 0 <= y0 < y1 <= y and 0 <= z0 < z1 <= z
    if not inside or not 0 <= first < last <= channels:
        box = [list(span) for span in spans]
        raise ValueError(f"box {box}, channels {first}:{last} is empty or outside of shape {source.shape}")


def _submit(array: tiledb.Array, ctx: tiledb.Ctx, ranges: list[list[tuple[int, int]]], out: Voxels) -> Any:
    handle = lt.Array(ctx, array)
    query = lt.Query(ctx, handle, lt.QueryType.READ)
    query.layout = lt.LayoutType.ROW_MAJOR
    subarray = lt.Subarray(ctx, handle)
    subarray._add_ranges(ctx, ranges)
    query.set_subarray(subarray)
    query.set_data_buffer("voxels", out, out.size)
    return query._submit()


def _could_be_fill(array: tiledb.Array, out: Voxels) -> bool:
    """Whether all that was read is the fill value: TileDB answers so for a slot that nobody wrote."""
    first, last = out.flat[0], out.flat[-1]
    if not _same(first, last):
        return False
    fill = array.schema.attr(0).fill[0]
    return _same(first, fill) and bool((np.isnan(out) if fill != fill else out == fill).all())


def _is_written(source: VoxelSource, config: ReadConfig) -> bool:
    fragments = tiledb.array_fragments(source.uri, ctx=handles().context(config))
    return any(domain[0][0] <= source.slot <= domain[0][1] for domain in fragments.nonempty_domain)


def _same(value: Any, fill: Any) -> bool:
    return bool(value == fill) or (value != value and fill != fill)


def _where(source: VoxelSource, box: Box, why: str) -> str:
    inside = ", ".join(f"{lo}:{hi}" for lo, hi in box.tolist())
    return (
        f"cannot read [{inside}] of volume {source.obs_id!r} (subject {source.subject!r}, slot {source.slot} of "
        f"{source.uri}): {why}. Run `radiodata info` on the cohort; if the store is damaged, ingest the subject again."
    )
