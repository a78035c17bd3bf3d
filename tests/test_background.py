"""Batches made ahead by a thread: in order, no more than told, and nothing that a user wrote runs beside itself."""

from __future__ import annotations

import gc
import itertools
import subprocess
import sys
import textwrap
import threading
import time
import weakref
from typing import TYPE_CHECKING, Any

import pytest
import torch
from small import small_cohort

from radiodata.errors import SampleError, WorkerHungError
from radiodata.loading import PatchDataset, PatchLoader, memory, pinning, transport
from radiodata.loading.background import in_background
from radiodata.loading.collate import collate_samples
from radiodata.loading.reading import UnitReader
from radiodata.store import Cohort

if TYPE_CHECKING:
    from collections.abc import Callable, Generator
    from pathlib import Path


@pytest.fixture(scope="module")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> Cohort:
    return small_cohort(tmp_path_factory.mktemp("background"))


def loader(cohort: Cohort, *, transform: Any = None, **how: Any) -> PatchLoader:
    patches = PatchDataset(
        cohort, {"image": "CT"}, patch_size=24, crops_per_volume=16, crops_per_unit=4, transform=transform
    )
    return PatchLoader(patches, 4, **{"num_workers": 0, **how})


def pretend_device(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transport, "can_pin", lambda: True)
    monkeypatch.setattr(pinning, "pin_memory", lambda batch: {**batch, "pinned": True})
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: None)


def running() -> list[str]:
    return [t.name for t in threading.enumerate() if t.name.startswith("radiodata-") and t.name != "radiodata-kernel"]


class Made(list[int]):
    """What a generator made; each is a tensor, so that it can be told when it is gone."""

    def __init__(self) -> None:
        self.alive = weakref.WeakSet[torch.Tensor]()
        self.closed = threading.Event()

    def make(self, stopped: threading.Event) -> Generator[torch.Tensor, None, None]:
        try:
            for n in range(10):
                one = torch.tensor(n)
                self.append(n)
                self.alive.add(one)
                yield one
                del one
        finally:
            self.closed.set()


def comes(true: Callable[[], bool], seconds: float = 30.0) -> bool:
    """Whether it comes true in that time."""
    end = time.monotonic() + seconds
    while not true() and time.monotonic() < end:
        time.sleep(0.01)
    return true()


def test_it_gives_all_in_order_and_is_one_ahead() -> None:
    made = Made()
    given = in_background(made.make, "radiodata-test")
    got = []
    for n, one in enumerate(given):
        got.append(int(one))
        del one
        ahead = min(n + 3, 10)  # one waits, and one is to be put beside it
        assert comes(lambda: len(made) == ahead)  # noqa: B023  called here
        time.sleep(0.02)
        assert len(made) == ahead
        assert len(made.alive) <= 3  # and the one that was given
    assert got == list(range(10))
    assert made.closed.is_set()
    assert "radiodata-test" not in running()


def test_one_that_is_left_ends() -> None:
    made = Made()
    given = in_background(made.make, "radiodata-test")
    next(given)
    given.close()
    assert made.closed.is_set()
    assert len(made) <= 3
    assert "radiodata-test" not in running()


def test_an_error_comes_after_what_was_made_before_it() -> None:
    def make(stopped: threading.Event) -> Generator[int, None, None]:
        yield 1
        raise ValueError("broken")

    given = in_background(make, "radiodata-test")
    assert next(given) == 1
    with pytest.raises(ValueError, match="broken"):
        next(given)


@pytest.mark.parametrize("pin", [False, True])
def test_batches_are_made_in_a_thread_but_not_what_users_wrote(
    cohort: Cohort, monkeypatch: pytest.MonkeyPatch, pin: bool
) -> None:
    if pin:
        pretend_device(monkeypatch)
    name, seen = "radiodata-pin" if pin else "radiodata-batch", set[str]()

    def note(samples: Any) -> Any:
        seen.add(threading.current_thread().name)
        return collate_samples(samples) if isinstance(samples, list) else samples

    plain = loader(cohort, pin_memory=pin)
    first = next(batches := iter(plain))
    assert name in running()
    batches.close()  # type: ignore[attr-defined]
    assert name not in running()
    for mine in (
        loader(cohort, pin_memory=pin, transform=note),
        loader(cohort, pin_memory=pin, collate_fn=note),
        loader(cohort, pin_memory=pin, threads=0),
    ):
        again = next(batches := iter(mine))
        assert torch.equal(again["image"], first["image"])
        assert ("pinned" in again) == pin
        assert name not in running()
        batches.close()  # type: ignore[attr-defined]
    assert seen == {threading.current_thread().name}
    assert not running()


def test_a_transform_draws_the_same_whatever_the_training_loop_draws(cohort: Cohort) -> None:
    """Global generators are seeded for transforms: in a thread, it would be for the network's, too."""

    def noise(sample: dict[str, Any]) -> dict[str, Any]:
        return {**sample, "image": sample["image"] + torch.randn(())}

    quiet = [b["image"] for b in loader(cohort, transform=noise)]
    drawn = []
    torch.manual_seed(0)
    for batch, expected in zip(loader(cohort, transform=noise), quiet, strict=True):
        drawn.append(torch.randn(3))
        assert torch.equal(batch["image"], expected)
    torch.manual_seed(0)
    assert all(torch.equal(a, torch.randn(3)) for a in drawn)


def test_epochs_follow_and_leaving_one_is_no_matter(cohort: Cohort) -> None:
    truth = loader(cohort, threads=0)
    made = loader(cohort)
    for _ in range(2):
        for batch, expected in itertools.zip_longest(made, truth):
            assert torch.equal(batch["image"], expected["image"])
    next(iter(made))
    state = made.state_dict()
    next(iter(truth))
    for batch, expected in itertools.zip_longest(made, truth):
        assert torch.equal(batch["image"], expected["image"])
    resumed = loader(cohort)
    resumed.load_state_dict(state)
    assert state["step"] == 1  # batches that were made ahead do not count
    assert len(list(resumed)) == len(made) - 1
    made.close()
    resumed.close()
    assert not running()


def test_two_iterators_at_once_are_right(cohort: Cohort) -> None:
    truth = [b["image"] for b in loader(cohort, threads=0)]
    made = loader(cohort)
    for a, b, expected in zip(made._batches(0, 0), made._batches(0, 0), truth, strict=True):
        assert torch.equal(a["image"], expected)
        assert torch.equal(b["image"], expected)
    made.close()


def test_errors_name_the_sample(cohort: Cohort, monkeypatch: pytest.MonkeyPatch) -> None:
    def read(self: UnitReader, unit: Any, due: Any) -> Any:
        raise ValueError("no such tile")

    monkeypatch.setattr(UnitReader, "read", read)
    with pytest.raises(SampleError, match="no such tile"):
        next(iter(loader(cohort)))
    assert not running()


@pytest.mark.parametrize("end", ["close", "drop"])
def test_a_loader_that_has_ended_holds_nothing_that_it_read(
    cohort: Cohort, monkeypatch: pytest.MonkeyPatch, end: str
) -> None:
    monkeypatch.setattr(memory, "SMALL", 0)  # so that crops as small as these lie in memory that is counted
    gc.collect()
    before = set(memory.batches._used)
    gc.disable()  # what is dropped goes at once, not when somebody looks for cycles
    try:
        made = loader(cohort)
        dataset = weakref.ref(made.patches)
        for steps in (len(made), 3):  # a whole epoch, after which it reads on, and a part of one
            assert sum(1 for _ in itertools.islice(made, steps)) == steps
        assert set(memory.batches._used) - before
        if end == "close":
            made.close()
            assert not set(memory.batches._used) - before
            assert sum(1 for _ in made) == len(made)  # it begins again
        del made
        assert comes(lambda: dataset() is None)  # a thread may still read
        assert comes(lambda: not set(memory.batches._used) - before)
    finally:
        gc.enable()


def test_leaving_does_not_wait_for_a_read_that_hangs(cohort: Cohort, monkeypatch: pytest.MonkeyPatch) -> None:
    hangs, released, plain = threading.Event(), threading.Event(), UnitReader.read
    units = itertools.count()

    def read(self: UnitReader, unit: Any, due: Any) -> Any:
        if next(units) >= 5:
            hangs.set()
            released.wait(60)
        return plain(self, unit, due)

    monkeypatch.setattr(UnitReader, "read", read)
    given = iter(loader(cohort, threads=1))
    try:
        next(given)
        assert hangs.wait(30)
        begun = time.monotonic()
        given.close()  # type: ignore[attr-defined]
        assert time.monotonic() - begun < 30
    finally:
        released.set()
    assert comes(lambda: not running())


def test_what_makes_batches_reads_what_no_other_has_begun(cohort: Cohort, monkeypatch: pytest.MonkeyPatch) -> None:
    helped, plain = threading.Event(), UnitReader.read

    def read(self: UnitReader, unit: Any, due: Any) -> Any:
        if threading.current_thread().name == "radiodata-batch":
            helped.set()
        else:
            assert helped.wait(30)
        return plain(self, unit, due)

    truth = [b["image"] for b in loader(cohort, threads=0)]
    monkeypatch.setattr(UnitReader, "read", read)
    made = loader(cohort, threads=1)
    assert all(torch.equal(b["image"], expected) for b, expected in zip(made, truth, strict=True))
    assert helped.is_set()
    made.close()


@pytest.mark.parametrize("pin", [False, True])
def test_a_read_that_hangs_is_named(cohort: Cohort, monkeypatch: pytest.MonkeyPatch, pin: bool) -> None:
    """Whichever thread it is in: the one that makes batches, too."""
    if pin:
        pretend_device(monkeypatch)
    released, plain = threading.Event(), UnitReader.read

    def read(self: UnitReader, unit: Any, due: Any) -> Any:
        released.wait(60)
        return plain(self, unit, due)

    monkeypatch.setattr(UnitReader, "read", read)
    try:
        begun = time.monotonic()
        says = r"reading unit \d+: \[.*\] of volume '.*' .* for epoch 0, step 0 has taken more than 0.5 s"
        with pytest.raises(WorkerHungError, match=says):
            next(iter(loader(cohort, threads=1, timeout=0.5, pin_memory=pin)))
        assert time.monotonic() - begun < 30
    finally:
        released.set()
    assert comes(lambda: not running())


@pytest.mark.parametrize("way", ["leaves", "raises"])
def test_a_program_that_ends_within_an_epoch_ends_well(cohort: Cohort, tmp_path: Path, way: str) -> None:
    script = tmp_path / "script.py"
    script.write_text(
        textwrap.dedent(f"""
        from radiodata import Cohort, PatchDataset, PatchLoader
        patches = PatchDataset(Cohort({str(cohort.uri)!r}), {{"image": "CT"}}, patch_size=24, crops_per_volume=16)
        batches = iter(PatchLoader(patches, 4, num_workers=0))
        next(batches)
        print("made", flush=True)
        if {way!r} == "raises":
            raise SystemExit(3)
        """)
    )
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == (3 if way == "raises" else 0), done.stderr
    assert done.stdout == "made\n"
    assert not done.stderr
