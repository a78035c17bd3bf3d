"""Boxes, grids and affines."""

from __future__ import annotations

import itertools

import nibabel as nib
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from radiodata import geometry

sizes = st.tuples(*[st.integers(1, 60)] * 3)
tiles = st.tuples(*[st.integers(1, 20)] * 3)
ALL_ORIENTATIONS = [
    "".join(codes)
    for order in itertools.permutations([("L", "R"), ("P", "A"), ("I", "S")])
    for codes in itertools.product(*order)
]


@pytest.mark.parametrize(
    ("value", "expected"), [(3, (3, 3, 3)), ((1, 2, 3), (1, 2, 3)), ([np.int64(4), 5, 6.0], (4, 5, 6))]
)
def test_shape3(value: object, expected: tuple[int, int, int]) -> None:
    assert geometry.shape3(value) == expected


@pytest.mark.parametrize("value", [0, -1, (1, 2), (1, 2, 3, 4), (1, 2, 0), (1, 2, 1.5), ()])
def test_shape3_refuses_naming_the_argument(value: object) -> None:
    with pytest.raises(ValueError, match="patch_size must be one positive int or three"):
        geometry.shape3(value, "patch_size")


@given(sizes, tiles)
def test_tiles_touched_by_the_whole_volume_are_all_tiles(shape: tuple, tile: tuple) -> None:
    whole = geometry.box((0, 0, 0), shape)
    assert geometry.tiles_touched(whole, tile) == np.prod(geometry.tile_counts(shape, tile))


@given(st.data(), sizes, tiles)
def test_tiles_touched_is_the_number_of_distinct_tiles(data: st.DataObject, shape: tuple, tile: tuple) -> None:
    lows = [data.draw(st.integers(0, n - 1)) for n in shape]
    highs = [data.draw(st.integers(lo + 1, n)) for lo, n in zip(lows, shape, strict=True)]
    b = geometry.box(lows, highs)
    sides = (range(lo, hi) for lo, hi in zip(lows, highs, strict=True))
    distinct = np.prod([len({i // t for i in side}) for side, t in zip(sides, tile, strict=True)])
    assert geometry.tiles_touched(b, tile) == distinct
    assert geometry.box_shape(b) == tuple(hi - lo for lo, hi in zip(lows, highs, strict=True))


def test_clip_and_slices() -> None:
    b = geometry.box((-3, 2, 5), (4, 50, 9))
    clipped = geometry.clip_box(b, (10, 10, 10))
    assert clipped.tolist() == [[0, 4], [2, 10], [5, 9]]
    assert geometry.box_slices(clipped, (0, 2, 1)) == (slice(0, 4), slice(0, 8), slice(4, 8))


@pytest.mark.parametrize("codes", ALL_ORIENTATIONS)
def test_reorient_is_what_nibabel_does(codes: str) -> None:
    rng = np.random.default_rng(0)
    voxels, shape = rng.integers(0, 100, (3, 4, 5, 2)), (3, 4, 5)
    turn = nib.orientations.axcodes2ornt(codes)
    affine = np.eye(4)
    affine[:3, :3] = nib.orientations.inv_ornt_aff(turn, shape)[:3, :3] @ np.diag([1, 2, 3])
    affine[:3, :3] += rng.normal(0, 0.05, (3, 3))
    affine[:3, 3] = (-7, 8, 9)
    expected = nib.as_closest_canonical(nib.Nifti1Image(voxels.astype(np.int16), affine))

    found = geometry.ras_transform(affine)
    turned = geometry.reorient(np.moveaxis(voxels, -1, 0), found)

    np.testing.assert_array_equal(np.moveaxis(turned, 0, -1), np.asanyarray(expected.dataobj))
    np.testing.assert_allclose(geometry.reorient_affine(affine, found, shape), expected.affine, atol=1e-12)
    assert geometry.axis_codes(affine) == "".join(nib.aff2axcodes(affine))


def test_crop_affine_places_voxel_zero_where_the_start_was() -> None:
    affine = np.array([[0, -2.0, 0, 5], [1.5, 0, 0, -3], [0, 0.2, 3, 7], [0, 0, 0, 1]])
    moved = geometry.crop_affine(affine, (4, 5, 6))
    np.testing.assert_allclose(moved @ [1, 2, 3, 1], affine @ [5, 7, 9, 1])
    np.testing.assert_allclose(geometry.spacing_of(affine), [1.5, np.hypot(2, 0.2), 3])


def test_an_axis_without_direction_is_refused() -> None:
    with pytest.raises(ValueError, match="axis without direction"):
        geometry.ras_transform(np.diag([1.0, 0.0, 1.0, 1.0]))


@given(
    st.tuples(st.integers(1, 2), st.integers(1, 70), st.integers(1, 20), st.integers(1, 70)),
    st.permutations([0, 1, 2]),
    st.tuples(*[st.sampled_from([1, -1])] * 3),
)
def test_c_order_is_a_copy(shape: tuple[int, int, int, int], order: list[int], steps: tuple[int, int, int]) -> None:
    voxels = np.arange(np.prod(shape), dtype=np.int32).reshape(shape)
    turned = geometry.reorient(voxels, np.array(list(zip(order, steps, strict=True)), np.int8))
    copy = geometry.c_order(turned)
    assert copy.flags.c_contiguous
    np.testing.assert_array_equal(copy, turned)


def test_affines_of_crops_one_by_one_and_at_once() -> None:
    rng = np.random.default_rng(0)
    affines, starts = rng.normal(size=(5, 4, 4)), rng.integers(-9, 99, (5, 3))
    affines[:, 3] = 0, 0, 0, 1
    at_once = geometry.crop_affine(affines, starts)
    for affine, start, found in zip(affines, starts, at_once, strict=True):
        assert np.array_equal(found, geometry.crop_affine(affine, start))
        assert np.allclose(found @ [1, 2, 3, 1], affine @ np.array([*(start + np.array([1, 2, 3])), 1]))
