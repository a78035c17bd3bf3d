"""Dice per case and class, summed so that any number of processes gives the same mean."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

__all__ = ["CaseDice", "confusion"]

_VOXELS_AT_ONCE = 2**24


class CaseDice:
    r"""Mean over cases of the Dice of each foreground class.

    The Dice of class `c` in one case is ``2 |P_c & L_c| / (|P_c| + |L_c|)``. A case whose label does not hold
    class `c` says nothing about `c` and is left out of that class's mean.

    Parameters
    ----------
    num_classes
        Number of classes, background (0) included.

    Examples
    --------
    >>> import torch
    >>> dice = CaseDice(3)
    >>> dice.update(torch.tensor([0, 1, 1, 0]), torch.tensor([0, 1, 0, 0]))
    >>> dice.compute()
    tensor([0.6667,    nan], dtype=torch.float64)
    """

    def __init__(self, num_classes: int) -> None:
        self.num_classes = num_classes
        self.reset()

    def reset(self) -> None:
        """Forget all cases."""
        self._sums = torch.zeros(2, self.num_classes - 1, dtype=torch.float64)  # Dice; cases with the class

    def update(self, prediction: Tensor, label: Tensor, *, case: str = "?") -> None:
        """Add one case.

        Parameters
        ----------
        prediction, label
            Class numbers of the case's voxels, equal in shape, any integer dtype, on any device.
        case
            The subject, for messages.

        Raises
        ------
        ValueError
            The label holds a class number outside ``0 .. num_classes - 1``.
        """
        table = confusion(prediction, label, self.num_classes, case=case)
        both, size = table.diagonal()[1:], (table.sum(0) + table.sum(1))[1:]
        present = table.sum(1)[1:] > 0
        dice = 2.0 * both.double() / size.clamp(min=1)
        self._sums += torch.stack([torch.where(present, dice, 0.0), present.double()])

    def compute(self, reduce: Callable[[Tensor], Tensor] | None = None) -> Tensor:
        """Mean Dice of each foreground class.

        Parameters
        ----------
        reduce
            Sums a tensor over all processes; None where there is one process.

        Returns
        -------
        torch.Tensor
            Shape ``(num_classes - 1,)``, float64; NaN for a class that no case holds.
        """
        total, cases = self._sums if reduce is None else reduce(self._sums.clone())
        mean: Tensor = total / cases
        return mean


def confusion(prediction: Tensor, label: Tensor, num_classes: int, *, case: str = "?") -> Tensor:
    """Count voxels by labelled and predicted class.

    Parameters
    ----------
    prediction, label
        Class numbers, equal in shape, any integer dtype, on any device.
    num_classes
        Number of classes, background included.
    case
        The subject, for messages.

    Returns
    -------
    torch.Tensor
        Shape ``(label class, predicted class)``, int64, on the CPU.

    Raises
    ------
    ValueError
        A class number lies outside ``0 .. num_classes - 1``, or the shapes differ.
    """
    if prediction.shape != label.shape:
        raise ValueError(
            f"case {case}: the prediction has shape {tuple(prediction.shape)}, its label {tuple(label.shape)}"
        )
    table = torch.zeros(num_classes, num_classes, dtype=torch.int64)
    pieces = (torch.split(volume.flatten(), _VOXELS_AT_ONCE) for volume in (prediction, label))
    for predicted, labelled in zip(*pieces, strict=True):
        _check_classes(labelled, num_classes, case)
        pairs = labelled.long() * num_classes + predicted.long()
        table += torch.bincount(pairs, minlength=num_classes**2).view(num_classes, num_classes).cpu()
    return table


def _check_classes(labelled: Tensor, num_classes: int, case: str) -> None:
    low, high = (int(value) for value in torch.aminmax(labelled))
    if low < 0 or high >= num_classes:
        raise ValueError(
            f"case {case}: its label holds class {low if low < 0 else high}, but the model knows 0 to "
            f"{num_classes - 1}; give num_classes={max(high, 1) + 1} or repair the label"
        )
