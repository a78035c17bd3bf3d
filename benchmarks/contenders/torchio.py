"""TorchIO on the .nii.gz files: a Subject and UniformSampler, or its Queue."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from benchmarks.contenders.base import Contender

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from benchmarks.contenders.base import Box, LoaderSpec, Reader
    from benchmarks.phantom import Phantoms


class TorchIO(Contender):
    requires = ("torchio",)

    def reader(self, phantoms: Phantoms, folder: Path, crop: int) -> Reader:
        import torchio as tio

        def read(box: Box) -> Any:
            return np.ascontiguousarray(tio.ScalarImage(phantoms.niftis[0]).data[0].numpy()[box])

        return read

    def loader(self, phantoms: Phantoms, folder: Path, spec: LoaderSpec) -> Iterable[Any]:
        """Build Queue and SubjectsLoader; the queue holds one epoch and owns the workers, as its docs ask."""
        import torchio as tio

        subjects = [tio.Subject(image=tio.ScalarImage(path)) for path in phantoms.niftis]
        queue = tio.Queue(
            tio.SubjectsDataset(subjects, load_getitem=True),
            max_length=phantoms.count * spec.crops_per_volume,
            samples_per_volume=spec.crops_per_volume,
            sampler=tio.data.UniformSampler(spec.crop),
            num_workers=spec.workers,
        )
        loader: Iterable[Any] = tio.SubjectsLoader(queue, batch_size=spec.batch, num_workers=0)
        return loader

    def image(self, batch: Any) -> Any:
        return batch["image"]["data"]
