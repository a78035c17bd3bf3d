"""Randomness of transforms, keyed by sample: the same sample is the same wherever it is made."""

from __future__ import annotations

import random
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


def apply(transform: Callable[[dict[str, Any]], Any], sample: dict[str, Any], key: int) -> Any:
    """Apply a transform with every source of randomness seeded by `key`.

    MONAI's ``Randomizable`` (and ``Compose``) get their random state; the generators of torch (CPU), numpy
    and Python are seeded for the call and restored after it.
    """
    seed_state = getattr(transform, "set_random_state", None)
    if callable(seed_state):
        seed_state(seed=key % 2**32)
    with seeded(key):
        return transform(sample)


@contextmanager
def seeded(key: int) -> Iterator[None]:
    """Seed torch (CPU), numpy and Python by `key`; restore them on leaving."""
    python, numpy = random.getstate(), np.random.get_state()
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(key)
        np.random.seed(key % 2**32)
        random.seed(key)
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(numpy)
