"""A log-weight is right to 0.05 nats for data and parameters a user can have, in float32.

Of long sums and of large counts, by the operator and by the reference, against the formula in
float64 that log Γ of SciPy makes.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from scipy import special, stats

import dvae_fast
from dvae_fast import reference
from dvae_fast.likelihoods import NegativeBinomial

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Array = NDArray[np.float64]

GENES, NATS = 2000, 0.05


def log_p(mean: Array, theta: Array, x: Array) -> Array:
    """In float64 right to 1e-8 for counts to 1e6, where log Γ is 1.3e7."""
    gammas = special.gammaln(x + theta) - special.gammaln(theta) - special.gammaln(x + 1)
    return gammas - theta * np.log1p(mean / theta) - x * np.log1p(theta / mean)


def weigh(mean: Array, theta: Array, x: Array, shape: str, plain: bool) -> float:
    """One log-weight in float32 of one example."""
    m, v = (torch.from_numpy(a).float() for a in (mean, x))
    t = torch.from_numpy(theta).float()
    t = {"full": t.view(1, 1, -1), "per-gene": t, "scalar": t[0]}[shape]
    args = (m.view(1, 1, -1), t, v.view(1, -1), torch.zeros(1, 1))
    if plain:
        return reference.log_weights(*args, "negative_binomial").item()
    return dvae_fast.log_weights(args[:2], *args[2:], "negative_binomial").item()


def single(a: Array) -> Array:
    return a.astype(np.float32).astype(np.float64)


@pytest.mark.parametrize("plain", [False, True], ids=["operator", "reference"])
@pytest.mark.parametrize("mean", [1e4, 1e6])
def test_counts_of_one_mean(mean: float, plain: bool) -> None:
    x = np.random.default_rng(0).negative_binomial(10, 10 / (10 + mean), GENES).astype(float)
    m, t = np.full(GENES, mean), np.full(GENES, 10.0)
    expected = stats.nbinom.logpmf(x, 10, 10 / (10 + mean)).sum()
    for shape in ("scalar", "per-gene", "full"):
        assert abs(weigh(m, t, x, shape, plain) - expected) <= NATS


@pytest.mark.parametrize("plain", [False, True], ids=["operator", "reference"])
@pytest.mark.parametrize("counts", ["drawn", "zero", "at the mean", "off by a tenth"])
def test_counts_of_every_size(counts: str, plain: bool) -> None:
    g = np.random.default_rng(1)
    for low, high in ((1e-3, 1e-1), (0.5, 2.0), (1.0, 1e3), (1e3, 1e6), (1e-3, 1e6)):
        for smallest in (1e-6, 1e-2, 10.0, 1e5):
            t = single(np.exp(g.uniform(np.log(low), np.log(high), GENES)))
            m = single(np.exp(g.uniform(np.log(smallest), np.log(1e6), GENES)))
            x = g.poisson(np.minimum(g.gamma(t) * m / t, 1e6)).astype(float)
            x = {"drawn": x, "zero": 0 * x, "at the mean": m.round()}.get(counts, (1.1 * m).round())
            total = log_p(m, t, x).sum()
            # And of what no model would say of data, a millionth of those nats.
            allowed = NATS + 1e-6 * max(0.0, abs(total) - 1e5)
            for shape in ("full", "per-gene"):
                assert abs(weigh(m, t, x, shape, plain) - total) <= allowed, (low, high, smallest)


@pytest.mark.parametrize("plain", [False, True], ids=["operator", "reference"])
def test_derivatives_keep_their_digits(plain: bool) -> None:
    """Near x = mean, where x/mean − 1 and ψ(x + θ) − ψ(θ) − log (θ + mean)/θ nearly vanish."""
    g = np.random.default_rng(2)
    n = 300
    m = single(np.exp(g.uniform(np.log(10), np.log(1e6), n)))
    t = single(np.exp(g.uniform(np.log(0.1), np.log(1e6), n)))
    x = (m * (1 + 0.5 * g.standard_normal(n) / np.sqrt(np.minimum(m, t)))).clip(1).round()
    rest = t + m
    d_mean = (x - m) / m * t / rest
    u = (x - m) / rest
    # ψ(z) = log z − 1/(2z) − 1/(12 z²) + …, without the logarithms: they are of u.
    digamma = special.digamma(x + t) - np.log(x + t) - special.digamma(t) + np.log(t)
    d_theta = digamma + np.log1p(u) - u
    size = 0.5 * x / (t * (x + t)) + 0.5 * u**2
    operands = [torch.from_numpy(a).float() for a in (m, t, x)]
    if plain:
        got = NegativeBinomial().derivatives((operands[0], operands[1]), operands[2])
    else:
        mean, theta = (a.view(1, 1, -1).requires_grad_() for a in operands[:2])
        weights = dvae_fast.log_weights(
            (mean, theta), operands[2].view(1, -1), torch.zeros(1, 1), "negative_binomial"
        )
        got = torch.autograd.grad(weights.sum(), (mean, theta))
    got_mean, got_theta = (a.double().flatten().numpy() for a in got)
    np.testing.assert_array_less(np.abs(got_mean - d_mean), 1e-6 * np.abs(d_mean) + 1e-30)
    # What float64 itself has lost of ψ − log.
    own = 1e-15 * (np.log(x + t) + np.abs(np.log(t)))
    np.testing.assert_array_less(np.abs(got_theta - d_theta), 5e-6 * (size + 1 / (t + t**2)) + own)


@pytest.mark.parametrize("plain", [False, True], ids=["operator", "reference"])
@pytest.mark.parametrize("kind", ["bernoulli", "gaussian", "discretised_logistic"])
@pytest.mark.parametrize("size", [1021, 1031, 12_288])
def test_pixels_of_equal_terms(kind: str, plain: bool, size: int) -> None:
    """A float32 that sums them one by one loses of each in one direction; rows of up to 1,024 are
    summed so, in sixteen lanes."""
    g = np.random.default_rng(3)
    for _ in range(4):
        x = 85 / 255 if kind == "discretised_logistic" else g.uniform()
        mean, scale = (np.float32(g.uniform(0.1, 0.9)), np.float32(g.uniform(0.02, 0.3)))
        if kind == "bernoulli":
            mean = np.float32(6 * mean - 3)
        v, m, s = (torch.full((size,), float(np.float32(a))) for a in (x, mean, scale))
        params, one = m.view(1, 1, -1), v.view(1, -1)
        for shape in ("full", "scalar"):
            spread = None if kind == "bernoulli" else s.view(1, 1, -1) if shape == "full" else s[0]
            wide = [None if a is None else a.double() for a in (params, spread, one)]
            exact = reference.log_weights(*wide, torch.zeros(1, 1).double(), kind).item()  # type: ignore[arg-type]
            if plain:
                got = reference.log_weights(params, spread, one, torch.zeros(1, 1), kind)
            else:
                pair = params if spread is None else (params, spread)
                got = dvae_fast.log_weights(pair, one, torch.zeros(1, 1), kind)
            allowed = NATS + 0.5 * np.spacing(np.float32(abs(exact)))
            assert abs(got.item() - exact) <= allowed, (x, mean, scale, shape)


def test_limits_of_the_reference() -> None:
    """As the kernel's: −inf only where no value is left, and no NaN but of NaN."""
    inf, nan = math.inf, math.nan
    nb = NegativeBinomial()
    for dtype in (torch.float32, torch.float64):
        values = torch.tensor([0.0, 1e-30, 1e-22, 1.0, 1e9, 1e30, inf], dtype=dtype)
        mean, theta, x = torch.broadcast_tensors(
            values.view(-1, 1, 1), values[1:].view(-1, 1), values.new_tensor([0.0, 1.0, 1e6, 1e14])
        )
        density = nb.log_prob((mean, theta), x)
        assert bool((density <= 0).all())
        assert torch.equal(density == -inf, (mean == inf) | ((mean == 0) & (x > 0)))
        assert not any(bool(d.isnan().any()) for d in nb.derivatives((mean, theta), x))
        for i in range(3):
            operands = torch.tensor([2.0, 3.0, 4.0], dtype=dtype)
            operands[i] = nan
            m, t, v = operands
            assert bool(nb.log_prob((m, t), v).isnan())
            assert all(bool(d.isnan()) for d in nb.derivatives((m, t), v))
