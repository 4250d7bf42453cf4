"""Bernoulli: binary data, by logits."""

from __future__ import annotations

import torch
from torch import Tensor

from dvae_fast.likelihoods.base import Likelihood

__all__ = ["Bernoulli", "derivative_bernoulli", "log_density_bernoulli"]


class Bernoulli(Likelihood):
    """p(x|z) = Π σ(l)^x (1 − σ(l))^(1−x) from logits l; x in [0, 1]."""

    kind = "bernoulli"
    params = ("logits",)
    support = (0.0, 1.0)

    def mean(self, params: torch.Tensor | tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
        assert isinstance(params, torch.Tensor)
        return torch.sigmoid(params)

    def sample(self, params: torch.Tensor | tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
        return torch.bernoulli(self.mean(params))


def log_density_bernoulli(logits: Tensor, x: Tensor) -> Tensor:
    """x l − log(1 + e^l), as −(c |l| + log1p(e^−|l|)) with c = 1 − x if l > 0 else x.

    Where c = 0 the first term is 0 even at l = ±inf, so that log p has its limit there.
    """
    c = torch.where(logits > 0, 1 - x, x)
    magnitude = logits.abs()
    linear = torch.where(c == 0, torch.zeros_like(c), c * magnitude)
    return -(linear + torch.log1p(torch.exp(-magnitude)))


def derivative_bernoulli(logits: Tensor, x: Tensor) -> tuple[Tensor]:
    """x − σ(l)."""
    return (x - torch.sigmoid(logits),)
