"""Stacks: frames of a series that are one volume, in order, with its affine and what is irregular about it."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from radiodata.ingest.dicom.scan import DicomError

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from numpy.typing import NDArray

    from radiodata._typing import Affine
    from radiodata.ingest.dicom.frames import Frame

SAME_MM = 0.01
"""Planes that are closer than this lie at one place; steps between planes may differ by 1 % of the step, or this."""
SAME_ANGLE = 1e-3
LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])


@dataclass(frozen=True, eq=False)
class Stack:
    """One volume.

    Attributes
    ----------
    frames
        ``frames[channel][z]``.
    affine
        Voxel ``(column, row, slice)`` to world mm, RAS+; with shear where the gantry was tilted.
    irregular
        What is not as it should be, in words: gaps, duplicates, unequal steps.
    """

    series: str
    frames: tuple[tuple[Frame, ...], ...]
    affine: Affine
    irregular: tuple[str, ...] = field(default=())

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """``(channel, x, y, z)``."""
        first = self.frames[0][0]
        return len(self.frames), first.shape[1], first.shape[0], len(self.frames[0])

    @property
    def grave(self) -> tuple[str, ...]:
        """What of it makes the geometry doubtful: all but copies, which are left out."""
        return tuple(why for why in self.irregular if not why.startswith("copies"))


def stacks_of(series: str, frames: Iterable[Frame]) -> list[Stack]:
    """Volumes of one series: apart by grid, echo, complex component and stack; repeated places are channels.

    Raises
    ------
    DicomError
        When frames that belong together cannot be put in order.
    """
    groups: list[list[Frame]] = []
    for frame in frames:
        for group in groups:
            if _together(group[0], frame):
                group.append(frame)
                break
        else:
            groups.append([frame])
    return [_stack(series, group) for group in groups]


def _together(a: Frame, b: Frame) -> bool:
    if (a.shape, a.apart, a.axes is None) != (b.shape, b.apart, b.axes is None):
        return False
    if not np.allclose(a.spacing, b.spacing, rtol=1e-3):
        return False
    return a.axes is None or b.axes is None or bool(np.abs(a.axes - b.axes).max() < SAME_ANGLE)


def _stack(series: str, frames: Sequence[Frame]) -> Stack:
    frames, irregular = _without_copies(frames)
    axes, positions = frames[0].axes, [f.position for f in frames if f.position is not None]
    if axes is None or len(positions) < len(frames):
        return _placeless(series, frames, irregular)
    along = np.array(positions) @ np.cross(*axes)
    places: list[list[int]] = []
    for at in np.argsort(along, kind="stable").tolist():
        if places and along[at] - along[places[-1][0]] < SAME_MM:
            places[-1].append(at)
        else:
            places.append([at])
    counts = {len(place) for place in places}
    if len(counts) > 1:
        told = ", ".join(f"{along[p[0]]:.2f} mm: {len(p)}" for p in places[:8])
        raise DicomError(
            f"series {series}: {len(frames)} frames at {len(places)} places do not make whole volumes ({told}): "
            "some are missing, or lie there twice"
        )
    channels = [sorted(place, key=lambda at: frames[at].order) for place in places]
    planes = tuple(tuple(frames[place[c]] for place in channels) for c in range(counts.pop()))
    affine, more = _affine(planes[0], np.array([along[place[0]] for place in places]))
    return Stack(series, planes, affine, (*irregular, *more))


def _without_copies(frames: Sequence[Frame]) -> tuple[list[Frame], list[str]]:
    """Frames, each once: a copy has the UID, place and numbers of the other; anonymous files may share a UID alone."""
    seen: dict[tuple[object, ...], Frame] = {}
    copies = []
    for frame in frames:
        place = None if frame.position is None else tuple(np.round(frame.position, 4))
        key = (frame.uid or str(frame.source), frame.index, frame.tile, place, frame.order)
        if key in seen:
            copies.append(str(frame.source))
        else:
            seen[key] = frame
    return list(seen.values()), [f"copies were left out: {copies[:5]}"] if copies else []


def _placeless(series: str, frames: Sequence[Frame], irregular: list[str]) -> Stack:
    """Frames without positions: in the order of their numbers, one apart; where there are several, this is told."""
    ordered = sorted(frames, key=lambda f: f.order)
    first = ordered[0]
    affine = LPS_TO_RAS @ np.diag([first.spacing[0], first.spacing[1], _step(first), 1.0])
    told = ["it tells no place of its planes: in the order of InstanceNumber"] if len(ordered) > 1 else []
    return Stack(series, (tuple(ordered),), affine, (*irregular, *told))


def _step(frame: Frame) -> float:
    """Distance to a next plane that is not there, mm."""
    return frame.thickness if np.isfinite(frame.thickness) and frame.thickness > 0 else 1.0


def _affine(planes: Sequence[Frame], along: NDArray[np.float64]) -> tuple[Affine, list[str]]:
    first, irregular = planes[0], list[str]()
    axes, places = np.asarray(first.axes), np.array([plane.position for plane in planes], np.float64)
    affine = np.eye(4)
    affine[:3, 0] = axes[0] * first.spacing[0]
    affine[:3, 1] = axes[1] * first.spacing[1]
    affine[:3, 3] = places[0]
    if len(planes) == 1:
        affine[:3, 2] = np.cross(*axes) * _step(first)
        return LPS_TO_RAS @ affine, irregular
    affine[:3, 2] = (places[-1] - places[0]) / (len(planes) - 1)
    steps = np.diff(along)
    least = float(np.median(steps))
    if (np.abs(steps - least) > max(SAME_MM, 0.01 * least)).any():
        irregular.append(f"steps between planes differ: {_told(steps)} mm")
    else:
        line = places[0] + np.arange(len(planes))[:, None] * affine[:3, 2]
        if float(np.linalg.norm(places - line, axis=1).max()) > max(0.1, 0.05 * least):
            irregular.append("its planes do not lie on one line")
    return LPS_TO_RAS @ affine, irregular


def _told(steps: NDArray[np.float64]) -> str:
    counts: dict[float, int] = defaultdict(int)
    for step in np.round(steps, 2).tolist():
        counts[step] += 1
    return ", ".join(f"{step:g} ({n} times)" for step, n in sorted(counts.items()))
