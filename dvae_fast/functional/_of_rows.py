"""Log-weights of a likelihood whose operator takes all of its parameters: `Likelihood.rows`."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor

from dvae_fast import reference
from dvae_fast.functional._autograd import Operation, differentiable, keep, needs_function, operator

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from dvae_fast.likelihoods import Categorical, Likelihood

__all__ = ["log_weights_by_operator"]


def _function(name: str, count: int) -> type[Operation]:
    """Of the operator of so many parameters, x, log_ratio and what else it takes, whose gradient's
    takes all but log_ratio."""
    pulled = differentiable(f"{name}_backward")

    class OfRows(Operation):
        formula = staticmethod(getattr(reference, name))
        run = staticmethod(operator(name))

        @staticmethod
        def forward(*args: Any) -> Tensor:
            return cast("Tensor", OfRows.run(*args))

        @staticmethod
        def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
            keep(ctx, output, *inputs[: count + 1], *inputs[count + 2 :])

        @staticmethod
        def pull(
            grads: Sequence[Tensor | None], need: Sequence[bool], *args: Any
        ) -> tuple[Any, ...]:
            grad = cast("Tensor", grads[0])
            found = pulled(grad, *args) if any(need[:count]) else (None,) * count
            each = (found,) if isinstance(found, Tensor) else found
            return (*each, None, grad, *(None for _ in args[count + 1 :]))

    return OfRows


def _zero_inflated(
    likelihood: Likelihood, given: Sequence[Any], operands: Sequence[Tensor], rows: tuple[int, ...]
) -> tuple[tuple[Tensor, ...], tuple[Any, ...]]:
    mean, scale, logits = operands
    size, of_all = rows[-1:], given[1]
    if not isinstance(of_all, Tensor):
        scale = torch.full((), of_all, dtype=mean.dtype, device=mean.device)
    elif of_all.numel() == 1 or of_all.shape == size:  # one, or one a dimension
        scale = of_all.reshape(() if of_all.numel() == 1 else size).to(mean.dtype)
    else:
        scale = scale.reshape(rows)
    return (mean.reshape(rows), scale, logits.reshape(rows)), ()


def _categorical(
    likelihood: Likelihood, given: Sequence[Any], operands: Sequence[Tensor], rows: tuple[int, ...]
) -> tuple[tuple[Tensor, ...], tuple[Any, ...]]:
    of_classes = cast("Categorical", likelihood)
    of_classes.variables(rows[-1])
    return (operands[0].reshape(rows),), (of_classes.classes,)


#: By `Likelihood.rows`: the operator, and what makes its parameters, and what it takes after
#: log_ratio, of a likelihood and its parameters, as they were given and as (*L, B, K, D)
_OPERATORS: dict[str, tuple[type[Operation], Callable[..., Any]]] = {
    "zero_inflated": (_function("zero_inflated", 3), _zero_inflated),
    "categorical": (_function("categorical", 1), _categorical),
}


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
    function, arguments = _OPERATORS[cast("str", likelihood.rows)]
    shape = operands[0].shape
    rows = (math.prod(shape[:-2]), *shape[-2:])
    first, more = arguments(likelihood, params, operands, rows)
    tensors = (*first, x, log_ratio)
    run = function.apply if needs_function(*tensors) else function.forward
    return cast("Tensor", run(*tensors, *more, mask))
