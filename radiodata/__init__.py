"""Training data for radiology: read only the tiles you need, in an exact, elastic, resumable order."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

__version__ = "0.1.0"

if TYPE_CHECKING:
    from radiodata.loading import PatchDataset, PatchLoader, VolumeLoader
    from radiodata.sampling import Column, Foreground, Fractions, KFold, Uniform
    from radiodata.store import Cohort, ReadConfig, StoreConfig, Volume, VolumeCollection

_ROOMS = {
    "Cohort": "store",
    "Volume": "store",
    "VolumeCollection": "store",
    "StoreConfig": "store",
    "ReadConfig": "store",
    "PatchDataset": "loading",
    "PatchLoader": "loading",
    "VolumeLoader": "loading",
    "Uniform": "sampling",
    "Foreground": "sampling",
    "Fractions": "sampling",
    "KFold": "sampling",
    "Column": "sampling",
}

__all__ = [
    "Cohort",
    "Column",
    "Foreground",
    "Fractions",
    "KFold",
    "PatchDataset",
    "PatchLoader",
    "ReadConfig",
    "StoreConfig",
    "Uniform",
    "Volume",
    "VolumeCollection",
    "VolumeLoader",
    "__version__",
]


def __getattr__(name: str) -> object:
    """Import a public name from its room on first use, so that ``import radiodata`` stays quick."""
    if name not in _ROOMS:
        raise AttributeError(f"module 'radiodata' has no attribute {name!r}")
    return getattr(import_module(f"radiodata.{_ROOMS[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
