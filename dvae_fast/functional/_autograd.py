"""What the autograd functions share.

An operator's derivatives stand once, as the formula of its backward pass in `reference`:

- first-order reverse mode runs the fused kernel of that pass;
- reverse mode of it (``create_graph=True``, `torch.func.grad` of a gradient) differentiates the
  formula, for as long as anybody asks: `differentiable`;
- forward mode is its transpose: the pass is linear in the upstream gradients, so that
  J t = ∂/∂g <Jᵀg, t>;
- `torch.vmap` maps the formulas: `operator`.
"""

from __future__ import annotations

from contextlib import nullcontext
from typing import TYPE_CHECKING, Any, ClassVar, cast

import torch
from torch import Tensor
from torch._functorch import eager_transforms
from torch.autograd import forward_ad

from dvae_fast import ops as _ops  # noqa: F401  (registers the operators)
from dvae_fast import reference
from dvae_fast.functional._looks import readable

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from contextlib import AbstractContextManager

__all__ = [
    "FirstOrder",
    "Operation",
    "again",
    "apply",
    "apply_upstream",
    "autocast_dtype",
    "call",
    "differentiable",
    "final",
    "graph_is_asked",
    "graph_is_kept",
    "in_forward_mode",
    "is_moved",
    "is_transformed",
    "is_wrapped",
    "keep",
    "kept",
    "maskable",
    "needs_function",
    "needs_grad",
    "operator",
    "recordable",
    "same",
    "save",
    "unary",
    "without_autocast",
]

_op: Any = torch.ops.dvae_fast
_vjp: Any = torch.func.vjp
_transforms_active: Callable[[], bool] = torch._C._are_functorch_transforms_active
_is_tracing: Callable[[], bool] = torch._C._is_tracing
_functorch = torch._C._functorch
_unwrap_if_dead = _functorch.unwrap_if_dead


def is_wrapped(t: Tensor) -> bool:
    """Whether it stands for many, or for one of some transform: its values are not to be read."""
    if torch.compiler.is_compiling():
        return False
    return _functorch.is_functorch_wrapped_tensor(t) or _functorch.is_legacy_batchedtensor(t)


# --- who asks for derivatives -----------------------------------------------------------------


def needs_grad(*tensors: Tensor | None) -> bool:
    """Whether reverse mode asks, outside of `torch.func`."""
    if torch.is_grad_enabled():
        for t in tensors:  # half the time of any()
            if t is not None and t.requires_grad:
                return True
    return False


def in_forward_mode() -> bool:
    """Whether there may be tangents."""
    # The one thing that tells cheaply; -1 outside of it.
    return not torch.compiler.is_compiling() and forward_ad._current_level >= 0


def is_transformed(*tensors: Tensor | None) -> bool:
    """Whether `torch.func`, forward mode or `torch.jit.trace` looks on."""
    if _transforms_active():
        return True
    if torch.compiler.is_compiling():
        return False
    return _is_tracing() or (forward_ad._current_level >= 0 and _has_tangent(*tensors))


def _has_tangent(*tensors: Tensor | None) -> bool:
    return in_forward_mode() and any(
        t is not None and forward_ad.unpack_dual(t).tangent is not None for t in tensors
    )


def is_moved(*tensors: Tensor | None) -> bool:
    """Whether any is differentiated with respect to, in reverse or in forward mode."""
    return needs_grad(*tensors) or _has_tangent(*tensors)


def needs_function(*tensors: Tensor | None) -> bool:
    """Whether to call an operator's autograd function rather than the operator itself, which has
    no derivatives: they would be 0 without a word."""
    if torch.is_grad_enabled():
        for t in tensors:
            if t is not None and t.requires_grad:
                return True
    return is_transformed(*tensors)


def graph_is_asked() -> bool:
    """In a backward pass, whether it may be differentiated in turn."""
    # What is compiled never is: torch refuses it.
    return torch.is_grad_enabled() and not torch.compiler.is_compiling()


def graph_is_kept() -> bool:
    """Whether this backward pass may be run again; True if torch does not tell."""
    if torch.compiler.is_compiling():
        return True
    query = getattr(torch._C._autograd, "_get_current_graph_task_keep_graph", None)
    return True if query is None else bool(query())


# --- functions --------------------------------------------------------------------------------


def call(function: type[torch.autograd.Function], *args: Any) -> Any:
    """``function.apply``, where nothing is transformed: torch's own takes up to 15 µs a call to
    bind the arguments to a signature, for transforms alone."""
    if torch.compiler.is_compiling():
        return function.apply(*args)
    return super(torch.autograd.Function, function).apply(*args)  # type: ignore[misc]


def _apply_untransformed(function: type[torch.autograd.Function], *args: Any) -> Any:
    # A loop of torch's own `unwrap_dead_wrappers` takes longer.
    return call(function, *(_unwrap_if_dead(a) if isinstance(a, Tensor) else a for a in args))


def apply(function: type[torch.autograd.Function], *args: Any) -> Any:
    """``function.apply`` for all transforms, and where there are none as fast as `call`."""
    if torch.compiler.is_compiling() or _transforms_active():
        return function.apply(*args)
    return _apply_untransformed(function, *args)


def recordable(t: Tensor) -> Tensor:
    """t, or where it was made in inference mode, which autograd refuses to save, a copy."""
    if torch.compiler.is_compiling() or not (t.is_inference() and torch.is_grad_enabled()):
        return t
    return t.clone()


def save(ctx: Any, *tensors: Tensor | None) -> list[Tensor | None]:
    """Save tensors for the backward pass, as `recordable` would have them; returns those."""
    saved = list(tensors)
    if not torch.compiler.is_compiling():
        for i, t in enumerate(tensors):
            if t is not None and t.is_inference():
                saved[i] = t.clone()
    ctx.save_for_backward(*saved)
    return saved


def keep(ctx: Any, output: Any, *args: Any) -> None:
    """Save arguments, tensors as such, for `kept`; and what forward mode wants to know."""
    found: list[Tensor | None] = []
    others: list[Any] = []
    for a in args:
        tensor = isinstance(a, Tensor)
        found.append(a if tensor else None)
        others.append(None if tensor else a)
    tensors = save(ctx, *found)
    ctx.others = others
    ctx.set_materialize_grads(False)
    if in_forward_mode():
        ctx.save_for_forward(*tensors)
        outputs = output if isinstance(output, tuple) else (output,)
        ctx.outputs = [(t.shape, t.dtype, t.device) for t in outputs]


def kept(ctx: Any) -> list[Any]:
    """What `keep` saved."""
    pairs = zip(ctx.saved_tensors, ctx.others, strict=True)
    return [other if tensor is None else tensor for tensor, other in pairs]


class Operation(torch.autograd.Function):
    """An operator's autograd function, for all of `torch.func` too.

    A subclass has ``forward`` (without a context), a ``setup_context`` that keeps its arguments,
    and ``pull(grads, need, *kept)``, the gradients of the arguments given those of the results,
    written with `differentiable` operators.
    """

    generate_vmap_rule = True
    #: ``forward`` in plain PyTorch
    formula: ClassVar[Callable[..., Any] | None] = None
    #: the same with a forward mode, which torch.compile refuses to see
    _moved: ClassVar[type[Operation]]

    @staticmethod
    def pull(grads: Sequence[Tensor | None], need: Sequence[bool], *args: Any) -> tuple[Any, ...]:
        """The gradient of each argument, None of what is no tensor or not in need."""
        raise NotImplementedError

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        # Static, as torch wants them, and yet of this class.
        if "backward" not in cls.__dict__:
            cls.backward = staticmethod(lambda ctx, *grads: _backward(cls, ctx, *grads))  # type: ignore
        if "jvp" in cls.__dict__:
            cls._moved = cls
        else:
            jvp = staticmethod(lambda ctx, *tangents: _jvp(cls, ctx, *tangents))
            cls._moved = type(cls.__name__, (cls,), {"jvp": jvp})

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        keep(ctx, output, *inputs)

    @classmethod
    def apply(cls, *args: Any) -> Any:
        """torch's own, which takes 15 µs a call to bind the arguments to a signature, but where
        transforms need it."""
        if torch.compiler.is_compiling():
            return super().apply(*args)
        if _transforms_active():
            # Of forward mode within forward mode torch drops the outer one, and says nothing.
            if eager_transforms.JVP_NESTING > 1:
                return cls._in_plain(*args)
            return super(Operation, cls._moved).apply(*args)
        if _is_tracing():
            return cls._in_plain(*args)
        if forward_ad._current_level >= 0:
            cls = cls._moved
        return _apply_untransformed(cls, *args)

    @classmethod
    def _in_plain(cls, *args: Any) -> Any:
        if cls.formula is None:
            raise NotImplementedError(
                "dvae_fast: an estimator of a gradient has no forward mode within forward mode; "
                "take one of the two in reverse mode, as torch.func.hessian does"
            )
        return cls.formula(*args)


def _backward(cls: type[Operation], ctx: Any, *grads: Tensor | None) -> tuple[Any, ...]:
    if all(g is None for g in grads):
        return (None,) * len(ctx.needs_input_grad)
    return cls.pull(grads, ctx.needs_input_grad, *kept(ctx))


def _jvp(cls: type[Operation], ctx: Any, *tangents: Tensor | None) -> Any:
    args = kept(ctx)
    need = [isinstance(t, Tensor) for t in tangents]
    moving: list[Tensor] = []

    def backward(*grads: Tensor) -> tuple[Tensor, ...]:
        pulled = cls.pull(grads, need, *args)
        pairs = [p for p in zip(pulled, tangents, strict=True) if all(t is not None for t in p)]
        moving[:] = [cast("Tensor", t) for _, t in pairs]
        return tuple(p for p, _ in pairs)

    # Of a linear function the derivative is the same everywhere, but formulas drop what is not
    # finite where the upstream gradient is 0.
    at = [torch.ones(shape, dtype=d, device=on) for shape, d, on in ctx.outputs]
    _, push = _vjp(backward, *at)
    pushed = push(tuple(moving)) if moving else tuple(torch.zeros_like(t) for t in at)
    return pushed if len(pushed) > 1 else pushed[0]


def operator(name: str) -> Callable[..., Any]:
    """The operator `name`; under `torch.vmap`, which has no rule for it, its formula."""
    op, formula = getattr(_op, name), getattr(reference, name)
    return lambda *args: formula(*args) if _transforms_active() else op(*args)


def maskable(make: Callable[[str], Callable[..., Any]], name: str) -> Callable[..., Any]:
    """`make(name)` with one argument more, a mask: where that is not None, its masked operator."""
    whole, masked = make(name), make(f"masked_{name}")
    return lambda *args: whole(*args[:-1]) if args[-1] is None else masked(*args)


def differentiable(name: str) -> Callable[..., Any]:
    """The operator `name`, differentiable if that is asked: by the reference's formula of it."""
    run, plain = operator(name), getattr(reference, name)

    class Differentiable(Operation):
        formula = staticmethod(plain)

        @staticmethod
        def forward(*args: Any) -> Any:
            return run(*args)

        @staticmethod
        def pull(
            grads: Sequence[Tensor | None], need: Sequence[bool], *args: Any
        ) -> tuple[Any, ...]:
            places = [i for i, needed in enumerate(need) if needed]

            def of(*tensors: Tensor) -> Any:
                given = dict(zip(places, tensors, strict=True))
                return plain(*(given.get(i, a) for i, a in enumerate(args)))

            out, pull = _vjp(of, *(args[i] for i in places))
            outs = out if isinstance(out, tuple) else (out,)
            full = tuple(
                torch.zeros_like(o) if g is None else g for o, g in zip(outs, grads, strict=True)
            )
            pulled = iter(pull(full if isinstance(out, tuple) else full[0]))
            return tuple(next(pulled) if needed else None for needed in need)

    Differentiable.__name__ = Differentiable.__qualname__ = name
    return lambda *args: (Differentiable.apply if graph_is_asked() else run)(*args)


def unary(name: str, *, keeps_result: bool = False) -> type[Operation]:
    """The function of the operator `name` of one tensor; its backward pass takes that tensor, or
    the result."""
    run, back = operator(name), differentiable(f"{name}_backward")

    class Unary(Operation):
        formula = staticmethod(getattr(reference, name))

        @staticmethod
        def forward(x: Tensor) -> Tensor:
            return cast("Tensor", run(x))

        @staticmethod
        def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
            keep(ctx, output, output if keeps_result else inputs[0])

        @staticmethod
        def pull(
            grads: Sequence[Tensor | None], need: Sequence[bool], *args: Any
        ) -> tuple[Any, ...]:
            return (back(*grads, *args),)

    Unary.__name__ = Unary.__qualname__ = name
    return Unary


def same(x: Tensor) -> Tensor:
    """x as a result: in forward mode, which has no views of what is expanded, a copy."""
    return x.clone() if in_forward_mode() else x.view_as(x)


class _Final(Operation):
    """A gradient that has none of its own, and says so to whom asks for one."""

    @staticmethod
    def forward(grad: Tensor, why: str, *of: Tensor) -> Tensor:
        return same(grad)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.why = inputs[1]

    @staticmethod
    def backward(ctx: Any, *_: Tensor) -> Any:
        raise RuntimeError(ctx.why)

    @staticmethod
    def jvp(ctx: Any, *_: Tensor | None) -> Any:
        raise RuntimeError(ctx.why)


def final(grads: Sequence[Tensor | None], why: str, *of: Tensor) -> tuple[Tensor | None, ...]:
    """`grads`, made of the tensors `of`; an error that says `why` if they are differentiated."""
    if not graph_is_asked():
        return tuple(grads)
    return tuple(None if g is None else cast("Tensor", _Final.apply(g, why, *of)) for g in grads)


class FirstOrder(Operation):
    """x, with derivatives of first order in reverse mode alone."""

    @staticmethod
    def forward(x: Tensor, why: str) -> Tensor:
        return same(x)

    @staticmethod
    def pull(grads: Sequence[Tensor | None], need: Sequence[bool], *args: Any) -> tuple[Any, ...]:
        x, why = args
        return *final(grads, why, x), None


def again(
    plain: Callable[..., Tensor], tensors: Sequence[Tensor | None], upstream: Tensor
) -> tuple[Tensor | None, ...]:
    """The gradients of a function made of differentiable ones, to be differentiated in turn."""
    places = [i for i, t in enumerate(tensors) if t is not None]

    def of(*some: Tensor) -> Tensor:
        given = dict(zip(places, some, strict=True))
        return plain(*(given.get(i) for i in range(len(tensors))))

    pulled = _vjp(of, *(cast("Tensor", tensors[i]) for i in places))[1](upstream)
    given = dict(zip(places, pulled, strict=True))
    return tuple(given.get(i) for i in range(len(tensors)))


def apply_upstream(grad: Tensor, upstream: Tensor, kept: bool) -> Tensor:
    """grad times the upstream gradient, of one element or one per row.

    In place when nothing can ask for this gradient again. What lies on the host is looked at, for
    1 is nearly always what it is; on a device `rescale_` reads it there.
    """
    if is_wrapped(upstream):  # many upstream gradients of one graph, by vmap
        shape = () if upstream.numel() == 1 else (-1, *[1] * (grad.dim() - 1))
        return grad * upstream.reshape(shape).to(grad.dtype)
    if kept:
        grad = grad.clone()
    if not (upstream.dim() == 0 and readable(upstream) and upstream.item() == 1):
        _op.rescale_(grad, upstream)
    return grad


# --- autocast ---------------------------------------------------------------------------------

# A table, for torch 2.11's compiler cannot trace the query; and to tell it that the answer is a
# constant would load the compiler with the package, as long again as loading torch.
_HAS_AUTOCAST = {d: torch.amp.is_autocast_available(d) for d in ("cpu", "cuda", "mps", "meta")}


def _has_autocast(device: str) -> bool:
    if device not in _HAS_AUTOCAST:
        return torch.amp.is_autocast_available(device)
    return _HAS_AUTOCAST[device]


def without_autocast(t: Tensor) -> AbstractContextManager[Any]:
    """A context in which `t`'s device has no autocast; "meta" has none."""
    device = t.device.type
    return torch.autocast(device, enabled=False) if _has_autocast(device) else nullcontext()


def autocast_dtype(t: Tensor) -> torch.dtype | None:
    """autocast's dtype for `t`'s device, if autocast is on and would touch `t`."""
    device = t.device.type
    if t.dtype == torch.float64 or not _has_autocast(device):
        return None  # "meta" has no autocast, and says so with an error when asked for it
    if not torch.is_autocast_enabled(device):
        return None
    return torch.get_autocast_dtype(device)
