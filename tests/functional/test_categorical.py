"""One-hot variables by their operator, held against the formula in float64."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from categorical_cases import CASES, B, Case, K, M, assert_is, masked, operands, run
from torch import Tensor

import dvae_fast
from dvae_fast import reference
from dvae_fast.likelihoods import Categorical

# torch's own doing, at the first jvp.
pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated")

INF, NAN = math.inf, math.nan
C, V = 3, 67
_op: Any = torch.ops.dvae_fast


@pytest.mark.parametrize("case", CASES, ids=str)
def test_is_the_formula_in_float64(case: Case) -> None:
    assert_is(run(case), case)


def test_derivatives_are_those_of_the_density() -> None:
    """By finite differences, twice, in float64; and forward mode and vmap agree."""
    logits, x, ratio = operands(torch.float64, C, 2, examples=1, copies=1)
    leaves = [logits.requires_grad_(), ratio.requires_grad_()]

    def of(logits: Tensor, ratio: Tensor) -> Tensor:
        return dvae_fast.log_weights(logits, x, ratio, Categorical(C))

    torch.autograd.gradcheck(of, leaves, check_forward_ad=True)
    torch.autograd.gradgradcheck(of, leaves)
    stacked = [torch.stack([p, 0.7 * p]) for p in leaves]
    each = torch.func.vmap(of)(*stacked)
    torch.testing.assert_close(each, torch.stack([of(*(p[i] for p in stacked)) for i in (0, 1)]))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_operator_and_the_density_agree_at_the_borders(dtype: torch.dtype) -> None:
    """A class that cannot be, all but one that cannot, none that can, inf and NaN; each chosen."""
    rows = [
        [0.0, -INF, 2.0], [-INF, -INF, 1.0], [-INF, -INF, -INF], [INF, 0.0, 1.0], [NAN, 0.0, 1.0],
        [0.0, 1.0, NAN], [1e30, -1e30, 0.0], [-3e38, 3e38, 0.0], [1e-40, 0.0, -1e-40],
        [-200.0, 0.0, 200.0],
    ]  # fmt: skip
    logits = torch.tensor(rows, dtype=dtype).repeat_interleave(3, 0)
    x = torch.eye(3, dtype=dtype).repeat(len(rows), 1)
    leaf = logits.view(-1, 1, 3).clone().requires_grad_()
    got = dvae_fast.log_weights(
        leaf, x, torch.zeros(len(x), 1, dtype=dtype), Categorical(3)
    ).flatten()
    expected = torch.where(x == 0, 0.0, torch.log_softmax(logits, -1)).sum(-1)
    torch.testing.assert_close(got, expected, equal_nan=True, rtol=1e-6, atol=1e-6)
    (slope,) = torch.autograd.grad(got.sum(), leaf)
    wanted = x - torch.softmax(logits, -1)
    torch.testing.assert_close(slope.view(-1, 3), wanted, equal_nan=True, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("classes", [2, 15, 16, 31, 257])
def test_logits_may_be_large(classes: int) -> None:
    """In float32 to its rounding, however large all logits are, and beside a class left out."""
    g, likelihood = torch.Generator().manual_seed(classes), Categorical(classes)
    logits = (256 * torch.randn(5, 1, 3 * classes, generator=g)).round() / 256  # + 4096 is exact
    logits[..., 0] = -INF
    x = likelihood.one_hot(torch.randint(1, classes, (5, 3), generator=g))
    leaf = (logits + 4096).requires_grad_()
    got = dvae_fast.log_weights(leaf, x, torch.zeros(5, 1), likelihood)
    got.sum().backward()
    each = torch.log_softmax(logits.double().unflatten(-1, (-1, classes)), -1).flatten(-2)
    expected = torch.where(x.unsqueeze(1) == 0, 0.0, each).sum(-1)
    torch.testing.assert_close(got.double(), expected, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(leaf.grad, (x.unsqueeze(1) - each.exp()).float())


def test_shares_of_classes() -> None:
    """x between 0 and 1, and whatever its sum, where nobody looks: Σ x log softmax."""
    logits, x, ratio = operands(torch.float64, C, V)
    x = torch.rand(x.shape, generator=torch.Generator().manual_seed(1), dtype=x.dtype)
    each = torch.log_softmax(logits.unflatten(-1, (V, C)), -1).flatten(-2)
    expected = (x.repeat(M, 1).unsqueeze(1) * each).sum(-1) + ratio
    torch.testing.assert_close(_op.categorical(logits, x, ratio, C, None), expected)


def test_no_class_has_no_part() -> None:
    """As in the formula, whatever the logits."""
    logits, x, ratio = operands(torch.float32, C, V)
    logits[..., :C], x[:, :C] = torch.tensor([NAN, INF, 0.0]), 0
    expected = reference.categorical(logits, x, ratio, C)
    assert bool(expected.isfinite().all())
    torch.testing.assert_close(_op.categorical(logits, x, ratio, C, None), expected)


def test_any_layout_of_the_logits() -> None:
    """What broadcasts, views, bfloat16 and leading dimensions."""
    logits, x, ratio = operands(torch.float32, C, V)
    ratio = ratio.view(M, B, K)
    full, likelihood = logits.view(M, B, K, C * V), Categorical(C)
    expected = dvae_fast.log_weights(full, x, ratio, likelihood)
    for given in (
        {"logits": full},
        full.transpose(-1, -2).contiguous().transpose(-1, -2),
        torch.stack([full, full], -1)[..., 0],
    ):
        assert torch.equal(dvae_fast.log_weights(given, x, ratio, likelihood), expected)
    strided = torch.stack([x, 1 - x], -1)[..., 0]
    assert torch.equal(dvae_fast.log_weights(full, strided, ratio, likelihood), expected)
    of_rows = x.expand(M, *x.shape)
    assert torch.equal(dvae_fast.log_weights(full, of_rows, ratio, likelihood), expected)
    half = dvae_fast.log_weights(full.bfloat16(), x, ratio, likelihood)
    rounded = dvae_fast.log_weights(full.bfloat16().float(), x, ratio, likelihood)
    torch.testing.assert_close(half, rounded)
    empty = dvae_fast.log_weights(full[:, :0], x[:0], ratio[:, :0], likelihood)
    assert empty.shape == (M, 0, K)


def test_masks_of_variables() -> None:
    """Of rows and of examples; what is not observed is whatever it is, and one that leaves out a
    part of a variable is refused."""
    logits, x, ratio = operands(torch.float32, C, V, copies=1)
    mask, likelihood = masked(C, V), Categorical(C)
    spoilt = torch.where(mask.unsqueeze(1), logits, NAN).requires_grad_()
    part = mask.clone()
    part[1, 4] = False
    for checked in (True, False):
        before = dvae_fast.set_validation(checked)
        try:
            got = dvae_fast.log_weights(spoilt, torch.where(mask, x, NAN), ratio, likelihood, mask)
            with pytest.raises(ValueError, match=r"variable 1 in example 1"):
                dvae_fast.log_weights(logits, x, ratio, likelihood, part)
        finally:
            dvae_fast.set_validation(before)
        each = torch.log_softmax(logits.unflatten(-1, (V, C)), -1).flatten(-2)
        expected = torch.where(mask.unsqueeze(1), x.unsqueeze(1) * each, 0.0).sum(-1) + ratio
        torch.testing.assert_close(got, expected, rtol=1e-6, atol=1e-4)
    (slope,) = torch.autograd.grad(got.sum(), spoilt)
    assert bool((slope[~mask.unsqueeze(1).expand_as(slope)] == 0).all())
    assert bool(slope.isfinite().all())
    whole = torch.ones_like(mask)
    assert torch.equal(
        dvae_fast.log_weights(logits, x, ratio, likelihood, whole),
        dvae_fast.log_weights(logits, x, ratio, likelihood),
    )


def test_operators_are_as_they_say() -> None:
    logits, x, ratio = operands(torch.float32, C, 5, examples=2)
    for mask in (None, masked(C, 5, 2)):
        torch.library.opcheck(_op.categorical.default, (logits, x, ratio, C, mask))
        torch.library.opcheck(_op.categorical_backward.default, (ratio, logits, x, C, mask))


@pytest.mark.skipif(not dvae_fast.ops.library_loaded(), reason="of the compiled operator")
def test_direct_calls_are_held_to_their_shapes() -> None:
    logits, x, ratio = operands(torch.float32, C, 5)
    for args, said in (
        ((logits, x, ratio, 4), "classes must divide D = 15, got 4"),
        ((logits, x, ratio, 0), "classes must divide D = 15, got 0"),
        ((logits.bfloat16(), x, ratio, C), "logits must be float32 or float64"),
        ((logits, x[:, :12], ratio, C), "x must have shape"),
        ((logits, x, ratio[:, :2], C), "log_ratio must have shape"),
    ):
        with pytest.raises(RuntimeError, match=said):
            _op.categorical(*args, None)
    with pytest.raises(RuntimeError, match="grad must have dtype"):
        _op.categorical_backward(ratio.double(), logits, x, C, None)


@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")
def test_a_compiled_loss() -> None:
    logits, x, ratio = operands(torch.float32, C, V, copies=1)
    leaf = logits.requires_grad_()

    def loss(logits: Tensor) -> Tensor:
        return dvae_fast.iwae_loss(logits.sinh(), x, ratio, Categorical(C))

    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    assert torch.allclose(compiled(leaf), loss(leaf))
    (expected,) = torch.autograd.grad(loss(leaf), leaf)
    torch.testing.assert_close(torch.autograd.grad(compiled(leaf), leaf)[0], expected)
