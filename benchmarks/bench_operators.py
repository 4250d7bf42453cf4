"""One group per operator and size of the table: ours, eager PyTorch, torch.compile."""

from __future__ import annotations

import functools
import math
from typing import TYPE_CHECKING, Any

import pytest
import rivals
import torch
from conftest import Case, Measure, Rival
from torch import Tensor

import dvae_fast
from dvae_fast import reference
from dvae_fast._dtypes import accumulation_dtype
from dvae_fast.corruptions import SaltAndPepper

if TYPE_CHECKING:
    from collections.abc import Callable

RATE, SALT = 0.1, 0.5
D = 784


def close(name: str, actual: Tensor, expected: Tensor, tolerance: float = 1e-4) -> None:
    """Relative to the largest value: loose enough for any order of summation, no looser."""
    torch.testing.assert_close(
        actual.double(),
        expected.double(),
        rtol=tolerance,
        atol=tolerance * expected.abs().max().item(),
        msg=lambda message: f"{name}: {message}",
    )


def no_grad(call: Callable[[], Tensor]) -> Callable[[], Tensor]:
    """`call` under torch.no_grad, the context a part of its time."""

    def wrapped() -> Tensor:
        with torch.no_grad():
            return call()

    return wrapped


# --- corrupt --------------------------------------------------------------------------------------


class CorruptCase(Case):
    """Salt and pepper over a 100 × 784 batch, M copies; every rival draws one uniform an element.

    8 bytes an element: x read, x̃ written (for M = 10 the copies read x from cache).
    """

    def __init__(self, copies: int, b: int = 100, d: int = D) -> None:
        self.group = f"corrupt salt-and-pepper, {b}×{d}, M={copies}"
        self.copies = None if copies == 1 else copies
        self.x = torch.rand(b, d)
        self.elements = copies * self.x.numel()
        self.bytes = 8 * self.elements

    def build(self, rival: str) -> Rival:
        x, copies = self.x, self.copies
        if rival == "ours":
            corruption = SaltAndPepper(RATE, SALT)
            draw: Callable[[], Tensor] = lambda: dvae_fast.corrupt(x, corruption, copies)
            return Rival(draw, draw)
        draws: dict[str, Callable[[], Tensor]] = {}
        for name, formula in rivals.CORRUPTIONS.items():
            plain = functools.partial(rivals.corrupt, formula=formula)
            if rival == "eager":
                draws[name] = functools.partial(plain, x, copies, RATE, SALT)
                continue
            for source, fallback in (("Inductor's generator", False), ("ATen's generator", True)):
                compiled = rivals.compiled(plain, fallback_random=fallback)
                draws[f"{name}, {source}"] = functools.partial(compiled, x, copies, RATE, SALT)
        variant = rivals.fastest(draws)
        return Rival(draws[variant], draws[variant], variant=variant)

    def check(self, rival: str, result: Tensor) -> None:
        """Shape, values and frequencies, the last to five standard deviations."""
        x = self.x
        assert result.shape == (x.shape if self.copies is None else (self.copies, *x.shape))
        one, zero = result == 1, result == 0
        assert bool(((result == x) | one | zero).all()), rival
        # x of exactly 0 or 1 would be counted as hit: none is, or nearly.
        n = result.numel()
        for hit, rate in ((one, RATE * SALT), (zero, RATE * (1 - SALT))):
            deviation = hit.float().mean().item() - rate
            assert abs(deviation) <= 5 * math.sqrt(rate * (1 - rate) / n), (rival, deviation)


@pytest.mark.parametrize("rival", ["ours", "eager", "compile"])
@pytest.mark.parametrize("copies", [1, 10])
def bench_corrupt(benchmark: Any, measure: Measure, copies: int, rival: str, turn: int) -> None:
    measure(benchmark, lambda: CorruptCase(copies), ("corrupt", copies), rival)


# --- sample_latent --------------------------------------------------------------------------------


class SampleLatentCase(Case):
    """z and log_ratio, and back to mean and log_var from gradients of both."""

    def __init__(
        self, b: int = 100, k: int = 50, z: int = 50, dtype: torch.dtype = torch.float32
    ) -> None:
        self.group = f"sample_latent forward+backward, B={b} K={k} Z={z}"
        self.k = k
        self.mean = torch.randn(b, z, dtype=dtype).requires_grad_()
        self.log_var = (0.5 * torch.randn(b, z, dtype=dtype) - 1).requires_grad_()
        self.upstream = (torch.randn(b, k, z, dtype=dtype), torch.randn(b, k, dtype=dtype))
        self.elements = b * k * z
        self.bytes = 2 * dtype.itemsize * self.elements  # z written, its gradient read

    def build(self, rival: str) -> Rival:
        if rival == "ours":
            return self._rival(dvae_fast.sample_latent)
        candidates = {}
        for name, formula in rivals.REPARAMETERISATIONS.items():
            plain = functools.partial(rivals.sample_latent, formula=formula)
            if rival == "eager":
                candidates[name] = self._rival(plain, name)
                continue
            for source, fallback in (("Inductor's generator", False), ("ATen's generator", True)):
                label = f"{name}, {source}"
                compiled = rivals.compiled(plain, fallback_random=fallback)
                candidates[label] = self._rival(compiled, label)
        return candidates[rivals.fastest({n: r.call for n, r in candidates.items()})]

    def _rival(self, sample: Callable[..., tuple[Tensor, Tensor]], variant: str = "") -> Rival:
        inputs = (self.mean, self.log_var)

        def result() -> tuple[Tensor, ...]:
            outputs = sample(*inputs, self.k)
            return (*outputs, *torch.autograd.grad(outputs, inputs, self.upstream))

        def call() -> None:
            result()

        return Rival(call, result, variant=variant)

    def check(self, rival: str, result: tuple[Tensor, ...]) -> None:
        """The noise that z holds must be normal, and explain the other three results."""
        z, log_ratio, grad_mean, grad_log_var = (t.detach().double() for t in result)
        mean, log_var = self.mean.detach().double(), self.log_var.detach().double()
        grad_z, grad_ratio = (g.double() for g in self.upstream)
        scaled = z - mean.unsqueeze(1)
        noise = scaled * torch.exp(-0.5 * log_var).unsqueeze(1)
        n = noise.numel()
        assert abs(noise.mean().item()) <= 5 / math.sqrt(n), rival
        assert abs(noise.square().mean().item() - 1) <= 5 * math.sqrt(2 / n), rival
        close(rival, log_ratio, reference.latent_log_ratio(z, mean, log_var))
        g = grad_ratio.unsqueeze(2)
        delta = grad_z - g * z
        close(rival, grad_mean, delta.sum(1))
        close(rival, grad_log_var, 0.5 * (delta * scaled + g).sum(1))


@pytest.mark.parametrize("rival", ["ours", "eager", "compile"])
def bench_sample_latent(benchmark: Any, measure: Measure, rival: str, turn: int) -> None:
    measure(benchmark, SampleLatentCase, "sample_latent", rival)


# --- latent_log_ratio -----------------------------------------------------------------------------


class LatentLogRatioCase(Case):
    """log p(z) − log q(z) of a z from elsewhere, and back to z, mean and log_var."""

    def __init__(self, b: int = 100, k: int = 50, z: int = 50) -> None:
        self.group = f"latent_log_ratio forward+backward, B={b} K={k} Z={z}"
        self.elements = b * k * z
        self.bytes = 12 * self.elements  # z read twice, its gradient written
        shapes = ((b, k, z), (b, z), (b, z))
        self.inputs = tuple(torch.randn(shape).requires_grad_() for shape in shapes)
        self.upstream = torch.randn(b, k)
        doubles = [t.detach().double().requires_grad_() for t in self.inputs]
        out = reference.latent_log_ratio(*doubles)
        self.expected = (out, *torch.autograd.grad(out, doubles, self.upstream.double()))

    def build(self, rival: str) -> Rival:
        if rival == "ours":
            return self._rival(dvae_fast.latent_log_ratio)
        candidates = {}
        for name, formula in rivals.LOG_RATIOS.items():
            function = rivals.compiled(formula) if rival == "compile" else formula
            candidates[name] = self._rival(function, name)
        return candidates[rivals.fastest({n: r.call for n, r in candidates.items()})]

    def _rival(self, function: Callable[..., Tensor], variant: str = "") -> Rival:
        def result() -> tuple[Tensor, ...]:
            out = function(*self.inputs)
            return (out, *torch.autograd.grad(out, self.inputs, self.upstream))

        def call() -> None:
            result()

        return Rival(call, result, variant=variant)

    def check(self, rival: str, result: tuple[Tensor, ...]) -> None:
        for actual, expected in zip(result, self.expected, strict=True):
            close(rival, actual.detach(), expected.detach())


@pytest.mark.parametrize("rival", ["ours", "eager", "compile"])
def bench_latent_log_ratio(benchmark: Any, measure: Measure, rival: str, turn: int) -> None:
    measure(benchmark, LatentLogRatioCase, "latent_log_ratio", rival)


# --- logmeanexp -----------------------------------------------------------------------------------


class LogMeanExpCase(Case):
    """log 1/K Σ_k w_k of each example, forward and backward."""

    def __init__(self, b: int = 100, k: int = 5000) -> None:
        self.group = f"logmeanexp forward+backward, B={b} K={k}"
        self.elements = b * k
        self.bytes = 12 * self.elements  # read twice, the gradient written
        self.log_w = (10 * torch.randn(b, k)).requires_grad_()
        self.upstream = torch.randn(b)
        double = self.log_w.detach().double().requires_grad_()
        out = rivals.logmeanexp(double)
        self.expected = (out, *torch.autograd.grad(out, double, self.upstream.double()))

    def build(self, rival: str) -> Rival:
        function: Callable[..., Tensor] = rivals.logmeanexp
        if rival == "ours":
            function = dvae_fast.logmeanexp
        elif rival == "compile":
            function = rivals.compiled(function)

        def result() -> tuple[Tensor, ...]:
            out = function(self.log_w)
            return (out, *torch.autograd.grad(out, self.log_w, self.upstream))

        def call() -> None:
            result()

        return Rival(call, result)

    def check(self, rival: str, result: tuple[Tensor, ...]) -> None:
        for actual, expected in zip(result, self.expected, strict=True):
            close(rival, actual.detach(), expected.detach())


@pytest.mark.parametrize("rival", ["ours", "eager", "compile"])
def bench_logmeanexp(benchmark: Any, measure: Measure, rival: str, turn: int) -> None:
    measure(benchmark, LogMeanExpCase, "logmeanexp", rival)


# --- mixture_log_ratio ----------------------------------------------------------------------------


class MixtureLogRatioCase(Case):
    """5 samples of each of M = 10 corruptions' posteriors under all ten, and back to all inputs.

    Bytes: z read, its gradient written. Arithmetic decides: a pass over z for each component.
    """

    def __init__(self, b: int = 100, k: int = 50, m: int = 10, z: int = 50) -> None:
        self.group = f"mixture_log_ratio forward+backward, B={b} K={k} M={m} Z={z}"
        self.elements, self.bytes = b * k * m * z, 8 * b * k * z
        # Corruptions move the posterior by a fraction of its width: several components count.
        self.mean = (torch.randn(1, b, z) + 0.1 * torch.randn(m, b, z)).requires_grad_()
        self.log_var = (0.1 * torch.randn(m, b, z) - 1).requires_grad_()
        noise = torch.exp(self.log_var.detach()[0] / 2).unsqueeze(1) * torch.randn(b, k, z)
        self.z = (self.mean.detach()[0].unsqueeze(1) + noise).requires_grad_()
        self.upstream = torch.randn(b, k)
        args = [t.detach().double() for t in (self.z, self.mean, self.log_var)]
        log_ratio, weights = reference.mixture_log_ratio(*args)
        grads = reference.mixture_log_ratio_backward(self.upstream.double(), weights, *args)
        self.expected = (log_ratio, *grads)

    def build(self, rival: str) -> Rival:
        if rival == "ours":
            return self._rival(dvae_fast.mixture_log_ratio)
        candidates = {}
        for name, formula in rivals.MIXTURES.items():
            function = rivals.compiled(formula) if rival == "compile" else formula
            candidates[name] = self._rival(function, name)
        return candidates[rivals.fastest({n: r.call for n, r in candidates.items()})]

    def _rival(self, function: Callable[..., Tensor], variant: str = "") -> Rival:
        inputs = (self.z, self.mean, self.log_var)

        def result() -> tuple[Tensor, ...]:
            out = function(*inputs)
            return (out, *torch.autograd.grad(out, inputs, self.upstream))

        def call() -> None:
            result()

        return Rival(call, result, variant=variant)

    def check(self, rival: str, result: tuple[Tensor, ...]) -> None:
        for actual, expected in zip(result, self.expected, strict=True):
            close(rival, actual.detach(), expected)


@pytest.mark.parametrize("rival", ["ours", "eager", "compile"])
def bench_mixture_log_ratio(benchmark: Any, measure: Measure, rival: str, turn: int) -> None:
    measure(benchmark, MixtureLogRatioCase, "mixture_log_ratio", rival)


# --- log_weights ----------------------------------------------------------------------------------


def decoder_output(
    b: int, k: int, d: int = D, dtype: torch.dtype = torch.float32
) -> tuple[Tensor, Tensor, Tensor]:
    """(logits, x, log_ratio): binary data and logits of a trained decoder's size.

    Samples of one example differ by a few nats, so that the weights are neither flat nor one-hot.
    """
    logits = torch.randn(b, k, d).mul_(2 / math.sqrt(d)).add_(2 * torch.randn(b, 1, d))
    x, log_ratio = (torch.rand(b, d) < 0.2).to(dtype), torch.randn(b, k)
    return logits.to(dtype), x, log_ratio.to(accumulation_dtype(dtype))


class LogWeightsCase(Case):
    """log_weights of k = 5000 samples, the decoder output in memory; no gradient."""

    def __init__(
        self, b: int = 10, k: int = 5000, d: int = D, dtype: torch.dtype = torch.float32
    ) -> None:
        self.group = f"log_weights forward, no grad, B={b} K={k} D={d}"
        self.logits, self.x, self.log_ratio = decoder_output(b, k, d, dtype)
        self.elements = b * k * d
        self.bytes = dtype.itemsize * self.elements
        # An element costs the same for any number of samples, and a check not much.
        rows = slice(0, k, max(1, k // 100))
        self.rows = rows
        self.expected = reference.log_weights(
            self.logits[:, rows].double(), None, self.x, self.log_ratio[:, rows], "bernoulli"
        )

    def build(self, rival: str) -> Rival:
        inputs = (self.logits, self.x, self.log_ratio)
        k = self.logits.shape[1]
        calls: dict[str, Callable[[], Tensor]] = {}
        if rival == "ours":
            calls[""] = functools.partial(dvae_fast.log_weights, *inputs)
        elif rival == "compile":
            for name, density in rivals.COMPILED_DENSITIES.items():
                function = functools.partial(rivals.log_weights, density=density)
                calls[name] = functools.partial(rivals.compiled(function), *inputs)
        elif rival == "eager":
            for name, density in rivals.EAGER_DENSITIES.items():
                calls[name] = functools.partial(rivals.log_weights, *inputs, density)
        else:
            # The formula at a middling chunk first, then the chunk.
            chunks = [chunk for chunk in (50, 100, 250, 500, 1000) if chunk <= k]

            def chunked(name: str, chunk: int) -> Callable[[], Tensor]:
                density = rivals.EAGER_DENSITIES[name]
                call = functools.partial(rivals.log_weights_chunked, *inputs, density, chunk)
                return no_grad(call)

            middling = chunks[len(chunks) // 2]
            best = rivals.fastest({n: chunked(n, middling) for n in rivals.EAGER_DENSITIES})
            calls = {f"{best}, {c} samples at a time": chunked(best, c) for c in chunks}
        wrapped = {name: no_grad(call) for name, call in calls.items()}
        variant = rivals.fastest(wrapped)
        return Rival(wrapped[variant], wrapped[variant], variant=variant)

    def check(self, rival: str, result: Tensor) -> None:
        close(rival, result[:, self.rows], self.expected)


@pytest.mark.parametrize("rival", ["ours", "eager", "eager, chunked", "compile"])
def bench_log_weights(benchmark: Any, measure: Measure, rival: str, turn: int) -> None:
    measure(benchmark, LogWeightsCase, "log_weights", rival)


# --- iwae_loss ------------------------------------------------------------------------------------


class IWAELossCase(Case):
    """−bound over a batch of 100 from decoder outputs (B, K, D).

    Before every call, untimed and for every rival alike, the decoder output is made anew, as a
    tensor that is no leaf of the graph: it has just been written, as it has in training, and
    `overwrite_params` may have it. What is timed is the loss and, unless `backward` is off, its
    gradient down to decoder output and log_ratio, by torch.autograd.grad, which adds to no
    `.grad`. Bytes an element: 4 read, and 4 written for the gradient.
    """

    def __init__(
        self,
        k: int,
        backward: bool,
        b: int = 100,
        d: int = D,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        what = "forward+backward" if backward else "forward, no grad"
        self.group = f"iwae_loss {what}, B={b} K={k} D={d}"
        self.backward = backward
        # Plain code's weights have its log-weights' rounding, which grows with D.
        self.tolerance = 1e-4 * max(1.0, d / D) if dtype.itemsize >= 4 else 1e-2
        logits, self.x, self.log_ratio = decoder_output(b, k, d, dtype)
        self.leaf = logits.requires_grad_(backward)
        self.log_ratio.requires_grad_(backward)
        self.params: Tensor | None = None
        self.elements = b * k * d
        self.bytes = (2 if backward else 1) * dtype.itemsize * self.elements
        bound, weights, grad, _ = reference.iwae(
            logits.detach().double(), None, self.x, self.log_ratio.detach(), "bernoulli", -1 / b
        )
        self.expected = (-bound.mean(), grad, weights * (-1 / b))

    def prepare(self) -> None:
        self.params = None  # the old one's memory first
        self.params = self.leaf.clone()

    def build(self, rival: str) -> Rival:
        if rival.startswith("ours"):
            overwrite = rival == "ours, overwrite_params"
            return self._rival(functools.partial(dvae_fast.iwae_loss, overwrite_params=overwrite))
        if rival == "eager, gradient by hand":
            return self._by_hand()
        compiled = rival == "compile"
        candidates = {}
        densities = rivals.COMPILED_DENSITIES if compiled else rivals.EAGER_DENSITIES
        for name, density in densities.items():
            loss = functools.partial(rivals.iwae_loss, density=density)
            candidates[name] = self._rival(rivals.compiled(loss) if compiled else loss, name)
        calls = {name: candidate.call for name, candidate in candidates.items()}
        return candidates[rivals.fastest(calls, self.prepare)]

    def _rival(self, loss: Callable[..., Tensor], variant: str = "") -> Rival:
        def result() -> tuple[Tensor, ...]:
            assert self.params is not None
            if not self.backward:
                with torch.no_grad():
                    return (loss(self.params, self.x, self.log_ratio),)
            value = loss(self.params, self.x, self.log_ratio)
            return (value, *torch.autograd.grad(value, (self.params, self.log_ratio)))

        def call() -> None:
            result()

        return Rival(call, result, self.prepare, variant)

    def _by_hand(self) -> Rival:
        def result() -> tuple[Tensor, ...]:
            assert self.params is not None
            with torch.no_grad():
                return rivals.iwae_by_hand(self.params, self.x, self.log_ratio)

        def call() -> None:
            result()

        return Rival(call, result, self.prepare)

    def check(self, rival: str, result: tuple[Tensor, ...]) -> None:
        for actual, expected in zip(result, self.expected, strict=False):
            close(rival, actual.detach(), expected, self.tolerance)


@pytest.mark.parametrize("rival", ["ours", "eager", "compile"])
@pytest.mark.parametrize("k", [50, 5, 1])
def bench_iwae_loss_forward(
    benchmark: Any, measure: Measure, k: int, rival: str, turn: int
) -> None:
    measure(benchmark, lambda: IWAELossCase(k, backward=False), ("iwae forward", k), rival)


@pytest.mark.parametrize(
    "rival",
    ["ours", "ours, overwrite_params", "eager", "eager, gradient by hand", "compile"],
)
@pytest.mark.parametrize("k", [50, 5, 1])
def bench_iwae_loss(benchmark: Any, measure: Measure, k: int, rival: str, turn: int) -> None:
    measure(benchmark, lambda: IWAELossCase(k, backward=True), ("iwae", k), rival)


# --- linear_log_weights ---------------------------------------------------------------------------


class LinearLogWeightsCase(Case):
    """50,000 rows through the last layer, 200 → 784, to log-weights; no gradient.

    "addmm" is the matrix product alone, into fresh memory as torch.addmm returns it, or into a
    buffer kept between calls; both leave the rest of the work undone.
    """

    def __init__(
        self,
        b: int = 10,
        k: int = 5000,
        h: int = 200,
        d: int = D,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        self.group = f"linear_log_weights, {b * k} rows, {h}→{d}, no grad"
        self.hidden = torch.randn(b, k, h).mul_(0.5).add_(torch.randn(b, 1, h)).to(dtype)
        self.weight = (torch.randn(d, h) / math.sqrt(h)).to(dtype)
        self.bias = torch.randn(d, dtype=dtype)
        self.x = (torch.rand(b, d) < 0.2).to(dtype)
        self.log_ratio = torch.randn(b, k, dtype=dtype)
        self.elements = b * k * d
        self.bytes = dtype.itemsize * (self.hidden.numel() + self.weight.numel())
        self.flops = 2 * self.elements * h
        self.rows = slice(0, k, max(1, k // 100))
        self.logits = torch.nn.functional.linear(
            self.hidden[:, self.rows].double(), self.weight.double(), self.bias.double()
        )
        self.expected = reference.log_weights(
            self.logits, None, self.x, self.log_ratio[:, self.rows], "bernoulli"
        )

    def build(self, rival: str) -> Rival:
        weights = (self.hidden, self.weight, self.bias)
        data = (self.x, self.log_ratio)
        calls: dict[str, Callable[[], Tensor]] = {}
        k = self.hidden.shape[1]
        tiles = [t for t in (100, 250, 500, 1000, 2500, 5000) if t <= k and k % t == 0] or [k]
        if rival == "ours":
            calls[""] = functools.partial(dvae_fast.linear_log_weights, *weights, *data)
        elif rival.startswith("addmm"):
            product = functools.partial(
                torch.addmm, self.bias, self.hidden.flatten(0, 1), self.weight.t()
            )
            if rival == "addmm, kept buffer":
                buffer = self.hidden.new_empty(self.hidden[..., 0].numel(), self.bias.numel())
                product = functools.partial(product, out=buffer)
            calls[""] = product
        else:
            compiled = rival == "compile"
            densities = rivals.COMPILED_DENSITIES if compiled else rivals.EAGER_DENSITIES

            def tiled(name: str, tile: int) -> Callable[[], Tensor]:
                """Tiles of one example's rows."""
                density = densities[name]
                if not compiled:
                    call = functools.partial(rivals.linear_log_weights, density=density, tile=tile)
                else:
                    step = rivals.compiled(rivals.linear_step(density))
                    call = functools.partial(
                        rivals.linear_log_weights_compiled, step=step, tile=tile
                    )
                return no_grad(functools.partial(call, *weights, *data))

            # The formula at a middling tile first, then the tile.
            best = rivals.fastest({name: tiled(name, tiles[len(tiles) // 2]) for name in densities})
            calls = {f"{best}, {tile} rows at a time": tiled(best, tile) for tile in tiles}

        wrapped = {name: no_grad(call) for name, call in calls.items()}
        variant = rivals.fastest(wrapped)

        def run() -> None:
            wrapped[variant]()

        return Rival(run, wrapped[variant], variant=variant)

    def check(self, rival: str, result: Tensor) -> None:
        if rival.startswith("addmm"):
            rows = result.view(*self.hidden.shape[:2], -1)[:, self.rows]
            close(rival, rows, self.logits)
        else:
            close(rival, result[:, self.rows], self.expected)


@pytest.mark.parametrize("rival", ["ours", "addmm", "addmm, kept buffer", "eager", "compile"])
def bench_linear_log_weights(benchmark: Any, measure: Measure, rival: str, turn: int) -> None:
    measure(benchmark, LinearLogWeightsCase, "linear_log_weights", rival)
