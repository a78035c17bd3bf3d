"""Random numbers of samples: drawn by key on the CPU, or made from it, voxel by voxel, on any device alike."""

from __future__ import annotations

import hashlib
import math
from typing import TYPE_CHECKING

import numpy as np
import torch

if TYPE_CHECKING:
    from collections.abc import Sequence

_MASK64 = 2**64 - 1


class Draws:
    """Streams of random numbers for the samples of a batch: one for each sample and name.

    Parameters
    ----------
    keys
        Of the samples: what a sample draws depends on its key and the name, and on nothing else in the batch.
    """

    def __init__(self, keys: Sequence[int]) -> None:
        self.keys = list(keys)

    def __len__(self) -> int:
        return len(self.keys)

    def of(self, name: str) -> list[np.random.Generator]:
        """Generators of the samples for one purpose."""
        return [np.random.Generator(np.random.Philox(key=seed)) for seed in self.seeds(name)]

    def seeds(self, name: str) -> list[int]:
        """Numbers of 63 bits, one a sample."""
        return [_seed(key, name) for key in self.keys]

    def chosen(self, name: str, probability: float) -> list[int]:
        """Rows of the samples that something happens to."""
        return [row for row, rng in enumerate(self.of(f"{name}?")) if rng.random() < probability]

    def uniform(self, name: str, bounds: tuple[float, float], *shape: int) -> torch.Tensor:
        """Uniform numbers; float32, shape ``(B, *shape)``, on the CPU."""
        return _stack([rng.uniform(*bounds, shape) for rng in self.of(name)], shape)

    def normal(self, name: str, *shape: int) -> torch.Tensor:
        """Standard normal numbers; float32, shape ``(B, *shape)``, on the CPU."""
        return _stack([rng.standard_normal(shape) for rng in self.of(name)], shape)


def _stack(rows: list[np.ndarray], shape: tuple[int, ...]) -> torch.Tensor:
    return torch.from_numpy(np.asarray(rows, np.float32).reshape(len(rows), *shape))


def _seed(key: int, name: str) -> int:
    words = (key & _MASK64).to_bytes(8, "little") + name.encode()
    return int.from_bytes(hashlib.blake2b(words, digest_size=8).digest(), "little") >> 1


def normals(seed: int, shape: Sequence[int], device: torch.device) -> torch.Tensor:
    """Standard normal numbers that depend on `seed` and place only: the same on any device, but for the last digits.

    A counter is mixed as in SplitMix64 (Steele et al. 2014, doi:10.1145/2714064.2660195) and turned to normal
    numbers by Box and Muller.

    Returns
    -------
    Tensor of float32, of `shape`
    """
    count = math.prod(shape)
    z = (torch.arange(1, count + 1, device=device) * _signed(0x9E3779B97F4A7C15)).add_(seed)
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        z = (z ^ _shifted(z, shift)).mul_(_signed(factor))
    z = z ^ _shifted(z, 31)
    first: torch.Tensor = (_shifted(z, 40) + 1).to(torch.float32).mul_(2.0**-24)  # in (0, 1]
    angle = (z & (2**24 - 1)).to(torch.float32).mul_(2.0**-24 * 2 * math.pi)
    return first.log_().mul_(-2).sqrt_().mul_(angle.cos_()).view(*shape)


def _shifted(z: torch.Tensor, by: int) -> torch.Tensor:
    """Shift 64 bits to the right, filling up with zeros."""
    moved: torch.Tensor = (z >> by) & (2 ** (64 - by) - 1)
    return moved


def _signed(word: int) -> int:
    return word - 2**64 if word >= 2**63 else word
