"""Files and folders that outlast a crash of the machine."""

from __future__ import annotations

import os
from contextlib import contextmanager
from typing import IO, TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@contextmanager
def durable(path: Path) -> Iterator[IO[bytes]]:
    """Open a file that must be new; when it closes, it is on the disk."""
    with path.open("xb") as file:
        yield file
        file.flush()
        os.fsync(file.fileno())


def sync(folder: Path) -> None:
    """Make what was added to a folder outlast a crash of the machine, where the system can."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError:  # some network file systems cannot, and need not
        pass
    finally:
        os.close(handle)
