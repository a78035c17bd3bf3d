"""What Lightning says twice, or without need, is not said."""

from __future__ import annotations

import logging
import warnings

__all__ = ["quiet"]


def quiet() -> None:
    """Drop what Lightning says twice, or without need."""
    logging.getLogger("lightning").handlers.clear()  # Hydra's handlers write the same lines
    tips = logging.getLogger("lightning.pytorch.utilities.rank_zero")
    tips.addFilter(lambda record: "Tip:" not in record.getMessage())
    # a run that goes on from another one's checkpoint keeps its own list of the best
    warnings.filterwarnings("ignore", message="The dirpath has changed")
    # torch 2.9 and later deprecate what Lightning 2.6 calls
    warnings.filterwarnings("ignore", message=r".*treespec, LeafSpec", category=FutureWarning)
