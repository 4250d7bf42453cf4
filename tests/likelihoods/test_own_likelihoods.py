"""Likelihoods of a user's own, held to torch.distributions in float64 through every door."""

# A user's class is written as plainly as the documentation's.
# ruff: noqa: RUF012

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from model_checks import rise
from operator_cases import assert_same_gradients
from own_likelihoods import (
    OWN,
    ContinuousBernoulli,
    Exponential,
    Laplace,
    StudentT,
    ZeroInflatedPoisson,
    as_distribution,
    drawn,
)
from scipy import stats
from torch import Tensor, nn

import dvae_fast
from dvae_fast import objectives
from dvae_fast.likelihoods import Bernoulli, Categorical, Gaussian, Likelihood, identity
from dvae_fast.models import DIWAE, DVAE, BernoulliLatentModel, TwoLayerModel

B, K, D, Z = 3, 4, 5, 2
each_own = pytest.mark.parametrize("likelihood", OWN, ids=lambda likelihood: likelihood.kind)
each_leading = pytest.mark.parametrize("leading", [(), (2,), (2, 1, 3)])


def ratio_of(*shape: int) -> Tensor:
    return torch.linspace(-1, 1, math.prod(shape), dtype=torch.float64).view(shape)


def given(params: tuple[Any, ...]) -> Any:
    """As a decoder returns them."""
    return params[0] if len(params) == 1 else params


def leaves(*tensors: Tensor) -> tuple[Tensor, ...]:
    return tuple(t.clone().requires_grad_() for t in tensors)


def plain_log_weights(
    likelihood: Likelihood, params: tuple[Tensor, ...], x: Tensor, ratio: Tensor
) -> Tensor:
    """By torch.distributions."""
    return as_distribution(likelihood, params).log_prob(x.unsqueeze(-2)).sum(-1) + ratio


def assert_same(got: Tensor, expected: Tensor, operands: tuple[Tensor, ...]) -> None:
    """Value, and the gradient in each operand under a cotangent that differs everywhere."""
    assert_same_gradients(got, expected, operands, ratio_of(*got.shape) + 0.3)


@each_own
@pytest.mark.parametrize("k, dead", [(1, False), (K, False), (K, True)])
def test_second_derivatives(likelihood: Likelihood, k: int, dead: bool) -> None:
    """Of a loss too whose weights do not change, of one sample, and beside one without weight."""
    *params, x = drawn(likelihood, B, k, D)
    ratio = ratio_of(B, k).clone()
    if dead:
        ratio[0, 0] = -math.inf
    got, expected = [], []
    for found in (got, expected):
        operands = leaves(*params)
        if found is got:
            loss = dvae_fast.iwae_loss(given(operands), x, ratio, likelihood, reduction="none")
        else:
            log_w = plain_log_weights(likelihood, operands, x, ratio)
            loss = math.log(k) - torch.logsumexp(log_w, -1)
        first = torch.autograd.grad(loss.sum(), operands, create_graph=True)
        found += [*first, *torch.autograd.grad(sum(g.sin().sum() for g in first), operands)]
    for mine, its in zip(got, expected, strict=True):
        torch.testing.assert_close(mine, its)


# --- log-weights and the loss -----------------------------------------------------------------


@each_own
@each_leading
def test_log_weights(likelihood: Likelihood, leading: tuple[int, ...]) -> None:
    *params, x = drawn(likelihood, *leading, B, K, D)
    operands = leaves(*params, x, ratio_of(*leading, B, K))
    *p, data, ratio = operands
    got = dvae_fast.log_weights(given(tuple(p)), data, ratio, likelihood)
    assert got.shape == (*leading, B, K)
    assert_same(got, plain_log_weights(likelihood, tuple(p), data, ratio), operands)


@each_own
def test_an_x_for_each_corruption(likelihood: Likelihood) -> None:
    *params, x = drawn(likelihood, 2, B, K, D)
    operands = leaves(*params, torch.stack([x, x.flip(0)]), ratio_of(2, B, K))
    *p, data, ratio = operands
    got = dvae_fast.log_weights(given(tuple(p)), data, ratio, likelihood)
    assert_same(got, plain_log_weights(likelihood, tuple(p), data, ratio), operands)


@each_own
@each_leading
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_iwae_loss(likelihood: Likelihood, leading: tuple[int, ...], reduction: str) -> None:
    *params, x = drawn(likelihood, *leading, B, K, D, seed=1)
    operands = leaves(*params, x, ratio_of(*leading, B, K))
    *p, data, ratio = operands
    got = dvae_fast.iwae_loss(given(tuple(p)), data, ratio, likelihood, reduction=reduction)
    log_w = plain_log_weights(likelihood, tuple(p), data, ratio)
    expected = math.log(K) - torch.logsumexp(log_w, -1)
    if reduction != "none":
        expected = getattr(expected, reduction)()
    assert_same(got, expected, operands)


@pytest.mark.parametrize("shape", [(), (1,), (D,), (B, 1, D), (2, B, K, 1)])
def test_parameters_broadcast(shape: tuple[int, ...]) -> None:
    likelihood = Laplace()
    mean, _, x = drawn(likelihood, 2, B, K, D)
    scale = ratio_of(*shape) + 2
    operands = leaves(mean, scale, x, ratio_of(2, B, K))
    m, s, data, ratio = operands
    got = dvae_fast.log_weights((m, s), data, ratio, likelihood)
    assert_same(got, plain_log_weights(likelihood, (m, s), data, ratio), operands)


def test_numbers_lists_and_mappings_of_parameters() -> None:
    *params, x = drawn(StudentT(), B, K, D)
    ratio = ratio_of(B, K)
    mean, scale, _ = params
    expected = plain_log_weights(StudentT(), (mean, scale, torch.tensor(3.0).double()), x, ratio)
    for form in (
        (mean, scale, 3.0),
        [mean, scale, 3],
        {"df": 3.0, "scale": scale, "mean": mean},
    ):
        got = dvae_fast.log_weights(form, x, ratio, StudentT())
        torch.testing.assert_close(got, expected)
    one: Any = (mean,)
    torch.testing.assert_close(
        dvae_fast.log_weights(one, x, ratio, ContinuousBernoulli()),
        dvae_fast.log_weights({"logits": mean}, x, ratio, ContinuousBernoulli()),
    )


@each_own
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_decoder_outputs_of_few_bits(likelihood: Likelihood, dtype: torch.dtype) -> None:
    """Accumulated in float32; gradients in the dtype of what they are of."""
    *params, x = (t.to(dtype) for t in drawn(likelihood, B, K, 200))
    operands = leaves(*params)
    ratio = ratio_of(B, K)
    got = dvae_fast.log_weights(given(operands), x.float(), ratio.float(), likelihood)
    assert got.dtype == torch.float32
    wide = leaves(*(p.double() for p in params))
    expected = plain_log_weights(likelihood, wide, x.double(), ratio)
    torch.testing.assert_close(got.double(), expected, rtol=2e-6, atol=1e-3)
    for mine, its in zip(
        torch.autograd.grad(got.sum(), operands),
        torch.autograd.grad(expected.sum(), wide),
        strict=True,
    ):
        assert mine.dtype == dtype
        bits = torch.finfo(dtype).eps
        torch.testing.assert_close(mine.double(), its, rtol=4 * bits, atol=max(bits, 1e-4))


def test_autocast_leaves_the_density_alone() -> None:
    *params, x = (t.float() for t in drawn(Laplace(), B, K, D))
    expected = dvae_fast.log_weights(given(tuple(params)), x, ratio_of(B, K).float(), Laplace())
    with torch.autocast("cpu", torch.bfloat16):
        got = dvae_fast.log_weights(given(tuple(params)), x, ratio_of(B, K).float(), Laplace())
    assert torch.equal(got, expected)


@pytest.mark.filterwarnings("ignore:the loss is not finite, and 1 of:RuntimeWarning")
@each_own
@pytest.mark.parametrize("where", ["first", "last", "x", "log_ratio"])
def test_nan_stays_in_its_example(likelihood: Likelihood, where: str) -> None:
    *params, x = drawn(likelihood, 2, B, K, D)
    ratio = ratio_of(2, B, K)
    hit = {"first": params[0][0, 1, 2], "last": params[-1][0, 1, 2], "x": x[1]}
    (hit[where] if where in hit else ratio[0, 1])[1] = math.nan
    operands = leaves(*params, ratio)
    loss = dvae_fast.iwae_loss(given(operands[:-1]), x, operands[-1], likelihood, reduction="none")
    bad = [[0, 1], [1, 1]] if where == "x" else [[0, 1]]
    assert loss.isnan().nonzero().tolist() == bad
    for grad in torch.autograd.grad(loss.sum(), operands):
        assert {tuple(i[:2]) for i in grad.isnan().nonzero().tolist()} <= {tuple(i) for i in bad}


def test_no_weight_at_all() -> None:
    """A rate of 0 gives counts no density, and derivatives that are not finite."""
    rate, gate, x = drawn(ZeroInflatedPoisson(), B, K, D)
    x[1] = torch.tensor([0.0, 1, 2, 0, 3])
    rate[1] = 0
    rate[2, 1] = 0  # one sample of four
    operands = leaves(rate, gate, ratio_of(B, K))
    loss = dvae_fast.iwae_loss(
        operands[:2], x, operands[2], ZeroInflatedPoisson(), reduction="none"
    )
    assert loss[1] == math.inf
    assert bool(loss[[0, 2]].isfinite().all())
    for grad in torch.autograd.grad(loss.sum(), operands):
        assert bool(grad.isfinite().all())
        assert not bool(grad[1].any())
        assert bool(grad[0].any())


@each_own
def test_no_examples(likelihood: Likelihood) -> None:
    *params, x = drawn(likelihood, 2, 0, K, D)
    loss = dvae_fast.iwae_loss(
        given(tuple(params)), x, ratio_of(2, 0, K), likelihood, reduction="none"
    )
    assert loss.shape == (2, 0)


@each_own
# torch's own doing, at the first jvp.
@pytest.mark.filterwarnings("ignore:`torch.jit.*is deprecated:DeprecationWarning")
def test_functional_transforms(likelihood: Likelihood) -> None:
    *params, x = drawn(likelihood, B, K, D)
    ratio = ratio_of(B, K)

    def f(p: Tensor) -> Tensor:
        return dvae_fast.log_weights(given((p, *params[1:])), x, ratio, likelihood)

    def plain(p: Tensor) -> Tensor:
        return plain_log_weights(likelihood, (p, *params[1:]), x, ratio)

    p = params[0]
    tangent = ratio_of(*p.shape)
    torch.testing.assert_close(
        torch.func.jvp(f, (p,), (tangent,)), torch.func.jvp(plain, (p,), (tangent,))
    )
    torch.testing.assert_close(torch.func.jacrev(f)(p), torch.func.jacrev(plain)(p))
    both = torch.stack([p, 2 * p])
    torch.testing.assert_close(torch.func.vmap(f)(both), torch.func.vmap(plain)(both))
    # A penalty on a gradient.
    (q,) = leaves(p)
    first = [torch.autograd.grad(g(q).sum(), q, create_graph=True)[0] for g in (f, plain)]
    second = [torch.autograd.grad(g.square().sum(), q)[0] for g in first]
    torch.testing.assert_close(*second)


@pytest.mark.parametrize(
    "likelihood",
    [OWN[0], *(pytest.param(own, marks=pytest.mark.slow) for own in OWN[1:])],
    ids=lambda likelihood: likelihood.kind,
)
# torch.compile's own doing, as in test_compile.py.
@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")
@pytest.mark.filterwarnings("ignore:`torch.jit.*is deprecated:DeprecationWarning")
def test_compiled(likelihood: Likelihood) -> None:
    *params, x = drawn(likelihood, B, K, D)
    operands = leaves(*params, x, ratio_of(B, K))
    *p, data, ratio = operands

    @torch.compile(fullgraph=True, backend="aot_eager")
    def f(*operands: Tensor) -> Tensor:
        return dvae_fast.iwae_loss(
            given(operands[:-2]), *operands[-2:], likelihood, reduction="none"
        )

    log_w = plain_log_weights(likelihood, tuple(p), data, ratio)
    assert_same(f(*operands), math.log(K) - torch.logsumexp(log_w, -1), operands)


def test_a_parameter_of_the_likelihood_gets_its_gradient() -> None:
    shift = nn.Parameter(torch.tensor(0.3).double())
    log_rate, x = drawn(Exponential(), B, K, D)
    loss = dvae_fast.iwae_loss(log_rate, x, ratio_of(B, K), Exponential(shift))
    loss.backward()
    moved = log_rate + shift.detach()
    (q,) = leaves(moved)
    dvae_fast.iwae_loss(q, x, ratio_of(B, K), Exponential()).backward()
    assert shift.grad is not None
    assert q.grad is not None
    torch.testing.assert_close(shift.grad, q.grad.sum())


def test_a_likelihood_that_is_a_module_is_trained_and_saved() -> None:
    class SharedScale(Likelihood, nn.Module):
        params = {"mean": identity}

        def __init__(self) -> None:
            nn.Module.__init__(self)
            self.log_scale = nn.Parameter(torch.zeros(D, dtype=torch.float64))

        def log_prob(self, params: Any, x: Tensor) -> Tensor:
            return Laplace().log_prob((params[0], self.log_scale.exp()), x)

    likelihood = SharedScale()
    model = model_of(likelihood)
    x = drawn(Laplace(), 8, K, D)[-1]
    model.loss(x, 1).backward()
    assert likelihood.log_scale.grad is not None
    assert bool(likelihood.log_scale.grad.any())
    assert "likelihood.log_scale" in model.state_dict()
    with torch.no_grad():
        mean = model.decode(torch.zeros(4, Z).double())
        fixed = Laplace().log_prob((mean, likelihood.log_scale.exp().expand(4, D)), x[:4])
        torch.testing.assert_close(likelihood.log_prob(mean, x[:4]), fixed)


# --- the layers before it ---------------------------------------------------------------------


@each_own
@pytest.mark.parametrize("with_bias", [True, False])
def test_linear_layers(likelihood: Likelihood, with_bias: bool) -> None:
    *params, x = drawn(likelihood, 2, B, K, D)
    g = torch.Generator().manual_seed(2)
    z = torch.randn(2, B, K, Z, generator=g, dtype=torch.float64)
    first, last = (
        torch.randn(*shape, generator=g, dtype=torch.float64) for shape in ((6, Z), (D, 6))
    )
    bias = torch.randn(D, generator=g, dtype=torch.float64) if with_bias else None
    rest = tuple(p[0, 0, 0] for p in params[1:])  # of D elements
    scale = None if not rest else rest[0] if len(rest) == 1 else rest
    operands = leaves(z, first, last, x, ratio_of(2, B, K), *([bias] if with_bias else []))
    z, first, last, data, ratio, *more = operands
    b = more[0] if more else None

    def hidden() -> Tensor:
        return torch.relu(nn.functional.linear(z, first))

    def expected() -> Tensor:
        output = nn.functional.linear(hidden(), last, b)
        return plain_log_weights(likelihood, (output, *rest), data, ratio)

    linear = dvae_fast.linear_log_weights(hidden(), last, b, data, ratio, likelihood, scale=scale)
    assert_same(linear, expected(), operands)
    layers = [(first, None), (last, b)]
    whole = dvae_fast.functional.mlp_log_weights(
        z, layers, data, ratio, likelihood, activation="relu", scale=scale
    )
    assert_same(whole, expected(), operands)


# --- models -----------------------------------------------------------------------------------


def model_of(likelihood: Likelihood, kind: Any = DIWAE, **options: Any) -> Any:
    torch.manual_seed(0)
    return kind(D, Z, (6,), likelihood=likelihood, **options).double()


@each_own
@pytest.mark.parametrize("kind", [DIWAE, DVAE, TwoLayerModel, BernoulliLatentModel])
def test_models(likelihood: Likelihood, kind: Any) -> None:
    torch.manual_seed(0)
    upper = {"upper_latent_size": 2, "upper_hidden_sizes": (4,)} if kind is TwoLayerModel else {}
    x = drawn(likelihood, 8, K, D)[-1]
    model = kind(D, 3, (6,), likelihood=likelihood, data_mean=x.mean(0), **upper).double()
    assert model.likelihood is likelihood
    loss = model.loss(x, 1)
    loss.backward()
    assert bool(loss.isfinite())
    assert all(p.grad is not None and bool(p.grad.isfinite().all()) for p in model.parameters())
    torch.testing.assert_close(model.bound(x, 1).mean(), -loss.detach())
    for picture in (model.sample(7, 2), model.reconstruct(x)):
        assert picture.shape[1] == D
        assert bool(picture.isfinite().all())


@each_own
def test_a_models_bound_is_that_of_torch(likelihood: Likelihood) -> None:
    model = model_of(likelihood, DVAE, samples=3)
    x = drawn(likelihood, 8, K, D)[-1]
    z, log_ratio, _ = model._sample_posterior(x, torch.tensor([1]), 0)
    params = likelihood.unpack(model.decode(z))
    log_w = plain_log_weights(likelihood, params, x, log_ratio)
    torch.testing.assert_close(model.bound(x, 1), objectives.bound(log_w, "elbo"))


@each_own
def test_the_heads_of_the_decoder(likelihood: Likelihood) -> None:
    decoder = model_of(likelihood).decoder
    z = torch.randn(4, Z).double()
    params = likelihood.unpack(decoder(z))
    hidden = decoder.trunk(z)
    names = ["output"] if len(params) == 1 else list(likelihood.params)
    for name, link, p in zip(names, likelihood.params.values(), params, strict=True):
        torch.testing.assert_close(p, link(getattr(decoder, name)(hidden)))


def test_the_decoder_starts_at_the_mean_of_the_data() -> None:
    data_mean = torch.linspace(-3, 40, D).double()
    model = model_of(Laplace(), data_mean=data_mean)
    z = torch.zeros(2, Z).double()
    with torch.no_grad():
        model.decoder.mean.weight.zero_()
    torch.testing.assert_close(model.decode(z)[0][0], data_mean.float().double())
    with pytest.raises(ValueError, match="data_mean must be finite, got values from inf"):
        model_of(Laplace(), data_mean=torch.full((D,), math.inf))
    # It says not how: no start.
    assert not bool(model_of(ContinuousBernoulli(), data_mean=data_mean).decoder.output.bias.any())


@each_own
def test_a_model_learns(likelihood: Likelihood) -> None:
    g = torch.Generator().manual_seed(1)
    centre = torch.rand(2, D, generator=g)[torch.arange(60) % 2]
    x = (centre + 0.05 * torch.randn(60, D, generator=g)).clamp(0.01, 0.99).double()
    assert rise(model_of(likelihood, samples=4), x, 60, 0.02) > 0.5


@each_own
def test_draws_are_reproducible(likelihood: Likelihood) -> None:
    model = model_of(likelihood)
    draws = model.sample(6, 1, draw=True)
    assert torch.equal(draws, model.sample(6, 1, draw=True))
    likelihood.check_support(draws)
    *params, _ = drawn(likelihood, 1, 1, 1)
    many = tuple(p.view(1).expand(20_000) for p in params)
    generator = torch.Generator().manual_seed(5)
    sample = likelihood.sample(given(many), generator=generator).numpy()
    one = {
        Laplace: lambda: stats.laplace(*(p.item() for p in params)).cdf,
        ContinuousBernoulli: lambda: (
            lambda v: (
                as_distribution(likelihood, (params[0].view(()),)).cdf(torch.as_tensor(v)).numpy()
            )
        ),
        StudentT: lambda: stats.t(params[2].item(), params[0].item(), params[1].item()).cdf,
    }[type(likelihood)]()
    assert stats.kstest(sample, one).pvalue > 1e-6  # a false alarm in a million


def test_pictures_are_means() -> None:
    logits = torch.tensor([-30.0, -2.0, -1e-4, 0.0, 5e-4, 3.0]).double()
    mean = ContinuousBernoulli().mean(logits)
    expected = torch.distributions.ContinuousBernoulli(logits=logits).mean
    torch.testing.assert_close(mean, expected, rtol=1e-6, atol=1e-6)


# --- evaluation -------------------------------------------------------------------------------


@each_own
@pytest.mark.parametrize("chunk", [None, 7])
def test_the_evaluator(likelihood: Likelihood, chunk: int | None) -> None:
    """As the bound of the same samples by torch.distributions, in any chunks."""
    model = model_of(likelihood)
    x = drawn(likelihood, B, K, D)[-1]
    estimate = dvae_fast.estimate_log_likelihood(model, x, 20, chunk=chunk, seed=3)
    with torch.no_grad():
        z, log_ratio = dvae_fast.sample_latent(*model.encode(x), 20, 3)
        params = likelihood.unpack(model.decode(z))
        log_w = plain_log_weights(likelihood, params, x, log_ratio)
    expected = torch.logsumexp(log_w, -1) - math.log(20)
    torch.testing.assert_close(estimate.log_likelihood, expected)
    # A pair of functions, its likelihood named in the call.
    pair = (model.encode, model.decode)
    again = dvae_fast.estimate_log_likelihood(
        pair, x, 20, chunk=chunk, seed=3, likelihood=likelihood
    )
    torch.testing.assert_close(again.log_likelihood, expected)


def test_the_evaluator_of_a_sequential_that_gives_the_first_parameter() -> None:
    torch.manual_seed(0)
    decode = nn.Sequential(nn.Linear(Z, 6), nn.Tanh(), nn.Linear(6, D)).double()
    model = model_of(Laplace())
    x = drawn(Laplace(), B, K, D)[-1]
    one = dvae_fast.estimate_log_likelihood(
        (model.encode, decode), x, 20, seed=3, likelihood=Laplace(), scale=0.5
    )
    other = dvae_fast.estimate_log_likelihood(
        (model.encode, lambda z: (decode(z), torch.full((), 0.5).double())),
        x, 20, seed=3, likelihood=Laplace(),
    )  # fmt: skip
    torch.testing.assert_close(one.log_likelihood, other.log_likelihood)


def test_the_evaluator_with_all_but_the_first_parameter(tmp_path: Any) -> None:
    model = model_of(Laplace())
    x = drawn(Laplace(), B, K, D)[-1]
    rest = (0.5, torch.full((D,), 3.0).double())

    def decode(z: Tensor) -> Tensor:
        mean: Tensor = model.decode(z)[0]
        return mean

    options: Any = {"seed": 3, "likelihood": StudentT(), "partial": tmp_path / "partial"}
    got = dvae_fast.estimate_log_likelihood((model.encode, decode), x, 20, scale=rest, **options)
    options["partial"] = None
    expected = dvae_fast.estimate_log_likelihood(
        (model.encode, lambda z: (decode(z), *rest)), x, 20, **options
    )
    torch.testing.assert_close(got.log_likelihood, expected.log_likelihood)


@each_own
def test_partial_results_know_the_likelihood(likelihood: Likelihood, tmp_path: Any) -> None:
    model = model_of(likelihood)
    x = drawn(likelihood, B, K, D)[-1]
    path = tmp_path / "partial.safetensors"
    run = {"k": 10, "seed": 3, "partial": path}
    first = dvae_fast.estimate_log_likelihood(model, x, **run)
    again = dvae_fast.estimate_log_likelihood(model, x, **run)
    assert torch.equal(first.log_likelihood, again.log_likelihood)


@each_own
def test_annealed_importance_sampling(likelihood: Likelihood) -> None:
    """Near the value of many samples, which it is an estimate of."""
    model = model_of(likelihood)
    x = drawn(likelihood, B, K, D)[-1]
    annealed = dvae_fast.annealed_importance_sampling(
        model, x, chains=8, temperatures=25, leapfrog=2, seed=1
    )
    many = dvae_fast.estimate_log_likelihood(model, x, 5_000, seed=2)
    error = annealed.log_likelihood - many.log_likelihood
    assert bool((error.abs() < 6 * (annealed.standard_error + many.standard_error) + 0.05).all())
    bracket = dvae_fast.bidirectional_monte_carlo(
        model, 2, chains=4, temperatures=5, leapfrog=2, seed=1
    )
    likelihood.check_support(bracket.x)


# --- a gradient in x, supports, and kernels ---------------------------------------------------


def test_discrete_data_has_no_gradient() -> None:
    rate, gate, x = drawn(ZeroInflatedPoisson(), B, K, D)
    with pytest.raises(ValueError, match=r"x must not require a gradient: the ZeroInflatedPoisson"):
        dvae_fast.log_weights(
            (rate, gate), x.requires_grad_(), ratio_of(B, K), ZeroInflatedPoisson()
        )


@pytest.mark.usefixtures("_validation")
@pytest.mark.parametrize(
    ("likelihood", "value", "message"),
    [
        (ContinuousBernoulli(), 1.5, r"x must lie in the support of the Continuous.*got 1.5"),
        (Laplace(), math.inf, r"x must lie in the support of the Laplace.*got inf"),
        (ZeroInflatedPoisson(), 0.5, r"x must hold multiples of 1, the support.*got 0.5"),
        (ZeroInflatedPoisson(), -1.0, r"x must lie in \[0, inf\], the support"),
    ],
)
def test_data_outside_the_support(likelihood: Likelihood, value: float, message: str) -> None:
    *params, x = drawn(likelihood, B, K, D)
    dvae_fast.log_weights(given(tuple(params)), x, ratio_of(B, K), likelihood)
    x[1, 2] = math.nan
    dvae_fast.log_weights(given(tuple(params)), x, ratio_of(B, K), likelihood)
    x[2, 3] = value
    with pytest.raises(ValueError, match=message):
        dvae_fast.log_weights(given(tuple(params)), x, ratio_of(B, K), likelihood)
    with pytest.raises(ValueError, match=message):
        dvae_fast.estimate_log_likelihood(model_of(likelihood), x, 5)


def test_another_density_has_no_kernel() -> None:
    """Nor the derivatives of the one it replaces."""

    class Doubled(Gaussian):
        def log_prob(self, params: Any, x: Tensor) -> Tensor:
            return 2 * super().log_prob(params, x)

    class Shown(Gaussian):
        def mean(self, params: Any) -> Tensor:
            return params[0] + 1

    class Seven:
        def log_prob(self, params: Any, x: Tensor) -> Tensor:
            return 0 * params[0] + 7

    class OfOneBeside(Seven, Gaussian):
        pass

    class OfOneBesideTwo(Seven, Categorical):
        pass

    assert Doubled.kernel is None
    assert Shown.kernel == Gaussian.kernel
    assert OfOneBeside.kernel is None
    assert OfOneBesideTwo.rows is None
    assert OfOneBeside.derivatives is Likelihood.derivatives
    zeros = torch.zeros(2, 1, 4)
    for one in (OfOneBesideTwo(2), type("P", (Seven, Bernoulli), {})(probabilities=True)):
        seven = dvae_fast.log_weights(
            {next(iter(one.params)): zeros}, zeros[:, 0], zeros[:, :, 0], one
        )
        assert torch.equal(seven, zeros[:, :, 0] + 28)
    mean, scale, x = drawn(Laplace(), B, K, D)
    zero = torch.zeros(B, K).double()
    got = dvae_fast.log_weights((mean, scale), x, zero, Doubled())
    torch.testing.assert_close(got, 2 * dvae_fast.log_weights((mean, scale), x, zero, "gaussian"))
    rows = x.unsqueeze(1)
    for mine, its in zip(
        Doubled().derivatives((mean, scale), rows),
        Gaussian().derivatives((mean, scale), rows),
        strict=True,
    ):
        torch.testing.assert_close(mine, 2 * its)


def test_the_documentation() -> None:
    text = (Path(__file__).parents[2] / "docs" / "likelihoods.md").read_text()
    names: dict[str, Any] = {}
    exec(text.split("```python")[1].split("```")[0], names)
    names["loss"].backward()
    assert names["mean"].grad is not None
    names["model"].loss(names["x"], 0).backward()
    assert names["model"].sample(2, 0, draw=True).shape == (2, 784)
    *params, x = drawn(Laplace(), B, K, D)
    torch.testing.assert_close(
        names["Laplace"]().log_prob(params, x.unsqueeze(1)),
        Laplace().log_prob(params, x.unsqueeze(1)),
    )


# --- errors -----------------------------------------------------------------------------------


class _Empty(Likelihood):
    pass


class _Unfinished(Likelihood):
    params = {"mean": identity}


class _WithLogProb:
    def log_prob(self, params: Any, x: Tensor) -> Tensor:
        return x


@pytest.mark.parametrize(
    ("likelihood", "error", "message"),
    [
        ("laplce", ValueError, r"one of .*bernoulli.*; got 'laplce'"),
        ("gausian", ValueError, r"one of gaussian, .*; got 'gausian'; did you mean 'gaussian'\?"),
        ("Bernoulli", ValueError, r"did you mean 'bernoulli'\?"),
        (Laplace, TypeError, r"got the class Laplace; an object of it is Laplace\(\)"),
        (torch.distributions.Normal, TypeError, r"got the class Normal; subclass Likelihood"),
        (torch.distributions.Normal(0.0, 1.0), TypeError, r"got Normal; subclass Likelihood"),
        (_WithLogProb(), TypeError, r"got _WithLogProb; subclass Likelihood"),
        (_Unfinished(), TypeError, r"_Unfinished must define log_prob\(params, x\)"),
        (_Empty(), TypeError, r"must .* define params; _Empty has none"),
        (3, TypeError, r"must be a string or a Likelihood, got int"),
    ],
)
def test_no_likelihood(likelihood: Any, error: type[Exception], message: str) -> None:
    mean, _, x = drawn(Laplace(), B, K, D)
    ratio = ratio_of(B, K)
    eye = torch.eye(D).double()

    class Model:
        def __init__(self) -> None:
            self.likelihood = likelihood

        def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
            return x[:, :Z], x[:, :Z]

        def decode(self, z: Tensor) -> Tensor:
            return z @ torch.ones(Z, D).double()

    doors = {
        "likelihood": [
            lambda: dvae_fast.log_weights(mean, x, ratio, likelihood),
            lambda: dvae_fast.iwae_loss(mean, x, ratio, likelihood),
            lambda: dvae_fast.linear_log_weights(mean, eye, None, x, ratio, likelihood),
            lambda: dvae_fast.functional.mlp_log_weights(mean, [(eye, None)], x, ratio, likelihood),
            lambda: objectives.loss(mean, x, ratio, likelihood),
            lambda: DIWAE(D, likelihood=likelihood),
            lambda: dvae_fast.estimate_log_likelihood(
                (Model().encode, Model().decode), x, 5, likelihood=likelihood
            ),
        ],
        "model.likelihood": [
            lambda: dvae_fast.estimate_log_likelihood(Model(), x, 5),
            lambda: dvae_fast.annealed_importance_sampling(Model(), x),
        ],
    }
    for name, calls in doors.items():
        for call in calls:
            with pytest.raises(error, match=rf"^{name} .*{message}"):
                call()


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"params": torch.zeros(B, K, D)}, TypeError, r"tuple \(mean, scale, df\) for a StudentT, "
         "got Tensor"),
        ({"params": (torch.zeros(B, K, D), 1.0)}, TypeError, r"\(mean, scale, df\).*got 2 of them"),
        ({"params": {"mean": 1.0, "scale": 1.0}}, TypeError, r"df\).*got dict of mean, scale"),
        ({"df": "3"}, TypeError, r"df must be a number or a tensor, got str"),
        ({"scale": torch.ones(B, K, D, dtype=torch.int64)}, TypeError, r"scale must be float32"),
        ({"scale": torch.ones(7).double()}, ValueError, r"broadcast.*mean \(3, 4, 5\), "
         r"scale \(7,\)"),
        ({"mean": torch.zeros(K, D).double(), "scale": 1.0, "df": 1.0}, ValueError,
         r"params must have shape \(\*L, B, K, D\), got \(4, 5\)"),
        ({"mean": 0.0, "scale": 1.0, "df": 3.0}, TypeError, r"mean must be a tensor .* a number"),
        ({"x": torch.zeros(B, D + 1)}, ValueError, r"x must have shape \(B, D\) = \(3, 5\)"),
        ({"log_ratio": torch.zeros(B, K + 1)}, ValueError, r"log_ratio must have shape"),
    ],
)  # fmt: skip
def test_wrong_operands(change: Any, error: type[Exception], message: str) -> None:
    mean, scale, df, x = drawn(StudentT(), B, K, D)
    named = {"mean": mean, "scale": scale, "df": df}
    named |= {k: v for k, v in change.items() if k in named}
    arguments = {"params": tuple(named.values()), "x": x, "log_ratio": ratio_of(B, K)}
    arguments |= {k: v for k, v in change.items() if k in arguments}
    for f in (dvae_fast.log_weights, dvae_fast.iwae_loss):
        with pytest.raises(error, match=message):
            f(**arguments, likelihood=StudentT())


def test_a_density_that_is_not_per_element() -> None:
    class Summed(Laplace):
        def log_prob(self, params: Any, x: Tensor) -> Tensor:
            return super().log_prob(params, x).sum(-1)

    class Nothing(Laplace):
        def log_prob(self, params: Any, x: Tensor) -> Any:
            super().log_prob(params, x)

    mean, scale, x = drawn(Laplace(), B, K, D)
    with pytest.raises(ValueError, match=r"log_prob of Summed.*shape \(3, 4, 5\), got \(3, 4\)"):
        dvae_fast.log_weights((mean, scale), x, ratio_of(B, K), Summed())
    with pytest.raises(TypeError, match=r"log_prob of Nothing.*a tensor, got NoneType"):
        dvae_fast.log_weights((mean, scale), x, ratio_of(B, K), Nothing())


def test_a_support_that_is_not_bool() -> None:
    class Wrong(Laplace):
        def support(self, x: Tensor) -> Tensor:
            return x

    with pytest.raises(
        TypeError, match=r"support of Wrong must return bool of x's shape, \(3, 5\)"
    ):
        Wrong().check_support(torch.zeros(B, D))


def test_what_is_not_defined_says_so() -> None:
    class Bare(Likelihood):
        params = {"rate": identity}

        def log_prob(self, params: Any, x: Tensor) -> Tensor:
            return params[0] - x

    model = model_of(Bare())
    with pytest.raises(NotImplementedError, match=r"Bare must define mean\(params\)"):
        model.sample(2)
    with pytest.raises(NotImplementedError, match=r"Bare must define sample\(params, generator"):
        model.sample(2, draw=True)


@pytest.mark.parametrize("params", [("mean", "scale"), {}, {"mean": None}, {3: identity}])
def test_parameters_without_links(params: Any) -> None:
    with pytest.raises(TypeError, match="params of Wrong must map each parameter's name"):
        type("Wrong", (Likelihood,), {"params": params})


def test_a_parameter_with_any_name() -> None:
    class Odd(Likelihood):
        params = {"type": identity, "trunk": torch.exp}

        def log_prob(self, params: Any, x: Tensor) -> Tensor:
            return -(x - params[0]).square() * params[1]

    model = model_of(Odd())
    x = torch.rand(4, D).double()
    model.loss(x, 0).backward()
    again = model_of(Odd())
    again.load_state_dict(model.state_dict())
    assert torch.equal(again.bound(x, 1), model.bound(x, 1))


def test_a_models_likelihood_is_not_anothers() -> None:
    model = model_of(Laplace())
    x = drawn(Laplace(), B, K, D)[-1]
    with pytest.raises(ValueError, match=r"likelihood must be the model's, Laplace\(\), got gaus"):
        dvae_fast.estimate_log_likelihood(model, x, 5, likelihood="gaussian")
    dvae_fast.estimate_log_likelihood(model, x, 5, likelihood=model.likelihood)
