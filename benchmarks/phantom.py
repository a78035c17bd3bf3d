"""A CT phantom that compresses like CT: int16 HU, correlated noise, air, a table, known voxels.

Every volume is a function of (shape, seed) alone. It is written with a diagonal RAS affine, so that readers
which reorient and readers which do not deliver the same voxels in the same order.
"""

from __future__ import annotations

import gzip
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

VERSION = 1
SPACING_MM = (0.78, 0.78, 1.0)
AIR, PADDING, HIGHEST = -1000.0, -1024, 3071
TISSUE_NOISE_HU, AIR_NOISE_HU = 24.0, 14.0


@dataclass(frozen=True)
class Organ:
    """An ellipse in the axial plane, in fractions of the half width, between two fractions of the length."""

    centre: tuple[float, float]
    radii: tuple[float, float]
    extent: tuple[float, float]
    hu: float


BODY = Organ((0.0, -0.05), (0.82, 0.58), (0.0, 1.0), -100.0)  # fat under the skin
ORGANS = (
    Organ((0.0, -0.05), (0.75, 0.51), (0.0, 1.0), 50.0),  # muscle
    Organ((0.28, -0.12), (0.36, 0.30), (0.05, 0.48), 62.0),  # liver
    Organ((-0.42, 0.05), (0.17, 0.15), (0.15, 0.40), 55.0),  # spleen
    Organ((0.37, -0.05), (0.29, 0.37), (0.45, 0.95), -850.0),  # lungs
    Organ((-0.37, -0.05), (0.29, 0.37), (0.45, 0.95), -850.0),
    Organ((-0.08, -0.22), (0.17, 0.16), (0.48, 0.72), 170.0),  # heart, contrast
    Organ((-0.09, 0.16), (0.05, 0.05), (0.0, 0.9), 260.0),  # aorta
    Organ((0.0, 0.30), (0.13, 0.12), (0.0, 1.0), 750.0),  # vertebra: cortex, marrow, canal
    Organ((0.0, 0.29), (0.11, 0.10), (0.0, 1.0), 220.0),
    Organ((0.0, 0.40), (0.04, 0.04), (0.0, 1.0), 30.0),
)
TABLE = (
    Organ((0.0, 0.36), (1.05, 0.42), (0.0, 1.0), 60.0),
    Organ((0.0, 0.36), (1.03, 0.40), (0.0, 1.0), -300.0),
)


@dataclass(frozen=True)
class Phantoms:
    """``count`` volumes of one shape in a folder, as .nii.gz (what a user has) and .npy (the truth)."""

    root: Path
    shape: tuple[int, int, int]
    count: int

    @property
    def folder(self) -> Path:
        return self.root / f"ct-v{VERSION}-{'x'.join(map(str, self.shape))}"

    @property
    def niftis(self) -> list[Path]:
        return [self.folder / f"sub-{i:03d}.nii.gz" for i in range(self.count)]

    @property
    def truths(self) -> list[Path]:
        return [self.folder / f"sub-{i:03d}.npy" for i in range(self.count)]

    def truth(self, volume: int) -> NDArray[np.int16]:
        """Return the voxels of one volume, (x, y, z) int16, mapped from disk."""
        voxels: NDArray[np.int16] = np.load(self.truths[volume], mmap_mode="r")
        return voxels

    @property
    def stores(self) -> Path:
        return self.folder / f"stores-{self.count}"

    def describe(self) -> dict[str, Any]:
        packed = sum(path.stat().st_size for path in self.niftis)
        raw = 2 * self.count * self.shape[0] * self.shape[1] * self.shape[2]
        shape = "x".join(map(str, self.shape))
        return {
            "folder": self.folder.name,
            "volumes": self.count,
            "shape": list(self.shape),
            "dtype": "int16",
            "raw_bytes": raw,
            "source": ".nii.gz",
            "source_bytes": packed,
            "nii_gz_ratio": raw / packed,
            "what": f"{self.count} x {shape} int16, .nii.gz {raw / packed:.2f}:1",
        }

    def make(self) -> None:
        """Write the volumes that are not there yet."""
        self.folder.mkdir(parents=True, exist_ok=True)
        for index, (nifti, truth) in enumerate(zip(self.niftis, self.truths, strict=True)):
            if not (nifti.exists() and truth.exists()):
                _write(phantom(self.shape, index), nifti, truth)


def phantom(shape: tuple[int, int, int], seed: int) -> NDArray[np.int16]:
    """Return one CT volume, (x, y, z) int16 HU, C order, equal for equal arguments."""
    rng = np.random.default_rng([VERSION, seed])
    x, y = (np.linspace(-1, 1, n, dtype=np.float32) for n in shape[:2])
    wobble = rng.uniform(-0.03, 0.03, size=(len(ORGANS), 2))
    noise = _correlated_noise(rng, (shape[1], shape[0]))
    slices = [_slice(x[None, :], y[:, None], z / shape[2], wobble, next(noise)) for z in range(shape[2])]
    return np.ascontiguousarray(np.stack(slices).transpose(2, 1, 0))


def find(crop: NDArray[np.generic], volumes: Sequence[NDArray[np.int16]]) -> tuple[int, tuple[int, int, int]] | None:
    """Return (volume, start) of the place whose voxels equal ``crop``, or None where there is none.

    Nobody's word is taken for the position of a crop: its brightest voxel is looked up in every volume and
    each candidate compared whole.
    """
    probe = np.unravel_index(int(np.argmax(crop)), crop.shape)
    for index, volume in enumerate(volumes):
        room = tuple(slice(p, n - c + p + 1) for p, n, c in zip(probe, volume.shape, crop.shape, strict=True))
        for start in np.argwhere(np.asarray(volume[room]) == crop[probe]):
            box = tuple(slice(s, s + c) for s, c in zip(start, crop.shape, strict=True))
            if volume[box][0, 0, 0] == crop[0, 0, 0] and np.array_equal(volume[box], crop):
                return index, (int(start[0]), int(start[1]), int(start[2]))
    return None


def _slice(
    x: NDArray[np.float32],
    y: NDArray[np.float32],
    z: float,
    wobble: NDArray[np.float64],
    noise: NDArray[np.float32],
) -> NDArray[np.int16]:
    hu = np.full(np.broadcast_shapes(x.shape, y.shape), AIR, np.float32)
    for part in TABLE:
        hu[(_distance(part, x, y) < 1) & (y > 0.62)] = part.hu
    for part, shift in zip((BODY, *ORGANS), ((0.0, 0.0), *wobble), strict=True):
        if part.extent[0] <= z < part.extent[1]:
            hu[_distance(part, x - np.float32(shift[0]), y - np.float32(shift[1])) < _taper(part, z)] = part.hu
    in_lung = hu < -500
    hu[(np.sin(31 * x + 9 * z) * np.sin(29 * y - 11 * z) > 0.93) & in_lung & (hu > -900)] = 35.0  # vessels
    hu += 8 * np.sin(5 * x + 2 * y + 4 * z) * ~in_lung
    hu += noise * np.where(in_lung, AIR_NOISE_HU, TISSUE_NOISE_HU)
    hu[x * x + y * y > 1] = PADDING  # outside the reconstructed field of view
    return np.clip(np.rint(hu), PADDING, HIGHEST).astype(np.int16)


def _distance(part: Organ, x: NDArray[np.float32], y: NDArray[np.float32]) -> NDArray[np.float32]:
    return ((x - part.centre[0]) / part.radii[0]) ** 2 + ((y - part.centre[1]) / part.radii[1]) ** 2


def _taper(part: Organ, z: float) -> float:
    low, high = part.extent
    return 1.0 if (low, high) == (0.0, 1.0) else float(np.sin(np.pi * (z - low) / (high - low)) ** 0.5)


def _correlated_noise(rng: np.random.Generator, shape: tuple[int, int]) -> Iterator[NDArray[np.float32]]:
    """Yield slices of unit variance, correlated in the plane (binomial 1 2 1) and along z (0.4)."""
    last = _smooth(rng.standard_normal(shape, np.float32))
    while True:
        yield last
        last = 0.4 * last + np.float32(0.84**0.5) * _smooth(rng.standard_normal(shape, np.float32))


def _smooth(white: NDArray[np.float32]) -> NDArray[np.float32]:
    for axis in (0, 1):
        white = (np.roll(white, 1, axis) + 2 * white + np.roll(white, -1, axis)) / np.float32(6**0.5)
    return white


def _write(voxels: NDArray[np.int16], nifti: Path, truth: Path) -> None:
    import nibabel as nib

    image = nib.Nifti1Image(voxels, np.diag([*SPACING_MM, 1.0]))
    image.header.set_xyzt_units("mm")
    publish(nifti, gzip.compress(image.to_bytes(), compresslevel=6, mtime=0))
    partial = truth.with_suffix(".partial.npy")
    np.save(partial, voxels)
    partial.replace(truth)


def publish(path: Path, data: bytes) -> None:
    """Write a file whole or not at all."""
    partial = path.with_suffix(".partial")
    partial.write_bytes(data)
    partial.replace(path)
