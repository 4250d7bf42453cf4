"""A constructor that has no use for an argument says in a line which one it was."""

from __future__ import annotations

import inspect
import json
import math
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch

from dvae_fast.corruptions import (
    AdditiveGaussian,
    BitFlip,
    FunctionCorruption,
    Learnable,
    Masking,
    SaltAndPepper,
)
from dvae_fast.likelihoods import Categorical
from dvae_fast.models import (
    MLP,
    MODELS,
    ConvEncoder,
    Decoder,
    GaussianEncoder,
    GaussianMixture,
    GRUEncoder,
    VampPrior,
)
from dvae_fast.objectives import Objective

if TYPE_CHECKING:
    from collections.abc import Mapping

_IMAGE = {"image_shape": (4, 6), "hidden": (5,), "latent": 2}
GOOD: list[tuple[Any, Mapping[str, Any]]] = [
    *((model, {"data_size": 6}) for model in MODELS.values()),
    (MLP, {"sizes": (3, 2)}),
    (Decoder, {"latent": 2, "hidden": (5,), "data_size": 6}),
    (GaussianEncoder, {"data_size": 6, "hidden": (5,), "latent": 2}),
    (ConvEncoder, _IMAGE),
    (GRUEncoder, _IMAGE),
    (GaussianMixture, {"latent_size": 2}),
    (VampPrior, {"data_size": 6}),
    (Masking, {"rate": 0.1}),
    (SaltAndPepper, {"rate": 0.1}),
    (BitFlip, {"rate": 0.1}),
    (AdditiveGaussian, {"std": 0.1}),
    (FunctionCorruption, {"function": torch.relu}),
    (Learnable, {"corruption": Masking(0.1)}),
    (Categorical, {"classes": 3}),
    (Objective, {"name": "iwae"}),
]
WRONG = [
    None, -1, 0, 1.5, "x", b"x", True, (), "01",
    [1, "a"], [0], (-1,), [[1]], {}, object(), 10**30, 1j,
    math.nan, math.inf, np.float32(2), np.int64(-3), torch.zeros(2),
]  # fmt: skip
# Named otherwise in what is said: by what a user would have written.
CALLED = {(Objective, "name"): "objective"}


@pytest.mark.parametrize(("kind", "good"), GOOD, ids=[kind.__name__ for kind, _ in GOOD])
def test_what_is_wrong_is_named(kind: Any, good: Mapping[str, Any]) -> None:
    kind(**good)
    refused = 0
    for name, parameter in inspect.signature(kind).parameters.items():
        if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
            continue
        for value in WRONG:
            try:
                kind(**{**good, name: value})
            except (TypeError, ValueError) as error:
                said = str(error)
                assert CALLED.get((kind, name), name) in said, (name, value, said)
                assert "\n" not in said, (name, value, said)
                refused += 1
    assert refused


def test_numpys_numbers_are_as_good_as_pythons() -> None:
    given = {
        "latent_size": np.int64(2),
        "hidden_sizes": np.array([5, 4]),
        "learn_prior": np.bool_(1),
    }
    model = MODELS["bernoulli"](data_size=np.int32(6), **given)
    assert json.loads(json.dumps(model.config())) == model.config()
    assert GaussianEncoder(6, (5,), 2, log1p=np.bool_(1)).log1p is True
