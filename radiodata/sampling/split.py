"""Splits by subject: deterministic, the same on every machine, whatever the order of the table."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, TypeAlias, runtime_checkable

from radiodata.errors import ConfigError, PlanError

if TYPE_CHECKING:
    from collections.abc import Iterable

    import pandas as pd

Parts: TypeAlias = "dict[str, list[str]]"


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
    """

    val: float = 0.2
    test: float = 0.0
    seed: int = 0

    def __post_init__(self) -> None:
        if self.val < 0 or self.test < 0 or self.val + self.test >= 1:
            raise ConfigError(f"Fractions(val={self.val}, test={self.test}): give shares whose sum is below 1")

    def parts(self, obs_meta: pd.DataFrame) -> Parts:
        """Subject ids of each part."""
        order = _shuffled(obs_meta.index, self.seed)
        n_val, n_test = (max(1, round(f * len(order))) if f > 0 else 0 for f in (self.val, self.test))
        if n_val + n_test >= len(order):
            raise PlanError(f"{len(order)} subjects cannot be split into train, {n_val} val and {n_test} test")
        val, test, train = order[:n_val], order[n_val : n_val + n_test], order[n_val + n_test :]
        return {"train": sorted(train), "val": sorted(val), "test": sorted(test)}


@dataclass(frozen=True)
class KFold:
    """Fold `fold` of `k` is validation, the rest is training; every subject is in one fold."""

    k: int = 5
    fold: int = 0
    seed: int = 0

    def __post_init__(self) -> None:
        if self.k < 2 or not 0 <= self.fold < self.k:
            raise ConfigError(f"KFold(k={self.k}, fold={self.fold}): k must be 2 or more, fold from 0 to k - 1")

    def parts(self, obs_meta: pd.DataFrame) -> Parts:
        """Subject ids of each part."""
        order = _shuffled(obs_meta.index, self.seed)
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


def _shuffled(subjects: Iterable[object], seed: int) -> list[str]:
    return sorted((str(s) for s in subjects), key=lambda s: (hashlib.blake2b(f"{seed}:{s}".encode()).digest(), s))
