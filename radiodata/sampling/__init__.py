"""Sampling: policies say where crops should fall, units make reads of them, the plan orders them.

Pure: numbers in, numbers out. Nothing here opens a store or reads a voxel.
"""

from radiodata.sampling.advise import Advice, Costs, advise
from radiodata.sampling.explain import Explanation
from radiodata.sampling.grid import grid_starts
from radiodata.sampling.plan import Plan, Slot
from radiodata.sampling.policies import (
    Balanced,
    Foreground,
    Frames,
    Grid,
    MinForeground,
    Policy,
    Slices,
    Uniform,
    Weighted,
    Whole,
)
from radiodata.sampling.split import Column, Fractions, Frozen, KFold, Split
from radiodata.sampling.units import Unit
from radiodata.sampling.volumes import LabelIndex, Needs, TileIndex, Volumes

__all__ = [
    "Advice",
    "Balanced",
    "Column",
    "Costs",
    "Explanation",
    "Foreground",
    "Fractions",
    "Frames",
    "Frozen",
    "Grid",
    "KFold",
    "LabelIndex",
    "MinForeground",
    "Needs",
    "Plan",
    "Policy",
    "Slices",
    "Slot",
    "Split",
    "TileIndex",
    "Uniform",
    "Unit",
    "Volumes",
    "Weighted",
    "Whole",
    "advise",
    "grid_starts",
]
