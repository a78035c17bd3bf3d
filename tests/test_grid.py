"""Sliding windows: they cover, stay inside, overlap as asked, and are as few as can be."""

from __future__ import annotations

from itertools import product
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from radiodata.errors import ConfigError
from radiodata.sampling.grid import grid_counts, grid_start_at, grid_starts, grid_step
from radiodata.sampling.targets import Target

lengths = st.tuples(*[st.integers(1, 40)] * 3)
shares = st.floats(0, 0.97)


@st.composite
def grids(draw: Any) -> tuple[tuple[int, int, int], tuple[int, int, int], Any]:
    patch = draw(lengths)
    voxels = st.tuples(*(st.integers(0, p - 1) for p in patch))
    return draw(lengths), patch, draw(st.one_of(shares, st.tuples(*[shares] * 3), voxels))


def axis_starts(starts: np.ndarray, axis: int) -> np.ndarray:
    return np.unique(starts[:, axis])


@given(grids())
def test_windows_cover_stay_inside_and_overlap(grid: Any) -> None:
    shape, patch, overlap = grid
    starts = grid_starts(shape, patch, overlap)
    per_axis = [axis_starts(starts, a) for a in range(3)]
    assert starts.tolist() == [list(s) for s in product(*(a.tolist() for a in per_axis))]  # C order, no repeats
    asked = np.broadcast_to(np.asarray(overlap), 3)
    for first, n, p, o in zip(per_axis, shape, patch, asked, strict=True):
        if n <= p:
            assert first.tolist() == [-((p - n) // 2)]
            continue
        assert (first[0], first[-1]) == (0, n - p)
        step = np.diff(first)
        shared = o if np.issubdtype(asked.dtype, np.integer) else min(o * p, p - 1)
        assert step.max() <= p - shared + 1e-6
        assert step.max() - step.min() <= 1  # evenly


@given(grids())
def test_fewer_windows_could_not_do(grid: Any) -> None:
    shape, patch, overlap = grid
    counts, step = grid_counts(shape, patch, overlap), grid_step(patch, overlap)
    for n, p, count, s in zip(shape, patch, counts, step, strict=True):
        assert count >= 1
        assert count == 1 or (count - 2) * s + p < n  # one fewer, as far apart as allowed, leaves voxels
    assert len(grid_starts(shape, patch, overlap)) == counts.prod()


@given(grids())
def test_a_small_volume_is_placed_as_training_places_it(grid: Any) -> None:
    shape, patch, overlap = grid
    first = grid_starts(shape, patch, overlap)[0]
    target: Any = SimpleNamespace(shape=np.array(shape), patch=np.array(patch))
    drawn = Target.starts_of(target, np.zeros(3, np.int64))
    assert first.tolist() == drawn.tolist()


@given(st.lists(lengths, min_size=1, max_size=5), lengths, shares)
def test_many_volumes_at_once(shapes: Any, patch: Any, overlap: float) -> None:
    table = np.array(shapes)
    counts = grid_counts(table, patch, overlap)
    each = [grid_starts(s, patch, overlap) for s in shapes]
    assert counts.prod(axis=1).tolist() == [len(e) for e in each]
    last = np.array([len(e) - 1 for e in each])
    assert grid_start_at(last, table, patch, overlap).tolist() == [e[-1].tolist() for e in each]


def test_counting_a_large_cohort_lists_nothing() -> None:
    shapes = np.tile([[512, 512, 700]], (100_000, 1))
    total = grid_counts(shapes, 96, 0.5).prod(axis=1).sum()
    assert total == 100_000 * 10 * 10 * 14
    assert grid_start_at(1399, (512, 512, 700), 96, 0.5).tolist() == [416, 416, 604]


@pytest.mark.parametrize(
    ("length", "patch", "overlap", "expected"),
    [
        (110, 64, 0.5, [0, 23, 46]),  # nnU-Net's own example of even spreading
        (128, 64, 0.5, [0, 32, 64]),
        (100, 100, 0.25, [0]),
        (101, 100, 0.55, [0, 1]),
        (10, 4, 0, [0, 3, 6]),
        (10, 4, 3, list(range(7))),
        (5, 1, 0.9, [0, 1, 2, 3, 4]),
        (7, 12, 0.5, [-2]),
        (1, 4, 0.5, [-1]),
    ],
)
def test_known_starts(length: int, patch: int, overlap: Any, expected: list[int]) -> None:
    starts = grid_starts((1, 1, length), (1, 1, patch), (0.0, 0.0, overlap))
    assert starts[:, 2].tolist() == expected


def test_agrees_with_monai_where_the_step_divides_the_way() -> None:
    data_utils = pytest.importorskip("monai.data.utils")
    shape, patch, step = (64, 48, 40), (16, 16, 8), (8, 8, 4)
    theirs = data_utils.dense_patch_slices(shape, patch, step)
    assert grid_starts(shape, patch, 0.5).tolist() == [[s.start for s in window] for window in theirs]


@pytest.mark.parametrize(
    ("shape", "patch", "overlap", "says"),
    [
        ((9, 9, 9), 4, 1.0, r"\[0, 1\); give voxels as an int"),
        ((9, 9, 9), 4, -0.1, r"no share in \[0, 1\)"),
        ((9, 9, 9), 4, float("nan"), "no share"),
        ((9, 9, 9), 4, 4, "4 voxels of a patch of 4; give 0 to 3"),
        ((9, 9, 9), 4, (0.5, 0.5), "one value or three"),
        ((9, 9, 9), (4, 0, 4), 0.5, "patch must be"),
        ((9, 0, 9), 4, 0.5, "three positive lengths"),
        ((9, 9), 4, 0.5, "three positive lengths"),
    ],
)
def test_senseless_grids_are_refused(shape: Any, patch: Any, overlap: Any, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        grid_starts(shape, patch, overlap)


def test_a_window_that_is_not_there_is_refused() -> None:
    with pytest.raises(IndexError, match="no window 27"):
        grid_start_at(27, (8, 8, 8), 4, 0.5)
