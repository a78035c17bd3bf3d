"""One writer at a time may commit to a cohort: a lock of its own, which a killed process does not keep.

On a local disk it is a lock of the file system, ``__lock``. An object store has none, so there each writer puts down
an object that says it wants to commit, and looks whether another did: of two that come at once, both see both and
both step back.
"""

from __future__ import annotations

import random
import time
import uuid
from contextlib import contextmanager
from typing import TYPE_CHECKING

import filelock
import tiledb

from radiodata.errors import StoreError
from radiodata.store.direct.listing import local_path
from radiodata.store.layout import join

if TYPE_CHECKING:
    from collections.abc import Iterator

LOCK = "__lock"
PATIENCE = 600.0
LEASE = 120.0


@contextmanager
def writer_lock(uri: str, ctx: tiledb.Ctx, *, patience: float = PATIENCE) -> Iterator[None]:
    """Hold the lock of the cohort at `uri`.

    Raises
    ------
    StoreError
        When another process kept it for `patience` seconds.
    """
    path = local_path(uri)
    held = _local(path, patience) if path is not None else _remote(uri, ctx, patience)
    with held:
        yield


@contextmanager
def _local(path: str, patience: float) -> Iterator[None]:
    lock = filelock.FileLock(join(path, LOCK), timeout=patience)
    try:
        lock.acquire()
    except filelock.Timeout as error:
        raise _too_long(path, patience) from error
    except OSError as error:
        raise StoreError(f"cannot write to the cohort at {path}: {error}") from error
    try:
        yield
    finally:
        lock.release()


@contextmanager
def _remote(uri: str, ctx: tiledb.Ctx, patience: float) -> Iterator[None]:
    vfs, end = tiledb.VFS(ctx=ctx), time.monotonic() + patience
    while True:
        mine = join(uri, f"{LOCK}s", f"{int(time.time())}.{uuid.uuid4().hex}")
        vfs.touch(mine)
        if _alone(uri, mine, vfs):
            break
        vfs.remove_file(mine)
        if time.monotonic() > end:
            raise _too_long(uri, patience)
        time.sleep(random.uniform(0.05, 0.5))
    try:
        yield
    finally:
        if vfs.is_file(mine):
            vfs.remove_file(mine)


def _alone(uri: str, mine: str, vfs: tiledb.VFS) -> bool:
    """Whether no other writer has put its object down; one that is older than a lease died."""
    for other in vfs.ls(join(uri, f"{LOCK}s")):
        name = other.rstrip("/").rsplit("/", 1)[-1]
        if not name or mine.endswith(name):
            continue
        if time.time() - int(name.split(".")[0]) < LEASE:
            return False
        vfs.remove_file(other)
    return True


def _too_long(uri: str, patience: float) -> StoreError:
    return StoreError(
        f"another process has been committing to the cohort at {uri} for {patience:g} s: wait for it, or end it"
    )
