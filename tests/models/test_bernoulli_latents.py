"""The model with binary latents: its noise, its bound, and VIMCO against an exact expectation."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from model_checks import rise
from plain_objectives import plain_bound, scores
from torch import Tensor
from torch.distributions import Bernoulli

from dvae_fast import corruptions, estimate_log_likelihood, reference
from dvae_fast.models import BernoulliLatentModel, bernoulli
from dvae_fast.objectives import Objective

M, B, K, Z, D = 3, 5, 7, 2, 11
SEED = 123
SIGMAS = 4.5  # two-sided: of a normal, a false alarm in 150,000


def _data() -> Tensor:
    return torch.rand(B, D, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def _bernoulli_model(**options: Any) -> BernoulliLatentModel:
    torch.manual_seed(0)
    options = {"samples": 3, "learn_prior": True, **options}
    model = BernoulliLatentModel(D, Z, (6,), **options).double()
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.3 * torch.randn_like(p))
    return model


def _all_latents() -> Tensor:
    return torch.tensor(list(itertools.product((0.0, 1.0), repeat=Z)), dtype=torch.float64)


def _enumerated(model: BernoulliLatentModel, x: Tensor) -> Tensor:
    """The bound's expectation over all (2^Z)^K samples, exactly: one example, no corruption."""
    h = _all_latents()
    log_q = Bernoulli(logits=model.encode(x)).log_prob(h).sum(-1)
    prior = torch.zeros(Z).double() if model.prior_logits is None else model.prior_logits
    log_joint = Bernoulli(logits=model.decode(h)).log_prob(x).sum(-1)  # type: ignore[arg-type]
    log_joint = log_joint + Bernoulli(logits=prior).log_prob(h).sum(-1)
    total = torch.zeros((), dtype=torch.float64)
    for choice in itertools.product(range(len(h)), repeat=model.samples):
        index = torch.tensor(choice)
        log_w = (log_joint - log_q)[index].view(1, 1, -1)
        total = total + log_q[index].sum().exp() * plain_bound(model.objective, log_w)[0]
    return total


@pytest.mark.parametrize(
    ("name", "learn_prior"), [("elbo", True), ("iwae", False), ("ciwae", False), ("vr", True)]
)
def test_vimco_has_the_enumerated_expectation(name: str, learn_prior: bool) -> None:
    """Value and every parameter's gradient, from 4,000 gradients of the same example.

    Means of 40 blocks, so Student's t of 39 degrees: the value is beyond 4.5 once in 17,000, each
    of some 100 coordinates beyond 5.5 once in 400,000.
    """
    model = _bernoulli_model(objective=Objective(name, "vimco"), learn_prior=learn_prior)
    x = (_data()[:1] > 0.5).double()
    exact = _enumerated(model, x)
    parameters = list(model.parameters())
    expected = torch.cat([g.flatten() for g in torch.autograd.grad(exact, parameters)])
    # Blocks of 100 copies of the example: a mean over each.
    blocks, values = [], []
    for seed in range(40):
        loss = model.loss(x.expand(100, -1), seed)
        values.append(-loss.detach())
        grads = torch.autograd.grad(-loss, parameters)
        blocks.append(torch.cat([g.flatten() for g in grads]))
    samples = torch.stack(blocks)
    assert float(scores(torch.stack(values).unsqueeze(1), exact.detach())) < SIGMAS
    moving = samples.std(0) > 1e-12
    torch.testing.assert_close(samples[:, ~moving].mean(0), expected[~moving])
    distance = scores(samples[:, moving], expected[moving])
    assert bool((distance < 5.5).all()), distance.max()


def test_bernoulli_latents_have_their_probabilities() -> None:
    logits = torch.tensor([[-30.0, -3.0, -0.5, 0.0, 0.5, 3.0, 30.0]], dtype=torch.float64)
    n = 100_000
    h = bernoulli.draw_bernoulli(logits, n, 1)[0]
    p = torch.sigmoid(logits[0])
    assert set(h.unique().tolist()) == {0.0, 1.0}
    error = (p * (1 - p) / n).sqrt()
    assert bool(((h.mean(0) - p).abs() <= SIGMAS * error).all())
    assert torch.equal(bernoulli.draw_bernoulli(logits, 10, 1)[0], h[:10])
    single = bernoulli.draw_bernoulli(logits.float(), n, 1)[0]
    assert float((single.double() - h).abs().mean()) < 1e-4


@pytest.mark.parametrize("m", [1, M])
def test_the_bernoulli_models_bound_is_the_formula(m: int) -> None:
    corruption = corruptions.Masking(0.4)
    model = _bernoulli_model(samples=K, copies=m, corruption=corruption, objective="iwae")
    x = _data()
    key = torch.tensor([SEED])
    noisy = reference.corrupt(x, "masking", corruption.parameter, None, key, m, 0, 0)
    logits = model.encode(noisy)
    h = bernoulli.draw_bernoulli(logits, K, SEED)
    q, p = Bernoulli(logits=logits.unsqueeze(2)), Bernoulli(logits=model.prior_logits)
    likelihood = Bernoulli(logits=model.decoder(h), validate_args=False)
    log_w = likelihood.log_prob(x.view(1, B, 1, D)).sum(-1)
    log_w = log_w + p.log_prob(h).sum(-1) - q.log_prob(h).sum(-1)
    expected = plain_bound(Objective("iwae"), log_w).detach()
    torch.testing.assert_close(model.bound(x, SEED), expected)
    torch.testing.assert_close(model.loss(x, SEED).detach(), -expected.mean())
    parts = [model.bound(x[:2], SEED), model.bound(x[2:], SEED, first_example=2)]
    torch.testing.assert_close(torch.cat(parts), expected)


def test_the_bernoulli_model_learns() -> None:
    torch.manual_seed(0)
    model = BernoulliLatentModel(D, 8, (16,), samples=5, learn_prior=True)
    x = (_data().repeat(8, 1) > 0.5).float()
    before = float(model.bound(x, 1).mean())
    # Five distinct images: ln 5 = 1.6 nats each would be the end.
    assert before + rise(model, x, 150, 2e-2) > -3.5 > before
    images = model.sample(6, 1)
    assert images.shape == (6, D)
    assert torch.equal(images, model.sample(6, 1))
    assert float((model.reconstruct(x) - x).abs().mean()) < 0.15


@pytest.mark.parametrize("learn_prior", [True, False])
def test_the_log_likelihood_is_that_of_all_latents(learn_prior: bool) -> None:
    """Against Σ_h p(x, h) exactly; 5 standard errors of the mean, and no bias but that of a log."""
    model, x = _bernoulli_model(learn_prior=learn_prior), (_data().repeat(4, 1) > 0.5).double()
    h = _all_latents()
    prior = torch.zeros(Z).double() if model.prior_logits is None else model.prior_logits
    with torch.no_grad():
        log_p = Bernoulli(logits=model.decode(h)).log_prob(x.unsqueeze(1)).sum(-1)
        exact = torch.logsumexp(log_p + Bernoulli(logits=prior).log_prob(h).sum(-1), -1)
    estimate = estimate_log_likelihood(model, x, 4000, seed=SEED)
    error = estimate.log_likelihood + 0.5 * estimate.standard_error**2 - exact
    assert 0 < estimate.mean_standard_error < 0.01
    assert bool((error.abs() < 5 * estimate.standard_error).all())
    parts = estimate_log_likelihood(model, x, 4000, seed=SEED, batch_size=3, chunk=700)
    torch.testing.assert_close(parts.log_likelihood, estimate.log_likelihood)
    # What is spent on an example alone is of the same noise.
    sure = estimate_log_likelihood(model, x, 100, seed=SEED, tolerance=1e-9, max_k=4000)
    torch.testing.assert_close(sure.log_likelihood, estimate.log_likelihood)
    with pytest.raises(ValueError, match="proposal must be posterior for binary latents"):
        estimate_log_likelihood(
            model, x, 9, proposal="mixture", corruption=corruptions.Masking(0.3)
        )
