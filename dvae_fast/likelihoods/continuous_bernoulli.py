"""Continuous Bernoulli: data in [0, 1], by logits."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from dvae_fast.likelihoods.base import OfLogits, checked_mean, in_wide
from dvae_fast.likelihoods.links import identity

if TYPE_CHECKING:
    from dvae_fast.likelihoods.base import Links

__all__ = ["ContinuousBernoulli"]

# Below this |l| the series in l² is exact in float64, and the quotients would lose digits.
_SMALL = 0.25
# log (y/tanh y), y = l/2, and the mean less ½ over l, by powers of l².
_LOG_NORMALISER = (
    1 / 12, -7 / 1440, 31 / 90720, -127 / 4838400, 73 / 34214400, -1414477 / 7846046208000,
    8191 / 523069747200,
)  # fmt: skip
_MEAN = (
    1 / 12, -1 / 720, 1 / 30240, -1 / 1209600, 1 / 47900160, -691 / 1307674368000,
    1 / 74724249600,
)  # fmt: skip


class ContinuousBernoulli(OfLogits):
    """p(x|z) = Π C(l) σ(l)^x (1 − σ(l))^(1−x) on [0, 1], a density, unlike a Bernoulli of grey
    values: C(l) = l/tanh(l/2), 2 at l = 0.

    Source: Loaiza-Ganem and Cunningham (arXiv 1907.06845), equations 3 and 7.
    """

    kernel = "continuous_bernoulli"
    params: ClassVar[Links] = {"logits": identity}
    interval = (0.0, 1.0)
    of_probabilities = "leave the sigmoid out: it is part of the likelihood."

    def log_prob(self, params: tuple[Tensor], x: Tensor) -> Tensor:
        """−(c |l| + log (1 − e^−|l|) − log |l|), c = 1 − x if l > 0, else x."""
        (logits,) = params
        c = torch.where(logits > 0, 1 - x, x)
        small, safe = _apart(logits)
        infinite = safe.isinf()
        magnitude = safe.masked_fill(infinite, 1.0).abs()
        far = torch.log(magnitude) - c * magnitude - torch.log(-torch.expm1(-magnitude))
        # All of x is at one end.
        far = torch.where(infinite, torch.where(c == 0, math.inf, -math.inf), far)
        # x l − softplus(l) + log C: of a large |l| what cancels is left out.
        near = torch.where(small, logits, 0.0)
        normaliser = math.log(2) + near.square() * _series(_LOG_NORMALISER, near)
        return torch.where(small, x * near - F.softplus(near) + normaliser, far)

    def derivatives(self, params: tuple[Tensor, ...], x: Tensor) -> tuple[Tensor, ...]:
        """x − E[x|l]; of a large l without the 1 that would cancel."""
        (logits,) = params
        small, safe = _apart(logits)
        near = x - _mean_near(logits, small)
        far = _mean_from_end(safe)
        return (torch.where(small, near, torch.where(logits > 0, far - (1 - x), x - far)),)

    def derivative_in_x(self, params: tuple[Tensor, ...], x: Tensor) -> Tensor:
        """The logits."""
        return params[0].expand(torch.broadcast_shapes(params[0].shape, x.shape))

    def start(self, data_mean: Tensor) -> Tensor:
        """The logits of that mean, by bisection: within 1e-9 of it, but at most 100 in size."""
        wanted = checked_mean(data_mean, self.interval).double()
        low, high = torch.full_like(wanted, -100.0), torch.full_like(wanted, 100.0)
        for _ in range(60):
            middle = (low + high) / 2
            below = self.mean((middle,)) < wanted
            low, high = torch.where(below, middle, low), torch.where(below, high, middle)
        return ((low + high) / 2).to(data_mean.dtype)

    @in_wide
    def mean(self, params: tuple[Tensor]) -> Tensor:
        """1/(1 − e^−l) − 1/l."""
        (logits,) = params
        small, safe = _apart(logits)
        far = _mean_from_end(safe)
        return torch.where(small, _mean_near(logits, small), torch.where(logits > 0, 1 - far, far))

    @in_wide
    def sample(self, params: tuple[Tensor], generator: torch.Generator | None = None) -> Tensor:
        """By the inverse of the distribution function."""
        (logits,) = params
        u = torch.rand(logits.shape, generator=generator, dtype=logits.dtype, device=logits.device)
        # Of |l|, whose 1 − x is of −|l|: log1p(−u (1 − e^−|l|)) / −|l|.
        magnitude = logits.abs()
        tiny = magnitude < 1e-4
        safe = torch.where(tiny, 1.0, magnitude)
        from_end = -torch.log1p(u * torch.expm1(-safe)) / safe
        from_end = torch.where(tiny, u, from_end).clamp(0, 1)
        return torch.where(logits > 0, 1 - from_end, from_end)


def _apart(logits: Tensor) -> tuple[Tensor, Tensor]:
    """Where logits are small; and them, 1 in the place of small ones."""
    small = logits.abs() < _SMALL
    return small, torch.where(small, 1.0, logits)


def _mean_near(logits: Tensor, small: Tensor) -> Tensor:
    """The mean of small logits: without |l|, whose derivative at 0 would be taken for its own."""
    near = torch.where(small, logits, 0.0)
    return 0.5 + near * _series(_MEAN, near)


def _mean_from_end(logits: Tensor) -> Tensor:
    """How far the mean of other logits lies from the end that they draw to, 1/|l| − 1/(e^|l| − 1):
    as it is written here its derivative is a number too where e^|l| is none."""
    magnitude = logits.abs()
    return 1 / magnitude + torch.exp(-magnitude) / torch.expm1(-magnitude)


def _series(coefficients: tuple[float, ...], logits: Tensor) -> Tensor:
    square = logits.square()
    out = torch.zeros_like(square)
    for c in reversed(coefficients):
        out = out * square + c
    return out
