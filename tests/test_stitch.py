"""Stitching: what comes back is what went in, whatever the overlap, shape, blend and order."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from radiodata.errors import ConfigError
from radiodata.inference import BLENDS, CoverageError, Stitcher, VolumeStitcher, window_weights
from radiodata.sampling.grid import grid_starts

SHAPES = [(32, 32, 32), (33, 17, 29), (7, 40, 16), (1, 5, 50), (9, 9, 9), (16, 1, 1)]
PATCH = (16, 12, 9)


def window(volume: torch.Tensor, start: Any, patch: tuple[int, int, int]) -> torch.Tensor:
    """Window of a volume; NaN where it hangs over, which no result may show."""
    out = torch.full((len(volume), *patch), torch.nan)
    whole = [(int(s), int(s) + p) for s, p in zip(start, patch, strict=True)]
    real = [(max(lo, 0), min(hi, n)) for (lo, hi), n in zip(whole, volume.shape[1:], strict=True)]
    here = tuple(slice(lo - s, hi - s) for (lo, hi), (s, _) in zip(real, whole, strict=True))
    out[:, *here] = volume[:, *(slice(*r) for r in real)]
    return out


def stitched(volume: torch.Tensor, patch: tuple[int, int, int], overlap: Any, order: Any = None, **how: Any) -> Any:
    shape = tuple(volume.shape[1:])
    stitcher = Stitcher(shape, len(volume), patch, **how)
    starts = grid_starts(shape, patch, overlap)
    for start in starts if order is None else starts[order(len(starts))]:
        stitcher.add(window(volume, start, patch), start)
    return stitcher.result()


def ramp(shape: tuple[int, int, int]) -> torch.Tensor:
    x, y, z = np.indices(shape)
    return torch.from_numpy(np.stack([x + 100 * y - 3 * z, 0.5 * z - x]).astype(np.float32))


@pytest.mark.parametrize("blend", BLENDS)
@pytest.mark.parametrize("overlap", [0.0, 0.25, 0.5, 0.75])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_a_constant_comes_back_constant(shape: Any, overlap: float, blend: Any) -> None:
    out = stitched(torch.full((1, *shape), 0.7), PATCH, overlap, blend=blend)
    assert out.shape == (1, *shape)
    assert torch.equal(out, torch.full((1, *shape), 0.7))


@pytest.mark.parametrize("blend", BLENDS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_a_ramp_comes_back(shape: Any, blend: Any) -> None:
    expected = ramp(shape)
    assert torch.allclose(stitched(expected, PATCH, 0.6, blend=blend), expected, rtol=1e-6, atol=1e-5)


def test_without_overlap_every_voxel_is_itself() -> None:
    expected = torch.randn(2, 32, 24, 18)
    assert torch.equal(stitched(expected, PATCH, 0, blend="constant"), expected)


@settings(max_examples=25, deadline=None)
@given(st.tuples(*[st.integers(1, 24)] * 3), st.tuples(*[st.integers(1, 12)] * 3), st.floats(0, 0.8), st.integers(0, 9))
def test_any_grid_in_any_order(shape: Any, patch: Any, overlap: float, seed: int) -> None:
    volume = torch.from_numpy(np.random.default_rng(seed).standard_normal((1, *shape)).astype(np.float32))
    shuffled = stitched(volume, patch, overlap, np.random.default_rng(seed).permutation)
    assert torch.allclose(shuffled, volume, rtol=1e-5, atol=1e-5)


def test_order_changes_rounding_only() -> None:
    """Predictions that differ where windows meet, added forwards and backwards."""
    torch.manual_seed(0)
    starts = grid_starts((30, 30, 30), 16, 0.5)
    predictions = torch.randn(len(starts), 3, 16, 16, 16)
    results = []
    for order in (np.arange(len(starts)), np.arange(len(starts))[::-1].copy()):
        stitcher = Stitcher((30, 30, 30), 3, 16)
        stitcher.add(predictions[order], starts[order])
        results.append(stitcher.result())
    assert torch.allclose(*results, rtol=1e-5, atol=1e-6)
    assert not torch.allclose(results[0].std(), predictions.std(), rtol=0.05)  # they were blended


@pytest.mark.parametrize("blend", BLENDS)
@pytest.mark.parametrize("patch", [(1, 1, 1), (2, 3, 64), (96, 96, 96)])
def test_weights_are_positive_symmetric_and_bounded(blend: Any, patch: Any) -> None:
    weights = window_weights(patch, blend)
    assert tuple(weights.shape) == patch
    assert weights.min() >= 1e-3
    assert weights.max() <= 1
    assert torch.allclose(weights, weights.flip(0, 1, 2))
    assert weights.max() == weights[tuple(n // 2 for n in patch)]


@pytest.fixture(scope="module")
def network() -> torch.nn.Module:
    torch.manual_seed(1)
    layers = [torch.nn.Conv3d(1, 4, 3, padding=1), torch.nn.ReLU(), torch.nn.Conv3d(4, 2, 3, padding=1)]
    return torch.nn.Sequential(*layers).eval()


@pytest.mark.parametrize("mode", ["constant", "gaussian"])
@pytest.mark.parametrize(
    ("shape", "overlap"),
    [((32, 24, 16), 0.5), ((32, 16, 16), 0.25), ((28, 16, 40), 0.75), ((16, 16, 16), 0.5), ((9, 24, 13), 0.5)],
)
def test_agrees_with_monai(network: torch.nn.Module, shape: Any, overlap: float, mode: Any) -> None:
    """Shapes where the step divides the way, so that both rules place the same windows; and smaller ones."""
    inferers = pytest.importorskip("monai.inferers")
    if overlap == 0.25:
        shape = (16 + 12 * 2, 16, 16 + 12)
    volume = torch.randn(1, *shape)
    with torch.no_grad():
        theirs = inferers.sliding_window_inference(volume[None], (16, 16, 16), 4, network, overlap=overlap, mode=mode)
        stitcher = Stitcher(shape, 2, 16, blend=mode)
        for start in grid_starts(shape, 16, overlap):
            one = torch.nan_to_num(window(volume, start, (16, 16, 16)))
            stitcher.add(network(one[None]), start[None])
    assert torch.allclose(stitcher.result(), theirs[0], rtol=1e-4, atol=1e-5)


def test_nan_shows() -> None:
    stitcher = Stitcher((4, 4, 4), 1, 4)
    prediction = torch.ones(1, 4, 4, 4)
    prediction[0, 1, 2, 3] = torch.nan
    stitcher.add(prediction, (0, 0, 0))
    stitcher.add(torch.ones(1, 4, 4, 4), (0, 0, 0))
    assert stitcher.result().isnan().nonzero().tolist() == [[0, 1, 2, 3]]


def test_half_precision_in_and_out_and_no_graph() -> None:
    stitcher = Stitcher((4, 4, 4), 1, 4, dtype=torch.float16)
    stitcher.add(torch.ones(1, 4, 4, 4, dtype=torch.bfloat16, requires_grad=True), (0, 0, 0))
    out = stitcher.result()
    assert out.dtype == torch.float16
    assert not out.requires_grad
    assert torch.equal(out, torch.ones(1, 4, 4, 4, dtype=torch.float16))


def test_voxels_without_a_window_are_refused() -> None:
    stitcher = Stitcher((20, 10, 10), 1, 10)
    stitcher.add(torch.ones(1, 10, 10, 10), (0, 0, 0))
    with pytest.raises(CoverageError, match=r"1,000 of the 2,000 voxels.*\[10, 0, 0\] to \[20, 10, 10\]"):
        stitcher.result()


@pytest.mark.parametrize(
    ("prediction", "start", "says"),
    [
        ((2, 4, 4, 4), (0, 0, 0), r"takes \(1, 4, 4, 4\) with \(3,\)"),
        ((1, 4, 4, 5), (0, 0, 0), "this stitcher takes"),
        ((2, 1, 4, 4, 4), (0, 0, 0), "this stitcher takes"),
        ((1, 4, 4, 4), (0, 8, 0), "lies outside"),
        ((1, 4, 4, 4), (0, -4, 0), "lies outside"),
    ],
)
def test_windows_that_do_not_fit_are_refused(prediction: Any, start: Any, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        Stitcher((8, 8, 8), 1, 4).add(torch.zeros(prediction), start)


@pytest.mark.parametrize(
    ("how", "says"),
    [
        ({"blend": "gauss"}, "choose one of constant, gaussian"),
        ({"sigma": 0}, "positive share"),
        ({"dtype": torch.int16}, "floating type"),
        ({"channels": 0}, "one channel at least"),
        ({"patch": (4, 4)}, "patch must be"),
        ({"shape": (4, 4, 0)}, "shape must be"),
    ],
)
def test_senseless_settings_are_refused(how: Any, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        Stitcher(**{"shape": (8, 8, 8), "channels": 1, "patch": 4, **how})


VOLUMES = {"a": (12, 9, 8), "b": (8, 8, 8), "c": (5, 20, 11)}


def windows_of_all(seed: int, overlap: float = 0.5) -> list[tuple[str, Any]]:
    each = [(name, s) for name, shape in VOLUMES.items() for s in grid_starts(shape, 8, overlap)]
    return [each[i] for i in np.random.default_rng(seed).permutation(len(each))]


@pytest.mark.parametrize("seed", [0, 1])
def test_volumes_come_back_when_their_last_window_came(seed: int) -> None:
    truth = {name: torch.randn(2, *shape) for name, shape in VOLUMES.items()}
    stitcher, found = VolumeStitcher(2, 8, 0.5), {}
    queue = windows_of_all(seed)
    for n, (name, start) in enumerate([*queue, *queue[:3]]):  # the end of an epoch may repeat some
        for _ in range(2):
            done = stitcher.add(name, VOLUMES[name], window(truth[name], start, (8, 8, 8)), start)
            assert [d for d, _ in done] in ([], [name])
            found.update(dict(done))
        assert (name in found) == all(other != name for other, _ in queue[n + 1 :])
    stitcher.finish()
    assert found.keys() == truth.keys()
    for name, out in found.items():
        assert torch.allclose(out, truth[name], atol=1e-5)


def test_too_many_open_volumes_are_refused() -> None:
    stitcher = VolumeStitcher(2, 8, 0.5, max_open=1)
    stitcher.add("a", VOLUMES["a"], torch.zeros(2, 8, 8, 8), (0, 0, 0))
    with pytest.raises(ConfigError, match=r"c would be one more than the 1 volumes.*\(a\).*raise max_open at 0 MB"):
        stitcher.add("c", VOLUMES["c"], torch.zeros(2, 8, 8, 8), (0, 0, 0))
    with pytest.raises(CoverageError, match=r"1 volume\(s\) incomplete: a \(1 of 4 windows\)"):
        stitcher.finish()


def test_a_volume_of_two_shapes_is_refused() -> None:
    stitcher = VolumeStitcher(1, 8, 0.5)
    stitcher.add("a", (12, 9, 8), torch.zeros(1, 8, 8, 8), (0, 0, 0))
    with pytest.raises(ConfigError, match=r"a: came with shape \(12, 9, 8\) first and with \(9, 9, 8\) now"):
        stitcher.add("a", (9, 9, 8), torch.zeros(1, 8, 8, 8), (1, 0, 0))
