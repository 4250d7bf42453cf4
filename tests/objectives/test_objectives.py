"""How log-weights become bounds and losses, against the formulas in float64."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

import dvae_fast
from dvae_fast import objectives
from dvae_fast.models import DIWAE
from dvae_fast.noise import latent_noise
from dvae_fast.objectives.objective import Term

M, B, K, Z, D = 3, 5, 7, 2, 11


def _normal(*shape: int) -> Tensor:
    g = torch.Generator().manual_seed(len(shape) + sum(shape))
    return torch.randn(shape, generator=g, dtype=torch.float64)


@pytest.mark.parametrize("leading", [(), (M,), (M, 2)])
def test_bound_is_the_formula(leading: tuple[int, ...]) -> None:
    log_w = 3 * _normal(*leading, B, K)
    over = tuple(range(len(leading)))
    inside = torch.log(torch.exp(log_w).mean(-1))
    expected = inside.mean(over) if over else inside
    torch.testing.assert_close(objectives.bound(log_w, "iwae"), expected)
    torch.testing.assert_close(objectives.bound(log_w, "elbo"), log_w.mean((*over, -1)))
    assert objectives.bound(log_w, "iwae").shape == (B,)


def test_bound_with_m_and_k_swapped_is_another() -> None:
    log_w = 3 * _normal(M, B, K)
    swapped = objectives.bound(log_w.transpose(0, 2), "iwae")
    assert bool((objectives.bound(log_w, "iwae") - swapped).abs().min() > 1e-3)


def test_bound_is_not_the_surrogate() -> None:
    """Σ w̃ log w lies above the bound by KL(w̃ || uniform); only the latter is reported."""
    log_w = 3 * _normal(B, K)
    weights = torch.softmax(log_w, -1)
    surrogate = (weights * log_w).sum(-1)
    gap = (weights * (weights.log() + math.log(K))).sum(-1)
    torch.testing.assert_close(objectives.bound(log_w, "iwae"), surrogate - gap)
    assert bool((gap > 0.1).all())


def test_bound_of_extreme_weights() -> None:
    log_w = _normal(M, B, K)
    log_w[1, 2, 3] = math.nan
    log_w[:, 0] = -math.inf
    log_w[0, 4, 1] = -math.inf
    for objective in ("elbo", "iwae"):
        bound = objectives.bound(log_w, objective)
        assert bound[0] == -math.inf
        assert bool(bound[[1, 3]].isfinite().all())
        assert bool(bound[2].isnan())
    assert bool(objectives.bound(log_w, "iwae")[4].isfinite())
    assert objectives.bound(log_w, "elbo")[4] == -math.inf


@pytest.mark.parametrize("leading", [(), (M,)])
def test_samples_inside_and_outside(leading: tuple[int, ...]) -> None:
    mean, log_var = _normal(*leading, B, Z), _normal(*leading, B, Z) - 1
    seed = torch.tensor([5])
    copies = math.prod(leading)
    z, log_ratio, _ = objectives.sample_latents(mean, log_var, K, "iwae", seed)
    noise = latent_noise(copies, B, K, Z, seed, 0, 0, torch.float64)
    expected = mean.unsqueeze(-2) + torch.exp(0.5 * log_var).unsqueeze(-2) * noise.view(z.shape)
    assert z.shape == (*leading, B, K, Z)
    torch.testing.assert_close(z, expected)
    assert log_ratio.shape == (*leading, B, K)

    z, log_ratio, _ = objectives.sample_latents(mean, log_var, K, "elbo", seed)
    assert z.shape == (*leading, K, B, 1, Z)
    assert log_ratio.shape == (*leading, K, B, 1)
    noise = latent_noise(copies * K, B, 1, Z, seed, 0, 0, torch.float64)
    outer, std = mean.unsqueeze(-3).unsqueeze(-2), torch.exp(0.5 * log_var)
    expected = outer + std.unsqueeze(-3).unsqueeze(-2) * noise.view(z.shape)
    torch.testing.assert_close(z, expected)
    assert z.flatten(0, -2).unique(dim=0).shape[0] == copies * K * B, "samples repeat"

    one = objectives.sample_latents(mean, log_var, 1, "elbo", seed)
    same = objectives.sample_latents(mean, log_var, 1, "iwae", seed)
    assert torch.equal(one[0], same[0])
    assert one[1].shape == (*leading, B, 1)


@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize("objective", ["elbo", "iwae"])
def test_loss_and_its_gradient(objective: str, overwrite: bool) -> None:
    """Against plain autograd of the formula, for rows of K samples and for rows of one."""
    for k in (K, 1):
        leaves = [t.requires_grad_() for t in (_normal(M, B, k, D), _normal(M, B, k))]
        x = torch.sigmoid(_normal(B, D))
        total = objectives.loss(
            1 * leaves[0], x, leaves[1], "bernoulli", objective, overwrite_params=overwrite
        )
        grads = torch.autograd.grad(total, leaves)
        logits, log_ratio = leaves
        bce = torch.nn.functional.binary_cross_entropy_with_logits(
            logits, x.view(B, 1, D).expand_as(logits), reduction="none"
        )
        log_w = log_ratio - bce.sum(-1)
        if objective == "elbo":
            plain = -log_w.mean()
        else:
            plain = -(torch.logsumexp(log_w, -1) - math.log(k)).mean()
        torch.testing.assert_close(total, plain)
        torch.testing.assert_close(grads, torch.autograd.grad(plain, leaves))
        torch.testing.assert_close(total, -objectives.bound(log_w, objective).mean())


def test_loss_of_a_gaussian() -> None:
    mean, scale, log_ratio = _normal(M, B, K, D), torch.rand(D).double() + 0.5, _normal(M, B, K)
    x = _normal(B, D)
    density = torch.distributions.Normal(mean, scale).log_prob(x.view(B, 1, D)).sum(-1)
    for objective in ("elbo", "iwae"):
        total = objectives.loss((mean, scale), x, log_ratio, "gaussian", objective)
        expected = -objectives.bound(density + log_ratio, objective).mean()
        torch.testing.assert_close(total, expected)


def test_wrong_arguments() -> None:
    log_w = _normal(B, K)
    with pytest.raises(
        ValueError,
        match=r"objective must be one of iwae, .*elbo.*; got 'miwae'; did you mean 'iwae'\?",
    ):
        objectives.bound(log_w, "miwae")
    with pytest.raises(ValueError, match=r"objective must be one of elbo, elbo_kl, .*; got 'gan'"):
        objectives.loss(_normal(B, K, D), _normal(B, D), log_w, "bernoulli", "gan")
    with pytest.raises(
        ValueError, match=r"one of elbo_kl, .*; got 'elbo-kl'; did you mean 'elbo_k"
    ):
        objectives.Objective("elbo-kl")
    with pytest.raises(
        ValueError, match=r"estimator must be one of vimco, .*; got 'vimc'; did you"
    ):
        objectives.Objective("iwae", "vimc")
    with pytest.raises(
        ValueError, match=r"log_w must have shape \(\*L, B, K\) with K >= 1, got \(5,\)"
    ):
        objectives.bound(log_w[:, 0], "iwae")
    for k, error in ((0, ValueError), (-2, ValueError), (1.5, TypeError)):
        for objective in objectives.OBJECTIVES:
            with pytest.raises(error, match=r"k must be .*, got (0|-2|float)"):
                objectives.sample_latents(log_w, log_w, k, objective)


def test_the_loss_is_the_fused_one() -> None:
    params, x = _normal(M, B, K, D), torch.sigmoid(_normal(B, D))
    log_ratio = _normal(M, B, K)
    fused = dvae_fast.iwae_loss(params, x, log_ratio)
    assert torch.equal(objectives.loss(params, x, log_ratio), fused)


def test_wrong_arguments_are_named() -> None:
    with pytest.raises(ValueError, match=r"K >= 1, got \(2, 0\)"):
        objectives.bound(torch.zeros(2, 0), "elbo")
    with pytest.raises(ValueError, match="mean must have"):
        objectives.sample_latents(torch.zeros(4), torch.zeros(4), 3, "elbo")
    with pytest.raises(TypeError, match="mean must be"):
        objectives.sample_latents([1.0], torch.zeros(4), 3, "elbo")  # type: ignore[arg-type]


@pytest.mark.parametrize("estimator", ["standard", "stl", "dreg", "vimco"])
def test_a_new_bound_is_one_row(estimator: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A third of the ELBO and the rest of the IWAE's bound, which CIWAE is with that β."""
    terms = (Term(1 / 3, 0.0), Term(2 / 3, 1.0))
    monkeypatch.setitem(objectives.OBJECTIVES, "mine", objectives.Bound(terms, by_copy=True))
    x = (_normal(B, D) > 0).double()
    results = []
    for objective in (
        objectives.Objective("mine", estimator),
        objectives.Objective("ciwae", estimator, beta=1 / 3),
    ):
        torch.manual_seed(0)
        model = DIWAE(D, Z, (6,), copies=2, samples=K, objective=objective).double()
        loss = model.loss(x, 7)
        results.append([loss, *torch.autograd.grad(loss, list(model.parameters()))])
    for mine, theirs in zip(*results, strict=True):
        torch.testing.assert_close(mine, theirs)


@pytest.mark.parametrize("estimator", ["standard", "stl", "dreg", "vimco"])
def test_renyi_of_alpha_0_is_the_importance_weighted_bound(estimator: str) -> None:
    x = (_normal(B, D) > 0).double()
    results = []
    cases: tuple[tuple[str, dict[str, Any]], ...] = (("iwae", {}), ("vr", {"alpha": 0.0}))
    for name, options in cases:
        torch.manual_seed(0)
        objective = objectives.Objective(name, estimator, **options)
        model = DIWAE(D, Z, (6,), copies=2, samples=K, objective=objective).double()
        loss = model.loss(x, 7)
        results.append([loss, *torch.autograd.grad(loss, list(model.parameters()))])
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other)
