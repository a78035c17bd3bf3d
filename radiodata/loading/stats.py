"""What a loader spent its time on: recorded in every process, sent along with batches, added up in one report."""

from __future__ import annotations

import os
import threading
import time
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from typing import TYPE_CHECKING

from radiodata.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

STAGES = ("wait", "read", "decode", "cut", "transform", "collate", "transfer")


@dataclass(frozen=True)
class LoaderStats:
    """Totals since the loader was made, over all its processes and threads.

    Stages of several workers and threads run at once, so their seconds may add up to more than the clock's.
    A loader that keeps up waits for little; where it waits, the largest of the other stages says why.

    Attributes
    ----------
    wait_seconds
        Time for which the training loop waited for a batch.
    read_seconds
        Getting the bytes of tiles. A TileDB query counts whole here, since it does not tell reading from decoding.
    decode_seconds
        Decompressing tiles, undoing the shuffle, and placing them into the unit's box.
    cut_seconds
        Cutting crops out of the box; physical values, where a slope applies.
    transform_seconds
        Transforms.
    collate_seconds
        Samples to batches.
    transfer_seconds
        Handing batches over: copies into shared and page-locked memory, pickling.
    batches, bytes_delivered
        Batches handed out, and the bytes of their tensors.
    units_read, bytes_read
        Units read, and the decoded bytes of their blocks.
    requests, bytes_fetched
        Requests to object stores, and the bytes that they brought.
    hits
        Crops served from units that had been read.
    errors, replaced, skipped
        Samples that failed; those given another in their place; those left out.
    """

    wait_seconds: float = 0.0
    read_seconds: float = 0.0
    decode_seconds: float = 0.0
    cut_seconds: float = 0.0
    transform_seconds: float = 0.0
    collate_seconds: float = 0.0
    transfer_seconds: float = 0.0
    batches: int = 0
    bytes_delivered: int = 0
    units_read: int = 0
    bytes_read: int = 0
    requests: int = 0
    bytes_fetched: int = 0
    hits: int = 0
    errors: int = 0
    replaced: int = 0
    skipped: int = 0

    def to_dict(self) -> dict[str, float]:
        """Names and numbers, for a logger."""
        return asdict(self)

    def __str__(self) -> str:
        rows = [f"{stage:<12}{getattr(self, stage + '_seconds'):>12.3f} s" for stage in STAGES]
        rows += [
            f"{'batches':<12}{self.batches:>12}    {self.bytes_delivered / 1e6:,.1f} MB delivered",
            f"{'units read':<12}{self.units_read:>12}    {self.bytes_read / 1e6:,.1f} MB decoded",
            f"{'hits':<12}{self.hits:>12}    crops of units read before",
            f"{'errors':<12}{self.errors:>12}    {self.replaced} replaced, {self.skipped} skipped",
        ]
        if self.requests:
            rows.insert(-2, f"{'requests':<12}{self.requests:>12}    {self.bytes_fetched / 1e6:,.1f} MB fetched")
        return "\n".join(rows)


_NAMES = frozenset(f.name for f in fields(LoaderStats))


class Stats:
    """Records seconds and counts; threads may share it, processes get an empty one each.

    Examples
    --------
    >>> stats = Stats()
    >>> with stats.timed("collate"):
    ...     stats.count("units_read")
    >>> stats.report().units_read
    1
    """

    def __init__(self) -> None:
        self._renew()

    def _renew(self) -> None:
        self._pid, self._lock, self._totals = os.getpid(), threading.Lock(), dict[str, float]()

    @contextmanager
    def timed(self, stage: str) -> Iterator[None]:
        """Add the seconds that the block takes to a stage, one of ``STAGES``."""
        begun = time.perf_counter()
        try:
            yield
        finally:
            self.count(f"{stage}_seconds", time.perf_counter() - begun)

    def count(self, name: str, n: float = 1) -> None:
        """Add to a total of ``LoaderStats``.

        Raises
        ------
        ConfigError
            When there is no such total.
        """
        if name not in _NAMES:
            raise ConfigError(f"no statistic {name!r}; there are {', '.join(sorted(_NAMES))}")
        self.merge({name: n})

    def take(self) -> dict[str, float]:
        """Give what was recorded since the last time, and begin anew."""
        with self._own_lock():
            taken, self._totals = self._totals, {}
        return taken

    def merge(self, taken: Mapping[str, float]) -> None:
        """Add what another recorder took."""
        with self._own_lock():
            for name, n in taken.items():
                self._totals[name] = self._totals.get(name, 0) + n

    def report(self) -> LoaderStats:
        """Totals so far."""
        with self._own_lock():
            return LoaderStats(**self._totals)  # type: ignore[arg-type]

    def _own_lock(self) -> threading.Lock:
        if self._pid != os.getpid():  # a forked child: its parent's totals, and lock, are not its own
            self._renew()
        return self._lock

    def __getstate__(self) -> dict[str, float]:
        return {}

    def __setstate__(self, state: dict[str, float]) -> None:
        self._renew()
