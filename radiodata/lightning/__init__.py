"""Lightning: the data module, a segmentation module, callbacks."""

from radiodata.lightning.datamodule import RadiologyDataModule
from radiodata.lightning.normalize import Window, window_of
from radiodata.lightning.preview import PredictionPreview
from radiodata.lightning.segmentation import SegmentationModule
from radiodata.lightning.stop import StopOnSignal

__all__ = [
    "PredictionPreview",
    "RadiologyDataModule",
    "SegmentationModule",
    "StopOnSignal",
    "Window",
    "window_of",
]
