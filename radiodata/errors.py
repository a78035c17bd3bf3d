"""Errors of radiodata: each says what, which object, why, and what to do; each crosses a process whole."""

from __future__ import annotations

import errno
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Sequence


class RadiodataError(Exception):
    """Base of every error that radiodata raises on purpose."""


class ConfigError(RadiodataError, ValueError):
    """A setting that cannot be used: an unknown key, a value out of range, two settings at odds."""


class ExpressionError(RadiodataError, ValueError):
    """A filter expression that cannot be parsed, or does not fit the columns."""


class StoreError(RadiodataError):
    """A store that cannot be opened, read or written."""


class CohortNotFoundError(StoreError, FileNotFoundError):
    """No cohort at this URI."""


class FormatVersionError(StoreError):
    """A store written in a format that this version of radiodata does not know."""


class EncryptionError(StoreError):
    """A cohort is encrypted with another key, or a key was given or not given against what it is."""


class ObsNotFoundError(StoreError, KeyError):
    """A subject, volume or collection that the cohort does not hold."""

    def __str__(self) -> str:
        return str(self.args[0]) if self.args else ""


class TileReadError(StoreError, OSError):
    """Voxels that could not be read: names the volume, the box and the array."""


class UnreachableError(StoreError, ConnectionError):
    """An object store that did not give what was asked of it in time: names endpoint and object, and how long it took.

    Not the fault of a sample: it ends a run, which goes on from its last checkpoint.
    """


class GeometryError(RadiodataError, ValueError):
    """A volume whose grid is unknown or does not fit: a shape that changed without an affine, a box outside of it."""


class PipelineError(RadiodataError, RuntimeError):
    """A volume that a pipeline could not make: names it, the step, and what that said."""


class ExportError(RadiodataError):
    """A volume that cannot be given in another format without loss."""


class PlanError(RadiodataError, ValueError):
    """A sampling request that cannot be met by this cohort."""


class StateMismatchError(RadiodataError, ValueError):
    """A loader state that belongs to another plan."""


class SampleError(RadiodataError, RuntimeError):
    """A sample that could not be made.

    Parameters
    ----------
    obs_id, subject
        Its volume.
    box
        Start and stop per axis of the crop, in voxels.
    stage
        What failed: ``"read"`` or ``"transform"``.
    cause
        Why.
    """

    def __init__(self, obs_id: str, subject: str, box: Sequence[Sequence[int]], stage: str, cause: str) -> None:
        spans = tuple((int(low), int(high)) for low, high in box)
        super().__init__(obs_id, subject, spans, stage, cause)
        self.obs_id, self.subject, self.box, self.stage, self.cause = obs_id, subject, spans, stage, cause

    def __str__(self) -> str:
        inside = ", ".join(f"{low}:{high}" for low, high in self.box)
        return f"cannot {self.stage} [{inside}] of volume {self.obs_id!r} (subject {self.subject!r}): {self.cause}"


class TooManyErrors(RadiodataError, RuntimeError):
    """More samples failed one after another than are tolerated.

    Parameters
    ----------
    failures
        How many did.
    tolerated
        How many may.
    last
        What the last of them said.
    """

    def __init__(self, failures: int, tolerated: int, last: str) -> None:
        super().__init__(failures, tolerated, last)
        self.failures, self.tolerated, self.last = failures, tolerated, last

    def __str__(self) -> str:
        return (
            f"{self.failures} samples failed one after another, and {self.tolerated} are tolerated: this is not a "
            f"matter of single volumes. The last of them: {self.last}"
        )


class WorkerError(RadiodataError, RuntimeError):
    """A worker process that gives no more batches.

    Attributes
    ----------
    worker, pid
        Which.
    exitcode
        How it ended; minus the signal that killed it. None while it runs.
    epoch, step
        The batch it was making, as far as is known.
    """

    def __init__(self, message: str, **what: Any) -> None:
        super().__init__(message)
        self.worker: int | None = what.get("worker")
        self.pid: int | None = what.get("pid")
        self.exitcode: int | None = what.get("exitcode")
        self.epoch: int | None = what.get("epoch")
        self.step: int | None = what.get("step")


class WorkerDiedError(WorkerError):
    """A worker process that was killed, crashed or left: says the likely cause and what to change."""


class WorkerHungError(WorkerError):
    """A batch that did not come in time: says what the process that makes it was doing."""


SYSTEM_ERRORS: tuple[type[BaseException], ...] = (
    KeyboardInterrupt,
    SystemExit,
    GeneratorExit,
    MemoryError,
    ImportError,
    NotImplementedError,
    ConfigError,
    TooManyErrors,
    UnreachableError,
    WorkerError,
)
"""Never the fault of one sample, so never tolerated."""

_SYSTEM_ERRNOS = {errno.ENOSPC, errno.EDQUOT, errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOTCONN, errno.EROFS}
_SYSTEM_WORDS = ("can't allocate memory", "Too many open files", "No space left on device", "out of memory")


def is_system_error(error: BaseException) -> bool:
    """Whether an error, or what caused it, is the machine's or the program's, and not that of one sample."""
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, SYSTEM_ERRORS):
            return True
        if isinstance(seen, OSError) and seen.errno in _SYSTEM_ERRNOS:
            return True
        if any(words in str(seen) for words in _SYSTEM_WORDS):
            return True
        seen = seen.__cause__
    return False


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
