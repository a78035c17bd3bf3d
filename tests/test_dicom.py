"""DICOM series: whatever their geometry and coding, voxels and affine come out as they were written, or not at all."""

from __future__ import annotations

import shutil
import tarfile
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

pytest.importorskip("pydicom", reason="needs radiodata[dicom]")

import dicom_series as dicom
import pydicom

from radiodata.errors import ConfigError
from radiodata.ingest.dicom import DicomError, load, read_series

few = settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))


def only(folder: Path, **how: Any) -> Any:
    found = read_series(folder, **how)
    assert not found.problems, found.problems
    ((stack,),) = [one.stacks for one in found.series]
    return stack


def same(stack: Any, made: dicom.Made) -> None:
    """A stack is what was made: voxels by their place in the world."""
    kept, turned = load(stack, orient=None), load(stack)
    values = kept.voxels[0].astype(np.float64) * kept.slope + kept.intercept
    truth, affine = made.values, made.affine
    if np.linalg.norm(kept.affine[:3, 3] - affine[:3, 3]) > 1e-3:  # slices are counted along the normal
        truth, affine = truth[:, :, ::-1], affine.copy()
        affine[:3, 3] += affine[:3, 2] * (truth.shape[2] - 1)
        affine[:3, 2] *= -1
    np.testing.assert_allclose(kept.affine, affine, atol=1e-5)
    np.testing.assert_allclose(values, truth, rtol=1e-6)
    np.testing.assert_allclose(np.sort(turned.voxels.ravel()), np.sort(kept.voxels.ravel()))
    for index in np.ndindex(2, 2, 2):  # corners lie where they lay
        at = np.array(index) * (np.array(turned.voxels.shape[1:]) - 1)
        back = np.linalg.solve(kept.affine, turned.affine @ [*at, 1.0])[:3]
        np.testing.assert_allclose(back, np.round(back), atol=1e-6)
        assert turned.voxels[0][tuple(at)] == kept.voxels[0][tuple(np.round(back).astype(int))]


@few
@given(
    seed=st.integers(0, 10_000),
    slices=st.integers(1, 6),
    signed=st.booleans(),
    tilt=st.sampled_from([0.0, 0.0, 12.0, -18.5]),
    slopes=st.booleans(),
    syntax=st.sampled_from(sorted(dicom.SYNTAXES)),
    turned=st.booleans(),
)
def test_any_geometry_and_coding(
    tmp_path_factory: pytest.TempPathFactory, seed: int, slices: int, slopes: bool, signed: bool, turned: bool,
    tilt: float, syntax: str,
) -> None:  # fmt: skip
    folder = tmp_path_factory.mktemp("series")
    made = dicom.series(
        folder, seed=seed, shape=(slices, 4, 5), signed=signed, tilt=tilt, slopes=slopes, syntax=syntax, turned=turned
    )
    if slices == 1:
        made.affine[:3, 2] = np.cross(made.affine[:3, 0], made.affine[:3, 1])
        made.affine[:3, 2] *= 2.5 / np.linalg.norm(made.affine[:3, 2])
    same(only(folder), made)


def test_names_preambles_folders_and_archives_do_not_matter(tmp_path: Path) -> None:
    made = dicom.series(tmp_path / "deep" / "er", suffix="")
    bare = made.files[1]
    bare.write_bytes(bare.read_bytes()[132:])
    shutil.move(made.files[2], tmp_path / "elsewhere.ima")
    (tmp_path / ".hidden").write_bytes(b"x")
    same(only(tmp_path), made)
    with zipfile.ZipFile(tmp_path / "all.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for path in [*(tmp_path / "deep").rglob("im*"), tmp_path / "elsewhere.ima"]:
            archive.write(path, path.relative_to(tmp_path))
    same(only(tmp_path / "all.zip"), made)
    with tarfile.open(tmp_path / "all.tar.gz", "w:gz") as tar:
        tar.add(tmp_path / "deep", "deep")
        tar.add(tmp_path / "elsewhere.ima", "elsewhere.ima")
    same(only(tmp_path / "all.tar.gz"), made)


def test_a_gap_is_refused_or_told(tmp_path: Path) -> None:
    made = dicom.series(tmp_path, shape=(6, 4, 5), step=3.0)
    made.files[2].unlink()
    found = read_series(tmp_path)
    assert not found.series
    assert r"steps between planes differ: 3 (3 times), 6 (1 times) mm" in str(found.problems[0])
    (stack,) = read_series(tmp_path, irregular="keep").series[0].stacks
    assert stack.shape == (1, 5, 4, 5)
    assert stack.grave


def test_copies_are_left_out_and_told(tmp_path: Path) -> None:
    made = dicom.series(tmp_path)
    shutil.copy(made.files[0], tmp_path / "again.dcm")
    stack = only(tmp_path)
    same(stack, made)
    assert "again.dcm" in stack.irregular[0] or made.files[0].name in stack.irregular[0]


def test_times_that_share_one_uid_are_no_copies(tmp_path: Path) -> None:
    for time in range(2):
        for path in dicom.series(tmp_path / f"t{time}", AcquisitionNumber=time).files:
            data = pydicom.dcmread(path)
            data.SOPInstanceUID = data.file_meta.MediaStorageSOPInstanceUID = "1.2.3"
            data.save_as(path)
    stack = only(tmp_path)
    assert stack.shape == (2, 6, 7, 5)
    assert not stack.irregular


def test_a_place_that_lies_there_twice_with_other_voxels_is_refused(tmp_path: Path) -> None:
    made = dicom.series(tmp_path)
    data = pydicom.dcmread(made.files[0])
    data.SOPInstanceUID = data.file_meta.MediaStorageSOPInstanceUID = "1.2.3.99"
    data.save_as(tmp_path / "other.dcm")
    found = read_series(tmp_path, irregular="keep")
    assert not found.series
    assert "6 frames at 5 places do not make whole volumes" in str(found.problems[0])


def test_echoes_orientations_and_matrices_are_volumes_of_their_own(tmp_path: Path) -> None:
    parts = [
        dicom.series(tmp_path / "a", seed=1, uid=1, EchoTime=10.0, EchoNumbers=1),
        dicom.series(tmp_path / "b", seed=1, uid=2, EchoTime=20.0, EchoNumbers=2),
        dicom.series(tmp_path / "c", seed=2, uid=3),
        dicom.series(tmp_path / "d", seed=1, uid=4, shape=(4, 8, 9)),
        dicom.series(tmp_path / "e", seed=1, uid=5, ImageType=["ORIGINAL", "PRIMARY", "P"]),
    ]
    found = read_series(tmp_path)
    assert not found.problems
    stacks = {s.frames[0][0].source.path.parent.name: s for s in found.series[0].stacks}
    assert sorted(stacks) == ["a", "b", "c", "d", "e"]
    for name, made in zip("abcde", parts, strict=True):
        same(stacks[name], made)


def test_times_are_channels_in_order(tmp_path: Path) -> None:
    parts = [dicom.series(tmp_path / f"t{t}", uid=t, TemporalPositionIdentifier=3 - t) for t in range(3)]
    for t, made in enumerate(parts):
        for path in made.files:
            data = pydicom.dcmread(path)
            data.PixelData = (data.pixel_array + t).tobytes()
            data.save_as(path)
    volume = load(only(tmp_path), orient=None)
    assert volume.voxels.shape[0] == 3
    order = [int(channel.min()) for channel in volume.voxels]
    assert order == sorted(order, reverse=True)
    assert len(set(order)) == 3


def test_series_are_told_apart_and_those_without_a_uid_by_folder(tmp_path: Path) -> None:
    dicom.series(tmp_path / "a", seed=1, series="1.2.3.4")
    dicom.series(tmp_path / "b", seed=1, series="1.2.3.5", uid=2)
    for path in dicom.series(tmp_path / "c", seed=3, uid=3).files:
        data = pydicom.dcmread(path)
        del data.SeriesInstanceUID
        data.save_as(path)
    found = read_series(tmp_path)
    assert len(found.series) == 3
    assert not found.problems


def test_planes_without_a_place_are_in_the_order_of_their_numbers(tmp_path: Path) -> None:
    made = dicom.series(tmp_path, turned=False)
    for z, path in enumerate(made.files):
        data = pydicom.dcmread(path)
        del data.ImagePositionPatient
        data.InstanceNumber = 10 - z
        data.save_as(path)
    found = read_series(tmp_path)
    assert "tells no place of its planes" in str(found.problems[0])
    (stack,) = read_series(tmp_path, irregular="keep").series[0].stacks
    volume = load(stack, orient=None)
    np.testing.assert_array_equal(volume.voxels[0], made.values[:, :, ::-1])


@pytest.mark.parametrize(
    ("name", "value", "why"),
    [
        ("PixelSpacing", [0.0, 1.0], "pixel spacing that is not positive"),
        ("ImageOrientationPatient", [1, 0, 0, 1, 0, 0], "no unit vectors at right angles"),
        ("ImageOrientationPatient", [0, 0, 0, 0, 0, 0], "no unit vectors at right angles"),
        ("ImagePositionPatient", [0, 0], "geometry that makes no sense"),
        ("Rows", 0, "holds no pixels"),
        ("NumberOfFrames", 1 << 30, "tells of 1073741824 frames"),
    ],
)
def test_headers_that_make_no_sense_are_refused_by_file(tmp_path: Path, name: str, value: Any, why: str) -> None:
    made = dicom.series(tmp_path, shape=(1, 4, 5))
    data = pydicom.dcmread(made.files[0])
    setattr(data, name, value)
    data.save_as(made.files[0])
    (problem,) = read_series(tmp_path).problems
    assert str(made.files[0]) in str(problem)
    assert why in str(problem)


def test_what_is_cut_short_is_refused_by_file(tmp_path: Path) -> None:
    made = dicom.series(tmp_path)
    made.files[3].write_bytes(made.files[3].read_bytes()[:-20])
    with pytest.raises(DicomError, match=f"{made.files[3].name}: its pixels cannot be decoded .*less than expected"):
        load(only(tmp_path))


def test_what_is_no_image_is_told(tmp_path: Path) -> None:
    dicom.series(tmp_path / "good")
    (tmp_path / "notes.txt").write_text("nothing")
    (tmp_path / "empty").write_bytes(b"")
    (tmp_path / "zeros.dcm").write_bytes(bytes(500))
    report = pydicom.Dataset()
    report.SOPClassUID, report.SOPInstanceUID, report.Modality = "1.2.840.10008.5.1.4.1.1.88.11", "1.2.3", "SR"
    report.file_meta = pydicom.dataset.FileMetaDataset()
    report.file_meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
    report.save_as(tmp_path / "report.dcm", enforce_file_format=True)
    found = read_series(tmp_path)
    told = {Path(p.where).name: p.why for p in found.skipped}
    assert not found.problems
    assert told == {
        "notes.txt": "is no DICOM file",
        "empty": "is no DICOM file",
        "zeros.dcm": "is no DICOM file",
        "report.dcm": "holds no pixels: Basic Text SR Storage",
    }
    assert len(found.series) == 1


def test_a_bomb_is_not_inflated(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "bomb.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("zeros.dcm", bytes(100 << 20))
    (problem,) = read_series(tmp_path).problems
    assert "not a scan" in str(problem)


def test_overlays_in_unused_bits_are_no_voxels(tmp_path: Path) -> None:
    made = dicom.series(tmp_path, signed=False, turned=False, BitsStored=12, HighBit=11)
    for path in made.files:
        data = pydicom.dcmread(path)
        data.PixelData = (data.pixel_array | np.uint16(0x1000)).tobytes()
        data.add_new((0x6000, 0x0102), "US", 12)
        data.add_new((0x6000, 0x0100), "US", 16)
        data.save_as(path)
    same(only(tmp_path), made)


def test_colours_are_channels(tmp_path: Path) -> None:
    made = dicom.series(tmp_path, shape=(2, 4, 5))
    colours = np.random.default_rng(0).integers(0, 255, (2, 4, 5, 3)).astype(np.uint8)
    for path, plane in zip(made.files, colours, strict=True):
        data = pydicom.dcmread(path)
        data.SamplesPerPixel, data.PhotometricInterpretation, data.PlanarConfiguration = 3, "RGB", 0
        data.BitsAllocated, data.BitsStored, data.HighBit, data.PixelRepresentation = 8, 8, 7, 0
        data.RescaleIntercept = 0
        data.PixelData = plane.tobytes()
        data.save_as(path)
    volume = load(only(tmp_path), orient=None)
    assert volume.voxels.dtype == np.uint8
    found = np.moveaxis(volume.voxels, 0, -1).transpose(2, 1, 0, 3)
    assert np.array_equal(found, colours) or np.array_equal(found, colours[::-1])


def test_a_folder_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"there is nothing at .*nowhere"):
        read_series(tmp_path / "nowhere")


def test_a_decoder_that_is_lacking_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dicom.series(tmp_path)
    stack = only(tmp_path)

    def lacking(*args: Any, **kwargs: Any) -> Any:
        raise RuntimeError("Unable to decompress 'JPEG 2000': missing dependencies")

    monkeypatch.setattr("pydicom.pixels.utils.pixel_array", lacking)
    with pytest.raises(DicomError, match=r"no decoder of .*pip install 'radiodata\[dicom\]'"):
        load(stack)
