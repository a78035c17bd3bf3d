"""A volume is indexed as its array would be; collections select without reading."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
from conftest import Tiny
from hypothesis import given, settings
from hypothesis import strategies as st

from radiodata.errors import ConfigError, ObsNotFoundError
from radiodata.store import Cohort, Volume

IDS = [f"sub-{n:02d}_CT" for n in range(6)]


@pytest.fixture(scope="session")
def four_d(tmp_path_factory: pytest.TempPathFactory) -> tuple[Volume, np.ndarray]:
    """Three time frames, stored with slope and intercept; and the array."""
    folder = tmp_path_factory.mktemp("four")
    voxels = np.random.default_rng(5).integers(-300, 900, (18, 21, 17, 3)).astype(np.int16)
    image = nib.Nifti1Image(voxels, np.diag([2.0, 2, 3, 1]))
    image.header.set_slope_inter(0.25, -7.5)
    raw = nib.Nifti1Image(voxels, image.affine, image.header)
    raw.to_filename(folder / "a.nii")
    write_slope(folder / "a.nii", 0.25, -7.5)
    cohort = Cohort.from_niftis(folder / "cohort", {"bold": [folder / "a.nii"]}, tiling=8)
    return cohort["bold"].iloc[0], (voxels * 0.25 - 7.5).astype(np.float32)


def write_slope(path: Path, slope: float, intercept: float) -> None:
    """Put slope and intercept into a .nii without touching its voxels."""
    data = bytearray(path.read_bytes())
    data[112:120] = np.array([slope, intercept], "<f4").tobytes()
    path.write_bytes(data)


def parts(size: int) -> st.SearchStrategy[Any]:
    bound = st.none() | st.integers(-2 * size, 2 * size)
    step = st.none() | st.integers(-4, 5).filter(bool)
    return st.integers(-size, size - 1) | st.builds(slice, bound, bound, step)


@st.composite
def indices(draw: st.DrawFn, shape: tuple[int, ...]) -> Any:
    count = draw(st.integers(0, len(shape)))
    chosen = [draw(parts(n)) for n in shape[:count]]
    if draw(st.booleans()):
        tail = draw(st.integers(0, count))
        chosen = [draw(parts(n)) for n in shape[: count - tail]]
        chosen += [Ellipsis, *(draw(parts(n)) for n in shape[len(shape) - tail :] if tail)]
    return tuple(chosen) if len(chosen) != 1 or draw(st.booleans()) else chosen[0]


def check(volume: Volume, array: np.ndarray, index: Any) -> None:
    expected, found = array[index], volume[index]
    assert found.shape == expected.shape
    assert found.dtype == expected.dtype
    np.testing.assert_array_equal(found, expected)


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_indexing_is_that_of_the_array(tiny: Tiny, data: st.DataObject) -> None:
    obs_id = data.draw(st.sampled_from(IDS))
    check(tiny.cohort.CT.loc[obs_id], tiny.arrays[obs_id], data.draw(indices(tiny.arrays[obs_id].shape)))


@settings(max_examples=80, deadline=None)
@given(st.data())
def test_indexing_of_scaled_time_frames(four_d: tuple[Volume, np.ndarray], data: st.DataObject) -> None:
    check(*four_d, data.draw(indices(four_d[1].shape)))


@pytest.mark.parametrize(
    "index",
    [
        40, -41, (0, 36), (0, 0, -31), (0, 0, 0, 0), (..., ...), (0, 0, 0, 0, ...), 1.0, "x", slice(None, None, 0),
        (slice(0, 4), 99), slice(1.5, 3), (0, None, "a"),
    ],
)  # fmt: skip
def test_errors_are_of_the_kind_that_the_array_raises(tiny: Tiny, index: Any) -> None:
    with pytest.raises((IndexError, TypeError, ValueError)) as expected:
        tiny.arrays[IDS[0]][index]
    with pytest.raises(expected.type):
        tiny.cohort.CT.loc[IDS[0]][index]


@pytest.mark.parametrize("index", [None, True, [0, 1], np.array([0, 1]), np.ones(40, bool)])
def test_what_only_arrays_take_is_refused(tiny: Tiny, index: Any) -> None:
    with pytest.raises(IndexError, match="volumes take ints and slices"):
        tiny.cohort.CT.loc[IDS[0]][index]


def test_slices_of_the_three_planes(tiny: Tiny) -> None:
    volume, array = tiny.cohort.CT.loc[IDS[2]], tiny.arrays[IDS[2]]
    np.testing.assert_array_equal(volume.axial(7), array[:, :, 7])
    np.testing.assert_array_equal(volume.coronal(-1), array[:, -1])
    np.testing.assert_array_equal(volume.sagittal(3), array[3])


def test_metadata_and_conversions(tiny: Tiny, four_d: tuple[Volume, np.ndarray]) -> None:
    for name in ("CT", "seg"):
        for volume in tiny.cohort[name]:
            array = tiny.arrays[volume.obs_id]
            assert (volume.shape, volume.dtype, len(volume)) == (array.shape, array.dtype, array.shape[0])
            np.testing.assert_allclose(volume.affine, tiny.affines[volume.obs_id], atol=1e-5)
            np.testing.assert_allclose(volume.spacing, nib.affines.voxel_sizes(tiny.affines[volume.obs_id]), rtol=1e-6)
            np.testing.assert_array_equal(np.asarray(volume), array)
            np.testing.assert_array_equal(volume.to_numpy(), array)
            assert np.asarray(volume, np.float64).dtype == np.float64
    volume, array = four_d
    assert (volume.shape, volume.dtype) == (array.shape, np.float32)
    with pytest.raises(ValueError, match="is on disk"):
        np.array(volume, copy=False)


# collections and cohorts -----------------------------------------------------------------------


def test_iteration_and_lookup_agree(tiny: Tiny) -> None:
    collection = tiny.cohort.CT
    assert [v.obs_id for v in collection] == IDS == list(collection.obs.index)
    assert [collection.iloc[i].obs_id for i in range(-6, 6)] == IDS * 2
    assert collection.of_subject("sub-03").obs_id == "sub-03_CT"
    assert [s.obs_id for s in collection.sources()] == IDS
    assert {v.obs_subject_id for v in collection} == set(tiny.cohort.subjects)


def test_views_select_and_read_right(tiny: Tiny) -> None:
    collection = tiny.cohort.CT
    views = [
        (collection.iloc[1:5:2], [1, 3]),
        (collection.iloc[[4, 0]], [4, 0]),
        (collection.loc[[IDS[5], IDS[2]]], [5, 2]),
        (collection.loc[[True, False, False, False, False, True]], [0, 5]),
        (collection.loc[collection.obs["size_x"] > 37], [0, 4, 5]),
        (collection.loc[[]], []),
        (collection.iloc[::-1].iloc[:2], [5, 4]),
    ]
    for view, expected in views:
        assert [v.obs_id for v in view] == [IDS[i] for i in expected]
        for volume in view:
            np.testing.assert_array_equal(volume[2:9, 3], tiny.arrays[volume.obs_id][2:9, 3])
        assert list(view.tile_statistics().index) == [IDS[i] for i in expected]
        assert list(view.histograms().index) == [IDS[i] for i in expected]


def test_a_mask_is_aligned_by_its_index_as_in_pandas(tiny: Tiny) -> None:
    collection = tiny.cohort.CT
    mask = (collection.obs["size_x"] > 37).iloc[::-1]
    assert [v.obs_id for v in collection.loc[mask]] == list(collection.obs.loc[mask].index)


def test_what_is_not_held_is_named_with_what_is_near(tiny: Tiny) -> None:
    collection = tiny.cohort.CT
    with pytest.raises(ObsNotFoundError, match=r"holds no volume \['sub-01_ct'\]; did you mean 'sub-01_CT'"):
        collection.loc["sub-01_ct"]
    with pytest.raises(KeyError, match="sub-99"):
        collection.loc[[IDS[0], "sub-99"]]
    with pytest.raises(IndexError, match="position 6 is out of range"):
        collection.iloc[6]
    with pytest.raises(ObsNotFoundError, match="subject 'nobody' has no volume in collection 'CT'"):
        collection.of_subject("nobody")
    with pytest.raises(ObsNotFoundError, match="no collection 'MR'; it has: CT, seg"):
        tiny.cohort["MR"]
    with pytest.raises(AttributeError, match="no collection 'MR'"):
        _ = tiny.cohort.MR


def test_several_volumes_of_a_subject_are_not_chosen_from_in_silence(tiny: Tiny) -> None:
    twice = tiny.cohort.CT.iloc[[0, 0]]
    with pytest.raises(ObsNotFoundError, match="has 2 volumes"):
        twice.of_subject("sub-00")


def test_obs_meta_comes_back_typed(tiny: Tiny) -> None:
    found, given_ = tiny.cohort.obs_meta, tiny.obs_meta
    assert list(found.columns) == list(given_.columns)
    for name in given_.columns:
        for subject in given_.index:
            a, b = found.loc[subject, name], given_.loc[subject, name]
            assert (pd.isna(a) and pd.isna(b)) or a == b


def test_subset_keeps_the_order_and_its_volumes(tiny: Tiny) -> None:
    view = tiny.cohort.subset(["sub-04", "sub-01"])
    assert view.subjects == ["sub-04", "sub-01"] == list(view)
    assert [v.obs_id for v in view.seg] == ["sub-04_seg", "sub-01_seg"]
    assert view.obs_meta["age"].tolist() == [52, 45]
    assert (len(view), "seg" in view, view.collections) == (2, True, ("CT", "seg"))
    with pytest.raises(ObsNotFoundError, match=r"no subject \['sub-77'\]"):
        tiny.cohort.subset(["sub-01", "sub-77"])
    with pytest.raises(ConfigError, match="named twice"):
        tiny.cohort.subset(["sub-01", "sub-01"])


def test_cohorts_and_volumes_are_pickled(tiny: Tiny) -> None:
    cohort = pickle.loads(pickle.dumps(tiny.cohort))
    volume = pickle.loads(pickle.dumps(tiny.cohort.CT.loc[IDS[1]]))
    pd.testing.assert_frame_equal(cohort.obs_meta, tiny.cohort.obs_meta)
    np.testing.assert_array_equal(cohort.CT.loc[IDS[1]].to_numpy(), tiny.arrays[IDS[1]])
    np.testing.assert_array_equal(volume[5:], tiny.arrays[IDS[1]][5:])


def test_reprs_say_what_it_is(tiny: Tiny) -> None:
    assert "6 subjects, CT (6 images), seg (6 labels)" in repr(tiny.cohort)
    assert "6 volumes, tile=(16, 16, 16)" in repr(tiny.cohort.CT)
    assert "Volume('sub-00_CT', shape=(40, 36, 30), dtype=int16" in repr(tiny.cohort.CT.iloc[0])
    assert {"CT", "seg", "subset"} <= set(dir(tiny.cohort))
