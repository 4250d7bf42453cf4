"""Bernoulli: binary data, by logits or by probabilities."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor

from dvae_fast.likelihoods.base import OfLogits, checked_mean
from dvae_fast.likelihoods.links import identity, sigmoid

if TYPE_CHECKING:
    from dvae_fast.likelihoods.base import Links

__all__ = ["Bernoulli"]


class Bernoulli(OfLogits):
    """p(x|z) = Π σ(l)^x (1 − σ(l))^(1−x) from logits l; x in [0, 1].

    Args:
        probabilities: take σ(l) itself, for a decoder that ends in a sigmoid. Logits are more
            exact: a probability of 1 − 1e-9 is 1 in float32, and costs an x below 1 everything.
    """

    kernel: str | None = "bernoulli"
    params: ClassVar[Links] = {"logits": identity}
    interval = (0.0, 1.0)

    is_density = False
    of_probabilities = "the likelihood must be Bernoulli(probabilities=True)."

    def __init__(self, probabilities: bool = False) -> None:
        if not isinstance(probabilities, bool):
            raise TypeError(f"probabilities must be a bool, got {type(probabilities).__name__}")
        self.probabilities = probabilities
        if probabilities:
            if self.kernel is not None:  # as of a subclass with a density of its own
                self.kernel = "bernoulli_probabilities"
            self.params = {"probabilities": sigmoid}  # type: ignore[misc]

    def log_prob(self, params: tuple[Tensor], x: Tensor) -> Tensor:
        """x l − log(1 + e^l), as −(c |l| + log1p(e^−|l|)) with c = 1 − x if l > 0 else x.

        Where c = 0 the first term is 0 even at l = ±inf, so that log p has its limit there.
        """
        if self.probabilities:
            return _of_probabilities(*params, x)
        (logits,) = params
        c = torch.where(logits > 0, 1 - x, x)
        # Not abs, whose derivative at 0 is neither side's.
        magnitude = torch.where(logits > 0, logits, -logits)
        # Only there: elsewhere c = 0 has a derivative in x.
        limit = (c == 0) & magnitude.isinf()
        linear = c * magnitude.masked_fill(limit, 0.0)
        return -(linear + torch.log1p(torch.exp(-magnitude)))

    def derivatives(self, params: tuple[Tensor, ...], x: Tensor) -> tuple[Tensor, ...]:
        """x − σ(l), or x/p − (1 − x)/(1 − p)."""
        if self.probabilities:
            return (_derivative_of_probabilities(params[0], x),)
        return (x - torch.sigmoid(params[0]),)

    def derivative_in_x(self, params: tuple[Tensor, ...], x: Tensor) -> Tensor:
        """l, whatever x; or log p − log (1 − p)."""
        (logits,) = params
        if self.probabilities:
            one, zero, outside = _inside(logits, x)
            return torch.log(one) - torch.log1p(-zero) + outside
        return logits.expand(torch.broadcast_shapes(logits.shape, x.shape))

    def doubt_data(self, x: Tensor) -> str | None:
        """Grey values, of which a Bernoulli is no distribution."""
        grey = sum(int(((part > 0) & (part < 1)).sum()) for part in x.split(1024))
        if grey == 0:
            return None
        return (
            f"{grey:,} of the {x.numel():,} values of x lie between 0 and 1, of which a Bernoulli "
            "is no distribution: these numbers are no log-likelihood, and their bits per dimension "
            "no code length. Binarise x, or take a likelihood of grey values."
        )

    @property
    def doubtful(self) -> tuple[float, float] | None:
        """Where probabilities lie, which are taken for logits now and then."""
        return None if self.probabilities else super().doubtful

    def check_values(self, params: tuple[Tensor, ...]) -> None:
        (p,) = params
        if self.probabilities and bool(((p < 0) | (p > 1)).any()):
            raise ValueError(
                f"probabilities must lie in [0, 1], got values from {p.min().item():g} "
                f"to {p.max().item():g}"
            )

    def start(self, data_mean: Tensor) -> Tensor:
        return sigmoid.inverse(checked_mean(data_mean, sigmoid.interval))

    def mean(self, params: tuple[Tensor]) -> Tensor:
        return params[0] if self.probabilities else torch.sigmoid(params[0])

    def sample(self, params: tuple[Tensor], generator: torch.Generator | None = None) -> Tensor:
        return torch.bernoulli(self.mean(params), generator=generator)

    def __repr__(self) -> str:
        return f"Bernoulli({'probabilities=True' if self.probabilities else ''})"


# 0 · log 0 is 0, and its derivative in p too; NaN of a p outside [0, 1].


def _inside(p: Tensor, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """p where it has a logarithm that counts, that of 1 − p has, and 0, or NaN outside."""
    never, always = (x == 0) & (p == 0), (x == 1) & (p == 1)
    outside = torch.where((p < 0) | (p > 1), math.nan, 0.0)
    return p.masked_fill(never, 1.0), p.masked_fill(always, 0.0), outside


def _of_probabilities(p: Tensor, x: Tensor) -> Tensor:
    """x log p + (1 − x) log (1 − p)."""
    one, zero, outside = _inside(p, x)
    return x * torch.log(one) + (1 - x) * torch.log1p(-zero) + outside


def _derivative_of_probabilities(p: Tensor, x: Tensor) -> Tensor:
    one, zero, outside = _inside(p, x)
    return x / one - (1 - x) / (1 - zero) + outside
