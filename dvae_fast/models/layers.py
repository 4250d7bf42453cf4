"""Layers and their initial values; evaluation mode; hooks.

Weights start as Glorot-uniform and biases as zero, as in the importance-weighted autoencoder's
first code (Burda et al., arXiv 1509.00519).
"""

from __future__ import annotations

from contextlib import contextmanager
from itertools import pairwise
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary, ref

from torch import Tensor, nn

from dvae_fast import functional
from dvae_fast._checks import check_choice, check_sizes

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

__all__ = [
    "ACTIVATIONS",
    "MLP",
    "Layers",
    "Softplus",
    "by_rows",
    "dense_layers",
    "evaluating",
    "hooked",
    "linear",
    "of_context",
    "through",
]


class Softplus(nn.Module):
    """log(1 + e^x), fused: see `dvae_fast.functional.softplus`."""

    def forward(self, x: Tensor) -> Tensor:
        """The shape of x."""
        return functional.softplus(x)


#: Constructors of the non-linearities by the name used in configurations.
ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "softplus": Softplus,
    "tanh": nn.Tanh,
    "relu": nn.ReLU,
    "leaky_relu": nn.LeakyReLU,
    "elu": nn.ELU,
    "silu": nn.SiLU,
    "gelu": nn.GELU,
}


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Evaluation mode, and each submodule's own mode again afterwards."""
    # Frozen TorchScript has no mode.
    modes = [(module, module.training) for module in model.modules() if hasattr(module, "training")]
    try:
        model.eval()
    except NotImplementedError:  # exported, or frozen TorchScript: none of its own parts has a mode
        for module, training in modes:
            if training:
                module.training = False
    try:
        yield
    finally:
        for module, training in modes:
            if module.training != training:
                module.training = training


def _activation(name: str) -> Callable[[], nn.Module]:
    check_choice("activation", name, ACTIVATIONS)
    return ACTIVATIONS[name]


def linear(inputs: int, outputs: int) -> nn.Linear:
    """A linear layer as all here start."""
    layer = nn.Linear(inputs, outputs)
    nn.init.xavier_uniform_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer


class MLP(nn.Sequential):
    """Linear layers, each followed by the activation: (..., sizes[0]) → (..., sizes[-1]).

    One size alone makes no layer: the identity.

    Raises:
        TypeError, ValueError: if a size is not an int >= 1, or the activation is unknown.
    """

    def __init__(self, sizes: Sequence[int], activation: str = "softplus") -> None:
        make = _activation(activation)
        sizes = check_sizes("sizes", sizes)
        if not sizes:
            raise ValueError("sizes must hold at least one size, got none")
        layers = [f for i, o in pairwise(sizes) for f in (linear(i, o), make())]
        super().__init__(*layers)


def hooked(module: nn.Module) -> bool:
    """Whether calling `module` does more, or something else, than its class's forward."""
    return _is_hooked(module) or _every_module_is_hooked()


def _is_hooked(module: nn.Module) -> bool:
    own = module.__dict__
    return bool(
        own["_forward_hooks"]
        or own["_forward_pre_hooks"]
        or own["_backward_hooks"]
        or own["_backward_pre_hooks"]
        or "forward" in own
    )


def _every_module_is_hooked() -> bool:
    every = nn.modules.module
    return bool(
        every._global_forward_hooks
        or every._global_forward_pre_hooks
        or every._global_backward_hooks
        or every._global_backward_pre_hooks
    )


# What the operators of dense layers know; torch's softplus is linear from 20 on, where the other
# exceeds it by 2e-9.
_DENSE: dict[type[nn.Module], str] = {
    Softplus: "softplus",
    nn.Softplus: "softplus",
    nn.ReLU: "relu",
    nn.Tanh: "tanh",
}


def dense_layers(trunk: Any, output: nn.Linear) -> tuple[list[nn.Linear], str] | None:
    """The linear layers of a network that is plain ones alone, each hidden one followed by the
    same activation, and that activation's name; None for any other."""
    if type(trunk) not in (nn.Sequential, MLP) or hooked(trunk):
        return None
    parts = list(trunk)
    linears, others = parts[::2], parts[1::2]
    kinds = {_DENSE.get(type(part), "") for part in others} or {"softplus"}
    plain = (
        len(linears) == len(others)
        and all(type(part) is nn.Linear for part in linears)
        # Not a quantised or distributed tensor.
        and all(type(p) is nn.Parameter for part in (*linears, output) for p in part.parameters())
        and len(kinds) == 1
        and not any(hooked(part) for part in parts)
        and all(p.beta == 1 and p.threshold >= 20 for p in others if isinstance(p, nn.Softplus))
    )
    name = kinds.pop()
    return ([*linears, output], name) if plain and name else None


class Layers:
    """What `dense_layers` found in a network's ``trunk`` and ``output``, and its parameters, for as
    long as looking again would find the same: to see that takes a third of the time.

    It keeps none of them alive: a hook of one of them may hold the network, which would hold this.
    """

    def __init__(self, part: Any) -> None:
        trunk, output = part.trunk, part.output
        #: None of any but plain dense layers
        self.activation: str | None = None
        if type(output) is not nn.Linear or hooked(output):
            return
        found = dense_layers(trunk, output)
        if found is None or not all(_reads_its_parameters(m) for m in found[0]):
            return
        layers, self.activation = found
        self._trunk, self._output = ref(trunk), ref(output)
        parts = tuple(trunk._modules.values())
        self._parts = tuple(ref(m) for m in parts)
        self._watched = tuple((ref(m), type(m)) for m in (trunk, output, *parts))
        # Not of tensors: torch swaps none that a weak reference is to.
        self._linear = tuple(ref(m) for m in layers)
        self._softplus = tuple(ref(m) for m in parts if isinstance(m, nn.Softplus))

    def parameters(self) -> list[Tensor | None]:
        """Weights and biases in turn."""
        layers: list[Any] = [r() for r in self._linear]
        return [m._parameters[name] for m in layers for name in ("weight", "bias")]

    def hold(self, part: Any) -> bool:
        """Whether that is still so."""
        if self.activation is None or _every_module_is_hooked():
            return False
        trunk: Any = self._trunk()
        if part.trunk is not trunk or part.output is not self._output():
            return False
        parts = [r() for r in self._parts]
        if trunk is None or list(trunk._modules.values()) != parts:  # modules are equal if the same
            return False
        for watched, kind in self._watched:
            module: Any = watched()
            if type(module) is not kind or _is_hooked(module):
                return False
        if not all(_reads_its_parameters(r()) for r in self._linear):
            return False
        return all(m.beta == 1 and m.threshold >= 20 for r in self._softplus if (m := r()))

    @classmethod
    def of(cls, part: Any) -> Layers:
        """Those of a network with a ``trunk`` and an ``output``."""
        found = _found.get(part)
        if found is None or not found.hold(part):
            _found[part] = found = cls(part)
        return found


def _reads_its_parameters(layer: Any) -> bool:
    """Whether a linear layer's weight and bias are parameters, or no bias: not a buffer or an
    attribute, which may stand before a parameter, too."""
    own, parameters = layer.__dict__, layer._parameters
    if parameters.get("weight") is None or "bias" not in parameters:
        return False
    return "weight" not in own and "bias" not in own


_found: WeakKeyDictionary[nn.Module, Layers] = WeakKeyDictionary()


def of_context(context_size: int, outputs: int) -> nn.Linear | None:
    """What a context adds to a first layer's outputs; None without one."""
    if context_size == 0:
        return None
    layer = nn.Linear(context_size, outputs, bias=False)
    nn.init.xavier_uniform_(layer.weight)
    return layer


def through(layers: Iterable[nn.Module], t: Tensor, more: Tensor) -> Tensor:
    """t through the layers; `more`, which broadcasts, is added to what the first of them gives.

    So a context (B, 1, C) of samples (B, K, Z) costs its own product of B rows, and is not
    repeated.
    """
    first, *rest = layers
    t = first(t) + more
    for layer in rest:
        t = layer(t)
    return t


def by_rows(module: nn.Module, t: Tensor, context: Tensor | None = None) -> Any:
    """What a module of one's own makes of the rows of t, (..., n), in t's leading dimensions; with
    a context, (..., C), that broadcasts to those, it is called with its rows too."""
    leading = t.shape[:-1]
    rows = t.reshape(-1, t.shape[-1])
    if context is None:
        result = module(rows)
    else:
        told = context.expand(*leading, context.shape[-1])
        result = module(rows, told.reshape(-1, told.shape[-1]))
    if len(leading) == 1:
        return result

    def unflattened(part: Any) -> Any:
        by_row = isinstance(part, Tensor) and part.dim() > 1 and len(part) == len(rows)
        return part.reshape(*leading, *part.shape[1:]) if by_row else part

    if isinstance(result, (tuple, list)):
        return tuple(unflattened(part) for part in result)
    return unflattened(result)
