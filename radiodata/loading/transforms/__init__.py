"""Transforms of samples, with randomness keyed by sample: the same sample is the same wherever it is made."""

from radiodata.loading.transforms.keyed import KeyedTransform, apply
from radiodata.loading.transforms.seeding import seeded
from radiodata.loading.transforms.torchio import TorchIO

__all__ = ["KeyedTransform", "TorchIO", "apply", "seeded"]
