"""Contenders of the benchmark ``ingest``: each makes what it makes of files, and gives a volume of it back."""

from __future__ import annotations

import subprocess
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import numpy as np

from benchmarks.contenders.base import Contender

if TYPE_CHECKING:
    from pathlib import Path

    from benchmarks.scans import Scans

TILE = 64


class Radiodata(Contender):
    """Tiles of 64 voxels a side, default settings."""

    requires = ("radiodata", "radiodata.ingest", "radiodata.ingest.dicom")

    def __init__(self, executor: str) -> None:
        self.executor = executor

    def ingest(self, kind: str, scans: Scans, folder: Path, workers: int) -> None:
        from radiodata.ingest import ingest_niftis
        from radiodata.ingest.dicom import Privacy, ingest_dicom

        options: dict[str, Any] = {"tiling": TILE, "workers": workers, "executor": self.executor}
        if kind == "NIfTI":
            ingest_niftis(str(folder / "cohort"), {"CT": scans.niftis}, **options)
        else:
            privacy = Privacy(bytes(32), identify=True)
            ingest_dicom(str(folder / "cohort"), scans.series, privacy=privacy, **options)

    def back(self, kind: str, folder: Path, volume: int) -> Any:
        from radiodata import Cohort

        voxels = Cohort(str(folder / "cohort")).CT.of_subject(f"sub-{volume:03d}").to_numpy()
        return voxels if kind == "NIfTI" else voxels[::-1, ::-1]  # DICOM's x and y run to the left and to the back


class RadiObject(Contender):
    """Its ISOTROPIC preset, which has tiles of 64 voxels a side."""

    requires = ("radiobject",)

    def ingest(self, kind: str, scans: Scans, folder: Path, workers: int) -> None:
        from radiobject import VolumeCollection, WriteConfig, configure
        from radiobject.ctx import SliceOrientation, TileConfig

        tile = TileConfig(orientation=SliceOrientation.ISOTROPIC, x=TILE, y=TILE, z=TILE)
        configure(write=WriteConfig(tile=tile))
        niftis = [(path, f"sub-{index:03d}") for index, path in enumerate(scans.niftis)]
        VolumeCollection.from_niftis(str(folder / "CT"), niftis, name="CT")

    def back(self, kind: str, folder: Path, volume: int) -> Any:
        from radiobject import VolumeCollection

        return np.asarray(VolumeCollection(str(folder / "CT")).iloc[volume][:, :, :])


class Limit(Contender):
    """Inflate with isal, shuffle and compress each tile with zstd -1, write them to one file: nothing else."""

    requires = ("isal", "zstandard")

    def ingest(self, kind: str, scans: Scans, folder: Path, workers: int) -> None:
        def one(path: Path) -> None:
            import zstandard
            from isal import igzip

            raw = igzip.decompress(path.read_bytes())
            cube = np.frombuffer(raw, np.int16, offset=352).reshape(scans.shape, order="F")
            coder = zstandard.ZstdCompressor(level=-1)
            with (folder / path.stem).open("wb") as file:
                for x, y, z in np.ndindex(*(-(-n // TILE) for n in scans.shape)):
                    tile = cube[x * TILE : (x + 1) * TILE, y * TILE : (y + 1) * TILE, z * TILE : (z + 1) * TILE]
                    flat = np.ascontiguousarray(tile).view(np.uint8).reshape(-1, 2)
                    file.write(coder.compress(np.ascontiguousarray(flat.T).data))

        with ThreadPoolExecutor(workers) as pool:
            list(pool.map(one, scans.niftis))

    def back(self, kind: str, folder: Path, volume: int) -> Any:
        return None


class Dcm2niix(Contender):
    """dcm2niix to .nii.gz, then nibabel to an array in memory; as many at once as there are workers."""

    requires = ("dcm2niix", "nibabel")

    def ingest(self, kind: str, scans: Scans, folder: Path, workers: int) -> None:
        import dcm2niix
        import nibabel as nib

        def one(series: Path) -> None:
            command = [dcm2niix.bin, "-z", "y", "-b", "n", "-f", series.name, "-o", str(folder), str(series)]
            subprocess.run(command, check=True, capture_output=True)
            np.asanyarray(nib.load(folder / f"{series.name}.nii.gz").dataobj)

        with ThreadPoolExecutor(workers) as pool:
            list(pool.map(one, scans.series))

    def back(self, kind: str, folder: Path, volume: int) -> Any:
        import nibabel as nib

        image = nib.as_closest_canonical(nib.load(folder / f"sub-{volume:03d}.nii.gz"))
        return np.asanyarray(image.dataobj)[::-1, ::-1]
