"""The modules that a model is made of: how they are found, their mode, dtype and device."""

from __future__ import annotations

import functools
import types
from collections import Counter
from contextlib import ExitStack, contextmanager, suppress
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn

from dvae_fast.models.layers import evaluating

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

__all__ = [
    "always_training",
    "evaluating_all",
    "float_dtype",
    "modules_behind",
    "ordinary_tensors",
    "place_of",
]


def modules_behind(parts: Any, depth: int = 3) -> list[nn.Module]:
    """The modules that are `parts`, or that these refer to: as the owner of a method, attributes,
    a closure's variables, globals that a function names, arguments of a `functools.partial`."""
    found: dict[int, nn.Module] = {}

    def look(thing: Any, left: int) -> None:
        if isinstance(thing, nn.Module):
            found[id(thing)] = thing
        elif left > 0:
            for other in _referred_to(thing):
                look(other, left - 1)

    for part in parts:
        look(part, depth)
    return list(found.values())


def _referred_to(thing: Any) -> Iterator[Any]:
    if isinstance(thing, (list, tuple)):
        yield from thing
    elif isinstance(thing, dict):
        yield from thing.values()
    elif isinstance(thing, functools.partial):
        yield from (thing.func, *thing.args, *thing.keywords.values())
    elif isinstance(thing, types.MethodType):
        yield thing.__self__
    elif isinstance(thing, types.FunctionType):
        for cell in thing.__closure__ or ():
            with suppress(ValueError):  # empty
                yield cell.cell_contents
        names = thing.__code__.co_names
        yield from (thing.__globals__[name] for name in names if name in thing.__globals__)
    elif not isinstance(thing, (type, types.ModuleType, Tensor)):
        yield from getattr(thing, "__dict__", {}).values()


# --- mode -----------------------------------------------------------------------------------------


@contextmanager
def evaluating_all(modules: Iterable[nn.Module]) -> Iterator[None]:
    """Every module in evaluation mode, and each one's own mode again afterwards."""
    with ExitStack() as stack:
        for module in modules:
            stack.enter_context(evaluating(module))
        yield


def always_training(modules: Iterable[nn.Module]) -> list[str]:
    """The names of exported modules whose graphs hold an operator that is told to train, such as
    dropout: no mode changes that."""
    return [
        f"{type(part).__name__} ({node.name})"
        for module in modules
        for part in module.modules()
        if isinstance(part, torch.fx.GraphModule)
        for node in part.graph.nodes
        if _is_told_to_train(node)
    ]


def _is_told_to_train(node: torch.fx.Node) -> bool:
    schema = getattr(node.target, "_schema", None)
    if schema is None:
        return False
    given = dict(zip((a.name for a in schema.arguments), node.args, strict=False))
    return any({**given, **node.kwargs}.get(name) is True for name in ("train", "training"))


# --- numbers --------------------------------------------------------------------------------------


def _tensors(modules: Iterable[nn.Module]) -> tuple[list[Tensor], list[Tensor]]:
    modules = list(modules)
    parameters: list[Tensor] = [p for m in modules for p in m.parameters()]
    return parameters, [b for m in modules for b in m.buffers()]


def float_dtype(modules: Iterable[nn.Module]) -> torch.dtype | None:
    """The dtype that most numbers of the floating-point parameters have, or of the buffers where
    there are none; None of neither. A counter, or a temperature in float64, says nothing of the
    model."""
    for tensors in _tensors(modules):
        counts: Counter[torch.dtype] = Counter()
        for t in tensors:
            if t.is_floating_point():
                counts[t.dtype] += t.numel()
        if counts:
            return counts.most_common(1)[0][0]
    return None


def place_of(modules: Iterable[nn.Module]) -> torch.device | None:
    """The device of the first parameter, or buffer where there are none; None of neither."""
    parameters, buffers = _tensors(modules)
    return next((t.device for t in (*parameters, *buffers)), None)


@contextmanager
def ordinary_tensors(modules: Iterable[nn.Module]) -> Iterator[None]:
    """Copies in the place of parameters and buffers made in inference mode, which autograd cannot
    save."""
    changed: list[tuple[Any, str, Tensor]] = []
    try:
        for part in {id(p): p for m in modules for p in m.modules()}.values():
            for held in cast("tuple[Any, Any]", (part._parameters, part._buffers)):
                for name, t in list(held.items()):
                    if t is None or not t.is_inference():
                        continue
                    changed.append((held, name, t))
                    new = t.detach().clone()
                    as_parameter = isinstance(t, nn.Parameter)
                    held[name] = nn.Parameter(new, requires_grad=False) if as_parameter else new
        yield
    finally:
        for held, name, t in changed:
            held[name] = t
