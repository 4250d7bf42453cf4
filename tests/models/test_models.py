"""The four models against plain float64 PyTorch built from the same noise, and exact answers."""

from __future__ import annotations

import copy
import json
import math
from itertools import pairwise
from typing import Any, cast

import pytest
import torch
from linear_gaussian import LinearDecoder, draw_data, exact_log_likelihood, linear_gaussian
from model_checks import assert_compiles, rise
from refusals import assert_refused, refusals
from torch import Tensor, nn
from torch.distributions import Bernoulli, Normal
from torch.utils._python_dispatch import TorchDispatchMode

from dvae_fast import corruptions, models, reference
from dvae_fast._seeds import derived_key
from dvae_fast.evaluation import estimate_log_likelihood
from dvae_fast.models import (
    DIWAE,
    DVAE,
    IWAE,
    MODELS,
    VAE,
    Decoder,
    LatentVariableModel,
    make_model,
)
from dvae_fast.noise import latent_noise
from dvae_fast.objectives import Objective, as_objective

M, B, K, Z, D = 3, 5, 7, 2, 11
HIDDEN = (8, 6)
SEED = 123

CORRUPTIONS: dict[str, corruptions.Corruption] = {
    "salt": corruptions.SaltAndPepper(0.4, 0.3),
    "masking": corruptions.Masking(torch.linspace(0.1, 0.9, D)),
    "gaussian": corruptions.AdditiveGaussian(0.5),
}

FOUR = ("vae", "iwae", "dvae", "diwae")


def _model(name: str, **options: Any) -> LatentVariableModel:
    options = {"samples": K, "data_mean": torch.linspace(0.2, 0.8, D), **options}
    if MODELS[name].denoising:
        options = {"copies": M, "corruption": CORRUPTIONS["salt"], **options}
    return make_model(name, D, Z, HIDDEN, **options).double()


def _data(b: int = B) -> Tensor:
    return torch.rand(b, D, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def _plain_bound(model: LatentVariableModel, x: Tensor, seed: int) -> Tensor:
    """(M, B): the bound as the papers write it, term by term, over the noise of the seed."""
    key = torch.tensor([seed])
    b, m, k = x.shape[0], model.copies, model.samples
    if model.corruption is None:
        noisy = x.expand(m, b, D)
    else:
        c = model.corruption
        noisy = reference.corrupt(x, c.kind, c.parameter.double(), c.salt, key, m, 0, 0)
    mean, log_var = model.encoder(noisy)
    if model.name in ("iwae", "diwae"):
        noise = latent_noise(m, b, k, Z, key, 0, 0, torch.float64)
    else:
        noise = latent_noise(m * k, b, 1, Z, key, 0, 0, torch.float64)
        noise = noise.view(m, k, b, Z).transpose(1, 2)
    q = Normal(mean.unsqueeze(2), torch.exp(0.5 * log_var).unsqueeze(2))
    z = q.loc + q.scale * noise
    params = model.decoder(z)
    if model.likelihood.kind == "gaussian":
        density = Normal(*params).log_prob(x.view(1, b, 1, D)).sum(-1)
    else:
        density = Bernoulli(logits=params, validate_args=False).log_prob(x.view(1, b, 1, D)).sum(-1)
    log_w = density + Normal(0.0, 1.0).log_prob(z).sum(-1) - q.log_prob(z).sum(-1)
    assert log_w.shape == (m, b, k)
    if model.name in ("iwae", "diwae"):
        return torch.logsumexp(log_w, 2) - math.log(k)
    return log_w.mean(2)


# --- the loss ---------------------------------------------------------------------------------


@pytest.mark.parametrize("likelihood", ["bernoulli", "gaussian"])
@pytest.mark.parametrize(("m", "k"), [(M, K), (1, K), (M, 1), (1, 1)])
@pytest.mark.parametrize("name", FOUR)
def test_loss_and_gradients_are_the_plain_formula(
    name: str, m: int, k: int, likelihood: str
) -> None:
    options = {"copies": m} if MODELS[name].denoising else {}
    model = _model(name, samples=k, likelihood=likelihood, **options)
    x = _data()
    parameters = list(model.parameters())
    loss = model.loss(x, SEED)
    plain = _plain_bound(model, x, SEED)
    torch.testing.assert_close(loss, -plain.mean(), rtol=1e-10, atol=1e-10)
    grads, expected = (
        torch.autograd.grad(value, parameters, allow_unused=True) for value in (loss, -plain.mean())
    )
    torch.testing.assert_close(grads, expected, rtol=1e-8, atol=1e-10)
    bound = model.bound(x, SEED)
    torch.testing.assert_close(bound, plain.mean(0).detach(), rtol=1e-10, atol=1e-10)
    assert not bound.requires_grad


@pytest.mark.parametrize("kind", CORRUPTIONS)
@pytest.mark.parametrize("name", ["dvae", "diwae"])
def test_loss_under_every_corruption(name: str, kind: str) -> None:
    model = _model(name, corruption=CORRUPTIONS[kind])
    x = _data()
    expected = -_plain_bound(model, x, SEED).mean()
    torch.testing.assert_close(model.loss(x, SEED), expected, rtol=1e-6, atol=1e-6)


def test_m_and_k_are_not_one_another() -> None:
    x = _data()
    model = _model("diwae")
    swapped = _model("diwae", copies=K, samples=M)
    swapped.load_state_dict(model.state_dict())
    assert abs(float(model.bound(x, SEED).mean() - swapped.bound(x, SEED).mean())) > 1e-3


def test_k_inside_the_logarithm_is_the_tighter_bound() -> None:
    """On average over noise; here by far more than its spread."""
    x = _data()
    outside, inside = _model("dvae", copies=20, samples=50), _model("diwae", copies=20, samples=50)
    inside.load_state_dict(outside.state_dict())
    assert float(inside.bound(x, 1).mean() - outside.bound(x, 1).mean()) > 0.05


def test_without_corruption_they_are_vae_and_iwae() -> None:
    x = _data()
    for denoising, clean in (("dvae", "vae"), ("diwae", "iwae")):
        a = _model(denoising, copies=1, corruption=corruptions.Identity())
        b = _model(clean)
        b.load_state_dict(a.state_dict())
        assert torch.equal(a.loss(x, SEED), b.loss(x, SEED))


@pytest.mark.parametrize("name", FOUR)
def test_x_is_only_read_and_stays_the_target(name: str) -> None:
    model, x = _model(name), _data()
    before = x.clone()
    model.loss(x, SEED).backward()
    model.bound(x, SEED)
    model.reconstruct(x, SEED, corrupt=True)
    assert torch.equal(x, before)
    if MODELS[name].denoising:
        # All corrupted away: the target still is x.
        model.corruption = corruptions.Masking(1.0)
        a, b = model.bound(x, SEED), model.bound(1 - x, SEED)
        assert bool((a - b).abs().min() > 1e-3)


@pytest.mark.parametrize("name", FOUR)
def test_encodes_once(name: str) -> None:
    model, x = _model(name), _data()
    seen: list[tuple[int, ...]] = []
    model.encoder.register_forward_hook(lambda module, args, out: seen.append(args[0].shape))
    model.loss(x, SEED)
    model.bound(x, SEED)
    expected = (M, B, D) if MODELS[name].denoising else (B, D)
    assert seen == [expected, expected]


class _LargeStorages(TorchDispatchMode):
    """The storages of at least `size` elements that operators return."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.size = size
        self.kept: list[Tensor] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for t in out if isinstance(out, (tuple, list)) else [out]:
            if isinstance(t, Tensor) and t.numel() >= self.size:
                self.kept.append(t)
        return out


@pytest.mark.parametrize("name", FOUR)
def test_a_step_holds_one_tensor_of_decoder_outputs(name: str) -> None:
    """Logits and their gradient share one (M, B, K, D); the bound and log-weights have none."""
    model, x = _model(name), _data()
    m = model.copies
    with _LargeStorages(m * B * K * D) as large:
        model.loss(x, SEED).backward()
    assert len({t.untyped_storage().data_ptr() for t in large.kept}) == 1
    with _LargeStorages(m * B * K * D) as large:
        model.bound(x, SEED)
        model.log_weights(x, *model.encode(x), m * K, SEED)
    assert not large.kept


@pytest.mark.parametrize("likelihood", ["bernoulli", "gaussian"])
@pytest.mark.parametrize("name", FOUR)
def test_nan_stays_with_its_example(name: str, likelihood: str) -> None:
    model, x = _model(name, likelihood=likelihood), _data()
    clean = model.bound(x, SEED)
    x[2, 4] = math.nan
    bound = model.bound(x, SEED)
    assert bool(bound[2].isnan())
    rest = [0, 1, 3, 4]
    torch.testing.assert_close(bound[rest], clean[rest])
    with pytest.warns(RuntimeWarning, match="1 of the .* values of x are NaN"):
        assert bool(model.loss(x, SEED).isnan())


@pytest.mark.parametrize("name", FOUR)
def test_seeds(name: str) -> None:
    model, x = _model(name), _data()
    one = model.loss(x, SEED)
    assert torch.equal(model.loss(x, SEED), one)
    assert torch.equal(model.loss(x, torch.tensor([SEED])), one)
    assert torch.equal(model(x, SEED), one)
    assert not torch.equal(model.loss(x, SEED + 1), one)
    torch.manual_seed(4)
    drawn = [model.loss(x), model.loss(x)]
    assert not torch.equal(*drawn)
    torch.manual_seed(4)
    assert torch.equal(model.loss(x), drawn[0])


@pytest.mark.parametrize("kind", CORRUPTIONS)
@pytest.mark.parametrize("name", FOUR)
def test_parts_of_a_batch_have_the_numbers_of_the_batch(name: str, kind: str) -> None:
    options = {"corruption": CORRUPTIONS[kind]} if MODELS[name].denoising else {}
    model, x = _model(name, **options), _data()
    parts = [(0, 2), (2, 3), (3, B)]
    bounds = [model.bound(x[a:b], SEED, first_example=a) for a, b in parts]
    torch.testing.assert_close(torch.cat(bounds), model.bound(x, SEED), rtol=1e-12, atol=1e-12)
    losses = [(b - a) / B * model(x[a:b], SEED, first_example=a) for a, b in parts]
    torch.testing.assert_close(sum(losses), model.loss(x, SEED), rtol=1e-12, atol=1e-12)
    for wrong in (-1, 2**32 - B + 1):
        with pytest.raises(ValueError, match=f"first_example must be .* got {wrong}"):
            model.loss(x, SEED, first_example=wrong)


def test_a_gaussian_deviation_can_be_learnt() -> None:
    std = torch.full((D,), 0.5, dtype=torch.float64, requires_grad=True)
    model = _model("dvae", corruption=corruptions.AdditiveGaussian(std))
    x = _data()
    (grad,) = torch.autograd.grad(model.loss(x, SEED), std)
    with torch.no_grad():
        step = torch.zeros(D, dtype=torch.float64)
        step[3] = 1e-5
        shifted = []
        for sign in (1, -1):
            model.corruption = corruptions.AdditiveGaussian(std.detach() + sign * step)
            shifted.append(model.loss(x, SEED))
    torch.testing.assert_close(grad[3], (shifted[0] - shifted[1]) / 2e-5, rtol=1e-5, atol=1e-8)


def test_training_lowers_the_loss() -> None:
    model = make_model("diwae", D, Z, HIDDEN, copies=2, samples=3)
    x = (_data(64) > 0.5).float() * torch.tensor([1.0, 0.0] * 5 + [1.0])
    assert rise(model, x, 60, 1e-2) > 0.5


def test_autocast() -> None:
    """bfloat16 matrix products, float32 sums."""
    model = _model("diwae").float()
    x = _data().float()
    exact = model.loss(x, SEED)
    with torch.autocast("cpu", torch.bfloat16):
        loss = model.loss(x, SEED)
        bound = model.bound(x, SEED)
    assert loss.dtype == bound.dtype == torch.float32
    torch.testing.assert_close(loss, exact, rtol=0.02, atol=0)
    torch.testing.assert_close(-bound.mean(), exact.detach(), rtol=0.02, atol=0)
    loss.backward()
    assert all(p.grad is not None and bool(p.grad.isfinite().all()) for p in model.parameters())


# torch.compile's own doing, on meeting an autograd.Function and on loading its backend.
@pytest.mark.filterwarnings("ignore:.*should not be instantiated. Methods on:DeprecationWarning")
@pytest.mark.filterwarnings("ignore:`torch.jit.*is deprecated:DeprecationWarning")
@pytest.mark.parametrize("name", [pytest.param("dvae", marks=pytest.mark.slow), "diwae"])
def test_compiles_without_a_graph_break(name: str) -> None:
    model, x, seed = _model(name), _data(), torch.tensor([SEED])
    assert_compiles(model, x, seed)


# --- exact answers ----------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["vae", "iwae"])
def test_with_the_exact_posterior_every_bound_is_the_likelihood(name: str) -> None:
    """q(z|x) = p(z|x) makes every weight p(x): no noise is left."""
    model = linear_gaussian(name, orthogonal=True, samples=K)
    x = draw_data(model, B)
    torch.testing.assert_close(model.bound(x), exact_log_likelihood(model, x))
    torch.testing.assert_close(model.loss(x), -exact_log_likelihood(model, x).mean())


def test_iwae_bound_rises_to_the_likelihood() -> None:
    """The mean over 4,000 examples; each rise is at least 5 of its standard errors, which a bound
    that stays would pass once in 3 million."""
    model = linear_gaussian("iwae", widen=4.0)
    n = 4000
    x = draw_data(model, n)
    exact = exact_log_likelihood(model, x)
    gaps = []
    for k in (1, 4, 16, 64):
        model.samples = k
        gaps.append(exact - model.bound(x, SEED))
    for coarse, fine in pairwise(gaps):
        fall = coarse - fine
        assert float(fall.mean()) > 5 * float(fall.std()) / math.sqrt(n) > 0
    assert 0 < float(gaps[-1].mean()) < 0.05 * float(gaps[0].mean())


def test_elbo_falls_short_by_the_divergence() -> None:
    """log p(x) − ELBO = KL(q || p(z|x)), here of a variance twice too large in each of Z = 2.

    Tolerance: 5 standard errors, a false alarm in 2 million.
    """
    model = linear_gaussian("vae", orthogonal=True, widen=2.0, samples=2000)
    x = draw_data(model, 20)
    expected = 2 * 0.5 * (2.0 - 1.0 - math.log(2.0))
    gap = exact_log_likelihood(model, x) - model.bound(x, SEED)
    error = 1.0 / math.sqrt(2000 * 20)  # log w has the variance Z/2 = 1
    assert float(gap.mean()) == pytest.approx(expected, abs=5 * error)


def test_denoising_bound_falls_short_by_the_corruption() -> None:
    """With the exact posterior of x̃ for q, the DVAE bound is log p(x) − E KL(q(z|x̃) || p(z|x)).

    Additive noise of deviation s shifts the posterior's mean by A n, A = S Wᵀ/σ², and leaves its
    covariance S: E KL = ½ s² tr(Aᵀ S⁻¹ A). Tolerance: 5 standard errors, by Student's t of 19
    degrees a false alarm in 12,000.
    """
    model = linear_gaussian(
        "dvae", orthogonal=True, copies=400, samples=3, corruption=corruptions.AdditiveGaussian(0.4)
    )
    x = draw_data(model, 20)
    assert isinstance(model.decoder, LinearDecoder)
    w, noise = model.decoder.weight.detach(), model.decoder.noise
    precision = torch.eye(2, dtype=torch.float64) + w.T @ w / noise**2
    a = torch.linalg.solve(precision, w.T) / noise**2
    expected = 0.5 * 0.4**2 * torch.trace(a.T @ precision @ a)
    gap = exact_log_likelihood(model, x) - model.bound(x, SEED)
    error = float(gap.std()) / math.sqrt(20)
    assert error < 0.1 * float(expected)
    assert float(gap.mean()) == pytest.approx(float(expected), abs=5 * error)


# --- the parts --------------------------------------------------------------------------------


def test_encode_does_not_corrupt() -> None:
    model, x = _model("dvae", corruption=corruptions.Masking(1.0)), _data()
    for found, expected in zip(model.encode(x), model.encoder(x), strict=True):
        assert torch.equal(found, expected)
    assert model.encode(x[0])[0].shape == (Z,)


@pytest.mark.parametrize("likelihood", ["bernoulli", "gaussian"])
def test_log_weights_in_any_split(likelihood: str) -> None:
    model, x = _model("iwae", likelihood=likelihood), _data()
    mean, log_var = model.encode(x)
    whole = model.log_weights(x, mean, log_var, K, SEED)
    assert whole.shape == (B, K)
    for rows, samples in ((2, 3), (4, 1), (1, 7)):
        for b in range(0, B, rows):
            for k in range(0, K, samples):
                part = model.log_weights(
                    x[b : b + rows], mean[b : b + rows], log_var[b : b + rows],
                    min(samples, K - k), SEED, first_example=b, first_sample=k,
                )  # fmt: skip
                torch.testing.assert_close(part, whole[b : b + rows, k : k + samples])
    plain = _plain_bound(model, x, SEED)[0]
    torch.testing.assert_close(torch.logsumexp(whole, 1) - math.log(K), plain)
    grads = torch.autograd.grad(whole.logsumexp(1).sum(), list(model.parameters()))
    expected = torch.autograd.grad(plain.sum(), list(model.parameters()))
    torch.testing.assert_close(grads, expected)


@pytest.mark.parametrize("likelihood", ["bernoulli", "gaussian"])
def test_sample(likelihood: str) -> None:
    model = _model("vae", likelihood=likelihood)
    means = model.sample(6, 1)
    assert means.shape == (6, D)
    assert not means.requires_grad
    assert torch.equal(means, model.sample(6, 1))
    torch.testing.assert_close(means[:4], model.sample(4, 1))
    assert not torch.equal(means, model.sample(6, 2))
    key = derived_key(torch.tensor([1]), 1 << 22)
    noise = latent_noise(1, 6, 1, Z, key, 0, 0, torch.float64)
    torch.testing.assert_close(means, model.likelihood.mean(model.decode(noise.view(6, Z))))

    state = torch.get_rng_state()
    drawn = model.sample(6, 1, draw=True)
    assert torch.equal(drawn, model.sample(6, 1, draw=True))
    assert torch.equal(torch.get_rng_state(), state), "a seed leaves torch's generator alone"
    assert drawn.shape == (6, D)
    if likelihood == "bernoulli":
        assert set(drawn.unique().tolist()) == {0.0, 1.0}
    assert not torch.equal(drawn, means)


def test_sample_has_the_likelihoods_mean() -> None:
    """The mean of 20,000 draws, within 5 standard errors: a false alarm in 150,000 for D = 11."""
    model = _model("vae")
    n = 20000
    means, drawn = model.sample(n, 3), model.sample(n, 3, draw=True)
    error = ((means * (1 - means)).mean(0) / n).sqrt()
    assert bool(((drawn.mean(0) - means.mean(0)).abs() < 5 * error).all())


def test_what_is_sampled_and_evaluated_by_one_seed_shares_no_noise() -> None:
    """E log p̂ lies below log p, by 2.2 here, where z is drawn from the prior. If the first samples
    were the latents that made the data, it would be 0.8 above."""
    model = linear_gaussian("iwae")
    model.encoder.forward = lambda x: (x.new_zeros(len(x), 2), x.new_zeros(len(x), 2))
    x = model.sample(4000, 7, draw=True)
    same, other = (estimate_log_likelihood(model, x, 4, seed=seed).mean for seed in (7, 8))
    exact = float(exact_log_likelihood(model, x).mean())
    assert same - exact == pytest.approx(other - exact, abs=0.3)
    assert same < exact - 1


@pytest.mark.parametrize("name", MODELS)
def test_images_are_taken_as_rows(name: str) -> None:
    model = _model(name) if name in FOUR else make_model(name, D, Z, HIDDEN).double()
    x = _data(4).round()
    images = x.reshape(4, 1, D, 1)
    assert torch.equal(model.loss(images, SEED), model.loss(x, SEED))
    assert torch.equal(model.bound(images, SEED), model.bound(x, SEED))
    found = model.reconstruct(images)
    assert found.shape == images.shape
    assert torch.equal(found.flatten(1), model.reconstruct(x))
    with pytest.raises(ValueError, match=r"x must have shape \(B, D\) with D = 11, got \(4, 1, 10"):
        model.loss(images[:, :, 1:])
    if isinstance(model, LatentVariableModel):
        line = model.interpolate(images[:2], x[2:], 3)
        assert torch.equal(line.flatten(2), model.interpolate(x[:2], x[2:], 3))


def test_interpolate() -> None:
    model, x = _model("dvae"), _data(6)
    start, end = x[:2], x[2:4]
    lines = model.interpolate(start, end, 5)
    assert lines.shape == (2, 5, D)
    assert not lines.requires_grad
    torch.testing.assert_close(lines[:, 0], model.reconstruct(start))
    torch.testing.assert_close(lines[:, -1], model.reconstruct(end))
    middle = (model.encode(start)[0] + model.encode(end)[0]) / 2
    torch.testing.assert_close(lines[:, 2], model.likelihood.mean(model.decode(middle)).detach())
    with pytest.raises(ValueError, match=r"start and end must have one shape, got \(2, 11\) and"):
        model.interpolate(start, x, 5)
    with pytest.raises(
        ValueError, match=r"end must have shape \(B, D\) with D = 11, got \(2, 10\)"
    ):
        model.interpolate(start, end[:, 1:], 5)
    with pytest.raises(TypeError, match=r"end must have the model's dtype, .*, got torch.float16"):
        model.interpolate(start, end.half(), 5)
    with pytest.raises(ValueError, match="steps must be >= 2, got 1"):
        model.interpolate(start, end, 1)


def test_manifold() -> None:
    """z at the normal quantiles: the first latent rises to the right, the second upwards."""
    model = _model("vae")
    plane = model.manifold(3)
    assert plane.shape == (3, 3, D)
    quantile = Normal(0.0, 1.0).icdf(torch.tensor(5 / 6, dtype=torch.float64))
    z = torch.stack([-quantile, quantile])  # left, top
    torch.testing.assert_close(plane[0, 0], model.likelihood.mean(model.decode(z)).detach())
    z = torch.stack([quantile, torch.zeros_like(quantile)])  # right, in the middle
    torch.testing.assert_close(plane[1, 2], model.likelihood.mean(model.decode(z)).detach())
    with pytest.raises(ValueError, match="latent_size must be 2 for a plane of latents, got 3"):
        make_model("vae", D, 3, HIDDEN).manifold(3)
    with pytest.raises(ValueError, match="n must be >= 1, got 0"):
        model.manifold(0)


@pytest.mark.parametrize("likelihood", ["bernoulli", "gaussian"])
def test_reconstruct(likelihood: str) -> None:
    model, x = _model("dvae", likelihood=likelihood), _data()
    clean = model.reconstruct(x)
    assert clean.shape == x.shape
    assert not clean.requires_grad
    expected = model.likelihood.mean(model.decoder(model.encoder(x)[0]))
    torch.testing.assert_close(clean, expected.detach())
    assert torch.equal(model.reconstruct(x, 1), clean)
    noisy = model.reconstruct(x, 1, corrupt=True)
    assert not torch.equal(noisy, clean)
    assert torch.equal(noisy, model.reconstruct(x, 1, corrupt=True))
    c = model.corruption
    assert c is not None
    corrupted = reference.corrupt(x, c.kind, c.parameter, c.salt, torch.tensor([1]), 1, 0, 0)[0]
    torch.testing.assert_close(noisy, model.reconstruct(corrupted))
    vae = _model("vae", likelihood=likelihood)
    assert torch.equal(vae.reconstruct(x, corrupt=True), vae.reconstruct(x))


def test_a_replaced_decoder_is_used_everywhere() -> None:
    """One whose results a backward pass reads must not be overwritten."""

    class Squashed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(Z, D)

        def forward(self, z: Tensor) -> Tensor:
            return torch.tanh(self.layer(z))

    model, x = _model("diwae"), _data()
    model.decoder = Squashed().double()
    plain = -_plain_bound(model, x, SEED).mean()
    loss = model.loss(x, SEED)
    torch.testing.assert_close(loss, plain)
    parameters = list(model.parameters())
    torch.testing.assert_close(
        torch.autograd.grad(loss, parameters), torch.autograd.grad(plain, parameters)
    )
    torch.testing.assert_close(model.bound(x, SEED).mean(), -plain.detach())


class _Tempered(Decoder):
    def forward(self, z: Tensor) -> Tensor:
        return super().forward(z) * 0.25


@pytest.mark.parametrize("how", ["subclass", "hook", "output_hook", "output"])
def test_a_changed_decoder_is_used_everywhere(how: str) -> None:
    """Calling trunk and output in turn is not what calling any of these does."""
    model, x = _model("diwae"), _data()
    decoder = model.decoder
    assert isinstance(decoder, Decoder)
    before = model.bound(x, SEED).mean()
    if how == "subclass":
        model.decoder = _Tempered(Z, model.options.hidden_sizes[::-1], D).double()
        model.decoder.load_state_dict(decoder.state_dict())
    elif how == "hook":
        decoder.register_forward_hook(lambda module, args, out: out * 0.25)
    elif how == "output_hook":
        decoder.output.register_forward_pre_hook(lambda module, args: (args[0] * 0.25,))
    else:
        decoder.output = nn.Sequential(decoder.output, nn.Tanh())  # type: ignore[assignment]
    after = model.bound(x, SEED).mean()
    assert abs(after - before) > 1e-3
    torch.testing.assert_close(after, _plain_bound(model, x, SEED).mean().detach())
    torch.testing.assert_close(model.loss(x, SEED).detach(), -after)


# --- construction and configuration -----------------------------------------------------------


def test_defaults() -> None:
    for name, (m, k) in {"vae": (1, 1), "iwae": (1, 5), "dvae": (1, 1), "diwae": (1, 5)}.items():
        model = make_model(name, 784)
        assert (model.copies, model.samples, model.latent_size) == (m, k, 50)
        shapes = [tuple(p.shape) for p in model.parameters() if p.dim() == 2]
        assert shapes == [(200, 784), (200, 200), (100, 200), (200, 50), (200, 200), (784, 200)]
        assert (model.corruption is None) == (name in ("vae", "iwae"))
        assert isinstance(model.decoder, Decoder)
    mirrored = DVAE(D, Z, (8, 6)).decoder
    assert isinstance(mirrored, Decoder)
    assert mirrored.output.in_features == 8


@pytest.mark.parametrize(
    ("corruption", "described"),
    [
        (corruptions.Identity(), {"name": "identity", "level": 0.0}),
        (corruptions.Masking(0.1), {"name": "masking", "level": 0.1}),
        (corruptions.SaltAndPepper(0.1), {"name": "salt_and_pepper", "level": 0.1}),
        (corruptions.SaltAndPepper(0.5, 0.5), {"name": "salt_and_pepper", "level": 0.5}),
        (
            corruptions.SaltAndPepper.as_released(0.15),
            {"name": "salt_and_pepper_released", "level": 0.15},
        ),
        (
            corruptions.SaltAndPepper(0.1, 0.3),
            {"name": "salt_and_pepper", "level": 0.1, "salt": 0.3},
        ),
        (
            corruptions.SaltAndPepper(0.1, torch.tensor([0.25, 0.3])),
            {"name": "salt_and_pepper", "level": [0.1, 0.1], "salt": [0.25, 0.3]},
        ),
        (corruptions.BitFlip(0.05), {"name": "bit_flip", "level": 0.05}),
        (corruptions.AdditiveGaussian(0.3), {"name": "gaussian", "level": 0.3}),
        (
            corruptions.AdditiveGaussian(torch.tensor([0.1, 0.7])),
            {"name": "gaussian", "level": [0.1, 0.7]},
        ),
    ],
    ids=repr,
)
@pytest.mark.parametrize("name", ["dvae", "diwae"])
def test_configuration_round_trip(
    name: str, corruption: corruptions.Corruption, described: dict[str, Any]
) -> None:
    model = make_model(
        name, 2, 3, (4,), activation="tanh", likelihood="gaussian",
        corruption=corruption, copies=6, samples=7,
    )  # fmt: skip
    config = json.loads(json.dumps(model.config()))
    assert config == {
        "model": name, "data_size": 2, "latent_size": 3, "hidden_sizes": [4],
        "decoder_hidden_sizes": None, "activation": "tanh", "encoder": "mlp", "decoder": "mlp",
        "prior": "standard", "prior_components": 100, "context_size": 0,
        "covariance": "diagonal", "likelihood": "gaussian", "corruption": described,
        "copies": 6, "samples": 7,
        "objective": {"name": MODELS[name].defaults["objective"]}, "estimator": "standard",
        "outer_samples": 10, "reverse": "mlp", "reverse_hidden_sizes": [200],
    }  # fmt: skip
    again = LatentVariableModel.from_config(config)
    assert type(again) is type(model)
    assert again.config() == config
    again.load_state_dict(model.state_dict())
    assert again.corruption is not None
    assert type(again.corruption) is type(corruption)
    assert torch.equal(again.corruption.parameter, corruption.parameter)
    assert (again.corruption.salt is None) == (corruption.salt is None)
    x = torch.rand(5, 2)
    assert torch.equal(again.loss(x, SEED), model.loss(x, SEED))


def test_the_decoder_need_not_mirror_the_encoder() -> None:
    model = DIWAE(D, Z, (5, 4), decoder_hidden_sizes=(6,))
    shapes = [tuple(p.shape) for name, p in model.decoder.named_parameters() if "weight" in name]
    assert shapes == [(6, Z), (D, 6)]
    config = json.loads(json.dumps(model.config()))
    assert config["decoder_hidden_sizes"] == [6]
    again = LatentVariableModel.from_config(config)
    again.load_state_dict(model.state_dict())
    assert again.config() == config
    with pytest.raises(ValueError, match=r"decoder_hidden_sizes\[0\] must be >= 1, got 0"):
        VAE(D, Z, (4,), decoder_hidden_sizes=(0,))


@pytest.mark.parametrize("name", ["vae", "iwae"])
def test_configuration_without_corruption(name: str) -> None:
    model = make_model(name, D, Z, (), samples=3, corruption=corruptions.Identity(), copies=1)
    config = json.loads(json.dumps(model.config()))
    assert "corruption" not in config
    again = MODELS[name].from_config(config)
    again.load_state_dict(model.state_dict())
    assert torch.equal(again.loss(torch.ones(B, D), SEED), model.loss(torch.ones(B, D), SEED))


@pytest.mark.parametrize(
    ("objective", "described"),
    [
        ("iwae_joint", {"name": "iwae_joint"}),
        (Objective("iwae", "dreg"), {"name": "iwae", "estimator": "dreg"}),
        (
            Objective("ciwae", "stl", beta=0.25),
            {"name": "ciwae", "estimator": "stl", "beta": 0.25},
        ),
        (Objective("vr", alpha=-2.0), {"name": "vr", "alpha": -2.0}),
        (Objective("elbo_kl", free_bits=0.3), {"name": "elbo_kl", "free_bits": 0.3}),
    ],
    ids=str,
)
@pytest.mark.parametrize("name", FOUR)
def test_an_objective_round_trips(name: str, objective: Any, described: dict[str, Any]) -> None:
    model = make_model(name, D, Z, (4,), copies=M, samples=K, objective=objective)
    config = json.loads(json.dumps(model.config()))
    assert config["objective"] == described
    again = LatentVariableModel.from_config(config)
    assert again.objective == model.objective == as_objective(objective)
    assert (again.copies, again.samples) == (M, K)
    again.load_state_dict(model.state_dict())
    x = torch.rand(B, D)
    assert torch.equal(again.loss(x, SEED), model.loss(x, SEED))
    assert f"copies={M}, samples={K}, objective={model.objective}" in repr(model)


def test_an_estimator_alone_and_the_models_own_objective() -> None:
    for name, own in {"vae": "elbo", "iwae": "iwae", "dvae": "elbo", "diwae": "iwae"}.items():
        assert make_model(name, D).objective == Objective(own)
        assert make_model(name, D, estimator="dreg").objective == Objective(own, "dreg")
        assert make_model(name, D, objective=own).config() == make_model(name, D).config()
    both = VAE(D, objective=Objective("vr", alpha=0.1), estimator="stl")
    assert both.objective == Objective("vr", "stl", alpha=0.1)


def test_none_means_the_default() -> None:
    assert make_model("diwae", D, samples=None, copies=None, corruption=None).samples == 5
    assert make_model("vae", D, samples=None, copies=None, corruption=None).samples == 1


def test_copies_are_independent() -> None:
    model = _model("dvae")
    twin = copy.deepcopy(model)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(1)
    assert not torch.equal(model.loss(_data(), SEED), twin.loss(_data(), SEED))


def test_representation_names_what_the_layers_do_not_show() -> None:
    assert "corruption=Masking(0.25), copies=2, samples=3" in repr(
        DVAE(D, corruption=corruptions.Masking(0.25), copies=2, samples=3)
    )


def _config(**changes: Any) -> dict[str, Any]:
    return {**_model("dvae").config(), **changes}


test_wrong_arguments = refusals(
    [
        (lambda: VAE(0), ValueError, "data_size must be >= 1, got 0"),
        (lambda: VAE(7.5), TypeError, "data_size must be an int, got float"),
        (lambda: IWAE(D, 0), ValueError, "latent_size must be >= 1, got 0"),
        (lambda: IWAE(D, Z, (4, -1)), ValueError, r"hidden_sizes\[1\] must be >= 1, got -1"),
        (lambda: IWAE(D, Z, 4), TypeError, "hidden_sizes must be a sequence of ints, got 4"),
        (lambda: IWAE(D, samples=0), ValueError, "samples must be >= 1, got 0"),
        (lambda: DVAE(D, copies=0), ValueError, "copies must be >= 1, got 0"),
        (lambda: DIWAE(D, samples=True), TypeError, "samples must be an int, got bool"),
        (lambda: VAE(D, activation="swish"), ValueError, "activation .* softplus, .*'swish'"),
        (
            lambda: VAE(D, likelihood="cauchy"),
            ValueError,
            "likelihood must be one of bernoulli, gaussian, .*; got 'cauchy'",
        ),
        (
            lambda: DVAE(D, corruption="masking"),
            TypeError,
            r"corruption must be an object of dvae_fast.corruptions, .*, got str",
        ),
        (
            lambda: make_model("gan", D),
            ValueError,
            "model must be one of .*vae, iwae, dvae, diwae.*; got 'gan'",
        ),
        (
            lambda: make_model("vae", D, corruption=corruptions.Masking(0.25)),
            ValueError,
            r"corruption must be None for vae, got Masking\(0.25\)",
        ),
        (lambda: make_model("iwae", D, copies=0), ValueError, "copies must be >= 1, got 0"),
        (
            lambda: LatentVariableModel.from_config(_config(model="gan")),
            ValueError,
            "config's model must be one of vae, iwae, dvae, diwae, two_layer; got 'gan'",
        ),
        (
            lambda: VAE.from_config(_config()),
            ValueError,
            "config's model must be one of vae; got 'dvae'; did you mean 'vae'",
        ),
        (
            lambda: DVAE.from_config({"model": "dvae"}),
            ValueError,
            "config must have the key data_size, got model",
        ),
        (
            lambda: VAE(D, objective=3),
            TypeError,
            "objective must be a string or an Objective, got int",
        ),
        (lambda: _model("vae").sample(0), ValueError, "n must be >= 1, got 0"),
        (
            lambda: _model("vae").loss(_data(), 2**64),
            ValueError,
            r"seed must fit in 64 bits, .*, got 18446744073709551616",
        ),
        (
            lambda: _model("vae").log_weights(_data(), *_model("vae").encode(_data()), 0),
            ValueError,
            "k must be >= 1, got 0",
        ),
    ]
)


@pytest.mark.parametrize(
    "name, value, message",
    [
        ("colour", 3, "a key in the config of a dvae must be one of .*; got 'colour'"),
        ("objective", "iwae", "config's objective must have the key name"),
        ("objective", {"name": "iwae", "gamma": 1}, "key name and of name, .* no others, got"),
        ("corruption", "masking", "must have the keys name and level, got 'masking'"),
        ("corruption", {"name": "fog", "level": 1}, "corruption must be one of .*; got 'fog'"),
        ("corruption", {"name": "masking", "level": 2}, r"rate must be in \[0, 1\], got 2"),
    ],
)  # fmt: skip
def test_a_config_with_something_wrong(name: str, value: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        DVAE.from_config(_config(**{name: value}))


@pytest.mark.parametrize(
    ("x", "error", "message"),
    [
        ([[0.5]], TypeError, "x must be a tensor, got list"),
        (torch.ones(B, D, dtype=torch.uint8), TypeError, "x must be float32, .*, got torch.uint8"),
        (
            torch.ones(B, D),
            TypeError,
            "x must have the model's dtype, .*float64, got torch.float32",
        ),
        (
            torch.ones(B, D + 1).double(),
            ValueError,
            rf"x must have shape \(B, D\) with D = {D}, got \({B}, {D + 1}\)",
        ),
        (torch.ones(D).double(), ValueError, rf"x must have shape \(B, D\) .*, got \({D},\)"),
        (torch.ones(0, D).double(), ValueError, rf"x must hold B >= 1 examples, got .*\(0, {D}\)"),
        (
            torch.ones(B, D, device="meta", dtype=torch.float64),
            ValueError,
            "x must be on the model's device, cpu, got meta",
        ),
    ],
)
@pytest.mark.parametrize("method", ["loss", "bound", "reconstruct"])
def test_wrong_data(method: str, x: Any, error: type[Exception], message: str) -> None:
    assert_refused(lambda: getattr(_model("dvae"), method)(x), error, message)


def test_the_table_holds_the_public_models() -> None:
    assert [MODELS[name].__name__ for name in MODELS] == [
        "BernoulliLatentModel", "VAE", "IWAE", "DVAE", "DIWAE", "TwoLayerModel"
    ]  # fmt: skip
    assert all(model.__name__ in models.__all__ for model in MODELS.values())


def test_a_model_that_overrides_decode_is_called() -> None:
    """Not the decoder beneath it: in bound, loss and log-weights alike."""

    class Tempered(IWAE):
        def decode(self, z: Tensor) -> Any:
            return 0.5 * cast("Tensor", super().decode(z))

    torch.manual_seed(0)
    model = Tempered(D, Z, (8,), samples=K).double()
    plain = IWAE(D, Z, (8,), samples=K).double()
    plain.load_state_dict(model.state_dict())
    x = _data()
    with torch.no_grad():
        plain.decoder.output.weight *= 0.5
        plain.decoder.output.bias *= 0.5
    torch.testing.assert_close(model.loss(x, SEED), plain.loss(x, SEED))
    torch.testing.assert_close(model.bound(x, SEED), plain.bound(x, SEED))
    assert model.split_decoder() is None
    assert plain.split_decoder() is plain.decoder
