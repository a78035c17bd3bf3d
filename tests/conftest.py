"""Fixtures for all tests: shared data of others where it lies beside the checkout, and one tiny cohort."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pandas as pd
import pytest

from radiodata.store import Cohort

os.environ.setdefault("RADIODATA_COMPILED", "wait")  # every read is the kernel's, here and in processes begun here
ROOT = Path(__file__).resolve().parent.parent
SHAPES = [(40, 36, 30), (33, 40, 28), (20, 44, 37), (36, 35, 34), (41, 30, 33), (38, 39, 26)]
ORIENTATIONS = ["RAS", "LPS", "RAS", "PIR", "LAS", "SLA"]
OBLIQUE = (2, 4)


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Real and damaged scans made by others (``$RADIODATA_SHARED``, else ``../shared/data``)."""
    path = Path(os.environ.get("RADIODATA_SHARED") or ROOT.parent / "shared" / "data")
    if not path.is_dir():
        pytest.skip(f"the shared data are not at {path}: set RADIODATA_SHARED to run this test")
    return path


@dataclass(frozen=True)
class Tiny:
    """A cohort of six subjects and the truth about it; arrays and affines are in RAS+."""

    cohort: Cohort
    images: dict[str, list[Path]]
    obs_meta: pd.DataFrame
    arrays: dict[str, np.ndarray[Any, np.dtype[Any]]]
    affines: dict[str, np.ndarray[Any, np.dtype[Any]]]


def ras_affine(number: int) -> np.ndarray:
    """Affine of a RAS+ grid; a few degrees oblique for some subjects."""
    angle = np.deg2rad(11 if number in OBLIQUE else 0)
    turn = np.array([[np.cos(angle), -np.sin(angle), 0], [np.sin(angle), np.cos(angle), 0], [0, 0, 1]])
    affine = np.eye(4)
    affine[:3, :3] = turn @ np.diag([0.75, 1.0 + number / 8, 2.5])
    affine[:3, 3] = (-20 + number, 5, -100)
    return affine


def save(voxels: np.ndarray, affine: np.ndarray, path: Path, orientation: str = "RAS") -> Path:
    """Write RAS+ voxels with their axes turned to `orientation`."""
    image = nib.Nifti1Image(voxels, affine, dtype=voxels.dtype)
    turn = nib.orientations.ornt_transform(*(nib.orientations.axcodes2ornt(c) for c in ("RAS", orientation)))
    path.parent.mkdir(parents=True, exist_ok=True)
    image.as_reoriented(turn).to_filename(path)
    return path


def ct_like(rng: np.random.Generator, shape: tuple[int, int, int]) -> np.ndarray:
    """Int16 with air around a body, every voxel of it telling."""
    voxels = rng.integers(-950, 1500, shape).astype(np.int16)
    voxels[:3] = -1024
    return voxels


def labels_of(shape: tuple[int, int, int]) -> np.ndarray:
    """Two classes: an organ, and a lesion of a few voxels."""
    label = np.zeros(shape, np.uint8)
    label[5:15, 6:18, 4:17] = 1
    label[16:18, 20:22, 21:22] = 2
    return label


def tiny_meta() -> pd.DataFrame:
    return pd.DataFrame(
        {
            "age": [61, 45, 33, 70, 52, 28],
            "weight": [70.5, np.nan, 81.25, 60.0, np.nan, 99.0],
            "sex": ["F", "M", "F", "M", "F", None],
            "grade": pd.array([1, None, 3, 2, None, 1], dtype="Int64"),
            "treated": pd.array([True, False, None, True, False, True], dtype="boolean"),
        },
        index=pd.Index([f"sub-{n:02d}" for n in range(6)], name="obs_subject_id"),
    )


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Tiny:
    """Cohort in 16-cube tiles, from files in several orientations; read it, do not write to it."""
    folder = tmp_path_factory.mktemp("tiny")
    meta, images = tiny_meta(), {"CT": [], "seg": []}
    arrays, affines = {}, {}
    for number, subject in enumerate(meta.index):
        rng = np.random.default_rng(number)
        found = {"CT": ct_like(rng, SHAPES[number]), "seg": labels_of(SHAPES[number])}
        for name, voxels in found.items():
            path = folder / name / f"{subject}.nii.gz"
            images[name].append(save(voxels, ras_affine(number), path, ORIENTATIONS[number]))
            arrays[f"{subject}_{name}"], affines[f"{subject}_{name}"] = voxels, ras_affine(number)
    cohort = Cohort.from_niftis(folder / "cohort", images, obs_meta=meta, tiling=16)
    return Tiny(cohort, images, meta, arrays, affines)


MakeFiles = Callable[..., dict[str, list[Path]]]


@pytest.fixture
def make_files(tmp_path: Path) -> MakeFiles:
    """Give a function that writes small CT and seg files of some subjects."""

    def make(subjects: int, *, first: int = 0, size: int = 20, folder: Path | None = None) -> dict[str, list[Path]]:
        root = folder or tmp_path / "files"
        images: dict[str, list[Path]] = {"CT": [], "seg": []}
        for number in range(first, first + subjects):
            rng, shape = np.random.default_rng(number), (size, size + 2, size - 3 + number % 3)
            label = (rng.random(shape) < 0.1).astype(np.uint8)
            for name, voxels in (("CT", ct_like(rng, shape)), ("seg", label)):
                images[name].append(save(voxels, ras_affine(0), root / name / f"s{number:03d}.nii.gz"))
        return images

    return make
