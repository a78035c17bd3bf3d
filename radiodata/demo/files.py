"""Write a demo data set to disk: phantoms as NIfTI files, with the table of their subjects."""

from __future__ import annotations

import csv
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from radiodata.demo.phantom import MIN_SIZE, Phantom, make_phantom

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

_ORIENTATIONS = ("LPS", "RAS", "LAS", "RAS", "PIR")  # as stored on disk, by turns
_COLUMNS = ("obs_subject_id", "age", "sex", "diagnosis")


@dataclass(frozen=True)
class DemoFiles:
    """Where a demo data set lies; `images` and `labels` are in the order of the subjects."""

    images: list[Path]
    labels: list[Path]
    obs_meta: Path


def write_demo(directory: str | Path, *, subjects: int = 24, size: int = 160, seed: int = 0) -> DemoFiles:
    """Write `subjects` phantoms as NIfTI files, and their table.

    ``images/sub-001.nii.gz`` holds int16 HU, ``labels/sub-001.nii.gz`` uint8 classes on the same grid
    (1 liver, 2 spleen, 3 kidneys) and ``participants.csv`` the columns obs_subject_id, age (years),
    sex (F, M) and diagnosis. Files differ in shape, spacing and stored orientation (RAS, LAS, LPS, PIR),
    and about a third are oblique: only the affine tells where a voxel is. Files of a former call with the
    same arguments are written again.

    Parameters
    ----------
    directory : str or Path
        Made if it is not there.
    subjects : int, default 24
        How many. Subject i is the same whatever their number.
    size : int, default 160
        Voxels across the body, about; see `make_phantom`. 24 at least.
    seed : int, default 0
        The same seed gives the same voxels, affines and table.

    Returns
    -------
    DemoFiles
        The paths written.

    Raises
    ------
    ValueError
        If `subjects`, `size` or `seed` is too small.
    FileExistsError
        If `directory` holds other scans already, which would mix with these.

    Examples
    --------
    >>> files = write_demo("demo-data", subjects=4, size=48)  # doctest: +SKIP
    >>> files.images[0]  # doctest: +SKIP
    PosixPath('demo-data/images/sub-001.nii.gz')
    """
    _check(subjects, size, seed)
    root, names = Path(directory), [f"sub-{number:03d}" for number in range(1, subjects + 1)]
    images = [root / "images" / f"{name}.nii.gz" for name in names]
    labels = [root / "labels" / f"{name}.nii.gz" for name in names]
    _make_folders(images, labels)
    rows = []
    for index, name in enumerate(names):
        phantom = make_phantom(np.random.default_rng([seed, index]), size)
        orientation = _ORIENTATIONS[index % len(_ORIENTATIONS)]
        _save(phantom.image, phantom, orientation, images[index])
        _save(phantom.label, phantom, orientation, labels[index])
        rows.append((name, phantom.age, phantom.sex, phantom.diagnosis))
    return DemoFiles(images, labels, _write_table(root / "participants.csv", rows))


def _check(subjects: int, size: int, seed: int) -> None:
    for name, value, least in (("subjects", subjects, 1), ("size", size, MIN_SIZE), ("seed", seed, 0)):
        if value < least:
            raise ValueError(f"{name}={value} is too small for a demo data set: give {least} or more")


def _make_folders(*series: Sequence[Path]) -> None:
    for paths in series:
        folder = paths[0].parent
        folder.mkdir(parents=True, exist_ok=True)
        if strangers := sorted(path.name for path in set(folder.glob("*.nii*")) - set(paths)):
            raise FileExistsError(
                f"{folder} holds {len(strangers)} other scans (first: {strangers[0]}), which would mix with "
                f"the {len(paths)} to be written: give an empty directory, or remove them"
            )


def _save(voxels: np.ndarray[Any, np.dtype[Any]], phantom: Phantom, orientation: str, path: Path) -> None:
    """Store RAS+ voxels in another axis order, with the affine that says so."""
    import nibabel as nib

    image = nib.Nifti1Image(voxels, phantom.affine, dtype=voxels.dtype)
    ras, stored = (nib.orientations.axcodes2ornt(codes) for codes in ("RAS", orientation))
    image = image.as_reoriented(nib.orientations.ornt_transform(ras, stored))
    image.header.set_xyzt_units("mm")
    image.set_qform(image.affine, code="scanner")
    image.set_sform(image.affine, code="scanner")
    image.to_filename(path)  # nibabel's gzip level is 1 and its time stamp 0: fast, and the same bytes


def _write_table(path: Path, rows: Iterable[tuple[str, int, str, str]]) -> Path:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(_COLUMNS)
        writer.writerows(rows)
    return path
