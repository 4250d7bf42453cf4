"""Corruption distributions p(x̃|x) the kernels can draw from.

A corruption is a small immutable object: its ``kind`` names the formula in
``csrc/core/corruptions.h`` and its parameters are checked once, here, when it is built, so
that drawing costs no validation. Source: Im, Ahn, Memisevic, Bengio, "Denoising Criterion for
Variational Auto-Encoding Framework" (arXiv 1511.06406), section 2.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, ClassVar, cast

import torch
from torch import Tensor
from torch.nn import functional as F

from dvae_fast import ops as _ops  # noqa: F401  (registers the operators)
from dvae_fast import reference
from dvae_fast._checks import check_choice, check_dense, is_number
from dvae_fast._dtypes import accumulation_dtype
from dvae_fast.corruptions.base import Corruption
from dvae_fast.functional._autograd import Operation, differentiable, keep, needs_function, operator

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import TypeVar

    Fused = TypeVar("Fused", bound="FusedCorruption")
    Rate = TypeVar("Rate", bound="RateCorruption")

__all__ = [
    "CORRUPTIONS",
    "AdditiveGaussian",
    "BitFlip",
    "FusedCorruption",
    "Identity",
    "Masking",
    "RateCorruption",
    "SaltAndPepper",
    "make_corruption",
    "rates_from_mean",
]


_op: Any = torch.ops.dvae_fast


def _parameter(name: str, value: float | Tensor, lower: float, upper: float) -> Tensor:
    """``value`` as a floating tensor after checking that it lies in [lower, upper]."""
    if isinstance(value, Tensor):
        check_dense(name, value)
        if not value.is_floating_point():
            raise TypeError(f"{name} must be a float or a floating-point tensor, got {value.dtype}")
        tensor = value
    elif is_number(value):
        # Not on a default device, "meta" perhaps: the value is looked at below.
        tensor = torch.tensor(float(value), device="cpu")
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


_corrupt = operator("corrupt")
_corrupt_backward = differentiable("corrupt_backward")
_corrupt_backward_std = differentiable("corrupt_backward_std")


class _Corrupt(Operation):
    formula = staticmethod(lambda *args: reference.corrupt(*args[:-1]))

    @staticmethod
    def forward(
        x: Tensor,
        kind: str,
        parameter: Tensor,
        salt: Tensor | None,
        seed: Tensor,
        copies: int,
        first_example: int,
        first_copy: int,
        additive: bool,
    ) -> Tensor:
        where = (copies, first_example, first_copy)
        return cast("Tensor", _corrupt(x, kind, parameter, salt, seed, *where))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        keep(ctx, output, None, *inputs[1:])

    @staticmethod
    def pull(grads: Sequence[Tensor | None], need: Sequence[bool], *args: Any) -> tuple[Any, ...]:
        _, kind, parameter, salt, seed, _, *first, additive = args
        grad_x = grad_parameter = None
        if need[0]:
            grad_x = _corrupt_backward(*grads, kind, parameter, salt, seed, *first)
        if need[2] and additive:
            grad_parameter = _corrupt_backward_std(*grads, parameter, seed, *first)
        return grad_x, None, grad_parameter, *(None,) * 6


class FusedCorruption(Corruption):
    """Base of the corruptions that a kernel draws. ``kind`` selects its formula.

    ``parameter`` is the rate (a probability per element) or the standard deviation, with one
    element or one per data dimension; ``salt`` is only used by salt and pepper.
    """

    kind: ClassVar[str] = ""
    parameter: Tensor
    salt: Tensor | None = None
    #: how `Learnable` may learn the parameter, the first by default; what the parameter is called,
    #: and where it must lie for that
    estimators: ClassVar[tuple[str, ...]] = ()
    level_name: ClassVar[str]
    level_rule: ClassVar[str]
    level_limit: ClassVar[float]
    #: whether it adds noise times the parameter, which then has a gradient; whether it has a salt
    additive: ClassVar[bool] = False
    salted: ClassVar[bool] = False
    _moved: FusedCorruption | None = None

    @staticmethod
    def constrained(free: Tensor) -> Tensor:
        """The parameter that `Learnable` makes of a number without limits."""
        raise NotImplementedError

    @staticmethod
    def unconstrained(level: Tensor) -> Tensor:
        """The number that gives a parameter."""
        raise NotImplementedError

    def to(self, device: torch.device | str) -> FusedCorruption:
        """The same corruption with its parameters on ``device``."""
        if self.parameter.device == torch.device(device):
            return self
        salt = None if self.salt is None else self.salt.to(device)
        return self.at(self.parameter.to(device), salt)

    def _on(self, device: torch.device) -> tuple[Tensor, Tensor | None]:
        """Parameter and salt there, moved once and not at every draw."""
        here: FusedCorruption = self
        if self.parameter.device != device:
            if self._moved is None or self._moved.parameter.device != device:
                self._moved = self.to(device)
            here = self._moved
            if self.parameter.requires_grad:  # its owner will change the original
                self._moved = None
        return here.parameter, here.salt

    @classmethod
    def at(cls: type[Fused], parameter: Tensor, salt: Tensor | None = None) -> Fused:
        """With a parameter known to be in range: checking would read it on the host."""
        made = object.__new__(cls)
        made.parameter, made.salt = parameter, salt
        return made

    def check(self, x: Tensor) -> None:
        size = math.prod(x.shape[1:])
        for name, value in (("parameter", self.parameter), ("salt", self.salt)):
            if value is not None and value.numel() not in (1, size):
                raise ValueError(
                    f"corruption's {name} must have 1 element or one per data dimension ({size}), "
                    f"got shape {tuple(value.shape)}"
                )

    def draw(
        self, x: Tensor, copies: int, key: Tensor, first_example: int, first_copy: int
    ) -> Tensor:
        """x (B, ...) → x̃ (M, B, ...); see `Corruption`."""
        parameter, salt = self._on(x.device)
        flat = x if x.dim() == 2 else x.reshape(x.shape[0], math.prod(x.shape[1:]))
        if self.additive and parameter.dtype != accumulation_dtype(x.dtype):
            parameter = parameter.to(accumulation_dtype(x.dtype))
        where = (copies, first_example, first_copy)
        args = (flat, self.kind, parameter, salt, key, *where)
        if needs_function(flat, parameter):
            out = _Corrupt.apply(*args, self.additive)
        else:
            out = _op.corrupt(*args)
        return cast("Tensor", out.view(copies, *x.shape))

    def __repr__(self) -> str:
        def show(t: Tensor) -> str:
            if t.numel() == 1:
                return f"{t.item():.6g}"
            return f"<tensor {tuple(t.shape)}, mean {t.detach().mean().item():.4g}>"

        parts = [show(self.parameter)]
        if self.salt is not None:
            parts.append(f"salt={show(self.salt)}")
        return f"{type(self).__name__}({', '.join(parts)})"


class Identity(FusedCorruption):
    """x̃ = x: turns DVAE into VAE and DIWAE into IWAE."""

    kind = "identity"

    def __init__(self) -> None:
        self.parameter = torch.zeros((), device="cpu")

    def __repr__(self) -> str:
        return "Identity()"


def is_identity(corruption: Any) -> bool:
    """Whether x̃ is x: no corruption, or one that changes nothing."""
    return corruption is None or isinstance(corruption, Identity)


def rates_from_mean(mean_image: Tensor, rate: float) -> Tensor:
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
    if not isinstance(mean_image, Tensor):
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


class RateCorruption(FusedCorruption):
    estimators = ("score", "relaxed")
    level_name, level_rule, level_limit = "rate", "in (0, 1)", 1.0

    @staticmethod
    def constrained(free: Tensor) -> Tensor:
        return torch.sigmoid(free)

    @staticmethod
    def unconstrained(level: Tensor) -> Tensor:
        return torch.logit(level)

    def __init__(self, rate: float | Tensor) -> None:
        # Masks are decided in float32 whatever the data's dtype, so that they are the same bits.
        self.parameter = _parameter("rate", rate, 0.0, 1.0).to(torch.float32)

    @classmethod
    def at(cls: type[Fused], parameter: Tensor, salt: Tensor | None = None) -> Fused:
        """As of any; in float32."""
        return super().at(parameter.float(), None if salt is None else salt.float())

    @classmethod
    def from_mean(cls: type[Rate], data_mean: Tensor, rate: float, **options: Any) -> Rate:
        """With the rates of `rates_from_mean`; options and errors as the constructor's too."""
        return cls(rates_from_mean(data_mean, rate), **options)

    def hit(self, x: Tensor, copies: int, key: Tensor, *first: int) -> Tensor:
        """What a hit makes of x (B, D), as broadcasts to (M, B, D)."""
        raise NotImplementedError

    def hit_probability(self, noisy: Tensor, x: Tensor) -> Tensor:
        """P(x̃|x, hit) per element."""
        raise NotImplementedError

    def change_probability(self, x: Tensor) -> Tensor:
        """P(x̃ ≠ x|x) per element of (B, D)."""
        rate, _ = self._on(x.device)
        return rate.reshape(-1).to(accumulation_dtype(x.dtype)) * self._differs(x)

    def _differs(self, x: Tensor) -> Tensor:
        """P(x̃ ≠ x|x, hit) per element."""
        raise NotImplementedError

    def changed(self, x: Tensor) -> Tensor:
        """x̃ where it is not x, of a corruption that is not salted."""
        raise NotImplementedError

    def salt_probability(self, x: Tensor) -> Tensor:
        """P(x̃ = 1|x, x̃ ≠ x) per element of (B, D), of one that is; 0 where x̃ is x."""
        raise NotImplementedError


class Masking(RateCorruption):
    """x̃ = 0 with probability ``rate``, else x.

    Args:
        rate: probability in [0, 1]; a number, or a tensor with one value per data dimension.

    Raises:
        ValueError: if a rate lies outside [0, 1].
        TypeError: if ``rate`` is neither a number nor a floating-point tensor.
    """

    kind = "masking"

    def hit(self, x: Tensor, copies: int, key: Tensor, *first: int) -> Tensor:
        return torch.zeros_like(x)

    def hit_probability(self, noisy: Tensor, x: Tensor) -> Tensor:
        return noisy == 0

    def _differs(self, x: Tensor) -> Tensor:
        return x != 0

    def changed(self, x: Tensor) -> Tensor:
        return torch.zeros_like(x)


class BitFlip(RateCorruption):
    """x̃ = 1 − x with probability ``rate``, else x. Arguments and errors as :class:`Masking`."""

    kind = "bit_flip"

    def hit(self, x: Tensor, copies: int, key: Tensor, *first: int) -> Tensor:
        return 1 - x

    def hit_probability(self, noisy: Tensor, x: Tensor) -> Tensor:
        return noisy == 1 - x

    def _differs(self, x: Tensor) -> Tensor:
        return 1 - x != x

    def changed(self, x: Tensor) -> Tensor:
        return 1 - x


class SaltAndPepper(RateCorruption):
    """With probability ``rate`` x̃ is 1 (with probability ``salt``) or 0, else x.

    Args:
        rate: probability in [0, 1] that an element is hit; a number or a tensor per dimension.
        salt: probability in [0, 1] that a hit element becomes 1; likewise. Default 0.5.

    Raises:
        ValueError: if a probability lies outside [0, 1].
        TypeError: if one is neither a number nor a floating-point tensor.
    """

    kind = "salt_and_pepper"
    salted = True

    def __init__(self, rate: float | Tensor, salt: float | Tensor = 0.5) -> None:
        super().__init__(rate)
        self.salt = _parameter("salt", salt, 0.0, 1.0).to(torch.float32).to(self.parameter.device)
        if self.salt.numel() != 1 and self.parameter.numel() == 1:
            self.parameter = self.parameter.reshape(1).expand(self.salt.numel()).contiguous()

    @classmethod
    def as_released(cls, rate: float | Tensor) -> SaltAndPepper:
        """The variant in the paper's released code: P(1) = rate², P(0) = rate·(1 − rate).

        The code reuses one probability for both decisions, so its salt probability is the rate
        itself. For reproducing published numbers; not what the paper's text describes.
        """
        return cls(rate, salt=rate)

    def hit(self, x: Tensor, copies: int, key: Tensor, *first: int) -> Tensor:
        salt = cast("Tensor", self.salt)
        certain = self.at(torch.ones_like(salt), salt)
        return certain.draw(torch.zeros_like(x), copies, key, *first)

    def hit_probability(self, noisy: Tensor, x: Tensor) -> Tensor:
        salt = cast("Tensor", self.salt).to(accumulation_dtype(noisy.dtype))
        return torch.where(noisy == 1, salt, torch.where(noisy == 0, 1 - salt, 0.0))

    def _differs(self, x: Tensor) -> Tensor:
        salt = self._salt(x)
        return salt * (x != 1) + (1 - salt) * (x != 0)

    def salt_probability(self, x: Tensor) -> Tensor:
        differs = self._differs(x)
        return self._salt(x) * (x != 1) / torch.where(differs == 0, 1.0, differs)

    def _salt(self, x: Tensor) -> Tensor:
        salt = cast("Tensor", self._on(x.device)[1])
        return salt.reshape(-1).to(accumulation_dtype(x.dtype))


class AdditiveGaussian(FusedCorruption):
    """x̃ = x + std · n, n ~ N(0, 1). Differentiable in x and in ``std``.

    Args:
        std: standard deviation >= 0 in the units of x; a number or a tensor per data dimension.

    Raises:
        ValueError: if a standard deviation is negative or not finite.
        TypeError: if ``std`` is neither a number nor a floating-point tensor.
    """

    kind = "gaussian"
    estimators = ("pathwise",)
    level_name, level_rule, level_limit = "std", "> 0", math.inf
    additive = True

    @staticmethod
    def constrained(free: Tensor) -> Tensor:
        return F.softplus(free)

    @staticmethod
    def unconstrained(level: Tensor) -> Tensor:
        return level + torch.log(-torch.expm1(-level))

    def __init__(self, std: float | Tensor) -> None:
        self.parameter = _parameter("std", std, 0.0, math.inf)

    @property
    def std(self) -> Tensor:
        """The standard deviation, the tensor given if one was given."""
        return self.parameter


#: Constructors by the name used on the command line; each takes the level (rate or std).
CORRUPTIONS: dict[str, Callable[[float | Tensor], Corruption]] = {
    "identity": lambda level: Identity(),
    "masking": Masking,
    "salt_and_pepper": SaltAndPepper,
    "salt_and_pepper_released": SaltAndPepper.as_released,
    "bit_flip": BitFlip,
    "gaussian": AdditiveGaussian,
}


def make_corruption(name: str, level: float | Tensor) -> Corruption:
    """The corruption called ``name`` at rate or standard deviation ``level``, one or one a pixel.

    Raises:
        ValueError: if ``name`` is not one of :data:`CORRUPTIONS` or the level is out of range.
    """
    check_choice("corruption", name, CORRUPTIONS)
    return CORRUPTIONS[name](level)
