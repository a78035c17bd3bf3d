"""Real faults: whatever happens to a worker, a file or the machine, the run ends soon and says why."""

from __future__ import annotations

import functools
import mmap
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from small import small_cohort

from radiodata.errors import SampleError, TileReadError, WorkerDiedError, WorkerHungError
from radiodata.loading import PatchDataset, PatchLoader, machine, watch
from radiodata.loading.machine import OomKills
from radiodata.store import Cohort
from radiodata.store.direct import compiled, kernels

SPAWN = pytest.param("spawn", marks=pytest.mark.slow)  # its processes import torch
SOON = 20.0
"""Seconds within which everything here must end, on a slow machine."""


@pytest.fixture(autouse=True)
def plain_reads(monkeypatch: pytest.MonkeyPatch) -> None:
    """Timeouts of a second or two must not pay for loading numba's kernel."""
    monkeypatch.setattr(compiled._kernels, "_off", True)  # in this process, and those that are forked
    monkeypatch.setenv(kernels.VARIABLE, "0")


@pytest.fixture(scope="module")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> Cohort:
    return small_cohort(tmp_path_factory.mktemp("faults"))


def loader(
    cohort: Cohort, transform: Callable[[Any], Any] | None = None, order: Any = "lanes", **how: Any
) -> PatchLoader:
    data = PatchDataset(cohort, {"image": "CT"}, patch_size=12, crops_per_volume=64, transform=transform, order=order)
    return PatchLoader(data, 4, **{"num_workers": 2, "prefetch": 2, **how})


@pytest.fixture
def made(request: pytest.FixtureRequest) -> Iterator[Callable[..., PatchLoader]]:
    """Make loaders whose workers are ended with the test, stopped or not."""
    loaders: list[PatchLoader] = []

    def make(*args: Any, **how: Any) -> PatchLoader:
        loaders.append(loader(*args, **how))
        return loaders[-1]

    yield make
    for one in loaders:
        one.close()


def pids(made: PatchLoader) -> list[int]:
    return [w.process.pid for w in made._transport._team.workers]


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def wait_until_gone(found: list[int]) -> None:
    deadline = time.monotonic() + SOON
    while any(alive(p) for p in found) and time.monotonic() < deadline:
        time.sleep(0.05)
    left = [p for p in found if alive(p)]
    for pid in left:
        os.kill(pid, signal.SIGKILL)
    assert not left


def drain(batches: Iterator[Any]) -> None:
    for _ in batches:
        pass


@pytest.mark.parametrize("method", ["fork", SPAWN])
def test_a_killed_worker_is_named_with_its_likely_cause(cohort: Cohort, made: Any, method: str) -> None:
    ours = made(cohort, multiprocessing_context=method)
    batches = iter(ours)
    next(batches)
    team = pids(ours)
    os.kill(team[1], signal.SIGKILL)
    begun = time.monotonic()
    with pytest.raises(WorkerDiedError, match=r"worker 1 of 2 .*killed by SIGKILL.*num_workers \(now 2\)") as caught:
        drain(batches)
    assert time.monotonic() - begun < SOON
    assert (caught.value.pid, caught.value.exitcode) == (team[1], -signal.SIGKILL)
    wait_until_gone(team)
    assert next(iter(ours))["image"].shape[0] == 4  # others are started


def test_a_stopped_worker_is_named(cohort: Cohort, made: Any) -> None:
    ours = made(cohort, timeout=1.5)
    batches = iter(ours)
    next(batches)
    team = pids(ours)
    os.kill(team[0], signal.SIGSTOP)
    begun = time.monotonic()
    with pytest.raises(WorkerHungError, match=r"worker 0 .*within 1.5 s.*it is stopped \(SIGSTOP") as caught:
        drain(batches)
    assert time.monotonic() - begun < SOON
    assert caught.value.pid == team[0]
    wait_until_gone(team)


def stuck_transform(sample: Any) -> Any:
    time.sleep(1000)


@pytest.mark.parametrize("method", ["fork", SPAWN])
def test_a_stuck_transform_is_shown(cohort: Cohort, made: Any, method: str) -> None:
    ours = made(cohort, stuck_transform, multiprocessing_context=method, timeout=2.0)
    with pytest.raises(WorkerHungError, match=r"(?s)at epoch 0, step 0.*in stuck_transform") as caught:
        next(iter(ours))
    assert (caught.value.epoch, caught.value.step) == (0, 0)


@pytest.mark.parametrize("workers", [0, 1])
def test_a_stuck_read_is_named(cohort: Cohort, made: Any, workers: int, monkeypatch: pytest.MonkeyPatch) -> None:
    go_on = threading.Event()
    monkeypatch.setattr(PatchDataset, "_read_unit", lambda *_: go_on.wait(60) and {})
    ours = made(cohort, num_workers=workers, timeout=1.0, multiprocessing_context="fork" if workers else None)
    begun = time.monotonic()
    with pytest.raises(WorkerHungError, match=r"reading unit \d+: \[.*\] of volume 'sub-0"):
        next(iter(ours))
    assert time.monotonic() - begun < SOON
    go_on.set()


def leave(sample: Any, how: str) -> Any:
    if how == "exit":
        sys.exit(7)
    if how == "abort":
        os.abort()
    with tempfile.TemporaryFile() as file:
        file.truncate(mmap.PAGESIZE)
        view = mmap.mmap(file.fileno(), mmap.PAGESIZE)
        file.truncate(0)
        return view[0]


@pytest.mark.parametrize(
    ("how", "says"),
    [
        ("exit", r"exit code 7"),
        ("bus", r"(?s)SIGBUS.*/dev/shm has .* free of .*--shm-size.*in leave"),
        ("abort", r"(?s)SIGABRT: native code crashed.*in leave"),
    ],
)
def test_a_worker_that_crashes_shows_how(cohort: Cohort, made: Any, how: str, says: str) -> None:
    ours = made(cohort, functools.partial(leave, how=how), num_workers=1)
    with pytest.raises(WorkerDiedError, match=says):
        next(iter(ours))


@pytest.mark.parametrize(
    ("now", "says"),
    [
        (OomKills(3, 9), r"ended 2 process\(es\) in this container.*Its limit is 2 GB.*up to 1.5 GB"),
        (OomKills(1, 9), r"at work on this machine"),
        (OomKills(1, 5), r"counts no such kill here"),
    ],
)
def test_the_out_of_memory_killer_is_told_by_its_counters(
    monkeypatch: pytest.MonkeyPatch, now: OomKills, says: str
) -> None:
    monkeypatch.setattr(watch, "oom_kills", lambda: now)
    monkeypatch.setattr(watch, "memory_limit", lambda: 2 * 10**9)
    text = watch.explain_exit(-9, OomKills(1, 5), 1_500_000_000, watch.Settings(2, 4, 1 << 30))
    assert re.search(says, text), text
    assert "prefetch (4)" in text


def voxel_files(folder: Path) -> list[Path]:
    return [p for p in folder.rglob("*.tdb") if "__fragments" in p.parts and p.stat().st_size > 1000]


def ruin(folder: Path) -> None:
    for path in voxel_files(folder):
        path.write_bytes(os.urandom(path.stat().st_size))


def delete(folder: Path) -> None:
    arrays = {p.parents[2] for p in voxel_files(folder)}
    assert arrays
    for array in arrays:
        shutil.rmtree(array)


@pytest.mark.parametrize("harm", [ruin, delete])
@pytest.mark.parametrize(
    ("workers", "method"), [(0, None), (2, "fork"), pytest.param(2, "spawn", marks=pytest.mark.slow)]
)
def test_damage_in_mid_epoch_names_the_volume(
    tmp_path: Path, made: Any, harm: Callable[[Path], None], workers: int, method: str | None
) -> None:
    how = {"num_workers": workers, "multiprocessing_context": method, "threads": 1}
    ours = made(small_cohort(tmp_path), order="sequential", **how)  # the last volumes' files are not open yet
    ours.patches.cache_bytes = 1 << 15
    batches = iter(ours)
    next(batches)
    harm(tmp_path / "cohort")
    with pytest.raises(TileReadError, match=r"cannot read \[\d+:\d+, .*of volume 'sub-0.*subject 'sub-0.*ingest") as e:
        drain(batches)
    assert type(e.value) is TileReadError
    if workers:
        assert "in worker" in e.value.__notes__[0]
        assert "read_box" in str(e.value.__cause__)


class Picky(Exception):
    """Cannot be made of its arguments again."""

    def __init__(self, a: int, *, b: int) -> None:
        super().__init__(f"{a} and {b}")


def fail_with_attributes(sample: Any) -> Any:
    raise SampleError("x", "y", [(0, 1), (2, 3), (4, 5)], "transform", "why")


def fail_pickily(sample: Any) -> Any:
    raise KeyboardInterrupt if sample is None else Picky(1, b=2)


@pytest.mark.parametrize("method", ["fork", SPAWN])
def test_errors_keep_class_attributes_and_message(cohort: Cohort, made: Any, method: str) -> None:
    with pytest.raises(SampleError) as caught:
        drain(iter(made(cohort, fail_with_attributes, multiprocessing_context=method)))
    error = caught.value
    while error.obs_id != "x":
        assert isinstance(error.__cause__, Exception), error
        error = error.__cause__
    assert (error.subject, error.box, error.stage) == ("y", ((0, 1), (2, 3), (4, 5)), "transform")


def test_an_error_that_does_not_survive_pickling_says_what_it_said(cohort: Cohort, made: Any) -> None:
    with pytest.raises(RuntimeError, match="1 and 2") as caught:
        drain(iter(made(cohort, fail_pickily)))
    assert "in fail_pickily" in str(caught.value.__cause__)
    assert next(iter(made(cohort)))["image"].shape[0] == 4


SCRIPT = """
import os, sys, time
import torch
from radiodata import Cohort, PatchDataset, PatchLoader

class Pause:
    def __init__(self):
        self.large = torch.ones(1_000_000)

    def __call__(self, sample):
        assert self.large[-1] == 1
        time.sleep({pause})
        return sample

def main():
    data = PatchDataset(Cohort({uri!r}), {{"image": "CT"}}, patch_size=12, crops_per_volume=64, transform=Pause())
    loader = PatchLoader(data, 4, num_workers=2, multiprocessing_context={method!r})
    batches = iter(loader)
    seen = 0
    for batch in batches:
        seen += 1
        if seen == 1:
            print(*[w.process.pid for w in loader._transport._team.workers], flush=True)
        {then}
    print("all", seen == len(loader), flush=True)

{guard}main()
"""


def script(cohort: Cohort, folder: Path, **told: Any) -> list[str]:
    filled = {"pause": 0.0, "uri": cohort.uri, "method": "fork", "then": "pass", "guard": "", **told}
    filled["guard"] = "" if told.get("bare") else "if __name__ == '__main__':\n    "
    path = folder / "script.py"
    path.write_text(SCRIPT.format(**filled))
    return [sys.executable, str(path)]


def launch(command: list[str]) -> tuple[subprocess.Popen[str], list[int]]:
    with tempfile.TemporaryFile("w+") as errors:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, text=True)
        process.errors_file = os.dup(errors.fileno())  # type: ignore[attr-defined]
    assert process.stdout is not None
    late = threading.Timer(2 * SOON, process.kill)
    late.start()
    first = process.stdout.readline()
    late.cancel()
    return process, [int(p) for p in first.split()]


def finish(process: subprocess.Popen[str]) -> tuple[str, str]:
    """What it wrote, after it has ended by itself; else it is killed."""
    try:
        process.wait(timeout=SOON)
    finally:
        process.kill()
        process.wait()
    assert process.stdout is not None
    with process.stdout, os.fdopen(process.errors_file) as errors:  # type: ignore[attr-defined]
        errors.seek(0)
        return process.stdout.read(), errors.read()


@pytest.mark.parametrize("method", ["fork", "forkserver", SPAWN])
def test_workers_end_when_their_parent_is_killed(cohort: Cohort, tmp_path: Path, method: str) -> None:
    slow = "loader.patches and time.sleep(100)"
    process, team = launch(script(cohort, tmp_path, method=method, then=slow))
    process.kill()
    finish(process)
    assert len(team) == 2
    wait_until_gone(team)


def test_workers_in_the_middle_of_something_end_too(cohort: Cohort, tmp_path: Path) -> None:
    process, team = launch(script(cohort, tmp_path, pause=0.5, then="time.sleep(100)"))
    process.kill()
    finish(process)
    wait_until_gone(team)


@pytest.mark.parametrize(
    ("then", "code", "says"),
    [
        ("break", 0, "all False"),
        ("sys.exit(3)", 3, ""),
        ("os.kill(os.getpid(), 2)", -signal.SIGINT, ""),
        ("os.kill(loader._transport._team.workers[0].process.pid, 19); sys.exit(4)", 4, ""),
    ],
)
def test_leaving_in_mid_epoch_leaves_nothing_behind(
    cohort: Cohort, tmp_path: Path, then: str, code: int, says: str
) -> None:
    process, team = launch(script(cohort, tmp_path, then=then))
    out, _ = finish(process)
    assert process.returncode == code
    assert says in out
    wait_until_gone(team)


@pytest.mark.slow
def test_a_script_without_a_guard_is_told_so(cohort: Cohort, tmp_path: Path) -> None:
    process, _ = launch(script(cohort, tmp_path, method="spawn", bare=True))
    _, errors = finish(process)
    assert process.returncode == 1
    assert "__name__ == '__main__'" in errors
    assert "WorkerDiedError" in errors


def test_an_iterator_dropped_in_mid_epoch(cohort: Cohort, made: Any) -> None:
    ours = made(cohort)
    batches = iter(ours)
    next(batches)
    team = pids(ours)
    del batches
    assert ours.state_dict()["step"] == 1
    assert len([b["key"] for b in ours]) == len(ours)
    assert pids(ours) == team
    ours.close()
    wait_until_gone(team)
    other = loader(cohort)
    next(iter(other))
    team = pids(other)
    del other
    wait_until_gone(team)


def test_one_iterator_at_a_time(cohort: Cohort, made: Any) -> None:
    ours = made(cohort)
    first = iter(ours)
    next(first)
    next(iter(ours))
    with pytest.raises(RuntimeError, match="another was begun"):
        next(first)


FULL = """
set -e
mount -t tmpfs -o size=64k tmpfs /dev/shm
head -c 65536 /dev/zero > /dev/shm/full || true
exec "$@"
"""


@pytest.mark.parametrize("method", ["fork", SPAWN])
def test_a_full_shared_memory_file_system_does_not_matter(cohort: Cohort, tmp_path: Path, method: str) -> None:
    private = ["unshare", "--mount", "--propagation", "private"]
    if (
        shutil.which("unshare") is None
        or subprocess.run([*private, "true"], check=False, capture_output=True).returncode
    ):
        pytest.skip("needs the right to mount a small file system (root)")
    command = [*private, "bash", "-c", FULL, "bash", *script(cohort, tmp_path, method=method)]
    process, _ = launch(command)
    out, errors = finish(process)
    assert "all True" in out, errors


def test_what_the_machine_has() -> None:
    assert machine.memory_available() is None or machine.memory_available() > 0
    assert machine.show_bytes(1_500_000_000) == "1.5 GB"
    assert machine.oom_kills().machine >= 0
