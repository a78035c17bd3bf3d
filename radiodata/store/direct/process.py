"""What one process keeps of the shards that it reads directly, and the read itself."""

from __future__ import annotations

import logging
import os
import sys
import threading
import time
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import suppress
from typing import TYPE_CHECKING, TypeVar

from radiodata.store.direct import compiled, plain
from radiodata.store.direct.files import DataFile, Recent
from radiodata.store.direct.listing import Shard, list_shard
from radiodata.store.direct.metadata import Fragment, parse
from radiodata.store.direct.meter import Meter
from radiodata.store.direct.plan import pieces_of, shared_out, spans_of
from radiodata.store.direct.refusal import Corrupt, Damaged, Refused, need

if TYPE_CHECKING:
    from collections.abc import Callable

    import tiledb

    from radiodata._typing import Box, Voxels
    from radiodata.store.config import ReadConfig
    from radiodata.store.obs import VoxelSource

T = TypeVar("T")
FILES = 128
FRAGMENT_BYTES = 32 << 20
THREAD_BYTES = 1 << 19  # less is not worth a thread
MOST_THREADS = 16

_log = logging.getLogger("radiodata.store")
_ABLE = sys.byteorder == "little" and hasattr(os, "preadv")
_told: set[str] = set()


class Direct:
    """Shards listed, fragments parsed and files opened by this process, shared by its threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._shards: dict[tuple[str, str], Shard | Refused] = {}
        self._fragments: Recent[Fragment | Refused] = Recent(FRAGMENT_BYTES)
        self._files: Recent[DataFile] = Recent(FILES)
        self._pool: ThreadPoolExecutor | None = None

    def read(
        self,
        source: VoxelSource,
        box: Box,
        channels: tuple[int, int],
        out: Voxels,
        config: ReadConfig,
        context: Callable[[ReadConfig], tiledb.Ctx],
        meter: Meter | None = None,
    ) -> bool:
        """Read a box into `out` (C order), or say that TileDB is to do it: `out` then holds anything.

        Parameters
        ----------
        context
            Gives the TileDB context that lists a shard.
        meter
            Counts where the time goes.

        Raises
        ------
        Corrupt
            When a tile is damaged in a way that TileDB may not notice.
        """
        if not config.direct:
            return False
        try:
            need(_ABLE, "this machine is not little-endian, or has no preadv")
            fragment = self._fragment(source, config, context)
            file = self._files.get((source.token, fragment.data), lambda: (DataFile(fragment.data, fragment.size), 1))
            file.check()
            self._decode(file, fragment, box, channels, out, config, meter or Meter())
        except Corrupt:
            raise
        except Refused as why:
            _tell(source, why)
            return False
        return True

    def forget(self, token: str) -> None:
        """Let go of what was opened for one cohort snapshot."""
        with self._lock:
            self._shards = {key: shard for key, shard in self._shards.items() if key[1] != token}
        for kept in (self._fragments, self._files):
            kept.forget(lambda key: key[0] == token)  # type: ignore[index]

    def _shard(self, source: VoxelSource, config: ReadConfig, context: Callable[[ReadConfig], tiledb.Ctx]) -> Shard:
        key = (source.uri, source.token)
        if key not in self._shards:
            with self._lock:  # listing holds the GIL anyway
                if key not in self._shards:
                    self._shards[key] = _kept(lambda: list_shard(source.uri, context(config)))
        return _given(self._shards[key])

    def _fragment(
        self, source: VoxelSource, config: ReadConfig, context: Callable[[ReadConfig], tiledb.Ctx]
    ) -> Fragment:
        shard = self._shard(source, config, context)
        need(shard.layout.dtype == source.dtype, "its dtype is not that of the row of obs")
        folder = shard.fragment(source.slot)

        def load() -> tuple[Fragment | Refused, int]:
            raw = _metadata(folder)
            made = _kept(lambda: parse(raw, folder, source.slot, source.shape, shard.schema_name, shard.layout))
            return made, 500 + (made.offsets.nbytes if isinstance(made, Fragment) else 0)

        return _given(self._fragments.get((source.token, folder, source.shape), load))

    def _decode(
        self,
        file: DataFile,
        fragment: Fragment,
        box: Box,
        channels: tuple[int, int],
        out: Voxels,
        config: ReadConfig,
        meter: Meter,
    ) -> None:
        spans = spans_of(box)
        pieces = pieces_of(fragment, spans, channels)
        threads = max(1, min(config.threads, MOST_THREADS, len(pieces), out.nbytes // THREAD_BYTES))
        work = shared_out(pieces, threads)
        read = compiled.reader(fragment) if config.compiled else None
        read = read or plain.read

        def timed() -> tuple[int, int]:
            begun = time.perf_counter_ns()
            reading = read(file, fragment, spans, work, out)
            return reading, time.perf_counter_ns() - begun

        helpers: list[Future[tuple[int, int]]] = []
        try:
            with suppress(RuntimeError):  # no more threads, or the interpreter ends: then without
                for _ in range(threads - 1):
                    helpers += [self._threads().submit(timed)]
            meter.share(*timed())
        finally:  # not even after an error may a helper still write into `out`
            late = [helper for helper in helpers if not helper.cancel()]
            wait(late)
        for helper in late:
            meter.share(*helper.result())

    def _threads(self) -> ThreadPoolExecutor:
        with self._lock:
            if self._pool is None:
                self._pool = ThreadPoolExecutor(
                    min(os.cpu_count() or 1, MOST_THREADS), thread_name_prefix="radiodata-read"
                )
            return self._pool


def _metadata(folder: str) -> bytes:
    try:
        with open(f"{folder}/__fragment_metadata.tdb", "rb") as stream:  # noqa: PTH123  pathlib takes as long as the read
            return stream.read()
    except OSError as error:
        raise Damaged(f"its metadata cannot be read: {error}") from error


def _kept(make: Callable[[], T]) -> T | Refused:
    """Give what was made, or the refusal that will be the same next time."""
    try:
        return make()
    except Damaged:
        raise
    except Refused as why:
        return Refused(*why.args)  # a raised one holds its frames, and so the output of a read


def _given(kept: T | Refused) -> T:
    if isinstance(kept, Refused):
        raise Refused(*kept.args)
    return kept


def _tell(source: VoxelSource, why: Refused) -> None:
    """Say once for each cause that TileDB reads instead."""
    cause = str(why).partition(":")[0]
    if cause not in _told:
        _told.add(cause)
        _log.info(
            "volume %r (slot %d of %s) is read by a TileDB query, which is slower: %s. Said once for each cause.",
            source.obs_id,
            source.slot,
            source.uri,
            why,
        )
