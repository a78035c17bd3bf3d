"""What is no cohort of a known format is refused by name; what was never finished does not exist."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import tiledb
from conftest import MakeFiles, Tiny

from radiodata.errors import CohortNotFoundError, FormatVersionError
from radiodata.ingest import ingest_niftis
from radiodata.store import Cohort, StoreConfig, layout
from radiodata.store.context import context
from radiodata.store.runs import begin_run
from radiodata.store.writer import ensure_shard


@pytest.fixture
def copy(tiny: Tiny, tmp_path: Path) -> str:
    return str(shutil.copytree(tiny.cohort.uri, tmp_path / "copy"))


def set_version(uri: str, version: object) -> None:
    with tiledb.Group(uri, "w", ctx=context()) as group:
        if version is None:
            del group.meta[layout.VERSION_KEY]
        else:
            group.meta[layout.VERSION_KEY] = version


@pytest.mark.parametrize(
    ("version", "said"), [(1, "format version 1"), (4, "format version 4"), (None, "no format version")]
)
def test_an_unknown_version_is_refused_by_name(copy: str, version: object, said: str) -> None:
    set_version(copy, version)
    with pytest.raises(FormatVersionError, match=f"has {said}; this radiodata reads version 3"):
        Cohort(copy)


def test_nothing_is_ingested_into_an_unknown_version(copy: str, make_files: MakeFiles) -> None:
    set_version(copy, 4)
    before = sorted(Path(copy).rglob("*"))
    with pytest.raises(FormatVersionError, match="format version 4"):
        ingest_niftis(copy, make_files(1), tiling=16)
    assert sorted(Path(copy).rglob("*")) == before


def test_no_cohort_is_said_so(tmp_path: Path) -> None:
    with pytest.raises(CohortNotFoundError, match=r"no cohort at .*nothing: make one with `radiodata ingest"):
        Cohort(tmp_path / "nothing")
    with pytest.raises(FileNotFoundError):
        Cohort(tmp_path)


def half_made(uri: str, stage: int) -> None:
    """Leave what an ingest leaves that is killed as it begins."""
    ctx = context()
    tiledb.Group.create(uri, ctx=ctx)
    if stage > 0:
        layout.create_root(uri, ctx)
    if stage > 1:
        begin_run(uri, ctx)
    if stage > 2:
        shard = layout.shard_uri(layout.join(uri, "CT"), layout.shard_name("gone", 0, "int16"))
        ensure_shard(shard, "int16", StoreConfig(tiling=16), ctx)


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_a_cohort_that_was_only_begun_is_none_and_is_made_by_the_next_ingest(
    tmp_path: Path, make_files: MakeFiles, stage: int
) -> None:
    uri = str(tmp_path / "cohort")
    half_made(uri, stage)
    with pytest.raises(CohortNotFoundError):
        Cohort(uri)
    assert len(Cohort.from_niftis(uri, make_files(1), tiling=16).CT) == 1


def test_a_group_of_something_else_is_left_alone(tmp_path: Path, make_files: MakeFiles) -> None:
    uri = str(tmp_path / "other")
    tiledb.Group.create(uri, ctx=context())
    layout.create_group(layout.join(uri, "theirs"), {}, context())
    with tiledb.Group(uri, "w", ctx=context()) as group:
        group.add("theirs", name="theirs", relative=True)
    with pytest.raises(FormatVersionError, match="no format version"):
        ingest_niftis(uri, make_files(1), tiling=16)
    with tiledb.Group(uri, "r", ctx=context()) as group:
        assert [m.name for m in group] == ["theirs"]
