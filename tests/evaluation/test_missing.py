"""Missing values: a linear-Gaussian model has log p of any dimensions, and the others given them,
exactly; and masks mean the same in every model."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from linear_gaussian import D, LinearDecoder, draw_data, linear_gaussian
from torch import Tensor

import dvae_fast
from dvae_fast.corruptions import AdditiveGaussian, BitFlip, Learnable, Masking
from dvae_fast.evaluation import (
    PROPOSALS,
    LikelihoodEstimate,
    annealed_importance_sampling,
    estimate_log_likelihood,
    impute,
)
from dvae_fast.models import MODELS, LatentVariableModel, make_model

N, SEED = 40, 3


def masked(model: LatentVariableModel, n: int = N) -> tuple[Tensor, Tensor]:
    """x with NaN where the mask says that nothing is known; of two examples all, and nothing."""
    x = draw_data(model, n)
    mask = torch.rand(n, D, generator=torch.Generator().manual_seed(4)) < 0.6
    mask[0], mask[1] = True, False
    return x.masked_fill(~mask, math.nan), mask


def joint(model: LatentVariableModel) -> tuple[Tensor, Tensor]:
    """Mean (D,) and covariance (D, D) of x."""
    decoder = model.decoder
    assert isinstance(decoder, LinearDecoder)
    w = decoder.weight.detach()
    return decoder.bias.detach(), w @ w.T + decoder.noise**2 * torch.eye(D, dtype=w.dtype)


def exact(model: LatentVariableModel, x: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """log p of what was observed, (N,), and E[x | observed], (N, D)."""
    mean, covariance = joint(model)
    log_p, means = torch.zeros(len(x), dtype=x.dtype), mean.repeat(len(x), 1)
    for i, seen in enumerate(mask):
        if seen.any():
            part = covariance[seen][:, seen]
            residual = x[i, seen] - mean[seen]
            marginal = torch.distributions.MultivariateNormal(mean[seen], part)
            log_p[i] = marginal.log_prob(x[i, seen])
            means[i] += covariance[:, seen] @ torch.linalg.solve(part, residual)
        means[i, seen] = x[i, seen]
    return log_p, means


@pytest.mark.parametrize("proposal", PROPOSALS)
def test_log_p_and_means_of_a_linear_gaussian_model(proposal: str) -> None:
    """Each log p within 5 of its errors, and each mean: some 200 numbers, a false alarm in 10⁴,
    were the noise drawn anew. An encoder made for whole examples, but wide enough for others."""
    model = linear_gaussian("dvae", widen=6.0, noise=1.0, corruption=AdditiveGaussian(0.2))
    x, mask = masked(model)
    log_p, means = exact(model, x, mask)
    options: dict[str, Any] = {"proposal": proposal, "copies": 3, "seed": SEED, "mask": mask}
    estimate = estimate_log_likelihood(model, x, 2000, **options)
    bias = 0.5 * estimate.standard_error.square()
    good = estimate.pareto_k < 0.6  # of others the error is none
    assert float(good.double().mean()) > 0.7
    assert bool(good[0])
    error = estimate.log_likelihood + bias - log_p
    assert float((error / (estimate.standard_error + 1e-9))[good].abs().max()) < 5
    found = impute(model, x, k=2000, **options)
    assert found.value.shape == x.shape
    assert torch.equal(found.value[mask], x[mask])
    assert not found.standard_error[mask].any()
    deviation = ((found.value - means) / found.standard_error)[good][~mask[good]]
    assert float(deviation.abs().max()) < 5
    assert float(found.standard_error[~mask].min()) > 0


def test_annealing_and_parts() -> None:
    model = linear_gaussian("vae", widen=2.0)
    x, mask = masked(model)
    log_p, _ = exact(model, x, mask)
    annealed = annealed_importance_sampling(
        model, x, mask=mask, chains=30, temperatures=30, leapfrog=3, seed=SEED
    )
    error = (annealed.log_likelihood - log_p) / (annealed.standard_error + 1e-3)
    assert float(error.abs().max()) < 6
    whole = estimate_log_likelihood(model, x, 50, mask=mask, seed=SEED)
    parts = [
        estimate_log_likelihood(
            model, x[at], 50, mask=mask[at], seed=SEED, first_example=at.start, batch_size=3
        )
        for at in (slice(0, 7), slice(7, 9), slice(9, N))
    ]
    joined = LikelihoodEstimate.concat(parts)
    torch.testing.assert_close(joined.log_likelihood, whole.log_likelihood, rtol=1e-9, atol=1e-9)
    observed = int(mask.sum())
    assert whole.data_size == pytest.approx(observed / N) == joined.data_size
    bits = -float(whole.log_likelihood.sum()) / observed / math.log(2)
    assert whole.bits_per_dimension == pytest.approx(bits)
    nothing = estimate_log_likelihood(model, x[:2], 9, mask=torch.zeros_like(mask[:2]), seed=SEED)
    assert nothing.summary()["bits_per_dimension"] is None
    arrays = estimate_log_likelihood(model, x.numpy(), 50, mask=mask.numpy(), seed=SEED)
    assert torch.equal(arrays.log_likelihood, whole.log_likelihood)


def binary(n: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(seed)
    return (torch.rand(n, 9, generator=g) < 0.4).float(), torch.rand(n, 9, generator=g) < 0.5


each_model = pytest.mark.parametrize("name", MODELS)


def made(name: str, **options: Any) -> Any:
    torch.manual_seed(0)
    return make_model(name, 9, 2, (5,), **options)


@each_model
def test_a_mask_of_ones_is_none(name: str) -> None:
    """The same bits, in the loss, its gradients and the estimate."""
    model, (x, _) = made(name), binary(7)
    ones = torch.ones(7, 9, dtype=torch.bool)
    plain, given = (model.loss(x, SEED, mask=mask) for mask in (None, ones))
    assert torch.equal(plain, given)
    parameters = [p for p in model.parameters() if p.requires_grad]
    for a, b in zip(
        torch.autograd.grad(plain, parameters, allow_unused=True),
        torch.autograd.grad(given, parameters, allow_unused=True),
        strict=True,
    ):
        assert (a is None) == (b is None)
        assert a is None or torch.equal(a, b)
    assert torch.equal(model.bound(x, SEED), model.bound(x, SEED, mask=ones))
    one, other = (estimate_log_likelihood(model, x, 40, mask=m, seed=1) for m in (None, ones))
    assert torch.equal(one.log_likelihood, other.log_likelihood)
    assert one.data_size == other.data_size == 9


@each_model
def test_what_was_not_observed_is_not_looked_at(name: str) -> None:
    model, (x, mask) = made(name), binary(7)
    other = x.masked_fill(~mask, math.nan)
    loss = model.loss(other, SEED, mask=mask)
    assert bool(loss.isfinite())
    assert torch.equal(loss, model.loss(x, SEED, mask=mask))
    assert torch.equal(loss, model(other, SEED, mask=mask))
    bound = model.bound(other, SEED, mask=mask)
    assert float(bound.mean()) == pytest.approx(-float(loss.detach()), rel=1e-5)
    reconstructed = model.reconstruct(other, SEED, mask=mask, corrupt=True)
    assert bool(reconstructed.isfinite().all())
    first, second = (estimate_log_likelihood(model, t, 40, mask=mask, seed=1) for t in (x, other))
    assert torch.equal(first.log_likelihood, second.log_likelihood)
    found = model.impute(other, mask, k=200, seed=1)
    assert torch.equal(found.value, dvae_fast.impute(model, x, mask, 200, seed=1).value)
    assert bool(((found.value >= 0) & (found.value <= 1)).all())


def test_a_corruption_leaves_what_is_missing_at_zero() -> None:
    """As a network that keeps what it is given sees."""
    model = made("dvae", corruption=Masking(0.3), copies=3)
    seen: list[Tensor] = []
    model.encoder.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    x, mask = binary(7)
    model.corruption = AdditiveGaussian(0.5)
    model.loss(x, SEED, mask=mask)
    (noisy,) = seen
    assert noisy.shape == (3, 7, 9)
    assert not noisy[:, ~mask].any()
    assert bool((noisy[:, mask] != x[mask]).all())


def test_images_of_any_shape() -> None:
    torch.manual_seed(0)
    model = make_model("diwae", (1, 3, 3), 2, (5,))
    x, mask = binary(7)
    flat = estimate_log_likelihood(model, x, 30, mask=mask, seed=1)
    images, masks = x.view(7, 1, 3, 3), mask.view(7, 1, 3, 3)
    shaped = estimate_log_likelihood(model, images, 30, mask=masks, seed=1)
    assert torch.equal(flat.log_likelihood, shaped.log_likelihood)
    assert torch.equal(model.loss(x, 1, mask=mask), model.loss(images, 1, mask=masks))
    assert model.impute(images, masks, k=50, seed=1).value.shape == images.shape


def test_a_pair_of_functions() -> None:
    """What they are given is x with zeros."""
    x, mask = binary(5)
    given: list[Tensor] = []

    def encode(t: Tensor) -> tuple[Tensor, Tensor]:
        given.append(t)
        return t[:, :2], torch.zeros(len(t), 2)

    estimate = estimate_log_likelihood(
        (encode, lambda z: z.repeat(1, 5)[:, :9]),
        x.masked_fill(~mask, math.nan),
        30,
        mask=mask,
        seed=1,
    )
    assert bool(estimate.log_likelihood.isfinite().all())
    assert all(torch.equal(t, x.masked_fill(~mask, 0)[: len(t)]) for t in given[:1])


def test_partial_results_know_the_mask(tmp_path: Any) -> None:
    model, (x, mask) = made("vae"), binary(7)
    options: dict[str, Any] = {"seed": 1, "partial": tmp_path / "partial.npz"}
    estimate_log_likelihood(model, x, 20, mask=mask, **options)
    with pytest.raises(ValueError, match="data"):
        estimate_log_likelihood(model, x, 20, mask=~mask, **options)


@pytest.mark.parametrize(
    ("mask", "error", "message"),
    [
        (torch.ones(7, 8, dtype=torch.bool), ValueError, r"x's shape, \(7, 9\), got \(7, 8\)"),
        (torch.ones(9, dtype=torch.bool), ValueError, r"x's shape, \(7, 9\), got \(9,\)"),
        (
            torch.ones(7, 9),
            TypeError,
            r"mask must be bool, .*got torch\.float32",
        ),
        ("all", TypeError, "mask must be a .*[Tt]ensor, got str"),
    ],
)
def test_wrong_masks(mask: Any, error: type[Exception], message: str) -> None:
    model, (x, _) = made("dvae"), binary(7)
    for call in (
        lambda: model.loss(x, mask=mask),
        lambda: model.bound(x, mask=mask),
        lambda: model.reconstruct(x, mask=mask),
        lambda: estimate_log_likelihood(model, x, 5, mask=mask),
        lambda: impute(model, x, mask, 5),
    ):
        with pytest.raises(error, match=message):
            call()
    with pytest.raises(TypeError, match="mask must be a bool tensor in x's shape, got None"):
        model.impute(x, None)
    with pytest.raises(TypeError, match=r"impute\(\) got an unexpected keyword argument 'kk'"):
        model.impute(x, mask, kk=3)


def test_support_of_what_was_observed() -> None:
    model, (x, mask) = made("vae"), binary(7)
    mask[2, 3], mask[2, 4] = True, False
    x[~mask] = 2.0
    estimate_log_likelihood(model, x, 5, mask=mask)
    x[2, 3] = 2.0
    with pytest.raises(ValueError, match=r"x must lie in \[0, 1\].*got values from 0 to 2"):
        estimate_log_likelihood(model, x, 5, mask=mask)


def test_a_rate_learnt_by_the_score_function() -> None:
    model = made("dvae", corruption=Learnable(BitFlip(0.2)), copies=3)
    x, mask = binary(7)
    with pytest.raises(ValueError, match="mask must be None where a rate is learnt by the score"):
        model.loss(x, SEED, mask=mask)


def test_imputing_digits_beats_their_mean() -> None:
    """Half of the pixels of scikit-learn's digits, after a few seconds' training: the mean image
    and reconstructions of what was observed are further from the truth."""
    datasets = pytest.importorskip("sklearn.datasets")
    images = torch.from_numpy(datasets.load_digits().data / 16).float().round()
    train, test = images[:1500], images[1500:1560]
    torch.manual_seed(0)
    model = make_model("iwae", 64, 8, (50,), samples=3, data_mean=train.mean(0))
    optimiser = torch.optim.Adam(model.parameters(), 5e-3)
    g = torch.Generator().manual_seed(0)
    for step in range(250):
        batch = train[torch.randint(1500, (100,), generator=g)]
        seen = torch.rand(batch.shape, generator=g) < 0.5
        optimiser.zero_grad()
        model.loss(batch, step, mask=seen).backward()
        optimiser.step()
    mask = torch.rand(test.shape, generator=g) < 0.5
    found = model.impute(test.masked_fill(~mask, math.nan), mask, k=300, seed=1).value
    mean, log_var = model.encode(test.masked_fill(~mask, 0))
    z, _ = dvae_fast.sample_latent(mean, log_var, 1, seed=2)
    rivals = (
        train.mean(0).expand_as(test),
        model.reconstruct(test, mask=mask),
        model.likelihood.mean(model.decode(z[:, 0])).detach(),
    )
    errors = [float((t - test)[~mask].square().mean()) for t in (found, *rivals)]
    assert errors[0] < 0.95 * min(errors[1:]), np.round(errors, 4)
