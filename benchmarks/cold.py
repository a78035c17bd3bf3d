"""Benchmark ``cold``: crops of files that are not in the page cache; ms, and MB that came from the disk, per crop.

Before each crop, and before the epoch, Linux is told to let go of the pages of the files. For a crop the volume is open
by then, and its corner was read, so that what is kept of a volume is kept; an epoch opens everything itself. Bytes are
those that the process had Linux fetch, what it reads ahead among them. The disk below may have a cache of its own:
read the bytes first.
"""

from __future__ import annotations

import importlib
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from benchmarks.contenders.base import LoaderSpec
from benchmarks.loader import HERE, NNUNET, OURS, RADIOBJECT, data, describe
from benchmarks.probes import device_bytes, evict
from benchmarks.registry import READERS, Row

if TYPE_CHECKING:
    from pathlib import Path

    from benchmarks.contenders.base import Box, Contender
    from benchmarks.phantom import Phantoms

__all__ = ["cases", "data", "describe", "measure"]

SUMMARY = "crops of files that are not in the page cache: ms and MB from the disk per crop"
PRIMARY, UNIT, HIGHER_IS_BETTER = "ms_per_crop", "ms", False
PEERS = (*READERS, "MONAI")
CACHED = "MONAI CacheDataset"


@dataclass(frozen=True)
class Parameters:
    shape: tuple[int, int, int] = (512, 512, 300)
    volumes: int = 4
    crop: int = 96
    batch: int = 4
    crops_per_volume: int = 32
    reads: int = 24
    least_reads: int = 2
    cap_s: float = 30.0  # per row, case and repeat
    limit_s: float = 400.0
    repeats: int = 3
    seed: int = 0


FULL = Parameters()
QUICK = Parameters(shape=(128, 128, 96), volumes=2, crop=32, crops_per_volume=8, reads=6, cap_s=2.0, repeats=1)

ROWS = (
    Row("radiodata", "radiodata (tile 32, unit 8)", OURS, ("radiodata",), {"tile": 32, "unit": 8}),
    Row("radiodata", "radiodata (tile 64, unit 8)", OURS, ("radiodata",), {"tile": 64, "unit": 8}, quick=False),
    Row("RadiObject", "RadiObject (isotropic 64)", RADIOBJECT, ("radiobject",), {"tile": 64}),
    Row("blosc2", "blosc2 (nnU-Net 2.7)", NNUNET, ("blosc2",), {"since": "2.7"}, quick=False),
    Row("blosc2", "blosc2 (nnU-Net 2.8)", NNUNET, ("blosc2",), {"since": "2.8"}),
    Row("zarr", "zarr v3 (chunk 64)", HERE + "zarr:Zarr", ("zarr",)),
    Row("memmap", "memmap", HERE + "memmap:Memmap"),
    Row("TorchIO", "TorchIO Queue", HERE + "torchio:TorchIO", ("torchio",), {}, 0, 8, "8 crops per volume read"),
    Row("MONAI", "MONAI Dataset", HERE + "monai:Monai", ("monai",), {}, 0, 2, "one volume read per crop"),
    Row("MONAI", CACHED, HERE + "monai:Monai", ("monai",), {"cache": True}, note="volumes in memory from then on"),
)


def cases(parameters: Parameters, row: Row) -> list[dict[str, Any]]:
    """Return one crop of an open volume, and the first epoch of a process; the latter alone of what keeps volumes."""
    crop = {"crop": parameters.crop, "crop_bytes": parameters.crop**3 * 2}
    one = {"case": f"one {parameters.crop}-cube", "kind": "crop", **crop}
    epoch = {"case": f"first epoch, batch {parameters.batch}", "kind": "epoch", "batch": parameters.batch, **crop}
    return [epoch] if row.name == CACHED else [one, epoch]


def measure(
    contender: Contender,
    phantoms: Phantoms,
    folder: Path,
    parameters: Parameters,
    row: Row,
    case: dict[str, Any],
) -> dict[str, Any]:
    """Measure one case; return {"ms_per_crop": [...], "device_mb": [...], ...}.

    Raises
    ------
    RuntimeError
        When nothing came from the disk: the page cache cannot be emptied here.
    """
    importlib.import_module("torch.utils.data")  # in no timing, as the contender's own imports
    files = [folder] if contender.store(case["crop"]) else phantoms.niftis
    act = _crops if case["kind"] == "crop" else _epoch
    result = act(contender, phantoms, folder, parameters, row, files)
    if not any(result["device_mb"]):
        raise RuntimeError("nothing was read from the disk: pages cannot be let go of here (files kept in memory?)")
    return result


def _crops(
    contender: Contender, phantoms: Phantoms, folder: Path, p: Parameters, row: Row, files: list[Path]
) -> dict[str, Any]:
    truth, times, megabytes = np.load(phantoms.truths[0], mmap_mode="r"), [], []
    boxes, begin = _boxes(p), time.perf_counter()
    for box in boxes:
        if len(times) >= p.least_reads and time.perf_counter() - begin > p.cap_s:
            break
        read = contender.reader(phantoms, folder, p.crop)  # anew: what is mapped into memory cannot be let go of
        read((slice(0, p.crop),) * 3)
        for path in files:
            evict(path)
        before, tick = device_bytes(), time.perf_counter()
        crop = read(box)
        times.append(1000 * (time.perf_counter() - tick))
        megabytes.append((device_bytes() - before) / 1e6)
        if not np.array_equal(crop, truth[box]):
            raise AssertionError(f"crop {box} differs from the phantom's voxels")
    return {PRIMARY: times, "device_mb": megabytes, "dtype": str(crop.dtype), "capped": len(times) < len(boxes)}


def _boxes(p: Parameters) -> list[Box]:
    """Boxes clear of the corner that is read before them."""
    rng = np.random.default_rng(p.seed)
    low = (p.crop, 0, 0)  # along x
    starts = rng.integers(low, np.array(p.shape) - p.crop + 1, size=(p.reads, 3)).tolist()
    return [(slice(x, x + p.crop), slice(y, y + p.crop), slice(z, z + p.crop)) for x, y, z in starts]


def _epoch(
    contender: Contender, phantoms: Phantoms, folder: Path, p: Parameters, row: Row, files: list[Path]
) -> dict[str, Any]:
    spec = LoaderSpec(p.crop, p.batch, 0, row.crops_per_volume or p.crops_per_volume, p.seed)
    for path in files:
        evict(path)
    before, begin, crops, first, capped = device_bytes(), time.perf_counter(), 0, 0.0, False
    for batch in contender.loader(phantoms, folder, spec):
        first = first or time.perf_counter() - begin
        crops += len(contender.image(batch))
        if capped := time.perf_counter() - begin > p.cap_s:
            break
    spent, fetched = time.perf_counter() - begin, device_bytes() - before
    return {
        PRIMARY: [1000 * spent / crops],
        "first_batch_s": [first],
        "device_mb": [fetched / 1e6 / crops],
        "capped": capped,
    }
