"""What losses say in passing: probabilities for logits, and data outside of the support."""

from __future__ import annotations

import _thread
import math
import time
import warnings
from functools import partial
from typing import TYPE_CHECKING, Any, cast

import pytest
import torch
from torch import Tensor

import dvae_fast
from dvae_fast import objectives
from dvae_fast.functional import iwae_loss
from dvae_fast.likelihoods import (
    LIKELIHOODS,
    Bernoulli,
    Categorical,
    ContinuousBernoulli,
    Likelihood,
)
from dvae_fast.models import make_model

if TYPE_CHECKING:
    from collections.abc import Callable

B, K, D = 4, 3, 7


def _operands() -> tuple[Tensor, Tensor, Tensor]:
    g = torch.Generator().manual_seed(1)
    x = torch.rand(B, D, generator=g).round()
    return torch.randn(B, K, D, generator=g), x, torch.zeros(B, K)


LOSSES: dict[str, Callable[..., Tensor]] = {
    "iwae_loss": iwae_loss,
    "elbo": lambda *args: objectives.loss(*args, objective="elbo"),
    "renyi": lambda *args: objectives.loss(*args, objective="vr"),
    "none": lambda *args: iwae_loss(*args, reduction="none"),
}


def _said(call: Callable[[], Any], times: int = 1) -> list[str]:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for _ in range(times):
            call()
    return [str(one.message) for one in caught]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("name", LOSSES)
def test_probabilities_for_logits_are_told_once(name: str, dtype: torch.dtype) -> None:
    logits, x, ratio = _operands()
    p = torch.sigmoid(logits).to(dtype).requires_grad_()
    said = _said(lambda: LOSSES[name](p, x, ratio), times=3)
    assert len(said) == 1
    assert "must be Bernoulli(probabilities=True)" in said[0]
    with pytest.warns(RuntimeWarning, match="probabilities=True") as told:
        LOSSES[name](p, x, ratio)
    assert told[0].filename == __file__


@pytest.mark.parametrize("objective", ["iwae", "elbo", "vr"])
@pytest.mark.parametrize(
    "likelihood, make, hint",
    [
        (ContinuousBernoulli(), torch.sigmoid, "leave the sigmoid out"),
        (Categorical(D), lambda t: torch.softmax(t, -1), "leave the softmax out"),
    ],
)
def test_probabilities_for_logits_of_other_likelihoods(
    likelihood: Likelihood, make: Callable[[Tensor], Tensor], hint: str, objective: str
) -> None:
    logits, x, ratio = _operands()
    x = torch.nn.functional.one_hot(x.sum(-1).long() % D, D).float()
    p = make(logits)
    said = _said(lambda: objectives.loss(p, x, ratio, likelihood, objective), times=3)
    assert len(said) == 1
    assert hint in said[0]
    assert _said(lambda: objectives.loss(logits, x, ratio, likelihood, objective)) == []


@pytest.mark.parametrize("name", LOSSES)
def test_logits_are_not_told(name: str) -> None:
    logits, x, ratio = _operands()
    some = torch.sigmoid(logits)
    some[-1, -1, -1] = -1e-3  # one is enough
    constant = torch.full_like(logits, 0.5)
    few = torch.rand(1, 1, 5)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for params in (logits, some, constant, logits * math.nan):
            LOSSES[name](params, x, ratio)
        LOSSES[name](few, x[:1, :5], ratio[:1, :1])
        iwae_loss(torch.sigmoid(logits), x, ratio, Bernoulli(probabilities=True))
        dvae_fast.log_weights(torch.sigmoid(logits), x, ratio)


@pytest.mark.parametrize("name", LOSSES)
def test_data_outside_of_the_support_is_named_when_the_loss_is_not_finite(name: str) -> None:
    logits, x, ratio = _operands()
    logits[1, 1, 1] = math.nan
    logits.requires_grad_()
    said = _said(lambda: LOSSES[name](logits, 255 * x, ratio), times=3)
    assert len(said) == 1
    assert "x must lie in [0, 1], the support of the bernoulli" in said[0]
    assert "from 0 to 255" in said[0]
    assert _said(lambda: LOSSES[name](logits, x, ratio)) == []  # nothing is wrong with x


# Of each, a value outside of its support that leaves the loss finite; None where none does.
_OUTSIDE: dict[str, float | None] = {
    "bernoulli": 255.0,
    "gaussian": None,
    "discretised_logistic": 2.0,
    "negative_binomial": 2.5,
    "poisson": 0.5,
    "zero_inflated_negative_binomial": 2.5,
    "laplace": None,
    "continuous_bernoulli": -1.0,
    "bernoulli_probabilities": 255.0,
}


def _params(likelihood: Likelihood) -> Any:
    made = tuple(torch.full((B, K, D), 0.4) for _ in likelihood.params)
    return made if len(made) > 1 else made[0]


def test_every_likelihood_has_its_row() -> None:
    assert set(_OUTSIDE) == set(LIKELIHOODS)


@pytest.mark.parametrize("name", [name for name, value in _OUTSIDE.items() if value is not None])
@pytest.mark.parametrize("objective", ["iwae", "elbo", "vr"])
def test_data_outside_of_the_support_is_named_though_the_loss_is_finite(
    name: str, objective: str
) -> None:
    """At the first calls of a line; where a mask leaves it out, it is none of x."""
    _, x, ratio = _operands()
    params = _params(LIKELIHOODS[name])
    bad = x.clone()
    bad[2, 3] = cast("float", _OUTSIDE[name])
    mask = torch.ones(2, B, D, dtype=torch.bool)
    mask[0, 2, 3] = False
    stacked = tuple(
        p.expand(2, B, K, D) for p in (params if isinstance(params, tuple) else [params])
    )

    def loss(x: Tensor, mask: Tensor | None = None) -> Tensor:
        if mask is None or mask.dim() == 2:
            return objectives.loss(params, x, ratio, name, objective, mask=mask)
        given = stacked if len(stacked) > 1 else stacked[0]
        return objectives.loss(given, x, ratio.expand(2, B, K), name, objective, mask=mask)

    said = _said(lambda: loss(bad), times=5)
    assert len(said) == 1
    assert said[0].startswith("the loss is finite, but x must ")
    assert name in said[0]
    assert _said(lambda: loss(x)) == []
    assert _said(lambda: loss(bad, mask[0])) == []
    assert len(_said(lambda: loss(bad, mask))) == 1  # its second copy has it
    turns = iter([x, x, x, bad, bad])
    assert len(_said(lambda: loss(next(turns)), times=5)) == 1


def test_what_is_said_of_a_finite_loss_does_not_hide_what_is_to_be_said_of_another() -> None:
    logits, x, ratio = _operands()
    outside = x.clone()
    outside[1, 2] = 2.0
    turns = iter([outside, outside * math.nan, 255 * outside / 0.0, outside])
    said = _said(lambda: iwae_loss(logits, next(turns), ratio), times=4)
    assert [one.partition(", ")[0] for one in said] == [
        "the loss is finite", "the loss is not finite", "the loss is not finite"
    ]  # fmt: skip
    assert "NaN" in said[1]
    assert "support" in said[2]


@pytest.mark.parametrize("name", _OUTSIDE)
def test_missing_data_is_named_when_the_loss_is_not_finite(name: str) -> None:
    _, x, ratio = _operands()
    params = _params(LIKELIHOODS[name])
    x[0, 1] = x[3, 6] = math.nan
    said = _said(lambda: iwae_loss(params, x, ratio, name), times=3)
    assert len(said) == 1
    assert f"2 of the {B * D} values of x are NaN" in said[0]
    assert "a mask" in said[0]
    mask = ~x.isnan()
    assert _said(lambda: iwae_loss(params, x, ratio, name, mask)) == []
    mask[3, 6] = True
    (half,) = _said(lambda: iwae_loss(params, x, ratio, name, mask))
    assert f"1 of the {B * D - 1} values" in half
    x[1, 1] = -7.5
    if LIKELIHOODS[name].interval[0] == 0:
        (both,) = _said(lambda: iwae_loss(params, x, ratio, name))
        assert "got values from -7.5 to 1" in both


def test_a_model_whose_loss_turns_nan() -> None:
    model = make_model("vae", 300, 20, (50,))
    x = torch.rand(10, 300).round()
    with pytest.warns(RuntimeWarning, match=r"the loss is not finite, and x must lie in \[0, 1\]"):
        assert not math.isfinite(float(model.loss(1e4 * x).detach()))
    assert math.isfinite(float(model.loss(x).detach()))


def test_transforms_and_graphs_are_left_alone() -> None:
    """Nothing is read where it would break a trace; a loss on tensors without values is one."""
    logits, x, ratio = _operands()
    p = torch.sigmoid(logits)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        meta = iwae_loss(p.to("meta"), x.to("meta"), ratio.to("meta"))
        assert meta.is_meta
        with torch._subclasses.FakeTensorMode() as mode:
            fake = [mode.from_tensor(t) for t in (p, x, ratio)]
            assert iwae_loss(*fake).shape == ()
            for scale in (torch.tensor(0.5), torch.ones(D), torch.ones(B, K, D)):
                params = (fake[0], mode.from_tensor(scale))
                assert iwae_loss(params, *fake[1:], "gaussian").shape == ()


@pytest.mark.parametrize("objective", ["iwae", "elbo"])
def test_the_turns_of_losses(objective: str) -> None:
    """A decoder that comes to end in a sigmoid is told of by the next loss that is looked at."""
    logits, x, ratio = _operands()
    for first, found in ((3, 3), (8, 8), (9, 16), (17, 32)):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            for turn in range(1, 40):
                params = torch.sigmoid(logits) if turn >= first else logits
                objectives.loss(params, x, ratio, objective=objective)
                if caught:
                    break
        assert turn == found


def test_views_of_other_signs_are_looked_at_too() -> None:
    """Of a conjugate's imaginary part, whose sign is a bit of the tensor's."""
    logits, x, ratio = _operands()
    p = torch.sigmoid(logits)
    turned = torch.complex(torch.zeros_like(p), -p).conj().imag
    assert turned.is_neg()
    (said,) = _said(lambda: iwae_loss(turned, x, ratio))
    assert "probabilities=True" in said
    scale = turned[0, 0]
    assert scale.is_neg()
    expected = dvae_fast.log_weights((logits, p[0, 0]), x, ratio, "gaussian")
    actual = dvae_fast.log_weights((logits, scale), x, ratio, "gaussian")
    torch.testing.assert_close(actual, expected)
    with pytest.raises(ValueError, match="scale must be > 0, got a minimum of -"):
        dvae_fast.log_weights((logits, -scale), x, ratio, "gaussian")


@pytest.mark.parametrize("loss", [iwae_loss, partial(objectives.loss, objective="vr")])
def test_a_loss_may_have_no_python_code_below_it(loss: Callable[..., Tensor]) -> None:
    logits, x, ratio = _operands()
    found: list[Tensor] = []
    _thread.start_new_thread(found.extend, (map(partial(loss, logits, x), [ratio]),))
    for _ in range(3000):
        if found:
            break
        time.sleep(0.01)
    torch.testing.assert_close(found, [loss(logits, x, ratio)])
