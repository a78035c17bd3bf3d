"""What a cohort held when it was frozen: a hash that a training run logs, and can demand later."""

from __future__ import annotations

import hashlib
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from radiodata.errors import StateMismatchError
from radiodata.store.obs import OBS_COLUMNS, OBS_ID

if TYPE_CHECKING:
    from radiodata.store.cohort import Cohort

# where a volume lies, and where it came from, is no part of what it is
_ELSEWHERE = {"shard", "slot", "ingest_run", "source_uri"}
_HELD = [c.name for c in OBS_COLUMNS if c.name not in _ELSEWHERE]


@dataclass(frozen=True)
class Manifest:
    """Content of a cohort or of a view of it.

    Attributes
    ----------
    uri, version, time
        Which commit it was taken of, and when that was made.
    subjects, volumes
        How many; volumes by collection.
    hash
        Of ids, voxels (as hashed at ingest), grids, tables and their order; not of where they lie.
    """

    uri: str
    version: int
    time: str
    subjects: int
    volumes: dict[str, int]
    hash: str

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return asdict(self)


def manifest_of(cohort: Cohort) -> Manifest:
    """Manifest of a cohort or view."""
    digest = hashlib.blake2b(digest_size=16)
    _add(digest, "obs_meta", cohort.obs_meta)
    volumes = {}
    for name in cohort.collections:
        collection = cohort[name]
        obs = collection.obs
        _add(digest, f"{name} {collection.kind}", obs[[c for c in obs.columns if c not in _ELSEWHERE]])
        volumes[name] = len(obs)
    record = cohort._snapshot.record
    return Manifest(cohort.uri, record.version, record.time, len(cohort), volumes, digest.hexdigest())


def _add(digest: Any, name: str, frame: pd.DataFrame) -> None:
    """Add a table: the column's name, kind, and every cell with its length."""
    digest.update(f"{name} {len(frame)}\n".encode())
    for column in sorted(map(str, frame.columns)):
        digest.update(f"{column} {frame[column].dtype}\n".encode())
        digest.update(_bytes(frame[column]))
    digest.update(_bytes(pd.Series(frame.index.to_numpy(object), name=OBS_ID)))


def _bytes(column: pd.Series[Any]) -> bytes:
    """Bytes that differ where values do: numbers as they are, with a mask of nulls; others with their lengths."""
    if isinstance(column.dtype, np.dtype) and column.dtype.kind in "iufbM":
        return column.to_numpy().tobytes()
    if isinstance(column.dtype, pd.Int64Dtype | pd.BooleanDtype):
        return column.to_numpy(np.int64, na_value=0).tobytes() + column.isna().to_numpy(bool).tobytes()
    cells = [_cell(cell) for cell in column.to_numpy(object)]
    lengths = np.array([-1 if cell is None else len(cell) for cell in cells], np.int64)
    return lengths.tobytes() + b"".join(cell for cell in cells if cell is not None)


def _cell(cell: Any) -> bytes | None:
    if isinstance(cell, str):
        return cell.encode()
    if isinstance(cell, np.ndarray):
        return cell.tobytes()
    if cell is None or cell is pd.NA or cell is pd.NaT or cell != cell:
        return None
    return str(cell).encode()


def demand_same(found: Manifest, wanted: Manifest | str) -> None:
    """Refuse a cohort that is not what a manifest says.

    Raises
    ------
    StateMismatchError
        When hashes differ; says what else does.
    """
    expected = wanted if isinstance(wanted, str) else wanted.hash
    if found.hash == expected:
        return
    theirs = "" if isinstance(wanted, str) else f", frozen at version {wanted.version} with {_counts(wanted)}"
    raise StateMismatchError(
        f"the cohort at {found.uri} is not the one that was demanded: its hash is {found.hash} (version "
        f"{found.version}, {_counts(found)}), not {expected}{theirs}. Open the version that was frozen, "
        "Cohort(uri, at=...), or train on this one without `demand`."
    )


def _counts(manifest: Manifest) -> str:
    held = ", ".join(f"{n} {name}" for name, n in manifest.volumes.items())
    return f"{manifest.subjects} subjects, {held or 'no volumes'}"
