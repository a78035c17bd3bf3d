"""HandleLoader: volumes by name, to be read in parts by who is given them; for those too large to be held."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from radiodata.errors import ConfigError
from radiodata.loading.aligned import align
from radiodata.loading.dataset import current_rank, current_world
from radiodata.store.reader import read_box
from radiodata.store.volume import physical

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import NDArray

    from radiodata._typing import Box
    from radiodata.geometry import Shape3
    from radiodata.loading.aligned import AlignedVolumes, Keys
    from radiodata.loading.reading import KeySource
    from radiodata.store import Cohort, ReadConfig
    from radiodata.store.obs import VoxelSource


class VolumeHandle:
    """A volume under one key of a sample, of one collection or of several whose channels are stacked.

    Attributes
    ----------
    obs_id
        Of the first collection's volume.
    size, tile
        Of the volume and of its tiles, in voxels ``(x, y, z)``.
    pad
        Value of what lies outside: one a channel.
    """

    def __init__(
        self, sources: list[VoxelSource], dtype: str, pads: Sequence[float], tile: Shape3, config: ReadConfig
    ) -> None:
        self.obs_id, self.size, self.tile = sources[0].obs_id, sources[0].size, tile
        self.pad = [pad for pad, source in zip(pads, sources, strict=True) for _ in range(source.shape[0])]
        self._sources, self._dtype, self._config = sources, dtype, config

    def read(self, region: Box) -> NDArray[Any]:
        """Physical values of a box inside the volume, ``(channel, x, y, z)``, in the dtype of its crops.

        Raises
        ------
        TileReadError
            When it cannot be read.
        """
        parts = [physical(read_box(s, region, config=self._config), s) for s in self._sources]
        block = parts[0] if len(parts) == 1 else np.concatenate(parts)
        return block.astype(self._dtype, copy=False)


class HandleLoader:
    """Volumes of a cohort, one a batch, as handles: nothing is read until who is given one does.

    A batch has, for each key, a list of one ``VolumeHandle``, and beside them what a sample of ``VolumeLoader`` has:
    ``KEY_stats`` (1, 4), ``affine`` (1, 4, 4), ``spacing`` (1, 3), ``shape`` (1, 3), ``obs_id``, ``obs_subject_id`` and
    ``is_padding``, which is always false: ranks take turns, and the last may have one less.

    Parameters
    ----------
    cohort, keys
        As for ``PatchDataset``.
    rank, world_size
        This process among those that share the work; by default what ``torch.distributed`` says.
    read
        How TileDB reads.

    Raises
    ------
    ConfigError, PlanError
        When the cohort cannot give what is asked.
    """

    def __init__(
        self,
        cohort: Cohort,
        keys: Keys,
        *,
        rank: int | None = None,
        world_size: int | None = None,
        read: ReadConfig | None = None,
    ) -> None:
        self._held: AlignedVolumes = align(cohort, keys)
        self._config = read or replace(cohort.config, threads=1)
        rank = current_rank() if rank is None else rank
        world = current_world() if world_size is None else world_size
        if not 0 <= rank < world:
            raise ConfigError(f"rank {rank} is not among {world} ranks")
        self._volumes = range(rank, len(self._held.obs_ids), world)

    def __len__(self) -> int:
        """Volumes of this rank."""
        return len(self._volumes)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        for volume in self._volumes:
            yield self._batch(volume)

    def _batch(self, volume: int) -> dict[str, Any]:
        held = self._held
        return {
            **{key: [self._handle(source, volume)] for key, source in held.keys.items()},
            **{f"{key}_stats": torch.from_numpy(stats[volume][None].copy()) for key, stats in held.stats.items()},
            "affine": torch.from_numpy(held.affines[volume][None].copy()),
            "spacing": torch.from_numpy(held.spacings[volume][None].copy()),
            "shape": torch.from_numpy(held.volumes.shapes[volume][None].copy()),
            "obs_id": [held.obs_ids[volume]],
            "obs_subject_id": [held.volumes.subjects[volume]],
            "is_padding": torch.tensor([False]),
        }

    def _handle(self, source: KeySource, volume: int) -> VolumeHandle:
        sources = [each[volume] for each in source.sources]
        tile = self._held.volumes.tile
        return VolumeHandle(sources, source.dtype, source.pads[volume].tolist(), tile, self._config)
