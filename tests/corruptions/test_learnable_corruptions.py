"""Learnt corruptions: densities and gradients against enumeration of every x̃, and the models."""

from __future__ import annotations

import copy
import itertools
import math
from typing import TYPE_CHECKING, Any

import pytest
import torch
from model_checks import assert_compiles, rebuilt
from refusals import refusals
from scipy import stats
from torch import Tensor, nn

from dvae_fast import corruptions, functional, objectives
from dvae_fast.corruptions import AdditiveGaussian, BitFlip, Corruption, Learnable, Masking
from dvae_fast.models import MODELS, LatentVariableModel, make_model

if TYPE_CHECKING:
    from collections.abc import Callable

M, B, K, Z, D = 4, 5, 2, 6, 3
SEED = 123
#: a pixel that masking cannot change, one that salt cannot, and one in between
X = torch.tensor([0.0, 1.0, 0.25], dtype=torch.float64)
RATES: dict[str, Corruption] = {
    "masking": Masking(0.3),
    "salt": corruptions.SaltAndPepper(0.3, 0.2),
    "salt per pixel": corruptions.SaltAndPepper(
        torch.tensor([0.3, 0.5, 0.1]), torch.tensor([0.2, 0.6, 0.5])
    ),
    "bit flip": BitFlip(torch.tensor([0.3, 0.5, 0.1])),
}


# --- the oracle -------------------------------------------------------------------------------


def _outcomes(corruption: Learnable) -> list[tuple[Tensor, Tensor]]:
    """Every way in which the pixels of X can be struck: its probability and its x̃.

    Hits are counted, not values: an x̃ that comes about in two ways is there twice.
    """
    kind, salt = corruption.start.kind, corruption.salt
    rates = corruption.level.expand(D)
    salts = torch.full((D,), 0.5) if salt is None else salt.double().expand(D)
    ways: list[list[tuple[Tensor, float]]] = []
    for x, r, s in zip(X.tolist(), rates, salts.tolist(), strict=True):
        if kind == "masking":
            struck = [(r, 0.0)]
        elif kind == "bit_flip":
            struck = [(r, 1 - x)]
        else:
            struck = [(r * s, 1.0), (r * (1 - s), 0.0)]
        ways.append([(1 - r, x), *struck])
    return [
        (
            torch.stack([probability for probability, _ in chosen]).prod(),
            torch.tensor([value for _, value in chosen], dtype=torch.float64),
        )
        for chosen in itertools.product(*ways)
    ]


def _curved(noisy: Tensor) -> Tensor:
    """Some loss of x̃, (..., D) → (...), that knows every pixel from every other."""
    a, b, c = noisy.unbind(-1)
    return 3 * a * b - b.square() + 2 * torch.exp(c) - 1.5 * a * c


def _exact_gradient(corruption: Learnable, loss: Callable[[Tensor], Tensor]) -> Tensor:
    """Of E loss(x̃) over every outcome, by the unconstrained level."""
    terms = [p * loss(x).detach() for p, x in _outcomes(corruption)]
    (gradient,) = torch.autograd.grad(torch.stack(terms).sum(), corruption.unconstrained)
    return gradient


def _surely_off(grads: Tensor, expected: Tensor) -> bool:
    """Whether a mean over rows is so far from what is expected, by Student's t, that chance has it
    once in a million runs."""
    t = (grads.mean(0) - expected) / (grads.std(0) / math.sqrt(len(grads)))
    return bool((t.abs() > stats.t.isf(1e-6 / 2 / t.numel(), len(grads) - 1)).any())


# --- densities --------------------------------------------------------------------------------


@pytest.mark.parametrize("name", RATES)
def test_log_prob_sums_the_ways_that_lead_there(name: str) -> None:
    corruption = Learnable(RATES[name]).double()
    found: dict[tuple[float, ...], Tensor] = {}
    for probability, noisy in _outcomes(corruption):
        key = tuple(noisy.tolist())
        found[key] = found.get(key, torch.zeros(())) + probability
    values = torch.tensor(list(found), dtype=torch.float64)[:, None]  # (ways, 1, D)
    log_prob = corruption.log_prob(values, X[None])
    assert log_prob.shape == (len(found), 1)
    expected = torch.stack(list(found.values()))
    torch.testing.assert_close(log_prob.exp()[:, 0], expected)
    assert float(expected.detach().sum()) == pytest.approx(1)
    for i, probability in enumerate(found.values()):
        grads = [
            torch.autograd.grad(p, corruption.unconstrained, retain_graph=True)[0]
            for p in (log_prob[i, 0], probability.log())
        ]
        torch.testing.assert_close(*grads)
    never = torch.full((1, 1, D), 0.7, dtype=torch.float64)
    assert float(corruption.log_prob(never, X[None]).detach()) == -math.inf


@pytest.mark.parametrize("kind", [Masking, corruptions.SaltAndPepper, BitFlip])
def test_log_prob_is_finite_at_extreme_rates(kind: type[Corruption]) -> None:
    for a in (-60.0, 60.0):
        corruption = Learnable(kind(0.5))  # type: ignore[call-arg]
        with torch.no_grad():
            corruption.unconstrained.fill_(a)
        x = torch.rand(B, D).round()
        log_prob = corruption.log_prob(corruption.draw(x, M, torch.tensor([1]), 0, 0), x)
        (grad,) = torch.autograd.grad(log_prob.sum(), corruption.unconstrained)
        assert bool(log_prob.isfinite().all())
        assert float(grad.abs()) < 1e-20


# --- gradients --------------------------------------------------------------------------------


@pytest.mark.parametrize("name", RATES)
def test_score_function_is_unbiased(name: str) -> None:
    """t-test of the mean gradient over 100 seeds; a false alarm in a million."""
    corruption = Learnable(RATES[name]).double()
    x = X.expand(200, D)
    expected = _exact_gradient(corruption, _curved)
    grads = []
    for seed in range(100):
        noisy = corruptions.corrupt(x, corruption, M, seed)
        surrogate = corruptions.score_function_surrogate(
            _curved(noisy), corruption.log_prob(noisy, x)
        )
        assert float(surrogate.detach()) == 0
        grads.append(torch.autograd.grad(surrogate, corruption.unconstrained)[0])
    grad = torch.stack(grads)
    error = grad.std(0) / math.sqrt(len(grads))
    # The pixel at 1 that becomes 1 however it is hit has no noise, and no gradient, of its own.
    assert bool((error < 0.3 * expected.abs().max()).all())
    assert not _surely_off(grad, expected)


def test_baseline_leaves_the_copy_itself_out() -> None:
    loss = torch.randn(M, B, dtype=torch.float64)
    log_prob = torch.randn(M, B, dtype=torch.float64, requires_grad=True)
    expected = torch.empty_like(loss)
    for m, b in itertools.product(range(M), range(B)):
        others = [float(loss[j, b]) for j in range(M) if j != m]
        expected[m, b] = (loss[m, b] - sum(others) / len(others)) / (M * B)
    (grad,) = torch.autograd.grad(corruptions.score_function_surrogate(loss, log_prob), log_prob)
    torch.testing.assert_close(grad, expected)


def test_examples_without_a_finite_loss_pass_nothing() -> None:
    loss = torch.randn(M, B, dtype=torch.float64)
    loss[1, 2], loss[0, 3] = math.inf, math.nan
    log_prob = torch.randn(M, B, dtype=torch.float64, requires_grad=True)
    surrogate = corruptions.score_function_surrogate(loss, log_prob)
    assert float(surrogate.detach()) == 0
    (grad,) = torch.autograd.grad(surrogate, log_prob)
    assert bool((grad[:, [2, 3]] == 0).all())
    assert bool((grad[:, [0, 1, 4]] != 0).all())


@pytest.mark.parametrize("name", RATES)
def test_relaxed_tends_to_the_exact_gradient(name: str) -> None:
    """At a low temperature within 5 standard errors, a false alarm in 500,000, and a hundredth;
    far off at a high one."""
    corruption = Learnable(RATES[name], "relaxed").double()
    n = 40_000
    x = X.expand(n, D)
    expected = _exact_gradient(corruption, _curved)
    away = []
    for temperature in (2.0, 0.5, 0.05):
        corruption.temperature = temperature
        leaf = corruption.unconstrained.detach().expand(n, D).clone().requires_grad_()
        twin = copy.deepcopy(corruption)
        twin.unconstrained = nn.Parameter(leaf.detach())
        noisy = corruptions.corrupt(x, twin, None, SEED)
        (each,) = torch.autograd.grad(_curved(noisy).sum(), twin.unconstrained)
        grad = each.mean(0)
        error = each.std(0) / math.sqrt(n)
        if corruption.unconstrained.numel() == 1:
            grad, error = grad.sum(), error.square().sum().sqrt()
        away.append(float((grad - expected).abs().max()))
    assert away[2] < float(5 * error.max()) + 0.01 * float(expected.abs().max())
    assert away[2] < away[1] < away[0]
    assert away[0] > 0.1 * float(expected.abs().max())


@pytest.mark.parametrize("name", RATES)
def test_relaxed_draws_become_whole(name: str) -> None:
    """At temperature 1e-4 each outcome comes up as often as it should: χ², a false alarm in a
    million. In evaluation mode they are whole at any, and those of the kernel."""
    corruption = Learnable(RATES[name], "relaxed", temperature=1e-4).double()
    n = 20_000
    noisy = corruptions.corrupt(X.expand(n, D), corruption, None, SEED).detach()
    probability: dict[tuple[float, ...], float] = {}
    for p, value in _outcomes(corruption):
        key = tuple(value.tolist())
        probability[key] = probability.get(key, 0.0) + float(p.detach())
    expected = {key: p * n for key, p in probability.items()}
    assert min(expected.values()) >= 5
    counts = {key: int(((noisy - torch.tensor(key)).abs() < 1e-6).all(1).sum()) for key in expected}
    assert sum(counts.values()) > 0.99 * n
    statistic = sum((counts[k] - e) ** 2 / e for k, e in expected.items())
    assert stats.chi2.sf(statistic, len(expected) - 1) > 1e-6

    corruption.temperature = 1.0
    corruption.eval()
    whole = corruptions.corrupt(X.expand(B, D), corruption, M, SEED)
    assert torch.equal(whole, corruptions.corrupt(X.expand(B, D), corruption.fixed(), M, SEED))


@pytest.mark.parametrize("name", RATES)
def test_relaxed_numbers_are_those_of_any_split(name: str) -> None:
    corruption = Learnable(RATES[name], "relaxed")
    x = torch.rand(B, D)
    whole = corruptions.corrupt(x, corruption, M, SEED)
    assert whole.shape == (M, B, D)
    assert bool(((whole > 0) & (whole < 1)).all())
    part = corruptions.corrupt(x[2:], corruption, 2, SEED, first_example=2, first_copy=1)
    torch.testing.assert_close(part, whole[1:3, 2:])


@pytest.mark.parametrize("size", [None, D])
def test_pathwise_gradient_of_a_deviation(size: int | None) -> None:
    corruption = Learnable(AdditiveGaussian(0.4), size=size).double()
    x = torch.rand(B, D, dtype=torch.float64)
    assert torch.equal(
        corruptions.corrupt(x, corruption, M, SEED),
        corruptions.corrupt(x, AdditiveGaussian(corruption.level.detach()), M, SEED),
    )

    def drawn(a: Tensor) -> Tensor:
        with torch.nn.utils.stateless._reparametrize_module(corruption, {"unconstrained": a}):
            return corruptions.corrupt(x, corruption, M, SEED)

    start = corruption.unconstrained.detach().clone().requires_grad_()
    assert torch.autograd.gradcheck(drawn, (start,))


# --- in a model -------------------------------------------------------------------------------


def _model(name: str, corruption: Corruption, **options: Any) -> LatentVariableModel:
    return make_model(
        name, D, Z, (7,), corruption=corruption, **{"copies": M, "samples": K, **options}
    )


class _Certain(nn.Module):
    """z = W x̃, for sure: a posterior without spread makes the bound a function of x̃ alone."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(D, Z, dtype=torch.float64) * 2)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        mean = x @ self.weight
        return mean, torch.full_like(mean, -40.0)


@pytest.mark.parametrize(
    "name, model_name, likelihood",
    [
        ("masking", "dvae", "bernoulli"),
        ("salt", "diwae", "bernoulli"),
        ("salt per pixel", "dvae", "gaussian"),
        ("bit flip", "diwae", "gaussian"),
    ],
)
def test_a_models_gradient_is_that_of_the_expected_loss(
    name: str, model_name: str, likelihood: str
) -> None:
    """By enumeration; t-test over 50 seeds, a false alarm in a million.

    The noise of log q, ½|ε|², does not depend on x̃: it moves the loss by a constant.
    """
    model = _model(model_name, Learnable(RATES[name]), likelihood=likelihood).double()
    model.encoder = _Certain()
    with torch.no_grad():
        for parameter in model.decoder.parameters():
            parameter.mul_(2)
    corruption = model.corruption
    assert isinstance(corruption, Learnable)

    def loss(noisy: Tensor) -> Tensor:
        mean, log_var = model.encode(noisy[None])
        return -model.log_weights(X[None], mean, log_var, 1, 0)[0, 0]

    expected = _exact_gradient(corruption, loss)
    grads = [
        torch.autograd.grad(model.loss(X.expand(240, D), seed), corruption.unconstrained)[0]
        for seed in range(50)
    ]
    grad = torch.stack(grads)
    error = grad.std(0) / math.sqrt(len(grads))
    assert bool((error < 0.3 * expected.abs().max()).all())
    assert not _surely_off(grad, expected)


@pytest.mark.parametrize("model_name", ["dvae", "diwae"])
@pytest.mark.parametrize("name", RATES)
def test_value_and_other_gradients_are_those_of_a_fixed_rate(name: str, model_name: str) -> None:
    model = _model(model_name, Learnable(RATES[name]))
    x = torch.rand(B, D)
    rest = [p for n, p in model.named_parameters() if not n.startswith("corruption")]
    loss = model.loss(x, SEED)
    grads = torch.autograd.grad(loss, rest, retain_graph=True)
    (rate,) = torch.autograd.grad(loss, model.corruption.unconstrained)
    assert bool((rate != 0).any())
    bound = model.bound(x, SEED)
    torch.testing.assert_close(-bound.mean(), loss.detach())
    with torch.no_grad():
        assert torch.equal(model.loss(x, SEED), loss)
    assert isinstance(model.corruption, Learnable)
    model.corruption = model.corruption.fixed()
    assert not isinstance(model.corruption, Learnable)
    assert len(list(model.parameters())) == len(rest)
    fixed = model.loss(x, SEED)
    # In one pass and not layer by layer: other roundings.
    torch.testing.assert_close(fixed, loss)
    for grad, other in zip(grads, torch.autograd.grad(fixed, rest), strict=True):
        torch.testing.assert_close(grad, other)


def test_score_term_is_the_formula() -> None:
    """Copy by copy, over the model's own draws."""
    for name in ("dvae", "diwae"):
        model = _model(name, Learnable(RATES["salt"])).double()
        corruption = model.corruption
        assert isinstance(corruption, Learnable)
        x = torch.rand(B, D, dtype=torch.float64).round()
        noisy = corruptions.corrupt(x, corruption, M, SEED)
        z, log_ratio, _ = objectives.sample_latents(*model.encode(noisy), K, model.objective, SEED)
        log_w = functional.log_weights(model.decode(z), x, log_ratio)
        each = -(
            torch.logsumexp(log_w, -1) - math.log(K) if name == "diwae" else log_w.mean((1, 3))
        )
        surrogate = corruptions.score_function_surrogate(each, corruption.log_prob(noisy, x))
        torch.testing.assert_close(
            torch.autograd.grad(model.loss(x, SEED), corruption.unconstrained),
            torch.autograd.grad(surrogate, corruption.unconstrained),
        )


@pytest.mark.parametrize("estimator", corruptions.LEVEL_ESTIMATORS)
def test_parts_of_a_batch_have_the_gradient_of_the_batch(estimator: str) -> None:
    start = AdditiveGaussian(0.3) if estimator == "pathwise" else RATES["salt"]
    model = _model("diwae", Learnable(start, estimator)).double()
    x = torch.rand(B, D, dtype=torch.float64)
    model.loss(x, SEED).backward()
    whole = model.corruption.unconstrained.grad.clone()
    model.zero_grad()
    for a, b in ((0, 2), (2, B)):
        ((b - a) / B * model(x[a:b], SEED, first_example=a)).backward()
    torch.testing.assert_close(model.corruption.unconstrained.grad, whole)


@pytest.mark.parametrize("estimator", corruptions.LEVEL_ESTIMATORS)
def test_the_bound_is_highest_without_corruption(estimator: str) -> None:
    """An optimiser finds that out: the level falls, with a model that learns beside it."""
    start = AdditiveGaussian(2.0) if estimator == "pathwise" else Masking(0.5)
    size = 8
    model = make_model("dvae", size, 2, (16,), corruption=Learnable(start, estimator), copies=M)
    corruption = model.corruption
    assert isinstance(corruption, Learnable)
    assert "corruption.unconstrained" in dict(model.named_parameters())
    g = torch.Generator().manual_seed(3)
    cause = torch.rand(100, 1, generator=g).round()
    x = torch.where(torch.arange(size) % 2 == 0, cause, 1 - cause)
    optimiser = torch.optim.Adam(model.parameters(), 2e-2)
    for step in range(120):
        optimiser.zero_grad()
        model.loss(x, step).backward()
        optimiser.step()
    assert 0 < float(corruption.level.detach()) < 0.8 * float(start.parameter)


# torch.compile's own doing, on meeting an autograd.Function and on loading its backend.
@pytest.mark.filterwarnings("ignore:.*should not be instantiated. Methods on:DeprecationWarning")
@pytest.mark.filterwarnings("ignore:`torch.jit.*is deprecated:DeprecationWarning")
@pytest.mark.slow  # test_gaussian_posterior.py has one that learns its noise
@pytest.mark.parametrize("estimator", ["score", "relaxed"])
def test_compiles_without_a_graph_break(estimator: str) -> None:
    model = _model("diwae", Learnable(RATES["salt"], estimator)).double()
    x, seed = torch.rand(B, D, dtype=torch.float64), torch.tensor([SEED])
    assert_compiles(model, x, seed)


@pytest.mark.parametrize(
    "corruption",
    [
        Learnable(Masking(0.1)),
        Learnable(BitFlip(0.1), "relaxed", temperature=0.2),
        Learnable(corruptions.SaltAndPepper(0.1, 0.3), size=D),
        Learnable(corruptions.SaltAndPepper.as_released(0.1)),
        Learnable(corruptions.SaltAndPepper(torch.tensor([0.1])), size=1),
        Learnable(AdditiveGaussian(torch.tensor([0.1, 0.2, 0.7]))),
    ],
    ids=repr,
)
@pytest.mark.parametrize("name", [n for n, c in MODELS.items() if c.denoising])
def test_configuration_round_trip(name: str, corruption: Learnable) -> None:
    model = _model(name, copy.deepcopy(corruption))
    assert isinstance(model.corruption, Learnable)
    with torch.no_grad():
        model.corruption.unconstrained.add_(0.5)
    again = rebuilt(model, torch.rand(B, D), SEED)
    assert repr(again.corruption) == repr(model.corruption)


def test_starts_where_it_is_told_to() -> None:
    for start in (Masking(0.125), AdditiveGaussian(0.02), AdditiveGaussian(30.0)):
        learnt = Learnable(start)
        torch.testing.assert_close(learnt.level.detach(), start.parameter)
        torch.testing.assert_close(learnt.fixed().parameter, start.parameter)
        assert type(learnt.fixed()) is type(start)
    assert Learnable(Masking(0.25), size=D).level.shape == (D,)
    assert repr(Learnable(corruptions.SaltAndPepper(0.25, 0.125))) == (
        "Learnable(SaltAndPepper(0.25, salt=0.125), 'score')"
    )


test_wrong_arguments = refusals(
    [
        (
            lambda: Learnable(corruptions.Identity()),
            TypeError,
            r"corruption must be a Masking, .* or AdditiveGaussian, got Identity\(\)",
        ),
        (lambda: Learnable(0.1), TypeError, "corruption must be a Masking, .*, got float"),
        (lambda: Learnable(Learnable(Masking(0.1))), TypeError, "must be a Masking, .*, got Learn"),
        (
            lambda: Learnable(Masking(0.1), "pathwise"),
            ValueError,
            "estimator must be one of score, relaxed for Masking; got 'pathwise'",
        ),
        (
            lambda: Learnable(AdditiveGaussian(0.1), "score"),
            ValueError,
            "estimator must be one of pathwise for AdditiveGaussian; got 'score'",
        ),
        (
            lambda: Learnable(Masking(0.0)),
            ValueError,
            r"rate must be in \(0, 1\) to be learnt, got values from 0 to 0",
        ),
        (
            lambda: Learnable(BitFlip(torch.tensor([0.5, 1.0]))),
            ValueError,
            r"rate must be in \(0, 1\) to be learnt, got values from 0.5 to 1",
        ),
        (
            lambda: Learnable(AdditiveGaussian(0.0)),
            ValueError,
            "std must be > 0 to be learnt, got values from 0 to 0",
        ),
        (
            lambda: Learnable(Masking(0.1), "relaxed", temperature=0),
            ValueError,
            "temperature must be finite and > 0, got 0",
        ),
        (
            lambda: Learnable(Masking(0.1), temperature="1"),
            TypeError,
            "temperature must be a number, got str",
        ),
        (lambda: Learnable(Masking(0.1), size=0), ValueError, "size must be >= 1, got 0"),
        (
            lambda: Learnable(Masking(torch.tensor([0.1, 0.2])), size=3),
            ValueError,
            "size must be the number of levels given, 2, got 3",
        ),
        (
            lambda: _model("dvae", Learnable(Masking(0.1)), copies=1),
            ValueError,
            "copies must be >= 2 for a rate learnt by the score function, .*; got 1",
        ),
        (
            lambda: corruptions.score_function_surrogate(torch.ones(1, B), torch.ones(1, B)),
            ValueError,
            "copies must be >= 2 for a rate learnt by the score function, .*; got 1",
        ),
        (
            lambda: corruptions.score_function_surrogate(torch.ones(M, B), torch.ones(B, M)),
            ValueError,
            rf"must have one shape \(M, B\), got \({M}, {B}\) and \({B}, {M}\)",
        ),
        (
            lambda: Learnable(AdditiveGaussian(0.1)).log_prob(
                torch.ones(B, D), torch.ones(M, B, D)
            ),
            ValueError,
            "log_prob must be asked of a rate, got Learnable",
        ),
        (
            lambda: Learnable(Masking(0.1)).log_prob(torch.ones(B, D), torch.ones(B, D)),
            ValueError,
            rf"noisy must have shape \(M, B, D\) and x \(B, D\), got \({B}, {D}\) and \({B}, {D}\)",
        ),
        (
            lambda: corruptions.corrupt(torch.ones(B, D), Learnable(Masking(0.1), size=D + 1)),
            ValueError,
            r"corruption's parameter must have 1 element or one per data dimension \(3\)",
        ),
    ]
)
