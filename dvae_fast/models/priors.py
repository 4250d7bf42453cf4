"""Priors p(z): what a model draws z from, and what its log-weights hold."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, cast, runtime_checkable

import torch
from torch import Tensor, nn

from dvae_fast import functional
from dvae_fast._checks import check_size
from dvae_fast._seeds import torch_seeded
from dvae_fast.models.decoders import check_data_mean
from dvae_fast.models.layers import linear
from dvae_fast.models.posterior import gaussian_log_ratio, place

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = [
    "PRIORS",
    "GaussianMixture",
    "Prior",
    "PriorSizes",
    "ReadyPrior",
    "StandardNormal",
    "VampPrior",
    "check_prior",
    "is_fused",
    "mixture_log_prob",
    "standard_normal_log_prob",
]


@runtime_checkable
class Prior(Protocol):
    """What a prior must have; a module's parameters are learnt with the model's.

    One with the attribute ``takes_context = True`` is told that of a conditional model:
    ``log_prob(z, context=)`` gets it so that it broadcasts to z, (B, 1, C) for z of (*L, B, K, Z),
    and ``sample(n, generator, context=)`` as (n, C).
    """

    def log_prob(self, z: Tensor) -> Tensor:
        """The log-density of each z in nats, (..., Z) → (...); differentiable in z."""

    def sample(self, n: int, generator: torch.Generator | None = None) -> Tensor:
        """n draws, (n, Z)."""


def standard_normal_log_prob(z: Tensor) -> Tensor:
    """log N(z; 0, I): (..., Z) → (...)."""
    return -0.5 * (z.square().sum(-1) + z.shape[-1] * math.log(2 * math.pi))


class StandardNormal(nn.Module):
    """N(0, I), which the fused operators know.

    Args:
        latent_size: Z.
    """

    def __init__(self, latent_size: int) -> None:
        super().__init__()
        self.latent_size = check_size("latent_size", latent_size)

    def log_prob(self, z: Tensor) -> Tensor:
        """(..., Z) → (...)."""
        return standard_normal_log_prob(z)

    def sample(self, n: int, generator: torch.Generator | None = None) -> Tensor:
        """n draws, (n, Z), on the generator's device."""
        device = None if generator is None else generator.device
        return torch.randn(n, self.latent_size, generator=generator, device=device)

    def extra_repr(self) -> str:
        """Z."""
        return str(self.latent_size)


class PriorSizes(NamedTuple):
    """What a prior is made of by name.

    Attributes:
        latent_size: Z.
        components: of a mixture.
        data_size: D.
        context_size: C; 0 without one.
        interval: of the data, closed.
        data_mean: (D,), if it is known.
    """

    latent_size: int
    components: int
    data_size: int
    context_size: int = 0
    interval: tuple[float, float] = (-math.inf, math.inf)
    data_mean: Tensor | None = None


class GaussianMixture(nn.Module):
    """Σ_c π_c N(mean_c, diag(exp(log_var_c))), all of it learnt; with a context the shares π follow
    it, a softmax of a linear layer.

    Args:
        latent_size: Z.
        components: how many; their means start at draws of N(0, I).
        context_size: C; 0 for shares of no context.
    """

    def __init__(self, latent_size: int, components: int = 100, context_size: int = 0) -> None:
        super().__init__()
        self.latent_size = check_size("latent_size", latent_size)
        check_size("components", components)
        self.means = nn.Parameter(torch.randn(components, latent_size))
        self.log_vars = nn.Parameter(torch.zeros(components, latent_size))
        self.logits = nn.Parameter(torch.zeros(components))
        #: whether `log_prob` and `sample` are told a context
        self.takes_context = check_size("context_size", context_size, 0) > 0
        self.shares = linear(context_size, components) if self.takes_context else None

    def _log_shares(self, context: Tensor | None) -> Tensor:
        """(..., components)."""
        logits = self.logits
        if self.shares is not None and context is not None:
            logits = logits + self.shares(context)
        return torch.log_softmax(logits, -1)

    def log_prob(self, z: Tensor, context: Tensor | None = None) -> Tensor:
        """(..., Z) → (...); a context (..., C) broadcasts to z."""
        rows, told = _by_context(z, context)
        examples = rows.shape[-3]
        mean, log_var = (
            t.to(z.dtype).unsqueeze(1).expand(-1, examples, -1) for t in (self.means, self.log_vars)
        )
        log_shares = self._log_shares(told).to(z.dtype)
        if told is None:
            log_shares = log_shares.expand(examples, -1)
        return mixture_log_prob(rows, mean, log_var, log_shares.T).reshape(z.shape[:-1])

    @torch.no_grad()
    def sample(
        self, n: int, generator: torch.Generator | None = None, context: Tensor | None = None
    ) -> Tensor:
        """n draws, (n, Z); of a context (n, C)."""
        shares = self._log_shares(context).exp().expand(n, -1)
        which = torch.multinomial(shares, 1, generator=generator).squeeze(1)
        return _normal(self.means[which], self.log_vars[which], generator)


def _interval(value: Any) -> tuple[float, float]:
    try:
        if isinstance(value, (str, bytes, dict)):
            raise TypeError
        low, high = value
        found = float(low), float(high)
    except (TypeError, ValueError):
        raise TypeError(f"interval must be two numbers, got {value!r}") from None
    if not found[0] < found[1]:
        raise ValueError(f"interval must begin below its end, got {value!r}")
    return found


class VampPrior(nn.Module):
    """1/C Σ_c q(z|u_c): the mean of the posteriors of C pseudo-inputs, which are learnt.

    They go through the encoder of the model that it is the prior of, without corruption, and with
    the context if there is one. They start at `data_mean`, or the middle of `interval` (0 where it
    has none), with noise of standard deviation 0.1.

    Args:
        data_size: D.
        components: C.
        interval: closed, in which they are kept.
        data_mean: (D,).
        context_size: of the model.

    Source: Tomczak and Welling (arXiv 1705.07120), equation 10.
    """

    def __init__(
        self,
        data_size: int,
        components: int = 100,
        *,
        interval: tuple[float, float] = (-math.inf, math.inf),
        data_mean: Tensor | None = None,
        context_size: int = 0,
    ) -> None:
        super().__init__()
        self.interval = interval = _interval(interval)
        if data_mean is not None:
            check_data_mean(data_mean, check_size("data_size", data_size))
        self.takes_context = check_size("context_size", context_size, 0) > 0
        noise = 0.1 * torch.randn(
            check_size("components", components), check_size("data_size", data_size)
        )
        middle = sum(interval) / 2 if all(map(math.isfinite, interval)) else max(interval[0], 0.0)
        start = torch.full((data_size,), middle) if data_mean is None else data_mean
        self.pseudo_inputs = nn.Parameter(start.to(noise) + noise)
        # In a list: a part of its own model would be in its state twice.
        self._model: list[Any] = []

    def bind(self, model: nn.Module) -> None:
        """Take the encoder of that model; a model calls it."""
        self._model[:] = [model]

    def _posteriors(self, context: Tensor | None, which: Tensor | None = None) -> Any:
        """Of the pseudo-inputs, or of those of an index: of each for each context (B, C)."""
        if not self._model:
            raise ValueError("prior must be that of a model, whose encoder a VampPrior needs")
        u = self.pseudo_inputs.clamp(*self.interval)
        if which is not None:
            u = u[which]
        elif context is not None:
            u = u.unsqueeze(1).expand(-1, len(context), -1)
        return self._model[0].encode(u, *(() if context is None else (context,)))

    def log_prob(self, z: Tensor, context: Tensor | None = None) -> Tensor:
        """(..., Z) → (...); a context (..., C) broadcasts to z."""
        rows, told = _by_context(z, context)
        posteriors = self._posteriors(told)
        if not isinstance(posteriors, (tuple, list)):
            if told is not None:
                raise ValueError("prior must not be vamp for distributions with a context")
            each = posteriors.log_prob(z.unsqueeze(-2))  # (..., C)
            each = each.sum(-1) if each.dim() > z.dim() else each
            return functional.logmeanexp(each)
        mean, spread = (t.to(z.dtype) for t in posteriors)
        full = spread.dim() > mean.dim()
        if told is None:
            mean, spread = mean.unsqueeze(1), spread.unsqueeze(1)
        if full:
            each = torch.stack([
                gaussian_log_ratio(rows, m.expand(rows.shape[:-2] + m.shape[-1:]), s.expand(
                    rows.shape[:-2] + s.shape[-2:])) for m, s in zip(mean, spread, strict=True)
            ])  # fmt: skip
            log_q = standard_normal_log_prob(rows) + functional.logmeanexp(-each, 0)
        else:
            log_q = mixture_log_prob(rows, mean, spread)
        return log_q.reshape(z.shape[:-1])

    @torch.no_grad()
    def sample(
        self, n: int, generator: torch.Generator | None = None, context: Tensor | None = None
    ) -> Tensor:
        """n draws, (n, Z); of a context (n, C)."""
        u, device = self.pseudo_inputs, self.pseudo_inputs.device
        which = torch.randint(0, len(u), (n,), generator=generator, device=device)
        posteriors = self._posteriors(context, which)
        if not isinstance(posteriors, (tuple, list)):
            seed = int(torch.randint(0, 2**31, (1,), generator=generator, device=device))
            with torch_seeded(seed, device):
                return cast("Tensor", posteriors.sample())
        mean, spread = posteriors
        if spread.dim() == mean.dim():
            return _normal(mean, spread, generator)
        return place(mean, spread, _noise(mean, generator))


def _normal(mean: Tensor, log_var: Tensor, generator: torch.Generator | None) -> Tensor:
    return place(mean, log_var, _noise(mean, generator))


def _noise(like: Tensor, generator: torch.Generator | None) -> Tensor:
    return torch.randn(like.shape, generator=generator, dtype=like.dtype, device=like.device)


def _by_context(z: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """z as (..., B, K, Z), whose B examples have the contexts (B, C); B = 1 without any."""
    if context is None:
        return z.reshape(1, -1, z.shape[-1]), None
    if context.dim() == 3 and context.shape[1] == 1 and z.shape[-3:-2] == context.shape[:1]:
        return z, context.squeeze(1)
    told = context.expand(*z.shape[:-1], context.shape[-1])
    return z.reshape(-1, 1, z.shape[-1]), told.reshape(-1, told.shape[-1])


def mixture_log_prob(
    z: Tensor, mean: Tensor, log_var: Tensor, log_shares: Tensor | None = None
) -> Tensor:
    """log Σ_c π_c N(z; mean_c, diag(exp(log_var_c))) in one pass, holding no (..., C).

    Args:
        z: (*L, B, K, Z).
        mean, log_var: (C, B, Z).
        log_shares: log π, (C, B); None for 1/C each.

    Returns:
        (*L, B, K) in nats, differentiable.
    """
    normal = standard_normal_log_prob(z)
    if log_shares is not None:
        # A dimension more, in which z and the means are 0: its density is a component's share,
        # (2π)^(−½) of it, which N(0; 0, 1) cancels.
        log_variance = -2 * (log_shares + math.log(len(mean)))
        z, mean = nn.functional.pad(z, (0, 1)), nn.functional.pad(mean, (0, 1))
        log_var = torch.cat((log_var, log_variance.unsqueeze(-1)), -1)
    return normal - functional.mixture_log_ratio(z, mean, log_var)


class ReadyPrior(NamedTuple):
    """How a prior is made by name.

    Attributes:
        make: of the sizes.
        fused: whether the operators know it, or the model has its own way for it.
        encodes: whether it needs an encoder of z.
    """

    make: Callable[[PriorSizes], nn.Module]
    fused: bool = False
    encodes: bool = False


#: "standard": N(0, I). "mixture": of Gaussians. "vamp": of the posteriors of pseudo-inputs.
PRIORS: dict[str, ReadyPrior] = {
    "standard": ReadyPrior(lambda sizes: StandardNormal(sizes.latent_size), fused=True),
    "mixture": ReadyPrior(
        lambda sizes: GaussianMixture(sizes.latent_size, sizes.components, sizes.context_size)
    ),
    "vamp": ReadyPrior(
        lambda sizes: VampPrior(
            sizes.data_size, sizes.components, interval=sizes.interval,
            data_mean=sizes.data_mean, context_size=sizes.context_size,
        ),
        encodes=True,
    ),
}  # fmt: skip


def is_fused(prior: object) -> bool:
    """Whether it is a name of a prior that the operators know."""
    return isinstance(prior, str) and PRIORS[prior].fused


def check_prior(prior: object) -> None:
    """Raise TypeError unless `prior` can give densities and draws."""
    if not isinstance(prior, Prior):
        raise TypeError(
            "prior must be a name or an object with log_prob(z) and sample(n, generator), "
            f"got {type(prior).__name__}"
        )
