"""Laplace: real data with outliers, by mean and scale."""

from __future__ import annotations

import math
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

    kernel = "laplace"
    params: ClassVar[Links] = {"mean": identity, "scale": positive}

    def log_prob(self, params: tuple[Tensor, Tensor], x: Tensor) -> Tensor:
        """−|x − mean|/scale − log scale − log 2; at x = mean the derivative in either is 0."""
        mean, scale = params
        return -((x - mean) / scale).abs() - torch.log(scale) - math.log(2)

    def derivatives(self, params: tuple[Tensor, ...], x: Tensor) -> tuple[Tensor, ...]:
        """sign(u)/scale and (|u| − 1)/scale, u = (x − mean)/scale."""
        mean, scale = params
        return _sign(x - mean) / scale, (((x - mean) / scale).abs() - 1) / scale

    def derivative_in_x(self, params: tuple[Tensor, ...], x: Tensor) -> Tensor:
        """−sign(u)/scale."""
        mean, scale = params
        return _sign(mean - x) / scale

    def sample(
        self, params: tuple[Tensor, Tensor], generator: torch.Generator | None = None
    ) -> Tensor:
        mean, scale = params
        # The difference of two exponentials, which no u of 0 makes infinite.
        first, second = (torch.empty_like(mean).exponential_(generator=generator) for _ in "ab")
        return mean + scale * (first - second)


def _sign(value: Tensor) -> Tensor:
    """Of NaN NaN, where `torch.sign` has 0."""
    return torch.where(value.isnan(), value, value.sign())
