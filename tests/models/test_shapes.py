"""Models of examples that have a shape: flat and shaped data give the same numbers."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from refusals import refusals

import dvae_fast
from dvae_fast.models import DIWAE, MODELS, VAE, Autoencoder, make_model, save_model
from dvae_fast.models.saving import read_model

SHAPE, D = (3, 5, 4), 60


def same(model: Autoencoder, x: torch.Tensor) -> None:
    """Every method that takes x, of (B, D) and of (B, *shape)."""
    shaped = x.view(len(x), *SHAPE)
    assert torch.equal(model.loss(shaped, 3), model.loss(x, 3))
    assert torch.equal(model.bound(shaped, 3), model.bound(x, 3))
    means = model.reconstruct(x)
    assert means.shape == (len(x), D)
    assert torch.equal(model.reconstruct(shaped), means.view(-1, *SHAPE))


@pytest.mark.parametrize("name", MODELS)
def test_flat_and_shaped_data_are_one(name: str) -> None:
    x = torch.rand(7, D).round()
    model = make_model(name, SHAPE, latent_size=2, hidden_sizes=(6,))
    assert (model.data_size, model.shape, model.image_shape) == (D, SHAPE, SHAPE)
    same(model, x)
    assert model.sample(2, seed=0).shape == (2, *SHAPE)
    assert model.sample(2, seed=0, draw=True).shape == (2, *SHAPE)
    flat = make_model(name, D, image_shape=SHAPE, latent_size=2, hidden_sizes=(6,))
    flat.load_state_dict(model.state_dict())
    same(flat, x)
    assert torch.equal(flat.sample(2, seed=0), model.sample(2, seed=0).flatten(1))
    assert torch.equal(flat.unflatten(x), x.view(7, *SHAPE))
    assert torch.equal(flat.flatten(flat.unflatten(x)), x)


@pytest.mark.parametrize("encoder", ["mlp", "gru", "gru_2d", "conv"])
def test_encoders_see_all_channels(encoder: str) -> None:
    """Each pixel of each channel moves the posterior; leading dimensions are kept."""
    model = VAE(SHAPE, 2, (6,), encoder=encoder).double()
    x = torch.rand(D, dtype=torch.float64, requires_grad=True)
    mean, _ = model.encode(x.expand(2, 3, D))
    assert mean.shape == (2, 3, 2)
    assert torch.equal(model.encode(x.expand(2, 3, D).unflatten(-1, SHAPE))[0], mean)
    (gradient,) = torch.autograd.grad(mean[0, 0, 0], x)
    assert bool((gradient != 0).all())


def test_one_channel_is_a_grey_image() -> None:
    torch.manual_seed(1)
    one = VAE((1, 5, 4), 2, (6,), encoder="gru_2d")
    torch.manual_seed(1)
    grey = VAE((5, 4), 2, (6,), encoder="gru_2d")
    x = torch.rand(3, 20)
    assert torch.equal(one.encode(x)[0], grey.encode(x)[0])


def test_pictures_have_the_shape_of_the_data() -> None:
    model = VAE(SHAPE, 2, (6,))
    x = torch.rand(4, *SHAPE)
    assert model.interpolate(x[:2], x[2:], 3).shape == (2, 3, *SHAPE)
    assert model.interpolate(x[:2].flatten(1), x[2:].flatten(1), 3).shape == (2, 3, D)
    assert model.manifold(3).shape == (3, 3, *SHAPE)


def test_the_shape_is_saved(tmp_path: Any) -> None:
    for data_size in (SHAPE, (2, 3, 5, 2), (D,)):
        model = VAE(data_size, 2, (6,))
        save_model(tmp_path / "m.safetensors", model)
        again = read_model(tmp_path / "m.safetensors").model
        assert again.shape == data_size
        assert again.config() == model.config()
        assert again.sample(2, seed=4).shape == (2, *data_size)


def test_the_evaluator_takes_images_of_a_shape() -> None:
    model = DIWAE(SHAPE, 2, (6,), copies=2)
    x = torch.rand(4, D).round()
    flat = dvae_fast.estimate_log_likelihood(model, x, 20, seed=1)
    shaped = dvae_fast.estimate_log_likelihood(model, x.view(4, *SHAPE), 20, seed=1)
    assert torch.equal(flat.log_likelihood, shaped.log_likelihood)
    assert flat.data_size == D


test_wrong_shapes = refusals(
    [
        (lambda: VAE(()), ValueError, "data_size must be an int or the shape of an example"),
        (lambda: VAE((3, 0)), ValueError, r"data_size\[1\] must be >= 1, got 0"),
        (lambda: VAE("60"), TypeError, "data_size must be an int, got str"),
        (lambda: VAE(torch.tensor(5)), TypeError, "data_size must be an int, got Tensor"),
        (
            lambda: VAE(D, image_shape=(3, 5, 5)),
            ValueError,
            r"image_shape must be \(C, H, W\) with C · H · W = D = 60, got \(3, 5, 5\)",
        ),
        (
            lambda: VAE(SHAPE, 2, ()).loss(torch.rand(2, 5, 4, 3)),
            ValueError,
            r"x must have shape \(B, D\) with D = 60, or \(B, 3, 5, 4\), got \(2, 5, 4, 3\)",
        ),
        (
            lambda: VAE(SHAPE, 2, ()).bound(torch.rand(SHAPE)),
            ValueError,
            r"x must have shape .* got \(3, 5, 4\)",
        ),
    ]
)
