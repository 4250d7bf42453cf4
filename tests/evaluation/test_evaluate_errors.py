"""The error bars of the evaluator: against the jackknife, and by how often they cover the truth."""

from __future__ import annotations

import math

import pytest
import torch
from linear_gaussian import draw_data, exact_log_likelihood, linear_gaussian
from torch import Tensor, nn

from dvae_fast.corruptions import AdditiveGaussian
from dvae_fast.evaluation import estimate_log_likelihood

K = 800


def _log_weights(x: Tensor, model: nn.Module, seed: int, k: int = K) -> Tensor:
    with torch.no_grad():
        return model.log_weights(x, *model.encode(x), k, seed)  # type: ignore[operator,no-any-return]


def test_the_standard_error_is_the_jackknifes() -> None:
    """The delta method's and the jackknife's differ by O(1/k): here by under 2 %."""
    model = linear_gaussian("iwae", widen=2.0)
    x = draw_data(model, 13)
    estimate = estimate_log_likelihood(model, x, K, seed=5)
    log_w = _log_weights(x, model, 5)
    total = torch.logsumexp(log_w, 1, keepdim=True)
    # log of the mean without the i-th weight
    without = total + torch.log1p(-torch.exp(log_w - total)) - math.log(K - 1)
    spread = (without - without.mean(1, keepdim=True)).square().sum(1)
    jackknife = (spread * (K - 1) / K).sqrt()
    torch.testing.assert_close(estimate.standard_error, jackknife, rtol=0.02, atol=0)


@pytest.mark.parametrize("proposal", ["posterior", "mixture"])
def test_error_bars_cover_as_often_as_they_say(proposal: str) -> None:
    """95 % and 68 % intervals of 30 examples, 20 times each. The 600 are independent; a coverage
    off by more than 4 standard deviations of a binomial, plus 1 % for the normal approximation
    (ESS is above 100), is a false alarm once in 15,000. Errors a quarter too small or a third too
    large are seen."""
    model = linear_gaussian("dvae", widen=2.0, corruption=AdditiveGaussian(0.2))
    x = draw_data(model, 30).repeat(20, 1)
    exact = exact_log_likelihood(model, x)
    estimate = estimate_log_likelihood(model, x, K, proposal=proposal, copies=3, curve=(), seed=0)
    assert float(estimate.ess.min()) > 100
    score = (estimate.log_likelihood - exact) / estimate.standard_error
    for width, wanted in ((1.959964, 0.95), (1.0, 0.682689)):
        inside = float((score.abs() < width).double().mean())
        slack = 4 * math.sqrt(wanted * (1 - wanted) / len(score)) + 0.01
        assert abs(inside - wanted) < slack


def test_standard_errors_of_the_curve() -> None:
    """Those of means over groups, by the groups themselves."""
    model = linear_gaussian("iwae", widen=2.0)
    x = draw_data(model, 7)
    k = 47
    estimate = estimate_log_likelihood(model, x, k, curve=(1, 5, 30), chunk=6, seed=5)
    log_w = _log_weights(x, model, 5, k)
    torch.testing.assert_close(estimate.curve_standard_error[:, 0], log_w.std(1) / math.sqrt(k))
    groups = torch.logsumexp(log_w[:, :45].unflatten(1, (9, 5)), -1)
    torch.testing.assert_close(estimate.curve_standard_error[:, 1], groups.std(1) / 3)
    # One group of 30 of the 47: an error by √(47/30) larger than that of all.
    single = estimate.standard_error * math.sqrt(k / 30)
    torch.testing.assert_close(estimate.curve_standard_error[:, 2], single)
    one = estimate_log_likelihood(model, x, 1, curve=(1,), seed=5)
    assert bool(one.curve_standard_error.isnan().all())
