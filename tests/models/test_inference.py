"""Recurrent and convolutional encoders: formulas, shapes, gradients, and that they learn."""

from __future__ import annotations

import json

import pytest
import torch
from refusals import refusals
from torch import Tensor, nn

from dvae_fast.corruptions import SaltAndPepper
from dvae_fast.data import load_dataset
from dvae_fast.models import (
    ENCODERS,
    MODELS,
    Autoencoder,
    ConvEncoder,
    GRUEncoder,
    make_encoder,
    make_model,
)
from dvae_fast.training import TrainConfig, default_config

M, B, K, Z, HIDDEN = 2, 8, 3, 4, (7, 6)
SHAPE = (9, 5)
D = SHAPE[0] * SHAPE[1]
SEEING = [name for name in ENCODERS if name != "mlp"]


def _encoder(inference: str) -> nn.Module:
    return make_encoder(inference, D, SHAPE, HIDDEN, Z, "tanh").double()


def _gru(layer: nn.GRU, steps: Tensor) -> Tensor:
    """The states of gated recurrent units, (N, steps, units), in torch's variant: arXiv 1406.1078
    with the reset gate outside the recurrent product."""
    state = steps.new_zeros(len(steps), layer.hidden_size)
    states = []
    for step in steps.unbind(1):
        a = step @ layer.weight_ih_l0.T + layer.bias_ih_l0
        b = state @ layer.weight_hh_l0.T + layer.bias_hh_l0
        (ra, ua, na), (rb, ub, nb) = a.chunk(3, -1), b.chunk(3, -1)
        update = torch.sigmoid(ua + ub)
        new = torch.tanh(na + torch.sigmoid(ra + rb) * nb)
        state = (1 - update) * new + update * state
        states.append(state)
    return torch.stack(states, 1)


@pytest.mark.parametrize("pooling", ["last", "mean"])
@pytest.mark.parametrize("columns", [False, True])
def test_gru_reads_rows_and_columns(columns: bool, pooling: str) -> None:
    encoder = GRUEncoder(SHAPE, HIDDEN, Z, "tanh", columns=columns, pooling=pooling).double()
    x = torch.rand(B, D, dtype=torch.float64)
    images = x.view(B, *SHAPE)
    states = [_gru(encoder.rows, images)]
    if columns:
        assert encoder.columns is not None
        states.append(_gru(encoder.columns, images.transpose(1, 2)))
    pooled = [s[:, -1] if pooling == "last" else s.mean(1) for s in states]
    expected = encoder.output(encoder.trunk(torch.cat(pooled, 1)))
    torch.testing.assert_close(torch.cat(encoder(x), 1), expected)


def test_conv_formula() -> None:
    """Each output of the first layer is a 3 × 3 patch's product, every other pixel."""
    encoder = ConvEncoder(SHAPE, (), Z, "relu", channels=(6,)).double()
    layer = encoder.convolutions[0]
    assert isinstance(layer, nn.Conv2d)
    x = torch.rand(B, D, dtype=torch.float64)
    padded = nn.functional.pad(x.view(B, *SHAPE), (1, 1, 1, 1))
    patches = padded.unfold(1, 3, 2).unfold(2, 3, 2)  # (B, 5, 3, 3, 3)
    found = torch.relu(torch.einsum("bijkl,ckl->bcij", patches, layer.weight[:, 0]))
    assert found.shape == (B, 6, 5, 3)
    torch.testing.assert_close(torch.cat(encoder(x), 1), encoder.output(found.flatten(1)))


@pytest.mark.parametrize("leading", [(), (B,), (M, B), (M, K, B), (0,), (M, 0)])
@pytest.mark.parametrize("inference", ENCODERS)
def test_leading_dimensions(inference: str, leading: tuple[int, ...]) -> None:
    encoder = _encoder(inference)
    x = torch.rand(*leading, D, dtype=torch.float64)
    mean, log_var = encoder(x)
    assert mean.shape == log_var.shape == (*leading, Z)
    rows = x.reshape(-1, D)
    for i in range(len(rows)):
        for part, whole in zip(encoder(rows[i : i + 1]), (mean, log_var), strict=True):
            torch.testing.assert_close(part[0], whole.reshape(-1, Z)[i])


@pytest.mark.parametrize("inference", SEEING)
def test_gradients(inference: str) -> None:
    encoder = _encoder(inference)
    x = torch.rand(2, D, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(encoder, (x,), fast_mode=True)
    sum(part.square().sum() for part in encoder(x)).backward()
    for name, parameter in encoder.named_parameters():
        assert parameter.grad is not None, name
        assert float(parameter.grad.abs().sum()) > 0, name


@pytest.mark.parametrize("inference", SEEING)
def test_nan_stays_with_its_example(inference: str) -> None:
    encoder = _encoder(inference)
    x = torch.rand(B, D, dtype=torch.float64)
    clean = encoder(x)
    x[2, 4] = torch.nan
    rest = [b for b in range(B) if b != 2]
    for part, before in zip(encoder(x), clean, strict=True):
        assert bool(part[2].isnan().all())
        torch.testing.assert_close(part[rest], before[rest])


@pytest.mark.parametrize(
    "inference",
    [*SEEING[:2], *(pytest.param(name, marks=pytest.mark.slow) for name in SEEING[2:])],
)
def test_trains_on_digits(inference: str) -> None:
    """The validation bound of a DIWAE rises above that of the best model without latents."""
    data = load_dataset("digits", binarise="once")
    model = make_model(
        "diwae", data.size, 10, (40,), encoder=inference, image_shape=data.image_shape,
        corruption=SaltAndPepper(0.05), copies=M, samples=K, data_mean=data.mean,
    )  # fmt: skip
    mean = data.mean.clamp(1e-3, 1 - 1e-3)
    without = float(torch.distributions.Bernoulli(mean).log_prob(data.valid).sum(1).mean())
    before = float(model.bound(data.valid, 1).mean())
    optimiser = torch.optim.Adam(model.parameters(), 1e-2, fused=True)
    for step in range(100):
        batch = data.train[step * 100 % 1200 :][:100]
        optimiser.zero_grad()
        model.loss(batch, step).backward()
        optimiser.step()
    after = float(model.bound(data.valid, 1).mean())
    assert after > max(before, without) + 1


@pytest.mark.parametrize("inference", SEEING)
@pytest.mark.parametrize("name", MODELS)
def test_configuration_round_trip(name: str, inference: str) -> None:
    model = make_model(name, D, Z, HIDDEN, encoder=inference, image_shape=list(SHAPE), samples=K)
    config = json.loads(json.dumps(model.config()))
    assert config["encoder"] == inference
    assert config["image_shape"] == list(SHAPE)
    again = Autoencoder.from_config(config)
    assert again.config() == config
    again.load_state_dict(model.state_dict())
    x = torch.rand(B, D)
    assert torch.equal(again.loss(x, 1), model.loss(x, 1))


def test_perceptrons_are_the_default_and_need_no_shape() -> None:
    model = make_model("vae", D, Z, HIDDEN)
    assert model.options.encoder == "mlp"
    assert model.config()["encoder"] == "mlp"
    assert "image_shape" not in model.config()
    assert make_model("vae", D, Z, HIDDEN, image_shape=SHAPE).image_shape == SHAPE


def test_any_module_may_take_the_encoders_place() -> None:
    class Own(nn.Module):
        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            return x[..., :Z], torch.zeros_like(x[..., :Z])

    model = make_model("iwae", D, Z, HIDDEN, encoder="gru", image_shape=SHAPE)
    model.encoder = Own()
    x = torch.rand(B, D)
    assert torch.equal(model.encode(x)[0], x[:, :Z])
    model.loss(x, 1).backward()


def test_run_configuration() -> None:
    assert default_config().encoder == "mlp"
    config = default_config(encoder="gru_2d", data="digits", hidden_sizes=(9, 7), latent_size=4)
    model = config.make_model(config.load_data())
    assert isinstance(model.encoder, GRUEncoder)
    assert model.encoder.image_shape == (8, 8)
    assert TrainConfig.from_dict(config.to_dict()) == config
    with pytest.raises(ValueError, match=r"encoder must be one of mlp, .*; got 'rnn'"):
        default_config(encoder="rnn")
    with pytest.raises(ValueError, match="hidden_sizes must hold the size of the recurrent layer"):
        default_config(encoder="gru", hidden_sizes=())


test_wrong_arguments = refusals(
    [
        (
            lambda: make_model("vae", D, encoder="rnn"),
            ValueError,
            "encoder must be one of mlp, gru, gru_2d, conv, mlp_log1p; got 'rnn'",
        ),
        (
            lambda: make_model("vae", D, encoder="gru"),
            ValueError,
            r"image_shape must be \(H, W\) or \(C, H, W\) for the encoder 'gru'",
        ),
        (
            lambda: make_model("vae", D, encoder="conv", image_shape=(4, 11)),
            ValueError,
            rf"image_shape must be \(H, W\) with H · W = D = {D}, got \(4, 11\)",
        ),
        (
            lambda: make_model("vae", D, image_shape=(1, 2)),
            ValueError,
            rf"image_shape must be \(H, W\) with H · W = D = {D}, got \(1, 2\)",
        ),
        (
            lambda: make_model("vae", D, encoder="conv", image_shape=(9, 5, 1, 1)),
            ValueError,
            r"image_shape must be \(H, W\) or \(C, H, W\), got \(9, 5, 1, 1\)",
        ),
        (
            lambda: make_model("vae", D, encoder="conv", image_shape=D),
            TypeError,
            f"image_shape must be a sequence of ints, got {D}",
        ),
        (
            lambda: make_model("vae", D, Z, (), encoder="gru", image_shape=SHAPE),
            ValueError,
            "hidden_sizes must hold the size of the recurrent layer for gru, got none",
        ),
        (
            lambda: GRUEncoder(SHAPE, HIDDEN, Z, pooling="max"),
            ValueError,
            "pooling must be one of last, mean; got 'max'",
        ),
        (lambda: GRUEncoder(SHAPE, HIDDEN, 0), ValueError, "latent must be >= 1, got 0"),
        (
            lambda: ConvEncoder(SHAPE, (), Z, channels=()),
            ValueError,
            "channels must hold at least one size, got none",
        ),
        (
            lambda: ConvEncoder(SHAPE, (), Z, "swish"),
            ValueError,
            "activation must be one of softplus, .*; got 'swish'",
        ),
        (
            lambda: _encoder("conv")(torch.rand(B, D + 1).double()),
            ValueError,
            rf"x must have shape \(..., D\) with D = 9 · 5 = {D}, got \({B}, {D + 1}\)",
        ),
    ]
)
