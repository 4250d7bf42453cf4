"""Counts: Poisson, negative binomial, and one with more zeros than that."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, ClassVar, cast

import torch
from torch import Tensor
from torch._functorch import eager_transforms
from torch.autograd import forward_ad

from dvae_fast.likelihoods.base import (
    Likelihood,
    MeanAndScale,
    checked_mean,
    in_wide,
    not_negative,
    weighted,
)
from dvae_fast.likelihoods.links import exponential, identity, positive

if TYPE_CHECKING:
    from dvae_fast.likelihoods.base import Links

__all__ = ["NegativeBinomial", "Poisson", "ZeroInflatedNegativeBinomial"]


class NegativeBinomial(MeanAndScale):
    """Counts x = 0, 1, 2, … with mean > 0 and inverse dispersion ("scale") θ > 0.

    log p = log Γ(x + θ)/Γ(θ) − log x! + θ log θ/(θ + mean) + x log mean/(θ + mean): the variance
    is mean + mean²/θ, and a Poisson's where θ is infinite. θ is a scalar, one per dimension, or
    full. A mean of 0 gives its limits, 0 for x = 0 and −inf for any other.

    Those terms are of the size of x log x and cancel, so they are not what is computed: for counts
    to 1e6 a log p is right to some 1e-4 of a nat in float32.

    Source: Lopez et al., Nature Methods 15 (2018), scVI's parametrisation; Loader, "Fast and
    accurate computation of binomial probabilities" (2000), for what is computed.
    """

    kernel = "negative_binomial"
    params: ClassVar[Links] = {"mean": exponential, "scale": positive}
    discrete = True
    interval = (0.0, math.inf)
    step = 1.0

    def log_prob(self, params: tuple[Tensor, Tensor], x: Tensor) -> Tensor:
        """J(x + t) − J(t) − log x! + (x log x − x) − t g(u) − x g(−w), t = scale: log Γ without its
        large terms, J(z) = log Γ(z) − z log z + z, and the deviance, of g(y) = y − log(1 + y),
        u = (x − mean)/(t + mean) and w = t (x − mean)/(x (t + mean)).
        """
        mean, scale = map(not_negative, params)
        t = _dispersion(mean, scale, x)
        gammas = torch.where(x == 0, 0.0, _log_gamma_rest(t, x) - _log_factorial_rest(x))
        value = gammas - _deviance(mean, t, x)
        return torch.where((mean == math.inf) | ((mean == 0) & (x > 0)), -math.inf, value)

    def derivatives(self, params: tuple[Tensor, ...], x: Tensor) -> tuple[Tensor, ...]:
        """(x/mean − 1) t/(t + mean); K(x + t) − K(t) + log (t + x)/(t + mean) − u, with
        K(z) = ψ(z) − log z.
        """
        mean, scale = map(not_negative, params)
        t = _dispersion(mean, scale, x)
        m = mean.clamp(max=torch.finfo(mean.dtype).max)
        size, one = _split(t + m)
        relative = torch.where(x == 0, -1.0, (x - m) / m)
        u = (x - m) / size / one
        rest, near = _log_rest((x + t) / size / one, u)
        d_scale = torch.where(mean == math.inf, -math.inf, torch.where(near, rest, rest - u))
        return relative * (t / size / one), d_scale + torch.where(x == 0, 0.0, _digamma_rest(t, x))

    def check_values(self, params: tuple[Tensor, ...]) -> None:
        _check_not_negative("mean", params[0], self.kind)
        super().check_values(params)

    @in_wide
    def sample(
        self, params: tuple[Tensor, Tensor], generator: torch.Generator | None = None
    ) -> Tensor:
        # A Poisson whose rate is drawn from a gamma of mean `mean` and shape θ.
        mean, scale = params
        gamma = torch._standard_gamma(scale.expand_as(mean), generator=generator)
        return torch.poisson(gamma * (mean / scale), generator=generator)


class ZeroInflatedNegativeBinomial(Likelihood):
    """A negative binomial of mean and scale, or, with probability σ(zero_logits), a 0.

    mean and scale are those of the counts that are not zeroed; E[x] = (1 − σ(zero_logits)) mean.

    Source: Lopez et al., Nature Methods 15 (2018), scVI's parametrisation.
    """

    kind = "zero_inflated_negative_binomial"
    rows = "zero_inflated"
    params: ClassVar[Links] = {"mean": exponential, "scale": positive, "zero_logits": identity}
    discrete = True
    interval = (0.0, math.inf)
    step = 1.0

    def log_prob(self, params: tuple[Tensor, Tensor, Tensor], x: Tensor) -> Tensor:
        """log (1 − π) NB(x), and log (π + (1 − π) NB(0)) of a 0, with π = σ(zero_logits)."""
        mean, scale, logits = params
        log_p = _by_formula(*torch.broadcast_tensors(mean, scale, x))
        kept = -torch.nn.functional.softplus(logits)
        zero = torch.logaddexp(-torch.nn.functional.softplus(-logits), kept + log_p)
        return torch.where(x == 0, zero, kept + log_p)

    def derivatives(self, params: tuple[Tensor, ...], x: Tensor) -> tuple[Tensor, ...]:
        """Those of the negative binomial, of a 0 times its share (1 − π) NB(0)/(π + (1 − π) NB(0));
        and 1 less that share, less π."""
        mean, scale, logits = torch.broadcast_tensors(*params)
        # The logarithm of the odds of a zeroed 0; NaN where neither kind of 0 is possible.
        odds = logits - _by_formula(mean, scale, torch.zeros_like(mean))
        share = torch.where(x == 0, torch.sigmoid(-odds), 1.0)
        each = _NEGATIVE_BINOMIAL.derivatives((mean, scale), x)
        of_mean, of_scale = (torch.where(share == 0, 0.0, share * d) for d in each)
        zeroed = torch.where(x == 0, torch.sigmoid(odds), 0.0)
        return of_mean, of_scale, zeroed - torch.sigmoid(logits)

    def check_values(self, params: tuple[Tensor, ...]) -> None:
        _NEGATIVE_BINOMIAL.check_values(params[:2])

    def start(self, data_mean: Tensor) -> Tensor:
        """Of zero_logits that start at 0, by which half of the counts are zeroed."""
        return exponential.inverse(2 * checked_mean(data_mean, exponential.interval))

    def mean(self, params: tuple[Tensor, Tensor, Tensor]) -> Tensor:
        mean, _, logits = params
        return torch.sigmoid(-logits) * mean

    @in_wide
    def sample(
        self, params: tuple[Tensor, Tensor, Tensor], generator: torch.Generator | None = None
    ) -> Tensor:
        mean, scale, logits = params
        drawn = _NEGATIVE_BINOMIAL.sample((mean, scale), generator)
        return drawn * torch.bernoulli(torch.sigmoid(-logits), generator=generator)


_NEGATIVE_BINOMIAL = NegativeBinomial()


class _ByFormula(torch.autograd.Function):
    """A negative binomial's log p of each element, all of one shape, with the derivatives that it
    knows: autograd's own, through terms that cancel, are 0 of a large scale and NaN of a tiny one.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(mean: Tensor, scale: Tensor, x: Tensor) -> Tensor:
        return _NEGATIVE_BINOMIAL.log_prob((mean, scale), x)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        mean, scale, x = ctx.saved_tensors
        each = _NEGATIVE_BINOMIAL.derivatives((mean, scale), x)
        return (*(weighted(grad, d) for d in each), None)


class _ByFormulaMoved(_ByFormula):
    """The same with a forward mode, which torch.compile refuses to see."""

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        ctx.save_for_backward(*inputs)
        ctx.save_for_forward(*inputs)

    @staticmethod
    def jvp(ctx: Any, *tangents: Tensor | None) -> Tensor:
        mean, scale, x = ctx.saved_tensors
        each = _NEGATIVE_BINOMIAL.derivatives((mean, scale), x)
        moved = (d * t for d, t in zip(each, tangents, strict=False) if t is not None)
        return sum(moved, torch.zeros_like(mean))


def _by_formula(mean: Tensor, scale: Tensor, x: Tensor) -> Tensor:
    if torch.compiler.is_compiling():
        return cast("Tensor", _ByFormula.apply(mean, scale, x))
    if eager_transforms.JVP_NESTING > 1 or torch._C._is_tracing():
        return _NEGATIVE_BINOMIAL.log_prob((mean, scale), x)  # torch drops the outer tangents
    moved = forward_ad._current_level >= 0
    return cast("Tensor", (_ByFormulaMoved if moved else _ByFormula).apply(mean, scale, x))


class Poisson(Likelihood):
    """Counts x = 0, 1, 2, … with mean and variance `rate` > 0; a rate of 0 gives its limits.

    As for a negative binomial, log p is made of the deviance and what log x! leaves beside it, so
    that large counts cost no digits.
    """

    kernel = "poisson"
    params: ClassVar[Links] = {"rate": exponential}
    discrete = True
    interval = (0.0, math.inf)
    step = 1.0

    def log_prob(self, params: tuple[Tensor], x: Tensor) -> Tensor:
        """−(log x! − x log x + x) − x g((rate − x)/x), g(y) = y − log(1 + y); −rate of a 0."""
        rate = not_negative(params[0])
        r = rate.clamp(max=torch.finfo(rate.dtype).max)
        at = torch.where(x == 0, 1.0, x)
        y = (r - at) / at
        rest, near = _log_rest(r / at, y)
        of_x = torch.where(near, rest, rest - y)
        value = torch.where(x == 0, -r, at * of_x - _log_factorial_rest(x))
        return torch.where((rate == math.inf) | ((rate == 0) & (x > 0)), -math.inf, value)

    def derivatives(self, params: tuple[Tensor, ...], x: Tensor) -> tuple[Tensor, ...]:
        """x/rate − 1."""
        rate = not_negative(params[0])
        return (torch.where((x == 0) & (rate >= 0), -1.0, (x - rate) / rate),)

    def check_values(self, params: tuple[Tensor, ...]) -> None:
        _check_not_negative("rate", params[0], self.kind)

    def start(self, data_mean: Tensor) -> Tensor:
        return exponential.inverse(checked_mean(data_mean, exponential.interval))

    def mean(self, params: tuple[Tensor]) -> Tensor:
        return params[0]

    def sample(self, params: tuple[Tensor], generator: torch.Generator | None = None) -> Tensor:
        return torch.poisson(params[0], generator=generator)


def _check_not_negative(name: str, value: Tensor, kind: str) -> None:
    if bool((value < 0).any()):
        rule = f"{name} must be >= 0 for the {kind} likelihood"
        raise ValueError(f"{rule}, got a minimum of {value.min().item():g}")


def _dispersion(mean: Tensor, scale: Tensor, x: Tensor) -> Tensor:
    """scale, or where that is larger one by which a negative binomial is a Poisson in every digit:
    inf/inf would be none, a tiny mean/(scale + mean) would be lost, and the largest mean has to be
    beside it."""
    wide = scale.dtype == torch.float64
    m = mean.detach().clamp(max=torch.finfo(mean.dtype).max)
    most = (1e40 if wide else 1e20) + (1e20 if wide else 1e10) * (m + (x - m).abs())
    return torch.minimum(scale, most.clamp(max=1e290 if wide else 1e30))


def _log_rest(ratio: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """log(1 + y), ratio = 1 + y; without its first term where |y| < ¼ (where the second says so):
    log(1 + y) − y, whose digits the difference would lose.
    """
    near = y.abs() < 0.25
    # log(1 + y) = 2 atanh(s) = 2 s + 2 s³ (1/3 + s²/5 + …), s = y/(2 + y), and 2 s = y − y s.
    small = torch.where(near, y, 0.0)
    s = small / (2 + small)
    q = s.square()
    series = torch.zeros_like(q)
    for i in reversed(range(10)):  # enough for float64
        series = series * q + 1 / (2 * i + 3)
    limits = torch.finfo(ratio.dtype)
    far = torch.log(torch.where(near, 1.0, ratio).clamp(limits.tiny, limits.max))
    return torch.where(near, 2 * s * q * series - small * s, far), near


def _split(total: Tensor) -> tuple[Tensor, Tensor]:
    """A constant, and what is 1 and has the derivative: a division by total itself leaves one by
    its square, which overflows. What is divided by a total of 0 is 0.
    """
    total = torch.where(total == 0, 1.0, total)
    size = total.detach()
    return size, total / size


def _deviance(mean: Tensor, t: Tensor, x: Tensor) -> Tensor:
    """t g(u) + x g(−w), both positive, at most the largest number for a mean that is not inf."""
    m = mean.clamp(max=torch.finfo(mean.dtype).max)
    size, one = _split(t + m)
    # t u = x w is part of either; where neither is near 0, of none.
    linear = t / size * (x - m) / one
    of_t, near_t = _log_rest((x + t) / size / one, (x - m) / size / one)
    # 1 − w = m (x + t)/(x (t + m)), of a tiny m times 2⁸⁰, which does not underflow.
    at = torch.where(x == 0, 1.0, x)
    tiny = m < 2.0**-60
    share = torch.where(tiny, 2.0**80 * m, m) / size / one
    of_x, near_x = _log_rest(share * (1 + t / at), -linear / at)
    of_x = of_x - (tiny & ~near_x).to(of_x.dtype) * (80 * math.log(2))
    near_x = near_x & (x != 0)
    first = near_x.to(linear.dtype) - near_t.to(linear.dtype)
    return first * linear - t * of_t - torch.where(x == 0, 0.0, x * of_x)


# Stirling's series: log Γ(z) = (z − ½) log z − z + ½ log 2π + Σ c_i z^(1 − 2i); from z = 10 on,
# eight terms are exact in float64.
_STIRLING_FROM = 10
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


def _smooth_log_gamma(z: Tensor) -> Tensor:
    """log Γ(z) − z log z + z and ½ log z where Stirling's series holds, (1 + z) log z elsewhere."""
    low = z < _STIRLING_FROM
    small, large = torch.where(low, z, 1.0), torch.where(low, _STIRLING_FROM, z)
    r = 1 / large
    q = r.square()
    series = torch.zeros_like(r)
    for c in reversed(_STIRLING):
        series = series * q + c
    return torch.where(
        low, torch.lgamma(1 + small) + small, 0.5 * math.log(2 * math.pi) + series * r
    )


def _smooth_digamma(z: Tensor) -> Tensor:
    """ψ(z) − log z and 1/(2z) where Stirling's series holds, 1/z + log z elsewhere."""
    low = z < _STIRLING_FROM
    small, large = torch.where(low, z, 1.0), torch.where(low, _STIRLING_FROM, z)
    q = (1 / large).square()
    series = torch.zeros_like(q)
    for i, c in reversed(tuple(enumerate(_STIRLING))):
        series = series * q - (1 + 2 * i) * c
    return torch.where(low, torch.digamma(1 + small), series * q)


def _log_gamma_rest(t: Tensor, x: Tensor) -> Tensor:
    """J(x + t) − J(t), J(z) = log Γ(z) − z log z + z."""
    z = x + t
    low_z, low_t = z < _STIRLING_FROM, t < _STIRLING_FROM
    # Where neither is low, ½ log t − ½ log z as one logarithm, which a large t is not lost in.
    of_z = torch.log(torch.where(low_t, z, z / t))
    of_t = torch.log(torch.where(low_t, t, 1.0))
    logs = (1 + t) * of_t - torch.where(low_z, 1 + z, 0.5) * of_z
    return logs + (_smooth_log_gamma(z) - _smooth_log_gamma(t))


def _digamma_rest(t: Tensor, x: Tensor) -> Tensor:
    """K(x + t) − K(t), K(z) = ψ(z) − log z."""
    z = x + t
    low_z, low_t = z < _STIRLING_FROM, t < _STIRLING_FROM
    steps = torch.where(low_t, 1.0, 0.5) * (x / z / t)  # 1/t − 1/z is x/(z t)
    change = torch.where(low_t & ~low_z, 0.5, 0.0) / z
    logs = torch.log(torch.where(low_t, t, 1.0) / torch.where(low_z, z, 1.0))
    return steps + change + logs + (_smooth_digamma(z) - _smooth_digamma(t))


def _log_factorial_rest(x: Tensor) -> Tensor:
    """log x! − x log x + x."""
    power = torch.where(x < _STIRLING_FROM, -x, 0.5)
    return _smooth_log_gamma(x) + power * torch.log(torch.where(x == 0, 1.0, x))
