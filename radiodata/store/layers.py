"""A table in memory, made of segments as they were read: which row is whose is known, columns are decoded on demand.

Decoding 100,000 rows of 40 columns takes longer than reading them, and most uses look at a few columns.
"""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from radiodata.store.table import sorted_rows

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from radiodata.store.columns import Column
    from radiodata.store.record import Segment
    from radiodata.store.table import Raw

_EMPTY: dict[str, Any] = {
    "int": "Int64",
    "float": "float64",
    "bool": "boolean",
    "string": "string",
    "datetime": "datetime64[ns]",
}


class Layers:
    """Rows of a table, sorted by id; later segments are over earlier ones.

    Parameters
    ----------
    index
        Name of the column of ids.
    columns
        Those that it has.
    segments
        What was read, the columns that a segment holds of `columns`.

    Attributes
    ----------
    index
        Ids.
    """

    def __init__(self, index: str, columns: Sequence[Column], segments: Sequence[tuple[Segment, Raw]]) -> None:
        self._kinds = {c.name: c for c in columns}
        self._segments = list(segments)
        self._decoded: dict[str, pd.Series[Any]] = {}
        owner, at = self._resolved(index)
        # of the segments of rows: which rows of the table are theirs, and where they are in it
        self._rows = [(n, np.flatnonzero(owner == n), at[owner == n]) for n in range(len(self._segments))]
        self._rows = [part for part in self._rows if len(part[1])]
        self._owner, self._at = owner, at
        self._patches = [self._patch(n, raw) for n, (s, raw) in enumerate(self._segments) if s.kind == "columns"]

    def _resolved(self, index: str) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
        """For each row of the table the segment that it is of, and its position there; sets ``index``."""
        if len(self._segments) == 1 and self._segments[0][0].kind == "rows":
            held = self._segments[0][1].ids
            order = sorted_rows(held)
            self.index = held[order].rename(index)
            return np.zeros(len(order), np.intp), order
        places: dict[str, tuple[int, int]] = {}
        for number, (segment, raw) in enumerate(self._segments):
            if segment.kind == "rows":
                places.update((row, (number, at)) for at, row in enumerate(raw.ids.to_numpy(object).tolist()))
            elif segment.kind == "removed":
                for row in raw.ids.to_numpy(object).tolist():
                    places.pop(row, None)
        ids = sorted(places)
        self.index = pd.Index(ids, name=index, dtype=self._segments[0][1].ids.dtype if self._segments else object)
        found = np.array([places[row] for row in ids], np.intp).reshape(len(ids), 2)
        return found[:, 0], found[:, 1]

    def _patch(self, number: int, raw: Raw) -> tuple[int, NDArray[np.intp], NDArray[np.intp]]:
        """Rows of the table that a segment of columns changes: those that are there, and were not written later."""
        found = self.index.get_indexer(raw.ids)
        there = found >= 0
        there[there] = self._owner[found[there]] < number
        return number, np.asarray(found[there], np.intp), np.flatnonzero(there)

    @property
    def columns(self) -> list[str]:
        """Names of the columns."""
        return list(self._kinds)

    def __len__(self) -> int:
        return len(self.index)

    def column(self, name: str) -> pd.Series[Any]:
        """One column, all rows; nobody changes it.

        Raises
        ------
        KeyError
            When there is none.
        """
        if name not in self._decoded:
            self._decoded[name] = self._decode(self._kinds[name])
        return self._decoded[name]

    def texts(self, name: str) -> NDArray[np.object_]:
        """One column of strings that holds no null, as objects."""
        if name in self._decoded or len(self._rows) != 1 or self._patches:
            return self.column(name).to_numpy(object)
        number, _, at = self._rows[0]
        return self._segments[number][1].texts(name, at)

    def _decode(self, column: Column) -> pd.Series[Any]:
        name, dtype = column.name, _EMPTY.get(column.kind, object)
        parts = [self._part(number, name, at, dtype) for number, _, at in self._rows]
        if len(parts) == 1:
            values = parts[0]
        else:
            values = pd.concat(parts, ignore_index=True) if parts else pd.Series([], dtype=dtype)
            rows = np.concatenate([np.empty(0, np.intp), *(part[1] for part in self._rows)])
            values = values.iloc[np.argsort(rows)]
        values = values.set_axis(self.index)
        for number, rows, at in self._patches:
            segment, raw = self._segments[number]
            if name in segment.names and len(rows):
                values = values.copy()
                values.iloc[rows] = pd.Series(raw.take(name, at)).array
        values.name = name
        return values if column.categories is None else values.astype(_categorical(column))

    def _part(self, number: int, name: str, at: NDArray[np.intp], dtype: Any) -> pd.Series[Any]:
        segment, raw = self._segments[number]
        return pd.Series(raw.take(name, at)) if name in segment.names else pd.Series([None] * len(at), dtype=dtype)

    @cached_property
    def ids(self) -> NDArray[np.object_]:
        """Ids, as strings of Python."""
        return self.index.to_numpy(object)

    @cached_property
    def frame(self) -> pd.DataFrame:
        """The whole table."""
        return pd.DataFrame({name: self.column(name) for name in self._kinds}, index=self.index, columns=self.columns)

    def row(self, at: int) -> pd.Series[Any]:
        """One row, by its position; it alone is decoded where that is all there is to it."""
        number, inside = int(self._owner[at]), int(self._at[at])
        segment, raw = self._segments[number]
        cells = np.empty(len(self._kinds), object)
        for n, (name, column) in enumerate(self._kinds.items()):
            plain = name in segment.names and name not in self._patched and column.categories is None
            cells[n] = raw.cell(name, inside) if plain else self.column(name).iloc[at]
        return pd.Series(cells, index=self._labels, name=self.index[at])

    @cached_property
    def _patched(self) -> set[str]:
        return {name for number, rows, _ in self._patches if len(rows) for name in self._segments[number][0].names}

    @cached_property
    def _labels(self) -> pd.Index[str]:
        return pd.Index(self.columns)


def typed(values: pd.Series[Any], kind: str) -> pd.Series[Any]:
    """Values of a column as another kind holds them."""
    return values.astype(_EMPTY[kind])


def _categorical(column: Column) -> pd.CategoricalDtype:
    known = pd.array(list(column.categories or ()), dtype=_EMPTY[column.kind])
    return pd.CategoricalDtype(pd.Index(known), ordered=column.ordered)
