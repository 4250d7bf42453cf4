"""Operands of one-hot variables, and what their operators are held to."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from dvae_fast import reference

M, B, K = 2, 3, 5
_op: Any = torch.ops.dvae_fast

Case = tuple[torch.dtype, int, int]
#: dtype, classes, variables: of less than a group of lanes, one, several, and with a rest; and
#: sums of more groups than one float takes in
CASES: list[Case] = [
    (dtype, classes, variables)
    for dtype in (torch.float32, torch.float64)
    for classes, variables in (
        (2, 1), (2, 16), (3, 15), (3, 67), (4, 31), (10, 33), (17, 5), (48, 3), (300, 2),
        (2, 300), (5, 0),
    )
]  # fmt: skip


def operands(
    dtype: torch.dtype, classes: int, variables: int, examples: int = B, copies: int = M
) -> list[Tensor]:
    """logits (M B, K, D), x (B, D) and log_ratio (M B, K)."""
    g = torch.Generator().manual_seed(classes)
    shape = (copies * examples, K, classes * variables)
    logits = 3 * torch.randn(shape, generator=g, dtype=torch.float64)
    x = torch.nn.functional.one_hot(
        torch.randint(0, classes, (examples, variables), generator=g), classes
    ).flatten(1)
    ratio = torch.rand(shape[:2], generator=g, dtype=torch.float64)
    return [logits.to(dtype), x.to(dtype), ratio.to(dtype)]


def masked(classes: int, variables: int, examples: int = B) -> Tensor:
    """Of one example nothing, of one everything, and of the last some variables, whole ones."""
    seen = torch.rand(examples, variables, generator=torch.Generator().manual_seed(3)) < 0.6
    seen[0], seen[1:2] = False, True
    return seen.repeat_interleave(classes, 1)


def _grad(ratio: Tensor) -> Tensor:
    grad = ratio - 0.4
    grad[0, 0] = 0
    return grad


def run(case: Case) -> list[Tensor]:
    """log-weights and gradients, without a mask and with one; what that leaves out is spoilt."""
    (logits, x, ratio), out = operands(*case), []
    for mask in (None, masked(*case[1:])):
        if mask is not None:
            logits = torch.where(mask.repeat(M, 1).unsqueeze(1), logits, math.nan)
            x = torch.where(mask, x, math.inf)
        out.append(_op.categorical(logits, x, ratio, case[1], mask))
        out.append(_op.categorical_backward(_grad(ratio), logits, x, case[1], mask))
    return out


def assert_is(got: list[Tensor], case: Case) -> None:
    """As the formula in float64, to rounding of the sums."""
    dtype, classes, variables = case
    logits, x, ratio = (t.double() for t in operands(*case))
    expected: list[Tensor] = []
    for mask in (None, masked(classes, variables)):
        expected.append(reference.categorical(logits, x, ratio, classes, mask))
        expected.append(
            reference.categorical_backward(
                _grad(operands(*case)[2]).double(), logits, x, classes, mask
            )
        )
    rtol, atol = (1e-6, 1e-6 + 1e-7 * variables) if dtype == torch.float32 else (1e-13, 1e-13)
    for mine, wanted, shape in zip(got, expected, 2 * [ratio.shape, logits.shape], strict=True):
        assert (mine.dtype, mine.shape) == (dtype, shape)
        torch.testing.assert_close(mine.double(), wanted, rtol=rtol, atol=atol, msg=str(case))
