"""Every bound against its formula, its order among the others, and a model's exact log p(x).

Orders in expectation are tested on a mean over examples with a margin of 5 of its standard
errors; equal bounds would pass for ordered once in 3 million, and for different once in 2 million.
Orders that hold for the same draws are tested example by example.
"""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

import pytest
import torch
from linear_gaussian import draw_data, exact_log_likelihood, linear_gaussian
from torch import Tensor

from dvae_fast import corruptions, models, objectives
from dvae_fast.objectives import OBJECTIVES, Objective

M, B, K, D = 3, 5, 7, 6
N = 4000
SEED = 11

LOWER = [name for name in OBJECTIVES if name != "vr_max"]
#: those of one logarithm of all M·K
JOINT = [name for name, row in OBJECTIVES.items() if row.joint and not row.outside]


def _log_w(*leading: int) -> Tensor:
    g = torch.Generator().manual_seed(1)
    return 3 * torch.randn(*leading, B, K, generator=g, dtype=torch.float64)


def _bounds(objective: str | Objective, *, m: int = 1, k: int = K, **options: Any) -> Tensor:
    """Log p(x) less the bound, (N,): of a posterior four times too wide, or of a corrupted one."""
    name = "diwae" if "corruption" in options else "iwae"
    options = {"widen": 4.0, **options}
    model = linear_gaussian(name, copies=m, samples=k, objective=objective, **options)
    x = draw_data(model, N)
    return exact_log_likelihood(model, x) - model.bound(x, SEED)


def _surely_positive(t: Tensor) -> bool:
    return float(t.mean()) > 5 * float(t.std()) / math.sqrt(len(t)) > 0


# --- formulas ---------------------------------------------------------------------------------


@pytest.mark.parametrize("leading", [(), (M,), (M, 2)])
def test_formulas(leading: tuple[int, ...]) -> None:
    log_w = _log_w(*leading)
    w = log_w.exp().reshape(-1, B, K)
    logs = w.log()
    elbo, nested, joint = logs.mean((0, 2)), w.mean(2).log().mean(0), w.mean((0, 2)).log()
    expected = {
        "elbo": elbo, "elbo_kl": elbo, "mixture_elbo": elbo, "iwae": nested,
        "iwae_joint": joint, "piwae": joint, "mixture": joint, "vr_max": logs.amax(2).mean(0),
        "sivi": joint, "sivi_elbo": elbo, "iwhvi": joint, "iwhvi_elbo": elbo,
        "ciwae": 0.5 * elbo + 0.5 * nested, "vr": 2 * (w**0.5).mean(2).log().mean(0),
    }  # fmt: skip
    assert expected.keys() == OBJECTIVES.keys()
    for name, value in expected.items():
        torch.testing.assert_close(objectives.bound(log_w, name), value)
    # A joint bound of samples already joined.
    joined = log_w.reshape(-1, B, K).transpose(0, 1).flatten(1)
    for name in JOINT:
        torch.testing.assert_close(objectives.bound(joined, name), joint)


def test_the_ends_of_the_families() -> None:
    log_w = _log_w(M)
    elbo, iwae = (objectives.bound(log_w, name) for name in ("elbo", "iwae"))
    largest = objectives.bound(log_w, "vr_max")
    for family, options, expected in (
        ("ciwae", {"beta": 0.0}, iwae), ("ciwae", {"beta": 1.0}, elbo),
        ("vr", {"alpha": 0.0}, iwae), ("vr", {"alpha": 1.0}, elbo), ("vr", {"alpha": 1}, elbo),
    ):  # fmt: skip
        torch.testing.assert_close(objectives.bound(log_w, Objective(family, **options)), expected)
    near = objectives.bound(log_w, Objective("vr", alpha=1 - 1e-6))
    torch.testing.assert_close(near, elbo, rtol=1e-4, atol=1e-4)
    far = objectives.bound(log_w, Objective("vr", alpha=-1e4))
    torch.testing.assert_close(far, largest, rtol=1e-3, atol=1e-3)
    one = log_w[..., :1]
    for name in ("iwae", "ciwae", "vr", "vr_max"):  # MIWAE(M, 1) is the ELBO
        torch.testing.assert_close(objectives.bound(one, name), objectives.bound(one, "elbo"))


def test_orders_of_the_same_draws() -> None:
    """Jensen: every power mean rises with its power, and a joint mean is above a nested one."""
    log_w = _log_w(M)
    alphas = (3.0, 1.0, 0.5, 0.0, -1.0, -5.0)
    rising = [objectives.bound(log_w, Objective("vr", alpha=a)) for a in alphas]
    rising.append(objectives.bound(log_w, "vr_max"))
    betas = [objectives.bound(log_w, Objective("ciwae", beta=b)) for b in (1.0, 0.6, 0.2, 0.0)]
    nested = [objectives.bound(log_w, name) for name in ("elbo", "iwae", "iwae_joint")]
    for order in (rising, betas, nested):
        for low, high in pairwise(order):
            assert bool((low < high).all())
    for name in OBJECTIVES:
        if name not in JOINT:
            assert bool((objectives.bound(log_w, name) <= rising[-1]).all())
    assert bool((rising[-1] <= log_w.amax((0, 2))).all())


@pytest.mark.parametrize("name", OBJECTIVES)
def test_m_and_k_are_not_one_another(name: str) -> None:
    log_w = _log_w(M)
    swapped = objectives.bound(log_w.transpose(0, 2), name)
    same = name in JOINT or OBJECTIVES[name].outside
    difference = (objectives.bound(log_w, name) - swapped).abs()
    assert bool((difference < 1e-12).all() if same else (difference > 1e-3).all())


@pytest.mark.parametrize("name", OBJECTIVES)
def test_extreme_weights(name: str) -> None:
    log_w = _log_w(M)
    log_w[:, 0] = -math.inf
    log_w[1, 2, 3] = math.nan
    bound = objectives.bound(log_w, name)
    assert bound[0] == -math.inf
    assert bool(bound[2].isnan())
    assert bool(bound[[1, 3, 4]].isfinite().all())


# --- exact answers ----------------------------------------------------------------------------


@pytest.mark.parametrize("name", OBJECTIVES)
def test_with_the_exact_posterior_every_bound_is_the_likelihood(name: str) -> None:
    """But for elbo_kl, whose divergence is exact while its other half is sampled."""
    model = linear_gaussian("iwae", orthogonal=True, copies=M, samples=K, objective=name)
    x = draw_data(model, B)
    if name == "elbo_kl":
        model.copies, model.samples = 1, 20_000
        gap = (model.bound(x, SEED) - exact_log_likelihood(model, x)).abs()
        assert bool((gap < 0.04).all())  # 6 standard errors of each: a false alarm in 10⁸
        return
    torch.testing.assert_close(model.bound(x), exact_log_likelihood(model, x))
    torch.testing.assert_close(model.loss(x), -exact_log_likelihood(model, x).mean())


@pytest.mark.parametrize("name", LOWER)
def test_each_lies_below_the_likelihood(name: str) -> None:
    assert _surely_positive(_bounds(name, m=M))
    noisy = corruptions.AdditiveGaussian(0.5)
    assert _surely_positive(_bounds(name, m=M, corruption=noisy))


@pytest.mark.parametrize("name", ["iwae", "iwae_joint", "piwae"])
def test_more_samples_rise_to_the_likelihood(name: str) -> None:
    gaps = [_bounds(name, m=M, k=k) for k in (1, 4, 16)]
    for coarse, fine in pairwise(gaps):
        assert _surely_positive(coarse - fine)
    assert 0 < float(gaps[-1].mean()) < 0.1 * float(gaps[0].mean())


def test_the_analytic_divergence_has_the_same_mean_and_less_noise() -> None:
    sampled, analytic = _bounds("elbo", k=3), _bounds("elbo_kl", k=3)
    difference = sampled - analytic
    assert abs(float(difference.mean())) < 5 * float(difference.std()) / math.sqrt(N)
    model = linear_gaussian("vae", samples=3)
    x = draw_data(model, 1).expand(N, D)
    spread = {}
    for name in ("elbo", "elbo_kl"):
        # The posterior's own noise cancels that of log p(x|z) near it: not so far from it.
        model = linear_gaussian("vae", samples=3, objective=name, widen=0.1)
        spread[name] = float(model.bound(x, SEED).std())
    assert spread["elbo_kl"] < spread["elbo"]


def test_miwae_of_one_sample_is_the_elbo() -> None:
    """A mean over M of log w, whose expectation no M changes."""
    elbo, miwae = _bounds("elbo", k=M), _bounds("iwae", m=M, k=1)
    torch.testing.assert_close(miwae, elbo)  # the same noise too: M groups are M samples
    assert not torch.equal(_bounds("iwae", m=K, k=M), _bounds("iwae", m=M, k=K))


def test_groups_do_not_move_the_mean_and_do_lower_its_noise() -> None:
    """MIWAE(M, K): IWAE(K) in expectation (1802.04537)."""
    one, many = _bounds("iwae", m=1), _bounds("iwae", m=20)
    difference = one - many
    assert abs(float(difference.mean())) < 5 * float(difference.std()) / math.sqrt(N)
    assert float(many.var()) < 0.2 * float(one.var())


def test_the_joint_bound_is_the_tighter() -> None:
    noisy = corruptions.AdditiveGaussian(0.5)
    for options in ({}, {"corruption": noisy}):
        nested, joint = (_bounds(n, m=M, **options) for n in ("iwae", "iwae_joint"))  # type: ignore[arg-type]
        assert bool((nested >= joint).all())  # the same draws: Jensen
        assert _surely_positive(nested - joint)


def test_without_corruption_joint_groups_are_more_samples() -> None:
    joint, flat = _bounds("iwae_joint", m=M, k=K), _bounds("iwae", m=1, k=M * K)
    difference = joint - flat
    assert abs(float(difference.mean())) < 5 * float(difference.std()) / math.sqrt(N)


@pytest.mark.parametrize("std", [0.5, 1.0])
def test_the_mixture_is_above_the_denoising_bound(std: float) -> None:
    """DVAE averages KL(q_m || p(z|x)) over corruptions; the mixture's own KL is no larger."""
    noisy = corruptions.AdditiveGaussian(std)
    for outside, mixed in (("elbo", "mixture_elbo"), ("iwae_joint", "mixture")):
        apart, together = (_bounds(n, m=M, corruption=noisy, widen=1.0) for n in (outside, mixed))
        assert _surely_positive(apart - together), (outside, mixed)


def test_a_mixture_of_equals_is_the_joint_bound() -> None:
    same = _bounds("iwae_joint", m=M)
    torch.testing.assert_close(_bounds("mixture", m=M), same)
    alone = corruptions.AdditiveGaussian(0.5)
    torch.testing.assert_close(
        _bounds("mixture", corruption=alone), _bounds("iwae", corruption=alone)
    )


# --- faults seen elsewhere --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "estimator"),
    [(name, one) for name, row in OBJECTIVES.items() for one in row.estimators],
)
def test_the_reported_value_is_never_a_surrogate(name: str, estimator: str) -> None:
    """No β, free bits, weights or score in it: whatever gives the gradient, the bound is the same.

    Σ w̃ log w, reported for a bound, lies above it; with it this fails for iwae.
    """
    free = {"free_bits": 50.0} if name == "elbo_kl" else {}
    plain = linear_gaussian("iwae", copies=M, samples=K, objective=name, widen=4.0)
    other = linear_gaussian(
        "iwae", copies=M, samples=K, objective=Objective(name, estimator, **free), widen=4.0
    )
    x = draw_data(plain, N if name == "elbo" and estimator == "vimco" else B)
    expected = plain.bound(x, SEED)
    for weight in (1.0, 0.2, 0.0):
        other.kl_weight = weight
        found, loss = other.bound(x, SEED), other.loss(x, SEED)
        torch.testing.assert_close(loss.detach(), -found.mean())
        if name == "elbo" and estimator == "vimco":  # other noise: K is a dimension of its own
            difference = found - expected
            assert abs(float(difference.mean())) < 5 * float(difference.std()) / math.sqrt(N)
        else:
            torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("name", OBJECTIVES)
def test_the_target_is_the_clean_x(name: str) -> None:
    """With everything masked only the target can tell two data sets apart."""
    options: dict[str, Any] = {"copies": M, "samples": K, "corruption": corruptions.Masking(1.0)}
    model = linear_gaussian("diwae", objective=name, **options)
    x = draw_data(model, B)
    before = x.clone()
    model.loss(x, SEED).backward()
    assert torch.equal(x, before)
    assert bool((model.bound(x, SEED) - model.bound(x + 1, SEED)).abs().min() > 1e-3)


@pytest.mark.filterwarnings("ignore:the loss is not finite, and 1 of:RuntimeWarning")
@pytest.mark.parametrize("name", OBJECTIVES)
def test_nan_stays_with_its_example(name: str) -> None:
    model = linear_gaussian("iwae", copies=M, samples=K, objective=name)
    x = draw_data(model, B)
    clean = model.bound(x, SEED)
    x[2, 4] = math.nan
    bound = model.bound(x, SEED)
    assert bool(bound[2].isnan())
    torch.testing.assert_close(bound[[0, 1, 3, 4]], clean[[0, 1, 3, 4]])
    assert bool(model.loss(x, SEED).isnan())


# --- configuration ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"name": "ciwae", "beta": 1.5}, r"beta must be a number, in \[0, 1\]; got 1.5"),
        ({"name": "ciwae", "beta": math.nan}, "beta must be a number, .*; got nan"),
        ({"name": "ciwae", "beta": True}, "beta must be a number, .*; got True"),
        (
            {"name": "iwae", "beta": 0.5},
            "beta must be None unless the objective is ciwae; got 0.5 for iwae",
        ),
        (
            {"name": "elbo", "alpha": 0.5},
            "alpha must be None unless the objective is vr; got 0.5 for elbo",
        ),
        ({"name": "vr", "alpha": -math.inf}, "alpha must be a number, finite; got -inf"),
        ({"name": "vr", "alpha": "0"}, "alpha must be a number, finite; got '0'"),
        (
            {"name": "iwae", "free_bits": 0.1},
            "free_bits must be 0 unless the objective is elbo_kl, .*; got 0.1 for iwae",
        ),
        (
            {"name": "elbo_kl", "free_bits": -1.0},
            "free_bits must be a finite number >= 0, in nats; got -1.0",
        ),
        ({"name": "dreg"}, "objective must be one of elbo, .*; got 'dreg'"),
    ],
)
def test_wrong_options(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Objective(**options)


def test_as_objective() -> None:
    given = Objective("ciwae", beta=0.2)
    assert objectives.as_objective(given) is given
    assert objectives.as_objective(given, "dreg") == Objective("ciwae", "dreg", beta=0.2)
    assert objectives.as_objective("vr") == Objective("vr", alpha=0.5)
    assert str(Objective("vr", "dreg", alpha=0.1)) == "vr (estimator dreg, alpha 0.1)"
    with pytest.raises(TypeError, match="objective must be a string or an Objective, got int"):
        objectives.as_objective(3)  # type: ignore[arg-type]


def test_what_the_loss_needs() -> None:
    log_ratio, x, logits = torch.zeros(B, K), torch.zeros(B, D), torch.zeros(B, K, D)
    with pytest.raises(ValueError, match="inference must be what sample_latents returned for iwae"):
        objectives.loss(logits, x, log_ratio, "bernoulli", Objective("iwae", "dreg"))
    with pytest.raises(ValueError, match=r"inference must be None for iwae .*, got a tensor"):
        objectives.loss(logits, x, log_ratio, "bernoulli", "iwae", inference=log_ratio)
    with pytest.raises(TypeError, match="params must not be float16 for piwae without vimco"):
        objectives.loss(
            logits.half(), x, log_ratio, "bernoulli", "piwae", inference=torch.zeros(B, K)
        )
    with pytest.raises(ValueError, match=r"logits must have shape \(\*L, B, Z\)"):
        models.sample_bernoulli_latents(torch.zeros(3), None, 2, Objective("iwae", "vimco"))
    with pytest.raises(ValueError, match="prior_logits must have shape"):
        models.sample_bernoulli_latents(
            torch.zeros(B, D), torch.zeros(D + 1), 2, Objective("iwae", "vimco")
        )
