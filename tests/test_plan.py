"""The plan over topologies: one global order, every crop once, exact suffixes, equal lengths."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pytest
from effort import tries
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from radiodata.errors import PlanError
from radiodata.sampling import Grid, Plan, Slot, Uniform, Volumes

MANY = tries(120, 400, 1000)
SHAPE, TILE = (16, 12, 8), (4, 4, 4)

cases = st.fixed_dictionaries(
    {
        "volumes": st.integers(1, 9),
        "per_volume": st.integers(1, 5),
        "crops": st.integers(1, 6),
        "per_rank": st.integers(1, 4),
        "ranks": st.sampled_from([1, 2, 3, 4]),
        "canonical": st.sampled_from([1, 2, 4, 8]),
        "mode": st.sampled_from(["drop", "pad", "steps"]),
        "steps": st.integers(1, 40),
        "order": st.sampled_from(["lanes", "lanes", "sequential"]),
        "grid": st.booleans(),
        "seed": st.integers(0, 3),
    }
)


def plan_of(case: dict[str, Any]) -> Plan:
    volumes = Volumes(tuple(map(str, range(case["volumes"]))), np.tile(SHAPE, (case["volumes"], 1)), TILE)
    try:
        return Plan(
            volumes,
            Grid(0.25) if case["grid"] else Uniform(),
            (6, 5, 4),
            case["per_rank"] * case["ranks"],
            case["per_volume"] * case["crops"],
            case["crops"],
            1,
            case["canonical"],
            mode="drop" if case["mode"] == "steps" else case["mode"],
            steps=case["steps"] if case["mode"] == "steps" else None,
            order=case["order"],
            seed=case["seed"],
        )
    except PlanError:  # an epoch of fewer crops than a batch
        assume(False)
        raise


def stream(plan: Plan, ranks: int, workers: int, epoch: int, start: int = 0) -> list[list[Slot]]:
    """Global batches put together from what every worker of every rank makes on its own."""
    made: dict[int, list[Slot]] = {}
    for rank in range(ranks):
        for worker in range(workers):
            for step in range(start + worker, len(plan), workers):
                made.setdefault(step, []).extend(plan.rank_batch(epoch, step, rank, ranks))
    return [made[step] for step in range(start, len(plan))]


@settings(max_examples=MANY, deadline=None)
@given(cases, st.integers(1, 4), st.integers(0, 2))
def test_every_topology_makes_the_same_batches(case: dict[str, Any], workers: int, epoch: int) -> None:
    plan = plan_of(case)
    expected = [plan.batch_at(epoch, step) for step in range(len(plan))]
    for ranks in {1, case["ranks"]}:
        plan.check_world(ranks)
        assert stream(plan, ranks, workers, epoch) == expected


@settings(max_examples=MANY, deadline=None)
@given(cases, st.integers(0, 2))
def test_every_crop_once(case: dict[str, Any], epoch: int) -> None:
    assume(case["mode"] != "steps")
    plan = plan_of(case)
    slots = [s for step in range(len(plan)) for s in plan.batch_at(epoch, step)]
    seen = Counter((s.unit, s.crop) for s in slots if not s.padding)
    assert set(seen.values()) <= {1}
    if case["mode"] == "pad":
        assert len(seen) == plan.units.total
    else:
        assert plan.units.total - len(seen) < plan.batch or case["grid"]
    assert len(slots) == len(plan) * plan.batch
    keys = {s.key for s in slots if not s.padding}
    assert len(keys) == len(seen)


@settings(max_examples=MANY, deadline=None)
@given(cases)
def test_crops_of_a_unit_never_meet(case: dict[str, Any]) -> None:
    assume(case["order"] == "lanes" and case["mode"] != "steps")
    plan = plan_of(case)
    assume(len(plan.units) >= plan.batch)
    for step in range(len(plan)):
        units = [s.unit for s in plan.batch_at(0, step) if not s.padding]
        assert len(set(units)) == len(units)


@settings(max_examples=MANY, deadline=None)
@given(cases, st.integers(0, 10**6), st.integers(1, 4), st.integers(1, 4))
def test_a_resumed_run_gives_the_exact_suffix(case: dict[str, Any], at: int, before: int, after: int) -> None:
    plan = plan_of(case)
    stop = at % len(plan)
    first = stream(plan, case["ranks"], before, 1)[:stop]
    again = plan_of(case)
    assert again.hash == plan.hash
    rest = stream(again, 1, after, 1, stop)
    assert first + rest == [plan.batch_at(1, step) for step in range(len(plan))]


@settings(max_examples=MANY, deadline=None)
@given(cases, st.integers(1, 30))
def test_steps_cut_one_stream_into_epochs(case: dict[str, Any], steps: int) -> None:
    whole = plan_of({**case, "mode": "drop"})
    cut = plan_of({**case, "mode": "steps", "steps": steps})
    wanted = [whole.batch_at(epoch, step) for epoch in range(3) for step in range(len(whole))]
    found = [cut.batch_at(*divmod(n, steps)) for n in range(len(wanted))]
    assert found == wanted


@pytest.mark.parametrize("field", ["batch", "crops_per_unit", "seed", "workers", "policy", "shapes", "subjects"])
def test_whatever_changes_the_batches_changes_the_hash(field: str) -> None:
    def made(**change: Any) -> Plan:
        names, shapes = change.pop("subjects", ("a", "b")), change.pop("shapes", [SHAPE, SHAPE])
        chosen = {"policy": Uniform(), "batch": 2, "crops_per_unit": 4, "workers": 8, "seed": 0, **change}
        return Plan(Volumes(names, np.array(shapes), TILE), patch_size=4, **chosen)

    other = {
        "batch": 4,
        "crops_per_unit": 8,
        "seed": 1,
        "workers": 4,
        "policy": Grid(0.5),
        "shapes": [SHAPE, (16, 12, 9)],
        "subjects": ("a", "c"),
    }[field]
    assert made().hash == made().hash
    assert made(**{field: other}).hash != made().hash


def test_ten_million_crops_cost_nothing_until_they_are_drawn() -> None:
    import tracemalloc

    count = 100_000
    volumes = Volumes(tuple(map(str, range(count))), np.tile([256, 256, 128], (count, 1)), (32, 32, 32))
    tracemalloc.start()
    plan = Plan(volumes, Uniform(), 96, 8, 100, 4)
    slots = plan.batch_at(3, len(plan) - 1)
    units = [plan.unit(s.epoch, s.unit) for s in slots]
    grown = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(plan) * plan.batch == 10_000_000
    assert len({u.volume for u in units}) > 1
    assert grown < 1e6
