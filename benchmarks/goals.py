"""What was aimed at, and what the results say of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

    Results = dict[str, dict[str, Any]]


@dataclass(frozen=True)
class Goal:
    """A figure that some result gives, and what it should be.

    Attributes
    ----------
    value
        Gives the figure, or None where what it is made of was not measured.
    least
        Whether it should be at least `wanted`, or at most.
    """

    what: str
    wanted: float
    least: bool
    value: Callable[[Results], float | None]

    def met(self, found: float) -> bool:
        """Whether a figure is what it should be."""
        return found >= self.wanted if self.least else found <= self.wanted


def median(results: Results, name: str, case: str, row: str, metric: str | None = None) -> float | None:
    """Median of a metric of the best row of a case whose name, or family, begins so; of the primary one by default."""
    result = results.get(name)
    if result is None:
        return None
    key = metric or result["primary"]
    found = [
        r["metrics"][key]["median"]
        for r in result["rows"]
        if r["status"] == "ok" and key in r["metrics"] and (r["family"] == row or r["row"].startswith(row))
        if r["case"].startswith(case)
    ]
    best = max if result["higher_is_better"] and metric is None else min
    return best(found, default=None)


def ratio(name: str, case: str, peer: str, ours: str = "radiodata", *, theirs_first: bool = False) -> Any:
    """How many times ours is theirs, or theirs ours."""

    def value(results: Results) -> float | None:
        mine, other = median(results, name, case, ours), median(results, name, case, peer)
        if mine is None or other is None:
            return None
        return other / mine if theirs_first else mine / other

    return value


def of(name: str, case: str, row: str, metric: str | None = None, scale: float = 1.0) -> Any:
    """A metric, scaled."""

    def value(results: Results) -> float | None:
        found = median(results, name, case, row, metric)
        return None if found is None else found * scale

    return value


def _grown(results: Results) -> float | None:
    grew, taken = (median(results, "memory", "", "radiodata, 2 workers", name) for name in ("grew_mb", "above_mb"))
    return None if grew is None or taken is None else grew / taken


_DEFAULT, _FIRST = "radiodata (tile 32, unit 8", "96-cube, batch 4"
_LITTLE, _PATCH = "radiodata (tile 32, unit 4", "radiodata (tile 32)"
_SCALE, _CLOUD = "open, filter, 100,000", "30 ms, 1000 Mbit"
_STORE = "radiodata (tile 32)"
_REAL = "images, 32 voxels"
GOALS = (
    Goal("loader, image: x blosc2 as nnU-Net 2.7", 4, True, ratio("loader", _FIRST, "blosc2 (nnU-Net 2.7", _DEFAULT)),
    Goal("loader, image: x blosc2 as nnU-Net 2.8", 4, True, ratio("loader", _FIRST, "blosc2 (nnU-Net 2.8", _DEFAULT)),
    Goal("loader, image: x RadiObject", 30, True, ratio("loader", _FIRST, "RadiObject", _DEFAULT)),
    Goal("loader, image: x TorchIO Queue", 200, True, ratio("loader", _FIRST, "TorchIO", _DEFAULT)),
    Goal("loader, image: x memmap, 2 workers", 1.2, True, ratio("loader", _FIRST, "memmap (w2)", _DEFAULT)),
    Goal("loader, foreground: x blosc2", 3, True, ratio("foreground", "", "blosc2")),
    Goal("loader, foreground: x nnU-Net's own loader", 3, True, ratio("foreground", "", "nnU-Net")),
    Goal("random 96-cube: x RadiObject", 8, True, ratio("patch", "random 96", "RadiObject", _PATCH, theirs_first=True)),
    Goal("aligned 64-cube: x its bare decode", 1.3, False, ratio("patch", "aligned 64", "bare decode", _PATCH)),
    Goal("decoded bytes a delivered one, default", 1, False, of("loader", _FIRST, _DEFAULT, "decoded_share")),
    Goal("the same, with little overlap", 2.4, False, of("loader", _FIRST, _LITTLE, "decoded_share")),
    Goal("whole volume: of nibabel's time", 0.25, False, ratio("patch", "whole", "nibabel", _PATCH)),
    Goal("whole volume: of RadiObject's time", 0.5, False, ratio("patch", "whole", "RadiObject", _PATCH)),
    Goal("disk, real scans: of the .nii.gz", 0.95, False, of("disk", _REAL, _STORE)),
    Goal("the same, the worst scan", 1.05, False,
         of("disk", _REAL, _STORE, "worst_share")),
    Goal("ingest: x RadiObject", 3, True, ratio("ingest", "NIfTI", "RadiObject", theirs_first=True)),
    Goal("ingest: of inflating and compressing", 1.3, False, ratio("ingest", "NIfTI", "limit")),
    Goal("memory: of MONAI CacheDataset's", 0.05, False, ratio("memory", "", "MONAI")),
    Goal("memory: grown in the soak, of itself", 0.05, False, _grown),
    Goal("S3, 30 ms, 1 Gbit/s: x RadiObject", 50, True, ratio("s3", _CLOUD, "RadiObject", "radiodata, 2 workers")),
    Goal("S3, 30 ms, 1 Gbit/s: share of the line", 0.8, True,
         of("s3", _CLOUD, "radiodata, 2 workers", "bandwidth_share")),
    Goal("100,000 volumes: open and filter, s", 1, False, of("scale", _SCALE, "radiodata", "ms", 1e-3)),
    Goal("100,000 volumes: first batch, s", 2, False, of("scale", "first batch, 100,000", "radiodata", "ms", 1e-3)),
    Goal("100,000 volumes: MB of a worker above torch", 400, False,
         of("scale", "first batch, 2 workers, 100,000", "radiodata", "worker_bytes", 1e-6)),
)  # fmt: skip
