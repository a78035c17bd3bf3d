"""Benchmark ``memory``: what a loader takes, above a process that has imported all it needs; MB, and whether it grows.

A cohort of many volumes, which are few files under many names. Told are the most that the process and its workers take
(PSS), less what the process took before; and how much more it is in the last quarter of `soak_s` than in the second.
"""

from __future__ import annotations

import os
import time
from dataclasses import asdict, dataclass
from statistics import median
from typing import TYPE_CHECKING, Any

from benchmarks.contenders.base import LoaderSpec
from benchmarks.loader import Run
from benchmarks.phantom import Phantoms
from benchmarks.probes import memory_bytes
from benchmarks.registry import Row

if TYPE_CHECKING:
    from pathlib import Path

    from benchmarks.contenders.base import Contender

SUMMARY = "memory of a loader above that of its imports, and whether it grows"
PRIMARY, UNIT, HIGHER_IS_BETTER = "above_mb", "MB", False
PEERS = ("MONAI",)
HERE = "benchmarks.contenders."


@dataclass(frozen=True)
class Parameters:
    shape: tuple[int, int, int] = (512, 512, 300)
    volumes: int = 64
    distinct: int = 4
    crop: int = 96
    batch: int = 4
    crops_per_volume: int = 8
    soak_s: float = 60.0
    limit_s: float = 600.0
    repeats: int = 1
    seed: int = 0


FULL = Parameters()
QUICK = Parameters(shape=(128, 128, 96), volumes=4, distinct=2, crop=32, soak_s=2.0, limit_s=120.0)

OURS = {"tile": 32, "unit": 8}
ROWS = (
    Row("radiodata", "radiodata, threads", HERE + "radiodata:Radiodata", ("radiodata", "psutil"), OURS, 0),
    Row("radiodata", "radiodata, 2 workers", HERE + "radiodata:Radiodata", ("radiodata", "psutil"), OURS, 2),
    Row("MONAI", "MONAI CacheDataset", HERE + "monai:Monai", ("monai", "psutil"), {"cache": True}, 0, None,
        "volumes in memory"),
)  # fmt: skip


@dataclass(frozen=True)
class Copies(Phantoms):
    """Volumes under more names than there are of them."""

    distinct: int = 1

    @property
    def folder(self) -> Path:
        base = super().folder
        return base.with_name(f"{base.name}-copies-{self.count}")

    def make(self) -> None:
        """Write the volumes that are not there yet, and link them."""
        one = Phantoms(self.root, self.shape, self.distinct)
        one.make()
        self.folder.mkdir(parents=True, exist_ok=True)
        for links, files in ((self.niftis, one.niftis), (self.truths, one.truths)):
            for number, link in enumerate(links):
                if not link.exists():
                    os.link(files[number % self.distinct], link)


def data(folder: Path, parameters: Parameters) -> Copies:
    return Copies(folder, parameters.shape, parameters.volumes, parameters.distinct)


def cases(parameters: Parameters, row: Row) -> list[dict[str, Any]]:
    """Return the only case."""
    return [{"case": f"{parameters.volumes} volumes, batches of {parameters.batch}", "crop": parameters.crop}]


def describe(parameters: Parameters) -> dict[str, Any]:
    """Return the parameters as they go into the JSON."""
    return asdict(parameters)


def measure(
    contender: Contender, phantoms: Copies, folder: Path, parameters: Parameters, row: Row, case: dict[str, Any]
) -> dict[str, Any]:
    """Run an epoch, then the soak; return what they took."""
    import torch.utils.data  # noqa: F401  in no measurement, as the contender's own imports

    p = parameters
    before = _memory()
    loader = contender.loader(
        phantoms, folder, LoaderSpec(p.crop, p.batch, row.workers, row.crops_per_volume or p.crops_per_volume, p.seed)
    )
    run, batches = Run(loader), 0
    while run.epoch == 0:
        run.step()
    taken = [_memory()]
    begun = last = time.perf_counter()
    while (now := time.perf_counter()) - begun < p.soak_s:
        run.step()
        batches += 1
        if now - last > p.soak_s / 40:
            taken.append(_memory())
            last = now
    steady = taken[len(taken) // 4 :]
    third = max(1, len(steady) // 3)  # a slow machine may have told but once
    return {
        PRIMARY: [(max(taken) - before) / 1e6],
        "first_epoch_mb": [(taken[0] - before) / 1e6],
        "grew_mb": [(median(steady[-third:]) - median(steady[:third])) / 1e6],
        "soak_samples": [batches * p.batch],
    }


def _memory() -> int:
    found = memory_bytes()
    if found is None:
        raise RuntimeError("psutil is not installed: memory cannot be told")
    return found
