"""What was ingested comes back: bytes of headers, voxels, dtype, scaling; and volumes as objects of others."""

from __future__ import annotations

import csv
import gzip
import subprocess
import sys
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
from conftest import MakeFiles, Tiny, save
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from radiodata.errors import ConfigError, ExportError, GeometryError
from radiodata.export import export, to_nifti
from radiodata.geometry import to_voxel, to_world
from radiodata.ingest.files import NiftiError
from radiodata.ingest.nifti import header_of, load
from radiodata.store import Cohort, StoreConfig
from radiodata.store.loaded import LoadedVolume


def raw(path: Path) -> bytes:
    data = path.read_bytes()
    return gzip.decompress(data) if data[:2] == b"\x1f\x8b" else data


def same_file(found: Path, source: Path) -> None:
    """Header and extensions byte for byte, and as many voxels as the header tells of, equal with their dtype."""
    a, b = raw(found), raw(source)
    header = header_of(b)
    first = int(header["vox_offset"])
    assert a[:first] == b[:first]
    cls = nib.Nifti2Image if isinstance(header, nib.Nifti2Header) else nib.Nifti1Image
    mine, theirs = cls.from_bytes(a), cls.from_bytes(b)
    x, y = np.asanyarray(mine.dataobj.get_unscaled()), np.asanyarray(theirs.dataobj.get_unscaled())
    assert (x.dtype, x.shape) == (y.dtype, y.shape)
    np.testing.assert_array_equal(x, y)
    np.testing.assert_array_equal(mine.affine, theirs.affine)
    np.testing.assert_array_equal(np.asanyarray(mine.dataobj), np.asanyarray(theirs.dataobj))


def niftis(shared_data: Path) -> list[tuple[str, str]]:
    with (shared_data / "MANIFEST.csv").open(newline="") as file:
        rows = [(row["path"], row["expect"]) for row in csv.DictReader(file)]
    return [(path, expect) for path, expect in rows if path.endswith((".nii", ".nii.gz"))]


@pytest.mark.slow
@pytest.mark.parametrize("orient", ["RAS", None])
def test_every_nifti_of_the_manifest_comes_back_or_is_refused(
    shared_data: Path, tmp_path: Path, orient: str | None
) -> None:
    rows, taken, refused = niftis(shared_data), 0, []
    for number, (name, expect) in enumerate(rows):
        source, uri = shared_data / name, tmp_path / f"{number}"
        try:
            load(source, orient=orient)
        except NiftiError:
            refused.append((name, expect))
            continue
        config = StoreConfig(tiling=64, orient=orient)
        cohort = Cohort.from_niftis(uri, {"x": [source]}, subject_id=lambda _: "one", config=config)
        same_file(cohort.x.iloc[0].to_nifti(tmp_path / "out.nii"), source)
        taken += 1
    assert all("must fail" in expect or "lfs_pointer" in name for name, expect in refused), refused
    must_fail = {name for name, expect in rows if "must fail" in expect}
    assert must_fail <= {name for name, _ in refused}
    assert taken + len(refused) == len(rows)
    assert taken > 20


# values and grids --------------------------------------------------------------------------------


def make(path: Path, voxels: np.ndarray, dtype: str, slope: float, intercept: float, codes: tuple[int, int]) -> Path:
    """Write a file whose raw voxels and scaling are these, in either byte order."""
    affine = np.array([[0, -1.5, 0.1, 3], [2, 0, 0, -7], [0, 0.05, -3, 11], [0, 0, 0, 1.0]])
    header = nib.Nifti1Header(endianness=">" if dtype[0] == ">" else "<")
    header.set_data_dtype(np.dtype(dtype))
    header.set_data_shape(voxels.shape)
    header.set_sform(affine, code=codes[0])
    header.set_qform(np.diag([2.0, 1.5, 3, 1]), code=codes[1])
    header.set_slope_inter(slope, intercept)
    header.set_xyzt_units("mm", "sec")
    header["descrip"] = b"made here"
    header["vox_offset"] = 352
    path.write_bytes(header.binaryblock + b"\0" * 4 + voxels.astype(dtype).tobytes(order="F"))
    return path


DTYPES = ["u1", "i1", "<i2", ">i2", "<u2", "<i4", "<u4", "<i8", "<u8", "<f4", ">f4", "<f8"]
SCALES = [(1.0, 0.0), (np.nan, np.nan), (2.0, -1024.0), (0.25, 3.0), (-3.0, 5.0), (1.0, -0.1)]


@given(
    dtype=st.sampled_from(DTYPES),
    scale=st.sampled_from(SCALES),
    codes=st.sampled_from([(1, 0), (0, 1), (2, 1), (4, 4)]),
    shape=st.sampled_from([(5, 4, 3), (5, 4, 1), (4, 3), (3, 4, 5, 2)]),
    label=st.booleans(),
    seed=st.integers(0, 99),
)
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_file_comes_back(
    tmp_path: Path, dtype: str, scale: tuple[float, float], codes: tuple[int, int], shape: Any, label: bool, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    kind = np.dtype(dtype)
    if kind.kind == "f":
        voxels = rng.normal(0, 100, shape) if seed % 3 else np.round(rng.normal(0, 100, shape))
        voxels.flat[0] = (np.nan, -0.0, np.inf, 7)[seed % 4]
    else:
        info = np.iinfo(kind)
        voxels = rng.integers(max(info.min, -(2**40)), min(info.max, 2**40), shape, endpoint=True)
    source = make(tmp_path / "in.nii", voxels, dtype, *scale, codes)
    try:
        volume = load(source, label=label)
    except NiftiError:
        return
    from radiodata.export.nifti import restore

    found = restore(volume.voxels, volume.slope, volume.intercept, volume.affine, volume.header)
    expected = source.read_bytes()
    assert found[:352] == expected[:352]
    np.testing.assert_array_equal(np.frombuffer(found[352:], dtype), np.frombuffer(expected[352:], dtype))


def test_voxels_of_another_file_are_refused(tmp_path: Path) -> None:
    from radiodata.export.nifti import restore

    source = make(tmp_path / "in.nii", np.arange(60).reshape(5, 4, 3), "<i2", 2.0, 1.0, (1, 1))
    volume = load(source)
    with pytest.raises(ExportError, match="voxels cannot be those"):
        restore(volume.voxels + 1, volume.slope, volume.intercept, volume.affine, volume.header)
    with pytest.raises(ExportError, match="grid"):
        restore(volume.voxels, 1.0, 0.0, np.eye(4), volume.header)
    with pytest.raises(ExportError, match="slope"):
        restore(volume.voxels, 3.0, 0.0, volume.affine, volume.header)


# files -------------------------------------------------------------------------------------------


def test_a_cohort_is_exported_and_ingested_again(tiny: Tiny, tmp_path: Path) -> None:
    done = export(tiny.cohort, tmp_path / "out")
    assert not done.problems
    assert len(done.files) == 13
    for name, sources in tiny.images.items():
        for source in sources:
            same_file(tmp_path / "out" / name / source.name, source)
    with pytest.raises(ConfigError, match="13 files are there"):
        export(tiny.cohort, tmp_path / "out")
    meta = pd.read_csv(tmp_path / "out" / "participants.tsv", sep="\t", index_col=0, na_values="n/a")
    images = {n: tmp_path / "out" / n for n in tiny.images}
    again = Cohort.from_niftis(tmp_path / "again", images, obs_meta=meta, tiling=16)
    assert again.subjects == tiny.cohort.subjects
    assert again.CT.obs["content_hash"].tolist() == tiny.cohort.CT.obs["content_hash"].tolist()


def test_export_on_the_command_line(tiny: Tiny, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "radiodata.cli", "export", tiny.cohort.uri, str(tmp_path / "out")]
    told = subprocess.run([*command, "--collection", "seg", "--where", "age > 60"], capture_output=True, text=True)
    assert (told.returncode, told.stdout) == (0, f"3 files written: {tmp_path / 'out'}\n"), told.stderr
    assert sorted(p.name for p in (tmp_path / "out" / "seg").iterdir()) == ["sub-00.nii.gz", "sub-03.nii.gz"]
    again = subprocess.run([*command, "--collection", "seg"], capture_output=True, text=True)
    assert again.returncode == 2
    assert "overwrite" in again.stderr
    assert subprocess.run([*command, "--collection", "seg", "--overwrite"], check=False).returncode == 0


def test_ids_that_no_file_name_can_hold(tmp_path: Path, make_files: MakeFiles) -> None:
    images = {"CT": make_files(2)["CT"]}
    names = iter([".hidden/../up", "über 1"])
    cohort = Cohort.from_niftis(tmp_path / "c", images, subject_id=lambda _: next(names), tiling=8)
    done = export(cohort, tmp_path / "out")
    assert sorted(p.name for p in done.files[:2]) == ["%2Ehidden%2F..%2Fup.nii.gz", "%C3%BCber 1.nii.gz"]
    assert all(p.parent == tmp_path / "out" / "CT" for p in done.files[:2])


def test_a_crop_is_written_with_its_own_grid(tiny: Tiny, tmp_path: Path) -> None:
    volume = tiny.cohort.CT.iloc[2]  # oblique
    corner = to_world(volume.affine, [[4, 5, 6], [11, 12, 13]])
    part = volume.crop_world(np.stack([corner.min(axis=0), corner.max(axis=0)], axis=1))
    first = np.round(to_voxel(volume.affine, to_world(part.affine, [0, 0, 0]))).astype(int)
    spans = tuple(slice(a, a + n) for a, n in zip(first, part.shape, strict=True))
    np.testing.assert_array_equal(part.voxels, tiny.arrays[volume.obs_id][spans])
    assert all(a <= 4 + k and a + n > 11 + k for k, (a, n) in enumerate(zip(first, part.shape, strict=True)))
    image = nib.load(part.to_nifti(tmp_path / "part.nii.gz"))
    np.testing.assert_array_equal(np.asanyarray(image.dataobj), part.voxels)
    np.testing.assert_allclose(image.affine, part.affine, atol=1e-4)
    assert image.get_data_dtype() == np.int16
    assert (int(image.header["sform_code"]), image.header.get_xyzt_units()[0]) == (1, "mm")
    with pytest.raises(GeometryError, match=r"'sub-02_CT'.*does not meet"):
        volume.crop_world([[900, 999], [0, 1], [0, 1]])
    with pytest.raises(GeometryError, match="box in the world"):
        volume.crop_world([0, 1, 2])  # type: ignore[list-item]


@pytest.mark.parametrize("dtype", ["bool", "float16", "uint16", "int64", "float64"])
def test_any_dtype_in_memory_is_written(tmp_path: Path, dtype: str) -> None:
    voxels = np.arange(24).reshape(2, 3, 4).astype(dtype)
    path = LoadedVolume(voxels, np.diag([1.0, 2, 3, 1]), "a_CT", "a").to_nifti(tmp_path / "x.nii")
    np.testing.assert_array_equal(np.asanyarray(nib.load(path).dataobj), voxels)


def test_files_of_other_kinds_are_refused(tiny: Tiny, tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="must end in"):
        to_nifti(tiny.cohort.CT.iloc[0], tmp_path / "x.mha")
    with pytest.raises(ExportError, match=r"'a_CT'.*<U1"):
        LoadedVolume(np.full((2, 2, 2), "a"), np.eye(4), "a_CT", "a").to_nifti(tmp_path / "x.nii")
    (tmp_path / "file").write_text("")
    with pytest.raises(ExportError, match="cannot write"):
        tiny.cohort.CT.iloc[0].to_nifti(tmp_path / "file" / "x.nii")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["file"]


# objects -------------------------------------------------------------------------------------------


def test_a_metatensor_has_voxels_and_affine(tiny: Tiny) -> None:
    pytest.importorskip("monai")
    volume = tiny.cohort.CT.iloc[2]
    tensor = volume.to_monai()
    np.testing.assert_array_equal(tensor.numpy()[0], tiny.arrays["sub-02_CT"])
    np.testing.assert_array_equal(tensor.affine.numpy(), volume.affine)
    assert tensor.meta["obs_id"] == "sub-02_CT"


def test_a_torchio_image_has_voxels_and_affine(tiny: Tiny) -> None:
    pytest.importorskip("torchio")
    import torchio

    image, label = tiny.cohort.CT.iloc[2].to_torchio(), tiny.cohort.seg.iloc[2].to_torchio()
    assert (type(image), type(label)) == (torchio.ScalarImage, torchio.LabelMap)
    np.testing.assert_array_equal(image.numpy()[0], tiny.arrays["sub-02_CT"])
    np.testing.assert_allclose(label.affine, tiny.cohort.seg.iloc[2].affine)


def test_sitk_reads_the_exported_file_as_to_sitk_gives_it(tiny: Tiny, tmp_path: Path) -> None:
    pytest.importorskip("SimpleITK")
    import SimpleITK

    for number in range(6):
        volume = tiny.cohort.CT.iloc[number].load()
        mine = volume.to_sitk()
        theirs = SimpleITK.ReadImage(str(volume.to_nifti(tmp_path / "x.nii")))
        np.testing.assert_array_equal(SimpleITK.GetArrayViewFromImage(mine), SimpleITK.GetArrayViewFromImage(theirs))
        for point in ((0, 0, 0), (3, 7, 5)):
            a = mine.TransformIndexToPhysicalPoint(point)
            np.testing.assert_allclose(a, theirs.TransformIndexToPhysicalPoint(point), atol=1e-3)
            np.testing.assert_allclose(np.array(a) * [-1, -1, 1], to_world(volume.affine, point), atol=1e-6)


def test_channels_come_last_in_the_store_and_first_in_tensors(tmp_path: Path) -> None:
    pytest.importorskip("monai")
    voxels = np.random.default_rng(0).integers(-9, 9, (6, 5, 4, 3)).astype(np.int16)
    source = save(voxels[..., 0], np.eye(4), tmp_path / "a.nii")
    nib.Nifti1Image(voxels, np.eye(4)).to_filename(source)
    volume = Cohort.from_niftis(tmp_path / "c", {"DWI": [source]}, tiling=4).DWI.iloc[0]
    np.testing.assert_array_equal(volume.to_monai().numpy(), np.moveaxis(voxels, -1, 0))
    np.testing.assert_array_equal(volume.to_torchio().numpy(), np.moveaxis(voxels, -1, 0))
    assert volume.to_sitk().GetNumberOfComponentsPerPixel() == 3
    same_file(volume.to_nifti(tmp_path / "b.nii"), source)


def test_sheared_axes_are_no_itk_image(tiny: Tiny) -> None:
    pytest.importorskip("SimpleITK")
    affine = np.eye(4)
    affine[0, 1] = 0.4
    with pytest.raises(ExportError, match="right angles"):
        LoadedVolume(np.zeros((2, 2, 2)), affine, "a", "a").to_sitk()


# tables --------------------------------------------------------------------------------------------


def test_arrow_keeps_types_and_nulls(tiny: Tiny) -> None:
    table = tiny.cohort.filter("age > 40").to_arrow()
    assert table.column_names[0] == "obs_subject_id"
    assert table.column("grade").to_pylist() == [1, None, 2, None]
    assert str(table.schema.field("treated").type) == "bool"
    volumes = tiny.cohort.CT.to_arrow()
    assert volumes.column("obs_id").to_pylist() == tiny.cohort.CT.ids
    assert np.asarray(volumes.column("affine")[2].as_py()).reshape(4, 4) == pytest.approx(tiny.affines["sub-02_CT"])


def test_anndata_is_volumes_by_features(tiny: Tiny) -> None:
    pytest.importorskip("anndata", reason="needs radiodata[anndata], which needs pandas 2")
    data = tiny.cohort.CT.to_anndata()
    assert data.shape == (6, 7)
    assert list(data.obs_names) == tiny.cohort.CT.ids
    np.testing.assert_allclose(data[:, "value_mean"].X[:, 0], tiny.cohort.CT.obs["value_mean"])
    assert data.obs.loc["sub-01_CT", "sex"] == "M"
    chosen = tiny.cohort.CT.to_anndata(["age", "weight"])
    assert np.isnan(chosen.X[1, 1])
    with pytest.raises(ConfigError, match=r"\['sex'\]"):
        tiny.cohort.CT.to_anndata(["sex"])
