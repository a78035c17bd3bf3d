"""Damaged NIfTI files: a clear error, or the right voxels; in little memory and time, whatever the header claims."""

from __future__ import annotations

import gzip
import random
import time
import tracemalloc
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from conftest import ras_affine
from effort import tries

from radiodata.ingest import NiftiError, ingest_niftis
from radiodata.ingest.nifti import load, read_header
from radiodata.store import Cohort, verify

MANY = tries(300, 1000, 2000)
SHAPE = (9, 8, 7)
LIES = {
    "dim": [
        [3, 0, 8, 7, 1, 1, 1, 1],
        [3, 32767, 32767, 32767, 1, 1, 1, 1],
        [7, 2, 2, 2, 2, 2, 2, 2],
        [-1] * 8,
        [0] * 8,
    ],
    "datatype": [0, 1, 2, 16, 32, 64, 128, 1536, 2048, 9999],
    "bitpix": [0, 3, 64],
    "vox_offset": [0, 1, 351, 353, 1e9, -5, float("nan")],
    "scl_slope": [0, float("nan"), float("inf"), -2.5, 1e30],
    "scl_inter": [float("nan"), -1e30],
    "sform_code": [0, 3, 99],
    "srow_x": [[0] * 4, [float("nan")] * 4],
    "pixdim": [[0] * 8, [float("nan")] * 8, [-1, -1, 1, 1, 1, 1, 1, 1]],
    "magic": [b"n+1", b"ni1", b"xxx", b""],
    "xyzt_units": [0, 1, 3, 255],
    "sizeof_hdr": [348, 540, 0],
}


def whole(number: int) -> tuple[bytes, np.ndarray]:
    """A NIfTI file, uncompressed, and its voxels in RAS+."""
    rng = np.random.default_rng(number)
    voxels = rng.integers(-900, 900, SHAPE).astype(rng.choice([np.int16, np.float32, np.int32]))
    return bytes(nib.Nifti1Image(voxels, ras_affine(0), dtype=voxels.dtype).to_bytes()), voxels


def damaged(draw: random.Random, raw: bytes) -> tuple[bytes, str]:
    """A file that is cut short, has bits flipped, or has a header that lies; compressed or not."""
    kind = draw.choice(["cut", "bits", "lie", "gz cut", "gz bits", "gz lie"])
    if kind.endswith("lie"):
        header = nib.Nifti1Header(raw[:348], check=False)
        for name in draw.sample(sorted(LIES), draw.randint(1, 2)):
            header[name] = draw.choice(LIES[name])
        raw = header.binaryblock + raw[348:]
    data = gzip.compress(raw, 1) if kind.startswith("gz") else raw
    if kind.endswith("lie"):
        return data, kind
    mutable = bytearray(data[: draw.randrange(len(data))] if kind.endswith("cut") else data)
    for _ in range(draw.randint(1, 6) if kind.endswith("bits") else 0):
        mutable[draw.randrange(len(mutable))] ^= 1 << draw.randrange(8)
    return bytes(mutable), kind


@pytest.mark.filterwarnings("ignore")
def test_damage_gives_an_error_or_voxels(tmp_path: Path) -> None:
    draw = random.Random(11)
    seen = {"refused": 0, "read": 0}
    for number in range(MANY):
        raw, voxels = whole(number)
        data, kind = damaged(draw, raw)
        path = tmp_path / ("a.nii.gz" if kind.startswith("gz") else "a.nii")
        path.write_bytes(data)
        tracemalloc.start()
        began = time.monotonic()
        try:
            read_header(path)
            found = load(path)
        except NiftiError as error:
            assert len(str(error)) > 10  # noqa: PT017
            seen["refused"] += 1
        else:
            seen["read"] += 1
            assert np.isfinite(found.affine).all()
            if kind in ("gz cut", "gz bits"):  # else the CRC would not have it
                np.testing.assert_array_equal(found.voxels[0], voxels)
        finally:
            peak = tracemalloc.get_traced_memory()[1]
            tracemalloc.stop()
        assert peak < 64 << 20, (number, kind)
        assert time.monotonic() - began < 30, (number, kind)
    assert min(seen.values()) > MANY // 10, seen


@pytest.mark.slow
def test_a_bomb_is_not_inflated(tmp_path: Path) -> None:
    raw, _ = whole(0)
    with gzip.open(tmp_path / "bomb.nii.gz", "wb", compresslevel=9) as file:
        file.write(raw)
        for _ in range(1024):
            file.write(bytes(1 << 20))
    huge = nib.Nifti1Header(raw[:348])
    huge["dim"] = [3, 32767, 32767, 32767, 1, 1, 1, 1]
    (tmp_path / "lie.nii.gz").write_bytes(gzip.compress(huge.binaryblock + raw[348:]))
    tracemalloc.start()
    with pytest.raises(NiftiError, match="inflates to far more"):
        load(tmp_path / "bomb.nii.gz")
    with pytest.raises(NiftiError, match="is truncated"):
        load(tmp_path / "lie.nii.gz")
    assert tracemalloc.get_traced_memory()[1] < 64 << 20
    tracemalloc.stop()


@pytest.mark.filterwarnings("ignore")
def test_of_many_damaged_files_the_whole_ones_are_in_the_store(tmp_path: Path) -> None:
    draw, good = random.Random(3), set()
    for number in range(60):
        raw, _ = whole(number)
        data, kind = damaged(draw, raw)
        path = tmp_path / "in" / f"s{number:02d}{'.nii.gz' if kind.startswith('gz') else '.nii'}"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(data)
        try:
            load(path)
            good.add(path.name.split(".")[0])
        except NiftiError:
            continue
    report = ingest_niftis(str(tmp_path / "c"), {"MR": tmp_path / "in"}, on_error="skip", tiling=8)
    cohort = Cohort(tmp_path / "c")
    assert set(report.added) == set(cohort.subjects) == good
    assert len(report.refused) == 60 - len(good)
    assert not verify(cohort).problems
