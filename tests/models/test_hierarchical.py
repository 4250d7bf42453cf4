"""Two layers of latents, against a linear-Gaussian model with an exact log p(x)."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from plain_objectives import plain_bound
from torch import Tensor, nn

from dvae_fast import (
    annealed_importance_sampling,
    corruptions,
    estimate_log_likelihood,
    functional,
    objectives,
)
from dvae_fast._seeds import derived_key
from dvae_fast.corruptions import Masking
from dvae_fast.models import TwoLayerModel

B, D, Z1, Z2, M, K, SEED = 7, 6, 3, 2, 4, 5, 9


def _model(**options: Any) -> TwoLayerModel:
    torch.manual_seed(0)
    return TwoLayerModel(
        D, Z1, (8,), upper_latent_size=Z2, upper_hidden_sizes=(10, 9), **{"samples": K, **options}
    ).double()


def _data(n: int = B) -> Tensor:
    g = torch.Generator().manual_seed(1)
    return torch.rand(n, D, generator=g, dtype=torch.float64).round()


class Affine(nn.Module):
    """(..., n) → (W x + b, log σ²)."""

    def __init__(self, n: int, m: int, variance: float, *, log: bool = True) -> None:
        super().__init__()
        self.linear = nn.Linear(n, m).double()
        self.variance, self.log = variance, log

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        mean: Tensor = self.linear(x)
        spread = math.log(self.variance) if self.log else math.sqrt(self.variance)
        return mean, torch.full_like(mean, spread)


def _linear(**options: Any) -> TwoLayerModel:
    """z₂ ~ N(0, I), z₁ = A z₂ + a + N(0, ½), x = W z₁ + w + N(0, 0.36); posteriors too wide."""
    model = _model(likelihood="gaussian", **options)
    torch.manual_seed(2)
    model.upper_decoder = Affine(Z2, Z1, 0.5)
    model.decoder = Affine(Z1, D, 0.36, log=False)
    above, below = model.upper_decoder.linear, model.decoder.linear
    with torch.no_grad():
        prior = above.weight @ above.weight.T + 0.5 * torch.eye(Z1).double()
        gain = prior @ below.weight.T
        evidence = below.weight @ gain + 0.36 * torch.eye(D).double()
        # The mean of p(z₁|x), and of p(z₂|z₁); variances 1.5 times too large at least.
        model.encoder = Affine(D, Z1, 0.75)
        slope = gain @ torch.linalg.inv(evidence)
        model.encoder.linear.weight.copy_(slope)
        model.encoder.linear.bias.copy_(
            above.bias - slope @ (below.weight @ above.bias + below.bias)
        )
        model.upper_encoder = Affine(Z1, Z2, 1.2)
        slope = above.weight.T @ torch.linalg.inv(prior)
        model.upper_encoder.linear.weight.copy_(slope)
        model.upper_encoder.linear.bias.copy_(-slope @ above.bias)
    return model


def _exact(model: TwoLayerModel, x: Tensor) -> Tensor:
    above, below = model.upper_decoder.linear, model.decoder.linear
    with torch.no_grad():
        prior = above.weight @ above.weight.T + 0.5 * torch.eye(Z1).double()
        covariance = below.weight @ prior @ below.weight.T + 0.36 * torch.eye(D).double()
        mean = below.weight @ above.bias + below.bias
    return torch.distributions.MultivariateNormal(mean, covariance).log_prob(x)


@pytest.mark.parametrize("proposal", ["posterior", "corrupted", "mixture"])
def test_log_likelihood_is_exact(proposal: str) -> None:
    """5 standard errors of the mean: a false alarm in 2 million, were the noise drawn anew."""
    model = _linear(corruption=Masking(0.1))
    x = torch.randn(60, D, generator=torch.Generator().manual_seed(3)).double()
    estimate = estimate_log_likelihood(model, x, 3000, proposal=proposal, copies=M, seed=SEED)
    bias = 0.5 * float(estimate.standard_error.square().mean())
    assert 0 < estimate.mean_standard_error < 0.02
    error = estimate.mean + bias - float(_exact(model, x).mean())
    assert abs(error) < 5 * estimate.mean_standard_error
    assert bool((estimate.curve.mean(0).diff() > 0).all())


def test_any_split_gives_the_same_numbers() -> None:
    model, x = _model(), _data()
    whole = estimate_log_likelihood(model, x, 23, batch_size=B, chunk=23, seed=SEED)
    for batch_size, chunk in ((1, 4), (3, 22), (None, 1)):
        part = estimate_log_likelihood(model, x, 23, batch_size=batch_size, chunk=chunk, seed=SEED)
        torch.testing.assert_close(part.log_likelihood, whole.log_likelihood)


def _log_normal(value: Tensor, mean: Tensor, log_var: Tensor) -> Tensor:
    return torch.distributions.Normal(mean, torch.exp(0.5 * log_var)).log_prob(value).sum(-1)


def _by_groups(t: Tensor, objective: str, m: int) -> Tensor:
    """What `sample_latents` lays out for the objective, dimensions after z's samples as they are:
    (M, B, K, ...)."""
    if objective in ("iwae_joint", "mixture", "sivi"):
        return t.unflatten(1, (m, K)).transpose(0, 1)
    if objective == "mixture_elbo":
        return t.squeeze(2).unflatten(0, (m, K)).transpose(1, 2)
    return t.squeeze(3).transpose(1, 2) if objective == "elbo" else t


@pytest.mark.parametrize("m", [1, M])
@pytest.mark.parametrize(
    "objective",
    ["elbo", "iwae", "iwae_joint", "ciwae", "vr", "vr_max", "mixture", "mixture_elbo", "sivi"],
)
def test_loss_and_gradient_are_those_of_the_formula(objective: str, m: int) -> None:
    """log p(x|z₁) + log p(z₁|z₂) + log p(z₂) − log q(z₁|x̃) − log q(z₂|z₁), by torch's densities,
    for a mixture with the mean of q(z₁|x̃_m) over m in the place of q(z₁|x̃), for SIVI with that
    of its own and the further ones."""
    # Not the defaults of ½, which cannot tell β from 1 − β.
    parameter = {"ciwae": {"beta": 0.3}, "vr": {"alpha": 0.3}}.get(objective, {})
    chosen = objectives.Objective(objective, **parameter)
    model = _model(objective=chosen, copies=m, corruption=Masking(0.3))
    x, parameters = _data(), list(model.parameters())
    loss = model.loss(x, SEED)
    gradient = torch.autograd.grad(loss, parameters)
    outer = model.options.outer_samples if objective == "sivi" else 0
    noisy = corruptions.corrupt(x, model.corruption, m + outer, SEED)  # type: ignore[arg-type]
    every = tuple(t.unsqueeze(2) for t in model.encode(noisy))  # (M + J, B, 1, Z₁)
    mean, log_var = (t[:m] for t in every)
    with torch.no_grad():
        z, _, _ = objectives.sample_latents(mean[:, :, 0], log_var[:, :, 0], K, chosen, SEED)
        zero = z.new_zeros(*z.shape[:-2], Z2)
        key = derived_key(torch.tensor([SEED]), 2)
        noise, _ = functional.sample_latent(zero, zero, z.shape[-2], key)
        z, noise = (_by_groups(t, objective, m) for t in (z, noise))
        own = (z - mean) / torch.exp(0.5 * log_var)
    z = mean + torch.exp(0.5 * log_var) * own
    mean2, log_var2 = model.upper_encoder(z)
    above = mean2 + torch.exp(0.5 * log_var2) * noise
    log_q = _log_normal(z, mean, log_var)
    if objective.startswith("mixture"):
        each = _log_normal(z, mean[:, None], log_var[:, None])  # (M, M, B, K)
        log_q = torch.logsumexp(each, 0) - math.log(m)
    if objective == "sivi":
        each = _log_normal(z, *(t[m:, None] for t in every))  # (J, M, B, K)
        log_q = torch.logsumexp(torch.cat((log_q.unsqueeze(0), each)), 0) - math.log(1 + outer)
    log_p = -nn.functional.binary_cross_entropy_with_logits(
        model.decode(z), x.unsqueeze(1).expand(*z.shape[:-1], D), reduction="none"
    ).sum(-1)
    log_w = (
        log_p
        + _log_normal(z, *model.upper_decoder(above))
        + _log_normal(above, torch.zeros(()).double(), torch.zeros(()).double())
        - log_q
        - _log_normal(above, mean2, log_var2)
    )
    plain = plain_bound(chosen, log_w)
    torch.testing.assert_close(model.bound(x, SEED), plain)
    torch.testing.assert_close(loss, -plain.mean())
    torch.testing.assert_close(gradient, torch.autograd.grad(-plain.mean(), parameters))


def test_every_parameter_learns_and_the_bound_rises() -> None:
    model, x = _model().float(), _data(50).float()
    optimiser = torch.optim.Adam(model.parameters(), 1e-2)
    before = float(model.bound(x, SEED).mean())
    for step in range(60):
        optimiser.zero_grad()
        model.loss(x, step).backward()
        assert all(p.grad is not None and bool((p.grad != 0).any()) for p in model.parameters())
        optimiser.step()
    assert float(model.bound(x, SEED).mean()) > before + 0.2


def test_samples_and_reconstructions() -> None:
    """6 standard errors of each of 6 means and 21 covariances: a false alarm in 10 million."""
    model, n = _linear(), 4000
    draws = model.sample(n, SEED)
    above, below = model.upper_decoder.linear, model.decoder.linear
    with torch.no_grad():
        prior = above.weight @ above.weight.T + 0.5 * torch.eye(Z1).double()
        covariance = below.weight @ prior @ below.weight.T
        mean = below.weight @ above.bias + below.bias
    variance = covariance.diagonal()
    assert bool(((draws.mean(0) - mean).abs() < 6 * (variance / n).sqrt()).all())
    error = ((variance.outer(variance) + covariance.square()) / n).sqrt()
    assert bool(((torch.cov(draws.T) - covariance).abs() < 6 * error).all())
    assert model.reconstruct(_data()).shape == (B, D)
    assert _model().sample(3, SEED).shape == (3, D)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"latent_size": 0}, "latent_size must be >= 1, got 0"),
        ({"upper_latent_size": 0}, "upper_latent_size must be >= 1, got 0"),
        ({"upper_hidden_sizes": (3, 0)}, r"upper_hidden_sizes\[1\] must be >= 1, got 0"),
        ({"objective": "elbo_kl"}, "objective must be any but elbo_kl and piwae, with the stand"),
        ({"objective": "piwae"}, "objective must be any but elbo_kl and piwae"),
        ({"objective": objectives.Objective("iwae", "dreg")}, "objective must be any but"),
    ],
)
def test_wrong_arguments(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TwoLayerModel(D, **options)


def test_annealing_is_for_one_layer() -> None:
    with pytest.raises(ValueError, match="model must have one layer of latents"):
        annealed_importance_sampling(_model(), _data())
