"""VAE, IWAE, DVAE and DIWAE: Gaussian latents, over the fused operators."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor

from dvae_fast import objectives
from dvae_fast._checks import check_size
from dvae_fast._seeds import seed_tensor
from dvae_fast.corruptions import SaltAndPepper
from dvae_fast.models.base import Autoencoder, groups_of
from dvae_fast.models.config import register
from dvae_fast.models.posterior import COVARIANCES, is_full, sample_gaussian
from dvae_fast.objectives import Latents
from dvae_fast.objectives.objective import check_posterior_objective

if TYPE_CHECKING:
    from typing import Unpack

    from dvae_fast._seeds import First
    from dvae_fast.models.config import ModelConfig
    from dvae_fast.objectives import Objective

__all__ = ["DIWAE", "DVAE", "IWAE", "VAE", "LatentVariableModel"]


class LatentVariableModel(Autoencoder):
    """p(x, z) = p(x|z) p(z) with a Gaussian q(z|x̃); the base of all models of such latents.

    ``encoder`` maps (..., D) to (mean, log_var) and ``decoder`` maps (..., Z) to the likelihood's
    parameters; either may be replaced by a module that does the same.
    """

    # --- the parts ----------------------------------------------------------------------------

    @classmethod
    def check_options(cls, options: ModelConfig, objective: Objective) -> None:
        """Raise ValueError unless the model has the objective with these options."""
        super().check_options(options, objective)
        if COVARIANCES.get(options.covariance):
            check_posterior_objective(objective)

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """q(z|x) for x exactly as given, without corruption: (..., D) → mean, log_var (..., Z).

        A full posterior has L, (..., Z, Z), in the place of log_var: its covariance is L Lᵀ.

        Raises:
            TypeError: if the encoder is one's own and does not return a pair.
        """
        encoded = self._encoded(x)
        if not isinstance(encoded, (tuple, list)) or len(encoded) != 2:
            raise TypeError(
                f"encoder must return two tensors, mean and log_var, got {type(encoded).__name__}"
            )
        mean, spread = encoded
        return mean, spread

    def _sample_posterior(self, x: Tensor, key: Tensor, first_example: int) -> Latents:
        noisy = self._corrupt(x, key, self.copies if self.copies > 1 else None, first_example)
        mean, spread = self.encode(noisy)
        full = is_full(mean, spread)
        mean, spread = (groups_of(t, self.copies, d) for t, d in ((mean, 1), (spread, 1 + full)))
        if full:
            latents = self._sample_full(mean, spread, key, first_example)
        else:
            latents = objectives.sample_latents(
                mean, spread, self.samples, self.objective, key, first_example=first_example
            )
        return self._with_prior(latents, key, first_example)

    def _sample_full(
        self, mean: Tensor, spread: Tensor, key: Tensor, first_example: int
    ) -> Latents:
        check_posterior_objective(self.objective)
        k = self.samples
        if self.objective.bound.outside and k > 1:  # outside, as `sample_latents` does
            mean, spread, k = _repeated(mean, -3, k), _repeated(spread, -4, k), 1
        return Latents(*sample_gaussian(mean, spread, k, key, first_example=first_example))

    def _middle(self, x: Tensor) -> Tensor:
        return self.encode(x)[0]

    def log_weights(
        self,
        x: Tensor,
        mean: Tensor,
        spread: Tensor,
        k: int,
        seed: int | Tensor | None = None,
        **first: Unpack[First],
    ) -> Tensor:
        """log p(x|z) + log p(z) − log q(z) for K samples of a posterior already encoded.

        Args:
            x: (B, D).
            mean, spread: as `encode` returns them.
            k: K >= 1.
            seed, first: first_example and first_sample, as for `dvae_fast.sample_latent`; any split
                of the work over examples and samples gives the same numbers.

        Returns:
            (B, K) in nats, float32 (float64 for a float64 model); differentiable.
        """
        key = seed_tensor(seed, mean.device)
        z, log_ratio = sample_gaussian(mean, spread, k, key, **first)
        if not self.prior_is_fused:
            log_ratio = log_ratio + self.log_ratio_above(z, key, **first)
        return self._log_weights(z, x, log_ratio)

    # --- pictures -----------------------------------------------------------------------------

    @torch.no_grad()
    def interpolate(self, start: Tensor, end: Tensor, steps: int) -> Tensor:
        """The means of p(x|z) on the straight lines between the means of q(z|x) of two images.

        Args:
            start, end: (B, D) or (B, *shape); the first and last of each line are their
                reconstructions.
            steps: >= 2 images a line.

        Returns:
            (B, steps, D), or (B, steps, *shape) where those are.

        Raises:
            TypeError, ValueError: naming the argument, the rule and the value.
        """
        given, start = start, self._rows(start, "start")
        end = self._rows(end, "end")
        if end.shape != start.shape:
            raise ValueError(
                f"start and end must have one shape, got {tuple(start.shape)} and "
                f"{tuple(end.shape)}"
            )
        if check_size("steps", steps) < 2:
            raise ValueError(f"steps must be >= 2, got {steps}")
        first, last = (self.encode(x)[0].unsqueeze(1) for x in (start, end))
        weight = torch.linspace(0, 1, steps, dtype=first.dtype, device=first.device).unsqueeze(1)
        means = self.likelihood.mean(self.decode(torch.lerp(first, last, weight)))
        return means.reshape(*means.shape[:-1], *given.shape[1:])

    @property
    def has_plane(self) -> bool:
        """Whether `manifold` can be drawn: two latents of a standard normal."""
        return self.latent_size == 2 and self.prior_is_fused

    @torch.no_grad()
    def manifold(self, n: int) -> Tensor:
        """The means of p(x|z) over a plane of latents, for a model with two of them.

        z lies at the normal quantiles (i + ½)/n, so that each image stands for as much of the
        prior as any other (Kingma and Welling, arXiv 1312.6114, figure 4).

        Args:
            n: n >= 1 images a side.

        Returns:
            (n, n, D), or (n, n, *shape) as `sample`: the second latent falls from row to row, the
            first rises within one.

        Raises:
            ValueError: if the model has not two latents of a standard normal, or n < 1.
        """
        check_size("n", n)
        if not self.prior_is_fused:
            raise ValueError(
                "prior must be the standard normal for the plane of its quantiles, "
                f"got {type(self.prior).__name__}"
            )
        if self.latent_size != 2:
            raise ValueError(
                f"latent_size must be 2 for a plane of latents, got {self.latent_size}"
            )
        like = next(self.parameters())
        steps = torch.arange(n, dtype=torch.float64, device=like.device) + 0.5
        quantiles = torch.special.ndtri(steps / n).to(like)
        z = torch.stack(torch.meshgrid(quantiles, quantiles.flip(0), indexing="xy"), -1)
        return self._as_built(self.likelihood.mean(self.decode(z)))


def _repeated(t: Tensor, before: int, k: int) -> Tensor:
    """t with a new dimension of k, of no memory of its own."""
    t = t.unsqueeze(before)
    return t.expand(*(k if i == t.dim() + before else n for i, n in enumerate(t.shape)))


@register
class VAE(LatentVariableModel):
    """The variational autoencoder: E_q(z|x) [log w], estimated with K samples.

    With K inside a logarithm and M groups outside (objective iwae) it is MIWAE(M, K).

    Source: Kingma and Welling (arXiv 1312.6114), equation 3.
    """

    name = "vae"
    defaults: ClassVar = {"objective": "elbo"}


@register
class IWAE(LatentVariableModel):
    """The importance-weighted autoencoder: E [log 1/K Σ_k w].

    Source: Burda, Grosse, Salakhutdinov (arXiv 1509.00519), equation 8.
    """

    name = "iwae"
    defaults: ClassVar = {"objective": "iwae"}


@register
class DVAE(LatentVariableModel):
    """The denoising variational autoencoder: E_p(x̃|x) E_q(z|x̃) [log w], of the clean x.

    Source: arXiv 1511.06406, section 3.
    """

    name = "dvae"
    defaults: ClassVar = {"objective": "elbo", "corruption": SaltAndPepper(0.1)}
    denoising = True


@register
class DIWAE(LatentVariableModel):
    """The denoising importance-weighted autoencoder: E_p(x̃|x) E_q(z|x̃) [log 1/K Σ_k w].

    The mean over M is outside the logarithm, that over K inside.

    Source: arXiv 1511.06406, section 3.1.
    """

    name = "diwae"
    defaults: ClassVar = {"objective": "iwae", "corruption": SaltAndPepper(0.1)}
    denoising = True
