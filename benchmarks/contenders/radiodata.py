"""radiodata itself: a Cohort from NIfTIs, PatchDataset and PatchLoader."""

from __future__ import annotations

import os
import tempfile
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.contenders.base import Contender

if TYPE_CHECKING:
    from collections.abc import Iterable

    from benchmarks.contenders.base import LoaderSpec, Reader
    from benchmarks.phantom import Phantoms


def compile_once() -> None:
    """Have radiodata's kernels compiled, which a machine does once: so that no row is measured beside that."""
    import nibabel as nib
    import numpy as np

    from radiodata import Cohort, PatchDataset, PatchLoader, Uniform

    os.environ["RADIODATA_COMPILED"] = "wait"
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        for name, dtype in (("CT", np.int16), ("seg", np.uint8)):
            (folder / name).mkdir()
            voxels = np.arange(40**3).reshape(40, 40, 40) % 3
            nib.save(nib.Nifti1Image(voxels.astype(dtype), np.eye(4)), folder / name / "s.nii.gz")  # type: ignore[attr-defined]
        cohort = Cohort.from_niftis(str(folder / "cohort"), {name: folder / name for name in ("CT", "seg")})
        keys = {"image": "CT", "label": "seg"}
        patches = PatchDataset(cohort, keys, patch_size=16, policy=Uniform(), crops_per_volume=8, crops_per_unit=4)
        with closing(PatchLoader(patches, batch_size=2, num_workers=0)) as loader:
            next(iter(loader))
        for name in keys.values():
            cohort[name].iloc[0][:20, :20, :20]


class Radiodata(Contender):
    """``tile``: side of the cubic tiles. ``unit``: crops cut from one read of tiles. ``codec``: not the default's.

    ``direct``, ``compiled``: as in ``ReadConfig``, for single reads.
    """

    requires = ("radiodata",)

    def __init__(
        self, tile: int | str = 64, unit: int = 1, codec: str = "", *, direct: bool = True, compiled: bool = True
    ) -> None:
        self.tile, self.unit, self.codec = tile, unit, codec
        self.direct, self.compiled = direct, compiled

    def import_all(self) -> None:
        from radiodata import Cohort, PatchDataset, PatchLoader, Uniform  # noqa: F401  the names load on demand

    def store(self, crop: int) -> str:
        return f"radiodata-{self.tile}-{self.codec.replace(':', '') or 'default'}"

    def prepare(self, phantoms: Phantoms, folder: Path, crop: int) -> None:
        from radiodata import Cohort, StoreConfig

        config = StoreConfig(tiling=self.tile, filters=("byteshuffle", self.codec) if self.codec else None)
        Cohort.from_niftis(str(folder / "cohort"), images={"CT": phantoms.niftis}, config=config)

    def block(self, shape: tuple[int, int, int], crop: int) -> tuple[int, int, int]:
        from radiodata import StoreConfig

        return StoreConfig(tiling=self.tile).tile

    def reader(self, phantoms: Phantoms, folder: Path, crop: int) -> Reader:
        from radiodata import Cohort, ReadConfig

        os.environ["RADIODATA_COMPILED"] = "wait"  # what is loaded once is loaded by the first read, which is not timed
        read = ReadConfig(direct=self.direct, compiled=self.compiled)
        volume = Cohort(str(folder / "cohort"), config=read).CT.iloc[0]
        return lambda box: volume[box]

    def loader(self, phantoms: Phantoms, folder: Path, spec: LoaderSpec) -> Iterable[Any]:
        from radiodata import Cohort

        return self.over(Cohort(str(folder / "cohort")), spec)

    def over(self, cohort: Any, spec: LoaderSpec) -> Iterable[Any]:
        """Return a loader of random crops of a cohort."""
        from radiodata import PatchDataset, PatchLoader, Uniform

        dataset = PatchDataset(
            cohort,
            {"image": "CT"},
            patch_size=spec.crop,
            policy=Uniform(),
            crops_per_volume=spec.crops_per_volume,
            crops_per_unit=self.unit,
            seed=spec.seed,
        )
        return PatchLoader(dataset, batch_size=spec.batch, num_workers=spec.workers)

    def facts(self, loader: Any) -> dict[str, float]:
        told = loader.patches.plan.explain(workers=loader.num_workers, show=False)
        return {"decoded_share": told.amplification, "overlap": told.overlap}

    def image(self, batch: Any) -> Any:
        return batch["image"]
