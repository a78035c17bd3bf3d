"""How batches travel: made ahead by worker processes, or read ahead by threads in this one."""

from __future__ import annotations

import signal
import warnings
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

import torch
from torch.utils.data import DataLoader, Dataset, Sampler
from torch.utils.data._utils import pin_memory as pinning

from radiodata.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

Batch: TypeAlias = "dict[str, Any]"
At: TypeAlias = "tuple[int, int]"
"""Epoch and step."""


class BatchSource(Protocol):
    """Makes any batch on request; picklable, since worker processes get one each."""

    def __getitem__(self, at: At) -> Batch:
        """Make the batch of an (epoch, step)."""

    def reads(self, at: At) -> list[Callable[[], None]]:
        """Reads that the batch of an (epoch, step) needs, each to be done ahead in any thread."""


class Transport(Protocol):
    """Gives the batches of consecutive steps, in order."""

    def iterate(self, epoch: int, start: int, stop: int) -> Iterator[Batch]:
        """Batches of steps ``start`` to ``stop - 1`` of an epoch."""


class _Steps(Sampler[At]):
    """Tells workers, by the index itself, which epoch and step to make: they share no state."""

    def __init__(self) -> None:
        self.span = (0, 0, 0)

    def __iter__(self) -> Iterator[At]:
        epoch, start, stop = self.span
        return ((epoch, step) for step in range(start, stop))

    def __len__(self) -> int:
        return self.span[2] - self.span[1]


class WorkerTransport:
    """Worker processes make whole batches; they stay for all epochs and keep what they have read."""

    def __init__(
        self, source: BatchSource, *, workers: int, prefetch: int, start_method: str | None, pin_memory: bool
    ) -> None:
        self._steps = _Steps()
        dataset: Dataset[Batch] = source  # type: ignore[assignment]
        self._loader = DataLoader(
            dataset,
            batch_size=None,
            sampler=self._steps,
            num_workers=workers,
            prefetch_factor=prefetch,
            persistent_workers=True,
            multiprocessing_context=start_method,
            pin_memory=pin_memory,
            worker_init_fn=_leave_interrupts_to_parent,
            generator=torch.Generator(),  # the default one draws from, and so disturbs, the caller's
        )

    def iterate(self, epoch: int, start: int, stop: int) -> Iterator[Batch]:
        """Batches of steps ``start`` to ``stop - 1`` of an epoch."""
        self._steps.span = (epoch, start, stop)
        with warnings.catch_warnings():
            # a child of ours never touches the parent's contexts (see store.context): the warning is not for us
            warnings.filterwarnings("ignore", "TileDB is a multithreading library", UserWarning)
            return iter(self._loader)


def _leave_interrupts_to_parent(worker: int) -> None:
    """Ctrl-C reaches every process of a terminal: the parent decides, and stops its workers itself."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


class ThreadTransport:
    """Threads of this process read ahead; transforms and collation run where the batch is asked for."""

    def __init__(self, source: BatchSource, *, threads: int, prefetch: int, pin_memory: bool) -> None:
        self._source, self._threads, self._prefetch, self._pin = source, threads, prefetch, pin_memory

    def iterate(self, epoch: int, start: int, stop: int) -> Iterator[Batch]:
        """Batches of steps ``start`` to ``stop - 1`` of an epoch."""
        ahead: deque[list[Future[None]]] = deque()
        pool = ThreadPoolExecutor(self._threads, thread_name_prefix="radiodata-prefetch")
        try:
            for step in range(start, stop):
                while len(ahead) < self._prefetch and step + len(ahead) < stop:
                    reads = self._source.reads((epoch, step + len(ahead)))
                    ahead.append([pool.submit(read) for read in reads])
                # what has not begun is read below, where a failure is raised too
                wait([read for read in ahead.popleft() if not read.cancel()])
                batch = self._source[epoch, step]
                yield pinning.pin_memory(batch) if self._pin else batch  # type: ignore[no-untyped-call]
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


def make_transport(
    source: BatchSource, workers: int, prefetch: int, threads: int, start_method: str | None, pin_memory: bool
) -> Transport:
    """Worker processes, or threads where there are none."""
    if workers < 0 or prefetch < 1 or threads < 1:
        raise ConfigError(f"num_workers={workers}, prefetch={prefetch}, threads={threads}: at least 0, 1 and 1")
    if workers:
        return WorkerTransport(
            source, workers=workers, prefetch=prefetch, start_method=start_method, pin_memory=pin_memory
        )
    return ThreadTransport(source, threads=threads, prefetch=prefetch, pin_memory=pin_memory)
