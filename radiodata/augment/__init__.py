"""Random augmentation of whole batches, on the device that they are on; the same for a sample's key anywhere."""

from radiodata.augment.augment import Augment
from radiodata.augment.spatial import warp

__all__ = ["Augment", "warp"]
