"""Typed, nullable tables in sparse TileDB arrays, read and written as pandas frames.

TileDB-Py's own pandas door refuses pandas 3 or wants pyarrow, so columns go through numpy.

TileDB encrypts cells, and leaves the first and the last id of a fragment readable. So an encrypted table is indexed by
keyed hashes of its ids, and the ids are a column.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, unquote

import numpy as np
import pandas as pd
import tiledb
import tiledb.libtiledb as lt
from tiledb.main import PyQuery
from tiledb.subarray import Subarray

from radiodata.errors import ConfigError, StoreError
from radiodata.store.columns import Column, nanoseconds
from radiodata.store.context import patiently
from radiodata.store.layout import filter_list

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import NDArray

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
_ID = "radiodata:id"
_PLAIN = "".join(chr(c) for c in range(32, 127) if chr(c) != "%")


@dataclass(frozen=True)
class Ragged:
    """A column of lists, flat: row i is ``values[start[i]:start[i + 1]]``; int64, shape ``(n + 1,)``."""

    values: NDArray[Any]
    start: NDArray[np.int64]

    def take(self, rows: NDArray[np.int64]) -> Ragged:
        """Column of some rows, in the order given."""
        first, last = self.start[rows], self.start[rows + 1]
        parts = [self.values[a:b] for a, b in zip(first.tolist(), last.tolist(), strict=True)]
        start = np.concatenate([[0], np.cumsum(last - first)]).astype(np.int64)
        return Ragged(np.concatenate([self.values[:0], *parts]), start)

    def rows(self) -> list[NDArray[Any]]:
        """One array a row, all views."""
        return [self.values[a:b] for a, b in pairwise(self.start.tolist())]


@dataclass(frozen=True)
class Buffers:
    """What TileDB gives of one column: bytes of the cells, where each begins, and which are not null."""

    data: NDArray[np.uint8]
    offsets: NDArray[np.uint64]
    valid: NDArray[np.uint8] | None = None

    def __iter__(self) -> Iterator[NDArray[Any] | None]:
        return iter((self.data, self.offsets, self.valid))


@dataclass(frozen=True)
class Raw:
    """Rows as TileDB gives them, in no order of their own: a column or a cell is decoded when it is asked for."""

    ids: pd.Index[str]
    kinds: dict[str, str]
    buffers: dict[str, Buffers]

    def take(self, name: str, rows: NDArray[np.intp]) -> Any:
        """Values of a column in some rows, as an array of pandas."""
        return _decode(self.buffers[name], self.kinds[name], rows)

    def texts(self, name: str, rows: NDArray[np.intp]) -> NDArray[np.object_]:
        """Strings of a column that holds no null, as objects: sooner than by way of pandas."""
        return _objects(_texts(self.buffers[name]))[rows]

    def cell(self, name: str, row: int) -> Any:
        """One value."""
        raw, kind = self.buffers[name], self.kinds[name]
        if raw.valid is not None and len(raw.valid) and not raw.valid[row]:
            return pd.NaT if kind == "datetime" else np.nan if kind == "float" else pd.NA
        if kind in ("string", *_LISTS):
            end = raw.offsets[row + 1] if row + 1 < len(raw.offsets) else raw.data.nbytes
            data = raw.data[int(raw.offsets[row]) : int(end)]
            if kind in ("string", "bytes"):
                return data.tobytes() if kind == "bytes" else data.tobytes().decode()
            return data.view(_DTYPES[kind])
        value = raw.data.view(_DTYPES[kind])[row]
        return pd.Timestamp(value) if kind == "datetime" else np.bool_(value) if kind == "bool" else value


def create_table(uri: str, index: str, columns: Sequence[Column], ctx: tiledb.Ctx) -> None:
    """Create an empty table whose rows are found by the string column `index`."""
    zstd = filter_list(["zstd:3"], ctx)
    dim = tiledb.Dim(name=index, domain=(None, None), tile=None, dtype="ascii", filters=zstd, ctx=ctx)
    sealed = [Column(_ID, "string")] if _key(ctx) else []
    attrs = [_attr(column, ctx) for column in (*columns, *sealed)]
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
    key = _key(ctx)
    ids = np.array([_stored_id(str(i), key) for i in frame.index], dtype=object)
    values = {c.name: _encode(frame[c.name], c.kind) for c in columns}
    if key:
        values[_ID] = _objects([str(i) for i in frame.index])
    with tiledb.open(uri, "w", ctx=ctx) as array:
        array[ids] = values


def _encode(column: pd.Series[Any], kind: str) -> NDArray[Any]:
    out = np.empty(len(column), dtype=object)
    if kind in ("ints", "floats"):
        dtype = _DTYPES[kind]
        out[:] = [None] * len(column)
        for i, cell in enumerate(column):
            out[i] = np.ascontiguousarray(cell, dtype)  # TileDB copies bytes, and looks at no strides
        return out
    if kind == "bytes":
        out[:] = [bytes(cell) for cell in column]
        return out
    if kind == "float":
        return column.to_numpy(np.float64, na_value=np.nan)
    if kind == "datetime":
        return nanoseconds(pd.to_datetime(column))
    convert = {"int": int, "bool": int, "string": str}[kind]
    out[:] = [None if pd.isna(cell) else convert(cell) for cell in column]
    return out


def read_columns(uri: str, ctx: tiledb.Ctx) -> list[Column]:
    """Columns of a table that is there."""
    schema = tiledb.ArraySchema.load(uri, ctx=ctx)
    return [Column(name, kind) for name, kind in _kinds(schema).items()]


def _kinds(schema: tiledb.ArraySchema) -> dict[str, str]:
    attrs = [schema.attr(i) for i in range(schema.nattr)]
    return {attr.name: _kind_of(attr) for attr in attrs if attr.name != _ID}


def read_table(
    uri: str,
    index: str,
    ctx: tiledb.Ctx,
    columns: Sequence[str] | None = None,
    *,
    ids: Sequence[str] | None = None,
) -> pd.DataFrame:
    """Read a table (all columns, or those named; all rows, or those of some ids that are there), sorted by id.

    Raises
    ------
    StoreError
        When it cannot be read.
    """
    raw = read_raw(uri, index, ctx, columns, ids=ids)
    order = sorted_rows(raw.ids)
    return pd.DataFrame({name: raw.take(name, order) for name in raw.kinds}, index=raw.ids[order])


def read_raw(
    uri: str,
    index: str,
    ctx: tiledb.Ctx,
    columns: Sequence[str] | None = None,
    *,
    ids: Sequence[str] | None = None,
) -> Raw:
    """Read a table as ``read_table`` does, and decode nothing but ids.

    Raises
    ------
    StoreError
        When it cannot be read.
    """
    try:
        return patiently(lambda: _read(uri, index, ctx, columns, ids))
    except tiledb.TileDBError as error:
        raise StoreError(f"cannot read the table {uri}: {error}") from error


def sorted_rows(ids: pd.Index[str]) -> NDArray[np.intp]:
    """Positions of the rows, in the order of their ids."""
    return np.argsort(ids.to_numpy(object), kind="stable")


def read_ragged(
    uri: str, index: str, ctx: tiledb.Ctx, columns: Sequence[str]
) -> tuple[pd.Index[str], dict[str, Ragged]]:
    """Read columns of lists flat, in no order of their own: ids, and for each column its values and where rows begin.

    Raises
    ------
    StoreError
        When the table cannot be read.
    """
    try:
        return patiently(lambda: _read_ragged(uri, index, ctx, columns))
    except tiledb.TileDBError as error:
        raise StoreError(f"cannot read the table {uri}: {error}") from error


def _read(uri: str, index: str, ctx: tiledb.Ctx, columns: Sequence[str] | None, wanted: Sequence[str] | None) -> Raw:
    with tiledb.open(uri, ctx=ctx) as array:
        kinds = _kinds(array.schema)
        names = list(columns) if columns is not None else list(kinds)
        raw = _query(array, index, names, ctx, wanted)
    return Raw(
        _ids(raw[index], index, encoded=_ID not in raw), {n: kinds[n] for n in names}, {n: raw[n] for n in names}
    )


def _read_ragged(
    uri: str, index: str, ctx: tiledb.Ctx, columns: Sequence[str]
) -> tuple[pd.Index[str], dict[str, Ragged]]:
    with tiledb.open(uri, ctx=ctx) as array:
        kinds = {name: _kind_of(array.schema.attr(name)) for name in columns}
        raw = _query(array, index, list(columns), ctx)
    lists = {name: _ragged(raw[name], _DTYPES[kinds[name]]) for name in columns}
    return _ids(raw[index], index, encoded=_ID not in raw), lists


def _query(
    array: tiledb.Array, index: str, names: list[str], ctx: tiledb.Ctx, ids: Sequence[str] | None = None
) -> dict[str, Buffers]:
    """Buffers of every row, or of the rows of some ids, as TileDB fills them.

    ``array[:]`` makes a Python object of each cell, and ``array.query`` TileDB's global context, which a forked child
    must not inherit.
    """
    key = _key(ctx)
    query = PyQuery(ctx, array, (*names, _ID if key else index), (), lt.LayoutType.UNORDERED, False)
    subarray = Subarray(array, ctx)  # without ranges: everything
    for stored in sorted({_stored_id(i, key) for i in ids or ()}):
        subarray.add_dim_range(0, (stored, stored))
    query.set_subarray(subarray)
    query.submit()
    found = {name: Buffers(*buffers) for name, buffers in query.results().items()}
    return {**found, index: found[_ID]} if key else found


def _key(ctx: tiledb.Ctx) -> bytes:
    """Key of encrypted tables; empty where they are not."""
    return str(ctx.config()["sm.encryption_key"]).encode()


def _stored_id(text: str, key: bytes) -> bytes:
    """Percent-encode what is not printable ASCII; with a key, a hash.

    libtiledb 2.30 orders bytes above 127 in one way when it writes and in another when it merges fragments: rows get
    lost or mixed up, or it crashes.
    """
    if key:
        return hashlib.blake2b(text.encode(), key=key, digest_size=16).hexdigest().encode()
    return quote(text, safe=_PLAIN).encode()


def _ids(raw: Buffers, index: str, *, encoded: bool) -> pd.Index[str]:
    texts = [unquote(t) if encoded and "%" in t else t for t in _texts(raw)]
    return pd.Index(texts, name=index, dtype="str" if _STR_DEFAULT else object)


_STR_DEFAULT = int(pd.__version__.split(".", maxsplit=1)[0]) >= 3


def _kind_of(attr: tiledb.Attr) -> str:
    if attr.dtype.kind in "SV" or str(attr.dtype) == "blob":
        return "bytes"
    if attr.dtype.kind == "M":
        return "datetime"
    plain = {"i": "int", "f": "float", "u": "bool", "U": "string", "O": "string"}[attr.dtype.kind]
    return f"{plain}s" if attr.isvar and plain in ("int", "float") else plain


def _decode(raw: Buffers, kind: str, order: NDArray[np.int64]) -> Any:
    if kind in _LISTS:
        return _decode_lists(raw, kind)[order]
    null = raw.valid is not None and len(raw.valid) > 0
    mask = raw.valid[order] == 0 if null else np.zeros(len(order), bool)  # type: ignore[index]
    if kind == "string":
        cells = _objects(_texts(raw))[order]
        cells[mask] = None
        return pd.array(cells, dtype="string")
    data = raw.data.view(_DTYPES[kind])[order]
    if kind == "float":
        return np.where(mask, np.nan, data)
    if kind == "datetime":
        return pd.Series(np.where(mask, np.datetime64("NaT"), data)).to_numpy("datetime64[ns]")
    if kind == "bool":
        return pd.arrays.BooleanArray(data.astype(bool), mask)
    return pd.arrays.IntegerArray(data.astype(np.int64), mask)


def _decode_lists(raw: Buffers, kind: str) -> NDArray[Any]:
    if kind == "bytes":
        whole, at = raw.data.tobytes(), _bounds(raw, 1)
        return _objects([whole[a:b] for a, b in pairwise(at.tolist())])
    return _objects(_ragged(raw, _DTYPES[kind]).rows())


def _texts(raw: Buffers) -> list[str]:
    """Strings of a buffer; where all is ASCII, bytes and characters are counted alike, and it is decoded at once."""
    whole, at = raw.data.tobytes(), _bounds(raw, 1).tolist()
    if whole.isascii():
        text = whole.decode("ascii")
        return [text[a:b] for a, b in pairwise(at)]
    return [whole[a:b].decode() for a, b in pairwise(at)]


def _ragged(raw: Buffers, dtype: np.dtype[Any]) -> Ragged:
    return Ragged(raw.data.view(dtype), _bounds(raw, dtype.itemsize))


def _bounds(raw: Buffers, width: int) -> NDArray[np.int64]:
    """Where each row begins and the last one ends, counted in values of `width` bytes."""
    return np.append(raw.offsets, raw.data.nbytes).astype(np.int64) // width


def _objects(cells: list[Any]) -> NDArray[Any]:
    return np.fromiter(cells, dtype=object, count=len(cells))
