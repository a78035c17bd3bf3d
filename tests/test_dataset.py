"""PatchDataset: every policy and setting ends in the voxels, the targets and the errors that it promises."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
import torch
from small import SHAPES, small_cohort

from radiodata.errors import ConfigError, PlanError, SampleError, TileReadError, TooManyErrors
from radiodata.inference import VolumeStitcher
from radiodata.loading import PatchDataset, PatchLoader, TableTarget
from radiodata.sampling import Balanced, Foreground, Frames, Grid, MinForeground, Slices, Uniform, Weighted, Whole
from radiodata.store import Cohort

KEYS = {"image": "CT", "label": "seg"}


@pytest.fixture(scope="module")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> Cohort:
    """CT, a second image, a heat map, a label; a subject table."""
    folder = tmp_path_factory.mktemp("dataset")
    small_cohort(folder, subjects=4)
    files = folder / "files"
    for path in sorted((files / "CT").iterdir()):
        image = nib.load(path)
        voxels = np.asarray(image.dataobj)
        heat = np.zeros(voxels.shape, np.float32)
        heat[:10, :10, :10] = 1
        for name, made in (("T2", (voxels // 2).astype(np.int16)), ("heat", heat)):
            (files / name).mkdir(exist_ok=True)
            nib.Nifti1Image(made, image.affine).to_filename(files / name / path.name)
    meta = pd.DataFrame(
        {
            "age": [61, 45, 33, 70],
            "dose": [0.5, 1.5, 2.5, 3.5],
            "treated": [True, False, True, False],
            "grade": pd.array([1, None, 3, 2], dtype="Int64"),
            "site": ["A", "B", "A", "C"],
        },
        index=[f"sub-{n:02d}" for n in range(4)],
    )
    images = {name: files / name for name in ("CT", "T2", "heat", "seg")}
    return Cohort.from_niftis(folder / "whole", images, obs_meta=meta, tiling=16)


def dataset(cohort: Cohort, **settings: Any) -> PatchDataset:
    chosen = {"keys": KEYS, "patch_size": (16, 12, 10), "crops_per_volume": 8, "crops_per_unit": 4, **settings}
    return PatchDataset(cohort, **chosen)


def whole(cohort: Cohort, name: str, sample: dict[str, Any]) -> np.ndarray:
    return cohort[name].of_subject(sample["obs_subject_id"]).to_numpy()


# policies --------------------------------------------------------------------------------------

POLICIES = [
    Foreground(0.5),
    Balanced({1: 1, 2: 1}),
    MinForeground(0.05),
    Uniform(max_air=0.9, weights="dose"),
    Weighted(by="heat"),
    Weighted(by="age"),
    Grid(0.25),
]


@pytest.mark.parametrize("policy", POLICIES, ids=lambda p: type(p).__name__)
def test_every_policy_gives_the_voxels_of_its_boxes(cohort: Cohort, policy: Any) -> None:
    samples = list(dataset(cohort, policy=policy))
    assert samples
    for sample in samples:
        at = tuple(slice(*span) for span in sample["box"].tolist())
        for key, name in KEYS.items():
            assert np.array_equal(sample[key][0].numpy(), whole(cohort, name, sample)[at])


def test_maps_draw_crops_to_where_they_are_high(cohort: Cohort) -> None:
    for sample in dataset(cohort, policy=Weighted(by="heat"), patch_size=6):
        assert (sample["box"][:, 0] < 16).all()  # the map is above 0 in the first tile only


@pytest.mark.parametrize("neighbours", [0, 2])
@pytest.mark.parametrize(("axis", "number"), [("axial", 2), ("sagittal", 0)])
def test_slices_are_channels_and_repeat_at_the_border(cohort: Cohort, axis: str, number: int, neighbours: int) -> None:
    made = dataset(cohort, policy=Slices(axis, neighbours), patch_size=(14, 11), crops_per_volume=40)
    at_border = 0
    for sample in made:
        size = whole(cohort, "CT", sample).shape[number]
        at = [slice(*span) for span in sample["box"].tolist()]
        middle = at[number].start + neighbours
        wanted = np.arange(middle - neighbours, middle + neighbours + 1)
        at_border += bool((wanted < 0).any() or (wanted >= size).any())
        plane = tuple(np.clip(wanted, 0, size - 1) if axis == number else span for axis, span in enumerate(at))
        expected = np.moveaxis(whole(cohort, "CT", sample)[plane], number, 0)
        assert sample["image"].shape == (2 * neighbours + 1, 14, 11)
        assert np.array_equal(sample["image"].numpy(), expected)
        assert np.array_equal(sample["label"][0].numpy(), whole(cohort, "seg", sample)[plane].take(neighbours, number))
    assert bool(at_border) == bool(neighbours)


def test_slices_larger_than_the_plane_are_padded(cohort: Cohort) -> None:
    sample = next(iter(dataset(cohort, policy=Slices("axial", 1), patch_size=(64, 12))))
    assert sample["image"].shape == (3, 64, 12)
    first, last = sample["valid"][0].tolist()
    assert (last - first) == whole(cohort, "CT", sample).shape[0]


def test_frames_of_4d_volumes(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for number in range(2):
        for name, shape, dtype in (("BOLD", (20, 18, 16, 7), np.int16), ("seg", (20, 18, 16), np.uint8)):
            (tmp_path / name).mkdir(exist_ok=True)
            voxels = rng.integers(0, 3 if name == "seg" else 900, shape).astype(dtype)
            nib.Nifti1Image(voxels, np.eye(4)).to_filename(tmp_path / name / f"s{number}.nii.gz")
    cohort = Cohort.from_niftis(tmp_path / "c", {n: tmp_path / n for n in ("BOLD", "seg")}, tiling=16)
    made = dataset(cohort, keys={"image": "BOLD", "label": "seg"}, policy=Frames(Foreground(0.5), count=2, stride=3))
    firsts = set()
    for sample in made:
        at = tuple(slice(*span) for span in sample["box"].tolist())
        frames = whole(cohort, "BOLD", sample)[at][..., sample["frame"] : sample["frame"] + 4 : 3]
        assert np.array_equal(sample["image"].numpy(), np.moveaxis(frames, -1, 0))
        assert np.array_equal(sample["label"][0].numpy(), whole(cohort, "seg", sample)[at])
        firsts.add(sample["frame"])
    assert firsts <= {0, 1, 2, 3}
    assert len(firsts) > 1


def test_whole_volumes_of_several_shapes_cannot_be_stacked(cohort: Cohort) -> None:
    made = dataset(cohort, policy=Whole(), patch_size=None)
    assert [tuple(b["image"].shape[2:]) for b in PatchLoader(made, 1, num_workers=0)]
    with pytest.raises(RuntimeError, match=r"(?i)stack|shape|size"):
        list(PatchLoader(made, 2, num_workers=0))


@pytest.mark.parametrize(("batch", "workers"), [(3, 0), (4, 2)])
def test_windows_of_a_grid_are_stitched_back(cohort: Cohort, batch: int, workers: int) -> None:
    made = dataset(cohort, policy=Grid(0.5), order="sequential", mode="pad")
    stitcher = VolumeStitcher(1, (16, 12, 10), 0.5)
    done = {}
    for windows in PatchLoader(made, batch, num_workers=workers):
        for i, subject in enumerate(windows["obs_subject_id"]):
            shape, start = windows["shape"][i].tolist(), windows["box"][i, :, 0]
            done.update(stitcher.add(subject, shape, windows["image"][i].float(), start))
    assert list(done) == cohort.subjects
    for subject, volume in done.items():
        assert np.allclose(volume[0].numpy(), cohort.CT.of_subject(subject).to_numpy(), atol=1e-3)


# keys and targets ------------------------------------------------------------------------------


def test_collections_are_stacked_into_channels(cohort: Cohort) -> None:
    for sample in dataset(cohort, keys={"image": ["CT", "T2"], "label": "seg"}):
        at = tuple(slice(*span) for span in sample["box"].tolist())
        assert sample["image"].shape[0] == 2
        for channel, name in enumerate(("CT", "T2")):
            assert np.array_equal(sample["image"][channel].numpy(), whole(cohort, name, sample)[at])
        assert sample["image_stats"].shape == (2, 4)


def test_images_and_labels_are_not_stacked(cohort: Cohort) -> None:
    with pytest.raises(ConfigError, match="stacks images and labels"):
        dataset(cohort, keys={"image": ["CT", "seg"]})


def test_table_targets(cohort: Cohort) -> None:
    targets = {
        "age": "age",
        "y": "dose",
        "treated": "treated",
        "name": "site",
        "site": {"column": "site", "classes": ["C", "B", "A"]},
        "grade": TableTarget("age", (33, 45, 61, 70)),
        "voxels": "nonair_voxels",
    }
    for sample in dataset(cohort, targets=targets):
        row = cohort.obs_meta.loc[sample["obs_subject_id"]]
        assert sample["age"].dtype == torch.int64
        assert sample["age"] == row["age"]
        assert sample["y"].dtype == torch.float32
        assert sample["y"] == row["dose"]
        assert sample["treated"].dtype == torch.bool
        assert bool(sample["treated"]) == row["treated"]
        assert sample["name"] == row["site"]
        assert sample["site"] == "CBA".index(row["site"])
        assert sample["grade"] == [33, 45, 61, 70].index(row["age"])
        assert sample["voxels"] == cohort.CT.of_subject(sample["obs_subject_id"]).obs["nonair_voxels"]
    batch = next(iter(PatchLoader(dataset(cohort, targets=targets), 4, num_workers=0)))
    assert batch["age"].shape == (4,)
    assert isinstance(batch["name"], list)


@pytest.mark.parametrize(
    ("targets", "error", "says"),
    [
        ({"y": "grade"}, PlanError, "target column 'grade' has no value for subjects 'sub-01'"),
        ({"y": "agee"}, PlanError, "no column 'agee' in obs_meta, nor in obs of 'CT'; near it: age"),
        ({"y": {"column": "site", "classes": ["A", "B"]}}, PlanError, "none of the classes .* for subjects 'sub-03'"),
        ({"image": "age"}, ConfigError, "have the names of volume keys"),
        ({"y": {"classes": [1]}}, ConfigError, "give a column's name, or column and classes"),
    ],
)
def test_targets_that_cannot_be(cohort: Cohort, targets: dict, error: type[Exception], says: str) -> None:
    with pytest.raises(error, match=says):
        dataset(cohort, targets=targets)


def test_weights_must_be_numbers(cohort: Cohort) -> None:
    with pytest.raises(PlanError, match=r"holds .*, not numbers"):
        dataset(cohort, policy=Uniform(weights="site"))


def test_volumes_of_a_subject_that_lie_apart_are_refused(tmp_path: Path) -> None:
    for name, shift in (("A", 0.0), ("B", 3.0)):
        (tmp_path / name).mkdir()
        affine = np.eye(4)
        affine[0, 3] = shift
        nib.Nifti1Image(np.ones((8, 8, 8), np.int16), affine).to_filename(tmp_path / name / "s1.nii")
    other = Cohort.from_niftis(tmp_path / "c", {n: tmp_path / n for n in "AB"}, validate_alignment=False)
    keys = {"image": "A", "other": "B"}
    with pytest.raises(PlanError, match=r"such as 's1': their corners lie 3 mm apart.*check_affines=False"):
        PatchDataset(other, keys, patch_size=4)
    assert len(PatchDataset(other, keys, patch_size=4, check_affines=False))


# steps -----------------------------------------------------------------------------------------


def test_steps_make_epochs_of_one_endless_stream(cohort: Cohort) -> None:
    def keys(loader: PatchLoader, epochs: int) -> list[list[int]]:
        return [batch["key"].tolist() for _ in range(epochs) for batch in loader]

    whole_passes = keys(PatchLoader(dataset(cohort), 4, num_workers=0), 3)
    for steps in (1, 3, 11):
        loader = PatchLoader(dataset(cohort, steps=steps), 4, num_workers=0)
        assert len(loader) == steps
        epochs = 24 // steps
        assert keys(loader, epochs) == whole_passes[: steps * epochs]


@pytest.mark.parametrize("workers", [0, 2])
def test_resume_in_the_middle_of_a_pass(cohort: Cohort, workers: int) -> None:
    loader = PatchLoader(dataset(cohort, steps=11), 4, num_workers=workers)
    expected = [[batch["key"].tolist() for batch in loader] for _ in range(3)]
    loader = PatchLoader(dataset(cohort, steps=11), 4, num_workers=workers)
    list(loader)
    for number, _ in enumerate(loader):
        if number == 4:
            break
    state = loader.state_dict()
    assert (state["epoch"], state["step"]) == (1, 5)
    again = PatchLoader(dataset(cohort, steps=11), 4, num_workers=2 - workers)
    again.load_state_dict(state)
    assert [batch["key"].tolist() for batch in again] == expected[1][5:]
    assert [batch["key"].tolist() for batch in again] == expected[2]


# errors ----------------------------------------------------------------------------------------


@pytest.fixture
def broken(cohort: Cohort, tmp_path: Path) -> Cohort:
    """A copy in which the voxels of one CT cannot be read."""
    copy = Path(shutil.copytree(cohort.uri, tmp_path / "broken"))
    source = cohort.CT.of_subject("sub-02").source
    shard = copy / "CT" / "voxels" / Path(source.uri).name
    import tiledb

    found = tiledb.array_fragments(str(shard))
    at = [int(d[0][0]) for d in found.nonempty_domain].index(source.slot)
    data = Path(found.uri[at].removeprefix("file://")) / "a0.tdb"
    data.write_bytes(data.read_bytes()[:100])
    return Cohort(copy)


def test_an_unreadable_volume_ends_the_run_and_is_named(broken: Cohort) -> None:
    with pytest.raises(TileReadError, match=r"volume 'sub-02_CT' \(subject 'sub-02'"):
        list(PatchLoader(dataset(broken), 4, num_workers=0))


@pytest.mark.parametrize("policy", [Uniform(), Foreground(0.5), Whole()], ids=lambda p: type(p).__name__)
def test_replaced_samples_are_the_same_on_any_topology(broken: Cohort, policy: Any) -> None:
    size = None if isinstance(policy, Whole) else (16, 12, 10)

    def batches(workers: int, world: int, rank: int) -> list[dict[str, Any]]:
        made = dataset(broken, policy=policy, patch_size=size, on_error="replace", mode="pad")
        return (
            list(PatchLoader(made, 2, num_workers=workers, rank=rank, world_size=world))
            if world > 1
            else list(PatchLoader(made, 1 if size is None else 2, num_workers=workers))
        )

    alone = batches(0, 1, 0)
    subjects = [s for batch in alone for s in batch["obs_subject_id"]]
    assert "sub-02" not in subjects
    assert all(torch.equal(a["key"], b["key"]) for a, b in zip(alone, batches(2, 1, 0), strict=True))
    if size is not None:
        ranks = [batches(0, 2, rank) for rank in range(2)]
        for whole_batch, *parts in zip(alone, *ranks, strict=True):
            assert torch.equal(whole_batch["image"], torch.cat([p["image"] for p in parts]))
    assert all(len(batch["obs_subject_id"]) == (1 if size is None else 2) for batch in alone)


def test_failures_are_counted_and_told_once(broken: Cohort, caplog: pytest.LogCaptureFixture) -> None:
    loader = PatchLoader(dataset(broken, on_error="replace"), 4, num_workers=0)
    assert len(list(loader)) == 8
    assert loader.stats().errors == loader.stats().replaced == 8
    assert len([r for r in caplog.records if "sub-02_CT" in r.getMessage()]) == 1


def test_skipped_samples_make_batches_smaller(broken: Cohort) -> None:
    loader = PatchLoader(dataset(broken, on_error="skip", steps=8), 4, num_workers=0)
    sizes = [len(batch["obs_subject_id"]) for batch in loader]
    assert len(sizes) == 8
    assert sum(sizes) == 24
    assert loader.stats().skipped == 8


def test_skipping_needs_steps(cohort: Cohort) -> None:
    with pytest.raises(ConfigError, match="give steps=N, or use on_error='replace'"):
        dataset(cohort, on_error="skip")


class Breaks:
    """A transform that fails for some subjects."""

    def __init__(self, error: type[BaseException], *subjects: str) -> None:
        self.error, self.subjects = error, subjects

    def __call__(self, sample: dict[str, Any]) -> dict[str, Any]:
        if not self.subjects or sample["obs_subject_id"] in self.subjects:
            raise self.error("no such thing")
        return sample


@pytest.mark.parametrize("workers", [0, 1])
def test_a_failing_transform_is_named_with_its_sample(cohort: Cohort, workers: int) -> None:
    loader = PatchLoader(dataset(cohort, transform=Breaks(ValueError, "sub-01")), 4, num_workers=workers)
    with pytest.raises(SampleError, match=r"cannot transform \[.*\] of volume 'sub-01_CT'.*ValueError: no such thing"):
        list(loader)


@pytest.mark.parametrize("error", [MemoryError, KeyboardInterrupt])
def test_errors_of_the_machine_are_never_swallowed(cohort: Cohort, error: type[BaseException]) -> None:
    loader = PatchLoader(dataset(cohort, transform=Breaks(error, "sub-01"), on_error="replace"), 4, num_workers=0)
    with pytest.raises(error):
        list(loader)


def test_too_many_failures_one_after_another_end_the_run(cohort: Cohort) -> None:
    loader = PatchLoader(
        dataset(cohort, transform=Breaks(ValueError), on_error="replace", max_errors=5), 4, num_workers=0
    )
    with pytest.raises(TooManyErrors, match=r"6 samples failed one after another, and 5 are tolerated.*no such thing"):
        list(loader)


def test_a_batch_of_which_nothing_is_left_is_an_error(cohort: Cohort) -> None:
    made = dataset(cohort, transform=Breaks(ValueError), on_error="skip", steps=4, max_errors=100)
    with pytest.raises(SampleError, match="all samples of its batch were skipped"):
        list(PatchLoader(made, 4, num_workers=0))


def test_shapes_of_volumes_travel_with_samples(cohort: Cohort) -> None:
    for sample in dataset(cohort):
        number = int(sample["obs_subject_id"][-2:])
        assert tuple(sample["shape"].tolist()) == SHAPES[number]
