"""Pareto k̂ and the curve of bounds: known answers, the field's oracle, any chunks."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor

from dvae_fast.evaluation import BoundCurve, ParetoTail, pareto_shape

N = 7


def _log_w(k: int, scale: float = 1.0) -> Tensor:
    g = torch.Generator().manual_seed(k)
    return scale * torch.randn(N, k, generator=g, dtype=torch.float64)


def _tail(log_w: Tensor, *chunks: int) -> Tensor:
    tail = ParetoTail(log_w.shape[1], len(log_w), "cpu")
    for part in log_w.split(list(chunks) if chunks else log_w.shape[1], 1):
        tail.add(part)
    return tail.shape()


@pytest.mark.parametrize("shape", [0.2, 0.5, 0.9])
def test_the_shape_of_a_pareto_distribution_is_found(shape: float) -> None:
    """Mean of 200 fits to 400 draws, standard error of one about (1 + k)/20: 5 of the mean's, a
    false alarm in 2 million."""
    u = np.random.default_rng(0).random((200, 400))
    draws = torch.from_numpy(np.sort(stats.genpareto.ppf(u, shape), axis=1))
    found = pareto_shape(draws)
    drawn = (400 * shape + 10 * 0.5) / 410  # the prior's pull
    assert float(found.mean()) == pytest.approx(drawn, abs=5 * (1 + shape) / 20 / math.sqrt(200))


@pytest.mark.parametrize("k", [30, 500, 5000])
def test_agrees_with_arviz(k: int) -> None:
    arviz = pytest.importorskip("arviz")
    for scale in (0.3, 1.0, 3.0):
        log_w = _log_w(k, scale)
        expected = [float(arviz.psislw(row.numpy().copy())[1]) for row in log_w]
        np.testing.assert_allclose(_tail(log_w).numpy(), expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("chunks", [(1, 499), (250, 250), (7, 400, 93)])
def test_the_tail_is_the_same_in_any_chunks(chunks: tuple[int, ...]) -> None:
    log_w = _log_w(500)
    torch.testing.assert_close(_tail(log_w, *chunks), _tail(log_w), rtol=1e-12, atol=0)


def test_a_tail_kept_for_more_samples_is_that_of_those_drawn() -> None:
    log_w = _log_w(500)
    tail = ParetoTail(5000, N, "cpu")
    tail.add(log_w)
    torch.testing.assert_close(tail.shape(), _tail(log_w))
    torch.testing.assert_close(tail.take(slice(3, 4)).shape(), _tail(log_w)[3:4])


@pytest.mark.parametrize("kind", ["most are 0", "all but 1 % are 0", "ties", "close ties", "huge"])
@pytest.mark.parametrize("k", [35, 101, 600])
def test_agrees_with_arviz_at_the_borders(kind: str, k: int) -> None:
    """Weights of 0, and ties at the cutoff, of which those above it count only. Not where all of
    the tail are equal and a candidate is 0 to rounding, of which arviz makes a 0."""
    arviz = pytest.importorskip("arviz")
    g = np.random.default_rng(k)
    log_w = g.normal(size=(60, k)) * g.choice([0.3, 1.0, 3.0], size=(60, 1))
    if "are 0" in kind:
        log_w[g.random((60, k)) < (0.9 if kind == "most are 0" else 0.99)] = -math.inf
        log_w = log_w[np.isfinite(log_w).any(1)]
    elif "ties" in kind:
        log_w = np.round(4 * log_w) / (4 if kind == "ties" else 400)
    elif kind == "huge":
        log_w *= 300
    expected = np.array([float(arviz.psislw(row.copy())[1]) for row in log_w])
    found = _tail(torch.from_numpy(log_w)).numpy()
    np.testing.assert_array_equal(np.isposinf(found), np.isposinf(expected))
    finite = np.isfinite(expected)
    np.testing.assert_allclose(found[finite], expected[finite], rtol=1e-6, atol=1e-6)
    assert finite.any() or kind == "all but 1 % are 0"


def test_exceedances_that_are_all_equal() -> None:
    """Also of 110, where one candidate is 0: as smooth as for its neighbours."""
    found = [
        float(pareto_shape(torch.full((1, n), 0.3, dtype=torch.float64))) for n in (99, 110, 121)
    ]
    assert found[0] > found[1] > found[2]
    assert all(math.isfinite(k) and k < 0 for k in found)


def test_extreme_tails() -> None:
    log_w = _log_w(500)
    log_w[1, 3] = math.nan
    log_w[2] = -4.0  # all alike: no tail
    log_w[3] = -math.inf
    log_w[4, 0] = 1e4  # one weight is everything
    k = _tail(log_w)
    assert bool(k[1].isnan())
    assert float(k[2]) == math.inf
    assert bool(k[3].isnan()) or float(k[3]) == math.inf
    assert not float(k[4]) < 0.7
    assert bool((k[[0, 5, 6]] < 1).all())
    assert float(_tail(_log_w(20)).min()) == math.inf  # fewer than 5 tail weights


# --- the curve --------------------------------------------------------------------------------


def _expected(log_w: Tensor, k: int) -> Tensor:
    groups = log_w.shape[1] // k
    if groups == 0:
        return torch.full((len(log_w),), math.nan, dtype=torch.float64)
    parts = log_w[:, : groups * k].reshape(len(log_w), groups, k)
    return (torch.logsumexp(parts, -1) - math.log(k)).mean(1)


@pytest.mark.parametrize("chunks", [(101,), (1, 100), (50, 51), (3, 9, 40, 0, 49), (1,) * 101])
def test_bounds_are_means_over_disjoint_groups(chunks: tuple[int, ...]) -> None:
    ks = (1, 2, 5, 13, 50, 101, 500)
    log_w = _log_w(101, 4.0)
    curve = BoundCurve(ks, N, "cpu")
    for part in log_w.split(list(chunks), 1):
        curve.add(part)
    expected = torch.stack([_expected(log_w, k) for k in ks], 1)
    torch.testing.assert_close(curve.bounds(), expected, equal_nan=True)
    torch.testing.assert_close(curve.take(slice(2, 3)).bounds(), expected[2:3], equal_nan=True)


def test_no_weight_at_all_is_minus_infinity_in_its_example_alone() -> None:
    log_w = _log_w(10)
    log_w[0] = -math.inf
    log_w[1, 4] = math.nan
    curve = BoundCurve((1, 5, 10), N, "cpu")
    curve.add(log_w[:, :7])
    curve.add(log_w[:, 7:])
    bounds = curve.bounds()
    assert bool((bounds[0] == -math.inf).all())
    assert bool(bounds[1].isnan().all())
    assert bool(bounds[2:].isfinite().all())
