"""Shapes, dtypes and conventions of the public functions and of what they take."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from operator_cases import DEVICES
from torch import Tensor

import dvae_fast
from dvae_fast import corruptions, likelihoods
from dvae_fast._dtypes import accumulation_dtype
from dvae_fast.checking.operands import DTYPES

M, B, K, Z, D, H = 2, 3, 7, 5, 65, 6

CORRUPTIONS = [
    corruptions.Identity(),
    corruptions.Masking(0.3),
    corruptions.SaltAndPepper(0.4, 0.3),
    corruptions.BitFlip(0.3),
    corruptions.AdditiveGaussian(0.7),
]


def _normal(*shape: int, device: str = "cpu", dtype: torch.dtype = torch.float32) -> Tensor:
    g = torch.Generator().manual_seed(sum(shape) + len(shape))
    return torch.randn(shape, generator=g).to(dtype).to(device)


def _data(*shape: int, device: str = "cpu") -> Tensor:
    return torch.sigmoid(2 * _normal(*shape, device=device))


# --- corrupt ----------------------------------------------------------------------------------


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("corruption", CORRUPTIONS, ids=repr)
@pytest.mark.parametrize("shape", [(5,), (5, 1), (5, 785), (5, 1, 28, 28), (5, 3, 2), (0, 65)])
def test_corrupt_keeps_the_shape(
    shape: tuple[int, ...], corruption: corruptions.Corruption, device: str
) -> None:
    x = _data(*shape, device=device)
    before = x.clone()
    one = dvae_fast.corrupt(x, corruption, seed=1)
    assert one.shape == x.shape
    assert one.dtype == x.dtype
    first = dvae_fast.corrupt(x, corruption, copies=1, seed=1)
    assert first.shape == (1, *shape)
    assert torch.equal(first[0], one)
    three = dvae_fast.corrupt(x, corruption, copies=3, seed=1)
    assert three.shape == (3, *shape)
    assert torch.equal(three[0], one)
    assert torch.equal(x, before), "x is the target and must not change"
    for out in (one, first, three):
        assert out.is_contiguous()
        assert x.numel() == 0 or out.untyped_storage().data_ptr() != x.untyped_storage().data_ptr()


@pytest.mark.parametrize("device", DEVICES)
def test_corrupt_sees_an_image_as_its_pixels(device: str) -> None:
    images = _data(5, 1, 28, 28, device=device)
    rate = torch.rand(1, 28, 28, device=device)
    for corruption in (corruptions.Masking(rate), corruptions.Masking(rate.flatten())):
        as_images = dvae_fast.corrupt(images, corruption, copies=3, seed=1)
        as_rows = dvae_fast.corrupt(images.flatten(1), corruption, copies=3, seed=1)
        assert torch.equal(as_images.flatten(2), as_rows)


@pytest.mark.parametrize("device", DEVICES)
def test_corrupt_transposed_images(device: str) -> None:
    """A channels-last or transposed batch gives what its contiguous twin gives."""
    images = _data(5, 3, 4, 6, device=device)
    for twin in (
        images.to(memory_format=torch.channels_last),
        images.transpose(0, 3).contiguous().transpose(0, 3),
    ):
        for corruption in CORRUPTIONS:
            a = dvae_fast.corrupt(twin, corruption, copies=2, seed=1)
            assert torch.equal(a, dvae_fast.corrupt(images, corruption, copies=2, seed=1))


@pytest.mark.parametrize("device", DEVICES)
def test_corruption_parameters_of_either_layout(device: str) -> None:
    """A number, one element and a tensor per pixel of the same value are the same corruption."""
    x = _data(5, D, device=device)
    full, one = torch.full((D,), 0.25), torch.full((1,), 0.25)
    for make in (
        corruptions.Masking,
        corruptions.BitFlip,
        corruptions.SaltAndPepper,
        corruptions.AdditiveGaussian,
    ):
        expected = dvae_fast.corrupt(x, make(0.25), seed=1)
        assert torch.equal(dvae_fast.corrupt(x, make(one), seed=1), expected)
        assert torch.equal(dvae_fast.corrupt(x, make(full), seed=1), expected)
        assert torch.equal(dvae_fast.corrupt(x, make(full.double()), seed=1), expected)
    expected = dvae_fast.corrupt(x, corruptions.SaltAndPepper(0.25, 0.25), seed=1)
    for rate in (0.25, one, full):
        for salt in (0.25, one, full):
            out = dvae_fast.corrupt(x, corruptions.SaltAndPepper(rate, salt), seed=1)
            assert torch.equal(out, expected), f"rate {rate}, salt {salt}"
    released = dvae_fast.corrupt(x, corruptions.SaltAndPepper.as_released(0.25), seed=1)
    assert torch.equal(released, expected)


def test_corruption_objects() -> None:
    std = torch.tensor([0.5, 1.0], requires_grad=True)
    gaussian = corruptions.AdditiveGaussian(std)
    assert gaussian.std is std
    assert repr(corruptions.Masking(0.25)) == "Masking(0.25)"
    assert repr(corruptions.SaltAndPepper(0.5)) == "SaltAndPepper(0.5, salt=0.5)"
    assert repr(corruptions.Identity()) == "Identity()"
    assert "tensor (2,)" in repr(gaussian)
    for name in corruptions.CORRUPTIONS:
        made = corruptions.make_corruption(name, 0.25)
        assert isinstance(made, corruptions.Corruption)
        assert made.to("cpu") is made
        moved = made.to("meta")
        assert type(moved) is type(made)
        assert moved.parameter.device.type == "meta"
        assert moved.salt is None or moved.salt.device.type == "meta"
    released = corruptions.make_corruption("salt_and_pepper_released", 0.25)
    assert released.salt is not None
    assert float(released.salt) == 0.25


# --- latents ----------------------------------------------------------------------------------


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("k", [1, 2, 50])
@pytest.mark.parametrize("leading", [(), (M,), (M, 4)])
def test_sample_latent_shapes(
    leading: tuple[int, ...], k: int, dtype: torch.dtype, device: str
) -> None:
    mean, log_var = (_normal(*leading, B, Z, device=device, dtype=dtype) for _ in range(2))
    z, ratio = dvae_fast.sample_latent(mean, log_var, k, seed=1)
    assert z.shape == (*leading, B, k, Z)
    assert ratio.shape == (*leading, B, k)
    assert z.dtype == dtype
    assert ratio.dtype == accumulation_dtype(dtype)
    assert z.is_contiguous()
    assert ratio.is_contiguous()
    again = dvae_fast.latent_log_ratio(z, mean, log_var)
    assert again.shape == ratio.shape
    assert again.dtype == ratio.dtype


@pytest.mark.parametrize("device", DEVICES)
def test_latents_of_leading_dimensions_are_those_of_copies(device: str) -> None:
    mean, log_var = _normal(2, 4, B, Z, device=device), _normal(2, 4, B, Z, device=device)
    z, ratio = dvae_fast.sample_latent(mean, log_var, K, seed=1)
    flat_z, flat_ratio = dvae_fast.sample_latent(mean.flatten(0, 1), log_var.flatten(0, 1), K, 1)
    assert torch.equal(z.flatten(0, 1), flat_z)
    assert torch.equal(ratio.flatten(0, 1), flat_ratio)


@pytest.mark.parametrize("device", DEVICES)
def test_chunked_encoder_output(device: str) -> None:
    """mean, log_var = h.chunk(2, -1): rows apart in memory."""
    h = _normal(M, B, 2 * Z, device=device)
    mean, log_var = h.chunk(2, -1)
    z, ratio = dvae_fast.sample_latent(mean, log_var, K, seed=1)
    plain_z, plain_ratio = dvae_fast.sample_latent(mean.contiguous(), log_var.contiguous(), K, 1)
    assert torch.equal(z, plain_z)
    assert torch.equal(ratio, plain_ratio)
    torch.testing.assert_close(dvae_fast.latent_log_ratio(z, mean, log_var), ratio)


@pytest.mark.parametrize("device", DEVICES)
def test_latent_log_ratio_takes_a_posterior_of_lower_precision(device: str) -> None:
    """Under autocast the encoder gives bfloat16 and the sample is float32."""
    z = _normal(B, K, Z, device=device)
    mean, log_var = (_normal(B, Z, device=device, dtype=torch.bfloat16) for _ in range(2))
    out = dvae_fast.latent_log_ratio(z, mean, log_var)
    assert torch.equal(out, dvae_fast.latent_log_ratio(z, mean.float(), log_var.float()))


def _mixture(m: int, device: str, dtype: torch.dtype = torch.float64) -> tuple[Tensor, ...]:
    """z (B, K, Z), mean and log_var (M, B, Z)."""
    shapes = ((B, K, Z), (m, B, Z), (m, B, Z))
    z, mean, log_var = (_normal(*s, device=device, dtype=dtype) for s in shapes)
    return z, mean, 0.5 * log_var.flip(-1)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("m", [1, 4, 50])
def test_mixture_log_ratio_is_that_of_torchs_mixture(m: int, device: str) -> None:
    """An oracle that shares nothing with this package."""
    z, mean, log_var = _mixture(m, device)
    d = torch.distributions
    components = d.Independent(
        d.Normal(mean.transpose(0, 1), torch.exp(0.5 * log_var).transpose(0, 1)), 1
    )
    mixing = d.Categorical(logits=torch.zeros(B, m, device=device, dtype=z.dtype))
    mixture = d.MixtureSameFamily(mixing, components)
    log_q = mixture.log_prob(z.transpose(0, 1)).transpose(0, 1)
    log_p = d.Normal(0.0, 1.0).log_prob(z).sum(-1)
    torch.testing.assert_close(dvae_fast.mixture_log_ratio(z, mean, log_var), log_p - log_q)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("z", [1, 63, 64, 65])
def test_mixture_of_one_component_is_latent_log_ratio(
    z: int, dtype: torch.dtype, device: str
) -> None:
    mean, log_var = (_normal(B, z, device=device, dtype=dtype) for _ in range(2))
    sample = _normal(B, K, z, device=device, dtype=dtype)
    leaves = [t.requires_grad_() for t in (sample, mean, log_var)]
    upstream = _normal(B, K, device=device, dtype=dtype)
    one = dvae_fast.mixture_log_ratio(sample, mean[None], log_var[None])
    other = dvae_fast.latent_log_ratio(sample, mean, log_var)
    torch.testing.assert_close(one, other)
    for a, b in zip(
        torch.autograd.grad(one, leaves, upstream),
        torch.autograd.grad(other, leaves, upstream),
        strict=True,
    ):
        torch.testing.assert_close(a, b)
    # The same component M times is that component.
    several = dvae_fast.mixture_log_ratio(sample, mean.expand(M, B, z), log_var.expand(M, B, z))
    torch.testing.assert_close(several, other)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("leading", [(6,), (2, 4), (0,)])
def test_every_leading_index_has_the_same_mixture(leading: tuple[int, ...], device: str) -> None:
    _, mean, log_var = _mixture(M, device)
    z = _normal(*leading, B, K, Z, device=device, dtype=mean.dtype)
    out = dvae_fast.mixture_log_ratio(z, mean, log_var)
    assert out.shape == (*leading, B, K)
    assert out.is_contiguous()
    for a, b in zip(out.flatten(0, -3), z.flatten(0, -4), strict=True):
        torch.testing.assert_close(a, dvae_fast.mixture_log_ratio(b, mean, log_var))


@pytest.mark.parametrize("device", DEVICES)
def test_mixture_does_not_depend_on_the_order_of_its_components(device: str) -> None:
    z, mean, log_var = _mixture(4, device)
    out = dvae_fast.mixture_log_ratio(z, mean, log_var)
    torch.testing.assert_close(dvae_fast.mixture_log_ratio(z, mean.flip(0), log_var.flip(0)), out)


@pytest.mark.parametrize("device", DEVICES)
def test_mixture_log_ratio_takes_a_posterior_of_lower_precision(device: str) -> None:
    z = _normal(B, K, Z, device=device)
    mean, log_var = (_normal(M, B, Z, device=device, dtype=torch.bfloat16) for _ in range(2))
    out = dvae_fast.mixture_log_ratio(z, mean, log_var)
    assert torch.equal(out, dvae_fast.mixture_log_ratio(z, mean.float(), log_var.float()))


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_far_components_keep_their_density(dtype: torch.dtype, device: str) -> None:
    """Log-densities of −1e5 nats, which no exponential holds, and one 1e5 nats above another."""
    m, z = 3, 50
    mean = torch.full((m, B, z), math.sqrt(4000.0), dtype=dtype, device=device).requires_grad_()
    log_var = torch.zeros(m, B, z, dtype=dtype, device=device)
    origin = torch.zeros(B, K, z, dtype=dtype, device=device)
    out = dvae_fast.mixture_log_ratio(origin, mean, log_var)
    torch.testing.assert_close(out, torch.full_like(out, 1e5), rtol=2e-6, atol=0)
    (grad,) = torch.autograd.grad(out.sum(), mean)
    expected = torch.full_like(grad, K * math.sqrt(4000.0) / m)
    torch.testing.assert_close(grad, expected, rtol=4e-6, atol=0)
    # One of them at z: log p − log (1/M).
    near = mean.detach().clone()
    near[1] = 0
    near.requires_grad_()
    out = dvae_fast.mixture_log_ratio(origin, near, log_var)
    torch.testing.assert_close(out, torch.full_like(out, math.log(m)), rtol=2e-6, atol=0)
    (grad,) = torch.autograd.grad(out.sum(), near)
    assert bool((grad == 0).all())


# --- log-weights and the loss -----------------------------------------------------------------


def _params(leading: tuple[int, ...], k: int, likelihood: str, device: str) -> Any:
    mean = _normal(*leading, k, D, device=device)
    if len(likelihoods.FUSED[likelihood].params) == 1:
        return mean
    return mean, _data(*leading, k, D, device=device) + 0.5


def _select(params: Any, *index: int) -> Any:
    return tuple(p[index] for p in params) if isinstance(params, tuple) else params[index]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("likelihood", ["bernoulli", "gaussian"])
@pytest.mark.parametrize("k", [1, K, 50])
@pytest.mark.parametrize("leading", [(), (M,), (M, 4)])
def test_log_weights_shapes(leading: tuple[int, ...], k: int, likelihood: str, device: str) -> None:
    params = _params((*leading, B), k, likelihood, device)
    x, log_ratio = _data(B, D, device=device), _normal(*leading, B, k, device=device)
    log_w = dvae_fast.log_weights(params, x, log_ratio, likelihood)
    assert log_w.shape == (*leading, B, k)
    bound = dvae_fast.logmeanexp(log_w)
    assert bound.shape == (*leading, B)
    loss = dvae_fast.iwae_loss(params, x, log_ratio, likelihood, reduction="none")
    assert loss.shape == (*leading, B)
    torch.testing.assert_close(-loss, bound)
    for reduction, expected in (("mean", loss.mean()), ("sum", loss.sum())):
        out = dvae_fast.iwae_loss(params, x, log_ratio, likelihood, reduction=reduction)
        assert out.shape == ()
        torch.testing.assert_close(out, expected)
    # x written out for every leading index is the same.
    spread = x.expand(*leading, B, D)
    for every in (spread, spread.contiguous()):
        assert torch.equal(dvae_fast.log_weights(params, every, log_ratio, likelihood), log_w)
        torch.testing.assert_close(
            dvae_fast.iwae_loss(params, every, log_ratio, likelihood, reduction="none"), loss
        )
    if leading:
        index = tuple(n - 1 for n in leading)
        alone = dvae_fast.log_weights(_select(params, *index), x, log_ratio[index], likelihood)
        torch.testing.assert_close(log_w[index], alone)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("likelihood", ["bernoulli", "gaussian"])
def test_x_of_its_own_for_every_corruption(likelihood: str, device: str) -> None:
    params, log_ratio = _params((M, B), K, likelihood, device), _normal(M, B, K, device=device)
    x = _data(M, B, D, device=device)
    together = dvae_fast.log_weights(params, x, log_ratio, likelihood)
    for m in range(M):
        alone = dvae_fast.log_weights(_select(params, m), x[m], log_ratio[m], likelihood)
        torch.testing.assert_close(together[m], alone)


@pytest.mark.parametrize("device", DEVICES)
def test_a_scale_of_any_shape_is_its_expansion(device: str) -> None:
    mean, log_ratio = _normal(M, B, K, D, device=device), _normal(M, B, K, device=device)
    x = _data(B, D, device=device)

    def both(scale: Tensor | float) -> tuple[Tensor, Tensor]:
        return (
            dvae_fast.log_weights((mean, scale), x, log_ratio, "gaussian"),
            dvae_fast.iwae_loss((mean, scale), x, log_ratio, "gaussian", reduction="none"),
        )

    for shape in ((), (1,), (D,), (1, D), (K, 1), (K, D), (B, 1, 1), (M, 1, 1, 1), (1, 1, 1, 1)):
        scale = _data(*shape, device=device) + 0.5
        for a, b in zip(both(scale), both(scale.expand(M, B, K, D).contiguous()), strict=True):
            torch.testing.assert_close(a, b)
    for a, b in zip(both(0.5), both(torch.tensor(0.5, device=device)), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("likelihood", ["bernoulli", "gaussian"])
def test_dtypes_of_log_weights(likelihood: str, dtype: torch.dtype, device: str) -> None:
    """x and log_ratio come in the dtype of sums or any other; results are sums."""
    sums = accumulation_dtype(dtype)
    mean, log_ratio = _normal(B, K, D, device=device).to(dtype), _normal(B, K, device=device)
    params: Any = mean if likelihood == "bernoulli" else (mean, _data(D, device=device) + 0.5)
    x = _data(B, D, device=device).round()
    expected = dvae_fast.log_weights(params, x.to(sums), log_ratio.to(sums), likelihood)
    assert expected.dtype == sums
    for other in DTYPES:
        out = dvae_fast.log_weights(params, x.to(other), log_ratio.to(sums), likelihood)
        assert out.dtype == sums
        assert torch.equal(out, expected), f"x in {other}"
    loss = dvae_fast.iwae_loss(params, x, log_ratio, likelihood)
    assert loss.dtype == sums
    assert dvae_fast.logmeanexp(expected).dtype == sums


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_logmeanexp_dtypes_and_dimensions(dtype: torch.dtype, device: str) -> None:
    log_w = _normal(M, B, K, device=device).to(dtype)
    for dim in range(-3, 3):
        out = dvae_fast.logmeanexp(log_w, dim)
        assert out.dtype == accumulation_dtype(dtype)
        expected = torch.logsumexp(log_w.to(out.dtype), dim) - math.log(log_w.shape[dim])
        torch.testing.assert_close(out, expected)
    assert dvae_fast.logmeanexp(log_w[0, 0]).shape == ()
    # K = 1: the log-weight itself, to the last bit.
    assert torch.equal(dvae_fast.logmeanexp(log_w[..., :1]), log_w[..., 0].to(out.dtype))


@pytest.mark.parametrize("device", DEVICES)
def test_bound_is_not_the_weighted_mean_of_log_weights(device: str) -> None:
    """log mean w lies between mean log w and Σ w̃ log w, which overstates it."""
    log_w = 3 * _normal(B, 50, device=device)
    bound = dvae_fast.logmeanexp(log_w)
    weights = torch.softmax(log_w, -1)
    assert bool((log_w.mean(-1) < bound).all())
    assert bool((bound < (weights * log_w).sum(-1)).all())


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("likelihood", ["bernoulli", "gaussian"])
@pytest.mark.parametrize("leading", [(), (M,), (M, 4)])
def test_linear_log_weights_shapes(leading: tuple[int, ...], likelihood: str, device: str) -> None:
    hidden, weight = _normal(*leading, B, K, H, device=device), _normal(D, H, device=device)
    x, log_ratio = _data(B, D, device=device), _normal(*leading, B, K, device=device)
    scale: Tensor | None = None if likelihood == "bernoulli" else _data(D, device=device) + 0.5
    for bias in (None, _normal(D, device=device)):
        out = dvae_fast.linear_log_weights(
            hidden, weight, bias, x, log_ratio, likelihood, scale=scale
        )
        assert out.shape == (*leading, B, K)
        layer = torch.nn.functional.linear(hidden, weight, bias)
        params = layer if scale is None else (layer, scale)
        plain = dvae_fast.log_weights(params, x, log_ratio, likelihood)
        torch.testing.assert_close(out, plain, rtol=1e-5, atol=1e-4)
        every = x.expand(*leading, B, D)
        again = dvae_fast.linear_log_weights(
            hidden, weight, bias, every, log_ratio, likelihood, scale=scale
        )
        torch.testing.assert_close(again, out)


@pytest.mark.parametrize("device", DEVICES)
def test_linear_log_weights_with_a_number_as_scale(device: str) -> None:
    hidden, weight = _normal(B, K, H, device=device), _normal(D, H, device=device)
    x, log_ratio = _data(B, D, device=device), _normal(B, K, device=device)
    a, b = (
        dvae_fast.linear_log_weights(hidden, weight, None, x, log_ratio, "gaussian", scale=s)
        for s in (0.5, torch.full((D,), 0.5, device=device))
    )
    torch.testing.assert_close(a, b)


@pytest.mark.parametrize("device", DEVICES)
def test_empty_batch(device: str) -> None:
    x = _data(0, D, device=device)
    noisy = dvae_fast.corrupt(x, corruptions.Masking(0.5), copies=M)
    assert noisy.shape == (M, 0, D)
    mean = _normal(M, 0, Z, device=device)
    z, ratio = dvae_fast.sample_latent(mean, mean, K)
    assert z.shape == (M, 0, K, Z)
    assert dvae_fast.latent_log_ratio(z, mean, mean).shape == (M, 0, K)
    assert dvae_fast.mixture_log_ratio(z, mean, mean).shape == (M, 0, K)
    logits = _normal(M, 0, K, D, device=device)
    log_w = dvae_fast.log_weights(logits, x, ratio)
    assert log_w.shape == (M, 0, K)
    assert dvae_fast.logmeanexp(log_w).shape == (M, 0)
    assert dvae_fast.iwae_loss(logits, x, ratio, reduction="none").shape == (M, 0)
    assert float(dvae_fast.iwae_loss(logits, x, ratio, reduction="sum")) == 0
    # As torch's losses: the mean of nothing is NaN.
    assert math.isnan(float(dvae_fast.iwae_loss(logits, x, ratio)))
    weight = _normal(D, H, device=device)
    hidden = _normal(M, 0, K, H, device=device)
    assert dvae_fast.linear_log_weights(hidden, weight, None, x, ratio).shape == (M, 0, K)


# --- likelihood objects -----------------------------------------------------------------------


@pytest.mark.parametrize("device", DEVICES)
def test_likelihood_objects_are_what_their_names_stand_for(device: str) -> None:
    x, log_ratio = _data(B, D, device=device), _normal(B, K, device=device)
    for name, likelihood in likelihoods.FUSED.items():
        params = _params((B,), K, name, device)
        if name == "negative_binomial":  # means are positive
            params = (params[0].abs(), params[1])
        elif name == "poisson":
            params = params.abs()
        elif name == "bernoulli_probabilities":
            params = torch.sigmoid(params)
        assert likelihoods.get_likelihood(name) is likelihood
        a = dvae_fast.log_weights(params, x, log_ratio, likelihood)
        assert torch.equal(a, dvae_fast.log_weights(params, x, log_ratio, name))
        assert len(likelihood.params) == (len(params) if isinstance(params, tuple) else 1)
        mean, draw = likelihood.mean(params), likelihood.sample(params)
        assert mean.shape == draw.shape == (B, K, D)
    logits = _normal(B, K, D, device=device)
    assert torch.equal(likelihoods.Bernoulli().mean(logits), torch.sigmoid(logits))
    assert set(likelihoods.Bernoulli().sample(logits).unique().tolist()) <= {0.0, 1.0}


@pytest.mark.parametrize("device", DEVICES)
def test_a_list_of_parameters_is_a_tuple(device: str) -> None:
    x, log_ratio = _data(B, D, device=device), _normal(B, K, device=device)
    params: Any = _params((B,), K, "gaussian", device)
    expected = dvae_fast.log_weights(params, x, log_ratio, "gaussian")
    as_list: Any = list(params)
    assert torch.equal(dvae_fast.log_weights(as_list, x, log_ratio, "gaussian"), expected)
