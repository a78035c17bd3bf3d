"""Voxels turned into C order, in one compiled function that holds no GIL: see ``store.direct.native``."""

from __future__ import annotations

from typing import Any

import numpy as np


def turn(
    voxels: Any, out: Any, buffer: Any, fast: Any, slow: Any, planes: Any, step: Any, from_slow: Any, from_z: Any,
    to_fast: Any, to_slow: Any, block: Any, row: Any,
) -> int:  # fmt: skip
    """Copy ``voxels[f * step + s * from_slow + z * from_z]`` to ``out[f * to_fast + s * to_slow + z]``.

    Steps are of items, and may be negative. `block` items of the axis that runs fastest are gathered for all z in
    `buffer`, and taken out z by z. Its rows, of `row` items, should not be a power of two apart: they would push each
    other out of the cache.
    """
    for s in range(slow):
        for begin in range(0, fast, block):
            items = np.uint64(min(block, fast - begin))
            corner = s * from_slow + begin * step
            for z in range(planes):
                source, target = corner + z * from_z, np.uint64(z * row)
                if step == 1:  # a copy of its own, which LLVM makes vectors of
                    for f in range(items):
                        buffer[target + f] = voxels[source + np.int64(f)]
                else:
                    for f in range(items):
                        buffer[target + f] = voxels[source + np.int64(f) * step]
            for f in range(items):
                target = np.uint64((begin + np.int64(f)) * to_fast + s * to_slow)
                for z in range(np.uint64(planes)):
                    out[target + z] = buffer[z * np.uint64(row) + f]
    return 0
