"""Tiles encoded by the compiled kernel of ``packing``: its scratch memory, what it calls, and its proof."""

from __future__ import annotations

import tempfile
import threading
from itertools import pairwise
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

import numpy as np

from radiodata.store.direct import plain
from radiodata.store.direct.files import DataFile
from radiodata.store.direct.kernels import Kernels, ZstdContext, address, proof_layout
from radiodata.store.direct.metadata import Fragment, grid_of
from radiodata.store.direct.native import Kernel, address_of, load
from radiodata.store.direct.plan import pieces_of, shared_out
from radiodata.store.direct.refusal import Refused

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from numpy.typing import NDArray

    from radiodata._typing import Voxels
    from radiodata.store.direct.schema import Layout

    Packer: TypeAlias = "Callable[[Voxels, Layout, int], Iterator[Packed]]"


class Packed(NamedTuple):
    """Some tiles.

    Attributes
    ----------
    data
        Their bytes, good until the next are asked for.
    lengths
        Bytes of each.
    ends
        The least and the greatest value of each, ``(tile, 2)``.
    sums
        Of the values of each: int64, uint64 or float64.
    """

    data: memoryview
    lengths: NDArray[np.int64]
    ends: NDArray[Any]
    sums: NDArray[Any]


def packer(layout: Layout) -> Packer | None:
    """Give what encodes the tiles of a volume, some at a time; None where there is no kernel."""
    return _kernels.get(layout.dtype.str)


def sums_of(dtype: np.dtype[Any]) -> np.dtype[Any]:
    """Dtype of sums of values, as TileDB has it."""
    return np.dtype({"i": np.int64, "u": np.uint64, "f": np.float64}[dtype.kind])


class _Scratch(threading.local):
    """Memory and a zstd context of one thread."""

    def __init__(self) -> None:
        self._encoder = ZstdContext("ZSTD_createCCtx", "ZSTD_freeCCtx")
        self.encoder = self._encoder.address
        self.told = np.zeros(8, np.uint8)
        self.out = self.raw = self.planes = np.empty(0, np.uint8)

    def fit(self, layout: Layout) -> _Scratch:
        size = layout.dtype.itemsize
        wanted = {"out": layout.piece_bytes, "raw": layout.cells * size, "planes": layout.chunk * size}
        for name, room in wanted.items():
            if len(getattr(self, name)) < room:
                setattr(self, name, np.empty(room, np.uint8))
        return self


def _load(dtype: str, anew: bool) -> Callable[..., int]:
    voxels, sums = f"{dtype[1:]}*", f"{sums_of(np.dtype(dtype)).str[1:]}*"
    calls, tiles, scratch = ("i8", "i8", "i8", "i8*"), ("i8*", "i8", "i8", "i8*"), ("u1*", "u1*", "u1*", "u1*", "i8")
    given = (*calls, *tiles, voxels, voxels, *scratch, "i8*", voxels, sums)
    return load(Kernel("radiodata.store.direct.packing", "pack", given), anew=anew)


def _made(dtype: str, anew: bool) -> Packer:
    function, kept, compress = _load(dtype, anew), _Scratch(), address("ZSTD_compressCCtx")

    def pack(voxels: Voxels, layout: Layout, level: int) -> Iterator[Packed]:
        scratch, dtype = kept.fit(layout), layout.dtype
        channels, x, y, z = voxels.shape
        grid = np.array(grid_of((channels, x, y, z), layout), np.int64)
        shape, tiles = np.array(voxels.shape, np.int64), channels * int(np.prod(grid))
        for first in range(0, tiles, layout.tiles_a_piece):
            count = min(layout.tiles_a_piece, tiles - first)
            lengths, ends = np.empty(count, np.int64), np.empty((count, 2), dtype)
            sums = np.zeros(count, sums_of(dtype))
            size = function(
                compress, scratch.encoder, level, address_of(layout.words), address_of(grid), first, count,
                address_of(shape), address_of(voxels), address_of(scratch.raw), address_of(scratch.raw),
                address_of(scratch.planes), address_of(scratch.told), address_of(scratch.out), len(scratch.out),
                address_of(lengths), address_of(ends), address_of(sums),
            )  # fmt: skip
            if size < 0:
                raise Refused("its voxels are not all finite, or cannot be encoded")
            yield Packed(memoryview(scratch.out.data)[:size], lengths, ends, sums)

    _prove(pack, dtype)
    return pack


_kernels = Kernels("volumes are written", _made)


def _prove(pack: Packer, dtype: str) -> None:
    """Encode two tiles made here, one cut short, and decode them; this compiles the kernel for its types.

    Raises
    ------
    RuntimeError
        When what is read, or told of it, is not what was written.
    """
    layout, shape = proof_layout(dtype), (1, 4, 5, 11)
    values = (np.arange(220, dtype=np.uint64) * 0x9E3779B97F4A7C15 >> np.uint64(40)).astype(dtype).reshape(shape)
    spans, out = ((0, 4), (0, 5), (0, 11)), np.empty(shape, dtype)
    with tempfile.NamedTemporaryFile() as stream:
        (packed,) = pack(values, layout, 1)
        stream.write(packed.data)
        stream.flush()
        fragment = Fragment(stream.name, layout, shape, np.cumsum([0, *packed.lengths]).astype(np.uint32))
        file = DataFile(stream.name, fragment.size)
        plain.read(file, fragment, spans, shared_out(pieces_of(fragment, spans, (0, 1)), 1), out)
    halves = [values[..., low:high] for low, high in pairwise((0, 6, 11))]
    told = [[h.min(), h.max()] for h in halves] == packed.ends.tolist()
    summed = np.allclose([h.sum(dtype=sums_of(layout.dtype)) for h in halves], packed.sums)
    if not (np.array_equal(out, values) and told and summed):
        raise RuntimeError("its tiles are not those that were given")
