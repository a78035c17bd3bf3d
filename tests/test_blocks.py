"""The block cache: one read a unit however many ask, a bound in bytes, errors that do not stick."""

import threading
import time

import numpy as np
import pytest

from radiodata.errors import ConfigError
from radiodata.loading.blocks import BlockCache, Crop, UnitKey


def crops(key: UnitKey, n: int = 3, size: int = 100) -> list[Crop]:
    return [Crop(0, np.zeros(3, np.int64), {"image": np.full(size, key[1] * 10 + i, np.uint8)}) for i in range(n)]


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

    def slow(key: UnitKey) -> list[Crop]:
        started.set()
        time.sleep(0.05)
        return crops(key)

    cache = BlockCache(slow, max_bytes=10**6)
    found: list[int] = []
    threads = [
        threading.Thread(target=lambda i=i: found.append(int(cache.take((0, 0), i).voxels["image"][0])))
        for i in range(3)
    ]
    ahead = threading.Thread(target=cache.prefetch, args=((0, 0), 0))
    for thread in (ahead, *threads):
        thread.start()
    for thread in (ahead, *threads):
        thread.join(10)
    assert sorted(found) == [0, 1, 2]
    assert cache.reads == 1
    assert cache._bytes == 0


def test_a_failed_read_is_told_and_tried_again() -> None:
    failures = iter([OSError("disk"), None])

    def flaky(key: UnitKey) -> list[Crop]:
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
