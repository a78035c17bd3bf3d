"""What is counted of every tile of an image of integers, in one compiled function: see ``store.direct.native``."""

from __future__ import annotations

from typing import Any

import numpy as np


def count(voxels: Any, shape: Any, tile: Any, low: Any, air: Any, counts: Any, bins: Any, ends: Any, sums: Any) -> int:
    """Count each value of a volume, and describe its tiles, in C order of the channels and of their tiles.

    voxels: of `shape` (channel, x, y, z); low: the least value; air: the greatest that is not counted; counts: of each
    value from `low` on, in four rows of `bins` to be added up (one place after another would wait for the one before);
    ends: least and greatest value of each tile; sums: sum, sum of squares, and number of values above `air`. Gives the
    number of tiles.
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
                                counts[np.int64(z & np.uint64(3)) * bins + np.int64(voxels[begin + z]) - low] += 1
                    ends[2 * n], ends[2 * n + 1] = least, most
                    sums[3 * n], sums[3 * n + 1], sums[3 * n + 2] = total, squares, above
                    n += 1
    return n
