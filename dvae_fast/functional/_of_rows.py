"""Log-weights of a likelihood whose operator takes all of its parameters: `Likelihood.rows`."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor

from dvae_fast import reference
from dvae_fast.functional._autograd import Operation, differentiable, keep, needs_function, operator
from dvae_fast.likelihoods import Categorical

if TYPE_CHECKING:
    from collections.abc import Sequence

    from dvae_fast.likelihoods import Likelihood

__all__ = ["log_weights_by_operator"]

_zero_inflated = operator("zero_inflated")
_zero_inflated_backward = differentiable("zero_inflated_backward")
_categorical = operator("categorical")
_categorical_backward = differentiable("categorical_backward")


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


class _Categorical(Operation):
    formula = staticmethod(reference.categorical)

    @staticmethod
    def forward(*args: Any) -> Tensor:
        return cast("Tensor", _categorical(*args))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        logits, x, _, classes, mask = inputs
        keep(ctx, output, logits, x, classes, mask)

    @staticmethod
    def pull(grads: Sequence[Tensor | None], need: Sequence[bool], *args: Any) -> tuple[Any, ...]:
        grad = cast("Tensor", grads[0])
        return (_categorical_backward(grad, *args) if need[0] else None, None, grad, None, None)


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
    shape = operands[0].shape
    rows = (math.prod(shape[:-2]), *shape[-2:])
    first, *others = operands
    if isinstance(likelihood, Categorical):
        likelihood.variables(shape[-1])
        tensors = (first.reshape(rows), x, log_ratio)
        apply = _Categorical.apply if needs_function(*tensors) else _categorical
        return cast("Tensor", apply(*tensors, likelihood.classes, mask))
    scale, logits = others
    given = params[1]
    if not isinstance(given, Tensor):
        scale = torch.full((), given, dtype=first.dtype, device=first.device)
    elif given.numel() == 1 or given.shape == shape[-1:]:  # one, or one a dimension
        scale = given.reshape(() if given.numel() == 1 else shape[-1:]).to(first.dtype)
    else:
        scale = scale.reshape(rows)
    inflated = (first.reshape(rows), scale, logits.reshape(rows), x, log_ratio)
    apply = _ZeroInflated.apply if needs_function(*inflated) else _zero_inflated
    return cast("Tensor", apply(*inflated, mask))
