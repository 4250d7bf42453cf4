"""What the built-in likelihoods say of themselves: derivatives, gradients in x, probabilities.

Every one is asked: a new kernel needs no line here.
"""

from __future__ import annotations

import copy
import math
import pickle
from typing import Any

import pytest
import torch
from operator_cases import DEVICES
from torch import Tensor

import dvae_fast
from dvae_fast.checking.cases import sample_inputs
from dvae_fast.checking.likelihoods import LIKELIHOODS as ROWS
from dvae_fast.checking.likelihoods import scale_of, target_of
from dvae_fast.checking.operands import Maker
from dvae_fast.likelihoods import FUSED, Bernoulli, Gaussian, Likelihood
from dvae_fast.models import DIWAE, Decoder
from dvae_fast.objectives import OBJECTIVES

M, B, K, D = 2, 3, 4, 5
each_name = pytest.mark.parametrize("name", FUSED)
each_device = pytest.mark.parametrize("device", DEVICES)
SMOOTH = [name for name, likelihood in FUSED.items() if not likelihood.discrete]


def drawn(name: str, device: str = "cpu") -> tuple[Any, Tensor, Tensor]:
    """(params, x, log_ratio) in float64, of (M, B, K, D), (B, D) and (M, B, K)."""
    make = Maker(name, torch.float64, device, "contiguous")
    params: Any = make.put(ROWS[name].params(make.raw(M, B, K, D)))
    if ROWS[name].scale is not None:
        params = (params, scale_of(make, name, (M, B, K, D), torch.float64))
    return params, target_of(make, name, B, D), make.normal(M, B, K)


def test_the_table_of_the_check_is_the_registry() -> None:
    assert list(ROWS) == list(FUSED)
    for name, row in ROWS.items():
        assert (row.scale is None) == (len(FUSED[name].params) == 1)
    labels = [sample.label for sample in sample_inputs("log_weights", torch.float64, "cpu")]
    assert all(any(name in label for label in labels) for name in FUSED)


@each_name
def test_closed_derivatives_are_autograds(name: str) -> None:
    likelihood = FUSED[name]
    params, x, _ = drawn(name)
    operands, rows = likelihood.unpack(params), x.unsqueeze(1)
    by_autograd = Likelihood.derivatives(likelihood, operands, rows)
    for mine, its in zip(likelihood.derivatives(operands, rows), by_autograd, strict=True):
        torch.testing.assert_close(mine, its, rtol=1e-9, atol=1e-9)
    if not likelihood.discrete:
        torch.testing.assert_close(
            likelihood.derivative_in_x(operands, rows),
            Likelihood.derivative_in_x(likelihood, operands, rows),
        )


@each_name
def test_the_kernel_is_the_density(name: str) -> None:
    likelihood = FUSED[name]
    params, x, ratio = drawn(name)
    expected = likelihood.log_prob(params, x.unsqueeze(1)).sum(-1) + ratio
    torch.testing.assert_close(dvae_fast.log_weights(params, x, ratio, name), expected)


# --- the same without a kernel ----------------------------------------------------------------


def twin(name: str) -> Likelihood:
    """That likelihood, computed by its own `log_prob`."""
    own, options = type(FUSED[name]), {}
    if name == "bernoulli_probabilities":
        options = {"probabilities": True}
    found: Likelihood = type(f"Plain{own.__name__}", (own,), {"kernel": None})(**options)
    assert found.kernel is None
    return found


def model_of(likelihood: str | Likelihood, **options: Any) -> DIWAE:
    torch.manual_seed(0)
    return DIWAE(D, 2, (4,), likelihood=likelihood, **options).double()


@each_name
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_operators_without_a_kernel(name: str, dtype: torch.dtype) -> None:
    params, x, ratio = drawn(name)
    operands = [p.to(dtype).requires_grad_() for p in FUSED[name].unpack(params)]
    given = operands[0] if len(operands) == 1 else tuple(operands)
    for f in (dvae_fast.log_weights, dvae_fast.iwae_loss):
        got, expected = (f(given, x, ratio, lik) for lik in (twin(name), name))
        few = {} if dtype == torch.float64 else {"rtol": 1e-5, "atol": 1e-3}
        torch.testing.assert_close(got, expected, **few)
        grads = (torch.autograd.grad(t.sum(), operands) for t in (got, expected))
        for mine, its in zip(*grads, strict=True):
            torch.testing.assert_close(mine, its, **few)


@pytest.mark.parametrize(
    ("objective", "name"),
    [
        (objective, name)
        for objective in OBJECTIVES
        for name in (FUSED if objective == "iwae" else ("bernoulli", "gaussian"))
    ],
)
def test_objectives_without_a_kernel(objective: str, name: str) -> None:
    """Value and gradients, with every estimator of the objective; each objective of a likelihood
    without a scale and of one with."""
    # Of counts the small ones, of which an untrained decoder makes no infinite rate.
    x = drawn(name)[1].clamp(max=3).repeat(3, 1)
    options: Any = {"copies": 2, "samples": 3, "objective": objective}
    for estimator in OBJECTIVES[objective].estimators:
        models = [model_of(lik, estimator=estimator, **options) for lik in (twin(name), name)]
        for model in models:
            model.loss(x, 3).backward()
        torch.testing.assert_close(*(model.loss(x, 3) for model in models))
        for mine, its in zip(*(model.parameters() for model in models), strict=True):
            torch.testing.assert_close(mine.grad, its.grad)


@each_name
def test_evaluation_without_a_kernel(name: str) -> None:
    x = drawn(name)[1]
    models = [model_of(lik) for lik in (twin(name), name)]
    for estimate in (
        lambda m: dvae_fast.estimate_log_likelihood(m, x, 30, chunk=7, seed=2),
        lambda m: dvae_fast.annealed_importance_sampling(
            m, x, chains=2, temperatures=5, leapfrog=2, seed=2
        ),
        lambda m: (
            dvae_fast.bidirectional_monte_carlo(
                m, 2, chains=2, temperatures=5, leapfrog=2, seed=2
            ).forward
        ),
    ):
        mine, its = (estimate(m) for m in models)
        torch.testing.assert_close(mine.log_likelihood, its.log_likelihood)


# --- gradients in x ---------------------------------------------------------------------------


@each_device
@pytest.mark.parametrize("name", SMOOTH)
@pytest.mark.parametrize("own_x", [False, True])
@pytest.mark.parametrize("function", ["log_weights", "iwae_loss"])
def test_gradient_in_x(function: str, name: str, own_x: bool, device: str) -> None:
    """As autograd has it of the density."""
    likelihood = FUSED[name]
    params, x, ratio = drawn(name, device)
    x = x.expand(M, B, D).clone() if own_x else x  # zeros and ones among them
    x.requires_grad_()
    cotangent = torch.linspace(-1, 2, M * B * K, dtype=torch.float64, device=device)
    density = likelihood.log_prob(params, x.unsqueeze(-2)).sum(-1) + ratio
    if function == "log_weights":
        got = dvae_fast.log_weights(params, x, ratio, name)
        expected, cotangent = density, cotangent.view(M, B, K)
    else:
        got = dvae_fast.iwae_loss(params, x, ratio, name, reduction="none")
        expected = math.log(K) - torch.logsumexp(density, -1)
        cotangent = cotangent[: M * B].view(M, B)
    torch.testing.assert_close(got, expected)
    torch.testing.assert_close(
        torch.autograd.grad(got, x, cotangent), torch.autograd.grad(expected, x, cotangent)
    )


@pytest.mark.parametrize("name", SMOOTH)
def test_gradient_in_x_by_differences(name: str) -> None:
    params, x, ratio = drawn(name)
    x = x.clamp(0.01, 0.99).requires_grad_()
    torch.autograd.gradcheck(lambda x: dvae_fast.log_weights(params, x, ratio, name), (x,))


def test_the_reference_of_the_gradient_in_x_in_every_dtype() -> None:
    for dtype in (torch.float32, torch.bfloat16):
        params, x, ratio = (t.float() for t in drawn("bernoulli"))
        x.requires_grad_()
        log_w = dvae_fast.log_weights(params.to(dtype), x, ratio)
        (grad,) = torch.autograd.grad(log_w.sum(), x)
        assert grad.dtype == torch.float32
        torch.testing.assert_close(grad, params.to(dtype).float().sum((0, 2)))


def test_a_weight_of_zero_stops_an_infinite_derivative() -> None:
    logits, x, ratio = drawn("bernoulli")
    logits[0, 1, 2] = math.inf  # x below 1: this sample has no weight
    x.clamp_(0.1, 0.9).requires_grad_()
    loss = dvae_fast.iwae_loss(logits, x, ratio)
    (grad,) = torch.autograd.grad(loss, x)
    assert bool(grad.isfinite().all())


# --- Bernoulli probabilities ------------------------------------------------------------------


def test_probabilities_are_logits() -> None:
    logits, x, ratio = drawn("bernoulli")
    logits.requires_grad_()
    x.requires_grad_()
    ratio.requires_grad_()
    for f in (dvae_fast.log_weights, dvae_fast.iwae_loss):
        got = f(torch.sigmoid(logits), x, ratio, Bernoulli(probabilities=True))
        expected = f(logits, x, ratio)
        torch.testing.assert_close(got, expected)
        operands = (logits, x, ratio)
        torch.testing.assert_close(
            torch.autograd.grad(got.sum(), operands), torch.autograd.grad(expected.sum(), operands)
        )


def test_limits_of_probabilities() -> None:
    """Exact: nothing is clamped, nothing is NaN."""
    inf = math.inf
    rows = [  # p, x, log p, ∂/∂p
        (0.0, 0.0, 0.0, -1.0),
        (1.0, 1.0, 0.0, 1.0),
        (0.0, 1.0, -inf, inf),
        (1.0, 0.0, -inf, -inf),
        (0.0, 0.25, -inf, inf),
        (1.0, 0.25, -inf, -inf),
        (1e-300, 0.0, -1e-300, -1.0),
        (1e-300, 1.0, math.log(1e-300), 1e300),
        (0.5, 0.5, -math.log(2), 0.0),
    ]
    p, x, log_p, slope = torch.tensor(rows, dtype=torch.float64).unbind(1)
    p = p.view(-1, 1, 1).requires_grad_()
    zero = torch.zeros(len(rows), 1, dtype=torch.float64)
    got = dvae_fast.log_weights(p, x.view(-1, 1), zero, Bernoulli(probabilities=True))
    torch.testing.assert_close(got.flatten(), log_p, rtol=1e-12, atol=0)
    (grad,) = torch.autograd.grad(got.sum(), p)
    torch.testing.assert_close(grad.flatten(), slope, rtol=1e-12, atol=0)


def test_a_decoder_that_ends_in_a_sigmoid() -> None:
    likelihood = Bernoulli(probabilities=True)
    torch.manual_seed(0)
    model = DIWAE(D, 2, (4,), likelihood=likelihood, data_mean=torch.linspace(0, 1, D)).double()
    other = DIWAE(D, 2, (4,)).double()
    other.load_state_dict(model.state_dict())
    x = (torch.rand(6, D) < 0.5).double()
    torch.testing.assert_close(model.loss(x, 1), other.loss(x, 1))
    torch.testing.assert_close(model.reconstruct(x), other.reconstruct(x))
    assert torch.equal(model.sample(4, 1, draw=True), other.sample(4, 1, draw=True))
    mine, its = (dvae_fast.estimate_log_likelihood(m, x, 30, seed=2) for m in (model, other))
    torch.testing.assert_close(mine.log_likelihood, its.log_likelihood)
    assert likelihood.kind == "bernoulli_probabilities"
    assert repr(likelihood) == "Bernoulli(probabilities=True)"
    assert repr(Bernoulli()) == "Bernoulli()"


def test_what_is_no_probability() -> None:
    with pytest.raises(TypeError, match="probabilities must be a bool, got int"):
        Bernoulli(1)  # type: ignore[arg-type]
    old = dvae_fast.set_validation(True)
    try:
        with pytest.raises(ValueError, match=r"probabilities must lie in \[0, 1\], .* to 3"):
            dvae_fast.log_weights(
                torch.full((B, K, D), 3.0), torch.zeros(B, D), torch.zeros(B, K),
                Bernoulli(probabilities=True),
            )  # fmt: skip
    finally:
        dvae_fast.set_validation(old)


# --- objects ----------------------------------------------------------------------------------


@each_name
def test_draws_by_a_generator(name: str) -> None:
    params, _, _ = drawn(name)

    def draw() -> Tensor:
        return FUSED[name].sample(params, generator=torch.Generator().manual_seed(3))

    before = torch.get_rng_state()
    assert torch.equal(draw(), draw())
    assert torch.equal(torch.get_rng_state(), before)
    FUSED[name].check_support(draw())


@each_name
def test_models_can_be_pickled_and_copied(name: str) -> None:
    model = DIWAE(D, 2, (4,), likelihood=name)
    for again in (pickle.loads(pickle.dumps(model)), copy.deepcopy(model)):
        assert again.likelihood.kernel == name
        assert again.decoder.links == model.decoder.links
        assert (again.split_decoder() is None) == (model.split_decoder() is None)


def test_a_decoder_by_name_or_object() -> None:
    torch.manual_seed(0)
    by_name = Decoder(2, (3,), D, "gaussian")
    torch.manual_seed(0)
    by_object = Decoder(2, (3,), D, Gaussian())
    z = torch.randn(4, 2)
    torch.testing.assert_close(by_name(z), by_object(z))


def test_the_support_of_large_data_is_looked_at_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same answer, wherever the value is."""
    monkeypatch.setattr("dvae_fast.likelihoods.base._AT_ONCE", 12)
    x = torch.rand(9, D)
    Bernoulli().check_support(x)
    for row in (0, 4, 8):
        wrong = x.clone()
        wrong[row, 2] = 1.5
        with pytest.raises(ValueError, match=r"x must lie in \[0, 1\].*to 1\.5"):
            Bernoulli().check_support(wrong)
