"""Errors of radiodata: each says what, which object, why, and what to do; each crosses a process whole."""

from __future__ import annotations

from dataclasses import dataclass


class RadiodataError(Exception):
    """Base of every error that radiodata raises on purpose."""


class ConfigError(RadiodataError, ValueError):
    """A setting that cannot be used: an unknown key, a value out of range, two settings at odds."""


class StoreError(RadiodataError):
    """A store that cannot be opened, read or written."""


class CohortNotFoundError(StoreError, FileNotFoundError):
    """No cohort at this URI."""


class FormatVersionError(StoreError):
    """A store written in a format that this version of radiodata does not know."""


class ObsNotFoundError(StoreError, KeyError):
    """A subject, volume or collection that the cohort does not hold."""

    def __str__(self) -> str:
        return str(self.args[0]) if self.args else ""


class TileReadError(StoreError, OSError):
    """Voxels that could not be read: names the volume, the box and the array."""


class PlanError(RadiodataError, ValueError):
    """A sampling request that cannot be met by this cohort."""


class StateMismatchError(RadiodataError, ValueError):
    """A loader state that belongs to another plan."""


@dataclass(frozen=True)
class Problem:
    """One reason why a file or subject was refused.

    Parameters
    ----------
    where
        The path, subject or obs_id concerned.
    why
        What is wrong with it.
    """

    where: str
    why: str

    def __str__(self) -> str:
        return f"{self.where}: {self.why}"


class IngestError(RadiodataError, ValueError):
    """Files or subjects that were refused, all of them named.

    Parameters
    ----------
    summary
        What was attempted and what the store holds now.
    problems
        Every refusal.
    """

    SHOWN = 20

    def __init__(self, summary: str, problems: list[Problem]) -> None:
        super().__init__(summary, problems)
        self.summary = summary
        self.problems = problems

    def __str__(self) -> str:
        shown = [f"  - {p}" for p in self.problems[: self.SHOWN]]
        more = len(self.problems) - len(shown)
        rest = [f"  ... and {more} more in `.problems`"] if more > 0 else []
        return "\n".join([f"{self.summary} ({len(self.problems)} problem(s))", *shown, *rest])
