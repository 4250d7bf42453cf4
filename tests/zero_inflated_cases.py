"""Operands of zero-inflated counts, and what their operators are held to."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from dvae_fast import reference

M, B, K, D = 2, 3, 5, 67
_op: Any = torch.ops.dvae_fast

Case = tuple[torch.dtype, str, int]
#: rows of less than a group of lanes, one, several, and with a rest
CASES: list[Case] = [
    (dtype, scale, size)
    for dtype in (torch.float32, torch.float64)
    for scale in ("one", "each", "full")
    for size in (1, 15, 16, 31, 64, D, 300)
]


def operands(
    dtype: torch.dtype, scale: str, size: int = D, examples: int = B, copies: int = M
) -> list[Tensor]:
    """mean, scale, zero_logits (M B, K, D), x (B, D) and log_ratio (M B, K)."""
    g = torch.Generator().manual_seed(1)
    shape = (copies * examples, K, size)

    def uniform(*shape: int) -> Tensor:
        return torch.rand(shape, generator=g, dtype=torch.float64)

    scales = {"one": (), "each": (size,), "full": shape}
    made = [
        torch.exp(3 * torch.randn(shape, generator=g, dtype=torch.float64)),
        torch.exp(4 * uniform(*scales[scale]) - 2),
        4 * torch.randn(shape, generator=g, dtype=torch.float64),
        (40 * (uniform(examples, size) - 0.4).clamp(min=0) ** 2).round(),
        uniform(copies * examples, K),
    ]
    return [t.to(dtype) for t in made]


def masked(examples: int = B, size: int = D) -> Tensor:
    mask = torch.rand(examples, size, generator=torch.Generator().manual_seed(3)) < 0.6
    mask[0], mask[1:2] = False, True
    return mask


def _grad(args: list[Tensor]) -> Tensor:
    grad = args[4] - 0.4
    grad[0, 0] = 0
    return grad


def run(case: Case) -> list[Tensor]:
    """log-weights and gradients, without a mask and with one; what that leaves out is spoilt."""
    args, out = operands(*case), []
    for mask in (None, masked(size=case[2])):
        if mask is not None:
            rows = mask.repeat(M, 1).unsqueeze(1)
            args[0] = torch.where(rows, args[0], math.inf)
            args[2] = torch.where(rows, args[2], math.nan)
            args[3] = torch.where(mask, args[3], math.nan)
        out.append(_op.zero_inflated(*args, mask))
        out += _op.zero_inflated_backward(_grad(args), *args[:4], mask)
    return out


def assert_is(got: list[Tensor], case: Case) -> None:
    """As the formula in float64, to rounding of the sums."""
    dtype, _, size = case
    args = operands(*case)
    wide, grad = [t.double() for t in args], _grad(args).double()
    expected: list[Tensor] = []
    for mask in (None, masked(size=size)):
        expected.append(reference.zero_inflated(*wide, mask))
        expected += reference.zero_inflated_backward(grad, *wide[:4], mask)
    few = dtype == torch.float32
    rtol, atol = (4e-6, 2e-6 * size) if few else (1e-11, 1e-11)
    shapes = 2 * [args[4].shape, *(t.shape for t in args[:3])]
    for mine, wanted, shape in zip(got, expected, shapes, strict=True):
        assert (mine.dtype, mine.shape) == (dtype, shape)
        torch.testing.assert_close(mine.double(), wanted, rtol=rtol, atol=atol, msg=str(case))
