"""The end of a process in which libtiledb must not be torn down."""

from __future__ import annotations

import ctypes


def leave_without_destructors() -> None:
    """Let ``exit`` skip what was registered before, as ``multiprocessing`` does: libtiledb's destructors above all.

    They wait for ever, or crash, where threads of it are gone or still at work. Python's own end is not skipped.
    """
    libc = ctypes.CDLL(None)
    if hasattr(libc, "on_exit"):  # glibc; handlers run last first
        libc.on_exit(libc._exit, None)
