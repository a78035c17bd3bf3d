"""The demo phantom: a task that needs context, in files that need their affine."""

from __future__ import annotations

import csv
from dataclasses import fields
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from radiodata.demo.files import DemoFiles, write_demo
from radiodata.demo.phantom import ORGANS, Phantom, make_phantom

SUBJECTS = 8


def phantom(index: int, size: int = 48, seed: int = 0) -> Phantom:
    return make_phantom(np.random.default_rng([seed, index]), size)


@pytest.fixture(scope="module")
def phantoms() -> list[Phantom]:
    return [phantom(index) for index in range(SUBJECTS)]


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> DemoFiles:
    return write_demo(tmp_path_factory.mktemp("demo"), subjects=SUBJECTS, size=48, seed=0)


def world_centre(label: np.ndarray, affine: np.ndarray, value: int) -> np.ndarray:
    """Return the centre of a class in mm, RAS+: x grows towards the right of the patient."""
    return nib.affines.apply_affine(affine, np.argwhere(label == value).mean(0))


def load(path: Path) -> tuple[np.ndarray, np.ndarray]:
    image = nib.load(path)
    return np.asanyarray(image.dataobj), image.affine


def best_threshold_dice(phantoms: list[Phantom], value: int) -> float:
    """Dice of the best interval of HU, told every voxel's class: the ceiling of any windowing."""
    edges = np.arange(-1025, 1502)
    inside = sum(np.histogram(p.image[p.label == value], edges)[0] for p in phantoms)
    everything = sum(np.histogram(p.image, edges)[0] for p in phantoms)
    hits, size = (np.concatenate([[0], np.cumsum(counts)]) for counts in (inside, everything))
    hits, size = hits[::4], size[::4]  # 4 HU apart
    dice = 2 * (hits[:, None] - hits) / np.maximum(size[:, None] - size + hits[-1], 1)
    return float(dice.max())


# the phantom -----------------------------------------------------------------------------------


def test_the_same_generator_gives_the_same_phantom() -> None:
    first, again, other = phantom(3), phantom(3), phantom(4)
    for field in fields(Phantom):
        np.testing.assert_array_equal(getattr(first, field.name), getattr(again, field.name))
    assert first.image.shape != other.image.shape or (first.image != other.image).any()


@pytest.mark.parametrize("size", [24, 48, 64])
def test_every_organ_is_in_every_phantom(size: int) -> None:
    for index in range(SUBJECTS):
        counts = np.bincount(phantom(index, size).label.ravel(), minlength=4)
        assert counts.size == 4, f"labels beyond 3 in phantom {index}"
        assert (counts[1:] > 10).all(), f"phantom {index} of size {size}: {counts}"


def test_types_and_hounsfield_range(phantoms: list[Phantom]) -> None:
    for p in phantoms:
        assert (p.image.dtype, p.label.dtype, p.affine.dtype) == (np.int16, np.uint8, np.float64)
        assert p.image.shape == p.label.shape
        assert -1024 <= p.image.min() < -950, "air"
        assert 300 < p.image.max() <= 1500, "bone"
        assert (p.image < -950).mean() > 0.1
        np.testing.assert_allclose(np.linalg.norm(p.affine[:3, :3], axis=0), p.spacing)
        assert np.linalg.det(p.affine[:3, :3]) > 0


def test_organs_share_their_intensities(phantoms: list[Phantom]) -> None:
    means = [[p.image[p.label == value].mean() for value in ORGANS.values()] for p in phantoms]
    assert np.ptp(np.mean(means, axis=0)) < 25, "organ means lie closer than the noise (sd 20 HU) spreads"
    assert best_threshold_dice(phantoms, ORGANS["spleen"]) < 0.3
    assert best_threshold_dice(phantoms, ORGANS["kidneys"]) < 0.3
    assert best_threshold_dice(phantoms, ORGANS["liver"]) < 0.75


def test_one_threshold_misses_even_with_a_threshold_per_subject(phantoms: list[Phantom]) -> None:
    for p in phantoms:
        assert best_threshold_dice([p], ORGANS["spleen"]) < 0.5
        assert best_threshold_dice([p], ORGANS["kidneys"]) < 0.5


def test_liver_lies_right_and_above_spleen_left_kidneys_on_both_sides(phantoms: list[Phantom]) -> None:
    for p in phantoms:
        liver, spleen, kidneys = (world_centre(p.label, p.affine, value) for value in (1, 2, 3))
        assert liver[0] > 20 > -20 > spleen[0]
        assert kidneys[2] < min(liver[2], spleen[2])
        sides = nib.affines.apply_affine(p.affine, np.argwhere(p.label == 3))[:, 0]
        assert 0.15 < (sides > 0).mean() < 0.85


def test_shapes_spacings_and_obliquity_vary(phantoms: list[Phantom]) -> None:
    assert len({p.image.shape for p in phantoms}) >= SUBJECTS // 2
    assert len({tuple(p.spacing) for p in phantoms}) == SUBJECTS
    assert all(p.spacing[2] > 1.4 * p.spacing[0] for p in phantoms), "slices are thicker than pixels"
    oblique = [np.abs(p.affine[:3, :3] - np.diag(p.spacing)).max() > 1e-6 for p in phantoms]
    assert 1 <= sum(oblique) < SUBJECTS


def test_diagnosis_and_age_show_in_the_anatomy() -> None:
    many = [phantom(index, 24, seed=1) for index in range(150)]

    def litres(p: Phantom, organ: str) -> float:
        return float((p.label == ORGANS[organ]).sum() * p.spacing.prod() / 1e6)

    def mean(organ: str, diagnosis: str) -> float:
        return float(np.mean([litres(p, organ) for p in many if p.diagnosis == diagnosis]))

    assert mean("liver", "hepatomegaly") > 1.2 * mean("liver", "healthy")
    assert mean("spleen", "splenomegaly") > 1.5 * mean("spleen", "healthy")
    assert np.corrcoef([p.age for p in many], [litres(p, "kidneys") for p in many])[0, 1] < -0.15
    assert {p.sex for p in many} == {"F", "M"}


def test_a_size_too_small_is_refused() -> None:
    with pytest.raises(ValueError, match=r"size=23 is too small.*24 or more"):
        make_phantom(np.random.default_rng(0), 23)


# the files -------------------------------------------------------------------------------------


def test_files_hold_the_phantoms_in_several_orientations(demo: DemoFiles, phantoms: list[Phantom]) -> None:
    orientations = set()
    for image_path, label_path, expected in zip(demo.images, demo.labels, phantoms, strict=True):
        image, label = nib.load(image_path), nib.load(label_path)
        orientations.add("".join(nib.aff2axcodes(image.affine)))
        np.testing.assert_array_equal(image.affine, label.affine)
        canonical, canonical_label = nib.as_closest_canonical(image), nib.as_closest_canonical(label)
        np.testing.assert_array_equal(np.asanyarray(canonical.dataobj), expected.image)
        np.testing.assert_array_equal(np.asanyarray(canonical_label.dataobj), expected.label)
        np.testing.assert_allclose(canonical.affine, expected.affine, atol=1e-3)
    assert orientations == {"RAS", "LAS", "LPS", "PIR"}


def test_stored_voxels_map_to_the_world_of_the_phantom(demo: DemoFiles, phantoms: list[Phantom]) -> None:
    for path, expected in zip(demo.labels, phantoms, strict=True):
        label, affine = load(path)
        for value in ORGANS.values():
            want = world_centre(expected.label, expected.affine, value)
            np.testing.assert_allclose(world_centre(label, affine, value), want, atol=1e-3)
    reader_that_ignores_affines = [np.argwhere(load(path)[0] == 1).mean(0)[0] for path in demo.labels]
    middle = [load(path)[0].shape[0] / 2 for path in demo.labels]
    sides = np.array(reader_that_ignores_affines) > np.array(middle)
    assert sides.any()
    assert not sides.all()


def test_headers_are_complete(demo: DemoFiles) -> None:
    for path, dtype in [*((p, np.int16) for p in demo.images), *((p, np.uint8) for p in demo.labels)]:
        image = nib.load(path)
        assert image.get_data_dtype() == dtype
        assert (image.header["sform_code"], image.header["qform_code"]) == (1, 1)
        assert image.header.get_xyzt_units()[0] == "mm"
        assert (image.dataobj.slope, image.dataobj.inter) == (1, 0)
        np.testing.assert_allclose(image.get_qform(), image.get_sform(), atol=1e-3)


def test_the_table_names_every_subject(demo: DemoFiles, phantoms: list[Phantom]) -> None:
    with demo.obs_meta.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["obs_subject_id"] for row in rows] == [path.name.split(".")[0] for path in demo.images]
    for row, expected in zip(rows, phantoms, strict=True):
        assert (int(row["age"]), row["sex"]) == (expected.age, expected.sex)
        assert row["diagnosis"] == expected.diagnosis


def test_a_subject_does_not_depend_on_their_number_and_files_are_reproducible(demo: DemoFiles, tmp_path: Path) -> None:
    fewer = write_demo(tmp_path, subjects=2, size=48, seed=0)
    for some, all_ in ((fewer.images, demo.images), (fewer.labels, demo.labels)):
        for one, other in zip(some, all_, strict=False):
            assert one.read_bytes() == other.read_bytes()
    assert write_demo(tmp_path, subjects=2, size=48, seed=0) == fewer, "writing again is allowed"
    other_seed = write_demo(tmp_path / "other", subjects=1, size=48, seed=1)
    assert other_seed.images[0].read_bytes() != fewer.images[0].read_bytes()


@pytest.mark.parametrize(("argument", "least"), [("subjects", 1), ("size", 24), ("seed", 0)])
def test_bad_arguments_say_what_to_give(tmp_path: Path, argument: str, least: int) -> None:
    with pytest.raises(ValueError, match=f"{argument}={least - 1} is too small.*give {least} or more"):
        write_demo(tmp_path, **{argument: least - 1})
    assert not list(tmp_path.iterdir())


def test_other_scans_in_the_directory_are_refused(tmp_path: Path) -> None:
    write_demo(tmp_path, subjects=2, size=24)
    with pytest.raises(FileExistsError, match=r"1 other scans \(first: sub-002.nii.gz\).*empty directory"):
        write_demo(tmp_path, subjects=1, size=24)
