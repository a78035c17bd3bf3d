"""Tiles decoded with zstandard and numpy.

A piece of tiles is read at once; each of its chunks is decoded into memory that the thread keeps (fresh memory
costs as many page faults as decoding costs time), and un-shuffled for all tiles of the piece in one operation.
A chunk that the box does not touch is skipped.
"""

from __future__ import annotations

import struct
import threading
import time
from itertools import chain
from typing import TYPE_CHECKING, Any

import numpy as np
import zstandard

from radiodata.store.direct.plan import overlap, taken
from radiodata.store.direct.refusal import Corrupt, Damaged, intact

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from radiodata._typing import Voxels
    from radiodata.store.direct.files import DataFile
    from radiodata.store.direct.metadata import Fragment
    from radiodata.store.direct.plan import Piece, Spans, Work
    from radiodata.store.direct.schema import Layout

_SHUFFLED = struct.Struct("<9I")
_PACKED = struct.Struct("<7I")
_BARE = struct.Struct("<3I")
_TILE_HEAD = struct.Struct("<Q")


class Scratch(threading.local):
    """Memory and a decoder of one thread. Memory grows to what the largest tiles need, and stays."""

    def __init__(self) -> None:
        self.decoder = zstandard.ZstdDecompressor()
        self.known: dict[int, Any] = {}  # bytes, compared with memoryviews
        self.of: Layout | None = None
        self._rooms: dict[str, NDArray[np.uint8]] = {}

    def fit(self, layout: Layout) -> Scratch:
        """Lay the memory out for `layout`."""
        if self.of != layout:
            tiles, size = layout.tiles_a_piece, layout.dtype.itemsize
            width = layout.chunk * size + 1  # one byte more: see _inflate
            self.file = memoryview(self._room("file", layout.piece_bytes).data)
            self.chunks = self._room("chunks", tiles * width).reshape(tiles, width)
            self.views = [memoryview(row.data) for row in self.chunks]
            self.cells = self._room("cells", tiles * layout.cells * size).view(layout.dtype).reshape(tiles, -1)
            self.of = layout
        return self

    def _room(self, name: str, size: int) -> NDArray[np.uint8]:
        if name not in self._rooms or len(self._rooms[name]) < size:
            self._rooms[name] = np.empty(size, np.uint8)
        return self._rooms[name][:size]


_scratch = Scratch()


def read(file: DataFile, fragment: Fragment, spans: Spans, work: Work, out: Voxels) -> int:
    """Read pieces until there are none left, and give the nanoseconds of reading; `out` is ``(channel, x, y, z)``.

    Raises
    ------
    Damaged
        When the bytes are not what the metadata says.
    """
    scratch, reading = _scratch.fit(fragment.layout), 0
    try:
        for piece in chain.from_iterable(taken(work)):
            reading += _read(file, fragment, spans, piece, out[piece.channel], scratch)
    except (zstandard.ZstdError, struct.error, ValueError) as error:
        raise Damaged(f"a tile cannot be decoded: {error}") from error
    return reading


def _read(file: DataFile, fragment: Fragment, spans: Spans, piece: Piece, out: Voxels, scratch: Scratch) -> int:
    layout, begun = fragment.layout, time.perf_counter_ns()
    bounds = fragment.offsets[piece.first : piece.first + piece.tiles + 1].tolist()
    raw = _fetch(file, bounds, scratch)
    reading = time.perf_counter_ns() - begun
    plane = layout.tile[1] * layout.tile[2]
    wanted, _ = overlap(piece.x, layout.tile[0], spans[0])
    low, high = wanted.start * plane, wanted.stop * plane
    chunks = -(-layout.cells // layout.chunk)
    at = [_open_tile(raw, start - bounds[0], chunks) for start in bounds[:-1]]
    for first in range(0, layout.cells, layout.chunk):
        count = min(layout.chunk, layout.cells - first)
        used = slice(max(low - first, 0), min(high - first, count))
        at = [_decode(raw, p, count, tile if used.start < used.stop else None, scratch) for tile, p in enumerate(at)]
        if used.start < used.stop:
            _join_bytes(scratch.chunks[: piece.tiles], count, used, scratch.cells[: piece.tiles, first:], layout)
    intact(at == [end - bounds[0] for end in bounds[1:]], "a tile has another length than its metadata tells")
    _place(scratch.cells[: piece.tiles], piece, spans, out, layout)
    return reading


def _fetch(file: DataFile, bounds: list[int], scratch: Scratch) -> memoryview:
    size = bounds[-1] - bounds[0]
    intact(size <= len(scratch.file), "tiles are larger than any that a writer makes")
    view = scratch.file[:size]
    file.read_into(view, bounds[0])
    return view


def _open_tile(raw: memoryview, at: int, chunks: int) -> int:
    intact(_TILE_HEAD.unpack_from(raw, at)[0] == chunks, "a tile has another number of chunks")
    return at + 8


def _decode(raw: memoryview, at: int, count: int, tile: int | None, scratch: Scratch) -> int:
    """Check the head of the chunk at `at`, decode it as that of a `tile` (None: skip it), and give its end."""
    layout: Any = scratch.of
    want = count * layout.dtype.itemsize
    if not layout.zstd:
        start, size = at + _BARE.size, want
        intact(_BARE.unpack_from(raw, at) == (want, want, 0), "a chunk has another head")
    elif layout.shuffle:
        original, filtered, *head, packed_head, again, size = _SHUFFLED.unpack_from(raw, at)
        fits = original == again == want and packed_head + size == filtered
        intact(fits and head == [24, 1, 1, 8], "a chunk has another head")
        start = at + _SHUFFLED.size + packed_head
        if scratch.known.get(want) != raw[start - packed_head : start]:
            _learn(raw[start - packed_head : start], want, scratch)
    else:
        original, filtered, *head, again, size = _PACKED.unpack_from(raw, at)
        intact(original == again == want and size == filtered and head == [16, 0, 1], "a chunk has another head")
        start = at + _PACKED.size
    intact(start + size <= len(raw), "a chunk ends after its tile")
    if tile is not None:
        into, source = scratch.views[tile][: want + 1], raw[start : start + size]
        if layout.zstd:
            _inflate(source, into, want, scratch)
        else:
            into[:want] = source
    return int(start + size)


def _learn(packed: memoryview, want: int, scratch: Scratch) -> None:
    """Check what the shuffle says of a chunk (one part, of its own size): the same bytes for every full chunk."""
    found = scratch.decoder.decompress(packed, max_output_size=64, allow_extra_data=False)
    if found != struct.pack("<II", 1, want):
        raise Corrupt("a chunk is shuffled over another length")
    scratch.known[want] = bytes(packed)


def _inflate(source: memoryview, into: memoryview, want: int, scratch: Scratch) -> None:
    """Decode one frame in place; `into` has a byte to spare, so that a frame that is too long shows."""
    got = scratch.decoder.stream_reader(source, closefd=False).readinto(into)
    if got != want:
        raise Corrupt(f"a chunk decodes to {got} bytes or more, not to {want}")


def _join_bytes(chunks: NDArray[np.uint8], count: int, used: slice, cells: Voxels, layout: Layout) -> None:
    """Undo the byte shuffle of the `used` cells of a chunk of several tiles."""
    size, into = layout.dtype.itemsize, cells[:, used]
    if not layout.shuffle or size == 1:
        plain = np.ascontiguousarray(chunks[:, used.start * size : used.stop * size])
        into[...] = plain.view(layout.dtype)
        return
    planes = [chunks[:, n * count + used.start : n * count + used.stop] for n in range(size)]
    if size == 2:
        words = into.view(np.uint16)
        np.copyto(words, planes[1])
        np.multiply(words, 256, out=words)
        np.bitwise_or(words, planes[0], out=words)
        return
    single = into.view(np.uint8)
    for n in range(size):
        single[:, n::size] = planes[n]


def _place(cells: Voxels, piece: Piece, spans: Spans, out: Voxels, layout: Layout) -> None:
    """Copy what the box wants of decoded tiles."""
    (x, ox), (y, oy) = overlap(piece.x, layout.tile[0], spans[0]), overlap(piece.y, layout.tile[1], spans[1])
    tiles, target, side = cells.reshape(-1, *layout.tile)[:, x, y], out[ox, oy], layout.tile[2]
    if side == 1:
        begin = piece.z - spans[2][0]
        target[..., begin : begin + piece.tiles] = np.moveaxis(tiles[..., 0], 0, -1)
        return
    for n, tile in enumerate(tiles):
        z, oz = overlap(piece.z + n, side, spans[2])
        target[..., oz] = tile[..., z]
