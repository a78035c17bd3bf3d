"""Units: each crop is distributed as the policy says, however many share a read; borders included."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from radiodata.errors import ConfigError, PlanError
from radiodata.sampling import Foreground, LabelIndex, Plan, Uniform, Volumes
from radiodata.sampling.targets import Target
from radiodata.sampling.units import UnitPlanner

SHAPE, PATCH, TILE = (12, 9, 7), (5, 4, 3), (4, 4, 4)


def labels(shape: tuple[int, int, int]) -> LabelIndex:
    """Two classes: one voxel in a corner, and a slab of which each tile kept a part."""
    points = np.array([[0, 0, 0], *[[x, 5, 3] for x in (2, 6, 7, 10)]])
    flat = np.ravel_multi_index(tuple(points.T), shape)
    columns = ([1, 2, 2, 2], [1, 4, 8, 2], [1, 1, 2, 1], flat)
    return LabelIndex.from_columns(*([np.array(c, np.int64)] for c in columns))


def planner(policy: Uniform | Foreground, crops: int, cell_tiles: int = 1) -> UnitPlanner:
    volumes = Volumes(("a",), np.array([SHAPE]), TILE, labels(SHAPE))
    return UnitPlanner(volumes, policy, PATCH, crops, cell_tiles, 10**6, seed=5)


def start_counts(starts: np.ndarray) -> np.ndarray:
    spare = np.array(SHAPE) - PATCH + 1
    return np.bincount(np.ravel_multi_index(tuple(starts.T), tuple(spare)), minlength=int(spare.prod()))


def expected_starts(policy: Uniform | Foreground) -> np.ndarray:
    """Probability of every start, by enumeration of every centre."""
    spare = np.array(SHAPE) - PATCH + 1
    share = policy.p if isinstance(policy, Foreground) else 0.0
    out = np.zeros(tuple(spare))

    def add(centre: tuple[int, ...], weight: float) -> None:
        start = np.clip(np.array(centre) - np.array(PATCH) // 2, 0, spare - 1)
        out[tuple(start)] += weight

    for centre in np.ndindex(*SHAPE):
        add(centre, (1 - share) / np.prod(SHAPE))
    if share:
        add((0, 0, 0), share / 2)  # class 1 is as likely as class 2
        for x, weight in ((2, 4 / 14), (6, 4 / 14), (7, 4 / 14), (10, 2 / 14)):
            add((x, 5, 3), share / 2 * weight)
    return out.ravel()


def chi_square_fits(counts: np.ndarray, probability: np.ndarray) -> bool:
    expected = counts.sum() * probability
    likely = expected >= 5
    rest = (counts[~likely].sum(), expected[~likely].sum())
    statistic = ((counts[likely] - expected[likely]) ** 2 / expected[likely]).sum()
    statistic += (rest[0] - rest[1]) ** 2 / rest[1] if rest[1] > 0 else 0
    freedom = int(likely.sum())
    return bool(abs(statistic - freedom) < 5 * np.sqrt(2 * freedom))


@pytest.mark.parametrize("policy", [Uniform(), Foreground(0.5), Foreground(1.0)], ids=str)
@pytest.mark.parametrize(("crops", "cell_tiles"), [(1, 1), (4, 1), (4, 2)])
def test_each_crop_of_a_unit_has_the_target_distribution(
    policy: Uniform | Foreground, crops: int, cell_tiles: int
) -> None:
    units = planner(policy, crops, cell_tiles)
    drawn = np.stack([units.unit(epoch, i).starts for epoch in range(4) for i in range(1500)])
    expected = expected_starts(policy)
    assert expected.sum() == pytest.approx(1)
    for crop in range(crops):
        assert chi_square_fits(start_counts(drawn[:, crop]), expected)


def test_a_wrong_distribution_would_be_seen() -> None:
    units = planner(Uniform(), 1)
    drawn = np.stack([units.unit(0, i).starts[0] for i in range(6000)])
    assert not chi_square_fits(start_counts(drawn), expected_starts(Foreground(0.05)))


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
    unit = UnitPlanner(volumes, Uniform(), patch, crops, cell_tiles, 10**6, seed=1).unit(3, index)
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


def test_borders_are_seen_as_often_as_their_start_collects() -> None:
    """A centre within half a patch of the border is clamped, so the first start collects them all."""
    target = Target(np.array([100, 100, 100]), np.array([20, 20, 20]))
    rng = np.random.default_rng(0)
    starts = np.array([target.draw(rng)[0] for _ in range(4000)])
    assert (starts == 0).mean() == pytest.approx(0.11, abs=0.02)
    assert (starts == 80).mean() == pytest.approx(0.10, abs=0.02)


def test_a_plan_is_a_function_of_its_key() -> None:
    a, b = planner(Foreground(0.5), 4), planner(Foreground(0.5), 4)
    assert all(np.array_equal(a.unit(e, i).starts, b.unit(e, i).starts) for e in range(2) for i in range(20))
    assert not all(np.array_equal(a.unit(0, i).starts, a.unit(1, i).starts) for i in range(20))


def test_a_volume_without_foreground_gives_uniform_crops() -> None:
    empty = LabelIndex.from_columns(*[[np.zeros(0, np.int64), np.array(v, np.int64)] for v in ([1], [3], [1], [0])])
    volumes = Volumes(("none", "some"), np.array([SHAPE, SHAPE]), TILE, empty)
    units = UnitPlanner(volumes, Foreground(1.0), PATCH, 2, 1, 100, seed=0)
    assert len({tuple(s) for i in range(100) for s in units.unit(0, i).starts.tolist()}) > 20
    assert {tuple(s) for i in range(100, 200) for s in units.unit(0, i).starts.tolist()} == {(0, 0, 0)}


VOLUMES = Volumes(("a", "b"), np.array([SHAPE, SHAPE]), TILE)
REFUSED = [
    ({"policy": Foreground(0.5)}, PlanError, "needs a label collection"),
    (
        {"crops_per_volume": 6, "crops_per_unit": 4},
        ConfigError,
        "must be a multiple of crops_per_unit .4., such as 4 or 8",
    ),
    ({"batch": 0}, ConfigError, "batch must be at least 1"),
    ({"batch": 64}, PlanError, "fewer than one batch of 64"),
    ({"mode": "wrap"}, ConfigError, "'drop' or 'pad'"),
]


@pytest.mark.parametrize(("change", "error", "says"), REFUSED)
def test_impossible_plans_are_refused(change: dict, error: type[Exception], says: str) -> None:
    with pytest.raises(error, match=says):
        Plan(**{"volumes": VOLUMES, "policy": Uniform(), "patch": PATCH, "batch": 2, **change})


def test_a_class_that_never_occurs_is_refused() -> None:
    volumes = Volumes(("a",), np.array([SHAPE]), TILE, labels(SHAPE))
    with pytest.raises(PlanError, match=r"class \[7\] occurs in none of the 1 volumes.*\[1, 2\]"):
        Plan(volumes, Foreground(0.5, classes=(2, 7)), PATCH, 2)


def test_an_empty_part_is_refused() -> None:
    with pytest.raises(PlanError, match="no volume to sample from"):
        Plan(Volumes((), np.zeros((0, 3), np.int64), TILE), Uniform(), PATCH, 2)


@pytest.mark.parametrize("p", [-0.1, 1.1])
def test_probabilities_are_probabilities(p: float) -> None:
    with pytest.raises(ConfigError, match="must be a probability"):
        Foreground(p)


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
