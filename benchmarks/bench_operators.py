"""One group per operator and size of the table: ours, eager PyTorch, torch.compile."""

from __future__ import annotations

import functools
import math
from typing import TYPE_CHECKING, Any

import pytest
import rivals
import torch
from cases import (
    PLAIN,
    RATE,
    SALT,
    B,
    Case,
    D,
    Z,
    close,
    decoder_output,
    make_data,
    no_grad,
)
from torch import Tensor

import dvae_fast
from dvae_fast import reference
from dvae_fast.corruptions import SaltAndPepper

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from conftest import Measure

FLOAT = torch.float32

# --- corrupt --------------------------------------------------------------------------------------


class CorruptCase(Case):
    """Salt and pepper over a 100 × 784 batch, M copies; every rival draws one uniform an element.

    8 bytes an element: x read, x̃ written (for M = 10 the copies read x from cache).
    """

    def __init__(self, m: int, b: int = B, d: int = D) -> None:
        self.group = f"corrupt salt-and-pepper, {b}×{d}, M={m}"
        self.copies = None if m == 1 else m
        self.x = torch.rand(b, d)
        self.elements = m * self.x.numel()
        self.bytes = 8 * self.elements

    def ways(self, rival: str) -> dict[str, Callable[[], Tensor]]:
        x, copies = self.x, self.copies
        if rival == "ours":
            corruption = SaltAndPepper(RATE, SALT)
            return {"": lambda: dvae_fast.corrupt(x, corruption, copies)}
        formulas = {
            name: functools.partial(rivals.corrupt, formula=formula)
            for name, formula in rivals.CORRUPTIONS.items()
        }
        draws = rivals.ways(formulas, rival, random=True)
        return {n: functools.partial(draw, x, copies, RATE, SALT) for n, draw in draws.items()}

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


@pytest.mark.parametrize("rival", PLAIN)
@pytest.mark.parametrize("copies", [1, 10])
def bench_corrupt(measure: Measure, copies: int) -> None:
    measure(lambda: CorruptCase(copies))


# --- functions of latents, forward and backward ---------------------------------------------------


def differentiate(
    function: Callable[..., Any], inputs: Sequence[Tensor], upstream: Any
) -> tuple[Tensor, ...]:
    """The results of `function(*inputs)`, and the inputs' gradients from those of the results."""
    out = function(*inputs)
    results = out if isinstance(out, tuple) else (out,)
    return (*results, *torch.autograd.grad(results, inputs, upstream))


class GradientCase(Case):
    """A function of `inputs` and back; what is expected is its formula in float64."""

    def __init__(
        self,
        ours: Callable[..., Any],
        formulas: Mapping[str, Callable[..., Any]],
        expected: Callable[..., Tensor] | None,
        inputs: Sequence[Tensor],
        *upstream: Tensor,
        random: bool = False,
    ) -> None:
        self.ours, self.formulas, self.random = ours, formulas, random
        self.inputs, self.upstream = [t.requires_grad_() for t in inputs], upstream
        if expected is not None:
            doubles = [t.detach().double().requires_grad_() for t in inputs]
            self.expected = differentiate(expected, doubles, [g.double() for g in upstream])

    def ways(self, rival: str) -> dict[str, Callable[[], tuple[Tensor, ...]]]:
        functions = rivals.ways(self.formulas, rival, self.random)
        if rival == "ours":
            functions = {"": self.ours}
        return {
            name: functools.partial(differentiate, function, self.inputs, self.upstream)
            for name, function in functions.items()
        }

    def check(self, rival: str, result: tuple[Tensor, ...]) -> None:
        for actual, expected in zip(result, self.expected, strict=True):
            close(rival, actual, expected)


class SampleLatentCase(GradientCase):
    """z and log_ratio, and back to mean and log_var from gradients of both."""

    def __init__(self, b: int = B, k: int = 50, z: int = Z, dtype: torch.dtype = FLOAT) -> None:
        self.group = f"sample_latent forward+backward, B={b} K={k} Z={z}"
        mean, log_var = torch.randn(b, z, dtype=dtype), 0.5 * torch.randn(b, z, dtype=dtype) - 1
        super().__init__(
            lambda mean, log_var: dvae_fast.sample_latent(mean, log_var, k),
            {
                name: functools.partial(rivals.sample_latent, k=k, formula=formula)
                for name, formula in rivals.REPARAMETERISATIONS.items()
            },
            None,
            (mean, log_var),
            torch.randn(b, k, z, dtype=dtype),
            torch.randn(b, k, dtype=dtype),
            random=True,
        )
        self.elements = b * k * z
        self.bytes = 2 * dtype.itemsize * self.elements  # z written, its gradient read

    def check(self, rival: str, result: tuple[Tensor, ...]) -> None:
        """The noise that z holds must be normal, and explain the other three results."""
        z, log_ratio, grad_mean, grad_log_var = (t.detach().double() for t in result)
        mean, log_var = (t.detach().double() for t in self.inputs)
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


class LatentLogRatioCase(GradientCase):
    """log p(z) − log q(z) of a z from elsewhere, and back to z, mean and log_var."""

    def __init__(self, b: int = B, k: int = 50, z: int = Z) -> None:
        self.group = f"latent_log_ratio forward+backward, B={b} K={k} Z={z}"
        self.elements, self.bytes = b * k * z, 12 * b * k * z  # z read twice, its gradient written
        ours, oracle = dvae_fast.latent_log_ratio, reference.latent_log_ratio
        inputs = [torch.randn(shape) for shape in ((b, k, z), (b, z), (b, z))]
        super().__init__(ours, rivals.LOG_RATIOS, oracle, inputs, torch.randn(b, k))


class LogMeanExpCase(GradientCase):
    """log 1/K Σ_k w_k of each example, forward and backward."""

    def __init__(self, b: int = B, k: int = 5000) -> None:
        self.group = f"logmeanexp forward+backward, B={b} K={k}"
        self.elements, self.bytes = b * k, 12 * b * k  # read twice, the gradient written
        ours, plain, inputs = dvae_fast.logmeanexp, rivals.logmeanexp, [10 * torch.randn(b, k)]
        super().__init__(ours, {"": plain}, plain, inputs, torch.randn(b))


class MixtureLogRatioCase(GradientCase):
    """5 samples of each of M = 10 corruptions' posteriors under all ten, and back to all inputs.

    Bytes: z read, its gradient written. Arithmetic decides: a pass over z for each component.
    """

    def __init__(self, b: int = B, k: int = 50, m: int = 10, z: int = Z) -> None:
        self.group = f"mixture_log_ratio forward+backward, B={b} K={k} M={m} Z={z}"
        self.elements, self.bytes = b * k * m * z, 8 * b * k * z
        # Corruptions move the posterior by a fraction of its width: several components count.
        mean = torch.randn(1, b, z) + 0.1 * torch.randn(m, b, z)
        log_var = 0.1 * torch.randn(m, b, z) - 1
        noise = torch.exp(log_var[0] / 2).unsqueeze(1) * torch.randn(b, k, z)
        super().__init__(
            dvae_fast.mixture_log_ratio,
            rivals.MIXTURES,
            lambda *inputs: reference.mixture_log_ratio(*inputs)[0],
            (mean[0].unsqueeze(1) + noise, mean, log_var),
            torch.randn(b, k),
        )


LATENT = {
    "sample_latent": SampleLatentCase,
    "latent_log_ratio": LatentLogRatioCase,
    "logmeanexp": LogMeanExpCase,
    "mixture_log_ratio": MixtureLogRatioCase,
}


@pytest.mark.parametrize("rival", PLAIN)
@pytest.mark.parametrize("operator", LATENT)
def bench_latent(measure: Measure, operator: str) -> None:
    measure(LATENT[operator])


# --- log_weights ----------------------------------------------------------------------------------


class LogWeightsCase(Case):
    """log_weights of k = 5000 samples, the decoder output in memory; no gradient."""

    def __init__(self, b: int = 10, k: int = 5000, d: int = D, dtype: torch.dtype = FLOAT) -> None:
        self.group = f"log_weights forward, no grad, B={b} K={k} D={d}"
        self.inputs = logits, x, log_ratio = decoder_output(b, k, d, dtype)
        self.elements = b * k * d
        self.bytes = dtype.itemsize * self.elements
        # An element costs the same for any number of samples, and a check not much.
        self.rows = rows = slice(0, k, max(1, k // 100))
        self.expected = reference.log_weights(
            logits[:, rows].double(), None, x, log_ratio[:, rows], "bernoulli"
        )

    def ways(self, rival: str) -> dict[str, Callable[[], Tensor]]:
        def bound(function: Callable[..., Tensor], **options: Any) -> Callable[[], Tensor]:
            return no_grad(functools.partial(function, *self.inputs, **options))

        def chunked(name: str, chunk: int) -> Callable[[], Tensor]:
            density = rivals.EAGER_DENSITIES[name]
            return bound(rivals.log_weights_chunked, density=density, chunk=chunk)

        if rival == "ours":
            return {"": bound(dvae_fast.log_weights)}
        if rival == "eager, chunked":
            chunks = [c for c in (50, 100, 250, 500, 1000) if c <= self.inputs[0].shape[1]]
            return rivals.by_chunk(chunked, rivals.EAGER_DENSITIES, chunks, "samples")
        functions = rivals.ways_by_density(rivals.log_weights, rival)
        return {name: bound(function) for name, function in functions.items()}

    def check(self, rival: str, result: Tensor) -> None:
        close(rival, result[:, self.rows], self.expected)


@pytest.mark.parametrize("rival", ["ours", "eager", "eager, chunked", "compile"])
def bench_log_weights(measure: Measure) -> None:
    measure(LogWeightsCase)


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
        self, k: int, backward: bool = True, b: int = B, d: int = D, dtype: torch.dtype = FLOAT
    ) -> None:
        what = "forward+backward" if backward else "forward, no grad"
        self.group = f"iwae_loss {what}, B={b} K={k} D={d}"
        self.backward = backward
        # Plain code's weights have its log-weights' rounding, which grows with D.
        self.tolerance = 1e-4 * max(1.0, d / D) if dtype.itemsize >= 4 else 1e-2
        logits, self.x, self.log_ratio = decoder_output(b, k, d, dtype)
        self.leaf = logits.requires_grad_(backward)
        self.log_ratio.requires_grad_(backward)
        self.params = logits
        self.elements = b * k * d
        self.bytes = (2 if backward else 1) * dtype.itemsize * self.elements
        bound, weights, grad, _ = reference.iwae(
            logits.detach().double(), None, self.x, self.log_ratio.detach(), "bernoulli", -1 / b
        )
        self.expected = (-bound.mean(), grad, weights * (-1 / b))

    def prepare(self) -> None:
        self.params = self.leaf  # the old one's memory first
        self.params = self.leaf.clone()

    def ways(self, rival: str) -> dict[str, Callable[[], tuple[Tensor, ...]]]:
        if rival == "eager, gradient by hand":
            return {"": no_grad(lambda: rivals.iwae_by_hand(self.params, self.x, self.log_ratio))}
        if rival.startswith("ours"):
            overwrite = rival == "ours, overwrite_params"
            losses = {"": functools.partial(dvae_fast.iwae_loss, overwrite_params=overwrite)}
        else:
            losses = rivals.ways_by_density(rivals.iwae_loss, rival)
        return {name: functools.partial(self._call, loss) for name, loss in losses.items()}

    def _call(self, loss: Callable[..., Tensor]) -> tuple[Tensor, ...]:
        if not self.backward:
            with torch.no_grad():
                return (loss(self.params, self.x, self.log_ratio),)
        value = loss(self.params, self.x, self.log_ratio)
        return (value, *torch.autograd.grad(value, (self.params, self.log_ratio)))

    def check(self, rival: str, result: tuple[Tensor, ...]) -> None:
        assert len(result) == (3 if self.backward else 1), rival
        for actual, expected in zip(result, self.expected, strict=False):
            close(rival, actual, expected, self.tolerance)


@pytest.mark.parametrize("rival", PLAIN)
@pytest.mark.parametrize("k", [50, 5, 1])
def bench_iwae_loss_forward(measure: Measure, k: int) -> None:
    measure(lambda: IWAELossCase(k, backward=False))


@pytest.mark.parametrize(
    "rival", ["ours", "ours, overwrite_params", "eager", "eager, gradient by hand", "compile"]
)
@pytest.mark.parametrize("k", [50, 5, 1])
def bench_iwae_loss(measure: Measure, k: int) -> None:
    measure(lambda: IWAELossCase(k))


# --- linear_log_weights ---------------------------------------------------------------------------


class LinearLogWeightsCase(Case):
    """50,000 rows through the last layer, 200 → 784, to log-weights; no gradient.

    "addmm" is the matrix product alone, into fresh memory as torch.addmm returns it, or into a
    buffer kept between calls; both leave the rest of the work undone.
    """

    def __init__(
        self, b: int = 10, k: int = 5000, h: int = 200, d: int = D, dtype: torch.dtype = FLOAT
    ) -> None:
        self.group = f"linear_log_weights, {b * k} rows, {h}→{d}, no grad"
        hidden = torch.randn(b, k, h).mul_(0.5).add_(torch.randn(b, 1, h)).to(dtype)
        weight = (torch.randn(d, h) / math.sqrt(h)).to(dtype)
        self.layer = (hidden, weight, torch.randn(d, dtype=dtype))
        self.data = x, log_ratio = (make_data(b, d).to(dtype), torch.randn(b, k, dtype=dtype))
        self.elements = b * k * d
        self.bytes = dtype.itemsize * (hidden.numel() + weight.numel())
        self.flops = 2 * self.elements * h
        self.rows = rows = slice(0, k, max(1, k // 100))
        sample, *layer = (t.double() for t in (hidden[:, rows], *self.layer[1:]))
        self.logits = torch.nn.functional.linear(sample, *layer)
        self.expected = reference.log_weights(self.logits, None, x, log_ratio[:, rows], "bernoulli")

    def ways(self, rival: str) -> dict[str, Callable[[], Tensor]]:
        hidden, weight, bias = self.layer
        k = hidden.shape[1]
        if rival == "ours":
            ours = functools.partial(dvae_fast.linear_log_weights, *self.layer, *self.data)
            return {"": no_grad(ours)}
        if rival.startswith("addmm"):
            out = hidden.new_empty(hidden[..., 0].numel(), len(bias)) if "kept" in rival else None
            operands = (bias, hidden.flatten(0, 1), weight.t())
            return {"": no_grad(functools.partial(torch.addmm, *operands, out=out))}

        def tiled(name: str, tile: int) -> Callable[[], Tensor]:
            density = rivals.densities(rival)[name]
            step = rivals.compiled(rivals.linear_step(density)) if rival == "compile" else None
            options = {"density": density, "tile": tile, "step": step}
            call = functools.partial(rivals.linear_log_weights, *self.layer, *self.data, **options)
            return no_grad(call)

        tiles = [t for t in (100, 250, 500, 1000, 2500, 5000) if t <= k and k % t == 0] or [k]
        return rivals.by_chunk(tiled, rivals.densities(rival), tiles, "rows")

    def check(self, rival: str, result: Tensor) -> None:
        if rival.startswith("addmm"):
            rows = result.view(*self.layer[0].shape[:2], -1)[:, self.rows]
            close(rival, rows, self.logits)
        else:
            close(rival, result[:, self.rows], self.expected)


@pytest.mark.parametrize("rival", ["ours", "addmm", "addmm, kept buffer", "eager", "compile"])
def bench_linear_log_weights(measure: Measure) -> None:
    measure(LinearLogWeightsCase)
