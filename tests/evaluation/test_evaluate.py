"""The evaluator against exact likelihoods, and against itself in every split of the work."""

from __future__ import annotations

import contextlib
import functools
import json
import math
import re
import types
from typing import TYPE_CHECKING, Any

import pytest
import torch
from linear_gaussian import draw_data, exact_log_likelihood, linear_gaussian
from torch import Tensor, nn

import dvae_fast
from dvae_fast import corruptions, evaluation, functional, reference
from dvae_fast.evaluation import LikelihoodEstimate, estimate_log_likelihood, statistics
from dvae_fast.evaluation.importance import split
from dvae_fast.evaluation.precision import has_bfloat16
from dvae_fast.models import LatentVariableModel, make_model
from dvae_fast.noise import latent_noise

if TYPE_CHECKING:
    from dvae_fast.corruptions import Corruption
    from dvae_fast.evaluation import EvaluationProgress

N, K, Z, D = 11, 23, 3, 9
SEED = 99
FIELDS = ("log_likelihood", "standard_error", "ess", "elbo")


def _model(likelihood: str = "bernoulli", name: str = "iwae") -> LatentVariableModel:
    corruption: Corruption | None = corruptions.Masking(0.9) if name == "dvae" else None
    return make_model(name, D, Z, (8, 6), likelihood=likelihood, corruption=corruption).double()


def _data(n: int = N) -> Tensor:
    return torch.rand(n, D, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def _same(a: LikelihoodEstimate, b: LikelihoodEstimate, rows: slice | list[int]) -> None:
    for field in FIELDS:
        torch.testing.assert_close(
            getattr(a, field)[rows], getattr(b, field), rtol=1e-9, atol=1e-9, equal_nan=True
        )


# --- exact answers ----------------------------------------------------------------------------


def test_within_its_own_standard_error() -> None:
    """5 standard errors of the mean: a false alarm in 2 million, were the noise drawn anew."""
    model = linear_gaussian("iwae", widen=2.0)
    x = draw_data(model, 400)
    exact = exact_log_likelihood(model, x)
    estimate = estimate_log_likelihood(model, x, 2000, seed=SEED)
    assert 0 < estimate.mean_standard_error < 5e-3
    assert abs(estimate.mean - float(exact.mean())) < 5 * estimate.mean_standard_error
    # The errors are as large as it says: χ² of 400, again 5 of its standard deviations.
    squares = ((estimate.log_likelihood - exact) / estimate.standard_error).square()
    assert float(squares.mean()) == pytest.approx(1, abs=5 * math.sqrt(2 / 400))
    assert bool((estimate.ess > 1).all())
    assert bool((estimate.ess < 2000).all())
    assert bool((estimate.elbo < exact).all())
    assert estimate.non_finite == 0


def test_with_the_exact_posterior_nothing_is_left_to_chance() -> None:
    model = linear_gaussian("vae", orthogonal=True)
    x = draw_data(model, N)
    exact = exact_log_likelihood(model, x)
    estimate = estimate_log_likelihood(model, x, K)
    torch.testing.assert_close(estimate.log_likelihood, exact)
    torch.testing.assert_close(estimate.elbo, exact)
    torch.testing.assert_close(estimate.ess, torch.full_like(exact, K))
    assert float(estimate.standard_error.max()) < 1e-6


@pytest.mark.parametrize("likelihood", ["bernoulli", "gaussian"])
def test_statistics_are_those_of_the_weights(likelihood: str) -> None:
    model, x = _model(likelihood), _data()
    estimate = estimate_log_likelihood(model, x, K, chunk=5, batch_size=4, seed=SEED)
    with torch.no_grad():
        mean, log_var = model.encode(x)
        noise = latent_noise(1, N, K, Z, torch.tensor([SEED]), 0, 0, torch.float64)[0]
        q = torch.distributions.Normal(mean.unsqueeze(1), torch.exp(0.5 * log_var).unsqueeze(1))
        z = q.loc + q.scale * noise
        params = model.decoder(z)
        p = (
            torch.distributions.Bernoulli(logits=params, validate_args=False)
            if likelihood == "bernoulli"
            else torch.distributions.Normal(*params)
        )
        prior = torch.distributions.Normal(0.0, 1.0).log_prob(z).sum(-1)
        log_w = p.log_prob(x.unsqueeze(1)).sum(-1) + prior - q.log_prob(z).sum(-1)
    w = torch.exp(log_w - log_w.amax(1, keepdim=True))
    torch.testing.assert_close(estimate.log_likelihood, torch.logsumexp(log_w, 1) - math.log(K))
    torch.testing.assert_close(estimate.elbo, log_w.mean(1))
    torch.testing.assert_close(estimate.ess, w.sum(1).square() / w.square().sum(1))
    spread = w.var(1, correction=0).sqrt() / w.mean(1) / math.sqrt(K)
    torch.testing.assert_close(estimate.standard_error, spread)


# --- any split gives the same numbers ---------------------------------------------------------


@pytest.mark.parametrize("likelihood", ["bernoulli", "gaussian"])
@pytest.mark.parametrize(
    ("batch_size", "chunk"),
    [(1, 1), (3, 7), (4, 22), (N, 24), (N + 5, K), (None, 4), (2, None), (10**6, None)],
)
def test_anysplit(batch_size: int | None, chunk: int | None, likelihood: str) -> None:
    model, x = _model(likelihood), _data()
    whole = estimate_log_likelihood(model, x, K, batch_size=N, chunk=K, seed=SEED)
    part = estimate_log_likelihood(model, x, K, batch_size=batch_size, chunk=chunk, seed=SEED)
    _same(whole, part, slice(None))


def test_default_split_in_single_precision() -> None:
    """Relative to log-likelihoods of some 6 nats; float32 matrix products differ by shape."""
    model, x = _model().float(), _data().float()
    default = estimate_log_likelihood(model, x, 3001, seed=SEED)
    part = estimate_log_likelihood(model, x, 3001, batch_size=2, chunk=577, seed=SEED)
    for field in FIELDS:
        torch.testing.assert_close(
            getattr(default, field), getattr(part, field), rtol=1e-5, atol=1e-5
        )
        assert getattr(default, field).dtype == torch.float64


def test_weights_are_counted_once_and_all(monkeypatch: pytest.MonkeyPatch) -> None:
    """k not a multiple of the chunk: each sample index is asked for once, the remainder too."""
    model, x = _model(), _data()
    asked: dict[int, list[int]] = {}
    original = functional.sample_latent

    def recorded(mean: Tensor, log_var: Tensor, k: int, *args: Any, **at: int) -> Any:
        samples = range(at["first_sample"], at["first_sample"] + k)
        for example in range(at["first_example"], at["first_example"] + len(mean)):
            asked.setdefault(example, []).extend(samples)
        return original(mean, log_var, k, *args, **at)

    monkeypatch.setattr(functional, "sample_latent", recorded)
    estimate_log_likelihood(model, x, K, batch_size=4, chunk=6, seed=SEED)
    assert asked == {example: list(range(K)) for example in range(N)}


def test_states_merge() -> None:
    """Halves of the samples, kept apart and merged, are the whole: as processes would."""
    model, x = _model(), _data()
    mean, log_var = model.encode(x)
    op: Any = torch.ops.dvae_fast
    states = []
    for first, k in ((0, 10), (10, 13)):
        log_w = model.log_weights(x, mean, log_var, k, SEED, first_sample=first).detach()
        states.append(op.lse_update(reference.lse_init(N), log_w))
    merged = types.SimpleNamespace(**statistics.from_state(reference.lse_merge(*states)))
    _same(merged, estimate_log_likelihood(model, x, K, seed=SEED), slice(None))


@pytest.mark.parametrize(
    ("k", "batch_size", "chunk", "expected"),
    [
        (5000, None, None, (10, 250)),
        (50, None, None, (50, 50)),
        (1, None, None, (2500, 1)),
        (5000, 100, None, (100, 25)),
        (5000, 9999, None, (9999, 1)),
        (5000, None, 1000, (2, 1000)),
        (5000, None, 9999, (1, 5000)),
        (5000, 7, 11, (7, 11)),
    ],
)
def test_default_sizes(
    k: int, batch_size: int | None, chunk: int | None, expected: tuple[int, int]
) -> None:
    assert split(k, batch_size, chunk, 2500) == expected


def test_rows_at_once_do_not_grow_with_k() -> None:
    model, x = _model(), _data()
    rows: list[int] = []
    model.decoder.trunk.register_forward_hook(
        lambda module, args, out: rows.append(args[0].shape[:-1].numel())
    )
    estimate_log_likelihood(model, x, 6000, batch_size=4, chunk=100)
    assert max(rows) == 400
    assert sum(rows) == 6000 * N


# --- conduct ----------------------------------------------------------------------------------


def test_encodes_each_batch_once_without_corruption() -> None:
    model, x = _model(name="dvae"), _data()
    seen: list[Tensor] = []
    model.encoder.register_forward_hook(lambda module, args, out: seen.append(args[0]))
    before = x.clone()
    estimate_log_likelihood(model, x, K, batch_size=4, chunk=5)
    assert [len(batch) for batch in seen] == [4, 4, 3]
    assert torch.equal(torch.cat(seen), before)
    assert torch.equal(x, before)


def test_nan_stays_with_its_example_and_is_counted() -> None:
    model, x = _model(), _data()
    clean = estimate_log_likelihood(model, x, K, batch_size=4, chunk=6, seed=SEED)
    x[2, 4] = math.nan
    dirty = estimate_log_likelihood(model, x, K, batch_size=4, chunk=6, seed=SEED)
    rest = [i for i in range(N) if i != 2]
    for field in FIELDS:
        assert bool(getattr(dirty, field)[2].isnan()), field
        torch.testing.assert_close(getattr(dirty, field)[rest], getattr(clean, field)[rest])
    assert dirty.non_finite == 1
    assert len(dirty.log_likelihood) == N
    assert math.isnan(dirty.mean)
    assert dirty.summary()["log_likelihood"] is None
    assert dirty.summary()["non_finite"] == 1


def test_impossible_data_has_likelihood_zero() -> None:
    class Certain(nn.Module):
        def forward(self, z: Tensor) -> Tensor:
            return torch.full((*z.shape[:-1], D), math.inf, dtype=z.dtype)

    model = _model()
    model.decoder = Certain()
    x = torch.ones(2, D, dtype=torch.float64)
    x[1, 0] = 0
    estimate = estimate_log_likelihood(model, x, K, chunk=5)
    assert bool(estimate.log_likelihood[0].isfinite())
    assert estimate.log_likelihood[1] == estimate.elbo[1] == -math.inf
    assert bool(estimate.standard_error[1].isnan())
    assert estimate.non_finite == 1
    assert estimate.mean == -math.inf


def test_modes_are_restored() -> None:
    class Noted(nn.Softplus):
        modes: list[bool] = []  # noqa: RUF012

        def forward(self, x: Tensor) -> Tensor:
            self.modes.append(self.training)
            return super().forward(x)

    model = _model()
    trunk = model.decoder.trunk
    assert isinstance(trunk, nn.Sequential)
    trunk[1] = Noted()
    for mode in (True, False):
        model.train(mode)
        model.encoder.train(not mode)  # a submodule may have a mode of its own
        before = [m.training for m in model.modules()]
        estimate_log_likelihood(model, _data(), K)
        assert [m.training for m in model.modules()] == before
        with pytest.raises(ZeroDivisionError):
            estimate_log_likelihood(model, _data(), K, progress=lambda _: 1 // 0)
        assert [m.training for m in model.modules()] == before
    assert Noted.modes
    assert not any(Noted.modes)


def test_no_gradient() -> None:
    estimate = estimate_log_likelihood(_model(), _data().requires_grad_(), K)
    assert not any(getattr(estimate, field).requires_grad for field in FIELDS)
    assert torch.is_grad_enabled()


def test_seeds() -> None:
    model, x = _model(), _data()
    one = estimate_log_likelihood(model, x, K, seed=SEED)
    assert one.seed == SEED
    _same(one, estimate_log_likelihood(model, x, K, seed=torch.tensor([SEED])), slice(None))
    drawn = estimate_log_likelihood(model, x, K)
    assert not torch.equal(drawn.log_likelihood, one.log_likelihood)
    _same(drawn, estimate_log_likelihood(model, x, K, seed=drawn.seed), slice(None))
    torch.manual_seed(5)
    first = estimate_log_likelihood(model, x, K).seed
    assert first != estimate_log_likelihood(model, x, K).seed
    torch.manual_seed(5)
    assert first == estimate_log_likelihood(model, x, K).seed


def test_progress() -> None:
    calls: list[EvaluationProgress] = []
    estimate = estimate_log_likelihood(
        _model(), _data(), K, batch_size=4, seed=SEED, progress=calls.append
    )
    assert [(c.examples, c.total, c.samples) for c in calls] == [(n, N, n * K) for n in (4, 8, N)]
    first = estimate.log_likelihood[:4], estimate.standard_error[:4]
    assert calls[0].log_likelihood == pytest.approx(float(first[0].mean()))
    assert calls[0].standard_error == pytest.approx(float(first[1].square().sum().sqrt()) / 4)
    assert calls[-1].log_likelihood == pytest.approx(estimate.mean)
    assert calls[-1].standard_error == pytest.approx(estimate.mean_standard_error)


def test_data_of_another_precision_and_layout() -> None:
    model, x = _model(), _data().float()
    expected = estimate_log_likelihood(model, x.double(), K, seed=SEED)
    _same(expected, estimate_log_likelihood(model, x, K, seed=SEED), slice(None))
    _same(expected, estimate_log_likelihood(model, x.T.contiguous().T, K, seed=SEED), slice(None))
    wide = torch.full((N, 2 * D), math.nan)
    wide[:, ::2] = x
    _same(expected, estimate_log_likelihood(model, wide[:, ::2], K, seed=SEED), slice(None))


# --- anybody's model --------------------------------------------------------------------------


class Theirs(nn.Module):
    """Someone else's: dropout, so that the mode matters, and no class of ours."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(D, 8), nn.Tanh(), nn.Dropout(0.5))
        self.mean, self.log_var = nn.Linear(8, Z), nn.Linear(8, Z)
        self.decoder = nn.Sequential(nn.Linear(Z, 6), nn.Tanh(), nn.Dropout(0.5), nn.Linear(6, D))

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        hidden = self.encoder(x)
        return self.mean(hidden), self.log_var(hidden)

    def decode(self, z: Tensor) -> Tensor:
        return self.decoder(z)


def _plain_log_weights(model: Theirs, x: Tensor, k: int) -> Tensor:
    with torch.no_grad():
        model.eval()
        mean, log_var = model.encode(x)
        z, ratio = dvae_fast.sample_latent(mean, log_var, k, SEED)
        p = torch.distributions.Bernoulli(logits=model.decode(z), validate_args=False)
        return p.log_prob(x.unsqueeze(1)).sum(-1) + ratio


@pytest.mark.parametrize("how", ["methods", "pair", "pair that ends in a linear layer", "hook"])
def test_a_model_of_any_kind(how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    fused = functional.linear_log_weights
    monkeypatch.setattr(
        functional, "linear_log_weights", lambda *a, **k: calls.append(1) or fused(*a, **k)
    )
    model, x = Theirs().double(), _data()
    expected = torch.logsumexp(_plain_log_weights(model, x, K), 1) - math.log(K)
    model.train()
    model.mean.eval()
    before = {name: t.clone() for name, t in model.state_dict().items()}
    evaluated: Any = {"methods": model, "pair": (model.encode, model.decode)}.get(
        how, (model.encode, model.decoder)
    )
    seen = []
    if how == "hook":
        model.decoder[-1].register_forward_hook(lambda *_: seen.append(1))
    estimate = estimate_log_likelihood(evaluated, x, K, chunk=5, batch_size=4, seed=SEED)
    torch.testing.assert_close(estimate.log_likelihood, expected)
    assert bool(calls) == (how == "pair that ends in a linear layer")
    assert bool(seen) == (how == "hook")
    assert model.training
    assert not model.mean.training
    assert all(torch.equal(t, before[name]) for name, t in model.state_dict().items())


class Adapter:
    """A plain object around a module, which no one would find by its type."""

    def __init__(self, net: nn.Module) -> None:
        self.parts = {"net": net}

    def encode(self, x: Tensor) -> Any:
        return self.parts["net"].encode(x)  # type: ignore[operator]

    def decode(self, z: Tensor) -> Any:
        return self.parts["net"].decode(z)  # type: ignore[operator]


@pytest.mark.parametrize("how", ["object", "functions", "partials"])
def test_modules_behind_plain_callables_are_judged_as_such(how: str) -> None:
    """Evaluation mode and their dtype, whoever holds them: batch norm would be changed for good."""
    net = Theirs().double()
    net.encoder.insert(1, nn.BatchNorm1d(8).double())
    before = {name: t.clone() for name, t in net.state_dict().items()}
    evaluated: Any = {
        "object": Adapter(net),
        "functions": (lambda x: net.encode(x), lambda z: net.decode(z)),
        "partials": (functools.partial(Theirs.encode, net), functools.partial(Theirs.decode, net)),
    }[how]
    x = _data().float()
    found = estimate_log_likelihood(evaluated, x, K, seed=SEED)
    assert net.training
    assert all(torch.equal(t, before[name]) for name, t in net.state_dict().items())
    _same(found, estimate_log_likelihood(net.eval(), x, K, seed=SEED), slice(None))


def test_a_patched_forward_is_called() -> None:
    model, x = _model(), _data()
    plain = estimate_log_likelihood(model, x, K, seed=SEED)
    output = model.decoder.output
    forward = output.forward
    output.forward = lambda h: forward(h) + 1  # as wrappers and quantisers do
    shifted = estimate_log_likelihood(model, x, K, seed=SEED)
    assert float((shifted.log_likelihood - plain.log_likelihood).abs().min()) > 0.01
    expected = estimate_log_likelihood((model.encode, model.decode), x, K, seed=SEED)
    _same(shifted, expected, slice(None))


def test_a_gaussian_with_a_scale_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(3)
    decode = nn.Sequential(nn.Linear(Z, 5), nn.Tanh(), nn.Linear(5, D)).double()
    encode, x = _model().encode, _data()
    scale = torch.rand(D, dtype=torch.float64) + 0.5
    options: dict[str, Any] = {"likelihood": "gaussian", "seed": SEED}
    pair = (encode, lambda z: (decode(z), scale))
    expected = estimate_log_likelihood(pair, x, K, **options)
    calls = []
    fused = functional.mlp_log_weights
    monkeypatch.setattr(
        functional, "mlp_log_weights", lambda *a, **k: calls.append(1) or fused(*a, **k)
    )
    found = estimate_log_likelihood((encode, decode), x, K, scale=scale, **options)
    assert calls
    _same(found, expected, slice(None))
    unfused = (encode, lambda z: decode(z))
    _same(estimate_log_likelihood(unfused, x, K, scale=scale, **options), expected, slice(None))


def test_no_curve() -> None:
    estimate = estimate_log_likelihood(_model(), _data(), K, curve=(), seed=SEED)
    assert estimate.curve.shape == estimate.curve_standard_error.shape == (N, 0)
    assert estimate.summary()["bounds"] == {}
    unsure = estimate_log_likelihood(_model(), _data(), 2, curve=(), tolerance=1e-9, max_k=K)
    assert unsure.curve.shape == (N, 0)


def test_too_few_samples_for_a_tail_are_no_warning() -> None:
    estimate = estimate_log_likelihood(_model(), _data(), 20, seed=SEED)
    assert bool(estimate.pareto_k.isinf().all())
    assert estimate.summary()["pareto_k_above_0.7"] == 0
    assert not any("heavy" in text for text in estimate.warnings())


@pytest.mark.parametrize(
    ("encode", "message"),
    [
        (lambda x: x, "encode must return two tensors, mean and log_var, got <class"),
        (lambda x: (x, x, x), "encode must return two tensors, mean and log_var, got 3 values"),
        (lambda x: (x[0], x[0]), r"encode must return mean and log_var of shape \(B, Z\)"),
        (lambda x: (x, x[:, :1]), "the posterior's spread must be log_var in the shape of mean"),
    ],
)
def test_encoders_that_return_something_else(encode: Any, message: str) -> None:
    with pytest.raises((TypeError, ValueError), match=message):
        estimate_log_likelihood((encode, lambda z: z), _data(), K)


def test_a_gaussian_of_someone_else() -> None:
    x = _data()
    scale = torch.full((D,), 0.3, dtype=torch.float64)
    estimate = estimate_log_likelihood(
        (lambda x: (x[:, :Z], x[:, :Z] - 1), lambda z: (z.repeat(1, 3), scale)),
        x, K, likelihood="gaussian", seed=SEED,
    )  # fmt: skip
    z, ratio = dvae_fast.sample_latent(x[:, :Z], x[:, :Z] - 1, K, SEED)
    p = torch.distributions.Normal(z.repeat(1, 1, 3), scale)
    log_w = p.log_prob(x.unsqueeze(1)).sum(-1) + ratio
    torch.testing.assert_close(estimate.log_likelihood, torch.logsumexp(log_w, 1) - math.log(K))


# --- diagnostics and stopping -----------------------------------------------------------------


def test_the_curve_and_the_tail_are_those_of_the_weights() -> None:
    model, x = Theirs().double(), _data()
    log_w = _plain_log_weights(model, x, 47)
    estimate = estimate_log_likelihood(model, x, 47, curve=(5, 1, 47, 90), chunk=6, seed=SEED)
    assert estimate.curve_k == (1, 5, 47)
    torch.testing.assert_close(estimate.curve[:, 0], log_w.mean(1))
    torch.testing.assert_close(estimate.curve[:, 2], estimate.log_likelihood)
    assert bool((estimate.curve.diff(dim=1).mean(0) > 0).all())
    tail = evaluation.ParetoTail(47, N, "cpu")
    tail.add(log_w)
    torch.testing.assert_close(estimate.pareto_k, tail.shape())
    assert estimate.spent.tolist() == [47] * N


def test_more_samples_than_noise_has_are_refused_at_once() -> None:
    for options in ({"k": 2**32 + 1}, {"k": 5, "tolerance": 1.0, "max_k": 2**33}):
        with pytest.raises(ValueError, match=r"k must be <= 2\*\*32, .*, got [0-9]+"):
            estimate_log_likelihood(_model(), _data(), **options)


@pytest.mark.parametrize(("batch_size", "chunk"), [(None, None), (1, 7), (4, 100), (N, 33)])
def test_a_tolerance_spends_samples_where_they_are_needed(
    batch_size: int | None, chunk: int | None
) -> None:
    """Each example's numbers are those of a run with as many samples as were spent on it."""
    model = linear_gaussian("iwae", widen=2.0)
    x = draw_data(model, N)
    estimate = estimate_log_likelihood(
        model, x, 20, tolerance=0.1, max_k=700, batch_size=batch_size, chunk=chunk, seed=SEED
    )
    assert len(set(estimate.spent.tolist())) > 1
    # A pilot says how many, and is mostly right.
    sure = (estimate.standard_error <= 0.1) & (estimate.ess >= 10)
    assert float(sure.double().mean()) > 0.5
    plain = estimate_log_likelihood(model, x, 20, seed=SEED)
    assert float(estimate.standard_error.max()) < 0.7 * float(plain.standard_error.max())
    for i, k in enumerate(estimate.spent.tolist()):
        whole = estimate_log_likelihood(model, x, k, seed=SEED)
        for field in (*FIELDS, "pareto_k"):
            torch.testing.assert_close(getattr(estimate, field)[i], getattr(whole, field)[i])
        assert k == 700 or k in {20 * 2**j for j in range(6)}
    assert estimate.summary()["samples"] == int(estimate.spent.sum())


def test_what_cannot_be_sure_ends_at_max_k() -> None:
    model, x = _model(), _data()
    x[2] = math.nan
    estimate = estimate_log_likelihood(model, x, 20, tolerance=1e-9, max_k=50, seed=SEED)
    assert estimate.spent.tolist() == [20 if i == 2 else 50 for i in range(N)]  # NaN stays NaN
    assert estimate.non_finite == 1
    assert "1 of 11 examples has no finite log-likelihood: 2 (nan)." in estimate.warnings()[0]
    x[3:9] = math.nan
    many = estimate_log_likelihood(model, x, 20, seed=SEED)
    assert "7 of 11" in many.warnings()[0]
    assert "2 (nan), 3 (nan), 4 (nan), 5 (nan), 6 (nan), …" in many.warnings()[0]


def test_summary_and_properties() -> None:
    values = torch.tensor([[-3.0, -5.0], [0.3, 0.4], [9.0, 4.0], [-4.0, -7.0]], dtype=torch.float64)
    estimate = LikelihoodEstimate(
        *values,
        pareto_k=torch.tensor([0.2, 0.9]),
        spent=torch.tensor([10, 30]),
        curve=torch.tensor([[-6.0, math.nan], [-8.0, -5.0]]),
        curve_standard_error=torch.tensor([[0.6, math.nan], [0.8, 0.1]]),
        curve_k=(1, 20),
        k=10,
        seed=3,
        data_size=2,
    )
    assert estimate.mean == -4
    assert estimate.mean_standard_error == pytest.approx(0.25)
    expected = {
        "log_likelihood": -4.0, "standard_error": pytest.approx(0.25), "elbo": -5.5,
        "ess_mean": 6.5, "ess_min": 4.0, "examples": 2, "non_finite": 0, "k": 10, "seed": 3,
        "bits_per_dimension": pytest.approx(2 / math.log(2)), "samples": 40, "ess_below_10": 2,
        "pareto_k_median": pytest.approx(0.2), "pareto_k_above_0.7": 1,
        "bias": pytest.approx(-(0.09 * 10 / 9 + 0.16 * 30 / 29) / 4),
        "bound_groups": {"1": None, "20": None}, "bounds": {"1": -7.0, "20": None},
        "method": "importance", "proposal": "posterior", "tolerance": None,
        "bound_standard_errors": {"1": pytest.approx(0.5), "20": None},
        "warnings": estimate.warnings(),
    }  # fmt: skip
    assert len(estimate.warnings()) == 2
    assert "1 of 2 examples has weights with too heavy a tail" in estimate.warnings()[0]
    assert "2 of 2 examples have fewer than 10 effective samples" in estimate.warnings()[1]
    assert estimate.summary() == expected
    assert json.loads(json.dumps(estimate.summary(), allow_nan=False)) == expected


def test_one_sample_has_no_standard_error() -> None:
    estimate = estimate_log_likelihood(_model(), _data(), 1, seed=SEED)
    assert bool(estimate.standard_error.isnan().all())
    torch.testing.assert_close(estimate.log_likelihood, estimate.elbo)
    torch.testing.assert_close(estimate.ess, torch.ones(N, dtype=torch.float64))
    summary = json.dumps(estimate.summary(), allow_nan=False)
    assert json.loads(summary)["standard_error"] is None


@pytest.mark.parametrize("dtype", ["bfloat16", torch.float16])
def test_matrices_in_half_precision(dtype: str | torch.dtype) -> None:
    model, x = _model().float(), _data().float()
    seen: list[torch.dtype] = []
    model.decoder.trunk.register_forward_hook(lambda *args: seen.append(args[2].dtype))
    whole = estimate_log_likelihood(model, x, 300, seed=SEED)
    assert set(seen) == {torch.float32}
    slow = dtype == "bfloat16" and not has_bfloat16("cpu")
    with pytest.warns(RuntimeWarning, match="far slower") if slow else contextlib.nullcontext():
        half = estimate_log_likelihood(model, x, 300, seed=SEED, dtype=dtype)
    assert seen[-1] == (torch.bfloat16 if dtype == "bfloat16" else dtype)
    torch.testing.assert_close(half.log_likelihood, whole.log_likelihood, rtol=0, atol=0.02)
    assert abs(half.mean - whole.mean) < 0.01
    assert half.log_likelihood.dtype == torch.float64
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    same = estimate_log_likelihood(model, x, 300, seed=SEED, dtype="float32")
    _same(whole, same, slice(None))


def test_top_level_names() -> None:
    assert dvae_fast.estimate_log_likelihood is estimate_log_likelihood
    assert dvae_fast.LikelihoodEstimate is LikelihoodEstimate


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"k": 0}, ValueError, "k must be >= 1, got 0"),
        ({"k": 10.0}, TypeError, "k must be an int, got float"),
        ({"batch_size": 0}, ValueError, "batch_size must be >= 1, got 0"),
        ({"batch_size": "4"}, TypeError, "batch_size must be an int, got str"),
        ({"chunk": -1}, ValueError, "chunk must be >= 1, got -1"),
        ({"x": [[0.5]]}, TypeError, "x must be a tensor, got list"),
        ({"x": torch.ones(N, D, dtype=torch.int64)}, TypeError, "x must be float32, .*torch.int64"),
        (
            {"x": torch.ones(N, D + 1)},
            ValueError,
            rf"x must have shape \(N, D\) with N >= 1 and D = {D}, got \({N}, {D + 1}\)",
        ),
        ({"x": torch.ones(D)}, ValueError, rf"x must have shape \(N, D\) .*, got \({D},\)"),
        ({"x": torch.ones(0, D)}, ValueError, rf"x must have shape .*, got \(0, {D}\)"),
        ({"seed": 1.5}, TypeError, "seed must be an int, .*, got float"),
        ({"max_k": 30}, ValueError, "max_k must come with a tolerance, got 30 without one"),
        ({"tolerance": 0.0}, ValueError, "tolerance must be > 0 and finite, got 0.0"),
        ({"tolerance": 1.0, "max_k": 3}, ValueError, "max_k must be >= k = 23, got 3"),
        ({"curve": (0,)}, ValueError, r"curve\[0\] must be >= 1, got 0"),
        ({"curve": 5}, TypeError, "curve must be a sequence of ints, got 5"),
        ({"tolerance": "0.1"}, TypeError, "tolerance must be a number, got str"),
        ({"scale": 1.0}, ValueError, "scale must be left out for a model of this package"),
        ({"x": torch.full((N, D), 1.5)}, ValueError, r"x must lie in \[0, 1\], the support of the"),
        ({"likelihood": "gaussian"}, ValueError, "likelihood must be the model's, bernoulli, got"),
        ({"proposal": "mixtur"}, ValueError, "one of mixture, .*; got 'mixtur'; did you mean 'mix"),
        ({"proposal": "prior"}, ValueError, "proposal must be one of posterior, .*; got 'prior'"),
        ({"proposal": "mixture"}, ValueError, "proposal 'mixture' must come with a corruption"),
        ({"corruption": 0.1}, TypeError, "corruption must be an object of dvae_fast.corruptions"),
        ({"copies": 0}, ValueError, "copies must be >= 1, got 0"),
        ({"dtype": "float8"}, ValueError, "dtype must be bfloat16, float16 or the model's, .*'flo"),
        ({"dtype": "bfloat16"}, ValueError, "dtype must be the model's, torch.float64, or the"),
        ({"model": nn.Linear(2, 2)}, TypeError, "model must have methods encode and decode, or"),
        ({"model": (abs,)}, TypeError, "model must be a model or a pair of callables"),
    ],
)
def test_wrong_arguments(changes: dict[str, Any], error: type[Exception], message: str) -> None:
    model = _model()
    model.encoder.register_forward_pre_hook(lambda *_: pytest.fail("work before the checks"))
    with pytest.raises(error) as caught:
        estimate_log_likelihood(**{"model": model, "x": _data(), "k": K, **changes})
    assert re.search(message, str(caught.value)), str(caught.value)
