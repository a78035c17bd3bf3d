"""Windows' predictions put back together into volumes."""

from radiodata.inference.blend import BLENDS, window_weights
from radiodata.inference.rolling import RollingStitcher
from radiodata.inference.sliding import Readable, SlidingWindow, TensorVolume, mirrored
from radiodata.inference.stitch import CoverageError, Stitcher
from radiodata.inference.volumes import VolumeStitcher

__all__ = [
    "BLENDS",
    "CoverageError",
    "Readable",
    "RollingStitcher",
    "SlidingWindow",
    "Stitcher",
    "TensorVolume",
    "VolumeStitcher",
    "mirrored",
    "window_weights",
]
