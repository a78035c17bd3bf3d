"""RadiObject 0.1.1: a VolumeCollection from NIfTIs, isotropic tiles, its own training loader."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from benchmarks.contenders.base import Contender

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from benchmarks.contenders.base import LoaderSpec, Reader
    from benchmarks.phantom import Phantoms


class RadiObject(Contender):
    """``tile`` 64 is its ISOTROPIC preset; any other is its TileConfig with explicit extents.

    ``start`` None: the loader that it makes itself. Otherwise a torch DataLoader with the arguments that it
    would pass, and this start method for the workers.
    """

    requires = ("radiobject", "radiobject.ml", "radiobject.ml.utils.worker_init")

    def __init__(self, tile: int = 64, start: str | None = None) -> None:
        self.tile, self.start = tile, start

    def store(self, crop: int) -> str:
        return f"radiobject-{self.tile}"

    def prepare(self, phantoms: Phantoms, folder: Path, crop: int) -> None:
        from radiobject import VolumeCollection, WriteConfig, configure
        from radiobject.ctx import SliceOrientation, TileConfig

        t = self.tile
        configure(write=WriteConfig(tile=TileConfig(orientation=SliceOrientation.ISOTROPIC, x=t, y=t, z=t)))
        niftis = [(path, f"sub-{index:03d}") for index, path in enumerate(phantoms.niftis)]
        VolumeCollection.from_niftis(str(folder / "CT"), niftis, name="CT")

    def block(self, shape: tuple[int, int, int], crop: int) -> tuple[int, int, int]:
        return (self.tile, self.tile, self.tile)

    def reader(self, phantoms: Phantoms, folder: Path, crop: int) -> Reader:
        from radiobject import VolumeCollection

        volume = VolumeCollection(str(folder / "CT")).iloc[0]
        return lambda box: volume[box]

    def loader(self, phantoms: Phantoms, folder: Path, spec: LoaderSpec) -> Iterable[Any]:
        from radiobject import VolumeCollection

        return self.over(VolumeCollection(str(folder / "CT")), spec)

    def over(self, collection: Any, spec: LoaderSpec) -> Iterable[Any]:
        """Return a loader of random crops of a collection."""
        from radiobject.ml import create_training_dataloader

        if self.start is not None:
            return self._started(collection, spec)
        loader: Iterable[Any] = create_training_dataloader(
            collection,
            batch_size=spec.batch,
            patch_size=(spec.crop,) * 3,
            num_workers=spec.workers,
            pin_memory=False,
            patches_per_volume=spec.crops_per_volume,
        )
        return loader

    def _started(self, collection: Any, spec: LoaderSpec) -> Iterable[Any]:
        from radiobject.ml import DatasetConfig, LoadingMode, VolumeCollectionDataset
        from radiobject.ml.utils.worker_init import worker_init_fn
        from torch.utils.data import DataLoader

        config = DatasetConfig(
            loading_mode=LoadingMode.PATCH,
            patch_size=(spec.crop,) * 3,
            patches_per_volume=spec.crops_per_volume,
        )
        return DataLoader(
            VolumeCollectionDataset(collection, config),
            batch_size=spec.batch,
            shuffle=True,
            num_workers=spec.workers,
            persistent_workers=True,
            multiprocessing_context=self.start,
            worker_init_fn=worker_init_fn,
            drop_last=True,
        )

    def image(self, batch: Any) -> Any:
        return batch["image"]
