"""Ingestion writes whole subjects or nothing, whatever happens to it, and goes on where it stopped."""

from __future__ import annotations

import os
import random
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
from conftest import MakeFiles, Tiny, ras_affine, save

from radiodata.errors import CohortNotFoundError, ConfigError, IngestError
from radiodata.ingest import ingest_niftis
from radiodata.ingest.nifti import load
from radiodata.ingest.statistics import image_statistics, label_statistics
from radiodata.store import Cohort, StoreConfig, layout
from radiodata.store.context import DEFAULT_READ, context
from radiodata.store.obs import IMAGE_TILES, LABEL_TILES
from radiodata.store.runs import begin_run, clean_abandoned
from radiodata.store.segments import write_segment

Images = dict[str, list[Path]]
TILE = 8


def part(images: Images, *numbers: int) -> Images:
    return {name: [files[n] for n in numbers] for name, files in images.items()}


def break_file(path: Path) -> bytes:
    """Change a byte of the gzip trailer: the header is still right, the whole is not."""
    good = path.read_bytes()
    path.write_bytes(good[:-5] + bytes([good[-5] ^ 1]) + good[-4:])
    return good


def contents(uri: str, without: str = "no column") -> dict[str, Any]:
    """All of a cohort that does not depend on which run wrote it, but for columns that begin so."""
    cohort, out = Cohort(uri), {}
    for name in cohort.collections:
        collection = cohort[name]
        tiles = collection.tile_statistics()
        for volume in collection:
            voxels = volume.to_numpy()
            rows = {n: np.asarray(tiles.loc[volume.obs_id, n]).tolist() for n in tiles.columns}
            kept = [n for n in volume.obs.index if n not in ("shard", "slot") and not n.startswith(without)]
            meta = volume.obs[kept].to_dict()
            out[volume.obs_id] = (voxels.tobytes(), repr(meta), repr(rows))
    out["obs_meta"] = cohort.obs_meta.sort_index().to_csv()
    return out


def right(uri: str, images: Images) -> list[str]:
    """Check that what the cohort holds are whole subjects with the voxels of their files; give the subjects."""
    cohort = Cohort(uri)
    files = {f"{p.name.split('.')[0]}_{name}": p for name, paths in images.items() for p in paths}
    for name in images if cohort.subjects else ():
        assert sorted(cohort[name].obs["obs_subject_id"]) == sorted(cohort.subjects)
        for volume in cohort[name]:
            reference = nib.as_closest_canonical(nib.load(files[volume.obs_id]))
            np.testing.assert_array_equal(volume.to_numpy(), np.asanyarray(reference.dataobj))
    return cohort.subjects


def slots_written(uri: str) -> int:
    """Fragments on disk, committed or not, of all shards."""
    return sum(1 for _ in Path(uri).glob("*/voxels/*/__fragments/*"))


# what an ingest writes -------------------------------------------------------------------------


def test_volumes_equal_their_files_in_ras(tiny: Tiny) -> None:
    for name in ("CT", "seg"):
        for volume, path in zip(tiny.cohort[name], tiny.images[name], strict=True):
            np.testing.assert_array_equal(volume.to_numpy(), tiny.arrays[volume.obs_id])
            np.testing.assert_allclose(volume.affine, tiny.affines[volume.obs_id], atol=1e-5)
            row = volume.obs
            assert (row["source_uri"], row["source_format"], row["orientation"]) == (str(path), "nifti", "RAS")
            assert row["source_orientation"] == "".join(nib.aff2axcodes(nib.load(path).affine))
            assert row["source_hash"] == load(path).source_hash


def test_statistics_in_the_store_are_those_of_the_voxels(tiny: Tiny) -> None:
    for name, make in (("CT", image_statistics), ("seg", lambda v, t: label_statistics(v, t, 64))):
        rows, histograms = tiny.cohort[name].tile_statistics(), tiny.cohort[name].histograms()
        columns = IMAGE_TILES if name == "CT" else LABEL_TILES
        for volume in tiny.cohort[name]:
            expected = make(tiny.arrays[volume.obs_id][None], (16, 16, 16))
            for column in columns:
                np.testing.assert_array_equal(rows.loc[volume.obs_id, column.name], expected.tiles[column.name])
            for key, value in expected.obs.items():
                held = histograms.loc[volume.obs_id, key] if key.startswith("histogram") else volume.obs[key]
                if name == "CT":
                    np.testing.assert_array_equal(held, value, err_msg=key)
            if name == "seg":
                assert volume.obs["label_values"].tolist() == [0, 1, 2]
                assert volume.obs["label_voxels"].tolist() == expected.obs["label_voxels"]


def test_orient_none_keeps_the_axes_of_the_file(tiny: Tiny, tmp_path: Path) -> None:
    images = {"CT": tiny.images["CT"]}
    cohort = Cohort.from_niftis(tmp_path / "c", images, config=StoreConfig(tiling=16, orient=None))
    for volume, path in zip(cohort.CT, images["CT"], strict=True):
        np.testing.assert_array_equal(volume.to_numpy(), np.asanyarray(nib.load(path).dataobj))
        np.testing.assert_array_equal(volume.affine, nib.load(path).affine)


def test_volumes_of_unlike_dtype_live_in_one_collection(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    arrays = [rng.integers(0, 9, (9, 9, 9)).astype(d) for d in ("uint8", "int16", "float32", "int32")]
    arrays[2] += 0.5
    arrays[3] += 70_000
    files = [save(a, np.eye(4), tmp_path / f"s{n}.nii.gz") for n, a in enumerate(arrays)]
    cohort = Cohort.from_niftis(tmp_path / "c", {"MR": files}, tiling=TILE)
    assert [str(v.dtype) for v in cohort["MR"]] == ["uint8", "int16", "float32", "int32"]
    for volume, array in zip(cohort["MR"], arrays, strict=True):
        np.testing.assert_array_equal(volume.to_numpy(), array)


def test_shards_are_left_when_they_are_full(make_files: MakeFiles, tmp_path: Path) -> None:
    images = make_files(5)
    config = StoreConfig(tiling=TILE, slots=2)
    cohort = Cohort.from_niftis(tmp_path / "c", images, config=config)
    assert cohort.CT.obs["shard"].nunique() == 3
    assert right(cohort.uri, images) == [f"s{n:03d}" for n in range(5)]


def test_progress_is_told_of_every_subject(make_files: MakeFiles, tmp_path: Path) -> None:
    told: list[tuple[int, int]] = []
    ingest_niftis(str(tmp_path / "c"), make_files(3), tiling=TILE, progress=lambda *at: told.append(at))
    assert told == [(1, 3), (2, 3), (3, 3)]


# refusals --------------------------------------------------------------------------------------


def test_a_refusal_before_anything_is_written_leaves_no_store(make_files: MakeFiles, tmp_path: Path) -> None:
    images, uri = make_files(2), str(tmp_path / "c")
    images["seg"][1].write_bytes(b"")
    bad_table = pd.DataFrame({"x": [[1], [2]]}, index=["s000", "s001"])
    twice = pd.DataFrame({"x": [1, 2]}, index=["s000", "s000"])
    refusals: list[tuple[type[Exception], str, dict[str, Any]]] = [
        (IngestError, "s001.nii.gz: is empty", {}),
        (IngestError, "has no file in seg", {"images": {"CT": images["CT"], "seg": images["seg"][:1]}}),
        (ConfigError, "holds list", {"images": part(images, 0), "obs_meta": bad_table}),
        (ConfigError, "more than one row for s000", {"images": part(images, 0), "obs_meta": twice}),
        (IngestError, "has files but no row", {"images": part(images, 0), "obs_meta": pd.DataFrame({"x": []})}),
        (ConfigError, "tiling 'cubic'", {"tiling": "cubic"}),
        (ConfigError, "no collection was given", {"images": {}}),
        (ConfigError, "are no collections", {"labels": ["liver"]}),
        (ConfigError, "must be letters, digits", {"images": {"a-b": images["CT"]}}),
        (ConfigError, "must be letters, digits", {"images": {"obs_meta": images["CT"]}}),
    ]
    for kind, why, arguments in refusals:
        with pytest.raises(kind, match=why):
            ingest_niftis(uri, **{"images": images, "tiling": TILE, **arguments})
        assert not Path(uri).exists(), why


def test_a_file_found_damaged_refuses_its_subject_and_keeps_the_others(make_files: MakeFiles, tmp_path: Path) -> None:
    images, uri = make_files(4), str(tmp_path / "c")
    good = {n: break_file(images["seg"][n]) for n in (1, 2)}
    with pytest.raises(IngestError, match=r"2 subjects were ingested into .*, 2 were refused whole") as caught:
        ingest_niftis(uri, images, tiling=TILE)
    assert sorted(p.where for p in caught.value.problems) == [str(images["seg"][n]) for n in (1, 2)]
    assert all("checksum" in p.why for p in caught.value.problems)
    assert right(uri, images) == ["s000", "s003"]
    assert slots_written(uri) == 4  # nothing of the refused subjects is left
    for number, data in good.items():
        images["seg"][number].write_bytes(data)
    report = ingest_niftis(uri, images, tiling=TILE)
    assert (report.added, report.present) == (["s001", "s002"], ["s000", "s003"])
    whole = str(tmp_path / "whole")
    ingest_niftis(whole, images, tiling=TILE)
    assert contents(uri) == contents(whole)


def test_when_all_are_refused_the_cohort_is_empty_and_usable(make_files: MakeFiles, tmp_path: Path) -> None:
    images, uri = make_files(1), str(tmp_path / "c")
    good = break_file(images["CT"][0])
    with pytest.raises(IngestError, match="0 subjects were ingested"):
        ingest_niftis(uri, images, tiling=TILE)
    assert (len(Cohort(uri)), slots_written(uri)) == (0, 0)
    images["CT"][0].write_bytes(good)
    assert ingest_niftis(uri, images, tiling=TILE).added == ["s000"]


def test_an_exception_in_the_middle_leaves_whole_subjects_and_no_rest(
    make_files: MakeFiles, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    images, uri = make_files(6), str(tmp_path / "c")
    monkeypatch.setattr("radiodata.store.writing.Batches.SIZE", 2)
    monkeypatch.setattr("radiodata.store.writing.Batches.SECONDS", 0.0)

    def stop(done: int, total: int) -> None:
        if done == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        ingest_niftis(uri, images, tiling=TILE, progress=stop)
    kept = right(uri, images)
    assert len(kept) == 2
    assert slots_written(uri) == 4
    ingest_niftis(uri, images, tiling=TILE)
    assert right(uri, images) == [f"s{n:03d}" for n in range(6)]


def test_label_collections_take_whole_numbers_of_one_channel(tmp_path: Path) -> None:
    half = save(np.full((9, 9, 9), 0.5, np.float32), np.eye(4), tmp_path / "a.nii.gz")
    frames = save(np.ones((9, 9, 9, 2), np.uint8), np.eye(4), tmp_path / "b.nii.gz")
    with pytest.raises(IngestError, match="holds values that are not whole numbers, but 'seg' is a label collection"):
        ingest_niftis(str(tmp_path / "c"), {"seg": [half]})
    with pytest.raises(IngestError, match="holds 2 channels, but 'seg' is a label collection"):
        ingest_niftis(str(tmp_path / "d"), {"seg": [frames]})
    assert len(Cohort.from_niftis(tmp_path / "e", {"T2": [half]})["T2"]) == 1


# again -----------------------------------------------------------------------------------------


def test_a_rerun_of_the_same_files_writes_nothing(make_files: MakeFiles, tmp_path: Path) -> None:
    images, uri = make_files(2), str(tmp_path / "c")
    ingest_niftis(uri, images, tiling=TILE)
    before = {p: p.stat().st_mtime_ns for p in Path(uri).rglob("*") if p.is_file()}
    copies = {n: [shutil.copy(p, tmp_path / f"{n}-{p.name}") for p in files] for n, files in images.items()}
    for again in (images, copies):  # by content: another place does not matter
        report = ingest_niftis(uri, again, tiling=TILE, subject_id=r"(s\d+)\.nii")
        assert (report.added, report.present) == ([], ["s000", "s001"])
    assert {p: p.stat().st_mtime_ns for p in Path(uri).rglob("*") if p.is_file()} == before


def test_a_changed_file_is_refused(make_files: MakeFiles, tmp_path: Path) -> None:
    images, uri = make_files(3), str(tmp_path / "c")
    ingest_niftis(uri, part(images, 0, 1), tiling=TILE)
    before = contents(uri)
    save(np.zeros((20, 22, 18), np.uint8), ras_affine(0), images["seg"][1])
    with pytest.raises(IngestError, match=r"s001.nii.gz: subject 's001' is in the cohort with another file in 'seg'"):
        ingest_niftis(uri, images, tiling=TILE)
    assert contents(uri) == before


def test_a_collection_is_added_to_subjects_that_are_there(make_files: MakeFiles, tmp_path: Path) -> None:
    images, uri = make_files(3), str(tmp_path / "c")
    ingest_niftis(uri, {"CT": images["CT"][:2]}, tiling=TILE)
    report = ingest_niftis(uri, images, tiling=TILE)
    assert (report.added, report.present) == (["s000", "s001", "s002"], [])
    assert right(uri, images) == ["s000", "s001", "s002"]
    whole = str(tmp_path / "whole")
    ingest_niftis(whole, images, tiling=TILE)
    # labels that come later describe no image
    assert contents(uri, "foreground_") == contents(whole, "foreground_")


def test_settings_at_odds_with_the_cohort_are_refused(make_files: MakeFiles, tmp_path: Path) -> None:
    images, uri = make_files(3), str(tmp_path / "c")
    meta = pd.DataFrame({"age": [1, 2, 3], "sex": ["F", "M", None]}, index=["s000", "s001", "s002"])
    ingest_niftis(uri, part(images, 0), tiling=TILE, obs_meta=meta.iloc[:1])
    rest = part(images, 1, 2)
    for why, changed in (
        (r"has columns \['age', 'sex'\], not \['age'\]", meta[["age"]]),
        (r"has columns \['age', 'sex'\], not \['age', 'sex', 'x'\]", meta.assign(x=1)),
        ("'age' of the table there holds ints, not floats", meta.assign(age=1.5)),
        ("'age' of the table there holds ints, not strings", meta.assign(age="old")),
    ):
        with pytest.raises(ConfigError, match=why):
            ingest_niftis(uri, rest, tiling=TILE, obs_meta=changed.iloc[1:])
    with pytest.raises(ConfigError, match=r"has columns \['age', 'sex'\], not \[\]"):
        ingest_niftis(uri, rest, tiling=TILE)
    with pytest.raises(ConfigError, match="holds images in tiles 8,8,8, not images in tiles 16,16,16"):
        ingest_niftis(uri, rest, tiling=16, obs_meta=meta.iloc[1:])
    with pytest.raises(ConfigError, match="holds labels in tiles 8,8,8, not images"):
        ingest_niftis(uri, rest, tiling=TILE, obs_meta=meta.iloc[1:], labels=[])
    with pytest.raises(ConfigError, match="a cohort exists at"):
        Cohort.from_niftis(uri, rest, tiling=TILE)
    assert Cohort(uri).subjects == ["s000"]
    gaps = meta.iloc[1:].assign(age=[np.nan, 7.0])  # ints with gaps are floats to pandas
    ingest_niftis(uri, rest, tiling=TILE, obs_meta=gaps)
    assert Cohort(uri).obs_meta["age"].fillna(-1).tolist() == [1, -1, 7]


def test_rows_of_a_dead_run_do_not_come_to_light_with_a_later_one(
    make_files: MakeFiles, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    images, uri = make_files(3), str(tmp_path / "c")
    dose = {**images, "dose": images["CT"]}
    ingest_niftis(uri, part(dose, 2), tiling=TILE)
    written = write_segment

    def die(uri: str, path: str, *rest: Any) -> Any:
        if path.startswith("seg/obs"):
            raise OSError("the disk is gone")
        return written(uri, path, *rest)

    with monkeypatch.context() as patch:
        patch.setattr("radiodata.store.writing.write_segment", die)
        with pytest.raises(OSError, match="the disk is gone"):
            ingest_niftis(uri, dose, tiling=TILE)
    assert Cohort(uri).subjects == ["s002"]
    ingest_niftis(uri, part(images, 0, 1), tiling=TILE)
    cohort = Cohort(uri)
    assert cohort.subjects == ["s000", "s001", "s002"]
    assert [v.obs_id for v in cohort["dose"]] == ["s002_dose"]
    assert [v.to_numpy().shape for v in cohort.CT] == [(20, 22, 17), (20, 22, 18), (20, 22, 19)]


# runs that died --------------------------------------------------------------------------------

INGEST = """
import sys
from pathlib import Path
from radiodata.ingest import ingest_niftis
from radiodata.store.writing import Batches
Batches.SIZE, Batches.SECONDS = 2, 0.0
root, uri = Path(sys.argv[1]), sys.argv[2]
images = {n: sorted((root / n).iterdir()) for n in ("CT", "seg")}
if len(sys.argv) > 3:
    low, high = map(int, sys.argv[3].split(":"))
    images = {n: files[low:high] for n, files in images.items()}
print("ready", flush=True)
if len(sys.argv) > 4:
    sys.stdin.readline()
ingest_niftis(uri, images, tiling=8, workers=2)
"""


@contextmanager
def ingesting(root: Path, uri: str, *more: str) -> Iterator[subprocess.Popen[bytes]]:
    """Run an ingest in a process of its own, past its imports; it is dead afterwards."""
    command = [sys.executable, "-c", INGEST, str(root), uri, *more]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == b"ready\n"
            yield process
        finally:
            process.kill()


def kill_and_go_on(root: Path, images: Images, undisturbed: dict[str, Any], folder: Path, waits: list[float]) -> None:
    """Kill ingests of one store at the moments given, look at it each time, and let the last one end."""
    uri = str(folder / "killed")
    for wait in waits:
        with ingesting(root, uri):
            time.sleep(wait)
        try:
            right(uri, images)
        except CohortNotFoundError:  # killed before there was one
            assert not Path(uri, "obs_meta").exists() or wait < 1
    ingest_niftis(uri, images, tiling=TILE)
    assert contents(uri) == undisturbed
    assert slots_written(uri) == sum(len(files) for files in images.values())
    assert list(Path(uri, "__runs").iterdir()) == []


@pytest.fixture(scope="session")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Images, dict[str, Any], float]:
    """Files of twelve subjects, what a store of them holds, and how long a process takes to make it."""
    root = tmp_path_factory.mktemp("kill")
    images: Images = {"CT": [], "seg": []}
    for number in range(12):
        rng, shape = np.random.default_rng(number), (30, 28, 26)
        for name, high in (("CT", 1500), ("seg", 3)):
            voxels = rng.integers(0, high, shape).astype(np.int16 if name == "CT" else np.uint8)
            images[name].append(save(voxels, ras_affine(0), root / name / f"s{number:03d}.nii.gz"))
    uri = str(root / "whole")
    with ingesting(root, uri) as process:
        began = time.monotonic()
        assert process.wait(300) == 0
        took = time.monotonic() - began
    return root, images, contents(uri), took


@pytest.mark.slow
def test_killed_at_any_moment_only_whole_subjects_are_there(
    undisturbed: tuple[Path, Images, dict[str, Any], float], tmp_path: Path
) -> None:
    root, images, expected, took = undisturbed
    waits = [took * share for share in (0.1, 0.35, 0.5, 0.65, 0.8)]
    kill_and_go_on(root, images, expected, tmp_path, waits)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(4))
def test_killed_at_many_random_moments(
    undisturbed: tuple[Path, Images, dict[str, Any], float], tmp_path: Path, seed: int
) -> None:
    root, images, expected, took = undisturbed
    draw = random.Random(seed)
    kill_and_go_on(root, images, expected, tmp_path, [draw.uniform(0, 1.1 * took) for _ in range(5)])


@pytest.mark.parametrize("attempts", [1, pytest.param(6, marks=pytest.mark.slow)])
def test_two_processes_fill_one_store_at_once(
    undisturbed: tuple[Path, Images, dict[str, Any], float], tmp_path: Path, attempts: int
) -> None:
    root, images, expected, _ = undisturbed
    for attempt in range(attempts):
        uri = str(tmp_path / f"shared-{attempt}")
        with ingesting(root, uri, "0:6", "wait") as first, ingesting(root, uri, "6:12", "wait") as second:
            for process in (first, second):
                process.stdin.write(b"go\n")  # type: ignore[union-attr]
                process.stdin.flush()  # type: ignore[union-attr]
            while first.poll() is None or second.poll() is None:  # a reader beside them sees whole subjects, always
                try:
                    right(uri, images)
                except CohortNotFoundError:
                    time.sleep(0.01)
            assert [first.wait(), second.wait()] == [0, 0]
        assert contents(uri) == expected


def abandon(uri: str, changed: dict[str, str]) -> str:
    """Begin a run, write a volume into a shard of it, and change its mark."""
    from radiodata.store.writer import ensure_shard, write_volume

    ctx = context()
    run = begin_run(uri, ctx)
    (mark,) = Path(uri, "__runs").iterdir()
    fields = dict(zip(("run", "machine", "pid", "born", "started"), mark.name.split("."), strict=True))
    mark.rename(mark.with_name(".".join({**fields, **changed}.values())))
    shard = layout.shard_uri(layout.join(uri, "CT"), layout.shard_name(run, 0, "int16"))
    ensure_shard(shard, "int16", StoreConfig(tiling=TILE), ctx)
    write_volume(shard, 0, np.ones((1, 9, 9, 9), np.int16), ctx)
    return run


@pytest.mark.parametrize(
    ("mark", "dead"),
    [
        ({}, False),
        ({"born": "1"}, True),  # the pid is that of another process now
        ({"pid": str(2**22 + 1), "born": "5"}, True),
        ({"machine": "elsewhere"}, False),
        ({"machine": "elsewhere", "started": "1"}, True),
    ],
)
def test_runs_are_cleaned_when_they_are_dead_only(
    make_files: MakeFiles, tmp_path: Path, mark: dict[str, str], dead: bool
) -> None:
    uri = str(tmp_path / "c")
    ingest_niftis(uri, make_files(1), tiling=TILE)
    held, before = slots_written(uri), contents(uri)
    run = abandon(uri, mark)
    assert slots_written(uri) == held + 1
    assert clean_abandoned(uri, DEFAULT_READ) == ([run] if dead else [])
    assert slots_written(uri) == held + (not dead)
    assert contents(uri) == before


def test_a_zombie_is_dead(make_files: MakeFiles, tmp_path: Path) -> None:
    from radiodata.store.runs import _birth

    if not Path("/proc/self/stat").exists():
        pytest.skip("this system has no /proc")
    process = subprocess.Popen([sys.executable, "-c", "pass"])
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
    assert _birth(process.pid) is None
    process.wait()
    assert _birth(os.getpid()) == _birth(os.getpid()) is not None
