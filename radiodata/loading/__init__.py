"""Loading: blocks of tiles become crops, crops samples, samples batches."""

from radiodata.loading.dataset import PatchDataset
from radiodata.loading.loader import PatchLoader
from radiodata.loading.stats import LoaderStats
from radiodata.loading.tables import TableTarget
from radiodata.loading.transforms import KeyedTransform, TorchIO
from radiodata.loading.volumes import VolumeLoader

__all__ = ["KeyedTransform", "LoaderStats", "PatchDataset", "PatchLoader", "TableTarget", "TorchIO", "VolumeLoader"]
