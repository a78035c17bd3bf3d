"""Policies: where crops should fall. Each reads metadata and tile statistics, never a voxel."""

from radiodata.sampling.policies.base import CropPolicy, Policy, UnitSettings
from radiodata.sampling.policies.foreground import Balanced, Foreground, MinForeground
from radiodata.sampling.policies.uniform import Uniform, Weighted
from radiodata.sampling.policies.views import Frames, Slices
from radiodata.sampling.policies.whole import Grid, Whole

__all__ = [
    "Balanced",
    "CropPolicy",
    "Foreground",
    "Frames",
    "Grid",
    "MinForeground",
    "Policy",
    "Slices",
    "Uniform",
    "UnitSettings",
    "Weighted",
    "Whole",
]
