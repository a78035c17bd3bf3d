"""Memory for large arrays, used again when nothing refers to an array in it any more.

Fresh memory has to be zeroed and mapped page by page, which costs as much as filling it.
"""

from __future__ import annotations

import math
import mmap
import weakref
from collections import deque
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

    Allocate: TypeAlias = "Callable[[Sequence[int], np.dtype[Any]], NDArray[Any]]"
    """Gives an array of a shape and dtype that holds anything."""

SMALL = 1 << 18
"""Arrays of fewer bytes are left to the allocator."""
_ROUND = 1 << 16
_SLACK = 2
_FORGET = 256
"""Arrays given until what was in use is half forgotten, or so."""


class Pool:
    """Memory of one process for arrays of any shape; threads may ask at once.

    Parameters
    ----------
    most
        Bytes that nothing refers to which are kept; more where more was in use lately.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._used: dict[mmap.mmap, int] = {}
        self._peak = 0
        self._free: deque[mmap.mmap] = deque()  # its methods are atomic: an array may die anywhere, under any lock

    def empty(self, shape: Sequence[int], dtype: np.dtype[Any]) -> NDArray[Any]:
        """Give an array in C order that holds anything."""
        count = math.prod(shape)
        nbytes = count * np.dtype(dtype).itemsize
        if nbytes < SMALL or not hasattr(mmap, "MAP_PRIVATE"):
            return np.empty(shape, dtype)
        memory = self._taken(nbytes) or mmap.mmap(-1, -(-nbytes // _ROUND) * _ROUND, mmap.MAP_PRIVATE)
        self._used[memory] = len(memory)
        used = sum(list(self._used.values()))
        self._peak = max(used, self._peak - (self._peak - used) // _FORGET)
        array = np.frombuffer(memory, dtype, count)  # all views refer to it, for its memory is no array's
        weakref.finalize(array, self._back, memory).atexit = False
        return array.reshape(shape)

    def _taken(self, nbytes: int) -> mmap.mmap | None:
        for _ in range(len(self._free)):
            try:
                memory = self._free.pop()  # the last that came is in the processor's cache
            except IndexError:  # another thread took it
                return None
            if nbytes <= len(memory) <= _SLACK * nbytes + _ROUND:
                return memory
            self._free.appendleft(memory)
        return None

    def _back(self, memory: mmap.mmap) -> None:
        self._used.pop(memory)
        self._free.append(memory)
        if not self._used:  # the loader is gone
            self._peak = 0
        try:
            most = max(self._most, self._peak - sum(list(self._used.values())))
            while sum(map(len, list(self._free))) > most:
                self._free.popleft()
        except (IndexError, RuntimeError):  # another thread is at it
            pass


blocks = Pool(1 << 27)
"""What units are read into, in this process."""
batches = Pool(1 << 26)
"""What batches of this process lie in."""
