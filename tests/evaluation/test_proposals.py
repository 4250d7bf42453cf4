"""Every proposal estimates the same log p(x), which a linear-Gaussian model has exactly."""

from __future__ import annotations

import math
import warnings
from typing import Any

import pytest
import torch
from linear_gaussian import (
    D,
    Z,
    assert_finds_the_likelihood,
    draw_data,
    exact_log_likelihood,
    linear_gaussian,
)
from torch import Tensor

from dvae_fast import corruptions
from dvae_fast.corruptions import AdditiveGaussian, Corruption, Masking
from dvae_fast.data.given import Given
from dvae_fast.evaluation import PROPOSALS, Evaluated, Proposal, estimate_log_likelihood
from dvae_fast.models import make_model
from dvae_fast.noise import latent_noise

N, M, K, SEED = 7, 5, 13, 99


def _drawn(
    proposal: str, x: Tensor, k: int, corruption: Corruption, copies: int = M
) -> tuple[Tensor, Tensor, Tensor]:
    """z, log_ratio and log_w."""
    model = linear_gaussian("dvae", widen=2.0)
    evaluated = Evaluated(model)
    key = torch.tensor([SEED])
    with torch.no_grad():
        drawer = Proposal(proposal, corruption, copies).encode(evaluated, Given(x), key, 0)
        z, log_ratio = drawer.draw(k, 0)
        return z, log_ratio, evaluated.log_weights(z, Given(x), log_ratio)


@pytest.mark.parametrize("proposal", PROPOSALS)
def test_within_its_own_standard_error(proposal: str) -> None:
    model = linear_gaussian("dvae", widen=2.0, corruption=AdditiveGaussian(0.3))
    options = {"proposal": proposal, "copies": M, "seed": SEED}
    estimate = assert_finds_the_likelihood(model, 150, 2000, 1e-2, **options)
    assert estimate.proposal == proposal
    assert bool((estimate.elbo < exact_log_likelihood(model, draw_data(model, 150))).all())


@pytest.mark.parametrize("proposal", PROPOSALS)
def test_any_split_gives_the_same_numbers(proposal: str) -> None:
    model = make_model("diwae", 9, Z + 1, (8,), corruption=Masking(0.4)).double()
    x = torch.rand(N, 9, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    options = {"proposal": proposal, "copies": M, "seed": SEED}
    whole = estimate_log_likelihood(model, x, K, batch_size=N, chunk=K, **options)
    for batch_size, chunk in ((1, 1), (3, 4), (None, None), (2, 12)):
        part = estimate_log_likelihood(model, x, K, batch_size=batch_size, chunk=chunk, **options)
        for name in ("log_likelihood", "standard_error", "ess", "elbo"):
            torch.testing.assert_close(
                getattr(part, name), getattr(whole, name), rtol=1e-9, atol=1e-9
            )
    # And one example alone, which a tolerance brings about.
    unsure = estimate_log_likelihood(model, x, 2, tolerance=1e-9, max_k=K, **options)
    torch.testing.assert_close(unsure.log_likelihood, whole.log_likelihood)


def test_without_noise_all_are_the_posterior() -> None:
    x = draw_data(linear_gaussian("dvae"), N)
    plain = _drawn("posterior", x, K, AdditiveGaussian(0.0))
    for proposal in ("corrupted", "mixture"):
        for mine, expected in zip(
            _drawn(proposal, x, K, AdditiveGaussian(0.0)), plain, strict=True
        ):
            torch.testing.assert_close(mine, expected)


def _drawn_and_encoded(proposal: str, copies: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """z and log_ratio as drawn, and the posterior of each copy of x that `corrupt` makes."""
    model = linear_gaussian("dvae", widen=2.0)
    x, corruption = draw_data(model, N), AdditiveGaussian(0.5)
    z, log_ratio, _ = _drawn(proposal, x, K, corruption)
    with torch.no_grad():
        mean, log_var = model.encode(corruptions.corrupt(x, corruption, copies, SEED))
    return z, log_ratio, mean, log_var


def test_corrupted_weights_have_the_density_of_their_own_component() -> None:
    """One fresh x̃ a sample, that of `corrupt`, and the noise of `sample_latent`."""
    z, log_ratio, mean, log_var = _drawn_and_encoded("corrupted", K)  # (K, N, Z)
    noise = latent_noise(1, N, K, Z, torch.tensor([SEED]), 0, 0, torch.float64)[0]
    mean, log_var = mean.transpose(0, 1), log_var.transpose(0, 1)
    torch.testing.assert_close(z, mean + torch.exp(0.5 * log_var) * noise)
    q = torch.distributions.Normal(mean, torch.exp(0.5 * log_var)).log_prob(z).sum(-1)
    prior = torch.distributions.Normal(0.0, 1.0).log_prob(z).sum(-1)
    torch.testing.assert_close(log_ratio, prior - q)


def test_mixture_weights_have_the_density_of_the_mixture() -> None:
    z, log_ratio, mean, log_var = _drawn_and_encoded("mixture", M)  # (M, N, Z)
    q = torch.distributions.MixtureSameFamily(
        torch.distributions.Categorical(torch.ones(N, 1, M)),
        torch.distributions.Independent(
            torch.distributions.Normal(
                mean.transpose(0, 1).unsqueeze(1), torch.exp(0.5 * log_var).transpose(0, 1)[:, None]
            ),
            1,
        ),
    ).log_prob(z)
    prior = torch.distributions.Normal(0.0, 1.0).log_prob(z).sum(-1)
    torch.testing.assert_close(log_ratio, prior - q)


def test_mixture_components_are_uniform_and_stratified() -> None:
    """Of k = M·j samples each component has j; the first sample's is uniform over examples."""
    n = 3000
    x = torch.zeros(n, D, dtype=torch.float64)
    # A component that tells its own number, with no noise left.
    mean = torch.arange(M, dtype=torch.float64).view(M, 1, 1).expand(M, n, Z)
    corruption = Masking(0.5)

    def encode(noisy: Tensor) -> tuple[Tensor, Tensor]:
        return mean.reshape(-1, Z), torch.full((M * n, Z), -60.0, dtype=torch.float64)

    evaluated = Evaluated((encode, lambda z: z), "bernoulli")
    drawer = Proposal("mixture", corruption, M).encode(evaluated, Given(x), torch.tensor([SEED]), 0)
    which = drawer.draw(3 * M, 0)[0][..., 0].round().long()
    assert bool((torch.nn.functional.one_hot(which, M).sum(1) == 3).all())
    counts = torch.bincount(which[:, 0], minlength=M).double()
    chi2 = float(((counts - n / M).square() / (n / M)).sum())
    assert chi2 < 4 + 5 * math.sqrt(2 * 4) + 10  # χ² of 4: beyond 28 once in 80,000


def test_the_mixture_is_tighter_than_its_components() -> None:
    """Expected log-weights: E log p/q̃ ≥ mean over m of E log p/q_m, the DVAE bound (arXiv
    1511.06406, section 3), and the IWAE bound of both rises to log p."""
    model = linear_gaussian("dvae", widen=1.5, corruption=AdditiveGaussian(1.0))
    x = draw_data(model, 40)
    mixture, own = (
        estimate_log_likelihood(model, x, 4000, proposal=name, copies=8, seed=SEED)
        for name in ("mixture", "corrupted")
    )
    gap = mixture.elbo - own.elbo
    assert float(gap.mean()) > 0.05
    exact = exact_log_likelihood(model, x)
    for estimate in (mixture, own):
        assert bool((estimate.curve.mean(0).diff() > 0).all())
        assert float((estimate.log_likelihood - exact).abs().mean()) < 0.1
    assert float(mixture.ess.mean()) > float(own.ess.mean())


def test_the_corruption_is_the_models_unless_another_is_given() -> None:
    model = linear_gaussian("dvae", corruption=AdditiveGaussian(1.0))
    x = draw_data(model, N)
    own = estimate_log_likelihood(model, x, K, proposal="mixture", seed=SEED)
    same = estimate_log_likelihood(
        model, x, K, proposal="mixture", corruption=AdditiveGaussian(1.0), seed=SEED
    )
    other = estimate_log_likelihood(
        model, x, K, proposal="mixture", corruption=AdditiveGaussian(0.1), seed=SEED
    )
    assert torch.equal(own.log_likelihood, same.log_likelihood)
    assert not torch.equal(own.log_likelihood, other.log_likelihood)


@pytest.mark.parametrize("proposal", PROPOSALS)
def test_half_precision_is_the_decoders_alone(proposal: str) -> None:
    """Encoder, noise and density of q stay in float32: a narrow posterior would lose its place."""
    model = linear_gaussian("dvae", noise=0.1, corruption=AdditiveGaussian(0.005))
    x = draw_data(model, N).float()
    model.float()
    options: dict[str, Any] = {"proposal": proposal, "seed": SEED, "likelihood": "gaussian"}
    plain = estimate_log_likelihood(model, x, K, **options)
    encoded: list[torch.dtype] = []
    decoded: list[tuple[torch.dtype, torch.dtype]] = []
    model.encoder.register_forward_hook(
        lambda _, __, out: encoded.extend(part.dtype for part in out)
    )
    model.decoder.register_forward_hook(
        lambda _, given, out: decoded.append((given[0].dtype, out[0].dtype))
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # slow on this CPU
        half = estimate_log_likelihood(model, x, K, dtype="bfloat16", **options)
    assert set(encoded) == {torch.float32}
    assert set(decoded) == {(torch.float32, torch.bfloat16)}
    difference = (half.log_likelihood - plain.log_likelihood).abs()
    # A mean near 1 is rounded by some 2⁻⁸, 0.04 of the noise: √6 · 0.04 = 0.1 nats of six pixels.
    assert 1e-4 < float(difference.max()) < 0.3
