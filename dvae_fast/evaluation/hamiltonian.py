"""Hamiltonian moves that leave an intermediate distribution of annealing as it is."""

from __future__ import annotations

from typing import NamedTuple, Protocol

import torch
from torch import Tensor

__all__ = ["EXTRA_NORMALS", "Point", "Target", "from_normal", "move"]

# Relative to the step size, uniform: a fixed number of steps of a fixed size can carry a nearly
# Gaussian target through whole periods, back to where it was (Neal, arXiv 1206.1901, section 4.2).
_JITTER = 0.2
# Noise beyond the momentum: two normals for the acceptance, one for the jitter.
EXTRA_NORMALS = 3


class Point(NamedTuple):
    """Where chains are: u (B, C, Z), ℓ(u) (B, C) and ∇ℓ(u) (B, C, Z), and log f_0 but for a
    constant, likewise."""

    u: Tensor
    value: Tensor
    slope: Tensor
    base: Tensor
    base_slope: Tensor


def from_normal(u: Tensor, value: Tensor, slope: Tensor) -> Point:
    """A point where f_0 is N(0, I) of u."""
    return Point(u, value, slope, -0.5 * u.square().sum(-1), -u)


class Target(Protocol):
    def __call__(self, u: Tensor) -> Point:
        """What a point holds at u."""


def _leapfrog(
    target: Target, point: Point, momentum: Tensor, beta: float, step: Tensor, count: int
) -> tuple[Point, Tensor]:
    """`count` leapfrog steps of size `step` (broadcastable to u), each one evaluation."""
    half = 0.5 * step
    momentum = momentum + half * (beta * point.slope + point.base_slope)
    for i in range(count):
        point = target(point.u + step * momentum)
        kick = step if i < count - 1 else half
        momentum = momentum + kick * (beta * point.slope + point.base_slope)
    return point, momentum


def _energy(point: Point, momentum: Tensor, beta: float) -> Tensor:
    """−log of f_β(u) N(momentum; 0, I) but for a constant, (B, C)."""
    return 0.5 * momentum.square().sum(-1) - point.base - beta * point.value


def move(
    target: Target, point: Point, beta: float, step: Tensor, leapfrog: int, noise: Tensor
) -> tuple[Point, Tensor]:
    """A Hamiltonian move that leaves f_β as it is, and its acceptance probability, (B, C).

    step: (B,). noise: (B, C, Z + 3) standard normals.
    """
    size = point.u.shape[-1]
    momentum, extra = noise[..., :size], noise[..., size:]
    # −log of a uniform is exponential, as is half the sum of two squared normals.
    threshold = -0.5 * extra[..., :2].square().sum(-1)
    jitter = 1 + _JITTER * (2 * torch.special.ndtr(extra[..., 2:]) - 1)
    proposal, end = _leapfrog(target, point, momentum, beta, step.view(-1, 1, 1) * jitter, leapfrog)
    log_ratio = _energy(point, momentum, beta) - _energy(proposal, end, beta)
    # A proposal of density 0, or one that ran away and is NaN, is refused.
    accept = threshold < log_ratio
    taken = Point(
        *(torch.where(accept.view(*accept.shape, *[1] * (new.dim() - 2)), new, old)
          for new, old in zip(proposal, point, strict=True))
    )  # fmt: skip
    return taken, torch.exp(log_ratio.clamp(max=0)).nan_to_num(0.0)
