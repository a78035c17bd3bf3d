"""What an ingest did, would do, and refused."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from radiodata.geometry import spacing_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from pathlib import Path

    from radiodata.errors import Problem
    from radiodata.ingest.items import Grid, Item, Subject

REFUSED = ["where", "why"]
PLANNED = ["subject", "obs_id", "collection", "kind", "shape", "channels", "spacing", "source", "outcome"]


@dataclass(frozen=True)
class IngestReport:
    """What an ingest did.

    Attributes
    ----------
    added, present
        Subjects that were added, and those that were there whole already. Of a dry run: that would be added.
    refused
        Files and subjects that were not taken, and why.
    notes
        What the user should know of those that were.
    volumes
        One row a volume that was, or of a dry run would be, written: subject, ``obs_id``, collection, kind, shape
        ``(x, y, z)``, channels, spacing in mm, where it comes from, and ``new`` or ``present``. Shapes are of the
        files, before anything is done to them on the way in.
    """

    added: list[str] = field(default_factory=list)
    present: list[str] = field(default_factory=list)
    refused: list[Problem] = field(default_factory=list)
    notes: list[Problem] = field(default_factory=list)
    volumes: pd.DataFrame = field(default_factory=lambda: pd.DataFrame(columns=PLANNED))

    def refusals(self) -> pd.DataFrame:
        """Table of what was refused: where, and why."""
        return pd.DataFrame([(p.where, p.why) for p in self.refused], columns=REFUSED)

    def to_csv(self, path: str | Path) -> None:
        """Write what was refused, and why, as CSV."""
        self.refusals().to_csv(path, index=False)


def planned(
    subjects: Iterable[tuple[Subject, Mapping[str, Grid]]], lacking: Sequence[Subject], kinds: Mapping[str, str]
) -> pd.DataFrame:
    """Table of volumes, ``new`` where they are among those that are `lacking`."""
    new = {item.obs_id for subject in lacking for item in subject.items}
    rows = [
        _row(subject, item, grids[item.obs_id], kinds, "new" if item.obs_id in new else "present")
        for subject, grids in subjects
        for item in subject.items
    ]
    return pd.DataFrame(rows, columns=PLANNED)


def _row(subject: Subject, item: Item, grid: Grid, kinds: Mapping[str, str], outcome: str) -> tuple[Any, ...]:
    spacing = tuple(float(s) for s in np.round(spacing_of(grid.affine), 4))
    kind, where = kinds[item.collection], item.source.where
    return subject.subject, item.obs_id, item.collection, kind, grid.shape, grid.channels, spacing, where, outcome
