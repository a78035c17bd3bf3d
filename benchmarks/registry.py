"""What there is to run: benchmarks by name, and in each the rows, one per contender and configuration."""

from __future__ import annotations

import importlib
import importlib.util
import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping
    from types import ModuleType

    from benchmarks.contenders.base import Contender

OUTSIDE_BRACKETS = re.compile(r",(?![^(]*\))")  # the comma of "A (x, y),B" that ends a name
READERS = ("RadiObject", "blosc2")  # the peers of what reads voxels
_READING = ("patch", "loader", "cold", "foreground", "train", "gpu_training")
NAMES = (*_READING, "ingest", "disk", "table", "memory", "scale", "s3")
MODULES = {name: f"benchmarks.{name}" for name in NAMES}


@dataclass(frozen=True)
class Row:
    """One line of a benchmark: a contender's class (``module:Class``), its options, what it needs."""

    family: str
    name: str
    target: str
    requires: tuple[str, ...] = ()
    options: Mapping[str, Any] = field(default_factory=dict)
    workers: int = 0
    crops_per_volume: int | None = None
    note: str = ""
    leading: bool = False  # measured in every case of its benchmark, others in the first
    quick: bool = True  # False: --quick leaves it out, and says so, unless it is named

    def build(self) -> Contender:
        """Import the contender's module and make it."""
        module, _, name = self.target.partition(":")
        contender: Contender = getattr(importlib.import_module(module), name)(**self.options)
        return contender

    def missing(self) -> list[str]:
        """Return the packages that this row needs and this environment lacks."""
        return [name for name in self.requires if not _installed(name)]


def benchmark(name: str) -> ModuleType:
    """Return the module of one benchmark: its ROWS, FULL and QUICK parameters, cases() and measure().

    Raises
    ------
    KeyError
        If there is no benchmark of that name.
    """
    return importlib.import_module(MODULES[name])


def select(rows: tuple[Row, ...], wanted: str | None) -> list[Row]:
    """Return the rows whose name or family is in the comma-separated ``wanted``, all of them for None.

    Raises
    ------
    ValueError
        If a name fits no row; the message lists the families.
    """
    if wanted is None:
        return list(rows)
    names = [name.strip() for name in OUTSIDE_BRACKETS.split(wanted) if name.strip()]
    families = sorted({row.family for row in rows}, key=str.lower)
    if unknown := [n for n in names if not any(_fits(row, n) for row in rows)]:
        raise ValueError(
            f"no contender is called {', '.join(map(repr, unknown))}; there are {', '.join(families)} "
            "(or the full name of a row, as `python -m benchmarks list` prints it)"
        )
    return [row for row in rows if any(_fits(row, n) for n in names)]


def _installed(name: str) -> bool:
    spec = importlib.util.find_spec(name)
    return spec is not None and spec.origin is not None  # a folder without __init__.py has a spec, but no origin


def _fits(row: Row, name: str) -> bool:
    return name.lower() in (row.family.lower(), row.name.lower())
