"""Memory that processes share, mapped, without a file that stays open: loaders have hundreds, more than may be open."""

from __future__ import annotations

import ctypes
import mmap
import os
import weakref
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

_FAILED = ctypes.c_void_p(-1).value


class Mapped:
    """A file in memory, mapped; the memory stays until the last array of it is gone.

    ``mmap.mmap`` keeps a file open for each.

    Parameters
    ----------
    file, nbytes
        What is mapped; the file may be closed then.

    Raises
    ------
    OSError
        When it cannot be mapped.
    """

    def __init__(self, file: int, nbytes: int) -> None:
        address = _libc().mmap(None, nbytes, mmap.PROT_READ | mmap.PROT_WRITE, mmap.MAP_SHARED, file, 0)
        if address in (None, _FAILED):
            number = ctypes.get_errno()
            raise OSError(number, f"{nbytes} bytes of shared memory cannot be mapped: {os.strerror(number)}")
        self._address, self._nbytes = address, nbytes
        self._memory = (ctypes.c_ubyte * nbytes).from_address(address)
        weakref.finalize(self._memory, _libc().munmap, address, nbytes).atexit = False

    def __len__(self) -> int:
        return self._nbytes

    def array(self, dtype: Any, count: int) -> NDArray[Any]:
        """Give the first items as an array; all of its views keep the memory."""
        return np.frombuffer(memoryview(self._memory), dtype, count)

    def free(self) -> None:
        """Give the pages back, in all processes that map them: they hold zeros."""
        _libc().madvise(self._address, self._nbytes, mmap.MADV_REMOVE)


@cache
def _libc() -> ctypes.CDLL:
    libc = ctypes.CDLL(None, use_errno=True)
    libc.mmap.restype = ctypes.c_void_p
    libc.mmap.argtypes = (
        ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long,
    )  # fmt: skip
    libc.munmap.argtypes = (ctypes.c_void_p, ctypes.c_size_t)
    libc.madvise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
    return libc
