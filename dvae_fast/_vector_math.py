"""The first call of each of MKL's vector functions, made by one thread.

MKL finds the code of such a function for this processor at the function's first call. Where
several threads make that call at once, one of them can get code of low precision for it, wrong by
some thousand units in the last place: https://github.com/pytorch/pytorch/issues/188792.
"""

from __future__ import annotations

import torch

__all__ = ["FUNCTIONS", "make_first_calls"]

#: those that torch takes from MKL: ATen/cpu/vml.h
FUNCTIONS = (
    "acos", "asin", "atan", "cos", "erf", "erfc", "erfinv", "exp", "log", "log10", "log2", "sin",
    "sqrt", "tan", "tanh", "trunc",
)  # fmt: skip


def make_first_calls() -> None:
    for dtype in (torch.float32, torch.float64):
        half = torch.full((1,), 0.5, dtype=dtype, device="cpu")
        for name in FUNCTIONS:
            getattr(torch, name)(half)
