"""Gradient estimators: the papers' formulas by plain autograd, exact expectations, and noise.

Statistical tests: every coordinate's mean within 4.5 standard errors, which a right estimator
misses once in 150,000 (two-sided normal); seeds are fixed.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import pytest
import torch
from linear_gaussian import draw_data, linear_gaussian
from model_checks import assert_compiles
from plain_objectives import doubly_reparameterised, learning_signal, plain_bound, scores
from torch import Tensor
from torch.distributions import Bernoulli, Normal

from dvae_fast import corruptions, objectives, reference
from dvae_fast.models import DIWAE, BernoulliLatentModel, LatentVariableModel, make_model
from dvae_fast.noise import latent_noise
from dvae_fast.objectives import OBJECTIVES, Objective
from dvae_fast.objectives.loss import _left_out

if TYPE_CHECKING:
    from collections.abc import Callable

M, B, K, Z, D = 3, 5, 7, 2, 11
SEED = 123
SIGMAS = 4.5

PAIRS = [(name, estimator) for name, row in OBJECTIVES.items() for estimator in row.estimators]
#: a reverse proposal is a random function of what is drawn, and has tests of its own
PLAIN = [pair for pair in PAIRS if not OBJECTIVES[pair[0]].reverse]
J = 4


def _objective(name: str, estimator: str = "standard") -> Objective:
    options: dict[str, Any] = {"ciwae": {"beta": 0.3}, "vr": {"alpha": -0.6}}.get(name, {})
    return Objective(name, estimator, **options)


def _model(name: str, estimator: str, **options: Any) -> LatentVariableModel:
    torch.manual_seed(0)
    options = {
        "copies": M, "samples": K, "corruption": corruptions.Masking(0.4),
        "objective": _objective(name, estimator), "outer_samples": J, **options,
    }  # fmt: skip
    return make_model("diwae", D, Z, (8, 6), **options).double()


def _data() -> Tensor:
    return torch.rand(B, D, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


# --- the papers' formulas, term by term -------------------------------------------------------


def _draws(model: LatentVariableModel, x: Tensor) -> tuple[Normal, Normal, Tensor]:
    """q(z|x̃) of shape (M, B, 1, Z), that of further corruptions and the samples' noise
    (M, B, K, Z), from the seed."""
    key, name = torch.tensor([SEED]), model.objective.name
    c = model.corruption
    assert c is not None
    copies = model.copies + (J if model.objective.bound.outer else 0)
    noisy = reference.corrupt(x, c.kind, c.parameter, c.salt, key, copies, 0, 0)
    mean, log_var = model.encoder(noisy)
    outside = name == "elbo_kl" or (name == "elbo" and model.objective.estimator != "vimco")
    m, k = model.copies, model.samples
    if outside:
        noise = latent_noise(m * k, B, 1, Z, key, 0, 0, torch.float64)
        noise = noise.view(m, k, B, Z).transpose(1, 2)
    else:
        noise = latent_noise(m, B, k, Z, key, 0, 0, torch.float64)
    mean, scale = mean.unsqueeze(2), torch.exp(0.5 * log_var).unsqueeze(2)
    return Normal(mean[:m], scale[:m]), Normal(mean[m:], scale[m:]), noise


def _stopped(q: Normal) -> Normal:
    return Normal(q.loc.detach(), q.scale.detach())


def _log_q(o: Objective, q: Normal, outer: Normal, z: Tensor) -> Tensor:
    """The density below, (M, B, K)."""
    own = q.log_prob(z).sum(-1)
    if not o.bound.mixture:
        return own
    shared = outer if o.bound.outer else q
    each = [
        Normal(shared.loc[j], shared.scale[j]).log_prob(z).sum(-1) for j in range(len(shared.loc))
    ]
    if o.bound.outer:
        each.append(own)
    return torch.logsumexp(torch.stack(each), 0) - math.log(len(each))


def _plain_gradients(
    model: LatentVariableModel, x: Tensor, weight: float = 1.0
) -> tuple[Tensor, dict[str, Tensor]]:
    """The bound (B,) and the gradient of minus the mean of what the paper ascends."""
    o = model.objective
    q, outer, noise = _draws(model, x)
    rows = x.view(1, B, 1, D)

    def density(z: Tensor) -> Tensor:
        return Bernoulli(logits=model.decoder(z), validate_args=False).log_prob(rows).sum(-1)

    def log_prior(z: Tensor) -> Tensor:
        return Normal(0.0, 1.0).log_prob(z).sum(-1)

    z = q.loc + q.scale * noise
    if o.name == "elbo_kl":
        kl = 0.5 * (q.loc**2 + q.scale**2 - 1 - 2 * q.scale.log()).squeeze(2)
        per_dimension = kl.mean((0, 1)).clamp_min(o.free_bits) if o.free_bits else kl.mean((0, 1))
        ascended = density(z).mean() - weight * per_dimension.sum()
        value = (density(z) - kl.sum(-1, keepdim=True)).mean((0, 2))
        return value, _gradients(model, ascended, ascended)

    below = [_stopped(d) if o.estimator in ("stl", "dreg") else d for d in (q, outer)]
    ratio = log_prior(z) - _log_q(o, *below, z)
    value = plain_bound(o, density(z) + ratio)
    log_w = density(z) + weight * ratio
    generative = plain_bound(o, log_w)
    inner = Objective("iwae") if o.name == "piwae" else o
    if o.estimator == "dreg":
        e = doubly_reparameterised(inner, log_w, weight).detach()
        inference = (e * log_w).sum((0, 2))
    elif o.estimator == "vimco":
        fixed = z.detach()
        log_q = _log_q(o, q, outer, fixed)
        log_w = density(fixed) + weight * (log_prior(fixed) - log_q)
        signal = learning_signal(inner, log_w.detach())
        if o.name == "piwae":
            signal = signal.detach()
        inference = (signal * log_q).sum((0, 2)) + plain_bound(inner, log_w)
    else:
        inference = plain_bound(inner, log_w)
    return value, _gradients(model, generative.mean(), inference.mean())


def _gradients(
    model: LatentVariableModel, generative: Tensor, inference: Tensor
) -> dict[str, Tensor]:
    names = [f"decoder.{n}" for n, _ in model.decoder.named_parameters()]
    grads = torch.autograd.grad(-generative, list(model.decoder.parameters()), retain_graph=True)
    names += [f"encoder.{n}" for n, _ in model.encoder.named_parameters()]
    grads += torch.autograd.grad(-inference, list(model.encoder.parameters()))
    return dict(zip(names, grads, strict=True))


def _check(model: LatentVariableModel, x: Tensor, weight: float = 1.0) -> None:
    model.kl_weight = weight
    value, expected = _plain_gradients(model, x, weight)
    loss = model.loss(x, SEED)
    torch.testing.assert_close(loss, -value.mean(), rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(model.bound(x, SEED), value.detach(), rtol=1e-10, atol=1e-10)
    parameters = dict(model.named_parameters())
    grads = dict(zip(parameters, torch.autograd.grad(loss, list(parameters.values())), strict=True))
    assert grads.keys() == expected.keys()
    for name, grad in grads.items():
        torch.testing.assert_close(
            grad, expected[name], rtol=1e-8, atol=1e-10, msg=lambda text, n=name: f"{n}: {text}"
        )


@pytest.mark.parametrize(("name", "estimator"), PLAIN)
def test_value_and_gradients_are_the_papers(name: str, estimator: str) -> None:
    _check(_model(name, estimator), _data())
    _check(_model(name, estimator, copies=1), _data())
    if estimator != "vimco":
        _check(_model(name, estimator, samples=1), _data())


@pytest.mark.parametrize("weight", [0.0, 0.3])
@pytest.mark.parametrize(("name", "estimator"), PLAIN)
def test_a_weight_of_the_divergence_is_in_the_gradient_alone(
    name: str, estimator: str, weight: float
) -> None:
    _check(_model(name, estimator), _data(), weight)


@pytest.mark.parametrize(("name", "estimator"), [("iwae", "dreg"), ("elbo", "stl"), ("vr", "dreg")])
def test_a_weight_may_be_a_tensor(name: str, estimator: str) -> None:
    a, b = _model(name, estimator), _model(name, estimator)
    a.kl_weight, b.kl_weight = 0.3, torch.tensor(0.3, dtype=torch.float64)
    for model in (a, b):
        model.loss(_data(), SEED).backward()
    for p, q in zip(a.parameters(), b.parameters(), strict=True):
        torch.testing.assert_close(p.grad, q.grad)


@pytest.mark.parametrize("free_bits", [0.2, 1.0, 10.0])
def test_free_bits(free_bits: float) -> None:
    """Below, between and above the two dimensions' divergences."""
    model = _model("elbo_kl", "standard", objective=Objective("elbo_kl", free_bits=free_bits))
    with torch.no_grad():
        model.encoder.output.bias.copy_(torch.tensor([0.2, 0.5, -0.1, -0.4]))  # type: ignore[union-attr]
    q, _, _ = _draws(model, _data())
    kl = 0.5 * (q.loc**2 + q.scale**2 - 1 - 2 * q.scale.log()).mean((0, 1, 2))
    assert int((kl > free_bits).sum()) == {0.2: 2, 1.0: 1, 10.0: 0}[free_bits], kl
    _check(model, _data())
    _check(model, _data(), 0.5)


@pytest.mark.parametrize("name", ["elbo", "iwae", "ciwae", "piwae", "vr"])
@pytest.mark.parametrize("estimator", ["standard", "stl", "dreg", "vimco"])
def test_without_corruption_the_groups_are_repetitions(name: str, estimator: str) -> None:
    """MIWAE(M, K): the data are encoded once, and no two groups share samples."""
    torch.manual_seed(0)
    options: dict[str, Any] = {"copies": M, "samples": K, "objective": _objective(name, estimator)}
    clean = make_model("iwae", D, Z, (8, 6), **options).double()
    torch.manual_seed(0)
    identity = corruptions.Identity()
    copied = make_model("diwae", D, Z, (8, 6), corruption=identity, **options).double()
    seen: list[tuple[int, ...]] = []
    for model in (clean, copied):
        model.encoder.register_forward_hook(lambda module, args, out: seen.append(args[0].shape))
    losses = [model.loss(_data(), SEED) for model in (clean, copied)]
    assert seen == [(B, D)] * 2
    torch.testing.assert_close(*losses)
    for model, loss in zip((clean, copied), losses, strict=True):
        loss.backward()
        assert model.copies == M
    for p, q in zip(clean.parameters(), copied.parameters(), strict=True):
        torch.testing.assert_close(p.grad, q.grad)


@pytest.mark.parametrize(("name", "estimator"), PAIRS)
def test_parts_of_a_batch_have_its_numbers(name: str, estimator: str) -> None:
    """With the index of each part's first example: bounds, and the sum of the gradients."""
    model, x = _model(name, estimator), _data()
    parameters = list(model.parameters())
    whole = torch.autograd.grad(B * model.loss(x, SEED), parameters)
    cuts = (0, 2, 3, B)
    bounds, total = [], [torch.zeros_like(p) for p in parameters]
    for first, end in pairwise(cuts):
        part = x[first:end]
        bounds.append(model.bound(part, SEED, first_example=first))
        loss = (end - first) * model.loss(part, SEED, first_example=first)
        total = [t + g for t, g in zip(total, torch.autograd.grad(loss, parameters), strict=True)]
    torch.testing.assert_close(torch.cat(bounds), model.bound(x, SEED))
    torch.testing.assert_close(total, list(whole))


@pytest.mark.parametrize(("name", "estimator"), PAIRS)
@pytest.mark.parametrize("likelihood", ["bernoulli", "gaussian"])
def test_every_gradient_is_a_number(name: str, estimator: str, likelihood: str) -> None:
    """In float32, with groups so far apart that a joint weight underflows to 0."""
    model = _model(name, estimator, likelihood=likelihood, corruption=corruptions.Masking(0.9))
    model = model.float()
    with torch.no_grad():
        for p in model.encoder.parameters():
            p.mul_(6.0)
        for p in model.decoder.parameters():
            p.mul_(6.0)
    model.loss(_data().float(), SEED).backward()
    for p in model.parameters():
        assert p.grad is not None
        assert bool(p.grad.isfinite().all())


def test_piwae_reaches_the_encoder_of_a_group_of_no_weight() -> None:
    """Its joint weights underflow; MIWAE's gradient for its posterior does not."""
    torch.manual_seed(0)
    mean = torch.randn(2, B, Z)
    mean.requires_grad_()
    log_var = torch.zeros(2, B, Z)
    latents = objectives.sample_latents(mean, log_var, K, "piwae", SEED)
    logits = latents.z @ torch.randn(Z, D)
    x = torch.rand(B, D)
    far = torch.tensor([0.0, -500.0]).view(2, 1, 1)
    loss = objectives.loss(
        logits, x, latents.log_ratio + far, "bernoulli", "piwae", inference=latents.inference
    )
    (grad,) = torch.autograd.grad(loss, mean)

    nested = objectives.sample_latents(mean, log_var, K, "iwae", SEED)
    torch.manual_seed(0)
    torch.randn(2, B, Z)
    expected_loss = objectives.loss(
        nested.z @ torch.randn(Z, D), x, nested.log_ratio + far, "bernoulli", "iwae"
    )
    (expected,) = torch.autograd.grad(expected_loss, mean)
    assert bool((grad[1].abs() > 1e-6).any())
    torch.testing.assert_close(grad, expected, rtol=1e-4, atol=1e-6)


# torch.compile's own doing, on meeting an autograd.Function and on loading its backend.
@pytest.mark.filterwarnings("ignore:.*should not be instantiated. Methods on:DeprecationWarning")
@pytest.mark.filterwarnings("ignore:`torch.jit.*is deprecated:DeprecationWarning")
@pytest.mark.parametrize(
    ("name", "estimator"),
    [
        ("piwae", "dreg"),
        *(
            pytest.param(*pair, marks=pytest.mark.slow)
            for pair in (("iwae", "vimco"), ("elbo", "stl"))
        ),
    ],
)
def test_compiles_without_a_graph_break(name: str, estimator: str) -> None:
    model, x, seed = _model(name, estimator), _data(), torch.tensor([SEED])
    assert_compiles(model, x, seed)


def test_gradients_can_be_asked_for_twice() -> None:
    for name, estimator in (("iwae", "dreg"), ("iwae", "vimco"), ("piwae", "stl")):
        model = _model(name, estimator)
        parameters = list(model.parameters())
        loss = model.loss(_data(), SEED)
        once = torch.autograd.grad(loss, parameters, retain_graph=True)
        twice = torch.autograd.grad(3 * loss, parameters)
        for a, b in zip(once, twice, strict=True):
            torch.testing.assert_close(3 * a, b)


@pytest.mark.parametrize("estimator", ["stl", "dreg", "vimco"])
def test_under_autocast(estimator: str) -> None:
    model = _model("iwae", estimator).float()
    x = _data().float()
    model.loss(x, SEED).backward()
    exact = torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])
    model.zero_grad()
    with torch.autocast("cpu", torch.bfloat16):
        loss = model.loss(x, SEED)
    loss.backward()
    rough = torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])
    assert float(torch.cosine_similarity(exact, rough, 0)) > 0.99


@pytest.mark.parametrize("estimator", ["standard", "dreg", "vimco"])
def test_half_precision_decoders(estimator: str) -> None:
    """Whose gradient the fused pass does not make, as it would lose a loss scale."""
    objective = Objective("iwae", estimator)
    x = _data().float()
    weight = torch.randn(Z, D, generator=torch.Generator().manual_seed(2))
    grads = []
    for dtype in (torch.float32, torch.float16):
        mean = torch.full((B, Z), 0.4, requires_grad=True)
        latents = objectives.sample_latents(mean, torch.zeros(B, Z), K, objective, SEED)
        loss = objectives.loss(
            (latents.z @ weight).to(dtype), x, latents.log_ratio, "bernoulli", objective,
            inference=latents.inference,
        )  # fmt: skip
        assert loss.dtype == torch.float32
        grads.append(torch.autograd.grad(2.0**10 * loss, mean)[0])
    torch.testing.assert_close(
        grads[0], grads[1], rtol=5e-3, atol=5e-3 * float(grads[0].abs().max())
    )


# --- VIMCO's sums -----------------------------------------------------------------------------


def _naive_left_out(log_w: Tensor) -> Tensor:
    out = torch.empty_like(log_w)
    for j in range(log_w.shape[-1]):
        keep = [i for i in range(log_w.shape[-1]) if i != j]
        without = log_w.clone()
        without[..., j] = log_w[..., keep].mean(-1)
        out[..., j] = torch.logsumexp(log_w, -1) - torch.logsumexp(without, -1)
    return out


@pytest.mark.parametrize("spread", [0.1, 3.0, 40.0, 300.0])
def test_leaving_out_loses_no_digits(spread: float) -> None:
    """Σ w − w_k would be 0 for a weight that is all but the whole sum."""
    g = torch.Generator().manual_seed(3)
    log_w = spread * torch.randn(4, B, K, generator=g, dtype=torch.float64) - 500
    log_w[0, :, 2] = log_w[0, :, 4]
    expected = _naive_left_out(log_w)
    torch.testing.assert_close(_left_out(log_w, 1.0), expected, rtol=1e-10, atol=1e-12)
    single = _left_out(log_w.float(), 1.0).double()
    torch.testing.assert_close(single, expected, rtol=1e-4, atol=1e-4 * max(spread, 1.0))
    two = log_w[..., :2]
    torch.testing.assert_close(_left_out(two, 1.0), _naive_left_out(two))


def test_leaving_out_where_weights_are_zero() -> None:
    log_w = torch.tensor([[-1.0, -math.inf, -2.0, -3.0], [-math.inf] * 4], dtype=torch.float64)
    signal = _left_out(log_w, 1.0)
    torch.testing.assert_close(signal[:1], _naive_left_out(log_w[:1]))
    assert signal[1].tolist() == [0.0] * 4
    assert _left_out(log_w, 0.0)[1].tolist() == [0.0] * 4
    assert bool(_left_out(torch.full((1, 3), math.nan), 1.0).isnan().all())


# --- expectations -----------------------------------------------------------------------------


def _sampled(
    objective: Objective, n: int, k: int, m: int = 1, seed: int = 0
) -> tuple[Tensor, Tensor]:
    """n independent gradients of the bound of one example with respect to q's parameters.

    The linear-Gaussian model with q in the wrong place; each row has its own leaf. (n, 2 Z).
    """
    model = linear_gaussian("iwae", widen=2.0)
    x = draw_data(model, 1)
    mean, log_var = model.encode(x)
    shape = (m, n, Z)
    leaves = [
        (mean + 0.3).detach().expand(shape).clone().requires_grad_(),
        log_var.detach().expand(shape).clone().requires_grad_(),
    ]
    latents = objectives.sample_latents(leaves[0], leaves[1], k, objective, seed)
    params = model.decode(latents.z)
    assert isinstance(params, tuple)
    loss = objectives.loss(
        params, x.expand(n, -1), latents.log_ratio, "gaussian", objective,
        inference=latents.inference,
    )  # fmt: skip
    grads = torch.autograd.grad(-n * loss, leaves)
    return torch.cat([g.sum(0) for g in grads], 1), torch.stack([leaves[0][0, 0], leaves[1][0, 0]])


def _exact_elbo_gradient() -> Tensor:
    """Of E_q [log p(x|z)] − KL for a linear decoder, which is a quadratic form."""
    model = linear_gaussian("iwae", widen=2.0)
    x = draw_data(model, 1)
    mean, log_var = ((t + s).detach().requires_grad_() for t, s in zip(model.encode(x), (0.3, 0.0)))  # noqa: B905
    w, b, noise = model.decoder.weight, model.decoder.bias, model.decoder.noise
    residual = (x - mean @ w.T - b).square().sum() + (log_var.exp() * w.square().sum(0)).sum()
    kl = 0.5 * (mean.square() + log_var.exp() - 1 - log_var).sum()
    value = -0.5 * residual / noise**2 - kl
    return torch.cat(torch.autograd.grad(value, (mean, log_var)), 1)[0]


@pytest.mark.parametrize("estimator", ["standard", "stl", "dreg", "vimco"])
def test_of_the_elbo_every_estimator_is_unbiased(estimator: str) -> None:
    samples, _ = _sampled(Objective("elbo", estimator), 40_000, 3)
    assert bool((scores(samples, _exact_elbo_gradient()) < SIGMAS).all())


def test_of_the_analytic_elbo_too() -> None:
    samples, _ = _sampled(Objective("elbo_kl"), 40_000, 3)
    assert bool((scores(samples, _exact_elbo_gradient()) < SIGMAS).all())


@functools.cache
def _standard(objective: Objective, n: int, k: int, m: int) -> Tensor:
    return _sampled(objective, n, k, m, seed=2)[0]


@pytest.mark.parametrize("m", [pytest.param(1, marks=pytest.mark.slow), 2])
@pytest.mark.parametrize("estimator", ["dreg", "vimco"])
@pytest.mark.parametrize("name", ["iwae", "iwae_joint", "ciwae", "vr"])
def test_unbiased_with_samples_inside_the_logarithm(name: str, estimator: str, m: int) -> None:
    """Against the reparameterised gradient, from other draws."""
    n, k = 15_000, 5
    objective = Objective("vr", alpha=0.4) if name == "vr" else _objective(name)
    doubly = dataclasses.replace(objective, estimator=estimator)
    samples, _ = _sampled(doubly, n, k, m, seed=1)
    standard = _standard(objective, n, k, m)
    error = torch.hypot(samples.std(0), standard.std(0)) / math.sqrt(n)
    distance = (samples.mean(0) - standard.mean(0)).abs() / error
    assert bool((distance < SIGMAS).all()), distance
    # Sharp enough to see a twentieth of the gradient, in one coordinate at least.
    assert bool((error / standard.mean(0).abs()).min() < 0.05)


def test_sticking_the_landing_is_biased_inside_and_not_outside() -> None:
    n, k = 10_000, 5
    stl, _ = _sampled(Objective("iwae", "stl"), n, k)
    standard, _ = _sampled(Objective("iwae"), n, k)
    assert float(scores(stl - standard).max()) > 10
    stl, _ = _sampled(Objective("mixture_elbo", "stl"), n, k, 2)
    standard, _ = _sampled(Objective("mixture_elbo"), n, k, 2)
    assert bool((scores(stl - standard) < SIGMAS).all())


def test_at_the_posterior_the_path_gradients_have_no_noise() -> None:
    """log w is constant there: its derivative along z is 0, the score's is not (1703.09194)."""
    model = linear_gaussian("iwae", orthogonal=True)
    x = draw_data(model, B)
    with torch.no_grad():
        mean, log_var = model.encode(x)
    for name, estimator, zero in (
        ("elbo", "stl", True), ("iwae", "stl", True), ("iwae", "dreg", True),
        ("vr", "dreg", True), ("elbo", "standard", False), ("iwae", "standard", False),
    ):  # fmt: skip
        leaf = mean.clone().requires_grad_()
        o = _objective(name, estimator)
        latents = objectives.sample_latents(leaf, log_var, K, o, SEED)
        loss = objectives.loss(
            model.decode(latents.z), x, latents.log_ratio, "gaussian", o,  # type: ignore[arg-type]
            inference=latents.inference,
        )  # fmt: skip
        (grad,) = torch.autograd.grad(loss, leaf)
        assert bool((grad.abs() < 1e-12).all()) == zero, (name, estimator)


def test_signal_to_noise() -> None:
    """Rising with K for DReG, falling for the standard estimator (1810.04152, 1802.04537).

    Four times the samples multiply it by 2 and by ½ in the limit; at least by 1.4 and at most by
    0.7 here, where 8,000 draws know each ratio to 0.01.
    """
    n = 8_000

    def ratio(estimator: str, k: int) -> float:
        samples, _ = _sampled(Objective("iwae", estimator), n, k)
        return float((samples.mean(0).abs() / samples.std(0))[:Z].mean())

    doubly = [ratio("dreg", k) for k in (4, 16, 64)]
    standard = [ratio("standard", k) for k in (4, 16)]
    assert doubly[1] > 1.4 * doubly[0]
    assert doubly[2] > 1.4 * doubly[1]
    assert standard[1] < 0.7 * standard[0]


# --- errors -----------------------------------------------------------------------------------


def test_wrong_estimators_say_what_is_possible() -> None:
    cases: list[tuple[Callable[[], Any], str]] = [
        (
            lambda: DIWAE(D, objective="vr_max", estimator="dreg"),
            r"estimator must be one of standard, stl for vr_max \(dreg is defined for elbo, iwae,"
            r" iwae_joint, ciwae, piwae, vr\); got 'dreg'",
        ),
        (
            lambda: DIWAE(D, objective="elbo_kl", estimator="stl"),
            r"estimator must be one of standard for elbo_kl \(stl is defined for elbo, iwae, ",
        ),
        (lambda: DIWAE(D, estimator="rws"), "estimator must be one of standard, .*; got 'rws'"),
        (
            lambda: DIWAE(D, objective="miwae"),
            "objective must be one of iwae, .*; got 'miwae'; did you mean 'iwae'",
        ),
        (
            lambda: DIWAE(D, samples=1, estimator="vimco"),
            "K must be >= 2 for vimco, whose baseline is made of the other samples; got 1",
        ),
        (
            lambda: DIWAE(D, samples=1, objective="iwae_joint", estimator="vimco"),
            "M·K must be >= 2 for vimco",
        ),
        (
            lambda: BernoulliLatentModel(D, estimator="standard"),
            "estimator must be vimco for Bernoulli latents, which have no reparameterisation "
            r"\(with one of elbo, iwae, .*\); got 'standard'",
        ),
        (
            lambda: BernoulliLatentModel(D, objective=Objective("iwae")),
            "estimator must be vimco for Bernoulli latents.*; got 'standard'",
        ),
        (
            lambda: BernoulliLatentModel(D, objective="mixture"),
            r"estimator must be one of standard, stl for mixture \(vimco is defined for elbo, ",
        ),
        (lambda: BernoulliLatentModel(D, samples=1), "K must be >= 2 for vimco"),
    ]
    for call, message in cases:
        with pytest.raises(ValueError, match=message):
            call()
