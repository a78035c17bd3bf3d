"""Stop a run between two steps when asked to, with a checkpoint from which it goes on exactly."""

from __future__ import annotations

import signal
import threading
from typing import TYPE_CHECKING, Any

from lightning.pytorch import Callback

if TYPE_CHECKING:
    from types import FrameType

    from lightning.pytorch import LightningModule, Trainer

__all__ = ["StopOnSignal"]


class StopOnSignal(Callback):
    """End the run after the current step on Ctrl-C (SIGINT) or SIGTERM.

    A signal in the middle of a step would leave a checkpoint of half a step, and processes that wait for one
    another. Here it is noted, and all processes stop together after the step or validation volume at hand;
    ``ModelCheckpoint(save_on_exception=True)`` then saves. A second Ctrl-C interrupts at once.

    Attributes
    ----------
    asked
        Whether this process was asked to stop.
    """

    def __init__(self) -> None:
        self.asked = False
        self._before: dict[int, Any] = {}

    def on_sanity_check_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Take over both signals: Lightning sets its own handlers just before."""
        self._listen()

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Take over both signals, where there was no sanity check."""
        self._listen()

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        """Stop here when any process was asked to."""
        if trainer.strategy.reduce_boolean_decision(self.asked, all=False):
            raise KeyboardInterrupt

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Give the signals back."""
        while self._before:
            number, handler = self._before.popitem()
            signal.signal(number, handler)

    def _listen(self) -> None:
        if not self._before and threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._before[number] = signal.signal(number, self._note)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.asked and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.asked = True
        # a terminal or a batch system signals loader workers too, and torch would end the step at their death
        if hasattr(signal, "SIGCHLD") and signal.SIGCHLD not in self._before:
            self._before[signal.SIGCHLD] = signal.signal(signal.SIGCHLD, lambda *_: None)
