"""Decoder likelihoods p(x|z) the kernels can evaluate.

A likelihood names its formula in ``csrc/core/likelihoods.h`` (log-density and derivative per
element) and knows what the kernels need not: how many decoder outputs it takes, its support,
its mean, and how to draw from it.
"""

from __future__ import annotations

import math
from typing import ClassVar

import torch

__all__ = ["LIKELIHOODS", "Bernoulli", "Gaussian", "Likelihood", "get_likelihood"]


class Likelihood:
    """Base of all likelihoods. ``kind`` selects the kernel's formula."""

    kind: ClassVar[str] = ""
    #: names of the decoder outputs, in order
    params: ClassVar[tuple[str, ...]] = ()
    #: closed interval outside which data has no density
    support: ClassVar[tuple[float, float]] = (-math.inf, math.inf)

    def check_support(self, x: torch.Tensor) -> None:
        """Raise ValueError if a value of ``x`` lies outside the support (NaN passes)."""
        lower, upper = self.support
        if bool(((x < lower) | (x > upper)).any()):
            raise ValueError(
                f"x must lie in [{lower:g}, {upper:g}], the support of the {self.kind} "
                f"likelihood, got values from {x.min().item():g} to {x.max().item():g}"
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


LIKELIHOODS: dict[str, Likelihood] = {"bernoulli": Bernoulli(), "gaussian": Gaussian()}


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
