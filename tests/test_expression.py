"""Filter expressions: exact masks, three-valued logic against a naive oracle, and nothing ever runs."""

from __future__ import annotations

import builtins
import pickle
from typing import Any

import numpy as np
import pandas as pd
import pytest
from effort import tries
from hypothesis import given, settings
from hypothesis import strategies as st

from radiodata.errors import ExpressionError
from radiodata.store.expression import LONGEST, parse

MANY = tries(300, 2000, 10_000)
many = settings(max_examples=MANY, deadline=None)

BIG = 2**53 + 1
FRAME = pd.DataFrame(
    {
        "age": pd.array([20, 41, None, 65, BIG], dtype="Int64"),
        "weight": [50.5, np.nan, 80.0, 70.0, -1.0],
        "sex": pd.array(["F", "M", "F", None, "x"], dtype="string"),
        "site": ["Köln", "it's", 'a"b', "50%_x", None],
        "smoker": pd.array([True, False, None, True, False], dtype="boolean"),
        "seen": pd.to_datetime(["2024-01-01", "2024-05-01", None, "2023-12-31", "2024-05-01T12:00"], format="ISO8601"),
        "grade": pd.Categorical(["low", "high", None, "mid", "low"], ["low", "mid", "high"], ordered=True),
        "kind": pd.Categorical(["a", "b", "a", None, "b"]),
        "body weight": [1, 2, 3, 4, 5],
        "wide": np.array([1, -1, 2, -2, 0], np.int8),
    }
)


def mask(text: str) -> list[int]:
    return np.flatnonzero(parse(text).mask(FRAME.__getitem__, len(FRAME))).tolist()


@pytest.mark.parametrize(
    ("text", "rows"),
    [
        ("age > 40", [1, 3, 4]),
        ("not age > 40", [0]),
        ("~(age > 40)", [0]),
        ("not not age > 40", [1, 3, 4]),
        ("age > 40 and sex == 'M'", [1]),
        ("age > 40 & sex = 'M' | weight < 0", [1, 4]),
        ("sex == 'F' or age > 40 and weight >= 70", [0, 2, 3]),
        ("(sex == 'F' or age > 40) and weight >= 70", [2, 3]),
        ("18 <= age < 65", [0, 1]),
        ("age between 20 and 41", [0, 1]),
        ("age NOT BETWEEN 20 AND 41", [3, 4]),
        ("age in [20, 65]", [0, 3]),
        ("age not in (20, 65)", [1, 4]),
        ("age is null", [2]),
        ("age is not none", [0, 1, 3, 4]),
        ("weight is null or sex is null", [1, 3]),
        ("age != 20", [1, 3, 4]),
        ("age <> 20.0", [1, 3, 4]),
        (f"age == {BIG}", [4]),
        (f"age == {BIG - 1}", []),
        (f"age < {2**70}", [0, 1, 3, 4]),
        (f"age > -{2**70} and not age == {2**70}", [0, 1, 3, 4]),
        ("weight > 1e400", []),
        ("weight == 50.5", [0]),
        ("40 < age", [1, 3, 4]),
        ("weight > `body weight`", [0, 2, 3]),
        ("`body weight` in [1]", [0]),
        ("wide < -1.5", [3]),
        ("sex in ['F', \"x\"]", [0, 2, 4]),
        ("site == 'Köln' or site == 'it\\'s' or site == \"a\\\"b\"", [0, 1, 2]),
        ("site contains '%_'", [3]),
        ("site contains '.'", []),
        ("site startswith 'K' or site endswith 's'", [0, 1]),
        ("site not contains 'K'", [1, 2, 3]),
        ("smoker", [0, 3]),
        ("not smoker", [1, 4]),
        ("smoker == FALSE", [1, 4]),
        ("smoker is null", [2]),
        ("seen >= date '2024-05-01'", [1, 4]),
        ("seen < '2024-05-01' and seen is not null", [0, 3]),
        ("seen == '2024-05-01T12:00'", [4]),
        ("seen between '2024-01-01' and '2024-05-01'", [0, 1]),
        ("grade < 'high'", [0, 3, 4]),
        ("grade >= 'mid'", [1, 3]),
        ("grade == 'low' and kind != 'a'", [4]),
        ("kind in ['a']", [0, 2]),
        ("sex == site", []),
        ("1 == 1", [0, 1, 2, 3, 4]),
        ("'a' > 'b'", []),
    ],
)
def test_masks(text: str, rows: list[int]) -> None:
    assert mask(text) == rows


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "a column, a number or a quoted text"),
        ("age", "ints cannot be compared with the boolean True"),
        ("age >", "a column, a number"),
        ("age > 'x'", "ints cannot be compared with the text 'x'"),
        ("sex > 5", "texts cannot be compared with the number 5"),
        ("smoker > true", "no order"),
        ("kind < 'b'", "column 'kind' of categories has no order"),
        ("grade < 'huge'", "none of the categories"),
        ("age == null", "is null"),
        ("age 5", "the expression should end"),
        ("age > 5 5", "the expression should end"),
        ("seen > 'yesterday'", "is no date"),
        ("seen > date '2024-13-01'", "is no date"),
        ("age contains 'x'", "holds no texts"),
        ("age in []", "a column, a number"),
        ("age in [sex]", "a list holds numbers"),
        ("age in [1", "] or )"),
        ("5", "a comparison"),
        ("age > 5x", "no name, number"),
        ("age > 'x", "no name, number"),
        ("age; drop", "no name, number"),
        ("site contains sex", "a quoted text"),
        ("(" * 200 + "age > 1" + ")" * 200, "nested more than 100"),
        ("a" * (LONGEST + 1), "at most"),
        ("a\x00b", "NUL"),
        ("age > " + "9" * 500, "too long"),
        ("().__class__", "no name, number"),
        ("__import__('os').system('x')", "no name, number"),
    ],
)
def test_what_is_no_expression_is_refused_where_it_goes_wrong(text: str, says: str) -> None:
    with pytest.raises(
        ExpressionError, match=says.replace("(", r"\(").replace(")", r"\)").replace("]", r"\]")
    ) as error:
        mask(text)
    bare = error.value.with_traceback(None)  # tblib, which Dask brings, would pickle its frames
    bare.__cause__ = bare.__context__ = None
    assert str(pickle.loads(pickle.dumps(bare))) == str(bare)


def test_the_place_is_shown() -> None:
    with pytest.raises(ExpressionError) as error:
        parse("age > 40 andd sex == 'F'")
    _, text, caret = str(error.value).split("\n")
    assert text[caret.index("^") :].startswith("andd")


def test_columns_are_named_once_in_order_and_others_raise_key_error() -> None:
    made = parse("b > 1 and (a in [1] or b is null) and `c d` contains 'x' and CT.size_x > 2")
    assert made.columns == ("b", "a", "c d", "CT.size_x")
    assert pickle.loads(pickle.dumps(made)) == made
    with pytest.raises(KeyError, match="nothing"):
        mask("nothing > 1")


def test_lists_cannot_be_compared() -> None:
    frame = pd.DataFrame({"affine": [np.eye(4), None], "mixed": pd.Series([True, 5], dtype=object)})
    for name in frame:
        with pytest.raises(ExpressionError, match="cannot be compared"):
            parse(f"{name} == 1").mask(frame.__getitem__, 2)


# an oracle: one row at a time, None for unknown ------------------------------------------------

NUMBERS = st.integers(-3, 3)
LETTERS = st.sampled_from(["", "a", "ab", "b", "'", "\\", "É"])


def quoted(text: str) -> str:
    return "'" + text.replace("\\", "\\\\").replace("'", "\\'") + "'"


def compare(op: str, a: Any, b: Any) -> bool | None:
    if a is None or b is None:
        return None
    return {"==": a == b, "!=": a != b, "<": a < b, "<=": a <= b, ">": a > b, ">=": a >= b}[op]


def both(a: bool | None, b: bool | None) -> bool | None:
    return False if False in (a, b) else (None if None in (a, b) else True)


def no(a: bool | None) -> bool | None:
    return None if a is None else not a


OPS = st.sampled_from(["==", "!=", "<", "<=", ">", ">="])
LEAVES = st.one_of(
    st.builds(lambda c, op, n: (f"{c} {op} {n}", lambda r: compare(op, r[c], n)), st.sampled_from("ij"), OPS, NUMBERS),
    st.builds(lambda n, op: (f"{n} {op} i", lambda r: compare(op, n, r["i"])), NUMBERS, OPS),
    st.builds(lambda op: (f"i {op} j", lambda r: compare(op, r["i"], r["j"])), OPS),
    st.builds(lambda op, t: (f"s {op} {quoted(t)}", lambda r: compare(op, r["s"], t)), OPS, LETTERS),
    st.builds(
        lambda ts: (f"s in [{', '.join(map(quoted, ts))}]", lambda r: None if r["s"] is None else r["s"] in ts),
        st.lists(LETTERS, min_size=1, max_size=3),
    ),
    st.builds(lambda t: (f"s contains {quoted(t)}", lambda r: None if r["s"] is None else t in r["s"]), LETTERS),
    st.builds(
        lambda a, b: (f"j between {a} and {b}", lambda r: both(compare(">=", r["j"], a), compare("<=", r["j"], b))),
        NUMBERS,
        NUMBERS,
    ),
    st.sampled_from([("f", lambda r: r["f"]), ("i is null", lambda r: r["i"] is None)]),
)
TREES = st.recursive(
    LEAVES,
    lambda parts: st.one_of(
        st.builds(lambda a, b: (f"({a[0]}) and ({b[0]})", lambda r: both(a[1](r), b[1](r))), parts, parts),
        st.builds(lambda a, b: (f"({a[0]}) or ({b[0]})", lambda r: no(both(no(a[1](r)), no(b[1](r))))), parts, parts),
        st.builds(lambda a: (f"not ({a[0]})", lambda r: no(a[1](r))), parts),
    ),
    max_leaves=8,
)
ROWS = st.lists(
    st.fixed_dictionaries(
        {"i": st.none() | NUMBERS, "j": st.none() | NUMBERS, "s": st.none() | LETTERS, "f": st.none() | st.booleans()}
    ),
    min_size=1,
    max_size=8,
)


@many
@given(TREES, ROWS)
def test_random_expressions_select_what_an_oracle_selects(tree: tuple[str, Any], rows: list[dict[str, Any]]) -> None:
    text, oracle = tree
    frame = pd.DataFrame(
        {
            "i": pd.array([r["i"] for r in rows], dtype="Int64"),
            "j": np.array([np.nan if r["j"] is None else r["j"] for r in rows], np.float64),
            "s": pd.array([r["s"] for r in rows], dtype="string"),
            "f": pd.array([r["f"] for r in rows], dtype="boolean"),
        }
    )
    found = parse(text).mask(frame.__getitem__, len(rows))
    assert found.dtype == bool
    assert found.tolist() == [oracle(r) is True for r in rows]


WORDS = (
    "age sex seen smoker ( ) [ ] not and or in is null == < ' \" ` \\ ~ {age} "
    "%s lambda:0 1e999 - date contains between . @age ; #"
)
CODE = ["__import__('os')", "().__class__.__mro__", "eval('1')", "\x00", "\u202e", "٣", "9" * 400, "'2024-99-99'", "\n"]
HOSTILE = st.one_of(
    st.text(max_size=60),
    st.lists(
        st.sampled_from([*WORDS.split(), *CODE]),
        max_size=25,
    ).map(" ".join),
    st.sampled_from(["not " * 2000 + "smoker", "(" * 5000, "smoker and " * 800 + "smoker", "~" * 9000 + "smoker"]),
)


@many
@given(HOSTILE)
def test_hostile_texts_give_a_mask_or_an_error_and_run_nothing(text: str) -> None:
    def forbidden(*_: Any, **__: Any) -> None:
        raise AssertionError("an expression was run as code")

    with pytest.MonkeyPatch.context() as patch:
        for name in ("eval", "exec", "compile"):
            patch.setattr(builtins, name, forbidden)
        try:
            found = parse(text).mask(FRAME.__getitem__, len(FRAME))
        except (ExpressionError, KeyError):
            return
    assert found.shape == (len(FRAME),)
    assert found.dtype == bool
