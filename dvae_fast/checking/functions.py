"""The public functions on top of the operators: values and gradients through autograd."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

import dvae_fast
from dvae_fast import corruptions, functional, reference
from dvae_fast.checking.likelihoods import LIKELIHOODS, scale_of, target_of
from dvae_fast.checking.operands import Maker
from dvae_fast.checking.outcomes import Expected, Tally, attempt

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

#: Largest error over the largest element: the operators below are held far more tightly.
TOLERANCE = {
    torch.float32: 5e-4,
    torch.float64: 1e-9,
    torch.bfloat16: 3e-2,
    torch.float16: 1e-2,
}

_B, _K, _Z = 3, 7, 5


@dataclass(frozen=True)
class Case:
    name: str
    #: the operators it runs, forward and backward
    operators: tuple[str, ...]
    label: str
    #: makes the differentiable operands and those that are not
    make: Callable[[Maker], tuple[list[Tensor], list[Tensor]]]
    call: Callable[..., Any]
    in_float32_alone: bool = False


class _OnReference(TorchDispatchMode):
    """Runs every operator of this package by its reference."""

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        if func.namespace == "dvae_fast":
            return getattr(reference, func._schema.name.split("::")[1])(*args, **(kwargs or {}))
        return func(*args, **(kwargs or {}))


def _values_and_gradients(case: Case, operands: list[Tensor], rest: list[Tensor]) -> Any:
    leaves = [t.detach().clone().requires_grad_() for t in operands]
    out = case.call(*leaves, *rest)
    out = out if isinstance(out, tuple) else (out,)
    generator = torch.Generator().manual_seed(7)
    total = torch.zeros((), dtype=torch.float64, device=leaves[0].device)
    for o in out:
        weight = torch.randn(o.shape, generator=generator, dtype=torch.float64)
        total = total + (o.double() * weight.to(o.device)).sum()
    return (*out, *torch.autograd.grad(total, leaves))


def _expected(case: Case, operands: list[Tensor], rest: list[Tensor], tolerance: float) -> Expected:
    def double(tensors: list[Tensor]) -> list[Tensor]:
        return [t.cpu().double() if t.is_floating_point() else t.cpu() for t in tensors]

    with _OnReference():
        values = _values_and_gradients(case, double(operands), double(rest))
    allowed = [
        torch.full(v.shape, tolerance * (v.abs().max().item() if v.numel() else 0) + 1e-30)
        for v in values
    ]
    detached = tuple(v.detach() for v in values)
    return Expected("gradients", detached, lambda i, dtype: allowed[i])


def check_functions(
    tally: Tally, device: str, level: str, *, small: bool, note: Callable[[str], None]
) -> None:
    dtypes = (torch.float32,) if small else tuple(TOLERANCE)
    for case in _cases(small):
        note(case.name)
        for dtype in dtypes:
            if case.in_float32_alone and dtype != torch.float32:
                continue
            maker = Maker(f"{case.name} {case.label}", dtype, device, "contiguous")
            operands, rest = case.make(maker)
            expected = _expected(case, operands, rest, TOLERANCE[dtype])
            found = expected.compare(
                attempt(
                    device,
                    lambda c=case, o=operands, r=rest: _values_and_gradients(c, o, r),  # type: ignore[misc]
                )
            )
            tally.add(case.name, "gradients", dtype, level, found, case.operators, case.label)


# --- the cases --------------------------------------------------------------------------------


def _posterior(make: Maker) -> list[Tensor]:
    return [make.normal(2, _B, _Z), make.normal(2, _B, _Z)]


def _latent_cases() -> Iterator[Case]:
    yield Case(
        "sample_latent",
        ("sample_latent", "sample_latent_backward"),
        "M=2",
        lambda make: (_posterior(make), []),
        lambda mean, log_var: dvae_fast.sample_latent(mean, log_var, _K, seed=3),
    )
    for function in (dvae_fast.latent_log_ratio, dvae_fast.mixture_log_ratio):
        name = function.__name__
        yield Case(
            name,
            (name, f"{name}_backward"),
            "M=2",
            lambda make: ([make.normal(2, _B, _K, _Z), *_posterior(make)], []),
            function,
        )


def _corruption_cases() -> Iterator[Case]:
    kinds: dict[str, Callable[[], corruptions.Corruption]] = {
        "masking": lambda: corruptions.Masking(0.3),
        "bit_flip": lambda: corruptions.BitFlip(0.3),
        "salt_and_pepper": lambda: corruptions.SaltAndPepper(0.3, 0.25),
    }
    for name, corruption in kinds.items():
        yield Case(
            "corrupt",
            ("corrupt", "corrupt_backward"),
            name,
            lambda make: ([make.uniform(5, 65)], []),
            lambda x, c=corruption: dvae_fast.corrupt(x, c().to(x.device), copies=3, seed=4),
        )
    yield Case(
        "corrupt",
        ("corrupt", "corrupt_backward", "corrupt_backward_std"),
        "gaussian, per pixel",
        lambda make: ([make.uniform(5, 65), make.uniform(65, low=0.1, dtype=make.sums)], []),
        lambda x, std: dvae_fast.corrupt(x, corruptions.AdditiveGaussian(std), copies=3, seed=4),
    )


def _decoder(make: Maker, likelihood: str, scale: str, d: int) -> tuple[list[Tensor], list[Tensor]]:
    params = LIKELIHOODS[likelihood].params(make.raw(2, _B, _K, d))
    ratio = make.normal(2, _B, _K, dtype=make.sums)
    operands = [make.put(params), ratio]
    if scale != "none":
        shape = {"full": (2, _B, _K, d), "per-pixel": (d,), "scalar": (1,)}[scale]
        dtype = make.dtype if scale == "full" else make.sums
        operands.append(scale_of(make, likelihood, shape, dtype))
    return operands, [target_of(make, likelihood, _B, d)]


def _split(tensors: tuple[Tensor, ...]) -> tuple[Any, Tensor, Tensor]:
    """(params, x, log_ratio) of operands in the order of `_decoder`."""
    *operands, x = tensors
    params = operands[0] if len(operands) == 2 else (operands[0], operands[2])
    return params, x, operands[1]


def _weight_cases(small: bool) -> Iterator[Case]:
    for likelihood, row in LIKELIHOODS.items():
        for scale in ("full", "per-pixel", "scalar") if row.scale else ("none",):
            for d in (1, 65) if small else (1, 65, 784):

                def make(
                    make: Maker, of: tuple[str, str, int] = (likelihood, scale, d)
                ) -> tuple[list[Tensor], list[Tensor]]:
                    return _decoder(make, *of)

                label = f"{likelihood}, scale {scale}, D={d}"
                yield Case(
                    "log_weights",
                    ("log_weights", "log_weights_backward", "logmeanexp", "logmeanexp_backward"),
                    label,
                    make,
                    lambda *t, lik=likelihood: dvae_fast.logmeanexp(
                        dvae_fast.log_weights(*_split(t), lik)
                    ),
                    in_float32_alone=d != 65,
                )
                for reduction in ("mean",) if d != 65 else ("mean", "sum", "none"):
                    yield Case(
                        "iwae_loss",
                        (
                            "iwae",
                            "rescale_",
                            "log_weights",
                            "log_weights_backward",
                            "logmeanexp",
                            "logmeanexp_backward",
                        ),
                        f"{label}, {reduction}",
                        make,
                        lambda *t, lik=likelihood, r=reduction: dvae_fast.iwae_loss(
                            *_split(t), lik, reduction=r
                        ),
                        in_float32_alone=d != 65,
                    )
                if d == 65:
                    yield Case(
                        "iwae_loss (overwrite_params)",
                        ("iwae_", "iwae", "rescale_"),
                        label,
                        make,
                        _overwriting(likelihood),
                    )


def _masked_cases() -> Iterator[Case]:
    """Of an example nothing is observed, and of another everything."""
    d = 65
    for likelihood, row in LIKELIHOODS.items():
        for scale in ("full", "per-pixel") if row.scale else ("none",):

            def make(
                make: Maker, of: tuple[str, str, int] = (likelihood, scale, d)
            ) -> tuple[list[Tensor], list[Tensor]]:
                operands, rest = _decoder(make, *of)
                mask = torch.rand(_B, d, generator=make.generator) < 0.6
                mask[0], mask[1] = False, True
                return operands, [*rest, make.put(mask, torch.bool)]

            label = f"{likelihood}, scale {scale}, D={d}"
            for function, operators in (
                (dvae_fast.log_weights, ("masked_log_weights", "masked_log_weights_backward")),
                (dvae_fast.iwae_loss, ("masked_iwae", "rescale_")),
            ):
                yield Case(
                    f"{function.__name__} (mask)",
                    operators,
                    label,
                    make,
                    lambda *t, f=function, lik=likelihood: f(*_split(t[:-1]), lik, t[-1]),
                )


def _overwriting(likelihood: str) -> Callable[..., Tensor]:
    def call(*tensors: Tensor) -> Tensor:
        return dvae_fast.iwae_loss(
            *_split((tensors[0] * 1, *tensors[1:])), likelihood, overwrite_params=True
        )

    return call


def _layer_cases() -> Iterator[Case]:
    d = 65
    for likelihood, with_bias in itertools.product(LIKELIHOODS, (True, False)):

        def make(
            make: Maker, likelihood: str = likelihood, with_bias: bool = with_bias
        ) -> tuple[list[Tensor], list[Tensor]]:
            row = LIKELIHOODS[likelihood]
            raw = [make.raw(2, _B, _K, 9), make.raw(d, 9) / 3, make.raw(d)]
            if row.positive:
                raw = [t.abs() for t in raw]
            raw[1:] = [row.layer * t for t in raw[1:]]
            *layers, last = (make.put(t) for t in raw)
            bias = [last] if with_bias else []
            ratio = make.normal(2, _B, _K, dtype=make.sums)
            scale = [scale_of(make, likelihood, (d,), make.sums)] if row.scale else []
            return [*layers, ratio, *bias, *scale], [target_of(make, likelihood, _B, d)]

        def call(*t: Tensor, likelihood: str = likelihood, with_bias: bool = with_bias) -> Tensor:
            hidden, weight, ratio, *more, x = t
            bias = more[0] if with_bias else None
            scale = more[-1] if LIKELIHOODS[likelihood].scale else None
            return dvae_fast.linear_log_weights(
                hidden, weight, bias, x, ratio, likelihood, scale=scale
            )

        yield Case(
            "linear_log_weights",
            ("linear_log_weights", "linear_log_weights_backward"),
            f"{likelihood}{'' if with_bias else ', no bias'}",
            make,
            call,
        )
    yield Case(
        "softplus",
        ("softplus", "softplus_backward"),
        "4 N(0, 1)",
        lambda make: ([make.normal(3, 65, std=4.0)], []),
        functional.softplus,
    )


def _long_cases() -> Iterator[Case]:
    """What few samples do not launch: too many of them for shared memory, sums over all rows."""

    def make(make: Maker) -> tuple[list[Tensor], list[Tensor]]:
        params = make.put(make.raw(_B, 300, 784) / math.sqrt(784))
        scale = make.uniform(784, low=0.5, high=2.0, dtype=make.sums)
        ratio = make.normal(_B, 300, dtype=make.sums)
        return [params, ratio, scale], [target_of(make, "gaussian", _B, 784)]

    yield Case(
        "iwae_loss",
        ("iwae", "rescale_", "log_weights", "log_weights_backward", "logmeanexp",
         "logmeanexp_backward"),
        "gaussian, scale per-pixel, K=300, D=784",
        make,
        lambda *t: dvae_fast.iwae_loss(*_split(t), "gaussian"),
        in_float32_alone=True,
    )  # fmt: skip


def _cases(small: bool) -> Iterator[Case]:
    yield from _corruption_cases()
    yield from _latent_cases()
    yield from _weight_cases(small)
    yield from _masked_cases()
    yield from _layer_cases()
    if not small:
        yield from _long_cases()
