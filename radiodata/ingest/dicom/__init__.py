"""DICOM: files found, headers read, frames put in order, volumes decoded; needs ``radiodata[dicom]``.

::

    ingest_dicom("cohort", "dicom-folder")        # series, segmentations, structure sets; patients hashed

    found = read_series("dicom-folder")
    volume = load(found.series[0].stacks[0])      # voxels (channel, x, y, z), affine, RAS+
"""

from radiodata.ingest.dicom.ingesting import ingest_dicom
from radiodata.ingest.dicom.labels import LabelFile
from radiodata.ingest.dicom.privacy import Privacy, key_file
from radiodata.ingest.dicom.reading import Found, Series, read_series
from radiodata.ingest.dicom.scan import DicomError, Source
from radiodata.ingest.dicom.stacks import Stack
from radiodata.ingest.dicom.voxels import load

__all__ = [
    "DicomError",
    "Found",
    "LabelFile",
    "Privacy",
    "Series",
    "Source",
    "Stack",
    "ingest_dicom",
    "key_file",
    "load",
    "read_series",
]
