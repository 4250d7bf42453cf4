"""q(z|x) = N(mean, Σ), Σ diagonal or full, told apart by the shape of what says how z spreads.

`spread` is log_var, in the shape of `mean` (*L, B, Z), for a diagonal Σ = diag(exp(log_var)); or a
lower triangular L with a positive diagonal, (*L, B, Z, Z), for Σ = L Lᵀ:

    z = mean + L ε,    log p(z) − log q(z) = ½ (|ε|² − |z|²) + Σ_i log L_ii,    p(z) = N(0, I).

What is diagonal goes to the fused operators.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from dvae_fast import functional
from dvae_fast._checks import check_choice, check_float, check_size
from dvae_fast._dtypes import accumulation_dtype
from dvae_fast.functional._autograd import autocast_dtype, without_autocast
from dvae_fast.models.layers import linear

if TYPE_CHECKING:
    from typing import Unpack

    from dvae_fast._seeds import First

__all__ = [
    "COVARIANCES",
    "gaussian_log_ratio",
    "is_full",
    "marginal_log_var",
    "place",
    "posterior_layer",
    "sample_gaussian",
    "split_posterior",
]

#: q(z|x)'s covariance, by whether it is any, as a triangular factor L of L Lᵀ, or diagonal
COVARIANCES = {"diagonal": False, "full": True}


def posterior_layer(inputs: int, latent: int, covariance: str | None) -> nn.Linear:
    """An encoder's last layer, of 2 Z outputs, and Z (Z − 1)/2 below a full factor's diagonal.

    Those start at zero: a full covariance starts as the diagonal one would. Without a covariance,
    of binary latents, Z outputs.
    """
    check_size("latent", latent)
    if covariance is None:
        return linear(inputs, latent)
    check_choice("covariance", covariance, COVARIANCES)
    layer = linear(inputs, 2 * latent)
    if not COVARIANCES[covariance]:
        return layer
    wide: nn.Linear = nn.utils.skip_init(nn.Linear, inputs, 2 * latent + latent * (latent - 1) // 2)
    with torch.no_grad():
        for parameter, start in zip(wide.parameters(), layer.parameters(), strict=True):
            parameter.zero_()
            parameter[: 2 * latent] = start
    return wide


def split_posterior(
    output: Tensor, latent: int, covariance: str | None
) -> Tensor | tuple[Tensor, Tensor]:
    """mean (..., Z), and log_var (..., Z) or L (..., Z, Z) with L_ii = exp(½ log_var_i).

    Without a covariance, the output as it is: logits (..., Z).
    """
    if covariance is None:
        return output
    if not COVARIANCES[covariance]:
        mean, log_var = output.chunk(2, -1)
        return mean, log_var
    mean, log_var, below = output.split((latent, latent, output.shape[-1] - 2 * latent), -1)
    dtype = accumulation_dtype(output.dtype)
    factor = torch.diag_embed(torch.exp(0.5 * log_var.to(dtype)))
    row, column = torch.tril_indices(latent, latent, -1, device=output.device)
    factor[..., row, column] = below.to(dtype)
    return mean, factor


def is_full(mean: Tensor, spread: Tensor) -> bool:
    """Whether `spread` is a triangular matrix.

    Raises:
        ValueError: if it is neither that nor in the shape of `mean`.
    """
    if spread.shape == mean.shape:
        return False
    if mean.dim() < 1 or spread.shape != (*mean.shape, mean.shape[-1]):
        raise ValueError(
            "the posterior's spread must be log_var in the shape of mean, "
            f"{tuple(mean.shape)}, or a triangular matrix for each row of it, "
            f"(*L, B, Z, Z); got {tuple(spread.shape)}"
        )
    return True


def sample_gaussian(
    mean: Tensor, spread: Tensor, k: int, seed: int | Tensor | None = None, **first: Unpack[First]
) -> tuple[Tensor, Tensor]:
    """`dvae_fast.sample_latent` for either covariance, of the same ε.

    Args:
        mean: (*L, B, Z).
        spread: log_var (*L, B, Z), or L (*L, B, Z, Z).
        k, seed, first: first_example and first_sample, as for `dvae_fast.sample_latent`.

    Returns:
        z (*L, B, K, Z) and log p(z) − log q(z) (*L, B, K), differentiable in mean and spread.

    Raises:
        TypeError, ValueError: as `dvae_fast.sample_latent` and `is_full`.
    """
    if not is_full(mean, spread):
        return functional.sample_latent(mean, spread, k, seed, **first)
    check_float("mean", mean)
    with without_autocast(mean):
        dtype = accumulation_dtype(mean.dtype)
        zero = torch.zeros_like(mean, dtype=dtype)
        noise, _ = functional.sample_latent(zero, zero, k, seed, **first)
        scale = spread.to(dtype)
        z = mean.to(dtype).unsqueeze(-2) + noise @ scale.mT
        log_ratio = _log_ratio(z, noise, scale)
    return z if autocast_dtype(mean) is not None else z.to(mean.dtype), log_ratio


def gaussian_log_ratio(z: Tensor, mean: Tensor, spread: Tensor) -> Tensor:
    """`dvae_fast.latent_log_ratio` for either covariance: z (*L, B, K, Z) → (*L, B, K).

    mean and spread as for `sample_gaussian`; differentiable in all three.
    """
    if not is_full(mean, spread):
        return functional.latent_log_ratio(z, mean, spread)
    with without_autocast(mean):
        dtype = accumulation_dtype(mean.dtype)
        z, scale = z.to(dtype), spread.to(dtype)
        centred = z - mean.to(dtype).unsqueeze(-2)
        noise = torch.linalg.solve_triangular(scale, centred.mT, upper=False).mT
        return _log_ratio(z, noise, scale)


def _log_ratio(z: Tensor, noise: Tensor, scale: Tensor) -> Tensor:
    log_det = scale.diagonal(dim1=-2, dim2=-1).log().sum(-1)
    return 0.5 * (noise.square() - z.square()).sum(-1) + log_det.unsqueeze(-1)


def place(mean: Tensor, spread: Tensor, noise: Tensor) -> Tensor:
    """The z of an ε, one for each row: all but a triangular spread (..., Z)."""
    if not is_full(mean, spread):
        return mean + torch.exp(0.5 * spread) * noise
    return mean + (spread @ noise.unsqueeze(-1)).squeeze(-1)


def marginal_log_var(mean: Tensor, spread: Tensor) -> Tensor:
    """The logarithm of each latent's own variance, in the shape of `mean`."""
    return spread.square().sum(-1).log() if is_full(mean, spread) else spread
