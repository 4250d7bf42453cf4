"""Indices in the noise, of batches that are empty too."""

from __future__ import annotations

import pytest
import torch

from dvae_fast import corrupt, sample_latent
from dvae_fast.corruptions import AdditiveGaussian, Masking


@pytest.mark.parametrize("shape", [(0, 5), (2, 0), (0, 0), (3, 4)], ids=str)
@pytest.mark.parametrize("index", [2**32, 2**32 + 1, 2**40, 2**63, 2**64, -1])
def test_an_index_beyond_the_noise_is_named(shape: tuple[int, int], index: int) -> None:
    x = torch.zeros(shape)
    for name, call in (
        ("first_example", lambda: corrupt(x, Masking(0.1), seed=1, first_example=index)),
        ("first_example", lambda: corrupt(x, AdditiveGaussian(1.0), 2, 1, first_example=index)),
        ("first_copy", lambda: corrupt(x, Masking(0.1), 2, seed=1, first_copy=index)),
        ("first_example", lambda: sample_latent(x, x, 3, seed=1, first_example=index)),
        ("first_sample", lambda: sample_latent(x, x, 3, seed=1, first_sample=index)),
    ):
        with pytest.raises(ValueError, match=rf"{name} must be .= (0|2\*\*32)"):
            call()
    assert corrupt(x, Masking(0.1), seed=1, first_example=2**32 - 3).shape == shape
