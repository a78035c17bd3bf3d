"""How many requests are under way at once: as many as bring more bytes, and no more."""

from __future__ import annotations

import threading
import time
from collections import deque

LEAST, FIRST = 4, 12
_WINDOW = 0.25


class Depth:
    """Finds the depth at which a store gives all it can, by trying: latency times throughput, without knowing either.

    While requests wait for their turn, it looks at the bytes of each quarter of a second. Where a deeper queue gave a
    tenth more, it goes deeper still; where it did not, it goes back, and tries again a while later.

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

    def __init__(self, most: int, clock: object = time.monotonic) -> None:
        self._clock = clock
        self.most, self.limit = most, min(FIRST, most)
        self._lock = threading.Lock()
        self._begun, self._bytes, self._full = self._now(), 0, False
        self._best, self._rest = 0.0, 0
        self._latencies: deque[float] = deque(maxlen=64)
        self._sizes: deque[int] = deque(maxlen=64)

    def _now(self) -> float:
        return float(self._clock())  # type: ignore[operator]

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
        if self._rest:
            self._rest -= 1
            self._best = 0.9 * self._best + 0.1 * rate
        elif rate > 1.1 * self._best:
            self._best = rate
            self.limit = min(self.most, self.limit + max(2, self.limit // 2))
        else:
            self.limit = max(LEAST, int(self.limit / 1.25))
            self._best, self._rest = rate, 8

    def gap(self) -> int:
        """Bytes worth reading in vain rather than asking twice, 0 while nothing is known.

        One more request takes its share of a round trip, latency / depth; bytes in vain take their time of the
        bandwidth. With the pipe full, depth x size = bandwidth x latency: they cost the same at one request's size.
        """
        with self._lock:
            if len(self._latencies) < 8:
                return 0
            rate = max(self._best, sum(self._sizes) / max(sum(self._latencies), 1e-9))
            return int(min(rate * min(self._latencies) / self.limit, 1 << 20))
