"""The lane plan: hand-checked batches, and the properties for which it was made, over many topologies."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from radiodata.errors import PlanError
from radiodata.sampling.lanes import LanePlan, fit_groups

Crop = tuple[int, int]


def batch(plan: LanePlan, step: int) -> list[Crop]:
    positions, crops, _ = plan.batch_at(step)
    return list(zip(positions.tolist(), crops.tolist(), strict=True))


def real_crops(plan: LanePlan) -> list[Crop]:
    found = []
    for step in range(len(plan)):
        positions, crops, padding = plan.batch_at(step)
        found += [(int(p), int(c)) for p, c, pad in zip(positions, crops, padding, strict=True) if not pad]
    return found


TABLE = {
    # units, crops, batch, groups: the batches, worked out by hand from the definition
    (4, 2, 2, 2): [
        [(0, 0), (1, 0)],
        [(2, 1), (3, 1)],
        [(0, 1), (1, 1)],
        [(2, 0), (3, 0)],
    ],
    (4, 1, 2, 1): [[(0, 0), (1, 0)], [(2, 0), (3, 0)]],
    (4, 2, 2, 1): [  # one group, two rounds: lane j holds units j and 2 + j
        [(0, 0), (1, 0)],
        [(0, 1), (1, 1)],
        [(2, 0), (3, 0)],
        [(2, 1), (3, 1)],
    ],
    (3, 2, 2, 1): [  # unit 2 fills no round, and cannot fill a batch alone: all are dealt crop by crop
        [(0, 0), (1, 0)],
        [(2, 0), (0, 1)],
        [(1, 1), (2, 1)],
    ],
    (8, 2, 2, 2): [  # two rounds, nothing left over
        [(0, 0), (1, 0)],
        [(2, 1), (3, 1)],
        [(0, 1), (1, 1)],
        [(6, 0), (7, 0)],
        [(4, 0), (5, 0)],
        [(6, 1), (7, 1)],
        [(4, 1), (5, 1)],
        [(2, 0), (3, 0)],  # lanes that began in mid-unit end with what they began with
    ],
}


@pytest.mark.parametrize("key", TABLE)
def test_exact_batches(key: tuple[int, int, int, int]) -> None:
    plan = LanePlan(*key)
    assert [batch(plan, t) for t in range(len(plan))] == TABLE[key]


plans = st.builds(
    lambda units, crops, batch, groups, mode: (units, crops, batch, groups, mode),
    units=st.integers(1, 120),
    crops=st.integers(1, 6),
    batch=st.integers(1, 12),
    groups=st.sampled_from([1, 2, 3, 4, 8]),
    mode=st.sampled_from(["drop", "pad"]),
)


@settings(max_examples=1500, deadline=None)
@given(plans)
def test_every_crop_once(args: tuple[int, int, int, int, str]) -> None:
    units, crops, size, groups, mode = args
    total = units * crops
    if mode == "drop" and total < size:
        with pytest.raises(PlanError, match="fewer than one batch"):
            LanePlan(units, crops, size, groups, "drop")
        return
    plan = LanePlan(units, crops, size, groups, mode)  # type: ignore[arg-type]
    seen = Counter(real_crops(plan))
    assert max(seen.values()) == 1
    assert set(seen) <= {(u, c) for u in range(units) for c in range(crops)}
    if mode == "pad":
        assert len(seen) == total
        assert len(plan) == -(-total // size)
    else:
        assert total - len(seen) < size
        assert len(plan) == total // size


@settings(max_examples=800, deadline=None)
@given(plans)
def test_crops_of_a_unit_never_meet(args: tuple[int, int, int, int, str]) -> None:
    units, crops, size, groups, _ = args
    plan = LanePlan(units, crops, size, groups, "pad")
    for step in range(len(plan)):
        positions, _, padding = plan.batch_at(step)
        kept = positions[~padding]
        if units >= size:
            assert len(set(kept.tolist())) == len(kept)


@settings(max_examples=300, deadline=None)
@given(st.integers(1, 5), st.integers(1, 6), st.integers(1, 8), st.sampled_from([1, 2, 4, 8]))
def test_groups_take_turns_in_opening_units(rounds: int, crops: int, size: int, groups: int) -> None:
    """Units first met in a batch, in the main part after the first cycle: all its slots', or none."""
    plan = LanePlan(rounds * size * groups, crops, size, groups)
    seen: set[int] = set()
    opened = []
    for step in range(len(plan)):
        new = {int(p) for p in plan.batch_at(step)[0]} - seen
        seen |= new
        opened.append(len(new))
    for step in range(groups, plan.main_steps - groups * (crops - 1)):
        assert opened[step] == (0 if (step // groups + step % groups) % crops else size)
    for turn in range(groups, plan.main_steps - groups * crops, groups) if groups % crops == 0 else ():
        assert sum(opened[turn : turn + groups]) == groups // crops * size


@settings(max_examples=300, deadline=None)
@given(plans, st.sampled_from([1, 2, 4, 8]))
def test_a_worker_meets_its_own_units_again(args: tuple[int, int, int, int, str], workers: int) -> None:
    units, crops, size, _, _ = args
    plan = LanePlan(units, crops, size, 8, "pad")
    owner: dict[int, int] = {}
    for step in range(plan.main_steps):
        for position in plan.batch_at(step)[0].tolist():
            assert owner.setdefault(position, step % workers) == step % workers


def test_steps_outside_an_epoch_are_refused() -> None:
    plan = LanePlan(8, 2, 4, 2)
    for step in (-1, len(plan)):
        with pytest.raises(IndexError, match=f"step {step} is outside"):
            plan.batch_at(step)


@pytest.mark.parametrize(
    ("units", "batch_size", "wanted", "groups"), [(1000, 4, 8, 8), (31, 4, 8, 4), (4, 4, 8, 1), (1, 4, 8, 1)]
)
def test_small_epochs_take_fewer_groups(units: int, batch_size: int, wanted: int, groups: int) -> None:
    assert fit_groups(units, batch_size, wanted) == groups


def test_padding_repeats_are_flagged() -> None:
    plan = LanePlan(3, 1, 2, 1, "pad")
    positions, _, padding = plan.batch_at(1)
    assert positions.tolist() == [2, 0]
    assert padding.tolist() == [False, True]
    assert np.array_equal(plan.batch_at(0)[2], [False, False])
