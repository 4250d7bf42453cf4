"""From log-weights to a bound."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch

from dvae_fast import functional
from dvae_fast.objectives.objective import Objective, as_objective

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["bound", "is_at", "joined", "log_sums", "rows_of"]


def joined(t: Tensor, after: int) -> Tensor:
    """(*L, B, K, ...) → (B, L·K, ...), `after` dimensions from K on."""
    t = t.flatten(0, t.dim() - after - 2).transpose(0, 1)
    return t.reshape(t.shape[0], t.shape[1] * t.shape[2], *t.shape[3:])


def rows_of(log_w: Tensor, joint: bool) -> Tensor:
    """(M, B, K) → what a log-mean is over, last: (M, B, K) nested, (1, B, M·K) joint."""
    return joined(log_w, 1).unsqueeze(0) if joint else log_w


def _log_mean(rows: Tensor, t: float) -> Tensor:
    """T_t over the last dimension."""
    if t == 0:
        return rows.mean(-1)
    if math.isinf(t):
        return rows.amax(-1)
    return functional.logmeanexp(rows) if t == 1 else functional.logmeanexp(t * rows) / t


def is_at(index: Tensor, rows: Tensor) -> Tensor:
    """Where `index` (..., 1) points to in rows (..., K): bool. Not scatter, which vmap loops."""
    return torch.arange(rows.shape[-1], device=rows.device) == index


def log_sums(log_w: Tensor) -> tuple[Tensor, Tensor]:
    """log Σ_j w_j, (..., 1), and of each k log Σ_(j≠k) w_j, (..., K).

    O(K), and no digits lost: Σ_(j≠k) w_j is Σ w less w_k, except for the largest, for which the
    others are summed afresh.
    """
    top, index = log_w.max(-1, keepdim=True)
    shift = torch.where(top == -math.inf, 0.0, top)
    each = torch.exp(log_w - shift)
    total = each.sum(-1, keepdim=True)
    largest = is_at(index, log_w)
    rest = torch.logsumexp(log_w.masked_fill(largest, -math.inf), -1, keepdim=True)
    return torch.log(total) + shift, torch.where(largest, rest, torch.log(total - each) + shift)


def bound(log_w: Tensor, objective: str | Objective) -> Tensor:
    """The bound of each example, in nats: of the generative network, for "piwae".

    Args:
        log_w: log-weights (*L, B, K), usually (M, B, K) or (B, K), as laid out by
            `sample_latents`; for a joint bound (M, B, K) and (B, M·K) are the same.
        objective: a name or an `Objective`.

    Returns:
        (B,): the bound itself, never the surrogate Σ w̃ log w, whatever the estimator, free bits
        or the weight of the divergence in the loss.

    Raises:
        TypeError, ValueError: if the objective is wrong, log_w has fewer than two dimensions, or
            K < 1.
    """
    objective = as_objective(objective)
    if log_w.dim() < 2 or log_w.shape[-1] < 1:
        raise ValueError(f"log_w must have shape (*L, B, K) with K >= 1, got {tuple(log_w.shape)}")
    grouped = log_w.reshape(-1, *log_w.shape[-2:])
    terms = [
        _log_mean(rows_of(grouped, joint), t).mean(0) * share
        for share, t, joint in objective.generative
        if share != 0
    ]
    return sum(terms[1:], start=terms[0])
