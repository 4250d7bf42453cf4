"""Corruption distributions p(x̃|x) the kernels can draw from.

A corruption is a small immutable object: its ``kind`` names the formula in
``csrc/core/corruptions.h`` and its parameters are checked once, here, when it is built, so
that drawing costs no validation. Source: Im, Ahn, Memisevic, Bengio, "Denoising Criterion for
Variational Auto-Encoding Framework" (arXiv 1511.06406), section 2.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import TypeVar

    Rate = TypeVar("Rate", bound="_RateCorruption")

__all__ = [
    "CORRUPTIONS",
    "AdditiveGaussian",
    "BitFlip",
    "Corruption",
    "DrawnCorruption",
    "Identity",
    "Masking",
    "SaltAndPepper",
    "make_corruption",
    "rates_from_mean",
]


def _parameter(name: str, value: float | torch.Tensor, lower: float, upper: float) -> torch.Tensor:
    """``value`` as a floating tensor after checking that it lies in [lower, upper]."""
    if isinstance(value, torch.Tensor):
        if not value.is_floating_point():
            raise TypeError(f"{name} must be a float or a floating-point tensor, got {value.dtype}")
        tensor = value
    elif isinstance(value, (int, float)) and not isinstance(value, bool):
        tensor = torch.tensor(float(value))
    else:
        raise TypeError(
            f"{name} must be a float or a floating-point tensor, got {type(value).__name__}"
        )
    data = tensor.detach()
    if not bool(((data >= lower) & (data <= upper) & data.isfinite()).all()):
        rule = f"in [{lower:g}, {upper:g}]" if math.isfinite(upper) else f"finite and >= {lower:g}"
        if data.numel() == 1:
            actual = f"{data.item():g}"
        else:
            actual = f"values from {data.min().item():g} to {data.max().item():g}"
        raise ValueError(f"{name} must be {rule}, got {actual}")
    return tensor


class Corruption:
    """Base of all corruptions. ``kind`` selects the kernel's formula.

    ``parameter`` is the rate (a probability per element) or the standard deviation, with one
    element or one per data dimension; ``salt`` is used by salt-and-pepper alone.
    """

    kind: str = ""
    parameter: torch.Tensor
    salt: torch.Tensor | None = None

    def to(self, device: torch.device | str) -> Corruption:
        """The same corruption with its parameters on ``device``."""
        if self.parameter.device == torch.device(device):
            return self
        other = object.__new__(type(self))
        other.parameter = self.parameter.to(device)
        other.salt = None if self.salt is None else self.salt.to(device)
        return other

    def __repr__(self) -> str:
        def show(t: torch.Tensor) -> str:
            if t.numel() == 1:
                return f"{t.item():.6g}"
            return f"<tensor {tuple(t.shape)}, mean {t.detach().mean().item():.4g}>"

        parts = [] if self.kind == "identity" else [show(self.parameter)]
        if self.salt is not None:
            parts.append(f"salt={show(self.salt)}")
        return f"{type(self).__name__}({', '.join(parts)})"


class DrawnCorruption(Corruption):
    """Base of the corruptions that are no one kernel's: they draw for themselves.

    `parameter` stands for none, unless a subclass has one.
    """

    kind = "drawn"
    parameter = torch.zeros(())

    def draw(
        self,
        x: torch.Tensor,
        copies: int,
        key: torch.Tensor,
        first_example: int,
        first_copy: int,
    ) -> torch.Tensor:
        """x (B, D) → x̃ (M, B, D), out of place; arguments as `dvae_fast.corrupt` has checked
        them, `key` the seed as an int64 tensor."""
        raise NotImplementedError


class Identity(Corruption):
    """x̃ = x: turns DVAE into VAE and DIWAE into IWAE."""

    kind = "identity"

    def __init__(self) -> None:
        self.parameter = torch.zeros(())


def rates_from_mean(mean_image: torch.Tensor, rate: float) -> torch.Tensor:
    """A rate for each pixel, proportional to the mean image, whose mean is `rate`.

    r_i = min(1, c · mean_i), with the one c for which the mean of r is `rate`: where a multiple
    of the mean image would exceed 1, the pixel is always hit and the others make up for it.

    Args:
        mean_image: (D,), >= 0; the mean of the training images, usually.
        rate: in [0, 1], and at most the share of pixels whose mean is above 0, because the others
            are never hit.

    Returns:
        (D,), float32 and in [0, 1].

    Raises:
        TypeError: if `mean_image` is not a floating-point tensor, or `rate` not a number.
        ValueError: if either is out of range.

    Source: arXiv 1511.06406, whose noise levels follow the mean image.
    """
    if not isinstance(mean_image, torch.Tensor):
        raise TypeError(
            f"mean_image must be a floating-point tensor, got {type(mean_image).__name__}"
        )
    mean = _parameter("mean_image", mean_image, 0.0, math.inf).detach().double()
    if mean.dim() != 1 or mean.numel() < 1:
        raise ValueError(f"mean_image must have shape (D,), got {tuple(mean.shape)}")
    _parameter("rate", rate, 0.0, 1.0)
    wanted = float(rate)
    size, positive = mean.numel(), int((mean > 0).sum())
    if wanted * size > positive:
        raise ValueError(
            f"rate must be at most {positive / size:g}, the share of pixels whose mean is above "
            f"0, for rates that follow the mean image; got {wanted:g}"
        )
    if wanted == 0:
        return torch.zeros_like(mean, dtype=torch.float32)
    # c if the i brightest pixels are at 1: the first for which the next is not above 1.
    falling = mean.sort(descending=True).values
    rest = falling.flip(0).cumsum(0).flip(0)
    at_one = torch.arange(size, dtype=torch.float64, device=mean.device)
    c = (wanted * size - at_one) / rest
    fits = (rest > 0) & (c * falling <= 1)
    chosen = c[int(fits.int().argmax())] if bool(fits.any()) else c.new_tensor(math.inf)
    return torch.where(mean > 0, (mean * chosen).clamp(max=1.0), 0.0).float()


class _RateCorruption(Corruption):
    def __init__(self, rate: float | torch.Tensor) -> None:
        # Masks are decided in float32 whatever the data's dtype, so that they are the same bits.
        self.parameter = _parameter("rate", rate, 0.0, 1.0).to(torch.float32)

    @classmethod
    def from_mean(cls: type[Rate], data_mean: torch.Tensor, rate: float, **options: Any) -> Rate:
        """With the rates of `rates_from_mean`; options and errors as the constructor's too."""
        return cls(rates_from_mean(data_mean, rate), **options)


class Masking(_RateCorruption):
    """x̃ = 0 with probability ``rate``, else x.

    Args:
        rate: probability in [0, 1]; a number, or a tensor with one value per data dimension.

    Raises:
        ValueError: if a rate lies outside [0, 1].
        TypeError: if ``rate`` is neither a number nor a floating-point tensor.
    """

    kind = "masking"


class BitFlip(_RateCorruption):
    """x̃ = 1 − x with probability ``rate``, else x. Arguments and errors as :class:`Masking`."""

    kind = "bit_flip"


class SaltAndPepper(_RateCorruption):
    """With probability ``rate`` x̃ is 1 (with probability ``salt``) or 0, else x.

    Args:
        rate: probability in [0, 1] that an element is hit; a number or a tensor per dimension.
        salt: probability in [0, 1] that a hit element becomes 1; likewise. Default 0.5.

    Raises:
        ValueError: if a probability lies outside [0, 1].
        TypeError: if one is neither a number nor a floating-point tensor.
    """

    kind = "salt_and_pepper"

    def __init__(self, rate: float | torch.Tensor, salt: float | torch.Tensor = 0.5) -> None:
        super().__init__(rate)
        self.salt = _parameter("salt", salt, 0.0, 1.0).to(torch.float32).to(self.parameter.device)
        if self.salt.numel() != 1 and self.parameter.numel() == 1:
            self.parameter = self.parameter.reshape(1).expand(self.salt.numel()).contiguous()

    @classmethod
    def as_released(cls, rate: float | torch.Tensor) -> SaltAndPepper:
        """The variant in the paper's released code: P(1) = rate², P(0) = rate·(1 − rate).

        The code reuses one probability for both decisions, so its salt probability is the rate
        itself. For reproducing published numbers; not what the paper's text describes.
        """
        return cls(rate, salt=rate)


class AdditiveGaussian(Corruption):
    """x̃ = x + std · n, n ~ N(0, 1). Differentiable in x and in ``std``.

    Args:
        std: standard deviation >= 0 in the units of x; a number or a tensor per data dimension.

    Raises:
        ValueError: if a standard deviation is negative or not finite.
        TypeError: if ``std`` is neither a number nor a floating-point tensor.
    """

    kind = "gaussian"

    def __init__(self, std: float | torch.Tensor) -> None:
        self.parameter = _parameter("std", std, 0.0, math.inf)

    @property
    def std(self) -> torch.Tensor:
        """The standard deviation, the tensor given if one was given."""
        return self.parameter


#: Constructors by the name used on the command line; each takes the level (rate or std).
CORRUPTIONS: dict[str, Callable[[float | torch.Tensor], Corruption]] = {
    "identity": lambda level: Identity(),
    "masking": Masking,
    "salt-and-pepper": SaltAndPepper,
    "salt-and-pepper-released": SaltAndPepper.as_released,
    "bit-flip": BitFlip,
    "gaussian": AdditiveGaussian,
}


def make_corruption(name: str, level: float | torch.Tensor) -> Corruption:
    """The corruption called ``name`` at rate or standard deviation ``level``, one or one a pixel.

    Raises:
        ValueError: if ``name`` is not one of :data:`CORRUPTIONS` or the level is out of range.
    """
    if name not in CORRUPTIONS:
        raise ValueError(f"corruption must be one of {', '.join(CORRUPTIONS)}; got {name!r}")
    return CORRUPTIONS[name](level)
