"""All voxels already in memory: the limit that no reader of files can pass."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from benchmarks.contenders.base import Contender, CropDataset, torch_loader

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from benchmarks.contenders.base import LoaderSpec
    from benchmarks.phantom import Phantoms


class InMemory(Contender):
    def loader(self, phantoms: Phantoms, folder: Path, spec: LoaderSpec) -> Iterable[Any]:
        volumes = [np.load(truth) for truth in phantoms.truths]
        return torch_loader(CropDataset(volumes.__getitem__, phantoms, spec), spec)
