"""log p̂(x) of 10 examples by 5,000 importance samples, decoder 50-200-200-784."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import rivals
import torch
from bench_training import D, Z, make_data, make_model, make_rival
from conftest import Case, Measure, Rival
from torch import Tensor

import dvae_fast
from dvae_fast.evaluation.target import has_bfloat16
from dvae_fast.noise import latent_noise

if TYPE_CHECKING:
    from collections.abc import Callable

CHUNKS = (50, 100, 250, 500, 1000)
TILE = 1000  # rows of the bare products
RIVALS = ("ours", "products", "eager", "compile", "ours, bfloat16", "compile, bfloat16")


def _need_bfloat16() -> None:
    if not has_bfloat16("cpu"):
        pytest.skip("this CPU has no instructions for bfloat16")


class EvaluationCase(Case):
    """Encoded once, then samples in chunks, each rival at the chunk size that suits it best.

    Ours also returns standard error, effective sample size and ELBO, the others the estimate.
    """

    def __init__(self, b: int = 10, k: int = 5000) -> None:
        self.group = f"evaluation, {b} examples × k={k}, decoder 50-200-200-784"
        self.k = k
        self.model = make_model(1)
        with torch.no_grad():
            # q(z|x) near the prior, p(x|z) much the same for every z: weights are nearly equal, and
            # standard errors can be relied on.
            self.model.encoder.output.weight.mul_(0.1)
            self.model.decoder.output.weight.mul_(0.2)
        self.x = make_data(b)
        self.elements = b * k * D
        self.flops = 2 * b * k * (Z * 200 + 200 * 200 + 200 * D)
        self.expected = dvae_fast.estimate_log_likelihood(self.model, self.x, k, seed=3)
        self._check_formula()

    def _check_formula(self) -> None:
        """The plain model is ours: the same log-weights from the same noise."""
        b, k, seed = self.x.shape[0], 13, torch.tensor([7])
        with torch.no_grad():
            mean, log_var = self.model.encode(self.x)
            noise = latent_noise(1, b, k, Z, seed, 0, 0, torch.float32)[0]
            ours = self.model.log_weights(self.x, mean, log_var, k, seed)
            plain = make_rival(self.model).log_weights_from(self.x, mean, log_var, noise)
        torch.testing.assert_close(plain, ours, rtol=1e-5, atol=1e-3)

    def build(self, rival: str) -> Rival:
        if rival == "ours":

            def call() -> Tensor:
                return dvae_fast.estimate_log_likelihood(self.model, self.x, self.k).log_likelihood

            return Rival(call, call)
        if rival == "ours, bfloat16":
            _need_bfloat16()

            def half() -> Tensor:
                return dvae_fast.estimate_log_likelihood(
                    self.model, self.x, self.k, dtype="bfloat16"
                ).log_likelihood

            return Rival(half, half)
        if rival == "products":
            products = self._products()
            return Rival(products, lambda: self.expected.log_likelihood, variant="no result")
        if rival == "compile, bfloat16":
            _need_bfloat16()
            call = self._call(rivals.COMPILED_DENSITIES["softplus"], 250, True)

            def autocast() -> Tensor:
                with torch.autocast("cpu", torch.bfloat16):
                    return call()

            return Rival(autocast, autocast, variant="autocast")
        compiled = rival == "compile"
        densities = rivals.COMPILED_DENSITIES if compiled else rivals.EAGER_DENSITIES
        # The formula first, at a middling chunk, then the chunk, then the compiler's options.
        calls = {name: self._call(d, 250, compiled) for name, d in densities.items()}
        name = rivals.fastest(calls, times_longer=2)
        density = densities[name]
        calls = {
            f"{name}, {chunk} samples at a time": self._call(density, chunk, compiled)
            for chunk in CHUNKS
        }
        variant = rivals.fastest(calls, times_longer=2)
        if compiled:
            chunk = CHUNKS[list(calls).index(variant)]
            frozen = f"{variant}, freezing"
            calls = {variant: calls[variant], frozen: self._call(density, chunk, True, True)}
            variant = rivals.fastest(calls, times_longer=2)
        return Rival(calls[variant], calls[variant], variant=variant)

    def _products(self) -> Callable[[], Tensor]:
        """The decoder's matrix products and nothing else, in tiles that stay in cache, into kept
        buffers: what no evaluation can do without."""
        decoder = self.model.decoder
        layers = [m for m in decoder.modules() if isinstance(m, torch.nn.Linear)]
        z = torch.randn(TILE, Z)
        buffers = [torch.empty(TILE, layer.out_features) for layer in layers]
        rows = self.x.shape[0] * self.k

        def call() -> Tensor:
            with torch.no_grad():
                for first in range(0, rows, TILE):
                    n = min(TILE, rows - first)
                    hidden = z[:n]
                    for layer, buffer in zip(layers, buffers, strict=True):
                        out = buffer[:n]
                        torch.addmm(layer.bias, hidden, layer.weight.t(), out=out)
                        hidden = out
            return hidden

        return call

    def _call(
        self, density: rivals.Density, chunk: int, compiled: bool, freezing: bool = False
    ) -> Callable[[], Tensor]:
        model = make_rival(self.model)
        model.density = density
        model.reparameterise = rivals.reparameterise if compiled else rivals.reparameterise_dot
        log_weights = model.log_weights
        if compiled:
            log_weights = rivals.compiled(log_weights, **({"freezing": True} if freezing else {}))
        return lambda: rivals.estimate_log_likelihood(model, log_weights, self.x, self.k, chunk)

    def check(self, rival: str, result: Tensor) -> None:
        """Within six standard errors of ours, which is of other noise."""
        expected = self.expected
        if "bfloat16" in rival:  # another decoder, within its own precision
            difference = float((result.double() - expected.log_likelihood).mean())
            assert abs(difference) < 0.01 + 5 * 2**0.5 * expected.mean_standard_error, difference
            return
        bar = 6 * 2**0.5 * expected.standard_error + 1e-3
        assert bool((bar < 0.3).all()), bar
        difference = (result.double() - expected.log_likelihood).abs()
        assert bool((difference <= bar).all()), (rival, difference, bar)


@pytest.mark.parametrize("rival", RIVALS)
def bench_evaluation(benchmark: Any, measure: Measure, rival: str, turn: int) -> None:
    measure(benchmark, EvaluationCase, "evaluation", rival)
