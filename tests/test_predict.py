"""Predictions in the store: equal however they were made, on the grid of their source, exported onto its voxels."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import lightning
import nibabel as nib
import numpy as np
import pytest
import torch
from small import SHAPES, small_cohort

from radiodata.errors import ConfigError, StateMismatchError, StoreError
from radiodata.inference import SlidingWindow
from radiodata.lightning import PredictToStore, RadiologyDataModule, SegmentationModule, SliceSegmentationModule
from radiodata.lightning.slices import stack_slices
from radiodata.loading import HandleLoader, PatchDataset, VolumeLoader
from radiodata.pipeline import PredictionWriter
from radiodata.sampling import Fractions, Grid, KFold, Slices
from radiodata.store import Cohort

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*treespec, LeafSpec:FutureWarning"),
    pytest.mark.filterwarnings("ignore:Total length of `HandleLoader` across ranks is zero"),  # where nothing lacks
]


@pytest.fixture
def cohort(tmp_path: Path) -> Cohort:
    return small_cohort(tmp_path)


class Net(torch.nn.Module):
    """Class 1 where a smoothed image is high, class 2 where it is very high."""

    def __init__(self, out_channels: int = 3) -> None:
        super().__init__()
        self.scale = torch.nn.Parameter(torch.tensor(4.0))
        self.levels = out_channels

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        smooth = torch.nn.functional.avg_pool3d(image.mean(1, keepdim=True), 3, 1, 1)
        return torch.cat([-((smooth * self.scale - k).abs()) for k in range(self.levels)], dim=1)


def module(**settings: Any) -> SegmentationModule:
    return SegmentationModule(Net(), 3, **{"roi_size": 16, "overlap": 0.5, **settings}).eval()


def data(cohort: Cohort, **settings: Any) -> RadiologyDataModule:
    return RadiologyDataModule(cohort.uri, **{"num_workers": 0, **settings})


def trainer(**settings: Any) -> lightning.Trainer:
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    return lightning.Trainer(accelerator="cpu", enable_checkpointing=False, **quiet, **settings)


def predict(cohort: Cohort, name: str, *, stream: bool, **settings: Any) -> PredictToStore:
    writer = PredictToStore(name, how={"checkpoint": "abc"})
    trainer(callbacks=[writer]).predict(
        module(**settings), datamodule=data(cohort, stream=stream), return_predictions=False
    )
    return writer


def test_streamed_and_whole_predictions_are_the_same(cohort: Cohort) -> None:
    assert len(predict(cohort, "whole", stream=False).written) == 6
    predict(cohort, "streamed", stream=True, memory=0)
    after = Cohort(cohort.uri)
    assert after.streamed.kind == "label"
    for volume in after.CT:
        whole, streamed = (after[n].of_subject(volume.obs_subject_id) for n in ("whole", "streamed"))
        assert streamed.obs_id == volume.obs_id.replace("_CT", "_streamed")
        assert np.isin(streamed.to_numpy(), (0, 1, 2)).all()
        assert len(np.unique(streamed.to_numpy())) == 3
        np.testing.assert_array_equal(whole.to_numpy(), streamed.to_numpy())
        np.testing.assert_array_equal(streamed.affine, volume.affine)
        np.testing.assert_array_equal(
            streamed.crop_world([[5, 15], [0, 12], [14, 30]]).affine[:3, :3], volume.affine[:3, :3]
        )
    steps = str(after._snapshot.record.collections["streamed"].provenance)
    assert "SegmentationModule" in steps
    assert "abc" in steps
    assert after.streamed.obs["label_voxels"].map(sum).tolist() == [int(np.prod(s)) for s in SHAPES]


def test_predictions_are_what_the_network_says_of_normalised_windows(cohort: Cohort) -> None:
    predict(cohort, "pred", stream=True)
    held = data(cohort)
    held.setup()
    for batch in held.predict_dataloader():
        image = held.on_after_batch_transfer(batch, 0)["image"]
        with torch.no_grad():
            from radiodata.inference import TensorVolume

            expected = SlidingWindow(16, 0.5).classes(TensorVolume(image[0]), Net())
        found = Cohort(cohort.uri).pred.of_subject(batch["obs_subject_id"][0]).to_numpy()
        assert (found != expected).mean() < 1e-3


def test_another_cohort_is_normalised_as_the_training_subjects_were(cohort: Cohort, tmp_path: Path) -> None:
    """By the windows of the checkpoint, not by those of whoever is predicted; no split of the new cohort is needed."""
    trained = data(cohort, label="seg", image={"image": "CT"})
    trained.setup("fit")
    torch.save(trained.state_dict(), tmp_path / "state.pt")
    kept = torch.load(tmp_path / "state.pt", weights_only=True)
    brighter = write_brighter(tmp_path / "other", cohort)
    other = data(brighter, image={"image": "CT"}, split=KFold(5))
    other.load_state_dict(kept)
    other.setup("predict")
    batch = next(iter(other.predict_dataloader()))
    expected = trained.on_after_batch_transfer(batch, 0)["image"]
    torch.testing.assert_close(other.on_after_batch_transfer(batch, 0)["image"], expected)
    with pytest.raises(StateMismatchError, match="same keys"):
        data(brighter, image={"ct": "CT"}).load_state_dict(kept)
    fresh = data(brighter, image={"image": "CT"}, split=Fractions(0.5))
    assert not torch.allclose(fresh.on_after_batch_transfer(batch, 0)["image"], expected)


def write_brighter(folder: Path, cohort: Cohort) -> Cohort:
    (folder / "CT").mkdir(parents=True)
    for subject in cohort.subjects[:2]:
        volume = cohort.CT.of_subject(subject)
        image = nib.Nifti1Image((volume.to_numpy() // 2 + 700).astype(np.int16), volume.affine)
        nib.save(image, folder / "CT" / f"{subject}.nii.gz")
    return Cohort.from_niftis(folder / "cohort", {"CT": folder / "CT"}, tiling=16)


def test_a_run_goes_on_with_what_lacks_and_refuses_another_network(cohort: Cohort) -> None:
    class Stops(SegmentationModule):
        def predict_step(self, batch: Any, batch_idx: int) -> Any:
            if batch_idx == 4:
                raise RuntimeError("the GPU has fallen off the bus")
            return super().predict_step(batch, batch_idx)

    writer = PredictToStore("pred", how={"checkpoint": "abc", "module": "SegmentationModule"})
    model = Stops(Net(), 3, roi_size=16)
    with pytest.raises(RuntimeError, match="bus"):
        trainer(callbacks=[writer]).predict(model, datamodule=data(cohort), return_predictions=False)
    assert len(writer.written) == 4
    assert len(Cohort(cohort.uri).pred) == 4
    again = PredictToStore("pred", how={"checkpoint": "abc", "module": "SegmentationModule"})
    trainer(callbacks=[again]).predict(
        module(overlap=0.25), datamodule=data(cohort, stream=True), return_predictions=False
    )
    assert len(again.written) == 2
    assert len(Cohort(cohort.uri).pred) == 6
    for stream in (True, False):  # nothing lacks
        last = PredictToStore("pred", how={"checkpoint": "abc", "module": "SegmentationModule"})
        trainer(callbacks=[last]).predict(module(), datamodule=data(cohort, stream=stream), return_predictions=False)
        assert last.written == []
    with pytest.raises(ConfigError, match="was made otherwise"):
        PredictionWriter(Cohort(cohort.uri).CT, "pred", how={"checkpoint": "another"})


ORIENTATIONS = ["LPS", "PIR", "RAS"]


@pytest.mark.parametrize("codes", ORIENTATIONS)
def test_exported_predictions_lie_on_the_voxels_of_the_source(tmp_path: Path, codes: str) -> None:
    """Whatever the axes of the file: same shape, same affine, bit for bit, and the same voxels."""
    rng = np.random.default_rng(0)
    affine = np.array([[0.9, 0.1, 0, -30], [-0.1, 0.9, 0.05, 12], [0, -0.05, 2.5, 7], [0, 0, 0, 1]])
    image = nib.Nifti1Image(rng.integers(-1000, 1000, (14, 12, 10)).astype(np.int16), affine)
    target = nib.orientations.axcodes2ornt(codes)
    image = image.as_reoriented(nib.orientations.ornt_transform(nib.io_orientation(affine), target))
    image.set_sform(image.affine, 1)
    (tmp_path / "CT").mkdir()
    nib.save(image, tmp_path / "CT" / "s1.nii.gz")
    cohort = Cohort.from_niftis(tmp_path / "cohort", {"CT": tmp_path / "CT"}, tiling=8)
    volume = cohort.CT.iloc[0]
    with PredictionWriter(cohort.CT, "pred") as writer:
        writer.write(volume.obs_id, (volume.to_numpy() > 0).astype(np.uint8), {"score": 0.5})
    predicted = Cohort(cohort.uri).pred.iloc[0]
    assert predicted.obs["score"] == 0.5
    back = nib.load(predicted.to_nifti(tmp_path / "pred.nii.gz"))
    assert back.get_data_dtype() == np.uint8
    np.testing.assert_array_equal(back.affine, image.affine)
    np.testing.assert_array_equal(np.asarray(back.dataobj), np.asarray(image.dataobj) > 0)


def test_probabilities_are_images_with_channels(cohort: Cohort) -> None:
    volume = cohort.CT.iloc[1]
    values = np.random.default_rng(0).random((*SHAPES[1], 3)).astype(np.float32)
    with PredictionWriter(cohort.CT, "chance", kind="image") as writer:
        writer.write(volume.obs_id, values)
    np.testing.assert_array_equal(Cohort(cohort.uri).chance.iloc[0].to_numpy(), values)


def test_what_does_not_fit_is_refused(cohort: Cohort) -> None:
    with pytest.raises(ConfigError, match="has shape"), PredictionWriter(cohort.CT, "pred") as writer:
        writer.write(cohort.CT.iloc[0].obs_id, np.zeros((3, 3, 3), np.uint8))
    assert len(Cohort(cohort.uri).pred) == 0
    with pytest.raises(ConfigError, match="over itself"):
        PredictionWriter(cohort.CT, "CT")
    with pytest.raises((ConfigError, StoreError), match="seg"):
        PredictionWriter(cohort.CT, "seg")
    with pytest.raises(ConfigError, match="needs a RadiologyDataModule"):
        trainer(callbacks=[PredictToStore("x")]).predict(module(), [])


def test_handles_read_what_loaders_give(cohort: Cohort) -> None:
    keys = {"image": ["CT", "CT"]}
    handles = HandleLoader(cohort, keys, rank=1, world_size=2)
    wholes = list(VolumeLoader(cohort, keys))[1::2]
    assert len(handles) == 3
    for handle, whole in zip(handles, wholes, strict=True):
        (volume,) = handle["image"]
        region = np.array([[2, 11], [3, 20], [0, 7]])
        part = whole["image"][0, :, 2:11, 3:20, 0:7].numpy()
        np.testing.assert_array_equal(volume.read(region), part)
        assert len(volume.pad) == 2
        for name in ("affine", "spacing", "shape", "image_stats"):
            assert torch.equal(handle[name], whole[name])
    with pytest.raises(ConfigError, match="not among"):
        HandleLoader(cohort, keys, rank=2, world_size=2)


def test_each_stacked_collection_is_padded_by_its_own_lowest_value(cohort: Cohort) -> None:
    cohort.CT.lazy().map(shifted).write(name="other")
    after = Cohort(cohort.uri)
    dataset = PatchDataset(after, {"image": ["CT", "other"]}, patch_size=64, policy=Grid(0.0), crops_per_unit=1)
    sample = next(iter(dataset))
    lows = [after[n].of_subject(sample["obs_subject_id"]).obs["value_min"] for n in ("CT", "other")]
    assert sample["image"][:, 0, 0, 0].tolist() == lows


def shifted(volume: Any, row: Any) -> Any:
    return volume + 5000


def test_slices_are_stacked_as_in_training(cohort: Cohort) -> None:
    for axis, neighbours in (("axial", 1), ("coronal", 2)):
        policy = Slices(axis, neighbours, Grid(0.0))
        dataset = PatchDataset(cohort, {"image": "CT"}, patch_size=48, policy=policy, crops_per_unit=1)
        for sample in list(dataset)[:40]:
            whole = torch.from_numpy(cohort.CT.of_subject(sample["obs_subject_id"]).to_numpy())[None]
            number = int(sample["box"][policy.number].sum()) // 2
            expected = stack_slices(whole, policy.number, neighbours)[number]
            (x0, x1), (y0, y1) = (sample["valid"][a].tolist() for a in range(3) if a != policy.number)
            torch.testing.assert_close(sample["image"][:, x0:x1, y0:y1], expected)


class Plane(torch.nn.Module):
    def __init__(self, out_channels: int = 3) -> None:
        super().__init__()
        self.conv = torch.nn.Conv2d(3, out_channels, 3, padding=1)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        assert image.shape[2] % 8 == image.shape[3] % 8 == 0
        return self.conv(image)


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_a_network_of_slices_predicts_volumes(axis: int) -> None:
    torch.manual_seed(0)
    model = SliceSegmentationModule(Plane(), 3, axis=axis, divisor=8, sw_batch_size=4).eval()
    volume = torch.randn(1, 13, 17, 11)
    with torch.no_grad():
        labels = model.predict_step({"image": volume[None]}, 0)
    assert labels.shape == (1, 1, 13, 17, 11)
    at = 5
    plane = stack_slices(volume, axis, 1)[at][None]
    pad = (0, -plane.shape[3] % 8, 0, -plane.shape[2] % 8)
    with torch.no_grad():
        out = model.network(torch.nn.functional.pad(plane, pad, mode="replicate"))
    expected = out[0, :, : plane.shape[2], : plane.shape[3]].argmax(0)
    assert torch.equal(labels[0, 0].select(axis, at).long(), expected)


def test_slices_are_mirrored_in_their_plane() -> None:
    torch.manual_seed(0)
    model = SliceSegmentationModule(Plane(), 3, axis="coronal", divisor=8, flips=(0, 2)).eval()
    volume = torch.randn(1, 16, 9, 24)
    with torch.no_grad():
        labels, turned = model.predict_labels(volume), model.predict_labels(volume.flip(1))
    assert (labels != turned.flip(1)).float().mean() < 1e-3
    with pytest.raises(ConfigError, match="across the slices"):
        SliceSegmentationModule(Plane(), 3, axis="coronal", flips=(1,))


RUN = """
import sys, lightning, warnings
sys.path.insert(0, sys.argv[2])
from test_predict import data, module
from radiodata.lightning import PredictToStore
from radiodata.store import Cohort

if __name__ == "__main__":
    writer = PredictToStore("pred", how={"checkpoint": "abc"})
    trainer = lightning.Trainer(accelerator="cpu", devices=2, strategy="ddp", callbacks=[writer], logger=False,
                                enable_checkpointing=False, enable_progress_bar=False)
    trainer.predict(module(), datamodule=data(Cohort(sys.argv[1]), stream=True), return_predictions=False)
    print("wrote", len(writer.written), flush=True)
"""


@pytest.mark.slow
def test_two_processes_write_each_its_volumes(cohort: Cohort, tmp_path: Path) -> None:
    """Of five volumes: one process has one more than the other."""
    cohort = cohort.remove(subjects=cohort.subjects[-1:])
    predict(cohort, "one", stream=True)
    (tmp_path / "run.py").write_text(RUN)
    command = [sys.executable, "run.py", cohort.uri, str(Path(__file__).parent)]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    assert [done.stdout.count(f"wrote {n}") for n in (3, 2)] == [1, 1]
    after = Cohort(cohort.uri)
    assert len(after.pred) == 5
    for subject in after.subjects:
        np.testing.assert_array_equal(
            after.pred.of_subject(subject).to_numpy(), after.one.of_subject(subject).to_numpy()
        )
