"""Full covariances: against torch.distributions, the diagonal case, and models with the answer."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
import torch
from linear_gaussian import (
    FullPosteriorEncoder,
    LinearDecoder,
    assert_finds_the_likelihood,
    draw_data,
    exact_log_likelihood,
    linear_gaussian,
)
from model_checks import assert_compiles
from refusals import refusals
from torch import Tensor, nn
from torch.distributions import MultivariateNormal

from dvae_fast import corruptions, functional
from dvae_fast.corruptions import AdditiveGaussian, Compose, Learnable, SaltAndPepper
from dvae_fast.evaluation import PROPOSALS, annealed_importance_sampling, estimate_log_likelihood
from dvae_fast.models import (
    ENCODERS,
    MODELS,
    LatentVariableModel,
    gaussian_log_ratio,
    make_encoder,
    make_model,
    sample_gaussian,
)
from dvae_fast.models.posterior import is_full, marginal_log_var, place, split_posterior
from dvae_fast.training import TrainConfig, default_config

M, B, K, Z, SHAPE = 2, 5, 3, 4, (8, 7)
D = SHAPE[0] * SHAPE[1]
SEED = 123


def _posterior(*leading: int) -> tuple[Tensor, Tensor]:
    mean = torch.randn(*leading, Z, dtype=torch.float64)
    factor = torch.randn(*leading, Z, Z, dtype=torch.float64).tril(-1)
    return mean, factor + torch.diag_embed(0.3 + torch.rand_like(mean))


# --- the formulas -----------------------------------------------------------------------------


@pytest.mark.parametrize("leading", [(B,), (M, B), (M, K, B)])
def test_densities_are_those_of_the_normal_distribution(leading: tuple[int, ...]) -> None:
    mean, factor = _posterior(*leading)
    z, log_ratio = sample_gaussian(mean, factor, 6, SEED)
    assert z.shape == (*leading, 6, Z)
    assert log_ratio.shape == (*leading, 6)
    q = MultivariateNormal(mean.unsqueeze(-2), scale_tril=factor.unsqueeze(-3))
    p = MultivariateNormal(torch.zeros(Z).double(), torch.eye(Z).double())
    torch.testing.assert_close(log_ratio, p.log_prob(z) - q.log_prob(z))
    torch.testing.assert_close(gaussian_log_ratio(z, mean, factor), log_ratio)
    own = torch.randn_like(z)
    expected = p.log_prob(own) - q.log_prob(own)
    torch.testing.assert_close(gaussian_log_ratio(own, mean, factor), expected)
    covariance = factor @ factor.mT
    marginal = covariance.diagonal(dim1=-2, dim2=-1).log()
    torch.testing.assert_close(marginal_log_var(mean, factor), marginal)


def test_draws_have_the_mean_and_the_covariance() -> None:
    """Whitened, 40,000 draws have moments of N(0, I): 5 standard errors of 4 means and 4 variances,
    more of 6 covariances, a false alarm in 200,000."""
    n = 40_000
    mean, factor = _posterior(1)
    z = sample_gaussian(mean, factor, n, SEED)[0][0]
    white = torch.linalg.solve_triangular(factor[0], (z - mean).T, upper=False)
    assert bool((white.mean(1).abs() < 5 / math.sqrt(n)).all())
    excess = white @ white.T / n - torch.eye(Z)
    assert bool((excess.abs() < 5 * math.sqrt(2 / n)).all())


def test_a_diagonal_factor_is_the_diagonal_posterior() -> None:
    mean, log_var = torch.randn(2, M, B, Z, dtype=torch.float64)
    factor = torch.diag_embed(torch.exp(0.5 * log_var))
    first = {"first_example": 3, "first_sample": 2}
    expected = functional.sample_latent(mean, log_var, K, SEED, **first)
    torch.testing.assert_close(sample_gaussian(mean, factor, K, SEED, **first), expected)
    assert torch.equal(sample_gaussian(mean, log_var, K, SEED, **first)[0], expected[0])
    z = torch.randn(M, B, K, Z, dtype=torch.float64)
    diagonal = functional.latent_log_ratio(z, mean, log_var)
    torch.testing.assert_close(gaussian_log_ratio(z, mean, factor), diagonal)
    torch.testing.assert_close(gaussian_log_ratio(z, mean, log_var), diagonal)
    torch.testing.assert_close(marginal_log_var(mean, factor), log_var)
    noise = torch.randn(M, B, Z, dtype=torch.float64)
    torch.testing.assert_close(place(mean, factor, noise), place(mean, log_var, noise))


def test_gradients() -> None:
    mean, factor = (t.requires_grad_() for t in _posterior(M, B))
    z = torch.randn(M, B, K, Z, dtype=torch.float64, requires_grad=True)

    def lower(t: Tensor) -> Tensor:
        return t.tril()  # what lies above is nobody's

    args = (mean, factor)
    assert torch.autograd.gradcheck(
        lambda m, f: sample_gaussian(m, lower(f), K, SEED), args, fast_mode=True
    )
    assert torch.autograd.gradcheck(
        lambda z, m, f: gaussian_log_ratio(z, m, lower(f)), (z, *args), fast_mode=True
    )


def test_split_fills_the_factor_row_by_row() -> None:
    output = torch.cat((torch.zeros(3), torch.tensor([0.0, 2.0, 4.0]), torch.tensor([7.0, 8, 9])))
    mean, factor = split_posterior(output, 3, "full")
    e = math.e
    assert torch.equal(mean, torch.zeros(3))
    torch.testing.assert_close(
        factor, torch.tensor([[1.0, 0.0, 0.0], [7.0, e, 0.0], [8.0, 9.0, e**2]])
    )


def test_half_precision_is_widened() -> None:
    mean, factor = _posterior(B)
    z, log_ratio = sample_gaussian(mean.bfloat16(), factor.bfloat16(), K, SEED)
    assert (z.dtype, log_ratio.dtype) == (torch.bfloat16, torch.float32)
    rounded = sample_gaussian(mean.bfloat16().double(), factor.bfloat16().double(), K, SEED)[1]
    torch.testing.assert_close(log_ratio, rounded.float(), rtol=1e-4, atol=1e-4)


# --- encoders and models ----------------------------------------------------------------------


@pytest.mark.parametrize("leading", [(), (B,), (M, B), (0,)])
@pytest.mark.parametrize("inference", ENCODERS)
def test_encoders_start_as_the_diagonal_ones(inference: str, leading: tuple[int, ...]) -> None:
    x = torch.rand(*leading, D)
    torch.manual_seed(1)
    mean, log_var = make_encoder(inference, D, SHAPE, (6,), Z, "tanh")(x)
    torch.manual_seed(1)
    encoder = make_encoder(inference, D, SHAPE, (6,), Z, "tanh", "full")
    other, factor = encoder(x)
    torch.testing.assert_close(other, mean)
    torch.testing.assert_close(factor, torch.diag_embed(torch.exp(0.5 * log_var)))


def _model(name: str, **options: Any) -> LatentVariableModel:
    if MODELS[name].denoising:
        options = {"copies": M, "corruption": SaltAndPepper(0.3), **options}
    model = make_model(name, D, Z, (6,), covariance="full", **{"samples": K, **options}).double()
    with torch.no_grad():
        model.encoder.output.bias[2 * Z :] = torch.randn(Z * (Z - 1) // 2)
    return model


@pytest.mark.parametrize("k", [1, K])
@pytest.mark.parametrize("name", ["vae", "iwae", "dvae", "diwae"])
def test_loss_is_the_plain_formula(name: str, k: int) -> None:
    model = _model(name, samples=k)
    x = torch.rand(B, D, dtype=torch.float64)
    noisy = x.expand(1, B, D)
    if model.corruption is not None:
        noisy = corruptions.corrupt(x, model.corruption, M, SEED)
    mean, factor = model.encode(noisy)
    assert is_full(mean, factor)
    m = len(noisy)
    if model.objective.name == "elbo":
        zero = mean.new_zeros(m * k, B, Z)
        noise = functional.sample_latent(zero, zero, 1, SEED)[0].view(m, k, B, Z).transpose(1, 2)
    else:
        noise = functional.sample_latent(mean * 0, mean * 0, k, SEED)[0]
    z = mean.unsqueeze(2) + torch.einsum("mbij,mbkj->mbki", factor, noise)
    q = MultivariateNormal(mean.unsqueeze(2), scale_tril=factor.unsqueeze(2)).log_prob(z)
    p = MultivariateNormal(torch.zeros(Z).double(), torch.eye(Z).double()).log_prob(z)
    density = -nn.functional.binary_cross_entropy_with_logits(
        model.decode(z), x[None, :, None].expand(m, B, k, D), reduction="none"
    ).sum(-1)
    log_w = density + p - q
    inside = torch.logsumexp(log_w, 2) - math.log(k)
    expected = -(log_w.mean(2) if model.objective.name == "elbo" else inside).mean()
    loss = model.loss(x, SEED)
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(-model.bound(x, SEED).mean(), loss.detach())
    parameters = list(model.parameters())
    torch.testing.assert_close(
        torch.autograd.grad(loss, parameters), torch.autograd.grad(expected, parameters)
    )
    parts = torch.cat([model.bound(x[a:b], SEED, first_example=a) for a, b in ((0, 2), (2, B))])
    torch.testing.assert_close(parts, model.bound(x, SEED))
    assert model.reconstruct(x).shape == (B, D)


@pytest.mark.parametrize("name", ["vae", "iwae", "dvae", "diwae"])
def test_configuration_round_trip(name: str) -> None:
    model = _model(name).float()
    config = json.loads(json.dumps(model.config()))
    assert config["covariance"] == "full"
    again = LatentVariableModel.from_config(config)
    assert again.config() == config
    again.load_state_dict(model.state_dict())
    x = torch.rand(B, D)
    assert torch.equal(again.loss(x, SEED), model.loss(x, SEED))
    assert make_model(name, D).config()["covariance"] == "diagonal"


def test_run_configuration() -> None:
    config = default_config(covariance="full", hidden_sizes=(9,), latent_size=3)
    model = config.make_model(config.load_data())
    assert model.options.covariance == "full"
    assert TrainConfig.from_dict(config.to_dict()) == config
    with pytest.raises(ValueError, match="covariance must be one of diagonal, full; got 'dense'"):
        default_config(covariance="dense")


@pytest.mark.parametrize("posterior", ["diagonal", "full"])
@pytest.mark.parametrize("inference", ENCODERS)
def test_autocast(inference: str, posterior: str) -> None:
    """bfloat16 products in the networks alone."""
    model = make_model(
        "diwae",
        D,
        Z,
        (6,),
        encoder=inference,
        image_shape=SHAPE,
        covariance=posterior,
        copies=M,
        samples=K,
    )
    x = torch.rand(B, D)
    exact = model.loss(x, SEED)
    with torch.autocast("cpu", torch.bfloat16):
        loss = model.loss(x, SEED)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, exact, rtol=0.02, atol=0)
    loss.backward()
    assert all(p.grad is not None and bool(p.grad.isfinite().all()) for p in model.parameters())


# torch.compile's own doing, on meeting an autograd.Function and on loading its backend.
@pytest.mark.filterwarnings("ignore:.*should not be instantiated. Methods on:DeprecationWarning")
@pytest.mark.filterwarnings("ignore:`torch.jit.*is deprecated:DeprecationWarning")
def test_compiles_without_a_graph_break() -> None:
    """With a composed corruption and convolutions, too."""
    corruption = Compose(SaltAndPepper(0.3), Learnable(AdditiveGaussian(0.1)))
    model = _model("diwae", encoder="conv", image_shape=SHAPE, corruption=corruption.double())
    x, seed = torch.rand(B, D, dtype=torch.float64), torch.tensor([SEED])
    assert_compiles(model, x, seed)


# --- exact answers ----------------------------------------------------------------------------


def _linear(name: str, widen: float = 1.0, **options: Any) -> LatentVariableModel:
    model = linear_gaussian(name, **options)
    assert isinstance(model.decoder, LinearDecoder)
    model.encoder = FullPosteriorEncoder(model.decoder, widen)
    return model


@pytest.mark.parametrize("name", ["vae", "iwae"])
def test_with_the_exact_posterior_every_bound_is_the_likelihood(name: str) -> None:
    """No diagonal one is exact here: the latents depend on each other given x."""
    model = _linear(name, samples=K)
    x = draw_data(model, B)
    exact = exact_log_likelihood(model, x)
    torch.testing.assert_close(model.bound(x, SEED), exact)
    diagonal = linear_gaussian(name, samples=K)
    assert bool((diagonal.bound(x, SEED) - exact).abs().max() > 0.03)
    estimate = estimate_log_likelihood(model, x, 20, seed=SEED)
    torch.testing.assert_close(estimate.log_likelihood, exact)
    log_w = model.log_weights(x, *model.encode(x), K, SEED)
    torch.testing.assert_close(log_w, exact[:, None].expand(B, K))


@pytest.mark.parametrize("proposal", PROPOSALS)
def test_every_proposal_finds_the_likelihood(proposal: str) -> None:
    model = _linear("dvae", widen=2.0, corruption=AdditiveGaussian(0.3))
    assert_finds_the_likelihood(model, 100, 1000, 2e-2, proposal=proposal, copies=M, seed=SEED)
    x = draw_data(model, 7)
    split = estimate_log_likelihood(
        model, x, 50, proposal=proposal, copies=M, seed=SEED, batch_size=3, chunk=11
    )
    whole = estimate_log_likelihood(
        model, x, 50, proposal=proposal, copies=M, seed=SEED, batch_size=7, chunk=50
    )
    torch.testing.assert_close(split.log_likelihood, whole.log_likelihood)


@pytest.mark.parametrize("start", ["posterior", "prior"])
def test_annealing_finds_the_likelihood(start: str) -> None:
    """5 standard errors of the mean over 40 examples, Student's t of 39 degrees: a false alarm in
    80,000, were the noise drawn anew."""
    model = _linear("vae")
    x = draw_data(model, 40)
    estimate = annealed_importance_sampling(
        model, x, chains=8, temperatures=40, start=start, seed=SEED
    )
    bias = 0.5 * estimate.standard_error.square() * 8 / 7  # of a log, of 8 chains
    error = estimate.log_likelihood + bias - exact_log_likelihood(model, x)
    assert float(error.std()) < 0.5
    assert abs(float(error.mean())) < 5 * float(error.std()) / math.sqrt(40)


test_wrong_arguments = refusals(
    [
        (
            lambda: make_model("vae", D, covariance="dense"),
            ValueError,
            "covariance must be one of diagonal, full; got 'dense'",
        ),
        (
            lambda: sample_gaussian(torch.zeros(B, Z), torch.zeros(B, Z, Z + 1), K),
            ValueError,
            rf"spread must be log_var in the shape of mean, \({B}, {Z}\), or a triangular matrix "
            rf".*; got \({B}, {Z}, {Z + 1}\)",
        ),
        (
            lambda: sample_gaussian(torch.zeros(B, Z), torch.zeros(B, Z, Z), 0),
            ValueError,
            "k must be >= 1, got 0",
        ),
        (
            lambda: estimate_log_likelihood(
                (lambda x: (x[:, :2], x[:, :3]), lambda z: z), torch.ones(B, D), 3
            ),
            ValueError,
            rf"spread must be log_var in the shape of mean, \({B}, 2\)",
        ),
    ]
)
