"""What an expression means: its nodes, and their truth on whole columns."""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from radiodata.errors import ExpressionError
from radiodata.store.expression.operands import Operand, Truth, compared, operand_of, texts_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    import pandas as pd
    from numpy.typing import NDArray


@dataclass(frozen=True)
class Column:
    """Values of a column."""

    name: str


@dataclass(frozen=True)
class Literal:
    """A number, a text, a boolean or a date."""

    value: int | float | str | bool | pd.Timestamp


Value: TypeAlias = "Column | Literal"


@dataclass(frozen=True)
class Compare:
    """``left op right``."""

    op: str
    left: Value
    right: Value


@dataclass(frozen=True)
class OneOf:
    """``value in [...]``."""

    value: Value
    choices: tuple[Literal, ...]


@dataclass(frozen=True)
class IsNull:
    """``value is null``."""

    value: Value


@dataclass(frozen=True)
class TextTest:
    """``value contains 'text'``, and the like; the text is literal, no pattern."""

    test: str
    value: Value
    text: str


@dataclass(frozen=True)
class Flag:
    """A column of booleans, by itself."""

    column: Column


@dataclass(frozen=True)
class Not:
    """``not part``."""

    part: Node


@dataclass(frozen=True)
class AllOf:
    """``a and b and ...``."""

    parts: tuple[Node, ...]


@dataclass(frozen=True)
class AnyOf:
    """``a or b or ...``."""

    parts: tuple[Node, ...]


Node: TypeAlias = "Compare | OneOf | IsNull | TextTest | Flag | Not | AllOf | AnyOf"


@dataclass(frozen=True)
class Expression:
    """A parsed expression.

    Attributes
    ----------
    text
        As it was written.
    tree
        What it means.
    """

    text: str
    tree: Node

    @property
    def columns(self) -> tuple[str, ...]:
        """Names of the columns that it uses, in order of first use."""
        return tuple(dict.fromkeys(_columns(self.tree)))

    def mask(self, column: Callable[[str], pd.Series[Any]], n: int) -> NDArray[np.bool_]:
        """Rows for which it is true, bool, shape ``(n,)``.

        Parameters
        ----------
        column
            Gives the column of a name, `n` long, or raises ``KeyError``, which passes through.

        Raises
        ------
        ExpressionError
            When a column cannot be compared as the expression asks.
        """
        held: dict[str, Operand] = {}

        def operand(value: Value) -> Operand:
            if isinstance(value, Literal):
                return Operand.literal(value.value)
            if value.name not in held:
                held[value.name] = operand_of(value.name, column(value.name))
            return held[value.name]

        try:
            return _truth(self.tree, operand, n).true()
        except ExpressionError as error:
            raise ExpressionError(f"{error}, in the expression {self.text!r}") from None


def unknown_column(name: str, held: Sequence[str], text: str) -> ExpressionError:
    """Error that names a column that is not there, and those near it."""
    near = difflib.get_close_matches(name, held, n=3)
    hint = f"did you mean {' or '.join(near)}?" if near else f"there are {', '.join(sorted(held)) or 'none'}"
    return ExpressionError(f"the expression {text!r} names a column {name!r} that is not there: {hint}")


def _columns(node: Any) -> Iterator[str]:
    if isinstance(node, Column):
        yield node.name
    elif isinstance(node, AllOf | AnyOf):
        for part in node.parts:
            yield from _columns(part)
    elif not isinstance(node, Literal | str | tuple):
        for part in vars(node).values():
            yield from _columns(part)


def _truth(node: Node, operand: Callable[[Value], Operand], n: int) -> Truth:
    if isinstance(node, AllOf | AnyOf):
        found = _truth(node.parts[0], operand, n)
        for part in node.parts[1:]:
            other = _truth(part, operand, n)
            found = found & other if isinstance(node, AllOf) else found | other
        return found
    if isinstance(node, Not):
        return ~_truth(node.part, operand, n)
    if isinstance(node, IsNull):
        return Truth.known(np.broadcast_to(~operand(node.value).known, (n,)))
    if isinstance(node, Compare):
        return compared(node.op, operand(node.left), operand(node.right), n)
    if isinstance(node, OneOf):
        value = operand(node.value)
        found = Truth.known(np.zeros(n, bool))
        for choice in node.choices:
            found = found | compared("==", value, operand(choice), n)
        return found
    if isinstance(node, TextTest):
        return texts_of(operand(node.value), node.test, node.text, n)
    flag = operand(node.column)
    return compared("==", flag, Operand.literal(True), n)
