"""What a model does with its prior."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor

from dvae_fast import functional
from dvae_fast._checks import check_dense, check_float
from dvae_fast._dtypes import accumulation_dtype
from dvae_fast._seeds import derived_key
from dvae_fast.functional._autograd import recordable, without_autocast
from dvae_fast.models.described import Described
from dvae_fast.models.priors import StandardNormal, is_fused, standard_normal_log_prob

if TYPE_CHECKING:
    from typing import Unpack

    from dvae_fast._seeds import First
    from dvae_fast.models.priors import Prior
    from dvae_fast.objectives import Latents

__all__ = ["WithPrior", "by_sample_of"]

# The key of draws from a prior of one's own, among those of a seed.
_PRIOR_KEY = 3


def by_sample_of(z: Any, context: Any) -> Tensor | None:
    """A context (B, C) as what takes z (*L, B, K, Z) is told it: (B, 1, C), not repeated."""
    check_float("z", z)
    if z.dim() < 2:
        raise ValueError(f"z must have shape (*L, B, K, Z), got {tuple(z.shape)}")
    if context is None:
        return None
    check_dense("context", context)
    if context.dim() < 2:
        raise ValueError(f"context must have shape (B, C), got {tuple(context.shape)}")
    return cast("Tensor", context.unsqueeze(-2))


class WithPrior(Described):
    """A module with latents z ~ p(z) by its ``prior``."""

    prior: Prior
    latent_size: int

    @property
    def prior_is_fused(self) -> bool:
        """Whether p(z) is what the operators take it for, so that nothing is to be added."""
        return is_fused(self.options.prior)

    def log_ratio_above(
        self,
        z: Tensor,
        seed: int | Tensor | None = None,
        *,
        context: Tensor | None = None,
        **first: Unpack[First],
    ) -> Tensor:
        """What p(z) adds to log N(z; 0, I) − log q(z|x̃): log p(z) − log N(z; 0, I).

        Args:
            z: (*L, B, K, Z).
            seed, first: first_example and first_sample, of what a model draws in addition; unused
                here.
            context: (B, C), which a prior with the attribute ``takes_context = True`` is told.

        Returns:
            (*L, B, K) in nats, differentiable.
        """
        told = by_sample_of(z, context)
        return self.log_prior(z, told) - self.log_fused_prior(z)

    def log_prior(self, z: Tensor, context: Tensor | None = None) -> Tensor:
        """log p(z) by ``prior``: (..., Z) → (...).

        Raises:
            TypeError: if z is no tensor of floats.
            ValueError: if z is not (..., Z), or ``prior`` gives another shape.
        """
        check_float("z", z)
        if z.dim() < 1 or z.shape[-1] < 1:
            raise ValueError(f"z must have shape (..., Z) with Z >= 1, got {tuple(z.shape)}")
        if context is not None:
            check_dense("context", context)
            context = recordable(context)
        with without_autocast(z):
            wide = recordable(z).to(accumulation_dtype(z.dtype))
            log_prob = self.prior.log_prob(wide, **self._prior_told(context))
        if log_prob.shape != z.shape[:-1]:
            raise ValueError(
                f"prior's log_prob must return shape {tuple(z.shape[:-1])} for z of shape "
                f"{tuple(z.shape)}, got {tuple(log_prob.shape)}"
            )
        return log_prob

    def log_fused_prior(self, z: Tensor) -> Tensor:
        """The log-density that the log-ratios of ``Latents`` hold in the place of log p(z)."""
        return standard_normal_log_prob(z.to(accumulation_dtype(z.dtype)))

    def _prior_told(self, context: Tensor | None) -> dict[str, Tensor]:
        takes = context is not None and getattr(self.prior, "takes_context", False)
        return {"context": cast("Tensor", context)} if takes else {}

    def _with_prior(
        self, latents: Latents, key: Tensor, first_example: int, context: Tensor | None
    ) -> Latents:
        if self.prior_is_fused:
            return latents
        more: dict[str, Any] = {} if context is None else {"context": context}
        above = self.log_ratio_above(latents.z, key, first_example=first_example, **more)
        return latents._replace(log_ratio=latents.log_ratio + above)

    def _draw_latents(
        self, n: int, key: Tensor, like: Tensor, context: Tensor | None = None
    ) -> Tensor:
        """n draws of p(z), (n, Z), the decoder's input."""
        return self.draw_prior(n, self.latent_size, key, like, context)

    def draw_prior(
        self, n: int, size: int, key: Tensor, like: Tensor, context: Tensor | None = None
    ) -> Tensor:
        """n draws by ``prior``, (n, size)."""
        if isinstance(self.prior, StandardNormal):
            zero = like.new_zeros(n, size)
            return functional.sample_latent(zero, zero, 1, key)[0].squeeze(1)
        seed = int(derived_key(key, _PRIOR_KEY))
        generator = torch.Generator(like.device).manual_seed(seed)
        z = self.prior.sample(n, generator=generator, **self._prior_told(context))
        if z.shape != (n, size):
            raise ValueError(f"prior's sample must return shape {(n, size)}, got {tuple(z.shape)}")
        return z.to(like)
