"""Verification: every volume whose voxels changed is named, and no other."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from small import small_cohort

from radiodata.errors import ConfigError, ObsNotFoundError, TileReadError
from radiodata.store import Cohort, Volume, verify
from radiodata.store.context import context
from radiodata.store.layout import join
from radiodata.store.obs import OBS_COLUMNS, OBS_ID
from radiodata.store.table import read_table, write_rows


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Cohort:
    return small_cohort(tmp_path_factory.mktemp("whole"))


@pytest.fixture
def own(whole: Cohort, tmp_path: Path) -> Cohort:
    shutil.copytree(whole.uri, tmp_path / "cohort")
    return Cohort(tmp_path / "cohort")


def data_files(cohort: Cohort, name: str) -> list[Path]:
    return sorted(p for p in Path(cohort.uri, name, "voxels").rglob("*.tdb") if p.parent.parent.name == "__fragments")


def lost(volume: Volume, was: np.ndarray) -> bool:
    try:
        return not np.array_equal(volume.to_numpy(), was)
    except TileReadError:
        return True


def test_what_was_ingested_is_right(whole: Cohort) -> None:
    told: list[tuple[int, int]] = []
    found = verify(whole, progress=lambda done, total: told.append((done, total)))
    assert (found.checked, found.problems) == (12, ())
    assert told == [(n, 12) for n in range(1, 13)]


def test_a_recorded_hash_that_differs_is_named(own: Cohort) -> None:
    (segment,) = own._snapshot.record.collections["CT"].obs.segments
    uri = join(own.uri, segment.path)
    rows = read_table(uri, OBS_ID, context()).iloc[[2]].assign(content_hash="0" * 32)
    write_rows(uri, rows, OBS_COLUMNS, context())
    (problem,) = verify(Cohort(own.uri)).problems
    assert problem.where == rows.index[0]
    assert "voxels differ" in problem.why


def test_flipped_bytes_are_found_and_only_in_their_volume(own: Cohort) -> None:
    files = [p for p in data_files(own, "CT") if not p.name.startswith("__")]
    assert len(files) == 6
    truth = [v.to_numpy() for v in own.CT]
    rng, hits = np.random.default_rng(0), set[str]()
    for flip in range(36):
        file = files[flip % 6]
        before = file.read_bytes()
        at = int(rng.integers(len(before)))
        file.write_bytes(before[:at] + bytes([before[at] ^ (1 << int(rng.integers(8)))]) + before[at + 1 :])
        hurt = Cohort(own.uri)
        problems = verify(hurt, collections=["CT"]).problems
        assert [p.where for p in problems] == [v.obs_id for v, was in zip(hurt.CT, truth, strict=True) if lost(v, was)]
        hits |= {p.where for p in problems}
        file.write_bytes(before)
    assert len(hits) == 6  # the rest fell on padding of tiles that reach beyond the volume
    assert not verify(Cohort(own.uri)).problems


def test_lost_voxels_are_named(own: Cohort) -> None:
    shutil.rmtree(data_files(own, "seg")[0].parent)
    found = verify(Cohort(own.uri))
    assert found.checked == 12
    assert [p.where.endswith("_seg") for p in found.problems] == [True]


def test_a_sample_is_drawn_by_the_seed_from_what_was_chosen(own: Cohort) -> None:
    shutil.rmtree(Path(own.uri, "CT", "voxels"))
    draws = [verify(own, sample=4, seed=seed) for seed in (0, 0, 1)]
    assert [d.checked for d in draws] == [4, 4, 4]
    assert [p.where for p in draws[0].problems] == [p.where for p in draws[1].problems]
    assert verify(own, collections=["seg"], sample=99).checked == 6
    assert not verify(own, collections=["seg"]).problems


def test_what_cannot_be_asked_is_refused(whole: Cohort) -> None:
    with pytest.raises(ConfigError, match="at least 1"):
        verify(whole, sample=0)
    with pytest.raises(ObsNotFoundError, match="PET"):
        verify(whole, collections=["PET"])
