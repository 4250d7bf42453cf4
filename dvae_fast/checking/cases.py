"""The one table of sample inputs for every operator.

`sample_inputs(op, dtype, device)` drives `dvae_fast.check` and the tests of correctness,
contiguity, opcheck and ISA levels; how large an error may be is in `terms` and `limits`. Sizes are
B examples, M corruptions, K samples, Z latent and D data dimensions, all different in every case.
Adding an operator means adding an entry to `_BUILDERS` here and one to the table of `terms`.
"""

from __future__ import annotations

import itertools
import math
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

import dvae_fast  # noqa: F401  (registers the operators)
from dvae_fast import reference
from dvae_fast.checking.likelihoods import LIKELIHOODS, scale_of, target_of
from dvae_fast.checking.operands import (
    LARGE,
    LAYOUTS,
    LOW_PRECISION,
    MANY_SAMPLES,
    NO_EXAMPLES,
    SIZES,
    TINY_LATENT,
    Maker,
    Sample,
    Sizes,
    arrange,
    named,
)
from dvae_fast.corruptions import (
    AdditiveGaussian,
    BitFlip,
    FusedCorruption,
    Identity,
    Masking,
    SaltAndPepper,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

_Build = tuple[str, str, "Callable[[Maker], tuple[Any, ...]]"]  # label, layout, arguments

# Every size in plain layout; every layout at one size whose rows are not whole blocks.
_SIZES_AND_LAYOUTS = [
    *((s, "contiguous") for s in SIZES),
    *((TINY_LATENT, layout) for layout in LAYOUTS[1:]),
]

#: the corruptions, by the name of their formula
KINDS: dict[str, type[FusedCorruption]] = {
    kind.kind: kind for kind in (Identity, Masking, SaltAndPepper, BitFlip, AdditiveGaussian)
}


def _label(s: Sizes, layout: str, *more: str) -> str:
    return "-".join([named(s), *([] if layout == "contiguous" else [layout]), *more])


def _level(make: Maker, kind: str, shape: tuple[int, ...]) -> Tensor:
    """Rates are float32 whatever the data is; a standard deviation has the dtype of sums."""
    if KINDS[kind].additive:
        return make.uniform(*shape, low=0.1, high=2.0, dtype=make.sums)
    return make.uniform(*shape, low=0.1, high=0.6, dtype=torch.float32)


def _salt(make: Maker, kind: str, shape: tuple[int, ...]) -> Tensor | None:
    if not KINDS[kind].salted:
        return None
    return make.uniform(*shape, low=0.1, high=0.9, dtype=torch.float32)


def _corruption_cases() -> Iterator[tuple[Sizes, str, str, tuple[int, ...]]]:
    """(sizes, layout, kind, shape of rate or standard deviation)."""
    for i, (s, layout) in enumerate(_SIZES_AND_LAYOUTS):
        # Every kind at two sizes and in one layout or more; every parameter shape with each.
        for j, kind in enumerate(KINDS):
            if s in (LARGE, NO_EXAMPLES) or layout != "contiguous" or (i + j) % 3 == 0:
                yield s, layout, kind, ((), (s.d,), (1,))[(i + j) % 3]
    yield MANY_SAMPLES, "contiguous", AdditiveGaussian.kind, (5, 13)  # as an image: D = 65 elements


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
            std = _level(make, AdditiveGaussian.kind, shape)
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


def _scale(make: Maker, s: Sizes, likelihood: str, kind: str) -> Tensor | None:
    if LIKELIHOODS[likelihood].scale is None:
        return None
    shape = {"full": (s.m * s.b, s.k, s.d), "scalar": (), "per-pixel": (s.d,)}[kind]
    return scale_of(make, likelihood, shape, make.dtype if kind == "full" else make.sums)


def _target(make: Maker, s: Sizes, likelihood: str) -> Tensor:
    return target_of(make, likelihood, s.b, s.d)


def decoder_arguments(make: Maker, s: Sizes, likelihood: str, kind: str) -> tuple[Any, ...]:
    """(params, scale, x, log_ratio) of log_weights and iwae."""
    n = s.m * s.b
    # Samples differ by a few nats at any D, so that no one of them takes all the weight.
    row = LIKELIHOODS[likelihood]
    base, difference = make.raw(n, 1, s.d), make.raw(n, s.k, s.d) / math.sqrt(s.d)
    params = make.put(row.params(base + row.spread * difference))
    log_ratio = make.normal(n, s.k, std=2.0, dtype=make.sums)
    scale = _scale(make, s, likelihood, kind)
    return params, scale, _target(make, s, likelihood), log_ratio


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
            params, scale, x, log_ratio = decoder_arguments(make, s, *of)
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
            return (*decoder_arguments(make, s, *of), of[0], -1.0 / 6)

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
            row = LIKELIHOODS[likelihood]
            layer = [make.raw(n, s.k, h), make.raw(s.d, h) * h**-0.5, make.raw(s.d)]
            if row.positive:  # and none near 0, of which a derivative leaves 16 bits
                layer = [t.abs() + 0.3 * h**p for t, p in zip(layer, (0, -0.5, 0), strict=True)]
            layer[1:] = [row.layer * t for t in layer[1:]]
            hidden, weight, bias = (make.put(t) for t in layer)
            rest = (_scale(make, s, likelihood, kind), _target(make, s, likelihood))
            per_row = make.normal(n, s.k, dtype=make.sums)
            operands = (hidden, weight, bias if has_bias else None, *rest)
            return (
                (per_row, *operands, likelihood) if backward else (*operands, per_row, likelihood)
            )

        bias = [] if has_bias else ["no-bias"]
        yield _label(s, layout, likelihood, kind, *bias, f"{i}"), layout, build


def _mlp_log_weights() -> Iterator[_Build]:
    """Two or three layers; all biases, or the first layer without."""
    for i, (s, layout, likelihood, kind) in enumerate(_decoder_cases()):
        kind = "per-pixel" if kind == "full" else kind
        activation = ("softplus", "relu", "tanh")[i % 3]
        widths = (s.z, *((s.k + 9,) if i % 2 else (66, 21)), s.d)
        has_bias = i % 4 != 1

        def build(
            make: Maker,
            s: Sizes = s,
            of: tuple[str, str, str] = (likelihood, kind, activation),
            widths: tuple[int, ...] = widths,
            has_bias: bool = has_bias,
        ) -> tuple[Any, ...]:
            (likelihood, kind, activation), n = of, s.m * s.b
            weights = [make.raw(o, i) * i**-0.5 for i, o in itertools.pairwise(widths)]
            biases = [0.5 * make.raw(o) for o in widths[1:]]
            z = make.normal(n, s.k, s.z)
            row = LIKELIHOODS[likelihood]
            if row.positive:
                z, weights[:] = z.abs(), [w.abs() for w in weights]
                biases = [1 + b.abs() for b in biases]
            weights[-1], biases[-1] = row.layer * weights[-1], row.layer * biases[-1]
            if not has_bias:
                biases[0] = biases[0][:0]
            return (
                z,
                [make.put(w) for w in weights],
                [make.put(b) for b in biases],
                activation,
                _scale(make, s, likelihood, kind),
                _target(make, s, likelihood),
                make.normal(n, s.k, dtype=make.sums),
                likelihood,
            )

        yield _label(s, layout, likelihood, kind, activation, f"{i}"), layout, build


def _both(
    name: str, build: Callable[[bool], Iterator[_Build]]
) -> dict[str, Callable[[], Iterator[_Build]]]:
    """Of an operator and of its backward pass."""
    return {name: partial(build, False), f"{name}_backward": partial(build, True)}


_BUILDERS: dict[str, Callable[[], Iterator[_Build]]] = {
    **_both("corrupt", _corrupt),
    "corrupt_backward_std": _corrupt_backward_std,
    "sample_latent": _sample_latent,
    "sample_latent_backward": _sample_latent_backward,
    **_both("latent_log_ratio", _latent_log_ratio),
    **_both("mixture_log_ratio", _mixture_log_ratio),
    **_both("log_weights", _log_weights),
    **_both("softplus", _softplus),
    **_both("logmeanexp", _logmeanexp),
    "iwae": partial(_iwae, in_place=False),
    "iwae_": partial(_iwae, in_place=True),
    "rescale_": _rescale,
    "lse_update": _lse_update,
    **_both("linear_log_weights", _linear_log_weights),
    "mlp_log_weights": _mlp_log_weights,
}

#: where those that take a mask have params, if they have, and x
_MASKED = {
    "log_weights": (0, 2),
    "log_weights_backward": (1, 3),
    "iwae": (0, 2),
    "iwae_": (0, 2),
    "linear_log_weights": (None, 4),
    "linear_log_weights_backward": (None, 5),
    "mlp_log_weights": (None, 5),
}


def _masked(op: str) -> Iterator[_Build]:
    """One in four of the cases without, infinite where they are not observed."""
    for i, (label, layout, build) in enumerate(_BUILDERS[op]()):
        if (i + i // 4) % 4 != 1:  # each likelihood in turn
            continue

        def masked(make: Maker, build: Callable[[Maker], Any] = build) -> tuple[Any, ...]:
            args = list(build(make))
            params, x = _MASKED[op]
            b, d = args[x].shape
            share = 1.2 * torch.rand(b, 1, generator=make.generator)  # few, many or all
            mask = torch.rand(b, d, generator=make.generator) < share
            mask[1:2], mask[2:3] = False, True  # of an example nothing, of another all
            mask = make.put(mask, torch.bool)
            args[x] = arrange(torch.where(mask, args[x], math.inf), make.layout)
            if params is not None:
                rows = mask.repeat(len(args[params]) // max(b, 1), 1).unsqueeze(1)
                unseen = torch.where(rows, args[params], math.inf)
                args[params] = arrange(unseen, make.layout)
            return (*args, mask)

        yield label, layout, masked


_BUILDERS.update({f"masked_{op}": partial(_masked, op) for op in _MASKED})

OPERATORS = tuple(_BUILDERS)
MUTATING = ("iwae_", "masked_iwae_", "rescale_")

# What has no form in some dtypes: its inputs are sums already, or no public function calls it so.
_SUMS = ("logmeanexp", "logmeanexp_backward", "lse_update")
_NOT_IN = {
    **dict.fromkeys(_SUMS, LOW_PRECISION),
    **dict.fromkeys(("mlp_log_weights", "masked_mlp_log_weights"), (torch.float16,)),
}


def sample_inputs(op: str, dtype: torch.dtype, device: str) -> list[Sample]:
    """Every case of `op`; none for a dtype it does not take."""
    if dtype in _NOT_IN.get(op, ()):
        return []
    return [
        Sample(op, label, dtype, device, layout, build) for label, layout, build in _BUILDERS[op]()
    ]


def map_tensors(f: Callable[[Tensor], Tensor], args: tuple[Any, ...]) -> tuple[Any, ...]:
    """`args` with `f` of every tensor, those in lists too."""

    def one(a: Any) -> Any:
        if isinstance(a, list):
            return [one(b) for b in a]
        return f(a) if isinstance(a, Tensor) else a

    return tuple(one(a) for a in args)


def upcast(args: tuple[Any, ...]) -> tuple[Any, ...]:
    """The same values in float64."""
    return map_tensors(
        lambda t: t.to(torch.float64, copy=True) if t.is_floating_point() else t, args
    )


def clone(args: tuple[Any, ...]) -> tuple[Any, ...]:
    return map_tensors(torch.clone, args)


def results(op: str, out: Any, args: tuple[Any, ...]) -> tuple[Tensor, ...]:
    """All results of a call: what it returned, and what it changed, last."""
    out = () if out is None else out if isinstance(out, tuple) else (out,)
    return (*out, args[0]) if op in MUTATING else tuple(out)


def run_operator(op: str, args: tuple[Any, ...]) -> tuple[Tensor, ...]:
    return results(op, getattr(torch.ops.dvae_fast, op)(*args), args)


def run_reference(op: str, args: tuple[Any, ...]) -> tuple[Tensor, ...]:
    return results(op, getattr(reference, op)(*args), args)
