"""The data module under a Trainer's settings: what is taken of an epoch, stages, modalities, targets, batch sizes."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import lightning
import numpy as np
import pandas as pd
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from small import small_cohort

from radiodata.augment import Augment
from radiodata.errors import ConfigError, PlanError
from radiodata.lightning import RadiologyDataModule, Window
from radiodata.sampling import Fractions, Frozen, Grid, Slices, Uniform
from radiodata.store import Cohort

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*treespec, LeafSpec:FutureWarning"),
    pytest.mark.filterwarnings("ignore:The dirpath has changed"),
]


@pytest.fixture(scope="module")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> Cohort:
    cohort = small_cohort(tmp_path_factory.mktemp("stages"))
    cohort.CT.lazy().map(half).write(name="PET")
    ages = {s: {"age": 20 + 10 * i, "healthy": bool(i % 2)} for i, s in enumerate(cohort.subjects)}
    return Cohort(cohort.uri).update_obs_meta(pd.DataFrame.from_dict(ages, orient="index"))


def half(volume: Any, row: Any) -> Any:
    return (volume // 2).astype(np.int16)


class Recorder(lightning.LightningModule):
    """Writes down what came, batch by batch."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.seen: dict[str, list[Any]] = {"train": [], "val": [], "test": [], "predict": []}
        self.losses: list[float] = []

    def note(self, stage: str, batch: dict[str, Any]) -> torch.Tensor:
        real = batch["key"][~batch["is_padding"]]
        self.seen[stage].append([int(k) for k in real])
        self.last = batch
        image = next(v for v in batch.values() if isinstance(v, torch.Tensor) and v.dtype == torch.float32)
        return ((self.weight + 1) * image.mean()).square()

    def training_step(self, batch: dict[str, Any], _: int) -> torch.Tensor:
        loss = self.note("train", batch)
        self.losses.append(float(loss.detach()))
        return loss

    def validation_step(self, batch: dict[str, Any], _: int) -> None:
        self.note("val", batch)

    def test_step(self, batch: dict[str, Any], batch_idx: int) -> None:
        self.note("test", batch)

    def predict_step(self, batch: dict[str, Any], _: int) -> torch.Tensor:
        return self.note("predict", batch)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=1e-3)


def module(cohort: Cohort, **settings: Any) -> RadiologyDataModule:
    given = {"label": "seg", "patch_size": 12, "num_workers": 0, "crops_per_volume": 4, "crops_per_unit": 4}
    return RadiologyDataModule(cohort.uri, **{**given, **settings})


def trainer(**settings: Any) -> lightning.Trainer:
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    chosen = {"accelerator": "cpu", "enable_checkpointing": False, "max_epochs": 2, "num_sanity_val_steps": 0}
    return lightning.Trainer(**{**quiet, **chosen, **settings})


def fit(cohort: Cohort, data: dict[str, Any] | None = None, ckpt: Path | None = None, **settings: Any) -> Recorder:
    """Train, with warnings as errors."""
    model = Recorder()
    trainer(**settings).fit(model, datamodule=module(cohort, **(data or {})), ckpt_path=ckpt)
    return model


@pytest.fixture(scope="module")
def plain(cohort: Cohort) -> list[list[int]]:
    seen = fit(cohort).seen["train"]
    assert len(seen) == 10  # 5 subjects x 4 crops in batches of 4, twice
    return seen


@pytest.mark.parametrize(
    ("settings", "per_epoch"),
    [
        ({"limit_train_batches": 3}, 3),
        ({"limit_train_batches": 0.5}, 2),
        ({"accumulate_grad_batches": 3}, 5),
        ({"val_check_interval": 2}, 5),
        ({"reload_dataloaders_every_n_epochs": 1}, 5),
        ({"use_distributed_sampler": False, "limit_val_batches": 1}, 5),
    ],
)
def test_settings_of_the_trainer(
    cohort: Cohort, plain: list[list[int]], settings: dict[str, Any], per_epoch: int
) -> None:
    model = fit(cohort, **settings)
    assert model.seen["train"] == [*plain[:per_epoch], *plain[5 : 5 + per_epoch]]
    assert len(model.seen["val"]) == (4 if "val_check_interval" in settings else 2)


def test_overfitting_meets_the_same_batches_again(cohort: Cohort, plain: list[list[int]]) -> None:
    seen = fit(cohort, overfit_batches=2, max_epochs=3).seen["train"]
    assert seen == plain[:2] * 3


@pytest.mark.parametrize("settings", [{"limit_train_batches": 3}, {"accumulate_grad_batches": 2}, {}])
@pytest.mark.parametrize("every", [{"every_n_train_steps": 1}, {"every_n_epochs": 1}])
def test_every_checkpoint_goes_on_exactly(
    cohort: Cohort, tmp_path: Path, settings: dict[str, Any], every: dict[str, int]
) -> None:
    """Also where a trainer takes a part of the epoch only, and saves between epochs."""

    def run(folder: str, ckpt: Path | None = None) -> Recorder:
        saving = ModelCheckpoint(tmp_path / folder, filename="{step}", save_top_k=-1, **every)
        return fit(cohort, ckpt=ckpt, callbacks=[saving], enable_checkpointing=True, **settings)

    whole = run("first")
    saved = sorted((tmp_path / "first").glob("*.ckpt"))
    assert saved
    for path in saved:
        step = torch.load(path, weights_only=True)["global_step"]
        batches = step * settings.get("accumulate_grad_batches", 1)
        rest = run(f"after {step}", path)
        per_epoch = len(whole.seen["train"]) // 2
        done = (
            min(batches, per_epoch)
            if batches <= per_epoch
            else batches - (settings.get("accumulate_grad_batches", 1) == 2)
        )
        assert rest.seen["train"] == whole.seen["train"][done:], path
        assert rest.losses == whole.losses[done:]


def test_a_batch_of_each_device_or_of_all(cohort: Cohort) -> None:
    assert len(fit(cohort, {"batch_size_per_device": 2}, max_epochs=1).seen["train"]) == 10
    with pytest.raises(ConfigError, match="give one"):
        module(cohort, batch_size=4, batch_size_per_device=2)
    with pytest.raises(ConfigError, match="1 or more"):
        module(cohort, batch_size=0)


def test_modalities_stacked_and_apart(cohort: Cohort) -> None:
    how = {"CT": Window(-100, 300, 100, 200), "PET": "mr"}
    stacked = fit(cohort, {"image": ["CT", "PET"], "normalize": how}, max_epochs=1, limit_val_batches=0).last["image"]
    apart = fit(
        cohort, {"image": {"ct": "CT", "pet": ["PET"]}, "normalize": how}, max_epochs=1, limit_val_batches=0
    ).last
    assert stacked.shape == (4, 2, 12, 12, 12)
    torch.testing.assert_close(stacked, torch.cat([apart["ct"], apart["pet"]], dim=1))
    assert apart["ct"].min() >= -1
    assert apart["ct"].max() <= 1
    assert apart["label"].dtype == torch.int64


def test_neighbours_of_slices_are_normalised_with_their_modality(cohort: Cohort) -> None:
    how = {"CT": Window(-100, 300, 100, 200), "PET": None}
    settings = {"image": ["CT", "PET"], "normalize": how, "patch_size": 16, "policy": Slices(neighbours=1)}
    found = fit(cohort, settings, max_epochs=1, limit_val_batches=0).last
    assert found["image"].shape == (4, 6, 16, 16)
    assert found["image"][:, :3].abs().max() <= 1
    assert found["image"][:, 3:].abs().max() > 50
    assert found["label"].shape == (4, 1, 16, 16)


def test_targets_masks_and_a_part_of_the_cohort(cohort: Cohort) -> None:
    settings = {"where": "age >= 30", "label": {"label": "seg", "mask": "seg"}, "targets": {"age": "age"}}
    model = fit(cohort, settings, max_epochs=1, limit_val_batches=0)
    assert torch.equal(model.last["label"], model.last["mask"])
    assert model.last["age"].dtype == torch.int64
    data = module(cohort, **settings)
    data.setup()
    assert len(data.subjects["train"]) + len(data.subjects["val"]) == 5
    with pytest.raises(ConfigError, match="of images and of labels"):
        module(cohort, label={"image": "seg"})


def test_stages_have_policies_and_transforms_of_their_own(cohort: Cohort) -> None:
    def mark(sample: dict[str, Any]) -> dict[str, Any]:
        return {**sample, "marked": True}

    data = module(
        cohort,
        policy={"train": Uniform(), "val": Grid(0.0), "test": Slices(policy=Grid(0.0))},
        transforms={"val": mark},
        split=Fractions(val=0.2, test=0.2),
    )
    model = Recorder()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", message=".*treespec, LeafSpec", category=FutureWarning)
        trainer(max_epochs=1).fit(model, datamodule=data)
    windows = [k for batch in model.seen["val"] for k in batch]
    size = cohort.subset(data.subjects["val"]).CT.obs.iloc[0][["size_x", "size_y", "size_z"]]
    assert len(windows) == len(set(windows)) == int(np.prod([-(-int(n) // 12) for n in size]))
    assert "marked" not in model.last or model.last["marked"].all()
    with pytest.raises(ConfigError, match="stages"):
        module(cohort, policy={"training": Uniform()})


def test_augmentation_is_of_training_alone(cohort: Cohort) -> None:
    calls: list[tuple[bool, list[str], list[str]]] = []

    class Spy(Recorder):
        def training_step(self, batch: dict[str, Any], index: int) -> torch.Tensor:
            assert batch["augmented"]
            return super().training_step(batch, index)

        def validation_step(self, batch: dict[str, Any], index: int) -> None:
            assert "augmented" not in batch

    def augment(batch: dict[str, Any], *, images: list[str], labels: list[str]) -> dict[str, Any]:
        calls.append((batch["image"].dtype == torch.float32, images, labels))
        return {**Augment()(batch, images=images, labels=labels), "augmented": True}

    trainer(max_epochs=1).fit(Spy(), datamodule=module(cohort, augment=augment))
    assert calls == [(True, ["image"], ["label"])] * 5


def test_a_split_is_frozen_and_thawed(cohort: Cohort, tmp_path: Path) -> None:
    first = module(cohort, split=Fractions(val=0.3, seed=5))
    frozen = first.freeze_split(tmp_path / "split.json")
    again = module(cohort, split=Frozen(frozen.path))
    again.setup()
    assert again.subjects == first.subjects
    with pytest.raises(PlanError, match="not in the cohort"):
        module(cohort, split=frozen, where="age >= 50").setup()


def test_test_and_predict(cohort: Cohort) -> None:
    data, model = module(cohort, split=Fractions(test=0.3)), Recorder()
    trainer().test(model, datamodule=data, verbose=False)
    trainer().predict(model, datamodule=data)
    assert len(model.seen["test"]) == 2
    assert len(model.seen["predict"]) == 6
    assert "label" not in model.last


@pytest.mark.parametrize("normalize", ["us", {"CT": "ct", "PET": "xx"}, {"PET": "mr"}])
def test_unknown_normalisation_is_refused(cohort: Cohort, normalize: Any) -> None:
    with pytest.raises(ConfigError, match="normalize"):
        module(cohort, normalize=normalize).setup()
