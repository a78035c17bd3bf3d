"""Contenders of the benchmark ``disk``: each writes voxels ``(channel, x, y, z)`` to a folder, and reads them back."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING, Any

import numpy as np

from benchmarks.contenders.base import Contender
from benchmarks.contenders.nnunet import save
from benchmarks.probes import disk

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray


class Packing(Contender):
    """One way of keeping voxels."""

    def write(self, voxels: NDArray[Any], path: Path, folder: Path, crop: int, kind: str) -> None:
        """Write them; they are of the file at `path`, ``"image"`` or ``"label"``."""
        raise NotImplementedError(f"{type(self).__name__} is in the disk benchmark; it must implement write()")

    def read(self, folder: Path, voxels: NDArray[Any]) -> NDArray[Any]:
        """Read them; shape and dtype as of `voxels`."""
        raise NotImplementedError(f"{type(self).__name__} is in the disk benchmark; it must implement read()")

    def size(self, folder: Path) -> int:
        """Bytes that they take."""
        return disk(folder)["bytes"]


class Radiodata(Packing):
    """A packed shard of one volume; its bytes are those of the fragment: tiles, and what is told of them."""

    requires = ("radiodata", "tiledb")

    def __init__(self, tile: int, filters: tuple[str, ...] | None) -> None:
        self.tile, self.filters = tile, filters

    def write(self, voxels: NDArray[Any], path: Path, folder: Path, crop: int, kind: str) -> None:
        from radiodata.store import ReadConfig, StoreConfig
        from radiodata.store.context import context
        from radiodata.store.writer import ensure_shard, store_volume

        config = StoreConfig(tiling=self.tile, filters=self.filters)
        ensure_shard(str(folder / "s"), str(voxels.dtype), config, context(ReadConfig()), kind)
        store_volume(str(folder / "s"), 0, voxels, ReadConfig())

    def read(self, folder: Path, voxels: NDArray[Any]) -> NDArray[Any]:
        from radiodata.store import ReadConfig, VoxelSource, read_box

        channels, x, y, z = voxels.shape
        where = str(folder / "s")
        source = VoxelSource(where, 0, (channels, x, y, z), str(voxels.dtype), 1.0, 0.0, "v", "s", where)
        return read_box(source, np.array([[0, x], [0, y], [0, z]]), config=ReadConfig())

    def size(self, folder: Path) -> int:
        return disk(folder / "s" / "__fragments")["bytes"]


class Blosc2(Packing):
    """As nnU-Net keeps a case, a file a channel."""

    requires = ("blosc2",)

    def __init__(self, since: str) -> None:
        self.since = since

    def write(self, voxels: NDArray[Any], path: Path, folder: Path, crop: int, kind: str) -> None:
        import blosc2

        blosc2.set_nthreads(1)
        for number, channel in enumerate(voxels):
            save(channel, folder / f"{number}.b2nd", crop, self.since)

    def read(self, folder: Path, voxels: NDArray[Any]) -> NDArray[Any]:
        import blosc2

        return np.stack([blosc2.open(str(folder / f"{n}.b2nd"), mode="r")[:] for n in range(len(voxels))])


class ZarrArray(Packing):
    """Zarr format 3, zstd, cubic chunks."""

    requires = ("zarr",)

    def write(self, voxels: NDArray[Any], path: Path, folder: Path, crop: int, kind: str) -> None:
        import zarr
        from zarr.codecs import ZstdCodec

        chunks = (1, *(min(64, n) for n in voxels.shape[1:]))
        zarr.create_array(store=folder / "v", data=voxels, chunks=chunks, compressors=ZstdCodec(level=3), zarr_format=3)

    def read(self, folder: Path, voxels: NDArray[Any]) -> NDArray[Any]:
        import zarr

        return np.asarray(zarr.open_array(store=folder / "v", mode="r")[:])


class NiftiGz(Packing):
    """The file as it is; what is read is not compared, for it may be of another dtype, or turned."""

    requires = ("nibabel",)

    def write(self, voxels: NDArray[Any], path: Path, folder: Path, crop: int, kind: str) -> None:
        shutil.copyfile(path, folder / "v.nii.gz")

    def read(self, folder: Path, voxels: NDArray[Any]) -> NDArray[Any]:
        import nibabel as nib

        np.asanyarray(nib.load(folder / "v.nii.gz").dataobj)
        return voxels


class Npy(Packing):
    """No compression."""

    def write(self, voxels: NDArray[Any], path: Path, folder: Path, crop: int, kind: str) -> None:
        np.save(folder / "v.npy", voxels)

    def read(self, folder: Path, voxels: NDArray[Any]) -> NDArray[Any]:
        return np.asarray(np.load(folder / "v.npy"))
