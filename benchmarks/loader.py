"""Benchmark ``loader``: batches of random crops; samples/s, time to the first batch, CPU seconds per sample.

No transforms. The first epoch warms up and gives the time to the first batch, from nothing open (imports
excluded) to a batch in hand; then whole epochs are timed, so that the filling of a queue counts as well.
"""

from __future__ import annotations

import importlib
import time
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from benchmarks.contenders.base import LoaderSpec
from benchmarks.phantom import Phantoms, find
from benchmarks.probes import cpu_seconds, memory_bytes, touch
from benchmarks.registry import READERS, Row

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

    from benchmarks.contenders.base import Contender

SUMMARY = "random crops in batches: samples/s, time to first batch, CPU s per sample"
PRIMARY, UNIT, HIGHER_IS_BETTER = "samples_per_s", "samples/s", True
PEERS = (*READERS, "memmap")
HERE = "benchmarks.contenders."
OURS, RADIOBJECT = HERE + "radiodata:Radiodata", HERE + "radiobject:RadiObject"
NNUNET, MONAI = HERE + "nnunet:NnunetBlosc2", HERE + "monai:Monai"


@dataclass(frozen=True)
class Parameters:
    shape: tuple[int, int, int] = (512, 512, 300)
    volumes: int = 4
    cases: tuple[tuple[int, int], ...] = ((96, 4), (96, 16), (64, 4), (64, 16), (128, 4))  # crop and batch
    crops_per_volume: int = 32
    least_s: float = 5.0  # timed for at least so long, then to the end of the epoch
    cap_s: float = 30.0  # per row and repeat, and again for the warm-up
    limit_s: float = 600.0  # a process that takes longer is stopped and its row says so
    repeats: int = 3
    seed: int = 0


FULL = Parameters()
QUICK = Parameters(
    shape=(128, 128, 96),
    volumes=2,
    cases=((32, 4), (24, 8)),
    crops_per_volume=8,
    least_s=0.3,
    cap_s=3.0,
    limit_s=60.0,
    repeats=1,
)


def _rows() -> Iterator[Row]:
    """Yield the rows without workers, then those with two; --quick runs few of the latter."""
    for workers in (0, 2):
        if workers:
            yield replace(next(iter(_radiodata(1, ((32, 8),)))), quick=False)
        yield from _radiodata(workers)
        yield from _radiobject(workers)
        yield from _files(workers)
        yield from _volumes(workers)


def _radiodata(
    workers: int, settings: tuple[tuple[int, int], ...] = ((64, 1), (64, 8), (32, 1), (32, 4), (32, 8), (32, 16))
) -> Iterator[Row]:
    for tile, unit in settings:
        name, options = f"radiodata (tile {tile}, unit {unit}, w{workers})", {"tile": tile, "unit": unit}
        quick, note = (tile, unit) == (32, 8), f"crops_per_unit={unit}"
        leading = (tile, unit) == (32, 8)
        yield Row("radiodata", name, OURS, ("radiodata",), options, workers, None, note, leading, quick)


def _radiobject(workers: int) -> Iterator[Row]:
    """Yield its own loader and, as that forks after TileDB has threads, its dataset in spawned workers."""
    for tile, label in ((64, "isotropic 64"), (32, "tile 32")):
        for start in (None, "spawn") if workers else (None,):
            name = f"RadiObject ({label}, w{workers}{', spawned' if start else ''})"
            options, quick = {"tile": tile, "start": start}, tile == 64 and (workers == 0 or start == "spawn")
            if start or tile == 64 or not workers:
                yield Row("RadiObject", name, RADIOBJECT, ("radiobject",), options, workers, quick=quick)


def _files(workers: int) -> Iterator[Row]:
    w, quick = f"w{workers}", workers == 0
    for since in ("2.7", "2.8"):
        name, options = f"blosc2 (nnU-Net {since}, {w})", {"since": since}
        new = since == "2.8"
        yield Row("blosc2", name, NNUNET, ("blosc2",), options, workers, None, "", new, new)
    yield Row("zarr", f"zarr v3 (chunk 64, {w})", HERE + "zarr:Zarr", ("zarr",), {}, workers, quick=quick)
    yield Row("memmap", f"memmap ({w})", HERE + "memmap:Memmap", (), {}, workers, leading=True)
    memory, note = HERE + "ram:InMemory", "the limit of DataLoader"
    yield Row("memory", f"in memory ({w})", memory, (), {}, workers, None, note, True, quick)


def _volumes(workers: int) -> Iterator[Row]:
    """Yield the contenders that read or keep whole volumes."""
    w, quick = f"w{workers}", workers == 0
    queue, samples = "8 crops per volume read", "RandSpatialCropSamplesd: a batch is 4 crops of one volume"
    torchio, needs = HERE + "torchio:TorchIO", ("monai",)
    yield Row("TorchIO", f"TorchIO Queue ({w})", torchio, ("torchio",), {}, workers, 8, queue, quick=quick)
    yield Row("MONAI", f"MONAI Dataset ({w})", MONAI, needs, {}, workers, 2, "one volume read per crop", quick=quick)
    yield Row("MONAI", f"MONAI Dataset (4 crops, {w})", MONAI, needs, {"samples": 4}, workers, 8, samples, quick=False)
    cached, note = {"cache": True}, "volumes in memory"
    yield Row("MONAI", f"MONAI CacheDataset ({w})", MONAI, needs, cached, workers, None, note, quick=quick)


ROWS = tuple(_rows())


def data(folder: Path, parameters: Parameters) -> Phantoms:
    return Phantoms(folder, parameters.shape, parameters.volumes)


def cases(parameters: Parameters, row: Row) -> list[dict[str, Any]]:
    """Return a crop and a batch each; of most rows only the first."""
    return [
        {"case": f"{crop}-cube, batch {batch}", "crop": crop, "batch": batch, "crop_bytes": crop**3 * 2}
        for crop, batch in (parameters.cases if row.leading else parameters.cases[:1])
    ]


def describe(parameters: Parameters) -> dict[str, Any]:
    """Return the parameters as they go into the JSON."""
    return asdict(parameters)


def measure(
    contender: Contender,
    phantoms: Phantoms,
    folder: Path,
    parameters: Parameters,
    row: Row,
    case: dict[str, Any],
) -> dict[str, Any]:
    """Time one loader; return its figures as lists of one, to be pooled over repeats."""
    p, crop, size = parameters, case["crop"], case["batch"]
    per_volume = row.crops_per_volume or p.crops_per_volume
    spec = LoaderSpec(crop, size, row.workers, per_volume, p.seed)
    importlib.import_module("torch.utils.data")  # in no timing, as the contender's own imports
    for path in [folder] if contender.store(crop) else phantoms.niftis:
        touch(path)
    tick = time.perf_counter()
    loader = contender.loader(phantoms, folder, spec)
    run = Run(loader)
    batch = run.step()
    first_batch_s = time.perf_counter() - tick
    image = contender.image(batch)
    _check(image, phantoms, spec)
    run.warm_up(p.cap_s)
    return {
        **{name: [value] for name, value in run.timed(p.least_s, p.cap_s, size).items()},
        "first_batch_s": [first_batch_s],
        "memory_bytes": [memory_bytes()],
        **{name: [value] for name, value in contender.facts(loader).items()},
        "dtype": str(image.dtype).removeprefix("torch."),
        "crops_per_volume": per_volume,
        "capped": run.cut,
    }


@dataclass
class Run:
    """A loader iterated epoch after epoch."""

    loader: Iterable[Any]
    epoch: int = 0
    cut: bool = False
    _batches: Iterator[Any] = field(init=False)

    def __post_init__(self) -> None:
        self._batches = iter(self.loader)

    def step(self) -> Any:
        """Return the next batch, of the next epoch where this one has ended."""
        for batch in self._batches:
            return batch
        self.epoch += 1
        self._batches = iter(self.loader)
        return next(self._batches)

    def close(self) -> None:
        """End the epoch, and the loader, where they can be ended: reads hold what they read until they have it."""
        for one in (self._batches, self.loader):
            if hasattr(one, "close"):
                one.close()

    def warm_up(self, cap_s: float) -> None:
        """Go on to the first batch of the second epoch, for at most ``cap_s`` seconds."""
        end = time.perf_counter() + cap_s
        while self.epoch == 0 and time.perf_counter() < end:
            self.step()

    def timed(self, least_s: float, cap_s: float, batch: int) -> dict[str, float | None]:
        """Time whole epochs, first batch to first batch; ``cut``: the cap came before one was over."""
        epoch, cpu, begin, steps, self.cut = self.epoch, cpu_seconds(), time.perf_counter(), 0, True
        result: dict[str, float | None] = {}
        while True:
            self.step()
            steps += 1
            spent = time.perf_counter() - begin
            if (ended := self.epoch > epoch) or (spent > cap_s and not result):
                samples, now = steps * batch, cpu_seconds()
                cpu_each = None if now is None or cpu is None else (now - cpu) / samples
                result = {PRIMARY: samples / spent, "cpu_s_per_sample": cpu_each}
                epoch, self.cut = self.epoch, self.cut and not ended
            if spent > cap_s or (ended and spent >= least_s):
                return result


def _check(image: Any, phantoms: Phantoms, spec: LoaderSpec) -> None:
    """Refuse a batch of another shape, or one with a crop that is nowhere in the phantoms."""
    wanted = (spec.batch, 1, spec.crop, spec.crop, spec.crop)
    if tuple(image.shape) != wanted:
        raise AssertionError(f"the batch is {tuple(image.shape)}; it must be {wanted}")
    volumes = [phantoms.truth(index) for index in range(phantoms.count)]
    for index, crop in enumerate(np.asarray(image)[:, 0]):
        if find(crop, volumes) is None:
            raise AssertionError(f"crop {index} of the first batch ({crop.dtype}) is nowhere in the phantoms")
