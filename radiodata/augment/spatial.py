"""Turning, scaling, bending and mirroring batches in one sampling of the voxels; two and three axes alike."""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING, Literal

import torch
from torch.nn import functional

if TYPE_CHECKING:
    from collections.abc import Sequence


def warp(
    voxels: torch.Tensor,
    matrix: torch.Tensor,
    displacement: torch.Tensor | None = None,
    *,
    mode: Literal["bilinear", "nearest"] = "bilinear",
) -> torch.Tensor:
    """Sample a batch where an affine map, and a displacement, say.

    Parameters
    ----------
    voxels
        ``(B, C, x, y, z)`` or ``(B, C, x, y)``; floating.
    matrix
        ``(B, n, n + 1)``, float32: from a place in the output to one in the input, in voxels from the centre of the
        grid; the last column is the shift. The convention of ``monai.transforms.Affine``.
    displacement
        ``(B, n, *size)``: added to the place in the input, in voxels.
    mode
        ``"bilinear"`` (trilinear in three axes) or ``"nearest"``.

    Returns
    -------
    Tensor of the shape of `voxels`
        Beyond the border its nearest voxel goes on.
    """
    size = voxels.shape[2:]
    axes = [
        (torch.arange(n, device=voxels.device, dtype=torch.float32) - (n - 1) / 2).view(
            1, *(n if a == b else 1 for b in range(len(size)))
        )
        for a, n in enumerate(size)
    ]
    matrix = matrix.to(voxels.device)
    places = []
    for row, n in enumerate(size):
        terms = matrix[:, row, :, None, None, None] if len(size) == 3 else matrix[:, row, :, None, None]
        place = terms[:, len(size)].expand(-1, *size)
        for column, axis in enumerate(axes):
            place = place + terms[:, column] * axis
        if displacement is not None:
            place = place + displacement[:, row]
        places.append(place / max((n - 1) / 2, 0.5))
    grid = torch.stack(places[::-1], dim=-1)
    return functional.grid_sample(voxels, grid.to(voxels.dtype), mode=mode, padding_mode="border", align_corners=True)


def matrices(rotation: torch.Tensor, scale: torch.Tensor, spacing: torch.Tensor) -> torch.Tensor:
    """Affine maps, output to input in voxels, of turns and scales that are meant in space.

    Parameters
    ----------
    rotation
        Angles in radians about x, y and z, shape ``(B, 3)``; in two axes ``(B, 1)``.
    scale
        ``(B,)``; 2 makes things twice as large.
    spacing
        Of the voxels, in mm, ``(B, n)``: turns keep angles where voxels are no cubes.

    Returns
    -------
    Tensor of float32, shape ``(B, n, n + 1)``
    """
    n = spacing.shape[1]
    turn = torch.eye(n, dtype=torch.float64).repeat(len(rotation), 1, 1)
    planes = ((1, 2), (2, 0), (0, 1)) if n == 3 else ((0, 1),)
    for angle, (a, b) in zip(rotation.double().T, planes, strict=True):
        one = torch.eye(n, dtype=torch.float64).repeat(len(rotation), 1, 1)
        one[:, a, a] = one[:, b, b] = angle.cos()
        one[:, a, b], one[:, b, a] = -angle.sin(), angle.sin()
        turn = turn @ one
    in_voxels = turn * spacing.double()[:, None, :] / spacing.double()[:, :, None]
    linear = in_voxels / scale.double()[:, None, None]
    return torch.cat([linear, torch.zeros(len(rotation), n, 1, dtype=torch.float64)], dim=2).float()


def bent(control: torch.Tensor, size: Sequence[int]) -> torch.Tensor:
    """Smooth displacement from a few control points: a uniform cubic B-spline.

    Parameters
    ----------
    control
        ``(B, n, g, g, g)``, or with one axis less.
    size
        Of the patch in voxels.

    Returns
    -------
    Tensor of shape ``(B, n, *size)``
    """
    out = control
    for axis, length in enumerate(size, start=2):
        basis = _basis(control.shape[axis], length).to(control.device)
        out = torch.movedim(torch.tensordot(out, basis, dims=([axis], [1])), -1, axis)
    return out


@lru_cache(maxsize=32)
def _basis(points: int, length: int) -> torch.Tensor:
    """Weights of control points along an axis, shape ``(length, points)``."""
    at = torch.linspace(1, points - 2, length)
    apart = (at[:, None] - torch.arange(points)).abs()
    near, far = 2 / 3 - apart**2 + apart**3 / 2, (2 - apart).clamp(min=0) ** 3 / 6
    return torch.where(apart < 1, near, far)
