"""Tiles read without TileDB are the voxels that TileDB gives; what is not known goes through TileDB."""

from __future__ import annotations

import logging
import shutil
import tempfile
import weakref
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tiledb
from conftest import Tiny
from direct_store import (
    FILTERS,
    KERNEL,
    PLAIN,
    QUERY,
    SHARED,
    ctx,
    fragment,
    is_direct,
    shard,
    source,
    voxels_of,
    whole,
)
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from radiodata.errors import TileReadError
from radiodata.store import ReadConfig, StoreConfig, read_box, read_crops
from radiodata.store.direct import Refused, compiled, listing, metadata, process, schema
from radiodata.store.direct.listing import local_path
from radiodata.store.direct.schema import layout_of
from radiodata.store.writer import consolidate_metadata, ensure_shard, write_volume

sides = st.tuples(*[st.integers(1, 20)] * 3)


@st.composite
def boxes(draw: st.DrawFn, shape: tuple[int, ...]) -> tuple[np.ndarray, tuple[int, int]]:
    low = [draw(st.integers(0, n - 1)) for n in shape]
    high = [draw(st.integers(lo + 1, n)) for lo, n in zip(low, shape, strict=True)]
    return np.array([low[1:], high[1:]]).T, (low[0], high[0])


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(data=st.data())
def test_any_box_is_what_tiledb_gives(data: st.DataObject) -> None:
    shape = (data.draw(st.integers(1, 3)), *data.draw(st.tuples(*[st.integers(1, 45)] * 3)))
    dtype = data.draw(st.sampled_from(["int16", "uint8", "float32", "int8", "uint16", "int32", "float64", "uint64"]))
    filters = data.draw(st.sampled_from([FILTERS, ("byteshuffle", "zstd:-1"), ("zstd:1",), ()]))
    voxels = voxels_of(shape, dtype, seed=data.draw(st.integers(0, 9)))
    with tempfile.TemporaryDirectory() as folder:
        uri = shard(Path(folder, "a"), voxels_of((1, 5, 5, 5), dtype), voxels, tile=data.draw(sides), filters=filters)
        of = source(uri, voxels, slot=1)
        assert is_direct(of)
        for box, channels in [data.draw(boxes(shape)) for _ in range(3)]:
            expected = read_box(of, box, channels=channels, config=QUERY)
            np.testing.assert_array_equal(expected, voxels[(slice(*channels), *(slice(*span) for span in box))])
            for config in (PLAIN, KERNEL, SHARED):
                found = read_box(of, box, channels=channels, config=config)
                assert found.dtype == expected.dtype
                assert found.flags.c_contiguous
                assert found.tobytes() == expected.tobytes()


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(data=st.data())
def test_crops_of_a_box_are_parts_of_it(data: st.DataObject) -> None:
    shape = (data.draw(st.integers(1, 3)), *data.draw(st.tuples(*[st.integers(1, 45)] * 3)))
    dtype = data.draw(st.sampled_from(["int16", "uint8", "float32", "float64"]))
    filters = data.draw(st.sampled_from([FILTERS, ("byteshuffle", "zstd:-1"), ("zstd:1",), ()]))
    voxels = voxels_of(shape, dtype, seed=data.draw(st.integers(0, 9)))
    size = data.draw(st.tuples(*[st.one_of(st.integers(1, n), st.just(max(n // 32 * 32, 1))) for n in shape[1:]]))
    corner = st.tuples(*[st.integers(0, n - side) for n, side in zip(shape[1:], size, strict=True)])
    starts = np.array(data.draw(st.lists(corner, min_size=1, max_size=5)), np.int64)
    slack = np.array(data.draw(st.tuples(*[st.integers(0, 9)] * 3)))
    low, high = np.maximum(starts.min(0) - slack, 0), np.minimum(starts.max(0) + size + slack, shape[1:])
    with tempfile.TemporaryDirectory() as folder:
        uri = shard(Path(folder, "a"), voxels_of((1, 5, 5, 5), dtype), voxels, tile=data.draw(sides), filters=filters)
        for config in (QUERY, PLAIN, KERNEL, SHARED):
            memory = np.full((len(starts), shape[0], *size), 77, dtype)  # one array, as of a batch
            read_crops(source(uri, voxels, slot=1), np.stack([low, high], 1), starts, list(memory), config=config)
            for found, (x, y, z) in zip(memory, starts.tolist(), strict=True):
                part = voxels[:, x : x + size[0], y : y + size[1], z : z + size[2]]
                assert found.tobytes() == part.tobytes()


@pytest.mark.parametrize("shape", [(32, 32, 32), (20, 30, 31)])
def test_crops_are_cut_by_the_kernel_where_a_column_of_tiles_is_small(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, shape: tuple[int, int, int]
) -> None:
    voxels, cuts = voxels_of((2, 70, 80, 90), "int16"), []
    of = source(shard(tmp_path / "a", voxels, tile=32), voxels)
    starts, box = np.array([[1, 2, 3], [38, 48, 58], [1, 48, 3]]), whole(voxels)
    plain, seen = compiled.cutter, []

    def cutter(*of: object) -> object:
        cuts.append(plain(*of))  # type: ignore[arg-type]
        return cuts[-1]

    monkeypatch.setattr(compiled, "cutter", cutter)
    for most in (1 << 20, 100_000):  # a column has 32 x 32 x 90 voxels
        monkeypatch.setattr(compiled, "COLUMN_BYTES", most)
        memory = np.empty((3, 2, *shape), np.int16)
        read_crops(of, box, starts, list(memory), config=KERNEL)
        seen.append(memory)
    assert cuts[0] is not None
    assert cuts[1] is None
    np.testing.assert_array_equal(*seen)


def test_crops_that_are_not_in_the_box_are_refused(tmp_path: Path) -> None:
    voxels = voxels_of((1, 40, 40, 40), "int16")
    of, box = source(shard(tmp_path / "a", voxels), voxels), np.array([[8, 30], [8, 30], [8, 30]])
    crops = [np.empty((1, 10, 10, 10), np.int16) for _ in range(2)]
    for start in ([7, 9, 9], [9, 9, 21]):
        with pytest.raises(ValueError, match="not all inside of the box"):
            read_crops(of, box, np.array([[9, 9, 9], start]), crops)
    with pytest.raises(ValueError, match="is empty or outside"):
        read_crops(of, np.array([[8, 30], [8, 30], [8, 41]]), np.array([[9, 9, 9]] * 2), crops)
    with pytest.raises(ValueError, match=r"all must be \(1, 10, 10, 10\)"):
        read_crops(of, box, np.array([[9, 9, 9]] * 2), [crops[0], np.empty((1, 10, 10, 9), np.int16)])
    for odd in (np.empty((1, 10, 10, 20), np.int16)[..., ::2], np.empty((1, 10, 10, 10), np.int32)):
        read_crops(of, box, np.array([[9, 9, 9]] * 2), [crops[0], odd], config=KERNEL)  # read whole, and copied
        np.testing.assert_array_equal(odd, voxels[:, 9:19, 9:19, 9:19])
        for config in (KERNEL, QUERY):  # the box itself, too
            odd[...] = -9
            read_crops(of, np.array([[9, 19]] * 3), np.array([[9, 9, 9]]), [odd], config=config)
            np.testing.assert_array_equal(odd, voxels[:, 9:19, 9:19, 9:19])


@pytest.mark.parametrize("tile", [32, 64, (48, 32, 40), "axial", "sagittal", "coronal", (70, 80, 90)])
@pytest.mark.parametrize("dtype", ["int16", "uint8", "float32"])
def test_tiles_of_several_chunks(tmp_path: Path, dtype: str, tile: object) -> None:
    voxels = voxels_of((2, 70, 97, 100), dtype)
    of = source(shard(tmp_path / "a", voxels, tile=tile), voxels)
    box = np.array([[3, 69], [30, 97], [1, 99]])
    for config in (PLAIN, KERNEL, SHARED):
        assert is_direct(of, config)
        np.testing.assert_array_equal(read_box(of, whole(voxels), config=config), voxels)
        np.testing.assert_array_equal(read_box(of, box, channels=(1, 2), config=config), voxels[1:2, 3:69, 30:97, 1:99])


def test_values_without_a_pattern_are_larger_packed_than_plain(tmp_path: Path) -> None:
    voxels = np.random.default_rng(0).integers(0, 1 << 63, (1, 40, 40, 40), np.uint64)
    for filters in (FILTERS, ("zstd:3",), ()):
        of = source(shard(tmp_path / "-".join(("a", *filters)), voxels, tile=40, filters=filters), voxels)
        for config in (PLAIN, KERNEL):
            assert is_direct(of, config)
            np.testing.assert_array_equal(read_box(of, whole(voxels), config=config), voxels)


@pytest.mark.parametrize("consolidated", [False, True])
@pytest.mark.parametrize("prefix", ["", "file://"])
def test_many_volumes_of_a_shard(tmp_path: Path, consolidated: bool, prefix: str) -> None:
    volumes = [voxels_of((1, 20 + n, 30, 25 - n), "int16", n) for n in range(6)]
    uri = shard(tmp_path / "a b", *volumes)
    if consolidated:
        consolidate_metadata([uri], ctx())
    for slot, voxels in enumerate(volumes):
        of = source(prefix + uri, voxels, slot)
        assert is_direct(of)
        np.testing.assert_array_equal(read_box(of, whole(voxels), config=PLAIN), voxels)


def test_a_cohort_is_read_directly(tiny: Tiny) -> None:
    for name in ("CT", "seg"):
        for volume in tiny.cohort[name]:
            assert is_direct(volume.source)
            assert is_direct(volume.source, KERNEL)
            np.testing.assert_array_equal(volume.to_numpy(), tiny.arrays[volume.obs_id])


# what goes through TileDB ----------------------------------------------------------------------


def through_tiledb(of, voxels: np.ndarray, config: ReadConfig = KERNEL) -> None:
    assert not is_direct(of, config)
    np.testing.assert_array_equal(read_box(of, whole(voxels), config=config), voxels)


@pytest.fixture
def voxels() -> np.ndarray:
    return voxels_of((1, 33, 20, 40), "int16")


@pytest.mark.parametrize(
    "filters",
    [
        ("bitshuffle", "zstd:3"),
        ("byteshuffle", "lz4"),
        ("byteshuffle", "zstd:3", "sha256"),
        ("byteshuffle", "gzip:3"),
        ("byteshuffle",),
        ("zstd:3", "byteshuffle"),
    ],
)
def test_other_filters(tmp_path: Path, voxels: np.ndarray, filters: tuple[str, ...]) -> None:
    through_tiledb(source(shard(tmp_path / "a", voxels, filters=filters), voxels), voxels)


def test_a_slot_written_twice(tmp_path: Path, voxels: np.ndarray) -> None:
    uri = shard(tmp_path / "a", voxels // 2)
    with tiledb.open(uri, "w", timestamp=9, ctx=ctx()) as array:
        array[(slice(0, 1), *(slice(0, n) for n in voxels.shape))] = voxels[None]
    through_tiledb(source(uri, voxels), voxels)


def test_a_fragment_of_two_slots(tmp_path: Path, voxels: np.ndarray) -> None:
    uri = str(tmp_path / "a")
    ensure_shard(uri, "int16", StoreConfig(tiling=16), ctx())
    with tiledb.open(uri, "w", ctx=ctx()) as array:
        array[(slice(0, 2), *(slice(0, n) for n in voxels.shape))] = np.stack([voxels, voxels + 1])
    through_tiledb(source(uri, voxels, 0), voxels)
    through_tiledb(source(uri, voxels, 1), voxels + 1)


@pytest.mark.parametrize("vacuumed", [False, True])
def test_fragments_that_were_merged(tmp_path: Path, voxels: np.ndarray, vacuumed: bool) -> None:
    others = [voxels_of((1, 33, 20, 40), "int16", n) for n in (1, 2)]
    uri = shard(tmp_path / "a", voxels, *others)
    before = source(uri, voxels)
    assert read_box(before, whole(voxels)).tobytes() == voxels.tobytes()
    config = tiledb.Config({"sm.consolidation.mode": "fragments"})
    tiledb.consolidate(uri, config=config, ctx=ctx())
    if vacuumed:
        tiledb.vacuum(uri, config=tiledb.Config({"sm.vacuum.mode": "fragments"}), ctx=ctx())
    assert len(tiledb.array_fragments(uri, ctx=ctx()).uri) == 1
    for slot, each in enumerate((voxels, *others)):
        through_tiledb(source(uri, each, slot), each)
    np.testing.assert_array_equal(read_box(before, whole(voxels)), voxels)


def test_a_fragment_of_another_shape_than_the_row(tmp_path: Path, voxels: np.ndarray) -> None:
    uri = shard(tmp_path / "a", voxels)
    through_tiledb(source(uri, voxels[:, :30]), voxels[:, :30])
    larger = np.full((1, 34, 20, 40), np.iinfo("int16").min, np.int16)
    larger[:, :33] = voxels
    through_tiledb(source(uri, larger), larger)


def test_an_uncommitted_and_a_deleted_fragment(tmp_path: Path, voxels: np.ndarray) -> None:
    uri = shard(tmp_path / "a", voxels, voxels + 1)
    tiledb.Array.delete_fragments(uri, 1, 1, ctx=ctx())
    assert not is_direct(source(uri, voxels, 0))
    assert is_direct(source(uri, voxels, 1))
    for commit in Path(uri, "__commits").iterdir():
        commit.unlink()
    for slot in (0, 1):
        assert not is_direct(source(uri, voxels, slot))
        with pytest.raises(TileReadError, match="holds no voxels for it"):
            read_box(source(uri, voxels, slot), whole(voxels))


def test_a_schema_that_was_changed(tmp_path: Path, voxels: np.ndarray) -> None:
    uri = shard(tmp_path / "a", voxels)
    for change in ("add_attribute", "drop_attribute"):
        evolution = tiledb.ArraySchemaEvolution(ctx())
        other = tiledb.Attr("other", dtype=np.int16, ctx=ctx())
        getattr(evolution, change)(other if change == "add_attribute" else "other")
        evolution.array_evolve(uri)
        through_tiledb(source(uri, voxels), voxels)


def test_an_encrypted_array(tmp_path: Path, voxels: np.ndarray) -> None:
    keys = {"sm.encryption_type": "AES_256_GCM", "sm.encryption_key": "0" * 32}
    theirs, uri = tiledb.Ctx(keys), str(tmp_path / "a")
    ensure_shard(uri, "int16", StoreConfig(tiling=16), theirs)
    write_volume(uri, 0, voxels, theirs)
    through_tiledb(source(uri, voxels), voxels, ReadConfig(threads=1, tiledb=keys))


def test_a_dtype_that_is_not_the_row_s(tmp_path: Path, voxels: np.ndarray) -> None:
    assert not is_direct(source(shard(tmp_path / "a", voxels), voxels, dtype="int32"))


@pytest.mark.parametrize(
    ("room", "name", "value"),
    [(process, "_ABLE", False), (metadata, "VERSIONS", (21,)), (schema, "_MAX_TILE", 1000)],
    ids=["big-endian", "another format version", "huge tiles"],
)
def test_a_machine_or_format_that_is_not_known(
    tmp_path: Path, voxels: np.ndarray, monkeypatch: pytest.MonkeyPatch, room: object, name: str, value: object
) -> None:
    monkeypatch.setattr(room, name, value)
    through_tiledb(source(shard(tmp_path / "a", voxels), voxels), voxels)


def test_a_tiledb_that_tells_other_things(tmp_path: Path, voxels: np.ndarray, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listing.tiledb, "array_fragments", lambda uri, ctx: object())
    through_tiledb(source(shard(tmp_path / "a", voxels), voxels), voxels)


def test_switched_off(tmp_path: Path, voxels: np.ndarray, monkeypatch: pytest.MonkeyPatch) -> None:
    of = source(shard(tmp_path / "a", voxels), voxels)
    monkeypatch.setattr(process, "list_shard", lambda *_: pytest.fail("asked the direct path"))
    np.testing.assert_array_equal(read_box(of, whole(voxels), config=QUERY), voxels)
    assert ReadConfig().direct
    assert ReadConfig().compiled


@pytest.mark.parametrize(
    ("uri", "path"),
    [
        ("a/b c", "a/b c"),
        ("/a/b", "/a/b"),
        ("file:///a/b", "/a/b"),
        ("file://host/a", None),
        ("s3://bucket/a", None),
        ("mem://a", None),
        ("azure://c/a", None),
        ("tiledb://ns/a", None),
    ],
)
def test_what_is_local(uri: str, path: str | None) -> None:
    assert local_path(uri) == path


def made_schema(**changes: object) -> tiledb.ArraySchema:
    given = {"dims": 5, "name": "voxels", "dtype": np.int16, "extent": 1, "low": 0, "kind": np.uint32} | changes
    names = "vcxyz"[: given["dims"]]
    dims = [
        tiledb.Dim(
            n,
            domain=(given["low"], 255),
            tile=given["extent"] if n in "vc" else 8,
            dtype=given["kind"],
            ctx=ctx(),
        )
        for n in names
    ]
    filters = tiledb.FilterList([tiledb.ZstdFilter(ctx=ctx())], chunksize=given.get("chunk"), ctx=ctx())
    attrs = [
        tiledb.Attr(n, dtype=given["dtype"], nullable=given.get("nullable"), filters=filters, ctx=ctx())
        for n in given.get("attrs", [given["name"]])
    ]
    keep = {k: v for k, v in given.items() if k in ("cell_order", "tile_order", "sparse")}
    return tiledb.ArraySchema(tiledb.Domain(*dims, ctx=ctx()), attrs=attrs, ctx=ctx(), **keep)


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"sparse": True}, "sparse"),
        ({"attrs": ["voxels", "more"]}, "several attributes"),
        ({"cell_order": "col-major"}, "orders are"),
        ({"tile_order": "col-major"}, "orders are"),
        ({"name": "other"}, "not plain voxels"),
        ({"nullable": True}, "not plain voxels"),
        ({"dtype": np.complex64}, "dtype is complex64"),
        ({"dtype": "datetime64[ns]"}, "dtype is datetime64"),
        ({"dims": 4}, "4 dimensions"),
        ({"extent": 2}, "spans volumes"),
        ({"low": 1}, "not uint32 from 0"),
        ({"kind": np.int64}, "not uint32 from 0"),
        ({"chunk": 4096}, "chunks are of 4096"),
    ],
)
def test_other_schemas(changes: dict, why: str) -> None:
    layout_of(made_schema())
    with pytest.raises(Refused, match=why):
        layout_of(made_schema(**changes))


# what the user is told -------------------------------------------------------------------------


def test_each_cause_is_told_once(
    tmp_path: Path, voxels: np.ndarray, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(process, "_told", set())
    caplog.set_level(logging.INFO, "radiodata.store")
    uris = [shard(tmp_path / f, voxels, filters=("byteshuffle", f)) for f in ("lz4", "gzip")]
    for uri in (*uris, *uris):
        read_box(source(uri, voxels), whole(voxels), config=PLAIN)
    told = [r.getMessage() for r in caplog.records if "TileDB query" in r.getMessage()]
    assert len(told) == 2
    assert all(uri in line for uri, line in zip(uris, told, strict=True))
    assert "its filters are byteshuffle, lz4" in told[0]
    assert all(r.levelno == logging.INFO for r in caplog.records)


def test_a_refusal_holds_no_voxels(tmp_path: Path, voxels: np.ndarray) -> None:
    of = source(shard(tmp_path / "a", voxels, filters=("byteshuffle", "lz4")), voxels)
    of_a_slot = source(shard(tmp_path / "b", voxels[:, :30]), voxels)
    for each in (of, of, of_a_slot, of_a_slot):
        found = weakref.ref(read_box(each, whole(voxels[:, :30]), config=PLAIN))
        assert found() is None


def test_an_array_made_anew_is_read_anew(tmp_path: Path, voxels: np.ndarray) -> None:
    uri = shard(tmp_path / "a", voxels)
    old = source(uri, voxels)
    read_box(old, whole(voxels))
    shutil.rmtree(uri)
    with pytest.raises(TileReadError, match="cannot read"):
        read_box(old, whole(voxels))
    shard(tmp_path / "a", voxels + 1)
    np.testing.assert_array_equal(read_box(source(uri, voxels), whole(voxels)), voxels + 1)
    assert fragment(uri).is_dir()
    assert replace(old, token="x") != old
