"""Train and validate a segmentation network: patches in training, whole volumes in validation."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, TypeAlias

import torch
from lightning.pytorch import LightningModule
from torch import Tensor, nn

from radiodata.errors import ConfigError
from radiodata.lightning.dice import CaseDice

if TYPE_CHECKING:
    from lightning.pytorch.utilities.types import OptimizerLRScheduler
    from torch.optim import Optimizer
    from torch.optim.lr_scheduler import LambdaLR, LRScheduler

__all__ = ["SegmentationModule", "warmup_cosine"]

Batch: TypeAlias = Mapping[str, Any]
Settings: TypeAlias = Mapping[str, Any]
"""A Hydra node: ``_target_`` and its arguments, ``_partial_: true``."""


class SegmentationModule(LightningModule):
    """A network that gives each voxel one class.

    A training batch is ``image`` (B, C, x, y, z) float32, ``label`` (B, 1, x, y, z) int64 and ``is_padding``
    (B,) bool: rows that only fill up the last batch, left out of the loss. A validation batch is one whole
    volume, laid out alike; it is predicted patch by patch with Gaussian weights, and scored by the mean over
    cases of the Dice of each class: ``val/dice_class1`` ..., and their mean ``val/dice``. The scores are the
    same on any number of processes.

    Parameters
    ----------
    network
        The network; or a callable that is given ``out_channels`` and returns it; or the settings of such a
        callable (``_target_``, ``_partial_: true``). Settings are kept in checkpoints, so that
        ``SegmentationModule.load_from_checkpoint(path)`` needs nothing else.
    num_classes
        Number of classes, background (0) included; 2 to 256.
    roi_size
        Patch size of the sliding window, in voxels.
    overlap
        Share of a patch that the next one covers again in validation and prediction, 0 to 1.
    sw_batch_size
        Patches of one volume that pass the network together.
    stitch_on
        Device on which the whole volume's logits are put together, e.g. ``"cpu"`` where they do not fit on
        the GPU. None: the device of the network.
    optimizer
        Callable given the parameters, or its settings. Default: AdamW, lr 0.001.
    scheduler
        Callable given the optimizer and the total number of steps, stepped after each, or its settings.
        None: a constant learning rate.
    loss
        Callable given logits (B, K, x, y, z) and label (B, 1, x, y, z), or its settings. Default: Dice plus
        cross-entropy (MONAI).

    Raises
    ------
    radiodata.errors.ConfigError
        `num_classes` is out of range.
    """

    def __init__(
        self,
        network: nn.Module | Callable[..., nn.Module] | Settings,
        num_classes: int,
        *,
        roi_size: int | tuple[int, int, int] = 96,
        overlap: float = 0.25,
        sw_batch_size: int = 4,
        stitch_on: str | None = None,
        optimizer: Callable[..., Optimizer] | Settings | None = None,
        scheduler: Callable[[Optimizer, int], LRScheduler] | Settings | None = None,
        loss: Callable[[Tensor, Tensor], Tensor] | Settings | None = None,
    ) -> None:
        super().__init__()
        if not 2 <= num_classes <= 256:
            raise ConfigError(f"num_classes is {num_classes}, background included; it must be 2 to 256")
        parts = {"network": network, "optimizer": optimizer, "scheduler": scheduler, "loss": loss}
        self.save_hyperparameters(ignore=[name for name, part in parts.items() if callable(part)])
        self.network: nn.Module = (
            network if isinstance(network, nn.Module) else _callable(network)(out_channels=num_classes)
        )
        self.loss: Callable[[Tensor, Tensor], Tensor] = _callable(loss) if loss is not None else _dice_ce()
        self.dice = CaseDice(num_classes)
        self.roi_size = (roi_size,) * 3 if isinstance(roi_size, int) else tuple(roi_size)
        self.overlap, self.sw_batch_size, self.stitch_on = overlap, sw_batch_size, stitch_on
        self._optimizer, self._scheduler = optimizer, scheduler

    def forward(self, image: Tensor) -> Tensor:
        """Logits (B, K, x, y, z) of patches (B, C, x, y, z)."""
        logits: Tensor = self.network(image)
        return logits

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Loss over the rows that are not padding; zero, with a gradient, where all are."""
        image, label, real = batch["image"], batch["label"], ~batch["is_padding"]
        rows = int(real.sum())
        if 0 < rows < len(real):
            image, label = image[real], label[real]
        logits = self(image)
        loss = self.loss(logits, label) if rows else 0.0 * logits.sum()
        self.log("train/loss", loss.detach(), batch_size=rows, on_step=True, on_epoch=False, prog_bar=True)
        self.log("train/loss_epoch", loss.detach(), batch_size=rows, on_step=False, on_epoch=True, sync_dist=True)
        return loss

    def on_validation_epoch_start(self) -> None:
        """Forget the cases of the last validation."""
        self.dice.reset()

    def validation_step(self, batch: Batch, batch_idx: int) -> Tensor | None:
        """Predict and score whole volumes; labels (B, 1, x, y, z) uint8, None where all rows are padding."""
        if bool(batch["is_padding"].all()):
            return None
        prediction = self.predict_step(batch, batch_idx)
        rows = zip(prediction, batch["label"], batch["is_padding"], batch["obs_subject_id"], strict=True)
        for predicted, label, is_padding, subject in rows:
            if not is_padding:
                self.dice.update(predicted, label, case=subject)
        return prediction

    def on_validation_epoch_end(self) -> None:
        """Log the mean Dice of each class, and the mean over classes, over the cases of all processes."""
        dice = self.dice.compute(self._sum_over_processes if self.trainer.world_size > 1 else None)
        scores = {f"val/dice_class{number}": score for number, score in enumerate(dice, start=1)}
        self.log("val/dice", dice.nanmean().float(), prog_bar=True, sync_dist=True, batch_size=1)
        self.log_dict({name: score.float() for name, score in scores.items()}, sync_dist=True, batch_size=1)

    def predict_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Labels (B, 1, x, y, z), uint8, of whole volumes ``image`` (B, C, x, y, z)."""
        from monai.inferers import sliding_window_inference

        logits = sliding_window_inference(
            batch["image"],
            roi_size=self.roi_size,
            sw_batch_size=self.sw_batch_size,
            predictor=self.network,
            overlap=self.overlap,
            mode="gaussian",
            sw_device=self.device,
            device=self.stitch_on or self.device,
        )
        labels: Tensor = logits.argmax(dim=1, keepdim=True)
        return labels.to(torch.uint8)

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """Make the optimizer, and the scheduler over the whole run's steps.

        Raises
        ------
        radiodata.errors.ConfigError
            A scheduler was asked for in a run without an end.
        """
        make = _callable(self._optimizer) if self._optimizer is not None else _adamw
        optimizer: Optimizer = make(self.parameters())
        if self._scheduler is None:
            return optimizer
        steps = self.trainer.estimated_stepping_batches
        if not 0 < steps < float("inf"):
            raise ConfigError(
                f"the scheduler needs to know how many steps the run has, and it has {steps}: set "
                "trainer.max_epochs or trainer.max_steps, or optim.scheduler=null"
            )
        scheduler = _callable(self._scheduler)(optimizer, int(steps))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def _sum_over_processes(self, values: Tensor) -> Tensor:
        total = self.trainer.strategy.reduce(values.to(self.device), reduce_op="sum")
        assert isinstance(total, Tensor)
        return total.cpu()


def warmup_cosine(optimizer: Optimizer, total_steps: int, *, warmup: float = 0.1) -> LambdaLR:
    """Learning rate up along a line to the optimizer's own, then down along a cosine to nothing.

    Parameters
    ----------
    optimizer
        Its learning rates are the peaks.
    total_steps
        Steps of the whole run.
    warmup
        Share of the steps that go up, 0 to 1; the first step is made at ``1 / up`` of the peak.

    Returns
    -------
    torch.optim.lr_scheduler.LambdaLR
        To be stepped after each optimizer step.
    """
    from torch.optim.lr_scheduler import LambdaLR

    up = max(1, round(warmup * total_steps))
    down = max(1, total_steps - up)

    def factor(step: int) -> float:
        if step < up:
            return (step + 1) / up
        return 0.5 * (1.0 + math.cos(math.pi * min(step - up, down) / down))

    return LambdaLR(optimizer, factor)


def _callable(part: Callable[..., Any] | Settings) -> Callable[..., Any]:
    if not isinstance(part, Mapping):
        return part
    from hydra.utils import instantiate

    made: Callable[..., Any] = instantiate(dict(part), _convert_="all")
    return made


def _adamw(parameters: Any) -> Optimizer:
    return torch.optim.AdamW(parameters, lr=1e-3)


def _dice_ce() -> Callable[[Tensor, Tensor], Tensor]:
    from monai.losses import DiceCELoss

    loss: Callable[[Tensor, Tensor], Tensor] = DiceCELoss(
        to_onehot_y=True, softmax=True, include_background=False, batch=True
    )
    return loss
