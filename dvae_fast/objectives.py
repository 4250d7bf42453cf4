"""How log-weights become a bound and a loss: the one place that knows K in from K out.

With log w = log p(x|z) + log p(z) − log q(z|x̃), K samples z and M corruptions x̃ of each example:

- ``"elbo"``: the mean over M and K of log w, the (denoising) variational lower bound;
- ``"iwae"``: the mean over M of log 1/K Σ_k w, the (denoising) importance-weighted bound.

Source: Im, Ahn, Memisevic, Bengio (arXiv 1511.06406), section 3; Burda, Grosse, Salakhutdinov
(arXiv 1509.00519), equation 8.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from dvae_fast import functional

if TYPE_CHECKING:
    from torch import Tensor

    from dvae_fast.likelihoods import Likelihood

__all__ = ["OBJECTIVES", "bound", "check_objective", "loss", "sample_latents"]

OBJECTIVES = ("elbo", "iwae")


def check_objective(objective: str) -> str:
    """`objective` if it is one of `OBJECTIVES`, else ValueError."""
    if objective not in OBJECTIVES:
        raise ValueError(f"objective must be one of {', '.join(OBJECTIVES)}; got {objective!r}")
    return objective


def sample_latents(
    mean: Tensor,
    log_var: Tensor,
    k: int,
    objective: str,
    seed: int | Tensor | None = None,
    *,
    first_example: int = 0,
) -> tuple[Tensor, Tensor]:
    """K samples of q(z|x̃), laid out so that a mean of log-mean-weights is the objective.

    Args:
        mean, log_var: (*L, B, Z), encoded once.
        k: K >= 1.
        objective: one of `OBJECTIVES`.
        seed, first_example: as for `dvae_fast.sample_latent`.

    Returns:
        z and log_ratio. "iwae": (*L, B, K, Z) and (*L, B, K). "elbo" with K > 1: samples go
        outside the logarithm, (*L, K, B, 1, Z) and (*L, K, B, 1), as if they were corruptions.
    """
    if check_objective(objective) == "elbo" and k != 1:
        functional._check_posterior(mean, log_var)
        functional._check_count("k", k, 1)
        shape = (*mean.shape[:-2], k, *mean.shape[-2:])
        mean, log_var = mean.unsqueeze(-3).expand(shape), log_var.unsqueeze(-3).expand(shape)
        k = 1
    return functional.sample_latent(mean, log_var, k, seed, first_example=first_example)


def bound(log_w: Tensor, objective: str) -> Tensor:
    """The bound of each example, in nats.

    Args:
        log_w: log-weights (*L, B, K), usually (M, B, K) or (B, K).
        objective: one of `OBJECTIVES`.

    Returns:
        (B,): the mean over the leading dimensions of log 1/K Σ_k w ("iwae") or of the mean over K
        of log w ("elbo"). This is the bound itself, never the surrogate Σ w̃ log w.

    Raises:
        ValueError: if the objective is unknown, log_w has fewer than two dimensions, or K < 1.
    """
    check_objective(objective)
    if log_w.dim() < 2 or log_w.shape[-1] < 1:
        raise ValueError(f"log_w must have shape (*L, B, K) with K >= 1, got {tuple(log_w.shape)}")
    per_copy = functional.logmeanexp(log_w) if objective == "iwae" else log_w.mean(-1)
    return per_copy if per_copy.dim() == 1 else per_copy.flatten(0, -2).mean(0)


def loss(
    params: Tensor | tuple[Tensor, Tensor | float],
    x: Tensor,
    log_ratio: Tensor,
    likelihood: str | Likelihood = "bernoulli",
    objective: str = "iwae",
    *,
    overwrite_params: bool = False,
) -> Tensor:
    """The negative bound, a mean over examples and corruptions: a scalar in nats.

    Arguments as for `dvae_fast.iwae_loss`. With one sample a row, as `sample_latents` makes them
    for "elbo", both objectives are the same fused pass.
    """
    if check_objective(objective) == "elbo" and log_ratio.shape[-1] != 1:
        return -functional.log_weights(params, x, log_ratio, likelihood).mean()
    return functional.iwae_loss(params, x, log_ratio, likelihood, overwrite_params=overwrite_params)
