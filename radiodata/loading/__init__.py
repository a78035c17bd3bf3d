"""Loading: blocks of tiles become crops, crops samples, samples batches."""

from radiodata.loading.dataset import PatchDataset
from radiodata.loading.handles import HandleLoader, VolumeHandle
from radiodata.loading.loader import PatchLoader
from radiodata.loading.stats import LoaderStats
from radiodata.loading.tables import TableTarget
from radiodata.loading.transforms import KeyedTransform, TorchIO
from radiodata.loading.volumes import VolumeLoader

__all__ = [
    "HandleLoader",
    "KeyedTransform",
    "LoaderStats",
    "PatchDataset",
    "PatchLoader",
    "TableTarget",
    "TorchIO",
    "VolumeHandle",
    "VolumeLoader",
]
