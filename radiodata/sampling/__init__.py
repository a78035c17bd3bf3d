"""Sampling: policies say where crops should fall, units make reads of them, the plan orders them.

Pure: numbers in, numbers out. Nothing here opens a store or reads a voxel.
"""

from radiodata.sampling.plan import Plan, Slot
from radiodata.sampling.policies import Foreground, Policy, Uniform
from radiodata.sampling.split import Column, Fractions, KFold, Split
from radiodata.sampling.units import Unit
from radiodata.sampling.volumes import LabelIndex, Volumes

__all__ = [
    "Column",
    "Foreground",
    "Fractions",
    "KFold",
    "LabelIndex",
    "Plan",
    "Policy",
    "Slot",
    "Split",
    "Uniform",
    "Unit",
    "Volumes",
]
