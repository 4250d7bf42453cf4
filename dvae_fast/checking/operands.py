"""What the cases of the operators are made of: sizes, layouts in memory, drawn arguments."""

from __future__ import annotations

import math
import zlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from dvae_fast._dtypes import accumulation_dtype

if TYPE_CHECKING:
    from collections.abc import Callable

DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]
LOW_PRECISION = (torch.bfloat16, torch.float16)

#: Ways a tensor may lie in memory, applied to every tensor argument of a case.
LAYOUTS = ("contiguous", "transposed", "strided", "expanded", "offset")


class Sizes(NamedTuple):
    m: int
    b: int
    k: int
    z: int
    d: int


# No two of a case's sizes are equal, so that no two dimensions can be taken for each other.
LARGE = Sizes(m=2, b=3, k=7, z=50, d=785)
ONE_SAMPLE = Sizes(m=3, b=5, k=1, z=65, d=64)
TINY_LATENT = Sizes(m=4, b=3, k=2, z=1, d=63)
MANY_SAMPLES = Sizes(m=3, b=4, k=50, z=2, d=65)
ONE_DIMENSION = Sizes(m=3, b=4, k=7, z=50, d=1)
NO_EXAMPLES = Sizes(m=2, b=0, k=7, z=50, d=65)
# More than kernels hold of one row at once: several logarithms a row, no row of e^log_var kept.
LONG_ROWS = Sizes(m=1, b=3, k=2, z=513, d=1985)

SIZES = (LARGE, ONE_SAMPLE, TINY_LATENT, MANY_SAMPLES, ONE_DIMENSION, NO_EXAMPLES, LONG_ROWS)
assert all(len(set(s)) == len(s) for s in SIZES)


def named(sizes: Sizes) -> str:
    """How the labels of the cases of these sizes begin."""
    return "-".join(f"{name.upper()}{value}" for name, value in sizes._asdict().items())


def arrange(t: Tensor, layout: str) -> Tensor:
    """The values of `t` in memory as `layout` says ("expanded": of its first row everywhere).

    Memory between the elements holds NaN, so that reading it shows.
    """
    if layout == "contiguous" or t.dim() == 0:
        return t.contiguous()
    if layout == "expanded":
        return t[:1].expand(t.shape) if t.shape[0] else t
    if layout == "offset":
        out = t.new_full((t.numel() + 1,), math.nan)[1:].view(t.shape)
    elif layout == "strided" or t.dim() == 1:
        out = t.new_full((*t.shape[:-1], 2 * t.shape[-1]), math.nan)[..., ::2]
    else:
        out = t.new_empty(t.transpose(0, -1).shape).transpose(0, -1)
    return out.copy_(t)


class Maker:
    """Draws the arguments of one case: the same values for every dtype (rounded) and device."""

    def __init__(self, label: str, dtype: torch.dtype, device: str, layout: str) -> None:
        self.generator = torch.Generator().manual_seed(zlib.crc32(label.encode()))
        self.dtype, self.device, self.layout = dtype, device, layout
        self.sums = accumulation_dtype(dtype)

    def put(self, t: Tensor, dtype: torch.dtype | None = None) -> Tensor:
        return arrange(t.to(dtype or self.dtype).to(self.device), self.layout)

    def raw(self, *shape: int) -> Tensor:
        return torch.randn(shape, generator=self.generator, dtype=torch.float64)

    def normal(self, *shape: int, std: float = 1.0, dtype: torch.dtype | None = None) -> Tensor:
        return self.put(self.raw(*shape) * std, dtype)

    def uniform(
        self, *shape: int, low: float = 0.0, high: float = 1.0, dtype: torch.dtype | None = None
    ) -> Tensor:
        t = torch.rand(shape, generator=self.generator, dtype=torch.float64)
        return self.put(low + (high - low) * t, dtype)

    def seed(self, value: int, *shape: int) -> Tensor:
        return torch.full(shape, value, dtype=torch.int64, device=self.device)


@dataclass(frozen=True)
class Sample:
    """One call of one operator; `args()` makes the same arguments each time."""

    op: str
    label: str
    dtype: torch.dtype
    device: str
    layout: str
    build: Callable[[Maker], tuple[Any, ...]]

    def args(self) -> tuple[Any, ...]:
        maker = Maker(f"{self.op} {self.label}", self.dtype, self.device, self.layout)
        return self.build(maker)

    def __str__(self) -> str:
        dtype = str(self.dtype).removeprefix("torch.")
        return f"{self.op}-{self.label}-{dtype}-{self.device}"
