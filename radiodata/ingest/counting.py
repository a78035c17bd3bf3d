"""What is counted of every tile of an image of integers, in one compiled function that holds no GIL. Imports numba."""

from __future__ import annotations

from typing import Any

import numba
import numpy as np


def count_py(
    voxels: Any, shape: Any, tile: Any, low: Any, air: Any, counts: Any, ends: Any, sums: Any
) -> None:  # fmt: skip
    """Count each value of a volume, and describe its tiles, in C order of the channels and of their tiles.

    voxels: flat, of `shape` (channel, x, y, z); low: the least value; air: the greatest that is not counted; counts: of
    each value from `low` on, in four rows to be added up (one place after another would wait for the one before);
    ends: least and greatest value of each tile; sums: sum, sum of squares, and number of values above `air`.
    """
    n = 0
    for channel in range(shape[0]):
        for x0 in range(0, shape[1], tile[0]):
            for y0 in range(0, shape[2], tile[1]):
                for z0 in range(0, shape[3], tile[2]):
                    corner = ((channel * shape[1] + x0) * shape[2] + y0) * shape[3] + z0
                    run = np.uint64(min(tile[2], shape[3] - z0))
                    least, most = voxels[corner], voxels[corner]
                    total, squares, above = np.int64(0), np.int64(0), np.int64(0)
                    for x in range(min(tile[0], shape[1] - x0)):
                        for y in range(min(tile[1], shape[2] - y0)):
                            begin = np.uint64(corner + (x * shape[2] + y) * shape[3])
                            for z in range(run):
                                value = voxels[begin + z]
                                least, most = min(least, value), max(most, value)
                            for z in range(run):
                                wide = np.int64(voxels[begin + z])
                                total += wide
                                squares += wide * wide
                                above += np.int64(wide > air)
                            for z in range(run):
                                counts[z & np.uint64(3), np.int64(voxels[begin + z]) - low] += 1
                    ends[n, 0], ends[n, 1] = least, most
                    sums[n, 0], sums[n, 1], sums[n, 2] = total, squares, above
                    n += 1


def compiled(*, cache: bool) -> Any:
    """Give the function, compiled for each type of voxels when it is first called with it.

    Raises
    ------
    RuntimeError
        When `cache` is asked for and numba finds no folder for it.
    """
    return numba.njit(nogil=True, cache=cache)(count_py)
