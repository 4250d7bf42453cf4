"""The loss: its value is the bound's, its gradient the estimator's."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor

from dvae_fast import functional
from dvae_fast.functional._autograd import (
    Operation,
    differentiable,
    final,
    graph_is_asked,
    keep,
    same,
)
from dvae_fast.functional._looks import is_due, look_at_loss, look_at_params
from dvae_fast.functional.log_weights import iwae_loss_and_weights
from dvae_fast.likelihoods import get_likelihood
from dvae_fast.objectives.bound import bound, is_at, log_sums, rows_of
from dvae_fast.objectives.latents import FIRST_ORDER, Scaled
from dvae_fast.objectives.objective import Estimator, Objective, Term, as_objective

if TYPE_CHECKING:
    from collections.abc import Sequence

    from dvae_fast.functional.log_weights import Overwrite
    from dvae_fast.likelihoods import Likelihood

__all__ = ["loss"]

# PIWAE's generative coefficients are no smaller than this: beside a sum of 1 it is nothing in any
# dtype, and the inference net's coefficient over it still is a number.
_LEAST = 1e-20


_logmeanexp_backward = differentiable("logmeanexp_backward")


class _WithGradients(Operation):
    """The scalar `value`, whose derivatives with respect to a and b are said to be da and db.

    a are log-weights, which with `shift` added have the coefficients da of the objective.
    """

    @staticmethod
    def forward(
        value: Tensor,
        a: Tensor,
        da: Tensor,
        b: Tensor | None,
        db: Tensor | None,
        shift: Tensor | None,
        objective: Objective,
    ) -> Tensor:
        return value.clone()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        keep(ctx, output, *inputs[1:])

    @staticmethod
    def pull(grads: Sequence[Tensor | None], need: Sequence[bool], *args: Any) -> tuple[Any, ...]:
        a, da, b, db, shift, objective = args
        upstream = cast("Tensor", grads[0])
        if graph_is_asked():  # in which the coefficients have derivatives too
            da = _of_log_w(a if shift is None else a + shift, objective)
        of_b = None
        if db is not None and need[3]:
            (of_b,) = final((upstream * db,), FIRST_ORDER, upstream, a, b)
        return None, upstream * da, None, of_b, *(None,) * 3


class _Deliver(Operation):
    """The loss, which in the backward pass hands `ratio` to the `_PathSample` of that carrier."""

    @staticmethod
    def forward(loss: Tensor, carrier: Tensor, ratio: Tensor) -> Tensor:
        return same(loss)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        keep(ctx, output, inputs[2])

    @staticmethod
    def pull(grads: Sequence[Tensor | None], need: Sequence[bool], *args: Any) -> tuple[Any, ...]:
        return grads[0], args[0], None


# --- coefficients -----------------------------------------------------------------------------


def _coefficients(
    log_w: Tensor, terms: tuple[Term, ...], estimator: Estimator, kl_weight: Tensor | float
) -> Tensor:
    """What multiplies each sample's gradient, (M, B, K).

    "standard", "stl": c = ∂bound/∂log w, of ∂log w. "dreg": c + ∂c/∂log q, of ∂log w through z:
    E c ∂log q/∂φ is E ∂c/∂z ∂z/∂φ. "vimco": of ∂log q. log w holds −kl_weight · log q.
    """
    total = torch.zeros_like(log_w)
    for share, t, joint in terms:
        if share == 0:
            continue
        rows = rows_of(log_w, joint)
        c = _log_mean_gradient(rows, t)
        if estimator.doubly:
            c = c * (1 - kl_weight * t * (1 - c))  # ∂c/∂log w = t c (1 − c)
        elif estimator.score_function:
            c = _left_out(rows, t) - kl_weight * c
        c = c * (share / rows.shape[0])
        if joint:
            groups, examples, k = log_w.shape
            c = c.view(examples, groups, k).transpose(0, 1)
        total = total + c
    return total


def _log_mean_gradient(rows: Tensor, t: float) -> Tensor:
    """∂T_t/∂log w: 1/K, the normalised weights w^t / Σ w^t, or 1 for the largest alone."""
    if t == 0:
        return torch.full_like(rows, 1 / rows.shape[-1])
    if math.isinf(t):
        return is_at(rows.argmax(-1, keepdim=True), rows).to(rows.dtype)
    flat = (rows if t == 1 else t * rows).reshape(-1, rows.shape[-1])
    weights = _logmeanexp_backward(torch.ones_like(flat[:, 0]), flat)
    return cast("Tensor", weights.view(rows.shape))


def _left_out(rows: Tensor, t: float) -> Tensor:
    """VIMCO's learning signal, T_t less the T_t in which w_k is the others' geometric mean."""
    scaled = rows if t in (0, 1) else t * rows
    k = rows.shape[-1]
    infinite = scaled == -math.inf
    finite = scaled.masked_fill(infinite, 0.0)
    mean = (finite.sum(-1, keepdim=True) - finite) / (k - 1)
    mean = torch.where(infinite.sum(-1, keepdim=True) - infinite.long() > 0, -math.inf, mean)
    if t == 0:
        signal = (scaled - mean) / k
        return signal.masked_fill(infinite.any(-1, keepdim=True), 0.0)
    whole, others = log_sums(scaled)
    signal = (whole - torch.logaddexp(others, mean)) / t
    return signal.masked_fill(whole == -math.inf, 0.0)


def _of_log_w(log_w: Tensor, objective: Objective) -> Tensor:
    """∂loss/∂log w, in log_w's shape: what the generative network's gradient has."""
    shape = log_w.shape
    rows = log_w.reshape(-1, *shape[-2:])
    c = _coefficients(rows, objective.generative, Estimator(), 1.0)
    if objective.splits and not objective.gradient.score_function:
        c = c.clamp_min(_LEAST)
    return (c * (-1.0 / max(shape[-2], 1))).view(shape)


# --- the loss ---------------------------------------------------------------------------------


def loss(
    params: Tensor | tuple[Tensor, Tensor | float],
    x: Tensor,
    log_ratio: Tensor,
    likelihood: str | Likelihood = "bernoulli",
    objective: str | Objective = "iwae",
    *,
    inference: Tensor | None = None,
    kl_weight: Tensor | float = 1.0,
    mask: Tensor | None = None,
    overwrite_params: Overwrite = False,
) -> Tensor:
    """The negative bound, a mean over examples: a scalar in nats.

    Its value is that of the bound; its gradient is what the estimator, PIWAE, free bits and
    `kl_weight` make it. One fused pass for the elbo, iwae and mixture families, laid out as
    `sample_latents` does.

    Args:
        params, x, log_ratio, likelihood, mask, overwrite_params: as for `dvae_fast.iwae_loss`.
        objective: a name or an `Objective`.
        inference: what `sample_latents` returned with log_ratio.
        kl_weight: in [0, 1], multiplies log p(z) − log q(z|x̃) (the negative divergence, for
            "elbo_kl") in what the gradient is that of; a tensor may change under a CUDA graph.

    Raises:
        TypeError, ValueError: naming the argument, the rule and the value.
    """
    objective = as_objective(objective)
    by_score = objective.gradient.score_function
    if (inference is None) == (by_score or objective.rescales):
        rule = "be what sample_latents returned" if inference is None else "be None"
        raise ValueError(
            f"inference must {rule} for {objective.name} with the estimator "
            f"{objective.estimator}, got {'None' if inference is None else 'a tensor'}"
        )
    if objective.splits and not by_score and _dtype(params) == torch.float16:
        raise TypeError(
            f"params must not be float16 for {objective.name} without vimco, which needs the range "
            "of a wider dtype; bfloat16 has it"
        )
    weighted = isinstance(kl_weight, Tensor) or kl_weight != 1
    ratio: Tensor | None = None
    given = cast("Tensor", Scaled.apply(log_ratio, kl_weight)) if weighted else log_ratio
    if _is_one_pass(objective, log_ratio, weighted):
        total, weights = iwae_loss_and_weights(
            params, x, given, likelihood, "mean", overwrite_params, mask
        )
        if inference is None or not torch.is_grad_enabled():
            return total
        if weights is not None:
            return cast("Tensor", _Deliver.apply(total, inference, weights.view(inference.shape)))

    lik = get_likelihood(likelihood)
    log_w = functional.log_weights(params, x, given, lik, mask)
    unpacked = lik.unpack(params)
    due = is_due(log_w, lik)
    if due:
        look_at_params(unpacked[0], lik)
    values = log_w.detach()
    total = -bound(values, objective).mean()
    look_at_loss(total, x, lik, mask, unpacked, due=due)
    if not torch.is_grad_enabled():
        return total
    shift = (kl_weight - 1) * log_ratio.detach() if weighted else None
    if shift is not None:
        values = values + shift
    dw = _of_log_w(values, objective)
    dq = ratio = None
    if inference is not None:
        rows = values.reshape(-1, *values.shape[-2:])
        of_z = _coefficients(rows, objective.inference, objective.gradient, kl_weight)
        of_z = (of_z * (-1.0 / max(values.shape[-2], 1))).view(values.shape)
        if by_score:
            dq = of_z
        else:
            ratio = (of_z / torch.where(dw == 0, 1.0, dw)).view(inference.shape)
    b = inference if by_score else None
    total = _WithGradients.apply(total, log_w, dw, b, dq, shift, objective)
    if ratio is not None:
        total = _Deliver.apply(total, inference, ratio)
    return cast("Tensor", total)


def _first(params: Any) -> Any:
    return params[0] if isinstance(params, (tuple, list)) and params else params


def _dtype(params: Any) -> torch.dtype | None:
    first = _first(params)
    return first.dtype if isinstance(first, Tensor) else None


def _is_one_pass(objective: Objective, log_ratio: Tensor, weighted: bool) -> bool:
    """Whether the bound is a mean of log-mean-weights over the last dimension, as laid out."""
    if objective.gradient.score_function or objective.splits:
        return False
    if objective.bound.outside:
        return log_ratio.shape[-1] == 1
    if weighted or objective.generative != (Term(1.0, 1.0, objective.bound.joint),):
        return False
    return not objective.bound.joint or log_ratio.dim() == 2
