"""Parameters that are none: a number of a scale or a rate below 0 is no number of log p."""

from __future__ import annotations

import math
import warnings
from typing import Any

import pytest
import torch
from torch import Tensor

import dvae_fast
from dvae_fast import objectives, reference
from dvae_fast.likelihoods import LIKELIHOODS, Bernoulli, Likelihood
from dvae_fast.likelihoods.links import exponential, positive

B, K, D = 3, 2, 21
#: likelihood, and which of its parameters may not be negative
ROWS = [
    (name, i)
    for name, likelihood in LIKELIHOODS.items()
    for i, link in enumerate(likelihood.params.values())
    if link in (positive, exponential)
]
each_row = pytest.mark.parametrize("name, i", ROWS)


def _params(likelihood: Likelihood, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    return [
        0.4 + 0.1 * torch.rand(B, K, D, dtype=dtype, generator=torch.Generator().manual_seed(i))
        for i in range(len(likelihood.params))
    ]


def _x(dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.rand(B, D, generator=torch.Generator().manual_seed(9)).round().to(dtype)


def _given(params: list[Tensor]) -> Any:
    return tuple(params) if len(params) > 1 else params[0]


def test_the_rows() -> None:
    assert {name for name, _ in ROWS} >= {"gaussian", "negative_binomial", "poisson", "laplace"}


@pytest.mark.filterwarnings("ignore:the loss is not finite:RuntimeWarning")
@each_row
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("wrong", [-2.0, -1e-12, -math.inf])
def test_a_negative_one_is_nan_in_its_sample_alone(
    name: str, i: int, dtype: torch.dtype, wrong: float
) -> None:
    likelihood = LIKELIHOODS[name]
    params, x, ratio = _params(likelihood, dtype), _x(dtype), torch.zeros(B, K, dtype=dtype)
    sound = dvae_fast.log_weights(_given(params), x, ratio, name)
    at = [(value, int((x[value] == value).byte().argmax())) for value in (0, 1)]
    for b, d in at:  # of an x of 0, and of 1
        params[i][b, 1, d] = wrong
    bad = torch.zeros(B, K, dtype=torch.bool)
    bad[:2, 1] = True
    leaves = [p.requires_grad_() for p in params]
    found = dvae_fast.log_weights(_given(leaves), x, ratio, name)
    assert torch.equal(found.isnan(), bad)
    assert torch.equal(found[~bad], sound[~bad])
    loss = dvae_fast.iwae_loss(_given(leaves), x, ratio, name)
    (grad,) = torch.autograd.grad(loss, leaves[i])
    assert bool(grad[:2].isnan().any(-1).all())
    assert bool(grad[2].isfinite().all())
    density = likelihood.log_prob(_given([p.detach() for p in params]), x.unsqueeze(1))
    assert torch.equal(density.sum(-1).isnan(), bad)
    if likelihood.kernel is not None:
        p, scale = (*(t.detach() for t in params), None)[:2]
        plain = reference.log_weights(p, scale, x, ratio, likelihood.kernel)
        assert torch.equal(plain.isnan(), bad)


def _said(call: Any) -> list[str]:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for _ in range(3):
            call()
    return [str(one.message) for one in caught]


@each_row
@pytest.mark.parametrize("objective", ["iwae", "vr"])
def test_it_is_named_by_the_loss(name: str, i: int, objective: str) -> None:
    params, x, ratio = _params(LIKELIHOODS[name]), _x(), torch.zeros(B, K)
    params[i][0, 0, 0] = -2.5
    given = _given(params)
    (said,) = _said(lambda: objectives.loss(given, x, ratio, name, objective))
    assert said.startswith("the loss is not finite, and ")
    assert list(LIKELIHOODS[name].params)[i] in said
    assert "got a minimum of -2.5" in said
    seen = torch.ones(B, D, dtype=torch.bool)
    seen[0, 0] = False
    assert _said(lambda: objectives.loss(given, x, ratio, name, objective, mask=seen)) == []


def test_probabilities_are_named_too() -> None:
    p = torch.full((B, K, D), 1.25)
    (said,) = _said(
        lambda: dvae_fast.iwae_loss(p, _x(), torch.zeros(B, K), Bernoulli(probabilities=True))
    )
    assert said == (
        "the loss is not finite, and probabilities must lie in [0, 1], got values from 1.25 to 1.25"
    )


@pytest.mark.parametrize("name", ["bernoulli_probabilities", "poisson"])
def test_a_last_layer_that_makes_none_is_looked_at(name: str) -> None:
    """By the operators where values are checked, and by the evaluator."""
    layer = torch.nn.Linear(5, D)
    layer.bias.data -= 50
    wrong = r"(probabilities|rate) must (lie in|be >= 0)"
    before = dvae_fast.set_validation(True)
    try:
        for f in (dvae_fast.functional.linear_log_weights, _of_one_layer):
            with pytest.raises(ValueError, match=wrong):
                f(torch.ones(B, K, 5), layer.weight, layer.bias, _x(), torch.zeros(B, K), name)
    finally:
        dvae_fast.set_validation(before)
    decode = torch.nn.Sequential(torch.nn.Linear(2, 5), layer)
    encode = lambda x: (torch.zeros(len(x), 2), torch.zeros(len(x), 2))
    estimate = dvae_fast.estimate_log_likelihood((encode, decode), _x(), 20, likelihood=name)
    assert any("The decoder gives no parameters" in said for said in estimate.warnings())


def test_which_likelihoods_take_any_number_first() -> None:
    """Whatever tensors' default device."""
    restricted = {
        "negative_binomial", "poisson", "zero_inflated_negative_binomial",
        "bernoulli_probabilities",
    }  # fmt: skip
    with torch.device("meta"):
        found = {name for name, likelihood in LIKELIHOODS.items() if likelihood.restricts_params}
    assert found == restricted


def _of_one_layer(h: Tensor, weight: Tensor, bias: Tensor, *rest: Any) -> Tensor:
    return dvae_fast.functional.mlp_log_weights(h, [(weight, bias)], *rest)


def test_nothing_is_said_of_what_a_gradient_has_overwritten() -> None:
    logits = torch.full((B, K, D), 3.0)
    logits[0, 0, 0] = math.nan
    assert _said(lambda: dvae_fast.iwae_loss(logits, _x(), torch.zeros(B, K))) == []
    mean = torch.randn(B, K, D, requires_grad=True)

    def loss() -> None:
        params = (mean.exp() * math.nan, torch.tensor(2.0))
        dvae_fast.iwae_loss(
            params, _x(), torch.zeros(B, K), "negative_binomial", overwrite_params=True
        ).backward()

    assert _said(loss) == []


@each_row
def test_validation_refuses_it(name: str, i: int) -> None:
    params, x, ratio = _params(LIKELIHOODS[name]), _x(), torch.zeros(B, K)
    params[i][2, 1, 4] = -0.5
    seen = torch.ones(B, D, dtype=torch.bool)
    seen[2, 4] = False
    old = dvae_fast.set_validation(True)
    try:
        with pytest.raises(ValueError, match=r"must be >=? 0.*got a minimum of -0\.5"):
            dvae_fast.log_weights(_given(params), x, ratio, name)
        dvae_fast.log_weights(_given(params), x, ratio, name, seen)
    finally:
        dvae_fast.set_validation(old)


@each_row
def test_it_is_told_by_the_estimate(name: str, i: int) -> None:
    def encode(x: Tensor) -> tuple[Tensor, Tensor]:
        return x[:, :2], 0 * x[:, :2]

    def decode(z: Tensor, wrong: float = -0.5) -> Any:
        made = [torch.full((len(z), D), 0.4) for _ in LIKELIHOODS[name].params]
        made[i][:, 3] = wrong
        return _given(made)

    def told(decode: Any) -> list[str]:
        estimate = dvae_fast.estimate_log_likelihood(
            (encode, decode), _x(), 20, likelihood=name, seed=1
        )
        return [text for text in estimate.warnings() if "no parameters" in text]

    (text,) = told(decode)
    assert text.startswith("The decoder gives no parameters of the likelihood: ")
    assert list(LIKELIHOODS[name].params)[i] in text
    assert told(lambda z: decode(z, 0.4)) == []


@pytest.mark.parametrize("name", ["negative_binomial", "discretised_logistic"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("zero", [0.0, -0.0])
def test_a_scale_of_zero_is_the_limit(name: str, dtype: torch.dtype, zero: float) -> None:
    """As a softplus that underflows leaves it: of a kernel what its formula gives, and a gradient
    of the means that is a number where log p is one."""
    likelihood = LIKELIHOODS[name]
    mean = torch.tensor([0.0, 1e-30, 0.3, 1.0, 7.0, math.inf], dtype=dtype).repeat_interleave(3)
    x = torch.tensor([0.0, 1.0, 0.2], dtype=dtype).mul(255).round().div(255).repeat(6)
    if name == "negative_binomial":
        x = (x * 5).round()
    scale = torch.full_like(mean, zero)
    expected = likelihood.log_prob((mean, scale), x)
    assert not bool(expected.isnan().any())
    leaf = mean.view(-1, 1, 1).clone().requires_grad_()
    ratio = torch.zeros(len(x), 1, dtype=dtype)
    found = dvae_fast.log_weights((leaf, scale.view(-1, 1, 1)), x.unsqueeze(1), ratio, name)
    torch.testing.assert_close(found.squeeze(1), expected)
    if name == "negative_binomial":
        (grad,) = torch.autograd.grad(found.sum(), leaf)
        assert bool(grad.flatten()[expected.isfinite()].isfinite().all())
