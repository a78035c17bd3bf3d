"""From a text to the nodes of an expression: a tokenizer and a parser by recursive descent."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, NoReturn

from radiodata.errors import ExpressionError
from radiodata.store.expression.operands import date_of
from radiodata.store.expression.tree import (
    AllOf,
    AnyOf,
    Column,
    Compare,
    Expression,
    Flag,
    IsNull,
    Literal,
    Not,
    OneOf,
    TextTest,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

    import pandas as pd

    from radiodata.store.expression.tree import Node, Value

LONGEST = 10_000
DEEPEST = 100
_TOKEN = re.compile(
    r"""(?P<space>\s+)
      | (?P<number>[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?(?![\w.]))
      | (?P<text>'(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*")
      | (?P<quoted>`[^`]+`)
      | (?P<name>[^\W\d]\w*(?:\.[^\W\d]\w*)?)
      | (?P<sign>==|!=|<>|<=|>=|[=<>()\[\],&|~])""",
    re.VERBOSE | re.DOTALL,
)
_COMPARE = {"==": "==", "=": "==", "!=": "!=", "<>": "!=", "<": "<", "<=": "<=", ">": ">", ">=": ">="}
_WORDS = {"&": "and", "|": "or", "~": "not"}
_TEXT_TESTS = ("contains", "startswith", "endswith")
_KEYWORDS = ("and", "or", "not", "in", "is", "null", "none", "between", "true", "false", *_TEXT_TESTS)
_ESCAPES = {"n": "\n", "t": "\t"}


def parse(text: str) -> Expression:
    """Parse an expression.

    Raises
    ------
    ExpressionError
        When it is none: says where.
    """
    if not isinstance(text, str):
        raise ExpressionError(f'an expression is a text such as "age > 40", not {type(text).__name__}')
    if len(text) > LONGEST or "\x00" in text:
        raise ExpressionError(f"an expression has at most {LONGEST} characters, and no NUL among them")
    return Expression(text, _Parser(text).parse())


@dataclass(frozen=True)
class _Token:
    kind: str
    text: str
    at: int

    @property
    def word(self) -> str:
        return _WORDS.get(self.text, self.text.lower()) if self.kind in ("name", "sign") else ""


class _Parser:
    def __init__(self, text: str) -> None:
        self._text, self._depth, self._at = text, 0, 0
        self._tokens = list(self._split())

    def parse(self) -> Node:
        tree = self._either()
        if self._next.kind != "end":
            self._refuse("here the expression should end, or go on with and, or")
        return tree

    def _split(self) -> Iterator[_Token]:
        at = 0
        while at < len(self._text):
            found = _TOKEN.match(self._text, at)
            if found is None:
                self._fail(at, "this is no name, number, quoted text or sign of an expression")
            if found.lastgroup != "space":
                yield _Token(str(found.lastgroup), found[0], at)
            at = found.end()
        yield _Token("end", "", at)

    @property
    def _next(self) -> _Token:
        return self._tokens[self._at]

    def _take(self, *words: str) -> bool:
        """Go on if the next tokens are these words."""
        if [t.word for t in self._tokens[self._at : self._at + len(words)]] != list(words):
            return False
        self._at += len(words)
        return True

    def _demand(self, *words: str) -> None:
        if not any(self._take(word) for word in words):
            self._refuse(f"here should be {' or '.join(words)}")

    def _refuse(self, why: str) -> NoReturn:
        self._fail(self._next.at, why)

    def _fail(self, at: int, why: str) -> NoReturn:
        start = max(0, at - 60)
        shown = re.sub(r"\s", " ", self._text[start : at + 60])
        raise ExpressionError(f"{why}\n  {shown}\n  {' ' * (at - start)}^")

    def _either(self) -> Node:
        self._depth += 1
        if self._depth > DEEPEST:
            self._refuse(f"parentheses and nots are nested more than {DEEPEST} deep")
        parts = [self._both()]
        while self._take("or"):
            parts.append(self._both())
        self._depth -= 1
        return parts[0] if len(parts) == 1 else AnyOf(tuple(parts))

    def _both(self) -> Node:
        parts = [self._negated()]
        while self._take("and"):
            parts.append(self._negated())
        return parts[0] if len(parts) == 1 else AllOf(tuple(parts))

    def _negated(self) -> Node:
        nots = 0
        while self._take("not"):
            nots += 1
        part = self._predicate()
        return Not(part) if nots % 2 else part

    def _predicate(self) -> Node:
        if self._take("("):
            part = self._either()
            self._demand(")")
            return part
        left = self._value()
        if self._next.text in _COMPARE:
            return self._chain(left)
        if self._take("is"):
            negated = self._take("not")
            self._demand("null", "none")
            return _negate(IsNull(left), negated)
        return self._tested(left)

    def _chain(self, left: Value) -> Node:
        parts: list[Node] = []
        while self._next.text in _COMPARE and self._next.kind == "sign":
            op = _COMPARE[self._next.text]
            self._at += 1
            if self._next.word in ("null", "none"):
                self._refuse("nothing equals a null: write `is null` or `is not null`")
            right = self._value()
            parts.append(Compare(op, left, right))
            left = right
        return parts[0] if len(parts) == 1 else AllOf(tuple(parts))

    def _tested(self, left: Value) -> Node:
        negated = self._take("not")
        if self._take("in"):
            return _negate(OneOf(left, self._choices()), negated)
        if self._take("between"):
            low = self._value()
            self._demand("and")
            high = self._value()
            return _negate(AllOf((Compare(">=", left, low), Compare("<=", left, high))), negated)
        for test in _TEXT_TESTS:
            if self._take(test):
                return _negate(TextTest(test, left, self._quoted()), negated)
        if negated or not isinstance(left, Column):
            self._refuse("here should be a comparison, such as == or in")
        return Flag(left)

    def _choices(self) -> tuple[Literal, ...]:
        self._demand("[", "(")
        choices = [self._literal()]
        while self._take(","):
            choices.append(self._literal())
        self._demand("]", ")")
        return tuple(choices)

    def _literal(self) -> Literal:
        value = self._value()
        if not isinstance(value, Literal):
            self._refuse("a list holds numbers, quoted texts, dates, true or false")
        return value

    def _quoted(self) -> str:
        token = self._next
        if token.kind != "text":
            self._refuse("here should be a quoted text")
        self._at += 1
        return re.sub(r"\\(.)", lambda m: _ESCAPES.get(m[1], m[1]), token.text[1:-1], flags=re.DOTALL)

    def _value(self) -> Value:
        token = self._next
        if token.kind == "text":
            return Literal(self._quoted())
        if token.kind == "name" and token.word == "date" and self._tokens[self._at + 1].kind == "text":
            self._at += 1
            return Literal(self._date())
        if token.kind == "quoted" or (token.kind == "name" and token.word not in _KEYWORDS):
            self._at += 1
            return Column(token.text.strip("`"))
        if token.word in ("true", "false"):
            self._at += 1
            return Literal(token.word == "true")
        if token.kind != "number":
            self._refuse("here should be a column, a number or a quoted text")
        return self._number(token)

    def _number(self, token: _Token) -> Literal:
        if len(token.text) > 400:
            self._refuse("this number is too long")
        self._at += 1
        return Literal(int(token.text) if token.text.lstrip("+-").isdigit() else float(token.text))

    def _date(self) -> pd.Timestamp:
        at = self._next.at
        try:
            return date_of(self._quoted())
        except ValueError as error:
            self._fail(at, f"{error}")


def _negate(node: Node, negated: bool) -> Node:
    return Not(node) if negated else node
