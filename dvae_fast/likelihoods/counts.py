"""Negative binomial: counts, by mean and dispersion."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor

from dvae_fast.likelihoods.base import Likelihood
from dvae_fast.likelihoods.links import exponential, positive

if TYPE_CHECKING:
    from dvae_fast.likelihoods.base import Links

__all__ = ["NegativeBinomial", "log_gamma_ratio"]


class NegativeBinomial(Likelihood):
    """Counts x = 0, 1, 2, … with mean > 0 and inverse dispersion ("scale") θ > 0.

    log p = log Γ(x + θ)/Γ(θ) − log x! + θ log θ/(θ + mean) + x log mean/(θ + mean): the variance
    is mean + mean²/θ, and a Poisson's where θ is infinite. θ is a scalar, one per dimension, or
    full. A mean of 0 gives its limits, 0 for x = 0 and −inf for any other.

    Source: Lopez et al., Nature Methods 15 (2018), scVI's parametrisation.
    """

    kernel = "negative_binomial"
    params: ClassVar[Links] = {"mean": exponential, "scale": positive}
    discrete = True
    interval = (0.0, math.inf)
    step = 1.0

    def log_prob(self, params: tuple[Tensor, Tensor], x: Tensor) -> Tensor:
        """log Γ(x + t)/Γ(t) − log x! + t log t/(t + mean) + x log mean/(t + mean), t = scale."""
        mean, scale = params
        t = scale.clamp(max=_MAX_DISPERSION)
        of_mean = torch.where(mean == math.inf, 0.0, torch.log(mean / (t + mean)))
        power = torch.where(x == 0, 0.0, x * of_mean)
        gamma = log_gamma_ratio(t, x)[0] - torch.lgamma(x + 1)
        return gamma + power - t * torch.log1p(mean / t)

    def derivatives(self, params: tuple[Tensor, ...], x: Tensor) -> tuple[Tensor, ...]:
        """(x/mean − 1) t/(t + mean); ψ(x + t) − ψ(t) − log (t + mean)/t + (mean − x)/(t + mean)."""
        mean, scale = params
        t = scale.clamp(max=_MAX_DISPERSION)
        relative = torch.where(x == 0, 0.0, x / mean)
        pull = torch.where(mean == math.inf, 1.0, (mean - x) / (t + mean))
        return (
            (relative - 1) / (1 + mean / t),
            log_gamma_ratio(t, x)[1] - torch.log1p(mean / t) + pull,
        )

    def check_values(self, params: tuple[Tensor, ...]) -> None:
        mean = params[0]
        if bool((mean < 0).any()):
            raise ValueError(
                f"mean must be >= 0 for the {self.kind} likelihood, "
                f"got a minimum of {mean.min().item():g}"
            )

    def mean(self, params: tuple[Tensor, Tensor]) -> Tensor:
        return params[0]

    def sample(
        self, params: tuple[Tensor, Tensor], generator: torch.Generator | None = None
    ) -> Tensor:
        # A Poisson whose rate is drawn from a gamma of mean `mean` and shape θ.
        mean, scale = params
        gamma = torch._standard_gamma(scale.expand_as(mean), generator=generator)
        return torch.poisson(gamma * (mean / scale), generator=generator)


# log Γ(z) = (z − ½) log z − z + ½ log 2π + Σ c_i z^(1 − 2i): from z = 10 on, eight terms are exact
# in float64.
_GAMMA_SHIFT = 10
_STIRLING = (
    1 / 12,
    -1 / 360,
    1 / 1260,
    -1 / 1680,
    1 / 1188,
    -691 / 360360,
    1 / 156,
    -3617 / 122400,
)


def log_gamma_ratio(t: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
    """log Γ(x + t)/Γ(t) and ψ(x + t) − ψ(t), in which the digits of log Γ(t) would be lost."""
    small = t < _GAMMA_SHIFT
    up = torch.where(small, t + _GAMMA_SHIFT, t)
    total = x + up
    log_up = torch.log1p(x / up)
    value = x * torch.log(total) + (up - 0.5) * log_up - x
    slope = log_up + 0.5 * (1 / up - 1 / total)
    for i, c in enumerate(_STIRLING):
        power = 1 + 2 * i
        value = value + c * (total**-power - up**-power)
        slope = slope - c * power * (total ** -(power + 1) - up ** -(power + 1))
    for i in range(_GAMMA_SHIFT):
        value = value + torch.where(small, torch.log((t + i) / (x + t + i)), 0.0)
        slope = slope + torch.where(small, 1 / (t + i) - 1 / (x + t + i), 0.0)
    return value, slope


# By then a negative binomial is a Poisson in every digit; inf/inf would not be.
_MAX_DISPERSION = 1e20
