"""Damaged DICOM files: a clear error, or voxels; in little memory and time, whatever the header claims."""

from __future__ import annotations

import random
import warnings
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("pydicom", reason="needs radiodata[dicom]")

import dicom_series as dicom
import pydicom
from effort import tries

from radiodata.ingest.dicom import DicomError, load, read_series

MANY = tries(200, 1000, 2000)
LIES = {
    "Rows": [0, 1, 3, 65535],
    "Columns": [0, 1, 6, 65535],
    "NumberOfFrames": [0, 2, 2**31 - 1, -3],
    "BitsAllocated": [1, 8, 12, 32, 64, 0],
    "BitsStored": [0, 1, 40],
    "HighBit": [0, 63],
    "SamplesPerPixel": [0, 3, 200],
    "PixelRepresentation": [1, 2],
    "PhotometricInterpretation": ["RGB", "PALETTE COLOR", "YBR_FULL", "nothing"],
    "RescaleSlope": [0.0, 1e300, -1.0],
    "ImageType": [["ORIGINAL", "PRIMARY", "MOSAIC"]],
    "SliceThickness": [0.0, -1.0],
}


def damaged(draw: random.Random, raw: bytes, path: Path) -> None:
    """Write a file that is cut short, has bits flipped, or has a header that lies."""
    kind = draw.choice(["cut", "bits", "bytes", "lie"])
    if kind == "lie":
        data = pydicom.dcmread(path)
        for name in draw.sample(sorted(LIES), draw.randint(1, 2)):
            setattr(data, name, draw.choice(LIES[name]))
        data.save_as(path)
        return
    mutable = bytearray(raw if kind != "cut" else raw[: draw.randrange(len(raw))])
    for _ in range(draw.randint(1, 6) if kind != "cut" else 0):
        at = draw.randrange(len(mutable))
        mutable[at] = mutable[at] ^ (1 << draw.randrange(8)) if kind == "bits" else draw.randrange(256)
    path.write_bytes(bytes(mutable))


@pytest.mark.filterwarnings("ignore")
def test_damage_gives_an_error_or_voxels(tmp_path: Path) -> None:
    draw = random.Random(7)
    seen = {"refused": 0, "read": 0}
    for number in range(MANY):
        folder = tmp_path / f"{number}"
        syntax = draw.choice(sorted(dicom.SYNTAXES))
        made = dicom.series(folder, seed=number, shape=(2, 4, 5), syntax=syntax)
        whole, path = made.files[0].read_bytes(), made.files[0]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            damaged(draw, whole, path)
            found = read_series(folder, irregular="keep")
            for series in found.series:
                for stack in series.stacks:
                    try:
                        volume = load(stack)
                    except DicomError as error:
                        assert str(error), "an error without a word"  # noqa: PT017
                        seen["refused"] += 1
                        continue
                    assert sorted(volume.voxels.shape[1:]) == sorted(stack.shape[1:])
                    assert volume.voxels.nbytes < 1 << 24
                    assert np.isfinite(volume.affine).all()
                    seen["read"] += 1
            seen["refused"] += len(found.problems)
        for file in folder.iterdir():
            file.unlink()
    assert min(seen.values()) > MANY // 10, seen
