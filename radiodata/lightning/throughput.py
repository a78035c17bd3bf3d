"""DataThroughput: how fast data comes, and how long training waits for it."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from lightning.pytorch import Callback

from radiodata.errors import ConfigError

if TYPE_CHECKING:
    from lightning.pytorch import LightningModule, Trainer

__all__ = ["DataThroughput"]


class DataThroughput(Callback):
    """Log, every so many training steps, what the data cost since the last time.

    ==========================  =================================================================================
    ``data/samples_per_s``      samples of this process, padding left out, times the number of processes
    ``data/wait_share``         share of the time that was spent waiting for a batch, from 0 to 1
    ``data/MB_per_s``           voxels and all else that was handed out to this process
    ``data/hit_share``          crops that lay in memory when they were asked for, from 0 to 1
    ==========================  =================================================================================

    The last two are of a loader with ``stats()``, as ``PatchLoader`` has, its workers included.

    Parameters
    ----------
    every_n_steps
        Training batches from one line to the next.

    Raises
    ------
    radiodata.errors.ConfigError
        When `every_n_steps` is below 1.
    """

    def __init__(self, every_n_steps: int = 10) -> None:
        if every_n_steps < 1:
            raise ConfigError(f"DataThroughput(every_n_steps={every_n_steps}): 1 or more")
        self.every_n_steps = every_n_steps
        self._restart()

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin to count: what lies between epochs is no waiting."""
        self._restart()
        self._before = self._counts(trainer)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """A batch is here: the time since the last step was spent waiting for it, and moving it."""
        now = time.perf_counter()
        self._waited += now - self._left
        padding = batch.get("is_padding") if isinstance(batch, dict) else None
        self._samples += 0 if padding is None else int((~padding).sum())

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Log what came, and begin anew."""
        self._left = time.perf_counter()
        self._batches += 1
        if self._batches < self.every_n_steps:
            return
        seconds = max(self._left - self._begun, 1e-9)
        now = self._counts(trainer)
        told = {
            "data/samples_per_s": self._samples * trainer.world_size / seconds,
            "data/wait_share": min(self._waited / seconds, 1.0),
        }
        if now is not None and self._before is not None:
            delivered, hits = (b - a for a, b in zip(self._before, now, strict=True))
            told["data/MB_per_s"] = delivered / 1e6 / seconds
            told["data/hit_share"] = min(hits / max(self._samples, 1), 1.0)
        for logger in trainer.loggers:
            logger.log_metrics(told, step=trainer.global_step)
        for name, value in told.items():  # for the progress bar and for other callbacks
            shown = name == "data/wait_share"
            pl_module.log(name, float(value), prog_bar=shown, logger=False, on_step=True, on_epoch=False, batch_size=1)
        self._restart()
        self._before = now

    def _restart(self) -> None:
        self._begun = self._left = time.perf_counter()
        self._waited, self._samples, self._batches = 0.0, 0, 0

    def _counts(self, trainer: Trainer) -> tuple[float, float] | None:
        """Bytes handed out, and crops found in memory, so far."""
        stats = getattr(trainer.train_dataloader, "stats", None)
        if stats is None:
            return None
        told = stats()
        return float(told.bytes_delivered), float(told.hits)
