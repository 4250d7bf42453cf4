"""A model of binary latents: sampling them, and the model."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, ClassVar, cast

import torch
from torch import Tensor, nn

from dvae_fast import functional
from dvae_fast._checks import check_count, check_float, check_shape
from dvae_fast._dtypes import accumulation_dtype
from dvae_fast.functional._autograd import without_autocast
from dvae_fast.models.base import Autoencoder, groups_of
from dvae_fast.models.config import register
from dvae_fast.models.distributions import draw_bernoulli
from dvae_fast.models.encoders import make_encoder
from dvae_fast.models.priors import PRIORS
from dvae_fast.objectives import Latents, Objective, as_objective
from dvae_fast.objectives.objective import check_discrete

if TYPE_CHECKING:
    from typing import Unpack

    from dvae_fast._seeds import First
    from dvae_fast.models.config import ModelConfig
    from dvae_fast.models.context import Told

__all__ = ["BernoulliLatentModel", "draw_bernoulli", "sample_bernoulli_latents"]


class BernoulliPrior(nn.Module):
    """p(h) = Π Bernoulli(σ(logits)); logits None for probability ½ of each.

    Args:
        latent_size: Z.
        learn: whether the logits are a parameter, 0 at first.
    """

    def __init__(self, latent_size: int, learn: bool) -> None:
        super().__init__()
        self.latent_size = latent_size
        self.logits = nn.Parameter(torch.zeros(latent_size)) if learn else None

    def log_prob(self, h: Tensor) -> Tensor:
        """(..., Z) → (...)."""
        if self.logits is None:
            return torch.full_like(h[..., 0], -self.latent_size * math.log(2))
        return _bernoulli_log_density(h, self.logits.to(h.dtype))

    def sample(self, n: int, generator: torch.Generator | None = None) -> Tensor:
        """n draws, (n, Z), on the generator's device."""
        device = None if generator is None else generator.device
        uniform = torch.rand(n, self.latent_size, generator=generator, device=device)
        return (uniform < (0.5 if self.logits is None else torch.sigmoid(self.logits))).float()


@register
class BernoulliLatentModel(Autoencoder):
    """p(x, h) = p(x|h) p(h) with h in {0, 1}^Z and q(h|x̃) = Π Bernoulli(σ(encoder(x̃))).

    Trained by VIMCO, which needs no reparameterisation. p(h) has probability ½ of each, or, with
    ``learn_prior``, a learnt one; a ``prior`` of one's own takes the place of both.

    Source: Mnih and Rezende (arXiv 1602.06725).
    """

    name = "bernoulli"
    defaults: ClassVar = {"objective": "iwae", "estimator": "vimco", "latent_size": 200}

    @classmethod
    def check_options(cls, options: ModelConfig, objective: Objective) -> None:
        """Raise ValueError unless the model has the objective with these options."""
        super().check_options(options, objective)
        check_discrete(objective)
        if isinstance(options.prior, str) and not PRIORS[options.prior].fused:
            ready = ", ".join(name for name, prior in PRIORS.items() if prior.fused)
            raise ValueError(
                f"prior must be {ready}, or one's own, for binary latents; got {options.prior}"
            )
        if options.learn_prior and not isinstance(options.prior, str):
            raise ValueError("learn_prior must be off with a prior of one's own, got True")

    def _make_encoder(self, name: str) -> nn.Module:
        chosen = self.options
        return make_encoder(
            name, self.data_size, self.image_shape, chosen.hidden_sizes, self.latent_size,
            chosen.activation, None, self.context_size,
        )  # fmt: skip

    def _make_prior(self, name: str, data_mean: Tensor | None = None) -> nn.Module:
        return BernoulliPrior(self.latent_size, self.options.learn_prior)

    @property
    def prior_logits(self) -> Tensor | None:
        """Of p(h), (Z,), if learnt."""
        return self.prior.logits if isinstance(self.prior, BernoulliPrior) else None

    def encode(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """The logits of q(h|x) for x exactly as given: (..., D) → (..., Z); a context (..., C)
        broadcasts to the leading dimensions of x."""
        return cast("Tensor", self._encoded(x, context))

    def log_fused_prior(self, z: Tensor) -> Tensor:
        """log p(h) as `sample_bernoulli_latents` has it without a learnt one: (..., Z) → (...)."""
        return BernoulliPrior(z.shape[-1], learn=False).log_prob(z)

    def draw_posterior(
        self, logits: Tensor, k: int, seed: int | Tensor | None = None, **first: Unpack[First]
    ) -> tuple[Tensor, Tensor]:
        """K samples h of q(h|x) = Π Bernoulli(σ(logits)), and log p(h) − log q(h).

        Args:
            logits: of `encode`, (B, Z).
            k, seed, first: first_example and first_sample, as for `dvae_fast.sample_latent`.

        Returns:
            h (B, K, Z) in logits' dtype, and the log-ratio (B, K), without ``prior``'s own if that
            is one's own: see `log_ratio_above`.
        """
        z, log_p, log_q = _draw(logits, self.prior_logits, k, seed, **first)
        return z, log_p - log_q

    def _sample_posterior(
        self, x: Tensor, key: Tensor, first_example: int, **told: Unpack[Told]
    ) -> Latents:
        _, logits = self._encoded_noisy(x, key, first_example, told)
        latents = sample_bernoulli_latents(
            groups_of(logits, self.copies), self.prior_logits, self.samples, self.objective, key,
            first_example=first_example,
        )  # fmt: skip
        return self._with_prior(latents, key, first_example, told.get("context"))

    def _draw_latents(
        self, n: int, key: Tensor, like: Tensor, context: Tensor | None = None
    ) -> Tensor:
        if not self.prior_is_fused:
            return super()._draw_latents(n, key, like, context)
        logits = self.prior_logits
        logits = like.new_zeros(self.latent_size) if logits is None else logits
        return draw_bernoulli(logits.expand(n, -1), 1, key).squeeze(1).to(like.dtype)

    def _middle(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        logits = self.encode(x, *(() if context is None else (context,)))
        return (logits > 0).to(logits.dtype)


def sample_bernoulli_latents(
    logits: Tensor,
    prior_logits: Tensor | None,
    k: int,
    objective: str | Objective,
    seed: int | Tensor | None = None,
    *,
    first_example: int = 0,
) -> Latents:
    """K samples h in {0, 1}^Z of each q(h|x̃) = Π Bernoulli(σ(logits)).

    Args:
        logits: (*L, B, Z), encoded once.
        prior_logits: (Z,), p(h) = Π Bernoulli(σ(prior_logits)); None for probability ½.
        k, seed, first_example: as for `sample_latents`.
        objective: with the estimator vimco, which alone needs no reparameterisation.

    Returns:
        `Latents`, z in logits' dtype.

    Raises:
        TypeError, ValueError: naming the argument, the rule and the value.
    """
    objective = as_objective(objective)
    check_discrete(objective)
    check_float("logits", logits)
    if logits.dim() < 2:
        raise ValueError(f"logits must have shape (*L, B, Z), got {tuple(logits.shape)}")
    if prior_logits is not None and prior_logits.shape != logits.shape[-1:]:
        check_shape("prior_logits", prior_logits, tuple(logits.shape[-1:]), "(Z,)")
    check_count("k", k, 1)
    objective.check_samples(math.prod(logits.shape[:-2]), k)
    z, log_p, log_q = _draw(logits, prior_logits, k, seed, first_example=first_example)
    return Latents(z, log_p - log_q.detach(), log_q)


def _draw(
    logits: Tensor,
    prior_logits: Tensor | None,
    k: int,
    seed: int | Tensor | None,
    **first: Unpack[First],
) -> tuple[Tensor, Tensor, Tensor]:
    """h (*L, B, K, Z) in logits' dtype, log p(h) and log q(h) (*L, B, K)."""
    dtype = accumulation_dtype(logits.dtype)
    with without_autocast(logits):
        wide = logits.to(dtype)
        z = draw_bernoulli(wide, k, seed, **first)
        log_q = _bernoulli_log_density(z, wide)
        if prior_logits is None:
            log_p = torch.full_like(log_q, -logits.shape[-1] * math.log(2))
        else:
            log_p = _bernoulli_log_density(z, prior_logits.to(dtype))
    return z.to(logits.dtype), log_p, log_q


def _bernoulli_log_density(h: Tensor, logits: Tensor) -> Tensor:
    """Σ_j h_j l_j − log(1 + e^l_j): h (*L, B, K, Z), logits (*L, B, Z) or (Z,) → (*L, B, K)."""
    products = torch.matmul(h, logits.unsqueeze(-1)).squeeze(-1)
    total = functional.softplus(logits).sum(-1)
    return products - (total.unsqueeze(-1) if logits.dim() > 1 else total)
