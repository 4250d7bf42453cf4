"""What every likelihood has."""

from __future__ import annotations

import math
from typing import ClassVar

import torch

__all__ = ["Likelihood"]


class Likelihood:
    """Base of all likelihoods. ``kind`` selects the kernel's formula."""

    kind: ClassVar[str] = ""
    #: names of the decoder outputs, in order
    params: ClassVar[tuple[str, ...]] = ()
    #: closed interval outside which data has no density
    support: ClassVar[tuple[float, float]] = (-math.inf, math.inf)
    #: distance between the values that data may have, counted from 0; 0 for a continuum
    step: ClassVar[float] = 0.0
    #: the least mean there is
    least_mean: ClassVar[float] = -math.inf

    def check_support(self, x: torch.Tensor) -> None:
        """Raise ValueError if a value of ``x`` lies outside the support (NaN passes)."""
        lower, upper = self.support
        if bool(((x < lower) | (x > upper)).any()):
            raise ValueError(
                f"x must lie in [{lower:g}, {upper:g}], the support of the {self.kind} "
                f"likelihood, got values from {x.min().item():g} to {x.max().item():g}"
            )
        if self.step == 0:
            return
        steps = x / self.step
        # A grey level read as k/255 in float32 is a level; one that went through 16 bits is not.
        near = (steps - steps.round()).abs() <= torch.clamp(1e-6 * steps.abs(), min=1e-3)
        off = ~(near | steps.isnan()) | steps.isinf()
        if bool(off.any()):
            unit = "1" if self.step == 1 else f"1/{1 / self.step:.0f}"
            raise ValueError(
                f"x must hold multiples of {unit}, the support of the {self.kind} likelihood, "
                f"got {x[off][0].item():.9g}"
            )

    def check_mean(self, mean: torch.Tensor) -> None:
        """Raise ValueError if a decoder's mean lies below the least there is (NaN passes)."""
        if self.least_mean > -math.inf and bool((mean < self.least_mean).any()):
            raise ValueError(
                f"mean must be >= {self.least_mean:g} for the {self.kind} likelihood, "
                f"got a minimum of {mean.min().item():g}"
            )

    def mean(self, params: torch.Tensor | tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
        """E[x|z] in data space, the shape of the decoder output."""
        raise NotImplementedError

    def sample(self, params: torch.Tensor | tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
        """One draw x ~ p(x|z), governed by ``torch.manual_seed``."""
        raise NotImplementedError

    def __repr__(self) -> str:
        return f"{type(self).__name__}()"
