"""A model of binary latents: sampling them, and the model."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from dvae_fast import functional
from dvae_fast._checks import check_count, check_float, check_shape, check_size
from dvae_fast._dtypes import accumulation_dtype
from dvae_fast._seeds import seed_tensor
from dvae_fast.models.base import Autoencoder, groups_of
from dvae_fast.models.layers import MLP, linear
from dvae_fast.objectives import Latents, Objective, as_objective
from dvae_fast.objectives.objective import check_discrete

if TYPE_CHECKING:
    from collections.abc import Sequence

    from dvae_fast.corruptions import Corruption
    from dvae_fast.likelihoods import Likelihood

__all__ = ["BernoulliLatentModel", "draw_bernoulli", "sample_bernoulli_latents"]


class BernoulliLatentModel(Autoencoder):
    """p(x, h) = p(x|h) p(h) with h in {0, 1}^Z and q(h|x̃) = Π Bernoulli(σ(encoder(x̃))).

    Trained by VIMCO, which needs no reparameterisation. Its bound at a large K judges it.

    Args:
        data_size, hidden_sizes, activation, likelihood, data_mean: as for `VAE`.
        latent_size: Z.
        corruption: p(x̃|x), one of `dvae_fast.corruptions`, or None.
        M: corruptions an example (without, groups of samples), K >= 2: samples of h a corruption.
        learn_prior: p(h) = Π Bernoulli(σ(prior_logits)), learnt, rather than probability ½.
        objective: one of those that VIMCO is defined for, or an `Objective`.
        estimator: "vimco".

    Raises:
        TypeError, ValueError: naming the argument, the rule and the value.

    Source: Mnih and Rezende (arXiv 1602.06725).
    """

    def __init__(
        self,
        data_size: int,
        latent_size: int = 200,
        hidden_sizes: Sequence[int] = (200, 200),
        *,
        activation: str = "softplus",
        likelihood: str | Likelihood = "bernoulli",
        corruption: Corruption | None = None,
        M: int = 1,
        K: int = 5,
        data_mean: Tensor | None = None,
        learn_prior: bool = False,
        objective: str | Objective = "iwae",
        estimator: str | None = None,
    ) -> None:
        if estimator is None and isinstance(objective, str):
            estimator = "vimco"
        chosen = as_objective(objective, estimator)
        check_discrete(chosen)
        super().__init__(
            data_size,
            latent_size,
            hidden_sizes,
            activation=activation,
            likelihood=likelihood,
            corruption=corruption,
            M=M,
            K=K,
            data_mean=data_mean,
            objective=chosen,
        )
        self.prior_logits = nn.Parameter(torch.zeros(latent_size)) if learn_prior else None

    def _make_encoder(self) -> nn.Module:
        sizes = (self.data_size, *self.hidden_sizes)
        return nn.Sequential(MLP(sizes, self.activation), linear(sizes[-1], self.latent_size))

    def encode(self, x: Tensor) -> Tensor:
        """The logits of q(h|x) for x exactly as given: (..., D) → (..., Z)."""
        logits: Tensor = self.encoder(x)
        return logits

    def _sample_posterior(self, x: Tensor, key: Tensor, first_example: int) -> Latents:
        noisy = self._corrupt(x, key, self.M if self.M > 1 else None, first_example)
        return sample_bernoulli_latents(
            groups_of(self.encode(noisy), self.M), self.prior_logits, self.K, self.objective, key,
            first_example=first_example,
        )  # fmt: skip

    @torch.no_grad()
    def sample(self, n: int, seed: int | Tensor | None = None) -> Tensor:
        """The means of p(x|h) for n latents h ~ p(h): (n, D). Arguments as for `VAE.sample`."""
        check_size("n", n)
        like = next(self.parameters())
        prior = like.new_zeros(self.latent_size) if self.prior_logits is None else self.prior_logits
        key = seed_tensor(seed, like.device)
        h = draw_bernoulli(prior.expand(n, -1), 1, key).squeeze(1)
        return self.likelihood.mean(self.decode(h.to(like.dtype)))

    @torch.no_grad()
    def reconstruct(self, x: Tensor) -> Tensor:
        """The mean of p(x|h) at the likelier value of each h: (B, D) → (B, D)."""
        self._check_data(x)
        logits = self.encode(x)
        return self.likelihood.mean(self.decode((logits > 0).to(logits.dtype)))


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
    dtype = accumulation_dtype(logits.dtype)
    with torch.autocast(logits.device.type, enabled=False):
        wide = logits.to(dtype)
        z = draw_bernoulli(wide, k, seed, first_example=first_example)
        log_q = _bernoulli_log_density(z, wide)
        if prior_logits is None:
            log_p = torch.full_like(log_q, -logits.shape[-1] * math.log(2))
        else:
            log_p = _bernoulli_log_density(z, prior_logits.to(dtype))
    return Latents(z.to(logits.dtype), log_p - log_q.detach(), log_q)


@torch.no_grad()
def draw_bernoulli(
    logits: Tensor, k: int, seed: int | Tensor | None, *, first_example: int = 0
) -> Tensor:
    """K draws of Π Bernoulli(σ(logits)): (*L, B, Z) → (*L, B, K, Z), of 0 and 1.

    From the normals ε of `sample_latent`: 1 where ε < Φ⁻¹(σ(l)).
    """
    zero = torch.zeros_like(logits)
    noise, _ = functional.sample_latent(zero, zero, k, seed, first_example=first_example)
    # From the smaller tail: σ(l) near 1 has few digits.
    tail: Tensor = torch.special.ndtri(torch.sigmoid(-logits.abs()))
    return (noise < (-logits.sign() * tail).unsqueeze(-2)).to(logits.dtype)


def _bernoulli_log_density(h: Tensor, logits: Tensor) -> Tensor:
    """Σ_j h_j l_j − log(1 + e^l_j): h (*L, B, K, Z), logits (*L, B, Z) or (Z,) → (*L, B, K)."""
    products = torch.matmul(h, logits.unsqueeze(-1)).squeeze(-1)
    total = functional.softplus(logits).sum(-1)
    return products - (total.unsqueeze(-1) if logits.dim() > 1 else total)
