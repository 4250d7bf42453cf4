"""Models under `torch.func`, and gradients of their gradients."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dvae_fast.corruptions import AdditiveGaussian, BitFlip, Learnable
from dvae_fast.models import (
    DIWAE,
    DVAE,
    IWAE,
    VAE,
    Autoencoder,
    BernoulliLatentModel,
    TwoLayerModel,
)
from dvae_fast.objectives import OBJECTIVES, Objective

if TYPE_CHECKING:
    from collections.abc import Callable

# torch's own doing, at the first jvp.
pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated")

B, D, Z = 4, 6, 2
KEY = torch.tensor([3])
#: bounds whose inference network ascends something of its own, or is drawn without a derivative
SPLIT = ("piwae", "iwhvi", "iwhvi_elbo")


def _diwae(**options: Any) -> DIWAE:
    return DIWAE(D, Z, (5,), **{"samples": 3, "copies": 2, **options})


MODELS: dict[str, Callable[[], Autoencoder]] = {
    "vae": lambda: VAE(D, Z, (5,), samples=3),
    "iwae": lambda: IWAE(D, Z, (5,), samples=3),
    "gaussian": lambda: DVAE(D, Z, (5,), likelihood="gaussian", corruption=AdditiveGaussian(0.1)),
    "logistic": lambda: _diwae(likelihood="discretised_logistic"),
    "full covariance": lambda: IWAE(D, Z, (5,), samples=3, covariance="full"),
    "two layers": lambda: TwoLayerModel(
        D, Z, (5,), upper_latent_size=3, upper_hidden_sizes=(4,), samples=3
    ),
    "learnt noise": lambda: _diwae(corruption=Learnable(AdditiveGaussian(0.2))),
    "relaxed rate": lambda: _diwae(corruption=Learnable(BitFlip(0.2), "relaxed")),
    "free bits": lambda: VAE(D, Z, (5,), objective=Objective("elbo_kl", free_bits=0.01)),
    "reversed noise": lambda: _diwae(objective="iwhvi", corruption=AdditiveGaussian(0.3)),
    **{name: lambda name=name: _diwae(objective=name) for name in OBJECTIVES if name not in SPLIT},
}
#: those whose gradient is an estimate of its own: no derivatives of it
ESTIMATES: dict[str, Callable[[], Autoencoder]] = {
    "piwae": lambda: _diwae(objective="piwae"),
    "iwhvi": lambda: _diwae(objective="iwhvi"),
    "stl": lambda: _diwae(estimator="stl"),
    "dreg": lambda: _diwae(estimator="dreg"),
    "vimco": lambda: _diwae(estimator="vimco"),
    "binary latents": lambda: BernoulliLatentModel(D, Z, (5,), samples=3),
    "score": lambda: _diwae(corruption=Learnable(BitFlip(0.2), "score")),
}


def _made(name: str, weight: float = 1.0) -> tuple[Autoencoder, dict[str, Tensor], Tensor]:
    torch.manual_seed(0)
    model = {**MODELS, **ESTIMATES}[name]().double()
    model.kl_weight = weight
    return model, dict(model.named_parameters()), torch.rand(B, D, dtype=torch.float64).round()


def _loss(model: Autoencoder, x: Tensor) -> Callable[[dict[str, Tensor]], Any]:
    return lambda p: torch.func.functional_call(model, p, (x, KEY))


def _gradient(model: Autoencoder, x: Tensor) -> dict[str, Tensor]:
    names, leaves = zip(*model.named_parameters(), strict=True)
    grads = torch.autograd.grad(
        model.loss(x, KEY), leaves, allow_unused=True, materialize_grads=True
    )
    return dict(zip(names, grads, strict=True))


def _directions(p: dict[str, Tensor]) -> dict[str, Tensor]:
    torch.manual_seed(1)
    return {name: torch.randn_like(t) for name, t in p.items()}


@pytest.mark.parametrize("name", [*MODELS, *ESTIMATES])
def test_gradients_of_a_function_call(name: str) -> None:
    model, p, x = _made(name)
    torch.testing.assert_close(torch.func.grad(_loss(model, x))(p), _gradient(model, x))
    each = torch.vmap(torch.func.grad(lambda p, x: _loss(model, x[None])(p)), (None, 0))(p, x)
    for i in range(B):
        torch.testing.assert_close(
            {name: g[i] for name, g in each.items()}, _gradient(model, x[i : i + 1])
        )


@pytest.mark.parametrize(
    ("name", "weight"),
    [
        # The weight is a matter of the objective: each has one, and of 1 that of each model.
        *((name, 1.0) for name in MODELS if name not in OBJECTIVES or name == "iwae"),
        *((name, 0.3) for name in ("vae", "two layers", "learnt noise", *OBJECTIVES)
          if name not in SPLIT),
    ],
)  # fmt: skip
def test_forward_mode_and_second_derivatives(name: str, weight: float) -> None:
    model, p, x = _made(name, weight)
    t = _directions(p)
    gradient = _gradient(model, x)
    _, along = torch.func.jvp(_loss(model, x), (p,), (t,))
    torch.testing.assert_close(along, sum((t[n] * gradient[n]).sum() for n in p))
    # H t, by what the gradient of the loss does along t.
    small = 1e-5
    ends = []
    for sign in (1, -1):
        moved = {n: (v + sign * small * t[n]).detach() for n, v in p.items()}
        ends.append(torch.func.grad(_loss(model, x))(moved))
    expected = {n: (ends[0][n] - ends[1][n]) / (2 * small) for n in p}
    names, leaves = zip(*p.items(), strict=True)
    grads = torch.autograd.grad(
        model.loss(x, KEY), leaves, create_graph=True, allow_unused=True, materialize_grads=True
    )
    slope = sum((g * t[n]).sum() for n, g in zip(names, grads, strict=True))
    found = torch.autograd.grad(slope, leaves, allow_unused=True, materialize_grads=True)
    torch.testing.assert_close(dict(zip(names, found, strict=True)), expected, rtol=1e-5, atol=1e-6)
    _, found = torch.func.jvp(torch.func.grad(_loss(model, x)), (p,), (t,))
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", ESTIMATES)
def test_an_estimate_has_no_derivatives_and_says_so(name: str) -> None:
    model, p, x = _made(name)
    with pytest.raises(RuntimeError, match="of first order"):
        torch.func.jvp(_loss(model, x), (p,), (_directions(p),))
    grads = torch.autograd.grad(
        model.loss(x, KEY), list(p.values()), create_graph=True, materialize_grads=True,
        allow_unused=True,
    )  # fmt: skip
    with pytest.raises(RuntimeError, match="of first order"):
        torch.autograd.backward(sum(g.square().sum() for g in grads))


def test_a_decoder_in_forward_mode() -> None:
    torch.manual_seed(0)
    model = VAE(D, Z, (5,))
    hidden, output = model.decoder.trunk[0], model.decoder.output
    assert isinstance(hidden, nn.Linear)

    def plain(z: Tensor) -> Tensor:
        return F.linear(F.softplus(hidden(z)), output.weight, output.bias)

    z = torch.randn(3, Z)
    torch.testing.assert_close(torch.func.jacfwd(model.decoder)(z), torch.func.jacfwd(plain)(z))


def test_noise_under_vmap_is_as_it_is_told_to_be() -> None:
    model, _, _ = _made("iwae")
    x = torch.ones(5, B, D, dtype=torch.float64)
    with torch.no_grad():
        with pytest.raises(RuntimeError, match="randomness"):
            torch.vmap(model.loss)(x)
        for how, count in (("same", 1), ("different", 5)):
            losses = torch.vmap(model.loss, randomness=how)(x)
            assert len(losses.unique()) == count
        # A seed given is the noise.
        losses = torch.vmap(lambda x: model.loss(x, KEY))(x)
        torch.testing.assert_close(losses, model.loss(x[0], KEY).expand(5))
