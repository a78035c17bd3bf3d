"""What an array schema says about its tiles, as far as a reader of tiles needs it."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from radiodata.store.direct.refusal import need

if TYPE_CHECKING:
    import tiledb
    from numpy.typing import NDArray

    from radiodata.geometry import Shape3

MAX_CHUNK = 65_536
_MAX_TILE = 1 << 26  # a thread keeps one decoded tile
_PIECE = 1 << 20  # tiles decoded at once fit into a cache
_MOST_TILES = 256
_PIPELINES: tuple[list[str], ...] = ([], ["zstd"], ["byteshuffle", "zstd"])


@dataclass(frozen=True)
class Layout:
    """Tiles of a packed shard: ``(volume, channel, x, y, z)``, one volume and one channel deep.

    A tile is filtered in chunks: whole cells, as many as fit into 64 KiB.

    Attributes
    ----------
    tile
        Extents ``(x, y, z)``.
    shuffle, zstd
        Which filters there are; a shuffle never comes without zstd.
    """

    dtype: np.dtype[Any]
    tile: Shape3
    shuffle: bool
    zstd: bool

    @cached_property
    def cells(self) -> int:
        """Cells of a tile."""
        return self.tile[0] * self.tile[1] * self.tile[2]

    @cached_property
    def chunk(self) -> int:
        """Cells of every chunk of a tile but the last."""
        return min(self.cells, MAX_CHUNK // self.dtype.itemsize)

    @cached_property
    def words(self) -> NDArray[np.int64]:
        """As compiled kernels take it: whether there is zstd, and a shuffle, cells of a chunk, extents of a tile."""
        return np.array([self.zstd, self.shuffle, self.chunk, *self.tile], np.int64)

    @cached_property
    def tiles_a_piece(self) -> int:
        """Tiles that a thread reads and decodes at once: it bounds the memory a thread keeps."""
        return max(1, min(_MOST_TILES, _PIECE // (self.cells * self.dtype.itemsize)))

    @cached_property
    def piece_bytes(self) -> int:
        """Most bytes of a piece on disk: zstd adds 1/256 and 64 bytes to what it cannot compress."""
        size = self.cells * self.dtype.itemsize
        chunks = -(-self.cells // self.chunk)
        return self.tiles_a_piece * (8 + size + size // 256 + chunks * 192)


def layout_of(schema: tiledb.ArraySchema) -> Layout:
    """Layout of the tiles of an array.

    Raises
    ------
    Refused
        When the direct path cannot decode them.
    """
    need(not schema.sparse and schema.nattr == 1, "it is sparse or has several attributes")
    orders = {schema.tile_order, schema.cell_order}
    need(orders == {"row-major"}, f"its orders are {', '.join(sorted(orders))}, not row-major")
    attr = schema.attr(0)
    need(attr.name == "voxels" and not attr.isvar and not attr.isnullable, "its attribute is not plain voxels")
    need(attr.enum_label is None, "its attribute is enumerated")
    dtype = np.dtype(attr.dtype)
    need(dtype.kind in "iuf" and dtype.itemsize in (1, 2, 4, 8), f"its dtype is {dtype}")
    shuffle, zstd = _filters(attr.filters)
    layout = Layout(dtype, _tile(schema.domain), shuffle, zstd)
    need(layout.cells * dtype.itemsize <= _MAX_TILE, "its tiles are larger than 64 MiB")
    return layout


def _tile(domain: tiledb.Domain) -> Shape3:
    dims = [domain.dim(i) for i in range(domain.ndim)]
    need(len(dims) == 5, f"it has {len(dims)} dimensions, not 5")
    need(all(d.dtype == np.uint32 and int(d.domain[0]) == 0 for d in dims), "a dimension is not uint32 from 0")
    volume, channel, x, y, z = (int(d.tile) for d in dims)
    need(volume == channel == 1, "a tile spans volumes or channels")
    return (x, y, z)


def _filters(filters: tiledb.FilterList) -> tuple[bool, bool]:
    names = [type(f).__name__.removesuffix("Filter").lower() for f in filters]
    need(names in _PIPELINES, f"its filters are {', '.join(names)}")
    need(not names or filters.chunksize == MAX_CHUNK, f"its chunks are of {filters.chunksize} bytes")
    return "byteshuffle" in names, "zstd" in names
