"""Sliding windows over volumes that are read in parts: MONAI's numbers, constant fields, bounded memory."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from radiodata.errors import ConfigError
from radiodata.inference import BLENDS, CoverageError, RollingStitcher, SlidingWindow, Stitcher, mirrored
from radiodata.sampling import grid_starts


@dataclass
class Held:
    """A volume in memory that remembers what was read of it."""

    voxels: np.ndarray
    tile: tuple[int, int, int] = (8, 8, 8)
    pad: float = 0.0
    reads: list[tuple[int, int]] = field(default_factory=list)

    @property
    def size(self) -> tuple[int, int, int]:
        return self.voxels.shape[1:]

    def read(self, region: Any) -> np.ndarray:
        (x0, x1), (y0, y1), (z0, z1) = np.asarray(region).tolist()
        assert (y0, y1, z0, z1) == (0, self.size[1], 0, self.size[2])
        self.reads.append((x0, x1))
        return self.voxels[:, x0:x1]


def volume(shape: tuple[int, int, int], channels: int = 1) -> Held:
    rng = np.random.default_rng(sum(shape))
    return Held(rng.normal(size=(channels, *shape)).astype(np.float32))


@pytest.fixture(scope="module")
def network() -> torch.nn.Module:
    torch.manual_seed(1)
    layers = [torch.nn.Conv3d(1, 4, 3, padding=1), torch.nn.ReLU(), torch.nn.Conv3d(4, 3, 3, padding=1)]
    return torch.nn.Sequential(*layers).eval()


def whole(sliding: SlidingWindow, held: Held, network: Any, **how: Any) -> torch.Tensor:
    """All slabs, one after another, each plane once."""
    slabs = list(sliding.slabs(held, network, **how))
    ends = [(first, first + slab.shape[1]) for first, slab in slabs]
    assert ends[0][0] == 0
    assert ends[-1][1] == held.size[0]
    assert all(a[1] == b[0] for a, b in pairwise(ends))
    return torch.cat([slab for _, slab in slabs], dim=1)


@pytest.mark.parametrize("memory", [1 << 30, 0])
@pytest.mark.parametrize("mode", ["constant", "gaussian"])
@pytest.mark.parametrize(
    ("shape", "overlap"),
    [((32, 24, 16), 0.5), ((40, 16, 28), 0.25), ((28, 16, 40), 0.75), ((16, 16, 16), 0.5), ((9, 24, 13), 0.5)],
)
def test_it_is_monais(network: torch.nn.Module, shape: Any, overlap: float, mode: Any, memory: int) -> None:
    """Shapes where the step divides the way, so that both rules place the same windows; and smaller ones."""
    inferers = pytest.importorskip("monai.inferers")
    held = volume(shape)
    with torch.no_grad():
        image = torch.from_numpy(held.voxels)[None]
        theirs = inferers.sliding_window_inference(image, (16, 16, 16), 4, network, overlap=overlap, mode=mode)[0]
    ours = whole(SlidingWindow(16, overlap, mode, memory=memory), held, network)
    torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-4)
    classes = SlidingWindow(16, overlap, mode, memory=memory).classes(held, network)
    assert classes.dtype == np.uint8
    np.testing.assert_array_equal(classes, ours.argmax(0).numpy())


@settings(max_examples=60, deadline=None)
@given(
    st.tuples(*[st.integers(3, 40)] * 3),
    st.tuples(*[st.integers(2, 12)] * 3),
    st.floats(0, 0.9),
    st.sampled_from(BLENDS),
    st.booleans(),
    st.integers(1, 7),
)
def test_a_constant_field_stays_constant(
    shape: Any, patch: Any, overlap: float, blend: Any, on_disk: bool, tile: int
) -> None:
    held = Held(np.full((1, *shape), 0.7, np.float32), tile=(tile,) * 3)
    sliding = SlidingWindow(patch, overlap, blend, batch=3, memory=0 if on_disk else 1 << 30)
    out = whole(sliding, held, lambda windows: torch.full((len(windows), 2, *patch), 0.7))
    windows = np.prod([-(-p // max(1, int(p * (1 - overlap)))) for p in patch])  # that a voxel may lie in
    assert (out - 0.7).abs().max() < 1e-6 * max(1, windows / 27)  # float32 rounds each sum


@settings(max_examples=40, deadline=None)
@given(st.tuples(*[st.integers(3, 30)] * 3), st.tuples(*[st.integers(2, 12)] * 3), st.floats(0, 0.8), st.booleans())
def test_it_is_what_a_whole_volume_gives(shape: Any, patch: Any, overlap: float, on_disk: bool) -> None:
    """Each window has what lies there, whatever the rows that were read; tiles are read once, in order."""
    held = volume(shape)
    out = whole(SlidingWindow(patch, overlap, memory=0 if on_disk else 1 << 30), held, lambda w: w * 2)
    stitcher = Stitcher(shape, 1, patch)
    image = torch.from_numpy(held.voxels)
    for start in grid_starts(shape, patch, overlap):
        window = torch.zeros(1, *patch)
        low, high = np.maximum(start, 0), np.minimum(start + patch, shape)
        here = tuple(slice(a, b) for a, b in zip(low - start, high - start, strict=True))
        window[:, *here] = image[:, *(slice(a, b) for a, b in zip(low, high, strict=True))]
        stitcher.add(window * 2, start)
    torch.testing.assert_close(out, stitcher.result(), atol=1e-5, rtol=1e-5)
    assert held.reads == [(x, min(x + 8, shape[0])) for x in range(0, shape[0], 8)]


def test_mirrored_predictions_are_averaged(network: torch.nn.Module) -> None:
    patches = torch.randn(2, 1, 6, 5, 4)
    with torch.no_grad():
        found = mirrored(network, patches, (0, 2))
        ways = [network(patches.flip(d)).flip(d) for d in ([], [2], [4], [2, 4])]
    torch.testing.assert_close(found, torch.stack(ways).mean(0))
    held = volume((20, 12, 9))
    out = whole(SlidingWindow(8, flips=(0, 1, 2)), held, network)
    flipped = whole(SlidingWindow(8, flips=(0, 1, 2)), Held(held.voxels[:, ::-1].copy()), network)
    torch.testing.assert_close(out, flipped.flip(1), atol=1e-5, rtol=1e-5)


def test_windows_are_prepared_as_they_come() -> None:
    held = Held(np.arange(4096, dtype=np.int16).reshape(1, 16, 16, 16), pad=-7)
    seen = []

    def prepare(windows: torch.Tensor) -> torch.Tensor:
        seen.append(windows.dtype)
        return windows.double() / 2

    out = whole(SlidingWindow(8), held, lambda w: w, prepare=prepare)
    assert set(seen) == {torch.int16}
    torch.testing.assert_close(out, torch.from_numpy(held.voxels).float() / 2)


def test_what_does_not_fit_is_refused() -> None:
    stitcher = RollingStitcher((20, 8, 8), 1, 8)
    with pytest.raises(ConfigError, match="out of turn"):
        stitcher.add(torch.zeros(1, 8, 8, 8), (12, 0, 0))
    with pytest.raises(ConfigError, match="takes"):
        stitcher.add(torch.zeros(2, 8, 8, 8), (0, 0, 0))
    stitcher.add(torch.zeros(1, 8, 8, 8), (0, 0, 0))
    stitcher.release(4)
    with pytest.raises(ConfigError, match="out of turn"):
        stitcher.add(torch.zeros(1, 8, 8, 8), (3, 0, 0))
    with pytest.raises(CoverageError, match="no window fell"):
        stitcher.release(10)
    with pytest.raises(ConfigError, match="one prediction a voxel"):
        next(SlidingWindow(8).slabs(volume((8, 8, 8)), lambda w: w[..., ::2]))
    for wrong in ({"blend": "box"}, {"batch": 0}, {"flips": (0, 0)}, {"flips": (3,)}, {"overlap": 1.0}):
        with pytest.raises(ConfigError):
            SlidingWindow(8, **wrong)


MEASURE = """
import json, sys
import numpy as np, torch
from radiodata.inference import SlidingWindow
from tests_held import Made

torch.set_num_threads(1)
shape = tuple(json.loads(sys.argv[1]))
network = lambda w: torch.cat([w, -w], dim=1)
rows = 0
for _, slab in SlidingWindow(64, 0.25, memory=32 << 20).slabs(Made(shape), network):
    rows += slab.shape[1]
assert rows == shape[0]
print([int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmHWM")][0])
"""
MADE = """
import numpy as np

class Made:
    tile, pad = (32, 32, 32), 0.0
    def __init__(self, size): self.size = size
    def read(self, region):
        region = np.asarray(region)
        return np.zeros((1, *(region[:, 1] - region[:, 0])), np.int16)
"""


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_memory_does_not_grow_with_the_volume(tmp_path: Any) -> None:
    (tmp_path / "tests_held.py").write_text(MADE)

    def peak(shape: tuple[int, int, int]) -> float:
        command = [sys.executable, "-c", MEASURE, json.dumps(shape)]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
        return int(done.stdout) / 1024

    small, large = peak((128, 128, 128)), peak((512, 512, 400))
    longer = peak((2048, 128, 128))
    print(f"peak memory: 128-cube {small:.0f} MB, 512x512x400 {large:.0f} MB, 2048x128x128 {longer:.0f} MB")
    assert longer < small + 40  # of which 32 are what may be held in memory
    assert large < small + 130  # 50 times the voxels: planes of 512 x 400 of a row of windows take 39 MB
