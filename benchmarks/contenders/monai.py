"""MONAI on the .nii.gz files: Dataset or CacheDataset, LoadImaged and RandSpatialCropd."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from benchmarks.contenders.base import Contender

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from benchmarks.contenders.base import Box, LoaderSpec, Reader
    from benchmarks.phantom import Phantoms


class Monai(Contender):
    """``cache``: CacheDataset. ``samples`` above 1: RandSpatialCropSamplesd, so many crops a volume."""

    requires = ("monai", "monai.data", "monai.transforms")

    def __init__(self, *, cache: bool = False, samples: int = 1) -> None:
        self.cache, self.samples = cache, samples

    def reader(self, phantoms: Phantoms, folder: Path, crop: int) -> Reader:
        from monai.transforms import LoadImaged, SpatialCrop

        load = LoadImaged("image", ensure_channel_first=True, dtype=np.int16)
        item = {"image": phantoms.niftis[0]}

        def read(box: Box) -> Any:
            return np.ascontiguousarray(SpatialCrop(roi_slices=box)(load(dict(item))["image"])[0].numpy())

        return read

    def loader(self, phantoms: Phantoms, folder: Path, spec: LoaderSpec) -> Iterable[Any]:
        from monai.data import CacheDataset, DataLoader, Dataset

        items = [{"image": str(path)} for path in phantoms.niftis] * (spec.crops_per_volume // self.samples)
        if self.cache:  # copy_cache=False is allowed, and faster: no transform writes into the cached volume
            data = CacheDataset(items, self._transform(spec), copy_cache=False, hash_as_key=True, progress=False)
        else:
            data = Dataset(items, self._transform(spec))
        workers = spec.workers
        batch_size = spec.batch // self.samples
        loader: Iterable[Any] = DataLoader(
            data, batch_size=batch_size, shuffle=True, num_workers=workers, persistent_workers=workers > 0
        )
        return loader

    def _transform(self, spec: LoaderSpec) -> Any:
        from monai.transforms import Compose, LoadImaged, RandSpatialCropd, RandSpatialCropSamplesd

        size = (spec.crop,) * 3
        if self.samples == 1:
            crop = RandSpatialCropd("image", size, random_size=False)
        else:
            crop = RandSpatialCropSamplesd("image", size, self.samples, random_size=False)
        return Compose([LoadImaged("image", ensure_channel_first=True, dtype=np.int16), crop])

    def image(self, batch: Any) -> Any:
        return batch["image"]
