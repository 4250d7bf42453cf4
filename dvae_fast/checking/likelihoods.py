"""The table of likelihoods with a kernel: where their operands lie, and the terms of their sums."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from dvae_fast.likelihoods import Bernoulli, DiscretisedLogistic, NegativeBinomial, Poisson
from dvae_fast.likelihoods.discretised import logistic_bin

if TYPE_CHECKING:
    from collections.abc import Callable

    from dvae_fast.checking.operands import Maker

    Operand = Callable[[Tensor], Tensor]

__all__ = ["LIKELIHOODS", "Row", "elements", "scale_of", "target_of"]


class Row(NamedTuple):
    """A likelihood: how operands are made of standard normals and uniforms, and its terms."""

    #: N(0, 1)-like → mean or logits
    params: Operand
    #: in [0.3, 2] → scale; None: has none
    scale: Operand | None
    #: in [0, 1], with exact zeros and ones → x
    data: Operand
    #: params, scale and x → absolute terms of log p, of ∂/∂params and of ∂/∂scale; no more than the
    #: first two if it has no scale
    terms: Callable[..., tuple[Tensor, Tensor, Tensor]]
    #: how many ε of its terms a density or derivative may be off: 4 or 5 for an exp and a log of 2
    #: ulp each and the arithmetic around
    roundings: int = 5
    #: how far samples differ, in units of `params`' argument, so that no one takes all the weight
    spread: float = 1.0
    #: what multiplies the last linear layer of a decoder, so that its outputs are of `params`' size
    layer: float = 1.0
    #: whether the mean must be positive
    positive: bool = False
    #: whether it costs the reference so little that large cases have a scale an element
    cheap: bool = False


def _terms_bernoulli(logits: Tensor, scale: None, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    s = torch.sigmoid(logits)
    return -Bernoulli().log_prob((logits,), x), x + s, s


def _terms_bernoulli_probabilities(
    p: Tensor, scale: None, x: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    slope = x / p + (1 - x) / (1 - p)
    return -Bernoulli(probabilities=True).log_prob((p,), x), slope, slope


def _terms_gaussian(mean: Tensor, s: Tensor, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    u = (x - mean) / s
    value = 0.5 * u.square() + s.log().abs() + 0.5 * math.log(2 * math.pi)
    return value, (u / s).abs(), (u.square() + 1) / s


def _terms_continuous_bernoulli(
    logits: Tensor, scale: None, x: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """The logarithm is of a number that may be near 1."""
    m, c = logits.abs(), torch.where(logits > 0, 1 - x, x)
    h = 1 / m - 1 / torch.expm1(m)
    value = c * m + torch.log(m) - torch.log(-torch.expm1(-m)) + 1
    return value, h + c, h


def _terms_laplace(mean: Tensor, s: Tensor, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    u = ((x - mean) / s).abs()
    return u + s.log().abs() + math.log(2), 1 / s, (u + 1) / s


def _terms_discretised_logistic(
    mean: Tensor, s: Tensor, x: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """log p is a sum of negative terms; where the bin ends is itself a difference."""
    _, near, far, width = logistic_bin(mean, s, x)
    at_near, at_far = torch.sigmoid(near), torch.sigmoid(-far)
    end = ((x - mean).abs() + 0.5 / 255) / s
    value = -DiscretisedLogistic().log_prob((mean, s), x) + (at_near + at_far) * end
    of_width = torch.where(width == math.inf, 0.0, width / torch.expm1(width))
    either = (at_near + at_far) * (1 + end)
    return value, either / s, (end * either + of_width) / s


def _terms_negative_binomial(mean: Tensor, t: Tensor, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """log p is a sum of a deviance, all of whose terms are negative, and of a few logarithms."""
    digamma = torch.digamma(x + t) - torch.digamma(t)
    value = -NegativeBinomial().log_prob((mean, t), x) + 1 + torch.log1p(x + t) + t.log().abs()
    return (
        value,
        (x / mean + 1) * t / (t + mean),
        digamma.abs() + torch.log1p(mean / t) + (x + mean) / (t + mean),
    )


def _terms_poisson(rate: Tensor, scale: None, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """As of a negative binomial."""
    value = -Poisson().log_prob((rate,), x) + 1 + torch.log1p(x)
    slope = x / rate + 1
    return value, slope, slope


LIKELIHOODS: dict[str, Row] = {
    "bernoulli": Row(lambda n: 4 * n, None, lambda u: u, _terms_bernoulli, roundings=4, spread=0.5),
    "gaussian": Row(lambda n: n, lambda u: u, lambda u: u, _terms_gaussian, cheap=True),
    # Not so narrow that e^−|x − mean|/scale leaves float32: see test_discrete_likelihoods.py.
    "discretised_logistic": Row(
        lambda n: 0.5 + 0.3 * n,
        lambda u: 0.1 * u,
        lambda u: (255 * u).round() / 255,
        _terms_discretised_logistic,
        spread=0.05,
        layer=0.25,
    ),
    # Dispersions from 7e-4 to 64, on both sides of where Stirling's series begins.
    "negative_binomial": Row(
        lambda n: torch.exp(1.5 * n),
        lambda u: u**6,
        lambda u: (40 * u**4).round(),
        _terms_negative_binomial,
        roundings=20,  # two terms of the deviance, three logarithms, four series
        spread=0.05,
        positive=True,
    ),
    "poisson": Row(
        lambda n: torch.exp(1.5 * n),
        None,
        lambda u: (40 * u**4).round(),
        _terms_poisson,
        roundings=12,  # the deviance, a logarithm, a series
        spread=0.05,
        positive=True,
    ),
    # No mean so near to x that rounding decides on which side it lies.
    "laplace": Row(
        lambda n: 0.25 * n,
        lambda u: u,
        lambda u: torch.where(u < 0.5, u - 3, u + 2),
        _terms_laplace,
        layer=0.25,
        cheap=True,
    ),
    "continuous_bernoulli": Row(
        lambda n: 4 * n, None, lambda u: u, _terms_continuous_bernoulli, roundings=12, spread=0.5
    ),
    "bernoulli_probabilities": Row(
        lambda n: 0.5 + 0.45 * torch.tanh(n),
        None,
        lambda u: u,
        _terms_bernoulli_probabilities,
        spread=0.05,
        layer=0.002,  # of several layers, of hundreds of inputs, all positive
        positive=True,
    ),
}


def elements(likelihood: str, n: int, seed: int) -> tuple[Tensor, ...]:
    """Parameters and x of n elements, (n,) each, in float64."""
    row, g = LIKELIHOODS[likelihood], torch.Generator().manual_seed(seed)
    normal = torch.randn(n, generator=g, dtype=torch.float64)
    u, v = torch.rand(2, n, generator=g, dtype=torch.float64)
    params = [row.params(normal)] + ([] if row.scale is None else [row.scale(0.3 + 1.7 * u)])
    return (*params, row.data((2 * v - 0.5).clamp(0, 1)))


def scale_of(make: Maker, likelihood: str, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """A scale; a likelihood without one has no business here."""
    of_uniform = LIKELIHOODS[likelihood].scale
    assert of_uniform is not None
    t = torch.rand(shape, generator=make.generator, dtype=torch.float64)
    return make.put(of_uniform(0.3 + 1.7 * t), dtype)


def target_of(make: Maker, likelihood: str, examples: int, size: int) -> Tensor:
    """x, (B, D)."""
    u = torch.rand(examples, size, generator=make.generator, dtype=torch.float64)
    return make.put(LIKELIHOODS[likelihood].data((2 * u - 0.5).clamp(0, 1)), make.sums)
