"""A DataModule with the batches of RadiologyDataModule, made of cubes in noise, without a store."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from lightning.pytorch import LightningDataModule
from torch import Tensor


def volume(number: int, shape: tuple[int, int, int] = (20, 18, 16)) -> tuple[Tensor, Tensor]:
    """Image (1, x, y, z) float32 and label (1, x, y, z) int64 of subject `number`: two cubes in noise."""
    rng = np.random.default_rng(number)
    label = np.zeros((1, *shape), np.int64)
    x, y, z = rng.integers(1, 8, 3)
    label[:, x : x + 7, y : y + 7, z : z + 7] = 1
    if number % 3:  # every third subject has no second class
        label[:, x : x + 3, y : y + 3, z : z + 3] = 2
    image = label + rng.normal(0, 0.2, label.shape)
    return torch.from_numpy(image.astype(np.float32)), torch.from_numpy(label)


def batch(subjects: list[int], padding: list[bool], patch: int | None = None) -> dict[str, Any]:
    images, labels = zip(*(volume(number) for number in subjects), strict=True)
    cut = slice(None) if patch is None else slice(0, patch)
    return {
        "image": torch.stack(images)[:, :, cut, cut, cut],
        "label": torch.stack(labels)[:, :, cut, cut, cut],
        "affine": torch.diag(torch.tensor([1.0, 1.0, 2.0, 1.0], dtype=torch.float64)).expand(len(subjects), 4, 4),
        "obs_subject_id": [f"sub-{number:02d}" for number in subjects],
        "is_padding": torch.tensor(padding),
    }


@dataclass
class Loader:
    """Goes through `batches`; goes on where it was, as PatchLoader does."""

    batches: list[dict[str, Any]]
    at: int = field(default=0)

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        for number in range(self.at, len(self.batches)):
            self.at = (number + 1) % len(self.batches)
            yield self.batches[number]

    def state_dict(self) -> dict[str, int]:
        return {"at": self.at}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.at = state["at"]


class FakeDataModule(LightningDataModule):
    """`patch_size` and the like are taken as RadiologyDataModule takes them, and must come as plain Python."""

    num_classes = 3

    def __init__(self, patch_size: Any = 16, *, steps: int = 3, cases: int = 3, **settings: Any) -> None:
        super().__init__()
        self.patch_size, self.steps, self.cases, self.settings = patch_size, steps, cases, settings
        self.train = Loader([])

    def state_dict(self) -> dict[str, int]:
        return {"at": self.train.at}

    def load_state_dict(self, state_dict: dict[str, int]) -> None:
        self.train.at = state_dict["at"]

    def _mine(self, numbers: list[int]) -> list[tuple[int, bool]]:
        ranks = 1 if self.trainer is None else self.trainer.world_size
        rank = 0 if self.trainer is None else self.trainer.global_rank
        short = -len(numbers) % ranks
        rows = [(number, False) for number in numbers] + [(numbers[0], True)] * short
        return rows[rank::ranks]

    def train_dataloader(self) -> Loader:
        rows = [self._mine([100 + 2 * step, 101 + 2 * step]) for step in range(self.steps)]
        batches = [batch([n for n, _ in row], [p for _, p in row], self.patch_size) for row in rows]
        self.train = Loader(batches, self.train.at)
        return self.train

    def val_dataloader(self) -> Loader:
        return Loader([batch([number], [padding]) for number, padding in self._mine([*range(self.cases)])])

    def predict_dataloader(self) -> Loader:
        return self.val_dataloader()
