"""Contexts belong to a process: children of every kind read right and end, after the parent has read."""

from __future__ import annotations

import multiprocessing
import os
import shutil
import sys
import threading
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np
import pytest
import tiledb
from conftest import MakeFiles, Tiny

from radiodata.errors import ConfigError
from radiodata.ingest import ingest_niftis
from radiodata.store import Cohort, ReadConfig, StoreConfig, Volume
from radiodata.store.config import TILINGS
from radiodata.store.context import context, handles

TIMEOUT = 120
pytestmark = [  # to fork a process with threads is what this is about: Python 3.12 and TileDB warn of it
    pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:TileDB is a multithreading library:UserWarning"),
]


# configuration ---------------------------------------------------------------------------------


def test_an_unknown_key_is_refused_with_the_near_one() -> None:
    with pytest.raises(ConfigError, match=r"no configuration key 'vfs\.s3\.regoin'; did you mean .*vfs\.s3\.region"):
        ReadConfig(tiledb={"vfs.s3.regoin": "eu-west-1"})
    with pytest.raises(ConfigError, match=r"no configuration key 'sm\.tile_cache_size'"):
        ReadConfig(tiledb={"sm.tile_cache_size": "1000"})


def test_known_keys_reach_the_context() -> None:
    config = ReadConfig(threads=3, tiledb={"vfs.s3.region": "eu-west-1", "vfs.min_batch_size": "77"})
    made = context(config).config()
    assert made["vfs.s3.region"] == "eu-west-1"
    assert made["vfs.min_batch_size"] == "77"
    assert made["sm.compute_concurrency_level"] == "3"
    assert made["sm.mem.malloc_trim"] == "false"
    assert context(ReadConfig(threads=3, tiledb=dict(reversed(config.tiledb.items())))) is context(config)


@pytest.mark.parametrize("threads", [0, -1])
def test_threads_are_positive(threads: int) -> None:
    with pytest.raises(ConfigError, match="threads: it must be a whole number, at least 1, not"):
        ReadConfig(threads=threads)


@pytest.mark.parametrize(
    ("setting", "why"),
    [
        ({"tiling": "cubic"}, "tiling 'cubic' is not known: say one of isotropic"),
        ({"tiling": "64,64"}, "tiling '64,64' is not known"),
        ({"tiling": (0, 1, 1)}, "is not known"),
        ({"filters": ("zstd:high",)}, "filter 'zstd:high' is not known"),
        ({"filters": ("sha256:3",)}, "filter 'sha256:3' is not known"),
        ({"filters": ("rle",)}, "filter 'rle' is not known"),
        ({"orient": "LPS"}, "orient: it must be 'RAS', or none, not 'LPS'"),
        ({"slots": 0}, "slots: it must be a whole number, at least 1"),
        ({"slots": 1 << 17}, "slots: it must be at most 65536"),
        ({"dtype": "float16"}, "dtype: it must be .*, or none, not 'float16'"),
        ({"reservoir": 0}, "reservoir: it must be a whole number, at least 1"),
    ],
)
def test_layouts_that_cannot_be_used_are_refused(setting: dict, why: str) -> None:
    with pytest.raises(ConfigError, match=why):
        StoreConfig(**setting)


@pytest.mark.parametrize(
    ("tiling", "tile"),
    [("isotropic", TILINGS["isotropic"]), ("AXIAL", (256, 256, 1)), ("32", (32,) * 3), ("8,16,4", (8, 16, 4))],
)
def test_tilings(tiling: str | int, tile: tuple[int, int, int]) -> None:
    assert StoreConfig(tiling=tiling).tile == tile


def test_tiledb_never_uses_a_context_of_its_own(
    make_files: MakeFiles, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    used: list[str] = []

    def refuse(*args: object, **kwargs: object) -> None:
        used.append(f"{sys._getframe(1).f_code.co_filename}:{sys._getframe(1).f_lineno}")
        raise AssertionError("the default context of TileDB was asked for")

    patched = 0
    for name, module in list(sys.modules.items()):
        if name.split(".")[0] == "tiledb" and hasattr(module, "default_ctx"):
            monkeypatch.setattr(module, "default_ctx", refuse)
            patched += 1
    assert patched > 3
    images, uri = make_files(3), str(tmp_path / "cohort")
    ingest_niftis(uri, {n: f[:2] for n, f in images.items()}, tiling=8)
    ingest_niftis(uri, images, tiling=8)  # finds two there, cleans, consolidates
    damaged = make_files(2, first=3, folder=tmp_path / "more")
    damaged["seg"][1].write_bytes(damaged["seg"][1].read_bytes()[:-9])
    with pytest.raises(Exception, match="1 were refused"):
        ingest_niftis(uri, damaged, tiling=8)  # deletes what was refused
    cohort = Cohort(uri)
    assert [v[2:5].shape for v in cohort.CT] == [(3, 22, 17), (3, 22, 18), (3, 22, 19), (3, 22, 17)]
    cohort.CT.tile_statistics(), cohort.CT.histograms()
    from radiodata.store.summary import summarize

    summarize(cohort)
    assert used == []


# processes and threads -------------------------------------------------------------------------


def read_all(uri: str) -> dict[str, np.ndarray]:
    cohort = Cohort(uri)
    return {v.obs_id: v.to_numpy() for name in cohort.collections for v in cohort[name]}


def in_child(volume: Volume, uri: str, ends: Connection, how: str) -> None:
    ends.send((volume.to_numpy(), read_all(uri)))
    ends.close()
    if how == "exit":
        sys.exit(0)


def join(child: multiprocessing.process.BaseProcess) -> None:
    child.join(TIMEOUT)
    alive = child.is_alive()
    if alive:
        child.kill()
        child.join()
    assert not alive, "the child hangs"
    assert child.exitcode == 0


@pytest.mark.parametrize("method", ["fork", "forkserver", "spawn"])
@pytest.mark.parametrize("how", ["return", "exit"])
def test_children_read_after_the_parent_has_read_and_end(tiny: Tiny, method: str, how: str) -> None:
    volume = tiny.cohort.CT.iloc[1]
    volume.to_numpy()
    mine, theirs = multiprocessing.Pipe(duplex=False)
    make = multiprocessing.get_context(method).Process
    child = make(target=in_child, args=(volume, tiny.cohort.uri, theirs, how))  # type: ignore[attr-defined]
    child.start()
    theirs.close()
    assert mine.poll(TIMEOUT), "the child says nothing"
    one, everything = mine.recv()
    join(child)
    np.testing.assert_array_equal(one, tiny.arrays[volume.obs_id])
    assert set(everything) == set(tiny.arrays)
    for obs_id, voxels in everything.items():
        np.testing.assert_array_equal(voxels, tiny.arrays[obs_id])
    np.testing.assert_array_equal(volume.to_numpy(), tiny.arrays[volume.obs_id])  # the parent is none the worse


SHUTDOWN = """
import os, sys
from radiodata.store import Cohort
cohort = Cohort(sys.argv[1])
before = cohort.CT.iloc[0][3:9].sum()
pid = os.fork()
if pid == 0:
    again = Cohort(sys.argv[1]).CT.iloc[0][3:9].sum()
    {leave}
status = os.waitpid(pid, 0)[1]
print(os.waitstatus_to_exitcode(status))
"""


@pytest.mark.parametrize(
    ("leave", "code"),
    [
        ("del cohort; sys.exit(7 if again == before else 1)", 7),
        ("import gc; gc.collect(); raise SystemExit(7 if again == before else 1)", 7),
        ("import radiodata.store.context as c; c._process.__dict__.clear(); sys.exit(7)", 7),
    ],
)
def test_a_forked_child_goes_through_the_whole_shutdown_of_the_interpreter(tiny: Tiny, leave: str, code: int) -> None:
    import subprocess

    script = SHUTDOWN.format(leave=leave)
    done = subprocess.run(
        [sys.executable, "-c", script, tiny.cohort.uri], capture_output=True, text=True, timeout=TIMEOUT, check=True
    )
    assert done.stdout.split() == [str(code)], done.stderr


def test_a_child_of_a_forked_child_reads(tiny: Tiny) -> None:
    tiny.cohort.CT.iloc[0].to_numpy()
    pid = os.fork()
    if pid == 0:
        try:
            tiny.cohort.CT.iloc[0].to_numpy()
            grandchild = os.fork()
            same = np.array_equal(tiny.cohort.CT.iloc[2].to_numpy(), tiny.arrays["sub-02_CT"])
            code = 0 if same else 1
            if grandchild:
                code += os.waitstatus_to_exitcode(os.waitpid(grandchild, 0)[1])
        except BaseException:
            code = 99
        os._exit(code)
    assert end_of(pid) == 0


def end_of(pid: int) -> int:
    until = time.monotonic() + TIMEOUT
    while time.monotonic() < until:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.02)
    os.kill(pid, 9)
    os.waitpid(pid, 0)
    raise AssertionError("the child hangs")


def test_a_fork_while_other_threads_read(tiny: Tiny) -> None:
    stop = threading.Event()

    def keep_reading() -> None:
        while not stop.is_set():
            Cohort(tiny.cohort.uri).CT.iloc[0].to_numpy()

    threads = [threading.Thread(target=keep_reading) for _ in range(2)]
    for thread in threads:
        thread.start()
    try:
        for _ in range(5):
            pid = os.fork()
            if pid == 0:
                same = np.array_equal(tiny.cohort.CT.iloc[3].to_numpy(), tiny.arrays["sub-03_CT"])
                os._exit(0 if same else 1)
            assert end_of(pid) == 0
    finally:
        stop.set()
        for thread in threads:
            thread.join()


def test_threads_read_the_same_voxels(tiny: Tiny) -> None:
    wrong: list[str] = []

    def read(start: int) -> None:
        cohort = Cohort(tiny.cohort.uri) if start % 2 else tiny.cohort
        for step in range(12):
            volume = cohort.CT.iloc[(start + step) % 6]
            if not np.array_equal(volume[1:20, 3:], tiny.arrays[volume.obs_id][1:20, 3:]):
                wrong.append(volume.obs_id)

    run_threads([lambda i=i: read(i) for i in range(8)])
    assert wrong == []


def run_threads(work: list[Callable[[], None]]) -> None:
    threads = [threading.Thread(target=w, daemon=True) for w in work]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(TIMEOUT)
    assert not any(thread.is_alive() for thread in threads)


# snapshots -------------------------------------------------------------------------------------


def test_a_cohort_opened_after_an_append_sees_it_whatever_was_open_before(
    make_files: MakeFiles, tmp_path: Path
) -> None:
    images, uri = make_files(4), str(tmp_path / "cohort")
    ingest_niftis(uri, {n: f[:2] for n, f in images.items()}, tiling=8)
    before = Cohort(uri)
    held = [v.to_numpy() for v in before.CT]
    ingest_niftis(uri, images, tiling=8)
    after = Cohort(uri)
    assert (len(before.CT), len(after.CT)) == (2, 4)
    whole = [v.to_numpy() for v in after.CT]
    for old, new, again in zip(held, whole, before.CT, strict=False):
        np.testing.assert_array_equal(old, new)
        np.testing.assert_array_equal(old, again.to_numpy())
    assert all((w != 0).any() for w in whole)


def test_a_store_made_anew_at_the_same_place_is_read_anew(make_files: MakeFiles, tmp_path: Path) -> None:
    uri = str(tmp_path / "cohort")
    first = Cohort.from_niftis(uri, make_files(1), tiling=8).CT.iloc[0].to_numpy()
    shutil.rmtree(uri)
    second = Cohort.from_niftis(uri, make_files(1, first=3, folder=tmp_path / "b"), tiling=8).CT.iloc[0].to_numpy()
    assert not np.array_equal(first, second)


def test_one_handle_serves_reads_that_follow_each_other(tiny: Tiny) -> None:
    source = tiny.cohort.CT.iloc[0].source
    opened = []
    for _ in range(3):
        with handles().reading(source.uri, source.token) as (array, _):
            opened.append(array)
    assert len({id(array) for array in opened}) == 1
    assert isinstance(opened[0], tiledb.DenseArray)
    assert handles().context() is context()


def test_reads_at_once_have_a_context_each(tiny: Tiny) -> None:
    source = tiny.cohort.CT.iloc[0].source
    with handles().reading(source.uri, source.token) as one, handles().reading(source.uri, source.token) as other:
        assert one[1] is not other[1]
        assert one[0] is not other[0]
    with handles().reading(source.uri, source.token) as again:
        assert again[1] in (one[1], other[1])
