"""Tiles read, decoded and cut in one compiled function that holds no GIL: see ``native``.

libc's ``pread`` and ``clock_gettime`` and zstd's ``ZSTD_decompressDCtx`` are called by address. Every length is
checked before it is used.
"""

from __future__ import annotations

from typing import Any

import numba
import numpy as np

from radiodata.store.direct.intrinsics import address, call, copy, itemsize, settle


def _u32_py(buffer: Any, at: Any) -> Any:
    low = np.int64(buffer[at]) | np.int64(buffer[at + 1]) << 8
    return low | np.int64(buffer[at + 2]) << 16 | np.int64(buffer[at + 3]) << 24


_u32 = numba.njit(inline="always")(_u32_py)


def _rows_py(
    raw: Any, source: Any, step: Any, shuffle: Any, count: Any, out: Any, target: Any, stride: Any, rows: Any,
    cells: Any,
) -> None:  # fmt: skip
    """Copy rows of cells, `step` bytes apart in `raw`, to where they lie in `out`, `stride` cells apart.

    Shuffled, the bytes of a cell are `count` apart. All are unsigned: negative indices need no test then, and LLVM
    makes vector code of the inner loops. A loop for each size, for the same reason.
    """
    size = itemsize(out)
    for _ in range(rows):
        if size == 1:
            for i in range(cells):
                out[target + i] = raw[source + i]
        elif shuffle and size == 2:
            for i in range(cells):
                out[target + i] = np.uint16(raw[source + i]) | np.uint16(raw[source + count + i]) << np.uint16(8)
        elif shuffle and size == 4:
            second, third, fourth = source + count, source + count + count, source + count + count + count
            for i in range(cells):
                low = np.uint32(raw[source + i]) | np.uint32(raw[second + i]) << np.uint32(8)
                high = np.uint32(raw[third + i]) | np.uint32(raw[fourth + i]) << np.uint32(8)
                out[target + i] = low | high << np.uint32(16)
        else:
            apart, next_ = np.uint64(count if shuffle else 1), np.uint64(1 if shuffle else size)
            for i in range(cells):
                value = np.uint64(0)
                for n in range(np.uint64(size)):
                    value |= np.uint64(raw[source + i * next_ + n * apart]) << (n * np.uint64(8))
                out[target + i] = value
        source += step
        target += stride


_rows = numba.njit(inline="always")(_rows_py)


def _cut_py(
    raw: Any, at: Any, shuffle: Any, first: Any, last: Any, a: Any, b: Any, tile: Any, base: Any, shape: Any, out: Any
) -> None:
    """Copy what is wanted, a to b, of cells first..last of a tile; they begin at raw[at].

    `out` is of `shape` (x, y, z), and the tile's corner lies at `base` of it. No slices: threads that fill one `out`
    would share their reference counts.
    """
    row, plane = tile[2], tile[1] * tile[2]
    apart = 1 if shuffle else itemsize(out)  # bytes from a cell to the next
    count, step, stride = np.uint64(last - first), np.uint64(row * apart), np.uint64(shape[2])
    for x in range(max(a[0], first // plane), min(b[0], (last - 1) // plane + 1)):
        whole = first <= x * plane and x * plane + plane <= last  # chunks may end within a plane, and within a row
        for y in range(a[1], a[1] + 1 if whole else b[1]):
            begin = x * plane + y * row + a[2]
            end = begin + b[2] - a[2] if whole else min(begin + b[2] - a[2], last)
            skipped = 0 if whole else max(first - begin, 0)
            if begin + skipped >= end:
                continue
            source = np.uint64(at + (begin + skipped - first) * apart)
            target = np.uint64(base + (x * shape[1] + y) * shape[2] + a[2] + skipped)
            rows, cells = np.uint64(b[1] - a[1] if whole else 1), np.uint64(end - begin - skipped)
            _rows(raw, source, step, shuffle, count, out, target, stride, rows, cells)


_cut = numba.njit(inline="always")(_cut_py)


def _tiles_py(
    calls: Any, decoder: Any, fd: Any, layout: Any, offsets: Any, pieces: Any, first: Any, last: Any, channel0: Any,
    low: Any, high: Any, shape: Any, buffer: Any, room: Any, scratch: Any, out: Any, clock: Any,
) -> Any:  # fmt: skip
    """Read pieces first..last into `out`, which is the box low..high of channels from `channel0` on; as ``read``."""
    zstd, shuffle, chunk, tile = layout[0] != 0, layout[1] != 0, layout[2], (layout[3], layout[4], layout[5])
    size = itemsize(out)
    cells, plane = tile[0] * tile[1] * tile[2], tile[1] * tile[2]
    chunks = (cells + chunk - 1) // chunk
    head = 36 if shuffle else (28 if zstd else 12)
    disk, decoded, now = address(buffer), address(scratch), address(clock)
    for piece in range(6 * first, 6 * last, 6):
        channel, x, y, z0 = pieces[piece] - channel0, pieces[piece + 1], pieces[piece + 2], pieces[piece + 3]
        tile0, count = pieces[piece + 4], pieces[piece + 5]
        start = np.int64(offsets[tile0])
        length = np.int64(offsets[tile0 + count]) - start
        if length > room:
            return 1
        call(calls[2], (calls[3], now))
        begun = clock[0] * 1_000_000_000 + clock[1]
        if call(calls[0], (fd, disk, length, start)) != length:
            return 2
        call(calls[2], (calls[3], now))
        clock[2] += clock[0] * 1_000_000_000 + clock[1] - begun
        for n in range(count):
            at = np.int64(offsets[tile0 + n]) - start
            end = np.int64(offsets[tile0 + n + 1]) - start
            dx, dy, dz = x * tile[0] - low[0], y * tile[1] - low[1], (z0 + n) * tile[2] - low[2]
            base = ((channel * shape[0] + dx) * shape[1] + dy) * shape[2] + dz
            a = (max(-dx, 0), max(-dy, 0), max(-dz, 0))
            b = (
                min(high[0] - low[0] - dx, tile[0]),
                min(high[1] - low[1] - dy, tile[1]),
                min(high[2] - low[2] - dz, tile[2]),
            )
            if at + 8 > end or _u32(buffer, at) != chunks or _u32(buffer, at + 4) != 0:
                return 3
            at += 8
            for c in range(chunks):
                begin, stop = c * chunk, min(c * chunk + chunk, cells)
                want = (stop - begin) * size
                if at + head > end:
                    return 4
                filtered, data = _u32(buffer, at + 4), at + head
                if _u32(buffer, at) != want or _u32(buffer, at + 8) != head - 12 or data + filtered > end:
                    return 4
                packed = filtered
                if zstd:
                    packed = _u32(buffer, data - 4)
                    told = filtered - packed
                    if told < 0 or _u32(buffer, at + 12) != (1 if shuffle else 0) or _u32(buffer, at + 16) != 1:
                        return 4
                    if _u32(buffer, data - 8) != want or (_u32(buffer, at + 24) if shuffle else 0) != told:
                        return 4
                    if shuffle:
                        if _u32(buffer, at + 20) != 8:
                            return 4
                        got = call(calls[1], (decoder, decoded, 64, disk + data, told))
                        if got != 8 or _u32(scratch, 0) != 1 or _u32(scratch, 4) != want:
                            return 5
                        data += told
                elif filtered != want:
                    return 4
                at = data + packed
                if stop <= a[0] * plane or begin >= b[0] * plane:
                    continue
                if zstd:
                    if call(calls[1], (decoder, decoded, want, disk + data, packed)) != want:
                        return 6
                    _cut(scratch, 0, shuffle, begin, stop, a, b, tile, base, shape, out)
                else:
                    _cut(buffer, data, shuffle, begin, stop, a, b, tile, base, shape, out)
            if at != end:
                return 7
    return 0


_tiles = numba.njit(inline="always")(_tiles_py)


def read(
    calls: Any, decoder: Any, fd: Any, layout: Any, offsets: Any, pieces: Any, count_of_pieces: Any, box: Any,
    buffer: Any, room: Any, scratch: Any, out: Any, clock: Any,
) -> int:  # fmt: skip
    """Read pieces (rows of channel, x, y, z, first, count) into `out`; give 0, or what is wrong.

    calls: addresses of pread, ZSTD_decompressDCtx and clock_gettime, and the clock to ask; layout: whether there is
    zstd, and a shuffle, cells of a chunk, and a tile's extents; box: its corners, low and high, and the shape of `out`
    (x, y, z); buffer: `room` bytes for a piece as on disk; scratch: a chunk and 64 bytes more; out: unsigned ints, of
    (channel, x, y, z); clock: room for a timespec, and the nanoseconds of reading, which are added to.
    """
    low, high, shape = (box[0], box[1], box[2]), (box[3], box[4], box[5]), (box[6], box[7], box[8])
    wrong: int = _tiles(
        calls, decoder, fd, layout, offsets, pieces, 0, count_of_pieces, 0, low, high, shape, buffer, room, scratch,
        out, clock,
    )  # fmt: skip
    return wrong


def crops(
    calls: Any, decoder: Any, fd: Any, layout: Any, offsets: Any, pieces: Any, count_of_pieces: Any, box: Any,
    buffer: Any, room: Any, scratch: Any, column: Any, cuts: Any, count_of_cuts: Any, clock: Any,
) -> int:  # fmt: skip
    """Read a box of pieces, as ``read``, and copy crops of it to where they belong; give 0, or what is wrong.

    A column of tiles, all that lie at one x and y, is decoded at a time: it stays in the processor's cache until all
    crops have their part of it.

    pieces: those of a column follow each other; box: its corners, and the shape of a crop; column: unsigned ints, as
    many as a column of the box has; cuts: rows of a crop's corner in the volume (x, y, z), and the address of its
    (channel, x, y, z).
    """
    low, high, side = (box[0], box[1], box[2]), (box[3], box[4], box[5]), (box[6], box[7], box[8])
    size, source = itemsize(column), address(column)
    row, first = side[2] * size, 0
    while first < count_of_pieces:
        channel, x, y, last = pieces[6 * first], pieces[6 * first + 1], pieces[6 * first + 2], first + 1
        while last < count_of_pieces and pieces[6 * last] == channel:
            if pieces[6 * last + 1] != x or pieces[6 * last + 2] != y:
                break
            last += 1
        near = (max(x * layout[3], low[0]), max(y * layout[4], low[1]), low[2])
        far = (min(x * layout[3] + layout[3], high[0]), min(y * layout[4] + layout[4], high[1]), high[2])
        shape = (far[0] - near[0], far[1] - near[1], far[2] - near[2])
        wrong: int = _tiles(
            calls, decoder, fd, layout, offsets, pieces, first, last, channel, near, far, shape, buffer, room, scratch,
            column, clock,
        )  # fmt: skip
        if wrong != 0:
            return wrong
        for cut in range(0, 4 * count_of_cuts, 4):
            cx, cy, cz, target = cuts[cut], cuts[cut + 1], cuts[cut + 2], cuts[cut + 3]
            for i in range(max(cx, near[0]), min(cx + side[0], far[0])):
                for j in range(max(cy, near[1]), min(cy + side[1], far[1])):
                    to = ((channel * side[0] + i - cx) * side[1] + j - cy) * row
                    at = (((i - near[0]) * shape[1] + j - near[1]) * shape[2] + cz - near[2]) * size
                    copy(target + to, source + at, row)
        first = last
    settle()
    return 0
