"""Voxels that are not there, or damaged, are an error that names them; never fill values in their place."""

from __future__ import annotations

import pickle
import shutil
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import tiledb
from conftest import Tiny

from radiodata.errors import IngestError, Problem, StoreError, TileReadError
from radiodata.geometry import box
from radiodata.store import Cohort, StoreConfig, Volume, read_box
from radiodata.store.context import handles

BOX = box((0, 0, 0), (9, 9, 9))


@pytest.fixture
def copy(tiny: Tiny, tmp_path: Path) -> Path:
    return shutil.copytree(tiny.cohort.uri, tmp_path / "copy")


def shards(uri: Path, name: str = "CT") -> list[Path]:
    return sorted((uri / name / "voxels").iterdir())


def refused(volume: Volume, what: str) -> None:
    with pytest.raises(TileReadError, match=what) as caught:
        volume[0:9, 0:9, 0:9]
    for named in (volume.obs_id, volume.obs_subject_id, volume.source.uri, "[0:9, 0:9, 0:9]"):
        assert named in str(caught.value)
    assert isinstance(caught.value, OSError)


def written(folder: Path, voxels: np.ndarray, *, filters: tuple[str, ...] = ("byteshuffle", "zstd:3")) -> Cohort:
    nib.Nifti1Image(voxels, np.eye(4)).to_filename(folder / "a.nii")
    config = StoreConfig(tiling=16, filters=filters)
    return Cohort.from_niftis(folder / "cohort", {"image": [folder / "a.nii"]}, config=config)


@pytest.mark.parametrize("dtype", ["int16", "uint8", "uint16", "int32", "float32", "float64"])
def test_a_slot_that_nobody_wrote(tmp_path: Path, dtype: str) -> None:
    values = {"uint8": 7, "uint16": 65_000, "int32": 70_000, "float32": 0.5, "float64": 0.1}.get(dtype, -5)
    volume = written(tmp_path, np.full((12, 12, 12), values, dtype))["image"].iloc[0]
    assert volume.source.dtype == dtype
    other = replace(volume.source, slot=volume.source.slot + 1)
    with pytest.raises(TileReadError, match="holds no voxels for it"):
        read_box(other, BOX)


@pytest.mark.parametrize(("dtype", "fill"), [("int16", -32768), ("uint8", 255), ("uint16", 65535), ("float32", np.nan)])
def test_voxels_that_equal_the_fill_value_are_voxels(tmp_path: Path, dtype: str, fill: float) -> None:
    voxels = np.full((12, 12, 12), fill, dtype)
    volume = written(tmp_path, voxels)["image"].iloc[0]
    assert volume.dtype == dtype
    np.testing.assert_array_equal(volume.to_numpy(), voxels)


def test_volumes_of_one_shard_can_be_told_apart_by_time(tiny: Tiny) -> None:
    """TileDB deletes fragments by time: however quickly they were written, no two may share one."""
    for name in ("CT", "seg"):
        for shard in shards(Path(tiny.cohort.uri), name):
            found = tiledb.array_fragments(str(shard))
            slots = [int(domain[0][0]) for domain in found.nonempty_domain]
            assert [tuple(span) for span in found.timestamp_range] == [(n + 1, n + 1) for n in slots]


@pytest.mark.parametrize("bad", [((0, 0, 0), (41, 9, 9)), ((-1, 0, 0), (9, 9, 9)), ((3, 0, 0), (3, 9, 9))])
def test_a_box_outside_of_the_volume_is_refused(tiny: Tiny, bad: tuple) -> None:
    source = tiny.cohort.CT.iloc[0].source
    with pytest.raises(ValueError, match="is empty or outside of shape"):
        read_box(source, box(*bad))
    with pytest.raises(ValueError, match="is empty or outside of shape"):
        read_box(source, BOX, channels=(0, 2))


def test_a_deleted_fragment(copy: Path) -> None:
    for fragment in (shards(copy)[0] / "__fragments").iterdir():
        shutil.rmtree(fragment)
    refused(Cohort(copy).CT.iloc[0], "cannot read")


def test_a_deleted_fragment_and_its_commit(copy: Path) -> None:
    for folder in ("__fragments", "__commits", "__fragment_meta"):
        for entry in (shards(copy)[0] / folder).iterdir():
            shutil.rmtree(entry) if entry.is_dir() else entry.unlink()
    refused(Cohort(copy).CT.iloc[0], "holds no voxels for it")


def test_a_deleted_array(copy: Path) -> None:
    cohort = Cohort(copy)
    shutil.rmtree(shards(copy)[0])
    refused(cohort.CT.iloc[0], "cannot open the voxel array")


def test_a_data_file_cut_short(copy: Path) -> None:
    for data in shards(copy)[0].rglob("a0.tdb"):
        data.write_bytes(data.read_bytes()[:200])
    refused(Cohort(copy).CT.iloc[3], "cannot read")


@pytest.mark.parametrize("checksum", ["sha256", "md5"])
def test_flipped_bits_are_found_where_the_store_has_checksums(tmp_path: Path, checksum: str) -> None:
    voxels = np.random.default_rng(0).integers(-1000, 1000, (40, 40, 40)).astype(np.int16)
    cohort = written(tmp_path, voxels, filters=("byteshuffle", "zstd:3", checksum))
    (data,) = (tmp_path / "cohort" / "image" / "voxels").rglob("a0.tdb")
    good = data.read_bytes()
    for at in np.linspace(100, len(good) - 100, 15).astype(int):
        bad = bytearray(good)
        bad[at] ^= 4
        data.write_bytes(bad)
        with pytest.raises(TileReadError, match="image"):
            Cohort(cohort.uri)["image"].iloc[0].to_numpy()
    data.write_bytes(good)
    np.testing.assert_array_equal(Cohort(cohort.uri)["image"].iloc[0].to_numpy(), voxels)


def test_a_damaged_volume_does_not_hide_the_others(copy: Path, tiny: Tiny) -> None:
    cohort = Cohort(copy)
    shutil.rmtree(shards(copy, "seg")[0])
    np.testing.assert_array_equal(cohort.CT.iloc[4].to_numpy(), tiny.arrays["sub-04_CT"])
    refused(cohort.seg.iloc[4], "cannot open")


def test_part_of_the_channels(tmp_path: Path) -> None:
    voxels = np.random.default_rng(0).integers(-9, 9, (12, 13, 14, 4)).astype(np.int16)
    source = written(tmp_path, voxels)["image"].iloc[0].source
    found = read_box(source, box((1, 2, 3), (4, 6, 8)), channels=(1, 3))
    np.testing.assert_array_equal(found, np.moveaxis(voxels[1:4, 2:6, 3:8, 1:3], -1, 0))
    assert found.flags.c_contiguous


def test_forgotten_arrays_are_opened_again(tiny: Tiny) -> None:
    cohort = Cohort(tiny.cohort.uri)
    source = cohort.CT.iloc[0].source
    first = read_box(source, BOX)
    handles().forget(source.token)
    np.testing.assert_array_equal(read_box(source, BOX), first)


@pytest.mark.parametrize(
    "error",
    [
        TileReadError("cannot read [0:1] of volume 'x'"),
        StoreError("no"),
        IngestError("nothing was written", [Problem("a.nii", "is empty"), Problem("b", "ä")]),
    ],
)
def test_errors_cross_a_process_whole(error: Exception) -> None:
    back = pickle.loads(pickle.dumps(error))
    assert type(back) is type(error)
    assert str(back) == str(error)
    assert getattr(back, "problems", None) == getattr(error, "problems", None)
