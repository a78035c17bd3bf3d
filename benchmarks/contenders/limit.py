"""What a read cannot be faster than: zstd decoding the tiles of a box, one after another, from memory."""

from __future__ import annotations

import os
import struct
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from benchmarks.contenders.radiodata import Radiodata

if TYPE_CHECKING:
    from benchmarks.contenders.base import Box, Reader
    from benchmarks.phantom import Phantoms


class BareDecode(Radiodata):
    """Tiles of radiodata's store, whose frames were found before; bytes are not put in order, nor cut."""

    exact = False
    requires = ("radiodata", "zstandard")

    def reader(self, phantoms: Phantoms, folder: Path, crop: int) -> Reader:
        import zstandard

        from radiodata import Cohort
        from radiodata.store.context import context
        from radiodata.store.direct.listing import list_shard
        from radiodata.store.direct.metadata import parse
        from radiodata.store.direct.plan import pieces_of

        source = next(iter(Cohort(str(folder / "cohort")).CT)).source
        shard = list_shard(source.uri, context(), os.listdir)
        place = shard.fragment(source.slot)
        raw = Path(place, "__fragment_metadata.tdb").read_bytes()
        fragment = parse(raw, place, source.slot, source.shape, shard.schema_name, shard.layout)
        data, decoder, size = Path(fragment.data).read_bytes(), zstandard.ZstdDecompressor(), 2 * shard.layout.cells
        frames = [_frame(data, int(at)) for at in fragment.offsets[:-1]]

        def read(box: Box) -> Any:
            x, y, z = ((s.start, s.stop) for s in box)
            for piece in pieces_of(fragment, (x, y, z), (0, 1)):
                for frame in frames[piece.first : piece.first + piece.tiles]:
                    decoded = decoder.decompress(frame, max_output_size=size)
            return np.frombuffer(decoded, np.int16)

        return read


def _frame(data: bytes, at: int) -> bytes:
    """Frame of voxels of a tile of one chunk (see ``radiodata.store.direct.plain``)."""
    head = struct.unpack_from("<9I", data, at + 8)
    start = at + 8 + 36 + head[6]
    return data[start : start + head[8]]
