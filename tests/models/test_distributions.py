"""Encoders that return a distribution: of torch, a flow, or anything that draws."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.distributions import (
    AffineTransform,
    Independent,
    MultivariateNormal,
    Normal,
    TanhTransform,
    TransformedDistribution,
)

import dvae_fast
from dvae_fast.evaluation import (
    LikelihoodEstimate,
    annealed_importance_sampling,
    estimate_log_likelihood,
)
from dvae_fast.models import make_model

B, D, Z, SEED = 6, 12, 3, 4


class Encoder(nn.Module):
    def __init__(self, kind: str) -> None:
        super().__init__()
        self.layer, self.kind = nn.Linear(D, 2 * Z), kind

    def forward(self, x: Tensor) -> Any:
        mean, log_var = self.layer(x).chunk(2, -1)
        normal = Normal(mean, torch.exp(0.5 * log_var))
        each = Independent(normal, 1)
        return {
            "pair": lambda: (mean, log_var),
            "normal": lambda: normal,
            "independent": lambda: each,
            "full": lambda: MultivariateNormal(mean, scale_tril=torch.diag_embed(normal.scale)),
            "flow": lambda: TransformedDistribution(
                each, [TanhTransform(cache_size=1), AffineTransform(0.1, 2.0)]
            ),
            "own": lambda: Own(each),
        }[self.kind]()


class Own:
    """No class of torch's: what draws and what has a density, and no more."""

    def __init__(self, q: Any) -> None:
        self.rsample, self.log_prob = q.rsample, q.log_prob


KINDS = ("normal", "independent", "full", "flow", "own")


def _x() -> Tensor:
    return torch.rand(B, D, generator=torch.Generator().manual_seed(1)).round()


def _model(kind: str, name: str = "iwae", **options: Any) -> Any:
    torch.manual_seed(2)
    return make_model(name, D, Z, (8,), encoder=Encoder(kind), **options)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["vae", "diwae"])
@pytest.mark.parametrize(("copies", "samples"), [(1, 1), (1, 4), (3, 1), (3, 4)])
def test_the_bound_and_its_gradient(kind: str, name: str, copies: int, samples: int) -> None:
    model, x = _model(kind, name, copies=copies, samples=samples), _x()
    loss = model.loss(x, SEED)
    loss.backward()
    assert all(bool((p.grad != 0).any()) for p in model.parameters())
    torch.testing.assert_close(-model.bound(x, SEED).mean(), loss.detach())
    assert torch.equal(loss, model.loss(x, SEED))
    assert not torch.equal(loss, model.loss(x, SEED + 1))
    assert model.reconstruct(x).shape == (B, D)


@pytest.mark.parametrize("kind", ["normal", "full", "own"])
def test_the_same_as_mean_and_log_var(kind: str) -> None:
    """On average: 6,000 samples of each, 5 standard errors of the difference, 6 examples; a false
    alarm in 30,000."""
    pair, other, x = _model("pair"), _model(kind), _x()
    a, b = (estimate_log_likelihood(m, x, 6_000, seed=SEED) for m in (pair, other))
    error = (a.standard_error.square() + b.standard_error.square()).sqrt()
    assert bool(((a.log_likelihood - b.log_likelihood).abs() < 5 * error).all())
    assert float(error.max()) < 0.2


def test_a_flow_against_torch() -> None:
    """log w of its own draws, in float64."""
    model, x, k = _model("flow", samples=5).double(), _x().double(), 5
    q = model.encode(x)
    drawn: list[Tensor] = []
    original = TransformedDistribution.rsample

    def rsample(self: Any, shape: Any) -> Tensor:
        drawn.append(original(self, shape))
        return drawn[-1]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(TransformedDistribution, "rsample", rsample)
        bound = model.bound(x, SEED)
    (z,) = drawn
    log_w = Normal(0.0, 1.0).log_prob(z).sum(-1) - q.log_prob(z)
    p = torch.distributions.Bernoulli(logits=model.decoder(z))
    log_w = log_w + p.log_prob(x).sum(-1)
    torch.testing.assert_close(bound, (torch.logsumexp(log_w, 0) - math.log(k)).detach())


@pytest.mark.parametrize("own", [True, False])
@pytest.mark.parametrize("kind", ["normal", "flow", "own"])
def test_evaluated_in_any_parts(kind: str, own: bool) -> None:
    model, x = _model(kind), _x()
    given = model if own else (model.encoder, model.decoder)
    options: dict[str, Any] = {"seed": SEED, "tolerance": 0.3, "max_k": 900}
    whole = estimate_log_likelihood(given, x, 300, **options)
    parts = [
        estimate_log_likelihood(
            given, x[i : i + 4], 300, first_example=i, chunk=71, batch_size=3, **options
        )
        for i in (0, 4)
    ]
    joined = LikelihoodEstimate.concat(parts)
    torch.testing.assert_close(joined.log_likelihood, whole.log_likelihood, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(joined.spent, whole.spent)


class Wrong:
    has_rsample = True

    def __init__(self, z: Any, log_q: Any) -> None:
        self.z, self.log_q = z, log_q

    def rsample(self, shape: Any) -> Any:
        return self.z

    def log_prob(self, z: Tensor) -> Any:
        return self.log_q


@pytest.mark.parametrize(
    ("q", "message"),
    [
        (
            Wrong(torch.zeros(B, 2, Z), torch.zeros(2, B)),
            r"must draw shape \(k, B, Z\) with k, B =",
        ),
        (Wrong(torch.zeros(2, B), torch.zeros(2, B)), r"must draw shape"),
        (Wrong(3.0, torch.zeros(2, B)), "must draw shape .* got float"),
        (Wrong(torch.zeros(2, B, Z), torch.zeros(B, 2)), r"must have log_prob of shape \(k, B\)"),
    ],
)
def test_shapes_of_what_is_drawn(q: Any, message: str) -> None:
    class Fixed(nn.Module):
        def forward(self, x: Tensor) -> Any:
            return q

    model = make_model("iwae", D, Z, (8,), encoder=Fixed(), samples=2)
    with pytest.raises(ValueError, match=message):
        model.loss(_x())


def test_what_does_not_go_together() -> None:
    x = _x()
    with pytest.raises(ValueError, match="objective must be elbo or iwae with the standard"):
        _model("flow", estimator="dreg").loss(x)
    for proposal in ("corrupted", "mixture"):
        with pytest.raises(ValueError, match=f"proposal must be posterior .* got '{proposal}'"):
            estimate_log_likelihood(_model("flow", "diwae"), x, 5, proposal=proposal)
    with pytest.raises(ValueError, match="encode must return mean and log_var for annealed"):
        annealed_importance_sampling(_model("flow"), x)

    class NoGradient(nn.Module):
        def forward(self, x: Tensor) -> Any:
            return torch.distributions.Poisson(x[:, :Z] + 1)

    model = make_model("iwae", D, Z, (8,), encoder=NoGradient())
    with pytest.raises(TypeError, match="a distribution with rsample, for a gradient, got Poisson"):
        model.loss(x)
    assert dvae_fast.estimate_log_likelihood(model, x, 5, seed=SEED).non_finite == 0
