"""The demo cohort: phantoms written as NIfTI files and ingested through the ordinary path."""

from __future__ import annotations

import logging
import os
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd
from filelock import FileLock

from radiodata.demo.files import write_demo
from radiodata.errors import CohortNotFoundError
from radiodata.ingest import ingest_niftis
from radiodata.store import Cohort

if TYPE_CHECKING:
    from collections.abc import Callable

SUBJECTS, SIZE = 24, 160
VERSION = 1  # raised when the phantoms change, so that an older demo cohort is not used
log = logging.getLogger("radiodata")


def demo_uri() -> str:
    """Where the embedded demo cohort lies: ``$RADIODATA_DEMO``, else the user's cache folder."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return os.environ.get("RADIODATA_DEMO") or str(cache / "radiodata" / f"demo-{VERSION}")


def make_demo(
    uri: str,
    *,
    subjects: int = SUBJECTS,
    size: int = SIZE,
    seed: int = 0,
    workers: int = 2,
    progress: Callable[[int, int], None] | None = None,
) -> Cohort:
    """Write phantoms as NIfTI files and ingest them into a cohort at `uri`.

    The files lie beside the cohort (``URI-niftis``) where `uri` is a path, else in a temporary folder.

    Parameters
    ----------
    uri
        Where the cohort is to be.
    subjects, size, seed
        As for ``write_demo``.
    workers, progress
        As for ``ingest_niftis``.

    Returns
    -------
    Cohort
        Collections ``CT`` (int16 HU) and ``seg`` (1 liver, 2 spleen, 3 kidneys); age, sex and diagnosis
        in ``obs_meta``.
    """
    with tempfile.TemporaryDirectory() as scratch:
        files = write_demo(
            scratch if "://" in uri else f"{uri.rstrip('/')}-niftis", subjects=subjects, size=size, seed=seed
        )
        ingest_niftis(
            uri,
            {"CT": list(files.images), "seg": list(files.labels)},
            obs_meta=pd.read_csv(files.obs_meta),
            workers=workers,
            progress=progress,
        )
    return Cohort(uri)


def ensure_demo() -> str:
    """Make the embedded demo cohort unless it is there whole, say so, and give its URI.

    Processes that ask at once wait for the one that makes it.
    """
    uri = demo_uri()
    if "://" in uri:
        return _ensure(uri)
    Path(uri).parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{uri}.lock"):
        return _ensure(uri)


def _ensure(uri: str) -> str:
    if _is_whole(uri):
        log.info("using the demo cohort at %s", uri)
        return uri
    log.warning("no data.uri given: making the demo cohort (%d subjects) at %s, once", SUBJECTS, uri)
    make_demo(uri)
    return uri


def _is_whole(uri: str) -> bool:
    try:
        return len(Cohort(uri)) == SUBJECTS
    except CohortNotFoundError:
        return False
