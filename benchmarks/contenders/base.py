"""What a contender must be able to do, and the crop dataset for those that bring no loader of their own."""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from pathlib import Path

    from numpy.typing import NDArray

    from benchmarks.phantom import Phantoms

    Box = tuple[slice, slice, slice]
    Reader = Callable[[Box], Any]


@dataclass(frozen=True)
class LoaderSpec:
    """What a loader is asked for: crop side, batch size, worker processes, crops per volume and epoch."""

    crop: int
    batch: int
    workers: int
    crops_per_volume: int
    seed: int = 0


class Contender:
    """One way of storing volumes and reading crops. Methods get the folder that ``prepare`` filled."""

    requires: ClassVar[tuple[str, ...]] = ()
    exact: ClassVar[bool] = True
    """Whether its reads give voxels; else they are a limit, and not compared."""

    def import_all(self) -> None:
        """Import what the contender needs, so that imports are in no timing."""
        for name in self.requires:
            importlib.import_module(name)

    def store(self, crop: int) -> str | None:
        """Name the stored format for this crop side; None where the .nii.gz are read as they are."""
        return None

    def prepare(self, phantoms: Phantoms, folder: Path, crop: int) -> None:
        """Write the format into ``folder``, from the .nii.gz files or from their voxels."""
        raise NotImplementedError(f"{type(self).__name__} names a store; it must say how to write it in prepare()")

    def reader(self, phantoms: Phantoms, folder: Path, crop: int) -> Reader:
        """Return a function that reads one box of volume 0, everything that can stay open being open."""
        raise NotImplementedError(f"{type(self).__name__} is in the patch benchmark; it must implement reader()")

    def block(self, shape: tuple[int, int, int], crop: int) -> tuple[int, int, int] | None:
        """Return what is decoded as one, in voxels of a volume of a shape; None where it is no box."""
        return None

    def loader(self, phantoms: Phantoms, folder: Path, spec: LoaderSpec) -> Iterable[Any]:
        """Return an iterable of batches, iterated again for the next epoch."""
        raise NotImplementedError(f"{type(self).__name__} is in the loader benchmark; it must implement loader()")

    def image(self, batch: Any) -> Any:
        """Take the tensor (B, 1, x, y, z) out of a batch."""
        return batch

    def facts(self, loader: Any) -> dict[str, float]:
        """Return what is known of a loader without a measurement."""
        return {}


class CropDataset:
    """Map-style dataset of random crops over open volumes; a seeded list of boxes, volumes interleaved.

    ``open_volume`` is called once per volume and process, so no handle crosses a fork.
    """

    def __init__(self, open_volume: Callable[[int], Any], phantoms: Phantoms, spec: LoaderSpec) -> None:
        self._open = open_volume
        self._volumes: dict[int, Any] = {}
        n = phantoms.count * spec.crops_per_volume
        rng = np.random.default_rng(spec.seed)
        self._volume = rng.permutation(np.arange(n) % phantoms.count)
        self._start = rng.integers(0, np.array(phantoms.shape) - spec.crop + 1, size=(n, 3))
        self._crop = spec.crop

    def __len__(self) -> int:
        return len(self._volume)

    def __getitem__(self, index: int) -> Any:
        import torch

        volume = int(self._volume[index])
        if volume not in self._volumes:
            self._volumes[volume] = self._open(volume)
        box = tuple(slice(int(s), int(s) + self._crop) for s in self._start[index])
        return torch.from_numpy(contiguous(self._volumes[volume][box])).unsqueeze(0)


class ArrayContender(Contender):
    """A contender that is an array per volume on disk: the plain torch DataLoader serves its crops."""

    def open(self, folder: Path, volume: int) -> Any:
        """Open one volume for reading; the result is indexed by a tuple of slices."""
        raise NotImplementedError(f"{type(self).__name__} must say how a volume is opened")

    def reader(self, phantoms: Phantoms, folder: Path, crop: int) -> Reader:
        volume = self.open(folder, 0)
        return lambda box: contiguous(volume[box])

    def loader(self, phantoms: Phantoms, folder: Path, spec: LoaderSpec) -> Iterable[Any]:
        return torch_loader(CropDataset(lambda i: self.open(folder, i), phantoms, spec), spec)


def torch_loader(dataset: Any, spec: LoaderSpec) -> Iterable[Any]:
    """Wrap a map-style dataset in torch's DataLoader with workers that live from epoch to epoch."""
    from torch.utils.data import DataLoader

    workers = spec.workers
    return DataLoader(dataset, batch_size=spec.batch, num_workers=workers, persistent_workers=workers > 0)


def contiguous(array: Any) -> NDArray[Any]:
    """Return voxels that are in memory of their own, C order: what a training step is handed."""
    owned = np.array(array, order="C", copy=None)
    return owned.copy() if isinstance(array, np.memmap) or owned.base is not None else owned
