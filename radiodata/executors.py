"""Who does the work: threads, processes, or an executor of the caller's."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import threading
import time
import warnings
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from radiodata.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


@dataclass(frozen=True)
class Submit:
    """A way to have work done elsewhere.

    Attributes
    ----------
    submit
        As of ``concurrent.futures.Executor``.
    workers
        How many work at once, as far as is known.
    """

    submit: Callable[..., Any]
    workers: int


def of_caller(executor: Any, workers: int = 1) -> Submit:
    """Use an executor of the caller's: any ``concurrent.futures.Executor`` (threads, processes, loky), a Dask client.

    Raises
    ------
    ConfigError
        When it is none.
    """
    pool = executor.get_executor() if hasattr(executor, "get_executor") else executor
    if not hasattr(pool, "submit"):
        raise ConfigError(f"executor={executor!r} is no executor: it has no submit")
    threads = getattr(executor, "nthreads", None)  # of a Dask client: of each of its workers
    many = sum(threads().values()) if callable(threads) else getattr(pool, "_max_workers", None)
    return Submit(pool.submit, int(many or max(workers, os.cpu_count() or 1)))


@contextmanager
def threads(workers: int) -> Iterator[Submit]:
    """Give threads of this process; what they have begun has ended when this ends, and the rest is never begun."""
    pool = ThreadPoolExecutor(workers, thread_name_prefix="radiodata")
    try:
        yield Submit(pool.submit, workers)
    finally:
        pool.shutdown(cancel_futures=True)


@contextmanager
def processes(workers: int) -> Iterator[Submit]:
    """Give processes, which end when this process does, however that comes about; a script needs no main guard."""
    from loky import ProcessPoolExecutor
    from loky.backend import get_context

    pool = ProcessPoolExecutor(workers, context=get_context("loky"), initializer=_end_with, initargs=(os.getpid(),))
    try:
        yield Submit(pool.submit, workers)
    finally:
        pool.shutdown(kill_workers=False)


def _end_with(parent: int) -> None:
    """End this process when its parent is gone: what it writes then belongs to a run that is dead."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)  # at once, whatever it is doing

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(0.2)
        os._exit(1)

    threading.Thread(target=watch, name="radiodata-parent", daemon=True).start()


_PR_SET_PDEATHSIG = 1

_filters = threading.Lock()
_quiet: list[warnings.catch_warnings[Any]] = []
"""One for each thread that is inside; the first one was entered."""


@contextmanager
def without_warnings() -> Iterator[None]:
    """Ignore warnings, as ``warnings.catch_warnings`` does, in any number of threads at once.

    Filters are the whole process's: of two threads that save and restore them in turn, one restores what the other has
    changed. So the first one in changes them, and the last one out restores them.
    """
    if getattr(sys.flags, "context_aware_warnings", False):  # Python 3.14 and later: filters are each thread's own
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
        return
    with _filters:
        _quiet.append(warnings.catch_warnings())
        if len(_quiet) == 1:
            _quiet[0].__enter__()
            warnings.simplefilter("ignore")
    try:
        yield
    finally:
        with _filters:
            last = _quiet.pop()
            if not _quiet:
                last.__exit__(None, None, None)
