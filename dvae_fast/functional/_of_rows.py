"""Log-weights of a likelihood whose operator takes all of its parameters: `Likelihood.rows`."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor

from dvae_fast import reference
from dvae_fast.functional._autograd import Operation, differentiable, keep, needs_function, operator

if TYPE_CHECKING:
    from collections.abc import Sequence

    from dvae_fast.likelihoods import Likelihood

__all__ = ["log_weights_by_operator"]

_zero_inflated = operator("zero_inflated")
_zero_inflated_backward = differentiable("zero_inflated_backward")


class _ZeroInflated(Operation):
    formula = staticmethod(reference.zero_inflated)

    @staticmethod
    def forward(*args: Any) -> Tensor:
        return cast("Tensor", _zero_inflated(*args))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        mean, scale, logits, x, _, mask = inputs
        keep(ctx, output, mean, scale, logits, x, mask)

    @staticmethod
    def pull(grads: Sequence[Tensor | None], need: Sequence[bool], *args: Any) -> tuple[Any, ...]:
        grad = cast("Tensor", grads[0])
        each = _zero_inflated_backward(grad, *args) if any(need[:3]) else (None, None, None)
        return (*each, None, grad, None)


_OPERATIONS = {"zero_inflated": (_ZeroInflated, _zero_inflated)}


def log_weights_by_operator(
    likelihood: Likelihood,
    params: tuple[Any, ...],
    operands: Sequence[Tensor],
    x: Tensor,
    log_ratio: Tensor,
    mask: Tensor | None,
) -> Tensor:
    """(N, K): params as they were given, and as (*L, B, K, D); x and mask (B, D) or (N, D),
    log_ratio (N, K)."""
    function, run = _OPERATIONS[cast("str", likelihood.rows)]
    shape = operands[0].shape
    rows = (math.prod(shape[:-2]), *shape[-2:])
    mean, scale, *rest = operands
    given = params[1]
    if not isinstance(given, Tensor):
        scale = torch.full((), given, dtype=mean.dtype, device=mean.device)
    elif given.numel() == 1 or given.shape == shape[-1:]:  # one, or one a dimension
        scale = given.reshape(() if given.numel() == 1 else shape[-1:]).to(mean.dtype)
    else:
        scale = scale.reshape(rows)
    args = (mean.reshape(rows), scale, *(t.reshape(rows) for t in rest), x, log_ratio)
    apply = function.apply if needs_function(*args) else run
    return cast("Tensor", apply(*args, mask))
