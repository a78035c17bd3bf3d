"""The compiled counterpart of the plain decoder: its scratch memory, the addresses it calls, and its proof."""

from __future__ import annotations

import ctypes
import struct
import tempfile
import threading
import time
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
import zstandard

from radiodata.store.direct.kernels import Kernels, ZstdContext, address, proof_layout
from radiodata.store.direct.native import Kernel, address_of, load
from radiodata.store.direct.plan import pieces_of, shared_out, taken
from radiodata.store.direct.refusal import Corrupt, Damaged

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

    from radiodata._typing import Voxels
    from radiodata.store.direct.files import DataFile
    from radiodata.store.direct.metadata import Fragment
    from radiodata.store.direct.plan import Corner, Piece, Spans, Work
    from radiodata.store.direct.schema import Layout

    Reader: TypeAlias = Callable[[DataFile, Fragment, Spans, Work, Voxels], int]
    Cutter: TypeAlias = Callable[[DataFile, Fragment, Spans, list[Piece], Sequence[Corner], Sequence[Voxels]], int]

_WRONG = (
    "",
    "tiles are larger than any that a writer makes",
    "its data cannot be read, or end before their last tile",
    "a tile has another number of chunks",
    "a chunk has another head",
    "a chunk is shuffled over another length",
    "a chunk cannot be decoded, or not to the length that its head tells",
    "a tile has another length than its metadata tells",
)
"""What the number that the kernel returns means; 0 is all right."""
_CORRUPT = (5, 6)
COLUMN_BYTES = 1 << 20
"""Most that a column of tiles may have which is decoded at once: half a processor's second cache, or all of it."""


def reader(fragment: Fragment) -> Reader | None:
    """Give the compiled counterpart of ``plain.read``, or None: not there yet, switched off, or not to be trusted."""
    return _kernels.soon((fragment.layout.dtype.itemsize, fragment.offsets.dtype.str))


def cutter(fragment: Fragment, spans: Spans) -> Cutter | None:
    """Give what reads crops of a box, each into an array of its own, ``(channel, x, y, z)``; None as ``reader`` does.

    None as well where a column of the box's tiles would not stay in the processor's cache.
    """
    layout = fragment.layout
    if layout.tile[0] * layout.tile[1] * (spans[2][1] - spans[2][0]) * layout.dtype.itemsize > COLUMN_BYTES:
        return None
    return _cutters.soon((layout.dtype.itemsize, fragment.offsets.dtype.str))


def _loaded(name: str, size: int, offsets: str, *more: str, anew: bool) -> Callable[..., int]:
    calls, pieces, scratch = ("i8*", "i8", "i8", "i8*"), ("i8*", "i8", "i8*"), ("u1*", "i8", "u1*")
    arguments = (*calls, f"{offsets[1:]}*", *pieces, *scratch, f"u{size}*", *more, "i8*")
    return load(Kernel("radiodata.store.direct.kernel", name, arguments), anew=anew)


def _made(key: tuple[int, str], anew: bool) -> Reader:
    made = _reader(_loaded("read", *key, anew=anew))

    def read(file: DataFile, fragment: Fragment, spans: Spans, out: Voxels) -> None:
        made(file, fragment, spans, shared_out(pieces_of(fragment, spans, (0, 1)), 1), out)

    _prove(read, *key)
    return made


def _made_to_cut(key: tuple[int, str], anew: bool) -> Cutter:
    made = _cutter(_loaded("crops", *key, "i8*", "i8", anew=anew))

    def read(file: DataFile, fragment: Fragment, spans: Spans, out: Voxels) -> None:
        (x, _), (y, _), (low, _) = spans
        halves = [np.zeros((*out.shape[:3], out.shape[3] - 1), out.dtype) for _ in range(2)]
        made(file, fragment, spans, pieces_of(fragment, spans, (0, 1)), [(x, y, low), (x, y, low + 1)], halves)
        out[..., :-1], out[..., -1:] = halves[0], halves[1][..., -1:]
        if not np.array_equal(out[..., 1:], halves[1]):
            raise RuntimeError("its crops are not those of one box")

    _prove(read, *key)
    return made


_kernels, _cutters = Kernels("tiles are decoded", _made), Kernels("crops are cut", _made_to_cut)


class _Scratch(threading.local):
    """Memory and a zstd context of one thread."""

    def __init__(self) -> None:
        self._decoder = ZstdContext("ZSTD_createDCtx", "ZSTD_freeDCtx")
        self.decoder = self._decoder.address
        self.file = self.chunk = np.empty(0, np.uint8)
        self.column = np.empty(0, np.uint8)
        self.file_at = self.chunk_at = self.column_at = 0

    def fit(self, layout: Layout) -> _Scratch:
        chunk = layout.chunk * layout.dtype.itemsize + 64
        if len(self.file) < layout.piece_bytes or len(self.chunk) < chunk:
            self.file, self.chunk = np.empty(layout.piece_bytes, np.uint8), np.empty(chunk, np.uint8)
            self.file_at, self.chunk_at = address_of(self.file), address_of(self.chunk)
        return self

    def fit_column(self, nbytes: int) -> None:
        if len(self.column) < nbytes:
            self.column = np.empty(nbytes, np.uint8)
            self.column_at = address_of(self.column)


_CLOCK, _READING, _WORDS, _BOX, _PIECES = 4, 6, 7, 13, 22
"""Where in what a kernel is told: addresses to call come first, and the clock ends with the time spent on reading."""


def _told(
    calls: NDArray[np.int64], layout: Layout, spans: Spans, shape: Sequence[int], pieces: list[Piece]
) -> tuple[NDArray[np.int64], int]:
    """Lay all numbers that a kernel takes into one array, and give its address: asking for one costs a microsecond."""
    (x0, x1), (y0, y1), (z0, z1) = spans
    told = np.zeros(_PIECES + 6 * len(pieces), np.int64)
    told[:_CLOCK] = calls
    told[_WORDS:_BOX] = layout.words
    told[_BOX:_PIECES] = (x0, y0, z0, x1, y1, z1, *shape)
    told[_PIECES:].reshape(-1, 6)[...] = pieces
    return told, address_of(told)


def _addresses() -> NDArray[np.int64]:
    """Give the addresses of pread, ZSTD_decompressDCtx and clock_gettime, and the clock to ask."""
    libc = ctypes.CDLL(None)
    pread, clock = (ctypes.cast(f, ctypes.c_void_p).value for f in (libc.pread, libc.clock_gettime))
    return np.array([pread, address("ZSTD_decompressDCtx"), clock, time.CLOCK_MONOTONIC], np.int64)


def _reader(function: Callable[..., int]) -> Reader:
    calls, kept = _addresses(), _Scratch()

    def read(file: DataFile, fragment: Fragment, spans: Spans, work: Work, out: Voxels) -> int:
        layout, into, reading = fragment.layout, address_of(out), 0
        scratch = kept.fit(layout)
        for batch in taken(work):
            told, at = _told(calls, layout, spans, out.shape[1:], batch)
            wrong = function(
                at, scratch.decoder, file.fd, at + 8 * _WORDS, address_of(fragment.offsets), at + 8 * _PIECES,
                len(batch), at + 8 * _BOX, scratch.file_at, len(scratch.file), scratch.chunk_at, into,
                at + 8 * _CLOCK,
            )  # fmt: skip
            _refuse(wrong)
            reading += int(told[_READING])
        return reading

    return read


def _cutter(function: Callable[..., int]) -> Cutter:
    calls, kept = _addresses(), _Scratch()

    def read(
        file: DataFile,
        fragment: Fragment,
        spans: Spans,
        work: list[Piece],
        corners: Sequence[Corner],
        crops: Sequence[Voxels],
    ) -> int:
        layout = fragment.layout
        scratch = kept.fit(layout)
        scratch.fit_column(layout.tile[0] * layout.tile[1] * (spans[2][1] - spans[2][0]) * layout.dtype.itemsize)
        cuts = np.array([(*corner, address_of(crop)) for corner, crop in zip(corners, crops, strict=True)], np.int64)
        told, at = _told(calls, layout, spans, crops[0].shape[1:], work)
        wrong = function(
            at, scratch.decoder, file.fd, at + 8 * _WORDS, address_of(fragment.offsets), at + 8 * _PIECES, len(work),
            at + 8 * _BOX, scratch.file_at, len(scratch.file), scratch.chunk_at, scratch.column_at, address_of(cuts),
            len(cuts), at + 8 * _CLOCK,
        )  # fmt: skip
        _refuse(wrong)
        return int(told[_READING])

    return read


def _refuse(wrong: int) -> None:
    if wrong:
        raise (Corrupt if wrong in _CORRUPT else Damaged)(_WRONG[wrong])


def _prove(read: Callable[[DataFile, Fragment, Spans, Voxels], None], size: int, offsets: str) -> None:
    """Read a box of two tiles made here; this compiles the kernel for its types.

    Raises
    ------
    RuntimeError
        When the voxels are not those that were written.
    """
    from radiodata.store.direct.files import DataFile
    from radiodata.store.direct.metadata import Fragment

    layout = proof_layout(f"u{size}")
    values = (np.arange(240, dtype=np.uint64) * 0x9E3779B97F4A7C15).astype(layout.dtype).reshape(2, 4, 5, 6)
    tiles = [_tile(tile) for tile in values]
    where = np.cumsum([0, *map(len, tiles)]).astype(offsets)
    spans = ((1, 4), (0, 4), (2, 10))
    out = np.zeros((1, 3, 4, 8), layout.dtype)  # memory as it comes may hold what a proof before read
    with tempfile.NamedTemporaryFile() as stream:
        stream.write(b"".join(tiles))
        stream.flush()
        fragment = Fragment(stream.name, layout, (1, 4, 5, 12), where)
        file = DataFile(stream.name, fragment.size)
        read(file, fragment, spans, out)
    whole = np.concatenate(list(values), axis=2)
    if not np.array_equal(out[0], whole[1:4, 0:4, 2:10]):
        raise RuntimeError("its voxels are not those that were written")


def _tile(values: Voxels) -> bytes:
    """Write a tile as TileDB does."""
    planes = np.ascontiguousarray(values).view(np.uint8).reshape(values.size, -1).T.tobytes()
    codec = zstandard.ZstdCompressor()
    told, data = codec.compress(struct.pack("<II", 1, len(planes))), codec.compress(planes)
    head = struct.pack("<9I", len(planes), len(told) + len(data), 24, 1, 1, 8, len(told), len(planes), len(data))
    return struct.pack("<Q", 1) + head + told + data
