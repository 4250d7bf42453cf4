"""The mean bound's noise: its own for each seed and example, in any batches."""

from __future__ import annotations

import pytest
import torch

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
