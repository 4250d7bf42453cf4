"""The loss of a model of perceptrons with all its gradients in one pass over the batch.

Where nothing but plain layers stands between the data and the bound, `torch.ops.dvae_fast.mlp_loss`
makes the loss and every gradient at once on a CPU, holding no layer's output of a whole batch; its
backward pass hands them out. Whatever it does not know goes the usual way, layer by layer.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.utils._device import DeviceContext

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
    without_autocast,
)
from dvae_fast.functional._looks import is_due, is_outside, look_at_loss
from dvae_fast.likelihoods import Likelihood
from dvae_fast.models.base import Autoencoder
from dvae_fast.models.decoders import splits
from dvae_fast.models.encoders import GaussianEncoder
from dvae_fast.models.layers import Layers, hooked
from dvae_fast.objectives.objective import Term

if TYPE_CHECKING:
    from dvae_fast.corruptions import Corruption
    from dvae_fast.objectives import Objective

__all__ = ["Pass", "one_pass"]

_op: Any = torch.ops.dvae_fast

_INSIDE = (Term(1.0, 1.0),)


class _Network(NamedTuple):
    tensors: list[Tensor]  # weights and biases in turn, a bias of no elements for none
    activation: str  # "" without hidden layers


# More rows than this are a mistake: layer by layer they fail at once, for want of memory; here they
# would take their time.
_MOST_ROWS = 2**28


def _network(part: Any, dtype: torch.dtype, inputs: int, outputs: int) -> _Network | None:
    """Its layers, if calling trunk and output does what the operator does with such layers."""
    found = Layers.of(part)
    if found.activation is None:
        return None
    tensors: list[Tensor] = []
    given = iter(found.parameters())
    for weight, bias in zip(given, given, strict=True):
        weight = cast("Tensor", weight)
        shape = weight.shape
        if len(shape) != 2 or shape[1] != inputs or not _is_plain(weight, dtype):
            return None
        inputs = shape[0]
        if bias is None:
            bias = weight.new_empty(0)
        elif bias.shape != (inputs,) or not _is_plain(bias, dtype):
            return None
        tensors += (weight, bias)
    if inputs != outputs:
        return None
    return _Network(tensors, found.activation if len(tensors) > 2 else "")


def _is_plain(t: Tensor, dtype: torch.dtype) -> bool:
    return (
        t.dtype == dtype
        and t.is_cpu
        and t.layout is torch.strided
        and type(t) is nn.Parameter
        and t.numel() > 0
    )


@lru_cache(maxsize=64)
def _bound(objective: Objective) -> tuple[bool, bool, bool, bool] | None:
    """outside, analytic, drops_score and doubly, if the operator has the bound."""
    bound, estimator = objective.bound, objective.gradient
    if estimator.score_function or objective.splits:
        return None
    if bound.joint or bound.mixture or objective.free_bits:
        return None
    if not bound.outside and objective.generative != _INSIDE:
        return None
    return bound.outside, bound.analytic, estimator.drops_score, objective.rescales


def _corruption(
    corruption: Corruption | None, dtype: torch.dtype
) -> tuple[str, Tensor, Tensor | None] | None:
    """kind, parameter and salt, if a kernel draws it and nothing learns it."""
    if corruption is None or type(corruption) is Identity:
        return "identity", torch.empty(0, device="cpu"), None
    if not isinstance(corruption, FusedCorruption) or "draw" in corruption.__dict__:
        return None
    if type(corruption).draw is not FusedCorruption.draw or corruption.parameter.requires_grad:
        return None
    parameter, salt = corruption._on(torch.device("cpu"))
    return corruption.kind, parameter.to(dtype) if corruption.additive else parameter, salt


class _Noted(NamedTuple):
    """What `model.loss` was asked, and of what, to ask it again."""

    of: type[Any]
    state: dict[str, Any]  # what a trainer sets may be another by then
    x: Tensor
    key: Tensor
    first_example: int
    versions: tuple[int | None, ...]

    @classmethod
    def make(cls, model: Any, x: Tensor, key: Tensor, first_example: int) -> _Noted:
        versions = tuple(_version(t) for t in (x, key))
        return cls(type(model), dict(model.__dict__), x, key, first_example, versions)

    def loss(self, layers: list[Tensor]) -> Tensor:
        """Layer by layer, by these weights and biases, a tensor for each place where one is read:
        what the modules hold now may be others, and one that two of them share has a gradient from
        each."""
        for name, t, version in zip(("x", "seed"), (self.x, self.key), self.versions, strict=True):
            if _version(t) != version:
                raise RuntimeError(
                    f"{name} must not be written to between a loss and a derivative of its "
                    "gradient, got one that was"
                )
        model = object.__new__(self.of)
        model.__dict__.update(self.state, _modules=dict(self.state["_modules"]))
        given = iter(layers)
        for part in ("encoder", "decoder"):
            model._modules[part] = twin = _twin(model._modules[part])
            for layer in (*list(twin.trunk._modules.values())[::2], twin.output):
                weight, bias = next(given), next(given)
                layer._parameters["weight"] = weight
                layer._parameters["bias"] = bias if bias.numel() else None
        with torch.enable_grad(), without_autocast(self.x):
            return Autoencoder._loss(model, self.x, self.key, self.first_example)


def _version(t: Tensor) -> int | None:
    return None if t.is_inference() else t._version


def _twin(module: nn.Module) -> Any:
    """Another of the same parameters and buffers, whose own may be replaced."""
    twin = object.__new__(type(module))
    parts = {name: m and _twin(m) for name, m in module._modules.items()}
    twin.__dict__.update(module.__dict__, _modules=parts, _parameters=dict(module._parameters))
    return twin


class _OnePass(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, noted: _Noted, args: Any, *layers: Tensor) -> Tensor:
        count = len(args[1])
        loss, ctx.grads = _op.mlp_loss(*args[0], layers[:count], layers[count:], *args[2:])
        ctx.noted = noted
        ctx.save_for_backward(*layers)
        return cast("Tensor", loss)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        need = ctx.needs_input_grad[2:]
        layers = ctx.saved_tensors  # an error of torch's own where the graph was freed
        if graph_is_asked():
            with torch.enable_grad():
                own = [t.view_as(t) for t in layers]
            wanted = [t for t, needed in zip(own, need, strict=True) if needed]
            made = iter(torch.autograd.grad(ctx.noted.loss(own), wanted, grad, create_graph=True))
            return None, None, *(next(made) if needed else None for needed in need)
        grads = ctx.grads
        if graph_is_kept():
            grads = [g.clone() for g in grads]
        else:
            ctx.grads = ctx.noted = None  # whoever adds them up may keep them
        if is_wrapped(grad):  # many upstream gradients of one graph, by vmap
            grads = [g * grad for g in grads]
        elif (factor := grad.item()) != 1:
            for g in grads:
                g.mul_(factor)
        return None, None, *(g if needed else None for g, needed in zip(grads, need, strict=True))


def _is_looked_on() -> bool:
    """Whether a mode is to see each function called, or each operator."""
    if torch._C._len_torch_dispatch_stack():
        return True
    if not torch._C._len_torch_function_stack():
        return False
    modes = torch.overrides._get_current_function_mode_stack()
    return any(type(mode) is not DeviceContext for mode in modes)  # of a default device


class Pass(NamedTuple):
    """A loss that can be made in one pass, and all that the operators are told of it."""

    model: Any
    x: Tensor
    key: Tensor
    first_example: int
    #: weights and biases in turn, those of no elements for none; the encoder's before the decoder's
    layers: tuple[Tensor, ...]
    args: tuple[Any, ...]

    def loss(self) -> Tensor:
        """As `model.loss` gives it."""
        return self._loss(is_due(self.x, self.model.likelihood))

    def _loss(self, due: bool) -> Tensor:
        noted = _Noted.make(self.model, self.x, self.key, self.first_example)
        loss = cast("Tensor", call(_OnePass, noted, self.args, *self.layers))
        look_at_loss(loss, self.x, self.model.likelihood, due=due)
        return loss

    def step(self, *adam: Any) -> tuple[Tensor, Tensor]:
        """The loss and the norm of its gradients, by which the layers are updated: see
        `reference.adam_`."""
        count = len(self.args[1])
        head, layers, likelihood = self.args[0], self.layers, self.model.likelihood
        due = is_due(self.x, likelihood)
        if due and is_outside(self.x, likelihood):
            # Warns: an error, if that is asked for, is to leave everything as it was.
            self._loss(due)
        with torch.no_grad():
            loss, norm = _op.mlp_step_(*head, layers[:count], layers[count:], *self.args[2:], *adam)
        look_at_loss(loss, self.x, likelihood, due=due)
        return loss, norm


def one_pass(model: Any, x: Tensor, key: Tensor, first_example: int) -> Pass | None:
    """What makes `model.loss`, or None where it is to be made layer by layer.

    Args:
        model: whose encoder and decoder are called with nothing but x̃ and z, one after the other.
        x: (B, D).
        key, first_example: of the noise.
    """
    if not torch.is_grad_enabled() or not x.is_cpu or not ops.library_loaded():
        return None
    if torch.compiler.is_compiling() or _is_looked_on():
        return None
    if type(x) is not Tensor or x.requires_grad or not x.numel():
        return None
    # Autocast asks for faster matrices, and bfloat16 is what may be.
    cast_to = autocast_dtype(x)
    if x.dtype not in (torch.float32, torch.float64) or cast_to not in (None, torch.bfloat16):
        return None
    encoder, decoder = model.encoder, model.decoder
    if type(encoder) is not GaussianEncoder or hooked(encoder) or encoder.log1p:
        return None
    if encoder.covariance != "diagonal" or not splits(decoder) or decoder.context is not None:
        return None
    bound, kl_weight = _bound(model.objective), model.kl_weight
    corruption = model.corruption
    noise = _corruption(corruption, x.dtype)
    likelihood = model.likelihood
    if not isinstance(likelihood, Likelihood):  # a name, or what is none
        return None
    kernel = likelihood.kernel
    if bound is None or noise is None or kernel is None or len(likelihood.params) != 1:
        return None
    if not isinstance(kl_weight, (int, float)) or (kl_weight != 1 and not bound[0]):
        return None
    size, latent = x.shape[1], encoder.latent
    inference = _network(encoder, x.dtype, size, 2 * latent)
    generative = _network(decoder, x.dtype, latent, size)
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
    if corruption is not None:
        corruption.check(x)
    if values_are_checked():
        likelihood.check_support(x)
    kind, parameter, salt = noise
    head = (x, kind, parameter, salt, key, *counts, first_example)
    activation = next(iter(activations), "none")
    rounded = cast_to is not None
    args = (head, inference.tensors, activation, kernel, *bound, float(kl_weight), rounded)
    return Pass(model, x, key, first_example, layers, args)
