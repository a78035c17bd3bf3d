"""Every policy: its crops fall where enumeration says, alone or grouped in units, borders included."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from sampling_truth import (
    PATCH,
    SHAPES,
    TILE,
    Truth,
    drawn,
    fits,
    image_volumes,
    label_volumes,
    map_volumes,
    spread,
    truth,
    volumes_of,
)

from radiodata.errors import ConfigError, PlanError
from radiodata.sampling import (
    Balanced,
    Foreground,
    Frames,
    Grid,
    MinForeground,
    Plan,
    Policy,
    Slices,
    Uniform,
    Volumes,
    Weighted,
    Whole,
)

LABELS, MAPS = label_volumes(), map_volumes()
RATE = [1.0, 3.0, 0.5]


def even(v: int, centre: tuple[int, ...]) -> float:
    return 1 / np.prod(SHAPES[v])


def of_classes(classes: tuple[int, ...], v: int, centre: tuple[int, ...]) -> float:
    """Weight of a voxel when each class of the volume is as likely."""
    here = [c for c in classes if (LABELS[v] == c).any()]
    value = int(LABELS[v][centre])
    return 1 / len(here) / (LABELS[v] == value).sum() if value in here else 0.0


def foreground(p: float, classes: tuple[int, ...] = (1, 2, 3)) -> Truth:
    def weight(v: int, centre: tuple[int, ...]) -> float:
        share = p if any((LABELS[v] == c).any() for c in classes) else 0.0
        return (1 - share) * even(v, centre) + share * of_classes(classes, v, centre)

    return truth(weight)


def balanced(shares: dict[int, float]) -> Truth:
    def weight(v: int, centre: tuple[int, ...]) -> float:
        total = 0.0
        for c, share in shares.items():
            holders = [i for i in range(len(SHAPES)) if c == 0 or (LABELS[i] == c).any()]
            if v in holders:
                inside = even(v, centre) if c == 0 else float(LABELS[v][centre] == c) / (LABELS[v] == c).sum()
                total += share / len(holders) * inside
        return total

    return truth(weight)


def by_map(v: int, centre: tuple[int, ...]) -> float:
    tile = tuple(slice(c // t * t, c // t * t + t) for c, t in zip(centre, TILE, strict=True))
    return float(MAPS[v][tile].sum() / MAPS[v][tile].size / MAPS[v].sum())


tissue = spread(lambda v: (image_volumes()[v] > -900).astype(float))
lesion = spread(lambda v: (LABELS[v] > 0).astype(float))

CASES: dict[str, tuple[Policy, Truth]] = {
    "uniform": (Uniform(), truth(even)),
    "foreground": (Foreground(0.5), foreground(0.5)),
    "only foreground": (Foreground(1.0), foreground(1.0)),
    "one class": (Foreground(0.7, (2,)), foreground(0.7, (2,))),
    "balanced": (Balanced({0: 1, 1: 1, 2: 1, 3: 1}), balanced({0: 0.25, 1: 0.25, 2: 0.25, 3: 0.25})),
    "rare": (Balanced({1: 1, 3: 3}), balanced({1: 0.25, 3: 0.75})),
    "column": (Weighted(by="rate"), truth(lambda v, c: RATE[v] * even(v, c))),
    "column of foreground": (
        Foreground(1.0, weights="rate"),
        truth(lambda v, c: RATE[v] * of_classes((1, 2, 3), v, c)),
    ),
    "map": (Weighted(by="heat"), truth(by_map)),
    "map and column": (Weighted(by="heat", weights="rate"), truth(lambda v, c: RATE[v] * by_map(v, c))),
    "air": (Uniform(max_air=0.6), truth(even, lambda v, s: tissue(v, s) >= 0.4 - 1e-9)),
    "min": (MinForeground(0.1), truth(even, lambda v, s: lesion(v, s) >= 0.1 - 1e-9)),
    "min and air": (
        MinForeground(0.05, max_air=0.7),
        truth(even, lambda v, s: lesion(v, s) >= 0.05 - 1e-9 and tissue(v, s) >= 0.3 - 1e-9),
    ),
    "air of foreground": (
        Foreground(1.0, max_air=0.7),
        truth(lambda v, c: of_classes((1, 2, 3), v, c), lambda v, s: tissue(v, s) >= 0.3 - 1e-9),
    ),
}


@pytest.mark.parametrize(("crops", "cell_tiles"), [(1, 1), (4, 1), (4, 2)])
@pytest.mark.parametrize("name", CASES)
def test_crops_fall_where_the_policy_says(name: str, crops: int, cell_tiles: int) -> None:
    policy, expected = CASES[name]
    assert sum(expected.values()) == pytest.approx(1)
    for found in drawn(policy, crops, cell_tiles, units=1200):
        assert fits(found, expected)


@pytest.mark.parametrize(
    ("policy", "other"), [("uniform", "foreground"), ("foreground", "one class"), ("air", "uniform")]
)
def test_a_wrong_distribution_would_be_seen(policy: str, other: str) -> None:
    assert not fits(drawn(CASES[policy][0], 1, 1, units=1200)[0], CASES[other][1])


@pytest.mark.parametrize("shares", [{1: 1, 2: 1, 3: 1}, {0: 2, 3: 1}, {1: 5, 2: 1}])
def test_class_shares_are_those_asked_for(shares: dict[int, float]) -> None:
    """The class at the centre of a crop, though two volumes of three lack class 3 (patches of one voxel show it)."""
    plan = Plan(volumes_of(), Balanced(shares), 1, 1, 4000, 4, seed=2)
    seen: Counter[int] = Counter()
    for i in range(len(plan.units)):
        unit = plan.unit(0, i)
        seen.update(int(LABELS[unit.volume][tuple(s)]) for s in unit.starts)
    total, crops = sum(shares.values()), len(plan.units) * 4
    background = sum((LABELS[v] == 0).sum() / LABELS[v].size for v in range(3)) / 3
    for value, share in shares.items():
        if value and 0 not in shares:
            assert seen[value] / crops == pytest.approx(share / total, abs=0.02)
        elif not value:
            assert seen[0] / crops == pytest.approx(share / total * background, abs=0.02)


def test_volumes_give_crops_in_proportion_and_all_epochs_together_exactly() -> None:
    plan = Plan(volumes_of(), Uniform(weights="rate"), PATCH, 1, 8, 1, seed=4)
    seen = np.zeros(3)
    for epoch in range(60):
        here = np.bincount([plan.units.volume_of(epoch, i) for i in range(len(plan.units))], minlength=3)
        expected = 24 * np.array(RATE) / sum(RATE)
        assert (abs(here - expected) < 1).all()
        seen += here
    assert seen / seen.sum() == pytest.approx(np.array(RATE) / sum(RATE), abs=0.01)


# deterministic policies ------------------------------------------------------------------------


@pytest.mark.parametrize("overlap", [0.0, 0.25, 0.5, 2])
@pytest.mark.parametrize("crops", [1, 3, 8])
def test_a_grid_gives_every_window_once(overlap: float, crops: int) -> None:
    from radiodata.sampling import grid_starts

    size = (4, 4, 3)
    plan = Plan(volumes_of(), Grid(overlap), size, 5, crops, crops, mode="pad", order="sequential")
    seen = []
    for step in range(len(plan)):
        for slot in plan.batch_at(0, step):
            unit = plan.unit(0, slot.unit)
            if not slot.padding:
                seen.append((unit.volume, *unit.starts[slot.crop].tolist()))
    expected = [(v, *s.tolist()) for v, shape in enumerate(SHAPES) for s in grid_starts(shape, size, overlap)]
    assert sorted(seen) == sorted(expected)
    assert [v for v, *_ in seen] == sorted(v for v, *_ in seen)


def test_windows_of_a_unit_are_neighbours() -> None:
    plan = Plan(Volumes(("a",), np.array([(40, 40, 40)]), TILE), Grid(0.5), 8, 1, 8, 8)
    unit = plan.unit(0, 1)
    assert (np.abs(np.diff(unit.starts, axis=0)).sum(axis=1) <= 4).all()


def test_a_grid_in_lanes_flags_its_repeats() -> None:
    plan = Plan(volumes_of(), Grid(0.0), (4, 4, 3), 2, 4, 4, mode="pad")
    slots = [s for t in range(len(plan)) for s in plan.batch_at(0, t)]
    real = Counter((s.unit, s.crop) for s in slots if not s.padding)
    assert set(real.values()) == {1}
    assert len(real) == plan.units.total


def test_whole_volumes_come_once_each_and_whole() -> None:
    plan = Plan(volumes_of(), Whole(), None, 1)
    units = [plan.unit(0, s.unit) for t in range(len(plan)) for s in plan.batch_at(0, t)]
    assert sorted(u.volume for u in units) == [0, 1, 2]
    assert all(u.patch.tolist() == list(SHAPES[u.volume]) == u.region[:, 1].tolist() for u in units)


@pytest.mark.parametrize("neighbours", [0, 1, 3])
@pytest.mark.parametrize(("axis", "number"), [("axial", 2), ("y", 1), (0, 0)])
def test_every_slice_is_as_likely(axis: str | int, number: int, neighbours: int) -> None:
    plan = Plan(volumes_of(1), Slices(axis, neighbours), (4, 3), 1, 4000, 4, seed=1)
    assert plan.patch is not None
    assert plan.patch[number] == 2 * neighbours + 1
    units = [plan.unit(0, i) for i in range(len(plan.units))]
    middles = np.concatenate([u.starts[:, number] + neighbours for u in units])
    size = SHAPES[0][number]
    shares = np.bincount(middles, minlength=size) / len(middles)
    assert shares == pytest.approx(np.full(size, 1 / size), abs=0.025)
    assert all(u.slice_axis == number and (u.region[:, 1] <= SHAPES[0]).all() for u in units)


def test_slices_of_foreground_hold_it() -> None:
    plan = Plan(volumes_of(1), Slices("axial", 1, Foreground(1.0, (2,))), (5, 4), 1, 200, 4)
    for i in range(len(plan.units)):
        for start in plan.unit(0, i).starts:
            assert 2 <= start[2] + 1 < 5


def test_whole_planes_where_all_have_one_size() -> None:
    plan = Plan(volumes_of(1), Slices("axial"), None, 1)
    assert plan.patch == (12, 9, 1)
    with pytest.raises(PlanError, match=r"planes have several sizes, from \[3, 9\] to \[12, 11\]"):
        Plan(volumes_of(), Slices("axial"), None, 1)


def test_frames_are_as_likely_and_inside() -> None:
    volumes = replace(volumes_of(), channels=np.array([6, 6, 9]))
    plan = Plan(volumes, Frames(Uniform(), count=2, stride=3), PATCH, 1, 4000, 4, seed=1)
    units = [plan.unit(0, i) for i in range(len(plan.units))]
    for v, channels in enumerate([6, 6, 9]):
        firsts = [u.channels[0] for u in units if u.volume == v and u.channels is not None]
        possible = channels - 3
        shares = np.bincount(firsts, minlength=possible) / len(firsts)
        assert shares == pytest.approx(np.full(possible, 1 / possible), abs=0.06)
    assert all(u.channels is not None and u.channels[1] - u.channels[0] == 4 and u.stride == 3 for u in units)


# refusals --------------------------------------------------------------------------------------

BARE = Volumes(("a", "b"), np.array([(12, 9, 7), (8, 11, 1)]), TILE)
REFUSED: list[tuple[Policy, object, Volumes, str]] = [
    (Foreground(0.5), (3, 3, 1), BARE, "Foreground needs a label collection"),
    (Foreground(0.5, label="organ"), PATCH, volumes_of(), r"under 'organ'.*label keys are: label"),
    (Foreground(0.5, (2, 9)), PATCH, volumes_of(), r"class \[9\] occurs in none of the 3 volumes.*\[1, 2, 3\]"),
    (Balanced({1: 1, 9: 1}), PATCH, volumes_of(), r"class \[9\] occurs in none of the 3 volumes"),
    (Balanced({3: 1}), PATCH, volumes_of(1), r"class \[3\] occurs in none of the 1 volumes"),
    (MinForeground(0.24), PATCH, volumes_of(), r"in 1 of 3 volumes \(subjects 'a'; the best.*0.212.*cohort.subset"),
    (
        Uniform(max_air=0.01),
        PATCH,
        volumes_of(),
        r"max_air=0.01: no crop of 5x4x3.*in 2 of 3 volumes .subjects 'b', 'c'",
    ),
    (Uniform(max_air=0.5), (3, 3, 1), BARE, "max_air needs an image collection"),
    (
        Uniform(),
        PATCH,
        BARE,
        r"cut from volumes that are 2-D .subjects 'b'; shape .8, 11, 1.*1 along that axis, or use",
    ),
    (Uniform(weights="rate"), (3, 3, 1), BARE, "no column 'rate' in obs_meta or obs"),
    (Weighted(by="nothing"), PATCH, volumes_of(), "no such column in obs_meta or obs, nor a collection"),
    (Frames(Uniform(), 2, 3), PATCH, volumes_of(), r"needs 4 frames; the volumes of subjects 'a' have fewer"),
]


@pytest.mark.parametrize(("policy", "patch", "volumes", "says"), REFUSED, ids=lambda v: str(v)[:40])
def test_what_cannot_be_is_refused_before_anything_is_read(
    policy: Policy, patch: tuple[int, int, int], volumes: Volumes, says: str
) -> None:
    with pytest.raises(PlanError, match=says):
        Plan(volumes, policy, patch, 1, mode="pad")


@pytest.mark.parametrize(
    ("rate", "says"),
    [
        ([1, np.nan, 1], "no weight.*subjects 'b'"),
        ([1, -2, 1], "no weight.*'b'"),
        ([0, 0, 0], "is 0 for all 3 volumes"),
    ],
)
def test_weights_are_weights(rate: list[float], says: str) -> None:
    with pytest.raises(PlanError, match=says):
        Plan(replace(volumes_of(), columns={"rate": np.array(rate, float)}), Uniform(weights="rate"), PATCH, 1)


def test_maps_below_zero_are_refused() -> None:
    volumes = volumes_of()
    low = replace(volumes.maps["heat"], low=np.array([0.0, -1.0, 0.0]))
    with pytest.raises(PlanError, match=r"values from 0.*subjects 'b'"):
        Plan(replace(volumes, maps={"heat": low}), Weighted(by="heat"), PATCH, 1)


@pytest.mark.parametrize(
    "make",
    [
        lambda: Foreground(1.1),
        lambda: Foreground(0.5, (0, 1)),
        lambda: MinForeground(0),
        lambda: Balanced({}),
        lambda: Balanced({1: -1}),
        lambda: Uniform(max_air=1.5),
        lambda: Slices("oblique"),
        lambda: Slices("axial", -1),
        lambda: Slices("axial", 0, Slices()),
        lambda: Frames(count=0),
        lambda: Plan(volumes_of(), Grid(1.5), PATCH, 1),
        lambda: Plan(volumes_of(), Whole(), 5, 1),
        lambda: Plan(volumes_of(), Uniform(), None, 1),
        lambda: Plan(volumes_of(), Slices(), (5, 5, 5), 1),
    ],
)
def test_settings_out_of_range_are_refused(make: object) -> None:
    with pytest.raises(ConfigError):
        make()  # type: ignore[operator]
