"""Parts that fetch from object stores, without one: what is merged, how deep, what is kept, and the index."""

from __future__ import annotations

import os
import zlib
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import tiledb
from hypothesis import given, settings
from hypothesis import strategies as st
from small import small_cohort

from radiodata.errors import StoreError, UnreachableError, is_system_error
from radiodata.loading.readahead import Turn
from radiodata.store import Cohort, ReadConfig, writing
from radiodata.store.columns import Column
from radiodata.store.config import s3_endpoint
from radiodata.store.direct.listing import Shard
from radiodata.store.direct.metadata import Fragment
from radiodata.store.direct.plan import Piece
from radiodata.store.direct.schema import Layout
from radiodata.store.index import Index, decode, encode, raw_of
from radiodata.store.remote.cache import TileCache
from radiodata.store.remote.client import place
from radiodata.store.remote.depth import LEAST, Depth
from radiodata.store.remote.fetch import Fetcher, MissingError, merged
from radiodata.store.remote.held import hold, spans_of_tiles
from radiodata.store.remote.vfs import RemoteError

LAYOUT = Layout(np.dtype("int16"), (4, 4, 4), shuffle=True, zstd=True)


@given(st.lists(st.tuples(st.integers(1, 50), st.integers(0, 40)), min_size=1, max_size=40), st.integers(0, 60))
@settings(max_examples=200, deadline=None)
def test_merged_ranges_hold_all_and_waste_no_more_than_the_gap(parts: list[tuple[int, int]], gap: int) -> None:
    spans, at = [], 0
    for size, space in parts:
        spans.append((at, at + size))
        at += size + space
    found = merged(spans, gap)
    assert all(any(a <= first and last <= b for a, b in found) for first, last in spans)
    assert all(second[0] - first[1] > gap for first, second in pairwise(found))
    wanted = {n for first, last in spans for n in range(first, last)}
    for first, last in found:
        assert first in wanted
        assert last - 1 in wanted
        run = 0
        for n in range(first, last):
            run = 0 if n in wanted else run + 1
            assert run <= gap


class Store:
    """A store of some latency and bandwidth, in a time of its own: requests of one size, as many as `depth` allows."""

    def __init__(self, latency: float, bandwidth: float, size: int) -> None:
        self.now, self.latency, self.bandwidth, self.size = 0.0, latency, bandwidth, size

    def run(self, depth: Depth, seconds: float) -> None:
        end = self.now + seconds
        while self.now < end:
            # all that are under way share the pipe: one comes each size / rate
            rate = min(self.bandwidth, depth.limit * self.size / (self.latency + self.size / self.bandwidth))
            self.now += self.size / rate
            depth.note(self.size, depth.limit * self.size / rate, waiting=True)


@pytest.mark.parametrize(("latency", "bandwidth"), [(0.001, 125e6), (0.03, 125e6), (0.1, 125e6), (0.1, 12.5e6)])
def test_the_queue_is_as_deep_as_latency_times_bandwidth(latency: float, bandwidth: float) -> None:
    store = Store(latency, bandwidth, 200_000)
    depth = Depth(64, clock=lambda: store.now)
    store.run(depth, 20)
    rates = []
    for _ in range(40):
        store.run(depth, 0.25)
        rates.append(min(bandwidth, depth.limit * 200_000 / (latency + 200_000 / bandwidth)))
        assert LEAST <= depth.limit <= 64
    assert np.mean(rates) > 0.8 * min(bandwidth, 64 * 200_000 / (latency + 200_000 / bandwidth))
    assert 0 < depth.gap() <= 1 << 20


def test_no_gap_is_read_while_nothing_is_known() -> None:
    assert Depth(64).gap() == 0


def test_turns_go_on_into_the_next_epoch() -> None:
    for stop, stride in ((10, 3), (7, 2), (5, 1), (3, 4)):
        for worker in range(min(stride, stop)):
            steps = [(e, s) for e in range(3) for s in range(worker, stop, stride)]
            turns = [Turn(e, s, stop, stride, goes_on=True) for e, s in steps]
            for n, (turn, after) in enumerate(pairwise(turns)):
                assert turn.number == turns[0].number + n
                assert turn.comes_before(after)
                assert not after.comes_before(turn)
                assert turn.step_of(after.number) == steps[n + 1]
                assert turns[0].step_of(turn.number) == steps[n]
            ends = Turn(0, steps[0][1], stop, stride)
            assert ends.last - ends.number == len(range(worker, stop, stride))


def fragment_with(sizes: list[int], uri: str = "s3://bucket/c/CT/voxels/s/__fragments/f") -> Fragment:
    offsets = np.concatenate([[0], np.cumsum(sizes)]).astype(np.uint32)
    return Fragment(f"{uri}/a0.tdb", LAYOUT, (1, 4, 4, 4 * len(sizes)), offsets)


class Blobs:
    """What a fetcher gives, of one object; counts the ranges."""

    def __init__(self, content: bytes) -> None:
        self.content, self.asked = content, list[tuple[int, int]]()

    def get(self, uri: str, spans: list[tuple[int, int]]) -> list[np.ndarray]:
        self.asked += spans
        return [np.frombuffer(self.content[a:b], np.uint8).copy() for a, b in spans]


@pytest.fixture
def blobs() -> tuple[Fragment, Blobs]:
    rng = np.random.default_rng(0)
    sizes = rng.integers(50, 400, 30).tolist()
    return fragment_with(sizes), Blobs(rng.bytes(sum(sizes)))


def bytes_of(fd: int, fragment: Fragment, tile: int) -> bytes:
    first, last = int(fragment.offsets[tile]), int(fragment.offsets[tile + 1])
    return os.pread(fd, last - first, first)


def pieces(*runs: tuple[int, int]) -> list[Piece]:
    return [Piece(0, 0, 0, first, first, tiles) for first, tiles in runs]


def test_tiles_are_held_at_their_own_offsets(blobs: tuple[Fragment, Blobs]) -> None:
    fragment, store = blobs
    file = hold(store, fragment, pieces((3, 2), (10, 1), (4, 3)), 0)  # type: ignore[arg-type]
    assert [bytes_of(file.fd, fragment, t) for t in (3, 4, 5, 6, 10)] == [
        store.content[int(fragment.offsets[t]) : int(fragment.offsets[t + 1])] for t in (3, 4, 5, 6, 10)
    ]
    assert len(store.asked) == 2
    assert spans_of_tiles(fragment, np.array([3, 5]), 1 << 20) == [(int(fragment.offsets[3]), int(fragment.offsets[6]))]


def test_what_is_cached_is_not_fetched_again_by_anyone(tmp_path: Path, blobs: tuple[Fragment, Blobs]) -> None:
    fragment, store = blobs
    for n in range(3):
        cache = TileCache(str(tmp_path / "tiles"), 1 << 30)
        file = cache.hold(cache.open(fragment), store, fragment, pieces((3, 4), (20, 2)), 0)  # type: ignore[arg-type]
        assert bytes_of(file.fd, fragment, 21) == store.content[int(fragment.offsets[21]) : int(fragment.offsets[22])]
        assert len(store.asked) == 2, n
    cache.hold(cache.open(fragment), store, fragment, pieces((5, 4)), 0)  # type: ignore[arg-type]
    assert store.asked[2:] == [(int(fragment.offsets[7]), int(fragment.offsets[9]))]


@pytest.mark.parametrize("damage", ["flipped", "entry", "cut", "no data"])
def test_damage_in_the_cache_is_fetched_again(tmp_path: Path, blobs: tuple[Fragment, Blobs], damage: str) -> None:
    fragment, store = blobs
    first = TileCache(str(tmp_path), 1 << 30)
    first.hold(first.open(fragment), store, fragment, pieces((0, 30)), 0)  # type: ignore[arg-type]
    folder, at = first.folder(fragment.data), int(fragment.offsets[5])
    with (folder / "data").open("r+b") as data, (folder / "tiles").open("r+b") as table:
        if damage == "flipped":
            data.seek(at)
            byte = data.read(1)[0]
            data.seek(at)
            data.write(bytes([byte ^ 1]))
        elif damage == "entry":
            table.seek(8 * 5)
            table.write(bytes(8))
        else:
            data.truncate(at if damage == "cut" else 0)
    cache = TileCache(str(tmp_path), 1 << 30)
    file = cache.hold(cache.open(fragment), store, fragment, pieces((0, 30)), 0)  # type: ignore[arg-type]
    assert len(store.asked) > 1
    for tile in range(30):
        assert (
            bytes_of(file.fd, fragment, tile)
            == store.content[int(fragment.offsets[tile]) : int(fragment.offsets[tile + 1])]
        )


def test_the_cache_keeps_within_its_bytes_and_drops_what_was_used_longest_ago(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    cache = TileCache(str(tmp_path), 1_000_000)
    for n in range(12):
        fragment = fragment_with([20_000] * 10, f"s3://b/f{n}")
        store = Blobs(rng.bytes(200_000))
        cache.hold(cache.open(fragment), store, fragment, pieces((0, 10)), 0)  # type: ignore[arg-type]
        os.utime(cache.folder(fragment.data) / "tiles", (n, n))
        used = sum(f.stat().st_blocks * 512 for f in tmp_path.rglob("*") if f.is_file())
        assert used <= 1_000_000 + 220_000
    cache.make_room()
    left = [n for n in range(12) if cache.folder(f"s3://b/f{n}/a0.tdb").exists()]
    assert left == list(range(12 - len(left), 12))
    assert 2 <= len(left) <= 4


def test_a_cache_that_cannot_be_written_is_done_without(
    tmp_path: Path, blobs: tuple[Fragment, Blobs], monkeypatch: pytest.MonkeyPatch
) -> None:
    fragment, store = blobs
    cache = TileCache(str(tmp_path), 1 << 30)
    opened = cache.open(fragment)

    def full(*_: Any) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(type(opened), "put", full)
    file = cache.hold(opened, store, fragment, pieces((2, 2)), 0)  # type: ignore[arg-type]
    assert bytes_of(file.fd, fragment, 3) == store.content[int(fragment.offsets[3]) : int(fragment.offsets[4])]


def test_an_index_holds_what_was_put_in(tmp_path: Path) -> None:
    obs = small_cohort(tmp_path, subjects=3).CT.obs
    columns = [
        Column("obs_subject_id", "string"),
        Column("size_x", "int"),
        Column("affine", "floats"),
        Column("value_mean", "float"),
    ]
    frame = obs[[c.name for c in columns]]
    raw = raw_of("obs_id", frame, columns)
    uri = "s3://bucket/deep/cohort"
    shard = Shard(LAYOUT, "__1_2_abc", {0: f"{uri}/CT/voxels/s/__fragments/f0", 3: None})
    offsets = np.array([0, 7, 9, 1 << 33], np.uint64)
    index = Index({"CT/obs/1": raw}, {"CT/voxels/s": shard}, {"CT/voxels/s/__fragments/f0": offsets})
    found = decode(encode(index), f"{uri}/__commits/000000000001.index")
    assert found.shards == {f"{uri}/CT/voxels/s": shard}
    np.testing.assert_array_equal(found.tiles[f"{uri}/CT/voxels/s/__fragments/f0"], offsets)
    table = found.tables["CT/obs/1"]
    assert list(table.ids) == list(raw.ids)
    rows = np.arange(len(frame))
    for column in columns:
        pd.testing.assert_series_equal(
            pd.Series(table.take(column.name, rows)), pd.Series(raw.take(column.name, rows)), check_exact=True
        )


@pytest.mark.parametrize("raw", [b"", b"nonsense", zlib.compress(b"nonsense")])
def test_a_damaged_index_says_so(raw: bytes) -> None:
    with pytest.raises(StoreError, match=r"index s3://b/c/__commits/1.index is damaged"):
        decode(raw, "s3://b/c/__commits/1.index")


def test_nothing_secret_is_shown() -> None:
    config = ReadConfig(
        tiledb={
            "vfs.s3.aws_access_key_id": "AKIA-hidden",
            "vfs.s3.aws_secret_access_key": "hidden",
            "vfs.s3.aws_session_token": "hidden",
            "vfs.azure.storage_account_key": "hidden",
            "vfs.azure.storage_sas_token": "hidden",
            "vfs.azure.blob_endpoint": "http://user:hidden@host/account?sig=hidden",
            "vfs.s3.region": "us-east-1",
        }
    )
    assert "us-east-1" in repr(config)
    assert "hidden" not in repr(config)
    assert "hidden" not in place("azure://scans/a/b", config)
    assert place("azure://scans/a/b", config) == "'a/b' of container 'scans' at http://host/account"


def test_an_endpoint_comes_from_where_aws_tools_look(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9000")
    settings = ReadConfig().to_tiledb()
    assert settings["vfs.s3.endpoint_override"] == "127.0.0.1:9000"
    assert settings["vfs.s3.scheme"] == "http"
    assert settings["vfs.s3.use_virtual_addressing"] == "false"
    own = ReadConfig(tiledb={"vfs.s3.endpoint_override": "other:1"}).to_tiledb()
    assert own["vfs.s3.endpoint_override"] == "other:1"
    assert s3_endpoint(None) == {}
    assert "vfs.s3.use_virtual_addressing" not in s3_endpoint("https://s3.eu-west-1.amazonaws.com")


def test_a_store_that_is_down_is_no_fault_of_a_sample() -> None:
    assert is_system_error(UnreachableError("down"))


class Down:
    """Access to a store of which folders are listed, and whose objects are not given."""

    requests = bytes_read = listed = 0

    def open(self, uri: str) -> None:
        raise RemoteError(f"503 for {uri}")

    def list(self, uri: str) -> dict[str, int]:
        self.listed += 1
        return {"object": 100}


def test_a_folder_is_listed_once_for_each_failure_that_asks_for_it() -> None:
    store: Any = Down()
    fetcher = Fetcher(lambda: store, 2.0, 4, None, str)
    with pytest.raises(UnreachableError, match="503"):
        fetcher.get("s3://bucket/object", [(0, 10)])
    assert 1 <= store.listed <= 3
    with pytest.raises(MissingError):
        fetcher.get("s3://bucket/other", [(0, 10)])


def test_an_index_that_cannot_be_written_costs_requests_and_no_commit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    uri = str(tmp_path / "cohort")
    small_cohort(tmp_path)

    def fails(*_: object) -> None:
        raise tiledb.TileDBError("the bucket is full")

    monkeypatch.setattr(writing, "write_index", fails)
    monkeypatch.setattr(writing, "local_path", lambda _: None)
    cohort = Cohort(uri)
    subject = cohort.obs_meta.index[0]
    with pytest.warns(
        RuntimeWarning, match=r"version \d+ of the cohort at .* is whole, but its index .*bucket is full"
    ):
        cohort.update_obs_meta(pd.DataFrame({"seen": [True]}, index=[subject]))
    assert bool(Cohort(uri).obs_meta.loc[subject, "seen"])
