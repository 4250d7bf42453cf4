"""Pyro's models by the importance-weighted bound: against exact answers and Pyro's own losses.

The model is linear and Gaussian, x = A z + b + noise of one scale, so that log p(x) is exact.
"""

from __future__ import annotations

import math
import runpy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.distributions import MultivariateNormal

pyro: Any = pytest.importorskip("pyro")
infer: Any = pytest.importorskip("pyro.infer")
ours: Any = pytest.importorskip("dvae_fast.integrations.pyro")
dist = pyro.distributions
SVI, RenyiELBO, Trace_ELBO = infer.SVI, infer.RenyiELBO, infer.Trace_ELBO
ImportanceELBO, LogWeights = ours.ImportanceELBO, ours.LogWeights
estimate_log_likelihood = ours.estimate_log_likelihood

N, B, D, Z, K = 12, 5, 4, 2, 7
pytestmark = pytest.mark.library
SCALE = 0.6


class Linear:
    """A model, and a guide that is near its posterior, of rows in one plate.

    Args:
        size: of the plate, of which each call sees a part.
        ridge: whether b has a prior, outside of the plate, and is a point estimate.
    """

    def __init__(self, size: int | None = None, *, ridge: bool = False) -> None:
        pyro.clear_param_store()
        torch.manual_seed(1)
        self.size, self.ridge = size, ridge
        self.decoder = nn.Linear(Z, D).double()
        self.encoder = nn.Linear(D, 2 * Z).double()
        with torch.no_grad():  # the posterior's mean, and about half more than its scale
            a = self.decoder.weight
            precision = torch.eye(Z).double() + a.T @ a / SCALE**2
            gain = torch.linalg.solve(precision, a.T) / SCALE**2
            self.encoder.weight[:Z] = gain
            self.encoder.bias[:Z] = -gain @ self.decoder.bias
            self.encoder.weight[Z:] = 0.02
            self.encoder.bias[Z:] = (1.5 * precision.inverse().diagonal().sqrt()).log()
        self.b = self.decoder.bias.detach().clone()

    def _plate(self, x: Tensor) -> Any:
        part = torch.arange(len(x))  # or Pyro draws one, and then other latents
        return pyro.plate("data", self.size or len(x), subsample=part, dim=-1)

    def model(self, x: Tensor) -> None:
        pyro.module("decoder", self.decoder)
        shift: Any = 0.0
        if self.ridge:
            prior = dist.Normal(torch.zeros(D).double(), 1.0).to_event(1)
            shift = pyro.sample("b", prior) - self.b
        with self._plate(x):
            z = pyro.sample("z", dist.Normal(torch.zeros(Z).double(), 1.0).to_event(1))
            mean = self.decoder(z) + shift
            pyro.sample("x", dist.Normal(mean, SCALE).to_event(1), obs=x)

    def guide(self, x: Tensor) -> None:
        pyro.module("encoder", self.encoder)
        if self.ridge:
            b = pyro.param("b_point", self.b.clone())
            pyro.sample("b", dist.Delta(b).to_event(1))
        with self._plate(x):
            mean, log_scale = self.encoder(x).chunk(2, -1)
            pyro.sample("z", dist.Normal(mean, log_scale.exp()).to_event(1))

    def exact(self, x: Tensor) -> Tensor:
        a, b = self.decoder.weight, self.decoder.bias
        covariance = a @ a.T + SCALE**2 * torch.eye(D).double()
        return MultivariateNormal(b, covariance).log_prob(x).detach()


def _x(n: int = B) -> Tensor:
    return torch.randn(n, D, generator=torch.Generator().manual_seed(2)).double()


def _loss(elbo: Any, one: Linear, x: Tensor, seed: int = 3) -> float:
    pyro.set_rng_seed(seed)
    return float(elbo.loss(one.model, one.guide, x))


def _grads(elbo: Any, one: Linear, x: Tensor, seed: int) -> list[Tensor]:
    pyro.set_rng_seed(seed)
    parameters = [*one.encoder.parameters(), *one.decoder.parameters()]
    if one.ridge:
        parameters.append(pyro.param("b_point").unconstrained())
    for p in parameters:
        p.grad = None
    elbo.loss_and_grads(one.model, one.guide, x)
    return [torch.zeros_like(p) if p.grad is None else p.grad.clone() for p in parameters]


# --- the bound ------------------------------------------------------------------------------------


@pytest.mark.parametrize("vectorised", [True, False])
def test_the_logarithm_is_taken_of_each_row(vectorised: bool) -> None:
    one, x = Linear(), _x()
    elbo = ImportanceELBO(K, vectorize_particles=vectorised)
    pyro.set_rng_seed(3)
    log_w = elbo.log_weights(one.model, one.guide, x).detach()
    assert log_w.shape == (K, B)
    expected = (log_w.logsumexp(0) - math.log(K)).sum()
    assert _loss(elbo, one, x) == pytest.approx(-float(expected), rel=1e-12)
    # With all sites in one plate, seen whole, it is the bound of Pyro's own.
    own = RenyiELBO(num_particles=K, vectorize_particles=vectorised, max_plate_nesting=1)
    assert _loss(own, one, x) == pytest.approx(-float(expected), rel=1e-12)


def test_of_one_particle_it_is_the_elbo() -> None:
    one, x = Linear(N), _x()
    for vectorised in (True, False):
        found = _loss(ImportanceELBO(1, vectorize_particles=vectorised), one, x)
        assert found == pytest.approx(_loss(Trace_ELBO(), one, x), rel=1e-12)


def test_many_particles_reach_the_exact_answer() -> None:
    """Within 5 standard errors, and a part of a plate stands for all of it."""
    whole, x = Linear(), _x()
    pyro.set_rng_seed(4)
    log_w = ImportanceELBO(20_000).log_weights(whole.model, whole.guide, x).detach()
    weights = torch.exp(log_w - log_w.amax(0))
    error = (weights.square().sum(0) / weights.sum(0).square() - 1 / 20_000).sqrt()
    found = log_w.logsumexp(0) - math.log(20_000)
    assert bool(((found - whole.exact(x)).abs() < 5 * error).all())
    part = Linear(N)
    assert _loss(ImportanceELBO(K), part, x) == pytest.approx(
        N / B * _loss(ImportanceELBO(K), whole, x), rel=1e-12
    )
    # Pyro's own takes the weights to the power N / B, whose mean's logarithm is no bound.
    own = RenyiELBO(num_particles=K, vectorize_particles=True, max_plate_nesting=1)
    assert abs(_loss(own, part, x) - N / B * _loss(own, whole, x)) > 1


def test_what_stands_outside_is_added_once() -> None:
    one, x = Linear(ridge=True), _x()
    plain = Linear()
    prior = dist.Normal(torch.zeros(D).double(), 1.0).log_prob(one.b).sum().detach()
    for vectorised in (True, False):
        elbo = ImportanceELBO(K, vectorize_particles=vectorised)
        expected = _loss(elbo, plain, x) - float(prior)
        assert _loss(elbo, one, x) == pytest.approx(expected, rel=1e-9)
    # Pyro's own ties the rows together: its bound lies below.
    assert (
        _loss(RenyiELBO(num_particles=K, vectorize_particles=True, max_plate_nesting=1), one, x)
        > expected + 0.1
    )


def test_rows_of_two_plates_masks_and_scales() -> None:
    """All plates that hold every site; those inside of rows are summed over."""
    x = torch.randn(3, B, 2, generator=torch.Generator().manual_seed(5))
    mask = torch.tensor([True, True, False, True, True])

    def model(x: Tensor) -> None:
        with pyro.plate("b", B, dim=-2), pyro.poutine.mask(mask=mask[:, None]):
            z = pyro.sample("z", dist.Normal(0.0, 1.0).expand([B, 1]))
            with pyro.plate("a", 3, dim=-1), pyro.poutine.scale(scale=0.5):
                pyro.sample("x", dist.Normal(z[..., None], 1.0).to_event(1), obs=x.movedim(0, 1))

    def guide(x: Tensor) -> None:
        with pyro.plate("b", B, dim=-2), pyro.poutine.mask(mask=mask[:, None]):
            pyro.sample("z", dist.Normal(torch.full((B, 1), 0.3), 0.8))

    elbo = ImportanceELBO(K)
    pyro.set_rng_seed(1)
    log_w = elbo.log_weights(model, guide, x)
    pyro.set_rng_seed(1)
    z = pyro.poutine.trace(elbo._vectorized_num_particles(guide)).get_trace(x).nodes["z"]["value"]
    of_x = dist.Normal(z[..., None], 1.0).log_prob(x.movedim(0, 1)).sum((-1, -2)) / 2
    of_z = (dist.Normal(0.0, 1.0).log_prob(z) - dist.Normal(0.3, 0.8).log_prob(z))[..., 0]
    torch.testing.assert_close(log_w, torch.where(mask, of_x + of_z, 0))


# --- its gradient ---------------------------------------------------------------------------------


@pytest.mark.parametrize("ridge", [False, True])
def test_dreg_is_unbiased_and_has_less_noise(ridge: bool) -> None:
    """Its mean and that of the plain gradient differ by less than 4.5 standard errors, in each of
    some 30 numbers: a false alarm once in 4,000; seeds are fixed."""
    one, x = Linear(N, ridge=ridge), _x()
    _loss(ImportanceELBO(1), one, x)  # makes its parameters
    draws = 100
    means, errors = [], []
    for estimator in ("standard", "dreg"):
        elbo = ImportanceELBO(K, estimator=estimator)
        found = [_grads(elbo, one, x, seed) for seed in range(draws)]
        columns = torch.stack([torch.cat([g.flatten() for g in grads]) for grads in found])
        means.append(columns.mean(0))
        errors.append(columns.std(0) / math.sqrt(draws))
    error = (errors[0].square() + errors[1].square()).sqrt()
    assert bool((error > 0).all())
    assert float(((means[0] - means[1]) / error).abs().max()) < 4.5
    of_encoder = slice(0, sum(p.numel() for p in one.encoder.parameters()))
    assert bool((errors[1][of_encoder] < errors[0][of_encoder]).all())


def test_sticking_the_landing_has_no_noise_at_the_posterior() -> None:
    """Of one particle; and then dreg is the same."""
    one, x = Linear(), _x()
    for estimator in ("stl", "dreg"):
        grads = _grads(ImportanceELBO(1, estimator=estimator), one, x, 3)
        others = _grads(ImportanceELBO(1, estimator="stl"), one, x, 3)
        for a, b in zip(grads, others, strict=True):
            torch.testing.assert_close(a, b)
    mean_only = _grads(ImportanceELBO(1, estimator="stl"), one, x, 4)[1][:Z]
    assert bool((mean_only != 0).any()), "the guide's scale is not the posterior's"


def test_a_hierarchical_guide() -> None:
    """z2 of z1: the path through z1 has that through z2 in it; unbiased, as above."""
    pyro.clear_param_store()
    x = _x()[:, 0]

    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x), dim=-1):
            one = pyro.sample("one", dist.Normal(torch.zeros(()).double(), 1.0))
            two = pyro.sample("two", dist.Normal(one, 0.7))
            pyro.sample("x", dist.Normal(two, 0.5), obs=x)

    def guide(x: Tensor) -> None:
        a = pyro.param("a", torch.tensor(0.4).double())
        c = pyro.param("c", torch.tensor(0.6).double())
        with pyro.plate("data", len(x), dim=-1):
            one = pyro.sample("one", dist.Normal(a * x, 0.9))
            pyro.sample("two", dist.Normal(c * x + 0.3 * a * one, 0.6))

    found = {}
    for estimator in ("standard", "dreg"):
        elbo, rows = ImportanceELBO(4, estimator=estimator), []
        for seed in range(200):
            pyro.set_rng_seed(seed)
            for name in ("a", "c"):
                if name in pyro.get_param_store():
                    pyro.param(name).unconstrained().grad = None
            elbo.loss_and_grads(model, guide, x)
            rows.append(torch.stack([pyro.param(n).unconstrained().grad for n in ("a", "c")]))
        found[estimator] = torch.stack(rows)
    means = [v.mean(0) for v in found.values()]
    errors = [v.std(0) / math.sqrt(len(v)) for v in found.values()]
    error = (errors[0] ** 2 + errors[1] ** 2).sqrt()
    assert float(((means[0] - means[1]) / error).abs().max()) < 4.5
    assert bool((errors[1] < errors[0]).all())


def test_svi_and_modules_train() -> None:
    one, x = Linear(), _x()
    with torch.no_grad():
        one.encoder.weight.zero_()
    elbo = ImportanceELBO(K)
    pyro.set_rng_seed(5)
    svi = SVI(one.model, one.guide, pyro.optim.Adam({"lr": 0.02}), elbo)
    losses = [svi.step(x) for _ in range(150)]
    assert sum(losses[-20:]) / 20 < sum(losses[:20]) / 20 - 1
    pyro.set_rng_seed(6)
    value = elbo.differentiable_loss(one.model, one.guide, x)
    assert float(value.detach()) == pytest.approx(_loss(elbo, one, x, 6), rel=1e-12)
    one.encoder.zero_grad()
    value.backward()
    expected = _grads(elbo, one, x, 6)[0]
    one.encoder.zero_grad()
    pyro.set_rng_seed(6)
    elbo.differentiable_loss(one.model, one.guide, x).backward()
    torch.testing.assert_close(one.encoder.weight.grad, expected)


# --- evaluation -----------------------------------------------------------------------------------


def test_a_guide_is_evaluated() -> None:
    one, x = Linear(3, ridge=True), _x(N)
    _loss(ImportanceELBO(2), one, x[:3])
    estimate = estimate_log_likelihood(one.model, one.guide, x, 2000, seed=7)
    assert estimate.log_likelihood.shape == (N,)
    off = (estimate.log_likelihood - one.exact(x)).abs() / estimate.standard_error
    assert float(off.max()) < 4
    assert float(estimate.pareto_k.max()) < 0.7
    parts = [
        estimate_log_likelihood(
            one.model, one.guide, x[i : i + 4], 2000, seed=7, first_example=i
        ).log_likelihood
        for i in (0, 4, 8)
    ]
    assert torch.equal(torch.cat(parts), estimate.log_likelihood)


# --- what is refused ------------------------------------------------------------------------------


def test_what_ties_the_rows_together_is_refused() -> None:
    pyro.clear_param_store()
    x = torch.randn(B)

    def model(x: Tensor) -> None:
        shift = pyro.sample("shift", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", dist.Normal(shift, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def guide(x: Tensor) -> None:
        pyro.sample("shift", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", dist.Normal(x, 1.0))

    for vectorised in (True, False):
        elbo = ImportanceELBO(K, vectorize_particles=vectorised)
        with pytest.raises(ValueError, match="must be the same for all particles"):
            elbo.loss(model, guide, x)
    with pytest.raises(ValueError, match=r"plate must be one of the model's, \['data'\], got 'd'"):
        ImportanceELBO(K, plate="d").loss(model, guide, x)
    with pytest.raises(ValueError, match="shift"):
        estimate_log_likelihood(model, guide, x, 30)


def test_a_model_without_a_plate_is_refused() -> None:
    def model(x: Tensor) -> None:
        z = pyro.sample("z", dist.Normal(torch.zeros(B), 1.0).to_event(1))
        pyro.sample("x", dist.Normal(z, 1.0).to_event(1), obs=x)

    def guide(x: Tensor) -> None:
        pyro.sample("z", dist.Normal(x, 1.0).to_event(1))

    with pytest.raises(ValueError, match=r"a site must stand in a pyro\.plate with a dim"):
        ImportanceELBO(K).loss(model, guide, torch.randn(B))


def test_what_has_no_path_is_refused() -> None:
    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", dist.Bernoulli(0.5))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", dist.Bernoulli(0.4))

    x = torch.randn(B)
    for estimator in ("standard", "stl", "dreg"):
        with pytest.raises(ValueError, match="z, of Bernoulli"):
            ImportanceELBO(K, estimator=estimator).loss_and_grads(model, guide, x)
    assert math.isfinite(ImportanceELBO(K).loss(model, guide, x)), "its value is"


def test_wrong_arguments() -> None:
    with pytest.raises(ValueError, match="estimator must be one of dreg, standard, stl"):
        ImportanceELBO(estimator="drge")
    with pytest.raises(ValueError, match="num_particles must be >= 1, got 0"):
        ImportanceELBO(0)
    with pytest.raises(TypeError, match="plate must be the name of a plate, got int"):
        ImportanceELBO(plate=3)
    with pytest.raises(TypeError, match="guide must be a function of Pyro's primitives, got int"):
        LogWeights(lambda x: None, 3)


def test_the_example_runs() -> None:
    path = Path(__file__).parents[2] / "examples" / "pyro_iwae.py"
    found = runpy.run_path(str(path))["main"](1, 2, 10)
    assert len(found) == 3
    assert all(27 < nll < 45 for nll, _ in found.values())
