"""Random sequences of changes, crashes and reads of a cohort, against a model of plain dicts."""

from __future__ import annotations

import copy
import shutil
import tempfile
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import pandas as pd
import pytest
from conftest import ras_affine, save
from effort import tries
from hypothesis import HealthCheck, seed, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, initialize, invariant, precondition, rule

from radiodata.errors import ConfigError, IngestError, ObsNotFoundError
from radiodata.ingest import ingest_niftis
from radiodata.store import Cohort, commits, verify
from radiodata.store.writing import Writer

VALUES: dict[str, Any] = {
    "int": st.integers(-(2**60), 2**60),
    "float": st.floats(-1e6, 1e6),
    "string": st.text("abcä'\" ", max_size=6),
    "bool": st.booleans(),
}
DTYPES = {"int": "Int64", "float": "float64", "string": "string", "bool": "boolean"}
seeds = st.integers(0, 2**32 - 1)


@dataclass
class Collection:
    kind: str
    voxels: dict[str, np.ndarray] = field(default_factory=dict)  # by obs_id
    subject: dict[str, str] = field(default_factory=dict)
    columns: dict[str, str] = field(default_factory=dict)
    cells: dict[str, dict[str, Any]] = field(default_factory=dict)

    def drop(self, gone: set[str]) -> None:
        for obs_id in [i for i, s in self.subject.items() if s in gone]:
            for held in (self.voxels, self.subject, self.cells):
                held.pop(obs_id, None)


@dataclass
class Model:
    """What a cohort should hold."""

    columns: dict[str, str] = field(default_factory=dict)
    subjects: dict[str, dict[str, Any]] = field(default_factory=dict)
    collections: dict[str, Collection] = field(default_factory=dict)


class Crash(BaseException):
    """The process is gone: nothing of it is cleaned."""


def frame(rows: dict[str, dict[str, Any]], columns: dict[str, str]) -> pd.DataFrame:
    made = {n: pd.array([r.get(n) for r in rows.values()], dtype=DTYPES[k]) for n, k in columns.items()}
    return pd.DataFrame(made, index=list(rows))


def plain(cell: Any) -> Any:
    if cell is None or cell is pd.NA or cell != cell:
        return None
    return cell.item() if isinstance(cell, np.generic) else cell


def same_table(table: pd.DataFrame, rows: dict[str, dict[str, Any]], columns: dict[str, str]) -> None:
    assert list(table.index) == sorted(rows)
    assert {n: str(table[n].dtype) for n in columns} == {n: DTYPES[k] for n, k in columns.items()}
    for name in columns:
        assert [plain(c) for c in table[name]] == [rows[i].get(name) for i in sorted(rows)], name


def same(cohort: Cohort, model: Model, *, voxels: bool) -> None:
    """Check a cohort against the model: tables with types, links, and all voxels, or none of them."""
    assert set(cohort.collections) == set(model.collections)
    same_table(cohort.obs_meta, model.subjects, model.columns)
    assert set(cohort.obs_meta.columns) == set(model.columns)
    for name, held in model.collections.items():
        collection = cohort[name]
        assert collection.kind == held.kind
        some = {n: collection._column(n) for n in ("obs_subject_id", *held.columns)}  # quicker than all of them
        obs = collection.obs if voxels else pd.DataFrame(some, index=collection.ids)
        same_table(obs, {i: held.cells.get(i, {}) for i in held.voxels}, held.columns)
        assert dict(obs["obs_subject_id"]) == held.subject
        assert set(held.subject.values()) <= set(model.subjects)
        for volume in collection if voxels else ():
            np.testing.assert_array_equal(volume.to_numpy(), held.voxels[volume.obs_id])


@contextmanager
def crashing(uri: Path, *, after: bool) -> Any:
    """Let the process die just before the commit shows, or just after."""

    def create(*arguments: Any) -> None:
        if after:
            real(*arguments)
        raise Crash

    real = commits.create
    with (
        patch.object(commits, "create", create),
        patch.object(Writer, "_discard", lambda *a: None),
        patch.object(Writer, "__exit__", lambda *a: None),
        pytest.raises(Crash),
    ):
        yield
    for mark in (uri / "__runs").iterdir():
        run, machine, pid, _, started = mark.name.split(".")
        mark.rename(mark.with_name(".".join([run, machine, pid, "1", started])))  # its pid is that of another now


class CohortMachine(RuleBasedStateMachine):
    """Changes of one cohort; what is drawn by seed needs no shrinking of its own."""

    steps = 0
    collections = Bundle("collections")

    def __init__(self) -> None:
        super().__init__()
        self.root = Path(tempfile.mkdtemp(prefix="stateful-"))
        self.uri = self.root / "cohort"
        self.model = Model()
        self.history: dict[int, Model] = {}
        self.older: list[tuple[Cohort, Model]] = []
        self.made = 0
        self.cohort: Cohort

    def teardown(self) -> None:
        if hasattr(self, "cohort"):
            same(Cohort(self.uri), self.model, voxels=True)
            assert not verify(Cohort(self.uri)).problems
            assert not list((self.uri / "__runs").iterdir()) or self.crashed
        shutil.rmtree(self.root)

    # what is written

    def fresh(self, prefix: str) -> str:
        self.made += 1
        return f"{prefix}{self.made}"

    def file(self, name: str, subject: str) -> tuple[Path, np.ndarray]:
        """A file of a volume that is like no other."""
        label = name.startswith("seg")
        rng = np.random.default_rng([self.made, len(name), *subject.encode(), *name.encode()])
        shape = tuple(np.random.default_rng([*subject.encode()]).integers(3, 9, 3))
        voxels = rng.integers(0, 5 if label else 30000, shape).astype(np.uint8 if label else np.int16)
        return save(voxels, ras_affine(0), self.root / "files" / self.fresh(name) / f"{subject}.nii"), voxels

    def rows(self, subjects: list[str], columns: dict[str, str], data: Any) -> dict[str, dict[str, Any]]:
        kinds = {n: st.none() | VALUES[k] for n, k in columns.items()}
        return {s: data.draw(st.fixed_dictionaries(kinds)) for s in subjects}

    def done(self, cohort: Cohort, model: Model) -> None:
        """A change was made: what was opened before is as it was."""
        self.older = [*self.older[-1:], (self.cohort, copy.deepcopy(self.model))] if hasattr(self, "cohort") else []
        self.cohort, self.model, self.crashed = cohort, model, False
        self.history[cohort.version] = copy.deepcopy(model)

    def change(self, act: Callable[[], Cohort], model: Model, crash: str) -> None:
        """Change the cohort, or die in the middle of it."""
        if crash == "no":
            self.done(act(), model)
            return
        with crashing(self.uri, after=crash == "after"):
            act()
        self.crashed = True
        if crash == "after":
            self.done(Cohort(self.uri), model)
            self.crashed = True

    crash = st.sampled_from(["no", "no", "no", "before", "after"])

    def grown(self, names: list[str], subjects: list[str]) -> tuple[dict[str, list[Path]], Model]:
        """Files of subjects in collections, and the model with them."""
        model, files = copy.deepcopy(self.model), {name: [] for name in names}
        for name in names:
            held = model.collections.setdefault(name, Collection("label" if name.startswith("seg") else "image"))
            for subject in subjects:
                path, voxels = self.file(name, subject)
                files[name].append(path)
                obs_id = f"{subject}_{name}"
                held.voxels[obs_id], held.subject[obs_id] = voxels, subject
        return files, model

    @initialize(data=st.data(), kinds=st.lists(st.sampled_from([*VALUES]), max_size=3), many=st.integers(1, 3))
    def begin(self, data: Any, kinds: list[str], many: int) -> None:
        self.crashed = False
        self.model.columns = {f"c{i}": kind for i, kind in enumerate(kinds)}
        subjects = [self.fresh("s") for _ in range(many)]
        files, model = self.grown(["CT", "seg"], subjects)
        model.subjects = self.rows(subjects, model.columns, data)
        ingest_niftis(str(self.uri), files, obs_meta=frame(model.subjects, model.columns), tiling=4)
        self.done(Cohort(self.uri), model)

    @rule(data=st.data(), many=st.integers(1, 2), crash=crash)
    def append(self, data: Any, many: int, crash: str) -> None:
        named = [n for n in self.model.collections if n[:2] in ("CT", "se")]  # those that were ingested
        if not named:
            return
        names = data.draw(st.lists(st.sampled_from(sorted(named)), min_size=1, unique=True))
        subjects = [self.fresh("s") for _ in range(many)]
        files, model = self.grown(names, subjects)
        rows = self.rows(subjects, model.columns, data)
        model.subjects |= rows
        self.change(lambda: self.cohort.append(files, obs_meta=frame(rows, model.columns), workers=1), model, crash)

    @rule(data=st.data())
    def append_with_a_damaged_file(self, data: Any) -> None:
        named = sorted(n for n in self.model.collections if n[:2] in ("CT", "se"))
        if not named:
            return
        subjects = [self.fresh("s"), self.fresh("s")]
        files, model = self.grown(named, subjects)
        bad = files[data.draw(st.sampled_from(named))][1]
        bad.write_bytes(bad.read_bytes()[:-7])
        with pytest.raises(IngestError, match="truncated"):
            self.cohort.append(files, obs_meta=frame(self.rows(subjects, model.columns, data), model.columns))

    @rule(label=st.booleans(), data=st.data(), crash=crash)
    def add_collection(self, label: bool, data: Any, crash: str) -> None:
        if not self.model.subjects:
            return
        some = data.draw(st.lists(st.sampled_from(sorted(self.model.subjects)), min_size=1, max_size=3, unique=True))
        name = self.fresh("seg" if label else "CT")
        files, model = self.grown([name], some)
        self.change(lambda: self.cohort.add_collection(name, files[name], workers=1), model, crash)

    @rule(data=st.data(), crash=crash)
    def remove_subjects(self, data: Any, crash: str) -> None:
        if not self.model.subjects:
            return
        gone = data.draw(st.lists(st.sampled_from(sorted(self.model.subjects)), min_size=1, max_size=2, unique=True))
        model = copy.deepcopy(self.model)
        for held in model.collections.values():
            held.drop(set(gone))
        model.subjects = {s: row for s, row in model.subjects.items() if s not in gone}
        self.change(lambda: self.cohort.remove(subjects=gone), model, crash)

    @precondition(lambda self: len(self.model.collections) > 2)
    @rule(data=st.data(), crash=crash)
    def remove_collection(self, data: Any, crash: str) -> None:
        name = data.draw(st.sampled_from(sorted(self.model.collections)))
        model = copy.deepcopy(self.model)
        del model.collections[name]
        self.change(lambda: self.cohort.remove(collection=name), model, crash)

    @rule(data=st.data(), crash=crash)
    def rename(self, data: Any, crash: str) -> None:
        name = data.draw(st.sampled_from(sorted(self.model.collections)))
        to = self.fresh("named")
        model = copy.deepcopy(self.model)
        model.collections = {to if n == name else n: c for n, c in model.collections.items()}
        self.change(lambda: self.cohort.rename_collection(name, to), model, crash)

    @rule(data=st.data(), new=st.booleans(), kind=st.sampled_from([*VALUES]), crash=crash)
    def update_subjects(self, data: Any, new: bool, kind: str, crash: str) -> None:
        model = copy.deepcopy(self.model)
        if not model.subjects or (not new and not model.columns):
            return
        name = self.fresh("c") if new else data.draw(st.sampled_from(sorted(model.columns)))
        model.columns.setdefault(name, kind)
        some = data.draw(st.lists(st.sampled_from(sorted(model.subjects)), min_size=1, unique=True))
        rows = self.rows(some, {name: model.columns[name]}, data)
        for subject, row in rows.items():
            model.subjects[subject] |= row
        given = frame(rows, {name: model.columns[name]})
        self.change(lambda: self.cohort.update_obs_meta(given), model, crash)

    @rule(data=st.data(), new=st.booleans(), kind=st.sampled_from([*VALUES]), crash=crash)
    def update_volumes(self, data: Any, new: bool, kind: str, crash: str) -> None:
        model = copy.deepcopy(self.model)
        collection = data.draw(st.sampled_from(sorted(model.collections)))
        held = model.collections[collection]
        if not held.voxels or (not new and not held.columns):
            return
        name = self.fresh("v") if new else data.draw(st.sampled_from(sorted(held.columns)))
        held.columns.setdefault(name, kind)
        some = data.draw(st.lists(st.sampled_from(sorted(held.voxels)), min_size=1, unique=True))
        rows = self.rows(some, {name: held.columns[name]}, data)
        for obs_id, row in rows.items():
            held.cells[obs_id] = {**held.cells.get(obs_id, {}), **row}
        given = frame(rows, {name: held.columns[name]})
        self.change(lambda: self.cohort.update_obs(collection, given), model, crash)

    @rule(data=st.data(), crash=crash)
    def drop_column(self, data: Any, crash: str) -> None:
        model = copy.deepcopy(self.model)
        if not model.columns:
            return
        name = data.draw(st.sampled_from(sorted(model.columns)))
        del model.columns[name]
        for row in model.subjects.values():
            row.pop(name, None)
        self.change(lambda: self.cohort.drop_obs_meta(name), model, crash)

    @rule(data=st.data(), plus=st.integers(1, 99), many=st.integers(1, 4), workers=st.integers(1, 2))
    def map_and_write(self, data: Any, plus: int, many: int, workers: int) -> None:
        source = data.draw(st.sampled_from(sorted(self.model.collections)))
        held = self.model.collections[source]
        if not held.voxels:
            return
        name, model = self.fresh("made"), copy.deepcopy(self.model)

        def add(volume: np.ndarray, row: Any) -> Any:
            return (volume + plus).astype(volume.dtype), {"plus": plus, "of": str(row["obs_subject_id"])}

        made = model.collections[name] = Collection(held.kind, columns={"plus": "int", "of": "string"})
        for obs_id in sorted(held.voxels)[:many]:
            subject = held.subject[obs_id]
            stem = obs_id[: -len(source) - 1] if obs_id.endswith(f"_{source}") else obs_id
            made.voxels[f"{stem}_{name}"] = (held.voxels[obs_id] + plus).astype(held.voxels[obs_id].dtype)
            made.subject[f"{stem}_{name}"] = subject
            made.cells[f"{stem}_{name}"] = {"plus": plus, "of": subject}
        lazy = self.cohort[source].lazy().head(many).map(add)
        report = lazy.write(name=name, workers=workers)
        assert sorted(report.written) == sorted(made.voxels)
        assert report.cohort[name].provenance["source"]["collection"] == source
        self.done(report.cohort, model)

    @rule()
    def optimize(self) -> None:
        self.history, self.older = {}, []
        self.cohort = self.cohort.optimize()
        self.crashed = False
        assert self.cohort.versions == [self.cohort.version]
        self.history[self.cohort.version] = copy.deepcopy(self.model)
        self.older = []

    # what is refused, and changes nothing

    @rule(data=st.data())
    def what_makes_no_sense_is_refused(self, data: Any) -> None:
        name = sorted(self.model.collections)[0]
        with pytest.raises(ObsNotFoundError):
            self.cohort.remove(subjects=["nobody", *sorted(self.model.subjects)[:1]])
        with pytest.raises(ObsNotFoundError):
            self.cohort.update_obs_meta(pd.DataFrame({"x": [1]}, index=["nobody"]))
        with pytest.raises(ConfigError):
            self.cohort.rename_collection(name, sorted(self.model.collections)[-1])
        with pytest.raises(ConfigError):
            self.cohort.update_obs(name, pd.DataFrame({"spacing_x": [1.0]}, index=sorted(self.cohort[name].ids)[:1]))

    # what is read

    @rule(seed=seeds)
    def views(self, seed: int) -> None:
        rng = np.random.default_rng(seed)
        subjects = sorted(self.model.subjects)
        for name, held in self.model.collections.items():
            collection, ids = self.cohort[name], sorted(held.voxels)
            at = sorted(rng.choice(len(ids), len(ids) // 2, replace=False).tolist()) if ids else []
            assert collection.iloc[at].ids == [ids[i] for i in at]
            assert collection.tail(2).ids == ids[-2:]
            some = [ids[i] for i in rng.permutation(len(ids))[:2]]
            assert collection.loc[some].ids == some
            drawn = collection.sample(len(at), seed=seed).ids
            assert len(set(drawn)) == len(at)
            assert set(drawn) <= set(ids)
        few = [subjects[i] for i in rng.permutation(len(subjects))[:3]]
        view = self.cohort.loc[few]
        assert view.subjects == few
        for name, held in self.model.collections.items():
            assert set(view[name].ids) == {i for i, s in held.subject.items() if s in few}
            if len(view[name]):
                volume = view[name].iloc[int(rng.integers(len(view[name])))]
                np.testing.assert_array_equal(volume[1:3, :2, :], held.voxels[volume.obs_id][1:3, :2, :])
        rest = self.cohort - view
        assert sorted([*rest.subjects, *few]) == subjects
        assert (rest & view).subjects == []

    @rule(data=st.data())
    def filters(self, data: Any) -> None:
        named = sorted(n for n, k in self.model.columns.items() if k in ("int", "float"))
        if not named:
            return
        name = data.draw(st.sampled_from(named))
        known = [r[name] for r in self.model.subjects.values() if r.get(name) is not None]
        limit = data.draw(st.sampled_from(known) if known else st.integers(-5, 5))
        held = {s: self.model.subjects[s].get(name) for s in self.model.subjects}
        above = self.cohort.filter(f"{name} >= {limit!r}")
        assert above.subjects == sorted(s for s, v in held.items() if v is not None and v >= limit)
        assert self.cohort.filter(f"{name} is null").subjects == sorted(s for s, v in held.items() if v is None)
        below = self.cohort.filter(f"not {name} >= {limit!r}")
        assert below.subjects == sorted(s for s, v in held.items() if v is not None and v < limit)
        for collection, of in self.model.collections.items():
            inside = above.subjects
            assert set(above[collection].ids) == {i for i, s in of.subject.items() if s in inside}
            assert set(self.cohort[collection].filter(f"{name} >= {limit!r}").ids) == set(above[collection].ids)

    @rule()
    def reopen(self) -> None:
        self.cohort = Cohort(self.uri)
        same(self.cohort, self.model, voxels=True)

    @rule(data=st.data())
    def go_back(self, data: Any) -> None:
        version = data.draw(st.sampled_from(sorted(self.history)))
        same(Cohort(self.uri, at=version), self.history[version], voxels=True)

    @rule()
    def what_was_opened_before_is_as_it_was(self) -> None:
        for cohort, model in self.older:
            same(cohort, model, voxels=True)

    @invariant()
    def it_is_what_it_should_be(self) -> None:
        CohortMachine.steps += 1
        if hasattr(self, "cohort"):
            same(self.cohort, self.model, voxels=False)


def run(examples: int, steps: int, part: int = 0) -> None:
    CohortMachine.steps = 0
    case = CohortMachine.TestCase
    case.settings = settings(
        max_examples=examples,
        stateful_step_count=steps,
        deadline=None,
        suppress_health_check=list(HealthCheck),
        database=None,
    )
    seed(part)(CohortMachine)
    case("runTest").runTest()


def test_a_cohort_is_what_a_plain_model_of_it_says() -> None:
    run(2, 15)


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("part", range(4))  # two thousand steps in all, when proof is asked for
def test_a_cohort_is_what_a_plain_model_of_it_says_for_thousands_of_steps(part: int) -> None:
    run(tries(2, 3, 15), 50, part)
    assert CohortMachine.steps >= tries(30, 60, 300)
