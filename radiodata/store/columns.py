"""What a column of a table is: its name, its kind, its categories; and which frames fit a table."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from radiodata.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

KINDS = ("int", "float", "bool", "string", "datetime", "ints", "floats", "bytes")


@dataclass(frozen=True)
class Column:
    """One column of a table.

    Attributes
    ----------
    kind
        One of ``KINDS``; of a categorical column that of its categories.
    categories, ordered
        Of a categorical column.
    """

    name: str
    kind: str
    categories: tuple[Any, ...] | None = None
    ordered: bool = False

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        plain: dict[str, Any] = {"name": self.name, "kind": self.kind}
        if self.categories is not None:
            plain |= {"categories": list(self.categories), "ordered": self.ordered}
        return plain

    @classmethod
    def from_dict(cls, plain: dict[str, Any]) -> Column:
        """Column of what ``to_dict`` gave."""
        categories = plain.get("categories")
        known = None if categories is None else tuple(categories)
        return cls(plain["name"], plain["kind"], categories=known, ordered=plain.get("ordered", False))


def infer_columns(frame: pd.DataFrame) -> list[Column]:
    """Columns for a frame of a user: ints, floats, booleans, dates (without time zone), strings, categories.

    Raises
    ------
    ConfigError
        When a column holds something else, such as lists, or has a name that cannot be stored.
    """
    names = [n for n in frame.columns if not isinstance(n, str) or not n or n.startswith(("__", "radiodata:"))]
    names += list(frame.columns[frame.columns.duplicated()])
    if names:
        raise ConfigError(
            f"columns {names}: names must be strings, each once, not empty and not beginning with __ or radiodata:"
        )
    return [_infer(name, frame[name]) for name in frame.columns]


def _infer(name: str, column: pd.Series[Any]) -> Column:
    if not isinstance(column.dtype, pd.CategoricalDtype):
        return Column(name, _infer_kind(name, column))
    categories = column.cat.categories
    kind = _infer_kind(name, pd.Series(categories))
    if kind == "datetime":
        raise ConfigError(f"column {name!r} has dates for categories: give strings, or plain dates")
    known = tuple(_plain(value) for value in categories)
    return Column(name, kind, categories=known, ordered=bool(column.cat.ordered))


def _plain(value: Any) -> Any:
    return value.item() if isinstance(value, np.generic) else value


def check_columns(frame: pd.DataFrame, held: Sequence[Column]) -> list[Column]:
    """Columns of a table that is there, once the rows of `frame` are in it; refuses a frame that does not fit.

    Ints may go into a column of floats, whole floats (ints with gaps, to pandas) into a column of ints, and values
    that are new into categories that have no order.

    Raises
    ------
    ConfigError
        When names or kinds of columns differ, or ordered categories lack a value.
    """
    given, kinds = {c.name: c for c in infer_columns(frame)}, {c.name: c.kind for c in held}
    if set(given) != set(kinds):
        raise ConfigError(f"the table there has columns {sorted(kinds)}, not {sorted(given)}: they must be the same")
    for name, kind in kinds.items():
        if not _fits(frame[name].dropna(), given[name].kind, kind):
            raise ConfigError(f"column {name!r} of the table there holds {kind}s, not {given[name].kind}s")
    return [_with_categories(column, frame[column.name]) for column in held]


def _with_categories(column: Column, values: pd.Series[Any]) -> Column:
    """Give a categorical column the categories that new values bring."""
    if column.categories is None:
        return column
    new = [v for v in pd.unique(values.dropna()) if v not in column.categories]
    if new and column.ordered:
        raise ConfigError(
            f"column {column.name!r} has ordered categories {list(column.categories)}: {new} are none of them, and "
            "have no place among them; write the column anew with the categories that it is to have"
        )
    return replace(column, categories=(*column.categories, *sorted(_plain(v) for v in new)))


def _fits(values: pd.Series[Any], given: str, held: str) -> bool:
    if values.empty or given == held or (given, held) == ("int", "float"):
        return True
    return (given, held) == ("float", "int") and all(float(v).is_integer() for v in values)


def _infer_kind(name: str, column: pd.Series[Any]) -> str:
    types = pd.api.types
    if types.is_bool_dtype(column.dtype):
        return "bool"
    if types.is_integer_dtype(column.dtype):
        if column.dropna().gt(np.iinfo(np.int64).max).any():
            raise ConfigError(f"column {name!r} holds ints beyond int64: give strings")
        return "int"
    if types.is_float_dtype(column.dtype):
        return "float"
    if types.is_datetime64_any_dtype(column.dtype):
        if isinstance(column.dtype, pd.DatetimeTZDtype):
            raise ConfigError(f"column {name!r} holds dates of time zone {column.dtype.tz}: give them without zone")
        nanoseconds(column)
        return "datetime"
    odd = next((v for v in column if not isinstance(v, str) and not _is_null(v)), None)
    if odd is None:
        return "string"
    better = column.convert_dtypes() if column.dtype == object and np.isscalar(odd) else column
    if better.dtype != object and better.dtype != column.dtype:
        return _infer_kind(name, better)
    raise ConfigError(
        f"column {name!r} holds {type(odd).__name__} ({odd!r}): give numbers, strings, dates or booleans, "
        "one kind a column"
    )


def nanoseconds(column: pd.Series[Any]) -> NDArray[Any]:
    """Dates as ``datetime64[ns]``.

    Raises
    ------
    ConfigError
        When one lies outside of what 64 bits hold.
    """
    try:
        return np.asarray(column.dt.as_unit("ns"))
    except pd.errors.OutOfBoundsDatetime as error:
        raise ConfigError(f"column {column.name!r} holds a date outside of 1678 to 2262: give strings") from error


def _is_null(cell: Any) -> bool:
    return bool(np.isscalar(pd.isna(cell)) and pd.isna(cell))
