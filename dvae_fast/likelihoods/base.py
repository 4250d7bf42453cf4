"""Decoder likelihoods p(x|z) the kernels can evaluate.

A likelihood names its formula in ``csrc/core/likelihoods.h`` (log-density and derivative per
element) and knows what the kernels need not: how many decoder outputs it takes, its support,
its mean, and how to draw from it.
"""

from __future__ import annotations

import math
from typing import ClassVar

import torch

__all__ = [
    "LIKELIHOODS",
    "Bernoulli",
    "DiscretisedLogistic",
    "Gaussian",
    "Likelihood",
    "NegativeBinomial",
    "get_likelihood",
]


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


class Bernoulli(Likelihood):
    """p(x|z) = Π σ(l)^x (1 − σ(l))^(1−x) from logits l; x in [0, 1]."""

    kind = "bernoulli"
    params = ("logits",)
    support = (0.0, 1.0)

    def mean(self, params: torch.Tensor | tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
        assert isinstance(params, torch.Tensor)
        return torch.sigmoid(params)

    def sample(self, params: torch.Tensor | tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
        return torch.bernoulli(self.mean(params))


class Gaussian(Likelihood):
    """p(x|z) = Π N(x; mean, scale²), scale > 0: scalar, one per dimension, or full."""

    kind = "gaussian"
    params = ("mean", "scale")

    def mean(self, params: torch.Tensor | tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
        return params[0]

    def sample(self, params: torch.Tensor | tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
        mean, scale = params
        return mean + scale * torch.randn_like(mean)


class DiscretisedLogistic(Likelihood):
    """256 grey levels x in {0, 1/255, …, 1}: a logistic's mass in the bin x ± ½/255.

    p(x|z) = Π σ((x + ½/255 − mean)/scale) − σ((x − ½/255 − mean)/scale), the first bin open below
    and the last above, so that the levels' probabilities sum to 1; scale > 0: scalar, one per
    dimension, or full. log p is of a discrete x, in nats: no density to correct for.

    Source: Salimans, Karpathy, Chen, Kingma (arXiv 1701.05517), equation 2; Kingma et al.
    (arXiv 1606.04934), equation 19.
    """

    kind = "discretised_logistic"
    params = ("mean", "scale")
    support = (0.0, 1.0)
    step = 1 / 255

    def mean(self, params: torch.Tensor | tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
        """E[x|z], which near 0 and 1, where bins are open, is not the logistic's own mean."""
        mean, scale = params
        # x is the number of bins' edges below a logistic draw, over 255.
        total = torch.zeros_like(mean)
        for edge in range(255):
            total += torch.sigmoid((mean - (edge + 0.5) / 255) / scale)
        return total / 255

    def sample(self, params: torch.Tensor | tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
        mean, scale = params
        draw = mean + scale * torch.logit(torch.rand_like(mean))
        return (draw * 255).round().clamp(0, 255) / 255


class NegativeBinomial(Likelihood):
    """Counts x = 0, 1, 2, … with mean > 0 and inverse dispersion ("scale") θ > 0.

    log p = log Γ(x + θ)/Γ(θ) − log x! + θ log θ/(θ + mean) + x log mean/(θ + mean): the variance
    is mean + mean²/θ, and a Poisson's where θ is infinite. θ is a scalar, one per dimension, or
    full. A mean of 0 gives its limits, 0 for x = 0 and −inf for any other.

    Source: Lopez et al., Nature Methods 15 (2018), scVI's parametrisation.
    """

    kind = "negative_binomial"
    params = ("mean", "scale")
    support = (0.0, math.inf)
    step = 1.0
    least_mean = 0.0

    def mean(self, params: torch.Tensor | tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
        return params[0]

    def sample(self, params: torch.Tensor | tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
        # A Poisson whose rate is drawn from a gamma of mean `mean` and shape θ.
        mean, scale = params
        return torch.poisson(torch._standard_gamma(scale.expand_as(mean)) * (mean / scale))


LIKELIHOODS: dict[str, Likelihood] = {
    likelihood.kind: likelihood
    for likelihood in (Bernoulli(), Gaussian(), DiscretisedLogistic(), NegativeBinomial())
}


def get_likelihood(likelihood: str | Likelihood) -> Likelihood:
    """The likelihood object for a name or an object.

    Raises:
        ValueError: if the name is not one of :data:`LIKELIHOODS`.
        TypeError: if it is neither a string nor a :class:`Likelihood`.
    """
    if isinstance(likelihood, Likelihood):
        return likelihood
    if not isinstance(likelihood, str):
        raise TypeError(
            f"likelihood must be a string or a Likelihood, got {type(likelihood).__name__}"
        )
    if likelihood not in LIKELIHOODS:
        raise ValueError(f"likelihood must be one of {', '.join(LIKELIHOODS)}; got {likelihood!r}")
    return LIKELIHOODS[likelihood]
