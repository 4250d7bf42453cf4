"""Softplus, fused."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor

from dvae_fast import ops as _ops  # noqa: F401  (registers the operators)
from dvae_fast._checks import check_float
from dvae_fast.functional._autograd import needs_function, unary

__all__ = ["softplus"]

_op: Any = torch.ops.dvae_fast
_Softplus = unary("softplus", keeps_result=True)


def softplus(x: Tensor) -> Tensor:
    """log(1 + e^x), element by element, without `torch.nn.Softplus`'s linear part beyond 20.

    Keeps its result for the backward pass rather than its input: the linear layer that follows
    keeps that anyway, so the activation needs no memory of its own.

    Args:
        x: any shape, floating point.

    Returns:
        The shape and dtype of x.

    Raises:
        TypeError: if x is not a floating-point tensor.
    """
    check_float("x", x)
    return cast("Tensor", _Softplus.apply(x) if needs_function(x) else _op.softplus(x))
