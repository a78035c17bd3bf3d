"""Ingestion: from scanners' files to a cohort, exactly.

``ingest_dicom`` is in ``radiodata.ingest.dicom``, which needs ``radiodata[dicom]``.
"""

from radiodata.ingest.bids import ingest_bids
from radiodata.ingest.files import NiftiError
from radiodata.ingest.niftis import ingest_niftis
from radiodata.ingest.options import Options
from radiodata.ingest.report import IngestReport
from radiodata.ingest.tables import ingest_table

__all__ = ["IngestReport", "NiftiError", "Options", "ingest_bids", "ingest_niftis", "ingest_table"]
