"""`corrupt`: a draw of any corruption, its arguments checked."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dvae_fast._checks import check_count, check_float, check_index, check_total, nearest_choice
from dvae_fast._seeds import seed_tensor
from dvae_fast.corruptions.base import Corruption, CorruptionFunction, as_corruption
from dvae_fast.corruptions.basic import CORRUPTIONS

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["corrupt"]


def corrupt(
    x: Tensor,
    corruption: Corruption | CorruptionFunction,
    copies: int | None = None,
    seed: int | Tensor | None = None,
    *,
    first_example: int = 0,
    first_copy: int = 0,
) -> Tensor:
    """Draw x̃ ~ p(x̃|x), out of place; x stays the target.

    Args:
        x: (B, ...), floating point. The first dimension counts examples.
        corruption: one of `dvae_fast.corruptions`, where a parameter per data dimension has the
            shape of one example, or as many elements; or a `Corruption` of one's own, or a
            callable as `FunctionCorruption` takes it.
        copies: None for one draw in the shape of x, or M >= 1 independent draws.
        seed: int, int64 tensor of one element, or None to draw one from torch's generator.
        first_example: index of x's first example in the noise, so that a data set corrupted
            batch by batch gets the numbers it would get at once; a callable and a `draw(x,
            generator)` get other numbers for another, but no batch's within a larger one.
        first_copy: index of the first copy in the noise, likewise.

    Returns:
        x̃ of shape (B, ...), or (M, B, ...) if `copies` is given. Differentiable in x where that
        makes sense (a masked element passes nothing) and in a Gaussian standard deviation.

    Raises:
        TypeError: if x is not a floating-point tensor or `corruption` not a corruption, or what
            a callable returns is no tensor of its dtype.
        ValueError: if copies < 1, or a parameter has neither one element nor one per dimension, or
            a callable changes the shape.

    Source: arXiv 1511.06406, section 2.
    """
    check_float("x", x)
    if isinstance(corruption, str):
        raise TypeError(
            nearest_choice("a corruption's name", corruption, CORRUPTIONS)
            + ", as in make_corruption(name, level); corruption must be an object of "
            "dvae_fast.corruptions, such as Masking(0.1), or a function, got str"
        )
    corruption = as_corruption(corruption)
    if x.dim() == 0:
        raise ValueError("x must have at least one dimension, (B, ...), got a scalar")
    if copies is not None:
        check_count("copies", copies, 1)
    m = 1 if copies is None else copies
    check_index("first_example", first_example, x.shape[0])
    check_index("first_copy", first_copy, m)
    check_total("x̃", m, *x.shape)
    corruption.check(x)
    noisy = corruption.draw(x, m, seed_tensor(seed, x.device), first_example, first_copy)
    return noisy.squeeze(0) if copies is None else noisy
