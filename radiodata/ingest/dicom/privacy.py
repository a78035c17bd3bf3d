"""What of a DICOM header reaches the store: an allow-list, keyed hashes, and days counted from a secret one."""

from __future__ import annotations

import hashlib
import hmac
import os
import re
import secrets
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import date, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from radiodata.errors import ConfigError
from radiodata.ingest.items import snake_case

if TYPE_CHECKING:
    from collections.abc import Mapping

    import pydicom

TAGS = (
    "Modality",
    "Manufacturer",
    "ManufacturerModelName",
    "BodyPartExamined",
    "PatientSex",
    "PatientPosition",
    "Laterality",
    "PatientWeight",
    "PatientSize",
    "KVP",
    "ConvolutionKernel",
    "Exposure",
    "ExposureTime",
    "XRayTubeCurrent",
    "GantryDetectorTilt",
    "MagneticFieldStrength",
    "ScanningSequence",
    "SequenceVariant",
    "MRAcquisitionType",
    "RepetitionTime",
    "EchoTime",
    "InversionTime",
    "FlipAngle",
    "DiffusionBValue",
    "SliceThickness",
    "SpacingBetweenSlices",
    "Units",
    "DecayCorrection",
    "ImageType",
    "BurnedInAnnotation",
    "RescaleType",
)
"""Attributes that are stored by default. None of them is free text or identifies: descriptions, names, dates, times,
places and identifiers are not among them, and no private attribute is.
"""
_NUMBERS = frozenset({"DS", "IS", "FD", "FL", "SL", "SS", "UL", "US"})
_OLDEST = 89
"""Higher ages are stored as 90, as HIPAA's safe harbour demands (45 CFR 164.514)."""


@dataclass(frozen=True)
class Privacy:
    """How identifying attributes are treated.

    Parameters
    ----------
    key
        Of the hashes, at least 16 bytes; see ``key_file``. The same key gives the same subject the same id.
    ids
        PatientID to subject id, in place of hashes.
    keep
        Keywords of more attributes to be stored as they are, such as ``"SeriesDescription"``.
    identify
        Store PatientID, UIDs, paths and dates as they are.
    """

    key: bytes = field(repr=False)
    ids: Mapping[str, str] | None = field(default=None, repr=False)
    keep: tuple[str, ...] = ()
    identify: bool = False

    def __post_init__(self) -> None:
        from pydicom.datadict import tag_for_keyword

        if len(self.key) < 16:
            raise ConfigError(f"the key of a Privacy has {len(self.key)} bytes: at least 16, from a file of key_file")
        if unknown := [name for name in self.keep if tag_for_keyword(name) is None]:
            raise ConfigError(f"keep={unknown}: no DICOM attributes; write keywords, such as SeriesDescription")

    def subject(self, header: pydicom.Dataset) -> str:
        """Subject id of a data set: mapped, or a hash of the PatientID (of the study's UID where there is none).

        Raises
        ------
        ConfigError
            When there is a mapping, and it lacks this patient.
        """
        patient = str(header.get("PatientID") or "").strip()
        if self.ids is not None:
            if patient not in self.ids:
                raise ConfigError("its PatientID is not in the table of ids")
            return self.ids[patient]
        if self.identify and patient:
            return patient
        return f"sub-{self.hashed('patient', patient or _study(header))}"

    def hashed(self, what: str, value: str, size: int = 16) -> str:
        """Keyed hash (HMAC-SHA256) of an identifier, as hexadecimal digits."""
        digest = hmac.new(self.key, f"{what}:{value}".encode(), hashlib.sha256)
        return digest.hexdigest()[:size]

    def uid(self, value: str) -> str:
        """Stand-in for a UID."""
        return value if self.identify else self.hashed("uid", value, 32)

    def columns(self, header: pydicom.Dataset) -> dict[str, Any]:
        """Columns of `obs` for a series: allowed attributes in snake case, age, days, and stand-ins for its UIDs."""
        found: dict[str, Any] = {}
        for name in dict.fromkeys((*TAGS, *self.keep)):
            value = _plain(header, name)
            if value is not None:
                found[snake_case(name)] = value
        found["age"] = _age(header)
        for name in ("StudyDate", "SeriesDate"):
            if (when := _date(header, name)) is not None:
                key = snake_case(name)
                found |= {key: when.isoformat()} if self.identify else {f"{key[:-5]}_day": self._day(header, when)}
        for name in ("StudyInstanceUID", "SeriesInstanceUID", "FrameOfReferenceUID"):
            if value := str(header.get(name) or ""):
                found[snake_case(name)] = self.uid(value)
        if self.identify:
            found["patient_id"] = str(header.get("PatientID") or "") or None
        return {name: value for name, value in found.items() if value is not None}

    def _day(self, header: pydicom.Dataset, when: date) -> int:
        """Days since one of the subject's own that only the key tells: differences are true."""
        patient = str(header.get("PatientID") or "").strip() or _study(header)
        return when.toordinal() - date(1900, 1, 1).toordinal() + int(self.hashed("day", patient, 8), 16) % 36_500


def key_file(path: str | Path) -> bytes:
    """Read the key of a file, or make one: 32 random bytes, readable by its owner only.

    Raises
    ------
    ConfigError
        When it holds no key.
    """
    place = Path(path)
    try:
        if not place.exists():
            _make_key(place)
        text = place.read_text().strip()
    except OSError as error:
        raise ConfigError(f"the key file {place} cannot be read or made: {error}") from error
    if not re.fullmatch(r"[0-9a-f]{64}", text):
        raise ConfigError(f"{place} holds no key: 64 hexadecimal digits are expected")
    return bytes.fromhex(text)


def _make_key(place: Path) -> None:
    """Write a key beside its place and link it there: where several begin at once, all of them find one, and whole."""
    place.parent.mkdir(parents=True, exist_ok=True)
    scratch = place.with_name(f".{place.name}.{secrets.token_hex(4)}")
    try:
        with os.fdopen(os.open(scratch, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
            file.write(f"{secrets.token_hex(32)}\n")
        with suppress(FileExistsError):  # another was quicker: its key counts
            place.hardlink_to(scratch)
    finally:
        scratch.unlink(missing_ok=True)


def burned_in(header: pydicom.Dataset) -> str | None:
    """Say why text may be burned into the pixels, or None."""
    if str(header.get("BurnedInAnnotation") or "").upper() == "YES":
        return "BurnedInAnnotation is YES: its pixels may show who the patient is"
    captured = str(header.get("SOPClassUID") or "").startswith("1.2.840.10008.5.1.4.1.1.7")
    screen = "SCREEN SAVE" in [str(part).upper() for part in header.get("ImageType") or []]
    if (captured or screen) and str(header.get("BurnedInAnnotation") or "").upper() != "NO":
        return "it is a secondary capture, whose pixels may show who the patient is"
    return None


def _plain(header: pydicom.Dataset, name: str) -> Any:
    """Value of an attribute as a column holds it: a number, or text; several values are one text."""
    if name not in header:
        return None
    element = header[name]
    value = element.value
    if value is None or value == "" or element.VR in ("SQ", "OB", "OW", "UN"):
        return None
    several = not isinstance(value, str) and hasattr(value, "__len__")
    if several:
        return "\\".join(str(v) for v in value) or None
    if element.VR in _NUMBERS:
        try:
            return float(value)
        except (TypeError, ValueError):
            return None
    return str(value)


def _age(header: pydicom.Dataset) -> int | None:
    match = re.fullmatch(r"(\d{3})([DWMY])", str(header.get("PatientAge") or ""))
    born, when = _date(header, "PatientBirthDate"), _date(header, "StudyDate")
    if match:
        years = int(match[1]) // {"D": 365, "W": 52, "M": 12, "Y": 1}[match[2]]
    elif born and when and when >= born:
        years = when.year - born.year - ((when.month, when.day) < (born.month, born.day))
    else:
        return None
    return min(years, _OLDEST + 1)


def _date(header: pydicom.Dataset, name: str) -> date | None:
    try:
        return datetime.strptime(str(header.get(name) or ""), "%Y%m%d").date()
    except ValueError:
        return None


def _study(header: pydicom.Dataset) -> str:
    return str(header.get("StudyInstanceUID") or header.get("SeriesInstanceUID") or header.get("SOPInstanceUID") or "")
