"""Annealed importance sampling of models with priors other than N(0, I), against exact answers."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import pytest
import torch
from linear_gaussian import D, Z, linear_gaussian
from refusals import refusals
from torch import Tensor, nn
from torch.distributions import (
    AffineTransform,
    Categorical,
    Independent,
    MixtureSameFamily,
    MultivariateNormal,
    Normal,
    TanhTransform,
    TransformedDistribution,
)

from dvae_fast.evaluation import (
    annealed_importance_sampling,
    bidirectional_monte_carlo,
    estimate_log_likelihood,
)
from dvae_fast.models import IWAE, TwoLayerModel

if TYPE_CHECKING:
    from collections.abc import Callable

C, SEED = 3, 99
SHORT: dict[str, Any] = {"chains": 5, "temperatures": 6, "leapfrog": 3, "seed": SEED}


class Own:
    """Two Gaussians beside the origin, and no module."""

    def __init__(self) -> None:
        mean = torch.tensor([[1.5, -0.8], [-1.0, 1.0]], dtype=torch.float64)
        parts = Independent(Normal(mean, torch.tensor(0.9, dtype=torch.float64)), 1)
        logits = torch.tensor([0.0, 1.0], dtype=torch.float64)
        self.p = MixtureSameFamily(Categorical(logits=logits), parts)

    def log_prob(self, z: Tensor) -> Tensor:
        return self.p.log_prob(z)

    def sample(self, n: int, generator: torch.Generator | None = None) -> Tensor:
        logits = self.p.mixture_distribution.logits.expand(n, -1)
        which = torch.multinomial(logits.exp(), 1, generator=generator).squeeze(1)
        mean = self.p.component_distribution.mean[which]
        return mean + 0.9 * torch.randn(n, Z, generator=generator, dtype=torch.float64)


def _model(prior: Any, start: str, *, context: bool = False) -> Any:
    """The linear Gaussian model whose encoder is the posterior under N(0, I), thrice as wide; where
    chains start at the prior, of more noise, so that they have less far to go."""
    torch.manual_seed(4)
    more = {"context_size": 2} if context else {}
    noise = 0.7 if start == "posterior" else 1.5
    model = linear_gaussian("iwae", widen=3.0, noise=noise, prior=prior, prior_components=C, **more)
    if isinstance(model.prior, nn.Module):
        with torch.no_grad():
            for p in model.prior.parameters():
                p.add_(0.5 * torch.randn_like(p))
    return model


def _prior(model: Any, context: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
    """Shares (N or 1, C), means (C, Z) and variances (C, Z)."""
    prior = model.prior
    if isinstance(prior, Own):
        parts = prior.p.component_distribution
        return prior.p.mixture_distribution.probs[None], parts.mean, parts.variance
    if hasattr(prior, "means"):
        logits = prior.logits if context is None else prior.logits + prior.shares(context)
        return torch.softmax(torch.atleast_2d(logits), -1), prior.means, prior.log_vars.exp()
    mean, log_var = model.encode(prior.pseudo_inputs)
    return torch.full((1, len(mean)), 1 / len(mean), dtype=mean.dtype), mean, log_var.exp()


@torch.no_grad()
def _exact(model: Any, x: Tensor, context: Tensor | None = None) -> Tensor:
    """log p(x): each Gaussian of the prior makes one of x."""
    shares, mean, variance = _prior(model, context)
    decoder = model.decoder
    noise = decoder.noise**2 * torch.eye(D, dtype=x.dtype)
    covariance = decoder.weight @ torch.diag_embed(variance) @ decoder.weight.T + noise
    of_each = MultivariateNormal(mean @ decoder.weight.T + decoder.bias, covariance)
    return torch.logsumexp(shares.log() + of_each.log_prob(x.unsqueeze(1)), 1)


#: the prior, and where chains start; a vamp's is a mixture of Gaussians from there on
each_prior = pytest.mark.parametrize(
    ("prior", "start"),
    [
        ("mixture", "posterior"), ("vamp", "posterior"), (own := Own(), "posterior"),
        ("mixture", "prior"), (own, "prior"),
    ],
    ids=lambda value: value if isinstance(value, str) else "own",
)  # fmt: skip


@each_prior
def test_the_exact_answer_lies_between_the_bounds(prior: Any, start: str) -> None:
    """5 standard errors of each mean: by Student's t of 100 examples a false alarm of the 10 bounds
    in 80,000, were the noise drawn anew; less for the bias of a log, which points away."""
    model = _model(prior, start)
    n = 100
    estimate = bidirectional_monte_carlo(
        model, n, chains=5, temperatures=25, leapfrog=3, start=start, seed=SEED
    )
    exact = _exact(model, estimate.x)
    lower, upper = estimate.lower - exact, estimate.upper - exact
    for error in (lower, -upper):
        assert float(error.mean()) < 5 * float(error.std()) / math.sqrt(n)
        assert float(error.mean()) > -0.3
    # What leaves out log p(z) − log N(z; 0, I) is off by more.
    plain = linear_gaussian("iwae", widen=3.0, noise=model.decoder.noise)
    without = annealed_importance_sampling(plain, estimate.x[:20], **SHORT).log_likelihood
    assert float((without - exact[:20]).abs().mean()) > 0.3


@pytest.mark.parametrize("start", ["posterior", "prior"])
def test_weights_are_unbiased(start: str) -> None:
    """E w = p(x) and in reverse E 1/w = 1/p(x) with few temperatures: |z| < 4.5, a false alarm in
    100,000 each."""
    model = _model("mixture", start)
    n = 1000
    estimate = bidirectional_monte_carlo(
        model, n, chains=3, temperatures=5, leapfrog=3, start=start, seed=SEED
    )
    exact = _exact(model, estimate.x)
    for error in (estimate.lower - exact, exact - estimate.upper):
        ratio = error.exp()
        spread = float(ratio.std()) / math.sqrt(n)
        assert spread < 0.1
        assert abs(float(ratio.mean()) - 1) < 4.5 * spread


@pytest.mark.parametrize("start", ["posterior", "prior"])
def test_a_prior_that_is_told_the_context(start: str) -> None:
    """As the bounds above, of 150 examples and their contexts."""
    model = _model("mixture", start, context=True)
    with torch.no_grad():
        model.prior.shares.weight.mul_(4)
    decoder, encoder = model.decoder, model.encoder

    class Deaf(nn.Module):
        def __init__(self, inner: nn.Module) -> None:
            super().__init__()
            self.inner, self.weight = inner, decoder.weight
            self.bias, self.noise = decoder.bias, decoder.noise

        def forward(self, x: Tensor, context: Tensor | None = None) -> Any:
            return self.inner(x)

    model.decoder, model.encoder = Deaf(decoder), Deaf(encoder)
    context = torch.eye(2, dtype=torch.float64)[torch.arange(150) % 2]
    estimate = bidirectional_monte_carlo(
        model, 150, context=context, chains=5, temperatures=20, leapfrog=3, start=start, seed=SEED
    )
    exact = _exact(model, estimate.x, context)
    for error in (estimate.lower - exact, exact - estimate.upper):
        assert -0.3 < float(error.mean()) < 5 * float(error.std()) / math.sqrt(150)
    assert float((exact - _exact(model, estimate.x, context.flip(1))).abs().mean()) > 0.5


@pytest.mark.parametrize(
    ("prior", "start"), [("mixture", "prior"), ("vamp", "posterior"), (Own(), "posterior")],
    ids=["mixture", "vamp", "own"],
)  # fmt: skip
def test_any_batch_size_gives_the_same_numbers(prior: Any, start: str) -> None:
    model = _model(prior, start)
    x = torch.randn(7, D, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    whole = annealed_importance_sampling(model, x, start=start, **SHORT)
    split = annealed_importance_sampling(model, x, start=start, batch_size=3, **SHORT)
    rest = annealed_importance_sampling(model, x[3:], start=start, first_example=3, **SHORT)
    torch.testing.assert_close(split.log_likelihood, whole.log_likelihood)
    torch.testing.assert_close(rest.log_likelihood, whole.log_likelihood[3:])


def test_one_temperature_is_importance_sampling_from_the_prior() -> None:
    """log mean of p(x|z), z ~ p(z): 5 standard errors of both, a false alarm in a million."""
    model = _model("mixture", "prior")
    x = torch.randn(9, D, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    few = annealed_importance_sampling(
        model, x, chains=4000, temperatures=1, start="prior", seed=SEED
    )
    exact = _exact(model, x)
    assert few.mean_standard_error < 0.2
    assert abs(float((few.log_likelihood - exact).mean())) < 5 * few.mean_standard_error


def test_a_distribution_as_posterior_from_the_prior() -> None:
    """Of 11 examples, 5 standard errors of both: a false alarm in a million."""

    class Flow(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = nn.Linear(D, 2 * Z)

        def forward(self, x: Tensor) -> Any:
            mean, log_std = self.inner(x).chunk(2, -1)
            base = Independent(Normal(mean, log_std.exp()), 1)
            squashed = [TanhTransform(cache_size=1), AffineTransform(0.0, 4.0)]
            return TransformedDistribution(base, squashed)

    torch.manual_seed(5)
    model = IWAE(D, Z, (8,), encoder=Flow()).double()
    x = torch.rand(11, D, generator=torch.Generator().manual_seed(1), dtype=torch.float64).round()
    few = annealed_importance_sampling(
        model, x, chains=20, temperatures=20, leapfrog=3, start="prior", seed=SEED
    )
    many = estimate_log_likelihood(model, x, 4000, seed=SEED)
    error = math.hypot(few.mean_standard_error, many.mean_standard_error)
    assert error < 0.05
    assert abs(few.mean - many.mean) < 5 * error


class Flat:
    """Without a gradient."""

    def log_prob(self, z: Tensor) -> Tensor:
        return torch.zeros(z.shape[:-1], dtype=z.dtype)

    def sample(self, n: int, generator: torch.Generator | None = None) -> Tensor:
        return torch.rand(n, Z, generator=generator)


class Foreign:
    """Not of this package, and with a prior of its own."""

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return x[:, :Z], x[:, :Z]

    def decode(self, z: Tensor) -> Tensor:
        return z.repeat(1, D // Z)

    def log_ratio_above(self, z: Tensor, *_: Any, **__: Any) -> Tensor:
        return z.sum(-1)


def _ais(model: Callable[[], Any]) -> Callable[[], Any]:
    return lambda: annealed_importance_sampling(model(), torch.ones(5, D), **SHORT)


test_refusals = refusals(
    [
        (
            _ais(lambda: IWAE(D, Z, (8,), prior=Flat())),
            ValueError,
            "model's prior must be differentiable in z for Hamiltonian moves, but its log_prob has",
        ),
        (
            _ais(lambda: TwoLayerModel(D, Z, (8,), prior="mixture")),
            ValueError,
            "model must have one layer of latents, continuous, .* got TwoLayerModel",
        ),
        (
            _ais(Foreign),
            ValueError,
            r"a prior besides N\(0, I\) only as a model of this package, .* got Foreign",
        ),
    ]
)
