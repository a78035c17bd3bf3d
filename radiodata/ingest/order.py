"""Voxels in C order: by a compiled kernel where it is worth its loading, else by numpy."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeAlias

import numpy as np

from radiodata import geometry
from radiodata.store.direct.kernels import Kernels
from radiodata.store.direct.native import Kernel, address_of, load
from radiodata.store.direct.writing import worthwhile

if TYPE_CHECKING:
    from collections.abc import Callable

    from radiodata._typing import Voxels

    Turn: TypeAlias = "Callable[[Voxels, int], Voxels]"

_BLOCK = 128
_PAD = 8  # bytes


def c_order(voxels: Voxels) -> Voxels:
    """Voxels ``(channel, x, y, z)`` in C order; themselves, if they are.

    The order of a scanner's files is the reverse, so a plain copy misses the cache with every voxel.
    """
    fast = _fastest(voxels)
    if fast is None or not worthwhile(voxels.nbytes):
        return geometry.c_order(voxels)
    turn = _kernels.get(voxels.dtype.itemsize)
    return geometry.c_order(voxels) if turn is None else turn(voxels, fast)


def _fastest(voxels: Voxels) -> int | None:
    """Give the axis that runs fastest, x or y; None where the kernel is not to be used."""
    size, steps = voxels.dtype.itemsize, [abs(s) for s in voxels.strides]
    if voxels.flags.c_contiguous or voxels.dtype.kind not in "iuf" or any(s % size for s in steps):
        return None
    return min((1, 2), key=steps.__getitem__) if min(steps[1:3]) < steps[3] and voxels.size else None


def _made(size: int, anew: bool) -> Turn:
    word = f"u{size}*"
    function = load(Kernel("radiodata.ingest.turning", "turn", (word, word, word, *["i8"] * 10), helpers=()), anew=anew)

    def turn(voxels: Voxels, fast: int) -> Voxels:
        out, slow = np.empty(voxels.shape, voxels.dtype), 3 - fast
        steps, to = ([s // size for s in of.strides] for of in (voxels, out))
        block, row = _BLOCK // size, (_BLOCK + _PAD) // size
        buffer = np.empty(voxels.shape[3] * row, f"u{size}")
        for channel, turned in zip(voxels, out, strict=True):
            function(
                address_of(channel), address_of(turned), address_of(buffer), channel.shape[fast - 1],
                channel.shape[slow - 1], channel.shape[2], steps[fast], steps[slow], steps[3], to[fast], to[slow],
                block, row,
            )  # fmt: skip
        return out

    _prove(turn, size)
    return turn


def _prove(turn: Turn, size: int) -> None:
    values = (np.arange(2 * 5 * 7 * 150, dtype=np.uint64) * 0x9E3779B97F4A7C15).astype(f"u{size}")
    for given in (values.reshape(150, 5, 7, 2).T, values.reshape(2, 7, 150, 5)[..., ::-1].transpose(0, 2, 3, 1)):
        if not np.array_equal(turn(given, _fastest(given) or 0), given):
            raise RuntimeError("its voxels are not those that were given")


_kernels = Kernels("volumes are turned", _made)
