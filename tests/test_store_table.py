"""Tables: typed and nullable columns come back as they went in; what cannot is refused before it is written."""

from __future__ import annotations

import datetime
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from radiodata.errors import ConfigError
from radiodata.store.columns import Column, check_columns, infer_columns
from radiodata.store.context import context
from radiodata.store.table import (
    create_table,
    read_columns,
    read_ragged,
    read_table,
    write_rows,
)
from radiodata.store.writer import consolidate_table

quick = settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
text = st.text(st.characters(exclude_categories=("Cs",)), max_size=12)
CELLS = {
    "int": st.none() | st.integers(-(2**63), 2**63 - 1),
    "float": st.floats(),
    "bool": st.none() | st.booleans(),
    "string": st.none() | text,
    "datetime": st.none() | st.datetimes(datetime.datetime(1700, 1, 1), datetime.datetime(2200, 1, 1)),
    "ints": st.lists(st.integers(-(2**63), 2**63 - 1), max_size=4),
    "floats": st.lists(st.floats(), max_size=4),
    "bytes": st.binary(max_size=9),
}
DTYPES = {
    "int": "Int64",
    "float": "float64",
    "bool": "boolean",
    "string": "string",
    "datetime": "datetime64[ns]",
    "ints": object,
    "floats": object,
    "bytes": object,
}


def series(kind: str, cells: list[Any], index: list[str]) -> pd.Series:
    if DTYPES[kind] is object:
        out = pd.Series([None] * len(cells), index=index, dtype=object)
        for at, cell in enumerate(cells):
            out.iloc[at] = cell
        return out
    return pd.Series(pd.array(cells, dtype=DTYPES[kind]), index=index)


def round_trip(folder: Path, frame: pd.DataFrame, columns: list[Column]) -> pd.DataFrame:
    uri = str(folder / f"table-{len(list(folder.iterdir()))}")
    create_table(uri, "id", columns, context())
    write_rows(uri, frame, columns, context())
    assert sorted(read_columns(uri, context()), key=str) == sorted(columns, key=str)
    return read_table(uri, "id", context())


@st.composite
def frames(draw: st.DrawFn) -> tuple[pd.DataFrame, list[Column]]:
    kinds = draw(st.lists(st.sampled_from(sorted(CELLS)), min_size=1, max_size=4))
    ids = draw(st.lists(text.filter(lambda t: t and "\x00" not in t), min_size=1, max_size=6, unique=True))
    columns = [Column(f"c{i}", kind) for i, kind in enumerate(kinds)]
    cells = {c.name: series(c.kind, [draw(CELLS[c.kind]) for _ in ids], ids) for c in columns}
    return pd.DataFrame(cells, index=ids), columns


@quick
@given(frames())
def test_what_is_written_is_read(tmp_path: Path, made: tuple[pd.DataFrame, list[Column]]) -> None:
    frame, columns = made
    back = round_trip(tmp_path, frame, columns)
    assert back.index.tolist() == sorted(frame.index)
    for column in columns:
        for subject in frame.index:
            assert same(back.loc[subject, column.name], frame.loc[subject, column.name]), column


def same(found: Any, expected: Any) -> bool:
    if isinstance(expected, bytes):
        return found == expected
    if isinstance(expected, list):
        return np.array_equal(found, np.asarray(expected, found.dtype), equal_nan=found.dtype.kind == "f")
    if pd.isna(expected):
        return bool(pd.isna(found))
    return bool(found == expected) and type(found) is type(expected)


def test_an_empty_string_is_not_null_and_nan_and_infinity_stay_apart(tmp_path: Path) -> None:
    frame = pd.DataFrame(
        {"s": ["", None, "NA", "é\x00影"], "f": [np.nan, np.inf, -np.inf, -0.0]}, index=["a", "b", "c", "Ω"]
    )
    back = round_trip(tmp_path, frame, infer_columns(frame))
    assert [None if pd.isna(v) else v for v in back["s"]] == ["", None, "NA", "é\x00影"]
    assert back["f"].tolist()[1:3] == [np.inf, -np.inf]
    assert np.isnan(back["f"].iloc[0])
    assert np.signbit(back["f"].iloc[3])


def test_a_row_of_the_same_id_is_replaced(tmp_path: Path) -> None:
    frame = pd.DataFrame({"n": [1, 2], "s": ["x", "y"]}, index=["a", "b"])
    columns, uri = infer_columns(frame), str(tmp_path / "t")
    create_table(uri, "id", columns, context())
    write_rows(uri, frame, columns, context())
    write_rows(uri, pd.DataFrame({"n": [20, 30], "s": [None, "z"]}, index=["b", "c"]), columns, context())
    back = read_table(uri, "id", context())
    assert back["n"].tolist() == [1, 20, 30]
    assert back["s"].isna().tolist() == [False, True, False]


def test_lists_that_lie_apart_in_memory_are_stored_as_they_read(tmp_path: Path) -> None:
    pairs = np.arange(12.0).reshape(6, 2)
    frame = pd.DataFrame({"cell": [pairs[:, 0], pairs[::-1, 1]]}, index=["a", "b"])
    back = round_trip(tmp_path, frame, [Column("cell", "floats")])
    np.testing.assert_array_equal(back.loc["a", "cell"], [0, 2, 4, 6, 8, 10])
    np.testing.assert_array_equal(back.loc["b", "cell"], [11, 9, 7, 5, 3, 1])


def test_an_empty_table_keeps_its_types(tmp_path: Path) -> None:
    columns = [Column(f"c_{kind}", kind) for kind in CELLS]
    back = round_trip(tmp_path, pd.DataFrame(index=[]), columns)
    assert len(back) == 0
    assert list(back.columns) == [c.name for c in columns]
    assert (back["c_int"].dtype, back["c_bool"].dtype, back["c_string"].dtype) == ("Int64", "boolean", "string")


def test_some_columns_are_read_alone(tmp_path: Path) -> None:
    frame = pd.DataFrame({"n": [1, 2], "s": ["x", "y"]}, index=["a", "b"])
    round_trip(tmp_path, frame, infer_columns(frame))
    assert read_table(str(tmp_path / "table-0"), "id", context(), ["s"]).columns.tolist() == ["s"]


def test_a_hundred_thousand_rows(tmp_path: Path) -> None:
    many = np.arange(100_000)
    cells = {"n": many, "f": many / 3, "s": [f"v{n % 97}" for n in many]}
    frame = pd.DataFrame(cells, index=[f"s{n:06d}" for n in many])
    back = round_trip(tmp_path, frame.sample(frac=1, random_state=0), infer_columns(frame))
    assert back.index.tolist() == frame.index.tolist()
    np.testing.assert_array_equal(back["n"].to_numpy(np.int64), many)
    np.testing.assert_array_equal(back["f"].to_numpy(), many / 3)
    assert back["s"].tolist() == frame["s"].tolist()


# what a user's frame may hold -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("cells", "kind"),
    [
        ([1, 2], "int"),
        (pd.array([1, None], dtype="Int64"), "int"),
        (pd.Series([1, None], dtype=object), "int"),
        (np.array([1, 255], np.uint8), "int"),
        ([1.5, None], "float"),
        (np.array([1, 2], np.float32), "float"),
        ([True, False], "bool"),
        (pd.Series([True, None], dtype=object), "bool"),
        (["a", None], "string"),
        ([None, None], "string"),
        (pd.to_datetime(["2020-01-01", None]), "datetime"),
    ],
)
def test_kinds_of_columns(cells: Any, kind: str) -> None:
    assert infer_columns(pd.DataFrame({"c": cells})) == [Column("c", kind)]


@pytest.mark.parametrize(
    ("cells", "why"),
    [
        ([[1], [2]], r"'c' holds list \(\[1\]\)"),
        ([None, {"a": 1}], "'c' holds dict"),
        (["a", 1], r"'c' holds int \(1\)"),
        ([True, "yes"], "'c' holds bool"),
        ([b"x"], "'c' holds bytes"),
        ([1j], "'c' holds complex"),
        ([datetime.date(2020, 1, 1)], "'c' holds date"),
        ([pd.Timedelta(1, "s")], "'c' holds Timedelta"),
        (pd.Categorical(pd.to_datetime(["2020-01-01"])), "'c' has dates for categories"),
        ([2**63], "'c' holds ints beyond int64"),
        (pd.to_datetime(["2020-01-01"]).tz_localize("UTC"), "'c' holds dates of time zone UTC"),
        (np.array(["1500-01-01"], "datetime64[s]"), "'c' holds a date outside of 1678 to 2262"),
    ],
)
def test_what_no_column_can_hold_is_refused(cells: Any, why: str) -> None:
    with pytest.raises(ConfigError, match=why):
        infer_columns(pd.DataFrame({"c": cells}))


@pytest.mark.parametrize("names", [["a", "a"], [""], ["__x"], [3]])
def test_names_that_cannot_be_stored_are_refused(names: list[Any]) -> None:
    with pytest.raises(ConfigError, match="names must be strings, each once"):
        infer_columns(pd.DataFrame([[1] * len(names)], columns=names))


HELD = [Column("n", "int"), Column("f", "float")]


@pytest.mark.parametrize("cells", [{"n": [1], "f": [2.5]}, {"n": [3.0, None], "f": [1, 2]}, {"n": [None], "f": [None]}])
def test_frames_that_fit_a_table(cells: dict[str, Any]) -> None:
    check_columns(pd.DataFrame(cells), HELD)


@pytest.mark.parametrize(
    ("cells", "why"),
    [
        ({"n": [1]}, r"has columns \['f', 'n'\], not \['n'\]"),
        ({"n": [1], "f": [1.0], "x": [1]}, "not \\['f', 'n', 'x'\\]"),
        ({"n": [1.5], "f": [1.0]}, "'n' of the table there holds ints, not floats"),
        ({"n": [np.inf], "f": [1.0]}, "'n' of the table there holds ints, not floats"),
        ({"n": ["1"], "f": [1.0]}, "'n' of the table there holds ints, not strings"),
        ({"n": [True], "f": [1.0]}, "'n' of the table there holds ints, not bools"),
    ],
)
def test_frames_that_do_not_fit_a_table(cells: dict[str, Any], why: str) -> None:
    with pytest.raises(ConfigError, match=why):
        check_columns(pd.DataFrame(cells), HELD)


def test_whole_floats_with_gaps_go_into_a_column_of_ints(tmp_path: Path) -> None:
    uri = str(tmp_path / "t")
    create_table(uri, "id", HELD, context())
    write_rows(uri, pd.DataFrame({"n": [3.0, None], "f": [1, 2]}, index=["a", "b"]), HELD, context())
    back = read_table(uri, "id", context())
    assert back["n"].isna().tolist() == [False, True]
    assert (back["n"].iloc[0], back["f"].tolist()) == (3, [1.0, 2.0])


def test_an_id_with_a_nul_is_refused(tmp_path: Path) -> None:
    frame = pd.DataFrame({"a": [1]}, index=["a\x00"])
    with pytest.raises(ConfigError, match="holds a NUL"):
        write_rows(str(tmp_path / "t"), frame, infer_columns(frame), context())


rows_of_lists = st.lists(st.lists(st.integers(-(2**63), 2**63 - 1), max_size=5), min_size=1, max_size=12)


@quick
@given(rows_of_lists, st.data())
def test_columns_of_lists_are_read_flat_and_taken_in_any_order(
    tmp_path_factory: pytest.TempPathFactory, lists: list[list[int]], data: st.DataObject
) -> None:
    uri, columns = str(tmp_path_factory.mktemp("flat") / "table"), [Column("points", "ints")]
    frame = pd.DataFrame({"points": lists}, index=[f"v{i}" for i in range(len(lists))])
    create_table(uri, "key", columns, context())
    write_rows(uri, frame, columns, context())
    ids, flat = read_ragged(uri, "key", context(), ["points"])
    picked = data.draw(st.lists(st.integers(0, len(lists) - 1), max_size=20))
    taken = flat["points"].take(ids.get_indexer(pd.Index([f"v{i}" for i in picked], dtype=ids.dtype)))
    assert [r.tolist() for r in taken.rows()] == [lists[i] for i in picked]
    assert taken.values.dtype == np.int64
    assert len(taken.start) == len(picked) + 1


IDS = st.text(st.sampled_from("az~% 0é日ß\U0001f600"), min_size=1, max_size=4)


@quick
@given(st.lists(st.dictionaries(IDS, st.integers(0, 9), min_size=1, max_size=12), min_size=2, max_size=5))
def test_ids_of_any_script_survive_updates_and_merges(
    tmp_path_factory: pytest.TempPathFactory, updates: list[dict[str, int]]
) -> None:
    uri, columns = str(tmp_path_factory.mktemp("ids") / "table"), [Column("n", "int")]
    create_table(uri, "key", columns, context())
    expected: dict[str, int] = {}
    for number, rows in enumerate(updates):
        write_rows(uri, pd.DataFrame({"n": list(rows.values())}, index=list(rows)), columns, context())
        expected |= rows
        if number % 2:
            consolidate_table(uri, context())
        found = read_table(uri, "key", context())["n"]
        assert found.to_dict() == expected
        assert list(found.index) == sorted(expected)
