"""What a conditional model is told: by label, by numbers, in every part, for every example."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from linear_gaussian import linear_gaussian
from torch import Tensor, nn
from torch.distributions import Bernoulli, Normal
from torch.utils.data import DataLoader, TensorDataset

import dvae_fast
from dvae_fast import functional
from dvae_fast.evaluation import (
    LikelihoodEstimate,
    annealed_importance_sampling,
    bidirectional_monte_carlo,
)
from dvae_fast.evaluation import estimate_log_likelihood as estimate
from dvae_fast.models import MODELS, Autoencoder, Decoder, GaussianEncoder, make_model
from dvae_fast.training.run import mean_bound

B, D, Z, C, SEED = 5, 16, 3, 4, 7


def _data() -> tuple[Tensor, Tensor, Tensor]:
    """x, labels, and the numbers that they stand for."""
    g = torch.Generator().manual_seed(2)
    labels = torch.tensor([2, 0, 3, 3, 1])
    return torch.rand(B, D, generator=g).round(), labels, nn.functional.one_hot(labels, C).float()


def _model(name: str = "diwae", **options: Any) -> Any:
    torch.manual_seed(4)
    options = {"latent_size": Z, "hidden_sizes": (8, 6), "context_size": C} | options
    return make_model(name, D, **options)


PARTS: dict[str, dict[str, Any]] = {
    "plain": {},
    "no hidden layers": {"hidden_sizes": ()},
    "two parameters": {"likelihood": "gaussian"},
    "copies": {"copies": 2, "samples": 3},
    "images": {"encoder": "conv", "image_shape": (4, 4)},
    "rows": {"encoder": "gru_2d", "image_shape": (4, 4)},
    "full": {"covariance": "full"},
    "another activation": {"activation": "elu"},
}


@pytest.mark.parametrize("part", PARTS)
@pytest.mark.parametrize("name", [n for n in MODELS if n not in ("vae", "dvae")])
def test_every_model_takes_one_everywhere(name: str, part: str) -> None:
    if part == "full" and name in ("bernoulli", "two_layer"):
        pytest.skip("has no covariance")
    model = _model(name, **PARTS[part])
    x, labels, numbers = _data()
    loss = model.loss(x, SEED, context=labels)
    loss.backward()
    for parameter_name, p in model.named_parameters():
        if "context" in parameter_name:
            assert bool((p.grad != 0).any()), parameter_name
    assert torch.equal(loss, model.loss(x, SEED, context=numbers))
    assert torch.equal(loss, model(x, SEED, context=labels.to(torch.uint8)))
    torch.testing.assert_close(-model.bound(x, SEED, context=labels).mean(), loss.detach())
    with torch.no_grad():
        other = model.loss(x, SEED, context=(labels + 1) % C)
    assert not torch.isclose(loss, other)
    # Examples of a batch keep theirs.
    halves = [
        model.bound(x[rows], SEED, context=labels[rows], first_example=rows.start)
        for rows in (slice(0, 2), slice(2, B))
    ]
    torch.testing.assert_close(torch.cat(halves), model.bound(x, SEED, context=labels))
    means = model.reconstruct(x, context=labels)
    assert means.shape == (B, D)
    assert not torch.equal(means, model.reconstruct(x, context=(labels + 1) % C))
    drawn = model.sample(9, SEED, context=torch.arange(9) % C)
    assert drawn.shape == (9, D)
    assert not torch.equal(drawn, model.sample(9, SEED, context=torch.zeros(9, dtype=torch.int64)))
    again = Autoencoder.from_config(model.config())
    again.load_state_dict(model.state_dict())
    assert torch.equal(again.loss(x, SEED, context=labels), loss)


@pytest.mark.parametrize(
    "part", ["plain", "no hidden layers", "another activation", "two parameters"]
)
def test_log_weights_against_torch(part: str) -> None:
    """All of them, in float64: the networks with a one-hot vector beside their inputs."""
    model = _model("iwae", **PARTS[part], samples=K).double()
    x, labels, numbers = _data()
    x, numbers = x.double(), numbers.double()
    mean, log_var = _wide(model.encoder, x, numbers)
    z, ratio = dvae_fast.sample_latent(mean, log_var, K, SEED)
    params = _wide(model.decoder, z, numbers.unsqueeze(1).expand(-1, K, -1))
    p = Normal(*params) if part == "two parameters" else Bernoulli(logits=params)
    log_w = p.log_prob(x.unsqueeze(1)).sum(-1) + ratio
    expected = torch.logsumexp(log_w, 1) - np.log(K)
    torch.testing.assert_close(model.bound(x, SEED, context=labels), expected.detach())
    for chunk, batch_size in ((K, B), (5, 2), (1, 1)):
        found = estimate(model, x, K, context=labels, chunk=chunk, batch_size=batch_size, seed=SEED)
        torch.testing.assert_close(found.log_likelihood, expected.detach())


K = 13


def _wide(network: Any, t: Tensor, numbers: Tensor) -> Any:
    """What the network gives, its first layers made to read both side by side."""
    last = network.output if hasattr(network, "output") else None
    layers = list(network.trunk) + ([last] if isinstance(network, GaussianEncoder) else [])
    if network.context is not None:
        first = layers[0]
        weight = torch.cat((first.weight, network.context.weight), 1)
        t = nn.functional.linear(torch.cat((t, numbers), -1), weight, first.bias)
        layers = layers[1:]
    else:
        t = torch.cat((t, numbers), -1)
    for layer in layers:
        t = layer(t)
    if isinstance(network, GaussianEncoder):
        return t.chunk(2, -1)
    assert isinstance(network, Decoder)
    if last is not None:
        return last(t)
    return [
        link(getattr(network, name)(t))
        for name, link in zip(("mean", "scale"), network.links, strict=True)
    ]


@pytest.mark.parametrize("proposal", ["posterior", "corrupted", "mixture"])
@pytest.mark.parametrize(
    "kind", ["plain", "mixture prior", "vamp prior", "two layers", "own parts"]
)
def test_evaluated_in_parts_as_in_one_call(kind: str, proposal: str) -> None:
    x, labels, numbers = _data()
    model = {
        "plain": lambda: _model(),
        "mixture prior": lambda: _model(prior="mixture", prior_components=3),
        "vamp prior": lambda: _model(prior="vamp", prior_components=3),
        "two layers": lambda: _model("two_layer", corruption=dvae_fast.corruptions.Masking(0.3)),
        "own parts": lambda: _model(encoder=OwnEncoder(), decoder=OwnDecoder()),
    }[kind]()
    options: dict[str, Any] = {
        "proposal": proposal,
        "copies": 3,
        "seed": SEED,
        "tolerance": 0.2,
        "max_k": 80,
    }
    whole = estimate(model, x, 40, context=labels, **options)
    parts = [
        estimate(model, x[rows], 40, context=numbers[rows].numpy(), first_example=rows.start,
                 chunk=9, batch_size=2, **options)
        for rows in (slice(0, 1), slice(1, B))
    ]  # fmt: skip
    joined = LikelihoodEstimate.concat(parts)
    for field in ("log_likelihood", "standard_error", "spent"):
        torch.testing.assert_close(
            getattr(joined, field), getattr(whole, field), rtol=1e-4, atol=1e-4
        )


class OwnEncoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(D + C, 2 * Z)
        self.seen: list[tuple[Any, Any]] = []

    def forward(self, x: Tensor, context: Tensor) -> Any:
        assert x.dim() == context.dim() == 2
        return self.layer(torch.cat((x, context), 1)).chunk(2, -1)


class OwnDecoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(Z + C, D)

    def forward(self, z: Tensor, context: Tensor) -> Any:
        assert z.dim() == context.dim() == 2
        return self.layer(torch.cat((z, context), 1))


def test_parts_of_ones_own_are_told_row_by_row() -> None:
    """The same as the ready ones, which read both side by side where they have no hidden layers."""
    ready, own = _model(hidden_sizes=()), _model(encoder=OwnEncoder(), decoder=OwnDecoder())
    with torch.no_grad():
        encoder = ready.encoder
        own.encoder.layer.weight.copy_(
            torch.cat((encoder.output.weight, encoder.context.weight), 1)
        )
        own.encoder.layer.bias.copy_(encoder.output.bias)
        own.decoder.layer.load_state_dict(ready.decoder.output.state_dict())
    x, labels, _ = _data()
    torch.testing.assert_close(
        own.bound(x, SEED, context=labels), ready.bound(x, SEED, context=labels)
    )
    annealed = [
        annealed_importance_sampling(
            m, x, context=labels, chains=3, temperatures=4, leapfrog=2, seed=SEED
        ).log_likelihood
        for m in (own, ready)
    ]
    torch.testing.assert_close(*annealed, rtol=1e-3, atol=1e-3)


def test_a_model_of_anybodys_is_told_too() -> None:
    """Rows of labels, or (B, 1) where it takes samples; by importance sampling and by AIS."""
    encoder, decoder = OwnEncoder(), OwnDecoder()
    x, labels, numbers = _data()
    seen = []

    def encode(x: Tensor, y: Tensor) -> Any:
        return encoder(x, nn.functional.one_hot(y, C).float())

    def decode(z: Tensor, y: Tensor) -> Any:
        seen.append((z.shape[:-1], y.shape))
        return decoder(z, nn.functional.one_hot(y, C).float())

    plain = estimate((encoder, decoder), x, 30, context=numbers, seed=SEED)
    told = estimate((encode, decode), x, 30, context=labels, seed=SEED)
    torch.testing.assert_close(told.log_likelihood, plain.log_likelihood)
    assert {a == b for a, b in seen} == {True}

    def samples(z: Tensor, y: Tensor) -> Any:
        assert y.shape == (len(z), 1)
        return decoder.layer(torch.cat((z, numbers_of(y).expand(*z.shape[:-1], C)), -1))

    def numbers_of(y: Tensor) -> Tensor:
        return nn.functional.one_hot(y, C).float()

    samples.takes_samples = True  # type: ignore[attr-defined]
    told = estimate((encode, samples), x, 30, context=labels, seed=SEED)
    torch.testing.assert_close(told.log_likelihood, plain.log_likelihood)
    annealed = [
        annealed_importance_sampling(
            given, x, context=y, chains=3, temperatures=4, leapfrog=2, seed=SEED
        ).log_likelihood
        for given, y in (((encoder, decoder), numbers), ((encode, decode), labels))
    ]
    torch.testing.assert_close(*annealed)


def test_simulated_data_given_a_context() -> None:
    """Lower and upper bounds of log p(x|y): 5 standard errors of a gap that is none."""
    labels = torch.arange(40) % C
    encoder, decoder = OwnEncoder(), OwnDecoder()
    model = _model("iwae", encoder=encoder, decoder=decoder)
    options: dict[str, Any] = {"chains": 8, "temperatures": 20, "leapfrog": 3, "seed": SEED}
    both = bidirectional_monte_carlo(model, 40, context=labels, **options)
    numbers = nn.functional.one_hot(labels, C).float()
    pair = bidirectional_monte_carlo(
        (encoder, decoder), 40, context=numbers, latent_size=Z, **options
    )
    torch.testing.assert_close(both.x.reshape(pair.x.shape), pair.x)
    torch.testing.assert_close(both.gap, pair.gap, rtol=1e-3, atol=1e-3)
    error = math.hypot(both.forward.mean_standard_error, both.reverse.mean_standard_error)
    assert abs(float(both.gap.mean())) < 5 * error
    for wrong in (None, labels[1:], labels + 1):
        with pytest.raises(ValueError, match="context must"):
            bidirectional_monte_carlo(model, 40, context=wrong, **options)


def test_labels_of_a_dataset_are_the_context() -> None:
    model, (x, labels, _) = _model(), _data()
    expected = estimate(model, x, 20, context=labels, seed=SEED).log_likelihood
    pairs = TensorDataset(x, labels)
    for data in (pairs, DataLoader(pairs, batch_size=2)):
        torch.testing.assert_close(estimate(model, data, 20, seed=SEED).log_likelihood, expected)
        bound = mean_bound(model, data, SEED, 3)
        assert bound == pytest.approx(float(model.bound(x, SEED, context=labels).mean()), rel=1e-5)
    plain = make_model("iwae", D, Z, (8,))  # has no use for them
    torch.testing.assert_close(
        estimate(plain, pairs, 20, seed=SEED).log_likelihood,
        estimate(plain, x, 20, seed=SEED).log_likelihood,
    )


@pytest.mark.parametrize(
    ("context", "message"),
    [
        (None, r"context must be given for a model with context_size = 4: \(B, C\) = \(5, 4\)"),
        (torch.zeros(4, dtype=torch.int64), "got 4 labels"),
        (torch.tensor([0, 1, 2, 3, 4]), "labels from 0 to 3, got labels from 0 to 4"),
        (torch.tensor([0, 1, 2, 3, -1]), "labels from 0 to 3, got labels from -1 to 3"),
        (torch.zeros(B, 3), r"got torch.float32 of shape \(5, 3\)"),
        (torch.zeros(B + 1, C), r"got torch.float32 of shape \(6, 4\)"),
        (torch.zeros(B), r"got torch.float32 of shape \(5,\)"),
        (torch.zeros(B, 1, C), r"got torch.float32 of shape \(5, 1, 4\)"),
        (torch.zeros(B, dtype=torch.bool), "context must be numbers"),
        (3, "context must be a tensor, got int"),
        (torch.zeros(B, C).to_sparse(), "context must be a dense tensor"),
    ],
)
def test_another_context_is_refused(context: Any, message: str) -> None:
    model, (x, *_) = _model(), _data()
    for call in (
        lambda: model.loss(x, context=context),
        lambda: model.bound(x, context=context),
        lambda: model.reconstruct(x, context=context),
        lambda: model.sample(B, context=context),
        lambda: estimate(model, x, 9, context=context),
        lambda: annealed_importance_sampling(model, x, context=context),
    ):
        with pytest.raises((TypeError, ValueError), match=message):
            call()


@pytest.mark.parametrize("name", MODELS)
def test_a_model_without_one_refuses_it(name: str) -> None:
    model, (x, labels, _) = make_model(name, D, Z, (8,)), _data()
    for call in (
        lambda: model.loss(x, context=labels),
        lambda: model.sample(B, context=labels),
        lambda: estimate(model, x, 9, context=labels),
    ):
        with pytest.raises(ValueError, match="context must be None for a model without a context"):
            call()
    with pytest.raises(ValueError, match="context_size must be >= 0, got -1"):
        make_model(name, D, Z, (8,), context_size=-1)


def test_pictures_of_lines_and_planes() -> None:
    model = _model("iwae", latent_size=2)
    x, labels, _ = _data()
    lines = model.interpolate(x[:2], x[2:4], 3, context=labels[:2])
    torch.testing.assert_close(lines[:, 0], model.reconstruct(x[:2], context=labels[:2]))
    plane = model.manifold(3, context=torch.tensor([2]))
    assert plane.shape == (3, 3, D)
    assert not torch.equal(plane, model.manifold(3, context=torch.tensor([1])))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("grad", [False, True])
@pytest.mark.parametrize("sizes", [(3, 7, 6, 9), (3, 9)])
def test_a_first_bias_of_each_example(
    sizes: tuple[int, ...], grad: bool, dtype: torch.dtype
) -> None:
    """mlp_log_weights with (B, O) is the call with (O,) of each example by itself."""
    g = torch.Generator().manual_seed(3)
    leading, b, k = (2,), 4, 5
    draw = lambda *shape: torch.randn(*shape, generator=g, dtype=dtype)
    layers = [(draw(o, i), draw(o)) for i, o in pairwise(sizes)]
    shift = draw(b, sizes[1]).requires_grad_(grad)
    z, x = draw(*leading, b, k, sizes[0]), draw(b, sizes[-1]).sigmoid().round()
    ratio = draw(*leading, b, k)
    out = functional.mlp_log_weights(z, [(layers[0][0], shift), *layers[1:]], x, ratio)
    each = [
        functional.mlp_log_weights(
            z[:, i : i + 1], [(layers[0][0], shift[i]), *layers[1:]], x[i : i + 1],
            ratio[:, i : i + 1],
        )
        for i in range(b)
    ]  # fmt: skip
    torch.testing.assert_close(out, torch.cat(each, 1))
    if grad:
        pull = draw(*out.shape)
        found, expected = (
            torch.autograd.grad((t * pull).sum(), shift)[0] for t in (out, torch.cat(each, 1))
        )
        torch.testing.assert_close(found, expected)
    with pytest.raises(ValueError, match=r"bias of layer 0 must have shape \(O,\) or \(B, O\)"):
        functional.mlp_log_weights(z, [(layers[0][0], shift[:3]), *layers[1:]], x, ratio)


def test_a_prior_of_ones_own_is_told_if_it_asks() -> None:
    class Told(nn.Module):
        takes_context = True

        def log_prob(self, z: Tensor, context: Tensor) -> Tensor:
            assert context.shape == (B, 1, C)
            return Normal(context[..., :Z], 1.0).log_prob(z).sum(-1)

        def sample(self, n: int, generator: Any = None, context: Any = None) -> Tensor:
            assert context.shape == (n, C)
            return torch.randn(n, Z, generator=generator) + context[:, :Z]

    x, labels, numbers = _data()
    model, plain = _model("iwae", prior=Told(), samples=K), _model("iwae", samples=K)
    mean, log_var = model.encode(x, numbers)
    z, ratio = dvae_fast.sample_latent(mean, log_var, K, SEED)
    shift = numbers[:, None, :Z]
    more = (z * shift - 0.5 * shift.square()).sum(-1)
    log_w = dvae_fast.log_weights(plain.decode(z, numbers.unsqueeze(1)), x, ratio + more)
    torch.testing.assert_close(
        model.bound(x, SEED, context=labels), dvae_fast.logmeanexp(log_w).detach()
    )
    assert model.sample(9, SEED, context=torch.arange(9) % C).shape == (9, D)
    assert linear_gaussian("iwae").context_size == 0
