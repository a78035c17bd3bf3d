"""NIfTI files come in whole and exact, or not at all; nibabel is the reference."""

from __future__ import annotations

import contextlib
import gzip
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from test_geometry import ALL_ORIENTATIONS

from radiodata.geometry import axis_codes
from radiodata.ingest.exact import InexactError, exact
from radiodata.ingest.files import NiftiError
from radiodata.ingest.nifti import load, read_header

SHAPE = (5, 4, 3)


def nifti(
    voxels: np.ndarray,
    *,
    slope: float | None = None,
    intercept: float | None = None,
    affine: np.ndarray | None = None,
    version: int = 1,
    endian: str = "<",
) -> bytes:
    """Bytes of a .nii, header and voxels put there by hand: nothing is rescaled on the way."""
    header = (nib.Nifti1Header if version == 1 else nib.Nifti2Header)(endianness=endian)
    header.set_data_dtype(voxels.dtype.newbyteorder(endian))
    header.set_data_shape(voxels.shape)
    header.set_sform(np.diag([1.0, 2, 3, 1]) if affine is None else affine, code=1)
    header["pixdim"][1:4] = nib.affines.voxel_sizes(header.get_sform())
    header["scl_slope"], header["scl_inter"] = (np.nan if v is None else v for v in (slope, intercept))
    header["vox_offset"] = 352 if version == 1 else 544
    header["magic"] = b"n+1" if version == 1 else b"n+2"
    body = voxels.astype(voxels.dtype.newbyteorder(endian)).tobytes(order="F")
    return header.binaryblock + bytes(4) + body


def put(folder: Path, data: bytes, name: str = "a.nii") -> Path:
    path = folder / name
    path.write_bytes(gzip.compress(data, mtime=0) if name.endswith(".gz") else data)
    return path


def corners(dtype: str) -> np.ndarray:
    """Values of `dtype` with its ends among them, as a volume."""
    kind = np.dtype(dtype)
    if kind.kind == "f":
        few = [0.5, -0.0, 0.1, 1e-30, -3.25, np.inf, -np.inf, np.nan, float(np.finfo(kind).max)]
    else:
        info = np.iinfo(kind)
        few = [info.min, info.max, info.max - 1, 0, 1, 7]
    return np.resize(np.array(few, kind), SHAPE)


# every (stored dtype, values, slope, intercept) and what the store holds for it --------------------

SMALL = np.arange(60).reshape(SHAPE) - 20
EXACT: list[tuple[str, np.ndarray, float | None, float | None, str, tuple[float, float]]] = [
    # dtype of the file, voxels, slope and intercept there; dtype, slope and intercept in the store
    ("uint8", corners("uint8"), None, None, "uint8", (1, 0)),
    ("int8", corners("int8"), None, None, "int8", (1, 0)),
    ("int16", corners("int16"), None, None, "int16", (1, 0)),
    ("uint16", corners("uint16"), None, None, "uint16", (1, 0)),
    ("uint16", SMALL + 20, None, None, "int16", (1, 0)),
    ("int32", corners("int32"), None, None, "int32", (1, 0)),
    ("int32", SMALL, None, None, "int16", (1, 0)),
    ("uint32", corners("uint32"), None, None, "uint32", (1, 0)),
    ("int64", corners("int64"), None, None, "int64", (1, 0)),
    ("int64", SMALL, None, None, "int16", (1, 0)),
    ("uint64", corners("uint64"), None, None, "uint64", (1, 0)),
    ("float32", corners("float32"), None, None, "float32", (1, 0)),
    ("float32", SMALL * 1000, None, None, "int32", (1, 0)),
    ("float32", SMALL, None, None, "int16", (1, 0)),
    ("float32", np.where(SMALL == 0, -0.0, SMALL), None, None, "float32", (1, 0)),
    ("float32", np.where(SMALL == 0, np.nan, SMALL), None, None, "float32", (1, 0)),
    ("float32", np.where(SMALL == 0, 2.0**31, SMALL), None, None, "float32", (1, 0)),
    ("float64", SMALL, None, None, "int16", (1, 0)),
    ("float64", SMALL + 0.5, None, None, "float32", (1, 0)),
    ("float64", SMALL + 0.1, None, None, "float64", (1, 0)),
    ("float64", corners("float64"), None, None, "float64", (1, 0)),
    ("uint8", SMALL + 20, 1, -1024, "int16", (1, 0)),
    ("int16", SMALL, 2, 3, "int16", (1, 0)),
    ("int16", corners("int16"), 1, -1024, "int32", (1, 0)),
    ("int16", corners("int16"), -1, 0, "int32", (1, 0)),
    ("uint8", SMALL + 20, 7.109804, -1024, "uint8", (7.109804, -1024)),
    ("int16", SMALL, 0.25, 0, "int16", (0.25, 0)),
    ("uint16", SMALL + 20, 0.1, 5.5, "int16", (0.1, 5.5)),
    ("int32", corners("int32"), 1e30, 0, "int32", (1e30, 0)),
    ("int16", SMALL, 0, 5, "int16", (1, 0)),
    ("int16", SMALL, None, 5, "int16", (1, 0)),
    ("float32", SMALL + 0.5, 2, 1, "float32", (2, 1)),
    ("float64", SMALL + 0.1, 0.5, 0, "float64", (0.5, 0)),
]


@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz"])
@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize("endian", ["<", ">"])
@pytest.mark.parametrize("case", EXACT, ids=lambda c: f"{c[0]}-{c[2]}-{c[3]}-{c[4]}")
def test_every_physical_value_comes_back(tmp_path: Path, case: tuple, endian: str, version: int, name: str) -> None:
    dtype, values, slope, intercept, stored, scale = case
    data = nifti(values.astype(dtype), slope=slope, intercept=intercept, version=version, endian=endian)
    path = put(tmp_path, data, name)
    volume = load(path, orient=None)
    reference = nib.load(path)

    scale = tuple(np.asarray(scale, np.float32 if version == 1 else np.float64).astype(float))
    assert (str(volume.voxels.dtype), (volume.slope, volume.intercept)) == (stored, scale)
    assert volume.voxels.dtype.isnative
    assert volume.voxels.flags.c_contiguous
    assert np.dtype(volume.source_dtype).newbyteorder("=") == np.dtype(dtype)
    found = volume.voxels[0]
    if scale == (1, 0):
        same_bits(found, np.asanyarray(reference.dataobj), signs=dtype.startswith("f"))
    else:
        same_bits(found.astype(np.float64) * scale[0] + scale[1], reference.get_fdata(), signs=True)


def same_bits(found: np.ndarray, expected: np.ndarray, *, signs: bool) -> None:
    """Compare values, NaN and (`signs`: the file holds floats, ints have none) the sign of zero."""
    if expected.dtype.kind != "f":
        assert np.array_equal(found, expected)
        return
    wide = found.astype(np.float64)
    np.testing.assert_array_equal(wide, expected)
    if signs:
        np.testing.assert_array_equal(np.signbit(wide) & (wide == 0), np.signbit(expected) & (expected == 0))


@settings(max_examples=120, deadline=None)
@given(
    st.sampled_from(["u1", "i1", "i2", "u2", "i4", "u4", "i8", "u8", "f4", "f8"]).flatmap(
        lambda d: hnp.arrays(d, st.integers(1, 9))
    ),
    st.sampled_from([(1.0, 0.0), (2.0, -3.0), (-1.0, 0.0), (0.5, 0.0), (1.0, 2.0**62), (2.0**62, 1.0), (1.0, -1e20)]),
    st.booleans(),
)
def test_narrowing_loses_nothing(stored: np.ndarray, scale: tuple[float, float], label: bool) -> None:
    voxels, slope, intercept = exact(stored, *scale, label=label)
    assert voxels.dtype.itemsize <= max(stored.dtype.itemsize, 8)
    for found, given_ in zip(voxels.tolist(), stored.tolist(), strict=True):
        physical, expected = found * slope + intercept, given_ * scale[0] + scale[1]
        if stored.dtype.kind in "iu" and (slope, intercept) == (1.0, 0.0):  # ints of Python: no rounding at all
            expected = given_ * int(scale[0]) + int(scale[1])
            physical = found
        assert physical == expected or (physical != physical and expected != expected)
        assert np.signbit(float(found)) == np.signbit(float(given_)) or (slope, intercept) != scale or found != found


@pytest.mark.parametrize(
    ("values", "stored"),
    [([0, 1, 255], "uint8"), ([0, 256], "int16"), ([-1, 3], "int16"), ([0, 65_535], "uint16"), ([0, 70_000], "int32")],
)
@pytest.mark.parametrize("dtype", ["int32", "float32", "float64", "int64"])
def test_labels_become_as_small_as_they_can(tmp_path: Path, values: list[int], stored: str, dtype: str) -> None:
    path = put(tmp_path, nifti(np.resize(np.array(values, dtype), SHAPE)))
    assert load(path, label=True).voxels.dtype == stored


# grids -----------------------------------------------------------------------------------------


def turned(codes: str, *, oblique: bool) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    affine = np.eye(4)
    affine[:3, :3] = nib.orientations.inv_ornt_aff(nib.orientations.axcodes2ornt(codes), SHAPE)[:3, :3]
    affine[:3, :3] = affine[:3, :3] @ np.diag([1, 2, 3])
    if oblique:
        affine[:3, :3] += rng.normal(0, 0.15, (3, 3))
    affine[:3, 3] = (-40, 20, 7)
    return rng.integers(0, 999, SHAPE).astype(np.int16), affine


@pytest.mark.parametrize("oblique", [False, True])
@pytest.mark.parametrize("codes", ALL_ORIENTATIONS)
def test_ras_is_the_closest_canonical_of_nibabel(tmp_path: Path, codes: str, oblique: bool) -> None:
    voxels, affine = turned(codes, oblique=oblique)
    path = put(tmp_path, nifti(voxels, affine=affine))
    reference = nib.as_closest_canonical(nib.load(path))
    volume, header = load(path), read_header(path, orient="RAS")
    np.testing.assert_array_equal(volume.voxels[0], np.asanyarray(reference.dataobj))
    np.testing.assert_allclose(volume.affine, reference.affine, rtol=0, atol=1e-12)
    assert (axis_codes(volume.affine), volume.source_orientation) == (
        "RAS",
        "".join(nib.aff2axcodes(nib.load(path).affine)),
    )
    assert header.shape == volume.voxels.shape[1:]
    np.testing.assert_array_equal(header.affine, volume.affine)

    kept, plain = load(path, orient=None), read_header(path)
    np.testing.assert_array_equal(kept.voxels[0], voxels)
    np.testing.assert_array_equal(kept.affine, nib.load(path).affine)
    assert (plain.shape, plain.channels) == (SHAPE, 1)
    np.testing.assert_array_equal(plain.affine, kept.affine)


@pytest.mark.parametrize(
    ("shape", "stored"),
    [
        ((5, 4), (1, 5, 4, 1)),
        ((5,), (1, 5, 1, 1)),
        ((5, 4, 3, 2), (2, 5, 4, 3)),
        ((5, 4, 3, 1), (1, 5, 4, 3)),
        ((5, 4, 3, 1, 3), (3, 5, 4, 3)),
        ((5, 4, 1, 6), (6, 5, 4, 1)),
    ],
)
def test_axes_beyond_three_are_channels(tmp_path: Path, shape: tuple, stored: tuple) -> None:
    voxels = np.arange(np.prod(shape)).reshape(shape).astype(np.int16)
    path = put(tmp_path, nifti(voxels))
    volume = load(path, orient=None)
    assert volume.voxels.shape == stored
    assert read_header(path).channels == stored[0]
    squeezed = np.moveaxis(voxels.reshape((*stored[1:], stored[0]), order="F"), -1, 0)
    np.testing.assert_array_equal(volume.voxels, squeezed)


@pytest.mark.parametrize("version", [1, 2])
def test_the_header_is_kept_byte_for_byte_with_its_extensions(tmp_path: Path, version: int) -> None:
    cls = nib.Nifti1Image if version == 1 else nib.Nifti2Image
    image = cls(np.zeros(SHAPE, np.int16), np.eye(4))
    image.header["descrip"] = b"made by hand"
    image.header.extensions.append(nib.nifti1.Nifti1Extension("comment", b"a note that matters"))
    image.to_filename(tmp_path / "a.nii.gz")
    data = gzip.decompress((tmp_path / "a.nii.gz").read_bytes())
    volume = load(tmp_path / "a.nii.gz")
    assert volume.header == data[: int(nib.load(tmp_path / "a.nii.gz").dataobj.offset)]
    assert b"a note that matters" in volume.header


def test_the_hash_is_of_the_file_and_changes_with_it(tmp_path: Path) -> None:
    a, b = np.zeros(SHAPE, np.int16), np.zeros(SHAPE, np.int16)
    b[1, 1, 1] = 1
    hashes = [load(put(tmp_path, nifti(v))).source_hash for v in (a, b, a)]
    assert hashes[0] == hashes[2] != hashes[1]


# damage ----------------------------------------------------------------------------------------

VOXELS = np.random.default_rng(0).integers(-999, 999, (16, 15, 14)).astype(np.int16)
GOOD = nifti(VOXELS)
ZIPPED = gzip.compress(GOOD, mtime=0)


def flipped(data: bytes, at: int) -> bytes:
    bad = bytearray(data)
    bad[at] ^= 0x10
    return bytes(bad)


def patched(**fields: Any) -> bytes:
    header = nib.Nifti1Header(GOOD[:348], check=False)
    for name, value in fields.items():
        header[name] = value
    return header.binaryblock + GOOD[348:]


DAMAGE = {
    "crc": (flipped(ZIPPED, -8), "cannot be read.*CRC"),
    "isize": (flipped(ZIPPED, -1), "cannot be read"),
    "cut gzip": (ZIPPED[: len(ZIPPED) // 2], "cannot be read"),
    "cut trailer": (ZIPPED[:-3], "cannot be read"),
    "garbage after": (ZIPPED + b"garbage after the end", "cannot be read"),
    "gzip header only": (ZIPPED[:12], "cannot be read"),
    "gzip of nothing": (gzip.compress(b""), "is empty"),
    "empty": (b"", "is empty"),
    "cut": (GOOD[:-1], "is truncated: shape .* needs 6720 bytes of voxels at 352, it has 6719"),
    "header only": (GOOD[:348], "is truncated"),
    "cut header": (GOOD[:200], "is not a NIfTI"),
    "git-lfs": (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 12\n", "git lfs pull"),
    "dicom": (bytes(128) + b"DICM" + bytes(400), "is a DICOM file"),
    "text": (b"hello" * 200, "is not a NIfTI"),
    "offset in the header": (patched(vox_offset=100), "is truncated|makes no sense"),
    "pair": (patched(magic=b"ni1"), "one half of a .hdr and .img pair"),
    "scaled complex": (nifti(np.ones(SHAPE, np.complex64), slope=2, intercept=0), "complex64 voxels with a slope"),
    "rgb cut short": (patched(datatype=128, bitpix=24), "is truncated"),
    "unknown type": (patched(datatype=77), "makes no sense"),
    "no axis": (patched(dim=[3, 16, 0, 14, 1, 1, 1, 1]), "has no voxels"),
    "negative axis": (patched(dim=[3, 16, -5, 14, 1, 1, 1, 1]), "has no voxels"),
    "two more axes": (patched(dim=[5, 4, 4, 4, 3, 2, 1, 1]), "at most one axis beyond x, y, z"),
    "too many voxels": (patched(dim=[3, 16, 15, 15, 1, 1, 1, 1]), "is truncated"),
    "flat affine": (patched(srow_z=[0, 0, 0, 0]), "cannot be inverted"),
    "nan affine": (patched(srow_z=[np.nan] * 4), "cannot be inverted"),
    "nan intercept": (patched(scl_slope=2, scl_inter=np.nan), "makes no sense"),
    "quaternion": (patched(sform_code=0, qform_code=1, quatern_b=3), "makes no sense"),
}


@pytest.mark.parametrize("what", DAMAGE)
def test_damage_is_refused_and_said(tmp_path: Path, what: str) -> None:
    data, why = DAMAGE[what]
    (tmp_path / "a.nii.gz").write_bytes(data)
    with pytest.raises(NiftiError, match=why):
        load(tmp_path / "a.nii.gz")


@pytest.mark.parametrize("what", DAMAGE)
def test_a_header_read_alone_never_fails_otherwise(tmp_path: Path, what: str) -> None:
    (tmp_path / "a.nii.gz").write_bytes(DAMAGE[what][0])
    with contextlib.suppress(NiftiError):
        assert min(read_header(tmp_path / "a.nii.gz", orient="RAS").shape) > 0


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.integers(0, len(ZIPPED) - 1), st.integers(1, 255), st.integers(0, len(ZIPPED)))
def test_a_changed_gzip_is_refused_or_equal(tmp_path: Path, at: int, mask: int, cut: int) -> None:
    bad = bytearray(ZIPPED)
    bad[at] ^= mask
    path = tmp_path / "a.nii.gz"
    for data in (bytes(bad), ZIPPED[:cut]):
        path.write_bytes(data)
        for read in (read_header, load):
            try:
                found = read(path)
            except NiftiError:
                continue
            if read is load:
                np.testing.assert_array_equal(found.voxels[0], VOXELS)


def test_gzip_and_plain_are_told_by_content_not_by_name(tmp_path: Path) -> None:
    (tmp_path / "a.nii").write_bytes(ZIPPED)
    (tmp_path / "b.nii.gz").write_bytes(GOOD)
    np.testing.assert_array_equal(load(tmp_path / "a.nii").voxels, load(tmp_path / "b.nii.gz").voxels)


def test_a_gzip_in_several_members_is_whole(tmp_path: Path) -> None:
    (tmp_path / "a.nii.gz").write_bytes(gzip.compress(GOOD[:500]) + gzip.compress(GOOD[500:]) + bytes(512))
    assert load(tmp_path / "a.nii.gz").voxels.shape == (1, 16, 15, 14)


@pytest.mark.parametrize("read", [read_header, load])
def test_a_missing_file_and_a_folder_are_refused(tmp_path: Path, read: Any) -> None:
    (tmp_path / "folder.nii").mkdir()
    for name in ("nothing.nii", "folder.nii"):
        with pytest.raises(NiftiError, match="cannot be read"):
            read(tmp_path / name)


def test_values_that_no_type_holds_are_refused() -> None:
    with pytest.raises(InexactError, match="do not fit float64"):
        exact(np.array([1, 2], np.longdouble) / 3, 1.0, 0.0)
