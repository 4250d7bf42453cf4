"""How far a result may lie from the reference, and how far it does."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from dvae_fast.checking.operands import LOW_PRECISION

#: Largest error over the sum of absolute terms, by the dtype sums are kept in.
RELATIVE = {torch.float32: 2e-6, torch.float64: 1e-12}


def unit_in_last_place(value: Tensor, dtype: torch.dtype) -> Tensor:
    """Spacing of `dtype` around each float64 value (0 for the dtypes sums are kept in)."""
    if dtype not in LOW_PRECISION:
        return torch.zeros_like(value)
    info = torch.finfo(dtype)
    exponent = torch.frexp(value.abs().clamp(min=info.tiny)).exponent - 1
    return torch.ldexp(torch.full_like(value, info.eps), exponent)


def allowed_error(
    dtype: torch.dtype,
    expected: Tensor,
    terms: Tensor,
    sums: torch.dtype,
    extra: Tensor | float = 0.0,
) -> Tensor:
    """RELATIVE · terms (+ extra, + 1 ulp of a result in low precision), per element in float64.

    Kernels may take an exponential below the smallest normal number for 0, which the last term
    allows for.
    """
    terms = torch.where(torch.isfinite(terms), terms, expected.abs()).expand_as(expected)
    unit = unit_in_last_place(torch.where(torch.isfinite(expected), expected, 0.0), dtype)
    return RELATIVE[sums] * terms + unit + extra + 1e3 * torch.finfo(sums).tiny


@dataclass(frozen=True)
class Comparison:
    """A result beside what was expected: the worst element, and how many are off."""

    #: elements off, of how many
    wrong: int
    elements: int
    #: largest error as a multiple of what is allowed there; inf where NaN or infinity is amiss
    worst: float
    #: of the worst element: its error and the one allowed
    error: float
    limit: float
    #: what to say where something is off
    detail: str = ""


def compare(actual: Tensor, expected: Tensor, allowed: Tensor) -> Comparison:
    """`actual` against float64 `expected`; where that is NaN or infinite they must be the same."""
    if actual.shape != expected.shape:
        shapes = f"shape {tuple(actual.shape)}, not {tuple(expected.shape)}"
        return Comparison(max(expected.numel(), 1), expected.numel(), math.inf, math.inf, 0, shapes)
    if actual.numel() == 0:
        return Comparison(0, 0, 0.0, 0.0, 0.0)
    got = actual.detach().double()
    same = (got == expected) | (got.isnan() & expected.isnan())
    error = torch.where(same, 0.0, (got - expected).abs())
    error = torch.where(torch.isfinite(error) & torch.isfinite(expected) | same, error, math.inf)
    ratio = torch.where(same, 0.0, error / allowed)
    wrong = ~(ratio <= 1)
    at = int(torch.where(wrong & ratio.isnan(), math.inf, ratio).flatten().argmax())
    worst, off, limit = (t.flatten()[at].item() for t in (ratio, error, allowed))
    count = int(wrong.sum())
    detail = ""
    if count:
        index = tuple(int(i) for i in torch.unravel_index(torch.tensor(at), expected.shape))
        detail = (
            f"{count} of {wrong.numel()} elements off; worst at {index}: got "
            f"{got.flatten()[at].item():.9g}, expected {expected.flatten()[at].item():.9g}, "
            f"{worst:.3g} times the error that is allowed"
        )
    return Comparison(count, wrong.numel(), worst, off, limit, detail)
