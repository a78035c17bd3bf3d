"""Windows' predictions put back together into volumes."""

from radiodata.inference.blend import BLENDS, window_weights
from radiodata.inference.stitch import CoverageError, Stitcher
from radiodata.inference.volumes import VolumeStitcher

__all__ = ["BLENDS", "CoverageError", "Stitcher", "VolumeStitcher", "window_weights"]
