"""Ingestion: from scanners' files to a cohort, exactly."""

from radiodata.ingest.files import NiftiError
from radiodata.ingest.niftis import ingest_niftis
from radiodata.ingest.options import Options
from radiodata.ingest.report import IngestReport

__all__ = ["IngestReport", "NiftiError", "Options", "ingest_niftis"]
