"""Boxes, tile grids and affines: numbers in, numbers out.

Axes are ``(x, y, z)`` everywhere; a box is an int64 array of shape ``(3, 2)``: start and stop per axis.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeAlias

import numpy as np

from radiodata.errors import GeometryError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import ArrayLike, NDArray

    from radiodata._typing import Affine, Box, Voxels

Shape3: TypeAlias = tuple[int, int, int]

RAS_LABELS = (("L", "R"), ("P", "A"), ("I", "S"))


def shape3(value: int | Sequence[int], name: str = "shape") -> Shape3:
    """Make three positive ints of one int or three.

    Raises
    ------
    ValueError
        When it is neither one nor three positive ints.
    """
    values = (value,) * 3 if isinstance(value, int | np.integer) else tuple(value)
    if len(values) != 3 or any(int(v) != v or v < 1 for v in values):
        raise ValueError(f"{name} must be one positive int or three (x, y, z), not {value!r}")
    return (int(values[0]), int(values[1]), int(values[2]))


def box(start: Sequence[int] | NDArray[np.int64], stop: Sequence[int] | NDArray[np.int64]) -> Box:
    """Pair start and stop into a box of shape ``(3, 2)``; many into many, along leading axes of both."""
    both = np.empty((*np.shape(start), 2), np.int64)
    both[..., 0], both[..., 1] = start, stop
    return both


def box_shape(b: Box) -> Shape3:
    """Side lengths of a box, in voxels."""
    side = b[:, 1] - b[:, 0]
    return (int(side[0]), int(side[1]), int(side[2]))


def clip_box(b: Box, shape: Sequence[int]) -> Box:
    """Part of a box that lies inside a volume of `shape`."""
    return np.minimum(np.maximum(b, 0), np.asarray(shape, np.int64)[:, None])


def box_slices(b: Box, origin: Sequence[int] | NDArray[np.int64] = (0, 0, 0)) -> tuple[slice, slice, slice]:
    """Slices of a box relative to `origin`."""
    (x, y, z) = (slice(int(lo - o), int(hi - o)) for (lo, hi), o in zip(b, origin, strict=True))
    return (x, y, z)


def tile_counts(shape: Sequence[int], tile: Sequence[int]) -> Shape3:
    """Number of tiles along each axis of a volume."""
    (x, y, z) = (-(-int(s) // int(t)) for s, t in zip(shape, tile, strict=True))
    return (x, y, z)


def tiles_touched(b: Box, tile: Sequence[int]) -> int:
    """Number of tiles that a read of the box decodes."""
    t = np.asarray(tile, np.int64)
    return int(np.prod((b[:, 1] + t - 1) // t - b[:, 0] // t))


def spacing_of(affine: Affine) -> NDArray[np.float64]:
    """Voxel spacing in mm, the column norms of an affine."""
    norms: NDArray[np.float64] = np.linalg.norm(np.asarray(affine, np.float64)[:3, :3], axis=0)
    return norms


def crop_affine(affine: Affine, start: Sequence[int] | NDArray[np.int64]) -> Affine:
    """Affine of a crop whose voxel 0 lies at `start` of the volume; of many, along further leading axes of both."""
    out = np.array(affine, np.float64)
    out[..., :3, 3] += (out[..., :3, :3] * np.asarray(start, np.float64)[..., None, :]).sum(axis=-1)
    return out


def to_world(affine: Affine, indices: ArrayLike) -> NDArray[np.float64]:
    """World coordinates in mm (RAS+) of voxel indices, shape ``(..., 3)``; voxel centres have whole indices."""
    at, matrix = np.asarray(indices, np.float64), np.asarray(affine, np.float64)
    world: NDArray[np.float64] = at @ matrix[:3, :3].T + matrix[:3, 3]
    return world


def to_voxel(affine: Affine, points: ArrayLike) -> NDArray[np.float64]:
    """Voxel indices, fractional, of world coordinates in mm (RAS+), shape ``(..., 3)``."""
    return to_world(np.linalg.inv(np.asarray(affine, np.float64)), points)


def world_box(affine: Affine, box_mm: ArrayLike, shape: Sequence[int]) -> Box:
    """Smallest box of whole voxels that covers a box in the world, as far as it lies in a volume.

    Parameters
    ----------
    box_mm
        Two ends along each world axis (RAS+, mm), shape ``(3, 2)``, in any order.
    shape
        Of the volume, ``(x, y, z)``.

    Raises
    ------
    GeometryError
        When it is no such box, or does not meet the volume.
    """
    ends = np.asarray(box_mm, np.float64)
    if ends.shape != (3, 2) or not np.isfinite(ends).all():
        raise GeometryError(f"a box in the world is [[x, x], [y, y], [z, z]] in mm, not {np.asarray(box_mm).tolist()}")
    corners = to_voxel(affine, np.stack(np.meshgrid(*ends, indexing="ij"), axis=-1).reshape(-1, 3))
    # a voxel reaches half an index to both sides; what is off by rounding covers no voxel more
    low = np.floor(np.round(corners.min(axis=0) + 0.5, 6)).astype(np.int64)
    high = np.ceil(np.round(corners.max(axis=0) + 0.5, 6)).astype(np.int64)
    inside = clip_box(box(low, np.maximum(high, low + 1)), shape)
    if (inside[:, 1] <= inside[:, 0]).any():
        lowest, highest = to_world(affine, [-0.5] * 3), to_world(affine, np.asarray(shape) - 0.5)
        spans = np.sort(np.stack([lowest, highest], axis=1), axis=1).round(1).tolist()
        raise GeometryError(f"the box {ends.tolist()} mm does not meet the volume, whose corners are {spans} mm")
    return inside


def ras_transform(affine: Affine) -> NDArray[np.int8]:
    """Flips and permutation that bring an affine's axes closest to RAS+.

    Returns
    -------
    ndarray of int8, shape (3, 2)
        Row i: the output axis that input axis i becomes, and +1 or -1 (the convention of
        ``nibabel.orientations``).

    Raises
    ------
    ValueError
        When an axis of the affine has no direction.
    """
    from nibabel.orientations import io_orientation

    ornt = io_orientation(affine)
    if np.isnan(ornt).any():
        raise ValueError(f"the affine has an axis without direction: {np.asarray(affine).tolist()}")
    return np.asarray(ornt, np.int8)


def axis_codes(affine: Affine) -> str:
    """Closest anatomical codes of an affine's axes, such as ``"LPS"``."""
    ornt = ras_transform(affine)
    return "".join(RAS_LABELS[axis][int(flip > 0)] for axis, flip in ornt)


def reorient_affine(affine: Affine, ornt: NDArray[np.int8], shape: Sequence[int]) -> Affine:
    """Affine after `ornt` was applied to an array of `shape`."""
    from nibabel.orientations import inv_ornt_aff

    return np.asarray(affine, np.float64) @ np.asarray(inv_ornt_aff(ornt, tuple(shape)), np.float64)


def reorient(voxels: NDArray[np.generic], ornt: NDArray[np.int8]) -> NDArray[np.generic]:
    """View of `voxels`, shape ``(channel, x, y, z)``, with flips and permutation applied; no copy."""
    flips = tuple(slice(None, None, int(step)) for step in ornt[:, 1])
    order = np.argsort(ornt[:, 0])
    return voxels[(slice(None), *flips)].transpose(0, *(int(a) + 1 for a in order))


def c_order(voxels: Voxels) -> Voxels:
    """Voxels ``(channel, x, y, z)`` in C order, plane by plane: four times as fast as a copy in one go.

    The order of a scanner's files is the reverse, so a plain copy misses the cache with every voxel. Each plane of
    the axis that runs fastest and z is turned in a small buffer, whose rows are padded: rows a power of two apart
    would push each other out of the cache.
    """
    if voxels.flags.c_contiguous:
        return voxels
    out = np.empty(voxels.shape, voxels.dtype)
    steps = [
        (abs(s), axis) for axis, (s, n) in enumerate(zip(voxels.strides, voxels.shape, strict=True)) if axis and n > 1
    ]
    _, fast = min(steps, default=(0, 3))
    if fast == 3:
        out[...] = voxels
        return out
    buffer = np.empty((voxels.shape[3], _ROW + 3), voxels.dtype)
    planes, turned = np.moveaxis(voxels, fast, 2), np.moveaxis(out, fast, 2)
    for at in np.ndindex(planes.shape[:2]):
        for start in range(0, planes.shape[2], _ROW):
            part = planes[at][start : start + _ROW]
            rows = buffer[:, : len(part)]
            rows[...] = part.T
            turned[at][start : start + _ROW] = rows.T
    return out


_ROW = 128
