"""Transforms over collections, eager and lazy, and the collections they write."""

from radiodata.ingest.transforms import (
    Cast,
    Clip,
    Crop,
    CropForeground,
    CropWorld,
    MonaiTransform,
    Normalize,
    Pad,
    Reorient,
    Resample,
    ResampleTo,
)
from radiodata.pipeline.eager import MappedVolumes
from radiodata.pipeline.lazy import LazyCollection
from radiodata.pipeline.predictions import PredictionWriter
from radiodata.pipeline.write import WriteReport

__all__ = [
    "Cast",
    "Clip",
    "Crop",
    "CropForeground",
    "CropWorld",
    "LazyCollection",
    "MappedVolumes",
    "MonaiTransform",
    "Normalize",
    "Pad",
    "PredictionWriter",
    "Reorient",
    "Resample",
    "ResampleTo",
    "WriteReport",
]
