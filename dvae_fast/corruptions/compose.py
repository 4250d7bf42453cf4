"""Corruptions made of others, and of anybody's own function."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from dvae_fast._seeds import derived_key
from dvae_fast.corruptions.basic import Corruption, DrawnCorruption
from dvae_fast.corruptions.draw import corrupt
from dvae_fast.corruptions.learnable import Learnable

__all__ = ["Compose", "CorruptionFunction", "FunctionCorruption", "as_corruption"]

#: (x (N, D), generator) → x̃ (N, D)
CorruptionFunction = Callable[[Tensor, torch.Generator], Tensor]


def as_corruption(value: Any) -> Corruption:
    """`value` if it is a corruption, a `FunctionCorruption` of it if it is a callable.

    Raises:
        TypeError: if it is neither.
    """
    if isinstance(value, Corruption):
        return value
    # A class is callable, too, but for a corruption it is a slip.
    if callable(value) and not isinstance(value, type):
        return FunctionCorruption(value)
    raise TypeError(
        "corruption must be an object of dvae_fast.corruptions, such as Masking(0.1), or a "
        f"function of (x, generator), got {type(value).__name__}"
    )


class Compose(nn.Module, DrawnCorruption):
    """One corruption after another, with independent noise: x̃ = c_n(… c_2(c_1(x))).

    Each part draws from a key of its own made of the seed, the first from the seed itself, so that
    ``Compose(a, Identity())`` draws what ``a`` does. All but the first run once for each copy.

    Args:
        parts: two or more corruptions or functions; a `Compose` among them is taken apart.

    Raises:
        TypeError: if a part is none.
        ValueError: if there are fewer than two, or one learns by the score function: the density
            of what all make together is not known.
    """

    def __init__(self, *parts: Corruption | CorruptionFunction) -> None:
        super().__init__()
        flat: list[Corruption] = []
        for part in map(as_corruption, parts):
            flat += part.parts if isinstance(part, Compose) else [part]
        if len(flat) < 2:
            raise ValueError(f"parts must be two corruptions or more, got {len(flat)}")
        for part in flat:
            if isinstance(part, Learnable) and part.scores:
                raise ValueError(
                    "parts must not learn by the score function, which needs the density of x̃; "
                    f"got {part} (estimator 'relaxed' can be composed)"
                )
        self._count = len(flat)
        for i, part in enumerate(flat):
            setattr(self, f"part{i}", part)

    @property
    def parts(self) -> list[Corruption]:
        """In the order in which they are applied."""
        return [getattr(self, f"part{i}") for i in range(self._count)]

    def draw(
        self, x: Tensor, copies: int, key: Tensor, first_example: int, first_copy: int
    ) -> Tensor:
        """x (B, D) → x̃ (M, B, D); see `DrawnCorruption.draw`."""
        first, *rest = (self._part(i, x.device) for i in range(self._count))
        noisy = corrupt(x, first, copies, key, first_example=first_example, first_copy=first_copy)
        for i, part in enumerate(rest, 1):
            own = derived_key(key, i)
            noisy = torch.cat(
                [
                    corrupt(
                        copy, part, 1, own, first_example=first_example, first_copy=first_copy + m
                    )
                    for m, copy in enumerate(noisy.unbind(0))
                ]
            )
        return noisy

    def _part(self, i: int, device: torch.device) -> Corruption:
        part: Corruption = getattr(self, f"part{i}")
        if not isinstance(part, nn.Module) and part.parameter.device != device:
            part = part.to(device)
            if not part.parameter.requires_grad:  # else its owner will change the original
                setattr(self, f"part{i}", part)  # once, not at every step
        return part

    def __repr__(self) -> str:
        return f"Compose({', '.join(map(repr, self.parts))})"


class FunctionCorruption(nn.Module, DrawnCorruption):
    """x̃ = function(x, generator), for any function of one's own.

    The generator is seeded from (seed, first_example, first_copy), so a seed gives the same x̃
    again; but the noise belongs to the call and not to the example: other parts of a batch, or
    another number of processes, draw other numbers. The seed is read on the host, which no CUDA
    graph allows.

    Args:
        function: takes rows (N, D), N = M · B of them for M copies, which are its own to write
            to, and a `torch.Generator` on their device; returns x̃ in their shape and dtype. What
            is differentiable in it is differentiated; the parameters of a module are the model's.

    Raises:
        TypeError: if it is not callable.
    """

    def __init__(self, function: CorruptionFunction) -> None:
        super().__init__()
        if not callable(function):
            raise TypeError(f"function must be callable, got {type(function).__name__}")
        self.function = function

    def draw(
        self, x: Tensor, copies: int, key: Tensor, first_example: int, first_copy: int
    ) -> Tensor:
        """x (B, D) → x̃ (M, B, D); see `DrawnCorruption.draw`.

        Raises:
            TypeError, ValueError: if what the function returns is not what it should be.
        """
        rows = x.expand(copies, *x.shape).reshape(-1, x.shape[1])
        if rows.untyped_storage().data_ptr() == x.untyped_storage().data_ptr():
            rows = rows.clone()  # the target, which must stay what it is
        seed = (int(key) + first_example * 0x9E3779B9 + first_copy * 0x85EBCA77C2B2AE63) % 2**63
        generator = torch.Generator(x.device).manual_seed(seed)
        noisy = self.function(rows, generator)
        if not isinstance(noisy, Tensor):
            raise TypeError(
                f"the corruption's function must return a tensor, got {type(noisy).__name__}"
            )
        if noisy.shape != rows.shape:
            raise ValueError(
                "the corruption's function must return the shape it is given, (N, D) = "
                f"{tuple(rows.shape)}, got {tuple(noisy.shape)}"
            )
        if noisy.dtype != rows.dtype or noisy.device != rows.device:
            raise TypeError(
                f"the corruption's function must return {rows.dtype} on {rows.device}, "
                f"got {noisy.dtype} on {noisy.device}"
            )
        return noisy.reshape(copies, *x.shape)

    def __repr__(self) -> str:
        name = getattr(self.function, "__name__", type(self.function).__name__)
        return f"FunctionCorruption({name})"
