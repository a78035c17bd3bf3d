"""What a loader will need of memory, before it starts."""

from __future__ import annotations

import warnings
from dataclasses import asdict, dataclass

from radiodata.loading.machine import memory_available, show_bytes

_SPARE_BATCHES = 2
"""Batches beside those asked for: the one trained on, and one whose memory is on its way back."""


@dataclass(frozen=True)
class Estimate:
    """Bytes that one rank's loader may come to need.

    Attributes
    ----------
    batch_bytes
        Voxels of one batch of this rank.
    cache_bytes
        Crops read ahead or still to be delivered, over all processes: at most what an epoch has.
    making_bytes
        Samples and batches in the making, over all processes; without workers, one ahead and the one trained on, too.
    shared_bytes
        Batches made ahead by workers, in memory shared with them; it is anonymous, not in ``/dev/shm``.
    pinned_bytes
        Batches in page-locked memory.
    available_bytes
        What the machine, or the container's limit, still has; None where that is not known.
    """

    batch_bytes: int
    cache_bytes: int
    making_bytes: int
    shared_bytes: int
    pinned_bytes: int
    available_bytes: int | None

    @property
    def total_bytes(self) -> int:
        """All of it."""
        return self.cache_bytes + self.making_bytes + self.shared_bytes + self.pinned_bytes

    @property
    def fits(self) -> bool:
        """Whether there is that much; also where what there is is not known."""
        return self.available_bytes is None or self.total_bytes <= self.available_bytes

    def to_dict(self) -> dict[str, int | None]:
        """Names and numbers, for a logger."""
        return asdict(self)

    def warn(self) -> None:
        """Warn where it does not fit, with what to lower."""
        if not self.fits:
            warnings.warn(
                f"the loader may need {show_bytes(self.total_bytes)} of memory, and "
                f"{show_bytes(self.available_bytes or 0)} are available:\n{self}\nLower the dataset's cache_bytes, "
                "num_workers, prefetch, batch_size or patch_size.",
                stacklevel=3,
            )

    def __str__(self) -> str:
        rows = [(n.removesuffix("_bytes"), getattr(self, n)) for n in ("cache_bytes", "making_bytes", "shared_bytes")]
        rows += [("pinned", self.pinned_bytes), ("total", self.total_bytes)]
        lines = [f"{name:<12}{show_bytes(n):>10}" for name, n in rows]
        has = "unknown" if self.available_bytes is None else show_bytes(self.available_bytes)
        return "\n".join(
            [*lines, f"{'available':<12}{has:>10}", f"{'one batch':<12}{show_bytes(self.batch_bytes):>10}"]
        )


def estimate(
    *,
    sample_bytes: int,
    samples: int,
    batches: int,
    cache_bytes: int,
    workers: int,
    prefetch: int,
    pin_memory: bool,
) -> Estimate:
    """Add up what a loader of one rank needs.

    Parameters
    ----------
    sample_bytes, samples, batches
        Bytes of a sample, samples of this rank in a batch, and batches in an epoch.
    cache_bytes
        Bound on crops that wait, each process.
    workers, prefetch, pin_memory
        As ``PatchLoader`` takes them.
    """
    batch = sample_bytes * samples
    processes = max(1, workers)
    return Estimate(
        batch_bytes=batch,
        cache_bytes=min(cache_bytes * processes, batch * batches),
        making_bytes=2 * batch * processes + (0 if workers else _SPARE_BATCHES * batch),
        shared_bytes=workers * (prefetch + _SPARE_BATCHES) * batch,
        pinned_bytes=3 * batch if pin_memory else 0,
        available_bytes=memory_available(),
    )
