"""Batches made at once, and the memory they lie in: the same as of samples one by one, and never used twice."""

from __future__ import annotations

import gc
import pickle
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from small import small_cohort

from radiodata.loading import PatchDataset, PatchLoader
from radiodata.loading.collate import collate_samples
from radiodata.loading.memory import SMALL, Pool
from radiodata.loading.parcels import Packer, Unpacker
from radiodata.sampling import Foreground, Frames, Grid, Slices, Uniform, Whole
from radiodata.store import Cohort

KEYS = {"image": "CT", "label": "seg"}
POLICIES: dict[str, dict[str, Any]] = {
    "uniform": {"policy": Uniform(), "patch_size": (16, 12, 10)},
    "beyond the volume": {"policy": Uniform(), "patch_size": (48, 20, 44)},
    "foreground": {"policy": Foreground(), "patch_size": 16},
    "one image": {"keys": {"image": "CT"}, "patch_size": 20},
    "stacked": {"keys": {"image": ["CT", "CT"], "label": "seg"}, "patch_size": 16},
    "slices": {"policy": Slices("axial"), "patch_size": (16, 12)},
    "frames": {"policy": Frames(Uniform()), "keys": {"image": "CT"}, "patch_size": 12},
    "grid": {
        "policy": Grid(overlap=0.5),
        "patch_size": 16,
        "order": "sequential",
        "mode": "pad",
        "crops_per_volume": 4,
    },
    "targets": {"patch_size": 16, "targets": {"age": "age", "site": "site"}},
    "alone": {"patch_size": 16, "crops_per_unit": 1},
    "far apart": {"patch_size": 8, "crops_per_unit": 2, "cell_tiles": 4},
}


@pytest.fixture(scope="module")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> Cohort:
    made = small_cohort(tmp_path_factory.mktemp("batches"))
    meta = pd.DataFrame({"age": range(len(made)), "site": list("ABCABC")}, index=made.obs_meta.index)
    return made.update_obs_meta(meta)


def dataset(cohort: Cohort, **more: Any) -> PatchDataset:
    return PatchDataset(cohort, **{"keys": KEYS, "batch_size": 4, "crops_per_volume": 8, "crops_per_unit": 4, **more})


def same(one: Any, other: Any) -> bool:
    if isinstance(one, dict):
        return list(one) == list(other) and all(same(one[k], other[k]) for k in one)
    if isinstance(one, torch.Tensor):
        return one.dtype == other.dtype and one.shape == other.shape and torch.equal(one, other)
    return type(one) is type(other) and one == other


@pytest.mark.parametrize("settings", POLICIES.values(), ids=POLICIES)
def test_a_batch_is_what_collation_makes_of_its_samples(cohort: Cohort, settings: dict[str, Any]) -> None:
    data = dataset(cohort, **settings)
    for epoch, step in ((0, 0), (0, len(data.plan) - 1), (3, 1)):
        slots = data.plan.rank_batch(epoch, step, 0, 1)
        assert same(data.batch(slots), collate_samples(data.samples(slots)))


def test_volumes_that_differ_are_told_as_collation_tells_it(cohort: Cohort) -> None:
    data = dataset(cohort, policy=Whole(), batch_size=2)
    with pytest.raises(RuntimeError, match="equal size"):
        data.batch(data.plan.rank_batch(0, 0, 0, 1))


def test_samples_have_memory_of_their_own(cohort: Cohort) -> None:
    """A transform that writes in place must not write into other crops of the unit."""
    data = dataset(cohort, patch_size=16)
    samples = [s for step in range(4) for s in data.samples(data.plan.rank_batch(0, step, 0, 1))]
    before = [s["image"].clone() for s in samples]
    assert all(s["image"].is_contiguous() for s in samples)
    for number, sample in enumerate(samples):
        assert torch.equal(sample["image"], before[number])
        sample["image"].fill_(number)
    assert all((s["image"] == number).all() for number, s in enumerate(samples))


@pytest.mark.parametrize("workers", [0, 2])
def test_batches_that_are_kept_stay_as_they_were(cohort: Cohort, workers: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("radiodata.loading.memory.SMALL", 0)  # of forked workers, too
    monkeypatch.setattr("radiodata.loading.parcels.SMALL", 0)
    settings = {"patch_size": 24, "crops_per_volume": 16}
    truth = dataset(cohort, **settings)
    loader = PatchLoader(dataset(cohort, **settings), 4, num_workers=workers)
    held, views = [], []
    for epoch in range(2):
        for step, batch in enumerate(loader):
            if step % 3 == 0:
                held.append(((epoch, step), batch))
            elif step % 3 == 1:  # only a part of one tensor
                views.append(((epoch, step), batch["image"][1:2, :, 3:9]))
            del batch
    loader.close()
    gc.collect()
    for (epoch, step), batch in held:
        assert same(batch, truth.batch(truth.plan.rank_batch(epoch, step, 0, 1)))
    for (epoch, step), view in views:
        batch = truth.batch(truth.plan.rank_batch(epoch, step, 0, 1))
        assert torch.equal(view, batch["image"][1:2, :, 3:9])


# memory ---------------------------------------------------------------------------------------


@given(st.lists(st.tuples(st.integers(1, 3), st.integers(0, 30)), max_size=60), st.integers(0, 8))
@settings(max_examples=60, deadline=None)
def test_no_memory_is_given_twice(steps: list[tuple[int, int]], kept: int) -> None:
    pool, live = Pool(kept << 20), dict[int, tuple[np.ndarray, int]]()
    for number, (action, which) in enumerate(steps):
        if action < 3 or not live:
            array = pool.empty((1 + which, 256, 257), np.dtype(np.int32))
            array[...] = number
            # what is kept is a view, its own base or the array
            live[number] = (array[:, 3:] if action == 2 else array, number)
        else:
            del live[sorted(live)[which % len(live)]]
    for array, value in live.values():
        assert (array == value).all()


def test_memory_is_used_again_and_what_is_too_much_is_let_go() -> None:
    pool = Pool(3 << 20)
    one = pool.empty((1 << 20,), np.dtype(np.uint8))
    place = one.ctypes.data
    part = one[5:]
    del one
    assert pool.empty((1 << 20,), np.dtype(np.uint8)).ctypes.data != place  # a view of it is held
    del part
    places = {pool.empty((1 << 20,), np.dtype(np.uint8)).ctypes.data for _ in range(5)}
    assert len(places) == 1
    several = [pool.empty((1 << 20,), np.dtype(np.uint8)) for _ in range(9)]
    del several[:8]
    assert sum(map(len, pool._free)) == 8 << 20  # in use a moment ago
    del several
    assert sum(map(len, pool._free)) <= 3 << 20  # nothing is in use any more
    held, large = pool.empty((1 << 20,), np.dtype(np.uint8)), pool.empty((64 << 20,), np.dtype(np.uint8))
    del large
    assert sum(map(len, pool._free)) >= 64 << 20
    for _ in range(1500):
        pool.empty((1 << 20,), np.dtype(np.uint8))
    assert sum(map(len, pool._free)) <= 3 << 20  # it is forgotten
    del held
    assert pool.empty((0, 5), np.dtype(np.int16)).shape == (0, 5)
    assert pool.empty((SMALL - 1,), np.dtype(np.uint8)).base is None


def test_threads_share_a_pool() -> None:
    pool, wrong = Pool(4 << 20), []

    def work(mine: int) -> None:
        for _ in range(200):
            arrays = [pool.empty((300_000,), np.dtype(np.uint8)) for _ in range(3)]
            for n, array in enumerate(arrays):
                array[...] = mine * 3 + n
            if not all((array == mine * 3 + n).all() for n, array in enumerate(arrays)):
                wrong.append(mine)

    threads = [threading.Thread(target=work, args=(n,)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_what_lies_in_shared_memory_is_not_copied(monkeypatch: pytest.MonkeyPatch) -> None:
    packer, unpacker = Packer(keep=1), Unpacker()
    array = packer.empty((4, 1 << 16), np.dtype(np.int16))
    array[...] = 7
    other = packer.empty((1 << 16,), np.dtype(np.int16))  # is in nothing that is packed
    own = np.full(1 << 16, 9, np.int16)
    copied: list[int] = []
    real = packer._copy
    monkeypatch.setattr(packer, "_copy", lambda raw: copied.append(raw.nbytes) or real(raw))
    content = {"ours": torch.from_numpy(array), "own": own, "part": torch.from_numpy(array)[1:]}
    parcel = packer.pack(content)
    assert copied == [own.nbytes, 3 << 17]  # a part of it is another array
    new = packer.take_new()
    for sheet, file in new:
        unpacker.add(sheet, file)
    found = unpacker.unpack(parcel)
    assert (found["ours"] == 7).all()
    assert (found["part"] == 7).all()
    assert (found["own"] == 9).all()
    assert list(packer._lent) == [other.ctypes.data]  # for what is packed later
    numbers = {loan.number for loan in packer._lent.values()}
    del other, content, array  # the last was packed: its memory is the other end's
    assert packer._find(1 << 17) in numbers
    assert packer._lent == {}
    with pytest.raises((pickle.PicklingError, TypeError, AttributeError)):
        packer.pack([packer.empty((1 << 16,), np.dtype(np.int16)), threading.Lock()])
    gc.collect()
    packer.take_back([])
    assert packer._lent == {}


def test_memory_that_was_packed_is_not_taken_back_when_its_array_dies_later() -> None:
    packer = Packer(keep=4)
    array = packer.empty((1 << 16,), np.dtype(np.int16))
    sheets = packer.pack(torch.from_numpy(array)).sheets
    packer.take_back(number for number, _ in sheets)  # the other end is done with it
    again = packer.empty((1 << 16,), np.dtype(np.int16))
    assert again.ctypes.data == array.ctypes.data
    del array
    assert packer.empty((1 << 16,), np.dtype(np.int16)).ctypes.data != again.ctypes.data


def test_a_plan_draws_the_same_batches_one_by_one_and_in_any_order(cohort: Cohort, tmp_path: Path) -> None:
    plan = dataset(cohort, patch_size=16, crops_per_volume=64).plan
    forward = [[plan.batch_at(e, s) for s in range(len(plan))] for e in range(2)]
    other = dataset(cohort, patch_size=16, crops_per_volume=64).plan
    for epoch in (1, 0):
        for step in reversed(range(len(plan))):
            assert other.batch_at(epoch, step) == forward[epoch][step]
    assert pickle.loads(pickle.dumps(other)).batch_at(1, 3) == forward[1][3]
