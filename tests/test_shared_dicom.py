"""Real DICOM series: against the references that others made of them, and against dcm2niix."""

from __future__ import annotations

import csv
import functools
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("pydicom", reason="needs radiodata[dicom]")

from radiodata.ingest import nifti
from radiodata.ingest.dicom import DicomError, load, read_series
from radiodata.ingest.dicom.sources import LabelSource
from radiodata.ingest.items import Loaded

# what pydicom says of values that are not as they should be
pytestmark = [pytest.mark.filterwarnings("ignore::UserWarning:pydicom"), pytest.mark.filterwarnings("ignore:.*VR")]
AFFINE_MM = 1e-3
# Philips keeps scales of its own beside those of DICOM, and the references were made with those
PHILIPS_SCALE = {"Philips_WIP_B0_NS_801_e1.nii.gz", "Philips_WIP_B0_NS_801_e2_fieldmaphz.nii.gz"}
# dcm2niix writes these without the shear of the tilted gantry, and resamples them into another file
NO_SHEAR = {"dicom_ref/d2n_failing_gantrytilting_001/dicom"}
# made by the scanner's own converter, whose origin is a millimetre from what the DICOM header tells
OTHER_ORIGIN = {"T1.nii.gz", "T2_.nii.gz"}
REFUSED = {
    "corrupt/dcm_rows_mismatch": "steps between planes differ",
    "corrupt/dcm_no_position": "tells no place of its planes",
    "corrupt/dcm_truncated_slice": "cannot be decoded",
    "dicom_hard/missing_slice_prostatex/missing": "steps between planes differ: 3 (16 times), 6 (1 times) mm",
    "dicom_odd/MR_truncated.dcm": "cannot be decoded",
    "dicom_odd/badVR.dcm": "NumberOfFrames '1A'",
    "dicom_odd/meta_missing_tsyntax.dcm": "holds no pixels",
    "dicom_odd/no_meta.dcm": "is no DICOM file",  # its first byte is lost, and pydicom reads nothing of it either
    "dicom_odd/rtplan_truncated.dcm": "holds no pixels",
    "dicom_odd/test-SR.dcm": "holds no pixels",
    "dicom_odd/waveform_ecg.dcm": "holds no pixels",
    "dicom_ref/ct_ge_tilt_unequal/dicom": "steps between planes differ: 1.08 (1 times), 4 (13 times), 7 (13 times) mm",
    "dicom_ref/d2n_failing_sliceincrement_001/dicom": "steps between planes differ: 5 (2 times), 10 (1 times) mm",
}


@functools.cache
def manifest(shared: Path) -> dict[str, dict[str, str]]:
    with (shared / "MANIFEST.csv").open(newline="") as file:
        rows = {row["path"]: row for row in csv.DictReader(file)}
    return {path: row for path, row in rows.items() if row["kind"] in ("dicom_series", "dicom_file")}


def volumes(path: Path, **how: Any) -> tuple[list[Loaded], list[str]]:
    """Volumes of a path, and what was said of what gave none."""
    found = read_series(path, **how)
    made, told = [], [str(problem) for problem in (*found.problems, *found.skipped)]
    for series in found.series:
        for stack in series.stacks:
            try:
                made.append(load(stack))
            except DicomError as error:
                told.append(str(error))
    labels = [
        LabelSource(file, None, tuple((n, n) for n, _ in file.names), "") for file in found.labels if file.kind == "SEG"
    ]
    return [*made, *(label.load("RAS", label=True) for label in labels)], told


def physical(volume: Any) -> np.ndarray:
    return np.asarray(volume.voxels.astype(np.float64) * volume.slope + volume.intercept)


def differences(mine: Loaded, reference: Path) -> tuple[float, float] | None:
    """Largest differences of values, relative to the largest value, and of affines in mm; None: another shape."""
    theirs = nifti.load(reference)
    if mine.voxels.shape != theirs.voxels.shape:
        return None
    truth = physical(theirs)
    scale = max(1.0, float(np.abs(truth).max())) if theirs.voxels.dtype.kind == "f" or theirs.slope != 1 else 1.0
    return float(np.abs(physical(mine) - truth).max()) / scale, float(np.abs(mine.affine - theirs.affine).max())


def test_every_series_equals_its_reference(shared_data: Path) -> None:
    compared, table = 0, []
    for path, row in manifest(shared_data).items():
        names = [n for n in row["reference"].split(";") if n.endswith((".nii", ".nii.gz")) and "mask" not in n]
        for name in names:
            made, told = volumes(shared_data / path)
            found = [d for d in (differences(one, shared_data / name) for one in made) if d is not None]
            assert found, f"{path}: nothing of the shape of {name}; {told}"
            value, affine = min(found)
            table.append(f"{name:<95} {value:.1e} {affine:.1e}")
            if Path(name).name not in PHILIPS_SCALE:
                assert value < 2e-7, name
            if Path(name).name not in OTHER_ORIGIN:
                assert affine < AFFINE_MM, name
            compared += 1
    print("\n".join(table))
    assert compared >= 35


def test_the_scale_of_philips_is_all_that_differs(shared_data: Path) -> None:
    folder = shared_data / "dicom_ref" / "enhanced_philips_fmap"
    mine = volumes(folder / "dicom")[0]
    for name in PHILIPS_SCALE:
        theirs = nifti.load(folder / "ref" / name)
        assert len([one for one in mine if np.array_equal(one.voxels, theirs.voxels)]) == 1, name


def test_every_row_behaves_as_it_should(shared_data: Path) -> None:
    for path, row in manifest(shared_data).items():
        made, told = volumes(shared_data / path)
        if path in REFUSED:
            assert any(REFUSED[path] in text for text in told), (path, told)
            continue
        assert made, (path, told)
        expected = row["expect"]
        if expected.startswith("equal to dcm_base") or "equals dcm_base" in expected:
            base, _ = volumes(shared_data / "corrupt" / "dcm_base")
            assert any(np.array_equal(one.voxels, base[0].voxels) for one in made), path


def test_codings_of_one_image_are_one(shared_data: Path) -> None:
    odd = shared_data / "dicom_odd"
    (plain,) = volumes(odd / "MR_small.dcm")[0]
    for name in ("RLE", "bigendian", "implicit", "jp2klossless", "jpeg_ls_lossless", "padded"):
        (coded,) = volumes(odd / f"MR_small_{name}.dcm")[0]
        np.testing.assert_array_equal(coded.voxels, plain.voxels)


def test_tilt_and_unequal_steps_are_kept_where_asked(shared_data: Path) -> None:
    import json

    folder = shared_data / "dicom_ref" / "ct_ge_tilt_unequal"
    told = json.loads((folder / "geometry.json").read_text())
    found = read_series(folder / "dicom", irregular="keep")
    (stack,) = found.series[0].stacks
    assert stack.shape == (1, 512, 512, 28)
    assert "steps between planes differ" in stack.irregular[0]
    axes = stack.affine[:3, :3] / np.linalg.norm(stack.affine[:3, :3], axis=0)
    shear = np.rad2deg(np.arccos(abs(float(np.cross(axes[:, 0], axes[:, 1]) @ axes[:, 2]))))
    assert shear == pytest.approx(18.5, abs=0.6), told.keys()


def converted(folder: Path, out: Path) -> dict[str, list[Path]]:
    """Files that dcm2niix makes of a folder, by its two ways with the scales of Philips."""
    dcm2niix = pytest.importorskip("dcm2niix", reason="needs the dcm2niix wheel")
    made: dict[str, list[Path]] = {}
    for scale in "ny":
        (out / scale).mkdir(parents=True)
        command = [dcm2niix.bin, "-p", scale, "-z", "y", "-b", "n", "-f", "%s_%e_%d", "-o", out / scale, folder]
        subprocess.run(command, capture_output=True, check=False)
        for path in (out / scale).glob("*.nii.gz"):
            made.setdefault(path.name, []).append(path)
    return made


def test_dcm2niix_gives_the_same(shared_data: Path, tmp_path: Path) -> None:
    compared, table = 0, []
    for path, row in manifest(shared_data).items():
        if row["kind"] != "dicom_series" or path.startswith("corrupt") or path in REFUSED:
            continue
        mine, _ = volumes(shared_data / path)
        for name, files in converted(shared_data / path, tmp_path / path).items():
            found = [d for one in mine for file in files if (d := differences(one, file)) is not None]
            if not found:  # it splits and joins times otherwise; the references tell who is right
                table.append(f"{path} {name}: of another shape")
                continue
            value, affine = min(found)
            table.append(f"{path} {name}: {value:.1e} {affine:.1e}")
            assert value < 2e-7, (path, name)
            assert affine < AFFINE_MM or path in NO_SHEAR, (path, name)
            compared += 1
        shutil.rmtree(tmp_path / path)
    print("\n".join(table))
    assert compared >= 20
