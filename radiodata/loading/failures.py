"""What to do when a sample cannot be made: say so and stop, put another in its place, or go on without it."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, TypeAlias

from radiodata.errors import ConfigError, RadiodataError, TooManyErrors, is_system_error

if TYPE_CHECKING:
    from radiodata.errors import SampleError
    from radiodata.loading.stats import Stats

OnError: TypeAlias = Literal["raise", "replace", "skip"]

_log = logging.getLogger("radiodata.loading")


@dataclass
class Failures:
    """Counts samples that fail one after another in this process, and decides.

    Parameters
    ----------
    on_error
        ``"raise"`` ends the run at the first; ``"replace"`` takes a crop of another unit, the same one in any
        process; ``"skip"`` makes the batch smaller. Errors of the machine or of the program (out of memory,
        disk full, ...) end the run in any case.
    tolerance
        How many samples may fail one after another.
    stats
        Where failures are counted.
    """

    on_error: OnError
    tolerance: int
    stats: Stats
    _in_a_row: int = 0
    _told: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        if self.on_error not in ("raise", "replace", "skip"):
            raise ConfigError(f"on_error must be 'raise', 'replace' or 'skip', not {self.on_error!r}")
        if self.tolerance < 1:
            raise ConfigError(f"max_errors={self.tolerance}: at least 1 (to stop at the first, use on_error='raise')")

    def succeeded(self) -> None:
        """Note that a sample was made."""
        self._in_a_row = 0

    def failed(self, error: SampleError) -> None:
        """Note a failure; raise it, unless it is tolerated.

        Raises
        ------
        RadiodataError
            The error itself, or what it comes from where that names the volume too.
        TooManyErrors
            When too many failed one after another.
        """
        if self.on_error == "raise" or is_system_error(error):
            raise error.__cause__ if isinstance(error.__cause__, RadiodataError) else error
        self._in_a_row += 1
        self.stats.count("errors")
        self.stats.count("replaced" if self.on_error == "replace" else "skipped")
        if error.obs_id not in self._told:
            self._told.add(error.obs_id)
            _log.warning("%s (on_error=%r; further errors of this volume are only counted)", error, self.on_error)
        if self._in_a_row > self.tolerance:
            raise TooManyErrors(self._in_a_row, self.tolerance, str(error)) from error
