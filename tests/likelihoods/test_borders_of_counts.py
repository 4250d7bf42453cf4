"""Counts at the borders of their dispersion, against mpmath in 120 digits."""

from __future__ import annotations

from typing import Any

import mpmath
import pytest
import torch

from dvae_fast import log_weights
from dvae_fast.likelihoods import LIKELIHOODS

MEANS = (2e-3, 0.8, 30.0, 1e5)
COUNTS = (0.0, 1.0, 6.0, 1e6)
LOGIT = -1.5  # of a zero


def _density(name: str, mean: Any, theta: Any, x: float) -> Any:
    m, t, y = (mpmath.mpf(v) for v in (mean, theta, x))
    log_p = mpmath.loggamma(y + t) - mpmath.loggamma(t) - mpmath.loggamma(y + 1)
    log_p += t * mpmath.log(t / (t + m)) + y * mpmath.log(m / (t + m))
    if name == "negative_binomial":
        return log_p
    kept = -mpmath.log1p(mpmath.exp(mpmath.mpf(LOGIT)))
    if x > 0:
        return kept + log_p
    return mpmath.log(mpmath.exp(LOGIT + kept) + mpmath.exp(kept + log_p))


def _rounding(dtype: torch.dtype, derivative: int, mean: float, theta: float, x: float) -> float:
    if derivative == 0:
        return 1e-30  # of a density that underflows beside a zero
    eps = 2e-7 if dtype == torch.float32 else 4e-16
    u = (x - mean) / (theta + mean)
    if dtype == torch.float64:
        return 8 * eps * abs(u)
    return 8 * eps * (u * u + x / theta**2) + 1e-44  # what is below 1e-38 has fewer digits


@pytest.mark.parametrize("name", ["negative_binomial", "zero_inflated_negative_binomial"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("theta", [1e-22, 1e-20, 1e-6, 1e9, 1e13, 1e18])
def test_value_and_gradients_of_a_dispersion(name: str, dtype: torch.dtype, theta: float) -> None:
    """Where autograd's own derivative in θ would be NaN or 0 it has digits: those of the terms that
    it is a sum of, of which u = (x − mean)/(θ + mean) is one in the kernel of float64."""
    tolerance = 5e-6 if dtype == torch.float32 else 1e-12
    x = torch.tensor(COUNTS, dtype=dtype).repeat(len(MEANS)).view(-1, 1)
    mean = torch.tensor(MEANS, dtype=dtype).repeat_interleave(len(COUNTS)).view(-1, 1, 1)
    params = [mean, torch.full_like(mean, theta)]
    if len(LIKELIHOODS[name].params) == 3:
        params.append(torch.full_like(mean, LOGIT))
    for p in params:
        p.requires_grad_()
    log_p = log_weights(tuple(params), x, torch.zeros(len(x), 1, dtype=dtype), name)
    d_mean, d_theta = torch.autograd.grad(log_p.sum(), params[:2])
    with mpmath.workdps(120):
        step = mpmath.mpf(10) ** -25
        for i, y in enumerate(x.flatten().tolist()):
            at = [p.detach().flatten()[i].item() for p in params[:2]]
            value = _density(name, *at, y)
            assert log_p[i].item() == pytest.approx(float(value), rel=tolerance, abs=tolerance)
            for j, got in enumerate((d_mean, d_theta)):
                up, down = ([*at] for _ in "ab")
                up[j], down[j] = at[j] * (1 + step), at[j] * (1 - step)
                change = _density(name, *up, y) - _density(name, *down, y)
                expected = float(change / (2 * step * at[j]))
                assert got.flatten()[i].item() == pytest.approx(
                    expected, rel=tolerance, abs=_rounding(dtype, j, *at, y)
                )


@pytest.mark.parametrize("mean, x, theta", [(1e22, 5, 1e25), (0.5, 1e12, 1e27), (1e15, 3e14, 1e24)])
def test_a_large_dispersion_beside_larger_means_and_counts(
    mean: float, x: float, theta: float
) -> None:
    """A negative binomial is a Poisson where θ is large beside them, not from 1e20 on."""
    for dtype, tolerance in ((torch.float64, 1e-13), (torch.float32, 1e-6)):
        m, y, t = (torch.full((1,), v, dtype=dtype) for v in (mean, x, theta))
        with mpmath.workdps(120):
            expected = float(_density("negative_binomial", m.item(), t.item(), y.item()))
        got = LIKELIHOODS["negative_binomial"].log_prob((m, t), y).item()
        assert got == pytest.approx(expected, rel=tolerance)
        for scale in (t.view(1, 1, 1), t, t[0]):
            params = (m.view(1, 1, 1), scale)
            fused = log_weights(
                params, y.view(1, 1), torch.zeros(1, 1, dtype=dtype), "negative_binomial"
            )
            assert fused.item() == pytest.approx(expected, rel=tolerance)


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated")
def test_transforms_of_zero_inflated_counts() -> None:
    """Forward mode, vmap and second derivatives, of the formula that autograd does not see."""
    likelihood = LIKELIHOODS["zero_inflated_negative_binomial"]
    x = torch.tensor([0.0, 3.0, 40.0], dtype=torch.float64)
    at = tuple(
        torch.tensor(v, dtype=torch.float64)
        for v in ([2.0, 5.0, 30.0], [0.7, 3.0, 50.0], [0.3] * 3)
    )

    def total(*params: torch.Tensor) -> torch.Tensor:
        return likelihood.log_prob(params, x).sum()

    grads = torch.func.grad(total, argnums=(0, 1, 2))(*at)
    torch.testing.assert_close(torch.func.jacfwd(total, argnums=(0, 1, 2))(*at), grads)
    each = torch.func.vmap(torch.func.grad(lambda *p: likelihood.log_prob(p[:3], p[3]), (0, 1, 2)))
    torch.testing.assert_close(each(*at, x), grads)
    reverse = torch.func.hessian(total, argnums=(0, 1))(*at)
    twice = torch.func.jacfwd(torch.func.jacfwd(total, argnums=(0, 1)), argnums=(0, 1))(*at)
    torch.testing.assert_close(reverse, twice)
    assert torch.autograd.gradgradcheck(total, [p.requires_grad_() for p in at])


def test_a_decoder_of_zero_inflated_counts_starts_at_their_mean() -> None:
    likelihood = LIKELIHOODS["zero_inflated_negative_binomial"]
    wanted = torch.tensor([0.5, 7.0, 300.0])
    start = likelihood.start(wanted)
    assert start is not None
    links = likelihood.params
    made = (links["mean"](start), torch.ones(3), links["zero_logits"](torch.zeros(3)))
    torch.testing.assert_close(likelihood.mean(made), wanted)
