"""TileDB contexts and open arrays that belong to one process.

A context that lived before ``fork`` hangs in the child, even when it is only dropped there. So every
process makes its own lazily, and after a fork the inherited handles are kept alive and left alone.
"""

from __future__ import annotations

import ctypes
import os
import threading
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, TypeVar

import tiledb

from radiodata.errors import StoreError
from radiodata.store.config import ReadConfig
from radiodata.store.direct import Direct
from radiodata.store.direct.listing import local_path
from radiodata.store.leaving import leave_without_destructors
from radiodata.store.remote.client import Remote, prepare
from radiodata.store.sealing import refused

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Iterator

T = TypeVar("T")
DEFAULT_READ = ReadConfig()
_WHOLE = {
    "vfs.s3.use_multipart_upload": "false",
    "vfs.s3.multipart_part_size": str(1 << 26),
    "vfs.s3.max_parallel_ops": "2",
    "vfs.azure.use_block_list_upload": "false",
    "vfs.azure.block_list_block_size": str(1 << 26),
    "vfs.azure.max_parallel_ops": "2",
    "vfs.gcs.use_multi_part_upload": "false",
    "vfs.gcs.multi_part_size": str(1 << 26),
    "vfs.gcs.max_parallel_ops": "2",
}
LARGE_BYTES = 1 << 26
LARGE_ROWS = 10_000
"""Volumes and tables that are larger are written, and tables read, in a large context."""


class Lane:
    """A context for reads, with the arrays opened in it; one thread at a time uses it."""

    def __init__(self, config: ReadConfig) -> None:
        self.ctx = tiledb.Ctx(config.to_tiledb())
        self.arrays: dict[tuple[str, str], tiledb.Array] = {}

    def array(self, uri: str, token: str) -> tiledb.Array:
        """Open an array for reading, once per `token` (see ``Handles.reading``)."""
        if (uri, token) not in self.arrays:
            try:
                self.arrays[uri, token] = tiledb.open(uri, ctx=self.ctx)
            except tiledb.TileDBError as error:
                raise refused(error, uri) or StoreError(f"cannot open the voxel array {uri}: {error}") from error
        return self.arrays[uri, token]


class Handles:
    """Contexts and arrays opened by this process, shared by its threads.

    Reads that run at once get a lane each: threads that share one TileDB context also share its thread pool,
    and may wait for it.

    Attributes
    ----------
    direct
        What is read without a TileDB query.
    remote
        What is fetched from object stores.
    """

    def __init__(self) -> None:
        self.remote = Remote()
        self.direct = Direct(self.remote)
        self._lock = threading.Lock()
        self._contexts: dict[Hashable, tiledb.Ctx] = {}
        self._free: dict[Hashable, list[Lane]] = {}
        self._lanes: list[Lane] = []

    @property
    def used(self) -> bool:
        """Whether TileDB was used through them."""
        return bool(self._contexts or self._lanes or self.remote.used)

    def context(self, config: ReadConfig = DEFAULT_READ, *, large: bool = False) -> tiledb.Ctx:
        """Give the process's context for `config`, made on first use; `large`: for tables of tens of thousands of rows.

        Objects of up to 128 MB are put in one request, those of a large context in parts. A query begins with buffers
        of one size for every column, and is sent again, with larger ones, until all fits: of 100,000 volumes, that
        takes three times as long as the reading.
        """
        key, more = (config.key, large), {"py.init_buffer_bytes": str(1 << 24)} if large else _WHOLE
        prepare(config)
        with self._lock:
            if key not in self._contexts:
                self._contexts[key] = tiledb.Ctx({**config.to_tiledb(), **more, **config.tiledb})
            return self._contexts[key]

    @contextmanager
    def reading(
        self, uri: str, token: str, config: ReadConfig = DEFAULT_READ
    ) -> Iterator[tuple[tiledb.Array, tiledb.Ctx]]:
        """Lend an open array, and its context, to one thread.

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
        lane = self._take(config)
        try:
            yield lane.array(uri, token), lane.ctx
        finally:
            with self._lock:
                self._free[config.key].append(lane)

    def _take(self, config: ReadConfig) -> Lane:
        with self._lock:
            free = self._free.setdefault(config.key, [])
            if free:
                return free.pop()
        lane = Lane(config)
        with self._lock:
            self._lanes.append(lane)
        return lane

    def forget(self, token: str) -> None:
        """Close the arrays that were opened for one cohort snapshot; no thread may be reading them."""
        self.direct.forget(token)
        with self._lock:
            for lane in self._lanes:
                for key in [k for k in lane.arrays if k[1] == token]:
                    lane.arrays.pop(key).close()


class _Process:
    """The handles of the process that is running now."""

    def __init__(self) -> None:
        self.handles = Handles()
        os.register_at_fork(after_in_child=self._after_fork)

    def _after_fork(self) -> None:
        # immortal: not even interpreter shutdown in the child may destroy what the parent opened
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(self.handles))
        if self.handles.used:
            leave_without_destructors()  # libtiledb's joins a thread that only the parent has
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


def bounded(uri: str, config: ReadConfig, act: Callable[[], T]) -> T:
    """Do what TileDB may wait on for minutes, no longer than the deadline where it is on an object store.

    Raises
    ------
    UnreachableError
        When it was not done in time.
    """
    if local_path(uri) is not None:
        return act()
    done: T = handles().remote.fetcher(config).within(uri, act)
    return done


def handles() -> Handles:
    """Handles of this process."""
    return _process.handles


def context(config: ReadConfig = DEFAULT_READ, *, large: bool = False) -> tiledb.Ctx:
    """TileDB context of this process for `config`; see ``Handles.context``."""
    return _process.handles.context(config, large=large)
