"""How many requests are under way at once: as many as bring more bytes, and no more."""

from __future__ import annotations

import threading
import time
from collections import deque
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

LEAST, FIRST = 4, 12
_WINDOW = 0.25
_REST = 8
_REQUEST = 0.001
"""Seconds of processor time that a request costs: 0.0006 here (measured), and some at the server."""


class Depth:
    """Finds the depth at which a store gives all it can, by trying: latency times throughput, without knowing either.

    While requests wait for their turn, it looks at the bytes of each quarter of a second. Now and then it tries a
    deeper queue, and stays there where that gave more; or one less deep, and stays where that gave as much.

    Parameters
    ----------
    most
        Requests at once.
    clock
        Seconds.

    Attributes
    ----------
    limit
        Requests that may be under way now.
    """

    def __init__(self, most: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._now = clock
        self.most, self.limit = most, min(FIRST, most)
        self._lock = threading.Lock()
        self._begun, self._bytes, self._full = self._now(), 0, False
        self._rate, self._before, self._up, self._rest = 0.0, 0, True, 1
        self._latencies: deque[float] = deque(maxlen=64)
        self._sizes: deque[int] = deque(maxlen=64)

    def note(self, nbytes: int, seconds: float, *, waiting: bool) -> None:
        """Note a request that was answered; `waiting`: others could have begun had the limit been higher."""
        with self._lock:
            self._latencies.append(seconds)
            self._sizes.append(nbytes)
            self._bytes += nbytes
            self._full |= waiting
            took = self._now() - self._begun
            if took >= _WINDOW:
                if self._full:
                    self._adapt(self._bytes / took)
                self._begun, self._bytes, self._full = self._now(), 0, False

    def _adapt(self, rate: float) -> None:
        if not self._before:  # not trying: this is what the present depth gives
            self._rate = rate if not self._rate else 0.7 * self._rate + 0.3 * rate
            self._rest -= 1
            if self._rest <= 0:
                self._before = self.limit
                self.limit = min(self.most, self.limit * 3 // 2) if self._up else max(LEAST, self.limit * 2 // 3)
        elif rate > (1.05 if self._up else 0.97) * self._rate:
            self._rate, self._before, self._rest = rate, 0, 1
        else:
            self.limit, self._before, self._rest = self._before, 0, _REST
            self._up = not self._up

    def gap(self) -> int:
        """Bytes worth reading in vain rather than asking twice, 0 while nothing is known.

        One more request takes its share of a round trip, latency / depth, or else some processor time of both sides;
        bytes in vain take their time of the bandwidth. With the pipe full, depth x size = bandwidth x latency: they
        cost the same at one request's size.
        """
        with self._lock:
            if len(self._latencies) < 8:
                return 0
            rate = max(self._rate, sum(self._sizes) / max(sum(self._latencies), 1e-9))
            return int(min(rate * max(min(self._latencies) / self.limit, _REQUEST), 1 << 20))
