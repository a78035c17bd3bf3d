"""Train and validate a classifier on crops whose class is a column of the tables."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from radiodata.errors import ConfigError
from radiodata.lightning.optim import OptimizedModule, Settings, callable_of

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from torch.optim import Optimizer
    from torch.optim.lr_scheduler import LRScheduler

__all__ = ["ClassificationModule"]


class ClassificationModule(OptimizedModule):
    """A network that gives each crop one class, and each case the class of the mean over its crops.

    A batch is ``image`` (B, C, ...) float32, the class ``target`` (B,) int64, ``is_padding`` (B,) bool and ``obs_id``.
    ``val/accuracy`` is the share of cases that are right, and ``val/loss`` the mean over cases; they are the same on
    any number of processes, also where crops of one case are on several.

    Parameters
    ----------
    network
        The network; or a callable that is given ``out_channels`` and returns it; or the settings of such a callable.
    num_classes
        Number of classes, 2 or more.
    target
        Key of the class in a batch.
    optimizer, scheduler
        As of ``SegmentationModule``.

    Raises
    ------
    radiodata.errors.ConfigError
        `num_classes` is below 2.
    """

    def __init__(
        self,
        network: nn.Module | Callable[..., nn.Module] | Settings,
        num_classes: int,
        *,
        target: str = "target",
        optimizer: Callable[..., Optimizer] | Settings | None = None,
        scheduler: Callable[[Optimizer, int], LRScheduler] | Settings | None = None,
    ) -> None:
        super().__init__(optimizer, scheduler)
        if num_classes < 2:
            raise ConfigError(f"num_classes is {num_classes}; a class is one of 2 at least")
        parts = {"network": network, "optimizer": optimizer, "scheduler": scheduler}
        self.save_hyperparameters(ignore=[name for name, part in parts.items() if callable(part)])
        self.network: nn.Module = (
            network if isinstance(network, nn.Module) else callable_of(network)(out_channels=num_classes)
        )
        self.num_classes, self.target = num_classes, target
        self._cases: dict[str, tuple[Tensor, int, int]] = {}

    def forward(self, image: Tensor) -> Tensor:
        """Logits (B, K) of crops (B, C, ...)."""
        logits: Tensor = self.network(image)
        return logits

    def training_step(self, batch: Mapping[str, Any], batch_idx: int) -> Tensor:
        """Cross-entropy over the rows that are not padding; zero, with a gradient, where all are."""
        real = ~batch["is_padding"]
        rows, logits = int(real.sum()), self(batch["image"])
        loss = functional.cross_entropy(logits[real], batch[self.target][real]) if rows else 0.0 * logits.sum()
        self.log("train/loss", loss.detach(), batch_size=rows, on_step=True, on_epoch=False, prog_bar=True)
        return loss

    def on_validation_epoch_start(self) -> None:
        """Forget the cases of the last validation."""
        self._cases = {}

    def validation_step(self, batch: Mapping[str, Any], batch_idx: int) -> None:
        """Add the probabilities of crops to those of their cases."""
        chances = self(batch["image"]).softmax(dim=1).double().cpu()
        rows = zip(batch["obs_id"], chances, batch[self.target].tolist(), batch["is_padding"].tolist(), strict=True)
        for case, row, target, is_padding in rows:
            if not is_padding:
                total, crops, _ = self._cases.get(case, (torch.zeros(self.num_classes, dtype=torch.float64), 0, 0))
                self._cases[case] = (total + row, crops + 1, target)

    def on_validation_epoch_end(self) -> None:
        """Log accuracy and loss over the cases of all processes."""
        cases = self._of_all_processes()
        if not cases:
            return
        means = torch.stack([total / crops for total, crops, _ in cases.values()])
        targets = torch.tensor([target for *_, target in cases.values()])
        right = (means.argmax(dim=1) == targets).double().mean()
        loss = functional.nll_loss(means.clamp(min=1e-12).log(), targets)
        scores = {"val/accuracy": right.float(), "val/loss": loss.float()}
        self.log_dict(scores, prog_bar=True, batch_size=1, sync_dist=self.trainer.world_size > 1)

    def predict_step(self, batch: Mapping[str, Any], batch_idx: int) -> dict[str, Any]:
        """Probabilities (B, K) of crops, and which volumes they are of."""
        chances: Tensor = self(batch["image"]).softmax(dim=1)
        return {"obs_id": batch["obs_id"], "probability": chances, "is_padding": batch["is_padding"]}

    def _of_all_processes(self) -> dict[str, tuple[Tensor, int, int]]:
        if self.trainer.world_size == 1:
            return self._cases
        held: list[Any] = [None] * self.trainer.world_size
        torch.distributed.all_gather_object(held, self._cases)
        merged: dict[str, tuple[Tensor, int, int]] = {}
        for cases in held:
            for case, (total, crops, target) in cases.items():
                before, count, _ = merged.get(case, (torch.zeros_like(total), 0, 0))
                merged[case] = (before + total, count + crops, target)
        return merged
