"""SIVI's and IWHVI's bounds against exact mixtures, and the gradients of their reverse proposals.

Statistical tests: means ordered by a margin of 5 standard errors of their difference, which equal
ones pass once in 3 million; each coordinate of a gradient within 5 of 100 draws' own, which a right
estimator misses once in 400,000 (Student's t). Seeds are fixed.
"""

from __future__ import annotations

import itertools
import math
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from linear_gaussian import D, Z, draw_data, exact_log_likelihood, linear_gaussian
from plain_objectives import plain_bound, scores
from torch import Tensor, nn
from torch.distributions import MultivariateNormal, Normal
from torch.nn import functional as F

from dvae_fast import corruptions, estimate_log_likelihood, objectives
from dvae_fast.models import (
    DIWAE,
    DVAE,
    LatentVariableModel,
    TwoLayerModel,
    load_model,
    reverse,
    save_model,
)
from dvae_fast.models.one_pass import one_pass
from dvae_fast.objectives import OBJECTIVES, Objective
from dvae_fast.objectives.outer import hierarchical_log_ratio

if TYPE_CHECKING:
    from pathlib import Path

    from dvae_fast.corruptions import Corruption

M, K, J, B, N = 3, 2, 4, 5, 4000
SEED, SIGMAS = 11, 5.0
STD = 0.8


# --- a linear encoder of Gaussian noise, whose mixture is a Gaussian ------------------------------


def _gaussian(objective: str, **options: Any) -> LatentVariableModel:
    options = {"copies": M, "samples": K, "outer_samples": J, "widen": 0.5, **options}
    noise = corruptions.AdditiveGaussian(STD)
    return linear_gaussian("diwae", objective=objective, corruption=noise, **options)


def _mixture(model: LatentVariableModel, x: Tensor) -> tuple[Tensor, Tensor]:
    """q̃(z|x): mean (N, Z) and covariance (Z, Z)."""
    mean, log_var = model.encode(x)
    rows = model.encode(torch.cat((torch.zeros(1, D), torch.eye(D))).double())[0]
    slope = (rows[1:] - rows[0]).T  # (Z, D)
    return mean, torch.diag(log_var[0].exp()) + STD**2 * slope @ slope.T


@torch.no_grad()
def _exact_elbo(model: LatentVariableModel, x: Tensor) -> Tensor:
    """E_q̃ [log p(x, z) − log q̃(z|x)], (N,)."""
    mean, covariance = _mixture(model, x)
    w, b, noise = model.decoder.weight, model.decoder.bias, model.decoder.noise
    square = (x - mean @ w.T - b).square().sum(1) + torch.trace(w @ covariance @ w.T)
    log_p = -0.5 * (square / noise**2 + D * math.log(2 * math.pi * noise**2))
    kl = torch.trace(covariance) + mean.square().sum(1) - Z - torch.logdet(covariance)
    return log_p - 0.5 * kl


def _surely_positive(t: Tensor) -> bool:
    return float(t.mean()) > 5 * float(t.std()) / math.sqrt(len(t)) > 0


def _surely_equal(t: Tensor) -> bool:
    return abs(float(t.mean())) < 5 * float(t.std()) / math.sqrt(len(t))


class _Moves(nn.Module):
    """The noise's posterior given z, element by element, a share of the way from its prior."""

    def __init__(self, model: LatentVariableModel, share: float = 1.0) -> None:
        super().__init__()
        self.share = share
        self.__dict__["encode"] = model.encode

    def forward(self, z: Tensor, x: Tensor) -> Tensor:
        mean, log_var = self.encode(x)
        rows = self.encode(torch.cat((torch.zeros(1, D), torch.eye(D))).double())[0]
        slope = STD * (rows[1:] - rows[0])  # (D, Z)
        over = slope / log_var[0].exp()
        precision = 1 + (slope * over).sum(1)
        found = (z - mean) @ over.T / precision
        return self.share * torch.cat((found, (-0.5 * precision.log()).expand_as(found)), -1)


class _Selecting(nn.Module):
    """An encoder that reads each latent off one pixel: given z, its noise is independent."""

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        mean = 0.5 * x[..., [4, 1]] * torch.tensor([1.0, -0.6], dtype=x.dtype)
        return mean, torch.tensor([-1.0, -2.0], dtype=x.dtype).expand(mean.shape)


def test_the_bounds_are_ordered_as_the_theory_has_it() -> None:
    """DVAE's <= SIVI's, rising with J <= the ELBO of the exact mixture <= log p(x)."""
    model = _gaussian("elbo")
    x = draw_data(model, N)
    best = _exact_elbo(model, x)
    gaps = [best - model.bound(x, SEED)]
    for count in (1, 4, 16):
        gaps.append(best - _gaussian("sivi_elbo", outer_samples=count).bound(x, SEED))
    assert _surely_positive(exact_log_likelihood(model, x) - best)
    for coarse, fine in pairwise(gaps):
        assert _surely_positive(coarse - fine)
    assert _surely_positive(gaps[-1])
    assert float(gaps[-1].mean()) < 0.15 * float(gaps[0].mean())
    # What all J + 1 drew in turn, and no further corruptions at all.
    mixture = best - _gaussian("mixture_elbo", copies=5).bound(x, SEED)
    assert _surely_equal(mixture - gaps[2])
    alone = best - _gaussian("sivi_elbo", outer_samples=0).bound(x, SEED + 1)
    assert _surely_equal(alone - gaps[0])


@pytest.mark.parametrize("inside", ["sivi", "iwhvi"])
def test_inside_the_logarithm_the_bound_is_tighter_and_below_the_likelihood(inside: str) -> None:
    outside = _gaussian(f"{inside}_elbo")
    x = draw_data(outside, N)
    exact = exact_log_likelihood(outside, x)
    apart, together = (exact - _gaussian(n).bound(x, SEED) for n in (f"{inside}_elbo", inside))
    assert bool((apart >= together - 1e-9).all())  # the same draws: Jensen
    assert _surely_positive(apart - together)
    assert _surely_positive(together)


def test_a_reverse_proposal_of_the_corruption_itself_is_semi_implicit() -> None:
    """As it starts: fresh draws for each sample, and no other weights."""
    sivi, iwhvi = (_gaussian(name, samples=1, copies=1) for name in ("sivi_elbo", "iwhvi_elbo"))
    x = draw_data(sivi, N)
    assert _surely_equal(sivi.bound(x, SEED) - iwhvi.bound(x, SEED))
    assert _surely_positive(iwhvi.bound(x, SEED) - _gaussian("elbo", samples=1).bound(x, SEED))


def test_a_better_reverse_proposal_is_between() -> None:
    """Of a dense encoder, whose noise given z is not independent: nearer by it, not exact."""
    sivi, iwhvi = _gaussian("sivi_elbo"), _gaussian("iwhvi_elbo")
    x = draw_data(sivi, N)
    best = _exact_elbo(sivi, x)
    iwhvi.reverse = _Moves(iwhvi, 0.8)
    found = best - iwhvi.bound(x, SEED)
    assert _surely_positive(found)
    assert _surely_positive(best - sivi.bound(x, SEED) - found)


@pytest.mark.parametrize("objective", ["iwhvi", "iwhvi_elbo"])
@pytest.mark.parametrize("count", [0, 1, J])
def test_the_true_reverse_conditional_gives_the_mixture(objective: str, count: int) -> None:
    """Sample by sample, whatever J."""
    model = _gaussian(objective, outer_samples=count)
    model.encoder = _Selecting()
    model.reverse = _Moves(model)
    x = draw_data(model, B)
    z, log_ratio, _ = model._sample_posterior(x, torch.tensor([SEED]), 0)
    mean, covariance = _mixture(model, x)
    where = mean if objective == "iwhvi_elbo" else mean.unsqueeze(1)
    if objective == "iwhvi_elbo":
        assert z.shape == (M * K, B, 1, Z)
        where = mean.unsqueeze(1)
    log_q = MultivariateNormal(where, covariance).log_prob(z)
    log_p = Normal(0.0, 1.0).log_prob(z).sum(-1)
    torch.testing.assert_close(log_ratio, log_p - log_q)


# --- a few pixels, all of whose corruptions are counted up ----------------------------------------

GREY = torch.tensor([[1.0, 0.0, 0.3]], dtype=torch.float64)
HITS: dict[str, Corruption] = {
    "masking": corruptions.Masking(0.4),
    "bit flip": corruptions.BitFlip(torch.tensor([0.2, 0.0, 0.6])),
    "salt and pepper": corruptions.SaltAndPepper(0.5, torch.tensor([0.5, 0.3, 0.8])),
    "always hit": corruptions.SaltAndPepper(torch.tensor([1.0, 0.4, 1.0]), 0.7),
}


def _outcomes(c: Any, x: Tensor) -> tuple[Tensor, Tensor]:
    """Every x̃ that x (D,) may become, (R, D), and its probability."""
    rate, salt = c.parameter.expand(len(x)), c.salt
    salt = torch.zeros(len(x)) if salt is None else salt.expand(len(x))
    pixels = []
    for i, value in enumerate(x.tolist()):
        r, s = float(rate[i]), float(salt[i])
        struck = {
            "masking": {0.0: 1.0}, "bit_flip": {1 - value: 1.0},
            "salt_and_pepper": {1.0: s, 0.0: 1 - s},
        }[c.kind]  # fmt: skip
        found = {value: 1 - r}
        for to, p in struck.items():
            found[to] = found.get(to, 0.0) + r * p
        pixels.append([(to, p) for to, p in found.items() if p > 0])
    each = list(itertools.product(*pixels))
    noisy = torch.tensor([[to for to, _ in one] for one in each], dtype=torch.float64)
    return noisy, torch.tensor([math.prod(p for _, p in one) for one in each]).double()


def _hit_model(corruption: Corruption, objective: str | Objective, **options: Any) -> DVAE:
    torch.manual_seed(3)
    options = {"copies": 1, "samples": 1, "outer_samples": 1, **options}
    model = DVAE(
        3, 1, (4,), reverse_hidden_sizes=(5,), objective=objective, corruption=corruption, **options
    ).double()  # fmt: skip
    assert model.reverse is not None
    with torch.no_grad():
        for p in model.parameters():  # the proposal starts where it moves nothing
            p.add_(0.5 * torch.randn_like(p))
    return model


def _log_tau(c: Any, moves: Tensor, x: Tensor, noisy: Tensor) -> Tensor:
    """log τ(x̃|z, x) pixel by pixel: moves (..., outputs · D), noisy (R, D) → (..., R)."""
    rate = c.parameter.double().expand(len(x))
    salt = None if c.salt is None else c.salt.double().expand(len(x))
    parts = moves.chunk(1 if salt is None else 2, -1)
    total = torch.zeros(*moves.shape[:-1], len(noisy), dtype=torch.float64)
    for i in range(len(x)):
        ones = torch.zeros(()) if salt is None else salt[i]
        p = {
            "masking": (x[i] != 0) * rate[i], "bit_flip": (x[i] != 0.5) * rate[i],
            "salt_and_pepper": rate[i] * (ones * (x[i] != 1) + (1 - ones) * (x[i] != 0)),
        }[c.kind].double()  # fmt: skip
        differs = torch.sigmoid(torch.logit(p) + parts[0][..., i])
        for r, to in enumerate(noisy[:, i]):
            found = 1 - differs if to == x[i] else differs
            if salt is not None and to != x[i] and x[i] not in (0.0, 1.0):
                white = torch.sigmoid(torch.logit(salt[i]) + parts[1][..., i])
                found = found * (white if to == 1 else 1 - white)
            total[..., r] = total[..., r] + found.log()
    return total


def _exact_iwhvi(model: DVAE, x: Tensor) -> tuple[Tensor, Tensor]:
    """IWHVI's bound of one sample and J = 1, and the mixture's ELBO: over all x̃_0 and x̃_1, and z
    by quadrature."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(60)
    weight = torch.from_numpy(weights / weights.sum())
    noisy, p = _outcomes(model.corruption, x[0])
    mean, log_var = model.encode(noisy)  # (R, 1)
    z = mean + torch.exp(0.5 * log_var) * torch.from_numpy(nodes)  # (R, nodes)
    log_q = Normal(mean[:, 0], torch.exp(0.5 * log_var[:, 0])).log_prob(z.unsqueeze(-1))
    assert model.reverse is not None
    moves = model.reverse(z.unsqueeze(-1), x)
    log_tau = _log_tau(model.corruption, moves, x[0], noisy)  # (R, nodes, R)
    log_h = p.log() + log_q - log_tau
    own = log_h.diagonal(dim1=0, dim2=2).T  # (R, nodes)
    pair = torch.logaddexp(own.unsqueeze(-1), log_h) - math.log(2)
    logits = model.decode(z.unsqueeze(-1))
    log_p = -F.binary_cross_entropy_with_logits(
        logits, x.expand_as(logits), reduction="none"  # type: ignore[arg-type, type-var]
    ).sum(-1) + Normal(0.0, 1.0).log_prob(z)  # fmt: skip
    over = p.unsqueeze(-1) * weight
    bound = (over * (log_p - (log_tau.exp() * pair).sum(-1))).sum()
    return bound, (over * (log_p - torch.logsumexp(p.log() + log_q, -1))).sum()


@pytest.mark.parametrize(
    ("name", "estimator"), [*((name, "standard") for name in HITS), ("salt and pepper", "stl")]
)
def test_of_rates_bound_and_gradient_are_unbiased(name: str, estimator: str) -> None:
    """Of the encoder, the decoder and the proposal, drawn as it is."""
    model = _hit_model(HITS[name], Objective("iwhvi_elbo", estimator))
    exact, best = _exact_iwhvi(model, GREY)
    assert exact < best
    parameters = list(model.parameters())
    expected = torch.cat([g.flatten() for g in torch.autograd.grad(exact, parameters)])
    draws = []
    for seed in range(100):
        loss = model.loss(GREY.expand(150, -1), seed)
        grads = torch.autograd.grad(-loss, parameters)
        draws.append(torch.cat([-loss.detach().view(1), *(g.flatten() for g in grads)]))
    found, means = torch.stack(draws), torch.cat((exact.detach().view(1), expected))
    still = found.std(0) < 1e-12  # of what the proposal has no choice in
    distance = scores(found, means)
    assert bool((distance[~still] < SIGMAS).all()), distance
    torch.testing.assert_close(found[0][still], means[still])
    of_proposal = expected[-sum(p.numel() for p in model.reverse.parameters()) :]  # type: ignore[union-attr]
    assert float(of_proposal.abs().max()) > 1e-3


class _Likelier(nn.Module):
    """Of one pixel that may be flipped: by how much z is likelier if it was."""

    def __init__(self, model: DVAE) -> None:
        super().__init__()
        self.__dict__["encode"] = model.encode

    def forward(self, z: Tensor, x: Tensor) -> Tensor:
        flipped = x.clone()
        flipped[:, 0] = 1 - flipped[:, 0]
        log_q = []
        for noisy in (flipped, x):
            mean, log_var = self.encode(noisy)
            log_q.append(Normal(mean, torch.exp(0.5 * log_var)).log_prob(z).sum(-1))
        move = torch.full_like(x, 7.0)  # of those that never are it says nothing
        move[:, 0] = log_q[0] - log_q[1]
        return move


@pytest.mark.parametrize("count", [0, 1, 3])
def test_of_one_pixel_the_true_reverse_conditional_gives_the_mixture(count: int) -> None:
    flip = corruptions.BitFlip(torch.tensor([0.3, 0.0, 0.0]))
    model = _hit_model(flip, "iwhvi", copies=M, samples=K, outer_samples=count)
    model.reverse = _Likelier(model)
    x = GREY.expand(B, -1).contiguous()
    z, log_ratio, _ = model._sample_posterior(x, torch.tensor([SEED]), 0)
    noisy, p = _outcomes(flip, x[0])
    assert len(noisy) == 2
    mean, log_var = model.encode(noisy)
    log_q = torch.logsumexp(
        p.log() + Normal(mean[:, 0], torch.exp(0.5 * log_var[:, 0])).log_prob(z), -1
    )
    torch.testing.assert_close(log_ratio, Normal(0.0, 1.0).log_prob(z[..., 0]) - log_q)


@pytest.mark.parametrize(
    ("objective", "copies", "samples", "count", "weight"),
    [
        *((*case, 0.3) for case in (
            ("iwhvi", 1, 1, 2), ("iwhvi", 1, 3, 1), ("iwhvi", 2, 2, 1), ("iwhvi", 1, 2, 2),
            ("iwhvi_elbo", 1, 2, 2), ("iwhvi_elbo", 2, 1, 1),
        )),
        # The numbers have nothing to do with the weight.
        *((*case, weight) for case in (("iwhvi", 1, 2, 2), ("iwhvi_elbo", 2, 1, 1))
          for weight in (0.0, 1.0)),
    ],
)  # fmt: skip
def test_of_rates_the_score_functions_gradient_is_exact_on_the_mean(
    objective: str, copies: int, samples: int, count: int, weight: float,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """Over every x̃_0 and every x̃_j of each sample, of one noise of the latents."""
    flip = corruptions.BitFlip(torch.tensor([0.25, 0.0, 0.0]))
    model = _hit_model(flip, objective, copies=copies, samples=samples, outer_samples=count)
    model.kl_weight = weight
    x, key = GREY, torch.tensor([SEED])
    parameters = list(model.parameters())
    zeros = [torch.zeros_like(p) for p in parameters]
    expected = torch.zeros((), dtype=torch.float64)
    found = zeros
    s = copies * samples
    assert model.reverse is not None
    for flips in itertools.product((0.0, 1.0), repeat=copies):
        noisy = x.repeat(copies, 1, 1)
        noisy[:, 0, 0] = torch.tensor([1 - f for f in flips])
        p_own = math.prod(0.25 if f else 0.75 for f in flips)
        monkeypatch.setattr(model, "_corrupt", lambda *args, noisy=noisy: noisy)
        mean, log_var = model.encode(noisy)
        latents = objectives.sample_latents(mean, log_var, samples, "iwae", key)
        z = latents.z.transpose(1, 2).reshape(s, 1, 1)  # (S, B, Z)
        logit = math.log(0.25 / 0.75) + model.reverse(z, x)[:, 0, 0]  # (S,)
        tau = torch.stack((1 - torch.sigmoid(logit), torch.sigmoid(logit)), -1)
        both = x.repeat(2, 1)
        both[1, 0] = 1 - both[1, 0]
        q_mean, q_log_var = model.encode(both)
        log_q = Normal(q_mean[:, 0], torch.exp(0.5 * q_log_var[:, 0])).log_prob(z[:, 0])
        log_h = torch.tensor([0.75, 0.25]).double().log() + log_q - tau.log()  # (S, 2)
        own = log_h[range(s), [int(flips[i // samples]) for i in range(s)]]
        logits = model.decode(z)[:, 0]  # type: ignore[index]
        log_p = -F.binary_cross_entropy_with_logits(
            logits, x.expand_as(logits), reduction="none"
        ).sum(-1)
        log_prior = Normal(0.0, 1.0).log_prob(z[:, 0, 0])
        for hits in itertools.product((0, 1), repeat=s * count):
            drawn = torch.tensor(hits, dtype=torch.float64).view(s, 1, count, 1)
            drawn = torch.cat((drawn, torch.zeros(s, 1, count, 2).double()), -1)
            which = torch.tensor(hits).view(s, count)
            p = p_own * tau.gather(1, which).prod()
            each = torch.cat((own.unsqueeze(1), log_h.gather(1, which)), 1)
            log_ratio = log_prior - torch.logsumexp(each, 1) + math.log(count + 1)
            log_w = (log_p + weight * log_ratio).view(copies, samples, 1).transpose(1, 2)
            plain = Objective("iwae_joint" if objective == "iwhvi" else "elbo")
            expected = expected - p * plain_bound(plain, log_w).sum()
            monkeypatch.setattr(reverse, "draw_bernoulli", lambda *a, drawn=drawn, **b: drawn)
            grads = torch.autograd.grad(model.loss(x, key), parameters)
            found = [f + p.detach() * g for f, g in zip(found, grads, strict=True)]
    exact = torch.autograd.grad(expected, parameters)
    torch.testing.assert_close(found, list(exact), rtol=1e-9, atol=1e-11)
    assert weight == 0 or float(exact[-1].abs().max()) > 1e-6


def test_a_dominating_draw_leaves_a_signal_that_is_a_number() -> None:
    """Of weights e^±400 apart, in float32: gradients of τ that neither overflow nor vanish."""
    s, count = 4, 3
    log_weight = torch.zeros(s, 2, 1 + count)
    log_weight[0, 0, 2], log_weight[1, 1, 1], log_weight[2] = 400.0, -400.0, -3.0
    log_weight.requires_grad_()
    mean = torch.zeros(s, 2, count, 1)
    drawn = objectives.Reversed(mean, mean, log_weight, scored=True)
    log_ratio = hierarchical_log_ratio(
        torch.zeros(s, 2, 1), torch.zeros(s, 2), drawn, lambda *parameters: parameters, True
    )
    bound = torch.logsumexp(log_ratio, 0).sum()
    (grad,) = torch.autograd.grad(bound, log_weight)
    assert bool(grad.isfinite().all())


# --- other than the plainest ----------------------------------------------------------------------


@pytest.mark.parametrize("objective", ["sivi", "sivi_elbo", "iwhvi", "iwhvi_elbo"])
@pytest.mark.parametrize(
    "corruption", [corruptions.SaltAndPepper(0.3), corruptions.AdditiveGaussian(0.3)]
)
def test_of_what_was_not_observed_nothing_counts(objective: str, corruption: Corruption) -> None:
    """The bound, and its gradient, of a model whose networks see 0 there: whatever x has."""
    torch.manual_seed(0)
    model = DIWAE(
        D, Z, (7,), copies=M, samples=K, outer_samples=J, objective=objective,
        corruption=corruption, context_size=2,
    ).double()  # fmt: skip
    for p in model.parameters():
        p.data.add_(0.1 * torch.randn_like(p))
    x = torch.rand(B, D, dtype=torch.float64).round()
    mask = torch.rand(B, D) > 0.4
    told = {"context": torch.tensor([0, 1, 1, 0, 1]), "mask": mask}
    other = torch.where(mask, x, 1 - x)
    results = []
    for given in (x, other):
        loss = model.loss(given, SEED, **told)
        results.append([loss, *torch.autograd.grad(loss, list(model.parameters()))])
    torch.testing.assert_close(*results)
    torch.testing.assert_close(model.bound(x, SEED, **told).mean(), -results[0][0])
    # And in parts, of the same numbers.
    parts = [
        model.bound(
            x[i:e], SEED, first_example=i, mask=mask[i:e], context=told["context"][i:e]
        )
        for i, e in ((0, 2), (2, B))
    ]  # fmt: skip
    torch.testing.assert_close(torch.cat(parts), model.bound(x, SEED, **told))


def test_a_learnt_deviation_has_the_derivative_of_the_bound() -> None:
    """Its noise is what is reversed, so that the level is in the encoder's inputs alone."""
    torch.manual_seed(0)
    learnt = corruptions.Learnable(corruptions.AdditiveGaussian(0.4))
    model = DVAE(
        D, Z, (7,), copies=M, samples=K, outer_samples=J, objective="iwhvi", corruption=learnt
    ).double()  # fmt: skip
    for p in model.parameters():
        p.data.add_(0.1 * torch.randn_like(p))
    x = torch.rand(B, D, dtype=torch.float64).round()
    level, slope, small = learnt.unconstrained, [], 1e-5
    (found,) = torch.autograd.grad(model.loss(x, SEED), level)
    with torch.no_grad():
        for step in (small, -2 * small):
            level.add_(step)
            slope.append(float(model.loss(x, SEED)))
    torch.testing.assert_close(float(found), (slope[0] - slope[1]) / (2 * small), rtol=1e-6, atol=0)


def test_gaussian_noise_by_pixel_where_some_have_none() -> None:
    std = torch.tensor([0.5, 0.0, 0.2, 0.0, 1.0, 0.3])
    model = DVAE(
        D, Z, (7,), outer_samples=J, objective="iwhvi", corruption=corruptions.AdditiveGaussian(std)
    )
    loss = model.loss(torch.rand(B, D), SEED)
    loss.backward()
    assert bool(loss.isfinite())
    assert all(bool(p.grad.isfinite().all()) for p in model.parameters() if p.grad is not None)


@pytest.mark.parametrize("weight", [0.0, 0.4])
def test_a_weight_may_be_a_tensor(weight: float) -> None:
    model = _hit_model(HITS["salt and pepper"], "iwhvi", copies=M, samples=K, outer_samples=J)
    results = []
    for model.kl_weight in (weight, torch.tensor(weight, dtype=torch.float64)):
        loss = model.loss(GREY, SEED)
        results.append(torch.autograd.grad(loss, list(model.parameters())))
    torch.testing.assert_close(*results)


@pytest.mark.parametrize("own", [False, True])
def test_the_proposal_is_saved_with_the_model(own: bool, tmp_path: Path) -> None:
    """And evaluated without it; one of one's own is given again."""
    torch.manual_seed(0)
    network = reverse.ReverseNetwork(Z, D, (3,), 2 * D, "tanh")
    given: dict[str, Any] = {"reverse": network} if own else {"reverse_hidden_sizes": (3, 4)}
    model = TwoLayerModel(
        D, Z, (7,), upper_latent_size=3, upper_hidden_sizes=(4,), objective="iwhvi_elbo",
        outer_samples=3, corruption=corruptions.SaltAndPepper(0.2), **given,
    )  # fmt: skip
    x = torch.rand(B, D).round()
    model.loss(x, SEED).backward()
    assert all(p.grad is not None for p in model.parameters())
    path, again = tmp_path / "model.safetensors", {}
    if own:
        again = {"reverse": reverse.ReverseNetwork(Z, D, (3,), 2 * D, "tanh")}
        with pytest.warns(UserWarning, match="reverse .* cannot be built again by name"):
            save_model(path, model)
    else:
        save_model(path, model)
    found = load_model(path, **again)
    assert found.config() == model.config()
    assert torch.equal(found.bound(x, SEED), model.bound(x, SEED))
    assert bool(estimate_log_likelihood(found, x, 10, seed=1).log_likelihood.isfinite().all())


@pytest.mark.parametrize("name", [n for n, row in OBJECTIVES.items() if row.mixture])
def test_the_pass_that_fuses_all_layers_leaves_mixtures_alone(name: str) -> None:
    model = DVAE(D, Z, (7,), objective=name, outer_samples=J)
    assert one_pass(model, torch.rand(B, D).round(), torch.tensor([SEED]), 0) is None


def test_under_autocast() -> None:
    model = _hit_model(HITS["salt and pepper"], "iwhvi", samples=K, outer_samples=J).float()
    x = GREY.float()
    exact = model.loss(x, SEED)
    with torch.autocast("cpu", torch.bfloat16):
        loss = model.loss(x, SEED)
    loss.backward()
    torch.testing.assert_close(loss, exact, rtol=0.05, atol=0.05)
    assert all(bool(p.grad.isfinite().all()) for p in model.parameters() if p.grad is not None)


def test_what_does_not_fit_is_named() -> None:
    def made(**options: Any) -> DIWAE:
        return DIWAE(D, Z, (7,), **{"objective": "iwhvi", **options})

    two = corruptions.Compose(corruptions.Masking(0.1), corruptions.BitFlip(0.1))
    relaxed = corruptions.Learnable(corruptions.BitFlip(0.2), "relaxed")
    for corruption in (two, relaxed, torch.sin, lambda x: x):
        with pytest.raises(
            ValueError, match=r"corruption must be a Masking, SaltAndPepper, .* got"
        ):
            made(corruption=corruption)
    with pytest.raises(ValueError, match=r"outer_samples must be >= 0, got -1"):
        made(outer_samples=-1)
    with pytest.raises(ValueError, match="reverse must be left out for an objective without"):
        made(objective="sivi", reverse=nn.Identity())
    with pytest.raises(TypeError, match="reverse must be a name or a module, got function"):
        made(reverse=lambda z, x: z)
    with pytest.raises(ValueError, match="reverse must be one of mlp; got 'gru'"):
        made(reverse="gru")
    with pytest.raises(ValueError, match=r"objective must be elbo or iwae .* a full covariance"):
        made(covariance="full")
    learnt = corruptions.Learnable(corruptions.BitFlip(0.2), "score")
    with pytest.raises(ValueError, match="objective must be a mean over corruptions"):
        made(corruption=learnt, copies=2)

    class Short(nn.Module):
        def forward(self, z: Tensor, x: Tensor) -> Tensor:
            return x

    x = torch.rand(B, D)
    with pytest.raises(ValueError, match=r"reverse must give 2 · D = 12 numbers for SaltAnd.*6"):
        made(reverse=Short()).loss(x)
    late = DIWAE(D, Z, (7,))
    late.objective = Objective("iwhvi")
    with pytest.raises(ValueError, match="objective iwhvi must be the model's from its constr"):
        late.loss(x)


def test_what_objectives_do_not_take_is_named() -> None:
    mean, other = torch.zeros(M, B, Z), torch.zeros(J, B, Z)

    def sampled(objective: str, outer: Any) -> None:
        objectives.sample_latents(mean, mean, K, objective, SEED, outer=outer)

    with pytest.raises(ValueError, match="outer must be None for mixture, which has no further"):
        sampled("mixture", (other, other))
    with pytest.raises(
        TypeError, match=r"outer must be a pair of tensors, .* for sivi, got Tensor"
    ):
        sampled("sivi", other)
    with pytest.raises(TypeError, match="outer must be a function of the samples for iwhvi_elbo"):
        sampled("iwhvi_elbo", (other, other))
    with pytest.raises(ValueError, match=r"outer must have shape .*\(4, 5, 2\).*, got \(4, 6, 2\)"):
        sampled("sivi", (torch.zeros(J, B + 1, Z),) * 2)
    with pytest.raises(TypeError, match="outer must return a Reversed, got Tensor"):
        sampled("iwhvi", lambda z: z)
    drawn = torch.zeros(M * K, B, J, Z)
    with pytest.raises(ValueError, match="outer's log_weight must have shape"):
        sampled("iwhvi", lambda z: objectives.Reversed(drawn, drawn, drawn[..., 0]))
    # Without any, q(z|x̃) itself is below.
    for name in ("sivi", "iwhvi"):
        found = objectives.sample_latents(mean, mean, K, name, SEED)
        torch.testing.assert_close(
            found.log_ratio, objectives.sample_latents(mean, mean, K, "iwae_joint", SEED).log_ratio
        )
