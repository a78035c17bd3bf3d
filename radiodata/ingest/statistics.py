"""Statistics of a volume and of its tiles, in one pass at ingest, so that training reads none twice."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from radiodata.geometry import Shape3, tile_counts

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from radiodata._typing import Voxels

CT_AIR = -900.0
"""HU at or below which a voxel of a CT counts as air."""
_EXACT_BINS = 65_536
_STORED_BINS = 4_096


@dataclass(frozen=True)
class VolumeStatistics:
    """Row parts for `obs` and for the tile table."""

    obs: dict[str, Any]
    tiles: dict[str, NDArray[Any]]


@dataclass
class _ImageTiles:
    low: list[float] = field(default_factory=list)
    high: list[float] = field(default_factory=list)
    total: list[float] = field(default_factory=list)
    squares: list[float] = field(default_factory=list)
    nonair: list[int] = field(default_factory=list)


def iter_tiles(shape: Shape3, tile: Shape3) -> Iterator[tuple[slice, slice, slice]]:
    """Slices of every tile of a volume, in C order of the tile grid."""
    for index in np.ndindex(*tile_counts(shape, tile)):
        lows = [i * t for i, t in zip(index, tile, strict=True)]
        (x, y, z) = (slice(lo, min(lo + t, n)) for lo, t, n in zip(lows, tile, shape, strict=True))
        yield (x, y, z)


def image_statistics(values: Voxels, tile: Shape3) -> VolumeStatistics:
    """Statistics of an image of physical values, shape ``(channel, x, y, z)``.

    Air is at or below -900 where the minimum is (CT in HU), else the minimum itself (MR and PET
    background). Mean, standard deviation and percentiles are of the voxels above it; values that are not
    finite are left out.
    """
    finite = values if values.dtype.kind in "iu" else values[np.isfinite(values)]
    low, high = (float(finite.min()), float(finite.max())) if finite.size else (0.0, 0.0)
    air = CT_AIR if low <= CT_AIR else low
    width = _bin_width(values.dtype, low, high)
    bins = int(np.ceil((high - low) / width)) + 1
    counts = np.zeros(bins, np.int64)
    tiles = _ImageTiles()
    for channel in values:
        for at in iter_tiles(channel.shape, tile):
            _add_tile(tiles, counts, channel[at].ravel(), low, width, air)
    middles = low + width * np.arange(bins, dtype=np.float64) + (0.0 if width == 1 else width / 2)
    above = np.where(middles > air, counts, 0)
    return VolumeStatistics(
        obs={
            "value_min": low,
            "value_max": high,
            **_moments(above, middles, fallback=low),
            "air_threshold": air,
            "nonair_voxels": int(sum(tiles.nonair)),
            **_stored_histogram(counts, low, width),
            "label_values": [],
            "label_voxels": [],
        },
        tiles={
            "tile_min": np.array(tiles.low),
            "tile_max": np.array(tiles.high),
            "tile_sum": np.array(tiles.total),
            "tile_sum_sq": np.array(tiles.squares),
            "tile_nonair": np.array(tiles.nonair, np.int64),
        },
    )


def _bin_width(dtype: np.dtype[Any], low: float, high: float) -> float:
    if dtype.kind in "iu" and high - low < _EXACT_BINS:
        return 1.0
    return max((high - low) / (_STORED_BINS - 1), float(np.finfo(np.float32).tiny))


def _add_tile(out: _ImageTiles, counts: NDArray[np.int64], flat: Voxels, low: float, width: float, air: float) -> None:
    if flat.dtype.kind == "f":
        flat = flat[np.isfinite(flat)].astype(np.float64)
    exact = flat.dtype.kind in "iu" and width == 1
    shifted = flat.astype(np.int64) - int(low) if exact else ((flat - low) / width).astype(np.int64)
    found = np.bincount(np.minimum(shifted, len(counts) - 1), minlength=len(counts))
    counts += found
    if exact:  # everything follows from the counts
        at = np.flatnonzero(found)
        values, weights = at + low, found[at]
        flat = values
    else:
        values, weights = flat.astype(np.float64, copy=False), np.ones(len(flat), np.int64)
    out.low.append(float(values.min()) if len(values) else np.nan)
    out.high.append(float(values.max()) if len(values) else np.nan)
    out.total.append(float(values @ weights))
    out.squares.append(float((values * values) @ weights))
    out.nonair.append(int(weights[values > air].sum()))


def _moments(counts: NDArray[np.int64], values: NDArray[np.float64], fallback: float) -> dict[str, float]:
    total = int(counts.sum())
    if not total:
        return {"value_mean": fallback, "value_std": 0.0, **dict.fromkeys(_PERCENTILES, fallback)}
    mean = float(counts @ values) / total
    spread = float(np.sqrt(counts @ (values - mean) ** 2 / total))
    return {"value_mean": mean, "value_std": spread, **percentiles(counts, values)}


_PERCENTILES = {"value_p005": 0.5, "value_p50": 50.0, "value_p995": 99.5}


def percentiles(counts: NDArray[np.int64], values: NDArray[np.float64]) -> dict[str, float]:
    """Percentiles 0.5, 50 and 99.5 of a histogram whose bins stand for `values`, ascending."""
    reached = np.cumsum(counts)
    at = {name: np.searchsorted(reached, q / 100 * reached[-1]) for name, q in _PERCENTILES.items()}
    return {name: float(values[min(int(i), len(values) - 1)]) for name, i in at.items()}


def _stored_histogram(counts: NDArray[np.int64], low: float, width: float) -> dict[str, Any]:
    merge = -(-len(counts) // _STORED_BINS)
    padded = np.pad(counts, (0, -len(counts) % merge)).reshape(-1, merge).sum(axis=1)
    return {"histogram": padded, "histogram_start": low, "histogram_width": width * merge}


def label_statistics(labels: Voxels, tile: Shape3, reservoir: int) -> VolumeStatistics:
    """Statistics of a label volume of shape ``(1, x, y, z)``.

    For every (tile, class > 0): how many voxels, and up to `reservoir` of their coordinates, drawn
    uniformly (all of them where there are no more), always the same for the same voxels.
    """
    volume = labels[0]
    columns: dict[str, list[Any]] = {n: [] for n in ("tile", "label", "voxels", "kept")}
    points: list[NDArray[np.int64]] = []
    totals: dict[int, int] = {}
    for index, at in enumerate(iter_tiles(volume.shape, tile)):
        block = np.ascontiguousarray(volume[at])
        values, counts = _classes(block)
        for value, count in zip(values, counts, strict=True):
            totals[int(value)] = totals.get(int(value), 0) + int(count)
            if value <= 0:
                continue
            kept = _reservoir(block, at, volume.shape, int(value), reservoir, seed=index)
            points.append(kept)
            for name, entry in zip(columns, (index, value, count, len(kept)), strict=True):
                columns[name].append(int(entry))
    values_seen = sorted(totals)
    return VolumeStatistics(
        obs={"label_values": values_seen, "label_voxels": [totals[v] for v in values_seen]},
        tiles={
            **{n: np.array(v, np.int64) for n, v in columns.items()},
            "points": np.concatenate(points) if points else np.zeros(0, np.int64),
        },
    )


def _classes(block: Voxels) -> tuple[NDArray[Any], NDArray[np.int64]]:
    if block.dtype == np.uint8:
        counts = np.bincount(block.ravel(), minlength=1)
        seen = np.flatnonzero(counts)
        return seen, counts[seen]
    return np.unique(block, return_counts=True)


def _reservoir(
    block: Voxels, at: tuple[slice, slice, slice], shape: Shape3, value: int, size: int, *, seed: int
) -> NDArray[np.int64]:
    found = np.flatnonzero(block == value)
    if len(found) > size:
        found = np.sort(np.random.default_rng([seed, value]).choice(found, size, replace=False))
    inside = np.unravel_index(found, block.shape)
    whole = tuple(i + s.start for i, s in zip(inside, at, strict=True))
    return np.asarray(np.ravel_multi_index(whole, shape), np.int64)
