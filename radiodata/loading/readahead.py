"""Reading ahead: the units of a process's own coming steps, in threads, as far as the block cache has room."""

from __future__ import annotations

import heapq
import math
import threading
import time
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

from radiodata.loading.machine import cores
from radiodata.loading.places import Due, Places

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from radiodata.loading.cache import BlockCache, UnitKey
    from radiodata.loading.memory import Allocate
    from radiodata.loading.transport import BatchSource

Read: TypeAlias = "tuple[UnitKey, int]"
"""A unit, and the crop of it that a batch takes."""
_GLANCE = 1.0
"""Seconds between looks at whether a batch is still wanted."""


@dataclass(frozen=True)
class Turn:
    """A step that a process is to make, and so all it will be asked for after it.

    Attributes
    ----------
    epoch, step
        Which batch.
    stop
        End of the epoch.
    stride
        The next ones are ``step + stride``, ``step + 2 * stride``, and so on.
    goes_on
        Whether the next epoch follows, from ``step % stride`` on.
    """

    epoch: int
    step: int
    stop: int
    stride: int
    goes_on: bool = False

    @property
    def at(self) -> tuple[int, int]:
        """Epoch and step."""
        return self.epoch, self.step

    @property
    def number(self) -> int:
        """Place of the step among all that the process ever makes."""
        return self.epoch * self._steps + self.step // self.stride

    @property
    def last(self) -> int:
        """Number that is after the last one which it is known will come."""
        return (self.epoch + (2 if self.goes_on else 1)) * self._steps

    def step_of(self, number: int) -> tuple[int, int]:
        """Epoch and step of a number."""
        epoch, place = divmod(number, self._steps)
        return epoch, self.step % self.stride + place * self.stride

    def comes_before(self, turn: Turn) -> bool:
        """Whether a turn is the next one."""
        same = (turn.stop, turn.stride, turn.goes_on) == (self.stop, self.stride, self.goes_on)
        return same and turn.at == self.step_of(self.number + 1) and (self.goes_on or turn.epoch == self.epoch)

    @property
    def _steps(self) -> int:
        return len(range(self.step % self.stride, self.stop, self.stride))


class ReadAhead:
    """Threads that read the units of coming steps, in the order in which they will be needed.

    ::

        steps of this process   t      t+W    t+2W   t+3W   ...   t+kW  ...  t+nW
                                |      |---- granted ----|        |          |
                                made now   queued or read, or     first      looked at, so that the cache
                                           waiting in the cache   refused    knows what will be taken when

    It reads `ahead` steps ahead, and on while fewer than `units` are held: short epochs, which open all their units in
    the first steps, are read while the one before goes on. Less where the cache's byte bound says so (see
    ``BlockCache.request``).

    Parameters
    ----------
    blocks
        Cache of this process.
    reads
        Units and crops that the batch of an (epoch, step) takes.
    spread
        Steps of the epoch over which the crops of one unit are spread.
    threads
        How many.
    ahead
        Steps of this process.
    units
        As many as all processes may hold together whatever the steps.
    fetches
        Whether reading is waiting, as for a network: else no more threads read at once than there are cores beside
        the one that makes batches.
    allocate
        Gives the memory of batches, for crops to be read into; None where they are made of something else.

    Attributes
    ----------
    places
        Of crops in the batches to come; None without `allocate`.
    """

    def __init__(
        self,
        blocks: BlockCache,
        reads: Callable[[tuple[int, int]], Sequence[Read]],
        spread: int,
        threads: int,
        ahead: int = 1 << 30,
        units: int = 0,
        fetches: Callable[[], bool] = lambda: True,
        allocate: Allocate | None = None,
    ) -> None:
        self.places = None if allocate is None else Places(allocate, blocks.max_bytes)
        self._blocks, self._reads, self._spread, self._ahead, self._units = blocks, reads, spread, ahead, units
        self._jobs = Jobs(lambda: threads if fetches() else min(threads, max(1, cores() - 1)))
        self._turn: Turn | None = None
        self._seen: deque[tuple[int, Sequence[Read]]] = deque()
        self._granted = self._jobs_made = 0
        self._threads = [
            threading.Thread(target=_work, args=(self._jobs, blocks), name=f"radiodata-read-{i}", daemon=True)
            for i in range(threads)
        ]
        for thread in self._threads:
            thread.start()

    def advance(self, turn: Turn) -> None:
        """Have the units of a step read at once, and those of later ones as far as there is room."""
        if not self._follows(turn):
            self._blocks.expect_nothing()
            if self.places is not None:
                self.places.restart(*turn.at)
            self._seen.clear()
            self._granted = turn.number
        self._turn = turn
        while self._seen and self._seen[0][0] < turn.number:
            self._seen.popleft()
        self._look(turn.number)
        for key, crop in self._seen[0][1]:
            if not self._blocks.holds(key, crop):
                self._read(key, urgent=True)
        self.go_on()

    def go_on(self) -> None:
        """Read on, as far as there is room."""
        turn = self._turn
        if turn is None:
            return
        number = max(self._granted, turn.number)
        while number < turn.last and (
            number <= turn.number + self._ahead or self._blocks.open < self._units // turn.stride
        ):
            self._look(number)
            for key, crop in self._seen[number - self._seen[0][0]][1]:
                if not self._blocks.holds(key, crop) and not self._read(key, urgent=False):
                    return
            number = self._granted = number + 1

    def help(self) -> None:
        """Read, in this thread, what the present step needs and no other has begun to read."""
        for key, _ in self._seen[0][1] if self._seen else ():
            self._blocks.run(key)

    def wait(self, seconds: float | None, stopped: threading.Event | None = None) -> UnitKey | None:
        """Wait for what the present step needs; give the unit whose read took longer than that, if any.

        It waits no more once `stopped` is set.
        """
        deadline = math.inf if seconds is None else time.monotonic() + seconds
        for key, _ in self._seen[0][1] if self._seen else ():
            while not self._blocks.wait(key, min(_GLANCE, max(0.0, deadline - time.monotonic()))):
                if time.monotonic() >= deadline or (stopped is not None and stopped.is_set()):
                    return key
        return None

    def close(self, seconds: float = 5.0) -> None:
        """End the threads; a read that takes longer than that is left behind."""
        self._blocks.expect_nothing()
        for _ in self._threads:
            self._jobs.put((-1, 0, None))
        deadline = time.monotonic() + seconds
        for thread in self._threads:
            thread.join(max(0.0, deadline - time.monotonic()))
        if self.places is not None:
            self.places.restart(0, 0)

    def _follows(self, turn: Turn) -> bool:
        return self._turn is not None and self._turn.comes_before(turn)

    def _look(self, number: int) -> None:
        """Tell the cache what is taken up to a step, and for as long after it as its units are in use."""
        turn = self._turn
        assert turn is not None
        first = self._seen[-1][0] + 1 if self._seen else turn.number
        for at in range(first, min(number + self._spread // turn.stride + 1, turn.last)):
            epoch, step = turn.step_of(at)
            reads = self._reads((epoch, step))
            self._seen.append((at, reads))
            for slot, (key, crop) in enumerate(reads):
                self._blocks.expect(key, crop, Due(epoch, step, slot, len(reads), self.places))

    def _read(self, key: UnitKey, *, urgent: bool) -> bool:
        if not self._blocks.request(key, urgent=urgent):
            return False
        self._jobs_made += 1
        self._jobs.put((0 if urgent else 1, self._jobs_made, key))
        return True


def reading_ahead(source: BatchSource, blocks: BlockCache, threads: int) -> ReadAhead:
    """Threads that read ahead for a source of batches: into their places, unless users' functions make them."""
    allocate = source.allocate if source.anywhere else None
    return ReadAhead(blocks, source.reads, source.spread, threads, source.ahead, source.units, source.fetches, allocate)


class Jobs:
    """Units to be read, in the order of need, for threads.

    Parameters
    ----------
    most
        How many may be at work at once, asked whenever one may begin.
    """

    def __init__(self, most: Callable[[], int]) -> None:
        self._changed, self._most, self._at_work = threading.Condition(), most, 0
        self._heap: list[tuple[int, int, UnitKey | None]] = []

    def put(self, job: tuple[int, int, UnitKey | None]) -> None:
        """Add a job, the least first: urgency, number, unit; None for the unit ends a thread."""
        with self._changed:
            heapq.heappush(self._heap, job)
            self._changed.notify()

    def get(self) -> UnitKey | None:
        """Wait for a job; ``done`` must follow."""
        with self._changed:
            self._changed.wait_for(self._may_begin)
            self._at_work += 1
            key = heapq.heappop(self._heap)[2]
            self._changed.notify()  # where more may be at work than before, another begins
            return key

    def done(self) -> None:
        """Tell that a job is done."""
        with self._changed:
            self._at_work -= 1
            self._changed.notify()

    def _may_begin(self) -> bool:
        return bool(self._heap) and (self._heap[0][2] is None or self._at_work < self._most())


def _work(jobs: Jobs, blocks: BlockCache) -> None:
    while (key := jobs.get()) is not None:
        try:
            blocks.run(key)
        finally:
            jobs.done()
