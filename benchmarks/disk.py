"""Benchmark ``disk``: bytes on disk, of the .nii.gz; and CPU time to write and to read whole volumes.

The scans are those of others that lie beside the checkout (``$RADIODATA_SHARED``, else ``../shared/data``; without them
only the phantom). Each contender is given the voxels as radiodata stores them, in the smallest dtype that holds the
physical values, and reads back what it has written.
"""

from __future__ import annotations

import csv
import os
import tempfile
import time
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from benchmarks.machine import ROOT
from benchmarks.phantom import Phantoms
from benchmarks.registry import Row

if TYPE_CHECKING:
    from benchmarks.contenders.packing import Packing

SUMMARY = "bytes on disk, of the .nii.gz"
PRIMARY, UNIT, HIGHER_IS_BETTER = "share", "of the .nii.gz", False
PEERS = (".nii.gz", "blosc2")
HERE = "benchmarks.contenders.packing:"
LARGE = "images, 32 voxels or more along every axis and 64 along one"


@dataclass(frozen=True)
class Parameters:
    shape: tuple[int, int, int] = (512, 512, 300)
    crop: int = 96
    most: int = 1_000  # scans of a group
    limit_s: float = 900.0
    repeats: int = 1


FULL = Parameters()
QUICK = Parameters(shape=(128, 128, 96), crop=32, most=1, limit_s=120.0)


def _rows() -> list[Row]:
    def ours(tile: int, *filters: str) -> Row:
        name = f"radiodata (tile {tile}{''.join(', ' + name for name in filters)})"
        return Row("radiodata", name, HERE + "Radiodata", ("radiodata",), {"tile": tile, "filters": filters or None})

    shuffled = [(32, -1), (32, 3), (48, 3), (64, 3)]
    others = [ours(48), ours(64)]
    others += [ours(tile, "byteshuffle", f"zstd:{level}") for tile, level in shuffled]
    others += [ours(32, "bitshuffle", "lz4"), ours(32, "zstd:3")]
    return [
        ours(32),
        ours(32, "byteshuffle", "lz4"),
        *(replace(row, quick=False) for row in others),
        Row("blosc2", "blosc2 (nnU-Net 2.7)", HERE + "Blosc2", ("blosc2",), {"since": "2.7"}),
        Row("blosc2", "blosc2 (nnU-Net 2.8)", HERE + "Blosc2", ("blosc2",), {"since": "2.8"}),
        Row("zarr", "zarr v3 (chunk 64)", HERE + "ZarrArray", ("zarr",)),
        Row(".nii.gz", ".nii.gz", HERE + "NiftiGz", ("nibabel",)),
        Row("raw", ".npy", HERE + "Npy", note="no compression"),
    ]


ROWS = tuple(_rows())


@dataclass(frozen=True)
class Files:
    """Real .nii.gz files by what they are, and one phantom."""

    root: Path
    shape: tuple[int, int, int]
    most: int

    @cached_property
    def groups(self) -> dict[str, list[Path]]:
        """Paths, by group."""
        real = self._real()
        images = [*real["CT"], *real["MR"], *real["PET"]]
        large = [path for path in images if _is_large(path)]
        found = {**real, LARGE: large, "phantom": self._phantoms.niftis}
        return {name: paths[: self.most] for name, paths in found.items() if paths}

    @property
    def _phantoms(self) -> Phantoms:
        return Phantoms(self.root, self.shape, 1)

    def _real(self) -> dict[str, list[Path]]:
        folder = Path(os.environ.get("RADIODATA_SHARED") or ROOT.parent / "shared" / "data")
        found: dict[str, list[Path]] = {"CT": [], "MR": [], "PET": [], "labels": []}
        if not (folder / "MANIFEST.csv").is_file():
            return found
        with (folder / "MANIFEST.csv").open(newline="") as file:
            for line in csv.DictReader(file):
                words = line["modality"].split()
                group = "labels" if words and words[0] == "SEG" else words[0] if words else ""
                if line["path"].endswith(".nii.gz") and line["kind"] in ("nifti", "label", "reference"):
                    found.setdefault(group, []).append(folder / line["path"])
        for group, name in (("MR", "images"), ("labels", "labels")):
            found[group] += sorted((folder / "train" / "hippocampus" / name).glob("*.nii.gz"))
        return {name: found[name] for name in ("CT", "MR", "PET", "labels")}

    @property
    def stores(self) -> Path:
        """Nothing is kept."""
        return self.root / "disk"

    def make(self) -> None:
        """Write the phantom."""
        self._phantoms.make()

    def describe(self) -> dict[str, Any]:
        sizes = {name: [len(paths), sum(p.stat().st_size for p in paths)] for name, paths in self.groups.items()}
        told = ", ".join(f"{count} {name} ({size / 1e6:.1f} MB)" for name, (count, size) in sizes.items())
        return {"groups": sizes, "source": ".nii.gz", "source_bytes": sum(s for _, s in sizes.values()), "what": told}


def _is_large(path: Path) -> bool:
    from radiodata.ingest.nifti import read_header

    shape = read_header(path).shape
    return min(shape) >= 32 and max(shape) >= 64


def data(folder: Path, parameters: Parameters) -> Files:
    return Files(folder, parameters.shape, parameters.most)


def cases(parameters: Parameters, row: Row) -> list[dict[str, Any]]:
    """Return a case for each group of scans."""
    names = Files(Path(tempfile.gettempdir()), parameters.shape, parameters.most).groups
    return [{"case": name, "kind": name, "crop": parameters.crop} for name in names]


def measure(
    contender: Packing, files: Files, folder: Path, parameters: Parameters, row: Row, case: dict[str, Any]
) -> dict[str, Any]:
    """Write and read the scans of a group; return bytes of the .nii.gz: of all, and of the worst one."""
    from radiodata.ingest.nifti import load

    sizes, source, spent, raw, labels = [], [], [0.0, 0.0], 0, case["kind"] == "labels"
    for number, path in enumerate([files.groups[case["kind"]][0], *files.groups[case["kind"]]]):
        voxels = load(path, label=labels).voxels
        with tempfile.TemporaryDirectory() as scratch:
            begun = time.process_time()
            contender.write(voxels, path, Path(scratch), case["crop"], "label" if labels else "image")
            written = time.process_time()
            back = contender.read(Path(scratch), voxels)
            read = time.process_time()
            if not np.array_equal(back, voxels, equal_nan=voxels.dtype.kind == "f"):
                raise AssertionError(f"{path.name} reads back as other voxels")
            if not number:
                continue  # once for what is loaded and compiled once
            spent = [spent[0] + written - begun, spent[1] + read - written]
            sizes.append(contender.size(Path(scratch)))
        source.append(path.stat().st_size)
        raw += voxels.nbytes
    return {
        PRIMARY: [sum(sizes) / sum(source)],
        "worst_share": [max(size / of for size, of in zip(sizes, source, strict=True))],
        "write_ms_per_mb": [1e9 * spent[0] / raw],
        "read_ms_per_mb": [1e9 * spent[1] / raw],
    }


def describe(parameters: Parameters) -> dict[str, Any]:
    """Return the parameters as they go into the JSON."""
    return asdict(parameters)
