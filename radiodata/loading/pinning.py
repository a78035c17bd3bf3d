"""Page-locked batches: copied by a thread while the batch before is trained on."""

from __future__ import annotations

import queue
import threading
from typing import TYPE_CHECKING, Any

import torch
from torch.utils.data._utils.pin_memory import pin_memory

if TYPE_CHECKING:
    from collections.abc import Callable, Generator

    from radiodata.loading.stats import Stats


def can_pin() -> bool:
    """Whether there is a device for which memory can be page-locked."""
    return torch.cuda.is_available()


def pinned(make: Callable[[threading.Event], Generator[Any, None, None]], stats: Stats) -> Generator[Any, None, None]:
    """Give batches in page-locked memory, one ahead.

    Parameters
    ----------
    make
        Makes the batches; ends soon after the event that it is given is set.
    stats
        Where the copies are counted, under transfer.
    """
    stop, out = threading.Event(), queue.Queue[tuple[Any, BaseException | None]](maxsize=1)
    device = torch.cuda.current_device()

    def put(item: tuple[Any, BaseException | None]) -> None:
        while not stop.is_set():
            try:
                out.put(item, timeout=0.5)
            except queue.Full:
                continue
            return

    def run() -> None:
        torch.cuda.set_device(device)  # a thread begins with the first one
        try:
            for batch in make(stop):
                with stats.timed("transfer"):
                    locked = pin_memory(batch)  # type: ignore[no-untyped-call]
                put((locked, None))
                if stop.is_set():
                    return
            put((None, StopIteration()))
        except BaseException as error:
            put((None, error))

    thread = threading.Thread(target=run, name="radiodata-pin", daemon=True)
    thread.start()
    try:
        while True:
            batch, error = out.get()
            if isinstance(error, StopIteration):
                return
            if error is not None:
                raise error
            yield batch
            del batch
    finally:
        stop.set()
        thread.join(2.0)
