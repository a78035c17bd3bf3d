"""Crops read into their places: no batch is copied, none is another's, whatever happens on the way."""

from __future__ import annotations

import subprocess
import sys
import threading
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from small import small_cohort

from radiodata.loading import PatchDataset, PatchLoader, sample
from radiodata.loading.places import Due, Places, in_place
from radiodata.loading.reading import UnitReader
from radiodata.store import Cohort

if TYPE_CHECKING:
    from collections.abc import Mapping

I16 = np.dtype(np.int16)


@pytest.fixture(scope="module")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> Cohort:
    return small_cohort(tmp_path_factory.mktemp("places"))


def loader(cohort: Cohort, *, keys: Any = None, **how: Any) -> PatchLoader:
    names = {"crops_per_unit", "crops_per_volume", "cache_bytes", "transform", "patch_size", "mode"}
    asked = {name: how.pop(name) for name in names & set(how)}
    settings_ = {"patch_size": 24, "crops_per_volume": 16, "crops_per_unit": 4, "seed": 3, **asked}
    patches = PatchDataset(cohort, keys or {"image": "CT", "label": "seg"}, **settings_)
    return PatchLoader(patches, 4, **{"num_workers": 0, **how})


@cache
def epochs(cohort: Cohort) -> list[list[dict[str, torch.Tensor]]]:
    """Batches of two epochs, made without reading ahead."""
    made = loader(cohort, threads=0)
    return [[taken(batch) for batch in made] for _ in range(2)]


def taken(batch: dict[str, Any]) -> dict[str, torch.Tensor]:
    return {key: value.clone() for key, value in batch.items() if isinstance(value, torch.Tensor)}


def same(one: Mapping[str, torch.Tensor], other: Mapping[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


def due(step: int, slot: int, places: Places, slots: int = 2) -> Due:
    return Due(0, step, slot, slots, places)


# places ---------------------------------------------------------------------------------------


def test_crops_of_a_batch_lie_in_one_array() -> None:
    places = Places(np.empty, 1 << 20)
    second, first = (due(3, slot, places).place("image", (1, 4, 5), I16) for slot in (1, 0))
    assert first is not None
    assert second is not None
    whole = places.take(0, 3)["image"]
    assert whole.shape == (2, 1, 4, 5)
    assert in_place([first, second], whole)
    assert not in_place([second, first], whole)
    assert not in_place([first], whole)
    assert not in_place([first, second.copy()], whole)
    assert not in_place([first, second.view(np.uint16)], whole)
    assert not in_place([part[:, :2] for part in (first, second)], whole)


def test_a_batch_that_was_made_has_no_places_any_more() -> None:
    places = Places(np.empty, 1 << 20)
    assert due(2, 0, places).place("image", (8,), I16) is not None
    assert due(5, 0, places).place("image", (8,), I16) is not None
    assert set(places.take(0, 4)) == set()
    assert due(4, 1, places).place("image", (8,), I16) is None
    assert due(2, 1, places).place("image", (8,), I16) is None
    assert Due(1, 0, 0, 2, places).place("image", (8,), I16) is not None  # the next epoch's
    assert set(places.take(0, 5)) == {"image"}
    places.restart(0, 0)
    assert due(2, 1, places).place("image", (8,), I16) is not None
    assert set(places.take(1, 0)) == set()


def test_crops_of_other_shapes_have_no_place_in_a_batch() -> None:
    places = Places(np.empty, 1 << 20)
    assert due(0, 0, places).place("image", (8, 9), I16) is not None
    assert due(0, 1, places).place("image", (9, 9), I16) is None
    assert due(0, 1, places).place("image", (8, 9), np.dtype(np.uint16)) is None
    assert due(0, 1, places, slots=3).place("image", (8, 9), I16) is None
    assert due(0, 1, places).place("label", (9, 9), I16) is not None
    assert Due(0, 0, 0, 2).place("image", (8, 9), I16) is None


def test_places_are_bounded_in_bytes() -> None:
    places = Places(np.empty, 100)
    given_ = [due(step, 0, places).place("image", (25,), I16) is not None for step in range(3)]
    assert given_ == [True, False, False]  # 100 bytes are there
    assert due(0, 1, places).place("image", (25,), I16) is not None
    places.take(0, 0)
    assert due(2, 0, places).place("image", (25,), I16) is not None


def test_where_there_is_no_memory_there_is_no_place() -> None:
    def full(shape: Any, dtype: Any) -> Any:
        raise OSError(24, "Too many open files")

    places = Places(full, 100)
    assert due(0, 0, places).place("image", (25,), I16) is None
    assert places.take(0, 0) == {}


def test_dues_are_in_the_order_of_time() -> None:
    places = Places(np.empty, 1)
    ordered = [Due(0, 1, 1, 2, places), Due(0, 2, 0, 2, None), Due(0, 2, 1, 3, places), Due(1, 0, 0, 1, places)]
    backwards = ordered[::-1]
    assert sorted(backwards) == ordered
    assert min(Due(0, 1, 1, 2, Places(np.empty, 1)), Due(0, 1, 1, 2, places)).step == 1  # places are not compared


# loaders --------------------------------------------------------------------------------------


@pytest.fixture
def copied(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """Whether each array of voxels was made by copying crops."""
    found: list[bool] = []

    def seen(voxels: Any, whole: Any) -> bool:
        found.append(not in_place(voxels, whole))
        return not found[-1]

    monkeypatch.setattr(sample, "in_place", seen)
    return found


def test_no_batch_is_copied(cohort: Cohort, copied: list[bool]) -> None:
    truth, made = epochs(cohort), loader(cohort)
    copied.clear()
    for wanted in truth:
        assert all(same(taken(batch), other) for batch, other in zip(made, wanted, strict=True))
    assert len(copied) == 2 * 2 * len(made)
    assert not any(copied)
    made.close()


def test_only_what_will_be_taken_soon_is_read(cohort: Cohort) -> None:
    """Lanes begin in mid-unit: what was before that comes at the end of the epoch, and is read then."""
    made = loader(cohort, crops_per_volume=128, threads=1)
    plan, blocks = made.patches.plan, made.patches.blocks()
    assert len(made) > 2 * plan.workers * plan.units.crops  # it is not known yet that they will be taken
    for step, batch in enumerate(made):
        if step == len(made) // 3:
            waiting = {(key, crop) for key, crops in list(blocks._waiting.items()) for crop in tuple(crops)}
            dues = {(key, crop) for key, crops in list(blocks._due.items()) for crop in tuple(crops)}
            assert waiting <= dues
        for slot, start in zip(plan.batch_at(0, step), batch["box"][:, :, 0].tolist(), strict=True):
            assert plan.unit(0, slot.unit).starts[slot.crop].tolist() == start
    assert blocks.reads > len(plan.units)
    made.close()


def test_a_crop_that_was_not_due_is_read_when_it_is_asked_for(cohort: Cohort) -> None:
    made, another = loader(cohort), loader(cohort)
    dataset, blocks, whole = made.patches, made.patches.blocks(), another.patches.blocks()
    blocks.expect((0, 3), 1, Due(0, 9, 0, 1))
    assert blocks.request((0, 3))
    blocks.run((0, 3))
    assert set(blocks._waiting[0, 3]) == {1}
    for crop in (2, 1, 0, 3):
        found, other = blocks.take((0, 3), crop), whole.take((0, 3), crop)
        assert all(np.array_equal(found.voxels[key], other.voxels[key]) for key in ("image", "label"))
        assert found.start.tolist() == other.start.tolist()
    assert dataset.plan.unit(0, 3).volume == found.volume
    made.close()
    another.close()


def test_few_files_may_be_open(cohort: Cohort) -> None:
    """Each array of a batch to come is a file of its worker, which may have no more than this process."""
    script = f"""
import resource
resource.setrlimit(resource.RLIMIT_NOFILE, (90, 90))
from radiodata import Cohort, PatchDataset, PatchLoader
keys = {{"image": "CT", "label": "seg"}}
patches = PatchDataset(Cohort({cohort.uri!r}), keys, patch_size=24, crops_per_volume=128, crops_per_unit=16)
with_files = PatchLoader(patches, 4, num_workers=1, multiprocessing_context="fork")
print(sum(1 for _ in with_files), len(with_files))
with_files.close()
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    made, wanted = done.stdout.split()
    assert made == wanted


@pytest.mark.slow
@pytest.mark.parametrize("workers", [1, 2, 4])
def test_workers_give_the_same(cohort: Cohort, workers: int) -> None:
    made = loader(cohort, num_workers=workers)
    kept = [[*made], [*made]]  # all of them held at once: no memory may be lent twice
    for found, wanted in zip(kept, epochs(cohort), strict=True):
        assert all(map(same, map(taken, found), wanted))
    made.close()


def test_a_worker_copies_no_batch(cohort: Cohort, tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    told = tmp_path / "told"

    def seen(voxels: Any, whole: Any) -> bool:
        with told.open("a") as stream:
            stream.write(f"{in_place(voxels, whole)}\n")
        return in_place(voxels, whole)

    monkeypatch.setattr(sample, "in_place", seen)  # goes with the fork
    made = loader(cohort, num_workers=1, multiprocessing_context="fork")
    kept = [taken(batch) for batch in made]
    made.close()
    assert told.read_text() == "True\n" * 2 * len(kept)


def test_what_is_done_to_a_batch_is_done_to_no_other(cohort: Cohort) -> None:
    kept, made = [], loader(cohort)
    for number, (batch, wanted) in enumerate(zip(made, epochs(cohort)[0], strict=True)):
        assert same(taken(batch), wanted)
        for value in batch.values():
            if isinstance(value, torch.Tensor):
                value.zero_() if value.dtype == torch.bool else value.fill_(number + 1)
        kept.append((number, batch))
    for number, batch in kept:
        assert (batch["image"] == number + 1).all()
    made.close()


@given(
    threads=st.integers(1, 4),
    cache_bytes=st.sampled_from([0, 200_000, 600_000, 1 << 30]),
    visits=st.lists(st.tuples(st.integers(0, 1), st.integers(0, 30), st.integers(0, 30)), min_size=1, max_size=4),
    seed=st.integers(0, 99),
)
@settings(max_examples=15, deadline=None)
def test_however_little_room_and_whoever_leaves(
    cohort: Cohort, threads: int, cache_bytes: int, visits: list[tuple[int, int, int]], seed: int
) -> None:
    """Small caches, reads that dawdle, two iterators at once that are left: batches are those of the plan."""
    truth = epochs(cohort)
    plain, waits = UnitReader.read, np.random.default_rng(seed).uniform(0, 0.003, 97)

    def slow(self: UnitReader, unit: Any, due: Any) -> Any:
        threading.Event().wait(waits[int(unit.starts.sum()) % 97])
        return plain(self, unit, due)

    made = loader(cohort, threads=threads, cache_bytes=cache_bytes)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(UnitReader, "read", slow)
        for epoch, stop, other in visits:
            made.set_epoch(epoch)
            first = enumerate(made)
            made.set_epoch(epoch)
            for steps, stop_at in ((first, stop), (enumerate(made), other)) if other else ((first, stop),):
                for step, batch in steps:
                    assert same(taken(batch), truth[epoch][step])
                    batch["image"].fill_(-7)  # as a training loop may
                    if step >= stop_at:
                        break
    made.close()
