"""Ingestion: from scanners' files to a cohort, exactly."""

from radiodata.ingest.nifti import NiftiError
from radiodata.ingest.pipeline import IngestReport, ingest_niftis

__all__ = ["IngestReport", "NiftiError", "ingest_niftis"]
