"""Compiled kernels, where `radiodata[fast]` is installed; None, and another way, where anything is amiss.

LLVM and the private half of zstandard that gives functions' addresses are imported on the first use, which takes a
tenth of a second, or some seconds where nothing is compiled yet; a kernel is tried on tiles made here, and not used
unless that comes out right.
"""

from __future__ import annotations

import logging
import os
import threading
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import numpy as np

from radiodata.store.direct.schema import Layout

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable

T = TypeVar("T")
VARIABLE = "RADIODATA_COMPILED"
FORK_S = 30.0
"""How long a fork waits for a kernel that is being loaded; the child does without one where that is not enough."""
_log = logging.getLogger("radiodata.store")


class Kernels(Generic[T]):
    """A kernel, and the types that it was compiled for in this process.

    Parameters
    ----------
    instead
        What is said where there is none: ``"tiles are decoded"``.
    made
        Makes what its users call, for a type, and proves it; from machine code that is kept, or compiled anew.
    """

    def __init__(self, instead: str, made: Callable[[Any, bool], T]) -> None:
        self._instead, self._make = instead, made
        self._lock = threading.RLock()
        self._off = _said() in ("0", "false", "no", "off")
        self._ready: dict[Hashable, T] = {}
        self._asked: set[Hashable] = set()
        self._still = True
        os.register_at_fork(
            before=self._before_fork, after_in_parent=self._after_fork, after_in_child=self._after_fork_in_child
        )

    def get(self, key: Hashable) -> T | None:
        """Give the kernel for a type, or None: not installed, switched off, or not to be trusted."""
        if self._off or key in self._ready:
            return None if self._off else self._ready[key]
        if self._lock.acquire(blocking=False):  # whoever comes while it is compiled does without
            try:
                if not self._off and key not in self._ready:
                    self._try(key)
            finally:
                self._lock.release()
        return self._ready.get(key)

    def soon(self, key: Hashable) -> T | None:
        """Give the kernel for a type; or None, and a thread loads it, for what has another way and need not wait."""
        if self._off or key in self._ready or _said() == "wait":
            return self.get(key)
        if key not in self._asked and threading.main_thread().is_alive():  # else the interpreter ends
            self._asked.add(key)
            with suppress(RuntimeError):  # there can be no more threads
                threading.Thread(target=self._load_now, args=(key,), name="radiodata-kernel").start()
        return None

    def _load_now(self, key: Hashable) -> None:
        with self._lock:
            if not self._off and key not in self._ready:
                self._try(key)

    def _try(self, key: Hashable) -> None:
        try:
            try:
                made = self._make(key, False)
            except (OSError, RuntimeError) as error:
                _log.info("a kernel is compiled anew: %s", error)
                made = self._make(key, True)
        except ImportError as error:
            self._off = True
            _log.info("%s without the compiled kernel (pip install 'radiodata[fast]'): %s", self._instead, error)
        except Exception as error:  # numba, llvmlite and private halves may fail in any way: never the user's read
            self._off = True
            _log.info("%s without the compiled kernel: %s: %s", self._instead, type(error).__name__, error)
        else:
            self._ready[key] = made

    def _before_fork(self) -> None:
        self._still = self._lock.acquire(timeout=FORK_S)

    def _after_fork(self) -> None:
        if self._still:
            self._lock.release()

    def _after_fork_in_child(self) -> None:
        self._after_fork()
        self._asked = set(self._ready)  # threads that were about to begin are not here
        if not self._still:  # another thread was compiling, and the locks of numba and LLVM are held for ever
            self._lock, self._off = threading.RLock(), True


def _said() -> str:
    return os.environ.get(VARIABLE, "1").strip().lower()


def address(name: str) -> int:
    """Address of a function of zstd, as zstandard links it."""
    from zstandard import _cffi  # type: ignore[attr-defined]

    return int(_cffi.ffi.cast("uintptr_t", _cffi.ffi.addressof(_cffi.lib, name)))


class ZstdContext:
    """A context of zstd, to decode or to encode, by its address; freed with this object."""

    def __init__(self, create: str, free: str) -> None:
        from zstandard import _cffi  # type: ignore[attr-defined]

        self._held = _cffi.ffi.gc(getattr(_cffi.lib, create)(), getattr(_cffi.lib, free))
        self.address = int(_cffi.ffi.cast("uintptr_t", self._held))


def proof_layout(dtype: str) -> Layout:
    """Layout of the tiles on which a kernel is tried."""
    return Layout(np.dtype(dtype), (4, 5, 6), shuffle=True, zstd=True)
