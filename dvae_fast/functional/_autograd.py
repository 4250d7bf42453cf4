"""What the autograd functions share."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.autograd.function import once_differentiable

from dvae_fast import ops as _ops  # noqa: F401  (registers the operators)

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = [
    "apply_upstream",
    "autocast_dtype",
    "differentiable_once",
    "graph_is_kept",
    "needs_function",
    "needs_grad",
]

_op: Any = torch.ops.dvae_fast


def differentiable_once(backward: Callable[..., Any]) -> Callable[..., Any]:
    """torch's once_differentiable, which alone lets a constant upstream gradient pass: then
    create_graph=True would give a gradient without a graph, and a penalty on it would lose terms
    without a word.
    """
    once = once_differentiable(backward)

    @functools.wraps(backward)
    def run(ctx: Any, *grads: Tensor | None) -> Any:
        if torch.is_grad_enabled() and not torch.compiler.is_compiling():
            grads = tuple(g if g is None else g.detach().requires_grad_() for g in grads)
        return once(ctx, *grads)

    return run


def needs_grad(*tensors: Tensor | None) -> bool:
    return torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors)


def needs_function(*tensors: Tensor | None) -> bool:
    """Whether to call an operator's autograd function rather than the operator itself.

    The operator would drop a tangent without a word, and the derivative be 0.

    Raises:
        NotImplementedError: in forward mode, of which the functions have no derivatives.
    """
    # The level is the one thing that tells cheaply; -1 outside of forward mode.
    if not torch.compiler.is_compiling() and forward_ad._current_level >= 0:
        for t in tensors:
            if t is not None and forward_ad.unpack_dual(t).tangent is not None:
                raise NotImplementedError(
                    "dvae_fast: the fused operators have no forward-mode derivatives "
                    "(torch.func.jvp, jacfwd); take them in reverse mode"
                )
    return needs_grad(*tensors)


# A constant to torch.compile, for torch 2.11's cannot trace the query.
_has_autocast: Callable[[str], bool] = torch.compiler.assume_constant_result(
    lambda device: torch.amp.is_autocast_available(device)
)


def autocast_dtype(t: Tensor) -> torch.dtype | None:
    """autocast's dtype for `t`'s device, if autocast is on and would touch `t`."""
    device = t.device.type
    if t.dtype == torch.float64 or not _has_autocast(device):
        return None  # "meta" has no autocast, and says so with an error when asked for it
    if not torch.is_autocast_enabled(device):
        return None
    return torch.get_autocast_dtype(device)


def graph_is_kept() -> bool:
    """Whether this backward pass may be run again; True if torch does not tell."""
    if torch.compiler.is_compiling():
        return True
    query = getattr(torch._C._autograd, "_get_current_graph_task_keep_graph", None)
    return True if query is None else bool(query())


def apply_upstream(grad: Tensor, upstream: Tensor, kept: bool) -> Tensor:
    """grad times the upstream gradient, of one element or one per row.

    In place when nothing can ask for this gradient again: `rescale_` reads the factor where it
    lies and does nothing at all when it is 1.
    """
    if kept:
        grad = grad.clone()
    _op.rescale_(grad, upstream)
    return grad
