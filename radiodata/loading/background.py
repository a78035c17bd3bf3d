"""Batches made by a thread of this process, one ahead, while the one before is trained on."""

from __future__ import annotations

import atexit
import queue
import threading
from contextlib import closing
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Generator

_PATIENCE = 6.0
"""Seconds that a thread may take to end: it waits for reads that go on, and no longer than this."""


def in_background(
    make: Callable[[threading.Event], Generator[Any, None, None]],
    name: str,
    *,
    begin: Callable[[], None] = lambda: None,
    finish: Callable[[Any], Any] = lambda batch: batch,
    seconds: float | None = None,
    late: Callable[[], BaseException] = TimeoutError,
) -> Generator[Any, None, None]:
    """Give what a generator gives, which runs in a thread and is one ahead.

    Parameters
    ----------
    make
        Makes the generator; it ends soon after the event that it is given is set.
    name
        Of the thread.
    begin, finish
        Called in the thread: before all else, and on each of what it makes.
    seconds, late
        How long one may take (None: for ever), and what makes the error for one that takes longer.
    """
    stop, out = threading.Event(), queue.Queue[tuple[Any, BaseException | None]](maxsize=1)

    def put(item: tuple[Any, BaseException | None]) -> None:
        while not stop.is_set():
            try:
                out.put(item, timeout=0.5)
            except queue.Full:
                continue
            return

    def run() -> None:
        try:
            begin()
            with closing(make(stop)) as batches:
                while not stop.is_set():
                    put((finish(next(batches)), None))  # held by no name: what is trained on may be freed
        except BaseException as error:  # StopIteration, too
            put((None, error))

    def end(patience: float = _PATIENCE) -> None:
        stop.set()
        thread.join(patience)

    thread = threading.Thread(target=run, name=name, daemon=True)
    atexit.register(end)  # no thread may be in TileDB, or hold a device, when their libraries are torn down
    thread.start()
    patience = _PATIENCE
    try:
        while True:
            try:
                batch, error = out.get(timeout=seconds)
            except queue.Empty:
                patience = 0.0
                raise late() from None
            if isinstance(error, StopIteration):
                return
            if error is not None:
                raise error
            yield batch
            del batch
    finally:
        atexit.unregister(end)
        end(patience)
        error = None  # it, or one that nobody asked for, would hold all that it came through, and itself
        out.queue.clear()
