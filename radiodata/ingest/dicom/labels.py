"""Segmentations (SEG) and structure sets (RTSTRUCT): what they label, and the series that they are drawn on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from radiodata.ingest.dicom.scan import DicomError

if TYPE_CHECKING:
    import pydicom

    from radiodata.ingest.dicom.scan import Source

_KINDS: dict[str, Literal["SEG", "RTSTRUCT"]] = {
    "1.2.840.10008.5.1.4.1.1.66.4": "SEG",
    "1.2.840.10008.5.1.4.1.1.66.7": "SEG",
    "1.2.840.10008.5.1.4.1.1.481.3": "RTSTRUCT",
}
"""Kinds by SOP class: Segmentation Storage, Label Map Segmentation Storage, RT Structure Set Storage."""


@dataclass(frozen=True)
class LabelFile:
    """A file of labels, by its header.

    Attributes
    ----------
    names
        Number of each segment or region in the file, and its name.
    series
        SeriesInstanceUIDs that it refers to.
    header
        Its attributes but for those that are long.
    """

    source: Source
    kind: Literal["SEG", "RTSTRUCT"]
    uid: str
    names: tuple[tuple[int, str], ...]
    series: tuple[str, ...]
    header: pydicom.Dataset


def is_label(data: pydicom.Dataset) -> bool:
    """Whether a data set is a segmentation or a structure set."""
    return str(data.get("SOPClassUID", "")) in _KINDS


def label_file(source: Source, data: pydicom.Dataset) -> LabelFile:
    """Read what a segmentation or structure set labels.

    Raises
    ------
    DicomError
        When it labels nothing, or one name twice.
    """
    kind = _KINDS[str(data.SOPClassUID)]
    if kind == "SEG":
        names = [(int(s.SegmentNumber), _name_of(s)) for s in data.get("SegmentSequence") or []]
    else:
        names = [
            (int(r.ROINumber), str(r.get("ROIName") or "").strip()) for r in data.get("StructureSetROISequence") or []
        ]
    if not names:
        raise DicomError(f"is a {kind} that labels nothing")
    if twice := sorted({n for _, n in names if [m for _, m in names].count(n) > 1}):
        raise DicomError(f"is a {kind} with several labels of one name: {twice}")
    series = tuple(dict.fromkeys(_segmented(data) if kind == "SEG" else _contoured(data)))
    header = _short(data)
    return LabelFile(source, kind, str(data.get("SOPInstanceUID") or source), tuple(names), series, header)


def _name_of(segment: Any) -> str:
    coded = segment.get("SegmentedPropertyTypeCodeSequence") or [{}]
    return str(segment.get("SegmentLabel") or coded[0].get("CodeMeaning") or segment.SegmentNumber).strip()


def _segmented(data: pydicom.Dataset) -> list[str]:
    return [str(s.SeriesInstanceUID) for s in data.get("ReferencedSeriesSequence") or [] if s.get("SeriesInstanceUID")]


def _contoured(data: pydicom.Dataset) -> list[str]:
    return [
        str(series.SeriesInstanceUID)
        for frame in data.get("ReferencedFrameOfReferenceSequence") or []
        for study in frame.get("RTReferencedStudySequence") or []
        for series in study.get("RTReferencedSeriesSequence") or []
    ]


def _short(data: pydicom.Dataset) -> pydicom.Dataset:
    from pydicom.dataset import Dataset

    short = Dataset()
    for element in data:
        if element.VR != "SQ":
            short.add(element)
    return short
