"""Under torch.autocast: the documented dtypes, values near float32's, float64 left alone."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from operator_cases import DEVICES
from torch import Tensor

import dvae_fast
from dvae_fast import corruptions

M, B, K, Z, D, H = 2, 5, 7, 4, 65, 33

each_device = pytest.mark.parametrize("device", DEVICES)
each_dtype = pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
each_likelihood = pytest.mark.parametrize("likelihood", ["bernoulli", "gaussian"])


def _normal(*shape: int, device: str, dtype: torch.dtype = torch.float32) -> Tensor:
    g = torch.Generator().manual_seed(sum(shape) + len(shape))
    return torch.randn(shape, generator=g).to(dtype).to(device)


def _data(*shape: int, device: str) -> Tensor:
    return torch.sigmoid(2 * _normal(*shape, device=device)).round()


def _relative_error(got: Tensor, expected: Tensor, dim: int | None = None) -> Tensor:
    """‖got − expected‖/‖expected‖: an elementwise tolerance lets all of a small tensor pass."""
    norm = torch.linalg.vector_norm
    return norm(got - expected, dim=dim) / norm(expected, dim=dim)


class Model(torch.nn.Module):
    """Encoder, latents, decoder and loss, as a training step has them."""

    def __init__(self, likelihood: str, fused_layer: bool) -> None:
        super().__init__()
        self.likelihood, self.fused_layer = likelihood, fused_layer
        self.encoder = torch.nn.Linear(D, 2 * Z)
        self.hidden = torch.nn.Linear(Z, H)
        self.decoder = torch.nn.Linear(H, D)
        self.seen: dict[str, torch.dtype] = {}

    def forward(self, x: Tensor) -> Tensor:
        noisy = dvae_fast.corrupt(x, corruptions.Masking(0.2), M, seed=1)
        mean, log_var = self.encoder(noisy).chunk(2, -1)
        z, ratio = dvae_fast.sample_latent(mean, log_var, K, seed=2)
        hidden = torch.tanh(self.hidden(z))
        scale = None if self.likelihood == "bernoulli" else 0.8
        if self.fused_layer:
            log_w = dvae_fast.linear_log_weights(
                hidden,
                self.decoder.weight,
                self.decoder.bias,
                x,
                ratio,
                self.likelihood,
                scale=scale,
            )
            loss = -dvae_fast.logmeanexp(log_w).mean()
        else:
            out = self.decoder(hidden)
            log_w = dvae_fast.log_weights(
                out if scale is None else (out, scale), x, ratio, self.likelihood
            )
            params: Any = out if scale is None else (out, scale)
            loss = dvae_fast.iwae_loss(params, x, ratio, self.likelihood)
        self.seen = {
            "noisy": noisy.dtype, "mean": mean.dtype, "z": z.dtype, "ratio": ratio.dtype,
            "hidden": hidden.dtype, "log_w": log_w.dtype, "loss": loss.dtype,
        }  # fmt: skip
        return loss


@each_device
@each_dtype
@each_likelihood
@pytest.mark.parametrize("fused_layer", [False, True])
def test_training_step(fused_layer: bool, likelihood: str, dtype: torch.dtype, device: str) -> None:
    torch.manual_seed(0)
    model = Model(likelihood, fused_layer).to(device)
    x = _data(B, D, device=device)
    loss = model(x)
    loss.backward()
    plain = [p.grad.clone() for p in model.parameters() if p.grad is not None]
    model.zero_grad()
    with torch.autocast(device, dtype):
        mixed = model(x)
    mixed.backward()
    assert model.seen == {
        "noisy": torch.float32, "mean": dtype, "z": torch.float32, "ratio": torch.float32,
        "hidden": dtype, "log_w": torch.float32, "loss": torch.float32,
    }  # fmt: skip
    eps = torch.finfo(dtype).eps
    torch.testing.assert_close(mixed, loss, rtol=4 * eps, atol=0)
    grads = [p.grad for p in model.parameters()]
    assert len(plain) == len(grads) == 6
    for (name, _), g, e in zip(model.named_parameters(), grads, plain, strict=True):
        assert g is not None
        assert g.dtype == torch.float32
        # Under 0.8 ε is seen; half a gradient would be 64 ε of bfloat16 off.
        error = float(_relative_error(g, e))
        assert error < 4 * eps, f"gradient of {name} is {error / eps:.1f} eps off"


@each_device
@each_dtype
def test_dtypes_of_each_function(dtype: torch.dtype, device: str) -> None:
    mean, z = _normal(B, Z, device=device, dtype=dtype), _normal(B, K, Z, device=device)
    logits = _normal(B, K, D, device=device, dtype=dtype)
    log_ratio = _normal(B, K, device=device)
    x = _data(B, D, device=device)
    with torch.autocast(device, dtype):
        for given in (mean, mean.float()):
            sample, ratio = dvae_fast.sample_latent(given, given, K, seed=1)
            assert sample.dtype == torch.float32
            assert ratio.dtype == torch.float32
            assert dvae_fast.latent_log_ratio(z, given, given).dtype == torch.float32
            components = given.expand(M, B, Z)
            mixed = dvae_fast.mixture_log_ratio(z, components, components)
            assert mixed.dtype == torch.float32
        for given in (logits, logits.float()):
            assert dvae_fast.log_weights(given, x, log_ratio).dtype == torch.float32
            assert dvae_fast.iwae_loss(given, x, log_ratio).dtype == torch.float32
        assert dvae_fast.logmeanexp(log_ratio).dtype == torch.float32
        assert dvae_fast.corrupt(x, corruptions.Masking(0.5)).dtype == torch.float32
        assert dvae_fast.corrupt(x.to(dtype), corruptions.Masking(0.5)).dtype == dtype


@each_device
@each_dtype
def test_latents_are_those_of_float32(dtype: torch.dtype, device: str) -> None:
    """Sampling itself loses nothing under autocast."""
    mean, log_var = (_normal(B, Z, device=device, dtype=dtype) for _ in range(2))
    expected = dvae_fast.sample_latent(mean.float(), log_var.float(), K, seed=1)
    with torch.autocast(device, dtype):
        got = dvae_fast.sample_latent(mean, log_var, K, seed=1)
    for a, b in zip(got, expected, strict=True):
        assert torch.equal(a, b)


@each_device
@each_dtype
@each_likelihood
def test_log_weights_are_those_outside_autocast(
    likelihood: str, dtype: torch.dtype, device: str
) -> None:
    """The same tensors give the same bits: nothing here is cast down."""
    for given in (_normal(B, K, D, device=device), _normal(B, K, D, device=device, dtype=dtype)):
        params: Any = given if likelihood == "bernoulli" else (given, 0.7)
        x, log_ratio = _data(B, D, device=device), _normal(B, K, device=device)
        log_w = dvae_fast.log_weights(params, x, log_ratio, likelihood)
        loss = dvae_fast.iwae_loss(params, x, log_ratio, likelihood)
        with torch.autocast(device, dtype):
            assert torch.equal(dvae_fast.log_weights(params, x, log_ratio, likelihood), log_w)
            assert torch.equal(dvae_fast.iwae_loss(params, x, log_ratio, likelihood), loss)
            assert torch.equal(dvae_fast.logmeanexp(log_w), dvae_fast.logmeanexp(log_w.clone()))


@each_device
@each_dtype
@each_likelihood
def test_linear_log_weights_runs_in_autocasts_dtype(
    likelihood: str, dtype: torch.dtype, device: str
) -> None:
    hidden, weight = _normal(B, K, H, device=device), _normal(D, H, device=device) * H**-0.5
    bias, x, log_ratio = (
        _normal(D, device=device), _data(B, D, device=device), _normal(B, K, device=device)
    )  # fmt: skip
    scale = None if likelihood == "bernoulli" else 0.7
    with torch.autocast(device, dtype):
        out = dvae_fast.linear_log_weights(
            hidden, weight, bias, x, log_ratio, likelihood, scale=scale
        )
    cast = dvae_fast.linear_log_weights(
        hidden.to(dtype), weight.to(dtype), bias.to(dtype), x, log_ratio, likelihood, scale=scale
    )
    assert torch.equal(out, cast)
    plain = dvae_fast.linear_log_weights(
        hidden, weight, bias, x, log_ratio, likelihood, scale=scale
    )
    assert not torch.equal(out, plain), "the product did not run in autocast's dtype"
    torch.testing.assert_close(out, plain, rtol=16 * torch.finfo(dtype).eps, atol=0.5)


@each_device
@each_dtype
@each_likelihood
def test_float64_is_left_alone(likelihood: str, dtype: torch.dtype, device: str) -> None:
    shapes = [(B, Z), (B, Z), (B, K, H), (D, H), (D,)]
    mean, log_var, hidden, weight, bias = (_normal(*s, device=device).double() for s in shapes)
    x = _data(B, D, device=device).double()
    scale = None if likelihood == "bernoulli" else 0.7

    def run() -> tuple[Tensor, ...]:
        z, ratio = dvae_fast.sample_latent(mean, log_var, K, seed=1)
        log_w = dvae_fast.linear_log_weights(
            hidden, weight, bias, x, ratio, likelihood, scale=scale
        )
        out = torch.einsum("bkh,dh->bkd", hidden, weight)
        params: Any = out if scale is None else (out, scale)
        return (
            z, ratio, log_w, dvae_fast.logmeanexp(log_w),
            dvae_fast.latent_log_ratio(z, mean, log_var),
            dvae_fast.mixture_log_ratio(z, mean[None], log_var[None]),
            dvae_fast.log_weights(params, x, ratio, likelihood),
            dvae_fast.iwae_loss(params, x, ratio, likelihood),
            dvae_fast.corrupt(x, corruptions.AdditiveGaussian(0.5), seed=1),
        )  # fmt: skip

    expected = run()
    with torch.autocast(device, dtype):
        got = run()
    for i, (a, b) in enumerate(zip(got, expected, strict=True)):
        assert a.dtype == torch.float64, f"result {i}"
        assert torch.equal(a, b), f"result {i}"


@each_device
@each_dtype
def test_gradients_in_autocast_are_those_outside(dtype: torch.dtype, device: str) -> None:
    """A backward pass inside the region, where matrix products are cast, is not cast."""
    logits = _normal(B, K, D, device=device).requires_grad_()
    x = _data(B, D, device=device).requires_grad_()
    log_ratio = _normal(B, K, device=device)
    mean = _normal(B, Z, device=device).requires_grad_()

    def grads() -> tuple[Tensor, ...]:
        bound = dvae_fast.logmeanexp(dvae_fast.log_weights(logits, x, log_ratio)).sum()
        z, ratio = dvae_fast.sample_latent(mean, mean, K, seed=1)
        loss = dvae_fast.iwae_loss(logits, x.detach(), ratio)
        return torch.autograd.grad(bound + loss + z.sum(), (logits, x, mean))

    expected = grads()
    with torch.autocast(device, dtype):
        got = grads()
    for name, a, b in zip(("logits", "x", "mean"), got, expected, strict=True):
        # By row: samples of small weight have small gradients. A cast would show as 1e-3 or more.
        error = float(_relative_error(a, b, dim=-1).max())
        assert error < 1e-5, f"gradient of {name} is {error:.1e} off"
