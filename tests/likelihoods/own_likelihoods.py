"""Likelihoods of a user's own: written as the documentation says, with nothing registered."""

# Written as plainly as the documentation's.
# ruff: noqa: RUF012

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, distributions
from torch.nn import functional as F

from dvae_fast.likelihoods import Likelihood, exponential, identity, positive


class Laplace(Likelihood):
    params = {"mean": identity, "scale": positive}

    def log_prob(self, params: Any, x: Tensor) -> Tensor:
        mean, scale = params
        return -(x - mean).abs() / scale - torch.log(2 * scale)

    def mean(self, params: Any) -> Tensor:
        return params[0]

    def sample(self, params: Any, generator: torch.Generator | None = None) -> Tensor:
        mean, scale = params
        u = torch.rand(mean.shape, generator=generator, dtype=mean.dtype, device=mean.device) - 0.5
        return mean - scale * u.sign() * torch.log1p(-2 * u.abs())


class ContinuousBernoulli(Likelihood):
    """On [0, 1], by logits (Loaiza-Ganem and Cunningham, arXiv 1907.06845).

    log p = x l − softplus(l) + log C, C = 2 atanh(1 − 2 p)/(1 − 2 p), p = σ(l): with
    1 − 2 p = −tanh(l/2) that is l/tanh(l/2), 2 at l = 0.
    """

    params = {"logits": identity}

    def log_prob(self, params: Any, x: Tensor) -> Tensor:
        (logits,) = params
        small = logits.abs() < 1e-3
        safe = torch.where(small, 1.0, logits)
        log_c = torch.where(
            small, math.log(2) + logits.square() / 12, torch.log(safe / torch.tanh(safe / 2))
        )
        return x * logits - F.softplus(logits) + log_c

    def support(self, x: Tensor) -> Tensor:
        return (x >= 0) & (x <= 1)

    def mean(self, params: Any) -> Tensor:
        (logits,) = params
        small = logits.abs() < 1e-3
        safe = torch.where(small, 1.0, logits)
        return torch.where(small, 0.5 + logits / 12, 1 / (1 - torch.exp(-safe)) - 1 / safe)

    def sample(self, params: Any, generator: torch.Generator | None = None) -> Tensor:
        (logits,) = params
        u = torch.rand(logits.shape, generator=generator, dtype=logits.dtype, device=logits.device)
        small = logits.abs() < 1e-3
        safe = torch.where(small, 1.0, logits)
        return torch.where(small, u, torch.log1p(u * torch.expm1(safe)) / safe)


class StudentT(Likelihood):
    """Three parameters, one with a plain function for its link."""

    params = {"mean": identity, "scale": positive, "df": lambda a: 2 + F.softplus(a)}

    def log_prob(self, params: Any, x: Tensor) -> Tensor:
        mean, scale, df = params
        u = (x - mean) / scale
        return (
            torch.lgamma((df + 1) / 2)
            - torch.lgamma(df / 2)
            - 0.5 * torch.log(df * math.pi)
            - torch.log(scale)
            - (df + 1) / 2 * torch.log1p(u.square() / df)
        )

    def mean(self, params: Any) -> Tensor:
        return params[0]

    def sample(self, params: Any, generator: torch.Generator | None = None) -> Tensor:
        mean, scale, df = params
        normal = torch.randn(mean.shape, generator=generator, dtype=mean.dtype, device=mean.device)
        chi2 = 2 * torch._standard_gamma(df / 2, generator=generator)
        return mean + scale * normal * torch.sqrt(df / chi2)


class ZeroInflatedPoisson(Likelihood):
    """Counts; a rate of 0 gives −inf to any but 0, with derivatives that are not finite."""

    params = {"rate": exponential, "gate": torch.sigmoid}
    discrete = True
    interval = (0.0, math.inf)
    step = 1.0

    def log_prob(self, params: Any, x: Tensor) -> Tensor:
        rate, gate = params
        poisson = x * torch.log(rate) - rate - torch.lgamma(x + 1)
        at_zero = torch.log(gate + (1 - gate) * torch.exp(-rate))
        return torch.where(x == 0, at_zero, torch.log1p(-gate) + poisson)


class Exponential(Likelihood):
    """By its logarithmic rate, and with what a user can do with an attribute: learn it."""

    params = {"log_rate": identity}

    def __init__(self, shift: Tensor | float = 0.0) -> None:
        self.shift = shift

    def log_prob(self, params: Any, x: Tensor) -> Tensor:
        log_rate = params[0] + self.shift
        return log_rate - torch.exp(log_rate) * x

    def support(self, x: Tensor) -> Tensor:
        return x >= 0


def as_distribution(likelihood: Likelihood, params: tuple[Tensor, ...]) -> Any:
    """The same by torch.distributions."""
    if isinstance(likelihood, Laplace):
        return distributions.Laplace(*params, validate_args=False)
    if isinstance(likelihood, ContinuousBernoulli):
        return distributions.ContinuousBernoulli(logits=params[0], validate_args=False)
    assert isinstance(likelihood, StudentT)
    mean, scale, df = params
    return distributions.StudentT(df, mean, scale, validate_args=False)


OWN = (Laplace(), ContinuousBernoulli(), StudentT())


def drawn(likelihood: Likelihood, *shape: int, seed: int = 0) -> tuple[Tensor, ...]:
    """Parameters of this shape, (*L, B, K, D), and x, (B, D), in float64."""
    g = torch.Generator().manual_seed(seed)
    raw = [torch.randn(shape, generator=g, dtype=torch.float64) for _ in likelihood.params]
    params = [link(t) for link, t in zip(likelihood.params.values(), raw, strict=True)]
    x = torch.rand(shape[-3], shape[-1], generator=g, dtype=torch.float64)
    if isinstance(likelihood, ZeroInflatedPoisson):
        x = (3 * x).floor()
    return (*params, x)
