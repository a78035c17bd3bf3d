"""What a cohort holds, as plain values; reads tables and file sizes, no voxel."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import tiledb

from radiodata.store import layout
from radiodata.store.context import context

if TYPE_CHECKING:
    from radiodata.store.cohort import Cohort
    from radiodata.store.collection import VolumeCollection


def summarize(cohort: Cohort) -> dict[str, Any]:
    """Summary of a cohort: plain JSON values.

    Returns
    -------
    dict
        ``uri``, ``format``, ``version`` (of the commit), ``subjects``, ``obs_meta`` (column to dtype) and
        ``collections``; of each of these the ``kind``, ``volumes``, range of ``size`` (voxels) and ``spacing`` (mm),
        ``dtypes``, ``tile``, ``classes``, and ``voxel_bytes`` on disk.
    """
    return {
        "uri": cohort.uri,
        "format": layout.FORMAT_VERSION,
        "version": cohort.version,
        "subjects": len(cohort),
        "obs_meta": {str(n): str(t) for n, t in cohort.obs_meta.dtypes.items()},
        "collections": {name: _collection(cohort[name]) for name in cohort.collections},
    }


def _collection(collection: VolumeCollection) -> dict[str, Any]:
    obs = collection.obs
    classes = np.unique(np.concatenate([np.zeros(0, np.int64), *obs["label_values"]]))
    voxels = layout.join(collection.uri, layout.VOXELS)
    vfs = tiledb.VFS(ctx=context(collection.config))
    return {
        "kind": collection.kind,
        "volumes": len(collection),
        "size": _ends(obs[["size_x", "size_y", "size_z"]].to_numpy(np.int64)),
        "spacing": _ends(obs[["spacing_x", "spacing_y", "spacing_z"]].to_numpy(np.float64)),
        "dtypes": sorted({str(d) for d in obs["dtype"]}),
        "tile": list(collection.tile),
        "classes": [int(c) for c in classes],
        "voxel_bytes": int(vfs.dir_size(voxels)) if vfs.is_dir(voxels) else 0,
    }


def _ends(rows: Any) -> list[list[float]]:
    if not len(rows):
        return [[], []]
    return [rows.min(axis=0).tolist(), rows.max(axis=0).tolist()]
