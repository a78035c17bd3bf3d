"""DICOM series made for tests: any geometry, gaps, copies, tilt, slopes by slice, several stacks, transfer syntaxes."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.uid import (
    UID,
    CTImageStorage,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    RLELossless,
)

SYNTAXES: dict[str, UID] = {
    "explicit": ExplicitVRLittleEndian,
    "implicit": ImplicitVRLittleEndian,
    "big": ExplicitVRBigEndian,
    "deflated": DeflatedExplicitVRLittleEndian,
    "rle": RLELossless,
}


@dataclass
class Made:
    """What a series should come to: stored values ``(z, row, column)``, scales by slice, and the affine in RAS+."""

    voxels: np.ndarray
    affine: np.ndarray
    scales: list[tuple[float, float]]
    files: list[Path] = field(default_factory=list)

    @property
    def values(self) -> np.ndarray:
        """``(x, y, z)``, physical."""
        scaled = [v * np.float64(s) + i for v, (s, i) in zip(self.voxels, self.scales, strict=True)]
        return np.stack(scaled).transpose(2, 1, 0)


def rotation(rng: np.random.Generator) -> np.ndarray:
    """Any rotation; rows are the directions of columns, rows and slices."""
    q, r = np.linalg.qr(rng.normal(size=(3, 3)))
    q = q * np.sign(np.diag(r))
    return (q if np.linalg.det(q) > 0 else q[:, [1, 0, 2]]).T


def plane(
    voxels: np.ndarray, position: np.ndarray, axes: np.ndarray, spacing: tuple[float, float], **more: Any
) -> Dataset:
    data = Dataset()
    data.SOPClassUID, data.SOPInstanceUID = CTImageStorage, UID(f"1.2.3.{more.pop('number')}.{more.pop('uid', 1)}")
    data.Modality, data.PatientID, data.PatientName = "CT", "P1", "Doe^Jane"
    data.SeriesInstanceUID = more.pop("series", "1.2.3.4")
    data.Rows, data.Columns = voxels.shape
    data.ImagePositionPatient = [float(f"{v:.10g}") for v in position]
    data.ImageOrientationPatient = [float(f"{v:.10g}") for v in axes[:2].ravel()]
    data.PixelSpacing = [float(f"{spacing[1]:.10g}"), float(f"{spacing[0]:.10g}")]
    data.SamplesPerPixel, data.PhotometricInterpretation = 1, "MONOCHROME2"
    data.BitsAllocated, data.BitsStored, data.HighBit = 16, 16, 15
    data.PixelRepresentation = int(voxels.dtype.kind == "i")
    for name, value in more.items():
        setattr(data, name, value)
    return data


def save(data: Dataset, voxels: np.ndarray, path: Path, syntax: str = "explicit") -> Path:
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = data.SOPClassUID, data.SOPInstanceUID
    meta.TransferSyntaxUID = SYNTAXES["explicit" if syntax == "rle" else syntax]
    big = syntax == "big"
    raw = voxels.astype(voxels.dtype.newbyteorder(">" if big else "<")).tobytes()
    coding = {"is_implicit_VR": syntax == "implicit", "is_little_endian": not big}
    file = FileDataset(str(path), data, file_meta=meta, preamble=b"\0" * 128, **coding)
    file.PixelData = raw
    file["PixelData"].VR = "OW"
    if syntax == "rle":
        file.compress(RLELossless, generate_instance_uid=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    file.save_as(path, enforce_file_format=True)
    return path


def series(
    folder: Path,
    *,
    seed: int = 0,
    shape: tuple[int, int, int] = (5, 7, 6),
    signed: bool = True,
    syntax: str = "explicit",
    tilt: float = 0.0,
    step: float = 2.5,
    slopes: bool = False,
    turned: bool = True,
    suffix: str = ".dcm",
    **more: Any,
) -> Made:
    """Write a series of `shape` ``(slices, rows, columns)``, its files in an order of their own.

    Parameters
    ----------
    tilt
        Degrees of the gantry: each slice is shifted along its rows.
    slopes
        Another RescaleSlope and RescaleIntercept in every slice.
    turned
        Any orientation; else axial.
    """
    rng = np.random.default_rng(seed)
    axes = rotation(rng) if turned else np.eye(3)
    spacing, first = (float(rng.uniform(0.3, 3)), float(rng.uniform(0.3, 3))), rng.uniform(-300, 300, 3)
    low, high = (-2000, 3000) if signed else (0, 4096)
    voxels = rng.integers(low, high, shape).astype(np.int16 if signed else np.uint16)
    drift = axes[2] * step + axes[1] * np.tan(np.deg2rad(tilt)) * step
    scales = (
        [(float(rng.integers(1, 200)) / 64, float(rng.integers(-50, 50))) for _ in voxels]
        if slopes
        else [(1.0, -24.0)] * shape[0]
    )
    affine = np.eye(4)
    affine[:3, 0], affine[:3, 1], affine[:3, 2] = axes[0] * spacing[0], axes[1] * spacing[1], drift
    affine[:3, 3] = first
    made = Made(voxels, np.diag([-1.0, -1.0, 1.0, 1.0]) @ affine, scales)
    names = rng.permutation(shape[0])
    for z, (name, slice_) in enumerate(zip(names, voxels, strict=True)):
        scale = {"RescaleSlope": scales[z][0], "RescaleIntercept": scales[z][1], "SliceThickness": step}
        number = {"number": z + 1, "InstanceNumber": int(names[-z - 1]) + 1}
        data = plane(slice_, first + drift * z, axes, spacing, **number, **scale, **more)
        made.files.append(save(data, slice_, folder / f"im{name:03d}{suffix}", syntax))
    return made
