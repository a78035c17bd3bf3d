"""Names for array types used across rooms."""

from __future__ import annotations

from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

Voxels: TypeAlias = NDArray[Any]
"""Voxels, ``(channel, x, y, z)`` unless said otherwise, any dtype."""

Box: TypeAlias = NDArray[np.int64]
"""Start and stop per axis, shape ``(3, 2)``, in voxels."""

Affine: TypeAlias = NDArray[np.float64]
"""Voxel index to world mm (RAS+), shape ``(4, 4)``."""
