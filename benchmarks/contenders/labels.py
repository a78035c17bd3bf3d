"""Contenders of the benchmark ``foreground``: image and label, a third of the crops on foreground."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from benchmarks.contenders.base import Contender, contiguous, torch_loader
from benchmarks.contenders.nnunet import save

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from pathlib import Path

    from numpy.typing import NDArray

    from benchmarks.contenders.base import LoaderSpec
    from benchmarks.labelled import Labelled

SHARE = 1 / 3
_DTYPES = (np.int16, np.uint8)
PLACES = 10_000  # of a class that nnU-Net keeps


class Labels(Contender):
    """A contender whose batches hold a label, too."""

    def label(self, batch: Any) -> Any:
        """Take the tensor of labels (B, 1, x, y, z) out of a batch."""
        return batch["label"]

    def image(self, batch: Any) -> Any:
        return batch["image"]


class Radiodata(Labels):
    """Default settings, but for tiles of 32 voxels a side."""

    requires = ("radiodata",)

    def import_all(self) -> None:
        from radiodata import Cohort, Foreground, PatchDataset, PatchLoader  # noqa: F401  the names load on demand

    def store(self, crop: int) -> str:
        return "radiodata-32-default"

    def prepare(self, phantoms: Labelled, folder: Path, crop: int) -> None:  # type: ignore[override]
        from radiodata import Cohort

        pairs = {"CT": phantoms.niftis, "seg": [folder / path.name for path in phantoms.niftis]}
        for link, label in zip(pairs["seg"], phantoms.labels, strict=True):
            link.symlink_to(label)  # a subject is known by the name of its file
        Cohort.from_niftis(str(folder / "cohort"), images=pairs, tiling=32)

    def loader(self, phantoms: Labelled, folder: Path, spec: LoaderSpec) -> Iterable[Any]:  # type: ignore[override]
        from radiodata import Cohort, Foreground, PatchDataset, PatchLoader

        dataset = PatchDataset(
            Cohort(str(folder / "cohort")),
            {"image": "CT", "label": "seg"},
            patch_size=spec.crop,
            policy=Foreground(SHARE),
            crops_per_volume=spec.crops_per_volume,
            seed=spec.seed,
        )
        return PatchLoader(dataset, batch_size=spec.batch, num_workers=spec.workers)


class Arrays(Labels):
    """Two arrays a volume, and places of each class that were drawn when they were written, as nnU-Net has them."""

    def save(self, voxels: NDArray[Any], folder: Path, name: str, crop: int) -> None:
        """Write an array."""
        raise NotImplementedError(f"{type(self).__name__} must say how an array is written")

    def open(self, folder: Path, name: str) -> Any:
        """Open an array for reading; it is indexed by a tuple of slices."""
        raise NotImplementedError(f"{type(self).__name__} must say how an array is opened")

    def prepare(self, phantoms: Labelled, folder: Path, crop: int) -> None:  # type: ignore[override]
        rng = np.random.default_rng(0)
        for index in range(phantoms.count):
            voxels = phantoms.truth(index)[:]
            label = phantoms.label_of(voxels)
            self.save(voxels, folder, f"{index}", crop)
            self.save(label, folder, f"{index}_seg", crop)
            for value in (1, 2):
                found = np.argwhere(label == value)
                np.save(folder / f"{index}_{value}.npy", found[rng.choice(len(found), min(PLACES, len(found)), False)])

    def loader(self, phantoms: Labelled, folder: Path, spec: LoaderSpec) -> Iterable[Any]:  # type: ignore[override]
        return torch_loader(PairDataset(lambda name: self.open(folder, name), phantoms, folder, spec), spec)


class Blosc2(Arrays):
    """As nnU-Net of a version keeps its cases."""

    requires = ("blosc2",)

    def __init__(self, since: str) -> None:
        self.since = since

    def store(self, crop: int) -> str:
        return f"blosc2-nnunet{self.since}-patch{crop}"

    def save(self, voxels: NDArray[Any], folder: Path, name: str, crop: int) -> None:
        import blosc2

        blosc2.set_nthreads(1)
        save(voxels, folder / f"{name}.b2nd", crop, self.since)

    def open(self, folder: Path, name: str) -> Any:
        import blosc2

        blosc2.set_nthreads(1)
        return blosc2.open(urlpath=str(folder / f"{name}.b2nd"), mode="r", mmap_mode="r", dparams={"nthreads": 1})


class Memmap(Arrays):
    """Raw .npy files, mapped."""

    def store(self, crop: int) -> str:
        return "memmap"

    def save(self, voxels: NDArray[Any], folder: Path, name: str, crop: int) -> None:
        np.save(folder / f"{name}.array.npy", voxels)

    def open(self, folder: Path, name: str) -> Any:
        return np.load(folder / f"{name}.array.npy", mmap_mode="r")


class PairDataset:
    """Map-style dataset of crops of open volumes and labels: a seeded list of boxes, volumes interleaved."""

    def __init__(self, open_array: Callable[[str], Any], phantoms: Labelled, folder: Path, spec: LoaderSpec) -> None:
        self._open, self._crop = open_array, spec.crop
        self._held: dict[str, Any] = {}
        n, rng = phantoms.count * spec.crops_per_volume, np.random.default_rng(spec.seed)
        room = np.array(phantoms.shape) - spec.crop
        self._volume = rng.permutation(np.arange(n) % phantoms.count)
        self._start = rng.integers(0, room + 1, size=(n, 3))
        places = {(i, v): np.load(folder / f"{i}_{v}.npy") for i in range(phantoms.count) for v in (1, 2)}
        for at in np.flatnonzero(rng.random(n) < SHARE):
            known = places[int(self._volume[at]), int(rng.integers(1, 3))]
            self._start[at] = np.clip(known[rng.integers(len(known))] - spec.crop // 2, 0, room)

    def __len__(self) -> int:
        return len(self._volume)

    def __getitem__(self, index: int) -> dict[str, Any]:
        import torch

        volume = int(self._volume[index])
        box = tuple(slice(int(s), int(s) + self._crop) for s in self._start[index])
        pair = {"image": f"{volume}", "label": f"{volume}_seg"}
        return {key: torch.from_numpy(contiguous(self._array(name)[box])).unsqueeze(0) for key, name in pair.items()}

    def _array(self, name: str) -> Any:
        if name not in self._held:
            self._held[name] = self._open(name)
        return self._held[name]


class Monai(Labels):
    """CacheDataset of volumes, labels and where classes lie; RandCropByPosNegLabeld."""

    requires = ("monai", "monai.data", "monai.transforms")

    def loader(self, phantoms: Labelled, folder: Path, spec: LoaderSpec) -> Iterable[Any]:  # type: ignore[override]
        from monai.data import CacheDataset, DataLoader
        from monai.transforms import Compose, FgBgToIndicesd, LoadImaged, RandCropByPosNegLabeld

        pairs = zip(phantoms.niftis, phantoms.labels, strict=True)
        items = [{"image": str(i), "label": str(lab)} for i, lab in pairs] * spec.crops_per_volume
        keys, size = ("image", "label"), (spec.crop,) * 3
        crop = RandCropByPosNegLabeld(
            keys, "label", size, pos=SHARE, neg=1 - SHARE, num_samples=1, fg_indices_key="label_fg_indices",
            bg_indices_key="label_bg_indices",
        )  # fmt: skip
        loads = [LoadImaged(k, ensure_channel_first=True, dtype=d) for k, d in zip(keys, _DTYPES, strict=True)]
        steps = Compose([*loads, FgBgToIndicesd("label"), crop])
        data = CacheDataset(items, steps, copy_cache=False, hash_as_key=True, progress=False)
        workers = spec.workers
        loader: Iterable[Any] = DataLoader(
            data, batch_size=spec.batch, shuffle=True, num_workers=workers, persistent_workers=workers > 0
        )
        return loader


class TorchIO(Labels):
    """Queue and LabelSampler."""

    requires = ("torchio",)

    def loader(self, phantoms: Labelled, folder: Path, spec: LoaderSpec) -> Iterable[Any]:  # type: ignore[override]
        import torchio as tio

        subjects = [
            tio.Subject(image=tio.ScalarImage(image), label=tio.LabelMap(label))
            for image, label in zip(phantoms.niftis, phantoms.labels, strict=True)
        ]
        weights = {0: 1 - SHARE, 1: SHARE / 2, 2: SHARE / 2}
        queue = tio.Queue(
            tio.SubjectsDataset(subjects, load_getitem=True),
            max_length=phantoms.count * spec.crops_per_volume,
            samples_per_volume=spec.crops_per_volume,
            sampler=tio.data.LabelSampler(spec.crop, "label", weights),
            num_workers=spec.workers,
        )
        loader: Iterable[Any] = tio.SubjectsLoader(queue, batch_size=spec.batch, num_workers=0)
        return loader

    def image(self, batch: Any) -> Any:
        return batch["image"]["data"]

    def label(self, batch: Any) -> Any:
        return batch["label"]["data"]
