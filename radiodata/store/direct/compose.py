"""The ``__fragment_metadata.tdb`` of a dense fragment of one volume: the inverse of ``metadata.parse``.

What TileDB keeps of every tile is where it begins, and the least, the greatest and the sum of its values; of the
fragment the same. All else is empty, but takes its place (see ``metadata`` for the order).
"""

from __future__ import annotations

import struct
import zlib
from typing import TYPE_CHECKING, Any

import numpy as np

from radiodata.store.direct.metadata import _DIMS, _FILES, _GENERIC, _GZIP, grid_of

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from radiodata.store.direct.schema import Layout

VERSION = 22
_CHUNK = 1 << 16
_CHAR, _LEVEL, _FANOUT = 4, 1, 10
_DIM_BYTES = 4
_PIPELINE = struct.pack("<IIBIBi", _CHUNK, 1, _GZIP, 5, _GZIP, _LEVEL)


def compose(
    schema_name: str,
    slot: int,
    shape: tuple[int, int, int, int],
    layout: Layout,
    offsets: NDArray[np.int64],
    ends: NDArray[Any],
    sums: NDArray[Any],
) -> bytes:
    """Metadata of the fragment of a volume.

    Parameters
    ----------
    shape
        ``(channel, x, y, z)``.
    offsets
        Where each tile begins, and the end of the last.
    ends
        Least and greatest value of each tile, ``(tile, 2)``.
    sums
        Sum of the values of each tile: int64, uint64 or float64.
    """
    tiles, size = len(sums), layout.dtype.itemsize
    assert tiles == shape[0] * int(np.prod(grid_of(shape, layout)))
    count, none, zeros = struct.pack("<Q", tiles), bytes(8), bytes(8 * tiles)
    sections = [
        struct.pack("<II", _FANOUT, 0),
        count + offsets[:-1].astype("<u8").tobytes(),
        *[count + zeros] * (4 * _FILES - 1),
    ]
    for end in (ends[:, 0], ends[:, 1]):
        coordinates = struct.pack("<QQ", _DIMS * _DIM_BYTES * tiles, 0) + bytes(_DIMS * _DIM_BYTES * tiles)
        sections += [struct.pack("<QQ", size * tiles, 0) + end.tobytes(), coordinates, *[bytes(16)] * _DIMS]
    sections += [count + sums.tobytes(), count + zeros, *[none] * _DIMS, *[none] * _FILES]
    total = np.add.accumulate(sums)[-1]
    whole = [(ends[:, 0].min().tobytes(), ends[:, 1].max().tobytes(), total.tobytes())]
    whole += [(bytes(_DIM_BYTES), bytes(_DIM_BYTES), none), *[(b"", b"", none)] * _DIMS]
    sections.append(b"".join(_told(low) + _told(high) + added + none for low, high, added in whole))
    sections.append(none)  # conditions of deletes
    known = {section: _generic_tile(section) for section in set(sections)}  # most are alike
    packed = [known[section] for section in sections]
    starts = np.cumsum([0, *map(len, packed)])[:-1].astype("<u8")
    spans = [n for low_high in ((slot, slot), *((0, n - 1) for n in shape)) for n in low_high]
    foot = struct.pack("<IQ", VERSION, len(schema_name)) + schema_name.encode() + b"\1\0"
    foot += struct.pack(f"<{2 * _DIMS}I", *spans) + struct.pack("<QQBB", 0, layout.cells, 0, 0)
    foot += struct.pack(f"<{3 * _FILES}Q", int(offsets[-1]), *[0] * (3 * _FILES - 1)) + starts.tobytes()
    return b"".join(packed) + foot + struct.pack("<Q", len(foot))


def _told(value: bytes) -> bytes:
    return struct.pack("<Q", len(value)) + value


def _generic_tile(raw: bytes) -> bytes:
    """Bytes that carry their own pipeline: gzip, in chunks of 64 KiB."""
    chunks = [raw[at : at + _CHUNK] for at in range(0, len(raw), _CHUNK)]
    packed = [zlib.compress(chunk, _LEVEL) for chunk in chunks]
    parts = [
        struct.pack("<7I", len(chunk), len(data), 16, 0, 1, len(chunk), len(data)) + data
        for chunk, data in zip(chunks, packed, strict=True)
    ]
    body = struct.pack("<Q", len(chunks)) + b"".join(parts)
    return _GENERIC.pack(VERSION, len(body), len(raw), _CHAR, 1, 0, len(_PIPELINE)) + _PIPELINE + body
