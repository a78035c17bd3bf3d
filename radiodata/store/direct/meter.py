"""Where the time of reads goes."""

from __future__ import annotations

import time
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator


@dataclass
class Meter:
    """Nanoseconds of one caller's reads; threads that share a read add up.

    Attributes
    ----------
    read
        Getting stored bytes. A TileDB query counts whole, since it does not tell reading from decoding.
    decode
        Decompressing tiles, undoing the shuffle, and placing them into the box.
    wall
        The calls, from outside.
    """

    read: int = 0
    decode: int = 0
    wall: int = 0

    @contextmanager
    def call(self) -> Iterator[None]:
        """Count a call: what its parts do not claim was spent on finding and opening, or in a query."""
        begun, claimed = time.perf_counter_ns(), self.read + self.decode
        try:
            yield
        finally:
            took = time.perf_counter_ns() - begun
            self.wall += took
            self.read += max(took - (self.read + self.decode - claimed), 0)

    def share(self, reading: int, whole: int) -> None:
        """Count a thread's share of a direct read, and how much of it went into reading."""
        self.read += reading
        self.decode += whole - reading
