"""Settings: one meaning in Python, YAML and the environment; what cannot be meant is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiledb
from conftest import Tiny, save

from radiodata.errors import ConfigError, IngestError
from radiodata.ingest import ingest_niftis
from radiodata.store import Cohort, ReadConfig, StoreConfig, Volume

FILE = """
store:
  tiling: [64, 64, 16]
  filters: [byteshuffle, "zstd:3"]
  orient: null
  dtype: float32
read:
  threads: 3
  memory: 512
  direct: false
  tiledb:
    vfs.s3.region: eu-west-1
    vfs:
      s3: {use_virtual_addressing: false, endpoint_override: "localhost:9000"}
"""
STORE = StoreConfig(tiling=(64, 64, 16), filters=("byteshuffle", "zstd:3"), orient=None, dtype="float32")
S3 = {
    "vfs.s3.region": "eu-west-1",
    "vfs.s3.use_virtual_addressing": "false",
    "vfs.s3.endpoint_override": "localhost:9000",
}
READ = ReadConfig(threads=3, memory=512, direct=False, tiledb=S3)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "radiodata.yaml"
    path.write_text(FILE)
    return path


def test_a_yaml_file_says_what_python_says(file: Path) -> None:
    assert StoreConfig.from_yaml(file) == STORE
    assert ReadConfig.from_yaml(file) == READ
    assert ReadConfig.from_yaml(file, threads=1) == ReadConfig(threads=1, memory=512, direct=False, tiledb=S3)


def test_sections_that_are_not_there_are_the_defaults(tmp_path: Path) -> None:
    path = tmp_path / "other.yaml"
    for text in ("", "store:\n", "read:\n  threads: 2\n"):
        path.write_text(text)
        assert StoreConfig.from_yaml(path) == StoreConfig()


def test_the_environment_is_over_the_file_and_arguments_over_both(file: Path) -> None:
    environ = {
        "RADIODATA_CONFIG": str(file),
        "RADIODATA_READ_THREADS": "5",
        "RADIODATA_READ_TILEDB": "{vfs: {s3: {region: us-east-1}}}",
        "RADIODATA_STORE_TILING": "axial",
        "RADIODATA_STORE_FILTERS": "zstd:1, sha256",
        "RADIODATA_STORE_ORIENT": "RAS",
        "RADIODATA_STORE_DTYPE": "none",
        "PATH": "/bin",
    }
    read = ReadConfig.from_env(environ)
    assert (read.threads, read.memory, read.direct) == (5, 512, False)
    assert read.tiledb == {"vfs.s3.region": "us-east-1"}
    assert StoreConfig.from_env(environ) == StoreConfig("axial", ("zstd:1", "sha256"), orient="RAS")
    assert StoreConfig.from_env(environ, tiling=32).tiling == 32
    assert ReadConfig.from_env({}) == ReadConfig()


@pytest.mark.parametrize(
    ("text", "tiling"), [("64", 64), ("64,32,16", "64,32,16"), ("[64, 32, 16]", (64, 32, 16)), ("Coronal", "Coronal")]
)
def test_tilings_are_written_in_the_environment_as_elsewhere(text: str, tiling: Any) -> None:
    found = StoreConfig.from_env({"RADIODATA_STORE_TILING": text})
    assert found.tiling == tiling
    assert found.tile == StoreConfig(tiling).tile


@pytest.mark.parametrize(
    ("environ", "why"),
    [
        ({"RADIODATA_READ_THREDS": "1"}, "RADIODATA_READ_THREDS: ReadConfig has no setting 'threds'; did you mean 'th"),
        ({"RADIODATA_STORE_X": "1"}, "StoreConfig has no setting 'x'; there are tiling, filters, slots"),
        ({"RADIODATA_READ_THREADS": "many"}, "RADIODATA_READ_THREADS: it must be a whole number, at least 1, not 'ma"),
        ({"RADIODATA_READ_THREADS": "true"}, "it must be a whole number"),
        ({"RADIODATA_READ_THREADS": ""}, "it must be a whole number"),
        ({"RADIODATA_READ_DIRECT": "1"}, "RADIODATA_READ_DIRECT: it must be true or false, not 1"),
        ({"RADIODATA_READ_TILEDB": "vfs.s3.region"}, "it must map names to values"),
        ({"RADIODATA_READ_TILEDB": "{vfs.s3.regoin: x}"}, r"RADIODATA_READ_TILEDB: .*did you mean .*vfs\.s3\.region"),
        ({"RADIODATA_READ_MEMORY": "1"}, "at least 16, or none, not 1"),
        ({"RADIODATA_READ_ENCRYPTION_KEY": "0" * 64}, "says where the key is: write env:NAME or file:PATH"),
        ({"RADIODATA_STORE_TILING": "cubic"}, "RADIODATA_STORE_TILING: tiling 'cubic' is not known"),
        ({"RADIODATA_STORE_FILTERS": "rle"}, "RADIODATA_STORE_FILTERS: filter 'rle' is not known"),
        ({"RADIODATA_CONFIG": "/nowhere.yaml"}, r"cannot read the settings in /nowhere\.yaml"),
    ],
)
def test_what_cannot_be_meant_is_refused_by_name(environ: dict[str, str], why: str) -> None:
    with pytest.raises(ConfigError, match=why):
        (StoreConfig if any("STORE" in name for name in environ) else ReadConfig).from_env(environ)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("read: {threads: 0}", r"radiodata\.yaml, read\.threads: it must be a whole number"),
        ("read: {theads: 2}", "section 'read': ReadConfig has no setting 'theads'; did you mean 'threads'"),
        ("read: 3", "write a section 'read' with one line a setting"),
        ("- read", "write a section 'read'"),
        ("read: {", "cannot read the settings"),
    ],
)
def test_files_that_cannot_be_meant_are_refused_by_name(tmp_path: Path, text: str, why: str) -> None:
    path = tmp_path / "radiodata.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=why):
        ReadConfig.from_yaml(path)


def test_lists_and_mappings_of_other_kinds_are_taken() -> None:
    from omegaconf import OmegaConf

    made = OmegaConf.create({"tiling": [8, 8, 8], "filters": ["zstd:1"], "tiledb": {"vfs": {"s3": {"region": "x"}}}})
    assert StoreConfig(tiling=made.tiling, filters=made.filters) == StoreConfig((8, 8, 8), ("zstd:1",))
    assert ReadConfig(tiledb=made.tiledb).tiledb == {"vfs.s3.region": "x"}


def filters_of(volume: Volume) -> list[str]:
    with tiledb.open(volume.source.uri) as array:
        filters = array.schema.attr(0).filters
    return [type(one).__name__.removesuffix("Filter") + str(getattr(one, "level", "")) for one in filters]


@pytest.mark.parametrize("said", [None, ("byteshuffle", "zstd:3")])
def test_filters_suit_the_voxels_unless_they_are_said(tmp_path: Path, said: tuple[str, ...] | None) -> None:
    rng = np.random.default_rng(0)
    suited = {
        "CT": (rng.integers(-9, 999, (9, 10, 11), np.int16), ["ByteShuffle", "Zstd-1"]),
        "MR": (rng.integers(0, 99, (9, 10, 11), np.uint8), ["Zstd3"]),
        "few": (rng.integers(0, 3, (9, 10, 11), np.uint8), ["Zstd9"]),
        "many": (rng.integers(0, 999, (9, 10, 11), np.int16), ["ByteShuffle", "Zstd9"]),
    }
    for name, (voxels, _) in suited.items():
        save(voxels, np.eye(4), tmp_path / name / "a.nii")
    config = StoreConfig(tiling=8, filters=said)
    ingest_niftis(str(tmp_path / "c"), {n: tmp_path / n for n in suited}, labels=("few", "many"), config=config)
    for name, (voxels, filters) in suited.items():
        volume = Cohort(tmp_path / "c")[name].iloc[0]
        assert np.array_equal(volume.to_numpy(), voxels)
        assert filters_of(volume) == (["ByteShuffle", "Zstd3"] if said else filters), name


def test_a_cohort_is_made_and_opened_as_the_environment_says(
    tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, file: Path
) -> None:
    file.write_text("store: {tiling: 16}\nread: {threads: 2, memory: 64}\n")
    monkeypatch.setenv("RADIODATA_CONFIG", str(file))
    ingest_niftis(str(tmp_path / "cohort"), tiny.images)
    cohort = Cohort(tmp_path / "cohort")
    assert cohort.CT.tile == (16, 16, 16)
    assert cohort.config == ReadConfig(threads=2, memory=64)
    for volume in cohort.CT:
        np.testing.assert_array_equal(volume.to_numpy(), tiny.cohort.CT.loc[volume.obs_id].to_numpy())


def test_little_memory_reads_the_same_in_parts(tmp_path: Path) -> None:
    voxels = np.random.default_rng(0).integers(-1000, 1000, (256, 256, 160)).astype(np.int16)
    path = save(voxels, np.eye(4), tmp_path / "CT" / "a.nii")
    uri = tmp_path / "cohort"
    ingest_niftis(str(uri), {"CT": [path]}, tiling=64)
    little = Cohort(uri, config=ReadConfig(threads=1, direct=False, memory=16))
    np.testing.assert_array_equal(little.CT.iloc[0].to_numpy(), voxels)


def test_a_dtype_is_kept_to_where_no_value_changes(tmp_path: Path) -> None:
    voxels = np.random.default_rng(0).integers(-1000, 1000, (9, 8, 7)).astype(np.int16)
    halves = voxels.astype(np.float32) + np.float32(0.5)
    files = [save(voxels, np.eye(4), tmp_path / "CT" / "a.nii"), save(halves, np.eye(4), tmp_path / "CT" / "b.nii")]
    uri = str(tmp_path / "cohort")
    ingest_niftis(uri, {"CT": files}, config=StoreConfig(dtype="float32"))
    assert set(Cohort(uri).CT.obs["dtype"]) == {"float32"}
    np.testing.assert_array_equal(Cohort(uri).CT.iloc[0].to_numpy(), voxels)
    np.testing.assert_array_equal(Cohort(uri).CT.iloc[1].to_numpy(), halves)
    with pytest.raises(IngestError, match=r"b\.nii.*\(float32, .*\) would change as int16"):
        ingest_niftis(str(tmp_path / "ints"), {"CT": files}, config=StoreConfig(dtype="int16"))
    assert Cohort(tmp_path / "ints").subjects == ["a"]


@pytest.mark.parametrize(("source", "dtype"), [("uint16", "int16"), ("int16", "uint16"), ("uint16", "uint8")])
def test_values_that_would_wrap_around_are_refused(tmp_path: Path, source: str, dtype: str) -> None:
    voxels = np.full((4, 5, 6), 40_000 if source == "uint16" else -5).astype(source)
    path = save(voxels, np.eye(4), tmp_path / "CT" / "a.nii")
    with pytest.raises(IngestError, match=f"would change as {dtype}"):
        ingest_niftis(str(tmp_path / "cohort"), {"CT": [path]}, config=StoreConfig(dtype=dtype))
