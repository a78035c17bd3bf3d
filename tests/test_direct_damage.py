"""Damaged, cut and deleted files: an error, or what TileDB gives; never a crash, never other voxels in silence."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from direct_store import FILTERS, KERNEL, PLAIN, QUERY, SHARED, fragment, is_direct, shard, source, voxels_of, whole

from radiodata.errors import TileReadError
from radiodata.store import ReadConfig, VoxelSource, read_box, read_crops
from radiodata.store.direct import Refused
from radiodata.store.direct.metadata import parse
from radiodata.store.direct.schema import Layout

SHAPE = (1, 34, 30, 50)
WAYS = [PLAIN, KERNEL, SHARED]


@pytest.fixture
def voxels() -> np.ndarray:
    return voxels_of(SHAPE, "int16")


def outcome(of: VoxelSource, voxels: np.ndarray, config: ReadConfig) -> np.ndarray | str:
    try:
        return read_box(of, whole(voxels), config=config)
    except TileReadError as error:
        return str(error)


def crops_of(of: VoxelSource, voxels: np.ndarray, config: ReadConfig) -> np.ndarray | str:
    """Outcome of the volume in two crops."""
    _, x, y, z = voxels.shape
    out = np.empty((2, 1, x, y, z - 20), voxels.dtype)
    try:
        read_crops(of, whole(voxels), np.array([[0, 0, 0], [0, 0, 20]]), list(out), config=config)
    except TileReadError as error:
        return str(error)
    return np.concatenate([out[0][..., :20], out[1]], axis=-1)


def flipped(good: bytes, at: int, bit: int) -> bytes:
    bad = bytearray(good)
    bad[at] ^= 1 << bit
    return bytes(bad)


@pytest.mark.parametrize("filters", [FILTERS, ("zstd:3",), ()], ids=["shuffled", "zstd", "bare"])
def test_flipped_bits_of_tiles(tmp_path: Path, voxels: np.ndarray, filters: tuple[str, ...]) -> None:
    """Heads and data of tiles: as TileDB has it, or the true voxels where TileDB finds an error that is none."""
    uri = shard(tmp_path / "a", voxels, filters=filters)
    data, rng = fragment(uri) / "a0.tdb", np.random.default_rng(0)
    good, unnoticed, refused = data.read_bytes(), 0, 0
    for at in [*range(70), *rng.integers(70, len(good), 50).tolist()]:
        data.write_bytes(flipped(good, at, int(rng.integers(8))))
        expected = outcome(source(uri, voxels), voxels, QUERY)
        ways = [*((outcome, config) for config in WAYS), (crops_of, KERNEL), (crops_of, PLAIN)]
        for read, config in ways:
            found = read(source(uri, voxels), voxels, config)
            if isinstance(found, str):
                assert isinstance(expected, str) or "the tile is damaged" in found  # TileDB gives what is in memory
                refused += 1
            elif isinstance(expected, str):
                np.testing.assert_array_equal(found, voxels, err_msg=f"byte {at}")
            else:
                np.testing.assert_array_equal(found, expected, err_msg=f"byte {at}")
                unnoticed += not np.array_equal(found, voxels)
    assert refused + unnoticed > 0


def test_flipped_bits_of_metadata(tmp_path: Path, voxels: np.ndarray) -> None:
    """Any flipped bit is refused, or leaves every offset as it was. TileDB itself is not asked: some end it."""
    uri = shard(tmp_path / "a", voxels)
    folder, layout = str(fragment(uri)), Layout(np.dtype("int16"), (16, 16, 16), shuffle=True, zstd=True)
    (schema,) = (p.name for p in Path(uri, "__schema").iterdir() if p.is_file())
    good = (fragment(uri) / "__fragment_metadata.tdb").read_bytes()
    whole = parse(good, folder, 0, SHAPE, schema, layout)
    refused, rng = 0, np.random.default_rng(0)
    footer = len(good) - 8 - int.from_bytes(good[-8:], "little")
    for at in [*range(footer, len(good)), *rng.integers(0, footer, 1500).tolist()]:
        try:
            found = parse(flipped(good, at, int(rng.integers(8))), folder, 0, SHAPE, schema, layout)
        except Refused:
            refused += 1
            continue
        np.testing.assert_array_equal(found.offsets[:-1], whole.offsets[:-1])  # the last is the size of the file
    assert refused > 150
    for cut in range(0, len(good), 7):
        with pytest.raises(Refused):
            parse(good[:cut], folder, 0, SHAPE, schema, layout)
    for slot, shape, name in ((1, SHAPE, schema), (0, (1, 34, 30, 49), schema), (0, SHAPE, schema[:-1] + "x")):
        with pytest.raises(Refused):
            parse(good, folder, slot, shape, name, layout)
    with pytest.raises(Refused, match="named"):
        parse(good, folder[:-2] + "21", 0, SHAPE, schema, layout)


@pytest.mark.parametrize("name", ["a0.tdb", "__fragment_metadata.tdb"])
@pytest.mark.parametrize("kept", [0, 0.3, 0.999])
def test_a_file_cut_short_before_it_is_read(tmp_path: Path, voxels: np.ndarray, name: str, kept: float) -> None:
    uri = shard(tmp_path / "a", voxels)
    path = fragment(uri) / name
    path.write_bytes(path.read_bytes()[: int(kept * path.stat().st_size)])
    for config in WAYS:
        with pytest.raises(TileReadError, match="cannot read") as caught:
            read_box(source(uri, voxels), whole(voxels), config=config)
        for named in ("v0", "subject 's'", "slot 0", uri, "0:34, 0:30, 0:50"):
            assert named in str(caught.value)


def cut(uri: str) -> None:
    with (fragment(uri) / "a0.tdb").open("r+b") as stream:
        stream.truncate(2000)


def delete_data(uri: str) -> None:
    (fragment(uri) / "a0.tdb").unlink()


def delete_fragment(uri: str) -> None:
    shutil.rmtree(fragment(uri))


HARM: list[Callable[[str], None]] = [cut, delete_data, delete_fragment, shutil.rmtree]


@pytest.mark.parametrize("config", WAYS, ids=["plain", "kernel", "shared"])
@pytest.mark.parametrize("harm", HARM)
def test_what_happens_in_mid_run(
    tmp_path: Path, voxels: np.ndarray, harm: Callable[[str], None], config: ReadConfig
) -> None:
    of = source(shard(tmp_path / "a", voxels), voxels)
    np.testing.assert_array_equal(read_box(of, whole(voxels), config=config), voxels)
    harm(of.uri)
    with pytest.raises(TileReadError, match="cannot read"):
        read_box(of, whole(voxels), config=config)


def test_a_file_that_grew_is_left_to_tiledb(tmp_path: Path, voxels: np.ndarray) -> None:
    of = source(shard(tmp_path / "a", voxels), voxels)
    np.testing.assert_array_equal(read_box(of, whole(voxels)), voxels)
    with (fragment(of.uri) / "a0.tdb").open("ab") as stream:
        stream.write(b"more")
    assert not is_direct(of)
    np.testing.assert_array_equal(read_box(of, whole(voxels)), voxels)


def test_a_damaged_tile_is_no_matter_for_the_others(tmp_path: Path, voxels: np.ndarray) -> None:
    uri = shard(tmp_path / "a", voxels)
    data = fragment(uri) / "a0.tdb"
    good = data.read_bytes()
    data.write_bytes(good[:-400] + bytes(400))
    box = np.array([[0, 16], [0, 16], [0, 16]])
    for config in WAYS:
        np.testing.assert_array_equal(read_box(source(uri, voxels), box, config=config), voxels[:, :16, :16, :16])
        with pytest.raises(TileReadError, match="cannot read"):
            read_box(source(uri, voxels), whole(voxels), config=config)


def test_a_damaged_read_by_several_threads_ends_before_it_is_read_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What TileDB then writes into the output must not be overwritten by a helper that is late."""
    voxels = voxels_of((1, 130, 130, 130), "int16")
    of = source(shard(tmp_path / "a", voxels, tile=32), voxels)
    data = fragment(of.uri) / "a0.tdb"
    good = data.read_bytes()
    data.write_bytes(bytes(8) + good[8:])  # the first tile has no chunks: TileDB refuses, too
    for config in (SHARED, ReadConfig(threads=3, compiled=False)):
        with pytest.raises(TileReadError, match="cannot read"):
            read_box(of, whole(voxels), config=config)
    data.write_bytes(good)
    np.testing.assert_array_equal(read_box(of, whole(voxels), config=SHARED), voxels)
