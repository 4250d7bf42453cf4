"""x, log_ratio and a mask as the operators take them."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from dvae_fast._checks import check_dense, check_is_mask, check_same, check_shape
from dvae_fast._dtypes import accumulation_dtype

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["check_mask", "check_rows", "observed"]


def check_rows(
    x: Any, log_ratio: Any, leading: tuple[int, ...], size: int, of: Tensor, of_name: str
) -> tuple[Tensor, Tensor]:
    """x as (rows, D) and log_ratio as (N, K), both in the accumulation dtype, after checks.

    leading is (*L, B, K); x is (B, D) or (*L, B, D).
    """
    check_dense("x", x)
    check_dense("log_ratio", log_ratio)
    if len(leading) < 2:
        raise ValueError(f"{of_name} must have shape (*L, B, K, D), got {tuple(of.shape)}")
    if leading[-1] < 1:
        raise ValueError(f"{of_name} must hold K >= 1 samples, got shape {tuple(of.shape)}")
    batch = leading[:-1]
    if x.shape != (batch[-1], size) and x.shape != (*batch, size):
        raise ValueError(
            f"x must have shape (B, D) = {(batch[-1], size)} to go with {of_name} of shape "
            f"{tuple(of.shape)}, got {tuple(x.shape)}"
        )
    if log_ratio.shape != leading:
        check_shape("log_ratio", log_ratio, leading, "(*L, B, K)")
    check_same("x", x, of_name, of)
    check_same("log_ratio", log_ratio, of_name, of)
    dtype = accumulation_dtype(of.dtype)
    if x.dtype != dtype:
        if x.is_complex():
            raise TypeError(f"x must be real, got {x.dtype}")
        if x.is_quantized:
            raise TypeError(f"x must not be quantised, got {x.dtype}; give x.dequantize()")
        x = x.to(dtype)
    if log_ratio.dtype != dtype:
        if not log_ratio.is_floating_point():
            raise TypeError(f"log_ratio must be floating point, got {log_ratio.dtype}")
        log_ratio = log_ratio.to(dtype)
    if x.dim() != 2:
        x = x.reshape(math.prod(batch), size)
    if log_ratio.dim() != 2:
        log_ratio = log_ratio.reshape(math.prod(batch), leading[-1])
    return x, log_ratio


def check_mask(
    mask: Any, leading: tuple[int, ...], size: int, of: Tensor, of_name: str
) -> Tensor | None:
    """A mask as (rows, D), after checks; None where there is none. leading is (*L, B, K)."""
    if mask is None:
        return None
    check_is_mask(mask)
    batch = leading[:-1]
    if mask.shape != (batch[-1], size) and mask.shape != (*batch, size):
        raise ValueError(
            f"mask must have shape (B, D) = {(batch[-1], size)} to go with {of_name} of shape "
            f"{tuple(of.shape)}, got {tuple(mask.shape)}"
        )
    check_same("mask", mask, of_name, of)
    rows: Tensor = mask if mask.dim() == 2 else mask.reshape(math.prod(batch), size)
    return rows


def observed(t: Tensor, mask: Tensor | None) -> Tensor:
    """The elements that a mask (E, D) leaves of t, (R, D) or (R, K, D); all in order, if none."""
    if mask is None:
        return t
    rows = max(t.shape[0], mask.shape[0])
    if rows == 0:
        return t
    t, mask = (v.repeat(rows // v.shape[0], *[1] * (v.dim() - 1)) for v in (t, mask))
    return t[mask if t.dim() == 2 else mask.unsqueeze(1).expand(t.shape)]
