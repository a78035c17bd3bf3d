"""How batches travel: made ahead by worker processes, or in this process from what its threads read ahead."""

from __future__ import annotations

import atexit
import time
import weakref
from contextlib import closing
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

from radiodata.errors import ConfigError, WorkerHungError
from radiodata.loading.background import in_background
from radiodata.loading.pinning import can_pin, locked, pinned
from radiodata.loading.readahead import Turn, reading_ahead
from radiodata.loading.stats import Stats
from radiodata.loading.watch import Settings
from radiodata.loading.workers import Team

if TYPE_CHECKING:
    import threading
    from collections.abc import Generator, Sequence

    from radiodata.loading.cache import BlockCache, UnitKey
    from radiodata.loading.memory import Allocate
    from radiodata.loading.places import Places
    from radiodata.loading.readahead import Read, ReadAhead
    from radiodata.loading.worker import Answer
    from radiodata.loading.workers import Worker

Batch: TypeAlias = "dict[str, Any]"
At: TypeAlias = "tuple[int, int]"
"""Epoch and step."""

_GLANCE = 1.0
"""Seconds between looks at what cannot be waited for."""

_STARTING = 60.0
"""Seconds that a worker may take to start, at least: it imports torch, perhaps from a slow disk."""


class BatchSource(Protocol):
    """Makes any batch on request; picklable, since worker processes get one each."""

    @property
    def stats(self) -> Stats:
        """Recorder of the process that it is in."""

    allocate: Allocate
    """Gives the memory that batches lie in, in this process."""

    @property
    def anywhere(self) -> bool:
        """Whether any thread may make batches: no code of users' does, which may keep and draw what others do, too."""

    @property
    def crops(self) -> int:
        """Crops of one unit."""

    @property
    def spread(self) -> int:
        """Steps of an epoch over which the crops of one unit are spread."""

    @property
    def ahead(self) -> int:
        """Steps of a process that its threads may read ahead."""

    @property
    def units(self) -> int:
        """Units that may be held, over all processes, whatever the steps."""

    def fetches(self) -> bool:
        """Whether reading is waiting, as for a network; else no more threads read at once than there are cores."""

    def batch(self, at: At, places: Places | None = None) -> Batch:
        """Make the batch of an (epoch, step), whose crops may lie in their places already."""

    def reads(self, at: At) -> Sequence[Read]:
        """Units, and crops of them, that the batch of an (epoch, step) takes."""

    def blocks(self) -> BlockCache | None:
        """Give this process's cache that units are read into; None where nothing is read ahead."""

    def describe(self, key: UnitKey) -> str:
        """Say what a unit is, for an error."""


class Transport(Protocol):
    """Gives the batches of consecutive steps, in order."""

    def iterate(self, epoch: int, start: int, stop: int) -> Generator[Batch, None, None]:
        """Batches of steps ``start`` to ``stop - 1`` of an epoch."""

    def close(self) -> None:
        """End what runs in the background; a later ``iterate`` begins it again."""


class WorkerTransport:
    """Worker processes make whole batches; they stay for all epochs and keep what they have read.

    Worker w of W makes the steps ``t % W == w``. Each is asked for `prefetch` batches ahead.
    """

    def __init__(
        self,
        source: BatchSource,
        settings: Settings,
        *,
        threads: int,
        start_method: str | None,
        pin_memory: bool,
        timeout: float | None,
        goes_on: bool,
        stats: Stats,
    ) -> None:
        self._source, self._settings, self._threads, self._start_method = source, settings, threads, start_method
        self._goes_on = goes_on
        self._pin, self._timeout, self._stats = pin_memory, timeout, stats
        self._team: Team | None = None
        self._iteration = 0
        self._here: dict[int, tuple[Worker, Answer]] = {}

    def iterate(self, epoch: int, start: int, stop: int) -> Generator[Batch, None, None]:
        """Batches of steps ``start`` to ``stop - 1`` of an epoch.

        Raises
        ------
        WorkerDiedError, WorkerHungError
            When a worker has ended, or a batch has taken longer than the timeout.
        """
        if self._team is None:  # before anything is page-locked: a fork must not find a device in use
            self._team = Team(self._source, self._threads, self._settings, self._start_method, self._stats)
        if self._pin:
            return pinned(lambda stopped: self._iterate(epoch, start, stop, stopped), self._stats)
        return self._iterate(epoch, start, stop, None)

    def close(self) -> None:
        """End the workers; a later ``iterate`` starts others."""
        if self._team is not None:
            self._team.end()
        self._team = None

    def _iterate(
        self, epoch: int, start: int, stop: int, stopped: threading.Event | None
    ) -> Generator[Batch, None, None]:
        self._iteration += 1
        mine = self._iteration
        for worker, answer in self._here.values():
            worker.inbox.refuse(answer.parcel)
        self._here.clear()
        count, asked = self._settings.workers, start
        for step in range(start, stop):
            if mine != self._iteration or self._team is None:
                raise RuntimeError(
                    "this iterator of the loader was left: another was begun, or the loader closed. Use one at a time"
                )
            while asked < min(stop, step + count * self._settings.prefetch):
                self._team.workers[asked % count].send(mine, Turn(epoch, asked, stop, count, self._goes_on))
                asked += 1
            got = self._wait_for(self._team, epoch, step, stopped)
            if got is None:
                return
            with self._stats.timed("transfer"):
                batch = got[0].open(got[1])
            yield batch
            del batch

    def _wait_for(
        self, team: Team, epoch: int, step: int, stopped: threading.Event | None
    ) -> tuple[Worker, Answer] | None:
        begun = time.monotonic()
        while step not in self._here:
            ready = team.workers[step % self._settings.workers].ready_at
            waited = time.monotonic() - max(begun, ready)
            patience = self._timeout if self._timeout is None or ready else max(self._timeout, _STARTING)
            if patience is not None and waited > patience:
                error = team.hung(step, epoch, patience)
                self.close()
                raise error
            try:
                answers = team.receive(min(_GLANCE, max(0.0, (patience or _GLANCE) - waited) + 0.01))
            except BaseException as error:
                if isinstance(error, Exception):
                    self.close()
                raise
            for worker, answer in answers:
                if answer.iteration == self._iteration:
                    self._here[answer.step] = (worker, answer)
                else:
                    worker.inbox.refuse(answer.parcel)
            if stopped is not None and stopped.is_set():
                return None
        return self._here.pop(step)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_team": None, "_here": {}}


class LocalTransport:
    """Threads of this process read ahead, and another makes a batch ahead; transforms run where it is asked for."""

    def __init__(
        self,
        source: BatchSource,
        *,
        threads: int,
        pin_memory: bool,
        timeout: float | None,
        goes_on: bool,
        stats: Stats,
    ) -> None:
        self._source, self._threads, self._pin, self._timeout = source, threads, pin_memory, timeout
        self._goes_on, self._stats = goes_on, stats
        self._kept: ReadAhead | None = None
        self._at: tuple[ReadAhead, int, int] | None = None
        self._end: weakref.finalize[Any, Any] | None = None

    def iterate(self, epoch: int, start: int, stop: int) -> Generator[Batch, None, None]:
        """Batches of steps ``start`` to ``stop - 1`` of an epoch.

        Raises
        ------
        WorkerHungError
            When a read has taken longer than the timeout.
        """
        if not self._threads or not self._source.anywhere:
            batches = self._iterate(epoch, start, stop)
            return self._locked(batches) if self._pin else batches

        def make(stopped: threading.Event) -> Generator[Batch, None, None]:
            return self._iterate(epoch, start, stop, stopped)

        how: dict[str, Any] = {"seconds": self._timeout, "late": self._late}
        return pinned(make, self._stats, **how) if self._pin else in_background(make, "radiodata-batch", **how)

    def close(self) -> None:
        """End the threads, which otherwise end with their iterator, but where they read on for the next one.

        What they have read is let go of.
        """
        if self._kept is not None:
            atexit.unregister(self._kept.close)
            self._kept.close()
        if self._end is not None:
            self._end.detach()
        self._kept = self._at = None
        if (blocks := self._source.blocks()) is not None:
            blocks.clear()

    def _locked(self, batches: Generator[Batch, None, None]) -> Generator[Batch, None, None]:
        with closing(batches):
            for batch in batches:
                yield locked(batch, self._stats)

    def _reading_ahead(self) -> ReadAhead | None:
        source, blocks = self._source, self._source.blocks() if self._threads else None
        if blocks is None:
            return None
        ahead, self._kept = self._kept, None
        if self._end is not None:
            self._end.detach()
        if ahead is None:
            ahead = reading_ahead(source, blocks, self._threads)
            atexit.register(ahead.close)  # no thread may be in TileDB when its library is torn down
        return ahead

    def _iterate(
        self, epoch: int, start: int, stop: int, stopped: threading.Event | None = None
    ) -> Generator[Batch, None, None]:
        source, ahead, patience, ended = self._source, self._reading_ahead(), 5.0, False
        try:
            for step in range(start, stop):
                if ahead is not None:
                    ahead.advance(Turn(epoch, step, stop, 1, self._goes_on))
                    self._at = ahead, epoch, step
                if ahead is not None and stopped is not None:  # whoever asks for the batch minds the time
                    ahead.help()
                    ahead.wait(None, stopped)
                    if stopped.is_set():
                        return
                elif ahead is not None and ahead.wait(self._timeout) is not None:
                    patience = 0.0
                    raise self._late()
                batch = source.batch((epoch, step), ahead.places if ahead else None)
                if ahead is not None:
                    ahead.go_on()
                self._stats.merge(source.stats.take())
                ended = step == stop - 1
                yield batch
                del batch
        finally:
            if ended and self._goes_on and self._kept is None and ahead is not None:  # else another iterator's are
                self._kept = ahead
                self._end = weakref.finalize(self, _end, ahead)
            elif ahead is not None:
                atexit.unregister(ahead.close)
                ahead.close(patience)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_kept": None, "_at": None, "_end": None}

    def _late(self) -> WorkerHungError:
        ahead, epoch, step = self._at or (None, None, None)
        key = None if ahead is None else ahead.wait(0)
        what = "the batch" if key is None else f"reading {self._source.describe(key)}"
        return WorkerHungError(
            f"{what} for epoch {epoch}, step {step} has taken more than {self._timeout:g} s. If it may take so long, "
            "raise `timeout` (None waits for ever); else look at the storage.",
            epoch=epoch,
            step=step,
        )


def _end(ahead: ReadAhead) -> None:
    """End threads that read on for a loader that is gone."""
    atexit.unregister(ahead.close)
    ahead.close(0)


def make_transport(
    source: BatchSource,
    workers: int,
    prefetch: int,
    threads: int,
    start_method: str | None,
    pin_memory: bool,
    *,
    timeout: float | None = 300.0,
    cache_bytes: int = 0,
    goes_on: bool = False,
    stats: Stats | None = None,
) -> WorkerTransport | LocalTransport:
    """Worker processes, or threads where there are none; `goes_on`: they read ahead into the next epoch."""
    if workers < 0 or prefetch < 1 or threads < 0:
        raise ConfigError(f"num_workers={workers}, prefetch={prefetch}, threads={threads}: at least 0, 1 and 0")
    if timeout is not None and timeout <= 0:
        raise ConfigError(f"timeout={timeout}: seconds, more than 0; or None to wait for ever")
    stats, pin = stats or Stats(), pin_memory and can_pin()
    if workers:
        settings = Settings(workers, prefetch, cache_bytes)
        return WorkerTransport(
            source,
            settings,
            threads=threads,
            start_method=start_method,
            pin_memory=pin,
            timeout=timeout,
            goes_on=goes_on,
            stats=stats,
        )
    return LocalTransport(source, threads=threads, pin_memory=pin, timeout=timeout, goes_on=goes_on, stats=stats)
