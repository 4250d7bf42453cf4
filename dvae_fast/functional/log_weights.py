"""Log-weights, the bound that they make, and the loss that takes one pass."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor

from dvae_fast import ops as _ops  # noqa: F401  (registers the operators)
from dvae_fast import reference
from dvae_fast._checks import check_choice, check_float, check_same, is_number, values_are_checked
from dvae_fast._dtypes import accumulation_dtype
from dvae_fast.functional._autograd import (
    Operation,
    again,
    apply_upstream,
    call,
    differentiable,
    graph_is_asked,
    graph_is_kept,
    is_transformed,
    is_wrapped,
    keep,
    maskable,
    needs_function,
    needs_grad,
    operator,
    save,
    unary,
)
from dvae_fast.functional._looks import is_due, look_at_loss, look_at_params, readable
from dvae_fast.functional._rows import check_mask, check_rows, observed
from dvae_fast.functional.plain import check_no_gradient, gradient_in_x, plain_log_weights
from dvae_fast.likelihoods import Likelihood, get_likelihood
from dvae_fast.likelihoods.base import check_positive

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    Overwrite = bool | Callable[[], Tensor]
    Params = Tensor | Sequence[Tensor | float] | Mapping[str, Tensor | float]

__all__ = [
    "check_scale",
    "iwae_loss",
    "iwae_loss_and_weights",
    "log_weights",
    "log_weights_of_rows",
    "logmeanexp",
]

_op: Any = torch.ops.dvae_fast


# --- log-weights ------------------------------------------------------------------------------


_log_weights = maskable(operator, "log_weights")
_log_weights_backward = maskable(differentiable, "log_weights_backward")


class _LogWeights(Operation):
    formula = staticmethod(reference.log_weights)

    @staticmethod
    def forward(
        params: Tensor,
        scale: Tensor | None,
        x: Tensor,
        log_ratio: Tensor,
        kind: str,
        mask: Tensor | None,
    ) -> Tensor:
        return cast("Tensor", _log_weights(params, scale, x, log_ratio, kind, mask))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        params, scale, x, _, *rest = inputs
        keep(ctx, output, params, scale, x, *rest)

    @staticmethod
    def pull(grads: Sequence[Tensor | None], need: Sequence[bool], *args: Any) -> tuple[Any, ...]:
        params, scale, x, kind, mask = args
        grad = cast("Tensor", grads[0])
        grad_params = grad_scale = grad_x = None
        if need[0] or need[1]:
            grad_params, grad_scale = _log_weights_backward(grad, params, scale, x, kind, mask)
        if need[2]:
            grad_x = gradient_in_x(grad, params, scale, x, get_likelihood(kind), mask)
        return grad_params, grad_scale if scale is not None else None, grad_x, grad, None, None


def check_scale(
    scale: Any, like: Tensor, shape: tuple[int, ...], mask: Tensor | None = None
) -> Tensor:
    """A scale as a tensor of 1, D or N·K·D elements, on params' device."""
    if not isinstance(scale, Tensor):
        if not is_number(scale):
            raise TypeError(f"scale must be a number or a tensor, got {type(scale).__name__}")
        scale, dtype = float(scale), accumulation_dtype(like.dtype)
        limits = torch.finfo(dtype)
        if not limits.tiny <= scale <= limits.max:
            rule = f"{limits.tiny:.3g} or more, and at most {limits.max:.3g}"
            raise ValueError(f"scale must be > 0 and finite ({rule} for {dtype}), got {scale}")
        # Filled on the device, as the seed is.
        return torch.full((), scale, dtype=dtype, device=like.device)
    check_float("scale", scale)
    check_same("scale", scale, "params", like)
    small = scale.numel() <= shape[-1] and scale.device.type == "cpu"
    look = values_are_checked() or (small and not torch.compiler.is_compiling())
    look = look and not isinstance(scale, FakeTensor)
    # NaN is data gone wrong, not a wrong argument: it flows to the result.
    low = look and not is_wrapped(scale) and _has_low(scale)
    low = low and (mask is None or not is_wrapped(mask))
    if low and mask is None:
        check_positive("scale", scale)
    full: Tensor = scale
    if scale.numel() == 1:
        full = scale.reshape(()) if scale.dim() else scale
    elif scale.shape != (shape[-1],):
        try:
            full = scale.expand(shape)
        except RuntimeError:
            raise ValueError(
                f"scale must be a number or broadcast to the shape of mean, {shape}, "
                f"got {tuple(scale.shape)}"
            ) from None
        full = full.reshape(math.prod(shape[:-2]), *shape[-2:])
    if low:
        check_positive("scale", _observed_scale(full, mask))
    return full


def _has_low(scale: Tensor) -> bool:
    """Whether any of it is not > 0 (NaN passes)."""
    scale = scale.detach()
    if scale.dtype in (torch.float32, torch.float64) and not scale.is_neg() and readable(scale):
        # NumPy's way takes a third of torch's time.
        value = scale.numpy()
        return bool(value <= 0) if value.ndim == 0 else bool((value <= 0).any())
    return bool((scale <= 0).any())


def _observed_scale(scale: Tensor, mask: Tensor | None) -> Tensor:
    """What a mask leaves of a scale of 1, D or N·K·D elements."""
    if scale.dim() == 1:
        return scale if mask is None else scale[mask.any(0)]
    return observed(scale, mask) if scale.dim() == 3 else scale


def _check_params(
    params: Any, x: Tensor, log_ratio: Tensor, lik: Likelihood, mask: Any
) -> tuple[Tensor, Tensor | None, Tensor, Tensor, Tensor | None, tuple[int, ...]]:
    """Operands of `log_weights` and `iwae_loss` in the operators' shapes, checked; (*L, B, K)."""
    scale: Any = None
    if not isinstance(params, Tensor) or len(lik.params) > 1:
        params, *rest = lik.unpack(params)
        scale = rest[0] if rest else None
        if rest and scale is None:
            raise TypeError("scale must be a number or a tensor, got NoneType")
    check_float("params", params)
    shape = tuple(params.shape)
    if len(shape) < 3:
        raise ValueError(f"params must have shape (*L, B, K, D), got {shape}")
    mask = check_mask(mask, shape[:-1], shape[-1], params, "params")
    if scale is not None:
        scale = check_scale(scale, params, shape, mask)
        if scale.dim() == 3 and scale.dtype != params.dtype:
            # Autocast may make a mean in bfloat16 and a scale in float32, for which that is too
            # coarse.
            common = torch.promote_types(scale.dtype, params.dtype)
            scale, params = scale.to(common), params.to(common)
    x, log_ratio = check_rows(x, log_ratio, shape[:-1], shape[-1], params, "params")
    if lik.discrete:
        check_no_gradient(lik, x)
    if len(shape) != 3:
        params = params.reshape(math.prod(shape[:-2]), *shape[-2:])
    if values_are_checked():
        lik.check_support(observed(x, mask))
        looked = [observed(params, mask)]
        if scale is not None:
            looked.append(_observed_scale(scale, mask))
        lik.check_values(tuple(looked))
    return params, scale, x, log_ratio, mask, shape[:-1]


def log_weights(
    params: Params,
    x: Tensor,
    log_ratio: Tensor,
    likelihood: str | Likelihood = "bernoulli",
    mask: Tensor | None = None,
) -> Tensor:
    """log w = log p(x|z) + log_ratio, the log-density summed over the data dimensions.

    Args:
        params: decoder outputs, (*L, B, K, D): a tensor where the likelihood has one parameter
            (logits of a Bernoulli), else a tuple in the order of its `params`, or a mapping. A
            scale is a number, one per dimension (D,), or anything that broadcasts to mean's shape;
            of a likelihood of one's own each parameter may be.
        x: the clean data, (B, D) (shared by leading dimensions) or (*L, B, D). For a Bernoulli
            any values in [0, 1]; see `dvae_fast.likelihoods` for the others.
        log_ratio: log p(z) − log q(z|x̃), (*L, B, K), as `sample_latent` returns it.
        likelihood: one of `dvae_fast.likelihoods.LIKELIHOODS` by its name, or a `Likelihood`; one
            of your own is computed by its `log_prob`.
        mask: bool, (B, D) (shared by leading dimensions) or (*L, B, D): True where x was observed.
            Then log p is of what was, the sum over those dimensions alone. Nothing else of x and
            params is looked at, whatever is there, and its gradient is 0; an example of which
            nothing was observed has log w = log_ratio.

    Returns:
        (*L, B, K) in nats, float32 (float64 for float64 params); differentiable in all tensors
        (a discrete likelihood refuses an x that requires a gradient). Logits of ±inf give their
        limits, 0 or −inf.

    Raises:
        TypeError, ValueError: naming the argument, the rule and the value.

    Source: Burda, Grosse, Salakhutdinov (arXiv 1509.00519), equation 8; with a mask Mattei and
    Frellsen (arXiv 1812.02633), equation 4.
    """
    lik = get_likelihood(likelihood)
    if lik.kernel is None:
        return plain_log_weights(params, x, log_ratio, lik, mask)
    p, scale, x, log_ratio, mask, leading = _check_params(params, x, log_ratio, lik, mask)
    out = log_weights_of_rows(p, scale, x, log_ratio, lik.kernel, mask)
    return out if len(leading) == 2 else out.view(leading)


def log_weights_of_rows(
    params: Tensor,
    scale: Tensor | None,
    x: Tensor,
    log_ratio: Tensor,
    kind: str,
    mask: Tensor | None = None,
) -> Tensor:
    """`log_weights` of a kernel's operands: params (N, K, D), x (B, D), log_ratio (N, K)."""
    run = _LogWeights.apply if needs_function(params, scale, x, log_ratio) else _log_weights
    return cast("Tensor", run(params, scale, x, log_ratio, kind, mask))


# --- logmeanexp and the IWAE loss -------------------------------------------------------------


_LogMeanExp = unary("logmeanexp")


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
    check_float("log_w", log_w)
    if not isinstance(dim, (int, np.integer)) or isinstance(dim, bool):
        raise TypeError(f"dim must be an int, got {type(dim).__name__}")
    if not -log_w.dim() <= dim < log_w.dim():
        raise ValueError(f"dim must be a dimension of log_w, {tuple(log_w.shape)}, got {dim}")
    if log_w.shape[dim] < 1:
        raise ValueError(
            f"log_w must hold K >= 1 samples along dim {dim}, got {tuple(log_w.shape)}"
        )
    moved = log_w.movedim(int(dim), -1).to(accumulation_dtype(log_w.dtype))
    shape = moved.shape[:-1]
    flat = moved.reshape(math.prod(shape), moved.shape[-1])
    return _mean_of_rows(flat).view(shape)


def _mean_of_rows(log_w: Tensor) -> Tensor:
    run = _LogMeanExp.apply if needs_function(log_w) else _op.logmeanexp
    return cast("Tensor", run(log_w))


_iwae = maskable(operator, "iwae")
_iwae_in_place = maskable(operator, "iwae_")


class _IWAELoss(torch.autograd.Function):
    """−bound with the gradient made in the forward pass, while the logits are in cache.

    Not for transforms, and gone back through a second time as what it is made of.
    """

    @staticmethod
    def forward(
        ctx: Any,
        params: Tensor,
        scale: Tensor | None,
        x: Tensor,
        log_ratio: Tensor,
        kind: str,
        reduction: str,
        overwrite: Overwrite,
        mask: Tensor | None,
    ) -> tuple[Tensor, Tensor]:
        rows = params.shape[0]
        # A number made from the batch size would be a constant of a compiled graph, one graph for
        # each size: there the mean's division waits for the backward pass.
        later = reduction == "mean" and torch.compiler.is_compiling()
        multiplier = -1.0 / max(rows, 1) if reduction == "mean" and not later else -1.0
        ctx.rows = rows if later else None
        if overwrite:
            bound, weights, grad_scale = _iwae_in_place(
                params, scale, x, log_ratio, kind, multiplier, mask
            )
            grad_params = params
            # So that torch refuses a backward pass that saved what is overwritten.
            torch.autograd.graph.increment_version(params)
        else:
            bound, weights, grad_params, grad_scale = _iwae(
                params, scale, x, log_ratio, kind, multiplier, mask
            )
        ctx.multiplier, ctx.per_row = multiplier, reduction == "none"
        if not torch.compiler.is_compiling():  # for second derivatives, which that has none of
            ctx.kind, ctx.reduction = kind, reduction
            ctx.overwrite, ctx.shape = overwrite, params.shape
            save(ctx, None if overwrite else params, scale, x, log_ratio, mask)
        # Not saved so: with overwrite, params is an input that changed.
        ctx.grads = (grad_params, grad_scale if scale is not None else None, weights)
        ctx.mark_non_differentiable(weights)
        ctx.set_materialize_grads(False)
        return _reduced(bound, reduction), weights

    @staticmethod
    def backward(ctx: Any, upstream: Tensor | None, _: None) -> tuple[Tensor | None, ...]:
        if upstream is None:
            return (None,) * 8
        if graph_is_asked():
            return _iwae_again(ctx, upstream)
        kept = graph_is_kept()
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
        grad_params = apply_upstream(grad_params, upstream, kept) if need[0] else None
        grad_scale = apply_upstream(grad_scale, upstream, kept) if need[1] else None
        return grad_params, grad_scale, None, grad_log_ratio, None, None, None, None


def _iwae_again(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
    """The gradients, with a graph of their own."""
    params, scale, x, log_ratio, mask = ctx.saved_tensors
    if ctx.overwrite:
        if not callable(ctx.overwrite):
            raise RuntimeError(
                "iwae_loss has no second derivatives with overwrite_params=True, which left the "
                "first in params; give False, or a function that makes params again"
            )
        params = ctx.overwrite().reshape(ctx.shape)

    def loss(params: Tensor, scale: Tensor | None, log_ratio: Tensor) -> Tensor:
        bound = _mean_of_rows(log_weights_of_rows(params, scale, x, log_ratio, ctx.kind, mask))
        return _reduced(bound, ctx.reduction)

    grad_params, grad_scale, grad_log_ratio = again(loss, (params, scale, log_ratio), upstream)
    return grad_params, grad_scale, None, grad_log_ratio, None, None, None, None


def iwae_loss(
    params: Params,
    x: Tensor,
    log_ratio: Tensor,
    likelihood: str | Likelihood = "bernoulli",
    mask: Tensor | None = None,
    reduction: str = "mean",
    *,
    overwrite_params: Overwrite = False,
) -> Tensor:
    """−log (1/K Σ_k w_k), a loss whose value and gradient take one pass over the decoder output.

    With K = 1 this is the negative (denoising) variational lower bound; with leading dimension
    M it is the mean over corruptions of the importance-weighted bound.

    Args:
        params, x, log_ratio, likelihood, mask: as for `log_weights`.
        reduction: "mean" over all (*L, B), "sum", or "none".
        overwrite_params: leave the gradient in the decoder output instead of allocating as much
            memory again. Only for an output that nothing else reads, then or in backward, as is
            true of what a linear layer returns; ignored where there is no gradient to make, and
            under torch.compile, which could not notice another reader. Second derivatives need
            the output: give a function that makes it again, of the same graph.

    Returns:
        A scalar in nats, or (*L, B) for "none".

    Raises:
        TypeError, ValueError: naming the argument, the rule and the value.

    Source: arXiv 1511.06406, section 3.1 (DIWAE); Burda et al. (arXiv 1509.00519), equation 8.
    """
    return iwae_loss_and_weights(
        params, x, log_ratio, likelihood, reduction, overwrite_params, mask
    )[0]


def iwae_loss_and_weights(
    params: Params,
    x: Tensor,
    log_ratio: Tensor,
    likelihood: str | Likelihood,
    reduction: str,
    overwrite_params: Overwrite,
    mask: Tensor | None = None,
) -> tuple[Tensor, Tensor | None]:
    """`iwae_loss` and, where they are to be had in one pass, the normalised weights (N, K)."""
    check_choice("reduction", reduction, ("mean", "sum", "none"))
    lik = get_likelihood(likelihood)
    if lik.kernel is None:
        log_w = plain_log_weights(params, x, log_ratio, lik, mask)
        unpacked = lik.unpack(params)
        due = is_due(log_w, lik)
        if due:
            look_at_params(unpacked[0], lik)
        rows = log_w.detach().reshape(-1, log_w.shape[-1])
        weights = _op.logmeanexp_backward(torch.ones_like(rows[:, 0]), rows)
        loss = _reduced(logmeanexp(log_w), reduction)
        look_at_loss(loss, x, lik, mask, unpacked, due=due)
        return loss, weights
    p, scale, x, log_ratio, mask, leading = _check_params(params, x, log_ratio, lik, mask)
    due = is_due(p, lik)
    if due:
        look_at_params(p, lik)
    per_row_scale = scale is not None and scale.dim() != 3 and reduction == "none"
    # The fused pass stores the gradient before the upstream one is known: float16 would lose what
    # a loss scale is there to keep.
    small = p.dtype == torch.float16
    fused = needs_grad(p, scale) and not needs_grad(x) and not per_row_scale and not small
    if fused and not is_transformed(p, scale, x, log_ratio):
        # Neither a leaf nor a view of one: that memory is a parameter's.
        owner = p if p._base is None else p._base
        safe = p.is_contiguous() and not owner.is_leaf and not torch.compiler.is_compiling()
        overwrite = overwrite_params if safe else False
        loss, weights = call(
            _IWAELoss, p, scale, x, log_ratio, lik.kernel, reduction, overwrite, mask
        )
        look_at_loss(loss, x, lik, mask, () if overwrite else (p, scale), due=due)
        return loss.view(leading[:-1]) if reduction == "none" else loss, weights
    bound = _mean_of_rows(log_weights_of_rows(p, scale, x, log_ratio, lik.kernel, mask))
    loss = _reduced(bound.view(leading[:-1]), reduction)
    look_at_loss(loss, x, lik, mask, (p, scale), due=due)
    return loss, None


def _reduced(bound: Tensor, reduction: str) -> Tensor:
    # Not neg_: torch 2.11's compiler returns a forward pass's intermediates too, and of a tensor
    # returned twice it loses the gradient.
    if reduction == "none":
        return -bound
    return -(bound.mean() if reduction == "mean" else bound.sum())
