"""Tiles of remote fragments kept on a local disk: shared by the processes of a machine, bounded in bytes.

::

    CACHE/lock                      of whoever makes room
    CACHE/ab/abcdef.../data         sparse: the bytes of a fragment's tiles at their own offsets
    CACHE/ab/abcdef.../tiles        one uint64 a tile: 1 << 32 | CRC-32 of its bytes; 0: it is not here

A tile's bytes are written before its entry, so a process may be killed at any moment: what the entry says is compared
with the bytes the first time that a process uses them. Objects are never overwritten, so nothing here grows old.
"""

from __future__ import annotations

import hashlib
import logging
import os
import shutil
import threading
import time
import uuid
import zlib
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import filelock
import numpy as np

from radiodata.store.direct.files import DataFile
from radiodata.store.remote.held import hold, spans_of_tiles, tiles_of, write_all

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

    from radiodata.store.direct.metadata import Fragment
    from radiodata.store.direct.plan import Piece
    from radiodata.store.remote.fetch import Fetcher

_THERE = np.uint64(1 << 32)
_TOUCH = 10.0
_SHARE = 64
_log = logging.getLogger("radiodata.store")


class CachedFile(DataFile):
    """Data of one fragment, as far as it is on this disk."""

    def __init__(self, folder: Path, size: int, tiles: int) -> None:
        self.fd = self._table = -1
        folder.mkdir(parents=True, exist_ok=True)
        flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC
        self._table = os.open(folder / "tiles", flags, 0o600)
        self.fd = os.open(folder / "data", flags, 0o600)
        for fd, length in ((self._table, 8 * tiles), (self.fd, size)):
            if os.fstat(fd).st_size < length:
                os.ftruncate(fd, length)
        self._size, self._links = size, False
        self._sure = np.zeros(tiles, bool)
        self._touched = 0.0

    @property
    def gone(self) -> bool:
        """Whether room was made by removing it."""
        return os.fstat(self.fd).st_nlink == 0 or os.fstat(self._table).st_nlink == 0

    def lacking(self, fragment: Fragment, tiles: NDArray[np.intp]) -> NDArray[np.intp]:
        """Those of some tiles that are not here, or not whole."""
        unsure = tiles[~self._sure[tiles]]
        if time.monotonic() - self._touched > _TOUCH:
            self._touched = time.monotonic()
            os.utime(self._table)
        if not len(unsure):
            return unsure
        entries = np.frombuffer(os.pread(self._table, 8 * len(self._sure), 0), np.uint64)
        whole = np.array([self._is_whole(fragment, tile, int(entries[tile])) for tile in unsure.tolist()], bool)
        self._sure[unsure[whole]] = True
        lacking: NDArray[np.intp] = unsure[~whole]
        return lacking

    def put(self, fragment: Fragment, data: NDArray[np.uint8], at: int) -> int:
        """Keep the bytes of whole tiles from an offset on; give how many are new."""
        first = int(np.searchsorted(fragment.offsets, at))
        last = int(np.searchsorted(fragment.offsets, at + len(data)))
        bounds = fragment.offsets[first : last + 1].astype(np.int64) - at
        sums = [zlib.crc32(data[a:b].data) for a, b in zip(bounds[:-1].tolist(), bounds[1:].tolist(), strict=True)]
        write_all(self.fd, data, at)
        write_all(self._table, (np.array(sums, np.uint64) | _THERE).view(np.uint8), 8 * first)
        self._sure[first:last] = True
        return len(data)

    def _is_whole(self, fragment: Fragment, tile: int, entry: int) -> bool:
        if not entry >> 32:
            return False
        first, last = int(fragment.offsets[tile]), int(fragment.offsets[tile + 1])
        return zlib.crc32(os.pread(self.fd, last - first, first)) == entry & 0xFFFFFFFF

    def __del__(self, close: Callable[[int], None] = os.close) -> None:
        if self._table >= 0:
            close(self._table)
        super().__del__(close)


class TileCache:
    """The cache of one process; others may have one at the same place.

    Parameters
    ----------
    place
        Folder.
    most
        Bytes on disk; each process may exceed it by a 64th until it makes room.
    """

    def __init__(self, place: str, most: int) -> None:
        self._place, self._most = Path(place), most
        self._lock = threading.Lock()
        self._new = most  # so that room is made at the start, too
        self._told = False

    def folder(self, uri: str) -> Path:
        """Where the data of an object are."""
        name = hashlib.sha256(uri.encode()).hexdigest()[:40]
        return self._place / name[:2] / name

    def open(self, fragment: Fragment) -> CachedFile:
        """Open the file of a fragment; made where it is not there."""
        for _ in range(3):
            with suppress(FileNotFoundError):  # the folder was removed under our hands
                return CachedFile(self.folder(fragment.data), fragment.size, len(fragment.offsets) - 1)
        return CachedFile(self.folder(fragment.data), fragment.size, len(fragment.offsets) - 1)

    def hold(
        self, file: CachedFile, fetcher: Fetcher, fragment: Fragment, pieces: Sequence[Piece], gap: int
    ) -> DataFile:
        """Have the tiles of pieces in a file, fetching those that are not there; raises as ``Fetcher.get`` does."""
        try:
            lacking = file.lacking(fragment, tiles_of(pieces))
            if len(lacking):
                spans, new = spans_of_tiles(fragment, lacking, gap), 0
                for (first, _), data in zip(spans, fetcher.get(fragment.data, spans), strict=True):
                    new += file.put(fragment, data, first)
                self._grew(new)
        except OSError as error:
            if isinstance(error, ConnectionError):
                raise
            self.tell(error)
            return hold(fetcher, fragment, pieces, gap)
        return file

    def _grew(self, nbytes: int) -> None:
        with self._lock:
            self._new += nbytes
            due = self._new >= self._most // _SHARE
            if due:
                self._new = 0
        if due:
            self.make_room()

    def make_room(self) -> None:
        """Remove what was used longest ago until nine tenths of the bound are left, where it is exceeded."""
        with filelock.FileLock(self._place / "lock"):
            found = []
            for table in self._place.glob("??/*/tiles"):
                with suppress(FileNotFoundError):
                    used = sum(file.stat().st_blocks * 512 for file in table.parent.iterdir())
                    found.append((table.stat().st_mtime, used, table.parent))
            total = sum(used for _, used, _ in found)
            if total <= self._most:
                return
            for _, used, folder in sorted(found):
                aside = self._place / f"removed-{uuid.uuid4().hex}"
                with suppress(FileNotFoundError):
                    folder.rename(aside)
                total -= used
                if total <= 0.9 * self._most:
                    break
            for aside in self._place.glob("removed-*"):
                shutil.rmtree(aside, ignore_errors=True)

    def tell(self, error: OSError) -> None:
        """Say once that the cache cannot be used."""
        if not self._told:
            self._told = True
            _log.warning("the cache of tiles at %s cannot be used, and is not: %s", self._place, error)
