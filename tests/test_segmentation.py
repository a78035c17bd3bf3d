"""Dice against tables counted by hand, the loss without padding, whole runs on cubes in noise."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lightning
import numpy as np
import pytest
import torch
from fake_data import FakeDataModule, batch
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor, nn

from radiodata.errors import ConfigError
from radiodata.lightning import dice as dice_module
from radiodata.lightning.dice import CaseDice, confusion
from radiodata.lightning.optim import warmup_cosine
from radiodata.lightning.preview import PredictionPreview, _cut
from radiodata.lightning.segmentation import SegmentationModule
from radiodata.lightning.stop import StopOnSignal

pytest.importorskip("monai")

# torch 2.9 and later deprecate a class that Lightning 2.6 still asks for
pytestmark = pytest.mark.filterwarnings("ignore:.*treespec, LeafSpec:FutureWarning")
NAN = float("nan")
ROOT = Path(__file__).parents[1]


class Rounded(nn.Module):
    """A network that knows: its class is the intensity, rounded; `weight` takes part in the logits."""

    def __init__(self, out_channels: int = 3) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(()))
        self.register_buffer("classes", torch.arange(out_channels).view(1, -1, 1, 1, 1).float())

    def forward(self, image: Tensor) -> Tensor:
        return -self.weight * (image - self.classes).abs()


def trainer(tmp_path: Path, **settings: Any) -> lightning.Trainer:
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    chosen = {"accelerator": "cpu", "enable_checkpointing": False, **quiet, **settings}
    return lightning.Trainer(default_root_dir=tmp_path, **chosen)


# voxels of the cases: (prediction, label); Dice of classes 1 and 2 counted by hand
TABLE = [
    pytest.param([([1, 1, 2, 0], [1, 1, 2, 0])], [1.0, 1.0], id="all right"),
    pytest.param([([0, 0, 0, 0], [1, 1, 2, 0])], [0.0, 0.0], id="nothing found"),
    pytest.param([([1, 1, 1, 0], [1, 0, 1, 2])], [2 * 2 / 5, 0.0], id="half right"),
    pytest.param([([1, 2, 2, 0], [1, 1, 0, 0])], [2 * 1 / 3, NAN], id="class 2 in no label"),
    pytest.param([([0, 1], [0, 0])], [NAN, NAN], id="background only"),
    pytest.param(
        [([1, 0, 2, 2], [1, 1, 2, 0]), ([1, 1, 2, 0], [1, 1, 0, 0]), ([0, 0, 0, 0], [0, 0, 2, 2])],
        [(2 / 3 + 1.0) / 2, (2 / 3 + 0.0) / 2],
        id="each class over the cases that hold it",
    ),
]


@pytest.mark.parametrize(("cases", "expected"), TABLE)
def test_dice_table(cases: list[tuple[list[int], list[int]]], expected: list[float]) -> None:
    dice = CaseDice(3)
    for prediction, label in cases:
        dice.update(torch.tensor(prediction, dtype=torch.uint8), torch.tensor(label))
    np.testing.assert_array_equal(dice.compute().numpy(), np.array(expected))


@pytest.mark.parametrize("split", [1, 2, 3, 4])
def test_dice_of_two_processes_is_that_of_one(split: int) -> None:
    rng = torch.Generator().manual_seed(split)
    cases = [torch.randint(0, 3, (2, 50), generator=rng) for _ in range(5)]
    one, parts = CaseDice(3), [CaseDice(3), CaseDice(3)]
    for number, (prediction, label) in enumerate(cases):
        one.update(prediction, label)
        parts[number >= split].update(prediction, label)
    other = parts[1]._sums
    torch.testing.assert_close(parts[0].compute(lambda sums: sums + other), one.compute(), rtol=1e-15, atol=0)


def test_dice_forgets_on_reset() -> None:
    dice = CaseDice(2)
    dice.update(torch.tensor([0]), torch.tensor([1]))
    dice.reset()
    dice.update(torch.tensor([1]), torch.tensor([1]))
    assert dice.compute().tolist() == [1.0]


def test_confusion_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = torch.Generator().manual_seed(0)
    prediction, label = torch.randint(0, 4, (2, 7, 6, 5), generator=rng)
    whole = confusion(prediction.to(torch.uint8), label, 4)
    expected = [[int(((label == i) & (prediction == j)).sum()) for j in range(4)] for i in range(4)]
    monkeypatch.setattr(dice_module, "_VOXELS_AT_ONCE", 11)
    assert whole.tolist() == confusion(prediction, label, 4).tolist() == expected


@pytest.mark.parametrize(("wrong", "named"), [(3, "class 3"), (-1, "class -1")])
def test_label_of_an_unknown_class_is_refused(wrong: int, named: str) -> None:
    with pytest.raises(ValueError, match=rf"case sub-7: its label holds {named}, but the model knows 0 to 2"):
        CaseDice(3).update(torch.tensor([0, 0]), torch.tensor([0, wrong]), case="sub-7")


def test_dice_of_unequal_shapes_is_refused() -> None:
    with pytest.raises(ValueError, match=r"case \?: the prediction has shape \(2,\), its label \(3,\)"):
        CaseDice(3).update(torch.zeros(2).long(), torch.zeros(3).long())


@pytest.mark.parametrize("number", [1, 257])
def test_number_of_classes_is_checked(number: int) -> None:
    with pytest.raises(ConfigError, match=f"num_classes is {number}"):
        SegmentationModule(Rounded(), number)


def losses(module: SegmentationModule, rows: list[int], padding: list[bool]) -> tuple[float, list[Tensor]]:
    module.log = lambda *_, **__: None  # type: ignore[method-assign]
    module.zero_grad()
    loss = module.training_step(batch(rows, padding), 0)
    loss.backward()
    return loss.item(), [parameter.grad.clone() for parameter in module.parameters()]


def test_padding_rows_do_not_count_in_the_loss() -> None:
    module = SegmentationModule(Rounded(), 3)
    assert losses(module, [1, 2, 1], [False, False, True]) == losses(module, [1, 2], [False, False])
    assert losses(module, [1, 2, 1], [False] * 3) != losses(module, [1, 2], [False, False])


def test_loss_of_nothing_but_padding_is_zero_with_a_gradient() -> None:
    assert losses(SegmentationModule(Rounded(), 3), [1, 2], [True, True]) == (0.0, [torch.tensor(0.0)])


def expected_dice(numbers: list[int]) -> list[float]:
    """MONAI's Dice of the rounded intensities; it leaves out empty labels too."""
    from monai.metrics import DiceMetric

    metric = DiceMetric(include_background=False, reduction="mean_batch", ignore_empty=True, num_classes=3)
    for number in numbers:
        case = batch([number], [False])
        metric(case["image"].round().clamp(0, 2).long(), case["label"])
    values: list[float] = metric.aggregate().tolist()
    return values


@pytest.mark.parametrize("roi_size", [8, 16, (24, 32, 16)])
def test_validation_scores_whole_volumes(tmp_path: Path, roi_size: Any) -> None:
    module = SegmentationModule(Rounded(), 3, roi_size=roi_size)
    loop = trainer(tmp_path)
    (metrics,) = loop.validate(module, datamodule=FakeDataModule(cases=4), verbose=False)
    one, two = expected_dice([0, 1, 2, 3])
    assert metrics["val/dice_class1"] == pytest.approx(one, abs=1e-6)
    assert metrics["val/dice_class2"] == pytest.approx(two, abs=1e-6)
    assert metrics["val/dice"] == pytest.approx((one + two) / 2, abs=1e-6)


def test_padding_cases_do_not_count_in_validation() -> None:
    module = SegmentationModule(Rounded(), 3, roi_size=16)
    assert module.validation_step(batch([1], [True]), 0) is None
    module.validation_step(batch([1, 2], [False, True]), 0)
    np.testing.assert_allclose(module.dice.compute().numpy(), expected_dice([1]), rtol=1e-6)


def test_predictions_are_uint8_labels() -> None:
    labels = SegmentationModule(Rounded(), 3, roi_size=8).predict_step(batch([1, 2], [False, False]), 0)
    assert labels.dtype == torch.uint8
    assert labels.shape == (2, 1, 20, 18, 16)
    assert torch.equal(labels, batch([1, 2], [False, False])["image"].round().clamp(0, 2).to(torch.uint8))


@pytest.mark.parametrize(
    ("steps", "warmup", "expected"),
    [
        (6, 0.34, [0.5, 1.0, 1.0, 0.853553, 0.5, 0.146447, 0.0, 0.0]),
        (2, 0.1, [1.0, 1.0, 0.0, 0.0]),
        (1, 0.1, [1.0, 1.0, 0.0]),
        (4, 1.0, [0.25, 0.5, 0.75, 1.0, 1.0, 0.0]),
    ],
)
def test_warmup_cosine_goes_up_and_down(steps: int, warmup: float, expected: list[float]) -> None:
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.5)
    schedule = warmup_cosine(optimizer, steps, warmup=warmup)
    rates = []
    for _ in expected:
        rates.append(schedule.get_last_lr()[0] / 0.5)
        optimizer.step()
        schedule.step()
    assert rates == pytest.approx(expected, abs=1e-6)


def test_schedule_spans_the_run(tmp_path: Path) -> None:
    asked: list[int] = []

    def schedule(optimizer: torch.optim.Optimizer, steps: int) -> Any:
        asked.append(steps)
        return torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)

    module = SegmentationModule(Rounded(), 3, roi_size=16, scheduler=schedule)
    loop = trainer(tmp_path, max_epochs=3, num_sanity_val_steps=0)
    loop.fit(module, datamodule=FakeDataModule(steps=4, cases=1))
    assert asked == [12]
    assert loop.optimizers[0].param_groups[0]["lr"] == pytest.approx(0.0, abs=1e-9)


def test_schedule_of_an_endless_run_is_refused() -> None:
    module = SegmentationModule(Rounded(), 3, scheduler=warmup_cosine)
    module._trainer = SimpleNamespace(estimated_stepping_batches=float("inf"))
    with pytest.raises(ConfigError, match=r"set trainer\.max_epochs or trainer\.max_steps"):
        module.configure_optimizers()


SETTINGS = {
    "_target_": "monai.networks.nets.UNet",
    "_partial_": True,
    "spatial_dims": 3,
    "in_channels": 1,
    "channels": [4, 8],
    "strides": [2],
}


def run(tmp_path: Path, *callbacks: Callback, ckpt_path: Path | None = None) -> SegmentationModule:
    """Three epochs of four steps; ends early when a callback asks for it."""
    lightning.seed_everything(0, verbose=False)
    module = SegmentationModule(SETTINGS, 3, roi_size=16, scheduler=warmup_cosine)
    last = ModelCheckpoint(tmp_path, "last", save_on_exception=True, enable_version_counter=False)
    loop = trainer(tmp_path, max_epochs=3, callbacks=[last, *callbacks], enable_checkpointing=True)
    loop.fit(module, datamodule=FakeDataModule(steps=4), ckpt_path=ckpt_path)
    return module


def test_checkpoint_with_settings_needs_nothing_else(tmp_path: Path) -> None:
    trained = run(tmp_path)
    again = SegmentationModule.load_from_checkpoint(tmp_path / "last.ckpt", weights_only=True)
    assert again.hparams["num_classes"] == 3
    assert all(torch.equal(a, b) for a, b in zip(again.parameters(), trained.parameters(), strict=True))


def test_parts_given_as_objects_are_not_kept_in_checkpoints() -> None:
    module = SegmentationModule(Rounded, 3, optimizer=partial(torch.optim.SGD, lr=0.1))
    assert isinstance(module.network, Rounded)
    assert sorted(module.hparams) == [
        "flips",
        "loss",
        "memory",
        "num_classes",
        "overlap",
        "roi_size",
        "scheduler",
        "stitch_on",
        "sw_batch_size",
    ]


class Ask(Callback):
    """Send a signal before a training step, or before a validation volume."""

    def __init__(self, number: int, *, step: int = -1, volume: tuple[int, int] = (-1, -1)) -> None:
        self.number, self.step, self.volume = number, step, volume

    def on_train_batch_start(self, trainer: Any, module: Any, batch: Any, batch_idx: int) -> None:
        if trainer.global_step == self.step:
            os.kill(os.getpid(), self.number)

    def on_validation_batch_start(
        self, trainer: Any, module: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        if (trainer.current_epoch, batch_idx) == self.volume and not trainer.sanity_checking:
            os.kill(os.getpid(), self.number)


# the resumed run has a folder of its own, and so a list of best checkpoints of its own
@pytest.mark.filterwarnings("ignore:The dirpath has changed:UserWarning")
@pytest.mark.parametrize(
    "ask",
    [
        pytest.param(Ask(signal.SIGTERM, step=5), id="in an epoch"),
        pytest.param(Ask(signal.SIGINT, step=5), id="by Ctrl-C"),
        pytest.param(Ask(signal.SIGTERM, step=7), id="at the end of an epoch"),
        pytest.param(Ask(signal.SIGTERM, volume=(1, 1)), id="in validation"),
    ],
)
def test_a_stopped_run_goes_on_exactly(tmp_path: Path, ask: Ask) -> None:
    handlers = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    through = run(tmp_path / "through")
    with pytest.raises(SystemExit):
        run(tmp_path / "parts", StopOnSignal(), ask)
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == handlers
    last = tmp_path / "parts" / "last.ckpt"
    assert 0 < torch.load(last, weights_only=True)["global_step"] < 12
    resumed = run(tmp_path / "resumed", StopOnSignal(), ckpt_path=last)
    assert all(torch.equal(a, b) for a, b in zip(through.parameters(), resumed.parameters(), strict=True))


def test_second_ctrl_c_interrupts_at_once() -> None:
    stop, deaths = StopOnSignal(), signal.getsignal(signal.SIGCHLD)
    stop._note(signal.SIGINT, None)
    stop._note(signal.SIGTERM, None)
    with pytest.raises(KeyboardInterrupt):
        stop._note(signal.SIGINT, None)
    assert signal.getsignal(signal.SIGCHLD) is not deaths
    stop.teardown(None, None, "fit")
    assert signal.getsignal(signal.SIGCHLD) is deaths


def preview_case() -> dict[str, Any]:
    case = batch([1], [False])
    case["label"] = torch.zeros_like(case["label"])
    case["label"][0, 0, 3, 2:9, 2:6] = 1  # the largest area: x = 3, then y = 5, z = 4
    case["label"][0, 0, 2:5, 5, 4] = 1
    case["label"][0, 0, 2:5, 5, 3] = 2
    return case


def test_preview_cuts_where_the_label_is_largest() -> None:
    case = preview_case()
    planes = _cut(case, case["label"].to(torch.uint8), 0)
    assert [plane.index for plane in planes] == [3, 5, 3]
    assert [plane.label.shape for plane in planes] == [(16, 18), (16, 20), (18, 20)]
    assert [plane.aspect for plane in planes] == [2.0, 2.0, 1.0]  # rows per column, in mm: z/y, z/x, y/x


def test_preview_is_turned_as_radiologists_look() -> None:
    case = preview_case()
    for plane, axes in zip(_cut(case, case["label"], 0), [(1, 2), (0, 2), (0, 1)], strict=True):
        across = ({0, 1, 2} - set(axes)).pop()
        stored = case["label"][0, 0].select(across, plane.index).numpy()
        assert plane.label[0, 0] == stored[-1, -1]  # top left: right or anterior, and superior or anterior
        np.testing.assert_array_equal(plane.label, np.flip(stored.T))


@pytest.mark.parametrize(("subject", "shown"), [(None, "sub-00"), ("sub-02", "sub-02")])
def test_preview_is_written_at_the_end(tmp_path: Path, subject: str | None, shown: str) -> None:
    image = pytest.importorskip("matplotlib.image")
    preview = PredictionPreview(subject=subject, every_n_epochs=2)
    run(tmp_path, preview)
    assert preview._title == f"{shown}, epoch 3"
    assert preview.path == tmp_path / "preview.png"
    assert sorted(path.name for path in tmp_path.glob("*.png")) == ["preview.png", "preview_epoch0002.png"]
    picture = image.imread(preview.path)
    assert picture.shape[:2] == (1080, 1080)
    assert np.ptp(picture[..., :3], axis=2).max() > 0.3  # the label's colour


def test_preview_is_drawn_by_process_0_only() -> None:
    preview = PredictionPreview()
    other = SimpleNamespace(sanity_checking=False, is_global_zero=False, current_epoch=0)
    preview.on_validation_batch_end(other, None, torch.zeros(1), preview_case(), 0)
    assert preview._planes == []


TWO_PROCESSES = """
import json, sys
import lightning
from fake_data import FakeDataModule
from radiodata.lightning.segmentation import SegmentationModule
from test_segmentation import Rounded

if __name__ == "__main__":
    loop = lightning.Trainer(accelerator="cpu", devices=2, strategy="ddp", logger=False,
                             enable_progress_bar=False, enable_model_summary=False)
    module = SegmentationModule(Rounded(), 3, roi_size=16)
    (metrics,) = loop.validate(module, datamodule=FakeDataModule(cases=5), verbose=False)
    with open(f"{sys.argv[1]}/{loop.global_rank}.json", "w") as file:
        json.dump(metrics, file)
"""


@pytest.mark.slow
def test_two_processes_score_as_one(tmp_path: Path) -> None:
    (tmp_path / "script.py").write_text(TWO_PROCESSES)
    command = [sys.executable, "-W", "error::UserWarning:lightning", "script.py", str(tmp_path)]
    paths = os.pathsep.join([str(ROOT), str(ROOT / "tests")])
    done = subprocess.run(
        command,
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    ranks = [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in (0, 1)]
    module = SegmentationModule(Rounded(), 3, roi_size=16)
    (one,) = trainer(tmp_path).validate(module, datamodule=FakeDataModule(cases=5), verbose=False)
    assert ranks == [one, one]
    assert "Warning" not in done.stderr
    assert "recommended" not in done.stderr
