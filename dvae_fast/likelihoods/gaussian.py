"""Gaussian: real data, by mean and standard deviation."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor

from dvae_fast.likelihoods.base import MeanAndScale
from dvae_fast.likelihoods.links import identity, positive, sigmoid

if TYPE_CHECKING:
    from dvae_fast.likelihoods.base import Links

__all__ = ["Gaussian", "RealGaussian"]


class Gaussian(MeanAndScale):
    """p(x|z) = Π N(x; mean, scale²), scale > 0: scalar, one per dimension, or full.

    The head of a decoder, of images: mean = σ(a), scale = softplus(b) + 1e-4 (arXiv 1511.06406).
    """

    kernel = "gaussian"
    params: ClassVar[Links] = {"mean": sigmoid, "scale": positive}

    def log_prob(self, params: tuple[Tensor, Tensor], x: Tensor) -> Tensor:
        """−½ ((x − mean)/scale)² − log scale − ½ log 2π."""
        mean, scale = params
        u = (x - mean) / scale
        return -0.5 * u.square() - torch.log(scale) - 0.5 * math.log(2 * math.pi)

    def derivatives(self, params: tuple[Tensor, ...], x: Tensor) -> tuple[Tensor, ...]:
        """u/scale and (u² − 1)/scale, u = (x − mean)/scale."""
        mean, scale = params
        u = (x - mean) / scale
        return u / scale, (u.square() - 1) / scale

    def derivative_in_x(self, params: tuple[Tensor, ...], x: Tensor) -> Tensor:
        """−u/scale."""
        mean, scale = params
        return (mean - x) / scale / scale

    def sample(
        self, params: tuple[Tensor, Tensor], generator: torch.Generator | None = None
    ) -> Tensor:
        mean, scale = params
        noise = torch.randn(mean.shape, generator=generator, dtype=mean.dtype, device=mean.device)
        return mean + scale * noise


class RealGaussian(Gaussian):
    """A Gaussian of data that may be any real number: the head of a decoder leaves mean = a."""

    params: ClassVar[Links] = {"mean": identity, "scale": positive}

    @property
    def kind(self) -> str:
        return "gaussian_real"
