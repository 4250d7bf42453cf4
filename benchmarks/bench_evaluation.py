"""log p̂(x) of 10 examples by 5,000 importance samples, decoder 50-200-200-784."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

import pytest
import rivals
import torch
from cases import Case, D, Z, make_data, make_model, make_rival, no_grad
from torch import Tensor

import dvae_fast
from dvae_fast.evaluation.target import has_bfloat16
from dvae_fast.noise import latent_noise

if TYPE_CHECKING:
    from collections.abc import Callable

    from conftest import Measure

CHUNKS = (50, 100, 250, 500, 1000)
TILE = 1000  # rows of the bare products
RIVALS = ("ours", "products", "eager", "compile", "ours, bfloat16", "compile, bfloat16")


class EvaluationCase(Case):
    """Encoded once, then samples in chunks, each rival at the chunk size that suits it best.

    Ours also returns standard error, effective sample size and ELBO, the others the estimate.
    """

    patience = 2.0

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

    def ways(self, rival: str) -> dict[str, Callable[[], Tensor]]:
        if "bfloat16" in rival and not has_bfloat16("cpu"):
            pytest.skip("this CPU has no instructions for bfloat16")
        if rival.startswith("ours"):
            return {
                "": lambda: self._ours(**({"dtype": "bfloat16"} if "bfloat16" in rival else {}))
            }
        if rival == "products":
            return {"no result": self._products()}
        if rival == "compile, bfloat16":
            autocast = torch.autocast("cpu", torch.bfloat16)
            return {"autocast": autocast(self._plain("compile", "softplus", 250))}
        plain = functools.partial(self._plain, rival)
        names = rivals.densities(rival)
        calls = rivals.by_chunk(plain, names, CHUNKS, "samples", self.patience)
        if rival == "compile":  # the compiler's options last
            best = rivals.fastest(calls, times_longer=self.patience)
            name, chunk = best.split(", ")[0], CHUNKS[list(calls).index(best)]
            frozen = plain(name, chunk, freezing=True)
            calls = {best: calls[best], f"{best}, freezing": frozen}
        return calls

    def _ours(self, **options: Any) -> Tensor:
        found = dvae_fast.estimate_log_likelihood(self.model, self.x, self.k, **options)
        return found.log_likelihood

    def _products(self) -> Callable[[], Tensor]:
        """The decoder's matrix products and nothing else, in tiles that stay in cache, into kept
        buffers: what no evaluation can do without."""
        decoder = self.model.decoder
        layers = [m for m in decoder.modules() if isinstance(m, torch.nn.Linear)]
        z = torch.randn(TILE, Z)
        buffers = [torch.empty(TILE, layer.out_features) for layer in layers]
        rows = self.x.shape[0] * self.k

        def call() -> Tensor:
            for first in range(0, rows, TILE):
                n = min(TILE, rows - first)
                hidden = z[:n]
                for layer, buffer in zip(layers, buffers, strict=True):
                    out = buffer[:n]
                    torch.addmm(layer.bias, hidden, layer.weight.t(), out=out)
                    hidden = out
            return hidden

        return no_grad(call)

    def _plain(self, rival: str, name: str, chunk: int, **options: bool) -> Callable[[], Tensor]:
        model = make_rival(self.model)
        model.density = rivals.densities(rival)[name]
        log_weights = model.log_weights
        if rival == "compile":
            log_weights = rivals.compiled(log_weights, **options)
        else:
            model.reparameterise = rivals.reparameterise_dot
        return lambda: rivals.estimate_log_likelihood(model, log_weights, self.x, self.k, chunk)

    def check(self, rival: str, result: Tensor) -> None:
        """Within six standard errors of ours, which is of other noise."""
        expected = self.expected
        if rival == "products":  # the last tile, of no example
            assert result.shape == (TILE, D)
            assert bool(result.isfinite().all())
            return
        if "bfloat16" in rival:  # another decoder, within its own precision
            difference = float((result.double() - expected.log_likelihood).mean())
            assert abs(difference) < 0.01 + 5 * 2**0.5 * expected.mean_standard_error, difference
            return
        bar = 6 * 2**0.5 * expected.standard_error + 1e-3
        assert bool((bar < 0.3).all()), bar
        difference = (result.double() - expected.log_likelihood).abs()
        assert bool((difference <= bar).all()), (rival, difference, bar)


@pytest.mark.parametrize("rival", RIVALS)
def bench_evaluation(measure: Measure) -> None:
    measure(EvaluationCase)
