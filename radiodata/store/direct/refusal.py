"""Why the direct path leaves a read to TileDB. None of these reaches a user."""

from __future__ import annotations


class Refused(Exception):
    """Of a kind that the direct path does not know; it will not know it next time either."""


class Damaged(Refused):
    """Not what its metadata says, or not to be opened now: TileDB is to read it, or to say what is wrong."""


class Corrupt(Damaged):
    """A chunk that decodes, but to another length than its head tells.

    libtiledb 2.30 does not compare them: it gives whatever was in memory for the cells that are missing.
    """


def need(holds: object, what: str) -> None:
    """Refuse unless `holds`."""
    if not holds:
        raise Refused(what)


def intact(holds: object, what: str) -> None:
    """Call the bytes damaged unless `holds`."""
    if not holds:
        raise Damaged(what)
