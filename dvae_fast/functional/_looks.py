"""What a loss looks at in passing: values that are on the host already, so that nothing waits."""

from __future__ import annotations

import math
import sys
import warnings
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from types import FrameType

    from dvae_fast.likelihoods import Likelihood

__all__ = ["is_doubtful", "look_at_loss", "look_at_params", "readable"]

# Numbers of a decoder of which something can be said.
_ENOUGH = 16

# What has been said and looked at from which line, as long as the filters of warnings are these.
_said: set[tuple[str, int, str]] = set()
_looks: dict[tuple[str, int, type], int] = {}
_filters: Any = None


def readable(t: Tensor) -> bool:
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

    A few numbers mostly settle it.
    """
    doubtful = likelihood.doubtful
    if doubtful is None or not isinstance(first, Tensor) or first.numel() < _ENOUGH:
        return
    if not readable(first):
        return
    lower, upper = doubtful
    first = first.data
    if first.dtype in (torch.float32, torch.float64):
        # NumPy's way to one number takes a third of torch's time.
        item, last = first.numpy().item, first.numel() - 1
        for i in (0, last, last // 2, last // 3, last // 5, last // 7):
            if not lower <= item(i) <= upper:
                return
    elif not lower <= first[(0,) * first.dim()].item() <= upper:
        return
    for some in (first[:1], first):
        low, high = (t.item() for t in some.aminmax())
        if not lower <= low <= high <= upper:
            return
    doubt = likelihood.doubt_params(low, high)
    if doubt is not None:
        _warn_once("params", doubt)


def look_at_loss(
    loss: Tensor,
    x: Tensor,
    likelihood: Likelihood,
    mask: Tensor | None = None,
    params: tuple[Any, ...] = (),
) -> None:
    """Warn where x, as far as a mask of its shape or of (E, D) leaves it, is none that the
    likelihood has, or without a mask its parameters are: whenever the loss is not finite, and of
    losses that are at the 1st, 2nd, 4th, … from a line, which all together cost no more than a
    few."""
    if not readable(loss):
        return
    finite = math.isfinite(loss.item() if loss.dim() == 0 else loss.data.sum().item())
    if (finite and not _is_due(likelihood)) or not readable(x):
        return
    if x.numel() == 0 or (mask is not None and mask.numel() == 0):
        return
    x = x.detach()
    if mask is not None:
        x, mask = _alike(x, mask)
    try:
        likelihood.check_support(x, mask)
        if mask is None:
            _look_at_values(params, likelihood)
    except ValueError as error:
        what = "the loss is finite, but" if finite else "the loss is not finite, and"
        _warn_once("support", f"{what} {error}")
        return
    if finite:
        return
    missing = x.isnan() if mask is None else x.isnan() & mask
    if bool(missing.any()):
        number, of = int(missing.sum()), x.numel() if mask is None else int(mask.sum())
        _warn_once(
            "missing",
            f"the loss is not finite, and {number:,} of the {of:,} values of x are NaN; what was "
            "not observed is left out by a mask, False there",
        )


def is_doubtful(x: Tensor, likelihood: Likelihood) -> bool:
    """Whether `look_at_loss` of a finite loss, called next, would look at x and not like it."""
    place, count = _next_look(likelihood)
    if count & (count - 1) or (*place[:2], "support") in _said or not readable(x):
        return False
    try:
        likelihood.check_support(x.detach())
    except ValueError:
        return True
    return False


def _look_at_values(params: tuple[Any, ...], likelihood: Likelihood) -> None:
    """Raise ValueError where parameters are none that the likelihood has."""
    values = tuple(torch.as_tensor(p).detach() for p in params if p is not None)
    if values and all(readable(p) and p.numel() for p in values):
        likelihood.check_values(values)


def _alike(x: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Both in one shape: x (R, D) or (B, 1, D), mask (E, D) or (B, 1, D), leading ones besides."""
    if x.dim() == mask.dim() == 2 and x.shape != mask.shape:
        rows = max(x.shape[0], mask.shape[0])
        x, mask = (t if len(t) == rows else t.repeat(rows // len(t), 1) for t in (x, mask))
    x, mask = torch.broadcast_tensors(x, mask)
    return x, mask


def _outside() -> tuple[FrameType, int]:
    """Who called, and how far above this function's caller that is."""
    frame, level = sys._getframe(2), 2
    while frame.f_back is not None and _is_inside(frame.f_globals.get("__name__", "")):
        frame, level = frame.f_back, level + 1
    global _filters
    if warnings.filters is not _filters:
        _said.clear()
        _looks.clear()
        _filters = warnings.filters
    return frame, level


def _next_look(likelihood: Likelihood) -> tuple[tuple[str, int, type], int]:
    """From where the loss is, and which of those from there."""
    frame, _ = _outside()
    place = (frame.f_code.co_filename, frame.f_lineno, type(likelihood))
    return place, _looks.get(place, 0) + 1


def _is_due(likelihood: Likelihood) -> bool:
    place, count = _next_look(likelihood)
    _looks[place] = count
    return count & (count - 1) == 0


def _warn_once(kind: str, message: str) -> None:
    """Once for each line that calls, whatever the filter; again under filters that are new."""
    frame, level = _outside()
    place = (frame.f_code.co_filename, frame.f_lineno, kind)
    if place not in _said:
        _said.add(place)
        warnings.warn(message, RuntimeWarning, stacklevel=level)


def _is_inside(module: str) -> bool:
    return module.partition(".")[0] in ("dvae_fast", "torch")
