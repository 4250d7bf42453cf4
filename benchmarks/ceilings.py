"""What this machine can do at best, measured in the same run: copy bandwidth and GEMM rate.

Copy bandwidth is `torch.Tensor.copy_` between two float32 buffers far larger than the last
cache, all threads, counting the bytes read and the bytes written (8 an element) and not the
reads for ownership that the hardware may add. It is what the loss's "share of copy bandwidth"
refers to. The same copy at the size of the K = 50 loss's buffers, which partly fit the last
cache, is there for comparison.

GEMM rate is `torch.mm` of square float32 matrices into a kept buffer, 2 n³ operations.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import torch
from cases import B, Case, D
from conftest import caches

if TYPE_CHECKING:
    from collections.abc import Callable

    from conftest import Measure
    from torch import Tensor


class CopyCase(Case):
    """dst.copy_(src)."""

    group = "ceilings"

    def __init__(self, size: int) -> None:
        self.elements = size // 4
        self.bytes = 8 * self.elements
        self.source, self.target = torch.rand(self.elements), torch.zeros(self.elements)

    def ways(self, rival: str) -> dict[str, Callable[[], Tensor]]:
        name = f"{4 * self.elements / 1e6:.1f} MB each"
        return {name: lambda: self.target.copy_(self.source)}

    def check(self, rival: str, result: Tensor) -> None:
        assert torch.equal(result, self.source), rival


class GemmCase(Case):
    """torch.mm(a, b, out=c)."""

    group = "ceilings"

    def __init__(self, n: int = 2048) -> None:
        self.a, self.b, self.c = torch.randn(n, n), torch.randn(n, n), torch.zeros(n, n)
        self.elements, self.flops = n * n, 2 * n**3

    def ways(self, rival: str) -> dict[str, Callable[[], Tensor]]:
        return {f"{len(self.a)}³": lambda: torch.mm(self.a, self.b, out=self.c)}

    def check(self, rival: str, result: Tensor) -> None:
        expected = self.a[:5].double() @ self.b.double()
        torch.testing.assert_close(result[:5].double(), expected, rtol=1e-3, atol=1e-2)


CEILINGS: dict[str, Callable[[], Case]] = {
    "copy": lambda: CopyCase(max(256 << 20, 4 * max(caches().values(), default=0))),
    "copy, size of the loss": lambda: CopyCase(4 * B * 50 * D),
    "GEMM": GemmCase,
}


@pytest.mark.parametrize(("ceiling", "rival"), [(name, name) for name in CEILINGS])
def bench_ceiling(measure: Measure, ceiling: str) -> None:
    measure(CEILINGS[ceiling])
