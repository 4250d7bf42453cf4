"""What has no kernel: log-weights by a likelihood's own `log_prob`, and the gradient in x."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor

from dvae_fast._checks import check_float, check_same, is_number, values_are_checked
from dvae_fast._dtypes import accumulation_dtype
from dvae_fast.functional._autograd import (
    apply,
    graph_is_asked,
    in_forward_mode,
    is_moved,
    is_wrapped,
    needs_grad,
    recordable,
    without_autocast,
)
from dvae_fast.functional._looks import readable
from dvae_fast.functional._of_rows import log_weights_by_operator
from dvae_fast.functional._rows import check_mask, check_rows
from dvae_fast.likelihoods.base import weighted

if TYPE_CHECKING:
    from dvae_fast.likelihoods import Likelihood

__all__ = ["check_no_gradient", "gradient_in_x", "plain_log_weights"]


def plain_log_weights(
    params: Any, x: Any, log_ratio: Any, likelihood: Likelihood, mask: Any = None
) -> Tensor:
    """`log_weights` of such a likelihood, (*L, B, K).

    Each parameter is a number or broadcasts to the others' shape, (*L, B, K, D); they and x are in
    the dtype of sums.
    """
    operands = _operands(likelihood, params)
    like = operands[0]
    shape = tuple(like.shape)
    rows, ratio = check_rows(x, log_ratio, shape[:-1], shape[-1], like, "params")
    # (B, D) is shared by leading dimensions.
    data = _by_example(rows, shape)
    mask = check_mask(mask, shape[:-1], shape[-1], like, "params")
    if likelihood.discrete:
        check_no_gradient(likelihood, data)

    def by_operator() -> Tensor:
        given = likelihood.unpack(params)
        log_w = log_weights_by_operator(likelihood, given, whole, rows, ratio, of_rows)
        return log_w.view(shape[:-1])

    whole, of_rows = operands, mask
    if mask is not None:
        _check_mask(likelihood, mask)
    if likelihood.rows is not None and not values_are_checked():
        return by_operator()
    if mask is not None:
        mask = _by_example(recordable(mask), shape)
        operands, data = _observed_alone(operands, data, mask)
    if values_are_checked():
        likelihood.check_support(data, None if mask is None else mask.expand(data.shape))
        looked = operands if mask is None else _with_something(operands, mask)
        likelihood.check_values(tuple(looked))
        if likelihood.rows is not None:
            return by_operator()
    carrier = None
    before, behind = _guards()
    if needs_grad(*operands, data):
        operands, data = [recordable(t) for t in operands], recordable(data)
        if needs_grad(data):
            data = data.expand(shape)
        *operands, data, carrier = apply(before, *operands, data)
    with without_autocast(like):
        log_p = likelihood.log_prob(tuple(operands), data)
        _check_density(log_p, likelihood, shape)
        if mask is not None:
            log_p = torch.where(mask, log_p, 0.0)
        total = log_p.to(like.dtype).sum(-1)
    if carrier is not None:
        total = cast("Tensor", apply(behind, total, carrier))
    return total + ratio.view(shape[:-1])


def _by_example(rows: Tensor, shape: tuple[int, ...]) -> Tensor:
    """(B, D) or (N, D) so that it broadcasts to the parameters' shape, (*L, B, K, D)."""
    if rows.shape[0] == shape[-3]:
        return rows.unsqueeze(-2)
    return rows.view(*shape[:-2], 1, shape[-1])


def _observed_alone(
    operands: list[Tensor], data: Tensor, mask: Tensor
) -> tuple[list[Tensor], Tensor]:
    """Parameters and x that are, where nothing was observed, those of the example's first dimension
    that was: the likelihood gets no value that it would not get anyway, and by whatever it makes of
    them nothing there has a gradient."""
    if mask.shape[-1] == 0:
        return operands, data
    first = mask.to(torch.uint8).argmax(-1, keepdim=True)
    some = mask.any(-1, keepdim=True)

    def filled(t: Tensor, otherwise: float) -> Tensor:
        taken = t.detach().gather(-1, first.expand(*t.shape[:-1], 1))
        return torch.where(mask, t, torch.where(some, taken, otherwise))

    data = data.expand(torch.broadcast_shapes(data.shape, mask.shape))
    # Of an example without any: what most parameters and most data may be.
    return [filled(t, 0.5) for t in operands], filled(data, 1.0)


def _check_mask(likelihood: Likelihood, mask: Tensor) -> None:
    """`Likelihood.check_mask`, where to look costs no wait for a GPU."""
    on_host = mask.is_cpu and not torch.compiler.is_compiling()
    if (values_are_checked() or on_host) and not is_wrapped(mask):
        likelihood.check_mask(mask)


def _with_something(operands: list[Tensor], mask: Tensor) -> list[Tensor]:
    """The rows of which something was observed, (rows, D) each."""
    some = mask.any(-1)
    return [t[some.expand(t.shape[:-1])] for t in operands]


def check_no_gradient(likelihood: Likelihood, x: Tensor) -> None:
    """Raise ValueError if a gradient of discrete data is asked for."""
    if is_moved(x):
        raise ValueError(
            f"x must not require a gradient: the {likelihood.kind} likelihood has none for it, "
            "its data being discrete"
        )


def gradient_in_x(
    grad: Tensor,
    params: Tensor,
    scale: Tensor | None,
    x: Tensor,
    likelihood: Likelihood,
    mask: Tensor | None = None,
) -> Tensor:
    """grad (N, K) times the likelihood's derivative in x, summed over samples and over the rows
    that share it: the operators' params (N, K, D) and scale, x (B, D) → (B, D)."""
    copies = params.shape[0] // max(x.shape[0], 1)
    operands = [params.to(x.dtype)]
    if scale is not None:  # of N·K·D, D or one element
        operands.append(scale.to(x.dtype))
    data = x.repeat(copies, 1).unsqueeze(1)
    if mask is not None:
        rows = mask.repeat(params.shape[0] // max(mask.shape[0], 1), 1).unsqueeze(1)
        operands = [torch.where(rows, t, 0.5) for t in operands]
        data = torch.where(rows, data, 0.5)
    derivative = likelihood.derivative_in_x(tuple(operands), data)
    if mask is not None:
        derivative = torch.where(rows, derivative, 0.0)
    each = weighted(grad.to(x.dtype).unsqueeze(-1), derivative)
    return each.sum(1).view(copies, *x.shape).sum(0)


def _operands(likelihood: Likelihood, params: Any) -> list[Tensor]:
    """The parameters in one shape, (*L, B, K, D), and the dtype of sums."""
    given = dict(zip(likelihood.params, likelihood.unpack(params), strict=True))
    tensors = {name: p for name, p in given.items() if isinstance(p, Tensor)}
    for name, p in given.items():
        if name in tensors:
            check_float(name, p)
        elif not is_number(p):
            raise TypeError(f"{name} must be a number or a tensor, got {type(p).__name__}")
    if not tensors:
        raise TypeError(f"{next(iter(given))} must be a tensor (*L, B, K, D), got a number")
    first, like = next(iter(tensors.items()))
    dtype = like.dtype
    for name, t in tensors.items():
        check_same(name, t, first, like)
        dtype = torch.promote_types(dtype, t.dtype)
    dtype = accumulation_dtype(dtype)
    shape = like.shape
    try:
        if any(t.shape != shape for t in tensors.values()):
            shape = torch.broadcast_shapes(*(t.shape for t in tensors.values()))
    except RuntimeError:
        shapes = ", ".join(f"{name} {tuple(t.shape)}" for name, t in tensors.items())
        raise ValueError(
            f"params must broadcast to one shape, (*L, B, K, D), got {shapes}"
        ) from None
    if len(shape) < 3:
        raise ValueError(f"params must have shape (*L, B, K, D), got {tuple(shape)}")
    return [
        p.to(dtype).expand(shape)
        if isinstance(p, Tensor)
        else torch.full((), float(p), dtype=dtype, device=like.device).expand(shape)
        for p in given.values()
    ]


def _check_density(log_p: Any, likelihood: Likelihood, shape: tuple[int, ...]) -> None:
    what = f"log_prob of {type(likelihood).__name__} must return log p of each element, a tensor"
    if not isinstance(log_p, Tensor):
        raise TypeError(f"{what}, got {type(log_p).__name__}")
    if log_p.shape != shape:
        raise ValueError(f"{what} of shape {shape}, got {tuple(log_p.shape)}")


# --- derivatives where a weight is zero -----------------------------------------------------------
#
# A sample that nothing depends on has a gradient of zero, whatever its density's derivatives are:
# of a density of 0 they may be infinite, and 0 · inf would be NaN. So the derivatives pass through
# `_Operands`, which drops those of the samples that `_Report`, behind the density, found to have a
# weight of zero. The carrier, whose gradient that is, makes autograd run the two in this order.


class _Operands(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(*operands: Tensor) -> tuple[Tensor, ...]:
        carrier = operands[0].new_zeros(operands[0].shape[:-1])
        return (*(t.view_as(t) for t in operands), carrier)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Any, ...]) -> None:
        pass

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        *of_operands, of_carrier = grads
        unused = of_carrier != 0
        seen = readable(of_carrier) and not is_wrapped(of_carrier)
        # Of a pass that may be differentiated the derivatives come here too, and they have no
        # part of a weight that is 0.
        ctx.again = getattr(ctx, "again", False) or graph_is_asked()
        if seen and not ctx.again:
            # A look at (B, K) mostly saves several passes over each operand.
            if not bool(unused.any()):
                return tuple(of_operands)
            unused = unused.unsqueeze(-1)
            return tuple(
                g.masked_fill(unused, 0.0) if need else None
                for g, need in zip(of_operands, ctx.needs_input_grad, strict=True)
            )
        unused = unused.unsqueeze(-1)
        # What is finite is 0 too, but may not be constant.
        return tuple(
            g.masked_fill(unused & ~g.isfinite(), 0.0) if need else None
            for g, need in zip(of_operands, ctx.needs_input_grad, strict=True)
        )


class _Report(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(log_p: Tensor, carrier: Tensor) -> Tensor:
        return log_p.view_as(log_p)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        pass

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor]:
        return grad, (grad == 0).to(grad.dtype)


# Forward mode, which torch.compile refuses to see, and in which a view must stay one.


class _OperandsMoved(_Operands):
    @staticmethod
    def forward(*operands: Tensor) -> tuple[Tensor, ...]:
        *views, carrier = _Operands.forward(*operands)
        return (*(t.clone() for t in views), carrier)

    @staticmethod
    def jvp(ctx: Any, *tangents: Tensor | None) -> tuple[Tensor | None, ...]:
        carrier = next(t[..., 0] for t in tangents if t is not None)
        given = (None if t is None else t.clone() for t in tangents)
        return (*given, torch.zeros_like(carrier))


class _ReportMoved(_Report):
    @staticmethod
    def forward(log_p: Tensor, carrier: Tensor) -> Tensor:
        return log_p.clone()

    @staticmethod
    def jvp(ctx: Any, log_p: Tensor, carrier: Tensor | None) -> Tensor:
        return log_p.clone()


def _guards() -> tuple[type[_Operands], type[_Report]]:
    return (_OperandsMoved, _ReportMoved) if in_forward_mode() else (_Operands, _Report)
