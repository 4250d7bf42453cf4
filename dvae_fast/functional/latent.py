"""Latent samples and their log p(z) − log q(z)."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor

from dvae_fast import ops as _ops  # noqa: F401  (registers the operators)
from dvae_fast import reference
from dvae_fast._checks import (
    check_count,
    check_float,
    check_index,
    check_same,
    check_shape,
    check_total,
)
from dvae_fast._seeds import seed_tensor
from dvae_fast.functional._autograd import (
    Operation,
    autocast_dtype,
    differentiable,
    graph_is_asked,
    keep,
    needs_function,
    operator,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = [
    "check_mean_and_log_var",
    "latent_log_ratio",
    "mixture_log_ratio",
    "sample_latent",
    "sampled_rows",
]

_op: Any = torch.ops.dvae_fast


_sample_latent = operator("sample_latent")
_sample_latent_backward = differentiable("sample_latent_backward")
_latent_log_ratio = operator("latent_log_ratio")
_latent_log_ratio_backward = differentiable("latent_log_ratio_backward")
_mixture_log_ratio = operator("mixture_log_ratio")
_mixture_log_ratio_backward = differentiable("mixture_log_ratio_backward")


class _SampleLatent(Operation):
    formula = staticmethod(reference.sample_latent)

    @staticmethod
    def forward(
        mean: Tensor, log_var: Tensor, k: int, seed: Tensor, first_example: int, first_sample: int
    ) -> tuple[Tensor, Tensor]:
        return cast(
            "tuple[Tensor, Tensor]",
            _sample_latent(mean, log_var, k, seed, first_example, first_sample),
        )

    @staticmethod
    def pull(grads: Sequence[Tensor | None], need: Sequence[bool], *args: Any) -> tuple[Any, ...]:
        return *_sample_latent_backward(*grads, *args), *(None,) * 4


def check_mean_and_log_var(mean: Tensor, log_var: Tensor) -> None:
    check_float("mean", mean)
    check_float("log_var", log_var)
    if mean.dim() < 2:
        raise ValueError(f"mean must have shape (*L, B, Z), got {tuple(mean.shape)}")
    if log_var.shape != mean.shape:
        check_shape("log_var", log_var, tuple(mean.shape), "that of mean")
    if log_var.dtype != mean.dtype:
        raise TypeError(f"log_var must have mean's dtype, {mean.dtype}, got {log_var.dtype}")
    check_same("log_var", log_var, "mean", mean)


def sampled_rows(
    mean: Tensor, log_var: Tensor, k: int, first_example: int = 0, first_sample: int = 0
) -> tuple[torch.Size, Tensor, Tensor]:
    """The shape of a posterior to draw from, and its parameters as the operators take them."""
    check_mean_and_log_var(mean, log_var)
    check_count("k", k, 1)
    check_index("first_example", first_example, mean.shape[-2])
    check_index("first_sample", first_sample, k)
    check_total("z", *mean.shape[:-1], k, mean.shape[-1])
    if autocast_dtype(mean) is not None:
        mean, log_var = mean.float(), log_var.float()
    shape = mean.shape
    if mean.dim() != 3:
        mean = mean.reshape(math.prod(shape[:-2]), *shape[-2:])
        log_var = log_var.reshape(mean.shape)
    return shape, mean, log_var


def sample_latent(
    mean: Tensor,
    log_var: Tensor,
    k: int,
    seed: int | Tensor | None = None,
    *,
    first_example: int = 0,
    first_sample: int = 0,
) -> tuple[Tensor, Tensor]:
    """Draw K samples z ~ N(mean, exp(log_var)) and log p(z) − log q(z), p(z) = N(0, I).

    Args:
        mean, log_var: (*L, B, Z).
        k: K >= 1.
        seed: int, int64 tensor of one element, or None to draw one from torch's generator.
        first_example, first_sample: indices of the first example and sample in the noise, so
            that any split of the work draws the same numbers.

    Returns:
        z (*L, B, K, Z) in mean's dtype, and log_ratio (*L, B, K) in nats, float32 (float64 if
        mean is). Both differentiable in mean and log_var (reparameterised).

    Raises:
        TypeError: if an argument is not floating point or the dtypes differ.
        ValueError: if shapes or devices differ, or k < 1.
    """
    shape, mean, log_var = sampled_rows(mean, log_var, k, first_example, first_sample)
    key = seed_tensor(seed, mean.device)
    run = _SampleLatent.apply if needs_function(mean, log_var) else _op.sample_latent
    z, log_ratio = run(mean, log_var, k, key, first_example, first_sample)
    if len(shape) == 3:
        return z, log_ratio
    return z.view(*shape[:-1], k, shape[-1]), log_ratio.view(*shape[:-1], k)


class _LatentLogRatio(Operation):
    formula = staticmethod(reference.latent_log_ratio)

    @staticmethod
    def forward(z: Tensor, mean: Tensor, log_var: Tensor) -> Tensor:
        return cast("Tensor", _latent_log_ratio(z, mean, log_var))

    @staticmethod
    def pull(grads: Sequence[Tensor | None], need: Sequence[bool], *args: Any) -> tuple[Any, ...]:
        return cast("tuple[Tensor, ...]", _latent_log_ratio_backward(*grads, *args))


def latent_log_ratio(z: Tensor, mean: Tensor, log_var: Tensor) -> Tensor:
    """log p(z) − log q(z) for a z from elsewhere, p = N(0, I), q = N(mean, exp(log_var)).

    Args:
        z: (*L, B, K, Z).
        mean, log_var: (*L, B, Z).

    Returns:
        (*L, B, K) in nats, differentiable in all three.

    Raises:
        TypeError: if an argument is not floating point or the dtypes differ.
        ValueError: if shapes or devices do not fit.
    """
    check_float("z", z)
    check_mean_and_log_var(mean, log_var)
    shape = (*mean.shape[:-1], z.shape[-2] if z.dim() > 1 else 0, mean.shape[-1])
    check_shape("z", z, shape, "(*L, B, K, Z)")
    check_same("z", z, "mean", mean)
    if z.dtype != mean.dtype:
        dtype = torch.promote_types(z.dtype, mean.dtype)
        z, mean, log_var = z.to(dtype), mean.to(dtype), log_var.to(dtype)
    rows = math.prod(shape[:-2])
    args = (
        z.reshape(rows, *shape[-2:]),
        mean.reshape(rows, shape[-1]),
        log_var.reshape(rows, shape[-1]),
    )
    run = _LatentLogRatio.apply if needs_function(*args) else _op.latent_log_ratio
    out = run(*args)
    return cast("Tensor", out.view(shape[:-1]))


class _MixtureLogRatio(Operation):
    """The weights are a result too, of M numbers a sample: without them the backward pass would
    begin with the whole forward one."""

    formula = staticmethod(reference.mixture_log_ratio)

    @staticmethod
    def forward(z: Tensor, mean: Tensor, log_var: Tensor) -> tuple[Tensor, Tensor]:
        return cast("tuple[Tensor, Tensor]", _mixture_log_ratio(z, mean, log_var))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        keep(ctx, output, *inputs, output[1])

    @staticmethod
    def pull(grads: Sequence[Tensor | None], need: Sequence[bool], *args: Any) -> tuple[Any, ...]:
        *inputs, weights = args
        if graph_is_asked():  # in which the weights have derivatives too
            weights = reference.mixture_log_ratio(*inputs)[1]
        return (*_mixture_log_ratio_backward(grads[0], weights, *inputs),)


def mixture_log_ratio(z: Tensor, mean: Tensor, log_var: Tensor) -> Tensor:
    """log p(z) − log q̃(z), p = N(0, I) and q̃ = 1/M Σ_m N(mean_m, exp(log_var_m)).

    The posterior of a denoising model is q̃(z|x) = E_p(x̃|x) q(z|x̃); here it is estimated from M
    corruptions of x, each of which encodes to one component. With r_m = log p(z) − log q_m(z) of
    `latent_log_ratio`, the result is r = −log (1/M Σ_m e^(−r_m)), and its gradient::

        w_m = e^(−r_m) / Σ e^(−r), component m's share of q̃(z); u_m = (z − mean_m)/var_m
        ∂r/∂z         = Σ_m w_m u_m − z
        ∂r/∂mean_m    = −w_m u_m
        ∂r/∂log_var_m = ½ w_m (1 − u_m² var_m)

    Args:
        z: (*L, B, K, Z), from anywhere: z[m] of `sample_latent`'s M draws, say, under all M.
        mean, log_var: (M, B, Z); every leading index of z has the same mixture.

    Returns:
        (*L, B, K) in nats, differentiable in all three. With M = 1, `latent_log_ratio`. A z that
        no component can have drawn, all densities 0, gives inf and gradients of 0.

    Raises:
        TypeError: if an argument is not floating point or the dtypes differ.
        ValueError: if shapes or devices do not fit, or M < 1.

    Source: arXiv 1511.06406, section 3: the bound E_q̃ [log p(x, z) − log q̃(z|x)], intractable for
    the expectation over x̃ inside the logarithm, lies between the denoising bound and log p(x).
    """
    check_float("z", z)
    check_mean_and_log_var(mean, log_var)
    if mean.dim() != 3 or mean.shape[0] < 1:
        raise ValueError(f"mean must have shape (M, B, Z) with M >= 1, got {tuple(mean.shape)}")
    _, examples, size = mean.shape
    if z.dim() < 3 or z.shape[-3] != examples or z.shape[-1] != size:
        raise ValueError(
            f"z must have shape (*L, B, K, Z) with B = {examples} and Z = {size} as in mean, "
            f"got {tuple(z.shape)}"
        )
    check_same("z", z, "mean", mean)
    if z.dtype != mean.dtype:
        dtype = torch.promote_types(z.dtype, mean.dtype)
        z, mean, log_var = z.to(dtype), mean.to(dtype), log_var.to(dtype)
    shape, leading, k = z.shape, math.prod(z.shape[:-3]), z.shape[-2]
    if z.dim() > 3:
        # An example's samples side by side, so that its components are read once.
        z = z.reshape(leading, examples, k, size).transpose(0, 1)
        z = z.reshape(examples, leading * k, size)
    args = (z, mean, log_var)
    run = _MixtureLogRatio.apply if needs_function(*args) else _op.mixture_log_ratio
    out = run(*args)[0]
    if len(shape) > 3:
        out = out.view(examples, leading, k).transpose(0, 1).contiguous().view(shape[:-1])
    return cast("Tensor", out)
