"""Gaussian: real data, by mean and standard deviation."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from dvae_fast.likelihoods.base import Likelihood

__all__ = ["Gaussian", "derivative_gaussian", "log_density_gaussian"]


class Gaussian(Likelihood):
    """p(x|z) = Π N(x; mean, scale²), scale > 0: scalar, one per dimension, or full."""

    kind = "gaussian"
    params = ("mean", "scale")

    def mean(self, params: torch.Tensor | tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
        return params[0]

    def sample(self, params: torch.Tensor | tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
        mean, scale = params
        return mean + scale * torch.randn_like(mean)


def log_density_gaussian(mean: Tensor, scale: Tensor, x: Tensor) -> Tensor:
    """−½ ((x − mean)/scale)² − log scale − ½ log 2π."""
    return -0.5 * ((x - mean) / scale).square() - torch.log(scale) - 0.5 * math.log(2 * math.pi)


def derivative_gaussian(mean: Tensor, scale: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
    """u/scale and (u² − 1)/scale, u = (x − mean)/scale."""
    u = (x - mean) / scale
    return u / scale, (u.square() - 1) / scale
