"""Ready likelihoods, held to torch.distributions and SciPy in float64."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from model_checks import rise
from operator_cases import assert_same_gradients
from scipy import integrate, stats
from torch import Tensor, distributions

import dvae_fast
from dvae_fast.evaluation import estimate_log_likelihood
from dvae_fast.likelihoods import (
    LIKELIHOODS,
    Categorical,
    ContinuousBernoulli,
    DiscretisedLogistic,
    Laplace,
    Likelihood,
    NegativeBinomial,
    Poisson,
    ZeroInflatedNegativeBinomial,
)
from dvae_fast.models import DIWAE, load_model, save_model

B, K, D, C = 3, 4, 6, 3
ALL = (Poisson(), ZeroInflatedNegativeBinomial(), Laplace(), ContinuousBernoulli(), Categorical(C))
each = pytest.mark.parametrize("likelihood", ALL, ids=lambda likelihood: likelihood.kind)


def drawn(likelihood: Likelihood, *shape: int, seed: int = 0) -> tuple[Tensor, ...]:
    """Parameters (*shape, K, D) and x (B, D), in float64."""
    g = torch.Generator().manual_seed(seed)
    raw = [torch.randn(*shape, K, D, generator=g, dtype=torch.float64) for _ in likelihood.params]
    params = [link(t) for link, t in zip(likelihood.params.values(), raw, strict=True)]
    x = torch.rand(B, D, generator=g, dtype=torch.float64)
    if isinstance(likelihood, Categorical):
        x = likelihood.one_hot((C * x[:, : D // C]).long()).double()
    elif likelihood.discrete:
        x = (4 * x).floor()
    return (*params, x)


def oracle(likelihood: Likelihood, params: tuple[Tensor, ...], x: Tensor) -> Tensor:
    """log p of each row of x (B, K, D), summed."""
    if isinstance(likelihood, Poisson):
        each_one = distributions.Poisson(params[0]).log_prob(x)
    elif isinstance(likelihood, Laplace):
        each_one = distributions.Laplace(*params).log_prob(x)
    elif isinstance(likelihood, ContinuousBernoulli):
        each_one = distributions.ContinuousBernoulli(logits=params[0]).log_prob(x)
    elif isinstance(likelihood, Categorical):
        logits = params[0].unflatten(-1, (-1, C))
        indices = x.unflatten(-1, (-1, C)).argmax(-1)
        each_one = distributions.Categorical(logits=logits).log_prob(indices)
    else:
        mean, scale, zero = params
        counts = distributions.NegativeBinomial(scale, probs=mean / (mean + scale))
        p = torch.sigmoid(zero)
        each_one = torch.log(p * (x == 0) + (1 - p) * counts.log_prob(x).exp())
    return each_one.sum(-1)


def given(params: tuple[Tensor, ...]) -> Any:
    return params[0] if len(params) == 1 else params


@each
@pytest.mark.parametrize("leading", [(B,), (2, B)])
def test_is_that_of_torch_with_its_gradients(
    likelihood: Likelihood, leading: tuple[int, ...]
) -> None:
    *params, x = drawn(likelihood, *leading)
    leaves = [p.clone().requires_grad_() for p in params]
    ratio = torch.linspace(-1, 1, math.prod(leading) * K, dtype=torch.float64).view(*leading, K)
    got = dvae_fast.log_weights(given(tuple(leaves)), x, ratio, likelihood)
    rows = x.unsqueeze(1).expand(*leading, K, D)
    expected = oracle(likelihood, tuple(leaves), rows) + ratio
    assert_same_gradients(got, expected, leaves, ratio + 0.3)


@each
@pytest.mark.parametrize("by_operator", [True, False])
def test_a_weight_of_0_may_change(likelihood: Likelihood, by_operator: bool) -> None:
    """The gradient of c log w has a derivative in c where c is 0 too."""
    *params, x = drawn(likelihood, B)
    leaves = [p.clone().requires_grad_() for p in params]
    zero = torch.zeros(B, K, dtype=torch.float64)
    c = zero.clone().requires_grad_()
    if by_operator:
        log_w = dvae_fast.log_weights(given(tuple(leaves)), x, zero, likelihood)
    else:
        log_w = likelihood.log_prob(tuple(leaves), x.unsqueeze(1)).sum(-1)
    slopes = torch.autograd.grad((c * log_w).sum(), leaves, create_graph=True)
    (got,) = torch.autograd.grad(sum(t.sum() for t in slopes), c)
    again = dvae_fast.log_weights(given(tuple(leaves)), x, zero, likelihood)
    expected = sum(t.sum(-1) for t in torch.autograd.grad(again.sum(), leaves))
    torch.testing.assert_close(got, expected)


@each
def test_draws_have_the_mean(likelihood: Likelihood) -> None:
    """Of 20,000 draws of each, within 5 standard errors: a false alarm in 10⁵ in all, were they
    drawn anew. And by a generator they are the same again."""
    *params, _ = drawn(likelihood, 1)
    many = tuple(p[0].expand(20_000, K, D) for p in params)
    g = torch.Generator().manual_seed(3)
    draws = likelihood.sample(given(many), g)
    assert bool(likelihood.support(draws[:100]).all())
    error = draws.std(0) / math.sqrt(len(draws))
    deviation = (draws.mean(0) - likelihood.mean(given(many))[0]) / error
    assert float(deviation.abs().max()) < 5
    assert torch.equal(draws, likelihood.sample(given(many), torch.Generator().manual_seed(3)))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize(
    "likelihood", [*ALL, DiscretisedLogistic(), NegativeBinomial()], ids=lambda one: one.kind
)
def test_means_and_draws_of_few_bits(likelihood: Likelihood, dtype: torch.dtype) -> None:
    """Of what autocast made, up to its own digits; of 24 means of 5,000 draws, a false alarm in
    70,000."""
    *params, _ = drawn(likelihood, 5, seed=2)
    few = tuple(p[0, :, :].to(dtype) for p in params)
    exact = likelihood.mean(given(tuple(p.double() for p in few)))
    got = likelihood.mean(given(few))
    assert got.dtype == dtype
    digit = torch.finfo(dtype).eps
    torch.testing.assert_close(got.double(), exact, rtol=digit, atol=digit / 2)
    many = tuple(p.expand(5000, *p.shape) for p in few)
    draws = likelihood.sample(given(many), torch.Generator().manual_seed(3))
    assert draws.dtype == dtype
    draws = draws.double()
    error = draws.std(0) / math.sqrt(len(draws)) + digit * (1 + exact.abs()) / 2
    assert float(((draws.mean(0) - exact) / error).abs().max()) < 5


@each
def test_models_learn_are_saved_and_evaluated(likelihood: Likelihood, tmp_path: Any) -> None:
    *_, x = drawn(likelihood, B)
    x = x.float().repeat(5, 1)
    torch.manual_seed(0)
    # A categorical has a number of classes, which no name says.
    named = likelihood.kind if likelihood.kind in LIKELIHOODS else likelihood
    model = DIWAE(D, 2, (7,), likelihood=named)
    assert rise(model, x, 20, 0.02) > 0
    path = tmp_path / "model.safetensors"
    options: dict[str, Any] = {}
    if isinstance(named, str):
        save_model(path, model)
    else:
        with pytest.warns(UserWarning, match="must be given likelihood="):
            save_model(path, model)
        options = {"likelihood": named}
    again = load_model(path, **options)
    assert again.likelihood.kind == likelihood.kind
    estimate = estimate_log_likelihood(again, x, 30, seed=1)
    assert bool(estimate.log_likelihood.isfinite().all())


@pytest.mark.parametrize("rate", [0.3, 27.0, 1e4, 1e6])
def test_counts_keep_their_digits(rate: float) -> None:
    """2,000 counts in float32 within 0.05 nats of SciPy in float64."""
    x = np.random.default_rng(0).poisson(rate, 2000)
    params = torch.full((1, 1, 2000), rate)
    ratio = torch.zeros(1, 1)
    data = torch.from_numpy(x).float()[None]
    got = dvae_fast.log_weights(params, data, ratio, "poisson")
    assert float(got) == pytest.approx(stats.poisson.logpmf(x, np.float32(rate)).sum(), abs=0.05)


def test_limits_of_counts() -> None:
    x = torch.tensor([0.0, 3.0, 0.0, 3.0, 0.0])
    rate = torch.tensor([0.0, 0.0, math.inf, math.inf, math.nan])
    expected = [0.0, -math.inf, -math.inf, -math.inf, math.nan]
    np.testing.assert_array_equal(Poisson().log_prob((rate,), x).numpy(), expected)
    mean, scale = torch.full((4,), 2.0), torch.ones(4)
    zero = torch.tensor([-math.inf, math.inf, math.inf, -40.0])
    x = torch.tensor([1.0, 1.0, 0.0, 0.0])
    got = ZeroInflatedNegativeBinomial().log_prob((mean, scale, zero), x)
    plain = NegativeBinomial().log_prob((mean, scale), x)
    assert got[1:3].tolist() == [-math.inf, 0.0]
    torch.testing.assert_close(got[3], plain[3])


def test_zero_inflated_counts_sum_to_one() -> None:
    x = torch.arange(400, dtype=torch.float64)
    one = torch.ones(400, dtype=torch.float64)
    log_p = ZeroInflatedNegativeBinomial().log_prob((5 * one, 2 * one, -0.3 * one), x)
    assert float(log_p.exp().sum()) == pytest.approx(1, abs=1e-9)
    weight = 1 / (1 + math.exp(0.3))
    nb = stats.nbinom.pmf(0, 2, 2 / 7)
    assert float(log_p[0]) == pytest.approx(math.log(weight + (1 - weight) * nb), rel=1e-12)


@pytest.mark.parametrize("logit", [0.0, 1e-8, 0.2499, -0.2501, 1.0, -7.0, 80.0, -600.0])
def test_the_continuous_bernoulli_near_zero_and_far(logit: float) -> None:
    """A density: it integrates to 1, and its mean is the integral of x; and both have no step where
    the series ends."""
    cb = ContinuousBernoulli()
    at = torch.tensor([logit], dtype=torch.float64)

    def density(x: float) -> float:
        return float(cb.log_prob((at,), torch.tensor([x], dtype=torch.float64)).exp())

    end = min(1.0, 30 / max(abs(logit), 1e-9))  # where it is not 0
    span = (0, end) if logit < 0 else (1 - end, 1)
    assert integrate.quad(density, *span)[0] == pytest.approx(1, abs=1e-9)
    mean = integrate.quad(lambda x: x * density(x), *span)[0]
    assert float(cb.mean((at,))) == pytest.approx(mean, abs=1e-9)
    x = torch.tensor([0.3], dtype=torch.float64)
    near = at.clone().requires_grad_()
    torch.autograd.gradcheck(lambda t: cb.log_prob((t,), x), (near,))
    # d log p / d l = x − mean.
    (slope,) = torch.autograd.grad(cb.log_prob((near,), x).sum(), near)
    assert float(slope) == pytest.approx(0.3 - mean, abs=1e-8)


@pytest.mark.parametrize("logit", [0.0, -1e-9, 0.2, -0.24, 0.26])
def test_second_derivatives_of_a_continuous_bernoulli(logit: float) -> None:
    """Minus the variance, 1/12 at 0."""
    at = torch.full((B, K, D), logit, dtype=torch.float64, requires_grad=True)
    x = torch.linspace(0, 1, B * D, dtype=torch.float64).view(B, D)
    ratio = torch.zeros(B, K, dtype=torch.float64)
    log_w = dvae_fast.log_weights(at, x, ratio, "continuous_bernoulli")
    (slope,) = torch.autograd.grad(log_w.sum(), at, create_graph=True)
    (second,) = torch.autograd.grad(slope.sum(), at)
    wide = abs(logit)
    variance = 1 / wide**2 - 1 / (2 * math.cosh(wide) - 2) if wide > 1e-3 else 1 / 12
    torch.testing.assert_close(second, torch.full_like(second, -variance), rtol=0, atol=1e-10)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    "name", ["poisson", "negative_binomial", "zero_inflated_negative_binomial"]
)
def test_a_head_of_counts_has_a_gradient_wherever_its_outputs_are(
    name: str, dtype: torch.dtype
) -> None:
    """Rates that exp would make inf, of a sample without weight; and of one alone, those that a
    count is divided by to give inf."""
    likelihood, far = LIKELIHOODS[name], 0.6 * math.log(torch.finfo(dtype).max)
    g = torch.Generator().manual_seed(1)
    x = torch.poisson(5 * torch.rand(B, D, generator=g, dtype=dtype), generator=g)
    outputs = [torch.randn(B, K, D, generator=g, dtype=dtype) for _ in likelihood.params]
    for sample, value in enumerate((2 * far, -1.9 * far, -far)):
        outputs[0][:, sample, sample] = value
    for samples in (slice(None), slice(1, 2), slice(2, 3)):
        leaves = [t[:, samples].clone().requires_grad_() for t in outputs]
        params = [link(t) for link, t in zip(likelihood.params.values(), leaves, strict=True)]
        ratio = torch.zeros(params[0].shape[:2], dtype=dtype)
        loss = dvae_fast.iwae_loss(given(tuple(params)), x, ratio, name)
        assert bool(loss.isfinite())
        for grad in torch.autograd.grad(loss, leaves):
            assert bool(grad.isfinite().all())


def test_infinite_logits_of_a_continuous_bernoulli() -> None:
    """All of x at one end: a density of +inf there, and of 0 elsewhere."""
    logits = torch.tensor([math.inf, math.inf, -math.inf, -math.inf, math.nan])
    x = torch.tensor([1.0, 0.4, 0.0, 0.4, 0.4])
    expected = [math.inf, -math.inf, math.inf, -math.inf, math.nan]
    np.testing.assert_array_equal(ContinuousBernoulli().log_prob((logits,), x).numpy(), expected)
    u = ContinuousBernoulli().sample((torch.tensor([0.0, 1e-30, 3e4, -3e4]),))
    assert bool(((u >= 0) & (u <= 1)).all())


@each
def test_decoders_start_at_the_mean_of_the_data(likelihood: Likelihood) -> None:
    if isinstance(likelihood, Categorical):
        mean = torch.tensor([0.2, 0.5, 0.3], dtype=torch.float64)
    else:
        mean = torch.tensor([0.07, 0.5, 0.93], dtype=torch.float64)
    start = likelihood.start(mean)
    assert start is not None
    first = next(iter(likelihood.params.values()))(start)
    # A zero's logit starts at 0, and its scale, wherever it does, does not move the mean.
    outputs = {name: 0.0 if name == "zero_logits" else -50.0 for name in likelihood.params}
    rest = tuple(torch.full((3,), v, dtype=torch.float64) for v in outputs.values())[1:]
    got = likelihood.mean(given((first, *rest)))
    torch.testing.assert_close(got, mean, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize(
    ("likelihood", "value", "message"),
    [
        (Poisson(), 1.5, "multiples of 1, the support of the poisson likelihood, got 1.5"),
        (Poisson(), -1.0, r"lie in \[0, inf\], the support of the poisson likelihood"),
        (ContinuousBernoulli(), 1.1, r"lie in \[0, 1\], the support of the continuous_bernoulli"),
        (Laplace(), math.inf, "support of the laplace likelihood"),
        (Categorical(2), 0.5, r"the support of the Categorical\(classes=2\) likelihood, got 0.5"),
        (Categorical(2), 1.0, r"the support of the Categorical\(classes=2\) likelihood, got 1"),
    ],
)
def test_data_outside_the_support(likelihood: Likelihood, value: float, message: str) -> None:
    x = torch.zeros(1, 4)
    x[:, 1::2] = 1 if isinstance(likelihood, Categorical) else 0
    likelihood.check_support(x)
    x[0, 2] = value
    with pytest.raises(ValueError, match=message):
        likelihood.check_support(x)


def test_classes() -> None:
    indices = torch.tensor([[0, 2], [1, 1]])
    expected = [[1.0, 0, 0, 0, 0, 1], [0, 1, 0, 0, 1, 0]]
    assert Categorical(3).one_hot(indices).tolist() == expected
    with pytest.raises(ValueError, match="classes must be >= 2, got 1"):
        Categorical(1)
    with pytest.raises(TypeError, match="classes must be an int, got float"):
        Categorical(2.0)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"indices must lie in \[0, 1\], got values from 0 to 2"):
        Categorical(2).one_hot(indices)
    with pytest.raises(TypeError, match=r"indices must be integers, got torch\.float32"):
        Categorical(3).one_hot(indices.float())
    with pytest.raises(ValueError, match="C = 3 dimensions for each variable, got 4"):
        Categorical(3).support(torch.zeros(2, 4))
    with pytest.raises(ValueError, match="C = 3 dimensions for each variable, got 4"):
        Categorical(3).log_prob((torch.zeros(2, 4),), torch.zeros(2, 4))


@pytest.mark.parametrize("validate", [False, True])
def test_variables_of_several_classes_are_observed_as_a_whole(validate: bool) -> None:
    g, lik = torch.Generator().manual_seed(4), Categorical(3)
    logits = torch.randn(B, K, 12, generator=g, dtype=torch.float64)
    x = lik.one_hot(torch.randint(0, 3, (B, 4), generator=g)).double()
    mask = (torch.rand(B, 4, generator=g) < 0.5).repeat_interleave(3, -1)
    mask[0], mask[1] = False, True
    expected = torch.where(mask.unsqueeze(1), lik.log_prob((logits,), x.unsqueeze(1)), 0).sum(-1)
    was = dvae_fast.set_validation(validate)
    try:
        spoilt = torch.where(mask.unsqueeze(1), logits, math.nan), torch.where(mask, x, 7.0)
        got = dvae_fast.log_weights(*spoilt, torch.zeros_like(expected), lik, mask)
        torch.testing.assert_close(got, expected)
        mask[1, 4] = False
        with pytest.raises(ValueError, match=r"mask must .* C = 3 .* variable 1 in example 1$"):
            dvae_fast.log_weights(logits, x, torch.zeros_like(expected), lik, mask)
    finally:
        dvae_fast.set_validation(was)
    own = (lambda x: (x[:, :2], x[:, :2]), lambda z: z.repeat(1, 6))
    with pytest.raises(ValueError, match="mask must be the same for the C = 3"):
        estimate_log_likelihood(own, x, 2, mask=mask, likelihood=lik)
