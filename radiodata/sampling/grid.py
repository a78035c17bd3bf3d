"""Sliding windows: the starts of patches that cover a volume, counted and found without listing them.

Windows of an axis are spread evenly from border to border (as nnU-Net does) rather than set a fixed step apart
with the last one pushed back (as MONAI does): there are as many of them, but no pair overlaps far more than the
others, so every part of the volume is seen about as often. Where the step divides the way, both rules agree.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, TypeAlias

import numpy as np

from radiodata.errors import ConfigError
from radiodata.geometry import shape3

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from radiodata.geometry import Shape3

Overlap: TypeAlias = float | Sequence[float]


def grid_starts(shape: Sequence[int], patch: int | Sequence[int], overlap: Overlap = 0.5) -> NDArray[np.int64]:
    """Starts of the windows that cover a volume, in C order.

    Parameters
    ----------
    shape
        Of the volume, in voxels ``(x, y, z)``.
    patch
        Of a window, in voxels: one int or three.
    overlap
        Of neighbours at least, one value or one for each axis: a float in ``[0, 1)`` is a share of the patch, an
        int is voxels. Windows are at least one voxel apart, whatever the share.

    Returns
    -------
    ndarray of int64, shape (N, 3)
        First and last window of an axis end at its borders. An axis shorter than the patch has one window,
        centred on it: its start is negative.

    Raises
    ------
    ConfigError
        When `overlap` leaves no step, or a length is not positive.

    Examples
    --------
    >>> grid_starts((10, 4, 3), 4, overlap=0.25).tolist()
    [[0, 0, 0], [3, 0, 0], [6, 0, 0]]
    """
    counts = grid_counts(shape, patch, overlap)
    return grid_start_at(np.arange(np.prod(counts)), shape, patch, overlap)


def grid_counts(
    shape: Sequence[int] | NDArray[np.int64], patch: int | Sequence[int], overlap: Overlap
) -> NDArray[np.int64]:
    """Windows along each axis of one volume or many: as few as the overlap allows.

    Parameters
    ----------
    shape
        Of the volumes, in voxels, shape ``(..., 3)``.
    patch, overlap
        As of ``grid_starts``.

    Returns
    -------
    ndarray of int64, shape (..., 3)
        Their product along the last axis is the number of windows of a volume.
    """
    size = np.asarray(patch_shape(patch), np.int64)
    shapes = _shapes(shape)
    spare = np.maximum(shapes - size, 0)
    counts: NDArray[np.int64] = -(-spare // grid_step(patch, overlap)) + 1
    return counts


def grid_start_at(
    index: int | NDArray[np.int64],
    shape: Sequence[int] | NDArray[np.int64],
    patch: int | Sequence[int],
    overlap: Overlap,
) -> NDArray[np.int64]:
    """Start of window number `index` of ``grid_starts``, without listing the others.

    Parameters
    ----------
    index
        Window numbers, shape ``(...)``; they count from 0 and are taken as they are, without wrapping around.
    shape
        Of each window's volume, shape ``(..., 3)``, or of the one volume ``(3,)``.
    patch, overlap
        As of ``grid_starts``.

    Returns
    -------
    ndarray of int64, shape (..., 3)

    Raises
    ------
    IndexError
        When a volume has fewer windows.
    """
    size, shapes = np.asarray(patch_shape(patch), np.int64), _shapes(shape)
    counts = grid_counts(shapes, patch, overlap)
    numbers = np.asarray(index, np.int64)
    if (outside := (numbers < 0) | (numbers >= counts.prod(axis=-1))).any():
        raise IndexError(f"no window {numbers[outside].ravel()[0]}: see grid_counts for how many a volume has")
    yz, z = counts[..., 1] * counts[..., 2], counts[..., 2]
    at = np.stack([numbers // yz, numbers % yz // z, numbers % z], axis=-1)
    spare, gaps = shapes - size, np.maximum(counts - 1, 1)
    spread = (2 * at * spare + gaps) // (2 * gaps)  # rounded to the nearest voxel
    return np.where(spare < 0, -((-spare) // 2), spread)


def grid_step(patch: int | Sequence[int], overlap: Overlap) -> NDArray[np.int64]:
    """Largest distance between neighbouring windows, in voxels, int64, shape ``(3,)``.

    Raises
    ------
    ConfigError
        When `overlap` is no share in ``[0, 1)`` and no number of voxels below the patch.
    """
    size = patch_shape(patch)
    values = tuple(overlap) if isinstance(overlap, Sequence | np.ndarray) else (overlap,) * 3
    if len(values) != 3:
        raise ConfigError(f"overlap={overlap!r}: give one value or three (x, y, z)")
    return np.array([_axis_step(p, v, overlap) for p, v in zip(size, values, strict=True)], np.int64)


def patch_shape(patch: int | Sequence[int], name: str = "patch") -> Shape3:
    """Three lengths of a window; ``ConfigError`` where they are not positive."""
    try:
        return shape3(patch, name)
    except ValueError as error:
        raise ConfigError(str(error)) from None


def _axis_step(length: int, value: float, given: Overlap) -> int:
    if isinstance(value, int | np.integer):
        if not 0 <= value < length:
            raise ConfigError(
                f"overlap={given!r}: {value} voxels of a patch of {length}; give 0 to {length - 1} voxels as an int, "
                "or a share of the patch as a float"
            )
        return length - int(value)
    if not 0 <= value < 1:
        raise ConfigError(f"overlap={given!r}: {value} is no share in [0, 1); give voxels as an int")
    shared = int(np.ceil(round(length * float(value), 9)))  # 0.55 * 100 is a hair above 55
    return max(1, length - shared)


def _shapes(shape: Sequence[int] | NDArray[np.int64]) -> NDArray[np.int64]:
    shapes = np.asarray(shape, np.int64)
    if shapes.shape[-1:] != (3,) or (shapes < 1).any():
        raise ConfigError(f"volumes need three positive lengths (x, y, z) each, not {np.asarray(shape).tolist()}")
    return shapes
