"""What a plan says it will read is what is read; advice keeps its bounds."""

from __future__ import annotations

import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import tiledb
from sampling_truth import PATCH, volumes_of

from radiodata.errors import ConfigError
from radiodata.loading import PatchDataset, PatchLoader
from radiodata.sampling import Balanced, Foreground, Plan, Uniform, Volumes, advise
from radiodata.store import Cohort, ReadConfig, read_box


def test_the_numbers_of_a_plan() -> None:
    plan = Plan(volumes_of(), Foreground(0.5), PATCH, 4, 16, 4)
    told = plan.explain(workers=2, prefetch=3, show=False)
    crop = int(np.prod(PATCH)) * 3
    assert (told.batches, told.crops, told.units, told.reads) == (12, 48, 12, 24)
    assert told.batch_bytes == 4 * crop
    assert told.delivered_bytes == 48 * crop
    assert told.shared_bytes == 2 * 3 * 4 * crop
    assert told.decoded_bytes == pytest.approx(12 * told.tiles_per_unit * 64 * 3)
    assert 0 < told.overlap < 1
    assert told.to_dict()["class_presence"]["label"].keys() == {1, 2, 3}


def test_it_is_printed_unless_told_not_to(capsys: pytest.CaptureFixture[str]) -> None:
    told = Plan(volumes_of(), Uniform(), PATCH, 4, 16, 4).explain()
    assert capsys.readouterr().out == f"{told}\n"
    Plan(volumes_of(), Uniform(), PATCH, 4, 16, 4).explain(show=False)
    assert capsys.readouterr().out == ""


def test_no_sharing_no_overlap() -> None:
    alone = Plan(volumes_of(), Uniform(), PATCH, 4, 16, 1).explain(show=False)
    shared = Plan(volumes_of(), Uniform(), PATCH, 4, 16, 8).explain(show=False)
    assert alone.overlap == 0
    assert shared.amplification < alone.amplification
    assert shared.open_bytes > alone.open_bytes == 0


def test_class_shares_follow_the_policy() -> None:
    rare = Plan(volumes_of(), Balanced({3: 1}), PATCH, 4, 64, 4).explain(show=False)
    common = Plan(volumes_of(), Uniform(), PATCH, 4, 64, 4).explain(show=False)
    assert rare.class_shares["label"][3] > 4 * common.class_shares["label"][3]


def test_volumes_mix_as_in_a_shuffle() -> None:
    """Distinct volumes in 20 batches: not far from what a perfect shuffle of single crops gives."""
    volumes = Volumes(tuple(map(str, range(500))), np.tile([128, 128, 64], (500, 1)), (32, 32, 32))
    for crops, least in ((1, 0.9), (4, 0.5), (8, 0.4)):
        told = Plan(volumes, Uniform(), 32, 8, 16, crops).explain(show=False)
        assert told.volumes_per_window >= least * told.volumes_if_shuffled


def _phantom(folder: Path, tile: int) -> Cohort:
    for number in range(2):
        rng = np.random.default_rng(number)
        voxels = rng.integers(-100, 100, (200, 190, 180)).astype(np.int16)
        nib.Nifti1Image(voxels, np.eye(4)).to_filename(folder / f"s{number}.nii")
    return Cohort.from_niftis(folder / "c", {"CT": [folder / "s0.nii", folder / "s1.nii"]}, tiling=tile)


def _decoded(counters: str) -> int:
    dumped = json.loads(counters)
    parts = dumped if isinstance(dumped, list) else [dumped]
    return sum(int(p["counters"].get("Context.Query.Reader.read_unfiltered_byte_num", 0)) for p in parts)


@pytest.mark.parametrize(("patch", "tile"), [(96, 64), (96, 32), (128, 64), (64, 64)])
@pytest.mark.parametrize(("crops", "cell_tiles"), [(1, 1), (8, 1), (8, 2)])
def test_tiledb_decodes_as_many_bytes_as_the_plan_says(
    tmp_path_factory: pytest.TempPathFactory, patch: int, tile: int, crops: int, cell_tiles: int
) -> None:
    cohort = _cohorts(tmp_path_factory, tile)
    dataset = PatchDataset(
        cohort, {"image": "CT"}, patch_size=patch, crops_per_volume=32, crops_per_unit=crops, cell_tiles=cell_tiles
    )
    told = dataset.plan.explain(show=False)
    tiledb.stats_enable()
    tiledb.stats_reset()
    try:
        for index in range(len(dataset.plan.units)):
            unit = dataset.plan.unit(0, index)
            source = cohort.CT.iloc[unit.volume].source
            read_box(source, unit.region, config=ReadConfig(threads=1, direct=False))
        decoded = _decoded(tiledb.stats_dump(json=True, print_out=False))
    finally:
        tiledb.stats_disable()
    delivered = len(dataset.plan.units) * crops * patch**3 * 2
    assert decoded / delivered == pytest.approx(told.amplification, rel=0.1)


_made: dict[int, Cohort] = {}


def _cohorts(factory: pytest.TempPathFactory, tile: int) -> Cohort:
    if tile not in _made:
        _made[tile] = _phantom(factory.mktemp(f"bytes{tile}"), tile)
    return _made[tile]


def test_a_loader_reads_each_unit_once(tmp_path: Path) -> None:
    cohort = _phantom(tmp_path, 64)
    dataset = PatchDataset(cohort, {"image": "CT"}, patch_size=64, crops_per_volume=32, crops_per_unit=8)
    loader = PatchLoader(dataset, 4, num_workers=0, repeat_epoch=True)
    assert len(list(loader)) == 16
    assert loader.stats().units_read == 8
    read = sum(int(np.prod(np.diff(dataset.plan.unit(0, i).region))) * 2 for i in range(8))
    assert loader.stats().bytes_read == read


@pytest.mark.parametrize("patch", [64, 96, (128, 128, 48)])
@pytest.mark.parametrize("storage", ["disk", "s3"])
def test_advice_keeps_its_bounds(patch: int | tuple[int, int, int], storage: str) -> None:
    advice = advise(patch, shape=(256, 256, 128), storage=storage)  # type: ignore[arg-type]
    assert advice.expected.overlap <= 0.5
    assert advice.expected.open_bytes <= 1 << 30
    assert advice.crops_per_unit > 1
    assert "crops_per_unit=" in str(advice)


def test_object_stores_want_larger_reads() -> None:
    near, far = (advise(64, shape=(256, 256, 128), storage=s) for s in ("disk", "s3"))  # type: ignore[arg-type]
    assert far.tile > near.tile


def test_advice_for_a_store_that_is_there() -> None:
    assert advise(64, shape=(128, 128, 64), tile=48).tile == 48
    with pytest.raises(ConfigError, match="raise one of them, or lower batch_size"):
        advise(64, shape=(128, 128, 64), max_overlap=-1)
