"""Small volumes for policies, and where their crops should fall: by enumeration of every centre, voxel by voxel."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from radiodata.ingest.statistics import image_statistics, label_statistics
from radiodata.sampling import LabelIndex, Plan, Policy, TileIndex, Volumes

SHAPES = [(12, 9, 7), (8, 11, 5), (3, 10, 9)]
PATCH, TILE = (5, 4, 3), (4, 4, 4)


def label_volumes() -> list[np.ndarray]:
    """Class 1 everywhere, 2 in the first two, 3 as one voxel of the second; the third is smaller than a patch."""
    made = [np.zeros(shape, np.uint8) for shape in SHAPES]
    made[0][0, 0, 0] = 1
    made[0][3:9, 5:7, 2:5] = 2
    made[1][2:7, 3:6, 1:4] = 1
    made[1][5:8, 8:11, 2:5] = 2
    made[1][7, 0, 4] = 3
    made[2][1:3, 6:9, 5:8] = 1
    return made


def image_volumes() -> list[np.ndarray]:
    """Air of -1000 around a body."""
    rng = np.random.default_rng(0)
    made = [np.full(shape, -1000, np.int16) for shape in SHAPES]
    for image in made:
        inside = tuple(slice(0, max(2, n - 2)) for n in image.shape)
        image[inside] = rng.integers(-200, 300, image[inside].shape)
    return made


def map_volumes() -> list[np.ndarray]:
    """Values from 0 that lie mostly in a corner."""
    rng = np.random.default_rng(1)
    return [(rng.random(shape) * np.arange(1, shape[0] + 1)[:, None, None]).astype(np.float32) for shape in SHAPES]


def volumes_of(number: int = 3) -> Volumes:
    """The first volumes, with all that ingestion would tell of them."""
    labels = [label_statistics(v[None], TILE, reservoir=10**6).tiles for v in label_volumes()[:number]]
    columns = [[row[n] for row in labels] for n in ("tile", "label", "voxels", "kept", "points")]
    tissue = [image_statistics(v[None], TILE).tiles["tile_nonair"] for v in image_volumes()[:number]]
    sums = [image_statistics(v[None], TILE).tiles["tile_sum"] for v in map_volumes()[:number]]
    return Volumes(
        tuple("abc"[:number]),
        np.array(SHAPES[:number]),
        TILE,
        labels={"label": LabelIndex.from_columns(*columns)},
        tissue=TileIndex.from_rows(tissue),
        maps={"heat": TileIndex.from_rows(sums, np.array([v.min() for v in map_volumes()[:number]]))},
        columns={"rate": np.array([1.0, 3.0, 0.5][:number])},
        channels=np.array([1, 4, 6][:number]),
        voxel_bytes={"image": 2, "label": 1},
    )


def starts_of(centre: tuple[int, ...], shape: tuple[int, ...]) -> tuple[int, ...]:
    """Start of the crop that is centred on a voxel and clamped into the volume, axis by axis."""
    out = []
    for c, n, p in zip(centre, shape, PATCH, strict=True):
        out.append(min(max(c - p // 2, 0), n - p) if n >= p else -((p - n) // 2))
    return tuple(out)


Truth = dict[tuple[int, tuple[int, ...]], float]
"""Probability of every (volume, start)."""


def truth(
    weight: Callable[[int, tuple[int, ...]], float], allowed: Callable[[int, tuple[int, ...]], bool] | None = None
) -> Truth:
    """Probabilities from the weight of every (volume, centre voxel) and the starts that are allowed.

    Weights of a volume keep their sum when starts are barred: how many crops a volume gives is not the start's
    matter.
    """
    out: Truth = {}
    for v, shape in enumerate(SHAPES):
        found: dict[tuple[int, ...], float] = {}
        for centre in np.ndindex(*shape):
            start = starts_of(centre, shape)
            found[start] = found.get(start, 0.0) + weight(v, centre)
        kept = {s: w for s, w in found.items() if w > 0 and (allowed is None or allowed(v, s))}
        scale = sum(found.values()) / sum(kept.values())
        out.update({(v, s): w * scale for s, w in kept.items()})
    total = sum(out.values())
    return {key: w / total for key, w in out.items()}


def spread(counts: Callable[[int], np.ndarray]) -> Callable[[int, tuple[int, ...]], float]:
    """Share of a crop's real voxels that are of interest, when each tile's are spread evenly over it."""
    densities = []
    for v, shape in enumerate(SHAPES):
        here, dense = counts(v), np.zeros(shape)
        for at in np.ndindex(*(-(-n // t) for n, t in zip(shape, TILE, strict=True))):
            tile = tuple(slice(i * t, i * t + t) for i, t in zip(at, TILE, strict=True))
            dense[tile] = here[tile].mean()
        densities.append(dense)

    def share(v: int, start: tuple[int, ...]) -> float:
        inside = tuple(slice(max(s, 0), s + p) for s, p in zip(start, PATCH, strict=True))
        return float(densities[v][inside].sum() / np.prod(np.minimum(PATCH, SHAPES[v])))

    return share


def drawn(policy: Policy, crops: int, cell_tiles: int, units: int, **settings: object) -> list[list[tuple[int, tuple]]]:
    """(volume, start) of every crop of many units, one list for each place in the unit."""
    per_volume = -(-units // len(SHAPES))
    plan = Plan(
        volumes_of(),
        policy,
        PATCH,
        1,
        crops * per_volume,
        crops,
        cell_tiles,
        seed=11,
        **settings,  # type: ignore[arg-type]
    )
    found = [plan.unit(0, i) for i in range(len(plan.units))]
    return [[(u.volume, tuple(u.starts[c].tolist())) for u in found] for c in range(crops)]


def fits(found: list[tuple[int, tuple]], expected: Truth) -> bool:
    """Chi-square of counts against probabilities, within five standard deviations; rare outcomes are pooled."""
    if not set(found) <= set(expected):
        return False
    keys = list(expected)
    numbers = {key: i for i, key in enumerate(keys)}
    counts = np.bincount([numbers[f] for f in found], minlength=len(keys))
    want = np.array([expected[k] for k in keys]) * len(found)
    likely = want >= 5
    statistic = ((counts[likely] - want[likely]) ** 2 / want[likely]).sum()
    rest = want[~likely].sum()
    if rest >= 5:
        statistic += (counts[~likely].sum() - rest) ** 2 / rest
    freedom = max(int(likely.sum()) - 1, 1)
    return bool(abs(statistic - freedom) < 5 * np.sqrt(2 * freedom))
