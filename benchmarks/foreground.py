"""Benchmark ``foreground``: image and label, a third of the crops around a voxel of a class; samples/s.

Each contender knows where foreground is in its own way: radiodata from statistics of tiles made at ingest, nnU-Net from
10,000 places a class that preprocessing keeps, MONAI and TorchIO from the label itself, in memory.
"""

from __future__ import annotations

import importlib
import time
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from benchmarks.contenders.base import LoaderSpec
from benchmarks.labelled import Labelled
from benchmarks.loader import Run
from benchmarks.phantom import find
from benchmarks.probes import memory_bytes, touch
from benchmarks.registry import Row

if TYPE_CHECKING:
    from pathlib import Path

    from benchmarks.contenders.labels import Labels

SUMMARY = "image and label, a third of the crops on foreground: samples/s"
PRIMARY, UNIT, HIGHER_IS_BETTER = "samples_per_s", "samples/s", True
PEERS = ("blosc2", "nnU-Net", "MONAI")
HERE = "benchmarks.contenders.labels:"
OWN = "benchmarks.contenders.nnunet_loader:Nnunet"


@dataclass(frozen=True)
class Parameters:
    shape: tuple[int, int, int] = (512, 512, 300)
    volumes: int = 4
    crop: int = 96
    batch: int = 4
    crops_per_volume: int = 32
    least_s: float = 5.0
    cap_s: float = 30.0
    limit_s: float = 300.0
    repeats: int = 3
    seed: int = 0


FULL = Parameters()
QUICK = Parameters(
    shape=(128, 128, 96), volumes=2, crop=32, crops_per_volume=8, least_s=0.3, cap_s=3.0, limit_s=90.0, repeats=1
)

ROWS = (
    Row("radiodata", "radiodata, 2 workers", HERE + "Radiodata", ("radiodata",), {}, 2),
    Row("radiodata", "radiodata, threads", HERE + "Radiodata", ("radiodata",), {}, 0),
    Row("blosc2", "blosc2 (nnU-Net 2.8), 2 workers", HERE + "Blosc2", ("blosc2",), {"since": "2.8"}, 2),
    Row("blosc2", "blosc2 (nnU-Net 2.8), in process", HERE + "Blosc2", ("blosc2",), {"since": "2.8"}, 0),
    Row("blosc2", "blosc2 (nnU-Net 2.7), 2 workers", HERE + "Blosc2", ("blosc2",), {"since": "2.7"}, 2),
    Row("nnU-Net", "nnU-Net v2, its loader, 2 workers", OWN, ("nnunetv2",), {}, 2, None, "float32, opened each time"),
    Row("nnU-Net", "nnU-Net v2, its loader, in process", OWN, ("nnunetv2",), {}, 0, None, "float32, opened each time"),
    Row("memmap", "memmap, 2 workers", HERE + "Memmap", (), {}, 2),
    Row("memmap", "memmap, in process", HERE + "Memmap", (), {}, 0),
    Row("MONAI", "MONAI CacheDataset, in process", HERE + "Monai", ("monai",), {}, 0, None, "volumes in memory"),
    Row("TorchIO", "TorchIO Queue, 2 workers", HERE + "TorchIO", ("torchio",), {}, 2, 8, "8 crops a volume read"),
)


def data(folder: Path, parameters: Parameters) -> Labelled:
    return Labelled(folder, parameters.shape, parameters.volumes)


def cases(parameters: Parameters, row: Row) -> list[dict[str, Any]]:
    """Return the one case of this benchmark."""
    crop = parameters.crop
    return [{"case": f"{crop}-cube, batch {parameters.batch}", "crop": crop, "crop_bytes": crop**3 * 3}]


def measure(
    contender: Labels, phantoms: Labelled, folder: Path, parameters: Parameters, row: Row, case: dict[str, Any]
) -> dict[str, Any]:
    """Time one loader; the crops of its first batch are looked up, and their labels compared."""
    p = parameters
    spec = LoaderSpec(p.crop, p.batch, row.workers, row.crops_per_volume or p.crops_per_volume, p.seed)
    importlib.import_module("torch.utils.data")
    for path in [folder] if contender.store(p.crop) else [*phantoms.niftis, *phantoms.labels]:
        touch(path)
    tick = time.perf_counter()
    run = Run(contender.loader(phantoms, folder, spec))
    batch = run.step()
    first_batch_s = time.perf_counter() - tick
    _check(contender.image(batch), contender.label(batch), phantoms, spec)
    run.warm_up(p.cap_s)
    timed = run.timed(p.least_s, p.cap_s, p.batch)
    return {
        **{name: [value] for name, value in timed.items()},
        "first_batch_s": [first_batch_s],
        "memory_bytes": [memory_bytes()],
        "capped": run.cut,
    }


def _check(image: Any, label: Any, phantoms: Labelled, spec: LoaderSpec) -> None:
    wanted = (spec.batch, 1, *(spec.crop,) * 3)
    if tuple(image.shape) != wanted or tuple(label.shape) != wanted:
        raise AssertionError(f"the batch is {tuple(image.shape)} and {tuple(label.shape)}; both must be {wanted}")
    volumes = [phantoms.truth(index) for index in range(phantoms.count)]
    for index, (crop, told) in enumerate(zip(np.asarray(image)[:, 0], np.asarray(label)[:, 0], strict=True)):
        found = find(crop, volumes)
        if found is None:
            raise AssertionError(f"crop {index} of the first batch ({crop.dtype}) is nowhere in the phantoms")
        box = tuple(slice(at, at + spec.crop) for at in found[1])
        if not np.array_equal(phantoms.label_of(volumes[found[0]][box]), told):
            raise AssertionError(f"the label of crop {index} of the first batch is not that of its voxels")


def describe(parameters: Parameters) -> dict[str, Any]:
    """Return the parameters as they go into the JSON."""
    return asdict(parameters)
