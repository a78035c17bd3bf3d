"""The loader at work: reading ahead within its bound, batches across processes, statistics, estimates."""

from __future__ import annotations

import gc
import itertools
import os
import pickle
import tempfile
import threading
from collections import deque
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from small import small_cohort

from radiodata.errors import (
    ConfigError,
    SampleError,
    TooManyErrors,
    WorkerDiedError,
    is_system_error,
)
from radiodata.loading import PatchDataset, PatchLoader, VolumeLoader, estimate, pinning, transport
from radiodata.loading.cache import BlockCache, UnitKey
from radiodata.loading.channel import Channel
from radiodata.loading.parcels import SMALL, Packer, Unpacker
from radiodata.loading.readahead import Jobs, ReadAhead, Turn
from radiodata.loading.reading import Crop
from radiodata.loading.stats import LoaderStats, Stats
from radiodata.store import Cohort
from radiodata.store.direct import compiled, kernels


@pytest.fixture(autouse=True)
def plain_reads(monkeypatch: pytest.MonkeyPatch) -> None:
    """Timeouts of a second or two must not pay for loading numba's kernel."""
    monkeypatch.setattr(compiled._kernels, "_off", True)  # in this process, and those that are forked
    monkeypatch.setenv(kernels.VARIABLE, "0")


@pytest.fixture(scope="module")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> Cohort:
    return small_cohort(tmp_path_factory.mktemp("ops"))


def loader(cohort: Cohort, *, settings: dict[str, Any] | None = None, **how: Any) -> PatchLoader:
    keys = {"image": "CT", "label": "seg"}
    chosen = {"patch_size": 24, "crops_per_volume": 16, "crops_per_unit": 4, **(settings or {})}
    return PatchLoader(PatchDataset(cohort, keys, **chosen), 4, **{"num_workers": 0, **how})


def same(a: dict[str, Any], b: dict[str, Any]) -> bool:
    return a.keys() == b.keys() and all(
        torch.equal(v, b[k]) if isinstance(v, torch.Tensor) else v == b[k] for k, v in a.items()
    )


@pytest.fixture(scope="module")
def reference(cohort: Cohort) -> list[dict[str, Any]]:
    return list(loader(cohort, threads=0))


@pytest.mark.parametrize("threads", [0, 1, 3])
@pytest.mark.parametrize("workers", [0, 1, 2])
def test_every_shape_gives_the_same_batches_and_reads_once(
    cohort: Cohort, reference: list[dict[str, Any]], workers: int, threads: int
) -> None:
    made = loader(
        cohort, num_workers=workers, threads=threads, repeat_epoch=True
    )  # which reads nothing of the next one
    found = list(made)
    assert len(found) == len(reference)
    assert all(same(a, b) for a, b in zip(found, reference, strict=True))
    told = made.stats()
    assert told.batches == len(found) == len(made)
    assert told.units_read == len(made.patches.plan.units) == 24
    assert told.bytes_delivered == sum(v.nbytes for b in found for v in b.values() if isinstance(v, torch.Tensor))
    assert told.bytes_read > 0
    assert 0 < told.hits <= 96
    assert told.read_seconds > 0
    assert told.collate_seconds > 0
    made.close()


def test_a_bound_below_what_is_open_costs_reads_not_right_batches(
    cohort: Cohort, reference: list[dict[str, Any]]
) -> None:
    made = loader(cohort, settings={"cache_bytes": 200_000}, threads=2)
    assert all(same(a, b) for a, b in zip(made, reference, strict=True))
    assert made.stats().units_read > 24


class Lanes:
    """Reads of a made-up plan: 4 units in a batch, 4 crops a unit, 8 lanes of batches."""

    def __init__(self, units: int, nbytes: int = 1000) -> None:
        self.steps, self.nbytes, self.order, self.log = units, nbytes, list[UnitKey](), deque[int]()

    def reads(self, at: tuple[int, int]) -> list[tuple[UnitKey, int]]:
        group, turn = at[1] % 8, at[1] // 8
        return [((at[0], (turn // 4 * 8 + group) * 4 + slot), turn % 4) for slot in range(4)]

    def read(self, key: UnitKey) -> dict[int, Crop]:
        self.order.append(key)
        where = np.zeros(3, np.int64)
        return {n: Crop(0, where, where, {"image": np.zeros(self.nbytes, np.uint8)}) for n in range(4)}


@pytest.mark.parametrize(("worker", "workers"), [(0, 1), (1, 2), (3, 8)])
@pytest.mark.parametrize("room", [1.05, 1.5, 4.0])
def test_what_is_read_ahead_fits_and_is_never_read_again(worker: int, workers: int, room: float) -> None:
    lanes = Lanes(32)
    open_bytes = 32 // workers * 4 * 1000  # all units of this worker's lanes, whole
    blocks = BlockCache(lanes.read, int(open_bytes * room), size=lambda key: 4000)
    ahead = ReadAhead(blocks, lanes.reads, spread=32, threads=2)
    steps = list(range(worker, 128, workers))
    for step in steps:
        ahead.advance(Turn(0, step, 128, workers))
        assert blocks._bytes + sum(r.nbytes for r in list(blocks._reading.values())) <= open_bytes * room
        assert ahead.wait(10) is None
        for key, crop in lanes.reads((0, step)):
            blocks.take(key, crop)
        ahead.go_on()
    ahead.close()
    assert len(lanes.order) == len(set(lanes.order)) == 128 // workers
    assert (blocks._bytes, blocks._due) == (0, {})


def test_reading_ahead_goes_on_in_the_order_of_need_until_there_is_no_room() -> None:
    lanes = Lanes(32)
    blocks = BlockCache(lanes.read, 40_000, size=lambda key: 4000)
    ahead = ReadAhead(blocks, lanes.reads, spread=32, threads=1)
    ahead.advance(Turn(0, 0, 128, 2))
    while len(lanes.order) < 10:
        threading.Event().wait(0.01)
    ahead.close()
    assert lanes.order == [(0, u) for u in (0, 1, 2, 3, 8, 9, 10, 11, 16, 17)]


@pytest.mark.parametrize("most", [1, 2, 4])
def test_jobs_are_done_in_order_by_no_more_threads_than_told(most: int) -> None:
    limit, gate, lock = [most], threading.Event(), threading.Lock()
    at_work, peak, order = [0], [0], list[UnitKey]()
    jobs = Jobs(lambda: limit[0])

    def work() -> None:
        while (key := jobs.get()) is not None:
            with lock:
                order.append(key)
                at_work[0] += 1
                peak[0] = max(peak[0], at_work[0])
            gate.wait(10)
            with lock:
                at_work[0] -= 1
            jobs.done()

    def until(number: int) -> None:
        while len(order) < number:
            threading.Event().wait(0.001)

    for n in (3, 1, 0, 2, 5, 4, 6, 7):
        jobs.put((1, n, (0, n)))
    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    until(most)
    threading.Event().wait(0.05)
    assert (len(order), peak[0]) == (most, most)
    assert sorted(order) == [(0, n) for n in range(most)]
    limit[0] = 4  # what is told changes: seen when the next job begins
    gate.set()
    until(8)
    assert sorted(order) == [(0, n) for n in range(8)]
    if most == 1:
        assert order[0] == (0, 0)
    limit[0] = 0
    jobs.put((1, 8, (0, 8)))
    for n in range(4):
        jobs.put((-1, n, None))  # whatever the limit
    for thread in threads:
        thread.join(10)
        assert not thread.is_alive()
    assert len(order) == 8


def test_few_threads_read_where_nothing_is_fetched(cohort: Cohort, monkeypatch: pytest.MonkeyPatch) -> None:
    made = loader(cohort)
    assert made.patches.fetches()  # a local disk: as many as told
    list(made)
    assert made.patches.fetches()
    monkeypatch.setattr(PatchDataset, "schemes", frozenset({"s3"}))
    assert not made.patches.fetches()  # as from a cache: no unit took a request
    made.patches._requests.append(3.0)
    assert made.patches.fetches()
    made.patches._requests.clear()
    assert made.patches.fetches()  # not known yet
    made.close()


def test_short_epochs_are_read_while_the_one_before_goes_on() -> None:
    """All of an epoch's units are opened by its first eight steps: those of the next one come while few are held."""
    lanes = Lanes(32)
    blocks = BlockCache(lanes.read, 1 << 30, size=lambda key: 4000)
    ahead = ReadAhead(blocks, lanes.reads, spread=32, threads=1, ahead=2, units=48)
    most, read = 0, []
    for number in range(64):
        epoch, step = divmod(number, 32)
        ahead.advance(Turn(epoch, step, 32, 1, goes_on=True))
        most = max(most, blocks.open)
        assert ahead.wait(10) is None
        for key, crop in lanes.reads((epoch, step)):
            blocks.take(key, crop)
        ahead.go_on()
        most = max(most, blocks.open)
        while any(r for r in list(blocks._reading.values())):
            threading.Event().wait(0.001)
        read.append(len(lanes.order))
    ahead.close()
    assert read[7] >= 46  # 32 of this epoch, and 14 or more of the next one long before its first step
    assert read[23] == 48
    assert most <= 48 + 3  # a step is granted whole
    assert len(lanes.order) == len(set(lanes.order))


def test_a_step_count_that_is_given_holds(cohort: Cohort) -> None:
    assert loader(cohort)._transport._source.units == 4 * 8
    assert loader(cohort, read_ahead=8)._transport._source.units == 0
    assert loader(cohort, settings={"order": "sequential"})._transport._source.units == 0


@pytest.mark.parametrize(
    ("cores", "workers", "threads"), [(1, 0, 1), (2, 0, 1), (4, 0, 3), (64, 0, 4), (2, 2, 2), (64, 2, 2)]
)
def test_as_many_threads_read_as_cores_allow(
    cohort: Cohort, monkeypatch: pytest.MonkeyPatch, cores: int, workers: int, threads: int
) -> None:
    monkeypatch.setattr("radiodata.loading.loader.cores", lambda: cores)
    assert loader(cohort, num_workers=workers)._transport._threads == threads
    assert loader(cohort, num_workers=workers, threads=3)._transport._threads == 3


def test_a_jump_reads_what_is_needed_now_first() -> None:
    lanes = Lanes(32)
    blocks = BlockCache(lanes.read, 8 * 4000, size=lambda key: 4000)
    ahead = ReadAhead(blocks, lanes.reads, spread=32, threads=1)
    ahead.advance(Turn(0, 0, 128, 1))
    assert ahead.wait(10) is None
    ahead.advance(Turn(1, 7, 128, 1))
    assert ahead.wait(10) is None
    for key, crop in lanes.reads((1, 7)):
        assert blocks.holds(key, crop)
    ahead.close()


def test_arrays_cross_as_they_are_and_memory_is_used_again() -> None:
    packer, unpacker = Packer(keep=1), Unpacker()

    def send(content: Any) -> Any:
        dropped = packer.take_back(unpacker.back())
        parcel = packer.pack(content)
        for sheet, file in packer.take_new():
            unpacker.add(sheet, file)
        unpacker.drop(dropped)
        return unpacker.unpack(parcel)

    content = {
        "large": torch.arange(SMALL, dtype=torch.int16).reshape(2, -1),
        "half": torch.randn(SMALL).bfloat16(),
        "part": torch.arange(4 * SMALL)[::2],
        "flags": torch.ones(SMALL, dtype=torch.bool),
        "small": torch.tensor(3.5),
        "none": torch.zeros(0, 3),
        "array": np.arange(SMALL, dtype=np.float64).reshape(4, -1),
        "nested": [("a", torch.full((SMALL,), 7, dtype=torch.uint8))],
    }
    got = send(content)
    for key in ("large", "half", "part", "flags", "small", "none"):
        assert got[key].dtype == content[key].dtype
        assert torch.equal(got[key], content[key])
    assert np.array_equal(got["array"], content["array"])
    assert torch.equal(got["nested"][0][1], content["nested"][0][1])
    used = set(packer._maps)
    kept = got["large"]
    del got
    again = send(content)
    assert len(set(packer._maps) - used) == 1  # for what is still kept
    assert torch.equal(kept, content["large"])
    kept += 1
    assert torch.equal(again["large"], content["large"])
    many = [send(content) for _ in range(4)]
    held = len(packer._maps)
    del many, again
    gc.collect()
    send(content)
    assert len(packer._maps) < held


def test_what_cannot_be_pickled_keeps_no_memory() -> None:
    packer = Packer(keep=1)
    with pytest.raises((pickle.PicklingError, AttributeError), match=r"lambda|local object"):
        packer.pack([torch.zeros(SMALL), lambda: None])
    assert len(packer._free) == len(packer._maps) == 1


def test_batches_that_are_kept_stay_what_they_were(cohort: Cohort, reference: list[dict[str, Any]]) -> None:
    made = loader(cohort, num_workers=1, prefetch=1)
    kept = [{k: v for k, v in b.items() if i % 3 or k == "image"} for i, b in enumerate(made)]
    for batch, expected in zip(kept, reference, strict=True):
        assert all(torch.equal(v, expected[k]) for k, v in batch.items() if isinstance(v, torch.Tensor))
    made.close()
    assert torch.equal(kept[0]["image"], reference[0]["image"])


def test_messages_come_whole_or_not_at_all() -> None:
    here, there = Channel.pair()
    there.send({"n": 1})
    there._socket.sendall(b"\x20\0\0")  # the beginning of another, and no more
    assert here.receive() == [{"n": 1}]
    assert here.receive() == []
    there._socket.sendall(b"\0\0\0\0\0")
    there.close()
    with pytest.raises(EOFError):
        here.receive()
    here.close()


def test_few_files_are_open_however_many_wait() -> None:
    here, there = Channel.pair()
    with tempfile.TemporaryFile() as file:
        for number in range(100):
            there.send(number, [file.fileno()] if number % 3 else [])
        there.send("the last")
        got: list[Any] = []
        before = len(list(Path("/proc/self/fd").iterdir()))
        while messages := here.receive():
            assert len(list(Path("/proc/self/fd").iterdir())) - before <= 16
            for message in messages:
                got.append(message)
                if message != "the last" and message % 3:
                    came = here.next_file()
                    assert os.path.samestat(os.fstat(came), os.fstat(file.fileno()))
                    os.close(came)
    assert got == [*range(100), "the last"]
    here.close()
    there.close()


def test_statistics_of_processes_add_up() -> None:
    mine, theirs = Stats(), pickle.loads(pickle.dumps(Stats()))
    with theirs.timed("transform"):
        theirs.count("hits", 2)
    mine.count("hits")
    mine.merge(theirs.take())
    assert theirs.take() == {}
    report = mine.report()
    assert (report.hits, report.wait_seconds) == (3, 0.0)
    assert report.transform_seconds > 0
    assert report.to_dict()["hits"] == 3
    assert "transform" in str(report)
    assert LoaderStats() == Stats().report()
    with pytest.raises(ConfigError, match="no statistic 'hitz'"):
        mine.count("hitz")


@pytest.mark.filterwarnings("ignore:TileDB is a multithreading")
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_a_forked_child_counts_for_itself() -> None:
    stats = Stats()
    stats.count("hits", 5)
    with stats._lock:  # as a thread of the parent might at the fork
        child = os.fork()
        if not child:
            stats.count("hits")
            os._exit(int(stats.take()["hits"]))
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 1
    assert stats.report().hits == 5


def test_the_estimate_counts_every_process() -> None:
    told = estimate.estimate(
        sample_bytes=1000, samples=4, batches=100, cache_bytes=50_000, workers=2, prefetch=3, pin_memory=True
    )
    assert (told.batch_bytes, told.cache_bytes, told.shared_bytes) == (4000, 100_000, 2 * 5 * 4000)
    assert told.total_bytes == told.cache_bytes + told.making_bytes + told.shared_bytes + told.pinned_bytes
    assert "shared" in str(told)
    here = estimate.estimate(
        sample_bytes=1000, samples=4, batches=100, cache_bytes=50_000, workers=0, prefetch=3, pin_memory=False
    )
    assert (here.cache_bytes, here.making_bytes, here.shared_bytes) == (50_000, 4 * 4000, 0)
    assert told.to_dict()["batch_bytes"] == 4000


def test_a_loader_that_cannot_fit_warns(cohort: Cohort, monkeypatch: pytest.MonkeyPatch) -> None:
    assert loader(cohort).estimate().fits
    monkeypatch.setattr(estimate, "memory_available", lambda: 50_000)
    with pytest.warns(UserWarning, match=r"(?s)may need .* and 50 kB are available.*cache_bytes") as caught:
        loader(cohort, num_workers=2)
    assert caught[0].filename == __file__


@pytest.mark.parametrize(
    ("how", "says"),
    [({"timeout": 0}, "timeout=0"), ({"threads": -1}, "threads=-1"), ({"prefetch": 0}, "prefetch=0")],
)
def test_senseless_settings_are_refused(cohort: Cohort, how: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        loader(cohort, **how)


def test_whole_volumes_come_through_workers(cohort: Cohort) -> None:
    here = list(VolumeLoader(cohort, {"image": "CT"}, rank=0, world_size=1))
    made = VolumeLoader(cohort, {"image": "CT"}, num_workers=2, rank=0, world_size=1)
    for _ in range(2):
        assert all(torch.equal(a["image"], b["image"]) for a, b in itertools.zip_longest(made, here))
    made.close()


@pytest.mark.parametrize(
    "error",
    [
        SampleError("ct", "s", [(0, 1), (2, 3), (4, 5)], "read", "broken"),
        TooManyErrors(5, 4, "last"),
        WorkerDiedError("gone", worker=1, pid=2, exitcode=-9, epoch=0, step=3),
    ],
)
def test_errors_survive_pickling(error: Exception) -> None:
    again = pickle.loads(pickle.dumps(error))
    assert (type(again), str(again), vars(again)) == (type(error), str(error), vars(error))


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (ValueError("bad"), False),
        (OSError(5, "input/output error"), False),
        (OSError(28, "no space"), True),
        (MemoryError(), True),
        (KeyboardInterrupt(), True),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory"), True),
        (ImportError("no module"), True),
    ],
)
def test_errors_of_the_machine_are_told_from_those_of_a_sample(error: BaseException, expected: bool) -> None:
    assert is_system_error(error) is expected
    wrapped = RuntimeError("a sample failed")
    wrapped.__cause__ = error
    assert is_system_error(wrapped) is expected


@pytest.fixture
def pretend_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """Page-lock by copying, where there is no device."""
    monkeypatch.setattr(transport, "can_pin", lambda: True)
    monkeypatch.setattr(pinning, "pin_memory", lambda b: {k: v + 0 if k == "image" else v for k, v in b.items()})
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: None)


@pytest.mark.usefixtures("pretend_device")
@pytest.mark.parametrize("workers", [0, 2])
def test_page_locked_batches_come_one_ahead(cohort: Cohort, reference: list[dict[str, Any]], workers: int) -> None:
    made = loader(cohort, num_workers=workers, pin_memory=True)
    assert all(same(a, b) for a, b in itertools.zip_longest(made, reference))
    left = iter(made)
    next(left)
    left.close()  # type: ignore[attr-defined]
    assert not [t for t in threading.enumerate() if t.name == "radiodata-pin"]
    assert made.epoch == 1
    made.close()


class Broken:
    def __call__(self, sample: dict[str, Any]) -> dict[str, Any]:
        raise ValueError("broken")


@pytest.mark.usefixtures("pretend_device")
@pytest.mark.parametrize("workers", [0, 1])
def test_errors_come_through_the_thread_that_page_locks(cohort: Cohort, workers: int) -> None:
    made = loader(cohort, num_workers=workers, pin_memory=True, settings={"transform": Broken()})
    with pytest.raises(RuntimeError, match="broken"):
        next(iter(made))
    made.close()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("workers", [0, 2])
def test_batches_are_page_locked(cohort: Cohort, reference: list[dict[str, Any]], workers: int) -> None:
    made = loader(cohort, num_workers=workers, pin_memory=True)
    for batch, expected in zip(made, reference, strict=True):
        assert batch["image"].is_pinned()
        assert batch["image"].dtype == torch.int16
        assert torch.equal(batch["image"].cuda(non_blocking=True).cpu(), expected["image"])
    made.close()


def test_a_loader_in_use_can_be_copied(cohort: Cohort, reference: list[dict[str, Any]]) -> None:
    made = loader(cohort, num_workers=1)
    next(iter(made))
    again = pickle.loads(pickle.dumps(made))
    again.set_epoch(0)
    assert all(same(a, b) for a, b in itertools.zip_longest(again, reference))
    made.close()
    again.close()
