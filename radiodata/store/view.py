"""Views by position: what cohorts and collections share. Selecting gives another view, and reads nothing."""

from __future__ import annotations

from abc import ABC, abstractmethod
from functools import cached_property
from typing import TYPE_CHECKING, Any, Generic, TypeVar, overload

import numpy as np
import pandas as pd

from radiodata.errors import ConfigError, ObsNotFoundError

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from numpy.typing import NDArray

    from radiodata.store.layers import Layers

V = TypeVar("V", bound="View[Any]")
R = TypeVar("R")


class View(ABC, Generic[R]):
    """Rows of a table, by position; immutable. `R` is what one row is.

    ``a | b``, ``a & b``, ``a - b`` and ``a ^ b`` are by id, in the order of `a`, then of `b`; both of one cohort,
    opened once.
    """

    _what = "row"

    @property
    @abstractmethod
    def _table(self) -> Layers:
        """The whole table."""

    @property
    @abstractmethod
    def _rows(self) -> NDArray[np.intp]:
        """Positions of this view in it."""

    @abstractmethod
    def _at(self: V, rows: NDArray[np.intp]) -> V:
        """View of other positions of the same table."""

    @abstractmethod
    def _one(self, row: int) -> R:
        """Thing at a position of the whole table."""

    @abstractmethod
    def _name(self) -> str:
        """Name of it in an error."""

    def __len__(self) -> int:
        return len(self._rows)

    @property
    def ids(self) -> list[str]:
        """Ids of the rows, in order."""
        return list(self._table.ids[self._rows])

    @property
    def columns(self) -> list[str]:
        """Names of the columns of the table."""
        return self._table.columns

    def _column(self, name: str) -> pd.Series[Any]:
        """One column, of the rows of this view."""
        column = self._table.column(name)
        return column if self._whole else column.iloc[self._rows]

    @property
    def _index(self) -> pd.Index[str]:
        return self._table.index if self._whole else self._table.index[self._rows]

    @cached_property
    def _frame(self) -> pd.DataFrame:
        """The table of this view; nobody changes it."""
        return self._table.frame if self._whole else self._table.frame.iloc[self._rows]

    @property
    @abstractmethod
    def _whole(self) -> bool:
        """Whether it holds every row, in order."""

    @property
    def loc(self: V) -> _Loc[V, R]:
        """Select by id: one, or a view by a list of ids or a boolean mask (a Series is aligned by its index)."""
        return _Loc(self)

    @property
    def iloc(self: V) -> _ILoc[V, R]:
        """Select by position: one, or a view by a slice, a list or a boolean mask."""
        return _ILoc(self)

    def head(self: V, n: int = 5) -> V:
        """View of the first `n`."""
        return self._at(self._rows[: _count(n)])

    def tail(self: V, n: int = 5) -> V:
        """View of the last `n`."""
        return self._at(self._rows[max(len(self) - _count(n), 0) :])

    def sample(self: V, n: int, *, seed: int = 0) -> V:
        """View of `n`, drawn without replacement; always the same for the same seed, in their order here.

        Raises
        ------
        ConfigError
            When there are fewer.
        """
        if _count(n) > len(self):
            raise ConfigError(f"sample({n}) of {self._name()}, which holds {len(self)}")
        return self._at(self._rows[np.sort(np.random.default_rng(seed).choice(len(self), n, replace=False))])

    def __and__(self: V, other: V) -> V:
        return self._at(self._rows[np.isin(self._rows, self._same(other))])

    def __sub__(self: V, other: V) -> V:
        return self._at(self._rows[~np.isin(self._rows, self._same(other))])

    def __or__(self: V, other: V) -> V:
        theirs = self._same(other)
        return self._at(np.concatenate([self._rows, theirs[~np.isin(theirs, self._rows)]]))

    def __xor__(self: V, other: V) -> V:
        return (self - other) | (other - self)

    def _same(self, other: Any) -> NDArray[np.intp]:
        if type(other) is not type(self) or other._table is not self._table:
            raise ConfigError(
                f"{self._name()} can be combined with views of itself only, got {other!r}: take both from one Cohort"
            )
        rows: NDArray[np.intp] = other._rows
        return rows

    def _find(self, ids: Sequence[str]) -> NDArray[np.intp]:
        """Positions, in the whole table, of ids that this view holds."""
        at = self._table.index.get_indexer(pd.Index(list(ids), dtype=object))
        inside = np.isin(at, self._rows) if len(self._rows) < len(self._table) else at >= 0
        lost = [i for i, known in zip(ids, inside & (at >= 0), strict=True) if not known]
        if lost:
            raise ObsNotFoundError(f"{self._name()} holds no {self._what} {_named(lost, self.ids)}")
        return np.asarray(at, np.intp)


def copied(frame: pd.DataFrame) -> pd.DataFrame:
    """Copy of a table; from pandas 3 on, columns are copied when they are written to."""
    return frame.copy(deep=int(pd.__version__.split(".")[0]) < 3)


class _Loc(Generic[V, R]):
    def __init__(self, view: V) -> None:
        self._view = view

    @overload
    def __getitem__(self, key: str) -> R: ...
    @overload
    def __getitem__(self, key: Iterable[Any]) -> V: ...
    def __getitem__(self, key: Any) -> Any:
        view = self._view
        if isinstance(key, str):
            return view._one(int(view._find([key])[0]))
        if isinstance(key, pd.Series) and pd.api.types.is_bool_dtype(key.dtype):
            known = key.reindex(pd.Index(view.ids, dtype=object))
            if known.isna().any():
                lost = [i for i, missing in zip(view.ids, known.isna(), strict=True) if missing]
                raise ObsNotFoundError(f"the mask says nothing of {lost[:10]} of {view._name()}")
            return view._at(view._rows[known.to_numpy(bool)])
        keys = list(key)
        if keys and not isinstance(keys[0], str):
            return view._at(view._rows[_mask(keys, len(view))])
        return view._at(view._find(keys))


class _ILoc(Generic[V, R]):
    def __init__(self, view: V) -> None:
        self._view = view

    @overload
    def __getitem__(self, key: int | np.integer[Any]) -> R: ...
    @overload
    def __getitem__(self, key: slice | Iterable[Any]) -> V: ...
    def __getitem__(self, key: Any) -> Any:
        view = self._view
        if isinstance(key, int | np.integer):
            if not -len(view) <= key < len(view):
                raise IndexError(f"position {key} is out of range: {view._name()} has {len(view)}")
            return view._one(int(view._rows[int(key)]))
        if not isinstance(key, slice):
            key = np.asarray(key)
            key = key.astype(np.intp) if not key.size else key
            if key.dtype == bool:
                key = _mask(key.tolist(), len(view))
        return view._at(view._rows[key])


def _mask(keys: list[Any], n: int) -> NDArray[np.bool_]:
    if len(keys) != n or not all(isinstance(k, bool | np.bool_) for k in keys):
        raise IndexError(f"a selection is ids, or a mask of {n} booleans, not {keys[:3]}... ({len(keys)} values)")
    return np.array(keys, bool)


def _count(n: int) -> int:
    if n < 0:
        raise ConfigError(f"{n} rows cannot be taken: give 0 or more")
    return n


def _named(lost: list[str], held: list[str]) -> str:
    import difflib

    near = difflib.get_close_matches(lost[0], held[:10_000], n=3)
    hint = f"; did you mean {' or '.join(map(repr, near))}?" if near else ""
    return f"{lost[:10]}{' and more' if len(lost) > 10 else ''}{hint}"
