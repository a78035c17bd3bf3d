"""Train and validate a segmentation network: patches in training, whole volumes in validation."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, TypeAlias

import torch
from torch import Tensor, nn

from radiodata.errors import ConfigError
from radiodata.inference import SlidingWindow, TensorVolume
from radiodata.lightning.dice import CaseDice
from radiodata.lightning.optim import OptimizedModule, Settings, callable_of

if TYPE_CHECKING:
    from torch.optim import Optimizer
    from torch.optim.lr_scheduler import LRScheduler

__all__ = ["SegmentationModule"]

Batch: TypeAlias = Mapping[str, Any]


class SegmentationModule(OptimizedModule):
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
    flips
        Axes along which patches are also predicted mirrored, and the mean taken, in validation and prediction.
    stitch_on
        Device on which a volume's logits are put together, e.g. ``"cpu"`` where they do not fit on the GPU. None: the
        device of the network.
    memory
        Bytes of logits, and of labels, of a streamed volume that are held in memory (see ``SlidingWindow``).
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
        flips: Sequence[int] = (),
        stitch_on: str | None = None,
        memory: int = 1 << 30,
        optimizer: Callable[..., Optimizer] | Settings | None = None,
        scheduler: Callable[[Optimizer, int], LRScheduler] | Settings | None = None,
        loss: Callable[[Tensor, Tensor], Tensor] | Settings | None = None,
    ) -> None:
        super().__init__(optimizer, scheduler)
        if not 2 <= num_classes <= 256:
            raise ConfigError(f"num_classes is {num_classes}, background included; it must be 2 to 256")
        parts = {"network": network, "optimizer": optimizer, "scheduler": scheduler, "loss": loss}
        self.save_hyperparameters(ignore=[name for name, part in parts.items() if callable(part)])
        self.network: nn.Module = (
            network if isinstance(network, nn.Module) else callable_of(network)(out_channels=num_classes)
        )
        self.loss: Callable[[Tensor, Tensor], Tensor] = callable_of(loss) if loss is not None else _dice_ce()
        self.dice = CaseDice(num_classes)
        self.roi_size = (roi_size,) * 3 if isinstance(roi_size, int) else tuple(roi_size)
        self.overlap, self.sw_batch_size, self.stitch_on = overlap, sw_batch_size, stitch_on
        self.flips, self.memory = tuple(flips), memory

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
        """Labels (B, 1, x, y, z), uint8, of whole volumes ``image`` (B, C, x, y, z), or of one ``VolumeHandle``."""
        if not isinstance(batch["image"], Tensor):
            return self._streamed(batch)
        return torch.stack([self.predict_labels(image) for image in batch["image"]])

    def predict_labels(self, image: Tensor) -> Tensor:
        """Labels (1, x, y, z), uint8, of a volume (C, x, y, z), patch by patch."""
        slabs = self._sliding().slabs(TensorVolume(image), self.network, **self._devices())
        return torch.cat([slab.argmax(dim=0).to(torch.uint8) for _, slab in slabs])[None]

    def _sliding(self) -> SlidingWindow:
        return SlidingWindow(self.roi_size, self.overlap, flips=self.flips, batch=self.sw_batch_size, memory=1 << 40)

    def _devices(self) -> dict[str, Any]:
        return {"device": self.device, "stitch_on": self.stitch_on}

    def _streamed(self, batch: Batch) -> Tensor:
        """Labels of a volume that is read and put together row by row of windows; see ``SlidingWindow``."""
        (handle,) = batch["image"]
        data: Any = getattr(self.trainer, "datamodule", None)

        def prepare(crops: Tensor) -> Tensor:
            if not hasattr(data, "on_after_batch_transfer"):
                return crops.float()
            image: Tensor = data.on_after_batch_transfer({**batch, "image": crops}, 0)["image"]
            return image

        sliding = replace(self._sliding(), memory=self.memory)
        labels = sliding.classes(handle, self.network, prepare=prepare, **self._devices())
        return torch.from_numpy(labels)[None, None]

    def _sum_over_processes(self, values: Tensor) -> Tensor:
        total = self.trainer.strategy.reduce(values.to(self.device), reduce_op="sum")
        assert isinstance(total, Tensor)
        return total.cpu()


def _dice_ce() -> Callable[[Tensor, Tensor], Tensor]:
    from monai.losses import DiceCELoss

    loss: Callable[[Tensor, Tensor], Tensor] = DiceCELoss(
        to_onehot_y=True, softmax=True, include_background=False, batch=True
    )
    return loss
