"""A pipeline streams: cohorts of four times the memory that a process may take go through, whoever does the work."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from conftest import save

from radiodata.ingest import ingest_niftis
from radiodata.store import Cohort, verify

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs RLIMIT_DATA of Linux"),
]
SCRIPT = Path(__file__).parent / "limited_script.py"
SHAPE, SUBJECTS, MIB = (96, 96, 96), 304, 128  # 1.7 MiB a volume, 513 MiB in all


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("large")
    rng, body = np.random.default_rng(0), np.add.outer(np.add.outer(*[np.arange(96)] * 2), np.arange(96))
    files = []
    for number in range(SUBJECTS):
        voxels = (body * 3 + rng.integers(-800, 800)).astype(np.int16)
        voxels[:8, :8, :8] = rng.integers(-999, 999, (8, 8, 8))
        files.append(save(voxels, np.eye(4), folder / "CT" / f"s{number:03d}.nii"))
    ingest_niftis(str(folder / "cohort"), {"CT": files}, tiling=48)
    for path in files:
        path.unlink()
    assert SUBJECTS * np.prod(SHAPE) * 2 >= 4 * MIB << 20
    return folder / "cohort"


def run(kind: str, source: Path, target: Path) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(SCRIPT.parent), "OMP_NUM_THREADS": "1", "MALLOC_ARENA_MAX": "2"}
    return subprocess.run(
        [sys.executable, str(SCRIPT), kind, str(source), str(target), str(MIB)],
        capture_output=True, text=True, timeout=500, env=environment, check=False,
    )  # fmt: skip


def expected(volume: np.ndarray) -> np.ndarray:
    return np.clip(volume, -1000, 1000).astype(np.float32) / np.float32(500)


@pytest.mark.parametrize("kind", ["threads", "processes", "dask"])
def test_a_cohort_of_four_times_the_memory_is_written(large: Path, tmp_path: Path, kind: str) -> None:
    done = run(kind, large, tmp_path / "derived")
    assert done.returncode == 0, done.stderr[-3000:]
    source, derived = Cohort(large), Cohort(tmp_path / "derived")
    assert derived.CT.ids == source.CT.ids
    for at in range(0, SUBJECTS, 17):
        np.testing.assert_array_equal(derived.CT.iloc[at].to_numpy(), expected(source.CT.iloc[at].to_numpy()))
    assert not verify(derived).problems


def test_volumes_are_given_one_after_another_in_that_memory(large: Path, tmp_path: Path) -> None:
    done = run("volumes", large, tmp_path / "derived")
    assert done.returncode == 0, done.stderr[-3000:]
    total = sum(float(expected(v.to_numpy()).sum()) for v in Cohort(large).CT)
    assert float(done.stdout) == pytest.approx(total, rel=1e-6)


def test_that_memory_does_not_hold_them_all(large: Path, tmp_path: Path) -> None:
    """The limit is real: what keeps every volume does not fit."""
    done = run("eager", large, tmp_path / "derived")
    assert done.returncode != 0
    assert "MemoryError" in done.stderr
