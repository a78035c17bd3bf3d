"""blosc2 as nnU-Net v2 stores its training cases: blocks and chunks worked out for the patch size.

Two generations. Up to 2.7: zstd level 8, a block that fits a 32 KiB L1 cache, a chunk that fits a 1.375 MiB
share of L3. From 2.8: LZ4HC level 5, blocks up to 128 KiB, chunks up to 6 MiB and 1.5 patches an axis, and
shuffle or no filter, whichever packs the middle of the volume smaller. Both read mapped files, one thread.
nnU-Net opens the file for every case it draws; here it stays open, which is to its advantage.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from benchmarks.contenders.base import ArrayContender
from benchmarks.contenders.nnunet_rule import chunking_since_2_8, chunking_up_to_2_7

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

    from benchmarks.phantom import Phantoms

    Shape = tuple[int, ...]


class NnunetBlosc2(ArrayContender):
    requires = ("blosc2",)

    def __init__(self, since: str = "2.7") -> None:
        self.since = since

    def store(self, crop: int) -> str:
        return f"blosc2-nnunet{self.since}-patch{crop}"

    def prepare(self, phantoms: Phantoms, folder: Path, crop: int) -> None:
        import blosc2

        blosc2.set_nthreads(1)
        for index in range(phantoms.count):
            save(phantoms.truth(index)[:], folder / f"{index}.b2nd", crop, self.since)

    def block(self, shape: tuple[int, int, int], crop: int) -> tuple[int, int, int]:
        rule = chunking_since_2_8 if self.since == "2.8" else chunking_up_to_2_7
        x, y, z = rule(shape, (crop,) * 3, 2)[0]
        return (x, y, z)

    def open(self, folder: Path, volume: int) -> Any:
        import blosc2

        blosc2.set_nthreads(1)
        path = str(folder / f"{volume}.b2nd")
        return blosc2.open(urlpath=path, mode="r", mmap_mode="r", dparams={"nthreads": 1})


def save(voxels: NDArray[Any], path: Path, crop: int, since: str) -> None:
    """Write a volume as nnU-Net of a version would for cubic patches of a side."""
    import blosc2

    rule = chunking_since_2_8 if since == "2.8" else chunking_up_to_2_7
    blocks, chunks = rule(voxels.shape, (crop,) * 3, voxels.itemsize)
    blocks = tuple(min(block, chunk) for block, chunk in zip(blocks, chunks, strict=True))  # of very small volumes
    cparams: dict[str, Any] = {"codec": blosc2.Codec.ZSTD, "clevel": 8}
    if since == "2.8":
        cparams = {"codec": blosc2.Codec.LZ4HC, "clevel": 5}
        cparams["filters"] = [_smaller_filter(voxels, blocks, chunks, cparams)]
    blosc2.asarray(np.ascontiguousarray(voxels), urlpath=str(path), chunks=chunks, blocks=blocks, cparams=cparams)


def _smaller_filter(voxels: NDArray[Any], blocks: Shape, chunks: Shape, cparams: dict[str, Any]) -> Any:
    import blosc2

    middle = tuple(slice((n - c) // 2, (n - c) // 2 + c) for n, c in zip(voxels.shape, chunks, strict=True))
    sample = np.ascontiguousarray(voxels[middle])

    def size(one: Any) -> int:
        packed = blosc2.asarray(sample, chunks=chunks, blocks=blocks, cparams={**cparams, "filters": [one]})
        return int(packed.schunk.cbytes)

    return min((blosc2.Filter.NOFILTER, blosc2.Filter.SHUFFLE), key=size)
