"""What the tests of operators share, beside the table of cases in `dvae_fast.checking`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from dvae_fast.checking.cases import run_reference, upcast
from dvae_fast.checking.limits import allowed_error, compare
from dvae_fast.checking.terms import absolute_terms, rounded_intermediates

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from torch import Tensor

    from dvae_fast.checking.operands import Sample

    Oracle = list[tuple[Tensor, Tensor, Tensor | float]]

DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]


_kept: dict[str, Oracle] = {}


def oracle(sample: Sample, keep: bool = False) -> Oracle:
    """Of each output what it should be, its absolute terms, and what rounding adds; `keep` what is
    asked for again."""
    known = _kept.get(str(sample))
    if known is not None:
        return known
    args64 = upcast(sample.args())
    terms = absolute_terms(sample.op, args64)
    extra = rounded_intermediates(sample.op, args64, sample.dtype)
    expected = run_reference(sample.op, args64)  # last: some operators change their arguments
    out = [(e, t, extra[i]) for i, (e, t) in enumerate(zip(expected, terms, strict=True))]
    if keep:
        _kept[str(sample)] = out
    return out


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
    assert_within(name, actual, expected, allowed_error(actual.dtype, expected, terms, sums, extra))


def assert_within(name: str, actual: Tensor, expected: Tensor, allowed: Tensor) -> None:
    found = compare(actual, expected, allowed)
    assert not found.wrong, f"{name}: {found.detail}"


def assert_same_gradients(
    got: Tensor, expected: Tensor, leaves: Sequence[Tensor], cotangent: Tensor
) -> None:
    """The same values in float64, and gradients in each leaf."""
    torch.testing.assert_close(got, expected, rtol=1e-9, atol=1e-9)
    mine, its = (torch.autograd.grad(out, leaves, cotangent) for out in (got, expected))
    torch.testing.assert_close(mine, its, rtol=1e-8, atol=1e-8)
