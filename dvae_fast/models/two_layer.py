"""Two layers of latents: z₁ below, which the decoder reads, and z₂ above it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from dvae_fast import functional, objectives
from dvae_fast._checks import check_size, check_sizes
from dvae_fast._seeds import derived_key, seed_tensor
from dvae_fast.models.base import Autoencoder, groups_of
from dvae_fast.models.encoders import GaussianEncoder
from dvae_fast.objectives import Latents, Objective, as_objective

if TYPE_CHECKING:
    from collections.abc import Sequence

    from dvae_fast.corruptions import Corruption, CorruptionFunction
    from dvae_fast.likelihoods import Likelihood

__all__ = ["TwoLayerModel"]

# z₂'s noise comes from a key of its own: its indices are those of z₁'s.
_LAYER = 2


class TwoLayerModel(Autoencoder):
    """p(x|z₁) p(z₁|z₂) N(z₂; 0, I) with q(z₁|x̃) q(z₂|z₁), diagonal Gaussians all.

    log w = log p(x|z₁) + log p(z₁|z₂) + log p(z₂) − log q(z₁|x̃) − log q(z₂|z₁). Each sample of z₁
    has one of z₂. `dvae_fast.estimate_log_likelihood` judges it like any other model.

    Args:
        data_size, hidden_sizes, activation, likelihood, data_mean: as for `dvae_fast.models.VAE`;
            the hidden layers are those between x and z₁, either way.
        latent_sizes: of z₁ and z₂.
        upper_hidden_sizes: between z₁ and z₂, either way.
        corruption: p(x̃|x), one of `dvae_fast.corruptions`, or None.
        M, K: corruptions an example (without, groups of samples), samples of each.
        objective: one of `dvae_fast.objectives.OBJECTIVES` but "elbo-kl" and "piwae", with the
            standard estimator.

    Raises:
        TypeError, ValueError: naming the argument, the rule and the value.

    Source: Burda, Grosse, Salakhutdinov (arXiv 1509.00519), section 5: the model of two stochastic
    layers, whose sizes are the defaults.
    """

    def __init__(
        self,
        data_size: int,
        latent_sizes: tuple[int, int] = (100, 50),
        hidden_sizes: Sequence[int] = (200, 200),
        upper_hidden_sizes: Sequence[int] = (100, 100),
        *,
        activation: str = "tanh",
        likelihood: str | Likelihood = "bernoulli",
        corruption: Corruption | CorruptionFunction | None = None,
        M: int = 1,
        K: int = 5,
        data_mean: Tensor | None = None,
        objective: str | Objective = "iwae",
    ) -> None:
        sizes = check_sizes("latent_sizes", latent_sizes)
        if len(sizes) != 2:
            raise ValueError(f"latent_sizes must be two, of z₁ and z₂; got {len(sizes)}")
        chosen = as_objective(objective)
        # piwae gives an inference net a gradient of its own, through z₁'s sampling alone.
        if chosen.name in ("elbo-kl", "piwae") or chosen.estimator != "standard":
            raise ValueError(
                "objective must be any but elbo-kl and piwae, with the standard estimator, for two "
                f"layers of latents; got {chosen}"
            )
        super().__init__(
            data_size,
            sizes[0],
            hidden_sizes,
            activation=activation,
            likelihood=likelihood,
            corruption=corruption,
            M=M,
            K=K,
            data_mean=data_mean,
            objective=chosen,
        )
        self.latent_sizes = sizes
        upper = check_sizes("upper_hidden_sizes", upper_hidden_sizes)
        self.upper_encoder: nn.Module = GaussianEncoder(sizes[0], upper, sizes[1], activation)
        self.upper_decoder: nn.Module = GaussianEncoder(sizes[1], upper[::-1], sizes[0], activation)

    def _make_encoder(self) -> nn.Module:
        return GaussianEncoder(self.data_size, self.hidden_sizes, self.latent_size, self.activation)

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """q(z₁|x) for x exactly as given: (..., D) → mean, log_var (..., Z₁)."""
        mean, log_var = self.encoder(x)
        return mean, log_var

    def log_ratio_above(
        self,
        z: Tensor,
        seed: int | Tensor | None = None,
        *,
        first_example: int = 0,
        first_sample: int = 0,
    ) -> Tensor:
        """What z₂ ~ q(z₂|z₁) adds to log N(z₁; 0, I) − log q(z₁|x̃):

        log p(z₁|z₂) − log N(z₁; 0, I) + log p(z₂) − log q(z₂|z₁).

        Args:
            z: z₁, (*L, B, K, Z₁).
            seed, first_example, first_sample: as for `dvae_fast.sample_latent`.

        Returns:
            (*L, B, K) in nats, differentiable.
        """
        *leading, k, _ = z.shape
        key = derived_key(seed_tensor(seed, z.device), _LAYER)
        zero = z.new_zeros(*leading, self.latent_sizes[1])
        noise, _ = functional.sample_latent(
            zero, zero, k, key, first_example=first_example, first_sample=first_sample
        )
        mean, log_var = self.upper_encoder(z)
        above = mean + torch.exp(0.5 * log_var) * noise
        upper = _log_ratio(above, mean, log_var)  # log p(z₂) − log q(z₂|z₁)
        lower = _log_ratio(z, *self.upper_decoder(above))  # log N(z₁; 0, I) − log p(z₁|z₂)
        return upper - lower

    def _sample_posterior(self, x: Tensor, key: Tensor, first_example: int) -> Latents:
        noisy = self._corrupt(x, key, self.M if self.M > 1 else None, first_example)
        mean, log_var = (groups_of(t, self.M) for t in self.encode(noisy))
        z, log_ratio, inference = objectives.sample_latents(
            mean, log_var, self.K, self.objective, key, first_example=first_example
        )
        above = self.log_ratio_above(z, key, first_example=first_example)
        return Latents(z, log_ratio + above, inference)

    @torch.no_grad()
    def sample(self, n: int, seed: int | Tensor | None = None) -> Tensor:
        """The means of p(x|z₁) for n draws of z₂ and z₁: (n, D). Arguments as for `VAE.sample`."""
        check_size("n", n)
        like = next(self.parameters())
        key = seed_tensor(seed, like.device)
        zero = like.new_zeros(n, self.latent_sizes[1])
        above, _ = functional.sample_latent(zero, zero, 1, derived_key(key, _LAYER))
        mean, log_var = self.upper_decoder(above.squeeze(1))
        z, _ = functional.sample_latent(mean, log_var, 1, key)
        return self.likelihood.mean(self.decode(z.squeeze(1)))

    @torch.no_grad()
    def reconstruct(self, x: Tensor) -> Tensor:
        """The mean of p(x|z₁) at the mean of q(z₁|x): (B, D) → (B, D)."""
        self._check_data(x)
        return self.likelihood.mean(self.decode(self.encode(x)[0]))


def _log_ratio(z: Tensor, mean: Tensor, log_var: Tensor) -> Tensor:
    """`latent_log_ratio` of a mean for each sample: all (*L, B, K, Z) → (*L, B, K)."""
    rows = (-1, z.shape[-1])
    ratio = functional.latent_log_ratio(
        z.reshape(rows).unsqueeze(1), mean.reshape(rows), log_var.reshape(rows)
    )
    return ratio.view(z.shape[:-1])
