"""Benchmark ``scale``: how a cohort grows from 1,000 volumes to 100,000, of 104 crops each an epoch; ms, and memory.

``open, filter``: from nothing open to the ids that a condition gives. ``first batch``: from nothing open to the first
batch of an epoch of all volumes (10,400,000 crops of 100,000). Imports excluded. Memory is what a process holds alone,
above what it held after its imports; of a worker, above that of a process that has imported torch.
"""

from __future__ import annotations

import multiprocessing
import subprocess
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from benchmarks.people import People
from benchmarks.probes import memory_bytes, touch
from benchmarks.registry import Row

if TYPE_CHECKING:
    from pathlib import Path

    from benchmarks.contenders.tables import Tables

SUMMARY = "1,000 to 100,000 volumes: ms to open, filter, plan and read the first batch"
PRIMARY, UNIT, HIGHER_IS_BETTER = "ms", "ms", False
PEERS = ("pandas",)
HERE = "benchmarks.contenders.tables:"
FILTER, BATCH, WORKERS = "open, filter", "first batch", "first batch, 2 workers"


@dataclass(frozen=True)
class Parameters:
    counts: tuple[int, ...] = (1_000, 10_000, 100_000)
    crops_per_volume: int = 104
    batch: int = 4
    limit_s: float = 400.0
    repeats: int = 3


FULL = Parameters()
QUICK = Parameters(counts=(200,), limit_s=60.0, repeats=1)

ROWS = (
    Row("radiodata", "radiodata", HERE + "Apart", ("radiodata",)),
    Row("pandas", "pandas, CSV", HERE + "Csv", ("pandas",), note="tables alone"),
    Row("parquet", "pandas, Parquet", HERE + "Parquet", ("pandas", "pyarrow"), note="tables alone"),
)


@dataclass(frozen=True)
class Crowds:
    """Groups of people of several sizes; what is made of one is kept with it."""

    root: Path
    counts: tuple[int, ...]

    def of(self, count: int) -> People:
        """Give a group."""
        return People(self.root, count)

    @property
    def stores(self) -> Path:
        """Where stores lie, that are named by their group."""
        return self.root / "crowds"

    def make(self) -> None:
        """Write the tables of all."""
        for count in self.counts:
            self.of(count).make()

    def describe(self) -> dict[str, Any]:
        size = sum(path.stat().st_size for n in self.counts for path in self.of(n).files)
        told = f"cohorts of {', '.join(f'{n:,}' for n in self.counts)} subjects with a CT and a PET each"
        return {"counts": list(self.counts), "source": ".csv", "source_bytes": size, "what": told}


def data(folder: Path, parameters: Parameters) -> Crowds:
    return Crowds(folder, parameters.counts)


def cases(parameters: Parameters, row: Row) -> list[dict[str, Any]]:
    """Return what each process measures; `crop` is the number of volumes."""
    kinds = (FILTER, BATCH, WORKERS) if row.family == "radiodata" else (FILTER,)
    return [{"case": f"{kind}, {n:,}", "kind": kind, "crop": n} for kind in kinds for n in parameters.counts]


def measure(
    contender: Tables, crowds: Crowds, folder: Path, parameters: Parameters, row: Row, case: dict[str, Any]
) -> dict[str, Any]:
    """Time one case in a process of its own, for a process opens a cohort for the first time but once."""
    touch(folder)
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        return pool.submit(_measure, contender, crowds, folder, parameters, case).result()


def _measure(
    contender: Tables, crowds: Crowds, folder: Path, parameters: Parameters, case: dict[str, Any]
) -> dict[str, Any]:
    contender.import_all()
    if case["kind"] == FILTER:
        before = memory_bytes()
        tick = time.perf_counter()
        ids = contender.volumes(contender.open(folder))
        ms = 1e3 * (time.perf_counter() - tick)
        truth = crowds.of(case["crop"]).truth["filter volumes"]
        if sorted(ids) != truth:
            raise AssertionError(f"the filter gives {len(ids)} ids, and numpy {len(truth)}, or others")
        return {PRIMARY: [ms], "memory_bytes": [_less(memory_bytes(), before)]}
    return _first_batch(folder, parameters, case)


def _first_batch(folder: Path, parameters: Parameters, case: dict[str, Any]) -> dict[str, Any]:
    import torch

    from radiodata import Cohort, PatchDataset, PatchLoader, Uniform

    workers = 2 if case["kind"] == WORKERS else 0
    before = memory_bytes()
    tick = time.perf_counter()
    dataset = PatchDataset(
        Cohort(folder / "cohort"),
        {"image": "CT"},
        patch_size=2,
        policy=Uniform(),
        crops_per_volume=parameters.crops_per_volume,
    )
    loader = PatchLoader(dataset, batch_size=parameters.batch, num_workers=workers)
    batches = iter(loader)
    batch = next(batches)
    ms = 1e3 * (time.perf_counter() - tick)
    wanted = (parameters.batch, 1, 2, 2, 2)
    if tuple(batch["image"].shape) != wanted or not (batch["image"] == torch.arange(8).reshape(2, 2, 2)).all():
        raise AssertionError(f"the batch {tuple(batch['image'].shape)} does not hold the voxels that were written")
    if len(loader) * parameters.batch != case["crop"] * parameters.crops_per_volume:
        raise AssertionError(f"an epoch is of {len(loader)} batches")
    found = {PRIMARY: [ms], "memory_bytes": [_less(memory_bytes(), before)]}
    return {**found, "worker_bytes": [_worker_bytes()]} if workers else found


def _worker_bytes() -> int | None:
    """What the largest child holds alone, above a process that has imported torch."""
    try:
        import psutil
    except ImportError:
        return None
    held = [int(child.memory_full_info().uss) for child in psutil.Process().children(recursive=True)]
    script = "import torch, psutil; print(psutil.Process().memory_full_info().uss)"
    bare = int(subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout)
    return max(max(held) - bare, 0)


def _less(after: int | None, before: int | None) -> int | None:
    return None if after is None or before is None else after - before


def describe(parameters: Parameters) -> dict[str, Any]:
    """Return the parameters as they go into the JSON."""
    return asdict(parameters)
