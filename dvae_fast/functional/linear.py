"""A decoder's linear layers and its likelihood in one pass."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor

from dvae_fast import ops as _ops  # noqa: F401  (registers the operators)
from dvae_fast._checks import (
    check_choice,
    check_float,
    check_same,
    check_shape,
    values_are_checked,
)
from dvae_fast.functional._autograd import (
    again,
    autocast_dtype,
    call,
    graph_is_asked,
    is_transformed,
    maskable,
    needs_function,
    needs_grad,
    operator,
    recordable,
    save,
)
from dvae_fast.functional._rows import check_mask, check_rows, observed
from dvae_fast.functional.log_weights import check_scale, log_weights, log_weights_of_rows
from dvae_fast.functional.softplus import softplus
from dvae_fast.likelihoods import Likelihood, get_likelihood

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    Scale = Tensor | float | Sequence[Tensor | float]

__all__ = [
    "DENSE_ACTIVATIONS",
    "linear_log_weights",
    "mlp_log_weights",
    "takes_layers_whole",
    "with_scale",
]

_linear_log_weights = maskable(operator, "linear_log_weights")
_linear_backward = maskable(operator, "linear_log_weights_backward")
_mlp_log_weights = maskable(operator, "mlp_log_weights")


def _row(t: Tensor, i: int) -> Tensor:
    """Row i's of (rows, …), which repeat."""
    return t[i % len(t)].unsqueeze(0)


def _layer_by_layer(hidden: Tensor, weight: Tensor, bias: Tensor | None, *rest: Any) -> Tensor:
    """The same, holding the layer's output: for transforms and second derivatives."""
    return log_weights_of_rows(torch.nn.functional.linear(hidden, weight, bias), *rest)


class _LinearLogWeights(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, *operands: Any) -> Tensor:
        *saved, _, ctx.kind, mask = operands  # all but log_ratio
        save(ctx, *saved, mask)
        return cast("Tensor", _linear_log_weights(*operands))

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        hidden, weight, bias, scale, x, mask = ctx.saved_tensors
        if graph_is_asked():

            def plain(*layer: Any) -> Tensor:
                args = (*layer, x, torch.zeros_like(grad), ctx.kind, mask)
                return _layer_by_layer(*args)

            return *again(plain, (hidden, weight, bias, scale), grad), None, grad, None, None
        grads = _linear_backward(grad, hidden, weight, bias, scale, x, ctx.kind, mask)
        grad_hidden, grad_weight, grad_bias, grad_scale = grads
        return (
            grad_hidden,
            grad_weight,
            grad_bias if bias is not None else None,
            grad_scale if scale is not None else None,
            None,
            grad,
            None,
            None,
        )


def _must_be_seen(lik: Likelihood) -> bool:
    """Whether the layer's output is to be looked at, whose values may be no parameters."""
    return values_are_checked() and lik.restricts_params


def linear_log_weights(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    x: Tensor,
    log_ratio: Tensor,
    likelihood: str | Likelihood = "bernoulli",
    mask: Tensor | None = None,
    *,
    scale: Scale | None = None,
) -> Tensor:
    """`log_weights` of a decoder's last linear layer, never holding its (B, K, D) output.

    The layer runs in row tiles that stay in cache and the likelihood is taken from each tile;
    the backward pass recomputes the tiles.

    Args:
        hidden: input of the layer, (*L, B, K, H).
        weight, bias: (D, H) and (D,) or None, as in `torch.nn.Linear`.
        x, log_ratio, likelihood, mask: as for `log_weights`. Of several parameters the layer gives
            the first, of a pair (mean, scale) the mean.
        scale: the scale, required where the likelihood has one: a number or a tensor of 1 or D
            elements.

    A likelihood without a kernel takes the layer's whole output and then `log_weights`, which is
    differentiable in x too. There the scale is whatever `log_weights` takes, and of more than two
    parameters a tuple of all but the first.

    Returns:
        (*L, B, K) in nats; differentiable in hidden, weight, bias, scale and log_ratio.

    Raises:
        TypeError, ValueError: naming the argument, the rule and the value.
    """
    for name, t in (("hidden", hidden), ("weight", weight), ("bias", bias)):
        if name != "bias" or t is not None:
            check_float(name, cast("Tensor", t))
    dtype = autocast_dtype(hidden)
    if dtype is not None:
        hidden, weight = hidden.to(dtype), weight.to(dtype)
        bias = None if bias is None else bias.to(dtype)
    if hidden.dim() < 3:
        raise ValueError(f"hidden must have shape (*L, B, K, H), got {tuple(hidden.shape)}")
    _check_layer("weight", weight, "bias", bias, hidden, "hidden", hidden.shape[-1], "(D, H)")
    lik = get_likelihood(likelihood)
    _check_has_scale(lik, scale)
    if lik.kernel is None or _must_be_seen(lik):
        first = torch.nn.functional.linear(hidden, weight, bias)
        return log_weights(with_scale(first, scale), x, log_ratio, lik, mask)
    x, log_ratio, scale, mask = _check_output(
        weight.shape[0], x, log_ratio, scale, lik, mask, hidden, "hidden"
    )
    leading = hidden.shape[:-1]
    hidden = hidden.reshape(math.prod(leading[:-1]), *hidden.shape[-2:])
    args = (hidden, weight, bias, scale, x, log_ratio, lik.kernel, mask)
    tensors = (hidden, weight, bias, scale, log_ratio)
    if is_transformed(*tensors, x):
        out = _layer_by_layer(*args)
    elif needs_grad(*tensors):
        out = call(_LinearLogWeights, *args)
    else:
        out = _linear_log_weights(*args)
    return out.view(leading)


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
        check_float(name, t)
        if name == weight_name and (t.dim() != 2 or t.shape[1] != inputs):
            raise ValueError(
                f"{name} must have shape {shape} with {shape[-2]} = {inputs} as in {of_name}, "
                f"got {tuple(t.shape)}"
            )
        check_same(name, t, of_name, of)
        if t.dtype != of.dtype:
            raise TypeError(f"{name} must have {of_name}'s dtype, {of.dtype}, got {t.dtype}")
        if name == bias_name:
            check_shape(name, t, (weight.shape[0],), f"({shape[1]},)")


def with_scale(first: Tensor, scale: Any) -> Any:
    """All parameters: the first, and those after it, one or a tuple of them, if there are any."""
    if scale is None:
        return first
    return (first, *scale) if isinstance(scale, (tuple, list)) else (first, scale)


def _check_has_scale(lik: Likelihood, scale: Any) -> None:
    if len(lik.params) == 1:
        if scale is not None:
            raise ValueError(
                f"scale must be None for a {type(lik).__name__} likelihood, which has none, "
                f"got {scale}"
            )
    elif scale is None:
        raise ValueError(f"scale must be given for a {type(lik).__name__} likelihood, got None")


def _check_output(
    size: int,
    x: Any,
    log_ratio: Any,
    scale: Any,
    lik: Likelihood,
    mask: Any,
    of: Tensor,
    of_name: str,
) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
    """x, log_ratio, scale and mask of linear layers that end in `size` outputs, after checks."""
    leading = tuple(of.shape[:-1])
    x, log_ratio = check_rows(x, log_ratio, leading, size, of, of_name)
    mask = check_mask(mask, leading, size, of, of_name)
    if needs_grad(x):
        raise ValueError("x must not require a gradient: none is made for it")
    if scale is not None:
        given = scale
        scale = check_scale(scale, of, (*leading, size), mask)
        if scale.dim() == 3:
            raise ValueError(
                f"scale must have 1 or D = {size} elements here, "
                f"got {tuple(cast('Tensor', given).shape)}"
            )
    if values_are_checked():
        lik.check_support(observed(x, mask))
    return x, log_ratio, scale, mask


def takes_layers_whole(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether `mlp_log_weights` holds no layer's output there, where no gradient is asked for."""
    return device.type == "cpu" and dtype != torch.float16


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
    mask: Tensor | None = None,
    *,
    activation: str = "softplus",
    scale: Scale | None = None,
) -> Tensor:
    """`log_weights` of a decoder of linear layers, holding none of their outputs on a CPU.

    There, but in float16, and where no gradient is asked for, each thread takes a few rows at a
    time through all layers, in its own cache. Elsewhere the hidden layers run one after another,
    and the last one in `linear_log_weights`. In bfloat16 sums, and the activations made of them,
    are float32, of which the next layer gets what rounding leaves; the products are those of
    float32 on a CPU without instructions for bfloat16 (see `build_info`).

    Args:
        z: latents, (*L, B, K, Z).
        layers: weight (O, I) and bias (O,) or None of each, as in `torch.nn.Linear`; I is Z at
            first, and O is D in the end. The first bias may be (B, O), one for each example.
        x, log_ratio, likelihood, mask, scale: as for `linear_log_weights`.
        activation: after every layer but the last, one of softplus, relu, tanh.

    Returns:
        (*L, B, K) in nats; differentiable in z, layers, scale and log_ratio.

    Raises:
        TypeError, ValueError: naming the argument, the rule and the value.
    """
    check_float("z", z)
    if z.dim() < 3:
        raise ValueError(f"z must have shape (*L, B, K, Z), got {tuple(z.shape)}")
    check_choice("activation", activation, DENSE_ACTIVATIONS)
    layers, shift = list(layers), None
    if not layers:
        raise ValueError("layers must hold at least one layer, got none")
    for i, layer in enumerate(layers):
        if not isinstance(layer, (tuple, list)) or len(layer) != 2:
            raise TypeError(
                f"layers must hold pairs (weight, bias), got {type(layer).__name__} at {i}"
            )
        check_float(f"weight of layer {i}", layer[0])
        if layer[1] is not None:
            check_float(f"bias of layer {i}", layer[1])
    z = recordable(z)
    layers = [(recordable(w), None if b is None else recordable(b)) for w, b in layers]
    first = layers[0][1]
    if first is not None and first.dim() == 2:
        weight, shift = layers[0][0], first
        if first.shape != (z.shape[-3], weight.shape[0]):
            raise ValueError(
                f"bias of layer 0 must have shape (O,) or (B, O) = {(z.shape[-3], len(weight))}, "
                f"got {tuple(first.shape)}"
            )
        layers[0] = (weight, first[0] if len(first) else first.new_zeros(len(weight)))
    dtype = autocast_dtype(z)
    if dtype is not None:
        z, shift = z.to(dtype), None if shift is None else shift.to(dtype)
        layers = [(w.to(dtype), None if b is None else b.to(dtype)) for w, b in layers]
    inputs = z.shape[-1]
    for i, (weight, bias) in enumerate(layers):
        source = "z" if i == 0 else f"layer {i - 1}"
        _check_layer(
            f"weight of layer {i}", weight, f"bias of layer {i}", bias, z, source, inputs, "(O, I)"
        )
        inputs = weight.shape[0]
    every = (scale, shift, *(t for layer in layers for t in layer))
    tensors = [t for t in every if isinstance(t, Tensor)]
    lik = get_likelihood(likelihood)
    _check_has_scale(lik, scale)
    whole = takes_layers_whole(z.device, z.dtype) and lik.kernel is not None
    whole = whole and not _must_be_seen(lik)
    if not whole or needs_function(z, log_ratio, *tensors):
        if shift is not None and len(layers) == 1:
            params = torch.nn.functional.linear(z, layers[0][0]) + shift.unsqueeze(-2)
            return log_weights(with_scale(params, scale), x, log_ratio, lik, mask)
        hidden = z
        for i, (weight, bias) in enumerate(layers[:-1]):
            if i == 0 and shift is not None:
                hidden = torch.nn.functional.linear(hidden, weight) + shift.unsqueeze(-2)
            else:
                hidden = torch.nn.functional.linear(hidden, weight, bias)
            hidden = DENSE_ACTIVATIONS[activation](hidden)
        return linear_log_weights(hidden, *layers[-1], x, log_ratio, lik, mask, scale=scale)
    x, log_ratio, scale, mask = _check_output(inputs, x, log_ratio, scale, lik, mask, z, "z")
    leading = z.shape[:-1]
    rows = z.reshape(math.prod(leading[:-1]), *z.shape[-2:])
    weights = [weight for weight, _ in layers]
    biases = [z.new_empty(0) if bias is None else bias for _, bias in layers]

    def run(rows: Tensor, x: Tensor, log_ratio: Tensor, mask: Tensor | None) -> Tensor:
        of_rows = (x, log_ratio, lik.kernel, mask)
        return cast("Tensor", _mlp_log_weights(rows, weights, biases, activation, scale, *of_rows))

    if shift is None or not len(rows):
        return run(rows, x, log_ratio, mask).view(leading)
    # Example by example: some 20 µs each, against 2 µs a row of the usual network.
    parts = []
    for i in range(len(rows)):
        biases[0] = shift[i % len(shift)]
        some = None if mask is None else _row(mask, i)
        parts.append(run(_row(rows, i), _row(x, i), _row(log_ratio, i), some))
    return torch.cat(parts).view(leading)
