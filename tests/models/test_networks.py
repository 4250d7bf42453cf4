"""Encoders and decoders: shapes, formulas, where they start, and wrong arguments."""

from __future__ import annotations

import math

import pytest
import torch
from refusals import refusals
from torch import nn

from dvae_fast import models
from dvae_fast.models import MLP, Decoder, GaussianEncoder

D, Z, HIDDEN = 9, 3, (7, 5)


@pytest.mark.parametrize("leading", [(), (4,), (2, 4), (2, 4, 6)])
@pytest.mark.parametrize("hidden", [(), (7,), HIDDEN])
def test_shapes(hidden: tuple[int, ...], leading: tuple[int, ...]) -> None:
    mean, log_var = GaussianEncoder(D, hidden, Z)(torch.rand(*leading, D))
    assert mean.shape == log_var.shape == (*leading, Z)
    z = torch.randn(*leading, Z)
    assert Decoder(Z, hidden, D)(z).shape == (*leading, D)
    mean, scale = Decoder(Z, hidden, D, "gaussian")(z)
    assert mean.shape == scale.shape == (*leading, D)
    assert mean.is_contiguous()
    assert scale.is_contiguous()


def test_mlp_is_linear_layers_each_with_an_activation() -> None:
    mlp = MLP((D, *HIDDEN), "tanh")
    x = torch.rand(4, D)
    first, second = (layer for layer in mlp if isinstance(layer, nn.Linear))
    expected = torch.tanh(torch.tanh(x @ first.weight.T + first.bias) @ second.weight.T)
    torch.testing.assert_close(mlp(x), expected)  # the biases start at zero
    assert len(mlp) == 4
    assert torch.equal(MLP((D,))(x), x)


@pytest.mark.parametrize("name", models.ACTIVATIONS)
def test_every_activation_has_a_gradient(name: str) -> None:
    mlp = MLP((D, *HIDDEN), name)
    mlp(torch.randn(4, D)).square().sum().backward()
    for parameter in mlp.parameters():
        assert parameter.grad is not None
        assert parameter.grad.abs().sum() > 0


def test_encoder_halves_are_mean_then_log_variance() -> None:
    encoder = GaussianEncoder(D, HIDDEN, Z)
    with torch.no_grad():
        encoder.output.weight.zero_()
        encoder.output.bias.copy_(torch.arange(2.0 * Z))
    mean, log_var = encoder(torch.rand(4, D))
    assert torch.equal(mean[2], torch.arange(Z).float())
    assert torch.equal(log_var[2], torch.arange(Z, 2 * Z).float())


def test_decoder_is_its_output_of_its_trunk() -> None:
    decoder = Decoder(Z, HIDDEN, D)
    z = torch.randn(4, Z)
    assert isinstance(decoder.output, nn.Linear)
    assert torch.equal(decoder(z), decoder.output(decoder.trunk(z)))


def test_gaussian_decoder_formula() -> None:
    decoder = Decoder(Z, HIDDEN, D, "gaussian")
    z = 10 * torch.randn(50, Z)
    mean, scale = decoder(z)
    hidden = decoder.trunk(z)
    torch.testing.assert_close(mean, 1 / (1 + torch.exp(-decoder.mean(hidden))))
    torch.testing.assert_close(scale, torch.log1p(torch.exp(decoder.scale(hidden))) + 1e-4)
    with torch.no_grad():
        decoder.scale.bias.fill_(-1000.0)
        assert float(decoder(z)[1].min()) == pytest.approx(1e-4)


@pytest.mark.parametrize("layer", ["output", "mean"])
def test_decoder_starts_at_the_data_mean(layer: str) -> None:
    data_mean = torch.linspace(0, 1, D)
    likelihood = "bernoulli" if layer == "output" else "gaussian"
    decoder = Decoder(Z, HIDDEN, D, likelihood, "softplus", data_mean)
    start = torch.sigmoid(decoder.get_submodule(layer).bias)
    torch.testing.assert_close(start[1:-1], data_mean[1:-1])
    # Constant pixels start near 0 and 1, at finite logits.
    assert 0 < start[0] < 2e-3
    assert 0 < 1 - start[-1] < 2e-3
    without = Decoder(Z, HIDDEN, D, likelihood).get_submodule(layer).bias
    assert torch.equal(without, torch.zeros(D))


def test_start_of_the_weights() -> None:
    weight = next(GaussianEncoder(400, (200,), 50).parameters()).detach()
    assert weight.shape == (200, 400)
    limit = math.sqrt(6 / (400 + 200))  # Glorot-uniform
    assert float(weight.abs().max()) <= limit
    assert float(weight.std()) == pytest.approx(limit / math.sqrt(3), rel=0.02)


test_wrong_arguments = refusals(
    [
        (
            lambda: MLP((3, 4), "swish"),
            ValueError,
            "activation must be one of softplus, tanh, relu, .*; got 'swish'",
        ),
        (lambda: MLP(()), ValueError, "sizes must hold at least one size, got none"),
        (lambda: MLP((3, 0)), ValueError, r"sizes\[1\] must be >= 1, got 0"),
        (lambda: MLP((3, 2.5)), TypeError, r"sizes\[1\] must be an int, got float"),
        (lambda: MLP(5), TypeError, "sizes must be a sequence of ints, got 5"),
        (lambda: GaussianEncoder(D, (), 0), ValueError, "latent must be >= 1, got 0"),
        (lambda: Decoder(Z, (), -1), ValueError, "data_size must be >= 1, got -1"),
        (lambda: Decoder(Z, (), True, "gaussian"), TypeError, "data_size must be an int, got bool"),
        (
            lambda: Decoder(Z, (), D, "bernoulli", "relu", torch.rand(D - 1)),
            ValueError,
            rf"data_mean must have shape \(D,\) = \({D},\), got \({D - 1},\)",
        ),
        (
            lambda: Decoder(Z, (), 2, "gaussian", "relu", torch.tensor([0.5, 1.5])),
            ValueError,
            r"data_mean must lie in \[0, 1\], got values from 0.5 to 1.5",
        ),
        (
            lambda: Decoder(Z, (), 2, "bernoulli", "relu", torch.tensor([0.5, math.nan])),
            ValueError,
            r"data_mean must lie in \[0, 1\], got values from nan",
        ),
        (
            lambda: Decoder(Z, (), 2, "bernoulli", "relu", torch.tensor([0, 1])),
            TypeError,
            "data_mean must be a floating-point tensor or None, got torch.int64",
        ),
        (
            lambda: Decoder(Z, (), 2, "bernoulli", "relu", [0.5, 0.5]),
            TypeError,
            "data_mean must be a floating-point tensor or None, got list",
        ),
    ]
)
