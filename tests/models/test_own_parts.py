"""Encoders, decoders and priors of one's own: in loss, bound, evaluation, pictures and files."""

from __future__ import annotations

import copy
import math
import warnings
from typing import TYPE_CHECKING, Any

import pytest
import torch
from refusals import refusals
from torch import Tensor, nn
from torch.distributions import MultivariateNormal

from dvae_fast import annealed_importance_sampling, estimate_log_likelihood
from dvae_fast.corruptions import Compose, Corruption, Masking, corrupt
from dvae_fast.files import CheckpointError
from dvae_fast.likelihoods import Likelihood, identity, positive
from dvae_fast.models import (
    DIWAE,
    IWAE,
    MODELS,
    VAE,
    BernoulliLatentModel,
    StandardNormal,
    TwoLayerModel,
    load_model,
    make_model,
    save_model,
)
from dvae_fast.models.config import options_of
from dvae_fast.objectives import OBJECTIVES, Objective

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

M, B, K, Z, SEED = 3, 8, 5, 4, 17
SHAPE = (6, 7)
D = SHAPE[0] * SHAPE[1]
ANALYTIC = next(name for name in OBJECTIVES if Objective(name).bound.analytic)


def _data(n: int = B, d: int = D) -> Tensor:
    return torch.rand(n, d, generator=torch.Generator().manual_seed(1)).round()


class Convolutional(nn.Module):
    """Rows of pixels to `outputs` numbers, in `parts` of equal size: batch norm in both forms."""

    def __init__(self, outputs: int = Z, parts: int = 2) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(1, 3, 3, padding=1), nn.BatchNorm2d(3), nn.ReLU(), nn.Flatten()
        )
        self.output = nn.Sequential(
            nn.Linear(3 * D, parts * outputs), nn.BatchNorm1d(parts * outputs)
        )
        self.parts = parts

    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, ...]:
        out: Tensor = self.output(self.features(x.view(-1, 1, *SHAPE)))
        return out if self.parts == 1 else out.chunk(self.parts, -1)


class Decoder(nn.Module):
    """Rows of latents to logits; its batch norm takes nothing but rows."""

    def __init__(self, latent: int = Z) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(latent, 9), nn.BatchNorm1d(9), nn.Tanh(), nn.Linear(9, D)
        )

    def forward(self, z: Tensor) -> Tensor:
        assert z.dim() == 2
        logits: Tensor = self.layers(z)
        return logits


class NormalPrior(nn.Module):
    """N(mean, L Lᵀ), learnt."""

    def __init__(self, latent: int = Z) -> None:
        super().__init__()
        g = torch.Generator().manual_seed(2)
        self.mean = nn.Parameter(torch.randn(latent, generator=g))
        below = torch.randn(latent, latent, generator=g).tril(-1)
        self.factor = nn.Parameter(below + torch.diag(torch.linspace(0.5, 1.5, latent)))

    def log_prob(self, z: Tensor) -> Tensor:
        return MultivariateNormal(self.mean, scale_tril=self.factor).log_prob(z)

    def sample(self, n: int, generator: torch.Generator | None = None) -> Tensor:
        noise = torch.randn(n, len(self.mean), generator=generator)
        return self.mean + noise.to(self.mean) @ self.factor.T


def _parts(name: str) -> dict[str, Any]:
    """Parts of one's own for the model called `name`."""
    encoder = Convolutional(parts=1 if name == "bernoulli" else 2)
    return {"encoder": encoder, "decoder": Decoder(), "prior": _prior(name)}


def _prior(name: str) -> nn.Module:
    return BitPrior() if name == "bernoulli" else NormalPrior(3 if name == "two_layer" else Z)


class BitPrior(nn.Module):
    """p(h) with the first two bits equal."""

    def __init__(self) -> None:
        super().__init__()
        self.logit = nn.Parameter(torch.tensor(0.7))

    def log_prob(self, h: Tensor) -> Tensor:
        first = torch.distributions.Bernoulli(logits=self.logit).log_prob(h[..., 0])
        other = torch.distributions.Bernoulli(logits=4 * h[..., 0] - 2).log_prob(h[..., 1])
        return first + other - (h.shape[-1] - 2) * math.log(2)

    def sample(self, n: int, generator: torch.Generator | None = None) -> Tensor:
        uniform = torch.rand(n, Z, generator=generator)
        first = (uniform[:, 0] < torch.sigmoid(self.logit)).float()
        second = (uniform[:, 1] < torch.sigmoid(4 * first - 2)).float()
        return torch.cat((first[:, None], second[:, None], (uniform[:, 2:] < 0.5).float()), 1)


def _own(name: str, **options: Any) -> Any:
    upper = {"upper_latent_size": 3} if name == "two_layer" else {}
    return make_model(name, D, Z, (8,), copies=M, samples=K, **{**_parts(name), **upper, **options})


# --- modules -------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", MODELS)
def test_every_model_takes_parts_of_ones_own(name: str) -> None:
    """Trained, evaluated, drawn from; every parameter learns."""
    model, x = _own(name), _data()
    loss = model.loss(x, SEED)
    loss.backward()
    for parameter, p in model.named_parameters():
        assert p.grad is not None, parameter
        assert bool(p.grad.isfinite().all()), parameter
        if not parameter.endswith("0.bias"):  # before a batch norm, which takes it away
            assert bool((p.grad != 0).any()), parameter
    model.eval()
    torch.testing.assert_close(model.bound(x, SEED).mean(), -model.loss(x, SEED).detach())
    estimate = estimate_log_likelihood(model, x, 50, seed=SEED)
    assert bool(estimate.log_likelihood.isfinite().all())
    chunks = estimate_log_likelihood(model, x, 50, seed=SEED, batch_size=3, chunk=7)
    torch.testing.assert_close(chunks.log_likelihood, estimate.log_likelihood)
    assert model.sample(6, SEED).shape == model.sample(6, SEED, draw=True).shape == (6, D)
    assert model.reconstruct(x, SEED, corrupt=True).shape == (B, D)
    twin = copy.deepcopy(model)
    assert torch.equal(twin.bound(x, SEED), model.bound(x, SEED))
    with torch.no_grad():
        next(twin.encoder.parameters()).add_(1)
    assert not torch.equal(twin.bound(x, SEED), model.bound(x, SEED))


def test_a_module_sees_all_rows_at_once() -> None:
    """Batch statistics are those of the M · B rows; eval mode and rows alone are the same."""
    encoder, decoder = Convolutional(), Decoder()
    model = DIWAE(D, Z, encoder=encoder, decoder=decoder, corruption=Masking(0.3), copies=M)
    x = _data()
    noisy = corrupt(x, Masking(0.3), M, SEED)
    alone = copy.deepcopy(encoder)
    mean, log_var = model.encode(noisy)
    assert mean.shape == log_var.shape == (M, B, Z)
    expected = alone(noisy.reshape(M * B, D))
    torch.testing.assert_close((mean, log_var), tuple(t.view(M, B, Z) for t in expected))
    z = torch.randn(M, B, K, Z)
    torch.testing.assert_close(model.eval().decode(z), decoder(z.view(-1, Z)).view(M, B, K, D))
    assert model.decode(z[:, :0]).shape == (M, 0, K, D)


def test_a_part_replaced_later_is_ones_own_too() -> None:
    given, later = (IWAE(D, Z, (8,), decoder=Decoder()), IWAE(D, Z, (8,)))
    later.decoder = given.decoder
    later.encoder.load_state_dict(given.encoder.state_dict())
    assert later.config() == given.config()
    assert later.config()["decoder"] == {"module": f"{__name__}.Decoder"}
    for model in (given, later):
        model.eval()
    assert torch.equal(given.bound(_data(), SEED), later.bound(_data(), SEED))


def test_a_ready_module_given_is_the_ready_one() -> None:
    plain = IWAE(D, Z, (8,), samples=K)
    given = IWAE(D, Z, encoder=plain.encoder, decoder=plain.decoder, samples=K)
    x = _data()
    assert given.split_decoder() is plain.decoder
    torch.testing.assert_close(given.loss(x, SEED), plain.loss(x, SEED))
    gradients = [torch.autograd.grad(m.loss(x, SEED), list(m.parameters())) for m in (plain, given)]
    torch.testing.assert_close(*gradients)


# --- priors --------------------------------------------------------------------------------------


class Linear(nn.Module):
    """z → (W z + b, σ)."""

    def __init__(self, d: int) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.randn(d, Z)), nn.Parameter(torch.randn(d))

    def forward(self, z: Tensor) -> tuple[Tensor, Tensor]:
        return z @ self.weight.T + self.bias, torch.full_like(self.bias, 0.6)


class Posterior(nn.Module):
    """The exact p(z|x) under the prior N(a, S), full."""

    def __init__(self, decoder: Linear, prior: NormalPrior) -> None:
        super().__init__()
        self.decoder, self.prior = decoder, prior

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        w, precision = self.decoder.weight, torch.cholesky_inverse(self.prior.factor)
        covariance = torch.linalg.inv(precision + w.T @ w / 0.36)
        pull = precision @ self.prior.mean + (x - self.decoder.bias) @ w / 0.36
        factor = torch.linalg.cholesky(covariance)
        return pull @ covariance, factor.expand(len(x), Z, Z)


def _exact_model(name: str, **options: Any) -> tuple[Any, Tensor, Tensor]:
    """The linear-Gaussian model with a prior N(a, S), some x, and log p(x)."""
    d = 6
    decoder, prior = Linear(d), NormalPrior()
    model = make_model(
        name, d, Z, encoder=Posterior(decoder, prior), decoder=decoder, prior=prior,
        likelihood="gaussian", covariance="full", samples=K, **options,
    ).double()  # fmt: skip
    x = torch.randn(B, d, dtype=torch.float64) * 2
    w, s = decoder.weight, prior.factor @ prior.factor.T
    covariance = w @ s @ w.T + 0.36 * torch.eye(d, dtype=torch.float64)
    exact = MultivariateNormal(w @ prior.mean + decoder.bias, covariance).log_prob(x)
    return model, x, exact.detach()


@pytest.mark.parametrize("name", ["vae", "iwae"])
def test_at_the_true_posterior_the_bound_is_log_p(name: str) -> None:
    model, x, exact = _exact_model(name, copies=M)
    torch.testing.assert_close(model.bound(x, SEED), exact)
    torch.testing.assert_close(model.loss(x, SEED).detach(), -exact.mean())
    estimate = estimate_log_likelihood(model, x, 7, seed=SEED)
    torch.testing.assert_close(estimate.log_likelihood, exact)
    mean, factor = model.encode(x)
    log_w = model.log_weights(x, mean, factor, K, SEED).detach()
    torch.testing.assert_close(log_w, exact[:, None].expand(B, K))


def test_samples_are_of_the_prior() -> None:
    """6 standard errors of each of 6 means and 21 covariances: a false alarm in 10 million."""
    model, _, _ = _exact_model("vae")
    n = 4000
    draws = model.sample(n, SEED)
    with torch.no_grad():
        w, s = model.decoder.weight, model.prior.factor @ model.prior.factor.T
        mean, covariance = w @ model.prior.mean + model.decoder.bias, w @ s @ w.T
    variance = covariance.diagonal()
    assert bool(((draws.mean(0) - mean).abs() < 6 * (variance / n).sqrt()).all())
    error = ((variance.outer(variance) + covariance.square()) / n).sqrt()
    assert bool(((torch.cov(draws.T) - covariance).abs() < 6 * error).all())
    assert torch.equal(draws, model.sample(n, SEED))
    assert not torch.equal(draws, model.sample(n, SEED + 1))


def _same_but_for_the_prior(**options: Any) -> tuple[IWAE, IWAE]:
    """A model with a standard normal of one's own, and the one that is fused."""
    plain = IWAE(D, Z, (8,), copies=M, samples=K, **options).double()
    own = IWAE(D, Z, (8,), copies=M, samples=K, **options).double()
    own.load_state_dict(plain.state_dict())
    own.prior = StandardNormal(Z)
    return plain, own


@pytest.mark.parametrize("estimator", ["standard", "stl", "dreg", "vimco"])
@pytest.mark.parametrize("objective", [n for n in OBJECTIVES if not Objective(n).bound.analytic])
def test_a_standard_normal_of_ones_own_changes_nothing(objective: str, estimator: str) -> None:
    """Value and gradient, with a weight of the divergence, for every objective and estimator."""
    if estimator not in OBJECTIVES[objective].estimators:
        return
    plain, own = _same_but_for_the_prior(objective=objective, estimator=estimator)
    assert plain.prior_is_fused
    assert not own.prior_is_fused
    x = _data().double()
    results = []
    for model in (plain, own):
        model.kl_weight = 0.4
        loss = model.loss(x, SEED)
        results.append((loss, *torch.autograd.grad(loss, list(model.parameters()))))
    torch.testing.assert_close(*results)
    torch.testing.assert_close(plain.bound(x, SEED), own.bound(x, SEED))


@pytest.mark.parametrize("name", [n for n in MODELS if n != "bernoulli"])
def test_gradients_of_a_learnt_prior_are_those_of_the_formula(name: str) -> None:
    """∂/∂prior of the bound is Σ w̃ ∂log p(z): central differences of the loss, same noise."""
    upper = {"upper_latent_size": 3} if name == "two_layer" else {}
    prior = NormalPrior(3 if name == "two_layer" else Z)
    model = make_model(name, D, Z, (8,), copies=M, samples=K, prior=prior, **upper).double()
    x = _data().double()
    loss = model.loss(x, SEED)
    found = torch.autograd.grad(loss, [prior.mean, prior.factor])
    h = 1e-5
    for parameter, gradient in zip((prior.mean, prior.factor), found, strict=True):
        for index in ((0,), (2,)) if parameter.dim() == 1 else ((1, 0), (2, 2)):
            values = []
            for step in (h, -2 * h):
                with torch.no_grad():
                    parameter[index] += step
                values.append(float(model.loss(x, SEED).detach()))
            with torch.no_grad():
                parameter[index] += h
            slope = (values[0] - values[1]) / (2 * h)
            assert slope == pytest.approx(float(gradient[index]), rel=1e-6, abs=1e-8)


def test_bits_of_a_prior_of_ones_own() -> None:
    """VIMCO's loss has the prior's gradient; draws have the first two bits equal, mostly."""
    prior = BitPrior()
    model = BernoulliLatentModel(D, Z, (8,), samples=K, prior=prior).double()
    x = _data().double()
    (gradient,) = torch.autograd.grad(model.loss(x, SEED), [prior.logit])
    values = []
    for step in (1e-5, -2e-5):
        with torch.no_grad():
            prior.logit += step
        values.append(float(model.loss(x, SEED).detach()))
    assert (values[0] - values[1]) / 2e-5 == pytest.approx(float(gradient), rel=1e-6)
    model.decoder = nn.Sequential(nn.Linear(Z, D, bias=False))
    with torch.no_grad():
        model.decoder[0].weight.zero_()
        model.decoder[0].weight[0, 0] = model.decoder[0].weight[1, 1] = 1
    model.double()
    ones = model.sample(3000, SEED)[:, :2] > 0.6
    share = float((ones[:, 0] == ones[:, 1]).double().mean())
    expected = 1 / (1 + math.exp(-2))
    assert abs(share - expected) < 5 * math.sqrt(expected * (1 - expected) / 3000)


# --- files ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", MODELS)
def test_saved_and_loaded(name: str, tmp_path: Path) -> None:
    path, x = tmp_path / "m.safetensors", _data()
    model = _own(name)
    model.loss(x).backward()  # so that the batch norms have seen something
    with pytest.warns(UserWarning, match=r"encoder \(test_own_parts.Convolutional\), decoder .*"
                      "prior .* load_model must be given encoder=, decoder=, prior="):  # fmt: skip
        save_model(path, model)
    again = load_model(path, **_parts(name))
    assert type(again) is type(model)
    assert not again.training
    assert torch.equal(again.bound(x, SEED), model.eval().bound(x, SEED))
    with pytest.raises(
        CheckpointError, match="encoder must be given: the model has one of its own"
    ):
        load_model(path)
    parts = _parts(name)
    del parts["prior"]
    with pytest.raises(CheckpointError, match=f"prior must be given.*{type(model.prior).__name__}"):
        load_model(path, **parts)
    with pytest.raises(CheckpointError, match="does not hold a model that fits"):
        load_model(path, **{**_parts(name), "decoder": nn.Linear(Z, D)})


@pytest.mark.parametrize("name", MODELS)
def test_parts_made_by_name_are_made_again(name: str, tmp_path: Path) -> None:
    path, x = tmp_path / "m.safetensors", _data().double()
    options = {"upper_latent_size": 3} if name == "two_layer" else {}
    options |= {"learn_prior": True} if name == "bernoulli" else {}
    model = make_model(
        name, D, Z, (8, 5), decoder_hidden_sizes=(6,), encoder="gru_2d", image_shape=SHAPE,
        copies=M, samples=K, **options,
    ).double()  # fmt: skip
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        save_model(path, model)
    again = load_model(path)
    assert again.config() == model.config()
    assert torch.equal(again.bound(x, SEED), model.bound(x, SEED))
    with pytest.raises(CheckpointError, match="decoder must be left out: the model's is made by"):
        load_model(path, decoder=Decoder())


class Laplace(Likelihood):
    params = {"mean": identity, "scale": positive}  # noqa: RUF012  (as the documentation has it)

    def log_prob(self, params: tuple[Tensor, ...], x: Tensor) -> Tensor:
        mean, scale = params
        return -(x - mean).abs() / scale - (2 * scale).log()


def test_a_likelihood_of_ones_own_is_put_in_again(tmp_path: Path) -> None:
    path, x = tmp_path / "m.safetensors", _data()
    model = DIWAE(D, Z, (8,), likelihood=Laplace(), copies=M, samples=K)
    with pytest.warns(UserWarning, match=r"likelihood \(.*Laplace\) cannot be built again by name"):
        save_model(path, model)
    again = load_model(path, likelihood=Laplace())
    assert torch.equal(again.bound(x, SEED), model.bound(x, SEED))
    with pytest.raises(CheckpointError, match="likelihood must be given"):
        load_model(path)


class Fade(nn.Module, Corruption):
    def __init__(self, strength: float = 0.5) -> None:
        super().__init__()
        self.strength = nn.Parameter(torch.tensor(strength))

    def draw(self, x: Tensor, generator: torch.Generator) -> Tensor:
        return x * (1 - self.strength * torch.rand(x.shape, generator=generator))


def _fog(x: Tensor) -> Tensor:
    return x + torch.randn_like(x)


@pytest.mark.parametrize(
    ("make", "shown"),
    [
        (Fade, r"test_own_parts\.Fade"),
        (lambda: _fog, r"FunctionCorruption\(_fog\)"),
        (lambda: Compose(Masking(0.1), Fade()), r".*\.Compose"),
    ],
    ids=("class", "function", "composed"),
)
@pytest.mark.parametrize("name", [n for n, m in MODELS.items() if "corruption" in options_of(m)])
def test_a_corruption_of_ones_own_is_put_in_again(
    name: str, make: Callable[[], Any], shown: str, tmp_path: Path
) -> None:
    path, x = tmp_path / "m.safetensors", _data()
    model = make_model(name, D, Z, (8,), corruption=make(), copies=M, samples=K)
    with torch.no_grad():
        for part in model.modules():
            if isinstance(part, Fade):
                part.strength.fill_(0.25)
    with pytest.warns(UserWarning, match=rf"corruption \({shown}\) cannot be built again by name"):
        save_model(path, model)
    again = load_model(path, corruption=make())
    assert torch.equal(again.bound(x, SEED), model.bound(x, SEED))
    with pytest.raises(CheckpointError, match=f"corruption must be given: .*{shown}"):
        load_model(path)


# --- refusals ------------------------------------------------------------------------------------


class Elementwise(nn.Module):
    def log_prob(self, z: Tensor) -> Tensor:
        return -z.square()

    def sample(self, n: int, generator: torch.Generator | None = None) -> Tensor:
        return torch.randn(n, Z + 1, generator=generator)


test_refusals = refusals(
    [
        (
            lambda: VAE(D, objective=ANALYTIC, prior=NormalPrior(50)),
            ValueError,
            f"objective must not be {ANALYTIC} with a prior of one's own",
        ),
        (
            lambda: VAE(D, Z, prior=Elementwise()).loss(_data()),
            ValueError,
            rf"prior's log_prob must return shape \({B}, 1\) for z of shape \({B}, 1, {Z}\), got",
        ),
        (
            lambda: VAE(D, Z, prior=Elementwise()).sample(7),
            ValueError,
            rf"prior's sample must return shape \(7, {Z}\), got \(7, {Z + 1}\)",
        ),
        (
            lambda: VAE(D, Z, encoder=Decoder(D)).encode(_data()),
            TypeError,
            "encoder must return two tensors, mean and log_var, got Tensor",
        ),
        (
            lambda: VAE(D, Z, decoder=Decoder(), data_mean=torch.rand(D)),
            ValueError,
            "data_mean must be left out with a decoder of one's own",
        ),
        (
            lambda: BernoulliLatentModel(D, Z, prior=BitPrior(), learn_prior=True),
            ValueError,
            "learn_prior must be off with a prior of one's own",
        ),
        (
            lambda: VAE(D, 2, prior=NormalPrior(2)).manifold(3),
            ValueError,
            "prior must be the standard normal for the plane of its quantiles, got NormalPrior",
        ),
        (
            lambda: annealed_importance_sampling(BernoulliLatentModel(D, Z), _data()),
            ValueError,
            "model must have one layer of latents, continuous",
        ),
    ]
)


def test_a_prior_need_not_be_a_module() -> None:
    class Shifted:
        def log_prob(self, z: Tensor) -> Tensor:
            return StandardNormal(Z).log_prob(z - 1)

        def sample(self, n: int, generator: torch.Generator | None = None) -> Tensor:
            return StandardNormal(Z).sample(n, generator) + 1

    model = TwoLayerModel(D, 3, (8,), upper_latent_size=Z, prior=Shifted())
    model.loss(_data(), SEED).backward()
    assert not any("prior" in name for name in model.state_dict())
    assert model.sample(3, SEED).shape == (3, D)
