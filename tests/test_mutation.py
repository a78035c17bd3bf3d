"""Every write is one commit: whole, checked against the rest of the cohort, and without a trace where it is refused."""

from __future__ import annotations

import multiprocessing
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from conftest import MakeFiles

from radiodata.errors import ConfigError, IngestError, ObsNotFoundError, RadiodataError, StateMismatchError
from radiodata.store import Cohort, verify

Images = dict[str, list[Path]]


@pytest.fixture
def cohort(make_files: MakeFiles, tmp_path: Path) -> Cohort:
    meta = pd.DataFrame({"age": pd.array([50, None, 70], "Int64"), "sex": ["F", "M", None]}, ["s000", "s001", "s002"])
    return Cohort.from_niftis(tmp_path / "cohort", make_files(3), obs_meta=meta, tiling=8)


def rows(first: int, n: int = 1) -> pd.DataFrame:
    return pd.DataFrame({"age": [33] * n, "sex": ["F"] * n}, [f"s{first + k:03d}" for k in range(n)])


def on_disk(uri: str) -> set[str]:
    """Files that hold voxels or tables; tile statistics of refused volumes may stay, unseen."""
    root = Path(uri)
    return {
        str(p.relative_to(root)) for p in root.rglob("*") if p.is_file() and "/tiles/" not in f"/{p.relative_to(root)}"
    }


def unchanged(cohort: Cohort, before: set[str]) -> None:
    again = Cohort(cohort.uri)
    assert again.version == cohort.version
    assert again.freeze() == cohort.freeze()
    assert on_disk(cohort.uri) == before


def whole(cohort: Cohort) -> None:
    """No dangling row, and every voxel as it was ingested."""
    for name in cohort.collections:
        assert set(cohort[name].obs["obs_subject_id"]) <= set(cohort.subjects)
    found = verify(cohort)
    assert not found.problems
    assert found.checked == sum(len(cohort[n]) for n in cohort.collections)


# append, remove, rename ------------------------------------------------------------------------


def test_append_gives_a_new_cohort_and_leaves_the_old(cohort: Cohort, make_files: MakeFiles) -> None:
    voxels = cohort.CT.loc["s001_CT"].to_numpy()
    grown = cohort.append(make_files(2, first=3), obs_meta=rows(3, 2))
    assert (len(cohort), len(cohort.CT), len(grown), len(grown.seg)) == (3, 3, 5, 5)
    assert grown.version == cohort.version + 1
    assert Cohort(cohort.uri).subjects == grown.subjects
    assert Cohort(cohort.uri, at=cohort.version).subjects == cohort.subjects
    np.testing.assert_array_equal(grown.CT.loc["s001_CT"].to_numpy(), voxels)
    assert grown.obs_meta.dtypes.to_dict() == cohort.obs_meta.dtypes.to_dict()
    whole(grown)


def test_append_of_a_damaged_file_changes_nothing(cohort: Cohort, make_files: MakeFiles) -> None:
    images, before = make_files(3, first=3), on_disk(cohort.uri)
    good = images["seg"][1].read_bytes()
    images["seg"][1].write_bytes(good[:-5] + bytes([good[-5] ^ 1]) + good[-4:])
    with pytest.raises(IngestError, match="nothing was written") as caught:
        cohort.append(images, obs_meta=rows(3, 3))
    assert [Path(p.where).name for p in caught.value.problems] == ["s004.nii.gz"]
    unchanged(cohort, before)
    images["seg"][1].write_bytes(good)
    whole(cohort.append(images, obs_meta=rows(3, 3)))


@pytest.mark.parametrize(
    ("table", "why"),
    [
        (pd.DataFrame({"age": [1]}, ["s003"]), "columns"),
        (pd.DataFrame({"age": ["old"], "sex": ["F"]}, ["s003"]), "'age'.*int"),
        (None, "columns"),
    ],
)
def test_append_of_a_table_that_does_not_fit_changes_nothing(
    cohort: Cohort, make_files: MakeFiles, table: pd.DataFrame | None, why: str
) -> None:
    before = on_disk(cohort.uri)
    with pytest.raises(ConfigError, match=why):
        cohort.append(make_files(1, first=3), obs_meta=table)
    unchanged(cohort, before)


def test_a_collection_is_added_to_some_subjects(cohort: Cohort, make_files: MakeFiles) -> None:
    images = make_files(2)
    grown = cohort.add_collection("PT", images["CT"])
    assert [(v.obs_id, v.obs_subject_id) for v in grown.PT] == [("s000_PT", "s000"), ("s001_PT", "s001")]
    np.testing.assert_array_equal(grown.PT.iloc[1].to_numpy(), cohort.CT.iloc[1].to_numpy())
    assert len(grown.filter("sex == 'M'").PT) == 1
    assert len(grown.loc["s002"].PT) == 0
    with pytest.raises(ConfigError, match="use append"):
        grown.add_collection("PT", images["CT"])
    before = on_disk(cohort.uri)
    with pytest.raises(ObsNotFoundError, match="s003"):
        grown.add_collection("MR", make_files(4)["CT"])
    unchanged(grown, before)


def test_removed_subjects_are_gone_with_their_volumes(cohort: Cohort) -> None:
    less = cohort.remove(subjects=["s001"])
    assert (less.subjects, less.CT.ids, less.seg.ids) == (
        ["s000", "s002"],
        ["s000_CT", "s002_CT"],
        ["s000_seg", "s002_seg"],
    )
    whole(less)
    whole(cohort)  # what was opened before can still be read
    with pytest.raises(ObsNotFoundError, match="s001"):
        less.remove(subjects="s001")
    assert Cohort(cohort.uri).version == less.version


def test_a_removed_subject_may_come_back_with_other_voxels(
    cohort: Cohort, make_files: MakeFiles, tmp_path: Path
) -> None:
    old = cohort.CT.loc["s000_CT"].to_numpy()
    images = make_files(1, first=7, folder=tmp_path / "other")
    again = cohort.remove(subjects="s000").append(images, obs_meta=rows(0), subject_id=lambda _: "s000")
    assert not np.array_equal(again.CT.loc["s000_CT"].to_numpy().shape, old.shape) or not np.array_equal(
        again.CT.loc["s000_CT"].to_numpy(), old
    )
    np.testing.assert_array_equal(cohort.CT.loc["s000_CT"].to_numpy(), old)
    whole(again)


def test_a_collection_is_removed_renamed_and_its_name_used_again(cohort: Cohort, make_files: MakeFiles) -> None:
    renamed = cohort.rename_collection("CT", "ct_portal")
    assert renamed.collections == ("ct_portal", "seg") or set(renamed.collections) == {"ct_portal", "seg"}
    np.testing.assert_array_equal(renamed.ct_portal.iloc[0].to_numpy(), cohort.CT.iloc[0].to_numpy())
    less = renamed.remove(collection="seg")
    assert less.collections == ("ct_portal",)
    assert len(less) == 3
    for name, why in (("seg", "no collection"), ("ct_portal", "already"), ("a/b", "letters")):
        with pytest.raises(RadiodataError, match=why):
            less.rename_collection("seg" if name == "seg" else "ct_portal", name)
    with pytest.raises(ConfigError, match=r"'ct_portal'.*holds \['s000_CT', 's001_CT'\]"):  # ids are of the cohort
        less.add_collection("CT", make_files(2)["CT"])
    again = less.add_collection("seg", make_files(2)["seg"], labels=())
    assert (len(again.seg), again.seg.kind, again.seg.uri != cohort.seg.uri) == (2, "image", True)
    whole(again)
    whole(cohort)


# columns ---------------------------------------------------------------------------------------


TYPED = {
    "n": pd.array([1, None, 3], "Int64"),
    "x": np.array([0.5, np.nan, np.inf]),
    "ok": pd.array([True, None, False], "boolean"),
    "day": pd.to_datetime(["2024-01-31", None, "1999-12-31"]).as_unit("ns"),
    "name": pd.array(["a", None, ""], "string"),
    "grade": pd.Categorical(["low", None, "high"], ["low", "mid", "high"], ordered=True),
    "stage": pd.Categorical([2, 1, None], [1, 2]),
}


def test_columns_keep_their_types(cohort: Cohort) -> None:
    table = pd.DataFrame(TYPED, cohort.subjects)
    written = cohort.update_obs_meta(table).obs_meta[list(TYPED)]
    pd.testing.assert_frame_equal(
        written, table, check_names=False, check_column_type=False, check_index_type=False, check_categorical=False
    )
    for name in ("grade", "stage"):
        assert written[name].cat.categories.tolist() == table[name].cat.categories.tolist()
        assert written[name].cat.ordered == table[name].cat.ordered
    again = Cohort(cohort.uri).update_obs("CT", table.set_axis(cohort.CT.ids)).CT.obs[list(TYPED)]
    pd.testing.assert_frame_equal(again, written.set_axis(again.index), check_names=False)


def test_some_rows_of_a_column_are_written(cohort: Cohort) -> None:
    one = cohort.update_obs_meta(pd.DataFrame({"age": [51], "grade": pd.Categorical(["x"])}, ["s001"]))
    assert one.obs_meta["age"].tolist() == [50, 51, 70]
    assert one.obs_meta["grade"].isna().tolist() == [True, False, True]
    assert one.obs_meta["sex"].tolist()[:2] == ["F", "M"]
    assert one.filter("age == 51 and grade == 'x'").subjects == ["s001"]
    assert cohort.obs_meta["age"].isna().tolist() == [False, True, False]
    by_column = one.update_obs_meta(pd.DataFrame({"obs_subject_id": ["s000"], "age": [None]}))
    assert by_column.obs_meta["age"].isna().tolist() == [True, False, False]
    gone = by_column.drop_obs_meta("age", "grade")
    assert list(gone.obs_meta.columns) == ["sex"]
    fresh = gone.update_obs_meta(pd.DataFrame({"age": ["old"]}, ["s002"]))
    assert fresh.obs_meta["age"].isna().tolist() == [True, True, False], "nothing of the dropped column is left"


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (lambda c: c.update_obs_meta(pd.DataFrame({"age": [1]}, ["s009"])), "s009"),
        (lambda c: c.update_obs_meta(pd.DataFrame({"age": ["old"]}, ["s001"])), "'age'"),
        (lambda c: c.update_obs_meta(pd.DataFrame({"age": [1, 2]}, ["s001", "s001"])), "twice"),
        (lambda c: c.update_obs_meta(pd.DataFrame({"x": [[1, 2]]}, ["s001"])), "'x'"),
        (lambda c: c.update_obs("CT", pd.DataFrame({"slot": [1]}, ["s001_CT"])), "own"),
        (lambda c: c.update_obs("CT", pd.DataFrame({"obs_id": ["a"]}, ["s001_CT"])), "own"),
        (lambda c: c.update_obs("CT", pd.DataFrame({"note": ["a"]}, ["s001_seg"])), "s001_seg"),
        (lambda c: c.update_obs("MR", pd.DataFrame({"note": ["a"]}, ["s001_MR"])), "no collection 'MR'"),
        (lambda c: c.drop_obs_meta("weight"), "weight"),
        (lambda c: c.drop_obs("CT", "affine"), "affine"),
        (lambda c: c.remove(subjects=["s000", "s009"]), "s009"),
        (lambda c: c.remove(collection="MR"), "no collection 'MR'"),
        (lambda c: c.remove(subjects=["s000"], collection="MR"), "no collection 'MR'"),
    ],
)
def test_what_is_refused_leaves_no_trace(cohort: Cohort, change: Any, why: str) -> None:
    before = on_disk(cohort.uri)
    with pytest.raises(RadiodataError, match=why):
        change(cohort)
    unchanged(cohort, before)


# versions, manifests ---------------------------------------------------------------------------


def test_earlier_versions_are_as_they_were_and_cannot_be_written(cohort: Cohort) -> None:
    hashes = {cohort.version: cohort.freeze().hash}
    times = {}
    for n, change in enumerate(
        (lambda c: c.remove(subjects="s002"), lambda c: c.rename_collection("seg", "organ_mask"))
    ):
        done = change(Cohort(cohort.uri))
        hashes[done.version], times[done.version] = done.freeze().hash, done.freeze().time
        assert len(hashes) == n + 2 == len(set(hashes.values()))
    assert done.versions[-3:] == list(hashes)
    for version, expected in hashes.items():
        past = Cohort(cohort.uri, at=version)
        assert past.freeze().hash == expected
        with pytest.raises(ConfigError, match=f"version {version} .*open the latest to write"):
            past.remove(subjects="s000")
    for version, time in times.items():
        assert Cohort(cohort.uri, at=time).version == version


def test_a_manifest_can_be_demanded(cohort: Cohort, make_files: MakeFiles) -> None:
    frozen = cohort.freeze()
    assert Cohort(cohort.uri, demand=frozen).version == Cohort(cohort.uri, demand=frozen.hash).version
    changed = cohort.update_obs_meta(pd.DataFrame({"age": [1]}, ["s001"]))
    with pytest.raises(StateMismatchError, match=r"frozen at version \d+ with 3 subjects.*at="):
        Cohort(cohort.uri, demand=frozen)
    assert Cohort(cohort.uri, at=cohort.version, demand=frozen).freeze() == frozen
    back = changed.update_obs_meta(pd.DataFrame({"age": pd.array([None], "Int64")}, ["s001"]))
    assert back.freeze().hash == frozen.hash, "a hash is of what is held, not of how it came to be"
    assert len({c.freeze().hash for c in (cohort, cohort.head(2), cohort.iloc[::-1], changed)}) == 4


def test_the_same_files_give_the_same_manifest(make_files: MakeFiles, tmp_path: Path) -> None:
    images = make_files(3)
    one = Cohort.from_niftis(tmp_path / "one", images, tiling=8)
    other = Cohort.from_niftis(tmp_path / "other", {k: v[:1] for k, v in images.items()}, tiling=8)
    assert other.append({k: v[1:] for k, v in images.items()}).freeze().hash == one.freeze().hash


def test_optimize_forgets_and_frees(cohort: Cohort, make_files: MakeFiles) -> None:
    grown = cohort.append(make_files(9, first=3), obs_meta=rows(3, 9)).remove(subjects=cohort.subjects)
    grown = grown.add_collection("PT", make_files(6, first=3)["CT"]).remove(collection="seg")
    for n in range(12):
        grown = grown.update_obs_meta(pd.DataFrame({"age": [n]}, [grown.subjects[n % 9]]))
    frozen, size = grown.freeze().hash, sum(p.stat().st_size for p in Path(cohort.uri).rglob("*"))
    small = grown.optimize()
    assert (small.freeze().hash, small.versions) == (frozen, [small.version])
    assert sum(p.stat().st_size for p in Path(cohort.uri).rglob("*")) < size / 1.5
    assert not Path(cohort.uri, "seg").exists()
    assert all(len(table.segments) == 1 for table in small._snapshot.record.tables())
    whole(small)
    whole(small.append(make_files(1), obs_meta=rows(0)))


@pytest.mark.slow
def test_many_small_commits_do_not_make_many_segments(cohort: Cohort) -> None:
    for n in range(70):
        cohort = cohort.update_obs_meta(pd.DataFrame({"age": [n]}, [cohort.subjects[n % 3]]))
    assert cohort.obs_meta["age"].tolist() == [69, 67, 68]
    assert len(cohort._snapshot.record.obs_meta.segments) < 10


# at the same time ------------------------------------------------------------------------------


def _count(uri: str, column: str, times: int) -> None:
    for n in range(times):
        Cohort(uri).update_obs_meta(pd.DataFrame({column: [n]}, ["s000"]))


def test_writers_take_turns_and_lose_nothing(cohort: Cohort) -> None:
    spawn = multiprocessing.get_context("spawn")
    jobs = [spawn.Process(target=_count, args=(cohort.uri, f"c{k}", 8)) for k in range(3)]
    for job in jobs:
        job.start()
    for job in jobs:
        job.join(120)
    assert [job.exitcode for job in jobs] == [0, 0, 0]
    done = Cohort(cohort.uri)
    assert done.version == cohort.version + 24
    assert [done.obs_meta[f"c{k}"].iloc[0] for k in range(3)] == [7, 7, 7]


@pytest.mark.slow
def test_readers_see_a_version_whole_while_writers_write(cohort: Cohort, make_files: MakeFiles) -> None:
    """`a` and `b` are written together, and optimize removes old segments: nobody may see one without the other."""
    stop, seen, errors = threading.Event(), set(), []
    cohort = cohort.update_obs_meta(pd.DataFrame({"a": [-1] * 3, "b": [-1] * 3}, cohort.subjects))

    def read() -> None:
        while not stop.is_set():
            try:
                table = Cohort(cohort.uri).obs_meta
                assert table["a"].tolist() == table["b"].tolist()
                seen.add(tuple(table["a"]))
            except Exception as error:
                errors.append(error)
                return

    readers = [threading.Thread(target=read) for _ in range(2)]
    for reader in readers:
        reader.start()
    for n in range(30):
        cohort = cohort.update_obs_meta(pd.DataFrame({"a": [n] * 3, "b": [n] * 3}, cohort.subjects))
        if n % 7 == 6:
            cohort = cohort.optimize()
    stop.set()
    for reader in readers:
        reader.join()
    assert not errors, errors
    assert len(seen) > 3


def test_optimize_on_the_command_line(cohort: Cohort) -> None:
    done = cohort.remove(subjects="s000")
    told = subprocess.run(
        [sys.executable, "-m", "radiodata.cli", "optimize", cohort.uri], capture_output=True, text=True, check=True
    ).stdout
    assert told == f"{cohort.uri} is at version {done.version + 1}, alone\n"
    assert Cohort(cohort.uri).versions == [done.version + 1]


def test_the_only_columns_are_replaced_and_dropped(make_files: MakeFiles, tmp_path: Path) -> None:
    cohort = Cohort.from_niftis(tmp_path / "c", make_files(3), tiling=8)
    everyone = ["s000", "s001", "s002"]
    cohort = cohort.update_obs_meta(pd.DataFrame({"age": [1, 2, 3]}, everyone)).optimize()
    cohort = cohort.update_obs_meta(pd.DataFrame({"age": ["a", "b", "c"]}, everyone))
    assert cohort.obs_meta["age"].tolist() == ["a", "b", "c"]
    cohort = cohort.optimize().drop_obs_meta("age")
    assert (cohort.subjects, list(cohort.obs_meta.columns)) == (everyone, [])
    cohort = cohort.remove(subjects="s001").update_obs_meta(pd.DataFrame({"sex": ["F", "M"]}, ["s000", "s002"]))
    assert cohort.obs_meta["sex"].to_dict() == {"s000": "F", "s002": "M"}


def test_one_row_is_as_in_the_whole_table(make_files: MakeFiles, tmp_path: Path) -> None:
    cohort = Cohort.from_niftis(tmp_path / "c", make_files(3), tiling=8)
    ids = cohort.CT.ids
    wide = pd.DataFrame(
        {
            "n": pd.array([1, None, -(2**62)], "Int64"),
            "x": [0.5, np.nan, np.inf],
            "text": pd.array(["ä'\"", None, ""], "string"),
            "yes": pd.array([True, None, False], "boolean"),
            "day": pd.to_datetime(["2020-01-02 03:04", None, "1900-01-01 00:00"]),
            "grade": pd.Categorical(["low", None, "high"], ["low", "high"], ordered=True),
        },
        ids,
    )
    several = cohort.update_obs("CT", wide).update_obs("CT", pd.DataFrame({"n": [7]}, [ids[1]]))
    for held in (several, several.optimize(), Cohort(tmp_path / "c")):
        whole = held.CT.obs
        for at, obs_id in enumerate(ids):
            one, row = held.CT.iloc[at].obs, whole.iloc[at]
            assert (one.name, list(one.index)) == (obs_id, list(row.index))
            for name in row.index:
                mine, theirs = one[name], row[name]
                if isinstance(theirs, np.ndarray):
                    np.testing.assert_array_equal(mine, theirs)
                else:
                    assert pd.isna(mine) == pd.isna(theirs), name
                    assert pd.isna(mine) or (mine == theirs and type(mine) is type(theirs)), name
