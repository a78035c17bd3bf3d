"""Ingests by threads, processes and a Dask cluster give one store, also when they are killed in the middle."""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("pydicom", reason="needs radiodata[dicom]")

import dicom_series as dicom
import ingest_work
from conftest import ras_affine, save
from effort import tries

from radiodata.errors import CohortNotFoundError, ConfigError, WorkerDiedError
from radiodata.ingest import ingest_niftis
from radiodata.ingest.nifti import NiftiFile
from radiodata.store import Cohort, verify

ROUNDS = tries(6, 6, 25)
SUBJECTS = 8


@dataclass(frozen=True)
class Files:
    """Scans of some subjects, and what a store of them comes to."""

    root: Path
    truth: str


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Files:
    root = tmp_path_factory.mktemp("files")
    for number in range(SUBJECTS):
        rng, shape = np.random.default_rng(number), (30, 28, 26 + number)
        for name, high in (("CT", 1500), ("seg", 3)):
            voxels = rng.integers(0, high, shape).astype(np.int16 if name == "CT" else np.uint8)
            save(voxels, ras_affine(0), root / name / f"s{number:03d}.nii.gz")
    for number in range(3):
        more = {"series": f"1.2.3.{number}", "uid": number + 1, "PatientID": f"P{number}", "Modality": "MR"}
        dicom.series(root / "dicom" / str(number), seed=number, shape=(6, 32, 30), **more)
    ingest_work.run(str(root / "whole"), str(root), "threads")
    return Files(root, state(root / "whole"))


def state(uri: Path) -> str:
    """Hash of a whole cohort, after its voxels were compared with their own hashes."""
    cohort = Cohort(uri)
    assert not verify(cohort).problems
    return cohort.freeze().hash


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    """A Dask cluster of two worker processes on this machine."""
    distributed = pytest.importorskip("distributed", reason="needs Dask")
    with distributed.LocalCluster(
        n_workers=2, threads_per_worker=1, dashboard_address=":0", silence_logs=50
    ) as running:
        yield running


@contextmanager
def begun(files: Files, uri: Path, how: str) -> Iterator[subprocess.Popen[bytes]]:
    """An ingest in a process of its own, past its imports; it is dead afterwards."""
    command = [sys.executable, ingest_work.__file__, str(uri), str(files.root), how]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == b"ready\n"
            yield process
        finally:
            process.kill()


def killed(files: Files, uri: Path, how: str, after: float) -> None:
    """Kill an ingest in the middle; what is visible is whole."""
    with begun(files, uri, how) as process, suppress(subprocess.TimeoutExpired):
        process.wait(after)
    try:
        cohort = Cohort(uri)
    except CohortNotFoundError:  # killed before there was one
        return
    assert not verify(cohort).problems
    for name in cohort.collections:
        assert set(cohort[name].obs["obs_subject_id"]) <= set(cohort.subjects)


def left_behind(uri: Path) -> set[str]:
    """Volumes on the disk that no row points to, and marks of runs."""
    cohort = Cohort(uri)
    rows = {(name, str(s)) for name in cohort.collections for s in cohort[name].obs["shard"]}
    there = {(p.parent.parent.name, p.name) for p in uri.glob("*/voxels/*")}
    return {"/".join(pair) for pair in there - rows} | {p.name for p in (uri / "__runs").iterdir()}


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("how", ["processes", "dask"])
def test_killed_at_random_moments_the_end_is_the_same(
    files: Files, tmp_path: Path, how: str, request: pytest.FixtureRequest
) -> None:
    address = request.getfixturevalue("cluster").scheduler_address if how == "dask" else how
    with begun(files, tmp_path / "timed", address) as process:
        began = time.monotonic()
        assert process.wait(300) == 0
        took = time.monotonic() - began
    assert state(tmp_path / "timed") == files.truth
    rng, uri = random.Random(how), tmp_path / "c"
    rounds, finished = 0, 0
    while rounds < ROUNDS:
        for share in sorted(rng.uniform(0, 1.1) for _ in range(rng.choice([1, 2, 5]))):
            killed(files, uri, address, share * took)
            rounds += 1
        ingest_work.run(str(uri), str(files.root), "threads")
        assert state(uri) == files.truth
        if how == "dask":  # its workers live on, and what they were writing when the run died is nobody's
            Cohort(uri).optimize()
        assert not left_behind(uri)
        shutil.rmtree(uri)
        finished += 1
    assert finished >= ROUNDS // 5


@pytest.mark.slow
@pytest.mark.parametrize("how", ["threads", "processes", "dask", "spawned"])
def test_every_executor_makes_the_same_store(
    files: Files, tmp_path: Path, how: str, request: pytest.FixtureRequest
) -> None:
    told: list[tuple[int, int]] = []
    images = {n: files.root / n for n in ("CT", "seg")}
    ingest_niftis(str(tmp_path / "truth"), images, tiling=16)
    options: dict[str, Any] = {"tiling": 16, "progress": lambda done, total: told.append((done, total))}
    if how == "spawned":
        with ProcessPoolExecutor(2, mp_context=get_context("spawn")) as pool:
            ingest_niftis(str(tmp_path / "c"), images, executor=pool, **options)
    elif how == "dask":
        with request.getfixturevalue("cluster").get_client() as client:
            ingest_niftis(str(tmp_path / "c"), images, executor=client, **options)
    else:
        ingest_niftis(str(tmp_path / "c"), images, executor=how, **options)
    assert state(tmp_path / "c") == state(tmp_path / "truth")
    assert told == [(n, SUBJECTS) for n in range(1, SUBJECTS + 1)]


@pytest.mark.slow
def test_a_node_that_is_lost_changes_nothing(files: Files, tmp_path: Path, cluster: Any) -> None:
    images, lost = {n: files.root / n for n in ("CT", "seg")}, list[int]()
    ingest_niftis(str(tmp_path / "truth"), images, tiling=16)
    with cluster.get_client() as client:
        first, *_ = client.run(os.getpid).values()

        def kill(done: int, total: int) -> None:
            if not lost:
                lost.append(first)
                os.kill(first, signal.SIGKILL)  # its nanny begins another, and its tasks are done again

        ingest_niftis(str(tmp_path / "c"), images, executor=client, tiling=16, progress=kill)
    assert lost
    assert state(tmp_path / "c") == state(tmp_path / "truth")
    assert not left_behind(tmp_path / "c")


class Mortal:
    """A source whose process dies when its voxels are asked for."""

    def __init__(self, inner: Any) -> None:
        self.inner, self.format, self.where, self.uri = inner, inner.format, inner.where, inner.uri

    def grid(self, orient: str | None) -> Any:
        return self.inner.grid(orient)

    def load(self, orient: str | None, *, label: bool) -> Any:
        os.kill(os.getpid(), signal.SIGKILL)


def deadly(path: Path) -> Any:
    """Source of a file; that of one subject is mortal."""
    return Mortal(NiftiFile(path)) if "s005" in path.name else NiftiFile(path)


def test_a_worker_that_dies_is_told_of_and_a_rerun_completes(
    files: Files, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from radiodata.ingest import discover

    images = {"CT": files.root / "CT"}
    with monkeypatch.context() as patch:
        patch.setattr(discover, "NiftiFile", deadly)
        with pytest.raises(WorkerDiedError, match=r"subjects under way: .*s005"):
            ingest_niftis(str(tmp_path / "c"), images, executor="processes", tiling=16)
    ingest_niftis(str(tmp_path / "c"), images, tiling=16)
    assert len(Cohort(tmp_path / "c")) == SUBJECTS
    assert not left_behind(tmp_path / "c")


def test_processes_end_with_the_one_that_began_them(files: Files, tmp_path: Path) -> None:
    deadline = time.monotonic() + 60
    with begun(files, tmp_path / "c", "processes") as process:
        while not (kin := children(process.pid)) and time.monotonic() < deadline:
            time.sleep(0.05)
        assert kin
    while any(alive(pid) for pid in kin) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not [pid for pid in kin if alive(pid)]


def children(pid: int) -> list[int]:
    psutil = pytest.importorskip("psutil", reason="needs psutil")
    try:
        return [c.pid for c in psutil.Process(pid).children() if "loky" in " ".join(c.cmdline())]
    except psutil.NoSuchProcess:
        return []


def alive(pid: int) -> bool:
    psutil = pytest.importorskip("psutil", reason="needs psutil")
    return bool(psutil.pid_exists(pid)) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"executor": "fibres"}, "'processes', 'threads'"),
        ({"executor": 5}, "is no executor"),
        ({"workers": 0}, "at least 1"),
        ({"on_error": "ignore"}, "'raise' or 'skip'"),
        ({"exist": "maybe"}, "'error' or 'continue'"),
        ({"atomic": True, "on_error": "skip"}, "choose one"),
    ],
)
def test_options_that_mean_nothing_are_refused(files: Files, tmp_path: Path, options: Any, why: str) -> None:
    with pytest.raises(ConfigError, match=why):
        ingest_niftis(str(tmp_path / "c"), {"CT": files.root / "CT"}, **options)
