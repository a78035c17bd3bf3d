"""Loaders in one line, for loops of one's own."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from radiodata.loading import PatchDataset, PatchLoader, VolumeLoader
from radiodata.sampling import Foreground, Uniform
from radiodata.store import Cohort

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from inspect import Signature

    from radiodata.sampling import Policy


def create_training_dataloader(
    cohort: Cohort | str,
    *,
    image: str | Sequence[str] = "CT",
    label: str | None = None,
    patch_size: int | Sequence[int] = 96,
    batch_size: int = 4,
    policy: Policy | None = None,
    transform: Any = None,
    num_workers: int = 2,
    seed: int = 0,
    **options: Any,
) -> PatchLoader:
    """Batches of crops for training.

    Parameters
    ----------
    cohort
        A cohort, a view of one, or where one is.
    image, label
        Collections under the keys ``"image"`` (several are stacked) and ``"label"``.
    patch_size
        Crop shape in voxels: one int or three.
    batch_size
        Over all processes of ``torch.distributed`` together.
    policy
        Where crops fall; by default ``Foreground(0.5)`` with a label, else ``Uniform()``.
    transform, num_workers, seed
        As of ``PatchDataset`` and ``PatchLoader``.
    options
        Any other argument of ``PatchDataset`` or ``PatchLoader``.

    Returns
    -------
    PatchLoader
        ``len()`` is exact, ``state_dict()`` resumes with the very next batch.

    Examples
    --------
    >>> loader = create_training_dataloader("cohort", label="seg", patch_size=96)  # doctest: +SKIP
    >>> for batch in loader:  # doctest: +SKIP
    ...     loss = criterion(network(batch["image"].float()), batch["label"])
    """
    held = cohort if isinstance(cohort, Cohort) else Cohort(cohort)
    mine, theirs = _sorted_options(options)
    chosen = policy or (Foreground(0.5) if label else Uniform())
    dataset = PatchDataset(
        held, _keys(image, label), patch_size=patch_size, policy=chosen, transform=transform, seed=seed, **mine
    )
    return PatchLoader(dataset, batch_size, num_workers=num_workers, **theirs)


def create_validation_dataloader(
    cohort: Cohort | str,
    *,
    image: str | Sequence[str] = "CT",
    label: str | None = None,
    transform: Any = None,
    num_workers: int = 0,
    **options: Any,
) -> VolumeLoader:
    """Whole volumes, one a batch, for validation and inference.

    Parameters
    ----------
    cohort, image, label, transform, num_workers
        As of ``create_training_dataloader``.
    options
        Any other argument of ``VolumeLoader``.
    """
    held = cohort if isinstance(cohort, Cohort) else Cohort(cohort)
    return VolumeLoader(held, _keys(image, label), transform=transform, num_workers=num_workers, **options)


def _keys(image: str | Sequence[str], label: str | None) -> dict[str, str | Sequence[str]]:
    return {"image": image, **({"label": label} if label else {})}


def _sorted_options(options: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Options of the dataset, and of the loader."""
    from inspect import signature

    dataset: Signature = signature(PatchDataset.__init__)
    loader = signature(PatchLoader.__init__)
    odd = sorted(set(options) - set(dataset.parameters) - set(loader.parameters))
    if odd:
        raise TypeError(f"create_training_dataloader() has no options {odd}; see PatchDataset and PatchLoader for all")
    mine = {name: value for name, value in options.items() if name in dataset.parameters}
    return mine, {name: value for name, value in options.items() if name not in mine}
