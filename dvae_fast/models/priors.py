"""Priors p(z): what a model draws z from, and what its log-weights hold."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from dvae_fast._checks import check_size

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["PRIORS", "Prior", "StandardNormal", "check_prior", "standard_normal_log_prob"]


@runtime_checkable
class Prior(Protocol):
    """What a prior must have; a module's parameters are learnt with the model's."""

    def log_prob(self, z: Tensor) -> Tensor:
        """The log-density of each z in nats, (..., Z) → (...); differentiable in z."""

    def sample(self, n: int, generator: torch.Generator | None = None) -> Tensor:
        """n draws, (n, Z)."""


def standard_normal_log_prob(z: Tensor) -> Tensor:
    """log N(z; 0, I): (..., Z) → (...)."""
    return -0.5 * (z.square().sum(-1) + z.shape[-1] * math.log(2 * math.pi))


class StandardNormal(nn.Module):
    """N(0, I), which the fused operators know.

    Args:
        latent_size: Z.
    """

    def __init__(self, latent_size: int) -> None:
        super().__init__()
        self.latent_size = check_size("latent_size", latent_size)

    def log_prob(self, z: Tensor) -> Tensor:
        """(..., Z) → (...)."""
        return standard_normal_log_prob(z)

    def sample(self, n: int, generator: torch.Generator | None = None) -> Tensor:
        """n draws, (n, Z), on the generator's device."""
        device = None if generator is None else generator.device
        return torch.randn(n, self.latent_size, generator=generator, device=device)

    def extra_repr(self) -> str:
        """Z."""
        return str(self.latent_size)


#: Constructors of the priors by the name used in configurations; each takes Z.
PRIORS: dict[str, Callable[[int], nn.Module]] = {"standard": StandardNormal}


def check_prior(prior: object) -> None:
    """Raise TypeError unless `prior` can give densities and draws."""
    if not isinstance(prior, Prior):
        raise TypeError(
            "prior must be a name or an object with log_prob(z) and sample(n, generator), "
            f"got {type(prior).__name__}"
        )
