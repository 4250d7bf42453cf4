"""The mean bound's noise: its own for each seed and example, in any batches."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from refusals import assert_refused

from dvae_fast.corruptions import Masking
from dvae_fast.models import make_model
from dvae_fast.training import mean_bound

N, D = 60, 9


@pytest.mark.parametrize("name", ["iwae", "dvae"])
def test_bounds_of_neighbouring_seeds_are_independent(name: str) -> None:
    """The correlation of 200 pairs of batch means, one of seed s and batch i + 1 and one of seed
    s + 1 and batch i, both of the same examples: 4.5/√200, a false alarm in 100,000. A key made as
    seed + i gives 1."""
    torch.manual_seed(0)
    model = make_model(name, D, 2, (5,), corruption=Masking(0.4) if name == "dvae" else None)
    batch = torch.rand(3, D).round()
    x = batch.repeat(2, 1)
    values = torch.tensor(
        [[mean_bound(model, x, seed, 3), mean_bound(model, batch, seed, 3)] for seed in range(201)]
    )
    second = 2 * values[:-1, 0] - values[:-1, 1]  # of the second batch, seeds 0, 1, …
    first = values[1:, 1]  # of the first one, seeds 1, 2, …
    correlation = float(torch.corrcoef(torch.stack((second, first)))[0, 1])
    assert abs(correlation) < 4.5 / 200**0.5
    own = float(torch.corrcoef(torch.stack((second, values[:-1, 1])))[0, 1])
    assert abs(own) < 4.5 / 200**0.5


@pytest.mark.parametrize("batch_size", [1, 7, 59, 100])
def test_any_batches_have_the_noise_of_the_whole(batch_size: int) -> None:
    torch.manual_seed(0)
    model = make_model("dvae", D, 2, (5,), corruption=Masking(0.4)).double()
    x = torch.rand(N, D, dtype=torch.float64).round()
    whole = mean_bound(model, x, 5, N)
    assert mean_bound(model, x, 5, batch_size) == pytest.approx(whole, rel=1e-12)
    assert whole == pytest.approx(float(model.eval().bound(x, 5).mean()), rel=1e-12)
    assert mean_bound(model, x, 6, N) != whole


@pytest.mark.parametrize(
    "x, batch_size, error, message",
    [
        (lambda: [1.0, 0.0], 3, TypeError, "x must be a tensor, got list"),
        (lambda: torch.ones(2, D).to_sparse(), 3, ValueError, "x must be a dense tensor"),
        (lambda: torch.ones(2, D, device="meta"), 3, ValueError, "x must hold values"),
        (lambda: torch.ones(0, D), 3, ValueError, "x must hold N >= 1 examples"),
        (lambda: torch.ones(2, D).long(), 3, TypeError, "x must be float32, .* got torch.int64"),
        (lambda: torch.ones(2, D), 0, ValueError, "batch_size must be >= 1, got 0"),
    ],
)
def test_wrong_arguments(x: Any, batch_size: int, error: type[Exception], message: str) -> None:
    assert_refused(
        lambda: mean_bound(make_model("vae", D, 2, (5,)), x(), 1, batch_size), error, message
    )
