"""A CT-like abdomen drawn from random numbers: three labelled organs among look-alikes.

The body is painted in patient coordinates (mm, RAS+), back to front, as a table of ellipsoids under
one smooth random warp. Liver, spleen and kidneys share their intensities with muscle, stomach and
bowel, so that a threshold finds none of them: a model has to use position and surroundings.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, TypeAlias

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

ORGANS: dict[str, int] = {"liver": 1, "spleen": 2, "kidneys": 3}
"""Label values of `Phantom.label`; 0 is background."""

MIN_SIZE = 24
"""Smallest in-plane size, in voxels, at which every organ still shows."""

Sex: TypeAlias = Literal["F", "M"]
Diagnosis: TypeAlias = Literal["healthy", "hepatomegaly", "splenomegaly"]
Triple: TypeAlias = tuple[float, float, float]
Floats: TypeAlias = "NDArray[np.float32]"
Mask: TypeAlias = "NDArray[np.bool_]"

_FAT, _MUSCLE = -100.0, 52.0
_NOISE_SD = 20.0
_TUBE = 1e4  # a radius (mm) far beyond the field of view
_CAVITY = (128.0, 87.0)  # half axes (mm) of the abdominal cavity in the reference body
_WALL = 1.1  # outer edge of the muscle wall, in units of the cavity


@dataclass(frozen=True)
class Phantom:
    """One made-up abdominal CT, its labels and its subject.

    Attributes
    ----------
    image : ndarray of int16, shape (x, y, z)
        Hounsfield units, axes in RAS+ order.
    label : ndarray of uint8, shape (x, y, z)
        0 background, 1 liver, 2 spleen, 3 kidneys (left and right); see `ORGANS`.
    spacing : ndarray of float64, shape (3,)
        Voxel size in mm.
    affine : ndarray of float64, shape (4, 4)
        Voxel index to patient coordinates in mm, RAS+; oblique in about a third of the subjects.
    age : int
        Years. Older subjects have smaller kidneys and more often hepatomegaly.
    sex : {"F", "M"}
        Men are larger and have less fat under the skin.
    diagnosis : {"healthy", "hepatomegaly", "splenomegaly"}
        Hepatomegaly enlarges the liver, splenomegaly the spleen.
    """

    image: NDArray[np.int16]
    label: NDArray[np.uint8]
    spacing: NDArray[np.float64]
    affine: NDArray[np.float64]
    age: int
    sex: Sex
    diagnosis: Diagnosis


class _Blob(NamedTuple):
    """An ellipsoid of the reference body: centre and radii in mm, intensity in HU."""

    centre: Triple
    radii: Triple
    hu: float
    organ: str = ""


_VESSELS_AND_MUSCLES = (
    _Blob((38, -58, -95), (19, 19, 95), _MUSCLE),  # psoas, right
    _Blob((-38, -58, -95), (19, 19, 95), _MUSCLE),  # psoas, left
    _Blob((34, -88, 0), (28, 15, _TUBE), _MUSCLE),  # erector spinae, right
    _Blob((-34, -88, 0), (28, 15, _TUBE), _MUSCLE),  # erector spinae, left
    _Blob((-10, -34, 0), (10, 10, _TUBE), 50),  # aorta
    _Blob((16, -32, 0), (11, 10, _TUBE), 48),  # vena cava
)
_GUT = (
    _Blob((-55, 30, 40), (36, 34, 44), 48),  # stomach
    _Blob((-55, 48, 48), (18, 9, 20), -900),  # its air
    _Blob((96, -8, -75), (20, 22, 55), 46),  # ascending colon
    _Blob((-100, -12, -70), (18, 20, 60), 50),  # descending colon
)
_ABDOMINAL_ORGANS = (
    _Blob((66, 8, 36), (60, 70, 66), 55, "liver"),
    _Blob((2, 46, 50), (58, 32, 32), 55, "liver"),  # its left lobe
    _Blob((-90, -30, 38), (29, 38, 48), 50, "spleen"),
    _Blob((62, -47, -30), (24, 22, 48), 45, "kidneys"),
    _Blob((-62, -47, -20), (24, 22, 48), 45, "kidneys"),
    _Blob((48, -41, -30), (11, 8, 22), -60),  # renal sinus, right
    _Blob((-48, -41, -20), (11, 8, 22), -60),  # renal sinus, left
)
_CHEST = (_Blob((-22, 22, 150), (52, 48, 55), 45),)  # heart
_BONES = (
    _Blob((0, -62, 0), (21, 17, _TUBE), 600),  # vertebral cortex
    _Blob((0, -62, 0), (18, 14, _TUBE), 300),  # vertebral body
    _Blob((0, -88, 0), (5, 12, _TUBE), 500),  # spinous processes
    _Blob((0, -80, 0), (8, 7, _TUBE), 30),  # spinal canal
)


@dataclass(frozen=True)
class _Subject:
    """What varies from one body to the next."""

    age: int
    sex: Sex
    diagnosis: Diagnosis
    scale: Triple  # reference mm to this body's mm
    fat: float  # rim under the skin, in units of the cavity
    shift: float  # HU added to every soft tissue (contrast phase, calibration)

    @property
    def skin(self) -> float:
        return _WALL + self.fat

    def growth(self, organ: str) -> float:
        """Return the linear growth of an organ through disease and age."""
        if organ == "kidneys":
            return 1.0 - 0.003 * max(self.age - 50, 0)
        if (organ, self.diagnosis) == ("liver", "hepatomegaly"):
            return 1.15
        return 1.3 if (organ, self.diagnosis) == ("spleen", "splenomegaly") else 1.0


@dataclass
class _Canvas:
    """The scan being painted: patient coordinates of each voxel (reference mm), HU and labels."""

    x: Floats
    y: Floats
    z: Floats
    wall: Floats  # distance from the body axis, 1 at the edge of the cavity
    hu: Floats
    label: NDArray[np.uint8]

    def paint(self, where: Mask, hu: float | Floats, label: int = 0) -> None:
        np.copyto(self.hu, hu, where=where)
        self.label[where] = label

    def distance(self, centre: Triple, radii: Triple) -> Floats:
        """Return the squared distance from `centre` in units of `radii`."""
        total = np.zeros_like(self.hu)
        for axis, middle, radius in zip((self.x, self.y, self.z), centre, radii, strict=True):
            if radius < _TUBE:
                total += ((axis - np.float32(middle)) * np.float32(1 / radius)) ** 2
        return total


def make_phantom(rng: np.random.Generator, size: int = 160) -> Phantom:
    """Draw one subject and one scan of it.

    Parameters
    ----------
    rng : numpy.random.Generator
        The only source of randomness: the same state gives the same phantom.
    size : int, default 160
        Voxels across the body, about: in-plane shapes lie in 0.9-1.1 x 0.8-1.0 of it, slices in
        0.45-0.55. The field of view stays the same (about 350 x 310 x 320 mm), so spacing falls as size
        grows, and slices are about twice as thick as pixels.

    Returns
    -------
    Phantom
        Image (int16 HU) and label (uint8) of one shape (x, y, z), RAS+, with spacing, affine and subject.

    Raises
    ------
    ValueError
        If `size` is smaller than 24.

    Examples
    --------
    >>> phantom = make_phantom(np.random.default_rng(0), size=48)
    >>> phantom.image.dtype, phantom.label.max()
    (dtype('int16'), np.uint8(3))
    """
    if size < MIN_SIZE:
        raise ValueError(f"size={size} is too small to show the organs: give {MIN_SIZE} or more (voxels)")
    subject = _draw_subject(rng)
    shape, spacing = _draw_grid(rng, size, subject)
    affine = _draw_affine(rng, shape, spacing)
    canvas = _lay_out(rng, subject, shape, affine)
    _paint_table(canvas, subject)
    _warp(canvas, rng)
    _paint_body(canvas, rng, subject)
    image = _expose(canvas.hu, rng)
    return Phantom(image, canvas.label, spacing, affine, subject.age, subject.sex, subject.diagnosis)


def _draw_subject(rng: np.random.Generator) -> _Subject:
    kinds: tuple[tuple[Diagnosis, float], ...] = (("healthy", 45), ("hepatomegaly", 60), ("splenomegaly", 38))
    diagnosis, mean_age = kinds[rng.choice(3, p=(0.4, 0.3, 0.3))]
    sex: Sex = "M" if rng.random() < 0.5 else "F"
    build = 1.04 if sex == "M" else 0.96
    return _Subject(
        age=int(np.clip(np.rint(rng.normal(mean_age, 10)), 18, 90)),
        sex=sex,
        diagnosis=diagnosis,
        scale=_triple(build * rng.uniform(0.96, 1.04, 3)),
        fat=float(rng.uniform(0.05, 0.15) + (0.08 if sex == "F" else 0.0)),
        shift=float(rng.normal(0, 6)),
    )


def _draw_grid(
    rng: np.random.Generator, size: int, subject: _Subject
) -> tuple[tuple[int, int, int], NDArray[np.float64]]:
    nx, ny, nz = (int(np.rint(size * part)) for part in rng.uniform((0.9, 0.8, 0.45), (1.1, 1.0, 0.55)))
    width = 2 * _CAVITY[0] * subject.skin * subject.scale[0]
    depth = 2 * _CAVITY[1] * subject.skin * subject.scale[1] + 40  # and the table
    pixel = max(width / nx, depth / ny) * rng.uniform(1.08, 1.18)
    spacing = np.round([pixel, pixel, rng.uniform(305, 335) / nz], 3)
    return (nx, ny, nz), spacing


def _draw_affine(
    rng: np.random.Generator, shape: tuple[int, int, int], spacing: NDArray[np.float64]
) -> NDArray[np.float64]:
    oblique, degrees, axis = rng.random() < 1 / 3, rng.uniform(3, 8), rng.normal(size=3)
    rotation = _rotation(axis, np.deg2rad(degrees)) if oblique else np.eye(3)
    affine = np.eye(4)
    affine[:3, :3] = rotation * spacing
    affine[:3, 3] = rng.uniform(-10, 10, 3) - affine[:3, :3] @ ((np.array(shape) - 1) / 2)
    return affine


def _rotation(axis: NDArray[np.float64], angle: float) -> NDArray[np.float64]:
    x, y, z = axis / np.linalg.norm(axis)
    cross = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]])
    rotated: NDArray[np.float64] = np.eye(3) + np.sin(angle) * cross + (1 - np.cos(angle)) * cross @ cross
    return rotated


def _lay_out(
    rng: np.random.Generator, subject: _Subject, shape: tuple[int, int, int], affine: NDArray[np.float64]
) -> _Canvas:
    i, j, k = (index.astype(np.float32) for index in np.ogrid[: shape[0], : shape[1], : shape[2]])
    rows = (affine[:3] / np.array(subject.scale)[:, None]).astype(np.float32)
    x, y, z = (row[0] * i + row[1] * j + row[2] * k + row[3] for row in rows)
    air = np.full(shape, -1000, np.float32)
    return _Canvas(x, y, z, wall=air, hu=air.copy(), label=np.zeros(shape, np.uint8))


def _paint_table(canvas: _Canvas, subject: _Subject) -> None:
    depth = -_CAVITY[1] * subject.skin - 4 - canvas.y
    canvas.paint((depth > 0) & (depth < 14) & (np.abs(canvas.x) < 140), 120)
    canvas.paint((depth > 3) & (depth < 11) & (np.abs(canvas.x) < 137), -750)


def _warp(canvas: _Canvas, rng: np.random.Generator) -> None:
    """Bend the body smoothly, by about 5 mm."""
    for axis in (canvas.x, canvas.y, canvas.z):
        axis += 5 * _smooth_field(rng, axis.shape)
    canvas.wall = np.sqrt((canvas.x / _CAVITY[0]) ** 2 + (canvas.y / _CAVITY[1]) ** 2)


def _smooth_field(rng: np.random.Generator, shape: tuple[int, ...], knots: int = 7) -> Floats:
    """Return a field of standard deviation about 1 that varies over a sixth of each axis."""
    field = rng.standard_normal((knots, knots, knots)).astype(np.float32)
    for length in shape:  # each turn interpolates the first axis and moves it last
        offset = np.linspace(0, knots - 1, length)[:, None] - np.arange(knots)
        weight = np.exp(-0.5 * (offset / 0.7) ** 2)
        weight /= np.sqrt((weight**2).sum(1, keepdims=True))
        field = np.tensordot(field, weight.astype(np.float32), axes=(0, 1))
    return field


def _paint_body(canvas: _Canvas, rng: np.random.Generator, subject: _Subject) -> None:
    canvas.paint(canvas.wall < subject.skin, _FAT)
    canvas.paint(canvas.wall < _WALL, _MUSCLE + subject.shift)
    cavity = canvas.wall < 1.0
    canvas.paint(cavity, _FAT + 10)
    soft = (*_GUT, *_bowel(rng), *_ABDOMINAL_ORGANS)
    for blob in _VESSELS_AND_MUSCLES:
        _paint_blob(canvas, rng, subject, blob, canvas.wall < _WALL)
    for blob in soft:
        _paint_blob(canvas, rng, subject, blob, cavity)
    _paint_lungs(canvas, cavity)
    for blob in _CHEST:
        _paint_blob(canvas, rng, subject, blob, cavity & (canvas.z > 95))
    _paint_bones(canvas)


def _bowel(rng: np.random.Generator, loops: int = 10) -> list[_Blob]:
    centres = rng.uniform((-75, -20, -150), (75, 60, -45), (loops, 3))
    radii = rng.uniform(14, 26, (loops, 3))
    hu = rng.uniform(35, 65, loops)
    return [_Blob(_triple(c), _triple(r), float(h)) for c, r, h in zip(centres, radii, hu, strict=True)]


def _paint_blob(canvas: _Canvas, rng: np.random.Generator, subject: _Subject, blob: _Blob, inside: Mask) -> None:
    """Paint a jittered ellipsoid; an organ gets a 3 mm capsule of fat."""
    growth = subject.growth(blob.organ)
    radii = np.where(np.array(blob.radii) < _TUBE, growth * rng.normal(1, 0.05, 3) * blob.radii, _TUBE)
    distance = canvas.distance(_triple(blob.centre + rng.normal(0, 3, 3)), _triple(radii))
    if blob.organ:
        capsule = inside & (distance < (1 + 3 / radii.mean()) ** 2)
        canvas.paint(capsule & (canvas.label != ORGANS[blob.organ]), _FAT + 10)
    shift = subject.shift if blob.hu > 0 else 0.0
    canvas.paint(inside & (distance < 1), blob.hu + shift, ORGANS.get(blob.organ, 0))


def _paint_lungs(canvas: _Canvas, cavity: Mask) -> None:
    dome = ((np.abs(canvas.x) - 66) / 62) ** 2 + (canvas.y / 85) ** 2
    lungs = cavity & (canvas.z > 100 - 45 * dome) & (np.abs(canvas.x) > 20)
    canvas.paint(lungs, -820)


def _paint_bones(canvas: _Canvas) -> None:
    ribs = (canvas.wall > 1.01) & (canvas.wall < 1.07) & (canvas.z > -45)
    ribs &= np.sin((canvas.z + 0.4 * canvas.y) * np.float32(2 * np.pi / 28)) > 0.4
    canvas.paint(ribs, 550)
    disc = np.sin(canvas.z * np.float32(2 * np.pi / 34)) > 0.85
    for blob in _BONES:
        canvas.paint(canvas.distance(blob.centre, blob.radii) < 1, blob.hu)
    canvas.paint(disc & (canvas.distance(*_BONES[0][:2]) < 1), 80)


def _expose(hu: Floats, rng: np.random.Generator) -> NDArray[np.int16]:
    """Blur edges by a voxel (partial volume) and add correlated noise, as a scanner does."""
    grain = _blur(rng.standard_normal(hu.shape, np.float32))
    grain *= np.float32(_NOISE_SD) / grain.std()
    scan: NDArray[np.int16] = np.clip(np.rint(_blur(hu) + grain), -1024, 1500).astype(np.int16)
    return scan


def _blur(values: Floats) -> Floats:
    """Smooth every axis by (1, 2, 1) / 4, repeating the border."""
    for axis in range(values.ndim):
        values = np.swapaxes(values, 0, axis)
        padded = np.concatenate([values[:1], values, values[-1:]])
        values = 0.25 * (padded[:-2] + padded[2:]) + 0.5 * values
        values = np.swapaxes(values, 0, axis)
    return values


def _triple(values: Any) -> Triple:
    x, y, z = values
    return float(x), float(y), float(z)
