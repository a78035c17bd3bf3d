"""Statistics of a volume and of its tiles, in one pass at ingest, so that training reads none twice."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from radiodata.geometry import Shape3, tile_counts
from radiodata.store.direct.kernels import Kernels
from radiodata.store.direct.native import Kernel, address_of, load
from radiodata.store.direct.writing import worthwhile

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from numpy.typing import NDArray

    from radiodata._typing import Voxels

    Counter: TypeAlias = "Callable[[Voxels, Shape3, int, int, float], tuple[_ImageTiles, NDArray[np.int64]]]"

CT_AIR = -900.0
"""HU at or below which a voxel of a CT counts as air."""
_EXACT_BINS = 65_536
_STORED_BINS = 4_096
_CHUNK = 1 << 17
_MOST_EXACT, _MOST_CELLS = 1 << 17, 1 << 19
"""Of larger values, or of more cells, sums of squares are beyond what float64 holds exactly."""
_HELD = 1 << 18


@dataclass(frozen=True)
class VolumeStatistics:
    """Row parts for `obs` and for the tile table."""

    obs: dict[str, Any]
    tiles: dict[str, NDArray[Any]]


@dataclass
class _ImageTiles:
    """Columns of ``IMAGE_TILES``, a tile or a few at a time."""

    ends: list[tuple[float, float]] = field(default_factory=list)
    sums: list[NDArray[np.float64]] = field(default_factory=list)

    def columns(self) -> dict[str, NDArray[Any]]:
        """Columns of ``IMAGE_TILES``."""
        low, high = np.array(self.ends, np.float64).reshape(-1, 2).T
        total, squares, nonair = np.concatenate(self.sums).T
        return {
            "tile_min": low,
            "tile_max": high,
            "tile_sum": total,
            "tile_sum_sq": squares,
            "tile_nonair": nonair.astype(np.int64),
        }


def iter_tiles(shape: Shape3, tile: Shape3) -> Iterator[tuple[slice, slice, slice]]:
    """Slices of every tile of a volume, in C order of the tile grid."""
    for index in np.ndindex(*tile_counts(shape, tile)):
        lows = [i * t for i, t in zip(index, tile, strict=True)]
        (x, y, z) = (slice(lo, min(lo + t, n)) for lo, t, n in zip(lows, tile, shape, strict=True))
        yield (x, y, z)


def image_statistics(values: Voxels, tile: Shape3) -> VolumeStatistics:
    """Statistics of an image of physical values, shape ``(channel, x, y, z)``.

    Air is at or below -900 where the minimum is (CT in HU), else the minimum itself (MR and PET
    background). Mean, standard deviation, percentiles and histogram are of the voxels above it; values that
    are not finite are left out.
    """
    finite = values if values.dtype.kind in "iu" else values[np.isfinite(values)]
    low, high = (finite.min().item(), finite.max().item()) if finite.size else (0, 0)
    air = CT_AIR if low <= CT_AIR else low
    exact = values.dtype.kind in "iu" and high - low < _EXACT_BINS
    with np.errstate(over="ignore", invalid="ignore"):  # sums of squares of values beyond 1e154 are inf
        describe = _describe_counted if exact else _describe_sorted
        tiles, body = describe(values, tile, low, high, air)
    columns = tiles.columns()
    return VolumeStatistics(
        obs={
            "value_min": float(low),
            "value_max": float(high),
            **body,
            "air_threshold": float(air),
            "nonair_voxels": int(columns["tile_nonair"].sum()),
            "label_values": [],
            "label_voxels": [],
        },
        tiles=columns,
    )


def _blocks(values: Voxels, tile: Shape3) -> Iterator[Voxels]:
    for channel in values:
        for at in iter_tiles(channel.shape, tile):
            yield channel[at].ravel()


def _describe_counted(
    values: Voxels, tile: Shape3, low: int, high: int, air: float
) -> tuple[_ImageTiles, dict[str, Any]]:
    """Integers of a narrow range: everything follows from how often each value occurs."""
    bins = int(high) - int(low) + 1
    counted = _counter(values, tile, low, high)
    tiles, counts = (counted or _count)(values, tile, int(low), bins, air)
    steps = np.arange(bins, dtype=np.float64)
    body = steps > air - low
    counts[~body] = 0
    total = int(counts.sum())
    if not total:
        return tiles, {**_empty(float(low)), **_histogram(counts, float(low), 1)}
    mean = float(counts @ steps) / total
    spread = float(np.sqrt(counts @ (steps - mean) ** 2 / total))
    reached = np.cumsum(counts)
    ranks = {name: int(np.searchsorted(reached, _rank(q, total) + 1)) for name, q in _PERCENTILES.items()}
    return tiles, {
        "value_mean": mean + low,
        "value_std": spread,
        **{name: float(low + step) for name, step in ranks.items()},
        **_histogram(counts, float(low), 1),
    }


def _count(values: Voxels, tile: Shape3, low: int, bins: int, air: float) -> tuple[_ImageTiles, NDArray[np.int64]]:
    """Describe tiles, and count each value from `low` on."""
    tiles = _ImageTiles()
    wide = np.uint64 if values.dtype == np.uint64 else np.int64
    steps = np.arange(bins, dtype=np.float64)
    worth = np.stack([steps + low, (steps + low) ** 2, steps > air - low], axis=1)
    counts, found, held = np.zeros(bins, np.int64), np.empty((max(_HELD // bins, 1), bins), np.float64), 0
    above = np.empty(min(int(np.prod(tile)), values.size), wide)  # one for all: a new one is pages to be cleared
    for flat in _blocks(values, tile):
        np.subtract(flat, wide(low), out=above[: len(flat)])
        of_tile = np.bincount(above[: len(flat)].view(np.int64), minlength=bins)
        tiles.ends.append((flat.min().item(), flat.max().item()))
        counts += of_tile
        found[held] = of_tile
        held += 1
        if held == len(found):
            tiles.sums.append(_summed(found, worth))
            held = 0
    tiles.sums.append(_summed(found[:held], worth))
    return tiles, counts


def _counter(values: Voxels, tile: Shape3, low: int, high: int) -> Counter | None:
    """Give the compiled counterpart of ``_count``, where it is worth its loading, and its sums are exact."""
    exact = max(abs(int(low)), abs(int(high))) <= _MOST_EXACT and int(np.prod(tile)) <= _MOST_CELLS
    plain = values.dtype.itemsize < 8 and values.dtype.isnative and values.flags.c_contiguous
    return _kernels.get(values.dtype.str) if exact and plain and worthwhile(values.nbytes) else None


def _made(dtype: str, anew: bool) -> Counter:
    cells = f"{dtype[1:]}*"
    arguments = (cells, "i8*", "i8*", "i8", "i8", "i8*", "i8", cells, "i8*")
    function = load(Kernel("radiodata.ingest.counting", "count", arguments, helpers=()), anew=anew)

    def count(values: Voxels, tile: Shape3, low: int, bins: int, air: float) -> tuple[_ImageTiles, NDArray[np.int64]]:
        n = len(values) * int(np.prod(tile_counts(values.shape[1:], tile)))
        counts, ends, sums = np.zeros((4, bins), np.int64), np.empty((n, 2), values.dtype), np.empty((n, 3), np.int64)
        shape, extents = np.array(values.shape, np.int64), np.array(tile, np.int64)
        function(
            address_of(values), address_of(shape), address_of(extents), low, int(np.floor(air)),
            address_of(counts), bins, address_of(ends), address_of(sums),
        )  # fmt: skip
        return _ImageTiles(
            [(low_high[0], low_high[1]) for low_high in ends.tolist()], [sums.astype(np.float64)]
        ), counts.sum(axis=0)

    given = (np.arange(2 * 5 * 6 * 7) * 31 % 97 + 3).astype(dtype).reshape(2, 5, 6, 7)
    proof = given, (3, 4, 5), 3, 97, 40.0
    (found, counts), (truth, wanted) = count(*proof), _count(*proof)
    same = all(np.array_equal(v, truth.columns()[k]) for k, v in found.columns().items())
    if not same or not np.array_equal(counts, wanted):
        raise RuntimeError("its counts are not those of the voxels that were given")
    return count


_kernels = Kernels("volumes are described", _made)


def _summed(found: NDArray[np.float64], worth: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.asarray(np.einsum("tb,bs->ts", found, worth))  # BLAS would start threads beside those of other workers


def _describe_sorted(
    values: Voxels, tile: Shape3, low: float, high: float, air: float
) -> tuple[_ImageTiles, dict[str, Any]]:
    """Floats, and integers of a wide range: a copy of the voxels above air is partly sorted."""
    tiles, parts = _ImageTiles(), []
    for flat in _blocks(values, tile):
        known = flat[np.isfinite(flat)]
        parts.append(known[known > air])
        wide = known.astype(np.float64)
        tiles.ends.append((known.min(), known.max()) if len(known) else (np.nan, np.nan))
        tiles.sums.append(np.array([[wide.sum(), np.einsum("i,i", wide, wide), len(parts[-1])]]))
    body = np.concatenate(parts)
    width = max(float(high) / _STORED_BINS - float(low) / _STORED_BINS, float(np.finfo(np.float64).tiny))
    counts, squares = np.zeros(_STORED_BINS, np.int64), 0.0
    mean = float(body.mean(dtype=np.float64)) if len(body) else 0.0
    for start in range(0, len(body), _CHUNK):
        chunk = body[start : start + _CHUNK].astype(np.float64)
        bins = np.clip(chunk / width - low / width, 0, _STORED_BINS - 1).astype(np.int64)
        counts += np.bincount(bins, minlength=_STORED_BINS)
        squares += float(((chunk - mean) ** 2).sum())
    if not len(body):
        return tiles, {**_empty(float(low)), **_histogram(counts, float(low), width)}
    ranks = {name: _rank(q, len(body)) for name, q in _PERCENTILES.items()}
    body.partition(sorted(set(ranks.values())))
    return tiles, {
        "value_mean": mean,
        "value_std": float(np.sqrt(squares / len(body))),
        **{name: float(body[rank]) for name, rank in ranks.items()},
        **_histogram(counts, float(low), width),
    }


_PERCENTILES = {"value_p005": 0.5, "value_p50": 50.0, "value_p995": 99.5}


def _rank(q: float, total: int) -> int:
    """Position of a percentile among `total` sorted values: the first that `q` percent do not exceed."""
    return max(int(np.ceil(q / 100 * total)) - 1, 0)


def _empty(value: float) -> dict[str, float]:
    return {"value_mean": value, "value_std": 0.0, **dict.fromkeys(_PERCENTILES, value)}


def _histogram(counts: NDArray[np.int64], low: float, width: float) -> dict[str, Any]:
    merge = -(-len(counts) // _STORED_BINS)
    padded = np.pad(counts, (0, -len(counts) % merge)).reshape(-1, merge).sum(axis=1)
    return {"histogram": padded, "histogram_start": low, "histogram_width": float(width * merge)}


def foreground_statistics(values: Voxels, inside: NDArray[np.bool_] | None) -> dict[str, Any]:
    """Statistics of the voxels of an image, ``(channel, x, y, z)``, inside a mask ``(x, y, z)``, and their histogram.

    Nulls where there is no mask, or nothing in it.
    """
    body = values[:, inside].ravel() if inside is not None else values[:0].ravel()
    body = body[np.isfinite(body)]
    names = ("min", "max", "mean", "std", *(name.removeprefix("value_") for name in _PERCENTILES))
    if not len(body):
        columns: dict[str, Any] = {f"foreground_{name}": None for name in names}
        empty = {"foreground_histogram": [], "foreground_histogram_start": 0.0, "foreground_histogram_width": 1.0}
        return {"foreground_voxels": None if inside is None else 0, **columns, **empty}
    low, high = body.min().item(), body.max().item()
    exact = values.dtype.kind in "iu" and high - low < _EXACT_BINS
    width = 1.0 if exact else max(high / _STORED_BINS - low / _STORED_BINS, float(np.finfo(np.float64).tiny))
    steps = (body.astype(np.float64) / width - low / width).astype(np.int64)
    counts = np.bincount(steps if exact else np.clip(steps, 0, _STORED_BINS - 1), minlength=1)
    ranks = {name: _rank(q, len(body)) for name, q in _PERCENTILES.items()}
    body.partition(sorted(set(ranks.values())))
    found = {
        "value_min": low,
        "value_max": high,
        "value_mean": float(body.mean(dtype=np.float64)),
        "value_std": float(body.std(dtype=np.float64)),
        **{name: body[rank].item() for name, rank in ranks.items()},
        **_histogram(counts, float(low), width),
    }
    told = {f"foreground_{name.removeprefix('value_')}": value for name, value in found.items()}
    return {"foreground_voxels": len(body), **told}


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
