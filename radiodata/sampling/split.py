"""Splits by subject: deterministic, the same on every machine, whatever the order of the table."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, TypeAlias, runtime_checkable

from radiodata.errors import ConfigError, PlanError

if TYPE_CHECKING:
    import pandas as pd

Parts: TypeAlias = "dict[str, list[str]]"
PARTS = ("train", "val", "test")


@runtime_checkable
class Split(Protocol):
    """Assigns subjects to ``train``, ``val`` and ``test``."""

    def parts(self, obs_meta: pd.DataFrame) -> Parts:
        """Subject ids of each part, sorted; `obs_meta` is indexed by subject id."""


@dataclass(frozen=True)
class Fractions:
    """Shares of the subjects drawn at random.

    Parameters
    ----------
    val, test
        Shares for validation and test; each that is above 0 gets one subject at the least.
    seed
        Chooses the draw.
    stratify
        Column of `obs_meta` whose values every part holds in the same proportions; numbers by quarters.
    """

    val: float = 0.2
    test: float = 0.0
    seed: int = 0
    stratify: str | None = None

    def __post_init__(self) -> None:
        if self.val < 0 or self.test < 0 or self.val + self.test >= 1:
            raise ConfigError(f"Fractions(val={self.val}, test={self.test}): give shares whose sum is below 1")

    def parts(self, obs_meta: pd.DataFrame) -> Parts:
        """Subject ids of each part."""
        order = _interleaved(obs_meta, self.seed, self.stratify)
        n_val, n_test = (max(1, round(f * len(order))) if f > 0 else 0 for f in (self.val, self.test))
        if n_val + n_test >= len(order):
            raise PlanError(f"{len(order)} subjects cannot be split into train, {n_val} val and {n_test} test")
        val, test, train = order[:n_val], order[n_val : n_val + n_test], order[n_val + n_test :]
        return {"train": sorted(train), "val": sorted(val), "test": sorted(test)}


@dataclass(frozen=True)
class KFold:
    """Fold `fold` of `k` is validation, the rest is training; every subject is in one fold.

    `seed` chooses the folds, and `stratify` is as of ``Fractions``.
    """

    k: int = 5
    fold: int = 0
    seed: int = 0
    stratify: str | None = None

    def __post_init__(self) -> None:
        if self.k < 2 or not 0 <= self.fold < self.k:
            raise ConfigError(f"KFold(k={self.k}, fold={self.fold}): k must be 2 or more, fold from 0 to k - 1")

    def parts(self, obs_meta: pd.DataFrame) -> Parts:
        """Subject ids of each part."""
        order = _grouped(obs_meta, self.seed, self.stratify)
        if len(order) < self.k:
            raise PlanError(f"{len(order)} subjects cannot be split into {self.k} folds")
        val = set(order[self.fold :: self.k])
        return {"train": sorted(set(order) - val), "val": sorted(val), "test": []}


@dataclass(frozen=True)
class Column:
    """The part of each subject stands in a column of `obs_meta`.

    Parameters
    ----------
    name
        The column.
    train, val, test
        Its values for each part; rows with another value are refused.
    """

    name: str
    train: str = "train"
    val: str = "val"
    test: str = "test"

    def parts(self, obs_meta: pd.DataFrame) -> Parts:
        """Subject ids of each part."""
        if self.name not in obs_meta.columns:
            raise PlanError(f"obs_meta has no column {self.name!r} to split by; it has {list(obs_meta.columns)}")
        values = obs_meta[self.name].astype("string")
        known = {"train": self.train, "val": self.val, "test": self.test}
        odd = values[~values.isin(list(known.values()))]
        if len(odd):
            raise PlanError(
                f"column {self.name!r} holds {odd.iloc[0]!r} for subject {odd.index[0]!r} ({len(odd)} such rows): "
                f"expected {', '.join(map(repr, known.values()))}"
            )
        return {part: sorted(str(s) for s in values.index[values == value]) for part, value in known.items()}


@dataclass(frozen=True)
class Frozen:
    """The parts stand in a file, so that another run, on any machine, trains on the very same subjects.

    Parameters
    ----------
    path
        JSON: ``{"train": [...], "val": [...], "test": [...]}``, as ``Frozen.save`` and
        ``RadiologyDataModule.freeze_split`` write it; other fields are passed over.
    """

    path: str

    @staticmethod
    def save(path: str | Path, parts: Parts, **more: object) -> Frozen:
        """Write a file of parts, and of whatever else is to stand in it."""
        Path(path).write_text(json.dumps({**parts, **more}, indent=2) + "\n")
        return Frozen(str(path))

    def parts(self, obs_meta: pd.DataFrame) -> Parts:
        """Subject ids of each part.

        Raises
        ------
        ConfigError
            When there is no such file, or it tells of no parts.
        PlanError
            When a subject of it is not in the cohort, or is in two parts.
        """
        held = self._read()
        parts = {part: sorted(map(str, held.get(part, []))) for part in PARTS}
        known, seen = set(map(str, obs_meta.index)), dict[str, str]()
        for part, subjects in parts.items():
            for subject in subjects:
                if subject not in known:
                    raise PlanError(f"{self.path}: subject {subject!r} of {part!r} is not in the cohort")
                if subject in seen:
                    raise PlanError(f"{self.path}: subject {subject!r} is in {seen[subject]!r} and in {part!r}")
                seen[subject] = part
        return parts

    def _read(self) -> dict[str, list[str]]:
        try:
            held = json.loads(Path(self.path).read_text())
        except OSError as error:
            raise ConfigError(f"Frozen({self.path!r}): {error}") from error
        except ValueError as error:
            raise ConfigError(f"{self.path} is no JSON: {error}") from error
        if not isinstance(held, dict) or not all(isinstance(held.get(part, []), list) for part in PARTS):
            raise ConfigError(f"{self.path} must hold lists of subjects under {', '.join(PARTS)}")
        return held


def _shuffled(obs_meta: pd.DataFrame, seed: int) -> list[str]:
    subjects = (str(s) for s in obs_meta.index)
    return sorted(subjects, key=lambda s: (hashlib.blake2b(f"{seed}:{s}".encode()).digest(), s))


def _interleaved(obs_meta: pd.DataFrame, seed: int, stratify: str | None) -> list[str]:
    """Subjects in an order of which every stretch holds the strata alike."""
    order, strata = _shuffled(obs_meta, seed), _strata(obs_meta, stratify)
    sizes, met = Counter(strata.values()), Counter[str]()
    places: dict[str, tuple[float, int]] = {}
    for subject in order:
        stratum = strata[subject]
        places[subject] = ((met[stratum] + 0.5) / sizes[stratum], len(places))
        met[stratum] += 1
    return sorted(order, key=lambda s: places[s])


def _grouped(obs_meta: pd.DataFrame, seed: int, stratify: str | None) -> list[str]:
    """Subjects stratum by stratum, to be dealt out in turn."""
    strata = _strata(obs_meta, stratify)
    return sorted(_shuffled(obs_meta, seed), key=lambda s: strata[s])


def _strata(obs_meta: pd.DataFrame, name: str | None) -> dict[str, str]:
    import pandas as pd

    subjects = [str(s) for s in obs_meta.index]
    if name is None:
        return dict.fromkeys(subjects, "")
    if name not in obs_meta.columns:
        raise PlanError(f"obs_meta has no column {name!r} to stratify by; it has {list(obs_meta.columns)}")
    column = obs_meta[name]
    numbers = pd.api.types.is_numeric_dtype(column.dtype) and not pd.api.types.is_bool_dtype(column.dtype)
    if numbers and column.nunique() > _MOST_STRATA:
        column = pd.qcut(column.astype("Float64"), 4, labels=False, duplicates="drop")
    return dict(zip(subjects, column.astype("string").fillna("missing").astype(str), strict=True))


_MOST_STRATA = 10
"""Numbers with more values than this are told apart by quarters only."""
