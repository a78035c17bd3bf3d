"""Processes killed (SIGKILL) in the middle of a change: the old cohort or the new one is there, never a mix."""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import killed_work
import numpy as np
import pytest
from conftest import ras_affine, save
from effort import tries

from radiodata.store import Cohort

ROUNDS = {
    what: tries(4, 8, many)
    for what, many in {"append": 50, "write": 50, "remove": 50, "optimize": 10, "update": 10}.items()
}


@dataclass(frozen=True)
class Bench:
    """Files, a cohort of some of them, and a server that forks processes past their imports."""

    root: Path
    arrays: dict[str, np.ndarray]
    server: subprocess.Popen[str]

    def change(self, what: str, uri: Path, kill_after: float | None = None) -> int:
        """Change a cohort in a process, which may be killed; its exit code."""
        pid = int(self._ask("\t".join([what, str(uri), str(self.root)])))
        if kill_after is not None:
            time.sleep(kill_after)
            os.kill(pid, signal.SIGKILL)  # the server reaps it when asked, so the pid is still its own
        return int(self._ask(""))

    def _ask(self, line: str) -> str:
        assert self.server.stdin is not None
        assert self.server.stdout is not None
        self.server.stdin.write(f"{line}\n")
        self.server.stdin.flush()
        return self.server.stdout.readline()


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    root, arrays = tmp_path_factory.mktemp("killed"), {}
    for number in range(killed_work.THERE + killed_work.MORE):
        rng, shape = np.random.default_rng(number), (30, 28, 26 + number)
        for name, high in (("CT", 1500), ("seg", 3)):
            voxels = rng.integers(0, high, shape).astype(np.int16 if name == "CT" else np.uint8)
            save(voxels, ras_affine(0), root / name / f"s{number:03d}.nii.gz")
            arrays[f"s{number:03d}_{name}"] = voxels
            if name == "CT":
                arrays[f"s{number:03d}_clipped"] = voxels.clip(0, 900)
    killed_work.begin(str(root / "cohort"), str(root))
    command = [sys.executable, killed_work.__file__]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as server:
        yield Bench(root, arrays, server)


def checked(uri: Path, bench: Bench) -> str:
    """Hash of the cohort, each of whose volumes is the subject's own, with its row."""
    cohort = Cohort(uri)
    for name in cohort.collections:
        assert set(cohort[name].obs["obs_subject_id"]) <= set(cohort.subjects)
        for volume in cohort[name]:
            np.testing.assert_array_equal(volume.to_numpy(), bench.arrays[volume.obs_id])
    return cohort.freeze().hash


def left_behind(uri: Path) -> set[str]:
    """Segments and shards on the disk that no version of the cohort points to, and marks of runs."""
    cohort = Cohort(uri)
    records = [Cohort(uri, at=version)._snapshot.record for version in cohort.versions]
    needed = {path for record in records for path in record.segments()}
    needed |= {
        f"{state.folder}/voxels/{shard}"
        for version, record in zip(cohort.versions, records, strict=True)
        for name, state in record.collections.items()
        for shard in set(Cohort(uri, at=version)[name].obs["shard"])
    }
    tables = [uri / "obs_meta", *uri.glob("*/obs"), *uri.glob("*/voxels")]
    there = {str(entry.relative_to(uri)) for table in tables for entry in table.iterdir()}
    return (there - needed) | {f"__runs/{mark.name}" for mark in (uri / "__runs").iterdir()}


def undisturbed(bench: Bench, what: str, folder: Path) -> tuple[str, float]:
    """What a change comes to, and how long it takes."""
    took, hashes = [], set()
    for attempt in range(2):
        uri = folder / f"whole{attempt}"
        shutil.copytree(bench.root / "cohort", uri)
        began = time.monotonic()
        assert bench.change(what, uri) == 0
        took.append(time.monotonic() - began)
        hashes.add(checked(uri, bench))
        assert not left_behind(uri)
    assert len(hashes) == 1
    return hashes.pop(), min(took)


def partly(uri: Path, bench: Bench) -> str:
    """Hash of the cohort but for the collection that a pipeline fills by and by."""
    cohort = Cohort(uri)
    if "clipped" in cohort:
        for obs_id, row in cohort.clipped.obs.iterrows():
            subject = row["obs_subject_id"]
            assert obs_id == f"{subject}_clipped"
            assert row["twice"] == 2 * cohort.obs_meta.loc[subject, "age"]
            assert row["mean"] == bench.arrays[obs_id].mean()
        cohort = cohort.remove(collection="clipped")
    return cohort.freeze().hash


def moments(many: int, seed: int) -> Iterator[float]:
    """Moments all over the time that a change takes, at random in each part of it."""
    draw = random.Random(seed)
    parts = list(range(many))
    draw.shuffle(parts)
    return iter([(part + draw.random()) / many for part in parts])


@pytest.mark.parametrize(
    ("what", "many"),
    [(what, 2) for what in ("append", "write", "remove")]
    + [pytest.param(what, many, marks=[pytest.mark.slow, pytest.mark.timeout(1800)]) for what, many in ROUNDS.items()],
)
def test_killed_at_any_moment_the_old_or_the_new_is_there(bench: Bench, tmp_path: Path, what: str, many: int) -> None:
    new, took = undisturbed(bench, what, tmp_path)
    old = checked(bench.root / "cohort", bench)
    interrupted, waits = 0, [moment * 1.1 * took for moment in moments(many, seed=1)]
    for number, seconds in enumerate(waits):
        uri = tmp_path / f"killed{number}"
        shutil.copytree(bench.root / "cohort", uri)
        ended = bench.change(what, uri, seconds)
        assert ended in (0, -signal.SIGKILL), f"{what} failed of itself"
        interrupted += ended != 0
        if not interrupted and many <= number + 1 < many + 8:
            waits.append(seconds / 2)  # the machine has become quicker since it was undisturbed
        found = checked(uri, bench)
        if what == "write" and found not in (old, new):  # whole volumes of it may be there
            shutil.copytree(uri, tmp_path / "looked-at")
            found = partly(tmp_path / "looked-at", bench)
            shutil.rmtree(tmp_path / "looked-at")
        assert found in (old, new), f"killed {seconds:.3f} s after {what} began, which takes {took:.3f} s"
        assert bench.change(what, uri) == 0
        assert checked(uri, bench) == new
        assert not left_behind(uri)
        shutil.rmtree(uri)
    assert interrupted, "no process was killed in time"
