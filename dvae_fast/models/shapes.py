"""Shapes of examples: models work on rows, (N, D), whatever shape their data have."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from dvae_fast._checks import check_dense, check_float, check_mask_of, check_size, check_sizes
from dvae_fast.functional._autograd import is_wrapped, recordable
from dvae_fast.models.layers import by_rows

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["Shaped", "check_image_shape"]

#: dimensions of an image
_IMAGES = (2, 3)


def check_image_shape(image_shape: Any, data_size: int | None = None) -> tuple[int, ...]:
    """`image_shape` as a tuple, if it is (H, W) or (C, H, W), of D = `data_size` pixels."""
    shape = check_sizes("image_shape", image_shape)
    if len(shape) not in _IMAGES:
        raise ValueError(f"image_shape must be (H, W) or (C, H, W), got {shape}")
    if data_size is not None and math.prod(shape) != data_size:
        names = ("C", "H", "W")[-len(shape) :]
        raise ValueError(
            f"image_shape must be ({', '.join(names)}) with {' · '.join(names)} = D = {data_size}, "
            f"got {shape}"
        )
    return shape


def _first_parameter(module: nn.Module) -> Tensor | None:
    """That of `nn.Module.parameters`, which takes twenty times as long to begin; of real numbers,
    as those of networks are."""
    for parameter in module._parameters.values():
        if parameter is not None and parameter.is_floating_point():
            return parameter
    for part in module._modules.values():
        if part is not None and (found := _first_parameter(part)) is not None:
            return found
    return None


def _leaves_nothing_out(mask: Tensor) -> bool:
    """Whether a mask is of ones, where that is known without a wait for a GPU: then the loss takes
    the way of none, and has its bits."""
    known = type(mask) is Tensor and mask.is_cpu and not torch.compiler.is_compiling()
    return known and not is_wrapped(mask) and bool(mask.all())


def _check_like(name: str, t: Tensor, like: Tensor | None) -> None:
    """Raise TypeError or ValueError unless t is on the device of a parameter, and of its dtype."""
    if like is None:
        return
    if t.device != like.device:
        raise ValueError(f"{name} must be on the model's device, {like.device}, got {t.device}")
    if t.dtype != like.dtype and not torch.is_autocast_enabled(t.device.type):
        raise TypeError(f"{name} must have the model's dtype, {like.dtype}, got {t.dtype}")


class Shaped(nn.Module):
    """A module that works on rows (N, D) and takes (N, *shape) too.

    Attributes:
        data_size: D.
        shape: of an example: (C, H, W), (H, W) or (D,).
        image_shape: the same if it is that of an image, else None.
    """

    data_size: int
    shape: tuple[int, ...]
    image_shape: tuple[int, ...] | None
    _shaped: bool

    def _take_shape(
        self, data_size: int | Sequence[int], image_shape: Sequence[int] | None
    ) -> None:
        """What a constructor is given: D, or the shape of an example; and that of an image."""
        self._shaped = hasattr(data_size, "__iter__") and not isinstance(data_size, (str, Tensor))
        sizes = check_sizes("data_size", data_size) if self._shaped else ()
        if self._shaped and not sizes:
            raise ValueError("data_size must be an int or the shape of an example, got ()")
        self.data_size = math.prod(sizes) if sizes else check_size("data_size", data_size)
        if image_shape is None and len(sizes) in _IMAGES:
            image_shape = sizes
        self.image_shape = (
            None if image_shape is None else check_image_shape(image_shape, self.data_size)
        )
        self.shape = sizes or self.image_shape or (self.data_size,)

    def flatten(self, x: Tensor) -> Tensor:
        """(..., *shape) → (..., D); what is (..., D) already stays."""
        check_dense("x", x)
        n = len(self.shape)
        flat = x.shape[-1:] == (self.data_size,) or x.shape[-n:] != self.shape
        return x if flat else x.flatten(-n)

    def unflatten(self, x: Tensor) -> Tensor:
        """(..., D) → (..., *shape)."""
        check_dense("x", x)
        if x.shape[-1:] != (self.data_size,):
            rule = f"(..., D) with D = {self.data_size}"
            raise ValueError(f"x must have shape {rule}, got {tuple(x.shape)}")
        return x.reshape(*x.shape[:-1], *self.shape)

    def _as_built(self, x: Tensor) -> Tensor:
        """(..., D) → (..., *shape) where `data_size` was given as that shape."""
        return self.unflatten(x) if self._shaped else x

    def _is_example(self, shape: tuple[int, ...]) -> bool:
        """Whether that is the shape of an example, but for sizes of 1; a model that knows of its
        data that they are D numbers takes any of as many."""
        if len(self.shape) == 1:
            return math.prod(shape) == self.data_size
        return [n for n in shape if n != 1] == [n for n in self.shape if n != 1]

    def _observed(self, x: Tensor, mask: Any) -> tuple[Tensor, Tensor | None]:
        """x as rows (B, D) with 0 where it was not observed, and a mask of x's shape as rows too.

        Raises:
            TypeError, ValueError: naming the argument, the rule and the value.
        """
        given, x = x, self._rows(x)
        if mask is None:
            return x, None
        mask = recordable(check_mask_of(mask, given)).reshape(x.shape)
        return (x, None) if _leaves_nothing_out(mask) else (x.masked_fill(~mask, 0), mask)

    def _rows(self, x: Tensor, name: str = "x") -> Tensor:
        """x as rows (B, D), after checking that it is such data."""
        check_float(name, x)
        given = tuple(x.shape)
        if x.dim() > 2 and self._is_example(given[1:]):
            x = x.flatten(1)
        if x.dim() != 2 or x.shape[1] != self.data_size:
            rule = f"(B, D) with D = {self.data_size}"
            if len(self.shape) > 1:
                rule += f", or (B, {', '.join(map(str, self.shape))})"
            raise ValueError(f"{name} must have shape {rule}, got {given}")
        if x.shape[0] < 1:
            raise ValueError(f"{name} must hold B >= 1 examples, got shape {given}")
        _check_like(name, x, _first_parameter(self))
        return recordable(x)

    def _input(self, name: str, t: Any, size: int, meaning: str) -> Tensor:
        """t, if it is (..., size).

        Raises:
            TypeError, ValueError: naming the argument, the rule and the value.
        """
        check_float(name, t)
        if t.shape[-1:] != (size,):
            rule = f"(..., {meaning}) with {meaning} = {size}"
            raise ValueError(f"{name} must have shape {rule}, got {tuple(t.shape)}")
        return recordable(t)

    def _through(
        self, network: nn.Module, ready: bool, name: str, t: Tensor, told: tuple[Tensor, ...]
    ) -> Any:
        """What a network makes of t; one of one's own of its rows.

        Raises:
            TypeError, ValueError: if t has not the dtype of a ready one, or is on another device.
        """
        if not ready:
            return by_rows(network, t, *told)
        try:
            return network(t, *told)
        except RuntimeError:
            _check_like(name, t, _first_parameter(network))
            raise
