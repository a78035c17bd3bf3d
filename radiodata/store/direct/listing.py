"""Which fragment holds which slot of a packed shard, as TileDB itself lists them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import tiledb

from radiodata.store.direct.refusal import Damaged, Refused, need
from radiodata.store.direct.schema import layout_of

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from radiodata.store.direct.schema import Layout


@dataclass(frozen=True)
class Shard:
    """A packed shard on local disk, as it was when it was listed.

    Attributes
    ----------
    schema_name
        Name of the only schema that it ever had.
    fragments
        Folder of the fragment of each slot; None where there are several, or one of several slots.
    """

    layout: Layout
    schema_name: str
    fragments: dict[int, str | None]

    def fragment(self, slot: int) -> str:
        """Folder of the fragment that alone holds a slot.

        Raises
        ------
        Refused
            When there is none, or more than one.
        """
        need(slot in self.fragments, "TileDB lists no fragment for the slot")
        folder = self.fragments[slot]
        if folder is None:
            raise Refused("fragments were merged, or several hold the slot")
        return folder


def local_path(uri: str) -> str | None:
    """Path of a URI that lies on a local file system."""
    if "://" not in uri:
        return uri
    return uri.removeprefix("file://") if uri.startswith("file:///") else None


def list_shard(uri: str, ctx: tiledb.Ctx, names: Callable[[str], Sequence[str]]) -> Shard:
    """List a packed shard: commits, deletes and vacuumed fragments are TileDB's to judge.

    Parameters
    ----------
    names
        Gives the names in a folder.

    Raises
    ------
    Refused
        When the direct path cannot read it.
    """
    path = local_path(uri)
    try:
        layout = layout_of(tiledb.ArraySchema.load(uri, ctx=ctx))
        found = tiledb.array_fragments(uri, ctx=ctx)
        # a folder of enumerations may be beside them
        schemas = [n for n in names(f"{uri if path is None else path}/__schema") if n.startswith("__") and "/" not in n]
        schemas = [n for n in schemas if n != "__enumerations"]
        need(len(schemas) == 1, "its schema was changed")
        return Shard(layout, schemas[0], _by_slot(found.uri, found.nonempty_domain))
    except Refused:
        raise
    except (tiledb.TileDBError, OSError) as error:
        raise Damaged(f"it cannot be listed: {error}") from error
    except Exception as error:  # what TileDB-Py tells, and how, may change: that must cost time and no read
        raise Refused(f"TileDB-Py describes it in a way that is not known: {error!r}") from error


def _by_slot(uris: Sequence[str], domains: Sequence[Any]) -> dict[int, str | None]:
    fragments: dict[int, str | None] = {}
    for uri, domain in zip(uris, domains, strict=True):
        first, last = (int(n) for n in domain[0])
        for slot in range(first, last + 1):
            fragments[slot] = (local_path(uri) or uri) if first == last and slot not in fragments else None
    return fragments
