"""Loading: blocks of tiles become crops, crops samples, samples batches."""

from radiodata.loading.dataset import PatchDataset
from radiodata.loading.loader import PatchLoader
from radiodata.loading.volumes import VolumeLoader

__all__ = ["PatchDataset", "PatchLoader", "VolumeLoader"]
