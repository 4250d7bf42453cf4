"""`corrupt`: draws of the corruptions, with their gradients."""

from __future__ import annotations

import math
from typing import Any, cast

import torch
from torch import Tensor

from dvae_fast import ops as _ops  # noqa: F401  (registers the operators)
from dvae_fast._checks import check_count, check_float, check_index
from dvae_fast._dtypes import accumulation_dtype
from dvae_fast._seeds import seed_tensor
from dvae_fast.corruptions.basic import Corruption, DrawnCorruption
from dvae_fast.functional._autograd import differentiable_once, needs_grad

__all__ = ["corrupt"]

_op: Any = torch.ops.dvae_fast


class _Corrupt(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        parameter: Tensor,
        salt: Tensor | None,
        seed: Tensor,
        kind: str,
        copies: int,
        first_example: int,
        first_copy: int,
    ) -> Tensor:
        ctx.save_for_backward(parameter, salt, seed)
        ctx.kind, ctx.first = kind, (first_example, first_copy)
        return cast("Tensor", _op.corrupt(x, kind, parameter, salt, seed, copies, *ctx.first))

    @staticmethod
    @differentiable_once
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        parameter, salt, seed = ctx.saved_tensors
        grad_x = grad_parameter = None
        if ctx.needs_input_grad[0]:
            grad_x = _op.corrupt_backward(grad, ctx.kind, parameter, salt, seed, *ctx.first)
        if ctx.needs_input_grad[1] and ctx.kind == "gaussian":
            grad_parameter = _op.corrupt_backward_std(grad, parameter, seed, *ctx.first)
        return grad_x, grad_parameter, None, None, None, None, None, None


def corrupt(
    x: Tensor,
    corruption: Corruption,
    copies: int | None = None,
    seed: int | Tensor | None = None,
    *,
    first_example: int = 0,
    first_copy: int = 0,
) -> Tensor:
    """Draw x̃ ~ p(x̃|x), out of place; x stays the target.

    Args:
        x: (B, ...), floating point. The first dimension counts examples.
        corruption: one of `dvae_fast.corruptions`; a parameter per data dimension has the shape
            of one example, or as many elements.
        copies: None for one draw in the shape of x, or M >= 1 independent draws.
        seed: int, int64 tensor of one element, or None to draw one from torch's generator.
        first_example: index of x's first example in the noise, so that a data set corrupted
            batch by batch gets the numbers it would get at once.
        first_copy: index of the first copy in the noise, likewise.

    Returns:
        x̃ of shape (B, ...), or (M, B, ...) if `copies` is given. Differentiable in x where that
        makes sense (a masked element passes nothing) and in a Gaussian standard deviation.

    Raises:
        TypeError: if x is not a floating-point tensor or `corruption` not a corruption.
        ValueError: if copies < 1, or a parameter has neither one element nor one per dimension.

    Source: arXiv 1511.06406, section 2.
    """
    check_float("x", x)
    if not isinstance(corruption, Corruption) or not corruption.kind:
        raise TypeError(
            "corruption must be an object of dvae_fast.corruptions, such as Masking(0.1), "
            f"got {type(corruption).__name__}"
        )
    if x.dim() == 0:
        raise ValueError("x must have at least one dimension, (B, ...), got a scalar")
    if copies is not None:
        check_count("copies", copies, 1)
    m = 1 if copies is None else copies
    check_index("first_example", first_example, x.shape[0])
    check_index("first_copy", first_copy, m)
    kind = corruption.kind
    flat = x if x.dim() == 2 else x.reshape(x.shape[0], math.prod(x.shape[1:]))
    if isinstance(corruption, DrawnCorruption):
        key = seed_tensor(seed, x.device)
        out = corruption.draw(flat, m, key, first_example, first_copy)
        return out.view(x.shape if copies is None else (m, *x.shape))
    parameter = corruption.parameter
    salt = corruption.salt
    if parameter.device != x.device:
        parameter = parameter.to(x.device)
        salt = None if salt is None else salt.to(x.device)
    size = flat.shape[1]
    for name, value in (("parameter", parameter), ("salt", salt)):
        if value is not None and value.numel() not in (1, size):
            raise ValueError(
                f"corruption's {name} must have 1 element or one per data dimension ({size}), "
                f"got shape {tuple(value.shape)}"
            )
    if kind == "gaussian" and parameter.dtype != accumulation_dtype(x.dtype):
        parameter = parameter.to(accumulation_dtype(x.dtype))
    key = seed_tensor(seed, x.device)
    if needs_grad(flat, parameter):
        out = _Corrupt.apply(flat, parameter, salt, key, kind, m, first_example, first_copy)
    else:
        out = _op.corrupt(flat, kind, parameter, salt, key, m, first_example, first_copy)
    return cast("Tensor", out.view(x.shape if copies is None else (m, *x.shape)))
