"""Stacks, and the labels drawn on them, as sources of volumes."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from radiodata.geometry import axis_codes, ras_transform, reorient
from radiodata.ingest.dicom.masks import masks, own_grid
from radiodata.ingest.dicom.scan import read_bytes
from radiodata.ingest.dicom.voxels import digest, load
from radiodata.ingest.items import Grid, Loaded
from radiodata.ingest.order import c_order
from radiodata.store.verify import HASH_DIGITS

if TYPE_CHECKING:
    from radiodata.ingest.dicom.labels import LabelFile
    from radiodata.ingest.dicom.stacks import Stack


@dataclass(frozen=True, eq=False)
class StackSource:
    """A stack of a series; `uri` is how the store calls it."""

    stack: Stack
    uri: str
    format = "dicom"

    @property
    def where(self) -> str:
        """Its first file, and its series."""
        return f"{self.stack.frames[0][0].source} (series {self.stack.series})"

    def grid(self, orient: str | None) -> Grid:
        """Grid of the stack; its channels are those of its planes, colours not counted."""
        channels, x, y, z = self.stack.shape
        return Grid((x, y, z), channels, self.stack.affine, self.stack.irregular).turned(orient)

    def digest(self) -> str:
        """Hash of its files."""
        return digest(self.stack)

    def load(self, orient: str | None, *, label: bool) -> Loaded:
        """Decode it."""
        return load(self.stack, orient=orient)


@dataclass(frozen=True, eq=False)
class LabelSource:
    """A segmentation or structure set, on the grid of the stack that it is drawn on.

    Attributes
    ----------
    stack
        None of a segmentation whose series is not there: it is put on a grid of its own.
    values
        Of each label that is taken: its number in the file, and its value in the store.
    """

    file: LabelFile
    stack: Stack | None
    values: tuple[tuple[int, int], ...]
    uri: str
    format = "dicom"

    @property
    def where(self) -> str:
        """Its file."""
        return str(self.file.source)

    def grid(self, orient: str | None) -> Grid:
        """Grid of the stack."""
        return self._grid().turned(orient)

    def _grid(self) -> Grid:
        if self.stack is None:
            note = "the series that it segments is not there: it lies on a grid of its own"
            return replace(own_grid(self.file), notes=(note,))
        _, x, y, z = self.stack.shape
        return Grid((x, y, z), 1, self.stack.affine)

    def digest(self) -> str:
        """Hash of its file."""
        return hashlib.sha256(read_bytes(self.file.source)).hexdigest()[:HASH_DIGITS]

    def load(self, orient: str | None, *, label: bool) -> Loaded:
        """Draw it; where labels overlap, the smaller keeps its voxels, and how many there are is told."""
        values, grid = dict(self.values), self._grid()
        drawn = [(number, np.flatnonzero(mask)) for number, mask in masks(self.file, grid, list(values))]
        voxels = np.zeros(grid.shape, np.uint8 if max(values.values(), default=0) < 256 else np.uint16)
        flat, claimed = voxels.reshape(-1), 0
        for number, at in sorted(drawn, key=lambda d: -len(d[1])):
            flat[at] = values[number]
            claimed += len(at)
        overlap = claimed - int(np.count_nonzero(flat))
        channels = voxels[None] if orient is None else reorient(voxels[None], ras_transform(grid.affine))
        told = (f"labels overlap in {overlap} voxels: the smaller keep them",) if overlap else ()
        return Loaded(
            c_order(channels),
            1.0,
            0.0,
            grid.turned(orient).affine,
            source_dtype=self.file.kind.lower(),
            source_orientation=axis_codes(grid.affine),
            source_hash=self.digest(),
            columns={"overlapping_voxels": overlap},
            notes=told,
        )
