"""Categorical: data of several classes, one-hot, by logits."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor

from dvae_fast._checks import check_size
from dvae_fast.likelihoods.base import OfLogits, checked_mean
from dvae_fast.likelihoods.links import identity

if TYPE_CHECKING:
    from collections.abc import Callable

    from dvae_fast.likelihoods.base import Links

__all__ = ["Categorical"]


class Categorical(OfLogits):
    """p(x|z) = Π_i softmax(l_i)_{x_i}, of variables that are each one of C classes.

    Data and logits are one-hot: D = C · variables dimensions, the C of a variable side by side, so
    that models, corruptions and pictures see numbers as ever; `one_hot` makes them of class
    indices. Bits per dimension are of these D; times C they are of a variable.

    Args:
        classes: C >= 2.
    """

    rows = "categorical"
    params: ClassVar[Links] = {"logits": identity}
    discrete = True
    interval = (0.0, 1.0)
    of_probabilities = "leave the softmax out: it is part of the likelihood."

    def __init__(self, classes: int) -> None:
        self.classes = check_size("classes", classes, 2)

    def variables(self, size: int) -> int:
        """How many `size` dimensions of logits are.

        Raises:
            ValueError: if C does not divide it.
        """
        if size % self.classes:
            raise ValueError(
                f"logits must have C = {self.classes} dimensions for each variable, got {size}"
            )
        return size // self.classes

    def one_hot(self, indices: Tensor) -> Tensor:
        """(N, variables) integers of 0, …, C − 1 → (N, variables · C) float32.

        Raises:
            TypeError, ValueError: if they are not that.
        """
        if indices.is_floating_point() or indices.is_complex() or indices.dtype == torch.bool:
            raise TypeError(f"indices must be integers, got {indices.dtype}")
        if indices.numel() and not 0 <= int(indices.min()) <= int(indices.max()) < self.classes:
            raise ValueError(
                f"indices must lie in [0, {self.classes - 1}], got values from "
                f"{int(indices.min())} to {int(indices.max())}"
            )
        return torch.nn.functional.one_hot(indices.long(), self.classes).flatten(-2).float()

    def log_prob(self, params: tuple[Tensor], x: Tensor) -> Tensor:
        """log softmax(l) of the class that is 1, and 0 for the others."""
        log_p = self._of_each(params[0], torch.log_softmax)
        return torch.where(x == 0, 0.0, x * log_p)

    def derivatives(self, params: tuple[Tensor, ...], x: Tensor) -> tuple[Tensor, ...]:
        """x − softmax(l) Σ x, of the x of a variable."""
        total = self._of_each(x, lambda each, dim: each.sum(dim, keepdim=True).expand_as(each))
        return (x - self._of_each(params[0], torch.softmax) * total,)

    def support(self, x: Tensor) -> Tensor:
        """0 or 1, one 1 among the C of each variable."""
        if x.shape[-1] % self.classes:
            raise ValueError(
                f"x must have C = {self.classes} dimensions for each variable, got {x.shape[-1]}"
            )
        each: Tensor = x.unflatten(-1, (-1, self.classes))
        single = (each == 1).sum(-1, keepdim=True) == 1
        return (((each == 0) | (each == 1)) & single).flatten(-2)

    def check_mask(self, mask: Tensor) -> None:
        """All C dimensions of a variable, or none: of some alone the others' logits are no part."""
        if mask.shape[-1] % self.classes:
            return  # which x and the logits say
        each: Tensor = mask.unflatten(-1, (-1, self.classes))
        partly = each.any(-1) & ~each.all(-1)
        if bool(partly.any()):
            *example, variable = (int(i) for i in partly.nonzero()[0])
            raise ValueError(
                f"mask must be the same for the C = {self.classes} dimensions of a variable, got "
                f"some of variable {variable} in example {', '.join(map(str, example))}"
            )

    def start(self, data_mean: Tensor) -> Tensor:
        return torch.log(checked_mean(data_mean, self.interval).clamp(min=1e-3))

    def mean(self, params: tuple[Tensor]) -> Tensor:
        """The probabilities."""
        return self._of_each(params[0], torch.softmax)

    def sample(self, params: tuple[Tensor], generator: torch.Generator | None = None) -> Tensor:
        # The largest of log p + Gumbel noise, −log of an exponential.
        logits = params[0].unflatten(-1, (-1, self.classes))
        wait = torch.empty_like(logits).exponential_(generator=generator)
        drawn = (logits - wait.log()).argmax(-1)
        return torch.nn.functional.one_hot(drawn, self.classes).flatten(-2).to(logits.dtype)

    def _of_each(self, logits: Tensor, function: Callable[[Tensor, int], Tensor]) -> Tensor:
        each: Tensor = logits.unflatten(-1, (self.variables(logits.shape[-1]), self.classes))
        return function(each, -1).flatten(-2)
