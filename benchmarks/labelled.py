"""CT phantoms with a label of two classes each, which is a function of their voxels: what is bright, and bone."""

from __future__ import annotations

import gzip
from typing import TYPE_CHECKING, Any

import numpy as np

from benchmarks.phantom import SPACING_MM, Phantoms, publish

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

BRIGHT_HU, BONE_HU = 150, 500


class Labelled(Phantoms):
    """Phantoms, and their labels as .nii.gz files."""

    @property
    def labels(self) -> list[Path]:
        return [self.folder / f"label-{i:03d}.nii.gz" for i in range(self.count)]

    @property
    def stores(self) -> Path:
        return self.folder / f"stores-labelled-{self.count}"

    @staticmethod
    def label_of(voxels: NDArray[np.int16]) -> NDArray[np.uint8]:
        """Classes of voxels: 1 from 150 HU, 2 from 500."""
        return (voxels >= BRIGHT_HU).astype(np.uint8) + (voxels >= BONE_HU).astype(np.uint8)

    def make(self) -> None:
        """Write the volumes and labels that are not there yet."""
        import nibabel as nib

        super().make()
        for index, path in enumerate(self.labels):
            if not path.exists():
                image = nib.Nifti1Image(self.label_of(self.truth(index)), np.diag([*SPACING_MM, 1.0]))
                image.header.set_xyzt_units("mm")
                publish(path, gzip.compress(image.to_bytes(), compresslevel=6, mtime=0))

    def describe(self) -> dict[str, Any]:
        told = super().describe()
        return {**told, "what": f"{told['what']}; labels from {BRIGHT_HU} and {BONE_HU} HU"}
