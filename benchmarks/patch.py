"""Benchmark ``patch``: one crop of one volume, random and tile-aligned; milliseconds per read.

TorchIO and MONAI read the .nii.gz anew for each crop: that is what one crop of a volume costs which is not in
memory. Every other contender keeps the volume open between reads.
"""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass
from math import prod
from typing import TYPE_CHECKING, Any

import numpy as np

from benchmarks.phantom import Phantoms
from benchmarks.probes import touch
from benchmarks.registry import READERS, Row

if TYPE_CHECKING:
    from pathlib import Path

    from benchmarks.contenders.base import Box, Contender

SUMMARY = "crops, slices and all of one volume: ms per read"
PRIMARY, UNIT, HIGHER_IS_BETTER = "ms_per_read", "ms", False
PEERS = (*READERS, "nibabel")
HERE = "benchmarks.contenders."
SLICES = {"axial slice": 2, "coronal slice": 1, "sagittal slice": 0}
WHOLE = "whole volume"
GRID = 64  # the grid of the tile-aligned starts; it suits tiles of 32 as well


@dataclass(frozen=True)
class Parameters:
    shape: tuple[int, int, int] = (512, 512, 300)
    volumes: int = 1
    crops: tuple[int, ...] = (32, 64, 96, 128)
    reads: int = 32
    whole: int = 5
    least_reads: int = 2
    cap_s: float = 8.0  # per row, case and repeat; a slow contender does fewer reads
    limit_s: float = 400.0  # a process that takes longer is stopped and its row says so
    repeats: int = 3
    seed: int = 0


FULL = Parameters()
QUICK = Parameters(shape=(128, 128, 96), crops=(32, 64), reads=12, whole=2, cap_s=1.0, limit_s=60.0, repeats=1)

ROWS = (
    Row("radiodata", "radiodata (tile 64)", HERE + "radiodata:Radiodata", ("radiodata",), {"tile": 64}),
    Row("radiodata", "radiodata (tile 32)", HERE + "radiodata:Radiodata", ("radiodata",), {"tile": 32}),
    Row("radiodata", "radiodata (tile 48)", HERE + "radiodata:Radiodata", ("radiodata",), {"tile": 48}, quick=False),
    Row(
        "radiodata",
        "radiodata (axial tiles)",
        HERE + "radiodata:Radiodata",
        ("radiodata",),
        {"tile": "axial"},
        quick=False,
    ),
    Row(
        "radiodata",
        "radiodata (tile 32, no kernel)",
        HERE + "radiodata:Radiodata",
        ("radiodata",),
        {"tile": 32, "compiled": False},
    ),
    Row(
        "radiodata",
        "radiodata (tile 32, TileDB query)",
        HERE + "radiodata:Radiodata",
        ("radiodata",),
        {"tile": 32, "direct": False},
    ),
    Row(
        "radiodata",
        "radiodata (tile 32, zstd:3)",
        HERE + "radiodata:Radiodata",
        ("radiodata",),
        {"tile": 32, "codec": "zstd:3"},
        quick=False,
    ),
    Row(
        "RadiObject",
        "RadiObject (isotropic 64)",
        HERE + "radiobject:RadiObject",
        ("radiobject",),
        {"tile": 64},
    ),
    Row(
        "RadiObject", "RadiObject (tile 32)", HERE + "radiobject:RadiObject", ("radiobject",), {"tile": 32}, quick=False
    ),
    Row("blosc2", "blosc2 (nnU-Net 2.7)", HERE + "nnunet:NnunetBlosc2", ("blosc2",), {"since": "2.7"}, quick=False),
    Row("blosc2", "blosc2 (nnU-Net 2.8)", HERE + "nnunet:NnunetBlosc2", ("blosc2",), {"since": "2.8"}),
    Row("zarr", "zarr v3 (chunk 64)", HERE + "zarr:Zarr", ("zarr",)),
    Row("TorchIO", "TorchIO", HERE + "torchio:TorchIO", ("torchio",), note="reads the .nii.gz for each crop"),
    Row("MONAI", "MONAI", HERE + "monai:Monai", ("monai",), note="reads the .nii.gz for each crop"),
    Row("nibabel", "nibabel", HERE + "nibabel:Nibabel", ("nibabel",), note="reads the .nii.gz for each crop"),
    Row(
        "limit",
        "bare decode (tile 32)",
        HERE + "limit:BareDecode",
        ("radiodata",),
        {"tile": 32},
        note="zstd of its tiles, in memory, one thread: no voxels",
    ),
    Row("memmap", "memmap", HERE + "memmap:Memmap"),
)


def data(folder: Path, parameters: Parameters) -> Phantoms:
    return Phantoms(folder, parameters.shape, parameters.volumes)


def cases(parameters: Parameters, row: Row) -> list[dict[str, Any]]:
    """Return what each process of this benchmark measures: a crop side and a kind of start, a slice, or all of it."""
    cubes = [
        {"case": f"{kind} {crop}", "kind": kind, "crop": crop, "crop_bytes": crop**3 * 2}
        for crop in parameters.crops
        for kind in ("random", "aligned")
    ]
    crop = parameters.crops[-2]  # what formats that are made for a patch are made for
    slices = [
        {"case": kind, "kind": kind, "crop": crop, "crop_bytes": 2 * prod(parameters.shape) // parameters.shape[axis]}
        for kind, axis in SLICES.items()
    ]
    return [*cubes, *slices, {"case": WHOLE, "kind": WHOLE, "crop": crop, "crop_bytes": 2 * prod(parameters.shape)}]


def boxes_of(parameters: Parameters, kind: str, crop: int) -> list[Box]:
    """Return the boxes of a case: the same list for every contender and repeat."""
    everything = tuple(slice(0, n) for n in parameters.shape)
    if kind == WHOLE:
        return [everything] * parameters.whole
    if kind in SLICES:
        axis = SLICES[kind]
        rng = np.random.default_rng([parameters.seed, axis])
        at = rng.integers(0, parameters.shape[axis], parameters.reads).tolist()
        return [(*everything[:axis], slice(n, n + 1), *everything[axis + 1 :]) for n in at]
    return [_box(start, crop) for start in starts(parameters, kind, crop)]


def starts(parameters: Parameters, kind: str, crop: int) -> np.ndarray[Any, np.dtype[np.int64]]:
    """Return the (reads, 3) crop starts of a case: the same list for every contender and repeat."""
    rng = np.random.default_rng([parameters.seed, crop, kind == "aligned"])
    room = np.array(parameters.shape) - crop
    if kind == "aligned":
        return rng.integers(0, room // GRID + 1, size=(parameters.reads, 3)) * GRID
    return rng.integers(0, room + 1, size=(parameters.reads, 3))


def measure(
    contender: Contender,
    phantoms: Phantoms,
    folder: Path,
    parameters: Parameters,
    row: Row,
    case: dict[str, Any],
) -> dict[str, Any]:
    """Read the crops of one case, each compared with the phantom; return {"ms_per_read": [...], ...}."""
    crop, truth = case["crop"], np.load(phantoms.truths[0])
    touch(folder if contender.store(crop) else phantoms.niftis[0])
    read = contender.reader(phantoms, folder, crop)
    times: list[float] = []
    boxes = boxes_of(parameters, case["kind"], crop)
    first = read(boxes[0])  # untimed: opens what is opened once
    begin = time.perf_counter()
    for box in boxes:
        if len(times) >= parameters.least_reads and time.perf_counter() - begin > parameters.cap_s:
            break
        tick = time.perf_counter()
        first = read(box)
        times.append(1000 * (time.perf_counter() - tick))
        if contender.exact:
            _check(first, truth[box], box)
    block = contender.block(parameters.shape, crop)
    decoded = [] if block is None else [_decoded(box, block) * truth.itemsize for box in boxes]
    return {PRIMARY: times, "decoded_bytes": decoded, "dtype": str(first.dtype), "capped": len(times) < len(boxes)}


def _decoded(box: Box, block: tuple[int, int, int]) -> int:
    """Voxels of the blocks that a box touches."""
    return prod((-(-s.stop // n) - s.start // n) * n for s, n in zip(box, block, strict=True))


def _box(start: np.ndarray[Any, np.dtype[np.int64]], crop: int) -> Box:
    x, y, z = (int(s) for s in start)
    return slice(x, x + crop), slice(y, y + crop), slice(z, z + crop)


def _check(got: Any, expected: Any, box: Any) -> None:
    if got.shape != expected.shape or not np.array_equal(got, expected):
        raise AssertionError(f"crop {box} differs from the phantom's voxels: shape {got.shape}, dtype {got.dtype}")


def describe(parameters: Parameters) -> dict[str, Any]:
    """Return the parameters as they go into the JSON."""
    return asdict(parameters)
