"""Likelihoods of discrete data: the discretised logistic of grey levels, the negative binomial.

The table in dvae_fast/checking/cases.py holds their operators to the reference; here the
reference, and the operators beyond the table's ranges, are held to scipy, to sums over the support,
and to limits. Densities of single elements come from N = 1 sample of D = 1 dimension.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from model_checks import rise
from operator_cases import DEVICES
from scipy import special, stats
from torch import Tensor
from torch.nn import functional as F

import dvae_fast
from dvae_fast import likelihoods
from dvae_fast.likelihoods import DiscretisedLogistic, NegativeBinomial
from dvae_fast.likelihoods.links import MIN_SCALE
from dvae_fast.models import (
    VAE,
    Decoder,
    LatentVariableModel,
    make_model,
)

DISCRETE = ("discretised_logistic", "negative_binomial")
each_kind = pytest.mark.parametrize("kind", DISCRETE)
each_dtype = pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
each_device = pytest.mark.parametrize("device", DEVICES)

LEVELS = torch.arange(256, dtype=torch.float64) / 255
M, B, K, D, Z = 2, 5, 3, 7, 4
INF = math.inf


def density(kind: str, mean: Tensor, scale: Tensor, x: Tensor) -> Tensor:
    """log p of each element, in any broadcastable shape."""
    mean, scale, x = torch.broadcast_tensors(mean, scale, x)
    n = mean.numel()
    out = dvae_fast.log_weights(
        (mean.reshape(n, 1, 1), scale.reshape(n, 1, 1)),
        x.reshape(n, 1), mean.new_zeros(n, 1), kind,
    )  # fmt: skip
    return out.view(mean.shape)


def derivatives(kind: str, mean: Tensor, scale: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
    mean, scale = (t.expand(x.shape).clone().requires_grad_() for t in (mean, scale))
    return torch.autograd.grad(density(kind, mean, scale, x).sum(), (mean, scale))  # type: ignore[return-value]


def drawn(kind: str, seed: int, *shape: int) -> tuple[Tensor, Tensor, Tensor]:
    """(mean, scale, x) of float64, which is exact in float32 too."""
    g = torch.Generator().manual_seed(seed)
    normal, u = (torch.randn(shape, generator=g), torch.rand(shape, generator=g))
    if kind == "negative_binomial":
        mean, scale = torch.exp(2 * normal), torch.exp(8 * u - 4)
        x = torch.poisson(mean, generator=g)
    else:
        mean, scale = 0.5 + 0.3 * normal, torch.exp(-5 * u)
        x = torch.randint(0, 256, shape, generator=g) / 255
    return mean.double(), scale.double(), x.double()


# --- densities --------------------------------------------------------------------------------


@each_device
@each_dtype
def test_negative_binomial_is_scipys(dtype: torch.dtype, device: str) -> None:
    theta = torch.tensor([1e-3, 0.1, 0.7, 3.9, 4.1, 9.9, 10.1, 50.0, 1e3], dtype=dtype)
    mean = torch.tensor([1e-3, 0.2, 1.0, 8.0, 300.0], dtype=dtype)
    x = torch.tensor([0.0, 1, 2, 3, 7, 20, 400], dtype=dtype)
    grid = torch.broadcast_tensors(theta.view(-1, 1, 1), mean.view(-1, 1), x)
    t, m, v = (a.reshape(-1) for a in grid)
    got = density("negative_binomial", *(a.to(device) for a in (m, t, v))).cpu().double().numpy()
    t64, m64, x64 = (a.double().numpy() for a in (t, m, v))
    log_gamma = special.gammaln(x64 + t64) - special.gammaln(t64)
    odds = np.log1p(m64 / t64)
    terms = np.abs(log_gamma) + special.gammaln(x64 + 1) + t64 * odds
    terms += x64 * np.log1p(t64 / m64)
    expected = stats.nbinom.logpmf(x64, t64, t64 / (t64 + m64))
    allowed = 2e-6 if dtype == torch.float32 else 1e-12
    # scipy itself loses digits of a log Γ of large θ, and of 1 − p = θ/(θ + mean) near 0.
    own = 2e-15 * (t64 + x64 * (1 + t64 / m64))
    np.testing.assert_array_less(np.abs(got - expected), allowed * terms + own)
    d_mean, d_scale = derivatives("negative_binomial", m.to(device), t.to(device), v.to(device))
    digamma, rest = special.digamma(x64 + t64) - special.digamma(t64), t64 + m64
    np.testing.assert_array_less(
        np.abs(d_mean.cpu().double().numpy() - (x64 / m64 - 1) * t64 / rest),
        allowed * (x64 / m64 + 1) * t64 / rest,
    )
    np.testing.assert_array_less(
        np.abs(d_scale.cpu().double().numpy() - (digamma - odds + (m64 - x64) / rest)),
        allowed * (np.abs(digamma) + odds + (x64 + m64) / rest) + 1e-14,
    )


@each_device
@each_dtype
@pytest.mark.parametrize("theta", [1e6, 1e12, 1e30, INF])
def test_negative_binomial_of_large_dispersion_is_a_poisson(
    theta: float, dtype: torch.dtype, device: str
) -> None:
    """log p exceeds a Poisson's by ((x − μ)² − x)/(2 θ) + O(θ⁻²); no digit of it is lost."""
    mean = torch.tensor([0.01, 1.0, 7.5, 100.0], dtype=dtype, device=device).view(-1, 1)
    x = torch.tensor([0.0, 1, 2, 5, 90], dtype=dtype, device=device)
    got = density("negative_binomial", mean, torch.full_like(mean, theta), x).double()
    m, v = mean.double(), x.double()
    terms = torch.special.xlogy(v, m).abs() + m + torch.lgamma(v + 1)
    poisson = torch.special.xlogy(v, m) - m - torch.lgamma(v + 1)
    expected = poisson + ((v - m).square() - v) / (2 * theta)
    allowed = (2e-6 if dtype == torch.float32 else 1e-12) * (terms + v * 30) + 1e3 / theta**1.5
    assert bool(((got - expected).abs() <= allowed).all())


@each_device
@each_dtype
def test_discretised_logistic_is_a_difference_of_cdfs(dtype: torch.dtype, device: str) -> None:
    mean, scale, x = (t.to(dtype) for t in drawn("discretised_logistic", 3, 4000))
    x[:500], x[500:1000] = 0, 1
    got = density("discretised_logistic", mean.to(device), scale.to(device), x.to(device))
    m, s, v = (t.double().numpy() for t in (mean, scale, x))
    low, high = (v - m - 0.5 / 255) / s, (v - m + 0.5 / 255) / s
    # On the side where the two values are small, so that their difference keeps its digits.
    flip = low + high > 0
    low, high = np.where(flip, -high, low), np.where(flip, -low, high)
    first, last = np.where(flip, v == 1, v == 0), np.where(flip, v == 0, v == 1)
    below = np.where(first, 0, stats.logistic.cdf(low))
    above = np.where(last, 1, stats.logistic.cdf(high))
    expected = np.log(above - below)
    carried = 1 + np.abs(expected) + (np.abs(v - m) + 0.5 / 255) / s
    np.testing.assert_array_less(
        np.abs(got.cpu().double().numpy() - expected),
        (2e-6 if dtype == torch.float32 else 1e-12) * carried,
    )


def test_levels_sum_to_one() -> None:
    mean = torch.tensor([-0.3, 0.0, 0.31, 0.999, 1.7], dtype=torch.float64).view(-1, 1, 1)
    scale = torch.tensor([1e-5, 1e-3, 0.1, 3.0, 1e4], dtype=torch.float64).view(-1, 1)
    total = density("discretised_logistic", mean, scale, LEVELS).exp().sum(-1)
    torch.testing.assert_close(total, torch.ones_like(total), rtol=0, atol=1e-12)


def test_counts_sum_to_one() -> None:
    mean = torch.tensor([1e-3, 0.7, 12.0, 80.0], dtype=torch.float64).view(-1, 1, 1)
    theta = torch.tensor([0.5, 3.0, 40.0, 1e7], dtype=torch.float64).view(-1, 1)
    x = torch.arange(8000, dtype=torch.float64)  # the largest variance is 80 + 80²/½
    p = density("negative_binomial", mean, theta, x).exp()
    torch.testing.assert_close(p.sum(-1), torch.ones(4, 4).double(), rtol=0, atol=1e-11)
    torch.testing.assert_close((p * x).sum(-1), mean.expand(4, 4, 1).squeeze(-1))
    variance = (p * (x - mean).square()).sum(-1)
    torch.testing.assert_close(variance, (mean + mean.square() / theta).squeeze(-1))


# --- limits -----------------------------------------------------------------------------------


@each_device
@each_dtype
def test_limits_of_the_discretised_logistic(dtype: torch.dtype, device: str) -> None:
    middle = 128 / 255

    def log_p(mean: float, scale: float, x: float) -> float:
        a = (torch.tensor([v], dtype=dtype, device=device) for v in (mean, scale, x))
        return density("discretised_logistic", *a).item()

    assert log_p(INF, 1.0, 1.0) == log_p(-INF, 1.0, 0.0) == 0
    assert log_p(INF, 1.0, 0.0) == log_p(-INF, 1.0, 1.0) == log_p(INF, 1.0, middle) == -INF
    assert log_p(middle, 1e-30, middle) == 0  # all mass in one bin
    assert log_p(middle, 1e-38, 127 / 255) < -1e30
    assert log_p(middle, INF, middle) == -INF
    assert log_p(middle, INF, 0.0) == pytest.approx(-math.log(2), rel=1e-6)
    values = torch.tensor([0.0, middle, 1.0, 2.0, INF, -INF], dtype=dtype, device=device)
    mean, scale, x = (
        t.reshape(-1)
        for t in torch.broadcast_tensors(
            values.view(-1, 1, 1),
            torch.tensor([1e-38, 1e-4, 1.0, 1e30], dtype=dtype, device=device).view(-1, 1),
            values[:3],
        )
    )
    assert bool((density("discretised_logistic", mean, scale, x) <= 0).all())
    for grad in derivatives("discretised_logistic", mean, scale, x):
        assert not bool(grad.isnan().any())


@each_device
@each_dtype
def test_limits_of_the_negative_binomial(dtype: torch.dtype, device: str) -> None:
    def log_p(mean: float, theta: float, x: float) -> float:
        a = (torch.tensor([v], dtype=dtype, device=device) for v in (mean, theta, x))
        return density("negative_binomial", *a).item()

    assert log_p(0.0, 2.0, 0.0) == 0
    assert log_p(0.0, 2.0, 1.0) == log_p(INF, 2.0, 1.0) == log_p(INF, 2.0, 0.0) == -INF
    # Exactly −θ log (1 + μ/θ): log x! and the ratio of the Γ are 0, not nearly.
    assert log_p(1e-6, 1.0, 0.0) == pytest.approx(-1e-6, rel=2e-6)
    values = torch.tensor([0.0, 1e-30, 1e-22, 1.0, 1e9, 1e30, INF], dtype=dtype, device=device)
    mean, theta, x = (
        t.reshape(-1)
        for t in torch.broadcast_tensors(
            values.view(-1, 1, 1), values[1:].view(-1, 1), values.new_tensor([0.0, 1.0, 1e6, 1e14])
        )
    )
    log_density = density("negative_binomial", mean, theta, x)
    assert bool((log_density <= 0).all())
    # −inf where there is no other value, not where something on the way is too large or small.
    impossible = (mean == INF) | ((mean == 0) & (x > 0))
    assert torch.equal(log_density == -INF, impossible.expand_as(log_density))
    for grad in derivatives("negative_binomial", mean, theta, x):
        assert not bool(grad.isnan().any())


@each_kind
@each_device
@pytest.mark.filterwarnings("ignore:the loss is not finite, and 2 of:RuntimeWarning")
@pytest.mark.parametrize("where", ["mean", "scale", "x"])
@pytest.mark.parametrize("size", [1, 16, 65])
def test_nan_stays_in_its_example(kind: str, where: str, size: int, device: str) -> None:
    mean, scale, x = (t.float() for t in drawn(kind, 5, M * B, K, size))
    operands = {"mean": mean, "scale": scale, "x": x[:B, 0].clone()}
    operands[where][1].view(-1)[size // 2] = math.nan
    pair = (operands["mean"].to(device), operands["scale"].to(device))
    log_ratio = torch.zeros(M * B, K, device=device)
    target = operands["x"].repeat(M, 1).to(device)
    loss = dvae_fast.iwae_loss(
        (pair[0].unsqueeze(0), pair[1].unsqueeze(0)), target.unsqueeze(0), log_ratio.unsqueeze(0),
        kind, reduction="none",
    )[0]  # fmt: skip
    bad = [1, 1 + B] if where == "x" else [1]
    assert loss.isnan().nonzero().flatten().tolist() == bad


# --- gradients --------------------------------------------------------------------------------


def _operands(kind: str, scale_shape: str, d: int, device: str) -> tuple[Any, ...]:
    mean, scale, x = (t.to(device) for t in drawn(kind, 11, B, K, d))
    x = x[:, 0].contiguous()
    scale = {"full": scale, "per-pixel": scale[0, 0], "scalar": scale[0, 0, 0]}[scale_shape]
    log_ratio = torch.linspace(-1, 1, B * K, dtype=torch.float64, device=device).view(B, K)
    leaves = [t.clone().requires_grad_() for t in (mean, scale, log_ratio)]
    return (*leaves, x)


@each_kind
@each_device
@pytest.mark.parametrize("shape", ["scalar", "per-pixel", "full"])
@pytest.mark.parametrize("d", [1, 9])
def test_gradcheck(kind: str, shape: str, d: int, device: str) -> None:
    mean, scale, log_ratio, x = _operands(kind, shape, d, device)

    def log_w(m: Tensor, s: Tensor, r: Tensor) -> Tensor:
        return dvae_fast.log_weights((m, s), x, r, kind)

    def loss(m: Tensor, s: Tensor, r: Tensor) -> Tensor:
        return dvae_fast.iwae_loss((m, s), x, r, kind, reduction="sum")

    for f in (log_w, loss):
        torch.autograd.gradcheck(f, (mean, scale, log_ratio), eps=1e-7, atol=1e-5, rtol=1e-4)


@each_kind
@each_device
def test_of_a_linear_layer(kind: str, device: str) -> None:
    """As of the layer's output held in memory, values and gradients."""
    g = torch.Generator().manual_seed(2)
    hidden = torch.rand(B, K, Z, generator=g).double().to(device).requires_grad_()
    weight = torch.rand(D, Z, generator=g).double().to(device).requires_grad_()
    bias = torch.rand(D, generator=g).double().to(device).requires_grad_()
    _, scale, x = (t.to(device) for t in drawn(kind, 4, B, D))
    scale = scale[0].clone().requires_grad_()
    ratio = torch.zeros(B, K, dtype=torch.float64, device=device)
    leaves = (hidden, weight, bias, scale)
    tiled = dvae_fast.linear_log_weights(hidden, weight, bias, x, ratio, kind, scale=scale)
    whole = dvae_fast.log_weights((F.linear(hidden, weight, bias), scale), x, ratio, kind)
    torch.testing.assert_close(tiled, whole)
    cotangent = torch.rand(B, K, generator=g).double().to(device)
    for got, expected in zip(
        torch.autograd.grad(tiled, leaves, cotangent),
        torch.autograd.grad(whole, leaves, cotangent),
        strict=True,
    ):
        torch.testing.assert_close(got, expected)


# --- errors -----------------------------------------------------------------------------------


@pytest.mark.usefixtures("_validation")
@pytest.mark.parametrize(
    "kind, x, message",
    [
        ("discretised_logistic", 1.25, r"x must lie in \[0, 1\].*discretised_logistic"),
        ("discretised_logistic", 0.5, r"x must hold multiples of 1/255.*got 0.5"),
        ("negative_binomial", -1.0, r"x must lie in \[0, inf\].*negative_binomial"),
        ("negative_binomial", 2.5, r"x must hold multiples of 1,.*got 2.5"),
        ("negative_binomial", INF, r"x must hold multiples of 1,.*got inf"),
    ],
)
def test_data_outside_the_support(kind: str, x: float, message: str) -> None:
    mean, scale, good = (t.float() for t in drawn(kind, 6, B, D))
    pair, ratio = (mean.unsqueeze(1), scale.unsqueeze(1)), torch.zeros(B, 1)
    dvae_fast.log_weights(pair, good, ratio, kind)
    good[2, 3] = x
    with pytest.raises(ValueError, match=message):
        dvae_fast.log_weights(pair, good, ratio, kind)
    with pytest.raises(ValueError, match=message):
        dvae_fast.iwae_loss(pair, good, ratio, kind)


@pytest.mark.usefixtures("_validation")
def test_a_negative_mean_of_counts() -> None:
    mean, scale, x = (t.float() for t in drawn("negative_binomial", 6, B, 1, D))
    mean[0, 0, 1] = -0.5
    with pytest.raises(ValueError, match=r"mean must be >= 0.*negative_binomial.*minimum of -0.5"):
        dvae_fast.log_weights((mean, scale), x[:, 0], torch.zeros(B, 1), "negative_binomial")


@each_kind
def test_wrong_operands(kind: str) -> None:
    mean, scale, x = (t.float() for t in drawn(kind, 6, B, 1, D))
    ratio, name = torch.zeros(B, 1), type(likelihoods.LIKELIHOODS[kind]).__name__
    with pytest.raises(TypeError, match=rf"pair \(mean, scale\) for a {name}, got Tensor"):
        dvae_fast.log_weights(mean, x[:, 0], ratio, kind)
    with pytest.raises(ValueError, match="scale must be > 0"):
        dvae_fast.log_weights((mean, 0.0), x[:, 0], ratio, kind)
    with pytest.raises(ValueError, match=rf"scale must be given for a {name} likelihood"):
        dvae_fast.linear_log_weights(mean, torch.eye(D), None, x[:, 0], ratio, kind)
    with pytest.raises(ValueError, match=f"x must not require a gradient: the {kind}"):
        dvae_fast.log_weights((mean, scale), x[:, 0].requires_grad_(), ratio, kind)
    with pytest.raises(RuntimeError, match=f"scale must be given for the likelihood {kind}"):
        torch.ops.dvae_fast.log_weights(mean, None, x[:, 0].detach(), ratio, kind)


def test_sixteen_bit_integers_are_counts() -> None:
    mean, scale, x = (t.float() for t in drawn("negative_binomial", 6, B, 1, D))
    ratio = torch.zeros(B, 1)
    got = dvae_fast.log_weights((mean, scale), x[:, 0].to(torch.int16), ratio, "negative_binomial")
    expected = dvae_fast.log_weights((mean, scale), x[:, 0], ratio, "negative_binomial")
    assert torch.equal(got, expected)


# --- means and draws --------------------------------------------------------------------------


ALARM = 1e-6  # the chance that Pearson's χ² of a right sampler is above the bar


def _assert_drawn_from(draws: Tensor, p: Tensor, values: Tensor) -> None:
    """Pearson's χ², neighbouring values pooled until a bin expects five draws; none is left out."""
    places = torch.searchsorted(values, draws.flatten()).clamp(max=len(values) - 1)
    assert torch.equal(values[places], draws.flatten()), "a draw is outside the support"
    counts = torch.bincount(places, minlength=len(values)).tolist()
    bins = [[0, 0.0]]
    for count, share in zip(counts, p.tolist(), strict=True):
        if bins[-1][1] >= 5:
            bins.append([0, 0.0])
        bins[-1][0] += count
        bins[-1][1] += share * draws.numel()
    if bins[-1][1] < 5:  # the upper tail goes with the bin beside it
        count, expected = bins.pop()
        bins[-1][0] += count
        bins[-1][1] += expected
    assert len(bins) > 1
    assert sum(expected for _, expected in bins) == pytest.approx(draws.numel())
    statistic = sum((count - expected) ** 2 / expected for count, expected in bins)
    assert statistic < stats.chi2.isf(ALARM, len(bins) - 1)


# The last lies on the border of two levels, which share almost all of it.
@pytest.mark.parametrize(
    "mean, scale", [(0.5, 0.02), (0.01, 0.03), (1.2, 0.2), (0.4, 5e-4), (102.5 / 255, 1e-4)]
)
def test_levels_drawn_and_their_mean(mean: float, scale: float) -> None:
    """A false alarm in a million each."""
    torch.manual_seed(7)
    n = 40_000
    pair = (torch.full((n,), mean).double(), torch.full((n,), scale).double())
    draws = DiscretisedLogistic().sample(pair)
    p = density("discretised_logistic", pair[0][:1], pair[1][:1], LEVELS).exp()
    _assert_drawn_from(draws, p, LEVELS)
    expected = (p * LEVELS).sum()
    assert DiscretisedLogistic().mean((pair[0][:1], pair[1][:1])).item() == pytest.approx(
        expected.item(), abs=1e-12
    )


def test_a_narrow_level_is_always_drawn() -> None:
    """Half a level is 39 scales: another is drawn once in 10¹² runs."""
    torch.manual_seed(7)
    pair = (torch.full((40_000,), 0.4).double(), torch.full((40_000,), 5e-5).double())
    draws = DiscretisedLogistic().sample(pair)
    assert torch.equal(draws, LEVELS[102].expand(40_000))


@pytest.mark.parametrize("mean, theta", [(0.3, 0.2), (6.0, 1.5), (20.0, 100.0)])
@pytest.mark.parametrize("shared", [False, True])
def test_counts_drawn_and_their_mean(mean: float, theta: float, shared: bool) -> None:
    """A false alarm in a million each."""
    torch.manual_seed(8)
    means = torch.full((200, 200), mean).double()
    scale = torch.tensor(theta).double() if shared else torch.full_like(means, theta)
    draws = NegativeBinomial().sample((means, scale))
    assert draws.shape == means.shape
    values = torch.arange(2000, dtype=torch.float64)
    p = density("negative_binomial", means[:1, 0], torch.tensor([theta]).double(), values).exp()
    _assert_drawn_from(draws, p, values)
    assert torch.equal(NegativeBinomial().mean((means, scale)), means)


# --- decoders and models ----------------------------------------------------------------------


def test_decoders_start_at_the_mean_of_the_data() -> None:
    z = torch.zeros(3, Z)
    grey, counts = torch.tensor([0.0, 0.3, 1.0]), torch.tensor([0.0, 0.3, 250.0])
    mean, scale = Decoder(Z, (), 3, "discretised_logistic", data_mean=grey)(z)
    torch.testing.assert_close(mean, torch.tensor([1e-3, 0.3, 0.999]).expand(3, 3))
    torch.testing.assert_close(scale, torch.full((3, 3), math.log(2) + MIN_SCALE))
    mean, scale = Decoder(Z, (), 3, "negative_binomial", data_mean=counts)(z)
    torch.testing.assert_close(mean, torch.tensor([1e-3, 0.3, 250.0]).expand(3, 3))
    torch.testing.assert_close(scale, torch.full((3, 3), math.log(2) + MIN_SCALE))
    with pytest.raises(ValueError, match=r"data_mean must be finite and >= 0, got values from -1"):
        Decoder(Z, (), 2, "negative_binomial", data_mean=torch.tensor([-1.0, 2.0]))
    with pytest.raises(ValueError, match=r"data_mean must be finite and >= 0, got .* to inf"):
        Decoder(Z, (), 2, "negative_binomial", data_mean=torch.tensor([1.0, INF]))
    with pytest.raises(ValueError, match=r"data_mean must lie in \[0, 1\]"):
        Decoder(Z, (), 2, "discretised_logistic", data_mean=counts[1:])


def _train_data(kind: str) -> Tensor:
    """Two clusters, so that a latent has something to say."""
    g = torch.Generator().manual_seed(1)
    centre = torch.rand(2, D, generator=g)[torch.arange(60) % 2]
    noisy = centre + 0.05 * torch.randn(60, D, generator=g)
    if kind == "negative_binomial":
        return torch.poisson(8 * noisy.clamp(min=0), generator=g)
    return (noisy.clamp(0, 1) * 255).round() / 255


@each_kind
@pytest.mark.parametrize("name", ["vae", "diwae"])
def test_the_bound_of_a_model_rises(kind: str, name: str) -> None:
    torch.manual_seed(0)
    x = _train_data(kind)
    model = make_model(name, D, 2, (8,), likelihood=kind, samples=4, data_mean=x.mean(0))
    # Beyond what the mean of the data gives, which is where the model starts.
    assert rise(model, x, 150, 0.02) > 1
    assert all(bool(p.isfinite().all()) for p in model.parameters())


@each_kind
def test_a_model_and_its_configuration(kind: str) -> None:
    torch.manual_seed(3)
    model = VAE(D, 2, (5,), likelihood=kind)
    again = LatentVariableModel.from_config(model.config())
    assert again.likelihood.kind == model.config()["likelihood"] == kind
    again.load_state_dict(model.state_dict())
    x = _train_data(kind)
    assert torch.equal(model.bound(x, 5), again.bound(x, 5))
    draws = model.sample(4, 1, draw=True)
    model.likelihood.check_support(draws)
    assert torch.equal(draws, model.sample(4, 1, draw=True))
    for picture in (model.sample(4, 1), model.reconstruct(x)):
        assert bool((picture >= 0).all())
        assert kind != "discretised_logistic" or bool((picture <= 1).all())
    estimate = dvae_fast.estimate_log_likelihood(model, x[:6], 20, chunk=7, seed=2)
    assert bool(estimate.log_likelihood.isfinite().all())
