"""The public drop-in functions: argument checks, shapes, and autograd.

Shapes: B examples, M corruptions, K samples, Z latent and D data dimensions; ``*L`` is any
number of leading dimensions, usually none or M. Every function draws or computes in one fused
kernel (`torch.ops.dvae_fast`), saves inputs and seeds rather than noise, and treats NaN in one
example as that example's alone.

Under ``torch.autocast``, latents are sampled in float32, log-weights take decoder outputs in
whatever dtype autocast produced and accumulate in float32, and `linear_log_weights` runs its
matrix product in autocast's dtype.
"""

from __future__ import annotations

import functools
import math
import os
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from dvae_fast import ops as _ops  # noqa: F401  (registers the operators)
from dvae_fast.corruptions.basic import Corruption, DrawnCorruption
from dvae_fast.likelihoods.base import Likelihood, get_likelihood
from dvae_fast.reference import accumulation_dtype

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

__all__ = [
    "DENSE_ACTIVATIONS",
    "corrupt",
    "iwae_loss",
    "latent_log_ratio",
    "linear_log_weights",
    "log_weights",
    "logmeanexp",
    "mixture_log_ratio",
    "mlp_log_weights",
    "sample_latent",
    "set_validation",
    "softplus",
]

_op: Any = torch.ops.dvae_fast
_BERNOULLI = get_likelihood("bernoulli")
_FLOATS = frozenset((torch.float32, torch.float64, torch.bfloat16, torch.float16))
_INT64 = (-(2**63), 2**63 - 1)

_validate = os.environ.get("DVAE_FAST_VALIDATE", "0") not in ("", "0")


def set_validation(enabled: bool) -> bool:
    """Switch checks that read whole tensors (support of x, positive scales); returns the old value.

    Off by default, because a look at the values costs a pass, and on a GPU a synchronisation.
    The environment variable ``DVAE_FAST_VALIDATE=1`` switches them on at import.
    """
    global _validate
    old, _validate = _validate, bool(enabled)
    return old


# --- checks -----------------------------------------------------------------------------------


def _check_float(name: str, t: Tensor) -> None:
    if not isinstance(t, Tensor):
        raise TypeError(f"{name} must be a tensor, got {type(t).__name__}")
    if t.dtype not in _FLOATS:
        raise TypeError(f"{name} must be float32, float64, bfloat16 or float16, got {t.dtype}")


def _check_same(name: str, t: Tensor, other_name: str, other: Tensor) -> None:
    """Same device for any two; the callers compare shapes and dtypes, which differ by argument."""
    if t.device != other.device:
        raise ValueError(
            f"{name} must be on the device of {other_name}, {other.device}, got {t.device}"
        )


def _check_shape(name: str, t: Tensor, shape: tuple[int, ...], meaning: str) -> None:
    if tuple(t.shape) != shape:
        raise ValueError(f"{name} must have shape {meaning} = {shape}, got {tuple(t.shape)}")


def _check_count(name: str, value: int, lower: int) -> None:
    if not isinstance(value, (int, torch.SymInt)) or isinstance(value, bool):
        raise TypeError(f"{name} must be an int, got {type(value).__name__}")
    if value < lower:
        raise ValueError(f"{name} must be >= {lower}, got {value}")


def _check_index(name: str, value: int, count: int) -> None:
    """The first of `count` indices in the noise, each one 32-bit word of the counter."""
    _check_count(name, value, 0)
    if value + count > 2**32:
        raise ValueError(f"{name} must be <= 2**32 − {count}, the number drawn; got {value}")


def _seed_tensor(seed: int | Tensor | None, device: torch.device) -> Tensor:
    """One int64 on `device`; None draws it there, so that `torch.manual_seed` governs."""
    if seed is None:
        return torch.randint(0, 2**63 - 1, (1,), dtype=torch.int64, device=device)
    if isinstance(seed, Tensor):
        if seed.dtype != torch.int64 or seed.numel() != 1:
            raise TypeError(
                "seed must be an int or an int64 tensor of one element, "
                f"got {seed.dtype} of shape {tuple(seed.shape)}"
            )
        return seed if seed.device == device else seed.to(device)
    if not isinstance(seed, int) or isinstance(seed, bool):
        raise TypeError(
            "seed must be an int, an int64 tensor of one element or None, "
            f"got {type(seed).__name__}"
        )
    if not _INT64[0] <= seed <= _INT64[1]:
        raise ValueError(f"seed must fit in 64 bits, from -2**63 to 2**63 - 1, got {seed}")
    # Filled on the device: a copy from the host would wait for it, and break a CUDA graph.
    return torch.full((1,), seed, dtype=torch.int64, device=device)


# The golden ratio's digits: an odd number of no pattern.
_GOLDEN = 0x9E3779B97F4A7C15


def _derived_key(key: Tensor, index: int) -> Tensor:
    """The index-th of the keys that belong to a seed, the 0th being the seed itself.

    For draws of one (stream, example, copy) more than one; nothing is read on the host.
    """
    return key ^ ((index * _GOLDEN + 2**63) % 2**64 - 2**63)


def _looks() -> bool:
    """Whether values are to be checked and can be: nothing may wait for a graph being captured."""
    return (
        _validate
        and not torch.compiler.is_compiling()
        and not (torch.cuda.is_available() and torch.cuda.is_current_stream_capturing())
    )


def _differentiable_once(backward: Callable[..., Any]) -> Callable[..., Any]:
    """torch's once_differentiable, which alone lets a constant upstream gradient pass: then
    create_graph=True would give a gradient without a graph, and a penalty on it would lose terms
    without a word.
    """
    once = once_differentiable(backward)

    @functools.wraps(backward)
    def run(ctx: Any, *grads: Tensor | None) -> Any:
        if torch.is_grad_enabled() and not torch.compiler.is_compiling():
            grads = tuple(g if g is None else g.detach().requires_grad_() for g in grads)
        return once(ctx, *grads)

    return run


def _needs_grad(*tensors: Tensor | None) -> bool:
    return torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors)


def _autocast_dtype(t: Tensor) -> torch.dtype | None:
    """autocast's dtype for `t`'s device, if autocast is on and would touch `t`."""
    device = t.device.type
    if not torch.is_autocast_enabled(device) or t.dtype == torch.float64:
        return None
    return torch.get_autocast_dtype(device)


# --- corruption -------------------------------------------------------------------------------


class _Corrupt(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        parameter: Tensor,
        salt: Tensor | None,
        seed: Tensor,
        kind: str,
        copies: int,
        first_example: int,
        first_copy: int,
    ) -> Tensor:
        ctx.save_for_backward(parameter, salt, seed)
        ctx.kind, ctx.first = kind, (first_example, first_copy)
        return cast("Tensor", _op.corrupt(x, kind, parameter, salt, seed, copies, *ctx.first))

    @staticmethod
    @_differentiable_once
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        parameter, salt, seed = ctx.saved_tensors
        grad_x = grad_parameter = None
        if ctx.needs_input_grad[0]:
            grad_x = _op.corrupt_backward(grad, ctx.kind, parameter, salt, seed, *ctx.first)
        if ctx.needs_input_grad[1] and ctx.kind == "gaussian":
            grad_parameter = _op.corrupt_backward_std(grad, parameter, seed, *ctx.first)
        return grad_x, grad_parameter, None, None, None, None, None, None


def corrupt(
    x: Tensor,
    corruption: Corruption,
    copies: int | None = None,
    seed: int | Tensor | None = None,
    *,
    first_example: int = 0,
    first_copy: int = 0,
) -> Tensor:
    """Draw x̃ ~ p(x̃|x), out of place; x stays the target.

    Args:
        x: (B, ...), floating point. The first dimension counts examples.
        corruption: one of `dvae_fast.corruptions`; a parameter per data dimension has the shape
            of one example, or as many elements.
        copies: None for one draw in the shape of x, or M >= 1 independent draws.
        seed: int, int64 tensor of one element, or None to draw one from torch's generator.
        first_example: index of x's first example in the noise, so that a data set corrupted
            batch by batch gets the numbers it would get at once.
        first_copy: index of the first copy in the noise, likewise.

    Returns:
        x̃ of shape (B, ...), or (M, B, ...) if `copies` is given. Differentiable in x where that
        makes sense (a masked element passes nothing) and in a Gaussian standard deviation.

    Raises:
        TypeError: if x is not a floating-point tensor or `corruption` not a corruption.
        ValueError: if copies < 1, or a parameter has neither one element nor one per dimension.

    Source: arXiv 1511.06406, section 2.
    """
    _check_float("x", x)
    if not isinstance(corruption, Corruption) or not corruption.kind:
        raise TypeError(
            "corruption must be an object of dvae_fast.corruptions, such as Masking(0.1), "
            f"got {type(corruption).__name__}"
        )
    if x.dim() == 0:
        raise ValueError("x must have at least one dimension, (B, ...), got a scalar")
    if copies is not None:
        _check_count("copies", copies, 1)
    m = 1 if copies is None else copies
    _check_index("first_example", first_example, x.shape[0])
    _check_index("first_copy", first_copy, m)
    kind = corruption.kind
    flat = x if x.dim() == 2 else x.reshape(x.shape[0], math.prod(x.shape[1:]))
    if isinstance(corruption, DrawnCorruption):
        key = _seed_tensor(seed, x.device)
        out = corruption.draw(flat, m, key, first_example, first_copy)
        return out.view(x.shape if copies is None else (m, *x.shape))
    parameter = corruption.parameter
    salt = corruption.salt
    if parameter.device != x.device:
        parameter = parameter.to(x.device)
        salt = None if salt is None else salt.to(x.device)
    size = flat.shape[1]
    for name, value in (("parameter", parameter), ("salt", salt)):
        if value is not None and value.numel() not in (1, size):
            raise ValueError(
                f"corruption's {name} must have 1 element or one per data dimension ({size}), "
                f"got shape {tuple(value.shape)}"
            )
    if kind == "gaussian" and parameter.dtype != accumulation_dtype(x.dtype):
        parameter = parameter.to(accumulation_dtype(x.dtype))
    key = _seed_tensor(seed, x.device)
    if _needs_grad(flat, parameter):
        out = _Corrupt.apply(flat, parameter, salt, key, kind, m, first_example, first_copy)
    else:
        out = _op.corrupt(flat, kind, parameter, salt, key, m, first_example, first_copy)
    return cast("Tensor", out.view(x.shape if copies is None else (m, *x.shape)))


# --- latent samples ---------------------------------------------------------------------------


class _SampleLatent(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        mean: Tensor,
        log_var: Tensor,
        seed: Tensor,
        k: int,
        first_example: int,
        first_sample: int,
    ) -> tuple[Tensor, Tensor]:
        ctx.save_for_backward(mean, log_var, seed)
        ctx.index = (k, first_example, first_sample)
        ctx.set_materialize_grads(False)
        return cast(
            "tuple[Tensor, Tensor]",
            _op.sample_latent(mean, log_var, k, seed, first_example, first_sample),
        )

    @staticmethod
    @_differentiable_once
    def backward(
        ctx: Any, grad_z: Tensor | None, grad_log_ratio: Tensor | None
    ) -> tuple[Tensor | None, ...]:
        if grad_z is None and grad_log_ratio is None:
            return None, None, None, None, None, None
        mean, log_var, seed = ctx.saved_tensors
        k, first_example, first_sample = ctx.index
        grads = _op.sample_latent_backward(
            grad_z, grad_log_ratio, mean, log_var, k, seed, first_example, first_sample
        )
        return *grads, None, None, None, None


def _check_posterior(mean: Tensor, log_var: Tensor) -> None:
    _check_float("mean", mean)
    _check_float("log_var", log_var)
    if mean.dim() < 2:
        raise ValueError(f"mean must have shape (*L, B, Z), got {tuple(mean.shape)}")
    if log_var.shape != mean.shape:
        _check_shape("log_var", log_var, tuple(mean.shape), "that of mean")
    if log_var.dtype != mean.dtype:
        raise TypeError(f"log_var must have mean's dtype, {mean.dtype}, got {log_var.dtype}")
    _check_same("log_var", log_var, "mean", mean)


def _sampled_rows(
    mean: Tensor, log_var: Tensor, k: int, first_example: int = 0, first_sample: int = 0
) -> tuple[torch.Size, Tensor, Tensor]:
    """The shape of a posterior to draw from, and its parameters as the operators take them."""
    _check_posterior(mean, log_var)
    _check_count("k", k, 1)
    _check_index("first_example", first_example, mean.shape[-2])
    _check_index("first_sample", first_sample, k)
    if _autocast_dtype(mean) is not None:
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
    shape, mean, log_var = _sampled_rows(mean, log_var, k, first_example, first_sample)
    key = _seed_tensor(seed, mean.device)
    if _needs_grad(mean, log_var):
        z, log_ratio = _SampleLatent.apply(mean, log_var, key, k, first_example, first_sample)
    else:
        z, log_ratio = _op.sample_latent(mean, log_var, k, key, first_example, first_sample)
    return z.view(*shape[:-1], k, shape[-1]), log_ratio.view(*shape[:-1], k)


class _LatentLogRatio(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, z: Tensor, mean: Tensor, log_var: Tensor) -> Tensor:
        ctx.save_for_backward(z, mean, log_var)
        return cast("Tensor", _op.latent_log_ratio(z, mean, log_var))

    @staticmethod
    @_differentiable_once
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, ...]:
        return cast("tuple[Tensor, ...]", _op.latent_log_ratio_backward(grad, *ctx.saved_tensors))


def latent_log_ratio(z: Tensor, mean: Tensor, log_var: Tensor) -> Tensor:
    """log p(z) − log q(z) for a z from elsewhere, p = N(0, I), q = N(mean, exp(log_var)).

    Args:
        z: (*L, B, K, Z). mean, log_var: (*L, B, Z).

    Returns:
        (*L, B, K) in nats, differentiable in all three.

    Raises:
        TypeError: if an argument is not floating point or the dtypes differ.
        ValueError: if shapes or devices do not fit.
    """
    _check_float("z", z)
    _check_posterior(mean, log_var)
    shape = (*mean.shape[:-1], z.shape[-2] if z.dim() > 1 else 0, mean.shape[-1])
    _check_shape("z", z, shape, "(*L, B, K, Z)")
    _check_same("z", z, "mean", mean)
    if z.dtype != mean.dtype:
        dtype = torch.promote_types(z.dtype, mean.dtype)
        z, mean, log_var = z.to(dtype), mean.to(dtype), log_var.to(dtype)
    rows = math.prod(shape[:-2])
    args = (
        z.reshape(rows, *shape[-2:]),
        mean.reshape(rows, shape[-1]),
        log_var.reshape(rows, shape[-1]),
    )
    out = _LatentLogRatio.apply(*args) if _needs_grad(*args) else _op.latent_log_ratio(*args)
    return cast("Tensor", out.view(shape[:-1]))


class _MixtureLogRatio(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, z: Tensor, mean: Tensor, log_var: Tensor) -> Tensor:
        log_ratio, weights = _op.mixture_log_ratio(z, mean, log_var)
        # The weights too, M numbers a sample: without them the backward pass would begin with the
        # whole forward one.
        ctx.save_for_backward(weights, z, mean, log_var)
        return cast("Tensor", log_ratio)

    @staticmethod
    @_differentiable_once
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, ...]:
        return cast("tuple[Tensor, ...]", _op.mixture_log_ratio_backward(grad, *ctx.saved_tensors))


def mixture_log_ratio(z: Tensor, mean: Tensor, log_var: Tensor) -> Tensor:
    """log p(z) − log q̃(z), p = N(0, I) and q̃ = 1/M Σ_m N(mean_m, exp(log_var_m)).

    The posterior of a denoising model is q̃(z|x) = E_p(x̃|x) q(z|x̃); here it is estimated from M
    corruptions of x, each of which encodes to one component. With r_m = log p(z) − log q_m(z) of
    `latent_log_ratio`, the result is r = −log (1/M Σ_m e^(−r_m)), and its gradient

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
    _check_float("z", z)
    _check_posterior(mean, log_var)
    if mean.dim() != 3 or mean.shape[0] < 1:
        raise ValueError(f"mean must have shape (M, B, Z) with M >= 1, got {tuple(mean.shape)}")
    _, examples, size = mean.shape
    if z.dim() < 3 or z.shape[-3] != examples or z.shape[-1] != size:
        raise ValueError(
            f"z must have shape (*L, B, K, Z) with B = {examples} and Z = {size} as in mean, "
            f"got {tuple(z.shape)}"
        )
    _check_same("z", z, "mean", mean)
    if z.dtype != mean.dtype:
        dtype = torch.promote_types(z.dtype, mean.dtype)
        z, mean, log_var = z.to(dtype), mean.to(dtype), log_var.to(dtype)
    shape, leading, k = z.shape, math.prod(z.shape[:-3]), z.shape[-2]
    if z.dim() > 3:
        # An example's samples side by side, so that its components are read once.
        z = z.reshape(leading, examples, k, size).transpose(0, 1)
        z = z.reshape(examples, leading * k, size)
    args = (z, mean, log_var)
    out = _MixtureLogRatio.apply(*args) if _needs_grad(*args) else _op.mixture_log_ratio(*args)[0]
    if len(shape) > 3:
        out = out.view(examples, leading, k).transpose(0, 1).contiguous().view(shape[:-1])
    return cast("Tensor", out)


# --- log-weights ------------------------------------------------------------------------------


class _LogWeights(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, params: Tensor, scale: Tensor | None, x: Tensor, log_ratio: Tensor, kind: str
    ) -> Tensor:
        ctx.save_for_backward(params, scale, x)
        ctx.kind = kind
        return cast("Tensor", _op.log_weights(params, scale, x, log_ratio, kind))

    @staticmethod
    @_differentiable_once
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        params, scale, x = ctx.saved_tensors
        need = ctx.needs_input_grad
        grad_params = grad_scale = grad_x = None
        if need[0] or need[1] or (need[2] and scale is not None):
            grad_params, grad_scale = _op.log_weights_backward(grad, params, scale, x, ctx.kind)
        if need[2]:
            # ∂/∂x is −∂/∂mean for a Gaussian and the logit for a Bernoulli, summed over samples;
            # the others have none, and refuse such an x.
            if scale is not None:
                per_row = -cast("Tensor", grad_params).to(x.dtype).sum(1)
            else:
                # A weight of zero stops an infinite logit: 0 · inf would be NaN.
                logits = params.to(x.dtype).masked_fill((grad == 0).unsqueeze(-1), 0.0)
                with torch.autocast(x.device.type, enabled=False):
                    per_row = torch.einsum("nk,nkd->nd", grad.to(x.dtype), logits)
            copies = per_row.shape[0] // max(x.shape[0], 1)
            grad_x = per_row.view(copies, *x.shape).sum(0)
        return grad_params, grad_scale if scale is not None else None, grad_x, grad, None


def _check_rows(
    x: Any, log_ratio: Any, leading: tuple[int, ...], size: int, of: Tensor, of_name: str
) -> tuple[Tensor, Tensor]:
    """x as (rows, D) and log_ratio as (N, K), both in the accumulation dtype, after checks.

    leading is (*L, B, K); x is (B, D) or (*L, B, D).
    """
    if not isinstance(x, Tensor) or not isinstance(log_ratio, Tensor):
        name, value = ("x", x) if not isinstance(x, Tensor) else ("log_ratio", log_ratio)
        raise TypeError(f"{name} must be a tensor, got {type(value).__name__}")
    if len(leading) < 2:
        raise ValueError(f"{of_name} must have shape (*L, B, K, D), got {tuple(of.shape)}")
    if leading[-1] < 1:
        raise ValueError(f"{of_name} must hold K >= 1 samples, got shape {tuple(of.shape)}")
    batch = leading[:-1]
    if x.shape != (batch[-1], size) and x.shape != (*batch, size):
        raise ValueError(
            f"x must have shape (B, D) = {(batch[-1], size)} to go with {of_name} of shape "
            f"{tuple(of.shape)}, got {tuple(x.shape)}"
        )
    if log_ratio.shape != leading:
        _check_shape("log_ratio", log_ratio, leading, "(*L, B, K)")
    _check_same("x", x, of_name, of)
    _check_same("log_ratio", log_ratio, of_name, of)
    dtype = accumulation_dtype(of.dtype)
    if x.dtype != dtype:
        if x.is_complex():
            raise TypeError(f"x must be real, got {x.dtype}")
        x = x.to(dtype)
    if log_ratio.dtype != dtype:
        if not log_ratio.is_floating_point():
            raise TypeError(f"log_ratio must be floating point, got {log_ratio.dtype}")
        log_ratio = log_ratio.to(dtype)
    if x.dim() != 2:
        x = x.reshape(math.prod(batch), size)
    if log_ratio.dim() != 2:
        log_ratio = log_ratio.reshape(math.prod(batch), leading[-1])
    return x, log_ratio


def _check_scale(scale: Any, like: Tensor, shape: tuple[int, ...]) -> Tensor:
    """A scale as a tensor of 1, D or N·K·D elements, on params' device."""
    if not isinstance(scale, Tensor):
        if not isinstance(scale, (int, float)) or isinstance(scale, bool):
            raise TypeError(f"scale must be a number or a tensor, got {type(scale).__name__}")
        dtype = accumulation_dtype(like.dtype)
        limits = torch.finfo(dtype)
        if not limits.tiny <= scale <= limits.max:
            rule = f"{limits.tiny:.3g} or more, and at most {limits.max:.3g}"
            raise ValueError(f"scale must be > 0 and finite ({rule} for {dtype}), got {scale}")
        # Filled on the device, as the seed is.
        return torch.full((), scale, dtype=dtype, device=like.device)
    _check_float("scale", scale)
    _check_same("scale", scale, "params", like)
    small = scale.numel() <= shape[-1] and scale.device.type == "cpu"
    look = _looks() or (small and not torch.compiler.is_compiling())
    # NaN is data gone wrong, not a wrong argument: it flows to the result.
    if look and bool((scale.detach() <= 0).any()):
        raise ValueError(f"scale must be > 0, got a minimum of {scale.min().item():g}")
    if scale.numel() == 1:
        return scale.reshape(())
    if scale.shape == (shape[-1],):
        return scale
    try:
        full = scale.expand(shape)
    except RuntimeError:
        raise ValueError(
            f"scale must be a number or broadcast to the shape of mean, {shape}, "
            f"got {tuple(scale.shape)}"
        ) from None
    return full.reshape(math.prod(shape[:-2]), *shape[-2:])


def _check_params(
    params: Any, x: Tensor, log_ratio: Tensor, likelihood: str | Likelihood
) -> tuple[Tensor, Tensor | None, Tensor, Tensor, Likelihood, tuple[int, ...]]:
    """Operands of `log_weights` and `iwae_loss` in the operators' shapes, checked; (*L, B, K)."""
    lik = _BERNOULLI if likelihood == "bernoulli" else get_likelihood(likelihood)
    scale: Any = None
    if len(lik.params) == 1:
        if not isinstance(params, Tensor):
            raise TypeError(
                f"params must be a tensor of {lik.params[0]} for a {type(lik).__name__}, "
                f"got {type(params).__name__}"
            )
    else:
        if not isinstance(params, (tuple, list)) or len(params) != 2:
            got = (
                f"{len(params)} of them"
                if isinstance(params, (tuple, list))
                else (type(params).__name__)
            )
            pair = f"a pair ({', '.join(lik.params)}) for a {type(lik).__name__}"
            raise TypeError(f"params must be {pair}, got {got}")
        params, scale = params
        if scale is None:
            raise TypeError("scale must be a number or a tensor, got NoneType")
    _check_float("params", params)
    shape = tuple(params.shape)
    if len(shape) < 3:
        raise ValueError(f"params must have shape (*L, B, K, D), got {shape}")
    x, log_ratio = _check_rows(x, log_ratio, shape[:-1], shape[-1], params, "params")
    if lik.step != 0 and _needs_grad(x):
        raise ValueError(
            f"x must not require a gradient: the {lik.kind} likelihood has none for it, "
            "its data being discrete"
        )
    if scale is not None:
        scale = _check_scale(scale, params, shape)
        if scale.dim() == 3 and scale.dtype != params.dtype:
            # Autocast may make a mean in bfloat16 and a scale in float32, for which that is too
            # coarse.
            common = torch.promote_types(scale.dtype, params.dtype)
            scale, params = scale.to(common), params.to(common)
    if _looks():
        lik.check_support(x)
        lik.check_mean(params)
    if len(shape) != 3:
        params = params.reshape(math.prod(shape[:-2]), *shape[-2:])
    return params, scale, x, log_ratio, lik, shape[:-1]


def log_weights(
    params: Tensor | tuple[Tensor, Tensor | float],
    x: Tensor,
    log_ratio: Tensor,
    likelihood: str | Likelihood = "bernoulli",
) -> Tensor:
    """log w = log p(x|z) + log_ratio, the log-density summed over the data dimensions.

    Args:
        params: decoder outputs: logits (*L, B, K, D) of a Bernoulli, or (mean, scale) of any other
            likelihood, the scale a number, one per dimension (D,), or anything that broadcasts to
            mean's shape.
        x: the clean data, (B, D) (shared by leading dimensions) or (*L, B, D). For a Bernoulli
            any values in [0, 1]; see `dvae_fast.likelihoods` for the others.
        log_ratio: log p(z) − log q(z|x̃), (*L, B, K), as `sample_latent` returns it.
        likelihood: one of `dvae_fast.likelihoods.LIKELIHOODS` by its name, or a `Likelihood`.

    Returns:
        (*L, B, K) in nats, float32 (float64 for float64 params); differentiable in all tensors
        (in x for a Bernoulli and a Gaussian alone). Logits of ±inf give their limits, 0 or −inf.

    Raises:
        TypeError, ValueError: naming the argument, the rule and the value.

    Source: Burda, Grosse, Salakhutdinov (arXiv 1509.00519), equation 8.
    """
    p, scale, x, log_ratio, lik, leading = _check_params(params, x, log_ratio, likelihood)
    out = _log_weights(p, scale, x, log_ratio, lik.kind)
    return out if len(leading) == 2 else out.view(leading)


def _log_weights(
    params: Tensor, scale: Tensor | None, x: Tensor, log_ratio: Tensor, kind: str
) -> Tensor:
    if _needs_grad(params, scale, x, log_ratio):
        return cast("Tensor", _LogWeights.apply(params, scale, x, log_ratio, kind))
    return cast("Tensor", _op.log_weights(params, scale, x, log_ratio, kind))


# --- activation -------------------------------------------------------------------------------


class _Softplus(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        out = cast("Tensor", _op.softplus(x))
        ctx.save_for_backward(out)
        return out

    @staticmethod
    @_differentiable_once
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return cast("Tensor", _op.softplus_backward(grad, *ctx.saved_tensors))


def softplus(x: Tensor) -> Tensor:
    """log(1 + e^x), element by element, without `torch.nn.Softplus`'s linear part beyond 20.

    Keeps its result for the backward pass rather than its input: the linear layer that follows
    keeps that anyway, so the activation needs no memory of its own.

    Args:
        x: any shape, floating point.

    Returns:
        The shape and dtype of x. Differentiable once.

    Raises:
        TypeError: if x is not a floating-point tensor.
    """
    _check_float("x", x)
    return cast("Tensor", _Softplus.apply(x) if _needs_grad(x) else _op.softplus(x))


# --- logmeanexp and the IWAE loss -------------------------------------------------------------


class _LogMeanExp(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, log_w: Tensor) -> Tensor:
        bound = _op.logmeanexp(log_w)
        ctx.save_for_backward(log_w)
        return cast("Tensor", bound)

    @staticmethod
    @_differentiable_once
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return cast("Tensor", _op.logmeanexp_backward(grad, *ctx.saved_tensors))


def logmeanexp(log_w: Tensor, dim: int = -1) -> Tensor:
    """log (1/K Σ_k exp log_w), the importance-weighted bound per example.

    Args:
        log_w: log-weights in nats, K >= 1 of them along `dim`.
        dim: the dimension of the samples.

    Returns:
        log_w's shape without `dim`; float32 for bfloat16 and float16. Where all log-weights are
        −inf it is −inf, with zero gradient.

    Raises:
        TypeError: if log_w is not floating point.
        ValueError: if `dim` is out of range or has no element.

    Source: Burda et al. (arXiv 1509.00519), equation 8.
    """
    _check_float("log_w", log_w)
    if not isinstance(dim, int):
        raise TypeError(f"dim must be an int, got {type(dim).__name__}")
    if not -log_w.dim() <= dim < log_w.dim():
        raise ValueError(f"dim must be a dimension of log_w, {tuple(log_w.shape)}, got {dim}")
    if log_w.shape[dim] < 1:
        raise ValueError(
            f"log_w must hold K >= 1 samples along dim {dim}, got {tuple(log_w.shape)}"
        )
    moved = log_w.movedim(dim, -1).to(accumulation_dtype(log_w.dtype))
    shape = moved.shape[:-1]
    flat = moved.reshape(math.prod(shape), moved.shape[-1])
    out = _LogMeanExp.apply(flat) if _needs_grad(flat) else _op.logmeanexp(flat)
    return cast("Tensor", out.view(shape))


def _graph_is_kept() -> bool:
    """Whether this backward pass may be run again; True if torch does not tell."""
    if torch.compiler.is_compiling():
        return True
    query = getattr(torch._C._autograd, "_get_current_graph_task_keep_graph", None)
    return True if query is None else bool(query())


def _apply_upstream(grad: Tensor, upstream: Tensor, kept: bool) -> Tensor:
    """grad times the upstream gradient, of one element or one per row.

    In place when nothing can ask for this gradient again: `rescale_` reads the factor where it
    lies and does nothing at all when it is 1.
    """
    if kept:
        grad = grad.clone()
    _op.rescale_(grad, upstream)
    return grad


class _IWAELoss(torch.autograd.Function):
    """−bound with the gradient made in the forward pass, while the logits are in cache."""

    @staticmethod
    def forward(
        ctx: Any,
        params: Tensor,
        scale: Tensor | None,
        x: Tensor,
        log_ratio: Tensor,
        kind: str,
        reduction: str,
        overwrite: bool,
    ) -> tuple[Tensor, Tensor]:
        rows = params.shape[0]
        # A number made from the batch size would be a constant of a compiled graph, one graph for
        # each size: there the mean's division waits for the backward pass.
        later = reduction == "mean" and torch.compiler.is_compiling()
        multiplier = -1.0 / max(rows, 1) if reduction == "mean" and not later else -1.0
        ctx.rows = rows if later else None
        if overwrite:
            bound, weights, grad_scale = _op.iwae_(params, scale, x, log_ratio, kind, multiplier)
            grad_params = params
            # So that torch refuses a backward pass that saved what is overwritten.
            torch.autograd.graph.increment_version(params)
        else:
            bound, weights, grad_params, grad_scale = _op.iwae(
                params, scale, x, log_ratio, kind, multiplier
            )
        ctx.multiplier, ctx.per_row = multiplier, reduction == "none"
        # Not save_for_backward: with overwrite, params is an input that changed.
        ctx.grads = (grad_params, grad_scale if scale is not None else None, weights)
        ctx.mark_non_differentiable(weights)
        ctx.set_materialize_grads(False)
        if reduction == "none":
            return bound.neg(), weights
        return (bound.mean() if reduction == "mean" else bound.sum()).neg_(), weights

    @staticmethod
    @_differentiable_once
    def backward(ctx: Any, upstream: Tensor | None, _: None) -> tuple[Tensor | None, ...]:
        if upstream is None:
            return (None,) * 7
        kept = _graph_is_kept()
        if ctx.grads is None:
            raise RuntimeError(
                "Trying to backward through iwae_loss a second time; its gradient was handed out "
                "the first time. Give retain_graph=True to the first backward"
            )
        grad_params, grad_scale, weights = ctx.grads
        if ctx.rows is not None:
            upstream = upstream / ctx.rows
        if not kept:
            # The caller may take over what nobody else holds, rather than copy it.
            ctx.grads = None
        need = ctx.needs_input_grad
        grad_log_ratio = None
        if need[3]:
            factor = upstream.unsqueeze(-1) if ctx.per_row else upstream
            grad_log_ratio = weights * (factor * ctx.multiplier)
        grad_params = _apply_upstream(grad_params, upstream, kept) if need[0] else None
        grad_scale = _apply_upstream(grad_scale, upstream, kept) if need[1] else None
        return grad_params, grad_scale, None, grad_log_ratio, None, None, None


def iwae_loss(
    params: Tensor | tuple[Tensor, Tensor | float],
    x: Tensor,
    log_ratio: Tensor,
    likelihood: str | Likelihood = "bernoulli",
    reduction: str = "mean",
    *,
    overwrite_params: bool = False,
) -> Tensor:
    """−log (1/K Σ_k w_k), a loss whose value and gradient take one pass over the decoder output.

    With K = 1 this is the negative (denoising) variational lower bound; with leading dimension
    M it is the mean over corruptions of the importance-weighted bound.

    Args:
        params, x, log_ratio, likelihood: as for `log_weights`.
        reduction: "mean" over all (*L, B), "sum", or "none".
        overwrite_params: leave the gradient in the decoder output instead of allocating as much
            memory again. Only for an output that nothing else reads, then or in backward, as is
            true of what a linear layer returns; ignored where there is no gradient to make, and
            under torch.compile, which could not notice another reader.

    Returns:
        A scalar in nats, or (*L, B) for "none". Differentiable once.

    Raises:
        TypeError, ValueError: naming the argument, the rule and the value.

    Source: arXiv 1511.06406, section 3.1 (DIWAE); Burda et al. (arXiv 1509.00519), equation 8.
    """
    return _iwae_loss(params, x, log_ratio, likelihood, reduction, overwrite_params)[0]


def _iwae_loss(
    params: Tensor | tuple[Tensor, Tensor | float],
    x: Tensor,
    log_ratio: Tensor,
    likelihood: str | Likelihood,
    reduction: str,
    overwrite_params: bool,
) -> tuple[Tensor, Tensor | None]:
    """`iwae_loss` and, where the fused pass made them, the normalised weights (N, K)."""
    if reduction not in ("mean", "sum", "none"):
        raise ValueError(f"reduction must be 'mean', 'sum' or 'none', got {reduction!r}")
    p, scale, x, log_ratio, lik, leading = _check_params(params, x, log_ratio, likelihood)
    per_row_scale = scale is not None and scale.dim() != 3 and reduction == "none"
    # The fused pass stores the gradient before the upstream one is known: float16 would lose what
    # a loss scale is there to keep.
    small = p.dtype == torch.float16
    fused = _needs_grad(p, scale) and not _needs_grad(x) and not per_row_scale and not small
    if fused:
        # Neither a leaf nor a view of one: that memory is a parameter's.
        owner = p if p._base is None else p._base
        overwrite = (
            overwrite_params
            and p.is_contiguous()
            and not owner.is_leaf
            and not torch.compiler.is_compiling()
        )
        loss, weights = _IWAELoss.apply(p, scale, x, log_ratio, lik.kind, reduction, overwrite)
        return loss.view(leading[:-1]) if reduction == "none" else loss, weights
    bound = logmeanexp(_log_weights(p, scale, x, log_ratio, lik.kind))
    if reduction == "none":
        return -bound.view(leading[:-1]), None
    return -(bound.mean() if reduction == "mean" else bound.sum()), None


# --- last linear layer and likelihood ---------------------------------------------------------


class _LinearLogWeights(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        scale: Tensor | None,
        x: Tensor,
        log_ratio: Tensor,
        kind: str,
    ) -> Tensor:
        ctx.save_for_backward(hidden, weight, bias, scale, x)
        ctx.kind = kind
        return cast(
            "Tensor", _op.linear_log_weights(hidden, weight, bias, scale, x, log_ratio, kind)
        )

    @staticmethod
    @_differentiable_once
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        hidden, weight, bias, scale, x = ctx.saved_tensors
        grads = _op.linear_log_weights_backward(grad, hidden, weight, bias, scale, x, ctx.kind)
        grad_hidden, grad_weight, grad_bias, grad_scale = grads
        return (
            grad_hidden,
            grad_weight,
            grad_bias if bias is not None else None,
            grad_scale if scale is not None else None,
            None,
            grad,
            None,
        )


def linear_log_weights(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    x: Tensor,
    log_ratio: Tensor,
    likelihood: str | Likelihood = "bernoulli",
    *,
    scale: Tensor | float | None = None,
) -> Tensor:
    """`log_weights` of a decoder's last linear layer, never holding its (B, K, D) output.

    The layer runs in row tiles that stay in cache and the likelihood is taken from each tile;
    the backward pass recomputes the tiles.

    Args:
        hidden: input of the layer, (*L, B, K, H).
        weight, bias: (D, H) and (D,) or None, as in `torch.nn.Linear`.
        x, log_ratio, likelihood: as for `log_weights`. Of a pair (mean, scale) the layer gives the
            mean.
        scale: the scale, required where the likelihood has one: a number or a tensor of 1 or D
            elements.

    Returns:
        (*L, B, K) in nats; differentiable in hidden, weight, bias, scale and log_ratio.

    Raises:
        TypeError, ValueError: naming the argument, the rule and the value.
    """
    for name, t in (("hidden", hidden), ("weight", weight), ("bias", bias)):
        if name != "bias" or t is not None:
            _check_float(name, cast("Tensor", t))
    dtype = _autocast_dtype(hidden)
    if dtype is not None:
        hidden, weight = hidden.to(dtype), weight.to(dtype)
        bias = None if bias is None else bias.to(dtype)
    if hidden.dim() < 3:
        raise ValueError(f"hidden must have shape (*L, B, K, H), got {tuple(hidden.shape)}")
    _check_layer("weight", weight, "bias", bias, hidden, "hidden", hidden.shape[-1], "(D, H)")
    x, log_ratio, scale, lik = _check_output(
        weight.shape[0], x, log_ratio, likelihood, scale, hidden, "hidden"
    )
    leading = hidden.shape[:-1]
    hidden = hidden.reshape(math.prod(leading[:-1]), *hidden.shape[-2:])
    args = (hidden, weight, bias, scale, x, log_ratio, lik.kind)
    if _needs_grad(hidden, weight, bias, scale, log_ratio):
        out = _LinearLogWeights.apply(*args)
    else:
        out = _op.linear_log_weights(*args)
    return cast("Tensor", out.view(leading))


def _check_layer(
    weight_name: str,
    weight: Any,
    bias_name: str,
    bias: Any,
    of: Tensor,
    of_name: str,
    inputs: int,
    shape: str,
) -> None:
    """A linear layer's weight (O, inputs) and bias (O,) or None, of the dtype of what it takes."""
    for name, t in ((weight_name, weight), (bias_name, bias)):
        if t is None and name == bias_name:
            continue
        _check_float(name, t)
        if name == weight_name and (t.dim() != 2 or t.shape[1] != inputs):
            raise ValueError(
                f"{name} must have shape {shape} with {shape[-2]} = {inputs} as in {of_name}, "
                f"got {tuple(t.shape)}"
            )
        _check_same(name, t, of_name, of)
        if t.dtype != of.dtype:
            raise TypeError(f"{name} must have {of_name}'s dtype, {of.dtype}, got {t.dtype}")
        if name == bias_name:
            _check_shape(name, t, (weight.shape[0],), f"({shape[1]},)")


def _check_output(
    size: int,
    x: Any,
    log_ratio: Any,
    likelihood: str | Likelihood,
    scale: Tensor | float | None,
    of: Tensor,
    of_name: str,
) -> tuple[Tensor, Tensor, Tensor | None, Likelihood]:
    """x, log_ratio and scale of linear layers that end in `size` outputs, after checks."""
    lik = get_likelihood(likelihood)
    if len(lik.params) == 1:
        if scale is not None:
            raise ValueError(
                f"scale must be None for a {type(lik).__name__} likelihood, which has none, "
                f"got {scale}"
            )
    elif scale is None:
        raise ValueError(f"scale must be given for a {type(lik).__name__} likelihood, got None")
    leading = tuple(of.shape[:-1])
    x, log_ratio = _check_rows(x, log_ratio, leading, size, of, of_name)
    if _needs_grad(x):
        raise ValueError("x must not require a gradient: none is made for it")
    if scale is not None:
        given = scale
        scale = _check_scale(scale, of, (*leading, size))
        if scale.dim() == 3:
            raise ValueError(
                f"scale must have 1 or D = {size} elements here, "
                f"got {tuple(cast('Tensor', given).shape)}"
            )
    if _looks():
        lik.check_support(x)
    return x, log_ratio, scale, lik


#: activations that `mlp_log_weights` knows, by name
DENSE_ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "softplus": softplus,
    "relu": torch.relu,
    "tanh": torch.tanh,
}


def mlp_log_weights(
    z: Tensor,
    layers: Sequence[tuple[Tensor, Tensor | None]],
    x: Tensor,
    log_ratio: Tensor,
    likelihood: str | Likelihood = "bernoulli",
    *,
    activation: str = "softplus",
    scale: Tensor | float | None = None,
) -> Tensor:
    """`log_weights` of a decoder of linear layers, holding none of their outputs on a CPU.

    There, in float32 and float64 and where no gradient is asked for, each thread takes a few rows
    at a time through all layers, in its own cache. Elsewhere the hidden layers run one after
    another, and the last one in `linear_log_weights`.

    Args:
        z: latents, (*L, B, K, Z).
        layers: weight (O, I) and bias (O,) or None of each, as in `torch.nn.Linear`; I is Z at
            first, and O is D in the end.
        x, log_ratio, likelihood, scale: as for `linear_log_weights`.
        activation: after every layer but the last, one of softplus, relu, tanh.

    Returns:
        (*L, B, K) in nats; differentiable in z, layers, scale and log_ratio.

    Raises:
        TypeError, ValueError: naming the argument, the rule and the value.
    """
    _check_float("z", z)
    if z.dim() < 3:
        raise ValueError(f"z must have shape (*L, B, K, Z), got {tuple(z.shape)}")
    if not isinstance(activation, str) or activation not in DENSE_ACTIVATIONS:
        raise ValueError(
            f"activation must be one of {', '.join(DENSE_ACTIVATIONS)}; got {activation!r}"
        )
    layers = list(layers)
    if not layers:
        raise ValueError("layers must hold at least one layer, got none")
    for i, layer in enumerate(layers):
        if not isinstance(layer, (tuple, list)) or len(layer) != 2:
            raise TypeError(
                f"layers must hold pairs (weight, bias), got {type(layer).__name__} at {i}"
            )
        _check_float(f"weight of layer {i}", layer[0])
        if layer[1] is not None:
            _check_float(f"bias of layer {i}", layer[1])
    dtype = _autocast_dtype(z)
    if dtype is not None:
        z = z.to(dtype)
        layers = [(w.to(dtype), None if b is None else b.to(dtype)) for w, b in layers]
    inputs = z.shape[-1]
    for i, (weight, bias) in enumerate(layers):
        source = "z" if i == 0 else f"layer {i - 1}"
        _check_layer(
            f"weight of layer {i}", weight, f"bias of layer {i}", bias, z, source, inputs, "(O, I)"
        )
        inputs = weight.shape[0]
    tensors = [t for t in (scale, *(t for layer in layers for t in layer)) if isinstance(t, Tensor)]
    whole = z.device.type == "cpu" and z.dtype in (torch.float32, torch.float64)
    if not whole or _needs_grad(z, log_ratio, *tensors):
        hidden = z
        for layer in layers[:-1]:
            hidden = DENSE_ACTIVATIONS[activation](torch.nn.functional.linear(hidden, *layer))
        return linear_log_weights(hidden, *layers[-1], x, log_ratio, likelihood, scale=scale)
    x, log_ratio, scale, lik = _check_output(inputs, x, log_ratio, likelihood, scale, z, "z")
    leading = z.shape[:-1]
    out = _op.mlp_log_weights(
        z.reshape(math.prod(leading[:-1]), *z.shape[-2:]),
        [weight for weight, _ in layers],
        [z.new_empty(0) if bias is None else bias for _, bias in layers],
        activation,
        scale,
        x,
        log_ratio,
        lik.kind,
    )
    return cast("Tensor", out.view(leading))
