"""What is to be ingested: subjects, their volumes, and what gives the voxels of each."""

from __future__ import annotations

import re
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from radiodata.geometry import ras_transform, reorient_affine

if TYPE_CHECKING:
    from collections.abc import Mapping

    import pandas as pd

    from radiodata._typing import Affine, Voxels
    from radiodata.errors import Problem
    from radiodata.geometry import Shape3


@dataclass(frozen=True)
class Grid:
    """Where the voxels of a volume lie, from its header alone.

    Attributes
    ----------
    shape
        ``(x, y, z)``.
    channels
        1, or the number of time frames or vector components; of complex voxels the real and the imaginary part are a
        channel each, of RGB voxels the three colours.
    affine
        Voxel index to world mm (RAS+).
    notes
        What the user should know of it: a qform that differs from the sform, a gap between slices.
    """

    shape: Shape3
    channels: int
    affine: Affine
    notes: tuple[str, ...] = ()

    def turned(self, orient: str | None) -> Grid:
        """Grid after its axes are turned to the closest RAS+ (`orient` is ``"RAS"``), or as it is (None)."""
        if orient is None:
            return self
        turn = ras_transform(self.affine)
        x, y, z = (self.shape[int(np.flatnonzero(turn[:, 0] == axis)[0])] for axis in range(3))
        return replace(self, shape=(x, y, z), affine=reorient_affine(self.affine, turn, self.shape))


@dataclass(frozen=True)
class Loaded:
    """A volume as it is to be stored, and all that is needed to give its file back.

    Attributes
    ----------
    voxels
        ``(channel, x, y, z)``, C order, stored dtype.
    slope, intercept
        Physical value = stored * slope + intercept; 1 and 0 where the voxels are physical values.
    source_hash
        As ``Source.digest`` gives it.
    header
        The header of a NIfTI file, byte for byte; empty for others.
    columns
        Values of columns of `obs` that the voxels had to be read for; the item names them, too.
    notes
        What the user should know of it.
    """

    voxels: Voxels
    slope: float
    intercept: float
    affine: Affine
    source_dtype: str
    source_orientation: str
    source_hash: str
    header: bytes = b""
    columns: Mapping[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


class Source(Protocol):
    """Where a volume comes from; small, and can be pickled."""

    @property
    def format(self) -> str:
        """``"nifti"`` or ``"dicom"``."""

    @property
    def where(self) -> str:
        """How messages call it: a path."""

    @property
    def uri(self) -> str:
        """How the store calls it; without what identifies a patient."""

    def grid(self, orient: str | None) -> Grid:
        """Read the grid, and no voxel; raises a ``RadiodataError`` where that cannot be."""

    def digest(self) -> str:
        """Hash of the files that it is made of."""

    def load(self, orient: str | None, *, label: bool) -> Loaded:
        """Read the voxels; raises a ``RadiodataError`` where that cannot be."""


@dataclass(frozen=True)
class Item:
    """One volume to be ingested.

    Attributes
    ----------
    alone
        Whether a subject has at most one volume in this collection, so that another file of the subject is a mistake.
    columns
        Columns of `obs`, beside the store's own.
    """

    obs_id: str
    collection: str
    source: Source
    alone: bool = True
    columns: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Subject:
    """A subject and its volumes."""

    subject: str
    items: tuple[Item, ...]


@dataclass(frozen=True)
class Inputs:
    """All that one ingest is given.

    Attributes
    ----------
    kinds
        Collection name to ``"image"`` or ``"label"``.
    subjects
        Those that nothing is wrong with so far.
    problems
        Files and subjects that cannot be taken, and why.
    notes
        What the user should know of those that can.
    table
        Rows for `obs_meta`, indexed by subject.
    aligned
        Whether all volumes of a subject must lie on one grid.
    """

    kinds: dict[str, str]
    subjects: list[Subject]
    problems: list[Problem] = field(default_factory=list)
    notes: list[Problem] = field(default_factory=list)
    table: pd.DataFrame | None = None
    aligned: bool = False


def snake_case(keyword: str) -> str:
    """Name of a column for a keyword of DICOM or BIDS: ``EchoTime`` is ``echo_time``."""
    return re.sub(r"(?<=[a-z])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", "_", keyword).lower()
