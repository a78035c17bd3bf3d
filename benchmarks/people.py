"""Subjects and their scans as tables, a function of the number of subjects alone; and what filters should give."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

if TYPE_CHECKING:
    from pathlib import Path

SITES = ("Basel", "Boston", "Kyoto", "Nairobi", "Porto", "Quito")
DIAGNOSES = ("glioma", "lymphoma", "nodule", "none")


@dataclass(frozen=True)
class People:
    """``count`` subjects with a CT and a PET each."""

    root: Path
    count: int

    @property
    def folder(self) -> Path:
        return self.root / f"people-{self.count}"

    @property
    def stores(self) -> Path:
        return self.folder / "stores"

    @property
    def files(self) -> list[Path]:
        return [self.folder / f"{name}.csv" for name in ("obs_meta", "CT", "PET")]

    @cached_property
    def obs_meta(self) -> pd.DataFrame:
        """Age (int, some null), sex, site, diagnosis (some null), weight (float), day of the scan."""
        rng, n = np.random.default_rng(0), self.count
        diagnosis = pd.array(rng.choice(DIAGNOSES, n), dtype="string")
        diagnosis[rng.random(n) < 0.2] = pd.NA
        age = pd.array(rng.integers(0, 100, n), dtype="Int64")
        age[rng.random(n) < 0.05] = pd.NA
        columns = {
            "age": age,
            "sex": pd.array(rng.choice(["F", "M"], n), dtype="string"),
            "site": pd.array(rng.choice(SITES, n), dtype="string"),
            "diagnosis": diagnosis,
            "weight": np.round(rng.normal(75, 15, n), 1),
            "scanned": np.datetime64("2015-01-01", "ns") + rng.integers(0, 3650, n) * np.timedelta64(1, "D"),
        }
        return pd.DataFrame(columns, index=pd.Index([f"sub-{i:06d}" for i in range(n)], name="obs_subject_id"))

    def obs(self, name: str) -> pd.DataFrame:
        """Subject, sizes and spacings of a collection; indexed by ``obs_id``."""
        rng, n = np.random.default_rng(len(name)), self.count
        subjects = self.obs_meta.index
        sizes = {f"size_{a}": rng.integers(64, 512, n) for a in "xyz"}
        spacings = {f"spacing_{a}": np.round(rng.uniform(0.5, 6, n), 3) for a in "xyz"}
        index = pd.Index([f"{s}_{name}" for s in subjects], name="obs_id")
        return pd.DataFrame({"obs_subject_id": subjects, **sizes, **spacings}, index=index)

    def make(self) -> None:
        """Write the tables as CSV files, which is what a user has."""
        self.folder.mkdir(parents=True, exist_ok=True)
        for path in self.files:
            if not path.exists():
                (self.obs_meta if path.stem == "obs_meta" else self.obs(path.stem)).to_csv(path)

    @cached_property
    def truth(self) -> dict[str, list[str]]:
        """Ids that each case gives, worked out with numpy."""
        meta, ct = self.obs_meta, self.obs("CT")
        age, sex = meta["age"].fillna(-1).to_numpy(np.int64), meta["sex"].to_numpy(object)
        subjects = (age > 40) & (sex == "F")
        volumes = (ct["spacing_z"].to_numpy() < 3) & (age > 40)  # a CT each, in the order of the subjects
        return {
            "filter subjects": meta.index[subjects].tolist(),
            "filter volumes": ct.index[volumes].tolist(),
            "volumes of subjects": ct.index[subjects].tolist(),
        }

    def describe(self) -> dict[str, Any]:
        return {
            "folder": self.folder.name,
            "subjects": self.count,
            "volumes": 2 * self.count,
            "source": ".csv",
            "source_bytes": sum(path.stat().st_size for path in self.files),
            "what": f"{self.count} subjects with a CT and a PET each",
        }
