"""What a cohort is, summed up from its tables, and what is done to volumes on the way in, against NumPy and scipy."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import ras_affine, save
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from radiodata.errors import ConfigError, IngestError
from radiodata.ingest import ingest_niftis
from radiodata.ingest.components import component_columns
from radiodata.ingest.statistics import foreground_statistics
from radiodata.store import Cohort

SHAPES = [(20, 22, 10), (24, 20, 12), (22, 24, 14)]


def subject(root: Path, number: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(number)
    shape = SHAPES[number]
    ct = rng.integers(-1000, 900, shape).astype(np.int16)
    label = np.zeros(shape, np.uint8)
    label[2:6, 3:7, 2:5] = 1
    label[10:12, 10:12, 6:8] = 1
    if number != 1:
        label[15:17, 4:5, 1:2] = 2
    save(ct, ras_affine(0), root / "CT" / f"s{number}.nii.gz")
    save(label, ras_affine(0), root / "seg" / f"s{number}.nii.gz")
    return ct, label


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Cohort, list[tuple[np.ndarray, np.ndarray]]]:
    root = tmp_path_factory.mktemp("fingerprint")
    truth = [subject(root, n) for n in range(3)]
    ingest_niftis(str(root / "c"), {"CT": root / "CT", "seg": root / "seg"}, tiling=8)
    return Cohort(root / "c"), truth


def test_shapes_and_spacings(made: Any) -> None:
    cohort, _ = made
    found = cohort.fingerprint()
    ct = found.images["CT"]
    assert (found.subjects, ct.volumes, ct.channels, ct.dtypes) == (3, 3, 1, ["int16"])
    assert (ct.shape, ct.shape_range) == ((22, 22, 12), ((20, 20, 10), (24, 24, 14)))
    np.testing.assert_allclose(ct.spacing, (0.75, 1.0, 2.5), rtol=1e-6)
    np.testing.assert_allclose(ct.target_spacing, ct.spacing, rtol=1e-6)
    assert json.loads(json.dumps(found.to_dict()))["labels"]["seg"]["classes"]["1"]["voxels"] == 3 * 56


def test_intensities_inside_labels_and_of_the_body(made: Any) -> None:
    cohort, truth = made
    inside = np.concatenate([ct[label > 0] for ct, label in truth]).astype(np.float64)
    body = np.concatenate([ct[ct > -900] for ct, _ in truth]).astype(np.float64)
    images = cohort.fingerprint().images["CT"]
    for found, values in ((images.foreground, inside), (images.body, body)):
        assert found.voxels == len(values)
        np.testing.assert_allclose((found.mean, found.std), (values.mean(), values.std()))
        np.testing.assert_allclose(
            (found.p005, found.p50, found.p995), np.percentile(values, (0.5, 50, 99.5), method="inverted_cdf")
        )
    row = cohort.CT.obs.iloc[0]
    mine = truth[0][0][truth[0][1] > 0]
    assert (row["foreground_voxels"], row["foreground_min"], row["foreground_max"]) == (
        len(mine),
        mine.min(),
        mine.max(),
    )


def test_classes_and_their_components(made: Any) -> None:
    cohort, _ = made
    classes = cohort.fingerprint().labels["seg"].classes
    assert set(classes) == {1, 2}
    assert (classes[1].volumes, classes[1].voxels, classes[1].components) == (3, 168, 2.0)
    assert (classes[2].volumes, classes[2].voxels, classes[2].components) == (2, 4, 1.0)
    np.testing.assert_allclose(classes[2].component_mm, (1.5, 1.0, 2.5), rtol=1e-6)
    np.testing.assert_allclose(classes[2].component_mm3, 2 * 0.75 * 1.0 * 2.5, rtol=1e-6)
    some = cohort.iloc[[1]].fingerprint()
    assert set(some.labels["seg"].classes) == {1}


def test_a_coarse_axis_is_resampled_as_nnunet_does(tmp_path: Path) -> None:
    affine = np.diag([0.5, 0.5, 6.0, 1.0])
    for number, side in enumerate((6.0, 6.0, 6.0, 3.0)):
        affine[2, 2] = side
        save(np.zeros((40, 40, 5), np.int16), affine, tmp_path / "MR" / f"s{number}.nii.gz")
    ingest_niftis(str(tmp_path / "c"), {"MR": tmp_path / "MR"}, tiling=8)
    found = Cohort(tmp_path / "c").fingerprint().images["MR"]
    np.testing.assert_allclose(found.target_spacing, (0.5, 0.5, np.percentile([6, 6, 6, 3], 10)))
    assert found.foreground is None


def test_windows_are_of_the_foreground_where_there_is_one(made: Any) -> None:
    from radiodata.lightning.normalize import window_of

    cohort, truth = made
    inside = np.concatenate([ct[label > 0] for ct, label in truth])
    window = window_of(cohort.CT)
    assert (window.low, window.high) == tuple(np.percentile(inside, (0.5, 99.5), method="inverted_cdf"))


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 4), st.sampled_from(["uint8", "int32"]))
def test_components_are_those_of_scipy(seed: int, classes: int, dtype: str) -> None:
    rng = np.random.default_rng(seed)
    offset = 0 if dtype == "uint8" else 100_000
    labels = (rng.random((9, 8, 7)) < 0.3) * (rng.integers(1, classes + 1, (9, 8, 7)) + offset)
    found = component_columns(labels.astype(dtype)[None])
    boxes = np.array(found["component_boxes"]).reshape(-1, 3, 2)
    for value in np.unique(labels[labels > 0]):
        parts, count = ndimage.label(labels == value, np.ones((3, 3, 3)))
        mine = np.array(found["component_labels"]) == value
        assert mine.sum() == count
        sizes = np.bincount(parts.ravel())[1:]
        assert sorted(np.array(found["component_voxels"])[mine]) == sorted(sizes)
        spans = {tuple((s.start, s.stop) for s in span) for span in ndimage.find_objects(parts)}
        assert {tuple(map(tuple, b.tolist())) for b in boxes[mine]} == spans


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10_000), st.sampled_from(["int16", "float32", "int32"]))
def test_foreground_statistics_are_those_of_numpy(seed: int, dtype: str) -> None:
    rng = np.random.default_rng(seed)
    values = (rng.normal(size=(1, 6, 5, 4)) * rng.choice([3, 3000, 3e6])).astype(dtype)
    inside = rng.random((6, 5, 4)) < 0.4
    found = foreground_statistics(values, inside)
    body = values[0][inside].astype(np.float64)
    assert found["foreground_voxels"] == len(body)
    if len(body):
        assert found["foreground_p50"] == np.percentile(body, 50, method="inverted_cdf")
        np.testing.assert_allclose(found["foreground_mean"], body.mean(), rtol=1e-6, atol=1e-6)
        assert found["foreground_histogram"].sum() == len(body)
    assert foreground_statistics(values, None)["foreground_voxels"] is None


# on the way in ---------------------------------------------------------------------------------


def test_subjects_are_cut_to_their_foreground_alike(tmp_path: Path) -> None:
    ct = np.full((30, 28, 20), -1000, np.int16)
    ct[5:21, 6:20, 3:15] = np.random.default_rng(0).integers(-100, 300, (16, 14, 12))
    label = np.zeros(ct.shape, np.uint8)
    label[8:10, 8:10, 8:10] = 1
    save(ct, ras_affine(2), tmp_path / "CT" / "a.nii.gz", "LPS")
    save(label, ras_affine(2), tmp_path / "seg" / "a.nii.gz", "PIR")
    ingest_niftis(str(tmp_path / "c"), {"CT": tmp_path / "CT", "seg": tmp_path / "seg"}, crop_foreground=-500, tiling=8)
    cohort = Cohort(tmp_path / "c")
    np.testing.assert_array_equal(cohort.CT.iloc[0].to_numpy(), ct[5:21, 6:20, 3:15])
    np.testing.assert_array_equal(cohort["seg"].iloc[0].to_numpy(), label[5:21, 6:20, 3:15])
    moved = ras_affine(2)
    moved[:3, 3] += moved[:3, :3] @ (5, 6, 3)
    np.testing.assert_allclose(cohort.CT.iloc[0].affine, moved, atol=1e-4)
    assert cohort.CT.iloc[0].obs["foreground_voxels"] == 8
    assert cohort.CT.provenance["steps"] == ["crop_foreground=-500"]


def test_volumes_are_resampled_and_clipped(tmp_path: Path) -> None:
    from radiodata.pipeline import Clip, Resample

    subject(tmp_path, 0)
    images = {"CT": tmp_path / "CT", "seg": tmp_path / "seg"}
    ingest_niftis(str(tmp_path / "plain"), images, tiling=8)
    ingest_niftis(str(tmp_path / "c"), images, spacing=(1.5, 1.5, 2.5), window=(-200, 300), tiling=8)
    plain, cohort = Cohort(tmp_path / "plain"), Cohort(tmp_path / "c")
    truth = plain.CT.map(Resample((1.5, 1.5, 2.5))).map(Clip(-200, 300)).to_list()[0]
    np.testing.assert_array_equal(cohort.CT.iloc[0].to_numpy(), truth.voxels)
    np.testing.assert_allclose(cohort.CT.iloc[0].affine, truth.affine)
    assert set(np.unique(cohort["seg"].iloc[0].to_numpy())) <= {0, 1, 2}
    assert cohort.CT.iloc[0].shape == cohort["seg"].iloc[0].shape


def test_images_without_foreground_are_refused(tmp_path: Path) -> None:
    save(np.zeros((9, 9, 9), np.int16), ras_affine(0), tmp_path / "CT" / "a.nii.gz")
    with pytest.raises(IngestError, match="no voxel is above 5"):
        ingest_niftis(str(tmp_path / "c"), {"CT": tmp_path / "CT"}, crop_foreground=5, tiling=8)
    with pytest.raises(ConfigError, match="must be below"):
        ingest_niftis(str(tmp_path / "c"), {"CT": tmp_path / "CT"}, window=(5, 5))
    with pytest.raises(ConfigError, match="positive lengths"):
        ingest_niftis(str(tmp_path / "c"), {"CT": tmp_path / "CT"}, spacing=-1)
