"""Log-weights of a function: what it is called with, what it may return, and any parts."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from linear_gaussian import draw_data, exact_log_likelihood, linear_gaussian
from torch import Tensor, nn
from torch.distributions import Normal
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset

import dvae_fast
from dvae_fast import estimate_from_log_weights, estimate_log_likelihood
from dvae_fast.evaluation import LikelihoodEstimate, annealed_importance_sampling
from dvae_fast.evaluation.partial import PartialResults
from dvae_fast.models import make_model
from dvae_fast.training.run import mean_bound

if TYPE_CHECKING:
    from pathlib import Path

    from dvae_fast.evaluation import EvaluationProgress

N, K, Z, D, SEED = 11, 23, 3, 9, 5
FIELDS = (
    "log_likelihood", "standard_error", "ess", "elbo", "pareto_k", "spent", "curve",
    "curve_standard_error",
)  # fmt: skip


def _data(n: int = N, d: int = D) -> Tensor:
    return torch.rand(n, d, generator=torch.Generator().manual_seed(1)).round()


def _same(a: LikelihoodEstimate, b: LikelihoodEstimate) -> None:
    for field in FIELDS:
        torch.testing.assert_close(getattr(a, field), getattr(b, field), equal_nan=True)


def _by_torch(model: Any, scale: float = 1.0) -> Any:
    """log w by torch.distributions, of draws by torch's own generator."""

    def log_weights(x: Tensor, k: int, seed: int) -> Tensor:
        mean, log_var = model.encode(x)
        q = Normal(mean, torch.exp(0.5 * log_var) * scale)
        z = q.rsample((k,))
        ratio = (Normal(0.0, 1.0).log_prob(z) - q.log_prob(z)).sum(-1).T
        return dvae_fast.log_weights(
            model.decode(z.transpose(0, 1)), x, ratio.contiguous(), model.likelihood
        )

    return log_weights


def test_the_exact_answer() -> None:
    """5 standard errors of the mean: a false alarm in 2 million."""
    model = linear_gaussian("iwae", widen=1.5)
    x = draw_data(model, 60)
    estimate = estimate_from_log_weights(_by_torch(model), x, 1000, seed=SEED)
    error = estimate.mean - estimate.mean_bias - float(exact_log_likelihood(model, x).mean())
    assert abs(error) < 5 * estimate.mean_standard_error < 0.05
    assert estimate.proposal == "function"
    assert estimate.warnings() == []


def test_what_it_is_called_with() -> None:
    """Every sample once, a seed of its own for every call, and modules in evaluation mode."""
    layer, seen = nn.Dropout(0.5), []

    def log_weights(x: Tensor, k: int, seed: int) -> Tensor:
        assert not layer.training
        assert type(seed) is int
        assert 0 <= seed < 2**32
        seen.append((len(x), k, seed))
        return layer(x).sum(1, keepdim=True) + torch.randn(len(x), k)

    x = _data()
    estimate_from_log_weights(log_weights, x, K, batch_size=4, chunk=7, seed=SEED)
    assert layer.training
    assert [b * k for b, k, _ in seen] == [b * k for b in (4, 4, 3) for k in (7, 7, 7, 2)]
    assert len({seed for *_, seed in seen}) == len(seen)


@pytest.mark.parametrize(
    ("options", "context"),
    [
        ({}, None),
        ({}, "rows"),
        ({"tolerance": 0.05, "max_k": 120}, None),
        ({"tolerance": 0.3, "chunk": 9, "max_k": 120}, "labels"),
    ],
)
def test_in_parts_as_in_one_call(options: dict[str, Any], context: str | None) -> None:
    model, x = make_model("iwae", D, Z, (6,)), _data()
    plain = _by_torch(model, 2.0)
    y = {"labels": torch.arange(N), "rows": torch.randn(N, 2), None: None}[
        str(context) if context else None
    ]

    def log_weights(x: Tensor, k: int, seed: int, y: Tensor | None = None) -> Tensor:
        shift = 0 if y is None else y.reshape(len(x), -1).double().sum(1, keepdim=True)
        return plain(x, k, seed) + shift

    def call(rows: slice) -> LikelihoodEstimate:
        return estimate_from_log_weights(
            log_weights, x[rows], K, context=None if y is None else y[rows], seed=SEED,
            first_example=rows.start, **options,
        )  # fmt: skip

    whole = call(slice(0, N))
    parts = [call(slice(a, b)) for a, b in ((0, 3), (3, 9), (9, N))]
    _same(whole, LikelihoodEstimate.concat(parts))
    if y is not None:
        unshifted = estimate_from_log_weights(plain, x, K, seed=SEED, **options)
        expected = unshifted.log_likelihood + y.reshape(N, -1).double().sum(1)
        torch.testing.assert_close(whole.log_likelihood, expected, rtol=1e-5, atol=1e-5)


def test_tolerance_curve_progress_and_partial_results(tmp_path: Path) -> None:
    model, x, told = make_model("iwae", D, Z, (6,)), _data(), []
    log_weights = _by_torch(model)
    options: dict[str, Any] = {"tolerance": 0.2, "max_k": 400, "curve": (1, 5, 20), "seed": SEED}
    whole = estimate_from_log_weights(log_weights, x, K, **options)
    assert whole.curve.shape == (N, len({1, 5, 20, K}))
    assert bool((whole.spent > K).any())
    path, stop = tmp_path / "kept.npz", 4

    def progress(state: EvaluationProgress) -> None:
        told.append(state.examples)
        if len(told) == stop:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        estimate_from_log_weights(log_weights, x, K, partial=path, progress=progress, **options)
    assert int(PartialResults(N, path, {}).done.sum()) == stop
    stop = 0
    told.clear()
    again = estimate_from_log_weights(log_weights, x, K, partial=path, progress=progress, **options)
    assert told == list(range(1, N - 3))
    _same(whole, again)
    with torch.no_grad():
        next(model.parameters()).add_(1.0)
    with pytest.raises(ValueError, match=r"the parameters of .* is another"):
        estimate_from_log_weights(log_weights, x, K, partial=path, **options)


@pytest.mark.parametrize("returned", [np.float64, torch.float64, torch.float32, torch.bfloat16])
def test_what_it_may_return(returned: Any) -> None:
    """−3, once for every sample, in any dtype; a gradient is left behind."""

    def log_weights(x: Tensor, k: int, seed: int) -> Any:
        if returned is np.float64:
            return np.full((len(x), k), -3.0)
        return torch.full((len(x), k), -3.0, dtype=returned, requires_grad=True)

    found = estimate_from_log_weights(log_weights, torch.zeros(4, dtype=torch.int64), K)
    torch.testing.assert_close(found.log_likelihood, torch.full((4,), -3.0, dtype=torch.float64))
    assert not found.log_likelihood.requires_grad
    assert found.data_size == 1


@pytest.mark.parametrize(
    ("log_weights", "error", "message"),
    [
        (lambda x, k, s: 3.0, TypeError, "log_weights must return a tensor, got float"),
        (lambda x, k, s: None, TypeError, "log_weights must return a tensor, got NoneType"),
        (lambda x, k, s: torch.zeros(k, len(x)), ValueError,
         r"log_weights must return shape \(B, k\) = \(2, 5\), .*, got \(5, 2\)"),
        (lambda x, k, s: torch.zeros(len(x)), ValueError, r"must return shape .* got \(2,\)"),
        (lambda x, k, s: torch.zeros(len(x), k, 1), ValueError, r"got \(2, 5, 1\)"),
        (lambda x, k, s: torch.zeros(len(x), k).long(), TypeError,
         "log_weights must return floating-point numbers, got torch.int64"),
        (lambda x, k, s: torch.zeros(len(x), k).bool(), TypeError, "got torch.bool"),
        (lambda x, k, s: torch.zeros(len(x), k, device="meta"), ValueError,
         "log_weights must return values, got a tensor on meta"),
        (lambda x, k: None, TypeError, r"log_weights must take \(x, k, seed\), got \(x, k\)"),
        (7, TypeError, r"log_weights must be a function of \(x, k, seed\), got int"),
    ],
)  # fmt: skip
def test_what_it_may_not_return(log_weights: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        estimate_from_log_weights(log_weights, torch.zeros(3, D), 5, batch_size=2)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"k": 0}, "k must be >= 1"),
        ({"tolerance": -1.0}, "tolerance must be > 0"),
        ({"max_k": 9}, "max_k must come with a tolerance"),
        (
            {"context": torch.zeros(3, 2, device="meta")},
            "context must hold values, got a tensor on",
        ),
        ({"context": torch.zeros(4, 2)}, "context must have one row for each of the 3 examples"),
        ({"first_example": 2**32}, "first_example must be"),
        ({"x": torch.zeros(0, D)}, "x must have shape .* with N >= 1"),
        ({"x": torch.zeros(3, D, device="meta")}, "x must hold values"),
    ],
)
def test_wrong_arguments_are_refused_before_any_work(options: dict[str, Any], message: str) -> None:
    def log_weights(x: Tensor, k: int, seed: int, context: Any = None) -> Tensor:
        pytest.fail("called")

    given = {"x": torch.zeros(3, D), "k": 5} | options
    with pytest.raises((TypeError, ValueError), match=message):
        estimate_from_log_weights(log_weights, given.pop("x"), given.pop("k"), **given)


def test_what_is_not_finite_is_said_and_stays_where_it_is() -> None:
    def log_weights(x: Tensor, k: int, seed: int) -> Tensor:
        log_w = torch.randn(len(x), k) * 0.1
        log_w[:, 2] = torch.where(x[:, 0] > 0, math.nan, log_w[:, 2])
        return log_w

    x = torch.zeros(N, 1)
    x[4] = 1
    estimate = estimate_from_log_weights(log_weights, x, K, batch_size=5, seed=SEED)
    assert estimate.log_likelihood.isnan().nonzero().flatten().tolist() == [4]
    assert any("4 (nan)" in text for text in estimate.warnings())
    none = estimate_from_log_weights(lambda x, k, s: torch.full((len(x), k), -math.inf), x, K)
    assert bool((none.log_likelihood == -math.inf).all())


def test_draws_that_do_not_follow_the_seed_are_told() -> None:
    """Of two calls with the same draws half of the samples count twice."""

    def stuck(x: Tensor, k: int, seed: int) -> Tensor:
        return torch.randn(len(x), k, generator=torch.Generator().manual_seed(3))

    def told(function: Any, chunk: int) -> bool:
        estimate = estimate_from_log_weights(function, torch.zeros(3, 1), 60, chunk=chunk)
        return any("the same samples whatever the seed" in text for text in estimate.warnings())

    assert told(stuck, 20)
    assert not told(lambda x, k, s: torch.randn(len(x), k), 20)
    assert not told(lambda x, k, s: torch.ones(len(x), k), 20)  # there is nothing to draw


# --- data as it comes -------------------------------------------------------------------------


class Pairs(Dataset[Any]):
    """(x, y) of NumPy arrays and numbers, without tensors."""

    def __init__(self, x: Tensor) -> None:
        self.x = x.numpy()

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, i: int) -> Any:
        return self.x[i], i % 3


class Stream(IterableDataset[Any]):
    def __init__(self, x: Tensor) -> None:
        self.x = x

    def __iter__(self) -> Any:
        return iter(self.x)


SOURCES: dict[str, Any] = {
    "array": lambda x: x.numpy(),
    "reversed view": lambda x: np.ascontiguousarray(x.numpy()[::-1])[::-1],
    "read-only": lambda x: np.frombuffer(x.numpy().tobytes(), np.float32).reshape(x.shape),
    "other byte order": lambda x: x.numpy().astype(">f4"),
    "tensor dataset": lambda x: TensorDataset(x),
    "pairs": Pairs,
    "stream": Stream,
    "loader": lambda x: DataLoader(TensorDataset(x), batch_size=4),
    "loader of pairs": lambda x: DataLoader(Pairs(x), batch_size=300),
}


@pytest.mark.parametrize("kind", SOURCES)
def test_data_of_any_kind(kind: str) -> None:
    model, x = make_model("iwae", D, Z, (6,)), _data()
    given = SOURCES[kind](x)
    calls: list[Any] = [
        lambda x: estimate_log_likelihood(model, x, K, seed=SEED).log_likelihood,
        lambda x: (
            annealed_importance_sampling(
                model, x, chains=2, temperatures=3, leapfrog=1, seed=SEED
            ).log_likelihood
        ),
        lambda x: estimate_from_log_weights(_by_torch(model), x, K, seed=SEED).log_likelihood,
        lambda x: torch.tensor(mean_bound(model, x, SEED, 4)),
    ]
    for call in calls:
        torch.testing.assert_close(call(given), call(x))


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: np.array([["a"]]), TypeError, "x must be an array of numbers, got dtype <U1"),
        (lambda: [[0.5]], TypeError, "x must be a tensor, got list"),
        (lambda: Stream(torch.zeros(0, D)), ValueError, "x must hold N >= 1 examples, got none"),
        (lambda: DataLoader([{"x": 1.0}]), TypeError, "x must give tensors or arrays.*got dict"),
        (lambda: Stream([torch.zeros(2), torch.zeros(3)]), TypeError, "of one shape"),  # type: ignore[arg-type]
        (lambda: np.zeros((3, D), np.int64), TypeError, "x must be float32.*got torch.int64"),
    ],
)  # fmt: skip
def test_data_of_no_kind(make: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        estimate_log_likelihood(make_model("iwae", D, Z, (6,)), make(), K)


def test_what_a_loader_drops_is_told() -> None:
    x = _data()
    loader = DataLoader(TensorDataset(x), batch_size=4, drop_last=True)
    with pytest.warns(UserWarning, match="x leaves out 3 of 11 examples: its drop_last is set"):
        found = estimate_log_likelihood(make_model("iwae", D, Z, (6,)), loader, K)
    assert len(found.log_likelihood) == 8
