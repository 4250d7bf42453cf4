"""What importance samples are drawn from: q(z|x), q(z|x̃) or the mixture of q(z|x̃_m).

Each estimates the same log p(x), for each weight p(x, z) / q has expectation p(x). A batch is
encoded once; then samples are drawn in any chunks, a function of (seed, example, sample) alone.
"""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any, Protocol, cast

import torch
from torch import Tensor

from dvae_fast import functional, noise
from dvae_fast._checks import check_choice, check_size
from dvae_fast.corruptions import (
    Corruption,
    Identity,
    as_corruption,
    corrupt,
    describe_corruption,
)
from dvae_fast.data.given import Given
from dvae_fast.evaluation.engine import Drawer
from dvae_fast.models import gaussian_log_ratio
from dvae_fast.models.distributions import Sampled
from dvae_fast.models.posterior import is_full, place

if TYPE_CHECKING:
    from collections.abc import Callable

    from dvae_fast.evaluation.target import Evaluated

__all__ = ["PROPOSALS", "ModelDrawer", "Proposal"]

#: "posterior": q(z|x) on the clean input. "corrupted": q(z|x̃) with a fresh x̃ for each sample, which
#: encodes as often. "mixture": 1/M Σ_m q(z|x̃_m), M encodings an example, its own density in the
#: weights.
PROPOSALS = ("posterior", "corrupted", "mixture")
_MOST_COPIES = 2**24  # each has its own index in the noise of latents


class ModelDrawer(Drawer, Protocol):
    """The proposal of some examples, encoded."""

    def draw(self, k: int, first_sample: int) -> tuple[Tensor, Tensor]:
        """z (B, k, Z), and log_ratio = log p(z) − log q (B, k), of samples first_sample, …"""


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
        self.name = name
        self.corruption = corruption or Identity()
        self.copies = check_size("copies", copies, most=_MOST_COPIES)

    @property
    def settings(self) -> dict[str, Any]:
        """What its draws depend on besides its name; JSON-able."""
        drawn_from_x = self.name == "posterior"
        return {
            "copies": self.copies if self.name == "mixture" else None,
            "corruption": None if drawn_from_x else _described(self.corruption),
        }

    @classmethod
    def of(
        cls, evaluated: Evaluated, name: str, corruption: Corruption | None, copies: int
    ) -> Proposal:
        """The same, with the model's own corruption where none is given and one is needed."""
        if corruption is None and name != "posterior":
            corruption = getattr(evaluated.model, "corruption", None)
        return cls(name, corruption, copies)

    def encode(
        self, evaluated: Evaluated, batch: Given, key: Tensor, first_example: int
    ) -> ModelDrawer:
        """Encode examples, those from first_example on of the noise; x̃ is 0 where a mask says that
        nothing was observed."""
        x, context, mask = batch.x, batch.context, batch.mask
        if self.name == "posterior":
            posterior = evaluated.posterior(x, context)
            if isinstance(posterior, Sampled):
                return _PerExample(evaluated, Given(x, context), key, first_example)
            return _Posterior(evaluated.draw, posterior, key, first_example)
        if evaluated.discrete:
            raise ValueError(f"proposal must be posterior for binary latents, got {self.name!r}")
        corruption = self.corruption = self.corruption.to(x.device)  # once, not at every batch
        x = evaluated.encoded(x)
        if self.name == "corrupted":
            return _Corrupted(evaluated, Given(x, context, mask), corruption, key, first_example)
        noisy = corrupt(x, corruption, self.copies, key, first_example=first_example)
        noisy = _seen(noisy, mask)
        mean, spread = (
            part.unflatten(0, (self.copies, len(x)))
            for part in _gaussian(evaluated, noisy, context, self.name)
        )
        return _Mixture(mean, spread, key, first_example)


def _seen(noisy: Tensor, mask: Tensor | None) -> Tensor:
    """x̃ (M, B, *shape), which may be flat, with 0 where x (B, *shape) was not observed."""
    return noisy if mask is None else noisy.masked_fill(~mask.reshape(noisy.shape[1:]), 0)


def _gaussian(
    evaluated: Evaluated, noisy: Tensor, context: Tensor | None, name: str
) -> tuple[Tensor, ...]:
    """Mean and spread of each of (M, B, *shape), in rows."""
    copies = len(noisy)
    if context is not None:
        context = context.expand(copies, *context.shape).flatten(0, 1)
    posterior = evaluated.posterior(noisy.flatten(0, 1), context)
    if isinstance(posterior, Sampled):
        raise ValueError(
            "proposal must be posterior for an encoder that returns a distribution of its own, "
            f"got {name!r}"
        )
    return posterior


def _described(corruption: Corruption) -> Any:
    """For a comparison; exact where that can be."""
    try:
        return describe_corruption(corruption)
    except (TypeError, ValueError):
        return repr(corruption)


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


# Samples of a distribution at once, whatever is asked for: their noise is torch's, which depends on
# it.
_BLOCK = 256


class _PerExample:
    """A distribution of each example's own, by blocks of samples that have a seed of their own, so
    that any batch and any chunk draws the same."""

    def __init__(self, evaluated: Evaluated, batch: Given, key: Tensor, first_example: int) -> None:
        self.evaluated, self.key, self.first_example = evaluated, key, first_example
        self.batch = batch
        self._encoded: dict[int, Sampled] = {}
        self._last: dict[int, tuple[int, tuple[Tensor, Tensor]]] = {}

    def draw(self, k: int, first_sample: int) -> tuple[Tensor, Tensor]:
        rows = [self._of(i, k, first_sample) for i in range(len(self.batch))]
        zs, ratios = zip(*rows, strict=True)
        return torch.cat(zs), torch.cat(ratios)

    def _of(self, i: int, k: int, first_sample: int) -> tuple[Tensor, Tensor]:
        begin, end = first_sample // _BLOCK, (first_sample + k - 1) // _BLOCK + 1
        zs, ratios = zip(*(self._block(i, block) for block in range(begin, end)), strict=True)
        at = first_sample - begin * _BLOCK
        return torch.cat(zs, 1)[:, at : at + k], torch.cat(ratios, 1)[:, at : at + k]

    def _block(self, i: int, block: int) -> tuple[Tensor, Tensor]:
        """Of samples block · _BLOCK, …: z (1, _BLOCK, Z) and the log-ratio (1, _BLOCK)."""
        last = self._last.get(i)
        if last is not None and last[0] == block:
            return last[1]
        if i not in self._encoded:
            one = self.batch[i : i + 1]
            self._encoded[i] = cast("Sampled", self.evaluated.posterior(one.x, one.context))
        drawn = self._encoded[i].sample(
            _BLOCK, self.key, first_example=self.first_example + i, first_sample=block
        )
        self._last[i] = block, drawn
        return drawn

    def row(self, i: int) -> _PerExample:
        one = self.batch[i : i + 1]
        return _PerExample(self.evaluated, one, self.key, self.first_example + i)

    def with_key(self, key: Tensor) -> _PerExample:
        return _PerExample(self.evaluated, self.batch, key, self.first_example)


class _Corrupted:
    def __init__(
        self,
        evaluated: Evaluated,
        batch: Given,
        corruption: Corruption,
        key: Tensor,
        first_example: int,
    ) -> None:
        self.evaluated, self.batch, self.corruption = evaluated, batch, corruption
        self.key, self.first_example = key, first_example

    def draw(self, k: int, first_sample: int) -> tuple[Tensor, Tensor]:
        noisy = corrupt(
            self.batch.x, self.corruption, k, self.key,
            first_example=self.first_example, first_copy=first_sample,
        )  # fmt: skip
        noisy = _seen(noisy, self.batch.mask)
        b = len(self.batch)
        mean, spread = (
            part.unflatten(0, (k, b)).transpose(0, 1)  # (B, k, Z), (B, k, Z, Z) if full
            for part in _gaussian(self.evaluated, noisy, self.batch.context, "corrupted")
        )
        epsilon = _noise(b, k, mean, self.key, self.first_example, first_sample)
        z = place(mean, spread, epsilon)
        ratio = gaussian_log_ratio(
            z.reshape(b * k, 1, -1), mean.flatten(0, 1), spread.flatten(0, 1)
        )
        return z, ratio.view(b, k)

    def row(self, i: int) -> _Corrupted:
        other = copy.copy(self)
        other.batch, other.first_example = self.batch[i : i + 1], self.first_example + i
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
