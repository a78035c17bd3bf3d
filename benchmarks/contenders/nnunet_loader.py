"""nnU-Net v2 itself: the files that its preprocessing would write, read by its own data loader, without augmentation.

Images are stored as float32, as nnU-Net does, and each case is opened anew each time that it is drawn. Workers are
those of its trainer: processes of batchgenerators that fill a queue.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from benchmarks.contenders.labels import PLACES, SHARE, Labels

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

    from benchmarks.contenders.base import LoaderSpec
    from benchmarks.labelled import Labelled

_CACHED, _WAIT_S = 6, 0.002  # as its trainer asks for: batches in the queue, and a look at it so often


class Nnunet(Labels):
    """``nnUNetDataLoader`` over ``nnUNetDatasetBlosc2``, a third of the crops on foreground."""

    requires = (
        "nnunetv2",
        "nnunetv2.training.dataloading.data_loader",
        "batchgenerators.dataloading.nondet_multi_threaded_augmenter",
    )

    def store(self, crop: int) -> str:
        return f"nnunetv2-patch{crop}"

    def prepare(self, phantoms: Labelled, folder: Path, crop: int) -> None:  # type: ignore[override]
        from nnunetv2.training.dataloading.nnunet_dataset import comp_blosc2_params, nnUNetDatasetBlosc2

        rng = np.random.default_rng(0)
        for index in range(phantoms.count):
            voxels = phantoms.truth(index)[:]
            label = phantoms.label_of(voxels)
            image, seg = voxels.astype(np.float32)[None], label.astype(np.int8)[None]
            blocks, chunks = comp_blosc2_params(image.shape, (crop,) * 3, image.itemsize)
            blocks_seg, chunks_seg = comp_blosc2_params(seg.shape, (crop,) * 3, seg.itemsize)
            places = {value: _places(seg, value, rng) for value in (1, 2)}
            nnUNetDatasetBlosc2.save_case(
                image, seg, {"class_locations": places}, str(folder / f"case{index}"), chunks, blocks, chunks_seg,
                blocks_seg,
            )  # fmt: skip

    def loader(self, phantoms: Labelled, folder: Path, spec: LoaderSpec) -> Iterable[Any]:  # type: ignore[override]
        return _Epochs(folder, spec, phantoms.count * spec.crops_per_volume // spec.batch)

    def image(self, batch: Any) -> Any:
        return batch["data"]

    def label(self, batch: Any) -> Any:
        return batch["target"]


def _places(seg: Any, value: int, rng: np.random.Generator) -> Any:
    found = np.argwhere(seg == value)  # the channel comes first, as nnU-Net has it
    return found[rng.choice(len(found), min(PLACES, len(found)), False)]


class _Epochs:
    """Batches of a loader that never ends, so many an epoch."""

    def __init__(self, folder: Path, spec: LoaderSpec, batches: int) -> None:
        import torch
        from batchgenerators.dataloading.nondet_multi_threaded_augmenter import NonDetMultiThreadedAugmenter
        from nnunetv2.training.dataloading.data_loader import nnUNetDataLoader
        from nnunetv2.training.dataloading.nnunet_dataset import nnUNetDatasetBlosc2
        from nnunetv2.utilities.label_handling.label_handling import LabelManager

        torch.set_num_threads(1)  # as nnU-Net does where it trains on a GPU
        np.random.seed(spec.seed)
        size, labels = (spec.crop,) * 3, LabelManager({"background": 0, "bright": 1, "bone": 2}, None)
        self._each = batches
        self._source: Any = nnUNetDataLoader(
            nnUNetDatasetBlosc2(str(folder)), spec.batch, size, size, labels, SHARE, probabilistic_oversampling=True
        )
        if spec.workers:
            seeds = list(range(spec.seed, spec.seed + spec.workers))
            self._source = NonDetMultiThreadedAugmenter(
                self._source, None, spec.workers, _CACHED, seeds, wait_time=_WAIT_S
            )

    def __iter__(self) -> Iterator[Any]:
        for _ in range(self._each):
            yield next(self._source)
