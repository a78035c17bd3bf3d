"""Training data for radiology: read only the tiles you need, in an exact, elastic, resumable order."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

__version__ = "0.1.0"

if TYPE_CHECKING:
    from radiodata.inference import (
        Stitcher,
        VolumeStitcher,
    )
    from radiodata.loading import (
        PatchDataset,
        PatchLoader,
        TableTarget,
        TorchIO,
        VolumeLoader,
    )
    from radiodata.sampling import (
        Balanced,
        Column,
        Foreground,
        Fractions,
        Frames,
        Frozen,
        Grid,
        KFold,
        MinForeground,
        Plan,
        Slices,
        Uniform,
        Weighted,
        Whole,
        advise,
    )
    from radiodata.store import (
        Cohort,
        ReadConfig,
        StoreConfig,
        Volume,
        VolumeCollection,
    )

_ROOMS = {
    "Cohort": "store",
    "Volume": "store",
    "VolumeCollection": "store",
    "StoreConfig": "store",
    "ReadConfig": "store",
    "PatchDataset": "loading",
    "PatchLoader": "loading",
    "VolumeLoader": "loading",
    "TableTarget": "loading",
    "TorchIO": "loading",
    "Uniform": "sampling",
    "Foreground": "sampling",
    "Balanced": "sampling",
    "Weighted": "sampling",
    "MinForeground": "sampling",
    "Grid": "sampling",
    "Slices": "sampling",
    "Whole": "sampling",
    "Frames": "sampling",
    "Frozen": "sampling",
    "Plan": "sampling",
    "advise": "sampling",
    "Fractions": "sampling",
    "KFold": "sampling",
    "Column": "sampling",
    "Stitcher": "inference",
    "VolumeStitcher": "inference",
}

__all__ = [
    "Balanced",
    "Cohort",
    "Column",
    "Foreground",
    "Fractions",
    "Frames",
    "Frozen",
    "Grid",
    "KFold",
    "MinForeground",
    "PatchDataset",
    "PatchLoader",
    "Plan",
    "ReadConfig",
    "Slices",
    "Stitcher",
    "StoreConfig",
    "TableTarget",
    "TorchIO",
    "Uniform",
    "Volume",
    "VolumeCollection",
    "VolumeLoader",
    "VolumeStitcher",
    "Weighted",
    "Whole",
    "__version__",
    "advise",
]


def __getattr__(name: str) -> object:
    """Import a public name from its room on first use, so that ``import radiodata`` stays quick."""
    if name not in _ROOMS:
        raise AttributeError(f"module 'radiodata' has no attribute {name!r}")
    return getattr(import_module(f"radiodata.{_ROOMS[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
