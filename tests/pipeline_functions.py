"""Transforms that other processes can import."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np


def double(volume: np.ndarray, row: Mapping[str, Any]) -> np.ndarray:
    return volume * 2


def minus_age(volume: np.ndarray, row: Mapping[str, Any]) -> np.ndarray:
    return volume - np.int16(row["age"])


def measure(volume: np.ndarray, row: Mapping[str, Any]) -> tuple[np.ndarray, dict[str, Any]]:
    return volume, {"top": int(volume.max()), "mean": float(volume.mean()), "whose": row["obs_subject_id"].upper()}


def halve(volume: np.ndarray, row: Mapping[str, Any]) -> tuple[np.ndarray, dict[str, Any]]:
    return np.ascontiguousarray(volume[::2, ::2, ::2]), {"affine": row["affine"] @ np.diag([2.0, 2, 2, 1])}


def centred(volumes: Sequence[np.ndarray], rows: Sequence[Mapping[str, Any]]) -> list[np.ndarray]:
    middle = np.float32(np.mean([v.mean() for v in volumes]))
    return [v.astype(np.float32) - middle for v in volumes]


def refuse_third(volume: np.ndarray, row: Mapping[str, Any]) -> np.ndarray:
    if row["obs_subject_id"].endswith("2"):
        raise ValueError("a volume that this cannot take")
    return volume


def die_at_third(volume: np.ndarray, row: Mapping[str, Any]) -> np.ndarray:
    if row["obs_subject_id"].endswith("2"):
        os._exit(9)
    return volume


def slowly(volume: np.ndarray, row: Mapping[str, Any]) -> np.ndarray:
    time.sleep(0.02)
    return volume + 1
