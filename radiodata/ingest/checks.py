"""What can be known of volumes before anything is written: that they can be read, and how they lie to each other."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from radiodata.errors import Problem, RadiodataError
from radiodata.geometry import spacing_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from radiodata.ingest.items import Grid, Subject

ALIGNED_MM = 0.05
"""Corners of aligned volumes are at most this far apart, or 1 % of the smallest voxel side if that is more."""


@dataclass(frozen=True)
class Checked:
    """A subject whose headers were read.

    Attributes
    ----------
    grids
        Of its volumes, those that can be read, by ``obs_id``.
    """

    subject: Subject
    grids: dict[str, Grid]
    problems: list[Problem] = field(default_factory=list)
    notes: list[Problem] = field(default_factory=list)


def check_grids(
    subjects: Sequence[Subject], *, aligned: bool, workers: int, orient: str | None = "RAS"
) -> list[Checked]:
    """Read every header; name what cannot be taken, and volumes of one subject that will not align in the store."""
    with ThreadPoolExecutor(max_workers=workers) as pool:
        return list(pool.map(lambda s: _check(s, aligned, orient), subjects))


def _check(subject: Subject, aligned: bool, orient: str | None) -> Checked:
    checked = Checked(subject, {})
    for item in subject.items:
        try:
            grid = checked.grids[item.obs_id] = item.source.grid(orient)
        except RadiodataError as error:
            checked.problems.append(Problem(item.source.where, str(error)))
        else:
            checked.notes.extend(Problem(item.source.where, note) for note in grid.notes)
    held = [item for item in subject.items if item.obs_id in checked.grids]
    for item in held[1:] if aligned else []:
        why = misaligned(checked.grids[held[0].obs_id], checked.grids[item.obs_id])
        if why:
            names = f"{subject.subject} ({held[0].collection}, {item.collection})"
            pair = f"{held[0].source.where} and {item.source.where}"
            checked.problems.append(Problem(names, f"{why}: {pair}"))
    return checked


def misaligned(a: Grid, b: Grid) -> str | None:
    """Say why two grids are not the same, or None."""
    if a.shape != b.shape:
        return f"shapes differ, {a.shape} and {b.shape}"
    corners = np.array([[x, y, z, 1] for x in (0, 1) for y in (0, 1) for z in (0, 1)], np.float64)
    corners[:, :3] *= np.asarray(a.shape, np.float64) - 1
    apart = float(np.linalg.norm(corners @ (a.affine - b.affine).T, axis=1).max())
    if apart > max(ALIGNED_MM, 0.01 * float(spacing_of(a.affine).min())):
        return f"affines place the same voxel up to {apart:.3g} mm apart"
    return None
