"""Small made-up cohorts on disk, for tests that need one of their own."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np

from radiodata.store import Cohort

SHAPES = [(40, 36, 30), (33, 40, 28), (20, 44, 37), (36, 36, 36), (41, 30, 33), (38, 39, 26)]


def write_subject(folder: Path, number: int, shape: tuple[int, int, int]) -> dict[str, Path]:
    """Write an int16 image whose voxels are all telling, and a label with two classes."""
    rng = np.random.default_rng(number)
    image = rng.integers(-1000, 1500, shape).astype(np.int16)
    label = np.zeros(shape, np.uint8)
    label[4:14, 5:17, 6:15] = 1
    label[15:18, 20:24, 20:25] = 2
    affine = np.diag([1.0, 1.5, 2.0, 1.0])
    affine[:3, 3] = (number, -5, 10)
    paths = {}
    for name, voxels in (("CT", image), ("seg", label)):
        paths[name] = folder / name / f"sub-{number:02d}.nii.gz"
        paths[name].parent.mkdir(parents=True, exist_ok=True)
        nib.Nifti1Image(voxels, affine).to_filename(paths[name])
    return paths


def small_cohort(folder: Path, *, subjects: int = 6, tiling: int = 16) -> Cohort:
    """Write subjects and ingest them."""
    for number in range(subjects):
        write_subject(folder / "files", number, SHAPES[number % len(SHAPES)])
    images = {"CT": folder / "files" / "CT", "seg": folder / "files" / "seg"}
    return Cohort.from_niftis(folder / "cohort", images, tiling=tiling)
