"""Voxels compared with the hash that was recorded of them at ingest."""

from __future__ import annotations

import hashlib
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, replace
from itertools import islice
from typing import TYPE_CHECKING, Any

import numpy as np

from radiodata.errors import ConfigError, Problem, TileReadError
from radiodata.geometry import box
from radiodata.store.obs import strings
from radiodata.store.reader import read_box

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from radiodata._typing import Voxels
    from radiodata.store.cohort import Cohort
    from radiodata.store.config import ReadConfig
    from radiodata.store.obs import VoxelSource


@dataclass(frozen=True)
class Verified:
    """What a check of a cohort found.

    Attributes
    ----------
    checked
        Volumes whose voxels were read.
    problems
        Those that differ from what was ingested, or cannot be read.
    """

    checked: int
    problems: tuple[Problem, ...]


HASH_DIGITS = 32
"""Hexadecimal digits of a SHA-256 that are kept, of voxels and of files: 128 bits."""


def content_hash(voxels: Voxels) -> str:
    """Hash of a volume as it is stored, ``(channel, x, y, z)`` in C order: dtype, shape and voxels."""
    digest = hashlib.sha256()  # processors have instructions for it: two and a half times as fast as BLAKE2
    digest.update(f"{voxels.dtype.str}{voxels.shape}".encode())
    digest.update(np.ascontiguousarray(voxels).data)
    return digest.hexdigest()[:HASH_DIGITS]


def verify(
    cohort: Cohort,
    *,
    collections: Sequence[str] | None = None,
    sample: int | None = None,
    seed: int = 0,
    workers: int = 2,
    progress: Callable[[int, int], None] | None = None,
) -> Verified:
    """Read volumes whole and compare their hashes with those recorded at ingest.

    Parameters
    ----------
    cohort
        The cohort, or a part of it.
    collections
        Which; by default all.
    sample
        Check so many volumes, drawn from all of them; by default every one.
    seed
        Chooses the sample.
    workers
        Threads; each holds one volume in memory.
    progress
        Called with (volumes done, volumes in all).

    Raises
    ------
    ConfigError
        When `sample` or `workers` is not positive.
    ObsNotFoundError
        When there is no such collection.
    """
    if workers < 1 or (sample is not None and sample < 1):
        raise ConfigError(f"verify(sample={sample}, workers={workers}): both must be at least 1")
    chosen = [cohort[name] for name in (collections if collections is not None else cohort.collections)]
    held = [(c.sources(), strings(c.obs["content_hash"]), replace(c.config, threads=1)) for c in chosen]
    places = [(which, at) for which, (sources, _, _) in enumerate(held) for at in range(len(sources))]
    if sample is not None and sample < len(places):
        picked = np.random.default_rng(seed).choice(len(places), sample, replace=False)
        places = [places[i] for i in sorted(picked.tolist())]
    jobs = ((held[which][0][at], held[which][1][at], held[which][2]) for which, at in places)
    problems = []
    for done, problem in enumerate(_checked(jobs, workers), 1):
        problems += [] if problem is None else [problem]
        if progress is not None:
            progress(done, len(places))
    return Verified(len(places), tuple(sorted(problems, key=lambda p: p.where)))


def _checked(jobs: Iterator[tuple[VoxelSource, str, ReadConfig]], workers: int) -> Iterator[Problem | None]:
    """Check in threads; as many volumes wait as threads work."""
    with ThreadPoolExecutor(workers, thread_name_prefix="radiodata-verify") as pool:
        running: set[Future[Problem | None]] = {pool.submit(_check, *job) for job in islice(jobs, workers)}
        while running:
            done, running = wait(running, return_when=FIRST_COMPLETED)
            running |= {pool.submit(_check, *job) for job in islice(jobs, len(done))}
            yield from (future.result() for future in done)


def _check(source: VoxelSource, recorded: str, config: ReadConfig) -> Problem | None:
    whole: Any = box((0, 0, 0), source.size)
    try:
        found = content_hash(read_box(source, whole, config=config))
    except TileReadError as error:
        return Problem(source.obs_id, str(error))
    if found == recorded:
        return None
    return Problem(
        source.obs_id,
        f"its voxels differ from those that were ingested (subject {source.subject!r}, slot {source.slot} of "
        f"{source.uri}): restore that array from a copy, or ingest the subject again into a new cohort",
    )
