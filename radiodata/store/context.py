"""TileDB contexts and open arrays that belong to one process.

A context that lived before ``fork`` hangs in the child, even when it is only dropped there. So every
process makes its own lazily, and after a fork the inherited handles are kept alive and left alone.
"""

from __future__ import annotations

import ctypes
import os
import threading
import time
from typing import TYPE_CHECKING, Any, TypeVar

import tiledb

from radiodata.errors import StoreError
from radiodata.store.config import ReadConfig

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable

T = TypeVar("T")
DEFAULT_READ = ReadConfig()


class Handles:
    """Contexts and arrays opened by this process, shared by its threads."""

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._contexts: dict[Hashable, Any] = {}
        self._arrays: dict[Hashable, Any] = {}

    @property
    def used(self) -> bool:
        """Whether TileDB was used through them."""
        return bool(self._contexts)

    def context(self, config: ReadConfig = DEFAULT_READ) -> tiledb.Ctx:
        """Give the process's context for `config`, made on first use."""
        with self._lock:
            if config.key not in self._contexts:
                self._contexts[config.key] = tiledb.Ctx(config.to_tiledb())
            return self._contexts[config.key]

    def array(self, uri: str, token: str, config: ReadConfig = DEFAULT_READ) -> tiledb.Array:
        """Open an array for reading, once per `token`.

        Parameters
        ----------
        uri
            Where the array is.
        token
            Identity of the cohort snapshot that asks: a handle sees what was written before it was
            opened, so a cohort opened later must not be served an older handle.

        Raises
        ------
        StoreError
            When TileDB cannot open it.
        """
        key = (uri, token, config.key)
        opened = self._arrays.get(key)
        if opened is not None:
            return opened
        with self._lock:
            if key not in self._arrays:
                try:
                    self._arrays[key] = tiledb.open(uri, ctx=self.context(config))
                except tiledb.TileDBError as error:
                    raise StoreError(f"cannot open the voxel array {uri}: {error}") from error
            return self._arrays[key]

    def forget(self, token: str) -> None:
        """Close the arrays that were opened for one cohort snapshot."""
        with self._lock:
            for key in [k for k in self._arrays if isinstance(k, tuple) and k[1] == token]:
                self._arrays.pop(key).close()


def _leave_without_destructors() -> None:
    """Let ``exit`` of this forked child skip what the parent registered, as ``multiprocessing`` does.

    libtiledb's own destructor joins a thread that only the parent has, and would wait for ever.
    """
    libc = ctypes.CDLL(None)
    if hasattr(libc, "on_exit"):  # glibc; handlers run last first, so those of the child still run
        libc.on_exit(libc._exit, None)


class _Process:
    """The handles of the process that is running now."""

    def __init__(self) -> None:
        self.handles = Handles()
        os.register_at_fork(after_in_child=self._after_fork)

    def _after_fork(self) -> None:
        # immortal: not even interpreter shutdown in the child may destroy what the parent opened
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(self.handles))
        if self.handles.used:
            _leave_without_destructors()
        self.handles = Handles()


_process = _Process()


def patiently(read: Callable[[], T]) -> T:
    """Read what another process may be writing: local file systems show files before they are whole.

    A table whose fragments are merged while it is read must be read again, too.
    """
    for wait in (0.01, 0.05, 0.25):
        try:
            return read()
        except tiledb.TileDBError:
            time.sleep(wait)
    return read()


def handles() -> Handles:
    """Handles of this process."""
    return _process.handles


def context(config: ReadConfig = DEFAULT_READ) -> tiledb.Ctx:
    """TileDB context of this process for `config`."""
    return _process.handles.context(config)
