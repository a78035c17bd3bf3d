"""A permutation that is computed, not stored: position to item in O(1), for any size and key."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

_ROUNDS = 6
_WORD = 0xFFFFFFFFFFFFFFFF


def mix(values: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Mix 64 bits (the finaliser of SplitMix64, Steele et al. 2014)."""
    z = values + np.uint64(0x9E3779B97F4A7C15)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


def hash_ints(*parts: int) -> int:
    """Hash ints to 63 bits, the same on every machine."""
    z = 0
    for part in parts:  # ``mix``, of one number: an array of one takes ten times as long
        z = (z ^ part & _WORD) + 0x9E3779B97F4A7C15 & _WORD
        z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9 & _WORD
        z = (z ^ z >> 27) * 0x94D049BB133111EB & _WORD
        z ^= z >> 31
    return z >> 1


class Permutation:
    """Pseudo-random bijection of ``range(size)``, keyed.

    A balanced Feistel network over the next even number of bits, walked until it lands inside (Black and
    Rogaway 2002). Memory does not depend on `size`.

    Parameters
    ----------
    size
        Number of items.
    key
        Ints that choose the permutation, such as (seed, epoch).
    """

    def __init__(self, size: int, *key: int) -> None:
        self.size = size
        self._half = np.uint64(max(1, (max(size - 1, 1).bit_length() + 1) // 2))
        self._mask = (np.uint64(1) << self._half) - np.uint64(1)
        self._keys = [np.uint64(hash_ints(*key, r)) for r in range(_ROUNDS)]

    def __call__(self, positions: NDArray[np.int64]) -> NDArray[np.int64]:
        """Items at `positions`, any shape, int64."""
        out = self._encrypt(np.asarray(positions).astype(np.uint64))
        outside = out >= np.uint64(self.size)
        while outside.any():
            out[outside] = self._encrypt(out[outside])
            outside = out >= np.uint64(self.size)
        return out.astype(np.int64)

    def _encrypt(self, values: NDArray[np.uint64]) -> NDArray[np.uint64]:
        left, right = values >> self._half, values & self._mask
        for key in self._keys:
            left, right = right, left ^ (mix(right ^ key) & self._mask)
        return (left << self._half) | right
