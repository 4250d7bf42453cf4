"""One group per operator and size of the table: ours, eager PyTorch, torch.compile."""

from __future__ import annotations

import math
from functools import partial
from typing import TYPE_CHECKING, Any

import cases
import rivals
import torch
from cases import FLOAT, RATE, SALT, B, Call, Calls, Case, D, Z, caches, close, no_grad
from torch import Tensor

import dvae_fast
from dvae_fast import reference
from dvae_fast.corruptions import SaltAndPepper

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence


class FormulaCase(Case):
    """Ours and plain formulas, all of them functions of the same inputs."""

    ours: Callable[..., Any]
    plain: rivals.Calls
    inputs: Sequence[Tensor]
    random = False

    def bound(self, function: Callable[..., Any]) -> Call:
        return no_grad(function, *self.inputs)

    def ways(self, rival: str) -> Calls:
        ours = rival.startswith("ours")
        functions = {"": self.ours} if ours else rivals.ways(self.plain, rival, self.random)
        return {name: self.bound(function) for name, function in functions.items()}


class CorruptCase(FormulaCase):
    """Salt and pepper over a 100 × 784 batch, M copies; every rival draws one uniform an element.

    8 bytes an element: x read, x̃ written (for M = 10 the copies read x from cache)."""

    random = True

    def __init__(self, m: int, b: int = B, d: int = D) -> None:
        self.group = f"corrupt salt-and-pepper, {b}×{d}, M={m}"
        self.copies = None if m == 1 else m
        self.inputs = (torch.rand(b, d),)
        self.elements, self.bytes = m * b * d, 8 * m * b * d
        corruption = SaltAndPepper(RATE, SALT).to(self.inputs[0].device)
        self.ours = partial(dvae_fast.corrupt, corruption=corruption, copies=self.copies)
        plain = partial(rivals.corrupt, copies=self.copies, rate=RATE, salt=SALT)
        self.plain = {n: partial(plain, formula=f) for n, f in rivals.CORRUPTIONS.items()}

    def check(self, rival: str, result: Tensor) -> None:
        """Shape, values and frequencies, the last to five standard deviations."""
        (x,) = self.inputs
        assert result.shape == (x.shape if self.copies is None else (self.copies, *x.shape))
        one, zero = result == 1, result == 0
        assert bool(((result == x) | one | zero).all()), rival
        # x of exactly 0 or 1 would be counted as hit: none is, or nearly.
        for hit, rate in ((one, RATE * SALT), (zero, RATE * (1 - SALT))):
            deviation = hit.double().mean().item() - rate
            bar = 5 * math.sqrt(rate * (1 - rate) / result.numel())
            assert abs(deviation) <= bar, (rival, deviation)


def differentiate(
    function: Callable[..., Any], inputs: Sequence[Tensor], upstream: Any
) -> tuple[Tensor, ...]:
    """The results of `function(*inputs)`, and the inputs' gradients from those of the results."""
    out = function(*inputs)
    results = out if isinstance(out, tuple) else (out,)
    return (*results, *torch.autograd.grad(results, inputs, upstream))


class GradientCase(FormulaCase):
    """A function of `inputs` and back, held to the first plain formula in float64."""

    upstream: Sequence[Tensor]

    def bound(self, function: Callable[..., Any]) -> Call:
        return partial(differentiate, function, self.inputs, self.upstream)

    def exact(self, *inputs: Tensor) -> Any:
        return next(iter(self.plain.values()))(*inputs)

    def check(self, rival: str, result: tuple[Tensor, ...]) -> None:
        doubles = [t.detach().double().requires_grad_() for t in self.inputs]
        expected = differentiate(self.exact, doubles, [g.double() for g in self.upstream])
        for actual, exact in zip(result, expected, strict=True):
            close(rival, actual, exact)


def leaves(*inputs: Tensor) -> tuple[Tensor, ...]:
    return tuple(t.requires_grad_() for t in inputs)


class SampleLatentCase(GradientCase):
    """z and log_ratio, and back to mean and log_var from gradients of both."""

    random = True

    def __init__(self, b: int = B, k: int = 50, z: int = Z, dtype: torch.dtype = FLOAT) -> None:
        self.group = f"sample_latent forward+backward, B={b} K={k} Z={z}"
        self.elements = b * k * z
        self.bytes = 2 * dtype.itemsize * self.elements  # z written, its gradient read
        draw = partial(torch.randn, dtype=dtype)
        self.inputs = leaves(draw(b, z), 0.5 * draw(b, z) - 1)
        self.upstream = (draw(b, k, z), draw(b, k))
        self.ours = partial(dvae_fast.sample_latent, k=k)
        formulas, plain = rivals.REPARAMETERISATIONS.items(), partial(rivals.sample_latent, k=k)
        self.plain = {name: partial(plain, formula=formula) for name, formula in formulas}

    def check(self, rival: str, result: tuple[Tensor, ...]) -> None:
        """The noise that z holds must be normal, and explain the other three results."""
        mean, log_var = (t.detach().double().unsqueeze(1) for t in self.inputs)
        noise = (result[0].detach() - mean) * torch.exp(-0.5 * log_var)
        n = noise.numel()
        assert abs(noise.mean().item()) <= 5 / math.sqrt(n), rival
        assert abs(noise.square().mean().item() - 1) <= 5 * math.sqrt(2 / n), rival
        self.exact = partial(rivals.reparameterise, noise=noise)
        super().check(rival, result)


class LatentLogRatioCase(GradientCase):
    """log p(z) − log q(z) of a z from elsewhere, and back to z, mean and log_var."""

    ours, plain = staticmethod(dvae_fast.latent_log_ratio), rivals.LOG_RATIOS

    def __init__(self, b: int = B, k: int = 50, z: int = Z) -> None:
        self.group = f"latent_log_ratio forward+backward, B={b} K={k} Z={z}"
        self.elements, self.bytes = b * k * z, 12 * b * k * z  # z read twice, its gradient written
        self.inputs = leaves(torch.randn(b, k, z), torch.randn(b, z), torch.randn(b, z))
        self.upstream = (torch.randn(b, k),)


class LogMeanExpCase(GradientCase):
    """log 1/K Σ_k w_k of each example, forward and backward."""

    ours, plain = staticmethod(dvae_fast.logmeanexp), {"": rivals.logmeanexp}

    def __init__(self, b: int = B, k: int = 5000) -> None:
        self.group = f"logmeanexp forward+backward, B={b} K={k}"
        self.elements, self.bytes = b * k, 12 * b * k  # read twice, the gradient written
        self.inputs, self.upstream = leaves(10 * torch.randn(b, k)), (torch.randn(b),)


class MixtureLogRatioCase(GradientCase):
    """5 samples of each of M = 10 corruptions' posteriors under all ten, and back to all inputs.

    Bytes: z read, its gradient written. Arithmetic decides: a pass over z for each component."""

    ours, plain = staticmethod(dvae_fast.mixture_log_ratio), rivals.MIXTURES

    def __init__(self, b: int = B, k: int = 50, m: int = 10, z: int = Z) -> None:
        self.group = f"mixture_log_ratio forward+backward, B={b} K={k} M={m} Z={z}"
        self.elements, self.bytes = b * k * m * z, 8 * b * k * z
        # Corruptions move the posterior by a fraction of its width: several components count.
        mean = torch.randn(1, b, z) + 0.1 * torch.randn(m, b, z)
        log_var = 0.1 * torch.randn(m, b, z) - 1
        noise = torch.exp(log_var[0] / 2).unsqueeze(1) * torch.randn(b, k, z)
        self.inputs = leaves(mean[0].unsqueeze(1) + noise, mean, log_var)
        self.upstream = (torch.randn(b, k),)


def few(k: int) -> slice:
    """Samples to be checked: an element costs the same for any number, and a check not much."""
    return slice(0, k, max(1, k // 100))


class LogWeightsCase(FormulaCase):
    """log_weights of k = 5000 samples, the decoder output in memory; no gradient."""

    ours = staticmethod(dvae_fast.log_weights)
    plain = rivals.by_density(rivals.log_weights)

    def __init__(self, b: int = 10, k: int = 5000, d: int = D, dtype: torch.dtype = FLOAT) -> None:
        self.group = f"log_weights forward, no grad, B={b} K={k} D={d}"
        self.inputs = cases.decoder_output(b, k, d, dtype)
        self.elements, self.bytes = b * k * d, dtype.itemsize * b * k * d

    def ways(self, rival: str) -> Calls:
        if rival != "eager, chunked":
            return super().ways(rival)
        chunks = [c for c in (100, 500, 1000) if c <= self.inputs[0].shape[1]]

        def chunked(name: str, chunk: int) -> Call:
            step = rivals.density_step(rivals.DENSITIES[name])
            return no_grad(rivals.tiled, step, *self.inputs, chunk)

        return rivals.by_chunk(
            chunked, rivals.candidates(rivals.DENSITIES, rival), chunks, "samples"
        )

    def check(self, rival: str, result: Tensor) -> None:
        logits, x, log_ratio = self.inputs
        rows = few(logits.shape[1])
        close(rival, result[:, rows], exact_log_weights(logits[:, rows], x, log_ratio[:, rows]))


def exact_log_weights(logits: Tensor, x: Tensor, log_ratio: Tensor) -> Tensor:
    return reference.log_weights(logits.double(), None, x, log_ratio, "bernoulli")


class IWAELossCase(FormulaCase):
    """−bound over a batch of 100 from decoder outputs (B, K, D).

    Before every call, untimed and for every rival alike, the decoder output is made anew, as a
    tensor that is no leaf of the graph: it has just been written, as it has in training, and
    `overwrite_params` may have it. What is timed is the loss and, unless `backward` is off, its
    gradient down to decoder output and log_ratio, by torch.autograd.grad, which adds to no
    `.grad`. Bytes an element: 4 read, and 4 written for the gradient."""

    plain = rivals.by_density(rivals.iwae_loss)

    def __init__(
        self, k: int, backward: bool = True, b: int = B, d: int = D, dtype: torch.dtype = FLOAT
    ) -> None:
        what = "forward+backward" if backward else "forward, no grad"
        self.group = f"iwae_loss {what}, B={b} K={k} D={d}"
        self.backward = backward
        # Plain code's weights have its log-weights' rounding, which grows with D.
        self.tolerance = 1e-4 * max(1.0, d / D) if dtype.itemsize >= 4 else 1e-2
        self.leaf, self.x, self.log_ratio = cases.decoder_output(b, k, d, dtype)
        self.leaf.requires_grad_(backward)
        self.log_ratio.requires_grad_(backward)
        self.params = self.leaf
        self.elements = b * k * d
        self.bytes = (2 if backward else 1) * dtype.itemsize * self.elements

    def prepare(self) -> None:
        self.params = self.leaf  # the old one's memory first
        self.params = self.leaf.clone()

    def ways(self, rival: str) -> Calls:
        self.ours = partial(dvae_fast.iwae_loss, overwrite_params="overwrite" in rival)
        return super().ways(rival)

    def bound(self, loss: Callable[..., Tensor]) -> Call:
        def call() -> tuple[Tensor, ...]:
            value = loss(self.params, self.x, self.log_ratio)
            return (value, *torch.autograd.grad(value, (self.params, self.log_ratio)))

        return (
            call if self.backward else no_grad(lambda: (loss(self.params, self.x, self.log_ratio),))
        )

    def exact(self, rival: str, *operands: Any) -> Any:
        return reference.iwae(*operands)

    def check(self, rival: str, result: tuple[Tensor, ...]) -> None:
        """Gradients of the last hundred examples, and the value where these are all."""
        b, last = len(self.x), slice(-100, None)
        logits, x, log_ratio = (t.detach()[last] for t in (self.leaf, self.x, self.log_ratio))
        exact = self.exact(rival, logits.double(), None, x, log_ratio, "bernoulli", -1 / b)
        expected = (-exact[0].mean(), exact[2], exact[1] * (-1 / b))
        for i in range(b > 100, 3 if self.backward else 1):
            actual = result[i][last] if i else result[i]
            close(rival, actual, expected[i], self.tolerance)


class MaskedLossCase(IWAELossCase):
    """The same of a part of the pixels, others in each example; "ours, no mask" is of all."""

    def __init__(self, k: int, share: float) -> None:
        super().__init__(k)
        self.group += f", {share:.0%} observed"
        self.mask = torch.rand(self.x.shape) < share

    def plain_loss(self, logits: Tensor, x: Tensor, log_ratio: Tensor) -> Tensor:
        x, mask = (t.unsqueeze(1).expand_as(logits) for t in (x, self.mask))
        each = torch.nn.functional.binary_cross_entropy_with_logits(logits, x, reduction="none")
        return rivals.loss_of(log_ratio - each.where(mask, 0.0).sum(-1))

    def ways(self, rival: str) -> Calls:
        mask = None if "no mask" in rival else self.mask
        ours = partial(dvae_fast.iwae_loss, mask=mask)
        return {"": self.bound(ours if rival.startswith("ours") else self.plain_loss)}

    def exact(self, rival: str, *operands: Any) -> Any:
        mask = torch.ones_like(self.mask) if "no mask" in rival else self.mask
        return reference.masked_iwae(*operands, mask)


class LinearLogWeightsCase(Case):
    """50,000 rows through the last layer, 200 → 784, to log-weights; no gradient.

    "addmm" is the matrix product alone, into fresh memory as torch.addmm returns it, or into a
    buffer kept between calls; both leave the rest of the work undone."""

    def __init__(
        self, b: int = 10, k: int = 5000, h: int = 200, d: int = D, dtype: torch.dtype = FLOAT
    ) -> None:
        self.group = f"linear_log_weights, {b * k} rows, {h}→{d}, no grad"
        hidden = torch.randn(b, k, h).mul_(0.5).add_(torch.randn(b, 1, h)).to(dtype)
        weight = (torch.randn(d, h) / math.sqrt(h)).to(dtype)
        self.layer = (hidden, weight, torch.randn(d, dtype=dtype))
        self.data = (
            cases.make_data(b, d).to(dtype),
            torch.randn(b, k).to(reference.accumulation_dtype(dtype)),
        )
        self.elements = b * k * d
        self.bytes = dtype.itemsize * (hidden.numel() + weight.numel())
        self.flops = 2 * self.elements * h

    def ways(self, rival: str) -> Calls:
        hidden, weight, bias = self.layer
        k = hidden.shape[1]
        if rival == "ours":
            return {"": no_grad(dvae_fast.linear_log_weights, *self.layer, *self.data)}
        if rival.startswith("addmm"):
            out = hidden.new_empty(hidden[..., 0].numel(), len(bias)) if "kept" in rival else None
            return {"": no_grad(torch.addmm, bias, hidden.flatten(0, 1), weight.t(), out=out)}

        def tiled(name: str, tile: int) -> Call:
            kept = None if rival == "compile" else tile
            step = rivals.linear_step(weight, bias, rivals.DENSITIES[name], kept)
            step = rivals.compiled(step) if rival == "compile" else step
            return no_grad(rivals.tiled, step, hidden, *self.data, tile)

        tiles = [t for t in (250, 1000, 5000) if t <= k and k % t == 0] or [k]
        # After a product, another one may pay for compilers too.
        names = {**rivals.candidates(rivals.DENSITIES, rival), "softplus+bmm": None}
        return rivals.by_chunk(tiled, names, tiles, "rows")

    def check(self, rival: str, result: Tensor) -> None:
        hidden, weight, bias = self.layer
        x, log_ratio = self.data
        rows = few(hidden.shape[1])
        layer = (t.double() for t in (hidden[:, rows], weight, bias))
        expected = torch.nn.functional.linear(*layer)
        if rival.startswith("addmm"):
            result = result.view(*hidden.shape[:2], -1)
        else:
            expected = exact_log_weights(expected, x, log_ratio[:, rows])
        close(rival, result[:, rows], expected, 1e-4 if weight.itemsize >= 4 else 2e-2)


# --- what this machine can do at best, measured in the same run -----------------------------------


class CopyCase(Case):
    """dst.copy_(src), counting the bytes read and written, not the reads for ownership that the
    hardware may add. "copy" is of buffers far larger than the last cache; it is what the loss's
    "share of copy bandwidth" refers to."""

    group = "ceilings"

    def __init__(self, size: int) -> None:
        self.elements, self.bytes = size // 4, 8 * (size // 4)
        self.source, self.target = torch.rand(self.elements), torch.zeros(self.elements)

    def ways(self, rival: str) -> Calls:
        return {f"{self.bytes / 2e6:.1f} MB each": partial(self.target.copy_, self.source)}


class GemmCase(Case):
    """torch.mm of square matrices into a kept buffer, 2 n³ operations."""

    group = "ceilings"

    def __init__(self, n: int = 2048, dtype: torch.dtype = FLOAT) -> None:
        self.a, self.b, self.c = (torch.randn(n, n).to(dtype) for _ in range(3))
        self.elements, self.flops = n * n, 2 * n**3

    def ways(self, rival: str) -> Calls:
        return {f"{len(self.a)}³": partial(torch.mm, self.a, self.b, out=self.c)}


OPERATORS: dict[str, Callable[[], Case]] = {
    **{f"corrupt {m}": partial(CorruptCase, m) for m in (1, 10)},
    "sample_latent": SampleLatentCase,
    "latent_log_ratio": LatentLogRatioCase,
    "logmeanexp": LogMeanExpCase,
    "mixture_log_ratio": MixtureLogRatioCase,
    "log_weights": LogWeightsCase,
    **{f"iwae_loss forward {k}": partial(IWAELossCase, k, backward=False) for k in (50, 1)},
    **{f"iwae_loss {k}": partial(IWAELossCase, k) for k in (50, 5, 1)},
    **{f"iwae_loss, mask {s}": partial(MaskedLossCase, 50, s) for s in (0.5, 0.9)},
    "linear_log_weights": LinearLogWeightsCase,
    "copy": lambda: CopyCase(max(256 << 20, 4 * max(caches().values(), default=0))),
    "copy, size of the loss": partial(CopyCase, 4 * B * 50 * D),
    "GEMM": GemmCase,
}
LOSSES = ("ours", "ours, overwrite_params", "eager", "compile")
RIVALS = (
    dict.fromkeys(OPERATORS, cases.PLAIN)
    | {f"iwae_loss {k}": LOSSES for k in (50, 5, 1)}
    | {f"iwae_loss, mask {s}": ("ours", "ours, no mask", "eager") for s in (0.5, 0.9)}
    | {"log_weights": (*cases.PLAIN[:2], "eager, chunked", "compile")}
    | {"linear_log_weights": ("ours", "addmm", "addmm, kept buffer", "eager", "compile")}
    | {name: [name] for name in ("copy", "copy, size of the loss", "GEMM")}
)


@cases.rivals_of(RIVALS)
def bench_operator(measure: cases.Measure, case: str) -> None:
    measure(OPERATORS, case)
