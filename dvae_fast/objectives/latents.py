"""Latent samples as an objective wants them, with the gradients its estimator gives."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import torch
from torch import Tensor

from dvae_fast import functional
from dvae_fast._checks import check_count
from dvae_fast._dtypes import accumulation_dtype
from dvae_fast._seeds import seed_tensor
from dvae_fast.functional._autograd import Operation, differentiable, final, keep, operator, same
from dvae_fast.functional.latent import check_mean_and_log_var, sampled_rows
from dvae_fast.objectives.bound import joined
from dvae_fast.objectives.objective import Objective, as_objective
from dvae_fast.objectives.outer import (
    check_outer,
    hierarchical_log_ratio,
    semi_implicit_log_ratio,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from dvae_fast.objectives.outer import Outer

__all__ = ["FIRST_ORDER", "Latents", "Scaled", "sample_latents"]

_op: Any = torch.ops.dvae_fast

FIRST_ORDER = (
    "stl, dreg, vimco and piwae say what the inference network's gradient is, in reverse mode and "
    "of first order: there is nothing to differentiate again, and no forward mode. The standard "
    "estimator of the other bounds has both"
)


_sample_latent = operator("sample_latent")
_sample_latent_backward = differentiable("sample_latent_backward")
_latent_log_ratio_backward = differentiable("latent_log_ratio_backward")


class Scaled(Operation):
    """x, with its derivatives times `factor`."""

    formula = staticmethod(lambda x, factor: x * factor + (x * (1 - factor)).detach())

    @staticmethod
    def forward(x: Tensor, factor: Tensor | float) -> Tensor:
        return same(x)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        keep(ctx, output, inputs[1])

    @staticmethod
    def pull(grads: Sequence[Tensor | None], need: Sequence[bool], *args: Any) -> tuple[Any, ...]:
        return cast("Tensor", grads[0]) * args[0], None


class _PathSample(Operation):
    """`sample_latent` whose gradient is rescaled row by row, and log q's own φ dropped.

    Returns z (M, B, K, Z), log_ratio (M, B, K) and a carrier, zeros like log_ratio: it computes
    nothing, but what comes back as its gradient is, if `rescales`, the ratio of the inference
    net's coefficient to the generative net's. So the decoder is gone back through once, whatever
    the estimator, and only the gradient of z is touched.
    """

    @staticmethod
    def forward(
        mean: Tensor,
        log_var: Tensor,
        seed: Tensor,
        k: int,
        first_example: int,
        drop_score: bool,
        rescales: bool,
    ) -> tuple[Tensor, Tensor, Tensor]:
        z, log_ratio = _sample_latent(mean, log_var, k, seed, first_example, 0)
        return z, log_ratio, torch.zeros_like(log_ratio)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        keep(ctx, output, *inputs, output[0])

    @staticmethod
    def pull(grads: Sequence[Tensor | None], need: Sequence[bool], *args: Any) -> tuple[Any, ...]:
        mean, log_var, seed, k, first_example, drop_score, rescales, z = args
        grad_z, grad_log_ratio, ratio = grads
        if drop_score and grad_log_ratio is not None:
            # ∂(log p(z) − log q(z))/∂z alone.
            rows = (grad_log_ratio, z, mean, log_var)
            through = _latent_log_ratio_backward(*(t.flatten(0, 1) for t in rows))[0]
            through = through.view(z.shape)
            grad_z = through if grad_z is None else through + grad_z
            grad_log_ratio = None
        if grad_z is None and grad_log_ratio is None:
            return (None,) * 7
        # A flag, because torch.compile makes zeros of a gradient that nobody gave.
        if rescales and ratio is not None:
            grad_z = None if grad_z is None else grad_z * ratio.unsqueeze(-1).to(grad_z.dtype)
            grad_log_ratio = None if grad_log_ratio is None else grad_log_ratio * ratio
        pulled = _sample_latent_backward(
            grad_z, grad_log_ratio, mean, log_var, k, seed, first_example, 0
        )
        upstream = (t for t in grads if t is not None)
        return *final(pulled, FIRST_ORDER, mean, log_var, *upstream), *(None,) * 5


class Latents(NamedTuple):
    """Samples laid out so that the bound is, where it can be, a mean of log-mean-weights.

    Attributes:
        z: (*L, B, K, Z), the decoder's input; L as the objective wants it.
        log_ratio: log p(z) − log q(z|x̃), (*L, B, K).
        inference: the inference network's end of the gradient where it is not log_ratio's and z's
            own, in the shape of log_ratio; for `loss` alone.
    """

    z: Tensor
    log_ratio: Tensor
    inference: Tensor | None = None


def sample_latents(
    mean: Tensor,
    log_var: Tensor,
    k: int,
    objective: str | Objective,
    seed: int | Tensor | None = None,
    *,
    first_example: int = 0,
    outer: Outer | None = None,
) -> Latents:
    """K samples of each q(z|x̃) = N(mean, exp(log_var)), for the objective.

    Args:
        mean, log_var: (*L, B, Z), encoded once; *L usually is M or nothing.
        k: K >= 1; >= 2 for vimco, unless M·K is in one logarithm.
        objective: a name or an `Objective`.
        seed, first_example: as for `dvae_fast.sample_latent`.
        outer: of "sivi" and "sivi_elbo" mean and log_var, (J, B, Z), of J further corruptions of
            each example; of "iwhvi" and "iwhvi_elbo" a function of the samples, z (S, B, Z) →
            `Reversed`, S = M·K. None for none: q(z|x̃) itself is then below.

    Returns:
        `Latents`, z and log_ratio of shapes (*L, B, K, Z) and (*L, B, K), but for
        "elbo" and "elbo_kl" with K > 1 (*L, K, B, 1, Z) and (*L, K, B, 1): samples go outside the
        logarithm, as if they were corruptions;
        "iwae_joint", "mixture", "sivi" and "iwhvi" with M groups (B, M·K, Z) and (B, M·K);
        "mixture_elbo", "sivi_elbo" and "iwhvi_elbo" (M·K, B, 1, Z) and (M·K, B, 1).
        For "elbo_kl" log_ratio is −KL(q || p).

    Raises:
        TypeError, ValueError: as `dvae_fast.sample_latent`, or if the objective is wrong.
    """
    objective = as_objective(objective)
    check_mean_and_log_var(mean, log_var)
    check_count("k", k, 1)
    objective.check_samples(math.prod(mean.shape[:-2]), k)
    check_outer(outer, objective, *mean.shape[-2:])
    if objective.bound.mixture:
        return _sample_mixture(mean, log_var, k, objective, seed, first_example, outer)
    if objective.bound.analytic:
        return _sample_analytic(mean, log_var, k, objective.free_bits, seed, first_example)
    if objective.gradient.score_function:
        with torch.no_grad():
            z, _ = functional.sample_latent(mean, log_var, k, seed, first_example=first_example)
        log_ratio = functional.latent_log_ratio(z, mean, log_var)
        return Latents(z, log_ratio.detach(), -log_ratio)
    if objective.bound.outside:
        mean, log_var, k = *_outside(mean, log_var, k), 1
    carrier = None
    drop_score, rescales = objective.gradient.drops_score, objective.rescales
    if not drop_score and not rescales:
        z, log_ratio = functional.sample_latent(mean, log_var, k, seed, first_example=first_example)
    else:
        shape, mean, log_var = sampled_rows(mean, log_var, k, first_example)
        key = seed_tensor(seed, mean.device)
        z, log_ratio, carrier = _PathSample.apply(
            mean, log_var, key, k, first_example, drop_score, rescales
        )
        z = z.view(*shape[:-1], k, shape[-1])
        log_ratio = log_ratio.view(*shape[:-1], k)
        carrier = carrier.view(log_ratio.shape) if rescales else None
    if objective.bound.joint and not objective.splits and z.dim() > 3:
        z, log_ratio = joined(z, 2), joined(log_ratio, 1)
        carrier = None if carrier is None else joined(carrier, 1)
    return Latents(z, log_ratio, carrier)


def _outside(mean: Tensor, log_var: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """(*L, B, Z) → (*L, K, B, Z) without a copy; K = 1 as it is."""
    if k == 1:
        return mean, log_var
    shape = (*mean.shape[:-2], k, *mean.shape[-2:])
    return mean.unsqueeze(-3).expand(shape), log_var.unsqueeze(-3).expand(shape)


def _kl_divergence(mean: Tensor, log_var: Tensor) -> Tensor:
    """KL(N(mean, exp(log_var)) || N(0, 1)) element by element."""
    return 0.5 * (mean.square() + torch.expm1(log_var) - log_var)


def _sample_analytic(
    mean: Tensor,
    log_var: Tensor,
    k: int,
    free_bits: float,
    seed: int | Tensor | None,
    first_example: int,
) -> Latents:
    outer = _outside(mean, log_var, k)
    z, _ = functional.sample_latent(*outer, 1, seed, first_example=first_example)
    dtype = accumulation_dtype(mean.dtype)
    divergence = _kl_divergence(mean.to(dtype), log_var.to(dtype))
    if free_bits:
        # The gradient of Σ_j max(λ, KL_j): none where KL_j is below.
        over = divergence.detach().flatten(0, -2).mean(0) > free_bits
        divergence = cast("Tensor", Scaled.apply(divergence, over.to(dtype)))
    log_ratio = -divergence.sum(-1)
    if k > 1:
        log_ratio = log_ratio.unsqueeze(-2).expand(*log_ratio.shape[:-1], k, log_ratio.shape[-1])
    return Latents(z, log_ratio.unsqueeze(-1))


def _sample_mixture(
    mean: Tensor,
    log_var: Tensor,
    k: int,
    objective: Objective,
    seed: int | Tensor | None,
    first_example: int,
    outer: Outer | None,
) -> Latents:
    mean, log_var = (t.reshape(-1, *t.shape[-2:]) for t in (mean, log_var))
    groups, examples, size = mean.shape
    z, _ = functional.sample_latent(mean, log_var, k, seed, first_example=first_example)

    def below(mean: Tensor, log_var: Tensor) -> tuple[Tensor, Tensor]:
        if objective.gradient.drops_score:
            mean, log_var = mean.detach(), log_var.detach()
        return mean.to(z.dtype), log_var.to(z.dtype)

    own = below(mean, log_var)
    if not objective.bound.outer:
        z = joined(z, 2)
        log_ratio = functional.mixture_log_ratio(z, *own)
    else:
        log_ratio = _outer_log_ratio(z, own, outer, below, objective.bound.outside)
        z, log_ratio = joined(z, 2), joined(log_ratio, 1)
    if objective.bound.outside:
        z = z.transpose(0, 1).reshape(groups * k, examples, 1, size)
        log_ratio = log_ratio.transpose(0, 1).unsqueeze(-1)
    return Latents(z, log_ratio)


def _outer_log_ratio(
    z: Tensor,
    own: tuple[Tensor, Tensor],
    outer: Outer | None,
    below: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]],
    outside: bool,
) -> Tensor:
    """Of z (M, B, K, Z), with what `below` makes of the parameters of q: (M, B, K)."""
    if outer is None:
        return functional.latent_log_ratio(z, *own)
    if isinstance(outer, tuple):
        return semi_implicit_log_ratio(z, *own, below(*outer))
    groups, k = len(z), z.shape[2]
    samples = z.transpose(1, 2).flatten(0, 1)
    log_ratio = functional.latent_log_ratio(z, *own).transpose(1, 2).flatten(0, 1)
    log_ratio = hierarchical_log_ratio(samples, log_ratio, outer(samples), below, not outside)
    return log_ratio.view(groups, k, -1).transpose(1, 2)
