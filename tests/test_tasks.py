"""Modules for classes and masked volumes, and the callbacks, in short runs on small cohorts."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import lightning
import numpy as np
import pandas as pd
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger
from small import small_cohort

from radiodata.errors import ConfigError, StateMismatchError
from radiodata.lightning import (
    ClassificationModule,
    DataThroughput,
    FrozenCohort,
    MaskedVolumeModule,
    RadiologyDataModule,
    SamplePreview,
)
from radiodata.lightning.masked import block_mask
from radiodata.sampling import Fractions, Grid, Slices, Uniform
from radiodata.store import Cohort

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*treespec, LeafSpec:FutureWarning"),
    pytest.mark.filterwarnings("ignore:The dirpath has changed"),
]


@pytest.fixture(scope="module")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> Cohort:
    cohort = small_cohort(tmp_path_factory.mktemp("tasks"))
    kinds = {s: {"kind": "odd" if i % 2 else "even"} for i, s in enumerate(cohort.subjects)}
    return cohort.update_obs_meta(pd.DataFrame.from_dict(kinds, orient="index"))


def data(cohort: Cohort, **settings: Any) -> RadiologyDataModule:
    given = {"patch_size": 12, "num_workers": 0, "crops_per_volume": 8, "crops_per_unit": 4}
    return RadiologyDataModule(cohort.uri, **{**given, **settings})


def trainer(tmp_path: Path, **settings: Any) -> lightning.Trainer:
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "num_sanity_val_steps": 0}
    chosen = {"logger": False, "enable_checkpointing": False, "max_epochs": 1, **quiet, **settings}
    return lightning.Trainer(accelerator="cpu", default_root_dir=tmp_path, **chosen)


class Mean(torch.nn.Module):
    """Logits from the mean intensity."""

    def __init__(self, out_channels: int = 2) -> None:
        super().__init__()
        self.linear = torch.nn.Linear(1, out_channels)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return self.linear(image.mean((1, 2, 3, 4))[:, None])


TARGET = {"target": {"column": "kind", "classes": ["even", "odd"]}}


def test_a_classifier_is_scored_by_case(cohort: Cohort, tmp_path: Path) -> None:
    held = data(cohort, targets=TARGET, policy={"train": Uniform(), "val": Grid(0.0)}, split=Fractions(val=0.5))
    model = ClassificationModule(Mean(), 2)
    run = trainer(tmp_path)
    run.fit(model, datamodule=held)
    means: dict[str, list[torch.Tensor]] = {}
    truth: dict[str, int] = {}
    with torch.no_grad():
        for batch in held.val_dataloader():
            out = model(held.on_after_batch_transfer(batch, 0)["image"]).softmax(1)
            for case, row, target, pads in zip(batch["obs_id"], out, batch["target"], batch["is_padding"], strict=True):
                if not pads:
                    means.setdefault(case, []).append(row)
                    truth[case] = int(target)
    assert len(means) == 3
    right = [int(torch.stack(rows).mean(0).argmax()) == truth[case] for case, rows in means.items()]
    losses = [-float(torch.stack(rows).mean(0)[truth[case]].log()) for case, rows in means.items()]
    assert float(run.callback_metrics["val/accuracy"]) == pytest.approx(np.mean(right))
    assert float(run.callback_metrics["val/loss"]) == pytest.approx(np.mean(losses), rel=1e-4)
    assert truth == {f"{s}_CT": i % 2 for i, s in enumerate(cohort.subjects) if f"{s}_CT" in truth}
    out = model.predict_step(held.on_after_batch_transfer(next(iter(held.val_dataloader())), 0), 0)
    assert torch.allclose(out["probability"].sum(1), torch.ones(len(out["probability"])))
    with pytest.raises(ConfigError, match="2 at least"):
        ClassificationModule(Mean(), 1)


def test_padding_rows_do_not_count_in_a_classifiers_loss() -> None:
    model = ClassificationModule(Mean(), 2)
    model.log = lambda *_, **__: None  # type: ignore[method-assign]
    batch = {"image": torch.randn(3, 1, 4, 4, 4), "target": torch.tensor([0, 1, 1])}
    padded = {**batch, "is_padding": torch.tensor([False, False, True])}
    short = {k: v[:2] for k, v in padded.items()}
    assert torch.equal(model.training_step(padded, 0), model.training_step(short, 0))
    nothing = model.training_step({**batch, "is_padding": torch.ones(3, dtype=torch.bool)}, 0)
    assert nothing == 0
    assert nothing.requires_grad


@pytest.mark.parametrize(("share", "block", "size"), [(0.6, 4, (12, 12, 12)), (0.5, 8, (20, 12, 9)), (0.9, 3, (7, 8))])
def test_masks_are_blocks_of_the_share_asked_for(share: float, block: int, size: tuple[int, ...]) -> None:
    masks = block_mask([5, 6, 5], size, share, block)
    assert masks.shape == (3, 1, *size)
    assert torch.equal(masks[0], masks[2])
    assert not torch.equal(masks[0], masks[1])
    corners = masks[0, 0][tuple(slice(None, None, block) for _ in size)]
    assert int(corners.sum()) == round(share * corners.numel())
    again = corners
    for axis, n in enumerate(size):
        again = again.repeat_interleave(block, dim=axis).narrow(axis, 0, n)
    assert torch.equal(again, masks[0, 0])


def test_a_network_learns_to_fill_in(cohort: Cohort, tmp_path: Path) -> None:
    torch.manual_seed(0)
    network = torch.nn.Conv3d(1, 1, 3, padding=1)
    model = MaskedVolumeModule(network, block=4, optimizer=lambda p: torch.optim.Adam(p, lr=0.01))
    held = data(cohort, policy={"train": Uniform(), "val": Uniform()}, crops_per_volume=16)
    run = trainer(tmp_path, max_epochs=4)
    with torch.no_grad():
        losses = [model._loss(held.on_after_batch_transfer(b, 0))[0] for b in held.val_dataloader()]
    before = torch.stack(losses).mean()
    run.fit(model, datamodule=held)
    assert float(run.callback_metrics["val/loss"]) < float(before)
    for wrong in ({"mask": 0.0}, {"mask": 1.0}, {"block": 0}):
        with pytest.raises(ConfigError, match="mask"):
            MaskedVolumeModule(network, **wrong)


def test_throughput_is_logged(cohort: Cohort, tmp_path: Path) -> None:
    logger = CSVLogger(tmp_path, name="logs", version="0")
    model = ClassificationModule(Mean(), 2)
    held = data(cohort, targets=TARGET, crops_per_volume=16)
    run = trainer(tmp_path, logger=logger, callbacks=[DataThroughput(5)], log_every_n_steps=1, limit_val_batches=0)
    run.fit(model, datamodule=held)
    with (tmp_path / "logs" / "0" / "metrics.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if row.get("data/samples_per_s")]
    assert len(rows) == 20 // 5
    for row in rows:
        assert float(row["data/samples_per_s"]) > 0
        assert 0 <= float(row["data/wait_share"]) <= 1
        assert float(row["data/MB_per_s"]) > 0
        assert 0 <= float(row["data/hit_share"]) <= 1
    with pytest.raises(ConfigError, match="1 or more"):
        DataThroughput(0)


def test_waiting_is_told_apart_from_work() -> None:
    """A loader that sleeps half of each step's time is waited for half of the time."""
    import time

    class Slow:
        def __init__(self, seconds: float) -> None:
            self.seconds = seconds

        def __len__(self) -> int:
            return 12

        def __iter__(self) -> Any:
            for _ in range(12):
                time.sleep(self.seconds)
                yield {"image": torch.zeros(2, 1, 2, 2, 2), "is_padding": torch.tensor([False, False])}

    class Model(lightning.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.weight = torch.nn.Parameter(torch.zeros(1))
            self.shares: list[float] = []

        def training_step(self, batch: Any, _: int) -> torch.Tensor:
            time.sleep(0.05)
            return self.weight.sum() + batch["image"].sum()

        def log(self, name: str, value: Any, **_: Any) -> None:
            if name == "data/wait_share":
                self.shares.append(value)

        def configure_optimizers(self) -> Any:
            return torch.optim.SGD(self.parameters(), lr=0.1)

    found = []
    for seconds in (0.0, 0.15):
        model = Model()
        trainer(Path(), callbacks=[DataThroughput(6)]).fit(model, Slow(seconds))
        assert len(model.shares) == 2
        found.append(model.shares[-1])
    assert found[0] < 0.4 < 0.6 < found[1]


@pytest.mark.parametrize("policy", [None, Slices(neighbours=1)])
def test_samples_are_drawn(cohort: Cohort, tmp_path: Path, policy: Any) -> None:
    pytest.importorskip("matplotlib")
    from matplotlib.image import imread

    preview = SamplePreview(tmp_path, samples=3, batches=4)

    class Model(MaskedVolumeModule):
        def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
            return sum(p.sum() for p in self.network.parameters())

    held = data(cohort, label="seg", policy=policy, batch_size=4)
    model = Model(torch.nn.Conv3d(1, 1, 1))
    trainer(tmp_path, callbacks=[preview], limit_val_batches=0).fit(model, datamodule=held)
    picture = imread(tmp_path / "samples.png")
    assert picture.shape[0] >= 500
    assert picture[..., :3].std() > 0.05
    with pytest.raises(ConfigError, match="1 or more"):
        SamplePreview(tmp_path, samples=0)


def test_a_run_goes_on_with_the_data_it_began_with(tmp_path: Path) -> None:
    cohort = small_cohort(tmp_path)

    def run(folder: str, ckpt: Path | None = None, **settings: Any) -> Path:
        saving = ModelCheckpoint(tmp_path / folder, filename="last")
        model = MaskedVolumeModule(torch.nn.Conv3d(1, 1, 1), block=4)
        made = trainer(tmp_path, callbacks=[FrozenCohort(), saving], enable_checkpointing=True, limit_val_batches=0)
        made.fit(model, datamodule=data(cohort, **settings), ckpt_path=ckpt)
        return tmp_path / folder / "last.ckpt"

    first = run("a")
    held = torch.load(first, weights_only=True)["callbacks"]["FrozenCohort"]
    assert held["hash"] == cohort.freeze().hash
    assert len(held["subjects"]["train"]) == 5
    run("b", first)
    with pytest.raises(StateMismatchError, match="other subjects in 'train'"):
        run("c", first, split=Fractions(val=0.4))
    Cohort(cohort.uri).update_obs_meta(pd.DataFrame({"age": 3}, index=cohort.subjects))
    with pytest.raises(StateMismatchError, match="data of hash"):
        run("d", first)
    with pytest.raises(ConfigError, match="needs a data module"):
        trainer(tmp_path, callbacks=[FrozenCohort()]).fit(
            MaskedVolumeModule(torch.nn.Conv3d(1, 1, 1)), data(cohort).train_dataloader(), data(cohort).val_dataloader()
        )
