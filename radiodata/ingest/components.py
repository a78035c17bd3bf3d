"""Connected components of label volumes: how many lesions there are, how large, and where."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from radiodata._typing import Voxels

MOST = 1_000
"""Components that are kept of a class: the largest."""


def component_columns(labels: Voxels) -> dict[str, list[int]]:
    """Components of each class above 0 of a label volume ``(1, x, y, z)``, 26 neighbours, the largest first.

    Returns
    -------
    dict
        ``component_labels`` and ``component_voxels``, one number each, and ``component_boxes``, six numbers each:
        start and stop along x, y and z.
    """
    from scipy.ndimage import find_objects, label

    volume, classes, sizes = labels[0], list[int](), list[int]()
    boxes: list[int] = []
    for value, around in _classes(volume, find_objects):
        inside = np.ascontiguousarray(volume[around]) == value
        parts, _ = label(inside, np.ones((3, 3, 3), bool))
        counts = np.bincount(parts.ravel())[1:]
        spans = find_objects(parts)
        for part in np.argsort(-counts, kind="stable")[:MOST].tolist():
            classes.append(value)
            sizes.append(int(counts[part]))
            for axis in range(3):
                first = around[axis].start
                boxes += [first + spans[part][axis].start, first + spans[part][axis].stop]
    return {"component_labels": classes, "component_voxels": sizes, "component_boxes": boxes}


def _classes(volume: Voxels, find_objects: Any) -> list[tuple[int, Any]]:
    """Classes above 0, each with a box around its voxels."""
    high = int(volume.max(initial=0))
    if high <= 0:
        return []
    if high < 4096:  # its list has an entry for each number up to the highest
        found = find_objects(volume.astype(np.int32, copy=False), max_label=high)
        return [(value, around) for value, around in enumerate(found, 1) if around is not None]
    made = []
    for value in np.unique(volume[volume > 0]).tolist():
        (around,) = find_objects((volume == value).astype(np.uint8), max_label=1)
        made.append((int(value), around))
    return made
