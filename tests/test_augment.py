"""Augmentation of batches: keyed by sample alone, images and labels together, geometry as MONAI's."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation
from scipy.stats import kstest

from radiodata.augment import Augment, warp
from radiodata.augment.draws import Draws, normals
from radiodata.augment.intensity import add_noise, blur, change_contrast, change_gamma, lower_resolution
from radiodata.augment.spatial import bent, matrices
from radiodata.errors import ConfigError

ALWAYS = {
    f"{kind}_p": 1.0
    for kind in [
        "rotation",
        "scale",
        "elastic",
        "flip",
        "noise",
        "blur",
        "brightness",
        "contrast",
        "low_resolution",
        "gamma",
        "gamma_inverted",
    ]
}
NEVER = dict.fromkeys(ALWAYS, 0.0)
DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]


def smooth(rows: int, size: tuple[int, ...] = (20, 18, 16), channels: int = 2) -> torch.Tensor:
    places = torch.meshgrid(*(torch.linspace(0, 3, n) for n in size), indexing="ij")
    waves = [
        sum(torch.sin(p * (1 + r + c) + i) for i, p in enumerate(places)) for r in range(rows) for c in range(channels)
    ]
    return torch.stack(waves).view(rows, channels, *size)


def batch(rows: int = 4, size: tuple[int, ...] = (20, 18, 16), **more: Any) -> dict[str, Any]:
    image = smooth(rows, size)
    affine = torch.eye(4, dtype=torch.float64).repeat(rows, 1, 1)
    affine[:, :3, 3] = torch.tensor([5.0, -7.0, 11.0])
    made = {
        "image": image,
        "label": (image[:, :1] > 0.3).long(),
        "affine": affine,
        "key": torch.arange(rows) * 977 + 13,
    }
    return {**made, "spacing": torch.ones(rows, 3, dtype=torch.float64), **more}


def rows_of(held: dict[str, Any], at: list[int]) -> dict[str, Any]:
    return {name: value[at] for name, value in held.items()}


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("size", [(20, 18, 16), (24, 20)])
@pytest.mark.parametrize("probabilities", [{}, ALWAYS])
def test_a_sample_is_the_same_in_any_batch_and_on_any_device(
    device: str, size: tuple[int, ...], probabilities: dict[str, float]
) -> None:
    augment, whole = Augment(**probabilities), batch(6, size)
    expected = augment(whole)
    for at in ([0], [5, 2], [1, 3, 4, 0]):
        part = {name: value.to(device) for name, value in rows_of(whole, at).items()}
        found = augment(part)
        torch.testing.assert_close(found["image"].cpu(), expected["image"][at], atol=2e-4, rtol=1e-4)
        assert (found["label"].cpu() != expected["label"][at]).float().mean() < 1e-3
        torch.testing.assert_close(found["affine"].cpu(), expected["affine"][at])
    other = augment({**whole, "key": whole["key"] + 1})
    assert not torch.allclose(other["image"], expected["image"], atol=1e-2)


def test_nothing_is_done_where_nothing_is_asked() -> None:
    held = batch()
    out = Augment(**NEVER)(held)
    for name, value in held.items():
        torch.testing.assert_close(out[name], value, rtol=0, atol=0)


def test_what_is_given_is_not_changed() -> None:
    held = batch()
    before = {name: value.clone() for name, value in held.items()}
    Augment(**ALWAYS)(held)
    assert all(torch.equal(held[name], value) for name, value in before.items())


def test_labels_go_with_images() -> None:
    held = batch(8)
    places = torch.stack(torch.meshgrid(*(torch.arange(n) for n in held["image"].shape[2:]), indexing="ij"))
    held["image"], held["label"] = places.float().repeat(8, 1, 1, 1, 1), places.repeat(8, 1, 1, 1, 1)
    out = Augment(**{**NEVER, "rotation_p": 1.0, "scale_p": 1.0, "elastic_p": 1.0, "flip_p": 0.5})(held)
    assert (out["label"] != held["label"]).any(dim=1).flatten(1).float().mean(1).min() > 0.5
    assert (out["image"] - out["label"]).abs().max() < 0.501  # the nearest voxel of the place that the image is of
    assert out["label"].dtype == torch.int64


def test_mirrored_voxels_are_the_same_voxels() -> None:
    held = batch(16)
    out = Augment(**{**NEVER, "flip_p": 0.5}, flips=(0, 2))(held)
    seen = set()
    for row in range(16):
        axes = next(a for a in ([], [1], [3], [1, 3]) if torch.equal(out["image"][row], held["image"][row].flip(a)))
        seen.add(tuple(axes))
        assert torch.equal(out["label"][row], held["label"][row].flip(axes))
    assert len(seen) == 4


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**31), st.booleans())
def test_the_affine_tells_where_voxels_went(key: int, mirrored: bool) -> None:
    size, spacing = (21, 17, 15), torch.tensor([[1.0, 1.5, 2.0]], dtype=torch.float64)
    affine = torch.diag_embed(torch.cat([spacing, torch.ones(1, 1)], 1))
    places = torch.stack(torch.meshgrid(*(torch.arange(n) for n in size), indexing="ij"), -1).double()
    world = places @ affine[0, :3, :3].T
    held = {
        "image": world.movedim(-1, 0)[None].float(),  # each voxel holds its place in space
        "affine": affine,
        "spacing": spacing,
        "key": torch.tensor([key]),
    }
    out = Augment(**{**NEVER, "rotation_p": 1.0, "scale_p": 1.0, "flip_p": float(mirrored)})(held)
    expected = places @ out["affine"][0, :3, :3].T + out["affine"][0, :3, 3]
    inside = ((expected >= 0) & (expected <= world[-1, -1, -1])).all(-1)
    assert inside.any()
    found = out["image"][0].movedim(0, -1).double()
    assert torch.allclose(found[inside], expected[inside], atol=1e-3)


@pytest.mark.parametrize("mode", ["bilinear", "nearest"])
def test_warp_is_monais_affine(mode: str) -> None:
    transforms = pytest.importorskip("monai.transforms")
    image = smooth(1, channels=1)
    for seed in range(5):
        rng = np.random.default_rng(seed)
        linear = Rotation.random(random_state=seed).as_matrix() * rng.uniform(0.8, 1.2)
        matrix = np.eye(4)
        matrix[:3, :3], matrix[:3, 3] = linear, rng.uniform(-3, 3, 3)
        theirs = transforms.Affine(affine=matrix, padding_mode="border", mode=mode, image_only=True)(image[0])
        ours = warp(image, torch.from_numpy(matrix[None, :3]).float(), mode=mode)[0]
        apart = (theirs.as_tensor() - ours).abs()
        assert float((apart > 1e-4).float().mean()) < (1e-3 if mode == "nearest" else 1e-9)


def test_turns_keep_angles_and_lengths_in_space() -> None:
    spacing = torch.tensor([[0.7, 0.7, 3.0]])
    matrix = matrices(torch.tensor([[0.3, -0.2, 0.5]]), torch.tensor([1.0]), spacing)[0, :, :3].double()
    in_space = torch.diag(spacing[0].double()) @ matrix @ torch.diag(1 / spacing[0].double())
    torch.testing.assert_close(in_space @ in_space.T, torch.eye(3, dtype=torch.float64), atol=1e-6, rtol=0)


def test_thick_slices_are_turned_in_their_plane_only() -> None:
    size = (16, 16, 6)
    held = batch(1, size, spacing=torch.tensor([[0.5, 0.5, 5.0]], dtype=torch.float64))
    held["image"] = torch.arange(6.0).expand(1, 1, *size).clone()  # each slice its number
    out = Augment(**{**NEVER, "rotation_p": 1.0, "elastic_p": 1.0})(held)
    torch.testing.assert_close(out["image"], held["image"])


def test_bending_is_smooth_and_moves_nothing_where_nothing_pulls() -> None:
    control = torch.zeros(1, 3, 7, 7, 7)
    assert not bent(control, (9, 8, 7)).any()
    torch.testing.assert_close(bent(torch.ones(1, 3, 7, 7, 7), (9, 8, 7)), torch.ones(1, 3, 9, 8, 7))


def test_noise_is_normal_and_as_strong_as_it_says() -> None:
    found = normals(5, (40, 40, 40), torch.device("cpu")).flatten().double().numpy()
    assert kstest(found, "norm").pvalue > 1e-3
    assert abs(np.corrcoef(found[:-1], found[1:])[0, 1]) < 0.01
    out = add_noise(torch.zeros(2, 1, 30, 30, 30), torch.tensor([0.5, 2.0]), [1, 2])
    assert out.flatten(1).std(dim=1).tolist() == pytest.approx([0.5, 2.0], rel=0.02)
    assert normals(5, (40, 40), torch.device("cpu")).equal(normals(5, (1600,), torch.device("cpu")).view(40, 40))


def test_blur_is_scipys() -> None:
    from scipy.ndimage import gaussian_filter

    image = torch.randn(2, 1, 20, 18, 16, generator=torch.Generator().manual_seed(0))
    sigma = torch.tensor([[0.6], [1.0]])
    for row, s in enumerate(sigma[:, 0].tolist()):
        theirs = gaussian_filter(image[row, 0].double().numpy(), s, mode="nearest", radius=3)
        np.testing.assert_allclose(blur(image, sigma)[row, 0].numpy(), theirs, atol=1e-5)


def test_intensities_keep_what_they_should() -> None:
    image = smooth(3)
    for invert in (False, True):
        out = change_gamma(image, torch.tensor([0.7, 1.0, 1.5]), invert=invert)
        torch.testing.assert_close(out.mean((2, 3, 4)), image.mean((2, 3, 4)), atol=1e-5, rtol=0)
        torch.testing.assert_close(out.std((2, 3, 4)), image.std((2, 3, 4)), atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(out[1], image[1], atol=1e-5, rtol=0)
    stretched = change_contrast(image, torch.full((3,), 1.25))
    assert float(stretched.max()) <= float(image.max())
    assert (stretched.std((2, 3, 4)) > image.std((2, 3, 4))).all()
    torch.testing.assert_close(lower_resolution(image, torch.ones(3)), image)
    constant = torch.full((1, 1, 9, 8, 7), 3.0)
    torch.testing.assert_close(lower_resolution(constant, torch.tensor([0.5])), constant)
    ramp = torch.arange(32.0).expand(1, 1, 32, 32).clone()
    assert (lower_resolution(ramp, torch.tensor([0.5]))[..., 2:-2] - ramp[..., 2:-2]).abs().max() <= 1.01


def test_probabilities_are_those_asked_for() -> None:
    draws = Draws(range(4000))
    for p in (0.1, 0.5):
        assert len(draws.chosen("blur", p)) / 4000 == pytest.approx(p, abs=0.03)


@pytest.mark.parametrize(
    ("given", "why"),
    [
        ({"noise_p": 1.2}, "from 0 to 1"),
        ({"scale": (1.2, 0.8)}, "range"),
        ({"rotation": -1.0}, "below 0"),
        ({"anisotropy": 0.5}, "from 1"),
    ],
)
def test_settings_that_mean_nothing_are_refused(given: dict[str, Any], why: str) -> None:
    with pytest.raises(ConfigError, match=why):
        Augment(**given)


def test_batches_that_cannot_be_augmented_are_refused() -> None:
    held = batch()
    with pytest.raises(ConfigError, match="normalise a batch before"):
        Augment()({**held, "image": held["image"].short()})
    with pytest.raises(ConfigError, match="`key`"):
        Augment()({k: v for k, v in held.items() if k != "key"})
