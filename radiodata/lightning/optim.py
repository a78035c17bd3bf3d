"""Optimizers and schedules of modules, given as callables or as Hydra settings that checkpoints keep."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, TypeAlias

import torch
from lightning.pytorch import LightningModule

from radiodata.errors import ConfigError

if TYPE_CHECKING:
    from lightning.pytorch.utilities.types import OptimizerLRScheduler
    from torch.optim import Optimizer
    from torch.optim.lr_scheduler import LambdaLR, LRScheduler

Settings: TypeAlias = Mapping[str, Any]
"""A Hydra node: ``_target_`` and its arguments, ``_partial_: true``."""


class OptimizedModule(LightningModule):
    """A module whose parts may be given as settings, with an optimizer and a schedule over the whole run.

    Parameters
    ----------
    optimizer
        Callable given the parameters, or its settings. Default: AdamW, lr 0.001.
    scheduler
        Callable given the optimizer and the total number of steps, stepped after each, or its settings.
        None: a constant learning rate.
    """

    def __init__(
        self,
        optimizer: Callable[..., Optimizer] | Settings | None,
        scheduler: Callable[[Optimizer, int], LRScheduler] | Settings | None,
    ) -> None:
        super().__init__()
        self._optimizer, self._scheduler = optimizer, scheduler

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """Make the optimizer, and the scheduler over the whole run's steps.

        Raises
        ------
        radiodata.errors.ConfigError
            A scheduler was asked for in a run without an end.
        """
        make = callable_of(self._optimizer) if self._optimizer is not None else adamw
        optimizer: Optimizer = make(self.parameters())
        if self._scheduler is None:
            return optimizer
        steps = self.trainer.estimated_stepping_batches
        if not 0 < steps < float("inf"):
            raise ConfigError(
                f"the scheduler needs to know how many steps the run has, and it has {steps}: set "
                "trainer.max_epochs or trainer.max_steps, or optim.scheduler=null"
            )
        scheduler = callable_of(self._scheduler)(optimizer, int(steps))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}


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


def callable_of(part: Callable[..., Any] | Settings) -> Callable[..., Any]:
    """Callable that settings tell of."""
    if not isinstance(part, Mapping):
        return part
    from hydra.utils import instantiate

    made: Callable[..., Any] = instantiate(dict(part), _convert_="all")
    return made


def adamw(parameters: Any) -> Optimizer:
    """Optimizer where none is given."""
    return torch.optim.AdamW(parameters, lr=1e-3)
