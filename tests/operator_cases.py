"""What the tests of operators share, beside the table of cases in `dvae_fast.checking`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from dvae_fast.checking.limits import allowed_error, compare

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from torch import Tensor

DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]


def naming(label: str) -> Callable[[str], str]:
    """`msg` of torch.testing.assert_close: its own message, with what was compared before it."""
    return lambda message: f"{label}: {message}"


def assert_accurate(
    name: str,
    actual: Tensor,
    expected: Tensor,
    terms: Tensor,
    sums: torch.dtype,
    extra: Tensor | float = 0.0,
) -> None:
    """|actual − expected| ≤ what `limits` allows for these terms."""
    expected = expected.detach().double()
    assert actual.shape == expected.shape, f"{name}: shape {actual.shape}, not {expected.shape}"
    found = compare(actual, expected, allowed_error(actual.dtype, expected, terms, sums, extra))
    assert not found.wrong, f"{name}: {found.detail}"


def assert_same_gradients(
    got: Tensor, expected: Tensor, leaves: Sequence[Tensor], cotangent: Tensor
) -> None:
    """The same values in float64, and gradients in each leaf."""
    torch.testing.assert_close(got, expected, rtol=1e-9, atol=1e-9)
    mine, its = (torch.autograd.grad(out, leaves, cotangent) for out in (got, expected))
    torch.testing.assert_close(mine, its, rtol=1e-8, atol=1e-8)
