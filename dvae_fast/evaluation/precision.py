"""Matrix products of few bits: where they pay, and how they are had."""

from __future__ import annotations

from contextlib import nullcontext
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

__all__ = ["has_bfloat16", "precision"]


def has_bfloat16(device: torch.device | str) -> bool:
    """Whether matrix products in bfloat16 have instructions of their own there; without, those of
    a CPU take some twenty times as long as in float32."""
    if torch.device(device).type != "cpu":
        return True
    known = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
    return bool(known.get("avx512_bf16", known.get("bf16", True)))


def precision(device: torch.device, dtype: torch.dtype | None) -> AbstractContextManager[None]:
    """Where matrix products run in `dtype`; None leaves them as they are."""
    if dtype is None:
        return nullcontext()
    return torch.autocast(device.type, dtype)
