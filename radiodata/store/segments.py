"""Tables made of segments: arrays written once, the later over the earlier, merged as they grow many."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pandas as pd

from radiodata.store.columns import Column
from radiodata.store.layout import join
from radiodata.store.record import Segment, TableState
from radiodata.store.table import create_table, read_table, write_rows

if TYPE_CHECKING:
    from collections.abc import Sequence

    import tiledb

    from radiodata.store.record import SegmentKind

REMOVED = Column("removed", "bool")
_GROWTH = 4
_PATCHES = 4


def write_segment(
    uri: str, path: str, index: str, frame: pd.DataFrame, columns: Sequence[Column], ctx: tiledb.Ctx, kind: SegmentKind
) -> Segment:
    """Write the rows of `frame` as a segment at `path` below the cohort's `uri`; nothing points to it yet."""
    if kind == "removed" or not columns:
        frame, columns = pd.DataFrame({REMOVED.name: True}, index=frame.index, dtype="boolean"), (REMOVED,)
    where = join(uri, path)
    create_table(where, index, columns, ctx)
    write_rows(where, frame, columns, ctx)
    names = () if columns == (REMOVED,) else tuple(c.name for c in columns)
    return Segment(path, kind, len(frame), names)


def read_state(
    uri: str, table: TableState, index: str, ctx: tiledb.Ctx, columns: Sequence[str] | None = None
) -> pd.DataFrame:
    """Rows of a table (all columns, or those named), sorted by id, with the dtypes of its columns."""
    held = [c for c in table.columns if columns is None or c.name in columns]
    names = [c.name for c in held]
    if len(table.segments) == 1 and set(table.segments[0].names) >= set(names):
        frame = _read(uri, table.segments[0], index, names, ctx)
    else:
        frame = _layered(uri, table.segments, index, held, ctx)
    if columns is not None:
        frame = frame[[name for name in columns if name in names]]
    return _categorical(frame, held)


def _read(uri: str, segment: Segment, index: str, names: Sequence[str], ctx: tiledb.Ctx) -> pd.DataFrame:
    return read_table(join(uri, segment.path), index, ctx, [n for n in names if n in segment.names])


def _layered(
    uri: str, segments: Sequence[Segment], index: str, columns: Sequence[Column], ctx: tiledb.Ctx
) -> pd.DataFrame:
    names = [c.name for c in columns]
    nothing = pd.Index([], dtype=object, name=index)
    rows = pd.DataFrame(_typed({}, columns, nothing), nothing)
    for segment in segments:
        frame = _read(uri, segment, index, names, ctx)
        if segment.kind == "removed":
            rows = rows[~rows.index.isin(frame.index)]
        elif segment.kind == "rows":
            whole = pd.DataFrame(_typed(dict(frame.items()), columns, frame.index), frame.index)
            left = rows[~rows.index.isin(whole.index)]
            rows = pd.concat([left, whole]) if len(left.index) else whole  # empty: also where it has no columns
        else:
            rows = _over(rows, frame)
    return rows.sort_index(kind="stable").rename_axis(index)


def _over(rows: pd.DataFrame, patch: pd.DataFrame) -> pd.DataFrame:
    """Rows with some columns of theirs replaced."""
    at = rows.index.get_indexer(patch.index)
    known, columns = at >= 0, dict(rows.items())
    for name, new in patch.items():
        column = columns[name].copy()
        column.iloc[at[known]] = new.array[known]
        columns[name] = column
    return pd.DataFrame(columns, index=rows.index, columns=rows.columns)


_EMPTY: dict[str, Any] = {
    "int": "Int64",
    "float": "float64",
    "bool": "boolean",
    "string": "string",
    "datetime": "datetime64[ns]",
}


def _typed(given: dict[Any, Any], columns: Sequence[Column], index: pd.Index[Any]) -> dict[str, Any]:
    """Columns in order; those that are not given are null."""
    return {
        c.name: given[c.name] if c.name in given else pd.Series(None, index, dtype=_EMPTY.get(c.kind, object))
        for c in columns
    }


def typed(values: pd.Series[Any], kind: str) -> pd.Series[Any]:
    """Values of a column as another kind holds them."""
    return values.astype(_EMPTY[kind])


def _categorical(frame: pd.DataFrame, columns: Sequence[Column]) -> pd.DataFrame:
    kinds = {c.name: c for c in columns if c.categories is not None}
    if not kinds:
        return frame
    made = {name: frame[name].astype(pd.CategoricalDtype(_of_kind(c), ordered=c.ordered)) for name, c in kinds.items()}
    return frame.assign(**made)


def _of_kind(column: Column) -> Any:
    return pd.Index(pd.array(list(column.categories or ()), dtype=_EMPTY[column.kind]))


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
