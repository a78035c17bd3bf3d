"""Transforms of the grid against SimpleITK and MONAI, and where each voxel is in the world."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk
from conftest import Tiny
from hypothesis import given, settings
from hypothesis import strategies as st

from radiodata.errors import ConfigError, GeometryError, PipelineError
from radiodata.geometry import axis_codes, spacing_of, to_voxel, to_world
from radiodata.pipeline import (
    Cast,
    Clip,
    Crop,
    CropForeground,
    CropWorld,
    MonaiTransform,
    Normalize,
    Pad,
    Reorient,
    Resample,
    ResampleTo,
)
from radiodata.store.loaded import LoadedVolume

CODES = ["RAS", "LPS", "PIR", "SLA", "AIL"]
OBLIQUE = np.array([[0.7, -0.3, 0, -20], [0.2, 1.1, 0.1, 5], [0, 0, 2.5, -100], [0, 0, 0, 1.0]])
STRAIGHT = np.array([[0.75, 0, 0, -20], [0, 1.5, 0, 5], [0, 0, 2.5, -100], [0, 0, 0, 1.0]])


def ramp(shape: tuple[int, int, int], affine: np.ndarray) -> np.ndarray:
    """Voxels whose value is linear in the world: wherever they are sampled, the value tells the place."""
    grid = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"), axis=-1)
    return (to_world(affine, grid) @ np.array([1.0, 0.1, 0.01]) + 1000).astype(np.float32)


def run(transform: Any, volume: np.ndarray, affine: np.ndarray, kind: str = "image") -> tuple[np.ndarray, np.ndarray]:
    result = transform(volume, {"affine": affine, "collection_kind": kind})
    voxels, updates = result if isinstance(result, tuple) else (result, {})
    return voxels, np.asarray(updates.get("affine", affine))


@pytest.mark.parametrize("affine", [STRAIGHT, OBLIQUE])
@pytest.mark.parametrize(
    "transform",
    [
        Resample(1.0),
        Resample((0.4, None, 1.3)),
        Reorient("LPS"),
        Reorient("SLA"),
        Crop((3, 2, 1), (9, 11, 12)),
        CropWorld(((-20, -12), (6, 16), (-95, -70))),
        Pad(40, value=0),
    ],
    ids=repr,
)
def test_every_voxel_is_where_its_value_says(transform: Any, affine: np.ndarray) -> None:
    volume = ramp((20, 18, 16), affine)
    voxels, moved = run(transform, volume, affine)
    inside = np.ones(voxels.shape, bool)
    if isinstance(transform, Pad):
        inside = voxels != 0
        assert inside.sum() == volume.size
    grid = np.stack(np.meshgrid(*map(np.arange, voxels.shape), indexing="ij"), axis=-1)
    at = to_voxel(affine, to_world(moved, grid))
    inside &= ((at >= -1e-6) & (at <= np.array(volume.shape) - 1 + 1e-6)).all(axis=-1)
    assert inside.mean() > (0.03 if isinstance(transform, Pad) else 0.7)
    expected = ramp(voxels.shape, moved)
    np.testing.assert_allclose(voxels[inside], expected[inside], atol=2e-3)


@given(
    shape=st.tuples(*[st.integers(1, 9)] * 3),
    spacing=st.tuples(*[st.floats(0.3, 6)] * 3),
    order=st.sampled_from([0, 1, 3]),
)
@settings(max_examples=60, deadline=None)
def test_resampling_keeps_the_middle_and_the_field_of_view(
    shape: tuple[int, int, int], spacing: tuple[float, float, float], order: int
) -> None:
    volume = np.arange(np.prod(shape), dtype=np.int16).reshape(shape)
    voxels, moved = run(Resample(spacing, order), volume, OBLIQUE)
    old, new = spacing_of(OBLIQUE), spacing_of(moved)
    np.testing.assert_allclose(new, spacing)
    middle = to_world(OBLIQUE, (np.array(shape) - 1) / 2)
    np.testing.assert_allclose(to_world(moved, (np.array(voxels.shape) - 1) / 2), middle, atol=1e-9)
    assert (np.abs(np.array(voxels.shape) * new - np.array(shape) * old) <= np.maximum(new / 2, new) + 1e-9).all()
    assert voxels.dtype == np.int16


def moved_like(volume: LoadedVolume, transform: Resample) -> tuple[LoadedVolume, sitk.Image]:
    voxels, affine = run(transform, volume.voxels, volume.affine, volume.kind)
    mine = LoadedVolume(voxels, affine, "a", "a", volume.kind)
    how = sitk.sitkNearestNeighbor if volume.kind == "label" else sitk.sitkLinear
    return mine, sitk.Resample(volume.to_sitk(), mine.to_sitk(), sitk.Transform(), how, 0.0)


@pytest.mark.parametrize("spacing", [1.0, (0.5, 2.0, 3.0)])
@pytest.mark.parametrize("number", range(6))
def test_linear_resampling_is_that_of_simpleitk(tiny: Tiny, number: int, spacing: Any) -> None:
    volume = tiny.cohort.CT.iloc[number].load()
    mine, theirs = moved_like(volume, Resample(spacing))
    expected = np.moveaxis(sitk.GetArrayFromImage(theirs), (0, 1, 2), (2, 1, 0))
    grid = np.stack(np.meshgrid(*map(np.arange, mine.shape), indexing="ij"), axis=-1)
    at = to_voxel(volume.affine, to_world(mine.affine, grid))
    inside = ((at >= 0) & (at <= np.array(volume.shape) - 1)).all(axis=-1)
    assert inside.mean() > 0.6
    assert np.abs(mine.voxels[inside].astype(int) - expected[inside].astype(int)).max() <= 1


def test_labels_take_the_nearest_voxel(tiny: Tiny) -> None:
    volume = tiny.cohort.seg.iloc[0].load()
    mine, theirs = moved_like(volume, Resample(0.7))
    expected = np.moveaxis(sitk.GetArrayFromImage(theirs), (0, 1, 2), (2, 1, 0))
    assert mine.dtype == np.uint8
    assert set(np.unique(mine.voxels)) == {0, 1, 2}
    assert (mine.voxels != expected).mean() < 0.01, "ties may be broken otherwise"


def test_onto_the_grid_of_another(tiny: Tiny) -> None:
    a, b = tiny.cohort.CT.iloc[0].load(), tiny.cohort.CT.iloc[2].load()
    transform = ResampleTo.like(b, fill=-1024)
    voxels, affine = run(transform, a.voxels, a.affine)
    assert voxels.shape == b.shape
    np.testing.assert_array_equal(affine, b.affine)
    theirs = sitk.Resample(a.to_sitk(), b.to_sitk(), sitk.Transform(), sitk.sitkLinear, -1024.0)
    expected = np.moveaxis(sitk.GetArrayFromImage(theirs), (0, 1, 2), (2, 1, 0))
    grid = np.stack(np.meshgrid(*map(np.arange, b.shape), indexing="ij"), axis=-1)
    at = to_voxel(a.affine, to_world(b.affine, grid))
    inside = ((at >= 0) & (at <= np.array(a.shape) - 1)).all(axis=-1)
    assert np.abs(voxels[inside].astype(int) - expected[inside].astype(int)).max() <= 1
    far = ((at < -0.5) | (at > np.array(a.shape) - 0.5)).any(axis=-1)
    assert (voxels[far] == -1024).all()


@pytest.mark.parametrize("codes", CODES)
def test_turned_axes_are_those_of_nibabel(tiny: Tiny, codes: str) -> None:
    import nibabel as nib

    for number in (0, 2):
        volume = tiny.cohort.CT.iloc[number].load()
        voxels, affine = run(Reorient(codes), volume.voxels, volume.affine)
        assert axis_codes(affine) == codes
        image = nib.Nifti1Image(volume.voxels, volume.affine)
        turn = nib.orientations.ornt_transform(
            nib.orientations.io_orientation(volume.affine), nib.orientations.axcodes2ornt(codes)
        )
        expected = image.as_reoriented(turn)
        np.testing.assert_array_equal(voxels, np.asanyarray(expected.dataobj))
        np.testing.assert_allclose(affine, expected.affine)
        back, again = run(Reorient("RAS"), voxels, affine)
        np.testing.assert_array_equal(back, volume.voxels)
        np.testing.assert_allclose(again, volume.affine)


def test_a_transform_of_monai_keeps_its_affine(tiny: Tiny) -> None:
    from monai.transforms import Compose, Orientation, SpatialCrop

    volume = tiny.cohort.CT.iloc[2].load()
    theirs = MonaiTransform(
        Compose([Orientation("LPS", labels=None), SpatialCrop(roi_start=[1, 2, 3], roi_end=[9, 9, 9])])
    )
    voxels, affine = run(theirs, volume.voxels, volume.affine)
    turned, between = run(Reorient("LPS"), volume.voxels, volume.affine)
    expected, cut = run(Crop((1, 2, 3), (9, 9, 9)), turned, between)
    np.testing.assert_array_equal(voxels, expected)
    np.testing.assert_allclose(affine, cut)
    assert "Orientation" in theirs.name
    assert "0x" not in repr(theirs)
    with pytest.raises(GeometryError, match="MetaTensor"):
        run(MonaiTransform(lambda t: t.as_tensor()), volume.voxels, volume.affine)


def test_foreground_and_padding_undo_each_other() -> None:
    volume = np.zeros((12, 11, 10), np.int16)
    volume[4:7, 5:9, 2:3] = 5
    voxels, affine = run(CropForeground(), volume, OBLIQUE)
    np.testing.assert_array_equal(voxels, volume[4:7, 5:9, 2:3])
    np.testing.assert_allclose(to_world(affine, [0, 0, 0]), to_world(OBLIQUE, [4, 5, 2]))
    wide, _ = run(CropForeground(margin=3), volume, OBLIQUE)
    assert wide.shape == (9, 9, 6)
    padded, back = run(Pad((9, 8, 7), value=-3), voxels, affine)
    assert padded.shape == (9, 8, 7)
    assert (padded == -3).sum() == padded.size - voxels.size
    np.testing.assert_allclose(to_world(back, [3, 2, 3]), to_world(affine, [0, 0, 0]))
    with pytest.raises(GeometryError, match="no foreground"):
        run(CropForeground(above=9), volume, OBLIQUE)


@pytest.mark.parametrize(
    "transform", [Resample(1.3), Reorient("LPS"), Crop((1, 1, 1), (5, 5, 5)), Pad(20), CropForeground(-999)], ids=repr
)
def test_channels_go_the_same_way(transform: Any) -> None:
    volume = np.stack([ramp((8, 7, 6), STRAIGHT), ramp((8, 7, 6), STRAIGHT) * 2], axis=-1)
    voxels, affine = run(transform, volume, STRAIGHT)
    for channel in range(2):
        alone, there = run(transform, np.ascontiguousarray(volume[..., channel]), STRAIGHT)
        np.testing.assert_array_equal(voxels[..., channel], alone)
        np.testing.assert_array_equal(affine, there)


def test_values() -> None:
    volume = np.array([-2000, -5, 0, 3, 4000], np.int16).reshape(5, 1, 1)
    assert Clip(-1000.5, 1000.5)(volume, {}).ravel().tolist() == [-1000, -5, 0, 3, 1000]
    assert Clip(-1e9, 1e9)(volume, {}).dtype == np.int16
    assert Cast("float32")(volume, {}).dtype == np.float32
    assert Cast("int8")(np.array([1.5, 2.5, -3.4]).reshape(3, 1, 1), {}).ravel().tolist() == [2, 2, -3]
    out = Normalize()(volume, {})
    assert (out.dtype, round(float(out.mean()), 5), round(float(out.std()), 5)) == (np.float32, 0, 1)
    assert Normalize(0, 2)(volume, {}).ravel().tolist() == [-1000, -2.5, 0, 1.5, 2000]


@pytest.mark.parametrize(
    ("make", "why"),
    [
        (lambda: Resample(0), "positive"),
        (lambda: Resample((1, 2)), "positive"),  # type: ignore[arg-type]
        (lambda: Reorient("RRS"), "three letters"),
        (lambda: Reorient("RA"), "three letters"),
        (lambda: Cast("number"), "no dtype"),
        (lambda: ResampleTo(np.zeros((4, 4)), (1, 1, 1)), "inverted"),  # type: ignore[arg-type]
        (lambda: Cast("int8")(np.array([[[300]]]), {}), "300 cannot be held by int8"),
        (lambda: Cast("int8")(np.array([[[np.nan]]]), {}), "NaN"),
        (lambda: Normalize()(np.ones((2, 2, 2)), {}), "alike"),
        (lambda: Pad(3, value=0.5)(np.ones((2, 2, 2), np.int16), {"affine": np.eye(4)}), "held by int16"),
        (lambda: Crop((0, 0, 0), (9, 1, 1))(np.ones((2, 2, 2)), {"affine": np.eye(4)}), "does not lie in"),
    ],
)
def test_what_cannot_be_asked(make: Any, why: str) -> None:
    with pytest.raises((ConfigError, GeometryError), match=why):
        make()


def test_a_derived_grid_goes_out_as_a_nifti(tiny: Tiny, tmp_path: Any) -> None:
    import nibabel as nib

    report = tiny.cohort.CT.lazy().map(Resample(2.0)).map(Reorient("LPS")).map(Pad(30)).write(tmp_path / "c")
    for volume in report.collection:
        image = nib.load(volume.to_nifti(tmp_path / "x.nii.gz"))
        np.testing.assert_allclose(image.affine, volume.affine, atol=1e-4)
        np.testing.assert_array_equal(np.asanyarray(image.dataobj), volume.to_numpy())
        assert "".join(nib.aff2axcodes(image.affine)) == "LPS" == volume.obs["orientation"]
        np.testing.assert_allclose(volume.spacing, 2.0)
    with pytest.raises(PipelineError, match=r"'sub-00_CT'.*CropForeground\(above=9000.*no foreground"):
        tiny.cohort.CT.lazy().map(CropForeground(9000)).write(tmp_path / "d")
