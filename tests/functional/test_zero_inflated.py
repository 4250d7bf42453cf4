"""Zero-inflated counts by their operator, held against the formula in float64."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor
from zero_inflated_cases import CASES, B, Case, D, K, M, assert_is, masked, operands, run

import dvae_fast
from dvae_fast.likelihoods import ZeroInflatedNegativeBinomial

# torch's own doing, at the first jvp.
pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated")

INF, NAN = math.inf, math.nan
NAME = "zero_inflated_negative_binomial"
_op: Any = torch.ops.dvae_fast


@pytest.mark.parametrize("case", CASES, ids=str)
def test_is_the_formula_in_float64(case: Case) -> None:
    assert_is(run(case), case)


@pytest.mark.parametrize("scale", ["one", "each", "full"])
def test_derivatives_are_those_of_the_density(scale: str) -> None:
    """By finite differences, twice, in float64; and forward mode and vmap agree."""
    args = operands(torch.float64, scale, size=2, examples=1, copies=1)
    args[0].clamp_(0.1, 20)
    mean, t, logits, x, ratio = args
    leaves = [p.requires_grad_() for p in (mean, t, logits, ratio)]

    def of(mean: Tensor, t: Tensor, logits: Tensor, ratio: Tensor) -> Tensor:
        return dvae_fast.log_weights((mean, t, logits), x, ratio, NAME)

    fast = scale == "full"  # each element by itself where one more of them is shared
    torch.autograd.gradcheck(of, leaves, check_forward_ad=True, atol=1e-6, fast_mode=fast)
    if scale == "each":
        torch.autograd.gradgradcheck(of, leaves, atol=1e-5)
    stacked = [torch.stack([p, 0.7 * p]) for p in leaves]
    each = torch.func.vmap(of)(*stacked)
    torch.testing.assert_close(each, torch.stack([of(*(p[i] for p in stacked)) for i in (0, 1)]))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_operator_and_the_density_agree_at_the_borders(dtype: torch.dtype) -> None:
    """NaN of one that is NaN, and of a negative mean."""
    values = {
        "mean": [0.0, 1e-30, 0.3, 1e6, INF, NAN, -1.0],
        "scale": [1e-30, 1e-3, 2.0, 1e6, 1e30, INF, NAN],
        "logits": [-INF, -100.0, -1.0, 0.0, 30.0, INF, NAN],
        "x": [0.0, 1.0, 3e5],
    }
    mean, scale, logits, x = (
        t.flatten().contiguous() for t in torch.meshgrid(
            *(torch.tensor(v, dtype=dtype) for v in values.values()), indexing="ij"
        )
    )  # fmt: skip
    got = dvae_fast.log_weights(
        tuple(p.view(-1, 1, 1) for p in (mean, scale, logits)), x.view(-1, 1),
        torch.zeros(len(x), 1, dtype=dtype), NAME,
    ).flatten()  # fmt: skip
    wide = [t.double() for t in (mean, scale, logits)]
    expected = ZeroInflatedNegativeBinomial().log_prob(tuple(wide), x.double())
    none = mean.isnan() | (mean < 0) | scale.isnan() | logits.isnan()
    assert torch.equal(got.isnan(), none)
    finite = ~none & expected.isfinite()
    tolerance = 1e-7 if dtype == torch.float64 else 3e-6
    error = (got - expected).abs()[finite] / (1 + expected.abs()[finite])
    assert float(error.max()) < tolerance
    assert bool((got[~none & (expected == -INF)] == -INF).all())


@pytest.mark.parametrize("mean", [0.4, 300.0, 1e6])
@pytest.mark.parametrize("theta", [0.1, 10.0])
def test_counts_keep_their_digits(mean: float, theta: float) -> None:
    """2,000 counts in float32 within 0.05 nats of SciPy in float64."""
    draw = np.random.default_rng(0)
    x = draw.negative_binomial(theta, theta / (theta + mean), 2000) * (draw.random(2000) < 0.7)
    m, t, logit = (np.float32(v) for v in (mean, theta, -0.8))
    pi = 1 / (1 + np.exp(-np.float64(logit)))
    log_p = np.log1p(-pi) + stats.nbinom.logpmf(x, t, t / (np.float64(t) + m))
    log_p = np.where(x == 0, np.logaddexp(np.log(pi), log_p), log_p)
    params = tuple(torch.full((1, 1, 2000), float(v)) for v in (m, t, logit))
    data = torch.from_numpy(x).float()[None]
    for given in (params, (params[0], float(t), params[2])):
        got = dvae_fast.log_weights(given, data, torch.zeros(1, 1), NAME)
        assert float(got) == pytest.approx(log_p.sum(), abs=0.05)


def test_any_layout_of_the_parameters() -> None:
    """Numbers, what broadcasts, views, bfloat16 and leading dimensions."""
    mean, scale, logits, x, ratio = operands(torch.float32, "each")
    ratio = ratio.view(M, B, K)
    full = (mean.view(M, B, K, D), scale.expand(M, B, K, D), logits.view(M, B, K, D))
    expected = dvae_fast.log_weights(full, x, ratio, NAME)
    for given, same in (
        ((full[0], scale, full[2]), False),
        ((full[0], scale.view(1, 1, 1, D).expand(1, B, 1, D), full[2]), True),
        ({"zero_logits": full[2], "mean": full[0], "scale": full[1]}, True),
        (tuple(p.transpose(-1, -2).contiguous().transpose(-1, -2) for p in full), True),
    ):
        got = dvae_fast.log_weights(given, x, ratio, NAME)
        tolerance = {"rtol": 2e-6, "atol": 0} if same else {"rtol": 1e-5, "atol": 1e-4}
        torch.testing.assert_close(got, expected, **tolerance)
    one = dvae_fast.log_weights((full[0], 2, full[2][:, :, :1]), x, ratio, NAME)
    same = (full[0], torch.full_like(full[0], 2.0), full[2][:, :, :1].expand(M, B, K, D))
    torch.testing.assert_close(
        one, dvae_fast.log_weights(same, x, ratio, NAME), rtol=1e-5, atol=1e-4
    )
    half = dvae_fast.log_weights(tuple(p.bfloat16() for p in full), x, ratio, NAME)
    rounded = tuple(p.bfloat16().float() for p in full)
    torch.testing.assert_close(half, dvae_fast.log_weights(rounded, x, ratio, NAME))
    empty = dvae_fast.log_weights(tuple(p[:, :0] for p in full), x[:0], ratio[:, :0], NAME)
    assert empty.shape == (M, 0, K)


def test_operators_are_as_they_say() -> None:
    args = operands(torch.float32, "each", size=5, examples=2)
    for mask in (None, masked(2, 5)):
        torch.library.opcheck(_op.zero_inflated.default, (*args, mask))
        torch.library.opcheck(_op.zero_inflated_backward.default, (args[4], *args[:4], mask))


@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")
def test_a_compiled_loss() -> None:
    mean, scale, logits, x, ratio = operands(torch.float32, "each", copies=1)
    leaves = [p.requires_grad_() for p in (mean.log().detach(), scale, logits)]

    def loss(raw: Tensor, t: Tensor, logits: Tensor) -> Tensor:
        return dvae_fast.iwae_loss((raw.exp(), t, logits), x, ratio, NAME)

    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    assert torch.allclose(compiled(*leaves), loss(*leaves))
    expected = torch.autograd.grad(loss(*leaves), leaves)
    for mine, wanted in zip(torch.autograd.grad(compiled(*leaves), leaves), expected, strict=True):
        torch.testing.assert_close(mine, wanted)
