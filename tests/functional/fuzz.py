"""Random calls of the public functions, each with plain PyTorch's answer in float64.

A case is a number: it says the function, the shapes (of size 0 and 1 too), the layout of every
tensor in memory, dtypes, extreme values, which inputs require a gradient, and the transform.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.distributions import NegativeBinomial
from torch.nn import functional as F

import dvae_fast
from dvae_fast import functional
from dvae_fast.corruptions import AdditiveGaussian, BitFlip, Masking, SaltAndPepper

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["LEDGER", "Finding", "check"]

#: how a case is asked for, and how often
TRANSFORMS = {"none": 4, "backward": 8, "vmap": 2, "grad": 2, "jvp": 2, "vmap of grad": 1}

#: how many cases share one that is compiled, which takes seconds
COMPILED = 500

#: Findings that are tolerated, by what they say: why.
LEDGER = {
    "more than one element of the written-to tensor": (
        "torch.func.jvp at an expanded input: torch's own, of torch.sin too"
    ),
}

_RTOL = {torch.float64: 1e-9, torch.float32: 2e-5, torch.bfloat16: 2e-2, torch.float16: 3e-3}


class Finding(AssertionError):  # noqa: N818
    """What differs, and in which case."""


class _Call(NamedTuple):
    """f(*inputs) of the package and of plain PyTorch; `scale` of what rounding may leave."""

    name: str
    fused: Callable[..., Any]
    plain: Callable[..., Any]
    inputs: list[Tensor]
    differentiable: list[bool]


class _Draw:
    """One case's random choices."""

    def __init__(self, case: int) -> None:
        self.rng = np.random.default_rng([case, 2026])
        self.torch = torch.Generator().manual_seed(case)

    def one_of(self, *choices: Any) -> Any:
        return choices[int(self.rng.integers(len(choices)))]

    def size(self, least: int = 0) -> int:
        return max(least, int(self.one_of(0, 1, 1, 2, 3, 5, 17, 33)))

    def normal(self, *shape: int) -> Tensor:
        return torch.randn(shape, generator=self.torch, dtype=torch.float64)

    def uniform(self, *shape: int) -> Tensor:
        return torch.rand(shape, generator=self.torch, dtype=torch.float64)

    def extreme(self, t: Tensor, *values: float) -> Tensor:
        """With a few elements replaced, in one case of four."""
        if t.numel() and self.rng.random() < 0.25:
            for _ in range(int(self.rng.integers(1, 4))):
                t.view(-1)[int(self.rng.integers(t.numel()))] = self.one_of(*values)
        return t

    def laid_out(self, t: Tensor) -> Tensor:
        """The same values in another layout."""
        how = self.one_of("dense", "dense", "transposed", "sliced", "expanded", "offset")
        if how == "transposed" and t.dim() > 1:
            order = [int(i) for i in self.rng.permutation(t.dim())]
            back = [order.index(i) for i in range(t.dim())]
            return t.permute(order).contiguous().permute(back)
        if how == "sliced" and t.dim():
            wide = torch.repeat_interleave(t, 2, -1)
            return wide[..., ::2]
        if how == "expanded" and t.dim() and t.shape[0]:
            return t[:1].expand(t.shape)
        if how == "offset":
            flat = torch.cat((torch.zeros(3, dtype=t.dtype), t.reshape(-1)))
            return flat[3:].view(t.shape)
        return t


# --- the functions ----------------------------------------------------------------------------


def _bound(log_w: Tensor) -> Tensor:
    top = log_w.detach().amax(-1, keepdim=True)
    top = torch.where(top.isfinite(), top, 0.0)
    return ((log_w - top).exp().sum(-1)).log() + top.squeeze(-1) - math.log(log_w.shape[-1])


def _log_ratio(z: Tensor, mean: Tensor, log_var: Tensor) -> Tensor:
    mean, log_var = mean.unsqueeze(-2), log_var.unsqueeze(-2)
    return (0.5 * ((z - mean).square() * (-log_var).exp() + log_var - z.square())).sum(-1)


def _bernoulli(l: Tensor, x: Tensor) -> Tensor:  # noqa: E741
    return x * F.logsigmoid(l) + (1 - x) * F.logsigmoid(-l)


def _gaussian(mean: Tensor, scale: Tensor, x: Tensor) -> Tensor:
    return -0.5 * ((x - mean) / scale).square() - scale.log() - 0.5 * math.log(2 * math.pi)


def _counts(mean: Tensor, scale: Tensor, x: Tensor) -> Tensor:
    logits = (mean / scale).log()
    return NegativeBinomial(scale, logits=logits, validate_args=False).log_prob(x)


def _logistic(mean: Tensor, scale: Tensor, x: Tensor) -> Tensor:
    # Seen from the mean: far above it a bin is a difference of two numbers near 1, whose digits
    # are lost in float64 too.
    distance, half = (x - mean).abs(), 0.5 / 255
    middle = F.logsigmoid((half - distance) / scale) + F.logsigmoid((distance + half) / scale)
    middle = middle + torch.log(-torch.expm1(-2 * half / scale))
    far, near = (x + half - mean) / scale, (x - half - mean) / scale
    ends = torch.where(x > 0.5, F.logsigmoid(-near), F.logsigmoid(far))
    return torch.where((x < 0.001) | (x > 0.999), ends, middle)


def _leading(draw: _Draw) -> tuple[int, ...]:
    return draw.one_of((), (), (2,), (3, 2))


def _softplus(draw: _Draw) -> _Call:
    shape = tuple(draw.size() for _ in range(int(draw.rng.integers(0, 4))))
    x = draw.extreme(3 * draw.normal(*shape), 0.0, 40.0, -80.0, math.inf, -math.inf, math.nan)
    return _Call("softplus", functional.softplus, lambda x: -F.logsigmoid(-x), [x], [True])


def _logmeanexp(draw: _Draw) -> _Call:
    shape = [draw.size() for _ in range(int(draw.rng.integers(1, 4)))]
    dim = int(draw.rng.integers(-len(shape), len(shape)))
    shape[dim] = max(shape[dim], 1)
    w = draw.extreme(5 * draw.normal(*shape), -math.inf, 300.0, -1e4, math.nan)
    return _Call(
        "logmeanexp", lambda w: dvae_fast.logmeanexp(w, dim), lambda w: _bound(w.movedim(dim, -1)),
        [w], [True],
    )  # fmt: skip


def _posterior(draw: _Draw) -> tuple[Tensor, Tensor]:
    shape = (*_leading(draw), draw.size(), draw.size())
    return draw.extreme(draw.normal(*shape), 50.0, math.nan), draw.normal(*shape)


def _sample_latent(draw: _Draw) -> _Call:
    mean, log_var = _posterior(draw)
    k, seed, first = draw.size(1), draw.one_of(0, 7, 2**63 + 5), draw.one_of(0, 3)
    zero = torch.zeros(mean.shape, dtype=torch.float64)

    def fused(mean: Tensor, log_var: Tensor) -> Any:
        return dvae_fast.sample_latent(mean, log_var, k, seed, first_example=first)

    def plain(mean: Tensor, log_var: Tensor) -> Any:
        noise, _ = dvae_fast.sample_latent(zero, zero, k, seed, first_example=first)
        z = mean.unsqueeze(-2) + (0.5 * log_var).exp().unsqueeze(-2) * noise
        return z, (0.5 * (noise.square() - z.square() + log_var.unsqueeze(-2))).sum(-1)

    return _Call("sample_latent", fused, plain, [mean, log_var], [True, True])


def _latent_log_ratio(draw: _Draw) -> _Call:
    mean, log_var = _posterior(draw)
    z = draw.normal(*mean.shape[:-1], draw.size(), mean.shape[-1])
    return _Call(
        "latent_log_ratio", functional.latent_log_ratio, _log_ratio, [z, mean, log_var], [True] * 3
    )


def _mixture_log_ratio(draw: _Draw) -> _Call:
    m, b, size = draw.size(1), draw.size(), draw.size()
    z = draw.normal(*_leading(draw), b, draw.size(), size)
    mean, log_var = draw.normal(m, b, size), draw.normal(m, b, size)

    def plain(z: Tensor, mean: Tensor, log_var: Tensor) -> Tensor:
        parts = [-_log_ratio(z, a, v) for a, v in zip(mean, log_var, strict=True)]
        return -_bound(torch.stack(parts, -1))

    return _Call(
        "mixture_log_ratio", functional.mixture_log_ratio, plain, [z, mean, log_var], [True] * 3
    )


def _corrupt(draw: _Draw) -> _Call:
    shape = (draw.size(), *(draw.size() for _ in range(int(draw.rng.integers(1, 4)))))
    x, copies, seed = draw.uniform(*shape), draw.one_of(None, 1, 3), draw.one_of(0, 2**64 - 1)
    kind = draw.one_of("masking", "bit_flip", "salt_and_pepper", "gaussian")
    if kind == "gaussian":
        std = draw.uniform(*draw.one_of((), shape[1:])) + 0.1
        zero = torch.zeros(shape, dtype=torch.float64)

        def noisy(x: Tensor, std: Tensor) -> Tensor:
            return x + std * dvae_fast.corrupt(zero, AdditiveGaussian(1.0), copies, seed)

        return _Call(
            "corrupt gaussian",
            lambda x, std: dvae_fast.corrupt(x, AdditiveGaussian.at(std), copies, seed),
            noisy, [x, std], [True, True],
        )  # fmt: skip
    rate = draw.one_of(0.0, 0.3, 1.0)
    corruption = {"masking": Masking, "bit_flip": BitFlip, "salt_and_pepper": SaltAndPepper}[kind](
        rate
    )

    def plain(x: Tensor) -> Tensor:  # linear in x: the value at 0, and the slope
        none, all_ = (
            dvae_fast.corrupt(torch.full(shape, v, dtype=torch.float64), corruption, copies, seed)
            for v in (0.0, 1.0)
        )
        return none + (all_ - none) * x

    return _Call(
        f"corrupt {kind}", lambda x: dvae_fast.corrupt(x, corruption, copies, seed), plain,
        [x], [True],
    )  # fmt: skip


def _data(draw: _Draw) -> tuple[str, Callable[..., Tensor], Tensor, list[Tensor], tuple[int, ...]]:
    """likelihood, density, x, parameters, and the shape (*L, B, K)."""
    leading, b, k, size = _leading(draw), draw.size(), draw.size(1), draw.size()
    rows, shape = draw.one_of((), leading), (*leading, b, k, size)
    x_shape = (*rows, b, size)
    kind = draw.one_of(
        "bernoulli", "bernoulli", "gaussian", "negative_binomial", "discretised_logistic"
    )
    if kind == "bernoulli":
        logits = draw.extreme(3 * draw.normal(*shape), 0.0, 60.0, -60.0, math.nan)
        x = draw.uniform(*x_shape)
        return kind, _bernoulli, x.round() if draw.one_of(True, False) else x, [logits], shape[:-1]
    scale = draw.uniform(*draw.one_of((), (size,), shape)) + 0.3
    mean = draw.uniform(*shape)
    if kind == "gaussian":
        return kind, _gaussian, draw.normal(*x_shape), [mean, scale], shape[:-1]
    if kind == "negative_binomial":
        counts = (6 * draw.uniform(*x_shape)).floor()
        return kind, _counts, counts, [4 * mean + 0.05, 3 * scale], shape[:-1]
    levels = (255 * draw.uniform(*x_shape)).round() / 255
    return kind, _logistic, levels, [mean, 0.2 * scale], shape[:-1]


def _mask(draw: _Draw, x: Tensor) -> Tensor | None:
    """In one case of three, of as many dimensions as any; of whole examples nothing or all too."""
    if draw.rng.random() > 1 / 3:
        return None
    share = draw.uniform(*x.shape[:-1], 1) * 1.6 - 0.3
    return draw.laid_out(draw.uniform(*x.shape) < share)


def _seen(mask: Tensor | None, t: Tensor, other: float = 0.5) -> Tensor:
    """t where it was observed, else what no derivative is infinite at; mask and t broadcast."""
    return t if mask is None else torch.where(mask, t, other)


def _log_weights(draw: _Draw, loss: bool = False) -> _Call:
    kind, density, x, params, shape = _data(draw)
    mask = _mask(draw, x)
    of_row = None if mask is None else mask.unsqueeze(-2)
    ratio = draw.extreme(draw.normal(*shape), -1e3, math.nan)
    reduction = draw.one_of("mean", "sum", "none")
    in_x = kind in ("bernoulli", "gaussian") and not loss

    def fused(x: Tensor, ratio: Tensor, *params: Tensor) -> Tensor:
        p = params if len(params) > 1 else params[0]
        if loss:
            return dvae_fast.iwae_loss(p, x, ratio, kind, mask, reduction=reduction)
        return dvae_fast.log_weights(p, x, ratio, kind, mask)

    def plain(x: Tensor, ratio: Tensor, *params: Tensor) -> Tensor:
        each = [_seen(of_row, p) for p in params]
        log_p = density(*each, _seen(of_row, x.unsqueeze(-2), 0.0))
        log_w = _seen(of_row, log_p, 0.0).sum(-1) + ratio
        if not loss:
            return log_w
        bound = -_bound(log_w)
        return {"mean": bound.mean(), "sum": bound.sum(), "none": bound}[reduction]

    name = f"iwae_loss {kind} {reduction}" if loss else f"log_weights {kind}"
    name += "" if mask is None else f", masked by {tuple(mask.shape)}"
    return _Call(name, fused, plain, [x, ratio, *params], [in_x, True, *[True] * len(params)])


def _iwae_loss(draw: _Draw) -> _Call:
    return _log_weights(draw, loss=True)


def _linear(draw: _Draw) -> _Call:
    leading, b, k, size, h = _leading(draw), draw.size(), draw.size(1), draw.size(), draw.size()
    hidden, weight, bias = draw.normal(*leading, b, k, h), draw.normal(size, h), draw.normal(size)
    x, ratio = draw.uniform(b, size), draw.normal(*leading, b, k)
    deep, mask = draw.one_of(True, False), _mask(draw, x)

    def fused(hidden: Tensor, weight: Tensor, bias: Tensor, x: Tensor, ratio: Tensor) -> Tensor:
        if deep:
            return functional.mlp_log_weights(hidden, [(weight, bias)], x, ratio, mask=mask)
        return dvae_fast.linear_log_weights(hidden, weight, bias, x, ratio, mask=mask)

    def plain(hidden: Tensor, weight: Tensor, bias: Tensor, x: Tensor, ratio: Tensor) -> Tensor:
        log_p = _bernoulli(F.linear(hidden, weight, bias), x.unsqueeze(-2))
        return _seen(None if mask is None else mask.unsqueeze(-2), log_p, 0.0).sum(-1) + ratio

    return _Call(
        "mlp_log_weights" if deep else "linear_log_weights", fused, plain,
        [hidden, weight, bias, x, ratio], [True, True, True, False, True],
    )  # fmt: skip


_FUNCTIONS = (
    _softplus, _logmeanexp, _sample_latent, _latent_log_ratio, _mixture_log_ratio, _corrupt,
    _log_weights, _log_weights, _iwae_loss, _iwae_loss, _linear,
)  # fmt: skip


# --- a case -----------------------------------------------------------------------------------


def _outs(out: Any) -> tuple[Tensor, ...]:
    return out if isinstance(out, tuple) else (out,)


def _dot(f: Callable[..., Any], seed: int) -> Callable[..., Tensor]:
    """The sum of f's results, each times fixed numbers; NumPy's, for torch.vmap forbids torch's."""

    def total(*inputs: Tensor) -> Tensor:
        rng = np.random.default_rng(seed)
        out = _outs(f(*inputs))
        upstream = [torch.from_numpy(np.asarray(rng.standard_normal(tuple(o.shape)))) for o in out]
        parts = [(o.double() * u).sum() for o, u in zip(out, upstream, strict=True)]
        return sum(parts[1:], start=parts[0])

    return total


def _run(how: str, f: Callable[..., Any], inputs: list[Tensor], moved: list[int], case: int) -> Any:
    if how == "none" or not moved:
        return _outs(f(*inputs))
    if how == "compile":
        torch._dynamo.reset()
        f, how = torch.compile(f, backend="aot_eager", fullgraph=True), "backward"
    if how == "backward":
        leaves = [t.detach().requires_grad_(i in moved) for i, t in enumerate(inputs)]
        out = _outs(f(*leaves))
        total = _dot(lambda *_: out, case)()
        grads = torch.autograd.grad(
            total, [leaves[i] for i in moved], allow_unused=True, materialize_grads=True
        )
        return (*(o.detach() for o in out), *grads)
    if how == "jvp":
        g = torch.Generator().manual_seed(case)
        tangents = tuple(
            torch.randn(inputs[i].shape, generator=g, dtype=torch.float64).to(inputs[i].dtype)
            for i in moved
        )

        def of(*some: Tensor) -> Any:
            given = dict(zip(moved, some, strict=True))
            return f(*(given.get(i, t) for i, t in enumerate(inputs)))

        return _outs(torch.func.jvp(of, tuple(inputs[i] for i in moved), tangents)[1])
    gradient = torch.func.grad(_dot(f, case), tuple(moved))
    if how == "grad":
        return gradient(*inputs)
    dims = tuple(0 if i in moved else None for i in range(len(inputs)))
    batch = [torch.stack([t, t, t]) if i in moved else t for i, t in enumerate(inputs)]
    return _outs(torch.vmap(gradient if how == "vmap of grad" else f, dims)(*batch))


def check(case: int) -> str:
    """Raise `Finding` if a case comes out wrong; its name."""
    draw = _Draw(case)
    call = draw.one_of(*_FUNCTIONS)(draw)
    dtype = draw.one_of(torch.float64, torch.float32, torch.float32, torch.bfloat16, torch.float16)
    names = [name for name, often in TRANSFORMS.items() for _ in range(often)]
    how = "compile" if case % COMPILED == 0 else draw.one_of(*names)
    given = [draw.laid_out(t.to(dtype)) for t in call.inputs]
    moved = [i for i, able in enumerate(call.differentiable) if able and draw.rng.random() < 0.7]
    what = f"case {case}: {call.name}, {how} in {moved}, {dtype}, " + ", ".join(
        f"{tuple(t.shape)} {t.stride()}" for t in given
    )
    try:
        found = _run(how, call.fused, given, moved, case)
    except Exception as error:
        if any(known in str(error) for known in LEDGER):
            return what
        raise Finding(f"{what}: {type(error).__name__}: {error}") from error
    how = "backward" if how == "compile" else how
    expected = _run(how, call.plain, [t.double() for t in given], moved, case)
    for i, (a, e) in enumerate(zip(found, expected, strict=True)):
        if a.shape != e.shape:
            raise Finding(f"{what}: result {i} has shape {tuple(a.shape)}, not {tuple(e.shape)}")
        tame = not any(bool(t.isinf().any()) for t in given)
        # Rounding of the terms that a result sums walks at random.
        terms = max(t.numel() for t in given) / max(e.numel(), 1)
        tolerance = _RTOL[dtype] * max(1.0, math.sqrt(terms))
        if not _is_close(a.double(), e, tolerance, tame and dtype.itemsize >= 4):
            raise Finding(f"{what}: result {i} is\n{a}\nnot\n{e}")
    return what


def _is_close(a: Tensor, e: Tensor, tolerance: float, tame: bool) -> bool:
    """`tame`: no infinities are about. Else a limit may stand where plain PyTorch has NaN."""
    finite = e.isfinite()
    if bool((~a.isfinite() & finite).any()):
        return False
    if tame and bool((a.isnan() != e.isnan()).any()):
        return False
    top = e[finite].abs().max() if bool(finite.any()) else torch.zeros(())
    return bool(((a - e).abs()[finite] <= tolerance * (1 + top)).all())
