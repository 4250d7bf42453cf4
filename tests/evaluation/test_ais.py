"""Annealed importance sampling against exact likelihoods, and its moves against their targets."""

from __future__ import annotations

import json
import math
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import pytest
import torch
from linear_gaussian import D as LINEAR_D
from linear_gaussian import Z as LINEAR_Z
from linear_gaussian import draw_data, exact_log_likelihood, linear_gaussian
from refusals import assert_refused
from scipy import stats
from torch import Tensor, nn

import dvae_fast
from dvae_fast import evaluation, functional
from dvae_fast.data.given import Given
from dvae_fast.evaluation import (
    AISEstimate,
    annealed,
    annealed_importance_sampling,
    bidirectional_monte_carlo,
    estimate_log_likelihood,
    hamiltonian,
)
from dvae_fast.evaluation.annealed import _schedule
from dvae_fast.evaluation.hamiltonian import _energy, _leapfrog, from_normal
from dvae_fast.evaluation.joint import Joint
from dvae_fast.models import LatentVariableModel, make_model

if TYPE_CHECKING:
    from collections.abc import Callable

    from dvae_fast.evaluation import EvaluationProgress

N, C, T, L, Z, D = 7, 5, 6, 4, 3, 9
SEED = 99
FIELDS = ("log_likelihood", "standard_error", "ess", "acceptance", "step_size")
SHORT: dict[str, Any] = {"chains": C, "temperatures": T, "leapfrog": L, "seed": SEED}


def _model(likelihood: str = "bernoulli", latent: int = Z) -> LatentVariableModel:
    return make_model("iwae", D, latent, (8, 6), likelihood=likelihood).double()


def _data(n: int = N) -> Tensor:
    x = torch.rand(n, D, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    return x.round()


def _same(a: AISEstimate, b: AISEstimate, rows: Any = slice(None)) -> None:
    for field in FIELDS:
        torch.testing.assert_close(
            getattr(a, field)[rows], getattr(b, field)[rows], rtol=1e-8, atol=1e-8, equal_nan=True
        )


def _z_score(values: Tensor, expected: float) -> float:
    """Of the mean of independent values."""
    return (float(values.mean()) - expected) / (float(values.std()) / math.sqrt(len(values)))


# --- exact answers ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("start", "widen", "temperatures"), [("posterior", 2.0, 25), ("prior", 1.0, 80)]
)
def test_the_exact_answer_lies_between_the_bounds(
    start: str, widen: float, temperatures: int
) -> None:
    """4 standard errors of each mean, by Student's t a false alarm in 20,000 for the lower (of 31
    times 23 chains) and in 5,000 for the upper (of 31 values), were the noise drawn anew; less for
    the bias of a log, which points away."""
    model = linear_gaussian("iwae", widen=widen)
    estimate = bidirectional_monte_carlo(
        model, 31, chains=23, temperatures=temperatures, leapfrog=L, start=start, seed=SEED
    )
    assert estimate.x.shape == (31, LINEAR_D)
    assert estimate.z.shape == (31, LINEAR_Z)
    exact = exact_log_likelihood(model, estimate.x)
    lower, upper = estimate.lower - exact, estimate.upper - exact
    assert -0.15 < float(lower.mean()) < 4 * estimate.forward.mean_standard_error
    assert -4 * float(upper.std()) / math.sqrt(31) < float(upper.mean()) < 0.1
    assert abs(float(estimate.gap.mean())) < 0.15
    torch.testing.assert_close(estimate.gap, upper - lower)
    # The errors are as large as it says: χ² of 31, 1 in 10,000 on either side. For errors of 23
    # chains each, which make it 31 squares of Student's t of 22, 1 in 300.
    squares = (lower / estimate.forward.standard_error).square()
    least, most = stats.chi2.interval(1 - 2e-4, 31)
    assert least < float(squares.sum()) < most
    for one in (estimate.forward, estimate.reverse):
        assert float(one.acceptance.mean()) == pytest.approx(annealed.TARGET, abs=0.1)
        assert one.warnings() == []


@pytest.mark.parametrize(
    ("start", "tune", "schedule"),
    [("posterior", True, "sigmoid"), ("prior", True, "linear"), ("prior", False, "sigmoid")],
)
def test_weights_are_unbiased(start: str, tune: bool, schedule: str) -> None:
    """E w = p(x) and in reverse E 1/w = 1/p(x): |z| < 4, a false alarm in 16,000 each.

    Few temperatures, so that the means of log w, being bounds, miss by far more.
    """
    # A posterior near f_0, so that the variance of w and 1/w is small enough to test a mean.
    model = linear_gaussian("iwae", widen=2.0, noise=2.0 if start == "prior" else 0.7)
    estimate = bidirectional_monte_carlo(
        model, 1500, chains=3, temperatures=4, leapfrog=3, start=start, schedule=schedule,
        tune=tune, seed=SEED,
    )  # fmt: skip
    exact = exact_log_likelihood(model, estimate.x)
    for error in (estimate.lower - exact, exact - estimate.upper):
        ratio = error.exp()
        assert float(ratio.std()) / math.sqrt(1500) < 0.1
        assert abs(_z_score(ratio, 1.0)) < 4
        assert _z_score(error, 0.0) < -4


def test_more_temperatures_come_closer() -> None:
    model = linear_gaussian("iwae")
    estimates = [
        bidirectional_monte_carlo(
            model, 60, chains=C, temperatures=t, leapfrog=3, start="prior", seed=SEED
        )
        for t in (1, 4, 32)
    ]
    gaps = [float(e.gap.mean()) for e in estimates]
    assert all(a > b + 0.1 for a, b in pairwise(gaps))
    lowers = [float(e.lower.mean()) for e in estimates]
    assert lowers == sorted(lowers)
    uppers = [float(e.upper.mean()) for e in estimates]
    assert uppers == sorted(uppers, reverse=True)


@pytest.mark.parametrize("start", ["posterior", "prior"])
def test_one_temperature_is_importance_sampling(start: str) -> None:
    model, x = _model(), _data()
    with torch.no_grad():
        mean, log_var = model.encode(x)
        if start == "prior":
            mean, log_var = torch.zeros_like(mean), torch.zeros_like(log_var)
        # The chains are the noise's copies.
        copies = [t.expand(C, N, Z).contiguous() for t in (mean, log_var)]
        z, log_ratio = dvae_fast.sample_latent(*copies, 1, SEED)
        params = model.decode(z.squeeze(2).transpose(0, 1))
        log_w = dvae_fast.log_weights(params, x, log_ratio.squeeze(2).T)
    estimate = annealed_importance_sampling(
        model, x, chains=C, temperatures=1, leapfrog=L, start=start, seed=SEED
    )
    w = log_w.exp()
    torch.testing.assert_close(estimate.log_likelihood, w.mean(1).log())
    torch.testing.assert_close(estimate.ess, w.sum(1).square() / w.square().sum(1))
    torch.testing.assert_close(
        estimate.standard_error, w.std(1, correction=0) / w.mean(1) / math.sqrt(C)
    )
    assert bool(estimate.acceptance.isnan().all())
    assert bool(estimate.step_size.isnan().all())
    assert estimate.summary()["acceptance"] is None


def _quadrature(model: Any, x: Tensor) -> Tensor:
    """log ∫ p(x|z) p(z) dz for Z = 1, (N,)."""
    z = torch.linspace(-9, 9, 3601, dtype=torch.float64)
    with torch.no_grad():
        logits = model.decode(z.view(1, -1, 1)).expand(len(x), -1, -1)
        prior = -0.5 * z.square() - 0.5 * math.log(2 * math.pi) + math.log(18 / 3600)
        return torch.logsumexp(dvae_fast.log_weights(logits, x, prior.expand(len(x), -1)), 1)


@pytest.mark.parametrize(
    ("start", "dtype"), [("posterior", torch.float32), ("prior", torch.float64)]
)
def test_bernoulli_against_quadrature(start: str, dtype: torch.dtype) -> None:
    """5 standard errors of the mean, which as they divide by C and not by C − 1 are 4.5 of
    Student's t, of 70 degrees for these 29 examples: a false alarm in 35,000, were the noise drawn
    anew."""
    model, x = _model(latent=1), _data(29)
    with torch.no_grad():
        model.decoder.output.weight.mul_(9)  # so that the posterior is far from the prior
        model.decoder.output.bias.uniform_(-1, 1)
    exact = _quadrature(model, x)
    decode = model.to(dtype).decode

    def encode(x: Tensor) -> tuple[Tensor, Tensor]:
        return 0.5 - x[:, :1], torch.full_like(x[:, :1], 0.4)

    estimate, plain = (
        annealed_importance_sampling(
            (encode, decode), x, chains=C, temperatures=t, leapfrog=L, start=start, seed=SEED
        )
        for t in (40, 1)
    )
    assert all(getattr(estimate, field).dtype == torch.float64 for field in FIELDS)
    assert estimate.mean_standard_error < 0.05
    bias = 0.5 * float(estimate.standard_error.square().mean()) * C / (C - 1)  # of a log
    error = estimate.mean + bias - float(exact.mean())
    assert abs(error) < 5 * estimate.mean_standard_error
    assert float(plain.ess.mean()) < float(estimate.ess.mean()) - 0.1 * C


# --- moves ------------------------------------------------------------------------------------


class _Quadratic:
    """ℓ(u) = b·u − ½ uᵀ A u: f_β is N(β S b, S), S = (I + β A)⁻¹."""

    def __init__(self) -> None:
        self.a = torch.tensor([[6.0, 2.0], [2.0, 1.0]], dtype=torch.float64)
        self.b = torch.tensor([1.5, -0.5], dtype=torch.float64)

    def __call__(self, u: Tensor) -> hamiltonian.Point:
        slope = self.b - u @ self.a
        return from_normal(u, (u * (self.b + slope) / 2).sum(-1), slope)

    def moments(self, beta: float) -> tuple[Tensor, Tensor]:
        covariance = torch.linalg.inv(torch.eye(2, dtype=torch.float64) + beta * self.a)
        return beta * covariance @ self.b, covariance


class _Quartic:
    """ℓ(u) = −¼ Σ u⁴."""

    def __call__(self, u: Tensor) -> hamiltonian.Point:
        return from_normal(u, -0.25 * u.pow(4).sum(-1), -u.pow(3))


def _normals(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(3), dtype=torch.float64)


def _scores(u: Tensor, mean: Tensor, covariance: Tensor) -> Tensor:
    """z-scores of the five first and second moments of whitened u, each (points, 2)."""
    e = torch.linalg.solve_triangular(
        torch.linalg.cholesky(covariance), (u.reshape(-1, 2) - mean).T, upper=False
    )
    n = math.sqrt(e.shape[1])
    products = torch.stack((e[0] * e[1], *(e.square() - 1) / math.sqrt(2)))
    return n * torch.cat((e.mean(1), products.mean(1)))


@pytest.mark.parametrize("beta", [0.3, 1.0])
def test_a_move_leaves_its_target_as_it_is(beta: float) -> None:
    """|z| < 4.5 of five moments: a false alarm in 30,000. Without refusals it would not."""
    target = _Quadratic()
    mean, covariance = target.moments(beta)
    draws = mean + _normals(40, 500, 2) @ torch.linalg.cholesky(covariance).T
    step = torch.full((40,), 0.55 if beta == 1 else 0.9, dtype=torch.float64)
    noise = torch.randn(6, 40, 500, 5, dtype=torch.float64)
    always = noise.clone()
    always[..., 2] = 1e3  # log of a uniform that is 0
    point = unrefused = target(draws)
    rates = []
    for one, other in zip(noise, always, strict=True):
        point, rate = hamiltonian.move(target, point, beta, step, 3, one)
        unrefused, _ = hamiltonian.move(target, unrefused, beta, step, 3, other)
        rates.append(rate.mean())
    assert 0.5 < float(torch.stack(rates).mean()) < 0.9
    assert float(_scores(point.u, mean, covariance).abs().max()) < 4.5
    assert float(_scores(unrefused.u, mean, covariance).abs().max()) > 9
    fresh = target(point.u)
    for carried, again in zip(point, fresh, strict=True):
        torch.testing.assert_close(carried, again, rtol=0, atol=0)


def test_moves_reach_their_target() -> None:
    """|z| < 4.5 of five moments, as above, from a start that is far away."""
    target = _Quadratic()
    point = target(_normals(40, 500, 2) + 5)
    assert float(_scores(point.u, *target.moments(1.0)).abs().max()) > 100
    step = torch.full((40,), 0.5, dtype=torch.float64)
    for noise in torch.randn(40, 40, 500, 5, dtype=torch.float64):
        point, _ = hamiltonian.move(target, point, 1.0, step, 3, noise)
    assert float(_scores(point.u, *target.moments(1.0)).abs().max()) < 4.5


def test_the_error_of_a_leapfrog_falls_as_the_square_of_its_step() -> None:
    target, beta = _Quartic(), 0.7
    point, momentum = target(_normals(5, 300, 3)), _normals(6, 300, 3)[1:]
    errors = []
    for count in (20, 40, 80):
        step = torch.tensor(1.0 / count, dtype=torch.float64)
        end, last = _leapfrog(target, point, momentum, beta, step, count)
        error = _energy(end, last, beta) - _energy(point, momentum, beta)
        errors.append(float(error.abs().mean()))
    assert errors[0] / errors[1] == pytest.approx(4, rel=0.05)
    assert errors[1] / errors[2] == pytest.approx(4, rel=0.05)


def test_a_leapfrog_goes_back_the_way_it_came() -> None:
    target, beta = _Quartic(), 0.7
    point, momentum = target(_normals(5, 30, 3)), _normals(6, 30, 3)[1:]
    step = torch.full((5, 1, 1), 0.3, dtype=torch.float64)
    end, last = _leapfrog(target, point, momentum, beta, step, 6)
    start, first = _leapfrog(target, end, -last, beta, step, 6)
    assert float((end.u - point.u).abs().min()) > 1e-6
    torch.testing.assert_close(start.u, point.u)
    torch.testing.assert_close(first, -momentum)


def test_gradient_of_the_log_weight() -> None:
    """∇ℓ in u is what autograd makes of ℓ over the fused operators, for a q of any scale."""
    model, x = _model("gaussian"), _data()
    mean, log_var = torch.randn(2, N, Z, dtype=torch.float64)
    u = _normals(N, C, Z).requires_grad_()
    z = mean.unsqueeze(1) + torch.exp(0.5 * log_var).unsqueeze(1) * u
    log_w = model._log_weights(z, x, dvae_fast.latent_log_ratio(z, mean, log_var))
    (slope,) = torch.autograd.grad(log_w.sum(), u)
    target = Joint(evaluation.Evaluated(model), mean, log_var, Given(x))
    point = target(u.detach())
    torch.testing.assert_close(point.value, log_w.detach())
    torch.testing.assert_close(point.slope, slope)
    torch.testing.assert_close(target.whitened(z[:, 2].detach()), u[:, 2].detach())


@pytest.mark.parametrize("temperatures", [1, 2, 11])
def test_schedules(temperatures: int) -> None:
    linear = _schedule("linear", temperatures)
    sigmoid = _schedule("sigmoid", temperatures)
    t = [i / temperatures for i in range(temperatures + 1)]
    assert linear == pytest.approx(t)
    values = [1 / (1 + math.exp(-4 * (2 * i - 1))) for i in t]
    expected = [(v - values[0]) / (values[-1] - values[0]) for v in values]
    assert sigmoid == pytest.approx(expected)
    for betas in (linear, sigmoid):
        assert (betas[0], betas[-1]) == (0, 1)


# --- conduct ----------------------------------------------------------------------------------


@pytest.mark.parametrize("tune", [True, False])
@pytest.mark.parametrize("batch_size", [1, 3, N])
def test_any_batch_size_gives_the_same_numbers(batch_size: int, tune: bool) -> None:
    model, x = _model(), _data()
    whole = annealed_importance_sampling(model, x, tune=tune, **SHORT)
    split = annealed_importance_sampling(model, x, tune=tune, batch_size=batch_size, **SHORT)
    _same(whole, split)
    assert len(set(whole.log_likelihood.tolist())) > 3
    assert float(whole.acceptance.min()) > 0


def test_chains_do_not_depend_on_how_many_there_are() -> None:
    model, x = _model(), _data()
    one, two = (
        annealed_importance_sampling(model, x, tune=False, **{**SHORT, "chains": chains})
        for chains in (1, 2)
    )
    first = one.log_likelihood.exp()
    second = 2 * two.log_likelihood.exp() - first
    ess = (first + second).square() / (first.square() + second.square())
    torch.testing.assert_close(two.ess, ess)
    assert bool(((first - second).abs() / first > 1e-4).all())


def test_no_noise_is_used_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else tuned step sizes would know the moves they are for."""
    used: list[int] = []
    draw = dvae_fast.sample_latent

    def note(*args: Any, first_sample: int, **options: Any) -> tuple[Tensor, Tensor]:
        used.append(first_sample)
        return draw(*args, first_sample=first_sample, **options)

    monkeypatch.setattr(functional, "sample_latent", note)
    bidirectional_monte_carlo(_model(), N, **SHORT)
    assert len(set(used)) == len(used) == 1 + T + T + (T - 1)


def test_decodes_once_a_step_and_encodes_once_a_batch() -> None:
    model, x = _model(), _data()
    rows: list[int] = []
    encoded: list[int] = []
    model.decoder.register_forward_hook(lambda module, args, out: rows.append(args[0].numel() // Z))
    model.encoder.register_forward_hook(lambda module, args, out: encoded.append(len(args[0])))
    annealed_importance_sampling(model, x, batch_size=4, **SHORT)
    assert encoded == [4, 3]
    once = 1 + (T - 1) * L
    assert rows == [16] * once + [20] * once + [12] * once + [15] * once
    rows.clear()
    annealed_importance_sampling(model, x, tune=False, **SHORT)
    assert rows == [N * C] * once


@pytest.mark.parametrize(("chains", "expected"), [(16, [156, 4]), (7, [160]), (5000, [1] * 3)])
def test_default_batch(chains: int, expected: list[int]) -> None:
    encoded: list[int] = []

    def encode(x: Tensor) -> tuple[Tensor, Tensor]:
        encoded.append(len(x))
        return x[:, :Z], x[:, :Z]

    annealed_importance_sampling(
        (encode, lambda z: z.repeat(1, 3)), _data(sum(expected)), chains=chains, temperatures=1
    )
    assert encoded == expected


@pytest.mark.parametrize("step_size", [0.3, 9.0])
def test_tuning_finds_the_acceptance_rate_from_any_start(step_size: float) -> None:
    model = linear_gaussian("iwae", widen=0.5)
    x = draw_data(model, 17)
    estimate = annealed_importance_sampling(
        model, x, chains=C, temperatures=80, leapfrog=L, step_size=step_size, seed=SEED
    )
    assert float(estimate.acceptance.mean()) == pytest.approx(0.7, abs=0.12)
    assert 0.3 < float(estimate.step_size.mean()) < 3


def test_a_step_size_of_ones_own() -> None:
    model, x = _model(), _data()
    estimate = annealed_importance_sampling(model, x, tune=False, step_size=0.25, **SHORT)
    torch.testing.assert_close(estimate.step_size, torch.full((N,), 0.25, dtype=torch.float64))
    default = annealed_importance_sampling(model, x, tune=False, **SHORT)
    assert default.step_size.tolist() == pytest.approx([Z**-0.25] * N)
    assert bool((default.acceptance < estimate.acceptance).all())
    assert "above 0.95" in estimate.warnings()[0]
    wild = annealed_importance_sampling(model, x, tune=False, step_size=40.0, **SHORT)
    assert float(wild.acceptance.max()) < 0.01
    assert bool(wild.log_likelihood.isfinite().all())
    assert "below 0.4" in wild.warnings()[0]


@pytest.mark.parametrize("how", ["data", "posterior"])
def test_nan_stays_with_its_example_and_is_counted(how: str) -> None:
    model, x = _model(), _data()
    clean = annealed_importance_sampling(model, x, **SHORT)
    evaluated: Any = model
    if how == "data":
        x[2, 4] = math.nan
    else:
        first = x[2].clone()

        def encode(x: Tensor) -> tuple[Tensor, Tensor]:
            mean, log_var = model.encode(x)
            return mean.masked_fill((x == first).all(1, keepdim=True), math.nan), log_var

        evaluated = (encode, model.decode)
    dirty = annealed_importance_sampling(evaluated, x, **SHORT)
    rest = [i for i in range(N) if i != 2]
    _same(dirty, clean, rest)
    assert bool(dirty.log_likelihood[2].isnan())
    assert dirty.non_finite == 1
    assert math.isnan(dirty.mean)
    assert "log-likelihood: 2 (nan)" in dirty.warnings()[0]
    assert dirty.summary()["log_likelihood"] is None
    json.dumps(dirty.summary(), allow_nan=False)


def test_impossible_data_has_likelihood_zero() -> None:
    """The last pixel is never 1."""
    model, x = _model(), _data()

    def decode(z: Tensor) -> Tensor:
        logits = model.decode(z)
        return torch.cat((logits[..., :-1], torch.full_like(logits[..., -1:], -math.inf)), -1)

    x[:, -1] = 0
    x[3, -1] = 1
    estimate = annealed_importance_sampling((model.encode, decode), x, **SHORT)
    assert estimate.log_likelihood[3] == -math.inf
    assert bool(estimate.log_likelihood[[0, 1, 2, 4, 5, 6]].isfinite().all())
    assert estimate.non_finite == 1


def test_proposals_of_density_zero_are_refused() -> None:
    """The first pixel is surely 0 where z > 0.3, so that the posterior ends there if it is 1.

    5 standard errors of the mean: a false alarm in 2 million, were the noise drawn anew.
    """
    model, x = _model(latent=1), _data(23)
    x[:, 0] = 1

    class Cut:
        def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
            return torch.zeros_like(x[:, :1]), torch.zeros_like(x[:, :1])

        def decode(self, z: Tensor) -> Tensor:
            logits = 3 * model.decode(z)
            first = torch.where(z > 0.3, torch.full_like(z, -math.inf), logits[..., :1])
            return torch.cat((first, logits[..., 1:]), -1)

    estimate = annealed_importance_sampling(
        Cut(), x, chains=31, temperatures=30, leapfrog=L, seed=SEED
    )
    assert bool(estimate.log_likelihood.isfinite().all())
    assert bool(estimate.acceptance.isfinite().all())
    expected = float(_quadrature(Cut(), x).mean())
    assert estimate.mean == pytest.approx(expected, abs=5 * estimate.mean_standard_error)
    assert estimate.mean_standard_error < 0.05


def _grad_disabled(run: Callable[[], Any]) -> Any:
    with torch.no_grad():
        return run()


def _inference(run: Callable[[], Any]) -> Any:
    with torch.inference_mode():
        return run()


@pytest.mark.parametrize("around", [lambda run: run(), _grad_disabled, _inference])
def test_leaves_model_and_modes_as_they_were(around: Callable[..., Any]) -> None:
    model, x = _model(), _data()
    expected = annealed_importance_sampling(model, x, **SHORT)
    frozen = model.decoder.output.bias.requires_grad_(False)
    model.train()
    model.encoder.eval()
    before = [m.training for m in model.modules()]
    state = {name: t.clone() for name, t in model.state_dict().items()}
    estimate = around(
        lambda: annealed_importance_sampling(model, x.clone().requires_grad_(), **SHORT)
    )
    _same(estimate, expected)
    assert not any(getattr(estimate, field).requires_grad for field in FIELDS)
    assert [m.training for m in model.modules()] == before
    assert all(torch.equal(t, state[name]) for name, t in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters())
    assert all(p.requires_grad == (p is not frozen) for p in model.parameters())
    assert torch.is_grad_enabled()
    with pytest.raises(ZeroDivisionError):
        annealed_importance_sampling(model, x, progress=lambda _: 1 // 0, **SHORT)
    assert [m.training for m in model.modules()] == before
    assert torch.is_grad_enabled()


def test_seeds() -> None:
    model, x = _model(), _data()
    state = torch.get_rng_state()
    one = annealed_importance_sampling(model, x, **SHORT)
    both = bidirectional_monte_carlo(model, N, **SHORT)
    assert torch.equal(torch.get_rng_state(), state)
    assert one.seed == both.forward.seed == both.reverse.seed == SEED
    _same(one, annealed_importance_sampling(model, x, **{**SHORT, "seed": torch.tensor([SEED])}))
    other = annealed_importance_sampling(model, x, **{**SHORT, "seed": None})
    assert not torch.equal(other.log_likelihood, one.log_likelihood)
    _same(other, annealed_importance_sampling(model, x, **{**SHORT, "seed": other.seed}))


def test_progress() -> None:
    calls: list[EvaluationProgress] = []
    estimate = annealed_importance_sampling(
        _model(), _data(), batch_size=3, progress=calls.append, **SHORT
    )
    chains = estimate.chains
    assert [(c.examples, c.total, c.samples) for c in calls] == [
        (n, N, n * chains) for n in (3, 6, N)
    ]
    assert calls[-1].log_likelihood == pytest.approx(estimate.mean)


def test_data_of_another_precision_and_layout() -> None:
    model, x = _model(), _data()
    expected = annealed_importance_sampling(model, x, **SHORT)
    wide = torch.full((N, 2 * D), math.nan)
    wide[:, ::2] = x
    _same(expected, annealed_importance_sampling(model, wide[:, ::2], **SHORT))


# --- simulated data ---------------------------------------------------------------------------


def test_forward_on_simulated_data_is_the_estimate_of_that_data() -> None:
    model = _model()
    estimate = bidirectional_monte_carlo(model, N, batch_size=3, **SHORT)
    assert set(estimate.x.unique().tolist()) == {0.0, 1.0}
    assert not estimate.forward.reverse
    assert estimate.reverse.reverse
    _same(estimate.forward, annealed_importance_sampling(model, estimate.x, **SHORT))
    whole = bidirectional_monte_carlo(model, N, **SHORT)
    assert torch.equal(whole.x, estimate.x)
    assert torch.equal(whole.z, estimate.z)
    _same(estimate.reverse, whole.reverse)


def test_simulated_data_is_the_models() -> None:
    """|z| < 4.5 of 2 + 6 moments each of z and of x given z: a false alarm in 9,000."""
    model = linear_gaussian("vae")
    estimate = bidirectional_monte_carlo(model, 4000, chains=1, temperatures=1, seed=SEED)
    mean, scale = model.decode(estimate.z)
    for e in (estimate.z, (estimate.x - mean.detach()) / scale):
        scores = torch.cat((e.mean(0), (e.square() - 1).mean(0) / math.sqrt(2))) * math.sqrt(4000)
        assert float(scores.abs().max()) < 4.5


def test_reverse_with_one_temperature_is_the_weight_at_the_draw() -> None:
    model = _model()
    estimate = bidirectional_monte_carlo(model, N, chains=C, temperatures=1, seed=SEED)
    with torch.no_grad():
        z = estimate.z.unsqueeze(1)
        log_ratio = dvae_fast.latent_log_ratio(z, *model.encode(estimate.x))
        log_w = dvae_fast.log_weights(model.decode(z), estimate.x, log_ratio)
    torch.testing.assert_close(estimate.upper, log_w.squeeze(1))


def test_summary_of_both_directions() -> None:
    estimate = bidirectional_monte_carlo(_model(), N, **SHORT)
    summary = estimate.summary()
    assert json.loads(json.dumps(summary, allow_nan=False)) == summary
    assert summary["gap"] == pytest.approx(summary["upper"] - summary["lower"])
    assert summary["gap_standard_error"] == pytest.approx(float(estimate.gap.std()) / N**0.5)
    assert summary["forward"] == estimate.forward.summary()
    assert summary["reverse"]["reverse"]
    assert bidirectional_monte_carlo(_model(), 1, **SHORT).summary()["gap_standard_error"] is None
    wild = bidirectional_monte_carlo(_model(), N, tune=False, step_size=40.0, **SHORT)
    assert {w.split(":")[0] for w in wild.warnings()} == {"forward", "reverse"}


def test_summary_and_warnings() -> None:
    estimate = AISEstimate(
        log_likelihood=torch.tensor([-3.0, -5.0], dtype=torch.float64),
        standard_error=torch.tensor([0.3, 0.4], dtype=torch.float64),
        ess=torch.tensor([1.5, 4.0]),
        acceptance=torch.tensor([0.2, 0.3]),
        step_size=torch.tensor([0.25, 0.75]),
        seed=3, data_size=2, chains=8, temperatures=20, leapfrog=10, start="prior",
        schedule="linear",
    )  # fmt: skip
    assert estimate.mean == -4
    assert estimate.mean_standard_error == pytest.approx(0.25)
    expected = {
        "log_likelihood": -4.0, "standard_error": pytest.approx(0.25),
        "bits_per_dimension": pytest.approx(2 / math.log(2)), "ess_mean": 2.75, "ess_min": 1.5,
        "bias": pytest.approx(-(0.09 + 0.16) / 4 * 8 / 7),
        "acceptance": 0.25, "step_size": 0.5, "examples": 2, "non_finite": 0, "chains": 8,
        "method": "ais",
        "temperatures": 20, "leapfrog": 10, "start": "prior", "schedule": "linear",
        "reverse": False, "seed": 3, "warnings": estimate.warnings(),
    }  # fmt: skip
    assert estimate.summary() == expected
    assert json.loads(json.dumps(estimate.summary(), allow_nan=False)) == expected
    low, few = estimate.warnings()
    assert "mean acceptance rate, 0.25, is below 0.4" in low
    assert "1 of 2 examples has an effective number of chains below 2" in few


# --- anybody's model --------------------------------------------------------------------------


@pytest.mark.parametrize("likelihood", ["bernoulli", "gaussian"])
def test_a_pair_of_callables(likelihood: str) -> None:
    model, x = _model(likelihood), _data()
    expected = annealed_importance_sampling(model, x, **SHORT)
    shapes = set()

    def decode(z: Tensor) -> Any:
        shapes.add(tuple(z.shape))
        return model.decode(z)

    pair = (model.encode, decode)
    _same(annealed_importance_sampling(pair, x, likelihood=likelihood, **SHORT), expected)
    assert shapes == {(N * 4, Z), (N * C, Z)}
    both = bidirectional_monte_carlo(pair, N, latent_size=Z, likelihood=likelihood, **SHORT)
    assert both.x.shape == (N, D)
    assert both.x.dtype == torch.float64  # of the model that `encode` is a method of
    plain = bidirectional_monte_carlo(
        (lambda x: (x[:, :Z], x[:, :Z]), lambda z: z.repeat(1, 3)), N, latent_size=Z, **SHORT
    )
    assert plain.x.dtype == torch.float32


def test_agrees_with_importance_sampling() -> None:
    """Of a Gaussian with a scale of its own for every pixel; 4 standard errors of both, by
    Student's t of the 7 times 23 chains a false alarm in 7,000, were the noise drawn anew."""
    model, x = _model("gaussian"), _data()
    many = estimate_log_likelihood(model, x, 20000, seed=SEED)
    few = annealed_importance_sampling(model, x, chains=23, temperatures=40, leapfrog=L, seed=SEED)
    error = math.hypot(many.mean_standard_error, few.mean_standard_error)
    assert error < 0.1
    assert few.mean == pytest.approx(many.mean, abs=4 * error)


@pytest.mark.parametrize(
    "decode",
    [
        lambda z: torch.zeros(*z.shape[:-1], D, dtype=z.dtype),
        lambda z: z.detach().repeat(1, 1, 3) * torch.ones(D, dtype=z.dtype, requires_grad=True),
        torch.no_grad()(lambda z: z.repeat(1, 3)),
    ],
)
def test_a_decoder_without_a_gradient(decode: Callable[..., Any]) -> None:
    with pytest.raises(ValueError, match="model's decoder must be differentiable in z"):
        annealed_importance_sampling((lambda x: (x[:, :Z], x[:, :Z]), decode), _data(), **SHORT)


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"chains": 0}, ValueError, "chains must be >= 1, got 0"),
        ({"chains": 2.0}, TypeError, "chains must be an int, got float"),
        ({"temperatures": 0}, ValueError, "temperatures must be >= 1, got 0"),
        ({"leapfrog": -1}, ValueError, "leapfrog must be >= 1, got -1"),
        ({"batch_size": 0}, ValueError, "batch_size must be >= 1, got 0"),
        ({"start": "encoder"}, ValueError, "start must be one of posterior, prior; got 'encoder'"),
        ({"start": "prio"}, ValueError, "start must be one of prior, posterior; got 'prio'; did"),
        ({"schedule": "cosine"}, ValueError, "schedule must be one of sigmoid, linear; got 'cos"),
        ({"tune": 1}, TypeError, "tune must be a bool, got int"),
        ({"step_size": 0.0}, ValueError, "step_size must be > 0 and finite, got 0.0"),
        ({"step_size": math.nan}, ValueError, "step_size must be > 0 and finite, got nan"),
        ({"step_size": "1"}, TypeError, "step_size must be a number or None, got str"),
        ({"seed": 1.5}, TypeError, "seed must be an int, .*, got float"),
        ({"likelihood": "gaussian"}, ValueError, "likelihood must be the model's, bernoulli, got"),
        ({"model": nn.Linear(2, 2)}, TypeError, "model must have methods encode and decode, or"),
        ({"x": [[0.5]]}, TypeError, "x must be a tensor, got list"),
        ({"x": torch.ones(N, D + 1)}, ValueError, rf"x must have shape \(N, D\) .*D = {D}, got"),
        ({"x": torch.ones(0, D)}, ValueError, rf"x must have shape .*, got \(0, {D}\)"),
        ({"n": 0}, ValueError, "n must be >= 1, got 0"),
        ({"n": 2.0}, TypeError, "n must be an int, got float"),
        ({"n": torch.ones(N, D)}, TypeError, "n must be the number .*, got a tensor: .* exact dra"),
        ({"n": 2, "latent_size": Z + 1}, ValueError, f"latent_size must be the model's, {Z}, got"),
        ({"n": 2, "latent_size": 0}, ValueError, "latent_size must be >= 1, got 0"),
        ({"n": 2, "model": (abs, abs)}, ValueError, "latent_size must be given for a model with"),
        ({"n": 2, "start": "q"}, ValueError, "start must be one of posterior, prior; got 'q'"),
    ],
)
def test_wrong_arguments(changes: dict[str, Any], error: type[Exception], message: str) -> None:
    model = _model()
    for part in (model.encoder, model.decoder):
        part.register_forward_pre_hook(lambda *_: pytest.fail("work before the checks"))
    call: Any = bidirectional_monte_carlo if "n" in changes else annealed_importance_sampling
    data = {} if "n" in changes else {"x": _data()}
    arguments = {"model": model, **data, **SHORT, **changes}
    assert_refused(lambda: call(**arguments), error, message)
