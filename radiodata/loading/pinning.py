"""Page-locked batches, for a quicker copy to the GPU."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch.utils.data._utils.pin_memory import pin_memory

from radiodata.loading.background import in_background

if TYPE_CHECKING:
    import threading
    from collections.abc import Callable, Generator

    from radiodata.loading.stats import Stats


def can_pin() -> bool:
    """Whether there is a device for which memory can be page-locked."""
    return torch.cuda.is_available()


def locked(batch: Any, stats: Stats) -> Any:
    """Copy a batch into page-locked memory; the copy is counted under transfer."""
    with stats.timed("transfer"):
        return pin_memory(batch)  # type: ignore[no-untyped-call]


def pinned(
    make: Callable[[threading.Event], Generator[Any, None, None]], stats: Stats, **how: Any
) -> Generator[Any, None, None]:
    """Give batches in page-locked memory, copied by a thread, which makes them, too (see ``in_background``)."""
    device = torch.cuda.current_device()
    return in_background(
        make,
        "radiodata-pin",
        begin=lambda: torch.cuda.set_device(device),  # a thread begins with the first one
        finish=lambda batch: locked(batch, stats),
        **how,
    )
