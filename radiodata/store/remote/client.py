"""What one process keeps of the object stores that it reads."""

from __future__ import annotations

import atexit
import os
import threading
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import tiledb

from radiodata.store.config import without_login
from radiodata.store.direct.files import Recent
from radiodata.store.remote.cache import CachedFile, TileCache
from radiodata.store.remote.fetch import Fetcher
from radiodata.store.remote.held import hold
from radiodata.store.remote.vfs import Vfs

if TYPE_CHECKING:
    from collections.abc import Hashable, Sequence

    from radiodata.store.config import ReadConfig
    from radiodata.store.direct.files import DataFile
    from radiodata.store.direct.metadata import Fragment
    from radiodata.store.direct.plan import Piece

_FILES = 256


class Remote:
    """Fetchers, caches and cached files of a process, shared by its threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._fetchers: dict[Hashable, Fetcher] = {}
        self._caches: dict[Hashable, TileCache] = {}
        self._files: Recent[CachedFile] = Recent(_FILES)
        self._taken = 0, 0

    @property
    def used(self) -> bool:
        """Whether a store was asked for anything."""
        return bool(self._fetchers)

    @property
    def counts(self) -> tuple[int, int]:
        """Requests and bytes of this process so far."""
        counts = [fetcher.counts for fetcher in list(self._fetchers.values())]
        return sum(c[0] for c in counts), sum(c[1] for c in counts)

    def taken(self) -> tuple[int, int]:
        """Requests and bytes since the last time."""
        with self._lock:
            before, self._taken = self._taken, self.counts
            return self._taken[0] - before[0], self._taken[1] - before[1]

    def fetcher(self, config: ReadConfig) -> Fetcher:
        """Give the fetcher for a configuration, made on first use."""
        key = (config.key, config.deadline, config.in_flight, config.hedge)
        with self._lock:
            if key not in self._fetchers:
                hedge = None if config.hedge is None else config.hedge / 1000
                self._fetchers[key] = fetcher = Fetcher(
                    lambda: _connected(config), config.deadline, config.in_flight, hedge, lambda uri: place(uri, config)
                )
                atexit.register(fetcher.settle)
            return self._fetchers[key]

    def hold(self, fragment: Fragment, pieces: Sequence[Piece], config: ReadConfig) -> DataFile:
        """Have the tiles of pieces in a file of this machine; raises as ``Fetcher.get`` does."""
        fetcher = self.fetcher(config)
        gap = fetcher.depth.gap() if config.gap is None else config.gap << 10
        if config.cache is None:
            return hold(fetcher, fragment, pieces, gap)
        cache = self._cache(config)
        key = (config.cache, fragment.data)
        try:
            file = self._files.get(key, lambda: (cache.open(fragment), 1))
            if file.gone:
                self._files.forget(lambda other: other == key)
                file = self._files.get(key, lambda: (cache.open(fragment), 1))
        except OSError as error:
            cache.tell(error)
            return hold(fetcher, fragment, pieces, gap)
        return cache.hold(file, fetcher, fragment, pieces, gap)

    def _cache(self, config: ReadConfig) -> TileCache:
        key = (config.cache, config.cache_size)
        with self._lock:
            if key not in self._caches:
                self._caches[key] = TileCache(str(config.cache), config.cache_size << 20)
            return self._caches[key]


def _connected(config: ReadConfig) -> Vfs:
    prepare(config)
    settings: dict[str, Any] = {
        **config.to_tiledb(),
        "vfs.read_ahead_size": "0",
        "sm.compute_concurrency_level": "1",
        "sm.io_concurrency_level": "2",
        "vfs.s3.max_parallel_ops": str(config.in_flight),
        **config.tiledb,
    }
    return Vfs(tiledb.Ctx(settings))


def prepare(config: ReadConfig) -> None:
    """Say to the AWS SDK what servers other than AWS's need, before its first use: they refuse checksummed bodies."""
    if config.to_tiledb().get("vfs.s3.endpoint_override"):
        os.environ.setdefault("AWS_REQUEST_CHECKSUM_CALCULATION", "when_required")
        os.environ.setdefault("AWS_RESPONSE_CHECKSUM_VALIDATION", "when_required")


def place(uri: str, config: ReadConfig) -> str:
    """Name an object in words: key, bucket or container, and the endpoint that is asked for it."""
    parts = urlsplit(uri)
    key, told = parts.path.lstrip("/"), config.to_tiledb()
    names = {
        "s3": ("bucket", told.get("vfs.s3.endpoint_override") or f"AWS, region {told.get('vfs.s3.region', 'default')}"),
        "azure": ("container", told.get("vfs.azure.blob_endpoint") or told.get("vfs.azure.storage_account_name", "")),
        "gcs": ("bucket", told.get("vfs.gcs.endpoint") or "Google Cloud Storage"),
    }
    what, endpoint = names.get(parts.scheme, ("host", parts.scheme))
    return f"{key!r} of {what} {parts.netloc!r} at {without_login(str(endpoint)) or 'the default endpoint'}"
