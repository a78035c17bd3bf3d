"""Radiomics: features of a labelled region, as columns of `obs`; computed by MIRP."""

from __future__ import annotations

import logging
import re
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from radiodata.errors import ConfigError
from radiodata.executors import without_warnings
from radiodata.geometry import crop_affine
from radiodata.store import Cohort

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

_MARGIN = 4
"""Voxels around the region that filters see."""


@dataclass(frozen=True)
class Radiomics:
    """Transform of a pipeline: gives a volume as it is, and features of a region of it as columns.

    Features are MIRP's (Zwanenburg et al. 2024, doi:10.21105/joss.06413), which follows the Image Biomarker
    Standardisation Initiative (Zwanenburg et al. 2020, doi:10.1148/radiol.2020191145). Their names are MIRP's, behind
    `prefix`.

    Parameters
    ----------
    uri
        Of the cohort that the labels are in.
    mask
        Label collection: the subject's volume in it lies on the grid of the image.
    label
        Its value inside the region.
    families
        Of features: ``"statistics"`` (first order), ``"morphology"``, ``"glcm"``, ``"glrlm"`` and others of MIRP.
    bins
        Of intensities, for texture.
    spacing
        Of the voxels that features are computed on, in mm; None: those of the volume.
    wavelet
        A wavelet of PyWavelets, such as ``"coif1"``: the first-order and texture features of all eight of its response
        maps, too. They need voxels as long as wide and high: `spacing`, where those of the volume are not.
    prefix
        Of the columns.

    Raises
    ------
    ConfigError
        When MIRP is not installed, or a number is out of range.

    Examples
    --------
    >>> table = cohort.CT.lazy().map(Radiomics(cohort.uri, "seg")).to_obs(workers=2)  # doctest: +SKIP
    >>> cohort.update_obs("CT", table.filter(like="rad_"))  # doctest: +SKIP
    """

    uri: str
    mask: str
    label: int = 1
    families: tuple[str, ...] = ("statistics", "glcm", "glrlm")
    bins: int = 32
    spacing: float | None = None
    wavelet: str | None = None
    prefix: str = "rad_"

    def __post_init__(self) -> None:
        object.__setattr__(self, "families", tuple(self.families))
        if self.bins < 2 or self.label < 1 or not (self.spacing is None or self.spacing > 0):
            raise ConfigError(
                f"Radiomics(bins={self.bins}, label={self.label}, spacing={self.spacing}): 2 bins or more, a label "
                "from 1, a spacing in mm above 0"
            )
        try:
            import mirp  # noqa: F401
        except ImportError as error:
            raise ConfigError("radiomic features need MIRP: pip install 'radiodata[radiomics]'") from error

    def __call__(self, volume: NDArray[Any], row: Mapping[str, Any]) -> tuple[NDArray[Any], dict[str, Any]]:
        """Give the volume, and its features; only their number of voxels, 0, where the region is empty."""
        labels = Cohort(self.uri)[self.mask].of_subject(str(row["obs_subject_id"]))
        inside = labels.to_numpy() == self.label
        if inside.shape != volume.shape[:3]:
            raise ConfigError(
                f"the label of {row['obs_subject_id']!r} has shape {inside.shape}, its image {volume.shape}"
            )
        sides = np.array([self.spacing or float(row[f"spacing_{axis}"]) for axis in "xyz"])
        if self.wavelet and not np.allclose(sides, sides[0], rtol=1e-3):
            raise ConfigError(
                f"the image of {row['obs_subject_id']!r} has voxels of {' x '.join(f'{side:g}' for side in sides)} mm, "
                "and wavelets need them as long as wide and high: Radiomics(spacing=...)"
            )
        voxels = int(inside.sum())
        if not voxels:
            return volume, {f"{self.prefix}voxels": 0}
        (x0, x1), (y0, y1), (z0, z1) = (_around(inside.any(axis=axes)) for axes in ((1, 2), (0, 2), (0, 1)))
        part = (slice(x0, x1), slice(y0, y1), slice(z0, z1))
        affine = crop_affine(np.asarray(row["affine"], np.float64).reshape(4, 4), np.array([x0, y0, z0]))
        found = self._features(volume[part].astype(np.float32), inside[part].astype(np.uint8), affine)
        return volume, {f"{self.prefix}voxels": voxels, **found}

    def _features(self, image: NDArray[Any], mask: NDArray[Any], affine: NDArray[Any]) -> dict[str, float]:
        import nibabel as nib
        from mirp import extract_features

        logging.getLogger("mirp").setLevel(logging.WARNING)
        with tempfile.TemporaryDirectory() as folder:
            paths = [str(Path(folder) / name) for name in ("image.nii", "mask.nii")]
            for path, voxels in zip(paths, (image, mask), strict=True):
                nib.save(nib.Nifti1Image(voxels, affine), path)  # type: ignore[no-untyped-call]
            with without_warnings():  # of pandas, about MIRP's tables
                table = extract_features(
                    image=paths[0],
                    mask=paths[1],
                    base_feature_families=list(self.families),
                    base_discretisation_method="fixed_bin_number",
                    base_discretisation_n_bins=self.bins,
                    new_spacing=self.spacing,
                    **self._wavelets(),
                )[0]
        row = table.iloc[0]
        names = [str(n) for n in table.columns if not str(n).startswith(("image_", "sample_", "roi_", "mask_"))]
        return {self.prefix + re.sub(r"\W", "_", name): float(row[name]) for name in names if _is_number(row[name])}

    def _wavelets(self) -> Mapping[str, Any]:
        if self.wavelet is None:
            return {}
        return {
            "filter_kernels": "separable_wavelet",
            "separable_wavelet_families": self.wavelet,
            "separable_wavelet_set": "all",
            "response_map_feature_families": [f for f in self.families if f != "morphology"],
            "response_map_discretisation_method": "fixed_bin_number",
            "response_map_discretisation_n_bins": self.bins,
        }


def _around(inside: NDArray[np.bool_]) -> tuple[int, int]:
    places = np.flatnonzero(inside)
    return max(int(places[0]) - _MARGIN, 0), int(places[-1]) + 1 + _MARGIN


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float | np.number) and not isinstance(value, bool)
