"""The loss of a model of perceptrons with all its gradients in one pass over the batch.

Where nothing but plain layers stands between the data and the bound, `torch.ops.dvae_fast.mlp_loss`
makes the loss and every gradient at once on a CPU, holding no layer's output of a whole batch; its
backward pass hands them out. Whatever it does not know goes the usual way, layer by layer.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import torch
from torch import Tensor, nn

from dvae_fast import ops
from dvae_fast._checks import check_index, values_are_checked
from dvae_fast.corruptions import Identity
from dvae_fast.corruptions.basic import FusedCorruption
from dvae_fast.functional._autograd import (
    autocast_dtype,
    call,
    graph_is_asked,
    graph_is_kept,
    is_transformed,
    is_wrapped,
)
from dvae_fast.functional._looks import look_at_loss
from dvae_fast.models.decoders import splits
from dvae_fast.models.encoders import GaussianEncoder
from dvae_fast.models.layers import MLP, Softplus, hooked
from dvae_fast.objectives.objective import Term

if TYPE_CHECKING:
    from collections.abc import Callable

    from dvae_fast.corruptions import Corruption
    from dvae_fast.likelihoods import Likelihood
    from dvae_fast.objectives import Objective

__all__ = ["one_pass"]

_op: Any = torch.ops.dvae_fast

#: by the class of the layers between linear ones
_ACTIVATIONS = {Softplus: "softplus", nn.ReLU: "relu", nn.Tanh: "tanh"}
_INSIDE = (Term(1.0, 1.0),)


class _Network(NamedTuple):
    tensors: list[Tensor]  # weights and biases in turn, a bias of no elements for none
    activation: str  # "" without hidden layers


# More rows than this are a mistake: layer by layer they fail at once, for want of memory; here they
# would take their time.
_MOST_ROWS = 2**28


def _network(trunk: nn.Module, last: nn.Module, dtype: torch.dtype) -> _Network | None:
    """The layers, if calling the two does what the operator does with such layers."""
    if type(trunk) is not MLP or hooked(trunk):
        return None
    layers = [*trunk._modules.values(), last]
    tensors: list[Tensor] = []
    activation = ""
    for i, layer in enumerate(layers):
        if layer is None or hooked(layer):
            return None
        if i % 2:
            name = _ACTIVATIONS.get(type(layer), "")
            if not name or (activation and name != activation):
                return None
            activation = name
            continue
        if type(layer) is not nn.Linear:
            return None
        weight, bias = layer.weight, layer.bias
        for t in (weight, bias):
            if t is not None and (
                type(t) is not nn.Parameter or t.dtype != dtype or not t.is_cpu or not t.numel()
            ):
                return None
        tensors += [weight, weight.new_empty(0) if bias is None else bias]
    return _Network(tensors, activation)


def _bound(objective: Objective, kl_weight: Any) -> tuple[bool, bool, bool, bool, float] | None:
    """outside, analytic, drops_score, doubly and the weight, if the operator has the bound."""
    bound, estimator = objective.bound, objective.gradient
    if not isinstance(kl_weight, (int, float)) or estimator.score_function or objective.splits:
        return None
    if bound.joint or bound.mixture or objective.free_bits:
        return None
    if not bound.outside and (kl_weight != 1 or objective.generative != _INSIDE):
        return None
    return (
        bound.outside, bound.analytic, estimator.drops_score, objective.rescales, float(kl_weight),
    )  # fmt: skip


def _corruption(
    corruption: Corruption | None, dtype: torch.dtype
) -> tuple[str, Tensor, Tensor | None] | None:
    """kind, parameter and salt, if a kernel draws it and nothing learns it."""
    if corruption is None or type(corruption) is Identity:
        return "identity", torch.empty(0), None
    if not isinstance(corruption, FusedCorruption) or "draw" in type(corruption).__dict__:
        return None
    if type(corruption).draw is not FusedCorruption.draw or corruption.parameter.requires_grad:
        return None
    parameter, salt = corruption._on(torch.device("cpu"))
    return corruption.kind, parameter.to(dtype) if corruption.additive else parameter, salt


class _OnePass(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, usual: Callable[[], Tensor], args: Any, *layers: Tensor) -> Tensor:
        count = len(args[1])
        loss, ctx.grads = _op.mlp_loss(*args[0], layers[:count], layers[count:], *args[2:])
        ctx.usual = usual
        ctx.save_for_backward(*layers)
        return cast("Tensor", loss)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        need = ctx.needs_input_grad[2:]
        layers = ctx.saved_tensors  # an error of torch's own where the graph was freed
        if graph_is_asked():
            wanted = [t for t, needed in zip(layers, need, strict=True) if needed]
            with torch.enable_grad():
                loss = ctx.usual()
                made = iter(torch.autograd.grad(loss, wanted, grad, create_graph=True))
            return None, None, *(next(made) if needed else None for needed in need)
        grads = ctx.grads
        if graph_is_kept():
            grads = [g.clone() for g in grads]
        else:
            ctx.grads = None  # whoever adds them up may keep them
        if is_wrapped(grad):  # many upstream gradients of one graph, by vmap
            grads = [g * grad for g in grads]
        elif (factor := grad.item()) != 1:
            for g in grads:
                g.mul_(factor)
        return None, None, *(g if needed else None for g, needed in zip(grads, need, strict=True))


def one_pass(
    model: Any, x: Tensor, key: Tensor, first_example: int, usual: Callable[[], Tensor]
) -> Tensor | None:
    """`model.loss`, or None where it is to be made layer by layer.

    Args:
        model: whose encoder and decoder are called with nothing but x̃ and z, one after the other.
        x: (B, D).
        key, first_example: of the noise.
        usual: the same loss layer by layer, for second derivatives.
    """
    if not torch.is_grad_enabled() or not x.is_cpu or not ops.library_loaded():
        return None
    if torch.compiler.is_compiling() or torch._C._len_torch_dispatch_stack():
        return None
    if type(x) is not Tensor or x.requires_grad or not x.numel():
        return None
    if x.dtype not in (torch.float32, torch.float64) or autocast_dtype(x) is not None:
        return None
    encoder, decoder = model.encoder, model.decoder
    if type(encoder) is not GaussianEncoder or hooked(encoder) or encoder.log1p:
        return None
    if encoder.covariance != "diagonal" or not splits(decoder) or decoder.context is not None:
        return None
    bound = _bound(model.objective, model.kl_weight)
    noise = _corruption(model.corruption, x.dtype)
    kernel = model.likelihood.kernel
    if bound is None or noise is None or kernel is None or len(model.likelihood.params) != 1:
        return None
    inference = _network(encoder.trunk, encoder.output, x.dtype)
    generative = _network(decoder.trunk, decoder.output, x.dtype)
    if inference is None or generative is None:
        return None
    activations = {n.activation for n in (inference, generative)} - {""}
    layers = (*inference.tensors, *generative.tensors)
    if len(activations) > 1 or is_transformed(x, *layers):
        return None
    counts = (model.copies, model.samples)
    if not any(t.requires_grad for t in layers) or any(type(n) is not int or n < 1 for n in counts):
        return None
    if math.prod(counts) * len(x) > _MOST_ROWS:
        return None
    check_index("first_example", first_example, len(x))
    if model.corruption is not None:
        model.corruption.check(x)
    likelihood = cast("Likelihood", model.likelihood)
    if values_are_checked():
        likelihood.check_support(x)
    kind, parameter, salt = noise
    head = (x, kind, parameter, salt, key, *counts, first_example)
    activation = next(iter(activations), "none")
    args = (head, inference.tensors, activation, kernel, *bound)
    loss = cast("Tensor", call(_OnePass, usual, args, *layers))
    look_at_loss(loss, x, likelihood)
    return loss
