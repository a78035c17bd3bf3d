"""nibabel on the .nii.gz files, as they are."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from benchmarks.contenders.base import Contender

if TYPE_CHECKING:
    from pathlib import Path

    from benchmarks.contenders.base import Box, Reader
    from benchmarks.phantom import Phantoms


class Nibabel(Contender):
    requires = ("nibabel",)

    def reader(self, phantoms: Phantoms, folder: Path, crop: int) -> Reader:
        import nibabel as nib

        def read(box: Box) -> Any:
            return np.ascontiguousarray(nib.load(phantoms.niftis[0]).dataobj[box])

        return read
