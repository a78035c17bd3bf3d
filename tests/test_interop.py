"""MONAI's and TorchIO's own tools on what comes out of a cohort."""

from __future__ import annotations

import copy
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from small import SHAPES, small_cohort

from radiodata.errors import ConfigError
from radiodata.interop import (
    ToMetaTensor,
    create_training_dataloader,
    create_validation_dataloader,
    subjects_dataset,
)
from radiodata.store import Cohort


@pytest.fixture(scope="module")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> Cohort:
    return small_cohort(tmp_path_factory.mktemp("interop"))


def test_a_loader_in_one_line(cohort: Cohort) -> None:
    loader = create_training_dataloader(
        cohort.uri,
        label="seg",
        patch_size=12,
        batch_size=2,
        num_workers=0,
        crops_per_volume=4,
        crops_per_unit=2,
        threads=1,
    )
    batches = list(loader)
    assert len(batches) == len(loader) == 12
    assert batches[0]["image"].shape == (2, 1, 12, 12, 12)
    volumes = create_validation_dataloader(cohort, label="seg")
    assert [tuple(b["image"].shape[2:]) for b in volumes] == SHAPES
    with pytest.raises(TypeError, match=r"no options \['patchsize'\]"):
        create_training_dataloader(cohort, patchsize=3)


def test_metatensors_batch_and_come_apart(cohort: Cohort) -> None:
    monai_data = pytest.importorskip("monai.data")
    loader = create_training_dataloader(
        cohort,
        label="seg",
        patch_size=12,
        num_workers=0,
        transform=ToMetaTensor(),
        collate_fn=monai_data.list_data_collate,
    )
    batch = next(iter(loader))
    assert isinstance(batch["image"], monai_data.MetaTensor)
    parts = monai_data.decollate_batch(batch)
    assert len(parts) == 4
    for part in parts:
        assert torch.equal(part["image"].affine, part["affine"])
        assert part["image"].meta["filename_or_obj"] == part["obs_id"]
        volume = cohort.CT.of_subject(part["obs_subject_id"])
        (x, _), (y, _), (z, _) = part["box"].tolist()
        expected = volume.affine @ [x, y, z, 1]
        np.testing.assert_allclose(part["image"].affine.numpy()[:3, 3], expected[:3])


def test_plain_batches_come_apart_and_monais_inferer_takes_volumes(cohort: Cohort) -> None:
    monai_data, inferers = pytest.importorskip("monai.data"), pytest.importorskip("monai.inferers")
    batch = next(iter(create_training_dataloader(cohort, label="seg", patch_size=12, num_workers=0)))
    parts = monai_data.decollate_batch({k: batch[k] for k in ("image", "label", "affine", "obs_id")})
    assert [p["obs_id"] for p in parts] == batch["obs_id"]
    assert torch.equal(parts[2]["image"], batch["image"][2])
    volume = next(iter(create_validation_dataloader(cohort)))["image"].float()
    out = inferers.SlidingWindowInferer(16, overlap=0.25, mode="gaussian")(volume, lambda w: w * 2)
    torch.testing.assert_close(out, volume * 2, atol=1e-2, rtol=1e-4)


def test_subjects_are_read_when_they_are_asked_for(cohort: Cohort, monkeypatch: pytest.MonkeyPatch) -> None:
    torchio = pytest.importorskip("torchio")
    from radiodata.interop import torchio as ours

    reads: list[str] = []
    read = ours.Reader.__call__
    monkeypatch.setattr(
        ours.Reader, "__call__", lambda self, path: reads.append(self.handle.obs_id) or read(self, path)
    )
    dataset = subjects_dataset(cohort, {"ct": "CT", "both": ["CT", "CT"], "seg": "seg"})
    assert len(dataset) == 6
    for subject, shape in zip(dataset.dry_iter(), SHAPES, strict=True):
        assert subject["ct"].shape == (1, *shape)
        assert subject["both"].shape == (2, *shape)
        assert subject["ct"].spacing == pytest.approx((1, 1.5, 2))
    assert not reads
    subject = dataset[2]
    volume = cohort.CT.of_subject(subject["obs_subject_id"])
    np.testing.assert_array_equal(subject["ct"].data[0].numpy(), volume.to_numpy())
    np.testing.assert_array_equal(subject["both"].affine, volume.affine)
    assert isinstance(subject["seg"], torchio.LabelMap)
    assert reads == ["sub-02_CT", "sub-02_CT", "sub-02_seg"]
    for twin in (copy.copy(subject["ct"]), copy.deepcopy(subject["ct"]), pickle.loads(pickle.dumps(subject["ct"]))):
        assert torch.equal(twin.data, subject["ct"].data)
        np.testing.assert_array_equal(twin.affine, volume.affine)


@pytest.mark.filterwarnings("ignore:TileDB is a multithreading library")  # torch's workers fork; we clean up after that
@pytest.mark.parametrize("workers", [0, 2])
def test_a_queue_draws_patches_of_subjects(cohort: Cohort, workers: int) -> None:
    torchio = pytest.importorskip("torchio")
    dataset = subjects_dataset(cohort, {"ct": "CT", "seg": "seg"}, transform=torchio.RandomFlip())
    sampler = torchio.LabelSampler(12, label_name="seg")
    queue = torchio.Queue(dataset, 16, 4, sampler, num_workers=workers)
    batches = list(torchio.SubjectsLoader(queue, batch_size=4))
    assert len(batches) == 6
    for batch in batches:
        assert batch["ct"]["data"].shape == (4, 1, 12, 12, 12)
        middles = batch["seg"]["data"][:, 0, 6, 6, 6]
        assert (middles > 0).all()


def test_torchios_grid_puts_a_volume_together(cohort: Cohort) -> None:
    torchio = pytest.importorskip("torchio")
    subject = subjects_dataset(cohort, {"ct": "CT"})[0]
    grid = torchio.GridSampler(subject, 16, 4)
    aggregator = torchio.GridAggregator(grid)
    for batch in torchio.SubjectsLoader(grid, batch_size=4):
        aggregator.add_batch(batch["ct"]["data"] * 2, batch["location"])
    assert torch.equal(aggregator.get_output_tensor(), subject["ct"].data * 2)


def test_targets_go_with_subjects(tmp_path: Path) -> None:
    pytest.importorskip("torchio")
    import pandas as pd

    cohort = small_cohort(tmp_path, subjects=2)
    table: Any = pd.DataFrame({"age": [30, 40]}, index=cohort.subjects)
    dataset = subjects_dataset(cohort.update_obs_meta(table), {"ct": "CT"}, targets={"age": "age"})
    assert [int(s["age"]) for s in dataset.dry_iter()] == [30, 40]
    with pytest.raises(ConfigError, match="needs keys"):
        subjects_dataset(cohort, {})
