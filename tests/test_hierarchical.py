"""Two layers of latents, against a linear-Gaussian model with an exact log p(x)."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from dvae_fast import annealed_importance_sampling, estimate_log_likelihood, functional, objectives
from dvae_fast.corruptions import Masking
from dvae_fast.hierarchical import TwoLayerModel

B, D, Z1, Z2, M, K, SEED = 7, 6, 3, 2, 4, 5, 9


def _model(**options: Any) -> TwoLayerModel:
    torch.manual_seed(0)
    return TwoLayerModel(D, (Z1, Z2), (8,), (5, 4), **{"K": K, **options}).double()


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


@pytest.mark.parametrize("m", [1, M])
@pytest.mark.parametrize("objective", ["elbo", "iwae", "iwae-joint", "ciwae", "vr", "mixture"])
def test_loss_is_the_negative_bound_of_the_formula(objective: str, m: int) -> None:
    """log p(x|z₁) + log p(z₁|z₂) + log p(z₂) − log q(z₁|x̃) − log q(z₂|z₁), by torch's densities."""
    model = _model(objective=objective, M=m, corruption=Masking(0.3))
    x = _data()
    loss = model.loss(x, SEED)
    torch.testing.assert_close(-model.bound(x, SEED).mean(), loss.detach())
    if objective not in ("elbo", "iwae"):
        return
    noisy = functional.corrupt(x, model.corruption, m, SEED)  # type: ignore[arg-type]
    mean, log_var = model.encode(noisy)
    z, _, _ = objectives.sample_latents(mean, log_var, K, model.objective, SEED)
    elbo = objective == "elbo"
    if elbo:
        mean, log_var = mean.unsqueeze(1), log_var.unsqueeze(1)  # (M, K, B, 1, Z)
    zero = z.new_zeros(*z.shape[:-2], Z2)
    key = functional._derived_key(torch.tensor([SEED]), 2)
    noise, _ = functional.sample_latent(zero, zero, z.shape[-2], key)
    mean2, log_var2 = model.upper_encoder(z)
    above = mean2 + torch.exp(0.5 * log_var2) * noise

    def log_normal(value: Tensor, loc: Tensor, log_variance: Tensor) -> Tensor:
        scale = torch.exp(0.5 * log_variance)
        return torch.distributions.Normal(loc, scale).log_prob(value).sum(-1)

    target = x.unsqueeze(1).expand(*z.shape[:-1], D)
    log_p = -nn.functional.binary_cross_entropy_with_logits(
        model.decode(z), target, reduction="none"
    ).sum(-1)
    log_w = (
        log_p
        + log_normal(z, *model.upper_decoder(above))
        + log_normal(above, torch.zeros(()).double(), torch.zeros(()).double())
        - log_normal(z, mean.unsqueeze(-2), log_var.unsqueeze(-2))
        - log_normal(above, mean2, log_var2)
    )
    inside = torch.logsumexp(log_w, -1) - math.log(log_w.shape[-1])
    torch.testing.assert_close(loss, -inside.mean())


def test_every_parameter_learns_and_the_bound_rises() -> None:
    model, x = _model(K=3).float(), _data(50).float()
    optimiser = torch.optim.Adam(model.parameters(), 1e-2)
    before = float(model.bound(x, SEED).mean())
    for step in range(60):
        optimiser.zero_grad()
        model.loss(x, step).backward()
        assert all(p.grad is not None and bool((p.grad != 0).any()) for p in model.parameters())
        optimiser.step()
    assert float(model.bound(x, SEED).mean()) > before + 0.2


def test_samples_and_reconstructions() -> None:
    model = _linear()
    draws = model.sample(4000, SEED)
    above, below = model.upper_decoder.linear, model.decoder.linear
    with torch.no_grad():
        prior = above.weight @ above.weight.T + 0.5 * torch.eye(Z1).double()
        covariance = below.weight @ prior @ below.weight.T
    torch.testing.assert_close(torch.cov(draws.T), covariance, rtol=0.1, atol=0.1)
    assert model.reconstruct(_data()).shape == (B, D)
    assert _model().sample(3, SEED).shape == (3, D)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"latent_sizes": (3,)}, "latent_sizes must be two, of z₁ and z₂; got 1"),
        ({"latent_sizes": (3, 0)}, r"latent_sizes\[1\] must be >= 1, got 0"),
        ({"objective": "elbo-kl"}, "objective must be any but elbo-kl and piwae, with the stand"),
        ({"objective": "piwae"}, "objective must be any but elbo-kl and piwae"),
        ({"objective": objectives.Objective("iwae", "dreg")}, "objective must be any but"),
    ],
)
def test_wrong_arguments(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TwoLayerModel(D, **options)


def test_annealing_is_for_one_layer() -> None:
    with pytest.raises(ValueError, match="model must have one layer of latents"):
        annealed_importance_sampling(_model(), _data())
