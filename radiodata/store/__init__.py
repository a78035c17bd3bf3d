"""The obs store: cohorts, collections, volumes; tables and packed voxel arrays in TileDB."""

from radiodata.store.cohort import Cohort
from radiodata.store.collection import VolumeCollection
from radiodata.store.config import ReadConfig, StoreConfig
from radiodata.store.manifest import Manifest
from radiodata.store.obs import VoxelSource
from radiodata.store.reader import read_box, read_crops
from radiodata.store.verify import Verified, verify
from radiodata.store.volume import Volume

__all__ = [
    "Cohort",
    "Manifest",
    "ReadConfig",
    "StoreConfig",
    "Verified",
    "Volume",
    "VolumeCollection",
    "VoxelSource",
    "read_box",
    "read_crops",
    "verify",
]
