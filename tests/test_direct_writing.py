"""Volumes written without a TileDB query: what TileDB would have written, byte by byte, or TileDB writes it."""

from __future__ import annotations

import ctypes
import errno
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiledb
from direct_store import PLAIN, QUERY, ctx, fragment, is_direct, source, voxels_of, whole
from effort import tries
from hypothesis import given, settings
from hypothesis import strategies as st

from radiodata.errors import StoreError
from radiodata.store import read_box
from radiodata.store.config import ReadConfig, StoreConfig
from radiodata.store.direct import kernels, packed, writing
from radiodata.store.writer import ensure_shard, store_volume, write_volume

pytest.importorskip("numba", reason="needs radiodata[fast]")
pytest.importorskip("cffi", reason="needs radiodata[fast]")

DTYPES = ["int8", "uint8", "int16", "uint16", "int32", "uint32", "float32", "float64"]
FILTERS: list[tuple[str, ...]] = [("byteshuffle", "zstd:-1"), ("byteshuffle", "zstd:3"), ("zstd:3",), ()]
SHAPES = [((2, 20, 17, 9), 8), ((1, 64, 70, 33), 32), ((1, 40, 30, 6), (48, 48, 1)), ((1, 1, 1, 1), 4)]


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writing, "LEAST", 0)


def empty(uri: Path, dtype: str, tile: Any = 16, filters: tuple[str, ...] = FILTERS[0]) -> str:
    ensure_shard(str(uri), dtype, StoreConfig(tiling=tile, filters=filters), ctx())
    return str(uri)


def both(tmp_path: Path, voxels: np.ndarray, tile: Any, filters: tuple[str, ...]) -> tuple[str, str]:
    """Two copies of one shard, with the same volume in slot 7: written by TileDB, and by the kernel."""
    theirs = empty(tmp_path / "theirs", str(voxels.dtype), tile, filters)
    ours = str(shutil.copytree(theirs, tmp_path / "ours"))
    write_volume(theirs, 7, voxels, ctx())
    assert writing.write(ours, 7, voxels, ctx())
    return theirs, ours


def files(uri: str) -> dict[str, bytes]:
    """What lies in a shard, by name; the fragment's own name, of which half is drawn, is made one."""
    name = fragment(uri).name
    return {
        str(p.relative_to(uri)).replace(name, "FRAGMENT"): p.read_bytes() for p in Path(uri).rglob("*") if p.is_file()
    }


@pytest.mark.parametrize("filters", FILTERS, ids=str)
@pytest.mark.parametrize("dtype", DTYPES)
def test_the_bytes_are_those_of_tiledb(tmp_path: Path, dtype: str, filters: tuple[str, ...]) -> None:
    """Of every tile, cut short or not, and of all that is told of them."""
    for number, (shape, tile) in enumerate(SHAPES):
        theirs, ours = both(tmp_path / str(number), voxels_of(shape, dtype), tile, filters)
        assert files(ours) == files(theirs)
        spans = [fragment(uri).name.split("_")[2:4] for uri in (theirs, ours)]
        assert spans[0] == spans[1] == ["8", "8"]


@settings(max_examples=tries(5, 30, 200), deadline=None)
@given(st.data())
def test_any_volume_is_read_back(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    dtype = data.draw(st.sampled_from(DTYPES))
    shape = tuple(data.draw(st.tuples(*[st.integers(1, 3)], *[st.integers(1, 40)] * 3)))
    tile = data.draw(st.tuples(*[st.integers(1, 45)] * 3))
    filters = data.draw(st.sampled_from(FILTERS))
    voxels = voxels_of(shape, dtype, seed=data.draw(st.integers(0, 99)))
    folder = tmp_path_factory.mktemp("any")
    uri = empty(folder / "a", dtype, tile, filters)
    assert writing.write(uri, 3, voxels, ctx())
    of = source(uri, voxels, 3)
    for config in (QUERY, PLAIN, ReadConfig(threads=1)):
        np.testing.assert_array_equal(read_box(of, whole(voxels), config=config), voxels)
    assert is_direct(of)
    shutil.rmtree(folder)


def test_tiledb_sums_up_what_was_written(tmp_path: Path) -> None:
    """Its aggregates are taken from what is told of tiles, not from cells, where a query covers them."""
    voxels = voxels_of((1, 40, 40, 40), "int16")
    theirs, ours = both(tmp_path, voxels, 16, FILTERS[0])
    found = []
    for uri in (theirs, ours):
        with tiledb.open(uri, ctx=ctx()) as array:
            query = array.query(attrs=["voxels"])
            found.append(query.agg(["sum", "min", "max", "count"])[7:8, 0:1, 0:40, 0:40, 0:40])
    assert found[0] == found[1]
    assert found[1]["sum"] == voxels.sum()
    assert (found[1]["min"], found[1]["max"]) == (voxels.min(), voxels.max())


def test_fragments_are_consolidated_and_deleted_by_tiledb(tmp_path: Path) -> None:
    voxels = [voxels_of((1, 20, 20, 20), "int16", seed) for seed in range(3)]
    uri = empty(tmp_path / "a", "int16")
    for slot, volume in enumerate(voxels):
        assert writing.write(uri, slot, volume, ctx())
    tiledb.Array.delete_fragments(uri, 2, 2, ctx=ctx())
    for mode in ("fragment_meta", "commits", "fragments"):
        config = tiledb.Config({"sm.consolidation.mode": mode, "sm.vacuum.mode": mode})
        tiledb.consolidate(uri, config=config, ctx=ctx())
        tiledb.vacuum(uri, config=config, ctx=ctx())
        for slot in (0, 2):
            got = read_box(source(uri, voxels[slot], slot), whole(voxels[slot]), config=QUERY)
            np.testing.assert_array_equal(got, voxels[slot])


# what is left to TileDB -----------------------------------------------------------------------


@pytest.mark.parametrize(
    "voxels",
    [
        np.full((1, 9, 9, 9), np.nan, np.float32),
        np.where(np.arange(729).reshape(1, 9, 9, 9) == 700, np.inf, 1).astype(np.float64),
        np.full((1, 9, 9, 9), 1.7e308),
        np.full((1, 9, 9, 9), 2**62, np.int64),
        np.full((1, 9, 9, 9), 2**63, np.uint64),
    ],
    ids=["nan", "inf", "a sum that is inf", "int64", "uint64"],
)
def test_values_that_are_left_to_tiledb(tmp_path: Path, voxels: np.ndarray) -> None:
    uri = empty(tmp_path / "a", str(voxels.dtype), 4)
    assert not writing.write(uri, 0, voxels, ctx())
    assert not list(Path(uri, "__fragments").iterdir())
    assert not list(Path(uri, "__commits").iterdir())
    store_volume(uri, 0, voxels, QUERY)
    np.testing.assert_array_equal(read_box(source(uri, voxels), whole(voxels), config=QUERY), voxels)


def test_a_sum_that_may_not_fit(tmp_path: Path) -> None:
    few, many = (np.broadcast_to(np.int32(1), (1, 1 << 10, 1 << 11, n)) for n in (1 << 9, 1 << 10))
    layout = kernels.proof_layout("int32")
    writing._check(few, layout)
    with pytest.raises(writing.Refused, match="sum"):
        writing._check(many, layout)


@pytest.mark.parametrize(
    "trouble", ["gzip", "bitshuffle", "encrypted", "the first", "another version", "another dtype"]
)
def test_arrays_that_are_left_to_tiledb(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, trouble: str) -> None:
    voxels, theirs, filters = voxels_of((1, 9, 9, 9), "int16"), ctx(), FILTERS[0]
    if trouble in ("gzip", "bitshuffle"):
        filters = (trouble,)
    if trouble == "encrypted":
        theirs = tiledb.Ctx({"sm.encryption_type": "AES_256_GCM", "sm.encryption_key": "0" * 32})
    if trouble == "the first":
        monkeypatch.setattr(writing, "LEAST", writing._seen + 2 * voxels.nbytes)
    if trouble == "another version":
        monkeypatch.setattr(writing, "VERSION", 23)
    uri = str(tmp_path / "a")
    ensure_shard(uri, "int16", StoreConfig(tiling=4, filters=filters), theirs)
    given = voxels.astype(np.int32) if trouble == "another dtype" else voxels
    assert not writing.write(uri, 0, given, theirs)
    assert not list(Path(uri, "__fragments").iterdir())
    assert writing.write(uri, 0, given, theirs) == (trouble == "the first")


@pytest.mark.parametrize("trouble", ["switched off", "wrong tiles", "wrong sums", "crash", "not installed"])
def test_without_the_kernel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, trouble: str) -> None:
    good_load = packed._load

    def load(dtype: str, anew: bool) -> Any:
        good = good_load(dtype, anew)

        def bad(*given: Any) -> int:
            if trouble == "crash":
                raise KeyError("of the kind that libraries raise")
            size = int(good(*given))
            at, wrong = (given[-1], 8) if trouble == "wrong sums" else (given[-5], size)
            ctypes.memset(at, 1, wrong)
            return size

        if trouble == "not installed":
            raise ImportError("No module named 'numba'")
        return bad

    if trouble == "switched off":
        monkeypatch.setenv(kernels.VARIABLE, "0")
    monkeypatch.setattr(packed, "_load", load)
    monkeypatch.setattr(packed, "_kernels", kernels.Kernels("volumes are written", packed._made))
    voxels = voxels_of((1, 20, 20, 20), "int16")
    uri = empty(tmp_path / "a", "int16")
    assert not writing.write(uri, 0, voxels, ctx())
    assert not list(Path(uri, "__fragments").iterdir())
    store_volume(uri, 0, voxels, ReadConfig())
    np.testing.assert_array_equal(read_box(source(uri, voxels), whole(voxels), config=QUERY), voxels)


@pytest.mark.parametrize("config", [ReadConfig(direct=False), ReadConfig(compiled=False)], ids=["direct", "compiled"])
def test_a_config_that_asks_for_tiledb(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, config: ReadConfig) -> None:
    monkeypatch.setattr(writing, "write", lambda *_: pytest.fail("not asked for"))
    voxels = voxels_of((1, 20, 20, 20), "int16")
    uri = empty(tmp_path / "a", "int16")
    store_volume(uri, 0, voxels, config)
    np.testing.assert_array_equal(read_box(source(uri, voxels), whole(voxels), config=QUERY), voxels)


# faults ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["a0.tdb", "__fragment_metadata.tdb", ".wrt"])
def test_a_disk_that_is_full(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """What was begun is taken away, and the error says which volume of what shape, and why."""
    real = writing.durable

    def full(path: Path) -> Any:
        if path.name.endswith(name):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
        return real(path)

    monkeypatch.setattr(writing, "durable", full)
    voxels = voxels_of((1, 20, 20, 20), "int16")
    uri = empty(tmp_path / "a", "int16")
    with pytest.raises(StoreError, match=r"shape \(1, 20, 20, 20\) to slot 4 of .*No space left"):
        store_volume(uri, 4, voxels, ReadConfig())
    assert not list(Path(uri, "__fragments").iterdir())
    assert not list(Path(uri, "__commits").iterdir())


SCRIPT = """
import json, sys
import numpy as np
from radiodata.store.context import context
from radiodata.store.direct import writing
writing.LEAST, voxels = 0, np.load(sys.argv[2])
print("ready", flush=True)
for slot in range(200):
    assert writing.write(sys.argv[1], slot, voxels, context())
    print(slot, flush=True)
"""


@pytest.mark.parametrize("seed", range(tries(1, 2, 20)))
def test_a_kill_leaves_whole_volumes_or_none(tmp_path: Path, seed: int) -> None:
    voxels = voxels_of((1, 100, 100, 60), "int16")
    np.save(tmp_path / "voxels.npy", voxels)
    uri = empty(tmp_path / "a", "int16", 32)
    command = [sys.executable, "-c", SCRIPT, uri, str(tmp_path / "voxels.npy")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        assert process.stdout.readline() == "0\n"  # the kernel is there
        time.sleep(0.05 + np.random.default_rng(seed).random() / 5)
        process.send_signal(signal.SIGKILL)
        told = [0, *(int(line) for line in process.stdout.read().split())]
    found = tiledb.array_fragments(uri, ctx=ctx())
    slots = sorted(int(domain[0][0]) for domain in found.nonempty_domain)
    assert slots[: len(told)] == told
    assert len(slots) <= len(told) + 1
    for slot in slots:
        got = read_box(source(uri, voxels, slot), whole(voxels), config=QUERY)
        np.testing.assert_array_equal(got, voxels)


def test_what_is_told_of_many_tiles(tmp_path: Path) -> None:
    """Sections of more than 64 KiB, here of 25 x 25 x 23 numbers of 8 bytes, are packed in several chunks."""
    voxels = voxels_of((1, 100, 100, 90), "uint8")
    theirs, ours = both(tmp_path, voxels, 4, FILTERS[0])
    assert files(ours) == files(theirs)
