"""The context of a conditional model: what its networks are told besides x."""

from __future__ import annotations

from typing import Any, TypedDict, cast

import torch
from torch import Tensor

from dvae_fast._checks import check_dense
from dvae_fast.functional._autograd import is_transformed

__all__ = ["Told", "as_context"]


class Told(TypedDict, total=False):
    """What a model may be told of its examples besides x; None as good as left out."""

    context: Tensor | None
    mask: Tensor | None


_INTEGERS = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)


def as_context(
    context: Any,
    examples: int,
    size: int,
    dtype: torch.dtype = torch.float32,
    *,
    look: bool = True,
) -> Tensor | None:
    """(B, C) of `examples` B and `size` C, in `dtype`; of labels (B,), a one at each label's place.

    With `look` off, labels are not looked at, for which a GPU would be waited for.

    Raises:
        TypeError, ValueError: if it is neither, or there is one without a size, or none with it.
    """
    if size == 0:
        if context is not None:
            raise ValueError(
                f"context must be None for a model without a context_size, got {_shape(context)}"
            )
        return None
    rule = f"(B, C) = {(examples, size)}, or labels (B,) from 0 to {size - 1}"
    if context is None:
        raise ValueError(f"context must be given for a model with context_size = {size}: {rule}")
    check_dense("context", context)
    if context.dtype in _INTEGERS and context.dim() == 1:
        if len(context) != examples:
            raise ValueError(f"context must be {rule}, got {len(context)} labels")
        if look:
            _check_labels(context, size)
        classes = torch.arange(size, device=context.device)
        return cast("Tensor", (context.unsqueeze(-1) == classes).to(dtype))
    if not context.is_floating_point() and context.dtype not in _INTEGERS:
        raise TypeError(f"context must be numbers, {rule}, got {context.dtype}")
    if tuple(context.shape) != (examples, size):
        raise ValueError(f"context must be {rule}, got {_shape(context)}")
    return cast("Tensor", context.to(dtype))


def _shape(context: Any) -> str:
    if not isinstance(context, Tensor):
        return type(context).__name__
    return f"{context.dtype} of shape {tuple(context.shape)}"


def _check_labels(labels: Tensor, size: int) -> None:
    """Where the values can be looked at: a look waits for the device."""
    if labels.is_meta or torch.compiler.is_compiling() or is_transformed(labels):
        return
    if labels.is_cuda and torch.cuda.is_current_stream_capturing():
        return
    if len(labels) and not bool(((labels >= 0) & (labels < size)).all()):
        low, high = (int(t) for t in labels.aminmax())
        raise ValueError(
            f"context must hold labels from 0 to {size - 1}, got labels from {low} to {high}"
        )
