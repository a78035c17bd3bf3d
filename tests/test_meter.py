"""Where the time of reads goes: counted apart in every path, and never more than the clock's."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import pytest
from direct_store import KERNEL, PLAIN, QUERY, shard, source, voxels_of, whole
from small import small_cohort

from radiodata import PatchDataset, PatchLoader, ReadConfig
from radiodata.store import read_box
from radiodata.store.direct import Meter, compiled

SLOW_DISK_S = 0.002


@pytest.mark.parametrize("config", [PLAIN, KERNEL], ids=["plain", "kernel"])
def test_reading_and_decoding_are_told_apart(tmp_path: Path, config: ReadConfig) -> None:
    if config is KERNEL:
        pytest.importorskip("numba", reason="needs radiodata[fast]")
    voxels = voxels_of((2, 64, 64, 96), "int16")
    of = source(shard(tmp_path / "s", voxels, tile=32), voxels)
    read_box(of, whole(voxels), config=config)  # lists, parses, and compiles
    meter, begun = Meter(), time.perf_counter_ns()
    found = read_box(of, whole(voxels), config=config, meter=meter)
    spent = time.perf_counter_ns() - begun
    assert np.array_equal(found, voxels)
    assert meter.read > 0
    assert meter.decode > 0
    assert meter.read + meter.decode <= meter.wall + 1_000 <= spent + 1_000


def test_a_slow_disk_counts_as_reading(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from radiodata.store.direct.files import DataFile

    voxels = voxels_of((1, 32, 32, 64), "int16")
    of = source(shard(tmp_path / "s", voxels), voxels)
    quick = Meter()
    read_box(of, whole(voxels), config=PLAIN)
    read_box(of, whole(voxels), config=PLAIN, meter=quick)
    fast, reads = DataFile.read_into, []

    def slow(self: DataFile, view: memoryview, at: int) -> None:
        reads.append(at)
        time.sleep(SLOW_DISK_S)
        fast(self, view, at)

    monkeypatch.setattr(DataFile, "read_into", slow)
    meter = Meter()
    read_box(of, whole(voxels), config=PLAIN, meter=meter)
    assert reads
    assert meter.read >= len(reads) * SLOW_DISK_S * 1e9
    assert meter.decode < meter.read


def test_threads_of_one_read_add_up(tmp_path: Path) -> None:
    voxels = voxels_of((1, 128, 128, 128), "int16")
    of, meter = source(shard(tmp_path / "s", voxels, tile=32), voxels), Meter()
    read_box(of, whole(voxels), config=ReadConfig(threads=3, compiled=False), meter=meter)
    assert meter.read > 0
    assert meter.decode > 0


def test_a_query_counts_whole_as_reading(tmp_path: Path) -> None:
    voxels = voxels_of((1, 32, 32, 64), "int16")
    meter = Meter()
    read_box(source(shard(tmp_path / "s", voxels), voxels), whole(voxels), config=QUERY, meter=meter)
    assert meter.decode == 0
    assert meter.read == meter.wall > 0


@pytest.mark.parametrize("workers", [0, 2])
def test_a_loader_tells_its_stages(tmp_path: Path, workers: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiled._kernels, "_off", True)
    cohort = small_cohort(tmp_path)
    dataset = PatchDataset(cohort, {"image": "CT", "label": "seg"}, patch_size=24, crops_per_unit=4)
    with_query = PatchDataset(
        cohort, {"image": "CT"}, patch_size=24, crops_per_unit=4, read=ReadConfig(threads=1, direct=False)
    )
    for made, decodes in ((dataset, True), (with_query, False)):
        loader = PatchLoader(made, 4, num_workers=workers, multiprocessing_context="fork" if workers else None)
        assert sum(1 for _ in loader) == len(loader)
        told = loader.stats()
        assert told.read_seconds > 0
        assert told.cut_seconds > 0
        assert (told.decode_seconds > 0) == decodes
        assert f"{told.decode_seconds:.3f}" in str(told)
        loader.close()
