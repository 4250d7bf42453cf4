"""pythae's `get_nll` on its own VAE, against ours on the same weights, if pythae is installed."""

from __future__ import annotations

import functools
import warnings
from typing import TYPE_CHECKING, Any

import pytest
import torch
from cases import Case, D, Z, make_data
from torch import Tensor, nn

import dvae_fast

if TYPE_CHECKING:
    from collections.abc import Callable

    from conftest import Measure

BATCHES = (100, 500, 1000, 5000)


class PythaeCase(Case):
    """10 examples by 5,000 samples; its default networks, 784-512-50-512-784.

    `get_nll` encodes each example again for every batch and keeps gradients, which is its own
    affair. Ours is given its encoder, and its decoder without the last sigmoid.
    """

    patience = 2.0

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

    def ways(self, rival: str) -> dict[str, Callable[[], float]]:
        if rival == "ours":
            return {"": lambda: self._ours().mean}
        nll = functools.partial(self.model.get_nll, self.x, n_samples=self.k)
        return {f"batches of {n}": functools.partial(nll, batch_size=n) for n in BATCHES}

    def check(self, rival: str, result: float) -> None:
        bar = 5 * 2**0.5 * self.expected.mean_standard_error + 1e-3
        assert bar < 1
        assert abs(result - self.expected.mean) < bar, (rival, result, self.expected.mean)


@pytest.mark.parametrize("rival", ["ours", "pythae"])
def bench_pythae(measure: Measure) -> None:
    measure(PythaeCase)
