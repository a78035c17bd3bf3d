"""What one process keeps of the shards that it reads directly, and the read itself."""

from __future__ import annotations

import logging
import os
import sys
import threading
import time
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import nullcontext, suppress
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar

from radiodata.store.direct import compiled, plain
from radiodata.store.direct.files import DataFile, Recent
from radiodata.store.direct.listing import Shard, list_shard, local_path
from radiodata.store.direct.metadata import Fragment, fragment_of, parse
from radiodata.store.direct.meter import Meter
from radiodata.store.direct.plan import pieces_of, shared_out
from radiodata.store.direct.refusal import Corrupt, Damaged, Refused, need

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    import tiledb
    from numpy.typing import NDArray

    from radiodata._typing import Voxels
    from radiodata.store.config import ReadConfig
    from radiodata.store.direct.plan import Corner, Piece, Spans
    from radiodata.store.obs import VoxelSource
    from radiodata.store.remote.client import Remote

    Decode: TypeAlias = Callable[[DataFile, list[Piece]], None]

T = TypeVar("T")
_METADATA = "__fragment_metadata.tdb"
FILES = 128
FRAGMENT_BYTES = 32 << 20
THREAD_BYTES = 1 << 19  # less is not worth a thread
MOST_THREADS = 16

_log = logging.getLogger("radiodata.store")
_ABLE = sys.byteorder == "little" and hasattr(os, "preadv")
_told: set[str] = set()


class Direct:
    """Shards listed, fragments parsed and files opened by this process, shared by its threads.

    Parameters
    ----------
    remote
        Fetches what is not on a local disk.

    Attributes
    ----------
    learning
        Held by who reads an index.
    """

    def __init__(self, remote: Remote) -> None:
        self.remote = remote
        self._lock, self.learning = threading.Lock(), threading.Lock()
        self._shards: dict[tuple[str, str], Shard | Refused] = {}
        self._fragments: Recent[Fragment | Refused] = Recent(FRAGMENT_BYTES)
        self._files: Recent[DataFile] = Recent(FILES)
        self._indexes: dict[str, tuple[Mapping[str, Shard], Mapping[str, NDArray[Any]]]] = {}
        self._pool: ThreadPoolExecutor | None = None
        self._turns = threading.BoundedSemaphore(max(2, os.cpu_count() or 1))

    def read(
        self,
        source: VoxelSource,
        spans: Spans,
        channels: tuple[int, int],
        out: Voxels,
        config: ReadConfig,
        context: Callable[[ReadConfig], tiledb.Ctx],
        meter: Meter | None = None,
    ) -> bool:
        """Read a box into `out` (C order), or say that TileDB is to do it: `out` then holds anything.

        Parameters
        ----------
        spans
            Start and stop of the box along each axis.
        context
            Gives the TileDB context that lists a shard.
        meter
            Counts where the time goes.

        Raises
        ------
        Corrupt
            When a tile is damaged in a way that TileDB may not notice.
        """

        def way(fragment: Fragment) -> Decode:
            return lambda file, pieces: self._decode(file, fragment, spans, pieces, out, config, meter or Meter())

        return self._done(source, spans, channels, [out], config, context, way)

    def read_crops(
        self,
        source: VoxelSource,
        spans: Spans,
        corners: Sequence[Corner],
        crops: Sequence[Voxels],
        config: ReadConfig,
        context: Callable[[ReadConfig], tiledb.Ctx],
        meter: Meter,
    ) -> bool:
        """Read crops of a box, which lie inside of it, each into an array; or say that ``read`` is to do it.

        Parameters
        ----------
        corners
            First voxel of each, in the volume.
        crops
            Arrays ``(channel, x, y, z)`` of all channels and one shape, in C order.
        """

        def way(fragment: Fragment) -> Decode | None:
            cut = compiled.cutter(fragment, spans) if config.compiled and config.threads == 1 else None
            if cut is None:
                return None

            def decode(file: DataFile, pieces: list[Piece]) -> None:
                begun = time.perf_counter_ns()
                reading = cut(file, fragment, spans, pieces, corners, crops)
                meter.share(reading, time.perf_counter_ns() - begun)

            return decode

        return self._done(source, spans, (0, source.shape[0]), crops, config, context, way)

    def _done(
        self,
        source: VoxelSource,
        spans: Spans,
        channels: tuple[int, int],
        out: Sequence[Voxels],
        config: ReadConfig,
        context: Callable[[ReadConfig], tiledb.Ctx],
        way: Callable[[Fragment], Decode | None],
    ) -> bool:
        """Have a box decoded from the file that holds its tiles; False where it cannot be."""
        if not config.direct:
            return False
        try:
            need(_ABLE, "this machine is not little-endian, or has no preadv")
            fits = all(array.flags.c_contiguous and array.dtype == source.dtype for array in out)
            need(fits, "its voxels are wanted in another layout")
            fragment = self._fragment(source, config, context)
            if (decode := way(fragment)) is None:
                return False
            pieces = pieces_of(fragment, spans, channels)
            file = self._file(source, fragment, pieces, config)
            # many threads fetch at once; as many that decode would empty each other's caches
            with self._turns if local_path(source.uri) is None else nullcontext():
                decode(file, pieces)
        except Corrupt:
            raise
        except Refused as why:
            _tell(source, why)
            return False
        return True

    def learn(self, index: str, shards: Mapping[str, Shard], tiles: Mapping[str, NDArray[Any]]) -> None:
        """Take from an index what shards there are, by their URI, and where the tiles of fragments begin."""
        with self._lock:
            self._indexes[index] = (shards, tiles)

    def knows(self, index: str) -> bool:
        """Whether an index was learnt."""
        return index in self._indexes

    def forget(self, token: str) -> None:
        """Let go of what was opened for one cohort snapshot."""
        with self._lock:
            self._shards = {key: shard for key, shard in self._shards.items() if key[1] != token}
        for kept in (self._fragments, self._files):
            kept.forget(lambda key: key[0] == token)  # type: ignore[index]

    def _shard(self, source: VoxelSource, config: ReadConfig, context: Callable[[ReadConfig], tiledb.Ctx]) -> Shard:
        shards, _ = self._indexes.get(source.index[0] if source.index else "", ({}, {}))
        if source.uri in shards:
            return shards[source.uri]
        key = (source.uri, source.token)
        if key not in self._shards:
            with self._lock:  # listing holds the GIL anyway
                if key not in self._shards:
                    self._shards[key] = _kept(lambda: self.listed(source.uri, config, context))
        return _given(self._shards[key])

    def listed(self, uri: str, config: ReadConfig, context: Callable[[ReadConfig], tiledb.Ctx]) -> Shard:
        """List a shard, as TileDB sees it now; raises as ``list_shard`` does."""
        if local_path(uri) is not None:
            return list_shard(uri, context(config), os.listdir)
        fetcher = self.remote.fetcher(config)
        return list_shard(uri, context(config), lambda folder: list(fetcher.names(folder)))

    def offsets(
        self, uri: str, shard: Shard, shapes: Mapping[int, tuple[int, int, int, int]], config: ReadConfig
    ) -> dict[str, NDArray[Any]]:
        """Where the tiles of volumes of a remote shard lie, by the URI of their fragment; `shapes` by slot."""
        sizes = self.remote.fetcher(config).names(f"{uri}/__fragments")

        def of(slot: int) -> tuple[str, NDArray[Any]] | None:
            with suppress(Refused):
                folder = shard.fragment(slot)
                size = sizes[f"{folder.rsplit('/', 1)[-1]}/{_METADATA}"]
                raw = self.remote.fetcher(config).whole(f"{folder}/{_METADATA}", size)
                return folder, parse(raw, folder, slot, shapes[slot], shard.schema_name, shard.layout).offsets
            return None

        with ThreadPoolExecutor(MOST_THREADS) as pool:
            return dict(found for found in pool.map(of, shapes) if found is not None)

    def _fragment(
        self, source: VoxelSource, config: ReadConfig, context: Callable[[ReadConfig], tiledb.Ctx]
    ) -> Fragment:
        shard = self._shard(source, config, context)
        need(shard.layout.dtype == source.dtype, "its dtype is not that of the row of obs")
        folder = shard.fragment(source.slot)

        def load() -> tuple[Fragment | Refused, int]:
            _, tiles = self._indexes.get(source.index[0] if source.index else "", ({}, {}))
            if folder in tiles:
                return _kept(lambda: fragment_of(folder, shard.layout, source.shape, tiles[folder])), 500
            raw = self._metadata(folder, config)
            made = _kept(lambda: parse(raw, folder, source.slot, source.shape, shard.schema_name, shard.layout))
            return made, 500 + (made.offsets.nbytes if isinstance(made, Fragment) else 0)

        return _given(self._fragments.get((source.token, folder, source.shape), load))

    def _file(self, source: VoxelSource, fragment: Fragment, pieces: list[Piece], config: ReadConfig) -> DataFile:
        """A file of this machine that holds the tiles of pieces: the fragment's own, or what was fetched of it."""
        if local_path(source.uri) is None:
            return self.remote.hold(fragment, pieces, config)
        file = self._files.get((source.token, fragment.data), lambda: (DataFile(fragment.data, fragment.size), 1))
        file.check()
        return file

    def _decode(
        self,
        file: DataFile,
        fragment: Fragment,
        spans: Spans,
        pieces: list[Piece],
        out: Voxels,
        config: ReadConfig,
        meter: Meter,
    ) -> None:
        threads = max(1, min(config.threads, MOST_THREADS, len(pieces), out.nbytes // THREAD_BYTES))
        work = shared_out(pieces, threads)
        read = compiled.reader(fragment) if config.compiled else None
        read = read or plain.read

        def timed() -> tuple[int, int]:
            begun = time.perf_counter_ns()
            reading = read(file, fragment, spans, work, out)
            return reading, time.perf_counter_ns() - begun

        if threads == 1:
            meter.share(*timed())
            return
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

    def _metadata(self, folder: str, config: ReadConfig) -> bytes:
        if local_path(folder) is None:
            fetcher = self.remote.fetcher(config)
            return fetcher.whole(f"{folder}/{_METADATA}", fetcher.names(folder)[_METADATA])
        return _read_metadata(folder)


def _read_metadata(folder: str) -> bytes:
    try:
        with open(f"{folder}/{_METADATA}", "rb") as stream:  # noqa: PTH123  pathlib takes as long as the read
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
