"""Raw .npy files, mapped: no decoding at all, twice the disk of a .nii.gz."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING, Any

import numpy as np

from benchmarks.contenders.base import ArrayContender

if TYPE_CHECKING:
    from pathlib import Path

    from benchmarks.phantom import Phantoms


class Memmap(ArrayContender):
    def store(self, crop: int) -> str:
        return "memmap"

    def prepare(self, phantoms: Phantoms, folder: Path, crop: int) -> None:
        for index, truth in enumerate(phantoms.truths):
            shutil.copyfile(truth, folder / f"{index}.npy")

    def block(self, shape: tuple[int, int, int], crop: int) -> tuple[int, int, int]:
        return (1, 1, 1)

    def open(self, folder: Path, volume: int) -> Any:
        return np.load(folder / f"{volume}.npy", mmap_mode="r")
