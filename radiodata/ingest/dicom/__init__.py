"""DICOM: files found, headers read, frames put in order, volumes decoded; needs ``radiodata[dicom]``.

::

    found = read_series("dicom-folder")
    volume = load(found.series[0].stacks[0])      # voxels (channel, x, y, z), affine, RAS+
"""

from radiodata.ingest.dicom.reading import Found, Series, read_series
from radiodata.ingest.dicom.scan import DicomError, Source
from radiodata.ingest.dicom.stacks import Stack
from radiodata.ingest.dicom.voxels import DicomVolume, load

__all__ = ["DicomError", "DicomVolume", "Found", "Series", "Source", "Stack", "load", "read_series"]
