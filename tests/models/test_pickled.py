"""Models that torch.save pickles whole are read back by torch.load as it is by default."""

from __future__ import annotations

import io
from typing import Any

import pytest
import torch
from torch import nn

from dvae_fast.corruptions import (
    AdditiveGaussian,
    BitFlip,
    Compose,
    Identity,
    Learnable,
    Masking,
    SaltAndPepper,
)
from dvae_fast.likelihoods import LIKELIHOODS, Bernoulli
from dvae_fast.models import ACTIVATIONS, ENCODERS, MODELS, PRIORS, Autoencoder, make_model

D = 16
CORRUPTIONS = (
    Masking(0.1), SaltAndPepper(0.1), BitFlip(torch.full((D,), 0.1)), AdditiveGaussian(0.1),
    Identity(), Compose(Masking(0.1), BitFlip(0.1)), Learnable(Masking(0.1)),
    Learnable(AdditiveGaussian(0.1)),
)  # fmt: skip
CASES: list[tuple[str, dict[str, Any]]] = [
    *((name, {}) for name in MODELS),
    *(("vae", {"encoder": name, "image_shape": (4, 4)}) for name in ENCODERS),
    *(("iwae", {"prior": name}) for name in PRIORS),
    *(("vae", {"likelihood": name}) for name in LIKELIHOODS),
    ("vae", {"likelihood": Bernoulli(probabilities=True), "covariance": "full"}),
    *(("vae", {"activation": name}) for name in ACTIVATIONS),
    *(("diwae", {"corruption": one, "copies": 2}) for one in CORRUPTIONS),
]


def _again(model: Autoencoder) -> Any:
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


@pytest.mark.parametrize("name, options", CASES, ids=lambda v: str(v).replace(" ", ""))
def test_a_pickled_model_comes_back(name: str, options: dict[str, Any]) -> None:
    model = make_model(name, D, 2, (5,), **options)
    x = torch.rand(3, D).round()
    again = _again(model)
    assert type(again) is type(model)
    assert repr(again) == repr(model)
    assert torch.equal(again.loss(x, 5), model.loss(x, 5))
    assert again.config() == model.config()


def test_no_class_of_ones_own_is_let_in() -> None:
    model = make_model("vae", D, 2, (5,), decoder=nn.Bilinear(2, 2, D))
    with pytest.raises(Exception, match=r"Unsupported global: GLOBAL torch.nn.*Bilinear"):
        _again(model)
