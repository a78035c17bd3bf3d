"""Units share a cell and stay inside; plans refuse numbers that do not fit."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sampling_truth import PATCH, TILE, volumes_of

from radiodata.errors import ConfigError, PlanError
from radiodata.sampling import Foreground, LabelIndex, Plan, Uniform, Unit, Volumes
from radiodata.sampling.targets import Boxes, Target

SHAPE = (12, 9, 7)


@settings(max_examples=200, deadline=None)
@given(
    shape=st.tuples(*[st.integers(1, 40)] * 3),
    patch=st.tuples(*[st.integers(1, 24)] * 3),
    tile=st.tuples(*[st.integers(1, 16)] * 3),
    crops=st.integers(1, 5),
    cell_tiles=st.integers(1, 3),
    index=st.integers(0, 1000),
)
def test_crops_of_a_unit_share_a_cell_and_stay_inside(
    shape: tuple[int, int, int],
    patch: tuple[int, int, int],
    tile: tuple[int, int, int],
    crops: int,
    cell_tiles: int,
    index: int,
) -> None:
    volumes = Volumes(("a",), np.array([shape]), tile)
    if (flat := [n == 1 < p for n, p in zip(shape, patch, strict=True)]) and any(flat):
        patch = tuple(1 if is_flat else p for p, is_flat in zip(patch, flat, strict=True))
    unit = Plan(volumes, Uniform(), patch, 1, 1001 * crops, crops, cell_tiles, seed=1).unit(3, index)
    spread = np.ptp(np.maximum(unit.starts, 0), axis=0)
    assert (spread < np.array(tile) * cell_tiles).all()
    for start in unit.starts:
        for axis in range(3):
            if patch[axis] <= shape[axis]:
                assert 0 <= start[axis] <= shape[axis] - patch[axis]
            else:  # centred: as much outside on one side as on the other, but for one voxel
                before, after = -start[axis], start[axis] + patch[axis] - shape[axis]
                assert 0 <= after - before <= 1
    assert (unit.region[:, 0] == np.clip(unit.starts, 0, None).min(axis=0)).all()
    assert (unit.region[:, 1] <= shape).all()


@settings(max_examples=100, deadline=None)
@given(
    shape=st.tuples(*[st.integers(20, 60)] * 3),
    patch=st.tuples(*[st.integers(1, 70)] * 3),
    index=st.integers(0, 99),
    crops=st.sets(st.integers(0, 4), min_size=1),
)
def test_a_part_of_a_unit_is_the_unit_of_those_crops(
    shape: tuple[int, int, int], patch: tuple[int, int, int], index: int, crops: set[int]
) -> None:
    """Patches larger than the volume, too."""
    unit = Plan(Volumes(("a",), np.array([shape]), (16, 16, 16)), Uniform(), patch, 1, 500, 5, 2).unit(0, index)
    part, numbers = unit.part(sorted(crops)), sorted(crops)
    alone = Unit.of(unit.volume, unit.starts[numbers], unit.patch, np.array(shape))
    assert part.starts.tolist() == alone.starts.tolist()
    assert part.region.tolist() == alone.region.tolist()
    assert unit.part(range(5)).region.tolist() == unit.region.tolist()


def test_borders_are_seen_as_often_as_their_start_collects() -> None:
    """A centre within half a patch of the border is clamped, so the first start collects them all."""
    shape = np.array([100, 100, 100])
    target = Target(shape, np.array([20, 20, 20]), ((1.0, Boxes.whole(shape)),))
    rng = np.random.default_rng(0)
    starts = np.array([target.draw(rng)[0] for _ in range(4000)])
    assert (starts == 0).mean() == pytest.approx(0.11, abs=0.02)
    assert (starts == 80).mean() == pytest.approx(0.10, abs=0.02)


def test_a_plan_is_a_function_of_its_key() -> None:
    a, b = (Plan(volumes_of(1), Foreground(0.5), PATCH, 1, 80, 4) for _ in range(2))
    assert all(np.array_equal(a.unit(e, i).starts, b.unit(e, i).starts) for e in range(2) for i in range(20))
    assert not all(np.array_equal(a.unit(0, i).starts, a.unit(1, i).starts) for i in range(20))


def test_what_stands_in_for_a_unit_is_of_another_volume_and_always_the_same() -> None:
    a, b = (Plan(volumes_of(), Uniform(), PATCH, 1, 80, 4) for _ in range(2))
    for index in range(60):
        units = [a.unit(0, index, attempt) for attempt in range(3)]
        assert units[0].volume not in (units[1].volume, units[2].volume)
        assert all(np.array_equal(b.unit(0, index, n).starts, u.starts) for n, u in enumerate(units))
    lonely = Plan(volumes_of(1), Uniform(), PATCH, 1, 80, 4)
    assert lonely.unit(0, 3, 1).volume == 0
    assert not np.array_equal(lonely.unit(0, 3, 1).starts, lonely.unit(0, 3).starts)


def test_a_volume_without_foreground_gives_uniform_crops() -> None:
    columns = ([0], [1], [3], [1], [0])
    empty = LabelIndex.from_columns(*[[np.zeros(0, np.int64), np.array(v, np.int64)] for v in columns])
    volumes = Volumes(("none", "some"), np.array([SHAPE, SHAPE]), TILE, {"label": empty})
    plan = Plan(volumes, Foreground(1.0), PATCH, 1, 200, 2)
    assert len({tuple(s) for i in range(100) for s in plan.unit(0, i).starts.tolist()}) > 20
    assert {tuple(s) for i in range(100, 200) for s in plan.unit(0, i).starts.tolist()} == {(0, 0, 0)}


VOLUMES = Volumes(("a", "b"), np.array([SHAPE, SHAPE]), TILE)
REFUSED = [
    (
        {"crops_per_volume": 6, "crops_per_unit": 4},
        ConfigError,
        "must be a multiple of crops_per_unit .4., such as 4 or 8",
    ),
    ({"batch": 0}, ConfigError, "batch must be at least 1"),
    ({"batch": 64}, PlanError, "fewer than one batch of 64"),
    ({"mode": "wrap"}, ConfigError, "'drop' or 'pad'"),
    ({"order": "random"}, ConfigError, "'lanes' or 'sequential'"),
    ({"steps": 0}, ConfigError, "at least 1 step"),
    ({"steps": 5, "mode": "pad"}, ConfigError, "leave mode alone"),
]


@pytest.mark.parametrize(("change", "error", "says"), REFUSED)
def test_impossible_plans_are_refused(change: dict, error: type[Exception], says: str) -> None:
    with pytest.raises(error, match=says):
        Plan(**{"volumes": VOLUMES, "policy": Uniform(), "patch_size": PATCH, "batch": 2, **change})


def test_an_empty_part_is_refused() -> None:
    with pytest.raises(PlanError, match="no volume to sample from"):
        Plan(Volumes((), np.zeros((0, 3), np.int64), TILE), Uniform(), PATCH, 2)


def test_ranks_share_a_batch_evenly_or_are_refused() -> None:
    plan = Plan(VOLUMES, Uniform(), PATCH, 4)
    assert plan.rank_batch(0, 1, 0, 2) + plan.rank_batch(0, 1, 1, 2) == plan.batch_at(0, 1)
    with pytest.raises(ConfigError, match=r"cannot be shared by 3 ranks.*1, 2, 4 ranks"):
        plan.check_world(3)


def test_sampling_never_imports_the_store() -> None:
    import subprocess
    import sys

    code = "import sys, radiodata.sampling; print([m for m in sys.modules if m.split('.')[0] in ('tiledb', 'torch')])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
