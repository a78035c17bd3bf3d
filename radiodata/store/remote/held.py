"""Bytes of a remote fragment that are at hand as a file: at their own offsets, so that it is decoded as a local one."""

from __future__ import annotations

import os
import tempfile
from typing import TYPE_CHECKING

import numpy as np

from radiodata.store.direct.files import DataFile
from radiodata.store.remote.fetch import merged

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from numpy.typing import NDArray

    from radiodata.store.direct.metadata import Fragment
    from radiodata.store.direct.plan import Piece
    from radiodata.store.remote.fetch import Fetcher, Span


class Held(DataFile):
    """A sparse file in memory, which ends with its last user."""

    def __init__(self, size: int) -> None:
        self.fd = -1
        if hasattr(os, "memfd_create"):
            self.fd = os.memfd_create("radiodata-tiles", os.MFD_CLOEXEC)
        else:
            with tempfile.TemporaryFile() as file:
                self.fd = os.dup(file.fileno())
        os.ftruncate(self.fd, size)
        self._size, self._links = size, False

    def put(self, data: NDArray[np.uint8], at: int) -> None:
        """Write bytes where they belong."""
        write_all(self.fd, data, at)


def write_all(fd: int, data: NDArray[np.uint8], at: int) -> None:
    """Write bytes at an offset, all of them."""
    view = data.data.cast("B")
    while len(view):
        done = os.pwrite(fd, view, at)
        view, at = view[done:], at + done


def tiles_of(pieces: Iterable[Piece]) -> NDArray[np.intp]:
    """Places of the tiles of pieces in the order of their fragment, ascending, each once."""
    runs = [np.arange(piece.first, piece.first + piece.tiles) for piece in pieces]
    return np.unique(np.concatenate(runs)) if runs else np.empty(0, np.intp)


def spans_of_tiles(fragment: Fragment, tiles: NDArray[np.intp], gap: int) -> list[Span]:
    """Ranges of bytes that hold some tiles, and what lies between where that is no more than `gap` bytes."""
    offsets = fragment.offsets
    return merged([(int(offsets[t]), int(offsets[t + 1])) for t in tiles.tolist()], gap)


def hold(fetcher: Fetcher, fragment: Fragment, pieces: Sequence[Piece], gap: int) -> Held:
    """Fetch the tiles of pieces; raises as ``Fetcher.get`` does."""
    spans = spans_of_tiles(fragment, tiles_of(pieces), gap)
    file = Held(fragment.size)
    for (first, _), data in zip(spans, fetcher.get(fragment.data, spans), strict=True):
        file.put(data, first)
    return file
