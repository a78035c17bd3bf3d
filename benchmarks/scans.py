"""CT phantoms as people have them: a .nii.gz file each, and a folder of DICOM slices each."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from benchmarks.phantom import SPACING_MM, Phantoms

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

INTERCEPT = -1024


@dataclass(frozen=True)
class Scans:
    """``count`` phantoms of one shape."""

    root: Path
    shape: tuple[int, int, int]
    count: int

    @cached_property
    def phantoms(self) -> Phantoms:
        return Phantoms(self.root, self.shape, self.count)

    @property
    def niftis(self) -> list[Path]:
        return self.phantoms.niftis

    @property
    def series(self) -> list[Path]:
        """Folders of one DICOM series each."""
        return [self.phantoms.folder / "dicom" / f"sub-{i:03d}" for i in range(self.count)]

    @property
    def stores(self) -> Path:
        return self.phantoms.stores

    def truth(self, volume: int) -> NDArray[np.int16]:
        return self.phantoms.truth(volume)

    def describe(self) -> dict[str, Any]:
        told = self.phantoms.describe()
        return {**told, "what": f"{told['what']}; DICOM {self.count} x {self.shape[2]} slices, explicit little endian"}

    def make(self) -> None:
        """Write what is not there yet."""
        self.phantoms.make()
        for number, folder in enumerate(self.series):
            if len(list(folder.glob("*.dcm"))) != self.shape[2]:
                _write(self.truth(number), number, folder)


def _write(voxels: NDArray[np.int16], number: int, folder: Path) -> None:
    from pydicom.dataset import FileDataset, FileMetaDataset
    from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian

    folder.mkdir(parents=True, exist_ok=True)
    for z in range(voxels.shape[2]):
        meta = FileMetaDataset()
        meta.MediaStorageSOPClassUID = CTImageStorage
        meta.MediaStorageSOPInstanceUID = f"1.2.826.0.1.{number + 1}.{z + 1}"
        meta.TransferSyntaxUID = ExplicitVRLittleEndian
        data = FileDataset(None, {}, file_meta=meta, preamble=b"\0" * 128)  # type: ignore[arg-type]
        data.SOPClassUID, data.SOPInstanceUID = CTImageStorage, meta.MediaStorageSOPInstanceUID
        data.StudyInstanceUID, data.SeriesInstanceUID = f"1.2.826.1.{number + 1}", f"1.2.826.2.{number + 1}"
        data.Modality, data.PatientID, data.SeriesNumber, data.InstanceNumber = "CT", f"sub-{number:03d}", 1, z + 1
        data.PatientName, data.StudyDate, data.SeriesDescription = f"sub-{number:03d}", "20200101", "thorax"
        data.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
        data.ImagePositionPatient = [0, 0, z * SPACING_MM[2]]
        data.PixelSpacing, data.SliceThickness = [SPACING_MM[1], SPACING_MM[0]], SPACING_MM[2]
        data.Rows, data.Columns = voxels.shape[1], voxels.shape[0]
        data.SamplesPerPixel, data.PhotometricInterpretation = 1, "MONOCHROME2"
        data.BitsAllocated = data.BitsStored = 16
        data.HighBit, data.PixelRepresentation = 15, 0
        data.RescaleSlope, data.RescaleIntercept = 1, INTERCEPT
        plane = (voxels[:, :, z].T.astype(np.int32) - INTERCEPT).astype(np.uint16)
        data.PixelData = np.ascontiguousarray(plane).tobytes()
        data["PixelData"].VR = "OW"
        data.save_as(folder / f"{z:04d}.dcm", enforce_file_format=True)
