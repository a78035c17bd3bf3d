"""The block cache: one read a unit however many ask, a bound in bytes, errors that do not stick."""

import threading
import time

import numpy as np
import pytest

from radiodata.errors import ConfigError
from radiodata.loading.cache import BlockCache, UnitKey
from radiodata.loading.reading import Crop


def crops(key: UnitKey, n: int = 3, size: int = 100) -> dict[int, Crop]:
    where = np.zeros(3, np.int64)
    return {i: Crop(0, where, where, {"image": np.full(size, key[1] * 10 + i, np.uint8)}) for i in range(n)}


def test_each_crop_is_handed_out_and_let_go() -> None:
    cache = BlockCache(crops, max_bytes=10**6)
    assert [int(cache.take((0, 4), i).voxels["image"][0]) for i in range(3)] == [40, 41, 42]
    assert (cache.reads, cache.hits, cache._bytes, len(cache._waiting)) == (1, 2, 0, 0)


def test_bytes_are_bounded_and_what_was_dropped_is_read_again() -> None:
    cache = BlockCache(crops, max_bytes=450)
    for unit in range(5):
        cache.take((0, unit), 0)
        assert cache._bytes <= 450
    assert int(cache.take((0, 0), 1).voxels["image"][0]) == 1
    assert cache.reads == 6


def test_a_bound_below_one_unit_still_works() -> None:
    cache = BlockCache(crops, max_bytes=0)
    assert [int(cache.take((0, 1), i).voxels["image"][0]) for i in range(3)] == [10, 11, 12]
    assert cache.reads == 3


def test_many_threads_one_read() -> None:
    started = threading.Event()

    def slow(key: UnitKey) -> dict[int, Crop]:
        started.set()
        time.sleep(0.05)
        return crops(key)

    cache = BlockCache(slow, max_bytes=10**6)
    found: list[int] = []
    threads = [
        threading.Thread(target=lambda i=i: found.append(int(cache.take((0, 0), i).voxels["image"][0])))
        for i in range(3)
    ]
    assert cache.request((0, 0))
    ahead = threading.Thread(target=cache.run, args=((0, 0),))
    for thread in (ahead, *threads):
        thread.start()
    for thread in (ahead, *threads):
        thread.join(10)
    assert sorted(found) == [0, 1, 2]
    assert cache.reads == 1
    assert cache._bytes == 0


@pytest.mark.parametrize("most", [0, 150, 10**6])
def test_a_crop_is_handed_to_one_of_those_who_ask(most: int) -> None:
    """Whoever has it may write to it: two who wait for one read get it from two reads."""
    cache = BlockCache(crops, max_bytes=most)
    for unit in range(20):
        found: list[Crop] = []
        gate = threading.Barrier(4)

        def ask(unit: int = unit, gate: threading.Barrier = gate, found: list[Crop] = found) -> None:
            gate.wait()
            found.append(cache.take((0, unit), 1))

        threads = [threading.Thread(target=ask) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(10)
        assert len({id(crop) for crop in found}) == 4
        assert [int(crop.voxels["image"][0]) for crop in found] == [unit * 10 + 1] * 4


def test_a_failed_read_is_told_and_tried_again() -> None:
    failures = iter([OSError("disk"), None])

    def flaky(key: UnitKey) -> dict[int, Crop]:
        error = next(failures)
        if error is not None:
            raise error
        return crops(key)

    cache = BlockCache(flaky, max_bytes=10**6)
    with pytest.raises(OSError, match="disk"):
        cache.take((0, 0), 0)
    assert int(cache.take((0, 0), 0).voxels["image"][0]) == 0


def test_what_an_epoch_left_is_forgotten_by_the_next() -> None:
    cache = BlockCache(crops, max_bytes=10**6)
    cache.take((0, 0), 0)
    cache.take((1, 0), 0)
    assert set(cache._waiting) == {(1, 0)}


def test_negative_bounds_are_refused() -> None:
    with pytest.raises(ConfigError, match="cache_bytes"):
        BlockCache(crops, max_bytes=-1)


def test_reads_ahead_are_granted_only_where_their_bytes_fit() -> None:
    cache = BlockCache(crops, max_bytes=700, size=lambda key: 300)
    for unit in range(3):
        for crop in range(3):
            cache.expect((0, unit), crop, 3 * unit + crop)
    assert [cache.request((0, unit)) for unit in range(3)] == [True, True, False]
    cache.run((0, 0))
    cache.run((0, 0))  # once is enough
    cache.run((0, 1))
    assert (cache.reads, cache._bytes, cache.request((0, 2))) == (2, 600, False)
    cache.take((0, 0), 0)
    assert not cache.request((0, 2))  # 500 there
    cache.take((0, 0), 1)
    assert cache.request((0, 2))  # 400 there
    assert [cache.holds((0, u), 0) for u in range(4)] == [False, True, True, False]
    cache.run((0, 2))
    taken = [int(cache.take((0, u), c).voxels["image"][0]) for u, c in ((0, 2), (1, 0), (1, 1), (1, 2), (2, 0))]
    assert (taken, cache.reads, cache._bytes) == ([2, 10, 11, 12, 20], 3, 200)


def test_what_nobody_expects_makes_room_for_reads_ahead() -> None:
    cache = BlockCache(crops, max_bytes=500, size=lambda key: 300)
    cache.take((0, 0), 0)
    cache.expect((0, 0), 2, 5)
    cache.take((0, 1), 0)
    assert cache._bytes == 400
    assert cache.request((0, 2))
    assert cache.holds((0, 0), 2)
    assert not cache.holds((0, 0), 1)


def test_an_urgent_read_drops_what_is_needed_last() -> None:
    cache = BlockCache(crops, max_bytes=600, size=lambda key: 300)
    for unit, step in ((0, 9), (1, 2), (2, 3)):
        cache.expect((0, unit), 0, step)
        cache.expect((0, unit), 1, step + 1)
        cache.expect((0, unit), 2, step + 2)
        assert cache.request((0, unit), urgent=True)
        cache.run((0, unit))
    assert set(cache._waiting) == {(0, 1), (0, 2)}


def test_a_read_that_was_granted_and_not_begun_is_done_by_who_needs_it() -> None:
    cache = BlockCache(crops, max_bytes=600)
    assert cache.request((0, 1))
    assert int(cache.take((0, 1), 2).voxels["image"][0]) == 12
    cache.run((0, 1))
    assert cache.reads == 1
    assert cache.request((0, 2))
    cache.expect_nothing()
    cache.run((0, 2))
    assert cache.reads == 1


def test_the_first_unit_of_unknown_size_is_read_by_itself() -> None:
    cache = BlockCache(crops, max_bytes=500)
    assert [cache.request((0, 0)), cache.request((0, 1))] == [True, False]
    cache.run((0, 0))
    assert [cache.request((0, 1)), cache.request((0, 2))] == [True, False]


def test_a_read_that_takes_too_long_is_told() -> None:
    go = threading.Event()

    def slow(key: UnitKey) -> dict[int, Crop]:
        go.wait(10)
        return crops(key)

    cache = BlockCache(slow, max_bytes=10**6)
    assert cache.wait((0, 0), 0.01)  # nothing is being read
    cache.request((0, 0))
    thread = threading.Thread(target=cache.run, args=((0, 0),))
    thread.start()
    assert not cache.wait((0, 0), 0.05)
    go.set()
    thread.join(10)
    assert cache.wait((0, 0), 0.05)
