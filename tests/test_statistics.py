"""Statistics recorded at ingest equal what brute force counts over the voxels."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from radiodata.geometry import tile_counts
from radiodata.ingest import statistics
from radiodata.ingest.statistics import VolumeStatistics, image_statistics, iter_tiles, label_statistics

shapes = st.tuples(*[st.integers(1, 11)] * 3)
tiles = st.tuples(*[st.integers(1, 6)] * 3)


def brute_tiles(values: np.ndarray, tile: tuple[int, int, int], air: float) -> dict[str, np.ndarray]:
    out: dict[str, list[float]] = {n: [] for n in ("tile_min", "tile_max", "tile_sum", "tile_sum_sq", "tile_nonair")}
    for channel in values:
        x, y, z = (range(0, n, t) for n, t in zip(channel.shape, tile, strict=True))
        for a, b, c in ((a, b, c) for a in x for b in y for c in z):
            block = channel[a : a + tile[0], b : b + tile[1], c : c + tile[2]].astype(np.float64)
            block = block[np.isfinite(block)]
            out["tile_min"].append(block.min() if block.size else np.nan)
            out["tile_max"].append(block.max() if block.size else np.nan)
            out["tile_sum"].append(block.sum())
            out["tile_sum_sq"].append((block**2).sum())
            out["tile_nonair"].append((block > air).sum())
    return {n: np.array(v) for n, v in out.items()}


def check_image(values: np.ndarray, tile: tuple[int, int, int]) -> VolumeStatistics:
    found = image_statistics(values, tile)
    wide = values.astype(np.float64)
    wide = wide[np.isfinite(wide)]
    low, high = (wide.min(), wide.max()) if wide.size else (0.0, 0.0)
    air = -900.0 if low <= -900 else low
    body = wide[wide > air]
    expected: dict[str, float] = {
        "value_min": low,
        "value_max": high,
        "air_threshold": air,
        "nonair_voxels": body.size,
        "value_mean": body.mean() if body.size else low,
        "value_std": body.std() if body.size else 0.0,
    }
    for name, q in (("value_p005", 0.5), ("value_p50", 50), ("value_p995", 99.5)):
        expected[name] = np.percentile(body, q, method="inverted_cdf") if body.size else low
    scale = max(abs(low), abs(high), 1e-300)
    for name, value in expected.items():
        assert found.obs[name] == pytest.approx(value, rel=1e-9, abs=1e-9 * scale), name
        assert type(found.obs[name]) is (int if name == "nonair_voxels" else float)
    for name, column in brute_tiles(values, tile, air).items():
        np.testing.assert_allclose(found.tiles[name], column, rtol=1e-9, atol=1e-9 * scale**2, err_msg=name)
    check_histogram(found.obs, body)
    return found


def check_histogram(obs: dict[str, Any], body: np.ndarray) -> None:
    """Every voxel above air lies in the bin that counts it, give or take one for rounding."""
    counts, start, width = obs["histogram"], obs["histogram_start"], obs["histogram_width"]
    assert counts.sum() == body.size
    assert len(counts) <= 4096
    at = np.clip(np.floor(np.sort(body) / width - start / width), 0, len(counts) - 1)
    assert np.abs(at - np.repeat(np.arange(len(counts)), counts)).max(initial=0) <= 1


@settings(max_examples=120, deadline=None)
@given(st.data(), st.sampled_from(["i1", "u1", "i2", "u2", "i4", "u4"]), shapes, tiles, st.integers(1, 3))
def test_images_of_ints(data: st.DataObject, dtype: str, shape: tuple, tile: tuple, channels: int) -> None:
    narrow = st.integers(max(np.iinfo(dtype).min, -1024), min(np.iinfo(dtype).max, 1500))
    elements = data.draw(st.sampled_from([narrow, None]))
    check_image(data.draw(hnp.arrays(dtype, (channels, *shape), elements=elements)), tile)


@settings(max_examples=120, deadline=None)
@given(st.data(), st.sampled_from(["i1", "u1", "i2", "u2", "i4", "u4"]), shapes, tiles, st.integers(1, 3))
def test_compiled_counts_are_those_of_numpy(
    data: st.DataObject, dtype: str, shape: tuple, tile: tuple, channels: int
) -> None:
    pytest.importorskip("numba", reason="needs radiodata[fast]")
    narrow = st.integers(max(np.iinfo(dtype).min, -1024), min(np.iinfo(dtype).max, 1500))
    elements = data.draw(st.sampled_from([narrow, None]))
    values = data.draw(hnp.arrays(dtype, (channels, *shape), elements=elements))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(statistics, "worthwhile", lambda _: True)
        found = check_image(values, tile)
        low, high = int(values.min()), int(values.max())
        small = max(abs(low), abs(high)) <= statistics._MOST_EXACT
        assert (statistics._counter(values, tile, low, high) is not None) == small
        patch.setattr(statistics, "worthwhile", lambda _: False)
        wanted = check_image(values, tile)
    assert found.obs.keys() == wanted.obs.keys()
    for name, value in wanted.obs.items():
        np.testing.assert_array_equal(found.obs[name], value, err_msg=name)
    for name, column in wanted.tiles.items():
        np.testing.assert_array_equal(found.tiles[name], column, err_msg=name)
        assert found.tiles[name].dtype == column.dtype


@pytest.mark.parametrize(
    "values",
    [
        np.full((1, 4, 4, 4), 1 << 18, np.int32),
        np.full((1, 4, 4, 4), 5, np.int64),
        np.asfortranarray(np.arange(64, dtype=np.int16).reshape(1, 4, 4, 4)),
        np.arange(64).astype(">i2").reshape(1, 4, 4, 4),
    ],
    ids=["large values", "64 bits", "another order", "big-endian"],
)
def test_what_the_compiled_counter_leaves_to_numpy(values: np.ndarray, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(statistics, "worthwhile", lambda _: True)
    assert statistics._counter(values, TILE, int(values.min()), int(values.max())) is None
    assert statistics._counter(values, (1 << 10, 1 << 10, 1), 0, 9) is None
    assert not statistics._kernels._off  # it was not asked
    check_image(values, TILE)


@settings(max_examples=120, deadline=None)
@given(st.data(), st.sampled_from(["f4", "f8"]), shapes, tiles)
def test_images_of_floats(data: st.DataObject, dtype: str, shape: tuple, tile: tuple) -> None:
    width = 32 if dtype == "f4" else 64
    cells = st.floats(-(2.0**40), 2.0**40, width=width) | st.sampled_from([np.nan, np.inf, -np.inf, 0.0, -0.0, -1000.0])
    check_image(data.draw(hnp.arrays(dtype, (1, *shape), elements=cells)), tile)


TILE = (4, 5, 3)
ODD = (1, 9, 8, 7)


@pytest.mark.parametrize(
    "values",
    [
        np.full(ODD, 7, np.int16),
        np.full(ODD, -1000, np.int16),
        np.full(ODD, 0.1, np.float32),
        np.full(ODD, np.nan, np.float32),
        np.full(ODD, np.inf, np.float64),
        np.full(ODD, 255, np.uint8),
    ],
    ids=lambda v: f"{v.dtype}-{v.flat[0]}",
)
def test_constant_volumes(values: np.ndarray) -> None:
    found = check_image(values, TILE)
    known = float(values.flat[0]) if np.isfinite(values.flat[0]) else 0.0
    if known > -900:  # all of it is air
        assert found.obs["nonair_voxels"] == 0
        assert found.obs["value_mean"] == known


@pytest.mark.parametrize(
    "values",
    [
        np.resize(np.array([-(2**63), 0, 2**63 - 1]), ODD),
        np.resize(np.array([2**63, 2**64 - 1, 3], np.uint64), ODD),
        np.resize(np.array([2**64 - 1, 2**64 - 6], np.uint64), ODD),
        np.resize(np.array([2**62 + 513, 2**62 + 600]), ODD),
        np.resize(np.array([-70_000, 5, 300_000], np.int32), ODD),
        np.resize(np.array([0, 65_535, 65_536], np.int32), ODD),
        np.resize(np.array([-1e300, 1e300, 2.0]), ODD),
        np.resize(np.array([-1.7e308, 1.7e308, 2.0]), ODD),
        np.resize(np.array([1e-45, 3e-45, 0], np.float32), ODD),
        np.resize(np.array([1e6, 1e6 + 0.25, 1e6 + 0.5]), ODD),
    ],
    ids=lambda v: f"{v.dtype}-{v.flat[0]}",
)
def test_wide_and_narrow_ranges_do_not_break_it(values: np.ndarray) -> None:
    found = image_statistics(values, TILE)
    assert found.obs["value_min"] == float(values.min())
    assert found.obs["value_max"] == float(values.max())
    air = -900 if values.min() <= -900 else values.min()
    assert found.obs["nonair_voxels"] == (values > air).sum()
    assert found.obs["value_p995"] == float(values.max())
    assert found.obs["histogram"].sum() == found.obs["nonair_voxels"]
    if np.abs(values.astype(float)).max() < 1e150:
        assert np.isfinite(found.obs["value_std"])


def test_the_background_of_a_float_image_does_not_weigh_on_its_mean() -> None:
    values = np.zeros((1, 20, 20, 20), np.float32)
    values[:, 5:15, 5:15, 5:15] = np.random.default_rng(0).normal(300, 25, (1, 10, 10, 10))
    obs = check_image(values, (8, 8, 8)).obs
    assert obs["value_mean"] == pytest.approx(300, abs=3)
    assert obs["value_std"] == pytest.approx(25, abs=2)
    assert obs["nonair_voxels"] == 1000


def test_percentiles_survive_outliers() -> None:
    values = np.random.default_rng(0).gamma(2, 3, (1, 30, 30, 30)).astype(np.float32)
    values[0, 0, 0, 0] = 1e9
    check_image(values, (16, 16, 16))


def test_tiles_come_in_c_order_and_cover_all() -> None:
    shape, tile = (9, 4, 11), (4, 4, 5)
    seen = np.zeros(shape, int)
    for number, at in enumerate(iter_tiles(shape, tile)):
        assert seen[at].sum() == 0
        seen[at] = number + 1
    assert seen.min() == 1
    assert seen.max() == np.prod(tile_counts(shape, tile))
    assert [seen[0, 0, z] for z in (0, 5, 10)] == [1, 2, 3]


# labels ----------------------------------------------------------------------------------------


def entries(found: VolumeStatistics, shape: tuple) -> list[tuple[int, int, int, np.ndarray]]:
    t = found.tiles
    ends = np.cumsum(t["kept"])
    parts = np.split(t["points"], ends[:-1]) if len(ends) else []
    assert (ends[-1] if len(ends) else 0) == len(t["points"])
    at = [np.stack(np.unravel_index(p, shape), axis=1) for p in parts]
    return list(zip(t["tile"].tolist(), t["label"].tolist(), t["voxels"].tolist(), at, strict=True))


@settings(max_examples=120, deadline=None)
@given(st.data(), st.sampled_from(["u1", "i2", "u2", "i4"]), shapes, tiles, st.integers(1, 9))
def test_labels(data: st.DataObject, dtype: str, shape: tuple, tile: tuple, reservoir: int) -> None:
    low = -1 if dtype.startswith("i") else 0
    labels = data.draw(hnp.arrays(dtype, (1, *shape), elements=st.integers(low, 4) | st.just(100)))
    found = label_statistics(labels, tile, reservoir)
    values, counts = np.unique(labels, return_counts=True)
    assert found.obs == {"label_values": values.tolist(), "label_voxels": counts.tolist()}

    expected = []
    for number, at in enumerate(iter_tiles(shape, tile)):
        block = labels[0][at]
        expected += [(number, int(v), int((block == v).sum())) for v in np.unique(block) if v > 0]
    held = entries(found, shape)
    assert [e[:3] for e in held] == expected
    grid = list(iter_tiles(shape, tile))
    for number, value, count, points in held:
        assert len(points) == min(count, reservoir)
        assert len(np.unique(points, axis=0)) == len(points)
        assert (labels[0][tuple(points.T)] == value).all()
        for axis, side in enumerate(grid[number]):
            assert ((points[:, axis] >= side.start) & (points[:, axis] < side.stop)).all()


def test_a_small_lesion_is_kept_whole_and_a_large_organ_is_drawn_uniformly() -> None:
    labels = np.zeros((1, 32, 32, 32), np.uint8)
    labels[0, :, :, :16] = 1
    labels[0, 3:6, 4:8, 20:24] = 2
    found = entries(label_statistics(labels, (32, 32, 32), 64), (32, 32, 32))
    (_, _, organ, drawn), (_, _, lesion, kept) = found
    assert (organ, lesion, len(drawn), len(kept)) == (32 * 32 * 16, 48, 64, 48)
    assert {tuple(p) for p in kept.tolist()} == {tuple(p) for p in np.argwhere(labels[0] == 2).tolist()}


def test_large_regions_are_drawn_uniformly() -> None:
    """Chi-square over 16 cells of every tile, many tiles: 64 of 4,096 voxels each."""
    labels = np.ones((1, 96, 96, 96), np.uint8)
    found = entries(label_statistics(labels, (16, 16, 16), 64), (96, 96, 96))
    assert len(found) == 216
    points = np.concatenate([p for *_, p in found]) % 16
    cells = (points[:, 0] // 4) * 4 + points[:, 1] // 4
    observed, expected = np.bincount(cells, minlength=16), len(points) / 16
    assert ((observed - expected) ** 2 / expected).sum() < 37.7  # 0.999 quantile at 15 degrees of freedom
    per_z = np.bincount(points[:, 2], minlength=16)
    assert ((per_z - expected) ** 2 / expected).sum() < 37.7


def test_the_same_voxels_give_the_same_statistics() -> None:
    labels = np.random.default_rng(0).integers(0, 3, (1, 20, 21, 22)).astype(np.uint8)
    first, again = (label_statistics(labels.copy(), (8, 8, 8), 5) for _ in range(2))
    for name, column in first.tiles.items():
        np.testing.assert_array_equal(column, again.tiles[name])
    other = label_statistics(labels.astype(np.int32), (8, 8, 8), 5)
    for name, column in first.tiles.items():
        np.testing.assert_array_equal(column, other.tiles[name])
