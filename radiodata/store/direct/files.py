"""What a process keeps at hand, bounded: files open for ``pread``, and values that cost something to make."""

from __future__ import annotations

import os
import threading
from collections import OrderedDict
from typing import TYPE_CHECKING, Generic, TypeVar

from radiodata.store.direct.refusal import Damaged

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable

T = TypeVar("T")


class DataFile:
    """A file open for ``pread``: closed when nobody refers to it any more, so never under a reader's hands.

    Not a map of memory: a file that is cut short later would end the process with SIGBUS.
    """

    __slots__ = ("_links", "_size", "fd")

    def __init__(self, path: str, size: int) -> None:
        self.fd = -1
        try:
            self.fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            raise Damaged(f"its data cannot be opened: {error}") from error
        self._size, self._links = size, os.fstat(self.fd).st_nlink > 0
        self.check()

    def check(self) -> None:
        """Say whether the file was cut short or deleted since: an open file would outlive its volume.

        Raises
        ------
        Damaged
            When it was.
        """
        found = os.fstat(self.fd)
        if found.st_size != self._size:
            raise Damaged(f"its data are not as long as its metadata tell: {found.st_size}, not {self._size} bytes")
        if self._links and not found.st_nlink:
            raise Damaged("its data were deleted")

    def read_into(self, view: memoryview, at: int) -> None:
        """Fill `view` with the bytes from `at` on.

        Raises
        ------
        Damaged
            When the file is shorter, or cannot be read.
        """
        try:
            got = os.preadv(self.fd, [view], at)
        except OSError as error:
            raise Damaged(f"its data cannot be read: {error}") from error
        if got != len(view):
            raise Damaged(f"its data end {len(view) - got} bytes before their last tile")

    def __del__(self, close: Callable[[int], None] = os.close) -> None:  # bound: `os` may be gone at shutdown
        if self.fd >= 0:
            close(self.fd)


class Recent(Generic[T]):
    """Values made on demand; the least recently used are let go when their weights exceed `limit`.

    Threads may ask at once: a value may be made twice, and one of them is kept.
    """

    def __init__(self, limit: int) -> None:
        self._limit, self._weight = limit, 0
        self._held: OrderedDict[Hashable, tuple[T, int]] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, key: Hashable, make: Callable[[], tuple[T, int]]) -> T:
        """Give the value of `key`; `make` gives it with its weight."""
        with self._lock:
            if key in self._held:
                self._held.move_to_end(key)
                return self._held[key][0]
        value, weight = make()
        with self._lock:
            self._weight += weight - self._held.pop(key, (None, 0))[1]
            self._held[key] = (value, weight)
            while self._weight > self._limit and len(self._held) > 1:
                self._weight -= self._held.popitem(last=False)[1][1]
        return value

    def forget(self, unwanted: Callable[[Hashable], bool]) -> None:
        """Let go of the values whose key is `unwanted`."""
        with self._lock:
            for key in [k for k in self._held if unwanted(k)]:
                self._weight -= self._held.pop(key)[1]

    def __len__(self) -> int:
        return len(self._held)
