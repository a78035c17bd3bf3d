"""Typed, nullable tables in sparse TileDB arrays, read and written as pandas frames.

TileDB-Py's own pandas door refuses pandas 3 or wants pyarrow, so columns go through numpy.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import tiledb

from radiodata.errors import ConfigError, StoreError
from radiodata.store.context import patiently
from radiodata.store.layout import filter_list

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

KINDS = ("int", "float", "bool", "string", "datetime", "ints", "floats", "bytes")
_DTYPES: dict[str, Any] = {
    "int": np.dtype(np.int64),
    "float": np.dtype(np.float64),
    "bool": np.dtype(np.uint8),
    "string": np.dtype("U"),
    "datetime": np.dtype("datetime64[ns]"),
    "ints": np.dtype(np.int64),
    "floats": np.dtype(np.float64),
    "bytes": "blob",
}
_LISTS = ("ints", "floats", "bytes")


@dataclass(frozen=True)
class Column:
    """One column: its name, its kind (see ``KINDS``), and whether it is too large for a plain read."""

    name: str
    kind: str
    large: bool = False


def infer_columns(frame: pd.DataFrame) -> list[Column]:
    """Columns for a frame of a user: ints, floats, booleans, dates (without time zone), and strings.

    Raises
    ------
    ConfigError
        When a column holds something else, such as lists, or has a name that cannot be stored.
    """
    names = [name for name in frame.columns if not isinstance(name, str) or not name or name.startswith("__")]
    names += list(frame.columns[frame.columns.duplicated()])
    if names:
        raise ConfigError(f"columns {names}: names must be strings, each once, not empty and not beginning with __")
    return [Column(name, _infer_kind(name, frame[name])) for name in frame.columns]


def check_columns(frame: pd.DataFrame, held: Sequence[Column]) -> None:
    """Refuse a frame that does not fit a table that is there.

    Ints may go into a column of floats, and whole floats (ints with gaps, to pandas) into a column of ints.

    Raises
    ------
    ConfigError
        When names or kinds of columns differ.
    """
    given, kinds = {c.name: c.kind for c in infer_columns(frame)}, {c.name: c.kind for c in held}
    if set(given) != set(kinds):
        raise ConfigError(f"the table there has columns {sorted(kinds)}, not {sorted(given)}: they must be the same")
    for name, kind in kinds.items():
        if not _fits(frame[name].dropna(), given[name], kind):
            raise ConfigError(f"column {name!r} of the table there holds {kind}s, not {given[name]}s")


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
        _nanoseconds(column)
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


def _nanoseconds(column: pd.Series[Any]) -> NDArray[Any]:
    try:
        return np.asarray(column.dt.as_unit("ns"))
    except pd.errors.OutOfBoundsDatetime as error:
        raise ConfigError(f"column {column.name!r} holds a date outside of 1678 to 2262: give strings") from error


def _is_null(cell: Any) -> bool:
    return bool(np.isscalar(pd.isna(cell)) and pd.isna(cell))


def create_table(uri: str, index: str, columns: Sequence[Column], ctx: tiledb.Ctx) -> None:
    """Create an empty table whose rows are found by the string column `index`."""
    zstd = filter_list(["zstd:3"], ctx)
    dim = tiledb.Dim(name=index, domain=(None, None), tile=None, dtype="ascii", filters=zstd, ctx=ctx)
    attrs = [_attr(column, ctx) for column in columns]
    schema = tiledb.ArraySchema(tiledb.Domain(dim, ctx=ctx), attrs=attrs, sparse=True, allows_duplicates=False, ctx=ctx)
    try:
        tiledb.Array.create(uri, schema, ctx=ctx)
    except tiledb.TileDBError as error:
        if not tiledb.array_exists(uri, ctx=ctx):  # else a process beside us made it
            raise StoreError(f"cannot create a table at {uri}: {error}") from error


def _attr(column: Column, ctx: tiledb.Ctx) -> tiledb.Attr:
    varying = column.kind in ("string", *_LISTS)
    filters = filter_list(["zstd:3"] if column.kind in ("string", "bytes") else ["byteshuffle", "zstd:3"], ctx)
    return tiledb.Attr(
        column.name,
        dtype=_DTYPES[column.kind],
        var=varying,
        nullable=column.kind not in ("float", *_LISTS),  # NaN is the null of floats; inf would become null otherwise
        filters=filters,
        ctx=ctx,
    )


def write_rows(uri: str, frame: pd.DataFrame, columns: Sequence[Column], ctx: tiledb.Ctx) -> None:
    """Write the rows of `frame` (indexed by id) in one commit; a row of the same id is replaced.

    Raises
    ------
    ConfigError
        When an id holds a NUL, which numpy drops from the end of bytes.
    """
    if frame.empty:
        return
    if odd := [i for i in frame.index if "\x00" in str(i)]:
        raise ConfigError(f"an id holds a NUL character: {odd[0]!r}")
    ids = np.array([str(i).encode() for i in frame.index], dtype=object)
    values = {c.name: _encode(frame[c.name], c.kind) for c in columns}
    with tiledb.open(uri, "w", ctx=ctx) as array:
        array[ids] = values


def _encode(column: pd.Series[Any], kind: str) -> NDArray[Any]:
    out = np.empty(len(column), dtype=object)
    if kind in ("ints", "floats"):
        dtype = _DTYPES[kind]
        out[:] = [None] * len(column)
        for i, cell in enumerate(column):
            out[i] = np.asarray(cell, dtype)
        return out
    if kind == "bytes":
        out[:] = [bytes(cell) for cell in column]
        return out
    if kind == "float":
        return column.to_numpy(np.float64, na_value=np.nan)
    if kind == "datetime":
        return _nanoseconds(pd.to_datetime(column))
    convert = {"int": int, "bool": int, "string": str}[kind]
    out[:] = [None if pd.isna(cell) else convert(cell) for cell in column]
    return out


def read_columns(uri: str, ctx: tiledb.Ctx) -> list[Column]:
    """Columns of a table that is there."""
    schema = tiledb.ArraySchema.load(uri, ctx=ctx)
    return [Column(schema.attr(i).name, _kind_of(schema.attr(i))) for i in range(schema.nattr)]


def read_table(uri: str, index: str, ctx: tiledb.Ctx, columns: Sequence[str] | None = None) -> pd.DataFrame:
    """Read a table (all columns, or those named), sorted by id.

    Raises
    ------
    StoreError
        When it cannot be read.
    """
    try:
        return patiently(lambda: _read(uri, index, ctx, columns))
    except tiledb.TileDBError as error:
        raise StoreError(f"cannot read the table {uri}: {error}") from error


def _read(uri: str, index: str, ctx: tiledb.Ctx, columns: Sequence[str] | None) -> pd.DataFrame:
    with tiledb.open(uri, ctx=ctx) as array:
        schema = array.schema
        kinds = {schema.attr(i).name: _kind_of(schema.attr(i)) for i in range(schema.nattr)}
        names = list(columns) if columns is not None else list(kinds)
        # not array.query(...)[:]: that makes TileDB's global context, which a forked child must not inherit
        raw = array.subarray(slice(None), attrs=names, coords=[index])
    frame = {name: _decode(raw[name], kinds[name]) for name in names}
    ids = pd.Index([i.decode() for i in raw[index]], name=index, dtype="str" if _STR_DEFAULT else object)
    return pd.DataFrame(frame, index=ids).sort_index()


_STR_DEFAULT = int(pd.__version__.split(".", maxsplit=1)[0]) >= 3


def _kind_of(attr: tiledb.Attr) -> str:
    if attr.dtype.kind in "SV" or str(attr.dtype) == "blob":
        return "bytes"
    if attr.dtype.kind == "M":
        return "datetime"
    plain = {"i": "int", "f": "float", "u": "bool", "U": "string", "O": "string"}[attr.dtype.kind]
    return f"{plain}s" if attr.isvar and plain in ("int", "float") else plain


def _decode(values: Any, kind: str) -> Any:
    if kind == "bytes":
        return _objects([bytes(v) for v in values])
    if kind in ("ints", "floats"):
        return _objects([np.asarray(v) for v in values])
    mask = np.ma.getmaskarray(values)
    data = np.ma.getdata(values)
    if kind == "float":
        return np.where(mask, np.nan, data)
    if kind == "datetime":
        return pd.Series(np.where(mask, np.datetime64("NaT"), data)).to_numpy("datetime64[ns]")
    if kind == "string":
        return pd.array([None if m else str(v) for v, m in zip(data, mask, strict=True)], dtype="string")
    if kind == "bool":
        return pd.arrays.BooleanArray(data.astype(bool), mask)
    return pd.arrays.IntegerArray(data.astype(np.int64), mask)


def _objects(cells: list[Any]) -> NDArray[Any]:
    out = np.empty(len(cells), dtype=object)
    for i, cell in enumerate(cells):
        out[i] = cell
    return out
