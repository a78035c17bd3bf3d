"""Which tiles a box needs, in pieces that a thread reads at once."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, NamedTuple, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Iterator

    from radiodata._typing import Box
    from radiodata.store.direct.metadata import Fragment

Span: TypeAlias = tuple[int, int]
Spans: TypeAlias = tuple[Span, Span, Span]
Corner: TypeAlias = tuple[int, int, int]


class Piece(NamedTuple):
    """Tiles that follow each other along z, and so in the file.

    Attributes
    ----------
    channel
        Of the output, from 0.
    x, y, z
        Tile coordinates of the first.
    first, tiles
        Their places in the order of the fragment.
    """

    channel: int
    x: int
    y: int
    z: int
    first: int
    tiles: int


Work: TypeAlias = "deque[list[Piece]]"
"""Batches of pieces: threads may take them from the left at once."""


def spans_of(box: Box) -> Spans:
    """Start and stop per axis as plain ints."""
    x, y, z = map(tuple, box.tolist())
    return (x, y, z)


def pieces_of(fragment: Fragment, spans: Spans, channels: Span) -> list[Piece]:
    """Pieces that cover a box of some channels."""
    layout, (gx, gy, gz) = fragment.layout, fragment.grid
    (tx, ty, tz), most = layout.tile, layout.tiles_a_piece
    (x0, x1), (y0, y1), (z0, z1) = spans
    first, end = z0 // tz, (z1 - 1) // tz + 1
    runs = [(z, min(most, end - z)) for z in range(first, end, most)]
    return [
        Piece(channel - channels[0], x, y, z, ((channel * gx + x) * gy + y) * gz + z, tiles)
        for channel in range(*channels)
        for x in range(x0 // tx, (x1 - 1) // tx + 1)
        for y in range(y0 // ty, (y1 - 1) // ty + 1)
        for z, tiles in runs
    ]


def shared_out(pieces: list[Piece], threads: int) -> Work:
    """Batches for a number of threads: several for each, so that one which is held up does not hold up all."""
    size = len(pieces) if threads == 1 else max(1, len(pieces) // (4 * threads))
    return deque(pieces[at : at + size] for at in range(0, len(pieces), size))


def taken(work: Work) -> Iterator[list[Piece]]:
    """Take batches until there are none left, for other threads do so too."""
    while work:
        try:
            yield work.popleft()
        except IndexError:
            return


def overlap(tile: int, side: int, span: Span) -> tuple[slice, slice]:
    """What a box wants of one tile along one axis: where it lies in the tile, and in the box."""
    corner = tile * side
    lo, hi = max(span[0], corner), min(span[1], corner + side)
    return slice(lo - corner, hi - corner), slice(lo - span[0], hi - span[0])
