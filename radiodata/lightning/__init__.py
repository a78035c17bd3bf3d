"""Lightning: the data module, modules for common tasks, callbacks."""

from radiodata.lightning.classification import ClassificationModule
from radiodata.lightning.datamodule import RadiologyDataModule
from radiodata.lightning.frozen import FrozenCohort
from radiodata.lightning.masked import MaskedVolumeModule
from radiodata.lightning.normalize import Window, window_of
from radiodata.lightning.optim import warmup_cosine
from radiodata.lightning.predict import PredictToStore
from radiodata.lightning.preview import PredictionPreview
from radiodata.lightning.quiet import quiet
from radiodata.lightning.samples import SamplePreview
from radiodata.lightning.segmentation import SegmentationModule
from radiodata.lightning.slices import SliceSegmentationModule
from radiodata.lightning.stop import StopOnSignal
from radiodata.lightning.throughput import DataThroughput

__all__ = [
    "ClassificationModule",
    "DataThroughput",
    "FrozenCohort",
    "MaskedVolumeModule",
    "PredictToStore",
    "PredictionPreview",
    "RadiologyDataModule",
    "SamplePreview",
    "SegmentationModule",
    "SliceSegmentationModule",
    "StopOnSignal",
    "Window",
    "quiet",
    "warmup_cosine",
    "window_of",
]
