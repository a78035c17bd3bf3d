"""Benchmark ``ingest``: from files to a store that can be read in part; seconds a volume, and memory.

NIfTI: RadiObject is the peer, and inflating the file and compressing its voxels again, tile by tile, is the limit.
DICOM: dcm2niix and nibabel are the peers, which make one array in memory of one .nii.gz file, and no store.
Each contender is given two workers, and what it has made is read back and compared with the truth.
"""

from __future__ import annotations

import shutil
import threading
import time
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from benchmarks.probes import memory_bytes, touch
from benchmarks.registry import Row
from benchmarks.scans import Scans

if TYPE_CHECKING:
    from pathlib import Path

SUMMARY = "from files to a store; s a volume"
PRIMARY, UNIT, HIGHER_IS_BETTER = "seconds", "s", False
PEERS = ("RadiObject", "limit", "dcm2niix")
HERE = "benchmarks.contenders.ingesting:"


@dataclass(frozen=True)
class Parameters:
    shape: tuple[int, int, int] = (512, 512, 200)
    volumes: int = 8
    workers: int = 2
    limit_s: float = 900.0
    repeats: int = 3


FULL = Parameters()
QUICK = Parameters(shape=(128, 128, 40), volumes=2, limit_s=200.0, repeats=1)

ROWS = (
    Row("radiodata", "radiodata, threads", HERE + "Radiodata", ("radiodata", "pydicom"), {"executor": "threads"}),
    Row("radiodata", "radiodata, processes", HERE + "Radiodata", ("radiodata", "pydicom"), {"executor": "processes"}),
    Row("RadiObject", "RadiObject", HERE + "RadiObject", ("radiobject",)),
    Row(
        "limit",
        "inflate, compress tiles",
        HERE + "Limit",
        ("isal", "zstandard"),
        note="the limit: no hash, no statistics",
    ),
    Row(
        "dcm2niix", "dcm2niix, nibabel", HERE + "Dcm2niix", ("dcm2niix", "nibabel"), note="an array in memory, no store"
    ),
)


def data(folder: Path, parameters: Parameters) -> Scans:
    return Scans(folder, parameters.shape, parameters.volumes)


def cases(parameters: Parameters, row: Row) -> list[dict[str, Any]]:
    """Return what each process of this benchmark measures."""
    kinds = {"radiodata": ("NIfTI", "DICOM"), "dcm2niix": ("DICOM",)}.get(row.family, ("NIfTI",))
    return [{"case": kind, "kind": kind, "crop": 0} for kind in kinds]


def measure(
    contender: Any, scans: Scans, folder: Path, parameters: Parameters, row: Row, case: dict[str, Any]
) -> dict[str, Any]:
    """Ingest all volumes once; return seconds a volume and the most memory, and compare what was made."""
    kind = case["kind"]
    for path in scans.niftis if kind == "NIfTI" else scans.series:
        touch(path)
    scratch = scans.stores / f"ingest-{row.name.replace(' ', '-').replace(',', '')}-{kind}"
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir(parents=True)
    try:
        with _Peak() as peak:
            tick = time.perf_counter()
            contender.ingest(kind, scans, scratch, parameters.workers)
            seconds = time.perf_counter() - tick
        for volume in range(scans.count):
            found = contender.back(kind, scratch, volume)
            if found is not None and not np.array_equal(found, scans.truth(volume)):
                raise AssertionError(f"{row.name} made another volume {volume} of its {kind} files")
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return {PRIMARY: [seconds / scans.count], "memory_bytes": [peak.most]}


class _Peak:
    """Most memory that this process and its children hold, looked at ten times a second."""

    def __enter__(self) -> _Peak:
        self.most, self._end = memory_bytes() or 0, threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()
        return self

    def _watch(self) -> None:
        while not self._end.wait(0.1):
            self.most = max(self.most, memory_bytes() or 0)

    def __exit__(self, *error: object) -> None:
        self._end.set()
        self._thread.join()


def describe(parameters: Parameters) -> dict[str, Any]:
    """Return the parameters as they go into the JSON."""
    return asdict(parameters)
