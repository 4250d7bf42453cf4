"""Bounds, DReG's coefficients and VIMCO's signal as their papers write them, in plain PyTorch."""

from __future__ import annotations

import itertools
import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from dvae_fast.objectives import Objective


def plain_bound(o: Objective, log_w: Tensor) -> Tensor:
    """(M, B, K) → (B,), each bound as its paper writes it."""
    m, _, k = log_w.shape
    elbo = log_w.mean((0, 2))
    nested = (torch.logsumexp(log_w, 2) - math.log(k)).mean(0)
    joint = torch.logsumexp(log_w, (0, 2)) - math.log(m * k)
    if o.name == "ciwae":
        assert o.beta is not None
        return o.beta * elbo + (1 - o.beta) * nested
    if o.name == "vr":
        assert o.alpha is not None
        power = torch.logsumexp((1 - o.alpha) * log_w, 2) - math.log(k)
        return (power / (1 - o.alpha)).mean(0)
    return {
        "elbo": elbo, "elbo_kl": elbo, "mixture_elbo": elbo, "iwae": nested,
        "iwae_joint": joint, "piwae": joint, "mixture": joint,
        "sivi": joint, "sivi_elbo": elbo, "iwhvi": joint, "iwhvi_elbo": elbo,
        "vr_max": log_w.amax(2).mean(0),
    }[o.name]  # fmt: skip


def doubly_reparameterised(o: Objective, log_w: Tensor, weight: float) -> Tensor:
    """DReG's coefficients (1810.04152), w̃² for IWAE, and for log q of a weight below 1."""
    m, _, k = log_w.shape
    nested, joint = log_w.softmax(2), torch.softmax(log_w.transpose(0, 1).flatten(1), 1)
    joint = joint.view(-1, m, k).transpose(0, 1)

    def doubled(w: Tensor) -> Tensor:
        return weight * w**2 + (1 - weight) * w

    if o.name == "elbo":
        return torch.full_like(log_w, 1 / (m * k))
    if o.name == "ciwae":
        assert o.beta is not None
        return (o.beta / k + (1 - o.beta) * doubled(nested)) / m
    if o.name == "vr":
        assert o.alpha is not None
        w = ((1 - o.alpha) * log_w).softmax(2)
        mixed = o.alpha * w + (1 - o.alpha) * w**2
        return (weight * mixed + (1 - weight) * w) / m
    return doubled(joint) if o.name == "iwae_joint" else doubled(nested) / m


def learning_signal(o: Objective, log_w: Tensor) -> Tensor:
    """VIMCO's, in O(K²): each sample in turn replaced by the others' geometric mean."""
    whole = plain_bound(o, log_w)
    out = torch.empty_like(log_w)
    m, _, k = log_w.shape
    for i, j in itertools.product(range(m), range(k)):
        without = log_w.clone()
        if o.name == "iwae_joint":
            others = [log_w[a, :, b] for a, b in itertools.product(range(m), range(k))]
            del others[i * k + j]
        else:
            others = [log_w[i, :, b] for b in range(k) if b != j]
        without[i, :, j] = torch.stack(others).mean(0)
        out[i, :, j] = whole - plain_bound(o, without)
    return out


def scores(samples: Tensor, expected: Tensor | float = 0.0) -> Tensor:
    """Each coordinate's distance from what is expected, in standard errors."""
    error = samples.std(0) / math.sqrt(samples.shape[0])
    return ((samples.mean(0) - expected) / error).abs()
