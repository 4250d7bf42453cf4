"""Two layers of latents: z₁ below, which the decoder reads, and z₂ above it."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor, nn

from dvae_fast import functional
from dvae_fast._seeds import derived_key, seed_tensor
from dvae_fast.models.config import register
from dvae_fast.models.encoders import GaussianEncoder
from dvae_fast.models.gaussian import LatentVariableModel
from dvae_fast.models.priors import PRIORS, is_fused
from dvae_fast.models.with_prior import by_sample_of
from dvae_fast.objectives import OBJECTIVES, Objective

if TYPE_CHECKING:
    from typing import Unpack

    from dvae_fast._seeds import First
    from dvae_fast.models.config import ModelConfig

__all__ = ["TwoLayerModel"]

# z₂'s noise comes from a key of its own: its indices are those of z₁'s.
_LAYER = 2


def _fits(objective: Objective) -> bool:
    # piwae gives an inference net a gradient of its own, through z₁'s sampling alone.
    return not objective.bound.analytic and not objective.splits


@register
class TwoLayerModel(LatentVariableModel):
    """p(x|z₁) p(z₁|z₂) p(z₂) with q(z₁|x̃) q(z₂|z₁), all three last ones diagonal Gaussians.

    log w = log p(x|z₁) + log p(z₁|z₂) + log p(z₂) − log q(z₁|x̃) − log q(z₂|z₁). Each sample of z₁
    has one of z₂. The latents of the other options are z₁, the upper ones z₂; ``prior`` is that of
    z₂. `dvae_fast.estimate_log_likelihood` evaluates it like any other model.

    Source: Burda, Grosse, Salakhutdinov (arXiv 1509.00519), section 5: the model of two stochastic
    layers, whose sizes are the defaults.
    """

    name = "two_layer"
    defaults: ClassVar = {"objective": "iwae", "activation": "tanh", "latent_size": 100}

    def _make_more(self) -> None:
        super()._make_more()
        chosen = self.options
        upper, hidden = chosen.upper_latent_size, chosen.upper_hidden_sizes
        lower, activation = self.latent_size, chosen.activation
        self.upper_encoder: nn.Module = GaussianEncoder(lower, hidden, upper, activation)
        self.upper_decoder: nn.Module = GaussianEncoder(upper, hidden[::-1], lower, activation)

    @classmethod
    def check_options(cls, options: ModelConfig, objective: Objective) -> None:
        """Raise ValueError unless the model has the objective with these options."""
        super().check_options(options, objective)
        if isinstance(options.prior, str) and PRIORS[options.prior].encodes:
            ready = " or ".join(name for name, prior in PRIORS.items() if not prior.encodes)
            raise ValueError(
                f"prior must be {ready}, or one's own, for two layers of latents, the upper of "
                f"which no encoder reads x for; got {options.prior}"
            )
        if not _fits(objective) or not objective.plain:
            others = [name for name in OBJECTIVES if not _fits(Objective(name))]
            raise ValueError(
                f"objective must be any but {' and '.join(others)}, with the standard estimator, "
                f"for two layers of latents; got {objective}"
            )

    def _make_prior(self, name: str, data_mean: Tensor | None = None) -> nn.Module:
        return self._prior_of(name, self.options.upper_latent_size, data_mean)

    @property
    def prior_is_fused(self) -> bool:
        """Never: what the operators take for p(z₁) is to be replaced by p(z₁|z₂)."""
        return False

    def log_ratio_above(
        self,
        z: Tensor,
        seed: int | Tensor | None = None,
        *,
        context: Tensor | None = None,
        **first: Unpack[First],
    ) -> Tensor:
        """What z₂ ~ q(z₂|z₁) adds to log N(z₁; 0, I) − log q(z₁|x̃):

        log p(z₁|z₂) − log N(z₁; 0, I) + log p(z₂) − log q(z₂|z₁).

        Args:
            z: z₁, (*L, B, K, Z₁).
            seed, first: first_example and first_sample, as for `dvae_fast.sample_latent`.
            context: (B, C), of a prior of one's own; p(z₁|z₂) and q(z₂|z₁) are not told it.

        Returns:
            (*L, B, K) in nats, differentiable.
        """
        told = by_sample_of(z, context)
        z = self._input("z", z, self.latent_size, "Z")
        *leading, k, _ = z.shape
        key = derived_key(seed_tensor(seed, z.device), _LAYER)
        zero = z.new_zeros(*leading, self.options.upper_latent_size)
        noise, _ = functional.sample_latent(zero, zero, k, key, **first)
        mean, log_var = self._through(self.upper_encoder, True, "z", z, ())
        above = mean + torch.exp(0.5 * log_var) * noise
        upper = _log_ratio(above, mean, log_var)  # log p(z₂) − log q(z₂|z₁)
        lower = _log_ratio(z, *self.upper_decoder(above))  # log N(z₁; 0, I) − log p(z₁|z₂)
        if not is_fused(self.options.prior):
            upper = upper + self.log_prior(above, told) - self.log_fused_prior(above)
        return upper - lower

    def _draw_latents(
        self, n: int, key: Tensor, like: Tensor, context: Tensor | None = None
    ) -> Tensor:
        upper = self.options.upper_latent_size
        above = self.draw_prior(n, upper, derived_key(key, _LAYER), like, context)
        mean, log_var = self.upper_decoder(above)
        return functional.sample_latent(mean, log_var, 1, key)[0].squeeze(1)


def _log_ratio(z: Tensor, mean: Tensor, log_var: Tensor) -> Tensor:
    """`latent_log_ratio` of a mean for each sample: all (*L, B, K, Z) → (*L, B, K)."""
    rows = (-1, z.shape[-1])
    ratio = functional.latent_log_ratio(
        z.reshape(rows).unsqueeze(1), mean.reshape(rows), log_var.reshape(rows)
    )
    return ratio.view(z.shape[:-1])
