"""Laplace: real data with outliers, by mean and scale."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor

from dvae_fast.likelihoods.base import MeanAndScale
from dvae_fast.likelihoods.links import identity, positive

if TYPE_CHECKING:
    from dvae_fast.likelihoods.base import Links

__all__ = ["Laplace"]


class Laplace(MeanAndScale):
    """p(x|z) = Π e^(−|x − mean|/scale) / (2 scale), scale > 0: scalar, one per dimension, or full.

    The median of x is mean, and its standard deviation √2 scale.
    """

    kind = "laplace"
    params: ClassVar[Links] = {"mean": identity, "scale": positive}

    def log_prob(self, params: tuple[Tensor, Tensor], x: Tensor) -> Tensor:
        """−|x − mean|/scale − log 2 scale; at x = mean the derivative in either is 0."""
        mean, scale = params
        return -(x - mean).abs() / scale - torch.log(2 * scale)

    def sample(
        self, params: tuple[Tensor, Tensor], generator: torch.Generator | None = None
    ) -> Tensor:
        mean, scale = params
        # The difference of two exponentials, which no u of 0 makes infinite.
        first, second = (torch.empty_like(mean).exponential_(generator=generator) for _ in "ab")
        return mean + scale * (first - second)
