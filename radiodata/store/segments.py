"""Tables made of segments: arrays written once, the later over the earlier, merged as they grow many."""

from __future__ import annotations

from types import MappingProxyType
from typing import TYPE_CHECKING

import pandas as pd

from radiodata.store.columns import Column
from radiodata.store.layers import Layers
from radiodata.store.layout import join
from radiodata.store.record import Segment, TableState
from radiodata.store.table import create_table, read_raw, write_rows

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import tiledb

    from radiodata.store.record import SegmentKind
    from radiodata.store.table import Raw

REMOVED = Column("removed", "bool")
_GROWTH = 4
_PATCHES = 4


def write_segment(
    uri: str, path: str, index: str, frame: pd.DataFrame, columns: Sequence[Column], ctx: tiledb.Ctx, kind: SegmentKind
) -> Segment:
    """Write the rows of `frame` as a segment at `path` below the cohort's `uri`; nothing points to it yet."""
    frame, columns = stored_rows(frame, columns, kind)
    where = join(uri, path)
    create_table(where, index, columns, ctx)
    write_rows(where, frame, columns, ctx)
    names = () if columns == (REMOVED,) else tuple(c.name for c in columns)
    return Segment(path, kind, len(frame), names)


def stored_rows(
    frame: pd.DataFrame, columns: Sequence[Column], kind: SegmentKind
) -> tuple[pd.DataFrame, Sequence[Column]]:
    """What a segment holds of rows: of those that are removed, or have no columns, that they are."""
    if kind == "removed" or not columns:
        return pd.DataFrame({REMOVED.name: True}, index=frame.index, dtype="boolean"), (REMOVED,)
    return frame, columns


def read_state(
    uri: str, table: TableState, index: str, ctx: tiledb.Ctx, columns: Sequence[str] | None = None
) -> pd.DataFrame:
    """Rows of a table (all columns, or those named), sorted by id, with the dtypes of its columns."""
    return open_state(uri, table, index, ctx, columns).frame


def open_state(
    uri: str,
    table: TableState,
    index: str,
    ctx: tiledb.Ctx,
    columns: Sequence[str] | None = None,
    known: Mapping[str, Raw] = MappingProxyType({}),
) -> Layers:
    """Read a table (all columns, or those named), and decode nothing but ids; segments that are `known` are not read.

    Parameters
    ----------
    known
        By the path of the segment.
    """
    held = {c.name: c for c in table.columns}
    asked = [held[n] for n in (held if columns is None else columns) if n in held]
    read = []
    for segment in table.segments:
        names = [c.name for c in asked if c.name in segment.names]
        if segment.kind != "columns" or names:
            raw = known[segment.path] if segment.path in known else read_raw(join(uri, segment.path), index, ctx, names)
            read.append((segment, raw))
    return Layers(index, asked, read)


def due(segments: Sequence[Segment]) -> int:
    """How many of the last segments are to be merged into one: 0, or at least 2.

    A segment is merged with what follows it once that has grown to a quarter of it, so a table of n rows has
    O(log n) segments and a row is written O(log n) times. Patches and removals count as the rows before them.
    """
    if sum(s.kind != "rows" for s in segments) > _PATCHES:
        return len(segments)
    total, take = 0, 0
    for position in range(len(segments) - 1, -1, -1):
        if segments[position].kind != "rows":
            return 0 if take < 2 else take
        if total * _GROWTH < segments[position].rows and take:
            break
        total += segments[position].rows
        take += 1
    return take if take >= 2 else 0
