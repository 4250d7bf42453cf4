"""Tensors made in inference mode, given to what is differentiated in something else.

Autograd refuses to save them; the functions save a copy, and gradients are those of ordinary ones.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch import Tensor

import dvae_fast
from dvae_fast import functional
from dvae_fast.likelihoods import LIKELIHOODS

if TYPE_CHECKING:
    from collections.abc import Callable

M, B, K, Z, D, H = 2, 3, 4, 5, 7, 6


def _normal(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)))


def _uniform(*shape: int) -> Tensor:
    return 0.2 + torch.rand(shape, generator=torch.Generator().manual_seed(sum(shape)))


X, MASK = (_normal(B, D) > 0).float(), _normal(B, D) > -0.5
RATIO = _normal(B, K)

#: a function of tensors, and those
CASES: dict[str, tuple[Callable[..., Any], dict[str, Tensor]]] = {
    "corrupt": (
        lambda x, std: dvae_fast.corrupt(x, dvae_fast.AdditiveGaussian(std), M, 1),
        {"x": X, "std": _uniform(D)},
    ),
    "sample_latent": (
        lambda mean, log_var: dvae_fast.sample_latent(mean, log_var, K, 1),
        {"mean": _normal(M, B, Z), "log_var": _normal(M, B, Z)},
    ),
    "latent_log_ratio": (
        dvae_fast.latent_log_ratio,
        {"z": _normal(B, K, Z), "mean": _normal(B, Z), "log_var": _normal(B, Z)},
    ),
    "mixture_log_ratio": (
        dvae_fast.mixture_log_ratio,
        {"z": _normal(B, K, Z), "mean": _normal(M, B, Z), "log_var": _normal(M, B, Z)},
    ),
    "linear_log_weights": (
        dvae_fast.linear_log_weights,
        {
            "hidden": _normal(B, K, H), "weight": _normal(D, H), "bias": _normal(D), "x": X,
            "log_ratio": RATIO, "mask": MASK,
        },
    ),
    "mlp_log_weights": (
        lambda z, w, b, w2, x, log_ratio, mask: functional.mlp_log_weights(
            z, [(w, b), (w2, None)], x, log_ratio, mask=mask
        ),
        {
            "z": _normal(B, K, Z), "w": _normal(H, Z), "b": _normal(H), "w2": _normal(D, H),
            "x": X, "log_ratio": RATIO, "mask": MASK,
        },
    ),
    "logmeanexp": (dvae_fast.logmeanexp, {"log_w": RATIO}),
    "softplus": (functional.softplus, {"x": X}),
}  # fmt: skip


def _of(function: Callable[..., Tensor], name: str, masked: bool) -> None:
    count = len(LIKELIHOODS[name].params)

    def run(x: Tensor, log_ratio: Tensor, mask: Tensor | None = None, **params: Tensor) -> Tensor:
        given = tuple(params.values())
        if name == "bernoulli_probabilities":
            given = (torch.sigmoid(given[0]),)
        return function(given if count > 1 else given[0], x, log_ratio, name, mask)

    tensors = {f"p{i}": _uniform(B, K, D) for i in range(count)}
    more = {"mask": MASK} if masked else {}
    key = f"{function.__name__}, {name}{', masked' * masked}"
    CASES[key] = (run, {**tensors, "x": X, "log_ratio": RATIO, **more})


for _name in LIKELIHOODS:
    if _name != "categorical":  # whose parameters have one dimension more
        for _function in (dvae_fast.log_weights, dvae_fast.iwae_loss):
            for _masked in (False, True):
                _of(_function, _name, _masked)


def _made_in_inference_mode(t: Tensor) -> Tensor:
    with torch.inference_mode():
        return t.clone()


def _gradients(
    function: Callable[..., Any], tensors: dict[str, Tensor], special: str, twice: bool
) -> list[Tensor]:
    """Of all but x and `special`, which is of inference mode where that is asked for."""
    given = {
        name: t.clone().requires_grad_(name not in ("x", special) and t.is_floating_point())
        for name, t in tensors.items()
        if name != special
    }
    given[special] = tensors[special]
    wanted = [t for t in given.values() if t.requires_grad]
    out = function(**given)
    total = torch.stack([o.sin().sum() for o in (out if isinstance(out, tuple) else (out,))]).sum()
    if not wanted:
        return [total]
    grads = torch.autograd.grad(total, wanted, create_graph=twice)
    if not twice:
        return list(grads)
    square = torch.stack([g.square().sum() for g in grads]).sum()
    return list(torch.autograd.grad(square, wanted, materialize_grads=True))


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("twice", [False, True], ids=["first", "second"])
def test_gradients_of_the_others(name: str, twice: bool) -> None:
    function, tensors = CASES[name]
    for special, t in tensors.items():
        expected = _gradients(function, tensors, special, twice)
        given = {**tensors, special: _made_in_inference_mode(t)}
        for a, b in zip(_gradients(function, given, special, twice), expected, strict=True):
            assert torch.equal(a, b), special


def test_where_the_decoder_output_is_overwritten() -> None:
    leaf = _normal(B, K, D).requires_grad_()
    first, second = (
        torch.autograd.grad(dvae_fast.iwae_loss(leaf * 1, x, RATIO, overwrite_params=True), leaf)
        for x in (X, _made_in_inference_mode(X))
    )
    assert torch.equal(*first, *second)


def test_in_inference_mode_itself() -> None:
    with torch.inference_mode():
        loss = dvae_fast.iwae_loss(_normal(B, K, D).requires_grad_(), X, RATIO)
    assert not loss.requires_grad
