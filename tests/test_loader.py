"""The loader: exact voxels, the same batches on every topology, exact resumption."""

from __future__ import annotations

import gc
import pickle
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from small import small_cohort
from torch.utils.data import DataLoader

from radiodata.errors import ConfigError, PlanError, StateMismatchError
from radiodata.loading import PatchDataset, PatchLoader, VolumeLoader
from radiodata.sampling import Foreground, Uniform
from radiodata.store import Cohort

KEYS = {"image": "CT", "label": "seg"}
UNITS = {"crops_per_volume": 8, "crops_per_unit": 4}


@pytest.fixture(scope="module")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> Cohort:
    return small_cohort(tmp_path_factory.mktemp("loader"))


def patches(cohort: Cohort, **settings: Any) -> PatchDataset:
    chosen = {"patch_size": (16, 12, 10), "policy": Foreground(0.5), "seed": 3, **UNITS, **settings}
    return PatchDataset(cohort, KEYS, **chosen)


def loader(cohort: Cohort, batch_size: int = 4, *, settings: dict[str, Any] | None = None, **how: Any) -> PatchLoader:
    return PatchLoader(patches(cohort, **(settings or {})), batch_size, **{"num_workers": 0, **how})


def same(a: dict[str, Any], b: dict[str, Any]) -> bool:
    tensors = [k for k in a if isinstance(a[k], torch.Tensor)]
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in tensors) and a["obs_id"] == b["obs_id"]


def joined(parts: list[dict[str, Any]]) -> dict[str, Any]:
    """Ranks' parts of a batch, put together."""
    out = {}
    for key, value in parts[0].items():
        values = [p[key] for p in parts]
        out[key] = torch.cat(values) if isinstance(value, torch.Tensor) else [v for part in values for v in part]
    return out


def all_equal(found: list[dict[str, Any]], expected: list[dict[str, Any]]) -> bool:
    return len(found) == len(expected) and all(same(a, b) for a, b in zip(found, expected, strict=True))


def test_crops_are_the_voxels_of_their_box(cohort: Cohort) -> None:
    for batch in loader(cohort):
        for i, subject in enumerate(batch["obs_subject_id"]):
            at = tuple(slice(*span) for span in batch["box"][i].tolist())
            for key, name in KEYS.items():
                volume = cohort[name].of_subject(subject)
                assert np.array_equal(batch[key][i, 0].numpy(), volume[at])
            start = [*batch["box"][i, :, 0].tolist(), 1]
            corner = cohort.CT.of_subject(subject).affine @ start
            assert np.allclose(batch["affine"][i].numpy()[:3, 3], corner[:3])
    assert batch["image"].dtype == torch.int16
    assert batch["label"].dtype == torch.uint8


def test_a_patch_larger_than_the_volume_is_padded(cohort: Cohort) -> None:
    batch = next(iter(loader(cohort, settings={"patch_size": (48, 12, 40), "policy": Uniform()})))
    for i, subject in enumerate(batch["obs_subject_id"]):
        volume = cohort.CT.of_subject(subject)
        real = tuple(slice(*span) for span in batch["valid"][i].tolist())
        within = tuple(
            slice(max(lo, 0), min(hi, n)) for (lo, hi), n in zip(batch["box"][i].tolist(), volume.shape, strict=True)
        )
        image = batch["image"][i, 0].numpy().copy()
        assert np.array_equal(image[real], volume[within])
        image[real] = -30_000
        assert set(np.unique(image)) <= {-30_000, int(volume.obs["value_min"])}
        assert batch["label"][i].sum() == batch["label"][i, 0][real].sum()


@pytest.fixture(scope="module")
def reference(cohort: Cohort) -> list[dict[str, Any]]:
    return list(loader(cohort))


@pytest.mark.filterwarnings("ignore:This DataLoader will create")  # torch: more workers than cores
@pytest.mark.parametrize(("world", "workers"), [(1, 1), (1, 4), (2, 0), (2, 2), (4, 0), (4, 1)])
def test_global_batches_do_not_depend_on_topology(
    cohort: Cohort, reference: list[dict[str, Any]], world: int, workers: int
) -> None:
    ranks = [loader(cohort, num_workers=workers, rank=r, world_size=world) for r in range(world)]
    assert {len(r) for r in ranks} == {len(reference)}
    assert all_equal([joined(list(parts)) for parts in zip(*ranks, strict=True)], reference)


@pytest.mark.parametrize("method", ["fork", "forkserver", "spawn"])
def test_start_methods_after_the_parent_has_read(cohort: Cohort, reference: list[dict[str, Any]], method: str) -> None:
    cohort.CT.iloc[0].to_numpy()
    assert all_equal(list(loader(cohort, num_workers=2, multiprocessing_context=method)), reference)


@pytest.mark.filterwarnings("ignore:This DataLoader will create")  # torch: more workers than cores
def test_a_worker_count_that_divides_nothing_is_right_and_warns(
    cohort: Cohort, reference: list[dict[str, Any]]
) -> None:
    with pytest.warns(UserWarning, match=r"num_workers=3 does not divide canonical_workers=8"):
        made = loader(cohort, num_workers=3)
    assert all_equal(list(made), reference)


@pytest.mark.parametrize("stop", [1, 5, 11, 12])
@pytest.mark.parametrize(("world", "workers"), [(1, 0), (2, 1)])
def test_resume_is_the_exact_suffix(
    cohort: Cohort, reference: list[dict[str, Any]], stop: int, world: int, workers: int
) -> None:
    first = loader(cohort, num_workers=2)
    stream = iter(first)
    for _ in range(stop):
        next(stream)
    state = first.state_dict()
    assert (state["epoch"], state["step"]) == (0, stop)
    ranks = [loader(cohort, num_workers=workers, rank=r, world_size=world) for r in range(world)]
    for rank in ranks:
        rank.load_state_dict(pickle.loads(pickle.dumps(state)))
        iter(rank)  # Lightning asks for an iterator more than once
    rest = [joined(list(parts)) for parts in zip(*ranks, strict=True)]
    second = loader(cohort)
    second.set_epoch(1)
    assert all_equal(rest, reference[stop:] if stop < len(reference) else list(second))


def test_epochs_follow_each_other_in_persistent_workers(cohort: Cohort) -> None:
    ahead, here = loader(cohort, num_workers=2), loader(cohort, num_workers=0)
    first, second = list(ahead), list(ahead)
    assert not all_equal(first, second)
    assert all_equal(list(here), first)
    assert all_equal(list(here), second)
    assert here.epoch == 1


def test_an_epoch_left_early_is_left(cohort: Cohort) -> None:
    """As in torch: a new iter() is a new epoch; one that nothing was taken of is not counted."""
    made = loader(cohort)
    iter(made)
    stream = iter(made)
    next(stream)
    assert made.state_dict()["epoch"] == 0
    stream.close()  # type: ignore[attr-defined]
    next(iter(made))
    assert made.state_dict()["epoch"] == 1


def test_resumed_after_the_last_batch_begins_the_next_epoch(cohort: Cohort) -> None:
    first = loader(cohort)
    list(first)
    second = loader(cohort)
    second.load_state_dict(first.state_dict())
    assert (second.state_dict()["epoch"], second.state_dict()["step"]) == (1, 0)
    assert all_equal(list(second), list(first))


def test_state_of_another_plan_is_refused_by_name(cohort: Cohort) -> None:
    state = loader(cohort).state_dict()
    with pytest.raises(StateMismatchError, match=r"patch: \[16, 12, 10\] when saved, \[8, 8, 8\] now"):
        loader(cohort, settings={"patch_size": 8}).load_state_dict(state)
    with pytest.raises(StateMismatchError, match="batch: 4 when saved, 2 now"):
        loader(cohort, 2).load_state_dict(state)
    forgiving = loader(cohort, 2, on_mismatch="restart_epoch")
    forgiving.load_state_dict({**state, "epoch": 3, "step": 2})
    assert (forgiving.epoch, forgiving.state_dict()["step"]) == (3, 0)


def test_pad_mode_flags_repeats_and_loses_nothing(cohort: Cohort) -> None:
    settings = {"mode": "pad", "crops_per_volume": 3, "crops_per_unit": 3}
    made = loader(cohort, 4, settings=settings)
    batches = list(made)
    keys = [int(k) for b in batches for k, pad in zip(b["key"], b["is_padding"], strict=True) if not pad]
    assert len(made) == len(batches) == 5
    assert len(keys) == len(set(keys)) == 18
    assert [int(b["is_padding"].sum()) for b in batches] == [0, 0, 0, 0, 2]


def test_units_are_read_once(cohort: Cohort) -> None:
    """Those of an epoch, and, ahead of it, some of the next one."""
    made = loader(cohort)
    cache, read = made.patches.blocks(), []
    real = cache._read
    cache._read = lambda key: read.append(key) or real(key)
    for epoch in range(3):
        list(made)
        held = list(read)
        assert len(held) == len(set(held))
        assert {(e, unit) for e in range(epoch + 1) for unit in range(len(made.patches.plan.units))} <= set(held)
        assert {key[0] for key in held} <= set(range(epoch + 2))
    made.close()


def test_a_loader_that_is_dropped_leaves_no_thread(cohort: Cohort) -> None:
    before = set(threading.enumerate())
    made = loader(cohort)
    list(made)
    mine = [t for t in threading.enumerate() if t not in before and t.name.startswith("radiodata-read")]
    assert mine
    del made
    gc.collect()
    for thread in mine:
        thread.join(10)
        assert not thread.is_alive()


@pytest.mark.filterwarnings("ignore:TileDB is a multithreading")  # our children leave its contexts alone
@pytest.mark.parametrize("workers", [0, 2])
def test_the_dataset_shards_itself(cohort: Cohort, workers: int) -> None:
    data = patches(cohort)
    samples = [s["key"] for s in DataLoader(data, batch_size=None, num_workers=workers)]
    assert len(samples) == len(set(samples)) == len(data) == 48


class Noise:
    """Draws from every generator that a transform may use."""

    def __call__(self, sample: dict[str, Any]) -> dict[str, Any]:
        noise = torch.randn(1) + float(np.random.normal())
        return {**sample, "image": sample["image"].float() + noise}


def monai_transform() -> Any:
    transforms = pytest.importorskip("monai.transforms")
    return transforms.Compose(
        [
            transforms.RandFlipd(["image", "label"], prob=0.5, spatial_axis=0),
            transforms.RandGaussianNoised("image", prob=0.7, std=20.0),
        ]
    )


@pytest.mark.parametrize("make", [Noise, monai_transform])
def test_augmented_samples_are_bit_identical_everywhere(cohort: Cohort, make: Any) -> None:
    state = torch.get_rng_state()
    here = list(loader(cohort, settings={"transform": make()}))
    assert torch.equal(torch.get_rng_state(), state)
    plain = list(loader(cohort))
    assert not all_equal(here, plain)
    there = list(loader(cohort, settings={"transform": make()}, num_workers=2))
    assert all_equal(there, here)
    ranks = [loader(cohort, settings={"transform": make()}, rank=r, world_size=2) for r in range(2)]
    assert all_equal([joined(list(parts)) for parts in zip(*ranks, strict=True)], here)


class Broken:
    def __call__(self, sample: dict[str, Any]) -> dict[str, Any]:
        raise PlanError(f"cannot transform {sample['obs_id']}")


@pytest.mark.parametrize("workers", [0, 1])
def test_errors_arrive_whole(cohort: Cohort, workers: int) -> None:
    with pytest.raises(PlanError, match="cannot transform sub-0"):
        list(loader(cohort, settings={"transform": Broken()}, num_workers=workers))


@pytest.mark.parametrize(
    ("how", "says"),
    [
        ({"world_size": 3}, "cannot be shared by 3 ranks"),
        ({"rank": 2, "world_size": 2}, "rank 2 is not among 2"),
        ({"num_workers": -1}, "num_workers=-1"),
        ({"on_mismatch": "ignore"}, "on_mismatch"),
    ],
)
def test_senseless_settings_are_refused(cohort: Cohort, how: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        loader(cohort, **how)


def test_collections_that_do_not_align_are_refused(tmp_path: Path, cohort: Cohort) -> None:
    import nibabel as nib

    for name, shape in (("A", (8, 8, 8)), ("B", (8, 8, 9))):
        (tmp_path / name).mkdir()
        nib.Nifti1Image(np.zeros(shape, np.int16), np.eye(4)).to_filename(tmp_path / name / "s1.nii")
    images = {n: tmp_path / n for n in "AB"}
    other = Cohort.from_niftis(tmp_path / "c", images, validate_alignment=False)
    with pytest.raises(PlanError, match=r"do not align for 1 subjects, such as 's1'.*\(8, 8, 8\).*\(8, 8, 9\)"):
        PatchDataset(other, {"a": "A", "b": "B"}, patch_size=4)


@pytest.mark.parametrize("world", [1, 2, 4])
def test_whole_volumes_take_turns_and_flag_repeats(cohort: Cohort, world: int) -> None:
    ranks = [VolumeLoader(cohort, KEYS, rank=r, world_size=world) for r in range(world)]
    seen = []
    for turn in zip(*ranks, strict=True):
        for batch in turn:
            subject = batch["obs_subject_id"][0]
            assert np.array_equal(batch["image"][0, 0].numpy(), cohort.CT.of_subject(subject).to_numpy())
            seen += [] if batch["is_padding"][0] else [subject]
    assert seen == cohort.subjects


DDP = """
import pickle, sys, torch
import torch.distributed as dist
from small import small_cohort
from radiodata import Cohort, Foreground, PatchDataset, PatchLoader

def main(rank, world, port, uri, out):
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=world)
    units = {"crops_per_volume": 8, "crops_per_unit": 4}
    keys = {"image": "CT", "label": "seg"}
    data = PatchDataset(Cohort(uri), keys, patch_size=(16, 12, 10), policy=Foreground(0.5), seed=3, **units)
    loader = PatchLoader(data, 4, num_workers=2)
    batches = []
    for batch in loader:
        parts = [None] * world
        dist.all_gather_object(parts, batch["key"].tolist())
        batches.append(sum(parts, []))
    if rank == 0:
        pickle.dump(batches, open(out, "wb"))
    dist.destroy_process_group()

if __name__ == "__main__":
    uri, out = sys.argv[1:]
    import socket
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0)); port = s.getsockname()[1]
    torch.multiprocessing.spawn(main, (2, port, uri, out), nprocs=2)
"""


@pytest.mark.slow
def test_two_real_processes_see_the_same_global_batches(
    cohort: Cohort, reference: list[dict[str, Any]], tmp_path: Path
) -> None:
    script, out = tmp_path / "ddp.py", tmp_path / "keys.pickle"
    script.write_text(DDP)
    env = {**__import__("os").environ, "PYTHONPATH": str(Path(__file__).parent)}
    subprocess.run([sys.executable, str(script), cohort.uri, str(out)], check=True, timeout=240, env=env)
    assert pickle.loads(out.read_bytes()) == [b["key"].tolist() for b in reference]
