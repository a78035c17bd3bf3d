"""Crops of units that were read, or are being read, and are not all delivered yet, under a byte bound."""

from __future__ import annotations

import threading
from collections import OrderedDict
from concurrent.futures import Future
from typing import TYPE_CHECKING, TypeAlias

from radiodata.errors import ConfigError
from radiodata.loading.places import Due

if TYPE_CHECKING:
    from collections.abc import Callable

    from radiodata.loading.reading import Crop

UnitKey: TypeAlias = "tuple[int, ...]"
"""Epoch (or pass) and number of a unit; and the attempt, where it stands in for one that could not be read."""
_NOW = Due(-1, 0, 0, 1)


class _Reading:
    """A unit that a thread reads, or that waits for one."""

    def __init__(self, nbytes: int) -> None:
        self.nbytes, self.begun = nbytes, False
        self.given = set[int]()
        self.done: Future[dict[int, Crop]] = Future()


class BlockCache:
    """Crops of open units, shared by the threads of a process.

    A unit is read once however many threads ask; a crop is handed out, to one of them, and let go of. What waits to be
    handed out is bounded in bytes. A read ahead is granted only if its bytes fit beside those that are there and
    those that are being read (``request``), so that nothing is read ahead only to be thrown away and read
    again; what was not read ahead is read when it is taken. Where that needs room, what goes first is what
    nobody said would be needed (``expect``), the least recently used unit first, then the unit that is
    needed last.

    Parameters
    ----------
    read
        Reads a unit by its key: the crops that are ``due``, or more of them.
    max_bytes
        Bound on the crops that wait.
    size
        Bytes of a unit's crops, known before it is read; by default as many as the largest had so far, and
        the first is read by itself.
    """

    def __init__(
        self, read: Callable[[UnitKey], dict[int, Crop]], max_bytes: int, size: Callable[[UnitKey], int] | None = None
    ) -> None:
        if max_bytes < 0:
            raise ConfigError(f"cache_bytes must not be negative: {max_bytes}")
        self._read, self.max_bytes, self._size = read, max_bytes, size or self._largest_so_far
        self._lock = threading.Lock()
        self._waiting: OrderedDict[UnitKey, dict[int, Crop]] = OrderedDict()
        self._reading: dict[UnitKey, _Reading] = {}
        self._given: dict[UnitKey, set[int]] = {}
        self._due: dict[UnitKey, dict[int, Due]] = {}
        self._failed: dict[UnitKey, BaseException] = {}
        self._bytes = self._largest = 0
        self.reads = 0
        self.hits = 0
        self.watch: Callable[[list[UnitKey]], None] | None = None
        """Told which units are being read, whenever that changes."""

    def take(self, key: UnitKey, crop: int) -> Crop:
        """Hand out one crop of a unit, reading the unit unless it waits here or another thread reads it."""
        with self._lock:
            self._forget_other_epochs(key)
            if crop in self._waiting.get(key, ()):
                self.hits += 1
                return self._give(key, crop)
            if key in self._failed and key not in self._reading:
                raise self._failed.pop(key)  # it was read ahead: not tried again before anybody hears of it
            reading = self._reading.get(key) or self._reserve(key)
            mine, reading.begun = not reading.begun, True
            if mine and key in self._due:
                self._due[key].setdefault(crop, _NOW)
        if mine:
            self._fill(key, reading)
        try:
            crops = reading.done.result()
        except BaseException:
            with self._lock:
                self._failed.pop(key, None)
            raise
        with self._lock:
            if crop in self._waiting.get(key, ()):
                return self._give(key, crop)
            if crop in crops and crop not in reading.given:  # it was let go of, for want of room
                reading.given.add(crop)
                self._not_due(key, crop)
                return crops[crop]
        return self.take(key, crop)  # another thread has it, or it was not due when the reading began

    def expect(self, key: UnitKey, crop: int, due: Due) -> None:
        """Say that a crop will be taken, and when."""
        with self._lock:
            self._due.setdefault(key, {})[crop] = due

    def due(self, key: UnitKey) -> dict[int, Due]:
        """Crops of a unit that will be taken, and do not wait here."""
        with self._lock:
            return {c: due for c, due in self._due.get(key, {}).items() if c not in self._waiting.get(key, ())}

    def expect_nothing(self) -> None:
        """Take back all that ``expect`` said; reads that were granted and have not begun are off."""
        with self._lock:
            self._due.clear()
            self._failed.clear()
            for key in [k for k, r in self._reading.items() if not r.begun]:
                del self._reading[key]

    def clear(self) -> None:
        """Let go of all crops that wait: who takes one after that has its unit read again."""
        with self._lock:
            for key in list(self._waiting):
                self._drop(key)

    @property
    def open(self) -> int:
        """Units of which crops wait here, or that are being read."""
        with self._lock:
            return len(self._waiting) + len(self._reading)

    def holds(self, key: UnitKey, crop: int) -> bool:
        """Whether a crop waits here, or comes with a unit that is being read."""
        with self._lock:
            return crop in self._waiting.get(key, ()) or key in self._reading

    def request(self, key: UnitKey, *, urgent: bool = False) -> bool:
        """Ask leave to read a unit ahead, by ``run`` in any thread; refused where its bytes would not fit.

        Parameters
        ----------
        urgent
            It is needed at once: granted in any case.
        """
        with self._lock:
            if key in self._reading:
                return True
            if not urgent and not self._make_room(self._size(key), expected=False):
                return False
            self._reserve(key)
            return True

    def run(self, key: UnitKey) -> None:
        """Read a unit that was granted, unless a thread has begun to; errors go to those who take it."""
        with self._lock:
            reading = self._reading.get(key)
            if reading is None or reading.begun:
                return
            reading.begun = True
        self._fill(key, reading)

    def wait(self, key: UnitKey, seconds: float | None) -> bool:
        """Wait for a read that goes on, if any; False when it took longer than that."""
        with self._lock:
            reading = self._reading.get(key)
        if reading is None:
            return True
        try:
            reading.done.exception(seconds)
        except TimeoutError:
            return False
        return True

    def _reserve(self, key: UnitKey) -> _Reading:
        reading = self._reading[key] = _Reading(self._size(key))
        return reading

    def _fill(self, key: UnitKey, reading: _Reading) -> None:
        try:
            self._tell()
            crops = self._read(key)
        except BaseException as error:  # told to whoever takes the unit
            with self._lock:
                self._end(key, reading)
                self._failed[key] = error
            reading.done.set_exception(error)
            return
        with self._lock:
            self._end(key, reading)
            self.reads += 1
            self._drop(key)
            self._waiting[key], self._given[key] = dict(crops), reading.given
            nbytes = sum(c.nbytes for c in crops.values())
            self._bytes, self._largest = self._bytes + nbytes, max(self._largest, nbytes)
            self._make_room(0, expected=True)
        reading.done.set_result(crops)
        self._tell()

    def _tell(self) -> None:
        if self.watch is not None:
            with self._lock:
                begun = [k for k, r in self._reading.items() if r.begun]
            self.watch(begun)

    def _end(self, key: UnitKey, reading: _Reading) -> None:
        if self._reading.get(key) is reading:
            del self._reading[key]

    def _make_room(self, nbytes: int, *, expected: bool) -> bool:
        """Let go of crops until so many bytes fit; of those that are expected only if told to."""
        room = self.max_bytes - nbytes - sum(r.nbytes for r in self._reading.values() if not expected)
        if self._bytes > room:
            self._drop_unexpected(room)
        while expected and self._bytes > room and self._waiting:
            self._drop(max(self._waiting, key=lambda k: min(self._due[k][c] for c in self._waiting[k])))
        return self._bytes <= room

    def _drop_unexpected(self, room: int) -> None:
        for key, held in list(self._waiting.items()):
            for crop in [c for c in held if c not in self._due.get(key, ())]:
                self._let_go(key, crop)
                if self._bytes <= room:
                    return

    def _give(self, key: UnitKey, crop: int) -> Crop:
        self._given[key].add(crop)
        return self._let_go(key, crop)

    def _let_go(self, key: UnitKey, crop: int) -> Crop:
        held = self._waiting[key]
        self._waiting.move_to_end(key)
        taken = held.pop(crop)
        self._bytes -= taken.nbytes
        self._not_due(key, crop)
        if not held:
            del self._waiting[key], self._given[key]
        return taken

    def _not_due(self, key: UnitKey, crop: int) -> None:
        due = self._due.get(key, {})
        due.pop(crop, None)
        if not due:
            self._due.pop(key, None)

    def _drop(self, key: UnitKey) -> None:
        self._given.pop(key, None)
        self._bytes -= sum(c.nbytes for c in self._waiting.pop(key, {}).values())

    def _forget_other_epochs(self, key: UnitKey) -> None:
        for old in [k for k in self._waiting if k[0] < key[0] and k not in self._due]:
            self._drop(old)

    def _largest_so_far(self, key: UnitKey) -> int:
        return self._largest or self.max_bytes
