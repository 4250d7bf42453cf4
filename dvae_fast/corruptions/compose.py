"""Corruptions made of others."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from dvae_fast._seeds import derived_key
from dvae_fast.corruptions.base import Corruption, CorruptionFunction, as_corruption

__all__ = ["Compose"]


class Compose(nn.Module, Corruption):
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
            if part.scores:
                raise ValueError(
                    "parts must not learn by the score function, which needs the density of x̃; "
                    f"got {part} (of rates, Learnable's estimator 'relaxed' can be composed)"
                )
        self._count = len(flat)
        for i, part in enumerate(flat):
            setattr(self, f"part{i}", part)

    @property
    def parts(self) -> list[Corruption]:
        """In the order in which they are applied."""
        return [getattr(self, f"part{i}") for i in range(self._count)]

    def check(self, x: Tensor) -> None:
        for part in self.parts:
            part.check(x)

    def draw(
        self, x: Tensor, copies: int, key: Tensor, first_example: int, first_copy: int
    ) -> Tensor:
        """x (B, ...) → x̃ (M, B, ...); see `Corruption`."""
        first, *rest = self.parts
        noisy = first.draw(x, copies, key, first_example, first_copy)
        for i, part in enumerate(rest, 1):
            own = derived_key(key, i)
            noisy = torch.cat(
                [
                    part.draw(copy, 1, own, first_example, first_copy + m)
                    for m, copy in enumerate(noisy.unbind(0))
                ]
            )
        return noisy

    def __repr__(self) -> str:
        return f"Compose({', '.join(map(repr, self.parts))})"
