"""Splits by subject: exact, disjoint, the same whatever the order of the table."""

import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from radiodata.errors import ConfigError, PlanError
from radiodata.sampling import Column, Fractions, KFold


def table(subjects: list[str], **columns: list[str]) -> pd.DataFrame:
    return pd.DataFrame(columns, index=pd.Index(subjects))


names = st.lists(st.text("abcdef0123", min_size=1, max_size=6), min_size=6, max_size=40, unique=True)


@settings(max_examples=200, deadline=None)
@given(names, st.randoms(use_true_random=False), st.integers(0, 5))
def test_fractions_are_a_partition_free_of_order(subjects: list[str], rng, seed: int) -> None:
    parts = Fractions(val=0.25, test=0.1, seed=seed).parts(table(subjects))
    assert sorted(parts["train"] + parts["val"] + parts["test"]) == sorted(subjects)
    assert len(parts["val"]) == max(1, round(0.25 * len(subjects)))
    shuffled = list(subjects)
    rng.shuffle(shuffled)
    assert Fractions(val=0.25, test=0.1, seed=seed).parts(table(shuffled)) == parts


@settings(max_examples=100, deadline=None)
@given(names, st.integers(2, 5))
def test_folds_hold_every_subject_once(subjects: list[str], k: int) -> None:
    folds = [KFold(k, fold).parts(table(subjects)) for fold in range(k)]
    assert sorted(s for f in folds for s in f["val"]) == sorted(subjects)
    for fold in folds:
        assert not set(fold["train"]) & set(fold["val"])
        assert len(fold["train"]) + len(fold["val"]) == len(subjects)


def test_known_split_never_changes() -> None:
    """A resumed run must meet the subjects it was trained on."""
    parts = Fractions(val=0.3, seed=1).parts(table([f"sub-{i}" for i in range(10)]))
    assert parts["val"] == ["sub-2", "sub-4", "sub-8"]


def test_column_says_the_part() -> None:
    parts = Column("fold").parts(table(["c", "a", "b"], fold=["train", "val", "train"]))
    assert parts == {"train": ["b", "c"], "val": ["a"], "test": []}


@pytest.mark.parametrize(
    ("split", "columns", "error", "says"),
    [
        (Column("fold"), {"age": ["1", "2"]}, PlanError, "no column 'fold'"),
        (Column("fold"), {"fold": ["train", "holdout"]}, PlanError, "'holdout' for subject 'b'"),
        (KFold(5), {}, PlanError, "2 subjects cannot be split into 5 folds"),
        (Fractions(0.5, 0.4), {}, PlanError, "2 subjects cannot be split"),
    ],
)
def test_impossible_splits_are_refused(split, columns, error, says) -> None:
    with pytest.raises(error, match=says):
        split.parts(table(["a", "b"], **columns))


@pytest.mark.parametrize("make", [lambda: Fractions(1.0), lambda: KFold(1), lambda: KFold(5, 5)])
def test_senseless_splits_are_refused(make) -> None:
    with pytest.raises(ConfigError):
        make()
