"""Cohorts and collections in a notebook: tables, and a slice through the middle of the first volumes."""

from __future__ import annotations

import base64
import struct
import zlib
from html import escape
from typing import TYPE_CHECKING, Any

import numpy as np

from radiodata.errors import TileReadError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from radiodata.store.cohort import Cohort
    from radiodata.store.collection import VolumeCollection
    from radiodata.store.volume import Volume

_SIDE = 120
_SHOWN = 6
_HUES = np.array(
    [[0, 0, 0], [230, 97, 1], [94, 60, 153], [44, 162, 95], [222, 45, 38], [49, 130, 189], [255, 217, 47]], np.uint8
)


def cohort_html(cohort: Cohort) -> str:
    """HTML of a cohort: what its collections hold, and the first subjects."""
    rows = [_collection_cells(cohort[name]) for name in cohort.collections]
    head = ("collection", "kind", "volumes", "size (voxels)", "spacing (mm)", "dtype")
    meta = cohort.obs_meta.head(_SHOWN).to_html(max_cols=12, border=0)
    more = f"<p>... and {len(cohort) - _SHOWN} more subjects</p>" if len(cohort) > _SHOWN else ""
    title = f"<b>Cohort</b> <code>{escape(cohort.uri)}</code>, version {cohort.version}, {len(cohort)} subjects"
    return f"<div>{title}{_table(head, rows)}{meta}{more}</div>"


def collection_html(collection: VolumeCollection) -> str:
    """HTML of a collection: what it holds, and the middle axial slice of the first volumes."""
    few = collection.head(_SHOWN)
    cards = "".join(_card(volume, collection.kind) for volume in few)
    title = f"<b>{escape(collection.name)}</b> {collection.kind}, {len(collection)} volumes"
    rows = [_collection_cells(collection)] if len(collection) else []
    head = ("collection", "kind", "volumes", "size (voxels)", "spacing (mm)", "dtype")
    return f'<div>{title}{_table(head, rows)}<div style="display:flex;gap:8px;flex-wrap:wrap">{cards}</div></div>'


def _collection_cells(collection: VolumeCollection) -> tuple[str, ...]:
    obs = collection.obs
    size = _spread(obs[["size_x", "size_y", "size_z"]].to_numpy(np.int64))
    spacing = _spread(obs[["spacing_x", "spacing_y", "spacing_z"]].to_numpy(np.float64))
    dtypes = ", ".join(sorted({str(d) for d in obs["dtype"]}))
    return (collection.name, collection.kind, str(len(collection)), size, spacing, dtypes)


def _spread(rows: NDArray[Any]) -> str:
    if not len(rows):
        return "none"
    low, high = rows.min(axis=0), rows.max(axis=0)
    sides = (f"{a:.4g}" if a == b else f"{a:.4g} to {b:.4g}" for a, b in zip(low, high, strict=True))
    return " x ".join(sides)


def _table(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    top = "".join(f"<th>{escape(h)}</th>" for h in head)
    body = "".join("<tr>" + "".join(f"<td>{escape(c)}</td>" for c in row) + "</tr>" for row in rows)
    return f"<table><thead><tr>{top}</tr></thead><tbody>{body}</tbody></table>"


def _card(volume: Volume, kind: str) -> str:
    try:
        picture = f'<img alt="" src="data:image/png;base64,{_thumbnail(volume, kind)}">'
    except TileReadError as error:
        picture = f'<div style="width:{_SIDE}px" title="{escape(str(error))}">cannot be read</div>'
    return f'<div style="text-align:center"><div>{picture}</div><small>{escape(volume.obs_id)}</small></div>'


def _thumbnail(volume: Volume, kind: str) -> str:
    x, y, z = volume.shape[:3]
    step = max(1, -(-max(x, y) // _SIDE))
    plane = volume[::step, ::step, z // 2]
    plane = plane[..., 0] if plane.ndim == 3 else plane
    low, high = volume.obs["value_p005"], volume.obs["value_p995"]
    pixels = _coloured(plane) if kind == "label" else _grey(plane, low, high)
    return base64.b64encode(_png(np.flipud(np.swapaxes(pixels, 0, 1)))).decode()


def _grey(plane: NDArray[Any], low: float, high: float) -> NDArray[np.uint8]:
    scaled = (np.nan_to_num(plane.astype(np.float64)) - low) / max(high - low, 1e-12)
    grey = (np.clip(scaled, 0, 1) * 255).astype(np.uint8)
    return np.repeat(grey[..., None], 3, axis=2)


def _coloured(plane: NDArray[Any]) -> NDArray[np.uint8]:
    known = plane.astype(np.int64)
    return np.where((known > 0)[..., None], _HUES[1 + (known - 1) % (len(_HUES) - 1)], 0).astype(np.uint8)


def _png(pixels: NDArray[np.uint8]) -> bytes:
    """PNG of 8-bit RGB pixels, shape ``(rows, columns, 3)``."""
    rows, columns, _ = pixels.shape
    raw = b"".join(b"\0" + row.tobytes() for row in np.ascontiguousarray(pixels))
    parts = (
        (b"IHDR", struct.pack(">IIBBBBB", columns, rows, 8, 2, 0, 0, 0)),
        (b"IDAT", zlib.compress(raw)),
        (b"IEND", b""),
    )
    made = (struct.pack(">I", len(d)) + n + d + struct.pack(">I", zlib.crc32(n + d)) for n, d in parts)
    return b"\x89PNG\r\n\x1a\n" + b"".join(made)
