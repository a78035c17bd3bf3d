"""PredictionWriter: what a network makes of volumes, as a collection of the cohort beside them."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from radiodata.errors import ConfigError
from radiodata.ingest.nifti import grid_of, header_like, header_of
from radiodata.ingest.volume import Slot
from radiodata.pipeline.saving import derived_id, place_of
from radiodata.pipeline.write import add_made, held_ids, prepare_draft, provenance_of, tidy_run
from radiodata.store import commits, layout
from radiodata.store.context import context
from radiodata.store.loaded import LoadedVolume
from radiodata.store.writing import Batches, Writer, prune

if TYPE_CHECKING:
    from collections.abc import Mapping
    from types import TracebackType
    from typing import Self

    from numpy.typing import NDArray

    from radiodata.pipeline.saving import Made
    from radiodata.store.collection import VolumeCollection
    from radiodata.store.config import StoreConfig, TilingLike
    from radiodata.store.volume import Volume


class PredictionWriter:
    """Writes predictions of the volumes of a collection, as they come; leave it by ``with``.

    They lie on the grid of what they were made of, have its subject, and know in their provenance what made them.
    Several processes may write the same collection at once, each its own volumes. What is written shows in batches, and
    stays where a later volume fails.

    Parameters
    ----------
    source
        The collection that predictions are made of.
    name
        Of the collection that they go to.
    uri
        Of another cohort; by default that of `source`.
    kind
        ``"label"`` for classes, ``"image"`` for values.
    how
        What made them: in the provenance, and demanded again where the collection is there.
    tiling, config
        As of ``LazyCollection.write``; by default the tiles of `source`.

    Attributes
    ----------
    present
        Ids of volumes of `source` whose predictions are there already.
    written
        Ids of predictions that were written.

    Raises
    ------
    ConfigError
        When the collection is there and was made otherwise, or of other voxels.

    Examples
    --------
    >>> with PredictionWriter(cohort.CT, "liver", how={"model": "unet"}) as writer:  # doctest: +SKIP
    ...     writer.write(cohort.CT.iloc[0].obs_id, classes)
    """

    def __init__(
        self,
        source: VolumeCollection,
        name: str,
        *,
        uri: str | None = None,
        kind: str = "label",
        how: Mapping[str, Any] | None = None,
        tiling: TilingLike | None = None,
        config: StoreConfig | None = None,
    ) -> None:
        self._source = source
        self._place = place_of(source, uri, name, kind, tiling, config)
        steps = [f"predict({', '.join(f'{k}={v!r}' for k, v in sorted((how or {}).items()))})"]
        self._provenance = provenance_of(source, steps)
        self.written: list[str] = []
        ctx, place = context(self._place.read), self._place
        there = commits.latest(place.uri, place.read) if layout.check_root(place.uri, ctx) else None
        held = held_ids(there, place, self._provenance, source)
        self.present = frozenset(i for i in source.ids if derived_id(i, place.source, place.name) in held)
        if there is None:
            layout.create_root(place.uri, ctx)

    def __enter__(self) -> Self:
        place = self._place
        with ExitStack() as stack:
            self._writer = stack.enter_context(Writer(place.uri, place.read))
            record = self._writer.commit("create", lambda draft: prepare_draft(draft, place, self._provenance, None))
            self._stack = stack.pop_all()
        self._folder = record.collections[place.name].folder
        self._where = layout.join(place.uri, self._folder)
        self._slot = Slot(place.name, self._where, place.kind, self._writer.run, 0)
        self._batches: Batches[Made] = Batches(self._commit)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._stack:
            self._batches.flush()
            prune(self._writer)
            tidy_run(self._writer, self._where)
            self._writer.clean = kind is not None

    def write(self, obs_id: str, prediction: Any, updates: Mapping[str, Any] | None = None) -> str:
        """Write the prediction of a volume.

        Parameters
        ----------
        obs_id
            Of the volume that it was made of.
        prediction
            ``(x, y, z)``, on the grid of that volume; images also ``(x, y, z, channel)``.
        updates
            Columns of `obs` for it: scores, volumes, whatever was computed.

        Returns
        -------
        str
            Id of the prediction.

        Raises
        ------
        ConfigError
            When it does not have the shape of the volume.
        """
        volume = self._source.loc[obs_id]
        voxels = np.asarray(prediction)
        if tuple(voxels.shape[:3]) != tuple(volume.source.size):
            raise ConfigError(
                f"the prediction of volume {obs_id!r} has shape {voxels.shape}, and the volume {volume.source.size}: "
                "bring it onto the volume's grid first"
            )
        made = LoadedVolume(
            voxels=voxels,
            affine=volume.affine,
            obs_id=obs_id,
            obs_subject_id=volume.obs_subject_id,
            kind=self._place.kind,
            obs=dict(volume.obs),
            updates=dict(updates or {}),
        )
        new = derived_id(obs_id, self._place.source, self._place.name)
        slot = replace(self._slot, index=len(self.written))
        self._batches.add(self._place.save(made, new, slot, _header(volume, voxels)))
        self.written.append(new)
        return new

    def _commit(self, batch: list[Made]) -> None:
        self._writer.commit(
            f"predict {len(batch)} volumes",
            lambda draft: add_made(draft, batch, self._place, self._folder, self._source, self._provenance),
        )


def _header(volume: Volume, prediction: NDArray[Any]) -> bytes:
    """Header of the file that the volume came from, for its prediction: exported, it lies on the same voxels."""
    held = volume.source_header()
    if not held or prediction.ndim > 3 or prediction.dtype.name not in _NIFTI:
        return b""
    grid = grid_of(header_of(held))
    same = any(
        g.shape == volume.source.size and np.array_equal(g.affine, volume.affine) for g in (grid, grid.turned("RAS"))
    )
    return header_like(held, prediction.dtype.name) if same else b""


_NIFTI = ("uint8", "int8", "int16", "uint16", "int32", "uint32", "float32", "float64")
