"""The one table of sample inputs for every operator, and how large an error each may have.

`sample_inputs(op, dtype, device)` drives the tests of correctness, contiguity, opcheck and ISA
levels; `absolute_terms` gives, for every output, the sum of the absolute terms it is made of,
which is what an error is measured against. Sizes are B examples, M corruptions, K samples, Z
latent and D data dimensions, all different in every case. Adding an operator means adding an
entry to `_BUILDERS` and one to `_TERMS`.
"""

from __future__ import annotations

import math
import zlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

import dvae_fast  # noqa: F401  (registers the operators)
from dvae_fast import reference
from dvae_fast._dtypes import accumulation_dtype
from dvae_fast.likelihoods.bernoulli import log_density_bernoulli
from dvae_fast.likelihoods.counts import _log_gamma_ratio
from dvae_fast.likelihoods.discretised import _logistic_bin, log_density_discretised_logistic
from dvae_fast.noise import STREAM_CORRUPTION, STREAM_LATENT, uniform_bits

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]
LOW_PRECISION = (torch.bfloat16, torch.float16)

#: Largest error over the sum of absolute terms, by the dtype sums are kept in.
RELATIVE = {torch.float32: 2e-6, torch.float64: 1e-12}

#: Ways a tensor may lie in memory, applied to every tensor argument of a case.
LAYOUTS = ("contiguous", "transposed", "strided", "expanded", "offset")


class Sizes(NamedTuple):
    m: int
    b: int
    k: int
    z: int
    d: int


# No two of a case's sizes are equal, so that no two dimensions can be taken for each other.
LARGE = Sizes(m=2, b=3, k=7, z=50, d=785)
ONE_SAMPLE = Sizes(m=3, b=5, k=1, z=65, d=64)
TINY_LATENT = Sizes(m=4, b=3, k=2, z=1, d=63)
MANY_SAMPLES = Sizes(m=3, b=4, k=50, z=2, d=65)
ONE_DIMENSION = Sizes(m=3, b=4, k=7, z=50, d=1)
NO_EXAMPLES = Sizes(m=2, b=0, k=7, z=50, d=65)
# More than kernels hold of one row at once: several logarithms a row, no row of e^log_var kept.
LONG_ROWS = Sizes(m=1, b=3, k=2, z=513, d=1985)

SIZES = (LARGE, ONE_SAMPLE, TINY_LATENT, MANY_SAMPLES, ONE_DIMENSION, NO_EXAMPLES, LONG_ROWS)
assert all(len(set(s)) == len(s) for s in SIZES)


def arrange(t: Tensor, layout: str) -> Tensor:
    """The values of `t` in memory as `layout` says ("expanded": of its first row everywhere).

    Memory between the elements holds NaN, so that reading it shows.
    """
    if layout == "contiguous" or t.dim() == 0:
        return t.contiguous()
    if layout == "expanded":
        return t[:1].expand(t.shape) if t.shape[0] else t
    if layout == "offset":
        out = t.new_full((t.numel() + 1,), math.nan)[1:].view(t.shape)
    elif layout == "strided" or t.dim() == 1:
        out = t.new_full((*t.shape[:-1], 2 * t.shape[-1]), math.nan)[..., ::2]
    else:
        out = t.new_empty(t.transpose(0, -1).shape).transpose(0, -1)
    return out.copy_(t)


class Maker:
    """Draws the arguments of one case: the same values for every dtype (rounded) and device."""

    def __init__(self, label: str, dtype: torch.dtype, device: str, layout: str) -> None:
        self.generator = torch.Generator().manual_seed(zlib.crc32(label.encode()))
        self.dtype, self.device, self.layout = dtype, device, layout
        self.sums = accumulation_dtype(dtype)

    def put(self, t: Tensor, dtype: torch.dtype | None = None) -> Tensor:
        return arrange(t.to(dtype or self.dtype).to(self.device), self.layout)

    def raw(self, *shape: int) -> Tensor:
        return torch.randn(shape, generator=self.generator, dtype=torch.float64)

    def normal(self, *shape: int, std: float = 1.0, dtype: torch.dtype | None = None) -> Tensor:
        return self.put(self.raw(*shape) * std, dtype)

    def uniform(
        self, *shape: int, low: float = 0.0, high: float = 1.0, dtype: torch.dtype | None = None
    ) -> Tensor:
        t = torch.rand(shape, generator=self.generator, dtype=torch.float64)
        return self.put(low + (high - low) * t, dtype)

    def seed(self, value: int, *shape: int) -> Tensor:
        return torch.full(shape, value, dtype=torch.int64, device=self.device)


@dataclass(frozen=True)
class Sample:
    """One call of one operator; `args()` makes the same arguments each time."""

    op: str
    label: str
    dtype: torch.dtype
    device: str
    layout: str
    build: Callable[[Maker], tuple[Any, ...]]

    def args(self) -> tuple[Any, ...]:
        maker = Maker(f"{self.op} {self.label}", self.dtype, self.device, self.layout)
        return self.build(maker)

    def __str__(self) -> str:
        dtype = str(self.dtype).removeprefix("torch.")
        return f"{self.op}-{self.label}-{dtype}-{self.device}"


# --- the table --------------------------------------------------------------------------------

_Build = tuple[str, str, "Callable[[Maker], tuple[Any, ...]]"]  # label, layout, arguments

# Every size in plain layout; every layout at one size whose rows are not whole blocks.
_SIZES_AND_LAYOUTS = [
    *((s, "contiguous") for s in SIZES),
    *((TINY_LATENT, layout) for layout in LAYOUTS[1:]),
]

_KINDS = ("identity", "masking", "salt_and_pepper", "bit_flip", "gaussian")


def _label(s: Sizes, layout: str, *more: str) -> str:
    size = "-".join(f"{name.upper()}{value}" for name, value in s._asdict().items())
    return "-".join([size, *([] if layout == "contiguous" else [layout]), *more])


def _level(make: Maker, kind: str, shape: tuple[int, ...]) -> Tensor:
    """Rates are float32 whatever the data is; a standard deviation has the dtype of sums."""
    if kind == "gaussian":
        return make.uniform(*shape, low=0.1, high=2.0, dtype=make.sums)
    return make.uniform(*shape, low=0.1, high=0.6, dtype=torch.float32)


def _salt(make: Maker, kind: str, shape: tuple[int, ...]) -> Tensor | None:
    if kind != "salt_and_pepper":
        return None
    return make.uniform(*shape, low=0.1, high=0.9, dtype=torch.float32)


def _corruption_cases() -> Iterator[tuple[Sizes, str, str, tuple[int, ...]]]:
    """(sizes, layout, kind, shape of rate or standard deviation)."""
    for i, (s, layout) in enumerate(_SIZES_AND_LAYOUTS):
        # Every kind at two sizes and in one layout or more; every parameter shape with each.
        for j, kind in enumerate(_KINDS):
            if s in (LARGE, NO_EXAMPLES) or layout != "contiguous" or (i + j) % 3 == 0:
                yield s, layout, kind, ((), (s.d,), (1,))[(i + j) % 3]
    yield MANY_SAMPLES, "contiguous", "gaussian", (5, 13)  # as an image: D = 65 elements


def _corrupt(backward: bool) -> Iterator[_Build]:
    for s, layout, kind, shape in _corruption_cases():

        def build(
            make: Maker, s: Sizes = s, kind: str = kind, shape: tuple[int, ...] = shape
        ) -> tuple[Any, ...]:
            noise = (_level(make, kind, shape), _salt(make, kind, shape), make.seed(-3, 1))
            if backward:
                return (make.normal(s.m, s.b, s.d), kind, *noise, 5, 2)
            return (make.uniform(s.b, s.d), kind, *noise, s.m, 5, 2)

        size = "scalar" if math.prod(shape) == 1 else "per-pixel"
        yield _label(s, layout, kind, size), layout, build


def _corrupt_backward_std() -> Iterator[_Build]:
    for i, (s, layout) in enumerate(_SIZES_AND_LAYOUTS):
        shape = ((), (s.d,), (1,))[i % 3]

        def build(make: Maker, s: Sizes = s, shape: tuple[int, ...] = shape) -> tuple[Any, ...]:
            std = _level(make, "gaussian", shape)
            return (make.normal(s.m, s.b, s.d), std, make.seed(2**40 + 7, 1), 5, 2)

        yield _label(s, layout, "scalar" if math.prod(shape) == 1 else "per-pixel"), layout, build


def _posterior(make: Maker, *shape: int) -> tuple[Tensor, Tensor]:
    return make.normal(*shape), make.normal(*shape)


def _sample_latent() -> Iterator[_Build]:
    for s, layout in _SIZES_AND_LAYOUTS:

        def build(make: Maker, s: Sizes = s) -> tuple[Any, ...]:
            return (*_posterior(make, s.m, s.b, s.z), s.k, make.seed(11), 5, 3)

        yield _label(s, layout), layout, build


def _sample_latent_backward() -> Iterator[_Build]:
    for i, (s, layout) in enumerate(_SIZES_AND_LAYOUTS):
        # Autograd leaves out the gradient of an output nobody used.
        with_z, with_ratio = i % 3 != 1, i % 3 != 2

        def build(
            make: Maker, s: Sizes = s, with_z: bool = with_z, with_ratio: bool = with_ratio
        ) -> tuple[Any, ...]:
            grad_z = make.normal(s.m, s.b, s.k, s.z) if with_z else None
            grad_ratio = make.normal(s.m, s.b, s.k, dtype=make.sums) if with_ratio else None
            posterior = _posterior(make, s.m, s.b, s.z)
            return (grad_z, grad_ratio, *posterior, s.k, make.seed(11, 1), 5, 3)

        parts = [*(["z"] if with_z else []), *(["ratio"] if with_ratio else [])]
        yield _label(s, layout, *parts), layout, build


def _latent_log_ratio(backward: bool) -> Iterator[_Build]:
    for s, layout in _SIZES_AND_LAYOUTS:

        def build(make: Maker, s: Sizes = s) -> tuple[Any, ...]:
            n = s.m * s.b
            args = (make.normal(n, s.k, s.z), *_posterior(make, n, s.z))
            return (make.normal(n, s.k, dtype=make.sums), *args) if backward else args

        yield _label(s, layout), layout, build


def _mixture(make: Maker, s: Sizes) -> tuple[Tensor, Tensor, Tensor]:
    """(z, mean, log_var) whose components differ by a few nats at any Z, so that several count."""
    scale = 1 / math.sqrt(s.z)
    mean, log_var = (
        make.put(make.raw(1, s.b, s.z) + scale * make.raw(s.m, s.b, s.z)) for _ in range(2)
    )
    return make.normal(s.b, s.k, s.z), mean, log_var


def _mixture_log_ratio(backward: bool) -> Iterator[_Build]:
    for s, layout in _SIZES_AND_LAYOUTS:

        def build(make: Maker, s: Sizes = s) -> tuple[Any, ...]:
            args = _mixture(make, s)
            if not backward:
                return args
            weights = make.put(torch.softmax(make.raw(s.b, s.k, s.m), -1), make.sums)
            return (make.normal(s.b, s.k, dtype=make.sums), weights, *args)

        yield _label(s, layout), layout, build


class _Row(NamedTuple):
    """Where the operands of a likelihood lie: made of standard normals and of uniforms."""

    #: N(0, 1)-like → mean or logits
    params: Callable[[Tensor], Tensor]
    #: in [0.3, 2] → scale; None: has none
    scale: Callable[[Tensor], Tensor] | None
    #: in [0, 1], with exact zeros and ones → x
    data: Callable[[Tensor], Tensor]


#: Every likelihood: one row here, and one in `DENSITY_TERMS`.
LIKELIHOODS: dict[str, _Row] = {
    "bernoulli": _Row(lambda n: 4 * n, None, lambda u: u),
    "gaussian": _Row(lambda n: n, lambda u: u, lambda u: u),
    # Not so narrow that e^−|x − mean|/scale leaves float32: see test_likelihoods.py for that.
    "discretised_logistic": _Row(
        lambda n: 0.5 + 0.3 * n, lambda u: 0.1 * u, lambda u: (255 * u).round() / 255
    ),
    # Dispersions from 7e-4 to 64, on both sides of where Stirling's series begins.
    "negative_binomial": _Row(
        lambda n: torch.exp(1.5 * n), lambda u: u**6, lambda u: (40 * u**4).round()
    ),
}


def _scale(make: Maker, s: Sizes, likelihood: str, kind: str) -> Tensor | None:
    of_uniform = LIKELIHOODS[likelihood].scale
    if of_uniform is None:
        return None
    shape = {"full": (s.m * s.b, s.k, s.d), "scalar": (), "per-pixel": (s.d,)}[kind]
    t = torch.rand(shape, generator=make.generator, dtype=torch.float64)
    return make.put(of_uniform(0.3 + 1.7 * t), make.dtype if kind == "full" else make.sums)


def _target(make: Maker, s: Sizes, likelihood: str) -> Tensor:
    u = torch.rand(s.b, s.d, generator=make.generator, dtype=torch.float64)
    return make.put(LIKELIHOODS[likelihood].data((2 * u - 0.5).clamp(0, 1)), make.sums)


def _decoder(make: Maker, s: Sizes, likelihood: str, kind: str) -> tuple[Any, ...]:
    """(params, scale, x, log_ratio) of log_weights and iwae."""
    n = s.m * s.b
    # Samples differ by a few nats at any D, so that no one of them takes all the weight.
    near = 0.5 if likelihood == "bernoulli" else 0.05 if likelihood in _DISCRETE else 1.0
    base, difference = make.raw(n, 1, s.d), make.raw(n, s.k, s.d) / math.sqrt(s.d)
    params = make.put(LIKELIHOODS[likelihood].params(base + near * difference))
    log_ratio = make.normal(n, s.k, std=2.0, dtype=make.sums)
    scale = _scale(make, s, likelihood, kind)
    return params, scale, _target(make, s, likelihood), log_ratio


_DISCRETE = ("discretised_logistic", "negative_binomial")


def _decoder_cases() -> Iterator[tuple[Sizes, str, str, str]]:
    """(sizes, layout, likelihood, kind of scale)."""
    for i, (s, layout) in enumerate(_SIZES_AND_LAYOUTS):
        scales = ("scalar", "per-pixel", "full")
        for j, (likelihood, row) in enumerate(LIKELIHOODS.items()):
            if row.scale is None:
                yield s, layout, likelihood, "no-scale"
            elif s in (LARGE, NO_EXAMPLES):
                yield from ((s, layout, likelihood, kind) for kind in scales)
            else:
                yield s, layout, likelihood, scales[(i + j) % 3]


def _log_weights(backward: bool) -> Iterator[_Build]:
    for s, layout, *of in _decoder_cases():

        def build(make: Maker, s: Sizes = s, of: list[str] = of) -> tuple[Any, ...]:
            params, scale, x, log_ratio = _decoder(make, s, *of)
            if backward:
                return log_ratio, params, scale, x, of[0]
            return params, scale, x, log_ratio, of[0]

        yield _label(s, layout, *of), layout, build


def _softplus(backward: bool) -> Iterator[_Build]:
    for s, layout in _SIZES_AND_LAYOUTS:

        def build(make: Maker, s: Sizes = s) -> tuple[Any, ...]:
            x = make.normal(s.m, s.b, s.z, std=4.0)
            if not backward:
                return (x,)
            return make.normal(s.m, s.b, s.z), arrange(reference.softplus(x), make.layout)

        yield _label(s, layout), layout, build


def _logmeanexp(backward: bool) -> Iterator[_Build]:
    for s, layout in _SIZES_AND_LAYOUTS:

        def build(make: Maker, s: Sizes = s) -> tuple[Any, ...]:
            log_w = make.normal(s.m * s.b, s.k, std=5.0, dtype=make.sums)
            if not backward:
                return (log_w,)
            return make.normal(s.m * s.b, dtype=make.sums), log_w

        yield _label(s, layout), layout, build


def _iwae(in_place: bool) -> Iterator[_Build]:
    for s, layout, *of in _decoder_cases():
        # What is written to must not share memory between its elements.
        if in_place and layout == "expanded":
            continue

        def build(make: Maker, s: Sizes = s, of: list[str] = of) -> tuple[Any, ...]:
            return (*_decoder(make, s, *of), of[0], -1.0 / 6)

        yield _label(s, layout, *of), layout, build


def _rescale() -> Iterator[_Build]:
    for s, layout in _SIZES_AND_LAYOUTS:
        if layout == "expanded":
            continue
        for per_row in (False, True):

            def build(make: Maker, s: Sizes = s, per_row: bool = per_row) -> tuple[Any, ...]:
                grad = make.normal(s.m * s.b, s.k, s.d)
                factor = make.normal(*((s.m * s.b,) if per_row else ()), dtype=make.sums)
                return grad, factor

            yield _label(s, layout, "per-row" if per_row else "scalar"), layout, build

    def by_one(make: Maker) -> tuple[Any, ...]:
        return make.normal(3, 2, 5), make.put(torch.ones(1), make.sums)

    yield "factor-1", "contiguous", by_one


def _state(make: Maker, s: Sizes) -> Tensor:
    """A streaming state that has seen three samples of each example."""
    w = make.normal(s.b, 3, std=5.0, dtype=torch.float64)
    return reference.lse_update(reference.lse_init(s.b, make.device), w)


def _lse_update() -> Iterator[_Build]:
    for s, layout in _SIZES_AND_LAYOUTS:
        for fresh in (False, True):

            def build(make: Maker, s: Sizes = s, fresh: bool = fresh) -> tuple[Any, ...]:
                state = reference.lse_init(s.b, make.device) if fresh else _state(make, s)
                log_w = make.normal(s.b, s.k, std=5.0, dtype=make.sums)
                return arrange(state, make.layout), log_w

            yield _label(s, layout, *(["fresh"] if fresh else [])), layout, build


def _lse_merge() -> Iterator[_Build]:
    for s, layout in _SIZES_AND_LAYOUTS:
        for fresh in (False, True):

            def build(make: Maker, s: Sizes = s, fresh: bool = fresh) -> tuple[Any, ...]:
                a = reference.lse_init(s.b, make.device) if fresh else _state(make, s)
                return arrange(a, make.layout), arrange(_state(make, s), make.layout)

            yield _label(s, layout, *(["fresh"] if fresh else [])), layout, build


def _linear_log_weights(backward: bool) -> Iterator[_Build]:
    for i, (s, layout, likelihood, kind) in enumerate(_decoder_cases()):
        kind = "per-pixel" if kind == "full" else kind  # a full scale cannot be had from tiles
        has_bias = i % 3 != 1

        def build(
            make: Maker,
            s: Sizes = s,
            likelihood: str = likelihood,
            kind: str = kind,
            has_bias: bool = has_bias,
        ) -> tuple[Any, ...]:
            n, h = s.m * s.b, s.z
            layer = [make.raw(n, s.k, h), make.raw(s.d, h) * h**-0.5, make.raw(s.d)]
            if likelihood == "negative_binomial":  # means are positive
                layer = [t.abs() for t in layer]
            elif likelihood == "discretised_logistic":
                layer[1:] = [0.3 * t for t in layer[1:]]
            hidden, weight, bias = (make.put(t) for t in layer)
            rest = (_scale(make, s, likelihood, kind), _target(make, s, likelihood))
            per_row = make.normal(n, s.k, dtype=make.sums)
            operands = (hidden, weight, bias if has_bias else None, *rest)
            return (
                (per_row, *operands, likelihood) if backward else (*operands, per_row, likelihood)
            )

        bias = [] if has_bias else ["no-bias"]
        yield _label(s, layout, likelihood, kind, *bias, f"{i}"), layout, build


_BUILDERS: dict[str, Callable[[], Iterator[_Build]]] = {
    "corrupt": lambda: _corrupt(backward=False),
    "corrupt_backward": lambda: _corrupt(backward=True),
    "corrupt_backward_std": _corrupt_backward_std,
    "sample_latent": _sample_latent,
    "sample_latent_backward": _sample_latent_backward,
    "latent_log_ratio": lambda: _latent_log_ratio(backward=False),
    "latent_log_ratio_backward": lambda: _latent_log_ratio(backward=True),
    "mixture_log_ratio": lambda: _mixture_log_ratio(backward=False),
    "mixture_log_ratio_backward": lambda: _mixture_log_ratio(backward=True),
    "log_weights": lambda: _log_weights(backward=False),
    "log_weights_backward": lambda: _log_weights(backward=True),
    "softplus": lambda: _softplus(backward=False),
    "softplus_backward": lambda: _softplus(backward=True),
    "logmeanexp": lambda: _logmeanexp(backward=False),
    "logmeanexp_backward": lambda: _logmeanexp(backward=True),
    "iwae": lambda: _iwae(in_place=False),
    "iwae_": lambda: _iwae(in_place=True),
    "rescale_": _rescale,
    "lse_update": _lse_update,
    "lse_merge": _lse_merge,
    "linear_log_weights": lambda: _linear_log_weights(backward=False),
    "linear_log_weights_backward": lambda: _linear_log_weights(backward=True),
}

OPERATORS = tuple(_BUILDERS)
MUTATING = ("iwae_", "rescale_")

# Operands without a low-precision form: their inputs are sums already.
_SUMS_ONLY = ("logmeanexp", "logmeanexp_backward", "lse_update", "lse_merge")


def sample_inputs(op: str, dtype: torch.dtype, device: str) -> list[Sample]:
    """Every case of `op`; none for a dtype it does not take."""
    if dtype in LOW_PRECISION and op in _SUMS_ONLY:
        return []
    return [
        Sample(op, label, dtype, device, layout, build) for label, layout, build in _BUILDERS[op]()
    ]


def upcast(args: tuple[Any, ...]) -> tuple[Any, ...]:
    """The same values in float64."""
    return tuple(
        a.to(torch.float64, copy=True) if isinstance(a, Tensor) and a.is_floating_point() else a
        for a in args
    )


def clone(args: tuple[Any, ...]) -> tuple[Any, ...]:
    return tuple(a.clone() if isinstance(a, Tensor) else a for a in args)


def results(op: str, out: Any, args: tuple[Any, ...]) -> tuple[Tensor, ...]:
    """All results of a call: what it returned, and what it changed, last."""
    out = () if out is None else out if isinstance(out, tuple) else (out,)
    return (*out, args[0]) if op in MUTATING else tuple(out)


def run_operator(op: str, args: tuple[Any, ...]) -> tuple[Tensor, ...]:
    return results(op, getattr(torch.ops.dvae_fast, op)(*args), args)


def run_reference(op: str, args: tuple[Any, ...]) -> tuple[Tensor, ...]:
    return results(op, getattr(reference, op)(*args), args)


# --- how large an error may be ----------------------------------------------------------------
#
# Everything below takes float64 arguments and returns, output by output, the sum of the absolute
# values of the terms the output is computed from. Where a term is itself a computed sum (a
# log-weight inside an exponential, a logit made by a matrix product), its own terms are carried
# through to first order: that is the error no rounding of the operands could avoid.


def _radius(stream: Tensor, example: Tensor, sample: Tensor, size: int, seed: Tensor) -> Tensor:
    """Box–Muller's radius: a normal is radius · cos θ, and is as exact as its radius is."""
    bits = uniform_bits(stream, example, sample, 64 * -(-size // 64), seed)
    words = bits.unflatten(-1, (-1, 2, 2, 16))[..., :1, :]  # (block, pair, first of two, lane)
    radius = torch.sqrt(-2 * torch.log((words.double() + 0.5) * 2.0**-32))
    return radius.expand(*words.shape[:-2], 2, 16).flatten(-4)[..., :size]


def _latent_radius(
    copies: int, b: int, k: int, size: int, seed: Tensor, first_example: int, first_sample: int
) -> Tensor:
    copy = torch.arange(copies, device=seed.device).view(-1, 1, 1) * 256
    example = torch.arange(b, device=seed.device).view(1, -1, 1) + first_example
    sample = torch.arange(k, device=seed.device) + first_sample
    index = torch.broadcast_tensors(copy + STREAM_LATENT, example, sample)
    return _radius(index[0], index[1], index[2], size, seed)


def _corruption_radius(
    copies: int, b: int, size: int, seed: Tensor, first_example: int, first_copy: int
) -> Tensor:
    copy = torch.arange(copies, device=seed.device).view(-1, 1) + first_copy
    example = torch.arange(b, device=seed.device) + first_example
    stream = torch.full_like(example, STREAM_CORRUPTION)
    index = torch.broadcast_tensors(stream, example, copy)
    return _radius(index[0], index[1], index[2], size, seed)


def _terms_corrupt(
    x: Tensor,
    kind: str,
    rate: Tensor,
    salt: Tensor | None,
    seed: Tensor,
    copies: int,
    first_example: int,
    first_copy: int,
) -> tuple[Tensor, ...]:
    if kind != "gaussian":
        return ((1 + x.abs()).expand(copies, *x.shape),)
    b, size = x.shape
    radius = _corruption_radius(copies, b, size, seed, first_example, first_copy)
    return (x.abs() + rate.reshape(-1) * radius,)


def _terms_corrupt_backward(grad: Tensor, *_: Any) -> tuple[Tensor, ...]:
    return (grad.abs().sum(0),)


def _terms_corrupt_backward_std(
    grad: Tensor, std: Tensor, seed: Tensor, first_example: int, first_copy: int
) -> tuple[Tensor, ...]:
    copies, b, size = grad.shape
    radius = _corruption_radius(copies, b, size, seed, first_example, first_copy)
    total = (grad.abs() * radius).sum((0, 1))
    return ((total.sum() if std.numel() == 1 else total).reshape(std.shape),)


def _latent_terms(
    mean: Tensor, log_var: Tensor, k: int, seed: Tensor, first_example: int, first_sample: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Terms of ε, of σ ε and of z = mean + σ ε, (M, B, K, Z) each."""
    copies, b, size = mean.shape
    radius = _latent_radius(copies, b, k, size, seed, first_example, first_sample)
    scaled = torch.exp(0.5 * log_var).unsqueeze(2) * radius
    return radius, scaled, mean.abs().unsqueeze(2) + scaled


def _terms_sample_latent(mean: Tensor, log_var: Tensor, *index: Any) -> tuple[Tensor, ...]:
    noise, _, z = _latent_terms(mean, log_var, *index)
    return z, 0.5 * (noise.square() + z.square() + log_var.abs().unsqueeze(2)).sum(-1)


def _terms_sample_latent_backward(
    grad_z: Tensor | None, grad_log_ratio: Tensor | None, mean: Tensor, log_var: Tensor, *index: Any
) -> tuple[Tensor, ...]:
    _, scaled, z = _latent_terms(mean, log_var, *index)
    delta = torch.zeros_like(z) if grad_z is None else grad_z.abs()
    g = delta.new_zeros(()) if grad_log_ratio is None else grad_log_ratio.abs().unsqueeze(-1)
    delta = delta + g * z
    return delta.sum(2), 0.5 * (delta * scaled + g).sum(2)


def _terms_latent_log_ratio(z: Tensor, mean: Tensor, log_var: Tensor) -> tuple[Tensor, ...]:
    m, v = mean.unsqueeze(1), log_var.unsqueeze(1)
    return (0.5 * ((z - m).square() * torch.exp(-v) + z.square() + v.abs()).sum(-1),)


def _terms_latent_log_ratio_backward(
    grad: Tensor, z: Tensor, mean: Tensor, log_var: Tensor
) -> tuple[Tensor, ...]:
    g, m = grad.abs().unsqueeze(-1), mean.unsqueeze(1)
    diff = (z - m).abs()
    u = diff * torch.exp(-log_var).unsqueeze(1)
    return g * (u + z.abs()), (g * u).sum(1), 0.5 * (g * (1 + u * diff)).sum(1)


def _terms_mean_exp(log_w: Tensor, terms: Tensor) -> tuple[Tensor, Tensor]:
    """Of log (1/K Σ w) and of the normalised weights, where log w was made of `terms`."""
    weights = torch.softmax(log_w, -1)
    mean_terms = (weights * terms).sum(-1, keepdim=True)
    exponent = (log_w - log_w.amax(-1, keepdim=True)).abs()
    bound = mean_terms.squeeze(-1) + _terms_logmeanexp(log_w)[0]
    return bound, weights * (1 + exponent + terms + mean_terms)


def _terms_mixture_log_ratio(z: Tensor, mean: Tensor, log_var: Tensor) -> tuple[Tensor, ...]:
    pairs = list(zip(mean, log_var, strict=True))
    minus = torch.stack([-reference.latent_log_ratio(z, m, v) for m, v in pairs], -1)
    terms = torch.stack([_terms_latent_log_ratio(z, m, v)[0] for m, v in pairs], -1)
    return _terms_mean_exp(minus, terms)


def _terms_mixture_log_ratio_backward(
    grad: Tensor, weights: Tensor, z: Tensor, mean: Tensor, log_var: Tensor
) -> tuple[Tensor, ...]:
    each = [
        _terms_latent_log_ratio_backward(grad * w, z, m, v)
        for m, v, w in zip(mean, log_var, weights.unbind(-1), strict=True)
    ]
    d_z, d_mean, d_log_var = (torch.stack(terms) for terms in zip(*each, strict=True))
    return d_z.sum(0), d_mean, d_log_var


class _Density(NamedTuple):
    """Terms, (N, K, D) each, of log p, of its derivatives; and the sizes of the derivative in the
    params, of its own derivative (curvature), and of that in the scale (cross)."""

    value: Tensor
    d_params: Tensor
    d_scale: Tensor
    slope: Tensor
    curvature: Tensor
    cross: Tensor


def _terms_bernoulli(logits: Tensor, scale: None, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    s = torch.sigmoid(logits)
    return -log_density_bernoulli(logits, x), x + s, s


def _terms_gaussian(mean: Tensor, s: Tensor, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    u = (x - mean) / s
    value = 0.5 * u.square() + s.log().abs() + 0.5 * math.log(2 * math.pi)
    return value, (u / s).abs(), (u.square() + 1) / s


def _terms_discretised_logistic(
    mean: Tensor, s: Tensor, x: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """log p is a sum of negative terms; where the bin ends is itself a difference."""
    _, near, far, width = _logistic_bin(mean, s, x)
    at_near, at_far = torch.sigmoid(near), torch.sigmoid(-far)
    end = ((x - mean).abs() + 0.5 / 255) / s
    value = -log_density_discretised_logistic(mean, s, x) + (at_near + at_far) * end
    of_width = torch.where(width == math.inf, 0.0, width / torch.expm1(width))
    either = (at_near + at_far) * (1 + end)
    return value, either / s, (end * either + of_width) / s


def _terms_negative_binomial(mean: Tensor, t: Tensor, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    log_gamma, digamma = _log_gamma_ratio(t, x)
    log_odds = torch.log1p(mean / t)
    value = log_gamma.abs() + torch.lgamma(x + 1) + t * log_odds
    value = value + x * torch.log(mean / (t + mean)).abs()
    return (
        value,
        (x / mean + 1) * t / (t + mean),
        digamma.abs() + log_odds + (x + mean) / (t + mean),
    )


DENSITY_TERMS: dict[str, Callable[..., tuple[Tensor, Tensor, Tensor]]] = {
    "bernoulli": _terms_bernoulli,
    "gaussian": _terms_gaussian,
    "discretised_logistic": _terms_discretised_logistic,
    "negative_binomial": _terms_negative_binomial,
}


@torch.enable_grad()
def _density(params: Tensor, scale: Tensor | None, x: Tensor, likelihood: str) -> _Density:
    n, b = params.shape[0], x.shape[0]
    rows = x.repeat(n // b if b else 1, 1).unsqueeze(1)
    p, s = params.detach().requires_grad_(), None
    if scale is not None:
        s = scale.detach() if scale.dim() == 3 else scale.detach().reshape(1, 1, -1)
        s = s.expand(params.shape).clone().requires_grad_()
    terms = (t.detach() for t in DENSITY_TERMS[likelihood](p, s, rows))
    value = reference.log_density(p, s, x, likelihood)
    (slope,) = torch.autograd.grad(value.sum(), p, create_graph=True)
    second = torch.autograd.grad(slope.sum(), (p,) if s is None else (p, s))
    return _Density(*terms, *(t.detach().abs() for t in (slope, second[0], second[-1])))


def _sum_like_scale(terms: Tensor, scale: Tensor | None) -> Tensor:
    if scale is None:
        return terms.new_empty(0)
    if scale.dim() == 3:
        return terms
    return (terms.sum() if scale.numel() == 1 else terms.sum((0, 1))).reshape(scale.shape)


def _terms_log_weights(
    params: Tensor, scale: Tensor | None, x: Tensor, log_ratio: Tensor, likelihood: str
) -> tuple[Tensor, ...]:
    return (_density(params, scale, x, likelihood).value.sum(-1) + log_ratio.abs(),)


def _terms_log_weights_backward(
    grad: Tensor, params: Tensor, scale: Tensor | None, x: Tensor, likelihood: str
) -> tuple[Tensor, ...]:
    g, density = grad.abs().unsqueeze(-1), _density(params, scale, x, likelihood)
    return g * density.d_params, _sum_like_scale(g * density.d_scale, scale)


def _terms_softplus(x: Tensor) -> tuple[Tensor, ...]:
    """Both terms, max(x, 0) and log1p(e^−|x|), are positive."""
    return (reference.softplus(x),)


def _terms_softplus_backward(grad: Tensor, out: Tensor) -> tuple[Tensor, ...]:
    return (grad.abs() * -torch.expm1(-out),)


def _terms_logmeanexp(log_w: Tensor) -> tuple[Tensor, ...]:
    """bound = max + log Σ e^(w − max) − log K."""
    top = log_w.amax(-1)
    total = torch.exp(log_w - top.unsqueeze(-1)).sum(-1)
    return (top.abs() + total.log().abs() + math.log(log_w.shape[-1]),)


def _terms_logmeanexp_backward(grad: Tensor, log_w: Tensor) -> tuple[Tensor, ...]:
    exponent = log_w - log_w.amax(-1, keepdim=True)
    return (grad.abs().unsqueeze(-1) * torch.softmax(log_w, -1) * (1 + exponent.abs()),)


def _terms_iwae(
    params: Tensor,
    scale: Tensor | None,
    x: Tensor,
    log_ratio: Tensor,
    likelihood: str,
    multiplier: float,
) -> tuple[Tensor, ...]:
    log_w = reference.log_weights(params, scale, x, log_ratio, likelihood)
    density = _density(params, scale, x, likelihood)
    terms = density.value.sum(-1) + log_ratio.abs()
    bound, weight_terms = _terms_mean_exp(log_w, terms)
    g = abs(multiplier) * weight_terms.unsqueeze(-1)
    return (
        bound,
        weight_terms,
        g * density.d_params,
        _sum_like_scale(g * density.d_scale, scale),
    )


def _terms_iwae_(*args: Any) -> tuple[Tensor, ...]:
    bound, weights, grad, grad_scale = _terms_iwae(*args)
    return bound, weights, grad_scale, grad


def _terms_rescale(grad: Tensor, factor: Tensor) -> tuple[Tensor, ...]:
    shape = () if factor.numel() == 1 else (-1, *[1] * (grad.dim() - 1))
    return ((grad * factor.reshape(shape)).abs(),)


def _terms_state(*states: Tensor) -> Tensor:
    """max is exact, the two sums have positive terms, the last is Σ log w, then a count."""
    a, b = states[0].abs(), states[1].abs()
    return torch.where(torch.isfinite(a), a, 0.0) + torch.where(torch.isfinite(b), b, 0.0)


def _terms_lse_update(state: Tensor, log_w: Tensor) -> tuple[Tensor, ...]:
    chunk = reference.lse_update(reference.lse_init(state.shape[0], state.device), log_w)
    chunk[:, 3] = log_w.abs().sum(1)
    return (_terms_state(state, chunk),)


def _terms_lse_merge(a: Tensor, b: Tensor) -> tuple[Tensor, ...]:
    return (_terms_state(a, b),)


def _linear_terms(hidden: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    terms = hidden.abs() @ weight.abs().transpose(0, 1)
    return terms if bias is None else terms + bias.abs()


def _terms_linear_log_weights(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    scale: Tensor | None,
    x: Tensor,
    log_ratio: Tensor,
    likelihood: str,
) -> tuple[Tensor, ...]:
    params = torch.nn.functional.linear(hidden, weight, bias)
    density = _density(params, scale, x, likelihood)
    terms = density.value + density.slope * _linear_terms(hidden, weight, bias)
    return (terms.sum(-1) + log_ratio.abs(),)


def _terms_linear_log_weights_backward(
    grad: Tensor,
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    scale: Tensor | None,
    x: Tensor,
    likelihood: str,
) -> tuple[Tensor, ...]:
    params = torch.nn.functional.linear(hidden, weight, bias)
    density = _density(params, scale, x, likelihood)
    carried = _linear_terms(hidden, weight, bias)
    g = grad.abs().unsqueeze(-1)
    d_params = g * (density.d_params + density.curvature * carried)
    d_scale = g * (density.d_scale + density.cross * carried)
    return (
        d_params @ weight.abs(),
        torch.einsum("nkd,nkh->dh", d_params, hidden.abs()),
        d_params.sum((0, 1)),
        _sum_like_scale(d_scale, scale),
    )


_TERMS: dict[str, Callable[..., tuple[Tensor, ...]]] = {
    "corrupt": _terms_corrupt,
    "corrupt_backward": _terms_corrupt_backward,
    "corrupt_backward_std": _terms_corrupt_backward_std,
    "sample_latent": _terms_sample_latent,
    "sample_latent_backward": _terms_sample_latent_backward,
    "latent_log_ratio": _terms_latent_log_ratio,
    "latent_log_ratio_backward": _terms_latent_log_ratio_backward,
    "mixture_log_ratio": _terms_mixture_log_ratio,
    "mixture_log_ratio_backward": _terms_mixture_log_ratio_backward,
    "log_weights": _terms_log_weights,
    "log_weights_backward": _terms_log_weights_backward,
    "softplus": _terms_softplus,
    "softplus_backward": _terms_softplus_backward,
    "logmeanexp": _terms_logmeanexp,
    "logmeanexp_backward": _terms_logmeanexp_backward,
    "iwae": _terms_iwae,
    "iwae_": _terms_iwae_,
    "rescale_": _terms_rescale,
    "lse_update": _terms_lse_update,
    "lse_merge": _terms_lse_merge,
    "linear_log_weights": _terms_linear_log_weights,
    "linear_log_weights_backward": _terms_linear_log_weights_backward,
}


def absolute_terms(op: str, args64: tuple[Any, ...]) -> tuple[Tensor, ...]:
    """For every result of `op`, the sum of the absolute terms it is made of."""
    return _TERMS[op](*args64)


def rounded_intermediates(
    op: str, args64: tuple[Any, ...], dtype: torch.dtype
) -> tuple[Tensor | float, ...]:
    """Error from values that low precision keeps between the input and the sum.

    Only a linear layer has them: its output, and the gradient of it, are in the dtype of its
    operands as torch.nn.Linear's are, and a matrix product leaves them rounded.
    """
    if dtype not in LOW_PRECISION or not op.startswith("linear"):
        return (0.0,) * 4
    unit = torch.finfo(dtype).eps
    backward = op.endswith("backward")
    hidden, weight, bias, scale, x = args64[1:6] if backward else args64[:5]
    params = torch.nn.functional.linear(hidden, weight, bias)
    density = _density(params, scale, x, args64[-1])
    # A kernel adds the bias to a product that has been rounded: the two may cancel.
    product = torch.nn.functional.linear(hidden, weight)
    moved = unit * torch.maximum(product.abs(), params.abs())
    if not backward:
        return (((density.slope + density.curvature * moved) * moved).sum(-1),)
    g = args64[0].abs().unsqueeze(-1)
    d_params = g * (density.curvature * moved + unit * density.slope)
    # The products of a row with its weights are rounded once more before they are summed.
    slope = g * density.slope
    d_scale = g * (density.cross * moved + unit * density.d_scale)
    return (
        d_params @ weight.abs(),
        torch.einsum("nkd,nkh->dh", d_params + unit * slope, hidden.abs()),
        d_params.sum((0, 1)),
        _sum_like_scale(d_scale, scale),
    )


def naming(label: str) -> Callable[[str], str]:
    """`msg` of torch.testing.assert_close: its own message, with what was compared before it."""
    return lambda message: f"{label}: {message}"


def unit_in_last_place(value: Tensor, dtype: torch.dtype) -> Tensor:
    """Spacing of `dtype` around each float64 value (0 for the dtypes sums are kept in)."""
    if dtype not in LOW_PRECISION:
        return torch.zeros_like(value)
    info = torch.finfo(dtype)
    exponent = torch.frexp(value.abs().clamp(min=info.tiny)).exponent - 1
    return torch.ldexp(torch.full_like(value, info.eps), exponent)


def assert_accurate(
    name: str,
    actual: Tensor,
    expected: Tensor,
    terms: Tensor,
    sums: torch.dtype,
    extra: Tensor | float = 0.0,
) -> None:
    """|actual − expected| ≤ RELATIVE · terms (+ extra, + 1 ulp of a low-precision `actual`).

    Where `expected` is NaN or infinite `actual` must be the same. Kernels may take an exponential
    below the smallest normal number for 0, which `floor` allows for.
    """
    assert actual.shape == expected.shape, f"{name}: shape {actual.shape}, not {expected.shape}"
    if actual.numel() == 0:
        return
    got, expected = actual.detach().double(), expected.detach().double()
    terms = torch.where(torch.isfinite(terms), terms, expected.abs()).expand_as(expected)
    finite = torch.isfinite(expected)
    unit = unit_in_last_place(torch.where(finite, expected, 0.0), actual.dtype)
    floor = 1e3 * torch.finfo(sums).tiny
    allowed = RELATIVE[sums] * terms + unit + extra + floor
    same = (got == expected) | (got.isnan() & expected.isnan())
    wrong = torch.where(finite, ~((got - expected).abs() <= allowed), ~same)
    if not bool(wrong.any()):
        return
    ratio = torch.where(wrong, (got - expected).abs() / allowed, 0.0)
    ratio = torch.where(wrong & ~torch.isfinite(ratio), math.inf, ratio)
    worst = int(ratio.flatten().argmax())
    index = tuple(int(i) for i in torch.unravel_index(torch.tensor(worst), expected.shape))
    relative = (got - expected).abs()[index] / terms[index]
    raise AssertionError(
        f"{name}: {int(wrong.sum())} of {wrong.numel()} elements off; worst at {index}: got "
        f"{got[index].item():.9g}, expected {expected[index].item():.9g}, error over the sum of "
        f"absolute terms {relative.item():.3g}, {ratio[index].item():.3g} times what is allowed"
    )
