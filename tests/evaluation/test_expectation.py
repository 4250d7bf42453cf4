"""Expectations under the posterior: a linear-Gaussian model has them exactly, arviz the weights."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from linear_gaussian import D, LinearDecoder, Z, draw_data, linear_gaussian
from torch import Tensor
from torch.distributions import Normal

import dvae_fast
from dvae_fast.corruptions import AdditiveGaussian
from dvae_fast.evaluation import (
    PROPOSALS,
    estimate_log_likelihood,
    importance_expectation,
    pareto_smoothed,
)
from dvae_fast.models import LatentVariableModel, make_model

N, K = 7, 900


def _posterior(model: LatentVariableModel, x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean (N, Z) and covariance (Z, Z)."""
    decoder = model.decoder
    assert isinstance(decoder, LinearDecoder)
    w = decoder.weight.detach()
    covariance = torch.linalg.inv(torch.eye(Z, dtype=w.dtype) + w.T @ w / decoder.noise**2)
    return (x - decoder.bias.detach()) @ w @ covariance / decoder.noise**2, covariance


@pytest.mark.parametrize(
    ("proposal", "smooth"), [*((p, False) for p in PROPOSALS), ("posterior", True)]
)
def test_within_its_own_error(proposal: str, smooth: bool) -> None:
    """Σ ((found − exact) / error)² of 60 examples and Z means, about χ²(120) but for correlation
    of an example's two: below 200, were the noise drawn anew, but once in 10⁵; and above 60, that
    errors are not too large. The second moment of z with it, whose scale is another."""
    model = linear_gaussian("dvae", widen=2.0, corruption=AdditiveGaussian(0.3))
    x = draw_data(model, 60)
    mean, covariance = _posterior(model, x)
    options = {"proposal": proposal, "copies": 3, "seed": 5, "smooth": smooth}
    found = importance_expectation(
        model, x, lambda z: torch.cat([z, 1e6 + z[:, :1] ** 2], 1), 2000, **options
    )
    assert found.value.shape == (60, Z + 1)
    exact = torch.cat([mean, (1e6 + covariance[0, 0] + mean[:, 0] ** 2)[:, None]], 1)
    deviation = ((found.value - exact) / found.standard_error).square().sum(0)
    assert 60 < float(deviation[:Z].sum()) < 200
    assert 25 < float(deviation[Z]) < 120  # about χ²(60)


def test_the_error_is_that_of_the_weights() -> None:
    """sqrt(Σ w̃² (f − E f)²) of the weights and samples of the same seed."""
    model = linear_gaussian("vae", widen=2.0)
    x = draw_data(model, N)
    found = importance_expectation(model, x, lambda z: z.exp(), K, seed=3, smooth=False)
    with torch.no_grad():
        mean, log_var = model.encode(x)
        z, ratio = dvae_fast.sample_latent(mean, log_var, K, 3)
        log_p = Normal(*model.decode(z)).log_prob(x[:, None]).sum(-1)
    weights = torch.softmax(log_p + ratio, 1)[..., None]
    value = (weights * z.exp()).sum(1)
    error = (weights.square() * (z.exp() - value[:, None]).square()).sum(1).sqrt()
    torch.testing.assert_close(found.value, value)
    torch.testing.assert_close(found.standard_error, error)


def test_the_samples_are_those_of_the_estimate_in_any_split() -> None:
    model = make_model("vae", D, Z, (5,)).double()
    x = torch.rand(N, D, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    ones = {"seed": 3, "smooth": False}
    whole = importance_expectation(model, x, lambda z: z.cos(), K, **ones)
    for batch_size, chunk in ((1, K), (3, 101), (N, 1)):
        part = importance_expectation(
            model, x, lambda z: z.cos(), K, batch_size=batch_size, chunk=chunk, **ones
        )
        torch.testing.assert_close(part.value, whole.value, rtol=1e-10, atol=1e-12)
        torch.testing.assert_close(part.standard_error, whole.standard_error, rtol=1e-8, atol=1e-12)
    last = importance_expectation(model, x[4:], lambda z: z.cos(), K, first_example=4, **ones)
    torch.testing.assert_close(last.value, whole.value[4:], rtol=1e-10, atol=1e-12)
    estimate = estimate_log_likelihood(model, x, K, seed=3)
    torch.testing.assert_close(whole.ess, estimate.ess.double(), rtol=1e-6, atol=0)
    assert whole.seed == estimate.seed == 3


def test_what_f_gives_is_weighed() -> None:
    """Any shape; what f makes of a sample without weight does not count, but of others it does."""
    model = linear_gaussian("vae", widen=2.0)
    x = draw_data(model, N)
    whole = importance_expectation(
        model, x, lambda z: torch.stack([z, 2 * z, torch.ones_like(z)], 1), K, seed=1
    )
    assert whole.value.shape == whole.standard_error.shape == (N, 3, Z)
    torch.testing.assert_close(whole.value[:, 1], 2 * whole.value[:, 0])
    torch.testing.assert_close(whole.value[:, 2], torch.ones(N, Z, dtype=torch.float64))
    assert float(whole.standard_error[:, 2].max()) < 1e-7
    bad = importance_expectation(model, x, lambda z: z.masked_fill(z > 0, math.nan), K, seed=1)
    assert bad.warnings() == [f"{N} of {N} examples have values that are not finite."]


def test_equal_weights_are_the_best_case() -> None:
    model = linear_gaussian("vae", orthogonal=True)
    x = draw_data(model, N)
    found = importance_expectation(model, x, lambda z: z, K, seed=1)
    torch.testing.assert_close(found.ess, torch.full((N,), float(K), dtype=torch.float64))
    assert found.warnings() == []
    narrow = importance_expectation(linear_gaussian("vae", widen=0.2), x, lambda z: z, K, seed=1)
    assert any("heavy a tail" in one for one in narrow.warnings())


@pytest.mark.parametrize("kind", ["plain", "zeros", "huge", "nearly alike"])
@pytest.mark.parametrize("k", [1, 23, 30, 101, 1500])
def test_smoothed_weights_are_those_of_arviz(kind: str, k: int) -> None:
    arviz = pytest.importorskip("arviz")
    g = np.random.default_rng(k)
    log_w = g.normal(size=(40, k)) * g.choice([0.3, 1.0, 3.0], size=(40, 1))
    if kind == "zeros":
        log_w[g.random((40, k)) < 0.4] = -math.inf
        log_w = log_w[np.isfinite(log_w).any(1)]
    elif kind == "huge":
        log_w = 300 * log_w - 1e4
    elif kind == "nearly alike":
        log_w *= 1e-3
    found, shape = pareto_smoothed(torch.from_numpy(log_w))
    if k == 1:
        np.testing.assert_array_equal(found.numpy(), 0)
        assert bool(shape.isposinf().all())
        return
    for i, row in enumerate(log_w):
        expected, expected_shape = arviz.psislw(row.copy())
        np.testing.assert_allclose(found[i].exp().numpy(), np.exp(expected), rtol=0, atol=1e-10)
        np.testing.assert_allclose(float(shape[i]), float(expected_shape), rtol=1e-8)


# k̂ and the four largest log-weights by R's loo 2.5.1, psis(…, r_eff = 1), of each row below. With
# ties at the cutoff and weights of 0 it keeps in the tail what does not lie above the cutoff, which
# arviz and this package leave out: there its k̂ is another, +inf mostly.
_LOO = (
    (0.232214778197, -3.15911673456, -3.15911673456, -3.31621412410, -3.42506288725),
    (0.58628596755, -1.35342125229, -2.10852672963, -2.49829655593, -2.77852400722),
    (0.832099371235, -0.885867832347, -1.875873671375, -2.373142559676, -2.725554395611),
)


def test_smoothed_weights_are_those_of_loo() -> None:
    log_w = np.random.default_rng(17).normal(size=(3, 64)) * np.array([[0.5], [1.5], [3.0]])
    found, shape = pareto_smoothed(torch.from_numpy(log_w))
    largest = found.sort(dim=1, descending=True).values[:, :4]
    np.testing.assert_allclose(torch.cat((shape[:, None], largest), 1).numpy(), _LOO, rtol=1e-10)


def test_weights_at_the_borders() -> None:
    log_w = torch.randn(5, 60, generator=torch.Generator().manual_seed(0))
    log_w[1] = -math.inf
    log_w[2, 7] = math.nan
    log_w[3, 7] = math.inf
    log_w[4] = 2.5
    found, shape = pareto_smoothed(log_w)
    assert found.isnan().all(1).tolist() == [False, True, True, True, False]
    assert shape.isnan().tolist() == [False, True, True, True, False]
    torch.testing.assert_close(found[4].exp(), torch.full((60,), 1 / 60, dtype=torch.float64))
    assert pareto_smoothed(torch.zeros(0, 9))[0].shape == (0, 9)
    with pytest.raises(ValueError, match=r"log_w must have shape \(N, K\) with K >= 1, got \(3,\)"):
        pareto_smoothed(torch.zeros(3))
    with pytest.raises(TypeError, match="log_w must be"):
        pareto_smoothed(torch.zeros(3, 2, dtype=torch.int64))


def test_errors_name_f() -> None:
    model = linear_gaussian("vae")
    x = draw_data(model, N)
    with pytest.raises(TypeError, match="f must be a function of z, got int"):
        importance_expectation(model, x, 3)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"f must return a floating-point tensor, got torch\.bool"):
        importance_expectation(model, x, lambda z: z[:, 0] > 0, K)
    with pytest.raises(ValueError, match=r"one row for each of the \d+ of z, got shape \(3, 2\)"):
        importance_expectation(model, x, lambda z: z[:3], K)
    with pytest.raises(ValueError, match="k must be"):
        importance_expectation(model, x, lambda z: z, 0)
