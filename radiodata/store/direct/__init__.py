"""Boxes of voxels straight from a fragment's tiles on local disk, and volumes into them, without a TileDB query.

A query costs more than the tiles it reads: with no filter at all it takes as long as with zstd. So where the
layout is one that we know byte by byte, tiles are read with ``pread`` and decoded here; whatever is not known is
refused, and the caller asks TileDB. TileDB still says which fragments there are.

::

    listing   which fragment holds a slot            TileDB, once per shard and snapshot
    metadata  where the tiles of a fragment lie      parsed on first touch
    plan      which tiles a box needs
    plain     decode with zstandard and numpy        always there
    kernel    the same in one compiled function      where `radiodata[fast]` is installed
    native    machine code, compiled once by numba and loaded by LLVM alone
    process   what this process keeps open

    writing   a volume into a fragment
    packing   gather and encode in one compiled function  where `radiodata[fast]` is installed
    compose   what is told of the fragment's tiles
"""

from radiodata.store.direct.meter import Meter
from radiodata.store.direct.process import Direct
from radiodata.store.direct.refusal import Corrupt, Refused

__all__ = ["Corrupt", "Direct", "Meter", "Refused"]
