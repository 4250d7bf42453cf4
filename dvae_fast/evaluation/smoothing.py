"""Importance weights whose largest are smoothed by a Pareto distribution fitted to them."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from dvae_fast._checks import check_float
from dvae_fast.evaluation.statistics import pareto_fit, tail_size

__all__ = ["pareto_smoothed"]

_LEAST = math.log(torch.finfo(torch.float64).tiny)  # of a cutoff, relative to the largest weight


def pareto_smoothed(log_w: Tensor) -> tuple[Tensor, Tensor]:
    """Self-normalised importance weights, Pareto-smoothed, and k̂ of their tail.

    The weights above the cutoff, at most min(K/5, 3 √K) of them, are replaced by as many quantiles
    of the generalised Pareto distribution that is fitted to them, none by more than the largest
    was: a little bias for a much smaller variance. Where fewer than 5 lie above it they stay as
    they are.

    Args:
        log_w: (N, K) log-weights, K >= 1.

    Returns:
        (N, K) float64: logarithms of weights that sum to 1; and k̂, (N,) float64, +inf where
        nothing could be smoothed. Where a weight is NaN or +inf, or all are 0, both are NaN.

    Raises:
        TypeError, ValueError: if log_w is no such tensor.

    Source: Vehtari, Simpson, Gelman, Yao, Gabry (arXiv 1507.02646), section 2.
    """
    check_float("log_w", log_w)
    if log_w.dim() != 2 or log_w.shape[1] < 1:
        raise ValueError(f"log_w must have shape (N, K) with K >= 1, got {tuple(log_w.shape)}")
    count = log_w.shape[1]
    log_w = log_w.detach().double()
    ordered, order = (log_w - log_w.amax(1, keepdim=True)).sort(dim=1, stable=True)
    size = tail_size(count)
    k = torch.full_like(ordered[:, 0], math.inf)
    if 5 <= size < count:
        cutoff = ordered[:, -size - 1, None].clamp(min=_LEAST)
        tail = ordered[:, -size:]
        above = tail > cutoff
        start = cutoff.exp()
        exceedances = torch.where(above, tail.exp() - start, 0)
        k, theta = pareto_fit(exceedances)
        n = above.sum(1, keepdim=True)
        sigma = -torch.log1p(-theta[:, None] * exceedances).sum(1, keepdim=True) / n
        sigma = sigma / theta[:, None]
        # The i-th of n has the quantile of (i − ½)/n.
        i = torch.arange(1, size + 1, dtype=tail.dtype, device=tail.device) - (size - n)
        log_rest = torch.log1p(-((i - 0.5) / n).clamp(0, 1))
        shape = torch.where(k.isfinite(), k, 1.0)[:, None]
        flat = shape.abs() < torch.finfo(torch.float64).eps
        quantile = torch.where(
            flat, -log_rest, torch.expm1(-shape * log_rest) / torch.where(flat, 1.0, shape)
        )
        smooth = torch.log(sigma * quantile + start).clamp(max=0)
        ordered[:, -size:] = torch.where(above & k.isfinite()[:, None], smooth, tail)
    smoothed = torch.empty_like(ordered).scatter_(1, order, ordered)
    smoothed = smoothed - smoothed.logsumexp(1, keepdim=True)
    return smoothed, torch.where(smoothed.isnan().any(1), math.nan, k)
