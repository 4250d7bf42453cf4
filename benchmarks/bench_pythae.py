"""pythae's `get_nll` on its own VAE, against ours on the same weights, if pythae is installed."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import rivals
import torch
from bench_training import D, Z, make_data
from conftest import Case, Measure, Rival
from torch import Tensor, nn

import dvae_fast

BATCHES = (100, 500, 1000, 5000)


class PythaeCase(Case):
    """10 examples by 5,000 samples; its default networks, 784-512-50-512-784.

    `get_nll` encodes each example again for every batch and keeps gradients, which is its own
    affair. Ours is given its encoder, and its decoder without the last sigmoid.
    """

    def __init__(self, b: int = 10, k: int = 5000) -> None:
        pythae = pytest.importorskip("pythae.models", reason="pythae is not installed")
        self.group = f"pythae's VAE, {b} examples × k={k}, 784-512-50-512-784"
        self.k, self.x = k, make_data(b)
        self.elements, self.flops = b * k * D, 2 * b * k * 512 * (Z + D)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            config = pythae.VAEConfig(input_dim=(D,), latent_dim=Z, reconstruction_loss="bce")
            self.model = pythae.VAE(config).eval()
        with torch.no_grad():
            # A posterior near the prior, so that the estimates are exact enough to be compared.
            for layer in (self.model.encoder.embedding, self.model.encoder.log_var):
                layer.weight.mul_(0.1)
        self.expected = self._ours(seed=3)

    def _ours(self, **options: Any) -> dvae_fast.LikelihoodEstimate:
        decoder = self.model.decoder.layers
        decode = nn.Sequential(decoder[0][0], decoder[0][1], decoder[1][0])

        def encode(x: Tensor) -> tuple[Tensor, Tensor]:
            out = self.model.encoder(x)
            return out.embedding, out.log_covariance

        return dvae_fast.estimate_log_likelihood((encode, decode), self.x, self.k, **options)

    def build(self, rival: str) -> Rival:
        if rival == "ours":
            return Rival(self._ours, lambda: self._ours().mean)
        calls = {f"batches of {n}": self._theirs(n) for n in BATCHES}
        variant = rivals.fastest(calls, times_longer=2)
        call = calls[variant]
        return Rival(call, call, variant=variant)

    def _theirs(self, batch_size: int) -> Any:
        return lambda: self.model.get_nll(self.x, n_samples=self.k, batch_size=batch_size)

    def check(self, rival: str, result: float) -> None:
        bar = 5 * 2**0.5 * self.expected.mean_standard_error + 1e-3
        assert bar < 1
        assert abs(result - self.expected.mean) < bar, (rival, result, self.expected.mean)


@pytest.mark.parametrize("rival", ["ours", "pythae"])
def bench_pythae(benchmark: Any, measure: Measure, rival: str, turn: int) -> None:
    measure(benchmark, PythaeCase, "pythae", rival)
