"""Out of the store: NIfTI files, the objects of other libraries, tables."""

from radiodata.export.files import export
from radiodata.export.nifti import restore, to_nifti
from radiodata.export.objects import to_monai, to_sitk, to_torchio
from radiodata.export.tables import to_anndata, to_arrow

__all__ = ["export", "restore", "to_anndata", "to_arrow", "to_monai", "to_nifti", "to_sitk", "to_torchio"]
