"""What a loss looks at in passing: values that are on the host already, so that nothing waits."""

from __future__ import annotations

import math
import sys
import warnings
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from types import FrameType

    from dvae_fast.likelihoods import Likelihood

__all__ = ["is_due", "is_outside", "look_at_loss", "look_at_params", "readable"]

# Numbers of a decoder of which something can be said.
_ENOUGH = 16

# The losses from one place of which all is looked at before only the 16th, 32nd, 64th, … are.
_FIRST = 8

# What has been said from which line, and how many losses were made where: in which code, by which
# of its instructions. As long as the filters of warnings are these.
_said: set[tuple[str, int, str]] = set()
_losses: dict[tuple[str, int, int, type], int] = {}
_filters: Any = None

# Of modules by name, whether a caller there is to be passed over.
_inside: dict[str, bool] = {}


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


def is_due(loss_of: Tensor, likelihood: Likelihood) -> bool:
    """Whether the loss being made of a tensor is one of those whose data and parameters are looked
    at, which all together cost no more than a few: the first from where it is asked for, and later
    ever fewer."""
    if not readable(loss_of):
        return False
    _forget_of_other_filters()
    frame = sys._getframe(1)
    while _passed_over(frame):
        frame = cast("FrameType", frame.f_back)
    # Not its line, which is looked up in a table.
    code = frame.f_code
    place = (code.co_filename, code.co_firstlineno, frame.f_lasti, type(likelihood))
    _losses[place] = count = _losses.get(place, 0) + 1
    return count <= _FIRST or count & (count - 1) == 0


def look_at_params(first: Any, likelihood: Likelihood) -> None:
    """Warn where a decoder's first parameter looks like another one: see `doubtful`.

    A few numbers mostly settle it. For a loss that `is_due`.
    """
    doubtful = likelihood.doubtful
    if doubtful is None or not isinstance(first, Tensor) or first.numel() < _ENOUGH:
        return
    if not readable(first):
        return
    lower, upper = doubtful
    first = first.data
    if first.dtype in (torch.float32, torch.float64) and not first.is_neg():
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
    *,
    due: bool,
) -> None:
    """Warn where x, as far as a mask of its shape or of (E, D) leaves it, is none that the
    likelihood has, or without a mask its parameters are: whenever the loss is not finite, and if
    it `is_due` where it is."""
    if not readable(loss):
        return
    finite = math.isfinite(loss.item() if loss.dim() == 0 else loss.data.sum().item())
    if (finite and not due) or not readable(x):
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
        _warn_once("outside" if finite else "support", f"{what} {error}")
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


def is_outside(x: Tensor, likelihood: Likelihood) -> bool:
    """Whether `look_at_loss` would not like x."""
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


def _warn_once(kind: str, message: str) -> None:
    """Once for each line that calls, whatever the filter; again under filters that are new."""
    _forget_of_other_filters()
    frame, level = sys._getframe(1), 2
    while _passed_over(frame):
        frame, level = cast("FrameType", frame.f_back), level + 1
    place = (frame.f_code.co_filename, frame.f_lineno, kind)
    if place not in _said:
        _said.add(place)
        warnings.warn(message, RuntimeWarning, stacklevel=level)


def _forget_of_other_filters() -> None:
    global _filters
    if warnings.filters is not _filters:
        _said.clear()
        _losses.clear()
        _filters = warnings.filters


def _passed_over(frame: FrameType) -> bool:
    """Whether it is this package's or torch's, and not the outermost."""
    name = frame.f_globals.get("__name__") or ""
    inside = _inside.get(name)
    if inside is None:
        inside = _inside[name] = name.partition(".")[0] in ("dvae_fast", "torch")
    return inside and frame.f_back is not None
