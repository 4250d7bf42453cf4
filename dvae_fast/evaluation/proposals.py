"""What importance samples are drawn from: q(z|x), q(z|x̃) or the mixture of q(z|x̃_m).

Each estimates the same log p(x), for each weight p(x, z) / q has expectation p(x). A batch is
encoded once; then samples are drawn in any chunks, a function of (seed, example, sample) alone.
"""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor

from dvae_fast import functional, noise
from dvae_fast._checks import check_choice, check_count
from dvae_fast.corruptions import Corruption, Identity, as_corruption, corrupt
from dvae_fast.models import gaussian_log_ratio
from dvae_fast.models.posterior import is_full, place

if TYPE_CHECKING:
    from collections.abc import Callable

    from dvae_fast.evaluation.target import Evaluated

__all__ = ["PROPOSALS", "Drawer", "Proposal"]

#: "posterior": q(z|x) on the clean input. "corrupted": q(z|x̃) with a fresh x̃ for each sample, which
#: encodes as often. "mixture": 1/M Σ_m q(z|x̃_m), M encodings an example, its own density in the
#: weights.
PROPOSALS = ("posterior", "corrupted", "mixture")


class Drawer(Protocol):
    """The proposal of some examples, encoded; `key` and `first_example` are their noise's."""

    key: Tensor
    first_example: int

    def draw(self, k: int, first_sample: int) -> tuple[Tensor, Tensor]:
        """z (B, k, Z), and log_ratio = log p(z) − log q (B, k), of samples first_sample, …"""

    def row(self, i: int) -> Drawer:
        """That of the i-th example alone."""

    def with_key(self, key: Tensor) -> Drawer:
        """The same proposal, for other draws."""


class Proposal:
    """How to draw; `encode` makes the `Drawer` of a batch.

    Args:
        name: one of `PROPOSALS`.
        corruption: p(x̃|x); needed but for "posterior".
        copies: M >= 1, of "mixture".

    Raises:
        TypeError, ValueError: naming the argument, the rule and the value.

    Source: Im, Ahn, Memisevic, Bengio (arXiv 1511.06406), section 3: q̃(z|x) = E_p(x̃|x) q(z|x̃).
    """

    def __init__(self, name: str, corruption: Corruption | None, copies: int) -> None:
        check_choice("proposal", name, PROPOSALS)
        if corruption is not None:
            corruption = as_corruption(corruption)
        if name != "posterior" and corruption is None:
            raise ValueError(
                f"proposal {name!r} must come with a corruption: the model has none, and none is "
                "given"
            )
        check_count("copies", copies, 1)
        self.name = name
        self.corruption = corruption or Identity()
        self.copies = int(copies)

    def encode(self, evaluated: Evaluated, x: Tensor, key: Tensor, first_example: int) -> Drawer:
        """Encode x (B, D), the examples first_example, … of the noise."""
        if self.name == "posterior":
            return _Posterior(evaluated.draw, evaluated.posterior(x), key, first_example)
        if evaluated.discrete:
            raise ValueError(f"proposal must be posterior for binary latents, got {self.name!r}")
        corruption = self.corruption = self.corruption.to(x.device)  # once, not at every batch
        x = evaluated.encoded(x)
        if self.name == "corrupted":
            return _Corrupted(evaluated, x, corruption, key, first_example)
        noisy = corrupt(x, corruption, self.copies, key, first_example=first_example)
        mean, spread = (
            part.unflatten(0, (self.copies, len(x)))
            for part in evaluated.posterior(noisy.flatten(0, 1))
        )
        return _Mixture(mean, spread, key, first_example)


class _Posterior:
    def __init__(
        self,
        sample: Callable[..., tuple[Tensor, Tensor]],
        parts: tuple[Tensor, ...],
        key: Tensor,
        first_example: int,
    ) -> None:
        self.sample, self.parts = sample, parts
        self.key, self.first_example = key, first_example

    def draw(self, k: int, first_sample: int) -> tuple[Tensor, Tensor]:
        return self.sample(
            *self.parts, k, self.key, first_example=self.first_example, first_sample=first_sample
        )

    def row(self, i: int) -> _Posterior:
        parts = tuple(part[i : i + 1] for part in self.parts)
        return _Posterior(self.sample, parts, self.key, self.first_example + i)

    def with_key(self, key: Tensor) -> _Posterior:
        return _Posterior(self.sample, self.parts, key, self.first_example)


class _Corrupted:
    def __init__(
        self,
        evaluated: Evaluated,
        x: Tensor,
        corruption: Corruption,
        key: Tensor,
        first_example: int,
    ) -> None:
        self.evaluated, self.x, self.corruption = evaluated, x, corruption
        self.key, self.first_example = key, first_example

    def draw(self, k: int, first_sample: int) -> tuple[Tensor, Tensor]:
        noisy = corrupt(
            self.x, self.corruption, k, self.key,
            first_example=self.first_example, first_copy=first_sample,
        )  # fmt: skip
        b = self.x.shape[0]
        mean, spread = (
            part.unflatten(0, (k, b)).transpose(0, 1)  # (B, k, Z), (B, k, Z, Z) if full
            for part in self.evaluated.posterior(noisy.flatten(0, 1))
        )
        epsilon = _noise(b, k, mean, self.key, self.first_example, first_sample)
        z = place(mean, spread, epsilon)
        ratio = gaussian_log_ratio(
            z.reshape(b * k, 1, -1), mean.flatten(0, 1), spread.flatten(0, 1)
        )
        return z, ratio.view(b, k)

    def row(self, i: int) -> _Corrupted:
        other = copy.copy(self)
        other.x, other.first_example = self.x[i : i + 1], self.first_example + i
        return other

    def with_key(self, key: Tensor) -> _Corrupted:
        other = copy.copy(self)
        other.key = key
        return other


class _Mixture:
    """Sample s of an example is of component (s + u) mod M, with a u of its own: stratified, and
    yet each sample is marginally of the mixture, so that any k and any chunk is unbiased."""

    def __init__(self, mean: Tensor, spread: Tensor, key: Tensor, first_example: int) -> None:
        self.mean, self.spread = mean, spread  # (M, B, Z); (M, B, Z, Z) if full
        self.key, self.first_example = key, first_example
        b, device = mean.shape[1], mean.device
        example = torch.arange(first_example, first_example + b, device=device)
        zero = torch.zeros_like(example)
        self.u = noise.uniform_bits(
            zero + noise.STREAM_COMPONENT, example, zero, 1, key.to(device)
        )  # (B, 1)

    def draw(self, k: int, first_sample: int) -> tuple[Tensor, Tensor]:
        m, b, _ = self.mean.shape
        device = self.mean.device
        sample = torch.arange(first_sample, first_sample + k, device=device)
        which = (sample + self.u) % m  # (B, k)
        at = torch.arange(b, device=device)[:, None]
        mean, spread = self.mean[which, at], self.spread[which, at]  # (B, k, Z)
        epsilon = _noise(b, k, mean, self.key, self.first_example, first_sample)
        z = place(mean, spread, epsilon)
        if is_full(mean, spread):
            return z, _mixture_log_ratio(z, self.mean, self.spread)
        return z, functional.mixture_log_ratio(z, self.mean, self.spread)

    def row(self, i: int) -> _Mixture:
        one, other = slice(i, i + 1), copy.copy(self)
        other.mean, other.spread = self.mean[:, one], self.spread[:, one]
        other.u, other.first_example = self.u[one], self.first_example + i
        return other

    def with_key(self, key: Tensor) -> _Mixture:
        return _Mixture(self.mean, self.spread, key, self.first_example)


def _mixture_log_ratio(z: Tensor, mean: Tensor, spread: Tensor) -> Tensor:
    """As `mixture_log_ratio`, of components with full covariances."""
    each = torch.stack([gaussian_log_ratio(z, m, s) for m, s in zip(mean, spread, strict=True)])
    return -functional.logmeanexp(-each, 0)


def _noise(
    b: int, k: int, like: Tensor, key: Tensor, first_example: int, first_sample: int
) -> Tensor:
    """ε of `sample_latent`: (B, k, Z)."""
    zero = like.new_zeros(b, like.shape[-1])
    return functional.sample_latent(
        zero, zero, k, key, first_example=first_example, first_sample=first_sample
    )[0]
