"""Augmented samples are bit-identical on any topology: ranks, workers and start methods."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import augmentations
import pytest
import torch
from small import small_cohort

from radiodata.loading import PatchDataset, PatchLoader
from radiodata.sampling import Foreground
from radiodata.store import Cohort

KEYS = {"image": "CT", "label": "seg"}
EPOCHS = 2
Samples = dict[int, dict[str, torch.Tensor]]

TRANSFORMS: dict[str, Callable[[], Any]] = {
    "numpy": lambda: augmentations.shifted,
    "globals": lambda: augmentations.noisy,
    "monai": augmentations.monai_pipeline,
    "monai-lazy": lambda: augmentations.monai_pipeline(lazy=True),
    "torchio": augmentations.torchio_pipeline,
    "everything": augmentations.everything,
}
NEEDS = {"monai": ["monai"], "monai-lazy": ["monai"], "torchio": ["torchio"], "everything": ["monai", "torchio"]}

pytestmark = pytest.mark.filterwarnings("ignore:This DataLoader will create")  # torch: more workers than cores


@pytest.fixture(scope="module")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> Cohort:
    return small_cohort(tmp_path_factory.mktemp("randomness"), subjects=4)


def samples(cohort: Cohort, transform: Any, *, ranks: int = 1, **how: Any) -> Samples:
    """Every tensor of two epochs, by the samples' keys."""
    found: Samples = {}
    for rank in range(ranks):
        data = PatchDataset(
            cohort,
            KEYS,
            patch_size=(16, 12, 10),
            policy=Foreground(0.5),
            batch_size=4,
            crops_per_volume=4,
            crops_per_unit=2,
            seed=5,
            transform=transform,
        )
        loader = PatchLoader(data, 4, rank=rank, world_size=ranks, **{"num_workers": 0, **how})
        for _ in range(EPOCHS):
            for batch in loader:
                tensors = {k: v for k, v in batch.items() if isinstance(v, torch.Tensor)}
                for i, key in enumerate(batch["key"].tolist()):
                    assert key not in found
                    found[key] = {k: v[i].clone() for k, v in tensors.items()}
    return found


def assert_identical(found: Samples, expected: Samples) -> None:
    assert found.keys() == expected.keys()
    for key, tensors in expected.items():
        assert found[key].keys() == tensors.keys()
        for name, tensor in tensors.items():
            # a batch promotes dtypes, and which samples share a rank's batch is the topology's
            assert torch.equal(found[key][name].double(), tensor.double()), f"{name} of sample {key}"


_REFERENCES: dict[str, Samples] = {}


@pytest.fixture
def reference(cohort: Cohort, name: str) -> Samples:
    for package in NEEDS.get(name, []):
        pytest.importorskip(package)
    if name not in _REFERENCES:
        _REFERENCES[name] = samples(cohort, TRANSFORMS[name]())
    return _REFERENCES[name]


@pytest.mark.parametrize("name", TRANSFORMS)
def test_samples_are_augmented_and_differ(cohort: Cohort, reference: Samples, name: str) -> None:
    plain = samples(cohort, None)
    assert reference.keys() == plain.keys()
    assert len(plain) == EPOCHS * 16
    changed = [not torch.equal(reference[k]["image"].double(), plain[k]["image"].double()) for k in plain]
    assert sum(changed) > len(changed) / 2


@pytest.mark.parametrize("name", TRANSFORMS)
def test_identical_in_a_worker_and_on_two_ranks(cohort: Cohort, reference: Samples, name: str) -> None:
    assert_identical(samples(cohort, TRANSFORMS[name](), ranks=2, num_workers=1), reference)


@pytest.mark.parametrize("name", ["everything"])
@pytest.mark.parametrize(("workers", "ranks"), [(0, 2), (1, 1), (2, 1), (2, 2), (4, 1)])
def test_identical_on_topologies(cohort: Cohort, reference: Samples, workers: int, ranks: int, name: str) -> None:
    assert_identical(samples(cohort, TRANSFORMS[name](), ranks=ranks, num_workers=workers), reference)


@pytest.mark.parametrize("name", ["numpy"])
@pytest.mark.parametrize("method", ["forkserver", "spawn"])
def test_identical_in_fresh_processes(cohort: Cohort, reference: Samples, method: str, name: str) -> None:
    there = samples(cohort, TRANSFORMS[name](), num_workers=1, multiprocessing_context=method)
    assert_identical(there, reference)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["everything"])
@pytest.mark.parametrize("ranks", [1, 2])
@pytest.mark.parametrize("workers", [1, 2, 4])
@pytest.mark.parametrize("method", ["fork", "forkserver", "spawn"])
def test_identical_everywhere(
    cohort: Cohort, reference: Samples, method: str, workers: int, ranks: int, name: str
) -> None:
    there = samples(cohort, TRANSFORMS[name](), ranks=ranks, num_workers=workers, multiprocessing_context=method)
    assert_identical(there, reference)
