"""What a loss looks at in passing: values that are on the host already, so that nothing waits."""

from __future__ import annotations

import math
import sys
import warnings
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from dvae_fast.functional._rows import observed

if TYPE_CHECKING:
    from dvae_fast.likelihoods import Likelihood

__all__ = ["look_at_loss", "look_at_params"]

# Numbers of a decoder of which something can be said.
_ENOUGH = 16

# What has been said where, as long as the filters of warnings are these.
_said: set[tuple[str, int, str]] = set()
_filters: Any = None


def _readable(t: Tensor) -> bool:
    """Whether looking at values costs next to nothing, and disturbs no graph or transform."""
    return (
        t.is_cpu
        and type(t) in (Tensor, nn.Parameter)
        and not torch.compiler.is_compiling()
        and torch._C._functorch.peek_interpreter_stack() is None
        and torch._C._len_torch_dispatch_stack() == 0
        and torch._C._get_tracing_state() is None
    )


def look_at_params(first: Any, likelihood: Likelihood) -> None:
    """Warn where a decoder's first parameter looks like another one: see `doubtful`.

    One number mostly settles it.
    """
    doubtful = likelihood.doubtful
    if doubtful is None or not isinstance(first, Tensor) or first.numel() < _ENOUGH:
        return
    if not _readable(first):
        return
    lower, upper = doubtful
    first = first.data
    # NumPy's way to one number takes a third of torch's time.
    known = first.dtype in (torch.float32, torch.float64)
    one = first.numpy().item(0) if known else first[(0,) * first.dim()].item()
    if not lower <= one <= upper:
        return
    for some in (first[:1], first):
        low, high = (t.item() for t in some.aminmax())
        if not lower <= low <= high <= upper:
            return
    doubt = likelihood.doubt_params(low, high)
    if doubt is not None:
        _warn_once("params", doubt)


def look_at_loss(
    loss: Tensor, x: Tensor, likelihood: Likelihood, mask: Tensor | None = None
) -> None:
    """Warn where a loss is not finite and x, where a mask (E, D) leaves it, is none that the
    likelihood has; x then (R, D)."""
    if not _readable(loss):
        return
    if math.isfinite(loss.item() if loss.dim() == 0 else loss.data.sum().item()):
        return
    if not _readable(x):
        return
    try:
        likelihood.check_support(observed(x.detach(), mask))
    except ValueError as error:
        _warn_once("support", f"the loss is not finite, and {error}")


def _warn_once(kind: str, message: str) -> None:
    """Once for each line that calls, whatever the filter; again under filters that are new."""
    global _filters
    frame, level = sys._getframe(1), 2
    while frame.f_back is not None and _is_inside(frame.f_globals.get("__name__", "")):
        frame, level = frame.f_back, level + 1
    if warnings.filters is not _filters:
        _said.clear()
        _filters = warnings.filters
    place = (frame.f_code.co_filename, frame.f_lineno, kind)
    if place not in _said:
        _said.add(place)
        warnings.warn(message, RuntimeWarning, stacklevel=level)


def _is_inside(module: str) -> bool:
    return module.partition(".")[0] in ("dvae_fast", "torch")
