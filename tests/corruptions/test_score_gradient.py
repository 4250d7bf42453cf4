"""The score function's gradient of a model's loss, averaged over every x̃ that the copies can be."""

from __future__ import annotations

import itertools

import pytest
import torch
from plain_objectives import plain_bound
from torch import Tensor
from torch.nn import functional as F

from dvae_fast import objectives
from dvae_fast.corruptions import BitFlip, Learnable
from dvae_fast.models import DIWAE
from dvae_fast.objectives import Objective

K, Z, D = 2, 3, 2
KEY = torch.tensor([17])
X = torch.tensor([[1.0, 0.0]], dtype=torch.float64)
BOUNDS = {
    "elbo": Objective("elbo"),
    "iwae": Objective("iwae"),
    "iwae, doubly": Objective("iwae", "dreg"),
    "ciwae": Objective("ciwae", beta=0.3),
    "vr": Objective("vr", alpha=-0.5),
    "elbo, stl": Objective("elbo", "stl"),
    "iwae, vimco": Objective("iwae", "vimco"),
}


def _model(objective: Objective, copies: int) -> DIWAE:
    torch.manual_seed(1)
    corruption = Learnable(BitFlip(0.2), "score")
    return DIWAE(
        D, Z, (4,), copies=copies, samples=K, objective=objective, corruption=corruption
    ).double()  # fmt: skip


def _weighted_bound(model: DIWAE, noisy: Tensor, weight: float) -> Tensor:
    """Of x̃ (M, 1, D), by plain formulas over the samples that the model draws."""
    mean, log_var = model.encode(noisy)
    z, log_ratio = _latents(model, mean, log_var)
    logits = model.decode(z)
    assert isinstance(logits, Tensor)
    log_p = -F.binary_cross_entropy_with_logits(
        logits, X.unsqueeze(1).expand_as(logits), reduction="none"
    ).sum(-1)
    return plain_bound(model.objective, log_p + weight * log_ratio).sum()


def _latents(model: DIWAE, mean: Tensor, log_var: Tensor) -> tuple[Tensor, Tensor]:
    """(M, 1, K, Z) and (M, 1, K), where a bound of samples outside has them as M·K groups."""
    z, log_ratio, _ = objectives.sample_latents(mean, log_var, K, model.objective, KEY)
    if model.objective.bound.outside and z.shape[-2] == 1:  # (M, K, 1, 1, Z)
        z, log_ratio = z.squeeze(-2).transpose(1, 2), log_ratio.squeeze(-1).transpose(1, 2)
    return z, log_ratio


@pytest.mark.parametrize(
    "name, copies, weight",
    [*((name, 2, weight) for name in BOUNDS for weight in (0.0, 0.2, 1.0)), ("iwae", 3, 0.2)],
)
def test_unbiased_whatever_the_weight_of_the_divergence(
    name: str, copies: int, weight: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = _model(BOUNDS[name], copies)
    model.kl_weight = weight
    learnt = model.corruption
    assert isinstance(learnt, Learnable)
    outcomes = [
        torch.tensor([flips], dtype=torch.float64) for flips in itertools.product((0, 1), repeat=D)
    ]
    expected = found = torch.zeros((), dtype=torch.float64)
    for flips in itertools.product(outcomes, repeat=copies):
        noisy = torch.stack([(X - flip).abs() for flip in flips])
        hits = torch.stack(flips)
        probability = (hits * learnt.level + (1 - hits) * (1 - learnt.level)).prod()
        with torch.no_grad():
            bound = _weighted_bound(model, noisy, weight)
        expected = expected - probability * bound
        monkeypatch.setattr(model, "_corrupt", lambda *args, noisy=noisy: noisy)
        (score,) = torch.autograd.grad(model.loss(X, KEY), learnt.unconstrained)
        found = found + probability.detach() * score
    (exact,) = torch.autograd.grad(expected, learnt.unconstrained)
    torch.testing.assert_close(found, exact, rtol=1e-9, atol=1e-12)
    assert exact.abs() > 1e-6
