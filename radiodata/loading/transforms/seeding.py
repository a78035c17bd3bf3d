"""Streams of random numbers for one op on one sample, and the global state that it runs under."""

from __future__ import annotations

import hashlib
import random
from contextlib import contextmanager
from typing import TYPE_CHECKING

import numpy as np
import torch

if TYPE_CHECKING:
    from collections.abc import Iterator

MASK64 = 2**64 - 1


def op_seed(key: int, *path: int) -> int:
    """Hash a sample's key and an op's place to 63 bits, the same on every machine."""
    words = b"".join((part & MASK64).to_bytes(8, "little") for part in (key, *path))
    return int.from_bytes(hashlib.blake2b(words, digest_size=8).digest(), "little") >> 1


def numpy_generator(seed: int) -> np.random.Generator:
    """NumPy generator of a stream of its own."""
    return np.random.Generator(np.random.Philox(key=seed))


def torch_generator(seed: int) -> torch.Generator:
    """Torch generator (CPU) of a stream of its own."""
    return torch.Generator().manual_seed(seed)


def random_state(seed: int) -> np.random.RandomState:
    """NumPy ``RandomState`` of a stream of its own; made in a tenth of the time of ``RandomState(seed)``."""
    return np.random.RandomState(np.random.Philox(key=seed))


@contextmanager
def seeded(key: int) -> Iterator[None]:
    """Seed the global generators of torch, NumPy and Python by `key`; restore them on leaving."""
    with isolated():
        seed_globals(key)
        yield


@contextmanager
def isolated(*, numpy: bool = True) -> Iterator[None]:
    """Run with one torch thread, and restore the global generators on leaving, also after an error.

    A sum in torch depends on the number of threads that share it, so a mean would differ between a worker process
    (one thread) and the main one. The generators belong to the process: no other thread may draw from them
    meanwhile. CUDA's are included where CUDA is in use already, which is never so in a worker process.

    Parameters
    ----------
    numpy
        Include NumPy's generator, whose state takes most of the time to copy (80 of 110 us).
    """
    threads, python = torch.get_num_threads(), random.getstate()
    legacy = np.random.get_state() if numpy else None
    with torch.random.fork_rng(devices=_cuda_devices()):
        torch.set_num_threads(1)
        try:
            yield
        finally:
            torch.set_num_threads(threads)
            random.setstate(python)
            if legacy is not None:
                np.random.set_state(legacy)


def seed_globals(seed: int, *, numpy: bool = True) -> None:
    """Seed the global generators of torch, Python and, unless told otherwise, NumPy."""
    torch.default_generator.manual_seed(seed)
    if _cuda_devices():
        torch.cuda.manual_seed_all(seed)
    random.seed(seed)
    if numpy:
        np.random.seed([seed & 0xFFFFFFFF, seed >> 32 & 0xFFFFFFFF])


def _cuda_devices() -> list[int]:
    in_use: bool = torch.cuda.is_initialized()  # type: ignore[no-untyped-call]
    return list(range(torch.cuda.device_count())) if in_use else []
