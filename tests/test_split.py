"""Splits by subject: exact, disjoint, the same whatever the order of the table."""

import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from radiodata.errors import ConfigError, PlanError
from radiodata.sampling import Column, Fractions, Frozen, KFold


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
        (Fractions(stratify="site"), {"age": ["1", "2"]}, PlanError, "no column 'site' to stratify by"),
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


@settings(max_examples=200, deadline=None)
@given(names, st.integers(2, 5), st.integers(0, 5), st.randoms(use_true_random=False))
def test_strata_are_shared_out_alike(subjects: list[str], k: int, seed: int, rng) -> None:
    kinds = [rng.choice(["a", "a", "b", None]) for _ in subjects]
    frame = table(subjects, kind=kinds)
    folds = [KFold(k, fold, seed, "kind").parts(frame)["val"] for fold in range(k)]
    assert sorted(s for f in folds for s in f) == sorted(subjects)
    of = dict(zip(subjects, kinds, strict=True))
    for kind in set(kinds):
        shares = [sum(of[s] == kind for s in fold) for fold in folds]
        assert max(shares) - min(shares) <= 1
    parts = Fractions(val=0.5, seed=seed, stratify="kind").parts(frame)
    assert sorted(parts["train"] + parts["val"]) == sorted(subjects)
    for kind in set(kinds):
        assert abs(sum(of[s] == kind for s in parts["val"]) - kinds.count(kind) / 2) <= 2


def test_numbers_are_stratified_by_quarters() -> None:
    ages = {f"s{i:02d}": float(i) for i in range(40)}
    frame = pd.DataFrame({"age": list(ages.values())}, index=pd.Index(list(ages)))
    val = Fractions(val=0.2, stratify="age").parts(frame)["val"]
    assert [sum(10 * q <= ages[s] < 10 * (q + 1) for s in val) for q in range(4)] == [2, 2, 2, 2]


def test_a_frozen_split_is_what_it_was(tmp_path) -> None:
    frame = table(["a", "b", "c", "d"])
    parts = Fractions(val=0.25, test=0.25).parts(frame)
    frozen = Frozen.save(tmp_path / "split.json", parts, manifest="abc")
    assert frozen.parts(table(["d", "e", "a", "c", "b"])) == parts
    with pytest.raises(PlanError, match=r"subject '.' of '(train|val|test)' is not in the cohort"):
        frozen.parts(table(["a", "b"]))
    with pytest.raises(PlanError, match="is in 'train' and in 'val'"):
        Frozen.save(tmp_path / "twice.json", {"train": ["a"], "val": ["a"]}).parts(frame)
    with pytest.raises(ConfigError, match="No such file"):
        Frozen(str(tmp_path / "none.json")).parts(frame)
    (tmp_path / "odd.json").write_text("[1]")
    with pytest.raises(ConfigError, match="lists of subjects"):
        Frozen(str(tmp_path / "odd.json")).parts(frame)
    (tmp_path / "broken.json").write_text("{")
    with pytest.raises(ConfigError, match="no JSON"):
        Frozen(str(tmp_path / "broken.json")).parts(frame)
