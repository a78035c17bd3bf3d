"""Keyed transforms: draws depend on the key and the op's place, and on nothing else."""

from __future__ import annotations

import functools
import pickle
import random
import subprocess
import sys
from typing import Any

import augmentations
import numpy as np
import pytest
import torch

from radiodata.errors import ConfigError
from radiodata.loading.transforms import KeyedTransform, TorchIO, apply, seeded
from radiodata.loading.transforms.seeding import op_seed

SHAPE = (12, 10, 8)
PAIR = ["image", "label"]


def affine() -> torch.Tensor:
    """Oblique and anisotropic."""
    turn = torch.tensor([[0.8, -0.6, 0.0], [0.6, 0.8, 0.0], [0.0, 0.0, 1.0]], dtype=torch.float64)
    out = torch.eye(4, dtype=torch.float64)
    out[:3, :3] = turn @ torch.diag(torch.tensor([1.0, 1.5, 2.0], dtype=torch.float64))
    out[:3, 3] = torch.tensor([-20.0, 30.0, 4.0])
    return out


def make(shape: tuple[int, int, int] = SHAPE) -> dict[str, Any]:
    """A sample as a loader makes it."""
    rng = np.random.default_rng(0)
    image = torch.from_numpy(rng.integers(-1000, 1000, (1, *shape)).astype(np.int16))
    label = torch.from_numpy(rng.integers(0, 3, (1, *shape)).astype(np.uint8))
    spacing = torch.tensor([1.0, 1.5, 2.0], dtype=torch.float64)
    return {"image": image, "label": label, "affine": affine(), "spacing": spacing, "obs_id": "a", "key": 4}


def equal(a: Any, b: Any) -> bool:
    if isinstance(a, list):
        return len(a) == len(b) and all(map(equal, a, b))
    same = {k: torch.equal(v, b[k]) if isinstance(v, torch.Tensor) else v == b[k] for k, v in a.items()}
    return a.keys() == b.keys() and all(same.values())


class Draw:
    """Writes what it draws from each global generator into the sample."""

    def __init__(self, name: str, times: int = 1) -> None:
        self.name, self.times = name, times

    def __call__(self, sample: dict[str, Any]) -> dict[str, Any]:
        drawn = [(torch.rand(1).item(), np.random.rand(), random.random()) for _ in range(self.times)]
        return {**sample, self.name: drawn[-1]}


def draws(transform: Any, key: int = 3) -> dict[str, Any]:
    return {k: v for k, v in apply(transform, {}, key).items() if k != "affine"}


def test_each_op_has_streams_of_its_own() -> None:
    a, b, c = (Draw(n) for n in "abc")
    short, long = draws([a, b]), draws([a, b, c])
    assert short.items() <= long.items()
    assert len(set(long.values())) == 3
    assert draws([Draw("a", times=5), b])["b"] == short["b"]  # what others draw does not matter
    assert draws(a) == draws([a])
    assert draws([a], 3) != draws([a], 4)
    assert draws([[a, b], c])["a"] not in long.values()


def test_seeds_do_not_repeat() -> None:
    paths = [(), *((i,) for i in range(50)), *((i, j) for i in range(50) for j in range(50))]
    seeds = {op_seed(key, *path) for key in (0, 1, 2**62 + 1, -1) for path in paths}
    assert len(seeds) == 4 * len(paths)
    assert max(seeds) < 2**63
    assert op_seed(7, 0, 1) == 6586290780634379144  # the same on every machine


def global_state() -> tuple[Any, ...]:
    kind, words, *rest = np.random.get_state()
    return (random.getstate(), kind, words.tolist(), rest, torch.get_rng_state().tolist(), torch.get_num_threads())


class Failing:
    def __call__(self, sample: Any) -> Any:
        Draw("x")(sample)
        raise KeyError("broken")


def test_global_state_is_restored_even_after_an_error() -> None:
    np.random.seed(1)
    np.random.normal()  # leaves a second normal waiting, which is part of the state
    before = global_state()
    apply([Draw("a"), augmentations.shifted], make(), 3)
    assert global_state() == before
    with pytest.raises(KeyError, match="broken"):
        apply([Draw("a"), Failing()], make(), 3)
    assert global_state() == before
    with seeded(3):
        first = np.random.rand()
    with seeded(3):
        assert np.random.rand() == first
    assert global_state() == before


def by_name(sample: Any, rng: Any, generator: Any) -> Any:
    return {"numpy": rng.random(3).tolist(), "torch": torch.rand(3, generator=generator).tolist()}


def crossed(sample: Any, *, rng: torch.Generator, generator: np.random.Generator) -> Any:
    return by_name(sample, generator, rng)


class Method:
    def __call__(self, sample: Any, *, rng: np.random.Generator | None = None) -> Any:
        assert rng is not None
        return {**sample, "drawn": rng.random()}


def test_functions_that_ask_for_a_generator_get_one() -> None:
    assert draws(by_name) == draws(by_name)
    assert draws(by_name, 4) != draws(by_name, 3)
    assert draws(crossed) == draws(by_name)
    assert draws(Method()) == draws([Method()])
    assert draws([Method(), Method()])["drawn"] != draws(Method())["drawn"]
    mine = np.random.default_rng(0)
    own = functools.partial(Method(), rng=mine)  # already given: it is the user's
    assert draws(own) != draws(own)


def test_one_thread_so_that_sums_agree() -> None:
    """A sum of 96-cube floats differs between 1 and 4 threads."""
    torch.manual_seed(0)
    sample = {"image": torch.randn(1, 96, 96, 96) * 300 + 100}

    def normalised(sample: dict[str, Any]) -> dict[str, Any]:
        return {"image": sample["image"] - sample["image"].mean(), "threads": torch.get_num_threads()}

    threads = torch.get_num_threads()
    found = []
    try:
        for n in (1, 4):
            torch.set_num_threads(n)
            found.append(apply(normalised, sample, 3))
            assert torch.get_num_threads() == n
    finally:
        torch.set_num_threads(threads)
    assert equal(*found)
    assert found[1]["threads"] == 1


@pytest.mark.parametrize("wrong", [None, 3, [Draw("a"), "flip"]])
def test_what_cannot_be_called_is_refused(wrong: Any) -> None:
    with pytest.raises(TypeError, match="a transform is a callable or a list of them"):
        KeyedTransform(wrong)


def test_an_empty_list_changes_nothing() -> None:
    sample = make()
    assert apply([], sample, 3) is sample


def test_nothing_optional_is_imported() -> None:
    code = (
        "from radiodata.loading.transforms import apply; import sys; "
        "apply([lambda s, rng: s, lambda s: s], {}, 3); print({'monai', 'torchio'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


# ---- MONAI -------------------------------------------------------------------------------------------------


def monai() -> Any:
    return pytest.importorskip("monai.transforms")


def rands(mt: Any) -> list[Any]:
    """One of each way that MONAI keeps random states: own, inner object, inner reseeded, many samples."""
    return [
        mt.RandFlipd(PAIR, prob=0.5, spatial_axis=1),
        mt.RandAffined(PAIR, prob=1, rotate_range=0.5, mode="nearest"),
        mt.Rand3DElasticd(PAIR, (2, 3), (5, 9), prob=1, mode="nearest"),
        mt.RandZoomd(PAIR, prob=1, mode="nearest"),
        mt.RandGaussianNoised("image", prob=1),
        mt.RandCoarseDropoutd("image", 2, 3, prob=1),
        mt.RandBiasFieldd("image", prob=1),
        mt.Compose([mt.CastToTyped("image", torch.float32), mt.RandHistogramShiftd("image", prob=1)]),  # not of ints
        mt.RandGridDistortiond(PAIR, distort_limit=0.4, prob=1, mode="nearest"),
        mt.RandSpatialCropSamplesd(PAIR, (4, 4, 4), num_samples=2, random_size=False),
        mt.RandCropByPosNegLabeld(PAIR, "label", (4, 4, 4), num_samples=2),
        mt.RandLambdad("image", func=lambda x: x + np.random.rand() + torch.rand(1), prob=1),
    ]


def test_monai_draws_depend_on_the_key_alone() -> None:
    mt = monai()
    for used, fresh in zip(rands(mt), rands(mt), strict=True):
        keyed = KeyedTransform(used)
        first = keyed(make(), 1)
        others = [keyed(make(), key) for key in range(2, 12)]
        again = keyed(make(), 1)
        name = type(used).__name__
        assert equal(first, again), name
        assert equal(first, apply(fresh, make(), 1)), name
        assert not all(equal(first, other) for other in others), name


@pytest.mark.parametrize("wrap", ["Compose", "OneOf", "SomeOf", "RandomOrder", "nested", "lazy", "list"])
def test_containers_of_monai_are_keyed(wrap: str) -> None:
    mt = monai()

    def build() -> Any:
        parts = [p for p in rands(mt) if "Crop" not in type(p).__name__ and "Lambda" not in type(p).__name__]
        if wrap == "nested":
            return mt.Compose([mt.Compose([mt.OneOf([mt.RandomOrder([mt.SomeOf([mt.Compose(parts)])])])])])
        if wrap == "lazy":
            return mt.Compose(parts, lazy=True)
        return parts if wrap == "list" else getattr(mt, wrap)(parts)

    keyed = KeyedTransform(build())
    found = [keyed(make(), key) for key in (1, 2, 3, 4, 5, 1)]
    assert equal(found[0], found[-1])
    assert equal(found[0], apply(build(), make(), 1))
    assert equal(found[1], pickle.loads(pickle.dumps(keyed))(make(), 2))
    assert not all(equal(found[0], other) for other in found[1:-1])


def test_an_op_added_to_a_compose_leaves_the_others_as_they_were() -> None:
    mt = monai()
    noise = [mt.RandGaussianNoised("image", prob=1), mt.RandFlipd(PAIR, prob=0.5)]
    more = [*noise, mt.RandScaleIntensityd("other", 0.5, prob=1, allow_missing_keys=True)]
    for key in range(5):
        assert equal(apply(mt.Compose(noise), make(), key), apply(mt.Compose(more), make(), key))


FLIP: Any = None


def uses_a_global(sample: Any) -> Any:
    return FLIP(sample)


class Holder:
    def __init__(self, inner: Any) -> None:
        self.inner = {"parts": [inner]}

    def __call__(self, sample: Any) -> Any:
        return self.inner["parts"][0](sample)

    def method(self, sample: Any) -> Any:
        return self(sample)


@pytest.mark.parametrize("compose", [False, True])
def test_random_states_are_found_where_users_keep_them(monkeypatch: pytest.MonkeyPatch, compose: bool) -> None:
    mt = monai()

    def build() -> Any:
        noise = mt.RandGaussianNoised("image", prob=1)
        return mt.Compose([noise]) if compose else noise

    monkeypatch.setattr(sys.modules[__name__], "FLIP", build())

    class Custom(mt.RandomizableTransform):
        """Does not tell its inner transform of its own state."""

        def __init__(self) -> None:
            super().__init__()
            self.inner = build()

        def __call__(self, sample: Any) -> Any:
            return self.inner(sample)

    kept = build()
    ways = [
        Holder(build()),
        Holder(build()).method,
        lambda s: kept(s),
        functools.partial(lambda s, t: t(s), t=build()),
        uses_a_global,
        Custom(),
        mt.Lambda(build()),
    ]
    if not compose:
        ways.append(lambda s: mt.RandGaussianNoised("image", prob=1)(s))  # made on the spot
    for way in ways:
        keyed = KeyedTransform(way)
        first, other, again = (keyed({"image": torch.zeros(1, 4, 4, 4)}, key) for key in (1, 2, 1))
        assert torch.equal(first["image"], again["image"])
        assert not torch.equal(first["image"], other["image"])


def test_monai_s_shared_state_is_given_back() -> None:
    mt = monai()
    shared = mt.Randomizable.R
    with pytest.raises(KeyError):
        apply(Failing(), {}, 3)
    assert mt.Randomizable.R is shared


def corner(sample: dict[str, Any]) -> torch.Tensor:
    """World position of the voxel of largest value."""
    at = torch.tensor(np.unravel_index(int(sample["image"].argmax()), sample["image"].shape)[1:], dtype=torch.float64)
    return sample["affine"][:3, :3] @ at + sample["affine"][:3, 3]


def bright() -> dict[str, Any]:
    sample = make()
    sample["image"] = torch.zeros(1, *SHAPE)
    sample["image"][0, 3:5, 2:4, 5:7] = 50
    sample["image"][0, 3, 2, 5] = 100
    return sample


@pytest.mark.parametrize("name", ["flip", "rotate", "orient", "pad", "compose", "lazy", "lazy-alone"])
def test_the_affine_follows_spatial_transforms(name: str) -> None:
    mt = monai()
    flip, turn = mt.Flipd(PAIR, spatial_axis=0), mt.Rotate90d(PAIR, spatial_axes=(0, 2))
    made = {
        "flip": flip,
        "rotate": turn,
        "orient": mt.Orientationd(PAIR, axcodes="LPS", labels=(("L", "R"), ("P", "A"), ("I", "S"))),
        "pad": mt.SpatialPadd(PAIR, (16, 16, 16)),
        "compose": mt.Compose([flip, turn]),
        "lazy": mt.Compose([flip, turn], lazy=True),
        "lazy-alone": mt.Flipd(PAIR, spatial_axis=0, lazy=True),
    }[name]
    before, after = bright(), apply(made, bright(), 3)
    assert not torch.equal(after["affine"], before["affine"])
    assert torch.allclose(corner(after), corner(before))
    assert type(after["image"]) is type(after["label"]) is torch.Tensor
    assert after["affine"].dtype == after["spacing"].dtype == torch.float64
    assert torch.allclose(after["spacing"], after["affine"][:3, :3].norm(dim=0))
    assert (after["obs_id"], after["key"]) == ("a", 4)


def test_spacing_is_seen_by_monai() -> None:
    mt = monai()
    after = apply(mt.Spacingd(PAIR, (2.0, 2.0, 2.0), mode="nearest"), make((12, 12, 12)), 3)
    assert tuple(after["image"].shape[1:]) == (6, 9, 12)
    assert torch.allclose(after["spacing"], torch.full((3,), 2.0, dtype=torch.float64))


def test_a_transform_may_return_several_samples() -> None:
    mt = monai()
    out = apply([mt.RandSpatialCropSamplesd(PAIR, (4, 4, 4), num_samples=3, random_size=False)], make(), 3)
    assert len(out) == 3
    assert all(type(s["image"]) is torch.Tensor and s["image"].shape == (1, 4, 4, 4) for s in out)
    for one in out:  # each knows where it lies
        index = torch.linalg.solve(affine(), one["affine"][:, 3])[:3].round().long()
        x, y, z = index.tolist()
        assert torch.equal(one["image"], make()["image"][:, x : x + 4, y : y + 4, z : z + 4])


# ---- TorchIO -----------------------------------------------------------------------------------------------


def torchio_transforms() -> list[Any]:
    tio = pytest.importorskip("torchio")
    names = [n for n in dir(tio) if n.startswith("Random") and n != "RandomLabelsToImage"]
    return [getattr(tio, n)() for n in names if issubclass(getattr(tio, n), tio.Transform)]


@pytest.mark.filterwarnings("ignore:The maximum displacement")  # of default settings in so small a volume
def test_torchio_draws_depend_on_the_key_alone() -> None:
    found = torchio_transforms()
    assert len(found) > 10
    for transform in found:
        keyed, before = KeyedTransform(TorchIO(transform)), global_state()
        first, *others, again = (keyed(make((18, 17, 16)), key) for key in (1, 2, 3, 4, 5, 6, 1))
        assert equal(first, again), transform
        assert not all(equal(first, other) for other in others), transform
        assert global_state() == before


@pytest.mark.parametrize("name", ["flip", "crop", "orient"])
def test_torchio_sees_and_moves_the_affine(name: str) -> None:
    tio = pytest.importorskip("torchio")
    made = {
        "flip": tio.RandomFlip(0, flip_probability=1),
        "crop": tio.Crop((2, 1, 0)),
        "orient": tio.ToOrientation("LPS"),
    }
    before, after = bright(), apply(TorchIO(made[name]), bright(), 3)
    if name == "flip":  # TorchIO's flip moves the anatomy and leaves the grid
        assert torch.equal(after["image"], before["image"].flip(1))
        assert torch.allclose(after["affine"], before["affine"])
    else:
        assert torch.allclose(corner(after), corner(before))
    assert after["label"].shape == after["image"].shape


def test_torchio_interpolates_images_only_and_keeps_the_rest() -> None:
    tio = pytest.importorskip("torchio")
    sample = {**make(), "second": make()["image"], "note": "kept"}
    transform = TorchIO(tio.RandomAffine(degrees=40), images=["image", "second"])
    after = apply(transform, sample, 3)
    assert after["label"].dtype == torch.uint8
    assert set(after["label"].unique().tolist()) <= {0, 1, 2}
    assert torch.equal(after["image"], after["second"])
    assert after["note"] == "kept"
    assert after.keys() == sample.keys()
    assert torch.equal(sample["image"], make()["image"])
    assert torch.equal(pickle.loads(pickle.dumps(KeyedTransform(transform)))(sample, 3)["image"], after["image"])


def test_torchio_refuses_what_it_cannot_name() -> None:
    tio = pytest.importorskip("torchio")
    with pytest.raises(ConfigError, match="name keys of the sample in lists"):
        TorchIO(tio.RandomFlip(), images="image")
    with pytest.raises(ConfigError, match=r"the sample has no \['seg'\], it has \['affine', 'image'"):
        apply(TorchIO(tio.RandomFlip(), labels=["seg"]), make(), 3)
