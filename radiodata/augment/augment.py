"""Augment: random geometry and intensity of a batch, keyed by sample, on the device that the batch is on."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, TypeAlias

import torch

from radiodata.augment import intensity
from radiodata.augment.draws import Draws
from radiodata.augment.spatial import bent, matrices, warp
from radiodata.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

Range: TypeAlias = "tuple[float, float]"
_POINTS = 7
"""Control points of the elastic deformation along each axis."""


@dataclass(frozen=True)
class Augment:
    """Random changes of normalised batches: turned, scaled and bent in one sampling, mirrored, and seven of intensity.

    What a sample draws depends on its ``key`` alone: not on the batch that it is in, nor on the device. Images and
    labels are moved together, images (tri)linearly and labels by the nearest voxel. Intensities are meant to be
    normalised (mean about 0, spread about 1). Kinds, order and sizes are those of nnU-Net's default (Isensee et al.
    2021, doi:10.1038/s41592-020-01008-z, supplementary note 4), but for the elastic deformation, which it has off.

    Parameters
    ----------
    rotation, rotation_p
        Degrees about each axis, drawn from ``-rotation`` to ``rotation``, and probability. Angles are in space, not
        in voxels.
    scale, scale_p
        Range of the factor by which things grow.
    elastic, elastic_p
        Millimetres: spread of the control points of a smooth deformation.
    flips, flip_p
        Axes that are mirrored, each with a probability of `flip_p`.
    noise, noise_p
        Range of the standard deviation of normal noise.
    blur, blur_p
        Range of the sigma of a Gaussian, in voxels; of several channels each is blurred in half of the cases.
    brightness, brightness_p
        Range of a factor.
    contrast, contrast_p
        Range of a stretch about the mean.
    low_resolution, low_resolution_p
        Range of the resolution that is kept.
    gamma, gamma_p, gamma_inverted_p
        Range of the exponent; and of that of the negative image.
    anisotropy
        Where an axis has voxels so many times as long as the shortest, nothing turns or bends across it.

    Raises
    ------
    ConfigError
        When a probability is not from 0 to 1, or a range does not go up.
    """

    rotation: float = 30.0
    rotation_p: float = 0.2
    scale: Range = (0.7, 1.4)
    scale_p: float = 0.2
    elastic: float = 4.0
    elastic_p: float = 0.0
    flips: Sequence[int] = (0, 1, 2)
    flip_p: float = 0.5
    noise: Range = (0.0, 0.1)
    noise_p: float = 0.1
    blur: Range = (0.5, 1.0)
    blur_p: float = 0.2
    brightness: Range = (0.75, 1.25)
    brightness_p: float = 0.15
    contrast: Range = (0.75, 1.25)
    contrast_p: float = 0.15
    low_resolution: Range = (0.5, 1.0)
    low_resolution_p: float = 0.25
    gamma: Range = (0.7, 1.5)
    gamma_p: float = 0.3
    gamma_inverted_p: float = 0.1
    anisotropy: float = 3.0

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if field.name.endswith("_p") and not 0 <= value <= 1:
                raise ConfigError(f"Augment({field.name}={value}): a probability is from 0 to 1")
            if str(field.type) == "Range" and not (len(value) == 2 and 0 <= value[0] <= value[1]):
                raise ConfigError(f"Augment({field.name}={value}): give a range (low, high), from 0")
        if self.rotation < 0 or self.elastic < 0:
            raise ConfigError(f"Augment(rotation={self.rotation}, elastic={self.elastic}): neither may be below 0")
        if self.anisotropy < 1:
            raise ConfigError(f"Augment(anisotropy={self.anisotropy}): a ratio of lengths, from 1")

    def __call__(
        self, batch: Mapping[str, Any], *, images: Sequence[str] = ("image",), labels: Sequence[str] = ("label",)
    ) -> dict[str, Any]:
        """Change a batch.

        Parameters
        ----------
        batch
            ``key`` ``(B,)``, ``spacing`` ``(B, 3)`` in mm and ``affine`` ``(B, 4, 4)`` beside the voxels, as
            ``PatchLoader`` gives them. ``affine`` follows what is turned, scaled and mirrored.
        images
            Keys of images, floating, ``(B, C, x, y, z)`` or ``(B, C, a, b)``.
        labels
            Keys of labels, of any dtype.

        Returns
        -------
        dict
            A new batch; the tensors of the one given are not changed.

        Raises
        ------
        ConfigError
            When the batch has no keys, or an image is not floating.
        """
        images = [name for name in images if name in batch]
        labels = [name for name in labels if name in batch]
        if not images:
            return dict(batch)
        if "key" not in batch:
            raise ConfigError("an augmented batch needs `key`, one number a sample, as PatchLoader gives it")
        if odd := [name for name in images if not batch[name].is_floating_point()]:
            raise ConfigError(f"images {odd} are {batch[odd[0]].dtype}: normalise a batch before it is augmented")
        out, draws = dict(batch), Draws([int(k) for k in batch["key"]])
        with torch.no_grad():
            self._move(out, draws, images, labels)
            for name in images:
                out[name] = self._intensities(out[name], draws, name)
        return out

    def _move(self, batch: dict[str, Any], draws: Draws, images: Sequence[str], labels: Sequence[str]) -> None:
        size = batch[images[0]].shape[2:]
        n = len(size)
        spacing = _spacing(batch, n, len(draws))
        turned, scaled = draws.chosen("rotation", self.rotation_p), draws.chosen("scale", self.scale_p)
        bending = draws.chosen("elastic", self.elastic_p) if self.elastic else []
        flat = spacing > self.anisotropy * spacing.amin(dim=1, keepdim=True)
        limit = math.radians(self.rotation)
        angles = _only(draws.uniform("rotation", (-limit, limit), 3 if n == 3 else 1), turned, 0.0)
        if n == 3:
            angles[flat.any(dim=1, keepdim=True) & ~flat] = 0
        factors = _only(draws.uniform("scale", self.scale), scaled, 1.0)
        matrix = matrices(angles, factors, spacing)
        allowed = torch.tensor([axis in self.flips for axis in range(n)])
        mirrored = (draws.uniform("flip", (0.0, 1.0), 3)[:, :n] < self.flip_p) & allowed
        signs = torch.where(mirrored, -1.0, 1.0)
        matrix[:, :, :n] *= signs[:, None, :]  # the output is mirrored first, on its way to the input
        rows = sorted({*turned, *scaled, *bending})
        bend = self._bend(draws, bending, spacing, flat, size, batch[images[0]].device)
        for names, mode in ((images, "bilinear"), (labels, "nearest")):
            for name in names:
                batch[name] = _moved(batch[name], matrix, signs, rows, bend, mode)
        if "affine" in batch and n == 3:
            batch["affine"] = _affine(batch["affine"], matrix, size)

    def _bend(
        self,
        draws: Draws,
        rows: list[int],
        spacing: torch.Tensor,
        flat: torch.Tensor,
        size: Sequence[int],
        device: torch.device,
    ) -> torch.Tensor | None:
        if not rows:
            return None
        n = len(size)
        sigma = draws.uniform("elastic", (0.0, self.elastic))
        control = draws.normal("control", n, *(_POINTS,) * n) * sigma.view(-1, *(1,) * (n + 1))
        control = torch.where((flat.any(dim=1, keepdim=True) & flat).view(*flat.shape, *(1,) * n), 0.0, control)
        control = _only(control / spacing.view(*spacing.shape, *(1,) * n), rows, 0.0)
        return bent(control.to(device), size)

    def _intensities(self, image: torch.Tensor, draws: Draws, name: str) -> torch.Tensor:
        """Each image key draws for itself."""
        out = image.clone()
        channels = image.shape[1]

        def change(kind: str, p: float, bounds: Range, how: Callable[..., torch.Tensor], **more: Any) -> None:
            rows = draws.chosen(f"{name}.{kind}", p)
            if rows:
                values = draws.uniform(f"{name}.{kind}", bounds)[rows]
                at = torch.tensor(rows, device=image.device)
                out[at] = how(out[at], values, **more)

        seeds, noisy = draws.seeds(f"{name}.noise voxels"), draws.chosen(f"{name}.noise", self.noise_p)
        change("noise", self.noise_p, self.noise, intensity.add_noise, seeds=[seeds[row] for row in noisy])
        if rows := draws.chosen(f"{name}.blur", self.blur_p):
            sigma = draws.uniform(f"{name}.blur", self.blur, channels)[rows]
            sharp = draws.uniform(f"{name}.blur channel", (0.0, 1.0), channels)[rows] < (0.5 if channels > 1 else 0.0)
            at = torch.tensor(rows, device=image.device)
            blurred = intensity.blur(out[at], sigma)
            out[at] = torch.where(intensity.per_sample(sharp, blurred).bool(), out[at], blurred)
        change("brightness", self.brightness_p, self.brightness, intensity.scale_intensity)
        change("contrast", self.contrast_p, self.contrast, intensity.change_contrast)
        change("low resolution", self.low_resolution_p, self.low_resolution, intensity.lower_resolution)
        change("gamma inverted", self.gamma_inverted_p, self.gamma, intensity.change_gamma, invert=True)
        change("gamma", self.gamma_p, self.gamma, intensity.change_gamma)
        return out


def _spacing(batch: Mapping[str, Any], n: int, rows: int) -> torch.Tensor:
    """In mm, on the CPU, ``(B, n)``; slices are taken to have square pixels."""
    if n == 3 and "spacing" in batch:
        return torch.as_tensor(batch["spacing"]).detach().cpu().float()
    return torch.ones(rows, n)


def _only(values: torch.Tensor, rows: list[int], otherwise: float) -> torch.Tensor:
    out = torch.full_like(values, otherwise)
    out[rows] = values[rows]
    return out


def _moved(
    voxels: torch.Tensor,
    matrix: torch.Tensor,
    signs: torch.Tensor,
    rows: list[int],
    bend: torch.Tensor | None,
    mode: Any,
) -> torch.Tensor:
    """Rows that are only mirrored are mirrored exactly; the others are sampled."""
    n = signs.shape[1]
    out = torch.stack(
        [one.flip([axis + 1 for axis in range(n) if sign[axis] < 0]) for one, sign in zip(voxels, signs, strict=True)]
    )
    if rows:
        at = torch.tensor(rows, device=voxels.device)
        floating = voxels[at] if voxels.is_floating_point() else voxels[at].float()
        sampled = warp(floating, matrix[rows], None if bend is None else bend[at], mode=mode)
        out[at] = sampled.to(voxels.dtype)
    return out


def _affine(affine: torch.Tensor, matrix: torch.Tensor, size: Sequence[int]) -> torch.Tensor:
    """Voxel-to-world of the output: through its place in the input."""
    whole = torch.eye(4, dtype=torch.float64).repeat(len(matrix), 1, 1)
    linear = matrix[:, :, :3].double()
    centre = (torch.tensor(list(size), dtype=torch.float64) - 1) / 2
    whole[:, :3, :3] = linear
    whole[:, :3, 3] = centre - (linear @ centre) + matrix[:, :, 3].double()
    return affine @ whole.to(affine)
