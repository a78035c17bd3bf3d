"""Where the tiles of a dense fragment lie: its ``__fragment_metadata.tdb``, parsed without TileDB.

Format version 22, after format_spec/{fragment,generic_tile,tile}.md of TileDB-Inc/TileDB. The last 8 bytes of
the file are the length of the footer before them::

    u32 version; u64 n and n chars: schema name; u8 dense; u8 null domain; (lo, hi) of each dimension
    u64 sparse tiles; u64 last tile cells; u8 timestamps; u8 delete metadata
    u64 file sizes[F], var sizes[F], validity sizes[F]
    u64 offset of: R-tree; tile offsets[F], var offsets[F], var sizes[F], validity[F], min[F], max[F], sum[F],
        null count[F]; fragment min/max/sum; processed conditions

F is attributes + 1 (coordinates) + dimensions. "Tile offsets" is a generic tile of a u64 count and u64 offsets.
"""

from __future__ import annotations

import math
import struct
import zlib
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from radiodata.store.direct.refusal import Refused, need

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from radiodata.geometry import Shape3
    from radiodata.store.direct.schema import Layout

VERSIONS = (22,)
_DIMS = 5
_FILES = 1 + 1 + _DIMS
_GENERIC = struct.Struct("<IQQBQBI")
_GZIP = 1


@dataclass(frozen=True)
class Fragment:
    """One volume's tiles in C order of ``(channel, x, y, z)``.

    Attributes
    ----------
    shape
        ``(channel, x, y, z)``: the fragment holds all of it.
    offsets
        Where each tile begins in `data`, and the end of the last: uint32 where they fit, for a process may know
        thousands of fragments.
    """

    data: str
    layout: Layout
    shape: tuple[int, int, int, int]
    offsets: NDArray[Any]

    @cached_property
    def grid(self) -> Shape3:
        """Tiles along ``(x, y, z)``."""
        return grid_of(self.shape, self.layout)

    @property
    def size(self) -> int:
        """Bytes of the data file."""
        return int(self.offsets[-1])


def grid_of(shape: tuple[int, int, int, int], layout: Layout) -> Shape3:
    """Tiles along ``(x, y, z)`` of a volume."""
    (x, y, z) = (-(-n // t) for n, t in zip(shape[1:], layout.tile, strict=True))
    return (x, y, z)


def parse(
    raw: bytes, folder: str, slot: int, shape: tuple[int, int, int, int], schema_name: str, layout: Layout
) -> Fragment:
    """Parse the metadata of the fragment in `folder`, which must hold one volume whole and nothing else.

    Raises
    ------
    Refused
        When it is of another format, damaged, or of another slot or shape.
    """
    try:
        offsets = _parse(raw, folder, [(slot, slot), *((0, n - 1) for n in shape)], schema_name)
    except (struct.error, zlib.error, ValueError, IndexError, OverflowError) as error:
        raise Refused(f"its metadata is damaged or of another format: {error}") from error
    need(offsets[0] == 0 and bool((offsets[1:] > offsets[:-1]).all()), "the tile offsets do not grow")
    small = offsets.astype(np.uint32 if offsets[-1] < 1 << 32 else np.uint64)
    return fragment_of(folder, layout, shape, small)


def fragment_of(folder: str, layout: Layout, shape: tuple[int, int, int, int], offsets: NDArray[Any]) -> Fragment:
    """Fragment in `folder` of which it is known where its tiles begin.

    Raises
    ------
    Refused
        When there are not as many as a volume of `shape` has.
    """
    tiles = shape[0] * math.prod(grid_of(shape, layout))
    need(len(offsets) == tiles + 1, f"its metadata tells of {len(offsets) - 1} tiles, not {tiles}")
    return Fragment(f"{folder}/a0.tdb", layout, shape, offsets)


def _parse(raw: bytes, folder: str, domain: list[tuple[int, int]], schema_name: str) -> NDArray[np.uint64]:
    need(folder.rsplit("_", 1)[-1] in map(str, VERSIONS), f"it is named {folder.rsplit('/', 1)[-1]}")
    (length,) = struct.unpack_from("<Q", raw, len(raw) - 8)
    need(length <= len(raw) - 8, "the footer has another length")
    foot = raw[len(raw) - 8 - length : len(raw) - 8]
    version, chars = struct.unpack_from("<IQ", foot)
    need(version in VERSIONS, f"its format version is {version}")
    at = 12 + chars
    need(foot[12:at] == schema_name.encode(), "it was written with another schema")
    need(foot[at : at + 2] == b"\1\0", "it is sparse or empty")
    spans = struct.unpack_from(f"<{2 * _DIMS}I", foot, at + 2)
    need(list(zip(spans[::2], spans[1::2], strict=True)) == domain, f"its domain is {spans}, not that of the volume")
    at += 2 + 8 * _DIMS
    _, _, timestamps, deletes = struct.unpack_from("<QQBB", foot, at)
    need(timestamps == 0 and deletes == 0, "it has timestamps or delete metadata")
    numbers = np.frombuffer(foot, "<u8", offset=at + 18)
    need(len(numbers) == 3 * _FILES + 1 + 8 * _FILES + 2, "the footer has another length")
    need(int(np.frombuffer(generic_tile(raw, int(numbers[-1])), "<u8", 1)[0]) == 0, "it has delete conditions")
    offsets = np.frombuffer(generic_tile(raw, int(numbers[3 * _FILES + 1])), "<u8")
    need(len(offsets) == int(offsets[0]) + 1, "the tile offsets have another length")
    return np.append(offsets[1:], numbers[0])


def generic_tile(raw: bytes, at: int) -> bytes:
    """Bytes of the generic tile at `at`: one that carries its own pipeline, which must be gzip."""
    version, persisted, size, _, _, encryption, pipeline = _GENERIC.unpack_from(raw, at)
    need(version in VERSIONS, f"a generic tile has version {version}")
    need(encryption == 0, "it is encrypted")
    at += _GENERIC.size
    _, filters = struct.unpack_from("<II", raw, at)
    need(filters == 1 and raw[at + 8] == _GZIP, "a generic tile is not gzip")
    end = at + pipeline + persisted
    (chunks,) = struct.unpack_from("<Q", raw, at + pipeline)
    need(chunks <= persisted, "a generic tile has another length")
    at += pipeline + 8
    out: list[bytes] = []
    for _ in range(chunks):
        at = _gunzip(raw, at, out)
    whole = b"".join(out)
    need(at == end and len(whole) == size, "a generic tile has another length")
    return whole


def _gunzip(raw: bytes, at: int, out: list[bytes]) -> int:
    """Append the parts of the chunk at `at` to `out`; give its end."""
    _, filtered, meta, meta_parts, parts = struct.unpack_from("<5I", raw, at)
    need(meta_parts == 0 and meta == 8 + 8 * parts, "a generic tile has another filter's metadata")
    end = at + 12 + int(meta) + int(filtered)
    data = at + 12 + meta
    for part in range(parts):
        original, packed = struct.unpack_from("<II", raw, at + 20 + 8 * part)
        inflater = zlib.decompressobj()
        piece = inflater.decompress(raw[data : data + packed], original + 1)
        need(len(piece) == original and inflater.eof, "a part of a generic tile has another length")
        out.append(piece)
        data += packed
    need(data == end, "a chunk of a generic tile has another length")
    return end
