"""How often a test tries: a little on the way, more before a change lands, all that is promised for a proof."""

from __future__ import annotations

import os


def tries(quick: int, landing: int, proof: int) -> int:
    """Give the number for here: of ``make quick``, of a landing (``CI`` is set) or of ``make proof``."""
    if os.environ.get("RADIODATA_PROOF"):
        return proof
    return landing if os.environ.get("CI") else quick
