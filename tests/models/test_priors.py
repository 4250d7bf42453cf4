"""Priors by name: densities against torch.distributions, draws against densities, and saving."""

from __future__ import annotations

import copy
import io
import math
from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch import Tensor, nn
from torch.distributions import Categorical, Independent, MixtureSameFamily, Normal

import dvae_fast
from dvae_fast.evaluation import estimate_log_likelihood
from dvae_fast.models import (
    MODELS,
    GaussianMixture,
    VampPrior,
    load_model,
    make_model,
    save_model,
)
from dvae_fast.training import default_config

if TYPE_CHECKING:
    from pathlib import Path

B, D, Z, K, N, C, SEED = 5, 12, 3, 7, 4, 2, 9
NAMES = ("mixture", "vamp")


def _model(prior: Any, name: str = "iwae", **options: Any) -> Any:
    torch.manual_seed(3)
    sizes = {"hidden_sizes": (6,), "prior_components": N, "prior": prior}
    model = make_model(name, D, Z, **(sizes | options)).double()
    with torch.no_grad():
        for p in model.prior.parameters():
            p.add_(0.3 * torch.randn_like(p))
    return model


def _data() -> Tensor:
    return torch.rand(B, D, generator=torch.Generator().manual_seed(2), dtype=torch.float64).round()


def _by_torch(model: Any, context: Tensor | None = None) -> Any:
    """p(z) of torch.distributions, with a batch of the context's rows if there is one."""
    prior = model.prior
    if isinstance(prior, GaussianMixture):
        logits = prior.logits if context is None else prior.logits + prior.shares(context)
        mean, log_var = (
            t if context is None else t.expand(len(context), N, Z)
            for t in (prior.means, prior.log_vars)
        )
    else:
        u = prior.pseudo_inputs.clamp(0, 1)
        told = []
        if context is not None:
            u = u.expand(len(context), N, D)
            told = [context.unsqueeze(1)]
        mean, log_var = model.encode(u, *told)
        logits = torch.zeros(mean.shape[:-1], dtype=mean.dtype)
    parts = Independent(Normal(mean, torch.exp(0.5 * log_var)), 1)
    return MixtureSameFamily(Categorical(logits=logits), parts)


@pytest.mark.parametrize("name", NAMES)
def test_the_density(name: str) -> None:
    model = _model(name)
    z = torch.randn(2, B, K, Z, dtype=torch.float64)
    expected = _by_torch(model).log_prob(z)
    torch.testing.assert_close(model.log_prior(z), expected)
    torch.testing.assert_close(model.log_prior(z[0, 0]), expected[0, 0])
    parameters = list(model.prior.parameters())
    weights = torch.randn_like(expected)
    found = torch.autograd.grad((model.log_prior(z) * weights).sum(), parameters)
    wanted = torch.autograd.grad((expected * weights).sum(), parameters)
    for a, b in zip(found, wanted, strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("name", NAMES)
def test_the_density_given_a_context(name: str) -> None:
    model = _model(name, context_size=C)
    context = torch.rand(B, C, dtype=torch.float64)
    z = torch.randn(2, B, K, Z, dtype=torch.float64)
    expected = _by_torch(model, context).log_prob(z.transpose(1, 2)).transpose(1, 2)
    torch.testing.assert_close(model.log_prior(z, context.unsqueeze(1)), expected)
    torch.testing.assert_close(model.log_prior(z[0, :, 0], context), expected[0, :, 0])


@pytest.mark.parametrize("name", NAMES)
def test_the_bound_and_the_estimate_hold_it(name: str) -> None:
    model, x = _model(name, samples=K), _data()
    mean, log_var = model.encode(x)
    z, _ = dvae_fast.sample_latent(mean, log_var, K, SEED)
    q = Normal(mean.unsqueeze(1), torch.exp(0.5 * log_var).unsqueeze(1))
    ratio = _by_torch(model).log_prob(z) - q.log_prob(z).sum(-1)
    log_w = dvae_fast.log_weights(model.decode(z), x, ratio)
    expected = torch.logsumexp(log_w, 1).detach() - math.log(K)
    torch.testing.assert_close(model.bound(x, SEED), expected)
    for options in ({}, {"chunk": 3, "batch_size": 2}):
        found = estimate_log_likelihood(model, x, K, seed=SEED, **options)
        torch.testing.assert_close(found.log_likelihood, expected)
    model.loss(x, SEED).backward()
    for p in model.prior.parameters():
        assert bool((p.grad != 0).any())


@pytest.mark.parametrize("context", [False, True])
@pytest.mark.parametrize("name", NAMES)
def test_draws_have_the_density(name: str, context: bool) -> None:
    """First and second moments of 20,000 draws, 5 of their standard errors: over 12 numbers and 4
    cases a false alarm in 30,000."""
    model = _model(name, context_size=C if context else 0)
    n = 20_000
    told = torch.tensor([[0.2, 1.0]], dtype=torch.float64) if context else None
    given = {} if told is None else {"context": told.expand(n, C)}
    z = model.prior.sample(n, generator=torch.Generator().manual_seed(1), **given)
    assert z.shape == (n, Z)
    q = _by_torch(model, told)
    mean, variance = q.mean.reshape(Z), q.variance.reshape(Z)
    for found, expected in ((z, mean), (z.square(), variance + mean.square())):
        error = found.mean(0) - expected.detach()
        assert bool((error.abs() < 5 * found.std(0) / math.sqrt(n)).all())
    images = model.sample(6, SEED, **({} if told is None else {"context": told.expand(6, C)}))
    assert images.shape == (6, D)


def test_a_full_posterior_and_a_distribution_as_parts_of_vamp() -> None:
    model = _model("vamp", covariance="full")
    mean, factor = model.encode(model.prior.pseudo_inputs.clamp(0, 1))
    parts = torch.distributions.MultivariateNormal(mean, scale_tril=factor)
    expected = MixtureSameFamily(Categorical(torch.ones(N).double()), parts)
    z = torch.randn(B, K, Z, dtype=torch.float64)
    torch.testing.assert_close(model.log_prior(z), expected.log_prob(z))

    class Encoder(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(D, Z)

        def forward(self, x: Tensor) -> Any:
            return Normal(self.layer(x), 0.7)

    model = _model("vamp", encoder=Encoder())
    parts = Independent(model.encode(model.prior.pseudo_inputs.clamp(0, 1)), 1)
    expected = MixtureSameFamily(Categorical(torch.ones(N).double()), parts)
    torch.testing.assert_close(model.log_prior(z), expected.log_prob(z))
    assert model.sample(3, SEED).shape == (3, D)


def test_pseudo_inputs_are_seen_as_they_are_and_start_at_the_mean() -> None:
    """Not corrupted, kept in the data's interval, and among the model's parameters once."""
    mean = torch.linspace(0, 1, D)
    model = make_model("diwae", D, Z, (6,), prior="vamp", prior_components=500, data_mean=mean)
    start = model.prior.pseudo_inputs.detach()
    assert start.shape == (500, D)
    # 5 standard errors of 12 means: a false alarm in 100,000.
    assert bool(((start.mean(0) - mean).abs() < 5 * 0.1 / math.sqrt(500)).all())
    seen = []
    model.encoder.register_forward_hook(lambda _, given, __: seen.append(given[0]))
    model.log_prior(torch.randn(2, 3, Z))
    assert torch.equal(seen[0], start.clamp(0, 1))
    assert [n for n, _ in model.named_parameters() if n.startswith("prior")] == [
        "prior.pseudo_inputs"
    ]
    assert len(set(model.state_dict())) == len(list(model.parameters()))


@pytest.mark.parametrize("name", NAMES)
def test_kept_in_a_file_and_copied(name: str, tmp_path: Path) -> None:
    model, x = _model(name, context_size=C), _data()
    y = torch.arange(B) % C
    expected = model.bound(x, SEED, context=y)
    save_model(tmp_path / "model.safetensors", model)
    again: Any = load_model(tmp_path / "model.safetensors")
    torch.testing.assert_close(again.bound(x, SEED, context=y), expected)
    with io.BytesIO() as file:
        torch.save(model, file)
        file.seek(0)
        pickled = torch.load(file, weights_only=False)
    for other in (copy.deepcopy(model), pickled):
        with torch.no_grad():
            next(model.encoder.parameters()).add_(1.0)  # a copy has an encoder of its own
        torch.testing.assert_close(other.bound(x, SEED, context=y), expected)


def test_an_object_of_ones_own_choice() -> None:
    torch.manual_seed(1)
    named = make_model("vae", D, Z, (6,), prior="vamp", prior_components=N)
    given = make_model("vae", D, Z, (6,), prior=VampPrior(D, N, interval=(0.0, 1.0)))
    given.load_state_dict(named.state_dict())
    x = _data().float()
    assert torch.equal(given.loss(x, SEED), named.loss(x, SEED))
    mixture = make_model("vae", D, Z, (6,), prior=GaussianMixture(Z, N))
    mixture.prior = VampPrior(D, N)  # another in its place knows its model, too
    assert bool(mixture.loss(x, SEED).isfinite())
    with pytest.raises(ValueError, match="prior must be that of a model"):
        VampPrior(D, N).log_prob(torch.zeros(2, Z))


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("bernoulli", {"prior": "mixture"}, "prior must be standard, .* for binary latents"),
        ("bernoulli", {"prior": "vamp"}, "prior must be standard, .* for binary latents"),
        ("two_layer", {"prior": "vamp"}, "prior must be standard or mixture, .* two layers"),
        ("vae", {"prior": "mixture", "objective": "elbo_kl"}, "elbo_kl with the prior mixture"),
        ("vae", {"prior": "vamp", "prior_components": 0}, "prior_components must be >= 1"),
        ("vae", {"prior": "wamp"}, "did you mean 'vamp'"),
    ],
)
def test_what_does_not_go_together(name: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_model(name, D, Z, (6,), **options)
    with pytest.raises(ValueError, match=message):  # for the trainer and the command line, too
        default_config(name, "digits", **options)


def test_two_layers_take_a_mixture_above() -> None:
    model = _model("mixture", "two_layer", upper_latent_size=2, upper_hidden_sizes=(5,))
    assert model.prior.means.shape == (N, 2)
    model.loss(_data(), SEED).backward()
    assert bool((model.prior.means.grad != 0).any())
    assert model.sample(3, SEED).shape == (3, D)
    assert set(MODELS) >= {"two_layer"}
