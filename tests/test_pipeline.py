"""Pipelines: eager, lazy and by any executor the same; the grid survives; what fails is named and nothing is lost."""

from __future__ import annotations

import multiprocessing
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pipeline_functions as fns
import pytest
from conftest import MakeFiles, Tiny
from hypothesis import given, settings
from hypothesis import strategies as st

from radiodata.errors import (
    ConfigError,
    ExpressionError,
    GeometryError,
    PipelineError,
    Problem,
    RadiodataError,
    WorkerDiedError,
)
from radiodata.pipeline import Cast, Clip, Crop, LazyCollection, Resample
from radiodata.pipeline.steps import describe
from radiodata.store import Cohort, verify
from radiodata.store.loaded import LoadedVolume


def same(found: list[LoadedVolume], expected: list[LoadedVolume]) -> None:
    assert [v.obs_id for v in found] == [v.obs_id for v in expected]
    for a, b in zip(found, expected, strict=True):
        assert (a.dtype, a.shape, dict(a.updates)) == (b.dtype, b.shape, dict(b.updates))
        np.testing.assert_array_equal(a.voxels, b.voxels)
        np.testing.assert_array_equal(a.affine, b.affine)


class Reads:
    """Counts volumes that are read."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        from radiodata.pipeline import steps

        self.n = 0
        real = steps.read_box

        def counting(*args: Any, **kwargs: Any) -> Any:
            self.n += 1
            return real(*args, **kwargs)

        monkeypatch.setattr(steps, "read_box", counting)


# what comes out ----------------------------------------------------------------------------------


def test_eager_and_lazy_give_what_numpy_gives(tiny: Tiny) -> None:
    ct = tiny.cohort.CT
    eager = ct.map(fns.minus_age).map(fns.measure)
    same(eager.to_list(), ct.lazy().map(fns.minus_age).map(fns.measure).collect())
    for volume in eager:
        expected = tiny.arrays[volume.obs_id] - np.int16(tiny.obs_meta.loc[volume.obs_subject_id, "age"])
        np.testing.assert_array_equal(volume.voxels, expected)
        assert volume.updates == {
            "top": expected.max(), "mean": expected.mean(), "whose": volume.obs_subject_id.upper()
        }  # fmt: skip
        np.testing.assert_allclose(volume.affine, tiny.affines[volume.obs_id])
    assert len(eager[2:4]) == 2
    assert list(eager.obs.columns) == ["top", "mean", "whose"]


def test_updates_are_seen_by_the_next_transform_and_by_filters(tiny: Tiny) -> None:
    seen = []

    def look(volume: np.ndarray, row: Any) -> np.ndarray:
        seen.append((row["top"], row["obs_id"]))
        with pytest.raises(TypeError):
            row["top"] = 3
        return volume

    tops = {i: int(a.max()) for i, a in tiny.arrays.items() if i.endswith("CT")}
    cut = sorted(tops.values())[2]
    found = tiny.cohort.CT.lazy().map(fns.measure).filter(f"top > {cut} and age > 0").map(look).collect()
    assert [v.obs_id for v in found] == [i for i, top in tops.items() if top > cut]
    assert seen == [(top, i) for i, top in tops.items() if top > cut]


def test_a_filter_sees_the_grid_as_it_is_there(tiny: Tiny) -> None:
    lazy = tiny.cohort.CT.lazy()
    assert lazy.filter("size_x > 35").count() == 4
    assert lazy.map(fns.halve).filter("size_x > 18").count() == 3
    assert lazy.map(Crop((0, 0, 0), (8, 8, 8))).filter("size_x == 8 and spacing_z == 2.5").count() == 6
    with pytest.raises(ExpressionError, match="value_max"):
        lazy.map(fns.double).filter("value_max > 3").count()  # of the volume before: there is none of this one yet


NAMES = ["head", "tail", "sample", "iloc", "loc", "filter", "made", "subjects", "map"]


@given(st.lists(st.tuples(st.sampled_from(NAMES), st.integers(0, 4)), max_size=5))
@settings(max_examples=60, deadline=None)
def test_steps_are_done_in_the_order_they_are_written(tiny: Tiny, ops: list[tuple[str, int]]) -> None:
    lazy, ids, tables = tiny.cohort.CT.lazy().map(fns.measure), tiny.cohort.CT.ids, tiny.cohort.CT
    tops = {i: int(tiny.arrays[i].max()) for i in ids}
    for name, n in ops:
        if name == "head":
            lazy, ids = lazy.head(n), ids[:n]
        elif name == "tail":
            lazy, ids = lazy.tail(n), ids[len(ids) - n :] if n < len(ids) else ids
        elif name == "sample":
            n = min(n, len(ids))
            lazy, ids = lazy.sample(n, seed=7), tables.loc[ids].sample(n, seed=7).ids
        elif name == "iloc":
            lazy, ids = lazy.iloc[::-1], ids[::-1]
        elif name == "loc":
            chosen = ids[::2][::-1]
            lazy, ids = lazy.loc[chosen], chosen
        elif name == "filter":
            lazy, ids = lazy.filter("age > 40"), [i for i in ids if tiny.obs_meta.loc[i[:6], "age"] > 40]
        elif name == "made":
            cut = sorted(tops.values())[n]
            lazy, ids = lazy.filter(f"top >= {cut}"), [i for i in ids if tops[i] >= cut]
        elif name == "subjects":
            lazy = lazy.filter_subjects("sex == 'F'")
            ids = [i for i in ids if tiny.obs_meta.loc[i[:6], "sex"] == "F"]
        else:
            lazy = lazy.map(fns.double)
    assert [v.obs_id for v in lazy.collect()] == ids
    assert lazy.count() == len(ids)
    assert list(lazy.to_obs().index) == ids


def test_what_needs_no_voxel_reads_none(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    reads, lazy = Reads(monkeypatch), tiny.cohort.CT.lazy()
    assert lazy.filter("age > 40").head(3).count() == 3
    assert list(lazy.filter_subjects("sex == 'F'").to_obs().index) == ["sub-00_CT", "sub-02_CT", "sub-04_CT"]
    assert lazy.map(fns.double).tail(2).count() == 2
    assert lazy.map(Clip(0, 1)).map(Resample(2.0)).filter("age > 40").count() == 4
    assert reads.n == 0
    assert lazy.map(fns.double).filter("age > 40").head(1).count() == 1, "double might have changed the age"
    assert reads.n == 1, "head stops what is behind it"
    assert next(lazy.map(fns.double).iter_volumes()).obs_id == "sub-00_CT"
    assert reads.n == 2


def test_to_obs_is_what_would_be_written(tiny: Tiny, tmp_path: Path) -> None:
    lazy = tiny.cohort.CT.lazy().map(fns.halve).map(fns.measure).filter("age > 40")
    table, written = lazy.to_obs(), lazy.write(tmp_path / "c").collection.obs
    both = [c for c in table.columns if c not in ("content_hash", "shard", "slot") and not c.startswith("source_")]
    assert {"top", "mean", "whose", "size_x", "affine"} <= set(both)
    for name in both:
        assert [str(v) for v in table[name]] == [str(v) for v in written[name]]


def test_batches_are_given_together(tiny: Tiny) -> None:
    found = tiny.cohort.CT.lazy().batch_map(fns.centred, 4).collect(workers=2)
    for batch in (tiny.cohort.CT.ids[:4], tiny.cohort.CT.ids[4:]):
        middle = np.float32(np.mean([tiny.arrays[i].mean() for i in batch]))
        for volume in found:
            if volume.obs_id in batch:
                np.testing.assert_array_equal(volume.voxels, tiny.arrays[volume.obs_id].astype(np.float32) - middle)
    assert tiny.cohort.CT.lazy().batch_map(fns.centred, 4).head(5).map(fns.measure).count() == 5
    with pytest.raises(ConfigError, match="choose before"):
        tiny.cohort.CT.lazy().batch_map(fns.centred).tail(1).count()
    with pytest.raises(PipelineError, match=r"sub-00_CT.*sub-01_CT.*1 volumes of 2"):
        tiny.cohort.CT.lazy().batch_map(lambda v, r: v[:1], 2).collect()


def test_volumes_of_one_shape_are_stacked(tiny: Tiny) -> None:
    lazy = tiny.cohort.CT.lazy().map(Crop((0, 0, 0), (9, 8, 7)))
    stack = lazy.to_numpy_stack(workers=2)
    assert stack.shape == (6, 9, 8, 7)
    np.testing.assert_array_equal(stack[3], tiny.arrays["sub-03_CT"][:9, :8, :7])
    with pytest.raises(ConfigError, match=r"one shape.*\(40, 36, 30\) \(sub-00_CT\)"):
        tiny.cohort.CT.lazy().to_numpy_stack()


# who does it ---------------------------------------------------------------------------------------


@contextmanager
def dask() -> Iterator[Any]:
    from distributed import Client, LocalCluster

    with (
        LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=":0", processes=True) as cluster,
        Client(cluster) as client,
    ):
        yield client


@contextmanager
def loky() -> Iterator[Executor]:
    from loky import ProcessPoolExecutor as Loky

    with Loky(2) as pool:
        yield pool


EXECUTORS: dict[str, Callable[[], Any]] = {
    "threads": lambda: ThreadPoolExecutor(3),
    "spawned processes": lambda: ProcessPoolExecutor(2, mp_context=multiprocessing.get_context("spawn")),
    "forked processes": lambda: ProcessPoolExecutor(2, mp_context=multiprocessing.get_context("fork")),
    "loky": loky,
    "dask": dask,
}


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning", "ignore::UserWarning")
@pytest.mark.parametrize("kind", EXECUTORS)
def test_any_executor_gives_the_same(tiny: Tiny, tmp_path: Path, kind: str) -> None:
    lazy = tiny.cohort.CT.lazy().map(fns.minus_age).map(fns.halve).map(fns.measure)
    eager = tiny.cohort.CT.map(fns.minus_age).map(fns.halve).map(fns.measure)
    failed: list[Problem] = []
    with EXECUTORS[kind]() as pool:
        same(lazy.collect(executor=pool), eager.to_list())
        report = lazy.write(tmp_path / "c", executor=pool)
        batched = lazy.batch_map(fns.centred, 4).collect(executor=pool)
        some = tiny.cohort.CT.lazy().map(fns.refuse_third).collect(executor=pool, failed=failed)
        with pytest.raises(PipelineError, match=r"'sub-02_CT'.*refuse_third.*ValueError: a volume that"):
            tiny.cohort.CT.lazy().map(fns.refuse_third).collect(executor=pool)
    same(batched, lazy.batch_map(fns.centred, 4).collect())
    assert ([v.obs_id[:6] for v in some], [p.where for p in failed]) == (
        ["sub-00", "sub-01", "sub-03", "sub-04", "sub-05"], ["sub-02_CT"],
    )  # fmt: skip
    assert not verify(report.cohort).problems
    for volume, expected in zip(report.collection, eager, strict=True):
        np.testing.assert_array_equal(volume.to_numpy(), expected.voxels)


@pytest.mark.slow
def test_a_worker_that_dies_is_told_with_what_it_did_and_a_rerun_goes_on(tiny: Tiny, tmp_path: Path) -> None:
    lazy = tiny.cohort.CT.lazy().map(fns.die_at_third)
    with (
        ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool,
        pytest.raises(WorkerDiedError, match=r"sub-02_CT.*run again"),
    ):
        lazy.write(tmp_path / "c", executor=pool)
    held = Cohort(tmp_path / "c")
    assert set(held.CT.ids) <= {"sub-00_CT", "sub-01_CT"}
    assert not verify(held).problems


def test_no_more_volumes_are_under_way_than_twice_the_workers(tiny: Tiny) -> None:
    now, most, lock = [0], [0], threading.Lock()

    def count(volume: np.ndarray, row: Any) -> np.ndarray:
        with lock:
            now[0] += 1
            most[0] = max(most[0], now[0])
        return volume

    for _ in tiny.cohort.CT.lazy().map(count).iter_volumes(workers=1):
        with lock:
            now[0] -= 1
    assert most == [1]
    now[0], most[0] = 0, 0
    for _ in tiny.cohort.CT.lazy().map(count).iter_volumes(workers=2):
        with lock:
            now[0] -= 1
    assert most[0] <= 4


# what is written -----------------------------------------------------------------------------------


def test_a_derived_collection_in_the_same_cohort(make_files: MakeFiles, tmp_path: Path) -> None:
    meta = pd.DataFrame({"age": [40, 50, 60]}, ["s000", "s001", "s002"])
    cohort = Cohort.from_niftis(tmp_path / "c", make_files(3), obs_meta=meta, tiling=8)
    report = cohort.CT.lazy().filter("age > 40").map(fns.halve).map(fns.measure).write(name="small", workers=2)
    assert report.written == ["s001_small", "s002_small"]
    small, whole = report.cohort.small, report.cohort
    assert whole.collections == ("CT", "seg", "small")
    for volume in small:
        source = cohort.CT.of_subject(volume.obs_subject_id)
        np.testing.assert_array_equal(volume.to_numpy(), source[::2, ::2, ::2])
        np.testing.assert_allclose(volume.affine, source.affine @ np.diag([2, 2, 2, 1]))
        np.testing.assert_allclose(volume.spacing, np.array(source.spacing) * 2)
    assert small.obs["top"].dtype == "Int64"
    assert small.obs["mean"].tolist() == [v[::2, ::2, ::2].mean() for v in list(cohort.CT)[1:]]
    assert small.obs["value_max"].tolist() == small.obs["top"].tolist(), "statistics are of the new voxels"
    assert whole.filter("small.top > 0").subjects == ["s001", "s002"]
    assert whole.filter("small.whose == 'S002'").small.ids == ["s002_small"]
    made = small.provenance
    assert made["source"] == {"uri": cohort.uri, "collection": "CT", "version": cohort.version}
    assert [s.split("#")[0] for s in made["steps"]] == [
        "filter('age > 40')", "map(pipeline_functions.halve", "map(pipeline_functions.measure",
    ]  # fmt: skip
    assert {"radiodata", "numpy"} <= set(made["software"])
    assert not verify(whole).problems
    with pytest.raises(ConfigError, match="over itself"):
        cohort.CT.lazy().map(fns.double).write()


def test_another_cohort_takes_subjects_along(tiny: Tiny, tmp_path: Path) -> None:
    report = tiny.cohort.filter("age > 40").CT.map(fns.double).write(tmp_path / "c")
    pd.testing.assert_frame_equal(report.cohort.obs_meta, tiny.cohort.filter("age > 40").obs_meta)
    assert report.collection.ids == tiny.cohort.filter("age > 40").CT.ids
    labels = tiny.cohort.seg.lazy().map(Resample(2.0)).write(tmp_path / "c")
    assert (labels.collection.kind, len(labels.cohort), labels.collection.iloc[0].dtype) == ("label", 6, np.uint8)
    assert labels.collection.obs["label_values"].iloc[0].tolist() == [0, 1, 2]


def test_a_rerun_goes_on_and_another_pipeline_is_refused(tiny: Tiny, tmp_path: Path) -> None:
    uri, failed = tmp_path / "c", list[Problem]()
    lazy = tiny.cohort.CT.lazy().map(fns.refuse_third).map(fns.measure)
    with pytest.raises(PipelineError, match=r"'sub-02_CT' \(subject 'sub-02'\): .*refuse_third"):
        lazy.write(uri)
    assert Cohort(uri).CT.ids == ["sub-00_CT", "sub-01_CT"], "what was written stays"
    report = lazy.write(uri, failed=failed)
    assert (report.present, report.written) == (["sub-00_CT", "sub-01_CT"], ["sub-03_CT", "sub-04_CT", "sub-05_CT"])
    assert [p.where for p in report.failed] == ["sub-02_CT"] == [p.where for p in failed]
    again = lazy.write(uri, failed=[])
    assert (len(again.present), again.written, len(again.failed)) == (5, [], 1)
    with pytest.raises(ConfigError, match="made otherwise"):
        tiny.cohort.CT.lazy().map(fns.double).write(uri)
    with pytest.raises(ConfigError, match=r"made otherwise \(ingested"):
        tiny.cohort.seg.lazy().map(fns.double).write(tiny.cohort.uri, "CT")
    assert not verify(Cohort(uri)).problems


def test_a_rerun_after_the_source_changed_is_refused(make_files: MakeFiles, tmp_path: Path) -> None:
    cohort = Cohort.from_niftis(tmp_path / "c", make_files(2), tiling=8)
    lazy = cohort.CT.lazy().map(fns.double)
    lazy.write(tmp_path / "d")
    other = make_files(1, first=5, folder=tmp_path / "other")
    changed = cohort.remove(subjects="s000").append(other, subject_id=lambda _: "s000")
    with pytest.raises(ConfigError, match=r"\['s000_CT'\].*changed since"):
        changed.CT.lazy().map(fns.double).write(tmp_path / "d")


def test_failures_are_listed_once_where_two_passes_are_needed(tiny: Tiny) -> None:
    failed: list[Problem] = []
    lazy = tiny.cohort.CT.lazy().map(fns.refuse_third).map(fns.measure).filter("top > 0").tail(3)
    assert [v.obs_id[:6] for v in lazy.collect(failed=failed)] == ["sub-03", "sub-04", "sub-05"]
    assert [p.where for p in failed] == ["sub-02_CT"]


def test_progress_is_told_and_shown(tiny: Tiny, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    told: list[tuple[int, int]] = []
    tiny.cohort.CT.lazy().write(tmp_path / "c", progress=lambda *at: told.append(at))
    assert told[-1] == (6, 6)
    assert [d for d, _ in told[:6]] == [1, 2, 3, 4, 5, 6]
    tiny.cohort.CT.lazy().write(tmp_path / "d", progress=True)
    assert "write" in capsys.readouterr().out


def test_columns_that_widen(tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from radiodata.store.writing import Batches

    monkeypatch.setattr(Batches, "SIZE", 1)
    monkeypatch.setattr(Batches, "SECONDS", 0.0)
    values = {
        "a": [1, 2, 2.5, None, 7, 8],
        "b": [None, None, "x", None, "y", "z"],
        "c": [None, None, None, 1.5, 2, None],
    }

    def note(volume: np.ndarray, row: Any) -> Any:
        n = int(row["obs_subject_id"][-1])
        return volume, {name: column[n] for name, column in values.items()}

    obs = tiny.cohort.CT.lazy().map(note).write(tmp_path / "c").collection.obs
    for name, column in values.items():
        assert [None if pd.isna(v) else v for v in obs[name]] == column
    with pytest.raises(ConfigError, match="'a'"):
        tiny.cohort.CT.lazy().map(lambda v, r: (v, {"a": 1 if r["age"] > 60 else "old"})).write(tmp_path / "d")


# what is refused -----------------------------------------------------------------------------------


REFUSED: list[tuple[Any, type[RadiodataError], str]] = [
    (
        lambda v, r: v[1:],
        PipelineError,
        r"'sub-00_CT'.*shape from \(40, 36, 30\) to \(39, 36, 30\).*affine",
    ),
    (lambda v, r: v[0], PipelineError, r"int16 of shape \(36, 30\)"),
    (lambda v, r: "x", PipelineError, "of shape"),
    (lambda v, r: v[:0], PipelineError, "of shape"),
    (lambda v, r: (v, 3), PipelineError, "updates are int"),
    (lambda v, r: (v, {"slot": 3}), PipelineError, "'slot'.*own"),
    (lambda v, r: (v, {3: 3}), PipelineError, "not a text"),
    (lambda v, r: (v, {"x": [1, 2]}), PipelineError, "'x' is list"),
    (lambda v, r: (v, {"affine": np.zeros((4, 4))}), PipelineError, "inverted"),
    (lambda v, r: (v, {"affine": np.eye(3)}), PipelineError, "inverted"),
    (lambda v, r: r["nothing"], PipelineError, "KeyError: 'nothing'"),
]


@pytest.mark.parametrize(("fn", "error", "why"), REFUSED)
def test_what_a_transform_may_not_give(
    tiny: Tiny, tmp_path: Path, fn: Any, error: type[RadiodataError], why: str
) -> None:
    for run in (lambda: tiny.cohort.CT.map(fn), lambda: tiny.cohort.CT.lazy().map(fn).write(tmp_path / "c")):
        with pytest.raises(error, match=why):
            run()
    assert len(Cohort(tmp_path / "c")) == 0


def test_labels_stay_whole_numbers(tiny: Tiny, tmp_path: Path) -> None:
    with pytest.raises(PipelineError, match="labels are whole numbers"):
        tiny.cohort.seg.lazy().map(Cast("float32")).write(tmp_path / "c")
    image = tiny.cohort.seg.lazy().map(Cast("float32")).write(tmp_path / "d", kind="image")
    assert (image.collection.kind, image.collection.iloc[0].dtype) == ("image", np.float32)


def test_what_cannot_be_asked(tiny: Tiny, tmp_path: Path) -> None:
    lazy = tiny.cohort.CT.lazy()
    asked = [
        lambda: lazy.map("x"),
        lambda: lazy.batch_map(fns.centred, 0),
        lambda: lazy.head(-1),
        lambda: lazy.collect(workers=0),
        lambda: lazy.collect(executor=3),
        lambda: lazy.filter("age >"),
        lambda: lazy.filter_subjects("nothing > 3"),
        lambda: lazy.write(tmp_path / "c", kind="mask"),
        lambda: lazy.write(tmp_path / "c", "a/b"),
        lambda: lazy.filter("nothing > 3").count(),
        lambda: lazy.map(fns.double).filter("nothing > 3").count(),
    ]
    for what in asked:
        with pytest.raises((ConfigError, ExpressionError)):
            what()
    assert not (tmp_path / "c").exists()
    assert isinstance(lazy, LazyCollection)
    assert (
        repr(lazy.head(3).filter("age > 4").map(Clip(0, 1)))
        == "CT.lazy().head(3).filter('age > 4').map(Clip(low=0, high=1))"
    )


def test_code_is_told_apart() -> None:
    def made(n: int) -> Any:
        return (lambda v, r: v + 1) if n else (lambda v, r: v + 2)

    assert describe(made(0)) != describe(made(1))
    assert describe(made(0)) == describe(made(0))
    assert "0x" not in describe(object())
    assert GeometryError is not PipelineError
