"""What a corruption is: `Corruption`, the one class to derive one's own from."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor, nn

from dvae_fast._seeds import generator_seed

__all__ = ["Corruption", "CorruptionFunction", "FunctionCorruption", "as_corruption"]

#: (x, generator) → x̃, or x → x̃ with numbers of torch's global generator
CorruptionFunction = Callable[..., Tensor]


class Corruption:
    """p(x̃|x). One's own is a subclass with a `draw`, and a `log_prob` where its level is learnt::

        class Fog(Corruption):
            def draw(self, x, generator):
                return x * torch.rand(x.shape, generator=generator)

    ``draw(x, generator)`` gets one copy of the examples, (B, ...) in the shape that `corrupt` was
    given ((B, D) from a model), its own to write to, and a `torch.Generator` on their device; it
    returns x̃ in their shape and dtype. It is called once for each copy, from (seed, first_example,
    copy) alone: a seed gives the same x̃ again, copies are independent even where a call's examples
    share numbers, and copy m is the same however many there are. But the noise belongs to the call
    and not to the example: another batch, or another number of processes, draws other numbers.
    torch's global generators are seeded likewise for the call, and put back. The seed is read on
    the host, which no CUDA graph allows.

    What is differentiable in it is differentiated, and parameters of one that is an `nn.Module`
    too are the model's. If such a one has ``log_prob(noisy, x)``, (M, B, D) and (B, D) → (M, B),
    a model gives all its parameters the score function's gradient instead, from M >= 2 copies.

    A corruption whose noise belongs to each example defines the full form, ``draw(x, copies, key,
    first_example, first_copy)``, (B, ...) → (M, B, ...), out of place: arguments as
    `dvae_fast.corrupt` has checked them, `key` the seed as an int64 tensor.
    """

    def draw(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """x (B, ...) → x̃ (M, B, ...); see the class."""
        raise NotImplementedError

    def check(self, x: Tensor) -> None:
        """Raise ValueError unless it fits examples such as x's; `corrupt` asks before it draws."""

    def log_prob(self, noisy: Tensor, x: Tensor) -> Tensor:
        """log p(x̃|x), (M, B, D) and (B, D) → (M, B); see the class."""
        raise NotImplementedError

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        own = cls.__dict__.get("draw")
        if not inspect.isfunction(own) or _takes(own, 6):
            return
        if not _takes(own, 3):
            raise TypeError(
                f"draw of {cls.__name__} must take (x, generator), or (x, copies, key, "
                f"first_example, first_copy); got {inspect.signature(own)}"
            )
        cls.draw = _for_each_copy(own)  # type: ignore[method-assign]

    @property
    def scores(self) -> bool:
        """Whether a model's loss must add `score_function_surrogate`."""
        if not isinstance(self, nn.Module) or type(self).log_prob is Corruption.log_prob:
            return False
        return any(p.requires_grad for p in self.parameters())

    def check_copies(self, copies: int) -> None:
        """Raise ValueError unless so many copies are enough to learn from."""
        if self.scores:
            check_baseline(copies)

    def to(self, device: torch.device | str) -> Corruption:
        """The same corruption with its parameters, if it has any, on ``device``."""
        return nn.Module.to(self, device) if isinstance(self, nn.Module) else self

    def __repr__(self) -> str:
        return f"{type(self).__name__}()"


def check_baseline(copies: int) -> None:
    """Raise ValueError unless there are copies for the score function's baseline."""
    if copies < 2:
        raise ValueError(
            "copies must be >= 2 for a rate learnt by the score function, whose baseline is made "
            f"of the other copies; got {copies}"
        )


def _takes(function: Callable[..., Any], count: int) -> bool:
    """Whether a function can be called with so many arguments."""
    try:
        inspect.signature(function).bind(*range(count))
    except TypeError:
        return False
    return True


def _for_each_copy(own: Callable[[Any, Tensor, torch.Generator], Tensor]) -> Callable[..., Tensor]:
    """The full form of ``draw(self, x, generator)``; called with a generator, it is still that."""

    @functools.wraps(own)
    def draw(
        self: Corruption,
        x: Tensor,
        copies: int | torch.Generator,
        key: Tensor | None = None,
        first_example: int = 0,
        first_copy: int = 0,
    ) -> Tensor:
        if isinstance(copies, torch.Generator):
            return own(self, x, copies)
        if x.is_meta:  # which has no seed to read
            return x.expand(copies, *x.shape).clone()
        # A path to the parameters would count a second time what the score function counts.
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.scores):
            run = draw_copies
            if torch.compiler.is_compiling():  # else torch's compiler is not loaded for it
                from dvae_fast.corruptions.uncompiled import draw_copies as run
            return run(self, own, x, copies, cast("Tensor", key), first_example, first_copy)

    return draw


def draw_copies(
    self: Corruption,
    own: Callable[..., Tensor],
    x: Tensor,
    copies: int,
    key: Tensor,
    first_example: int,
    first_copy: int,
) -> Tensor:
    drawn = [
        _one(self, own, x, generator_seed(key, first_example, m))
        for m in range(first_copy, first_copy + copies)
    ]
    return torch.stack(drawn)


def _one(self: Corruption, own: Callable[..., Tensor], x: Tensor, seed: int) -> Tensor:
    """One copy's draw, checked."""
    generator = torch.Generator(x.device).manual_seed(seed)
    device = [] if x.device.type == "cpu" else [x.device]
    with torch.random.fork_rng(device, device_type="cuda" if not device else x.device.type):
        torch.default_generator.manual_seed(seed)
        if x.device.type == "cuda":
            with torch.cuda.device(x.device):
                torch.cuda.manual_seed(seed)
        noisy = own(self, x.clone(), generator)  # x is the target, and must stay what it is
    name = _name(self)
    if not isinstance(noisy, Tensor):
        raise TypeError(f"corruption {name} must return a tensor, got {type(noisy).__name__}")
    if noisy.shape != x.shape:
        raise ValueError(
            f"corruption {name} must return the shape it is given, {tuple(x.shape)}, "
            f"got {tuple(noisy.shape)}"
        )
    if noisy.dtype != x.dtype or noisy.device != x.device:
        raise TypeError(
            f"corruption {name} must return {x.dtype} on {x.device}, "
            f"got {noisy.dtype} on {noisy.device}"
        )
    return noisy


def _name(corruption: Corruption) -> str:
    named = corruption.function if isinstance(corruption, FunctionCorruption) else corruption
    return str(getattr(named, "__name__", type(named).__name__))


class FunctionCorruption(nn.Module, Corruption):
    """x̃ = function(x, generator), or function(x), for any function or module of one's own.

    Drawn as a `Corruption` of one's own is. The generator is passed to a parameter of that name,
    or to the second of two that have no default; what takes x alone draws from torch's global
    generator. A module does what its mode says: ``nn.Dropout(0.1)`` corrupts (and scales up by
    1/0.9) while it trains; in evaluation mode, where a model's evaluator puts it, it is the
    identity.

    Args:
        function: a callable; the parameters of a module are the model's.

    Raises:
        TypeError: if it is not callable, or cannot be called so.
    """

    def __init__(self, function: CorruptionFunction) -> None:
        super().__init__()
        if not callable(function):
            raise TypeError(f"function must be callable, got {type(function).__name__}")
        self.function = function
        self._generator = _generator_parameter(function)

    def draw(self, x: Tensor, generator: torch.Generator) -> Tensor:
        """As ``function`` has it; wrapped by `Corruption`."""
        if self._generator is None:
            return self.function(x)
        if self._generator:
            return self.function(x, **{self._generator: generator})
        return self.function(x, generator)

    def __repr__(self) -> str:
        return f"FunctionCorruption({_name(self)})"


def _generator_parameter(function: Callable[..., Any]) -> str | None:
    """How a function takes its generator: by that name, "" by position, None not at all."""
    called = function.forward if isinstance(function, nn.Module) else function
    try:
        parameters = inspect.signature(called).parameters
    except (TypeError, ValueError):  # written in C, and silent
        return None
    if "generator" in parameters:
        by_position = parameters["generator"].kind is inspect.Parameter.POSITIONAL_ONLY
        return "" if by_position else "generator"
    positional = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    needed = [p for p in parameters.values() if p.default is p.empty and p.kind in positional]
    takes_x = any(p.kind in (*positional, p.VAR_POSITIONAL) for p in parameters.values())
    if not takes_x or len(needed) > 2:
        name = getattr(function, "__name__", type(function).__name__)
        raise TypeError(
            f"corruption must be a function of x or of (x, generator), got {name} of "
            f"({', '.join(parameters)})"
        )
    return "" if len(needed) == 2 else None


def as_corruption(value: Any) -> Corruption:
    """`value` if it is a corruption, a `FunctionCorruption` of it if it is a callable.

    Raises:
        TypeError: if it is neither.
    """
    if isinstance(value, Corruption) and type(value).draw is not Corruption.draw:
        return value
    # A class is callable, too, but for a corruption it is a slip.
    if callable(value) and not isinstance(value, (type, Corruption)):
        return FunctionCorruption(value)
    raise TypeError(
        "corruption must be an object of dvae_fast.corruptions, such as Masking(0.1), a Corruption "
        "of your own that has a draw, or a function of x or of (x, generator), "
        f"got {type(value).__name__}"
    )
