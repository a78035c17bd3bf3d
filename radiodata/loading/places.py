"""Places of crops in batches that are still to be made: what is read into them need not be copied there."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import numpy as np
    from numpy.typing import NDArray

    from radiodata.loading.memory import Allocate

    Arrays: TypeAlias = "Mapping[str, NDArray[Any]]"
    """Key of a sample to the voxels of a batch, ``(slot, channel, x, y, z)``."""


@dataclass(order=True, slots=True)
class Due:
    """When a crop will be taken, and where it will be then; in the order of time.

    Attributes
    ----------
    epoch, step
        Of the batch.
    slot, slots
        Place in this process's part of it, and how many that has.
    """

    epoch: int
    step: int
    slot: int
    slots: int = field(compare=False)
    places: Places | None = field(compare=False, default=None)

    def place(self, name: str, shape: Sequence[int], dtype: np.dtype[Any]) -> NDArray[Any] | None:
        """Give the memory that a crop's voxels under a key of the sample belong in, if it has any."""
        return None if self.places is None else self.places.place(self, name, shape, dtype)


class Places:
    """Arrays of the batches to come of one process, made when the first crop of a batch is read.

    Threads may ask at once. A crop that was read without a place, or for another batch, is copied when its batch is
    made.

    Parameters
    ----------
    allocate
        Gives the memory.
    most
        Bytes of arrays that wait; no place is given beyond.
    """

    def __init__(self, allocate: Allocate, most: int) -> None:
        self._allocate, self._most = allocate, most
        self._lock = threading.Lock()
        self._arrays: dict[tuple[int, int], dict[str, NDArray[Any]]] = {}
        self._first = (0, 0)
        self._bytes = 0

    def place(self, due: Due, name: str, shape: Sequence[int], dtype: np.dtype[Any]) -> NDArray[Any] | None:
        """Give a crop's place; None where its batch was made already, holds others, or has no room."""
        at, whole = (due.epoch, due.step), (due.slots, *shape)
        with self._lock:
            if at < self._first:
                return None
            array = self._arrays.get(at, {}).get(name)
            if array is None:
                if self._bytes >= self._most:
                    return None
                try:
                    array = self._allocate(whole, dtype)
                except OSError:  # no shared memory is left: whoever makes the batch will say so
                    return None
                self._arrays.setdefault(at, {})[name] = array
                self._bytes += array.nbytes
        if array.shape != whole or array.dtype != dtype:
            return None
        place: NDArray[Any] = array[due.slot]
        return place

    def take(self, epoch: int, step: int) -> Arrays:
        """Hand out the arrays of a batch, for it is to be made; it and those before it have no places any more."""
        with self._lock:
            arrays = self._arrays.get((epoch, step), {})
            self._first = (epoch, step + 1)
            for at in [at for at in self._arrays if at < self._first]:
                self._bytes -= sum(array.nbytes for array in self._arrays.pop(at).values())
        return arrays

    def restart(self, epoch: int, step: int) -> None:
        """Forget all batches; the first to come is that of a step."""
        with self._lock:
            self._arrays.clear()
            self._bytes, self._first = 0, (epoch, step)


def in_place(voxels: Sequence[NDArray[Any]], whole: NDArray[Any]) -> bool:
    """Whether crops lie in an array one after another, and fill it: what is alive at one address is one."""
    if len(whole) != len(voxels) or voxels[0].shape != whole.shape[1:]:
        return False
    first, step = whole.ctypes.data, whole.strides[0]
    return all(one.dtype == whole.dtype and one.flags.c_contiguous for one in voxels) and all(
        one.ctypes.data == first + n * step for n, one in enumerate(voxels)
    )
