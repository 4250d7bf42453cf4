"""A model with an exact likelihood: z ~ N(0, I), x = W z + b + N(0, σ²I), in float64.

log p(x) = log N(x; b, W Wᵀ + σ²I), and the posterior N(S Wᵀ(x − b)/σ², S) with
S = (I + WᵀW/σ²)⁻¹, which is a diagonal Gaussian when the columns of W are orthogonal.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from dvae_fast.evaluation import LikelihoodEstimate, estimate_log_likelihood
from dvae_fast.models import LatentVariableModel, make_model

D, Z = 6, 2


class LinearDecoder(nn.Module):
    """z → (W z + b, σ)."""

    def __init__(self, orthogonal: bool, noise: float) -> None:
        super().__init__()
        g = torch.Generator().manual_seed(1)
        weight = torch.randn(D, Z, generator=g, dtype=torch.float64)
        if orthogonal:
            weight = torch.linalg.qr(weight).Q * torch.tensor([1.5, 0.5], dtype=torch.float64)
        self.weight = nn.Parameter(weight)
        self.bias = nn.Parameter(torch.randn(D, generator=g, dtype=torch.float64))
        self.noise = noise

    def forward(self, z: Tensor) -> tuple[Tensor, Tensor]:
        mean = nn.functional.linear(z, self.weight, self.bias)
        return mean, torch.full((D,), self.noise, dtype=torch.float64)


class PosteriorEncoder(nn.Module):
    """x → the posterior's mean and the diagonal of its covariance times `widen`, as log_var."""

    def __init__(self, decoder: LinearDecoder, widen: float) -> None:
        super().__init__()
        self.decoder, self.widen = decoder, widen

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        w, noise = self.decoder.weight, self.decoder.noise
        covariance = torch.linalg.inv(torch.eye(Z, dtype=w.dtype) + w.T @ w / noise**2)
        mean = (x - self.decoder.bias) @ w @ covariance / noise**2
        spread = self.spread(covariance * self.widen)
        return mean, spread.expand(*x.shape[:-1], *spread.shape)

    def spread(self, covariance: Tensor) -> Tensor:
        return covariance.diagonal().log()


class FullPosteriorEncoder(PosteriorEncoder):
    """The same with all of the covariance, as L."""

    def spread(self, covariance: Tensor) -> Tensor:
        return torch.linalg.cholesky(covariance)


def linear_gaussian(
    name: str, *, orthogonal: bool = False, widen: float = 1.0, noise: float = 0.7, **options: Any
) -> LatentVariableModel:
    """The model called `name` with this decoder, and with its posterior as encoder if
    `orthogonal`, otherwise with the nearest diagonal one."""
    model = make_model(name, D, Z, (), likelihood="gaussian", **options).double()
    model.decoder = LinearDecoder(orthogonal, noise)
    model.encoder = PosteriorEncoder(model.decoder, widen)
    return model


@torch.no_grad()
def exact_log_likelihood(model: LatentVariableModel, x: Tensor) -> Tensor:
    """log p(x), (N,)."""
    decoder = model.decoder
    assert isinstance(decoder, LinearDecoder)
    covariance = decoder.weight @ decoder.weight.T
    covariance = covariance + decoder.noise**2 * torch.eye(D, dtype=x.dtype)
    residual = x - decoder.bias
    quadratic = (residual * torch.linalg.solve(covariance, residual.T).T).sum(1)
    return -0.5 * (quadratic + torch.logdet(covariance) + D * math.log(2 * math.pi))


@torch.no_grad()
def draw_data(model: LatentVariableModel, n: int) -> Tensor:
    """n examples of p(x)."""
    g = torch.Generator().manual_seed(2)
    mean, scale = model.decoder(torch.randn(n, Z, generator=g, dtype=torch.float64))
    return mean + scale * torch.randn(n, D, generator=g, dtype=torch.float64)


def assert_finds_the_likelihood(
    model: LatentVariableModel, n: int, k: int, most: float, **options: Any
) -> LikelihoodEstimate:
    """Of n draws, within 5 standard errors of the mean, themselves below `most`: a false alarm in 2
    million, were the noise drawn anew.
    """
    x = draw_data(model, n)
    exact = exact_log_likelihood(model, x)
    estimate = estimate_log_likelihood(model, x, k, batch_size=60, chunk=300, **options)
    assert 0 < estimate.mean_standard_error < most
    bias = 0.5 * float(estimate.standard_error.square().mean())  # of log, to second order
    error = estimate.mean + bias - float(exact.mean())
    assert abs(error) < 5 * estimate.mean_standard_error
    return estimate
