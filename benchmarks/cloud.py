"""An S3 server and a proxy before it, those of the tests, for benchmarks."""

from __future__ import annotations

import sys
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from cloud import KEY, SECRET, s3_config, served
from cloud_proxy import Proxy

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["KEY", "SECRET", "Proxy", "serve", "tiledb_settings"]


@contextmanager
def serve(folder: Path) -> Iterator[tuple[int, Proxy]]:
    """Serve a folder, whose folders are buckets; give the port of the server, and a proxy before it."""
    with served(folder) as server, Proxy(server.port) as proxy:
        yield server.port, proxy


def tiledb_settings(port: int) -> dict[str, str]:
    """How TileDB reaches it."""
    return dict(s3_config(port).tiledb)
