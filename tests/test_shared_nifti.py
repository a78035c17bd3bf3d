"""Real scans come back as nibabel reads them; damaged ones are refused by name, as their manifest expects."""

from __future__ import annotations

import csv
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from radiodata.errors import IngestError
from radiodata.ingest import ingest_niftis
from radiodata.ingest.files import NiftiError
from radiodata.ingest.nifti import load, read_header
from radiodata.store import Cohort

CT_SEG = "ct_seg/totalseg_example"


def canonical(path: Path) -> tuple[np.ndarray, np.ndarray]:
    image = nib.as_closest_canonical(nib.load(path))
    return np.asanyarray(image.dataobj), image.affine


def check(cohort: Cohort, collection: str, subject: str, path: Path) -> None:
    voxels, affine = canonical(path)
    volume = cohort[collection].of_subject(subject)
    assert volume.shape == voxels.shape
    np.testing.assert_array_equal(volume.to_numpy(), voxels)
    np.testing.assert_allclose(volume.affine, affine, atol=1e-9)


def manifest(shared_data: Path) -> dict[str, dict[str, str]]:
    with (shared_data / "MANIFEST.csv").open(newline="") as file:
        return {row["path"]: row for row in csv.DictReader(file)}


def test_a_ct_with_its_labels(shared_data: Path, tmp_path: Path) -> None:
    folder = shared_data / CT_SEG
    files = {
        "CT": folder / "example_ct.nii.gz",
        "seg": folder / "seg_full.nii.gz",
        "spine_seg": folder / "seg_spine.nii.gz",
    }
    images = {name: [path] for name, path in files.items()}
    cohort = Cohort.from_niftis(tmp_path / "c", images, subject_id=lambda _: "one", tiling=32)
    for name, path in files.items():
        check(cohort, name, "one", path)
    assert (cohort.CT.iloc[0].dtype, cohort.seg.iloc[0].dtype) == (np.int16, np.uint8)
    classes, counts = np.unique(canonical(files["seg"])[0], return_counts=True)
    assert cohort.seg.obs["label_values"].iloc[0].tolist() == classes.tolist()
    assert cohort.seg.obs["label_voxels"].iloc[0].tolist() == counts.tolist()


def test_a_ct_stored_in_another_orientation_and_a_label_on_another_grid(shared_data: Path, tmp_path: Path) -> None:
    folder = shared_data / "ct_seg" / "totalseg_pulmonary"
    images = {"CT": [folder / "ct_cropped.nii.gz"], "seg": [folder / "pulmonary_artery.nii.gz"]}
    cohort = Cohort.from_niftis(tmp_path / "c", images, subject_id=lambda _: "p", tiling=32)
    for name, paths in images.items():
        check(cohort, name, "p", paths[0])
    assert cohort.CT.obs["source_orientation"].tolist() == ["LPS"]
    images["seg"] = [folder / "heart_other_grid.nii.gz"]
    with pytest.raises(IngestError, match=r"shapes differ, .*heart_other_grid"):
        ingest_niftis(str(tmp_path / "d"), images, subject_id=lambda _: "p")
    assert not (tmp_path / "d").exists()


def hippocampus(shared_data: Path, count: int | None) -> dict[str, list[Path]]:
    folder = shared_data / "train" / "hippocampus"
    return {n: sorted((folder / d).glob("*.nii.gz"))[:count] for n, d in (("MR", "images"), ("seg", "labels"))}


@pytest.mark.parametrize("count", [12, pytest.param(None, marks=pytest.mark.slow)])
def test_hippocampus_pairs(shared_data: Path, tmp_path: Path, count: int | None) -> None:
    images = hippocampus(shared_data, count)
    cohort = Cohort.from_niftis(tmp_path / "c", images, tiling=32)
    assert len(cohort) == len(images["MR"]) == (count or 100)
    for name, paths in images.items():
        for path in paths:
            check(cohort, name, path.name.removesuffix(".nii.gz"), path)
    assert {str(v.dtype) for v in cohort.seg} == {"uint8"}


def test_an_image_without_its_label_is_named(shared_data: Path, tmp_path: Path) -> None:
    images = hippocampus(shared_data, 2)
    images["MR"] += (shared_data / "train" / "hippocampus_unpaired" / "images").glob("*.nii.gz")
    with pytest.raises(IngestError, match="hippocampus_118: has no file in seg"):
        ingest_niftis(str(tmp_path / "c"), images)


def test_half_of_the_orientations_are_one_volume(shared_data: Path) -> None:
    files = sorted((shared_data / "orientation").glob("*.nii.gz"))
    assert len(files) > 20
    reference = load(shared_data / "orientation" / "RAS.nii.gz")
    for path in files:
        volume = load(path)
        assert volume.source_orientation == path.name.removesuffix(".nii.gz")
        assert (volume.slope, volume.intercept) == (reference.slope, reference.intercept)
        np.testing.assert_array_equal(volume.voxels, reference.voxels)


# hard and odd files ----------------------------------------------------------------------------

HARD = [
    "bigendian_anatomical.nii", "example4d_oblique.nii.gz", "low_res_7x5x3.nii.gz", "minimal_q0s0.nii.gz",
    "monai_anatomical_label_uint16.nii.gz", "nifti2_4d.nii.gz", "shear_ct_tilt.nii.gz",
    "slope_inter_4d_functional.nii", "surface_163842x1x1x1.nii.gz",
]  # fmt: skip


@pytest.mark.parametrize("name", HARD)
def test_hard_files_equal_nibabel(shared_data: Path, name: str) -> None:
    path = shared_data / "nifti_hard" / name
    volume = load(path)
    image = nib.as_closest_canonical(nib.load(path))
    physical = np.moveaxis(volume.voxels.astype(np.float64) * volume.slope + volume.intercept, 0, -1)
    np.testing.assert_array_equal(physical, image.get_fdata().reshape(physical.shape))
    np.testing.assert_allclose(volume.affine, image.affine, atol=1e-9)
    assert read_header(path, orient="RAS").shape == volume.voxels.shape[1:]


@pytest.mark.parametrize("name", HARD)
def test_hard_files_go_through_the_store(shared_data: Path, tmp_path: Path, name: str) -> None:
    path = shared_data / "nifti_hard" / name
    volume = Cohort.from_niftis(tmp_path / "c", {"image": [path]}, tiling=32)["image"].iloc[0]
    image = nib.as_closest_canonical(nib.load(path))
    expected = image.get_fdata().reshape(volume.shape)
    np.testing.assert_array_equal(volume.to_numpy(), expected.astype(volume.dtype))


def test_complex_and_rgb_voxels_are_channels(shared_data: Path, tmp_path: Path) -> None:
    folder = shared_data / "nifti_hard"
    images = {"wave": [folder / "complex64.nii.gz"], "colour": [folder / "rgb24_ct_perfusion.nii.gz"]}
    cohort = Cohort.from_niftis(tmp_path / "c", images, subject_id=lambda _: "one", validate_alignment=False, tiling=32)
    wave = np.asanyarray(nib.as_closest_canonical(nib.load(images["wave"][0])).dataobj)
    np.testing.assert_array_equal(cohort.wave.iloc[0].to_numpy(), np.stack([wave.real, wave.imag], axis=-1))
    colour = np.asanyarray(nib.as_closest_canonical(nib.load(images["colour"][0])).dataobj)
    parts = np.stack([colour[n] for n in "RGB"], axis=-1)
    found = cohort.colour.iloc[0].to_numpy()
    np.testing.assert_array_equal(found, parts.reshape(found.shape))
    assert cohort.colour.obs["source_dtype"].tolist() == ["rgb24"]


def test_pairs_are_read_by_either_half(shared_data: Path, tmp_path: Path) -> None:
    folder = shared_data / "nifti_hard"
    for half in ("pair_ras.hdr", "pair_ras.img"):
        np.testing.assert_array_equal(load(folder / half).voxels[0], canonical(folder / "pair_ras.hdr")[0])
    for read in (read_header, load):
        with pytest.raises(NiftiError, match=r"header_without_img\.img"):
            read(folder / "header_without_img.hdr")
        with pytest.raises(NiftiError, match=r"Analyze 7\.5"):
            read(folder / "analyze75_header_only.hdr")
    cohort = Cohort.from_niftis(tmp_path / "c", {"MR": f"{folder}/pair_ras.*"}, tiling=32)
    back = nib.load(cohort.MR.iloc[0].to_nifti(tmp_path / "back.nii.gz"))
    source = nib.load(folder / "pair_ras.hdr")
    np.testing.assert_array_equal(np.asanyarray(back.dataobj), np.asanyarray(source.dataobj))
    for code in ("sform_code", "qform_code", "datatype", "xyzt_units", "pixdim"):
        np.testing.assert_array_equal(back.header[code], source.header[code])


def test_odd_files(shared_data: Path, tmp_path: Path) -> None:
    odd = shared_data / "odd"
    reference = load(shared_data / "odd" / "naïve name 影像.nii.gz").voxels
    assert load(odd / "dim5_vector.nii.gz").voxels.shape == (3, 40, 52, 35)
    for path in sorted((odd / "dtypes_le").glob("*.nii*")):
        np.testing.assert_array_equal(load(path).voxels[0], canonical(path)[0])
    zero = load(odd / "slope_zero.nii.gz")
    assert (zero.slope, zero.intercept, zero.voxels.min() >= 0, zero.voxels.max() <= 127) == (1.0, 0.0, True, True)
    assert load(odd / "gzip_named.nii").voxels.shape == load(odd / "plain_named.nii.gz").voxels.shape == reference.shape
    cohort = Cohort.from_niftis(
        tmp_path / "c", {"MR": [odd / "nan_inf.nii.gz", odd / "naïve name 影像.nii.gz"]}, tiling=32
    )
    special = cohort["MR"].of_subject("nan_inf")
    np.testing.assert_array_equal(special.to_numpy(), canonical(odd / "nan_inf.nii.gz")[0])
    assert np.isfinite(special.obs[["value_mean", "value_std", "value_min", "value_max"]].astype(float)).all()
    assert cohort["MR"].of_subject("naïve name 影像").shape == (40, 52, 35)


def test_a_label_in_another_axis_order_is_turned_to_its_image(shared_data: Path, tmp_path: Path) -> None:
    folder = shared_data / "odd" / "label_other_orientation"
    image, label = sorted(folder.glob("image*")), sorted(folder.glob("label*"))
    images = {"MR": image[:1], "seg": label[:1]}
    cohort = Cohort.from_niftis(tmp_path / "c", images, subject_id=lambda _: "a", tiling=32)
    for name, paths in images.items():
        check(cohort, name, "a", paths[0])
    np.testing.assert_allclose(cohort["MR"].iloc[0].affine, cohort.seg.iloc[0].affine, atol=1e-4)


# corrupt files ---------------------------------------------------------------------------------

CORRUPT = {
    "bad_magic.nii": "is not a NIfTI",
    "dicom_named.nii": "is a DICOM file",
    "dim_larger_than_data.nii": "is truncated",
    "empty.nii.gz": "is empty",
    "real_lfs_pointer.nii.gz": "git lfs pull",
    "truncated_data.nii": "is truncated",
    "truncated_gzip.nii.gz": "cannot be read whole",
}
PAIRS = {"label_affine_mismatch": "up to 10 mm apart", "label_shape_mismatch": "shapes differ"}


def test_every_corrupt_nifti_of_the_manifest_is_tested_here(shared_data: Path) -> None:
    rows = manifest(shared_data)
    listed = {p.split("/")[1] for p in rows if p.startswith("corrupt/") and "/dcm_" not in p}
    assert listed == set(CORRUPT) | set(PAIRS)
    for name in (*CORRUPT, *PAIRS):
        expect = rows[f"corrupt/{name}"]["expect"]
        assert not expect or "must fail with a clear error" in expect or "must be refused" in expect, name


@pytest.mark.parametrize("name", CORRUPT)
def test_corrupt_files_are_refused_by_name_and_leave_the_others(shared_data: Path, tmp_path: Path, name: str) -> None:
    bad, uri = shared_data / "corrupt" / name, str(tmp_path / "c")
    good = hippocampus(shared_data, 1)["MR"]
    with pytest.raises(IngestError) as caught:
        ingest_niftis(uri, {"MR": [bad]}, tiling=32)
    (problem,) = caught.value.problems
    assert problem.where == str(bad)
    assert CORRUPT[name] in problem.why
    assert str(bad) in str(caught.value)
    with pytest.raises(IngestError):
        ingest_niftis(uri, {"MR": [bad, *good]}, tiling=32)
    ingest_niftis(uri, {"MR": good}, tiling=32)
    cohort = Cohort(uri)
    assert cohort.subjects == [good[0].name.removesuffix(".nii.gz")]
    check(cohort, "MR", cohort.subjects[0], good[0])


@pytest.mark.parametrize("name", PAIRS)
def test_pairs_that_do_not_match_are_refused_before_anything_is_written(
    shared_data: Path, tmp_path: Path, name: str
) -> None:
    folder = shared_data / "corrupt" / name
    images = {"MR": [folder / "image.nii.gz"], "seg": [folder / "label.nii.gz"]}
    with pytest.raises(IngestError, match=PAIRS[name]) as caught:
        ingest_niftis(str(tmp_path / "c"), images, subject_id=lambda _: "a")
    assert all(str(paths[0]) in str(caught.value) for paths in images.values())
    assert not (tmp_path / "c").exists()
