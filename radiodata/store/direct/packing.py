"""Tiles gathered, described, shuffled and encoded in one compiled function that holds no GIL: see ``native``.

The inverse of ``kernel``; zstd's ``ZSTD_compressCCtx`` is called by address.
"""

from __future__ import annotations

from typing import Any

import numba
import numpy as np

from radiodata.store.direct.intrinsics import address, call, itemsize

NOT_FINITE = -1
NOT_ENCODED = -2


def _put_py(buffer: Any, at: Any, value: Any) -> None:
    for n in range(4):
        buffer[at + n] = np.uint8(value >> (8 * n) & 255)


_put = numba.njit(inline="always")(_put_py)


def _gather_py(
    voxels: Any, shape: Any, tile: Any, channel: Any, x0: Any, y0: Any, z0: Any, cells: Any, n: Any, ends: Any,
    sums: Any,
) -> None:  # fmt: skip
    """Copy a tile; its least and greatest value go to ``ends[n]``, the sum, in the order of cells, to ``sums[n]``."""
    nx, ny, nz = min(tile[0], shape[1] - x0), min(tile[1], shape[2] - y0), min(tile[2], shape[3] - z0)
    corner = ((channel * shape[1] + x0) * shape[2] + y0) * shape[3] + z0
    for x in range(nx):
        for y in range(ny):
            source = np.uint64(corner + (x * shape[2] + y) * shape[3])
            target = np.uint64((x * tile[1] + y) * tile[2])
            for z in range(np.uint64(nz)):
                cells[target + z] = voxels[source + z]
    if ny == tile[1] and nz == tile[2]:
        ny, nz = 1, ny * nz  # one run of cells: loops over what was copied are many at once, as one that copies is not
        if nx == tile[0]:
            nx, nz = 1, nx * nz
    low, high, total = cells[0], cells[0], sums[n]
    for x in range(nx):
        for y in range(ny):
            begin = np.uint64((x * tile[1] + y) * tile[2])
            for i in range(np.uint64(nz)):
                value = cells[begin + i]
                low, high = min(low, value), max(high, value)
            for i in range(np.uint64(nz)):
                total += cells[begin + i]
    ends[2 * n], ends[2 * n + 1], sums[n] = low, high, total


_gather = numba.njit(inline="always")(_gather_py)


def pack(
    compress: Any, encoder: Any, level: Any, layout: Any, grid: Any, first: Any, count: Any, shape: Any, voxels: Any,
    cells: Any, raw: Any, planes: Any, told: Any, out: Any, room: Any, lengths: Any, ends: Any, sums: Any,
) -> int:  # fmt: skip
    """Encode tiles `first` to `first + count` of a volume into `out`; give the bytes, or what is wrong.

    compress: address of ZSTD_compressCCtx; layout: as of ``kernel.read``; grid: tiles along x, y and z; voxels: of
    `shape` (channel, x, y, z); cells, raw: room for a tile, and the same memory as bytes; planes: room for a chunk;
    told: 8 bytes; out: `room` bytes; lengths, ends, sums: of each tile, to be filled, sums being 0.
    """
    zstd, shuffle, chunk, tile = layout[0] != 0, layout[1] != 0, layout[2], (layout[3], layout[4], layout[5])
    size, all_cells = itemsize(cells), tile[0] * tile[1] * tile[2]
    chunks = (all_cells + chunk - 1) // chunk
    head = 36 if shuffle else (28 if zstd else 12)
    disk, bytes_of, split = address(out), address(raw), address(planes)
    at = 0
    for n in range(count):
        begun, of_tile = at, first + n
        z0, of_tile = of_tile % grid[2] * tile[2], of_tile // grid[2]
        y0, of_tile = of_tile % grid[1] * tile[1], of_tile // grid[1]
        x0, channel = of_tile % grid[0] * tile[0], of_tile // grid[0]
        if x0 + tile[0] > shape[1] or y0 + tile[1] > shape[2] or z0 + tile[2] > shape[3]:
            for i in range(np.uint64(all_cells)):
                cells[i] = 0
        _gather(voxels, shape, tile, channel, x0, y0, z0, cells, n, ends, sums)
        if sums[n] - sums[n] != 0:
            return NOT_FINITE
        _put(out, at, chunks)
        _put(out, at + 4, 0)
        at += 8
        for c in range(chunks):
            begin, end = c * chunk, min(c * chunk + chunk, all_cells)
            want, from_byte = (end - begin) * size, begin * size
            source, data, told_in = bytes_of + from_byte, at + head, 0
            if shuffle:
                for byte in range(size):
                    plane, item = np.uint64(byte * (end - begin)), np.uint64(from_byte + byte)
                    for i in range(np.uint64(end - begin)):
                        planes[plane + i] = raw[item + i * np.uint64(size)]
                source = split
                _put(told, 0, 1)
                _put(told, 4, want)
                told_in = call(compress, (encoder, disk + data, 64, address(told), 8, level))
                if told_in <= 0 or told_in > 64:
                    return NOT_ENCODED
                data += told_in
            packed = want
            if zstd:
                packed = call(compress, (encoder, disk + data, room - data, source, want, level))
                if packed <= 0 or packed > room - data:
                    return NOT_ENCODED
                if shuffle:
                    _put(out, at + 20, 8)
                    _put(out, at + 24, told_in)
                _put(out, at + 12, 1 if shuffle else 0)
                _put(out, at + 16, 1)
                _put(out, at + head - 8, want)
                _put(out, at + head - 4, packed)
            else:
                for i in range(want):
                    out[data + i] = raw[from_byte + i]
            _put(out, at, want)
            _put(out, at + 4, told_in + packed)
            _put(out, at + 8, head - 12)
            at = data + packed
        lengths[n] = at - begun
    return at
