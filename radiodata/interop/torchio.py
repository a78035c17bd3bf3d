"""TorchIO: subjects that read their images from a cohort when they are asked for."""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np

from radiodata.errors import ConfigError
from radiodata.geometry import box
from radiodata.loading.aligned import align
from radiodata.loading.handles import VolumeHandle

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from radiodata._typing import Affine
    from radiodata.loading.aligned import Keys
    from radiodata.loading.tables import TableTarget
    from radiodata.store import Cohort, ReadConfig


def subjects_dataset(
    cohort: Cohort,
    keys: Keys,
    *,
    transform: Callable[[Any], Any] | None = None,
    targets: Mapping[str, str | Mapping[str, Any] | TableTarget] | None = None,
    read: ReadConfig | None = None,
) -> Any:
    """Subjects of a cohort, for ``tio.Queue``, ``tio.GridSampler`` and everything else of TorchIO.

    An image is read, whole, when its data is asked for; its shape and affine are known without. A Queue draws all its
    crops of a volume from one read. (A ``PatchLoader`` reads the tiles of its crops only: see the documentation on
    coming from TorchIO.)

    Parameters
    ----------
    cohort
        The cohort, or a part of it.
    keys
        Name of an image to its collection, or to several whose channels are stacked.
    transform
        Of TorchIO, called on every subject.
    targets
        Name to a column of the tables.
    read
        How TileDB reads.

    Returns
    -------
    torchio.SubjectsDataset
        Each subject has ``obs_subject_id`` and ``obs_id`` beside its images and targets.

    Raises
    ------
    ConfigError, PlanError
        When TorchIO is not installed, or the cohort cannot give what is asked.
    """
    try:
        import torchio
    except ImportError as error:
        raise ConfigError("TorchIO is not installed: pip install 'radiodata[torchio]'") from error
    held = align(cohort, keys, targets=targets)
    config = read or cohort.config
    kinds = {key: cohort[names if isinstance(names, str) else names[0]].kind for key, names in keys.items()}
    subjects = []
    for number, subject in enumerate(held.volumes.subjects):
        fields: dict[str, Any] = {"obs_subject_id": subject, "obs_id": held.obs_ids[number]}
        fields |= {name: values[number] for name, values in held.targets.items()}
        for key, source in held.keys.items():
            sources = [each[number] for each in source.sources]
            pads = source.pads[number].tolist()
            handle = VolumeHandle(sources, source.dtype, pads, held.volumes.tile, config)
            label = kinds[key] == "label"
            fields[key] = _classes()[label](handle.obs_id, reader=Reader(handle, held.affines[number], label))
        subjects.append(torchio.Subject(**fields))
    return torchio.SubjectsDataset(subjects, transform=transform)


class Reader:
    """Reads a volume whole, as TorchIO's ``reader`` of an image."""

    def __init__(self, handle: VolumeHandle, affine: Affine, label: bool) -> None:
        self.handle, self.affine, self.label = handle, np.asarray(affine, np.float64), label

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """``(channel, x, y, z)``."""
        return (len(self.handle.pad), *self.handle.size)

    def __call__(self, _: Any) -> tuple[Any, Affine]:
        """Voxels, ``(channel, x, y, z)``, and affine."""
        import torch

        whole = self.handle.read(box(np.zeros(3, np.int64), np.array(self.handle.size)))
        return torch.from_numpy(whole), self.affine


@lru_cache(maxsize=1)
def _classes() -> Sequence[Any]:
    """TorchIO's classes of images and labels, that know shape and affine of what was not read yet."""
    import torchio

    class Stored:
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **{**kwargs, "verify_path": False})

        @property
        def shape(self) -> tuple[int, int, int, int]:
            return self.reader.shape if not self._loaded else tuple(self.data.shape)  # type: ignore[attr-defined]

        @property
        def affine(self) -> Any:
            return self.reader.affine if not self._loaded else super().affine  # type: ignore[attr-defined, misc]

        @affine.setter
        def affine(self, matrix: Any) -> None:
            self["affine"] = self._parse_affine(matrix)  # type: ignore[index, attr-defined]

        def __reduce__(self) -> Any:
            return _restored, (self.reader, dict(self), self._loaded)  # type: ignore[attr-defined, call-overload]

    class StoredImage(Stored, torchio.ScalarImage):  # type: ignore[misc]
        """A ScalarImage of a cohort."""

    class StoredLabel(Stored, torchio.LabelMap):  # type: ignore[misc]
        """A LabelMap of a cohort."""

    return StoredImage, StoredLabel


def _restored(reader: Reader, fields: dict[str, Any], loaded: bool) -> Any:
    """Make an image in another process."""
    image = _classes()[reader.label](reader.handle.obs_id, reader=reader)
    image.update(fields)
    image._loaded = loaded
    return image
