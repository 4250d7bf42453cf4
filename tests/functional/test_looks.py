"""What losses say in passing: probabilities for logits, and data outside of the support."""

from __future__ import annotations

import math
import warnings
from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch import Tensor

import dvae_fast
from dvae_fast import objectives
from dvae_fast.functional import iwae_loss
from dvae_fast.likelihoods import Bernoulli
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
    finite = logits.detach().nan_to_num()
    assert _said(lambda: LOSSES[name](finite, 255 * x, ratio)) == []  # not looked at


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
