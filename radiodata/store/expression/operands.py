"""Columns and literals as arrays that can be compared, and truth of three values."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from radiodata.errors import ExpressionError

if TYPE_CHECKING:
    from numpy.typing import NDArray

_TYPES = pd.api.types
_OPS: dict[str, Any] = {
    "==": np.equal,
    "!=": np.not_equal,
    "<": np.less,
    "<=": np.less_equal,
    ">": np.greater,
    ">=": np.greater_equal,
}
_MIRRORED = {"==": "==", "!=": "!=", "<": ">", "<=": ">=", ">": "<", ">=": "<="}


@dataclass(frozen=True)
class Truth:
    """True, false or unknown, row by row (Kleene's logic); both bool, shape ``(n,)``, never true at once."""

    yes: NDArray[np.bool_]
    no: NDArray[np.bool_]

    @classmethod
    def known(cls, value: NDArray[np.bool_]) -> Truth:
        """Truth that nothing makes doubtful."""
        return cls(value, ~value)

    def true(self) -> NDArray[np.bool_]:
        """Rows that are true, an array of its own."""
        return np.array(self.yes)

    def __and__(self, other: Truth) -> Truth:
        return Truth(self.yes & other.yes, self.no | other.no)

    def __or__(self, other: Truth) -> Truth:
        return Truth(self.yes | other.yes, self.no & other.no)

    def __invert__(self) -> Truth:
        return Truth(self.no, self.yes)


@dataclass(frozen=True)
class Operand:
    """One side of a comparison.

    Attributes
    ----------
    kind
        ``"number"``, ``"text"``, ``"boolean"`` or ``"date"``.
    values
        Shape ``(n,)``, or ``()`` for a literal; anything where `known` is False.
    known
        What is not null.
    said
        How an error names it.
    order
        Categories in their order, where the column has one.
    """

    kind: str
    values: Any
    known: NDArray[np.bool_]
    said: str
    order: tuple[Any, ...] | None = None

    @classmethod
    def literal(cls, value: Any) -> Operand:
        """Operand of a literal."""
        kinds = ((bool, "boolean"), (str, "text"), (pd.Timestamp, "date"))
        kind = next((name for type_, name in kinds if isinstance(value, type_)), "number")
        if isinstance(value, float) and value.is_integer():
            value = int(value)  # compares exactly with large ints
        stored = value.to_datetime64() if isinstance(value, pd.Timestamp) else value
        return cls(kind, stored, np.array(True), f"the {kind} {value!r}")


def operand_of(name: str, column: pd.Series[Any]) -> Operand:
    """Operand of a column.

    Raises
    ------
    ExpressionError
        When it holds what cannot be compared, such as lists.
    """
    known, dtype = column.notna().to_numpy(bool), column.dtype
    if isinstance(dtype, pd.CategoricalDtype):
        plain = operand_of(name, column.astype(dtype.categories.dtype if known.all() else object))
        order = tuple(dtype.categories) if dtype.ordered else None
        return Operand(plain.kind, plain.values, known, f"column {name!r} of categories", order)
    if _TYPES.is_bool_dtype(dtype):
        return Operand("boolean", column.fillna(False).to_numpy(bool), known, f"column {name!r} of booleans")
    if _TYPES.is_integer_dtype(dtype):
        return Operand("number", column.fillna(0).to_numpy(dtype=np.int64), known, f"column {name!r} of ints")
    if _TYPES.is_float_dtype(dtype):
        values = column.to_numpy(np.float64, na_value=np.nan)
        return Operand("number", values, known, f"column {name!r} of floats")
    if _TYPES.is_datetime64_any_dtype(dtype):
        zone = getattr(dtype, "tz", None)
        plain_dates = column if zone is None else column.dt.tz_convert("UTC").dt.tz_localize(None)
        return Operand("date", plain_dates.to_numpy("datetime64[ns]"), known, f"column {name!r} of dates")
    return _of_objects(name, column.to_numpy(object), known)


def _of_objects(name: str, values: NDArray[Any], known: NDArray[np.bool_]) -> Operand:
    kinds = {type(v) for v in values[known]}
    if all(issubclass(k, str) for k in kinds):
        filled = values.copy()
        filled[~known] = ""
        return Operand("text", filled, known, f"column {name!r} of texts")
    if kinds and all(issubclass(k, bool | np.bool_ | int | float | np.number) for k in kinds):
        plain = pd.Series(values).where(known).infer_objects().convert_dtypes()
        if plain.dtype != object:
            return operand_of(name, plain)
    held = ", ".join(sorted(k.__name__ for k in kinds))
    raise ExpressionError(f"column {name!r} holds {held}, which cannot be compared")


def compared(op: str, left: Operand, right: Operand, n: int) -> Truth:
    """Compare two operands.

    Raises
    ------
    ExpressionError
        When they are of kinds that do not compare, or have no order.
    """
    left, right = _as_date(left, right), _as_date(right, left)
    if left.kind != right.kind:
        raise ExpressionError(f"{left.said} cannot be compared with {right.said}")
    if op not in ("==", "!="):
        left, right = _ordered(left, right)
    if np.ndim(left.values) == 0 and np.ndim(right.values) > 0:
        op, left, right = _MIRRORED[op], right, left
    known = np.broadcast_to(left.known & right.known, (n,))
    found = np.broadcast_to(np.asarray(_apply(op, left.values, right.values), bool), (n,))
    return Truth(found & known, ~found & known)


def _apply(op: str, left: Any, right: Any) -> Any:
    if isinstance(right, int) and not isinstance(right, bool) and isinstance(left, np.ndarray):
        info = np.iinfo(np.int64)
        if left.dtype.kind == "i" and not info.min <= right <= info.max:  # beyond what any value can be
            return np.full(left.shape, {"==": False, "!=": True}.get(op, (right > 0) == (op in ("<", "<="))))
        if left.dtype.kind == "f" and abs(right) > 2**1023:
            right = float("inf") if right > 0 else float("-inf")
    with np.errstate(invalid="ignore"):
        return _OPS[op](left, right)


def _as_date(one: Operand, other: Operand) -> Operand:
    """Take a text beside a date for one."""
    if other.kind != "date" or one.kind != "text" or np.ndim(one.values):
        return one
    try:
        return Operand.literal(date_of(one.values))
    except ValueError as error:
        raise ExpressionError(f"{other.said} is compared with {one.values!r}: {error}") from None


def _ordered(left: Operand, right: Operand) -> tuple[Operand, Operand]:
    """Put categories that have an order in the place of their values."""
    if left.kind == "boolean":
        raise ExpressionError(f"{left.said} has no order: compare with == or !=")
    order = left.order or right.order
    if order is not None:
        return _ranked(left, order), _ranked(right, order)
    unordered = [o for o in (left, right) if o.said.endswith("of categories")]
    if unordered:
        raise ExpressionError(f"{unordered[0].said} has no order: compare with == or in")
    return left, right


def _ranked(operand: Operand, order: tuple[Any, ...]) -> Operand:
    if operand.order is not None and operand.order != order:
        raise ExpressionError(f"{operand.said} has another order of categories")
    ranks = pd.Index(order).get_indexer(pd.Index(np.atleast_1d(np.asarray(operand.values, object))))
    ranks = ranks if np.ndim(operand.values) else ranks[0]
    if (np.asarray(ranks)[operand.known] < 0).any():
        raise ExpressionError(f"{operand.said} is none of the categories {list(order)}")
    return Operand("number", ranks, operand.known, operand.said)


def texts_of(operand: Operand, test: str, text: str, n: int) -> Truth:
    """Test texts for one that they contain, start or end with.

    Raises
    ------
    ExpressionError
        When the operand holds no texts.
    """
    if operand.kind != "text":
        raise ExpressionError(f"{operand.said} holds no texts: `{test}` is for those")
    tests = {"contains": str.__contains__, "startswith": str.startswith, "endswith": str.endswith}
    each = np.fromiter((tests[test](v, text) for v in np.atleast_1d(operand.values)), bool)
    known = np.broadcast_to(operand.known, (n,))
    found = np.broadcast_to(each if np.ndim(operand.values) else each[0], (n,))
    return Truth(found & known, ~found & known)


def date_of(text: str) -> pd.Timestamp:
    """Date of an ISO text, without time zone.

    Raises
    ------
    ValueError
        When it is none.
    """
    if not re.fullmatch(r"\d{4}-\d{2}-\d{2}([ T]\d{2}:\d{2}(:\d{2}(\.\d{1,9})?)?)?", text, flags=re.ASCII):
        raise ValueError(f"{text!r} is no date: write it as 2024-05-01, or 2024-05-01T13:30:00")
    try:
        return pd.Timestamp(text)
    except ValueError as error:
        raise ValueError(f"{text!r} is no date: {error}") from error
