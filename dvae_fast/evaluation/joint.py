"""log p(x, z) and its gradient, as Hamiltonian moves from f_0 to the posterior see it."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from dvae_fast import functional
from dvae_fast._seeds import generator_seed, seed_tensor
from dvae_fast.evaluation.hamiltonian import Point, from_normal

if TYPE_CHECKING:
    from collections.abc import Callable

    from dvae_fast.data.given import Given
    from dvae_fast.evaluation.target import Evaluated

__all__ = ["Joint", "prior_draws"]


class Joint:
    """ℓ = log p(x, z) − log f_0(z) of a batch of B examples; float64 but for the model's part.

    Args:
        evaluated: a model of one layer of continuous latents.
        mean, log_var: of f_0 = N(mean, exp(log_var)), (B, Z) each.
        batch: x, context and mask.
        from_prior: f_0 is the model's prior, which is not N(0, I): then mean and log_var are 0.
    """

    def __init__(
        self,
        evaluated: Evaluated,
        mean: Tensor,
        log_var: Tensor,
        batch: Given,
        *,
        from_prior: bool = False,
    ) -> None:
        self.evaluated, self.batch, self.dtype = evaluated, batch, mean.dtype
        self.mean = mean.double().unsqueeze(1)
        self.log_var = log_var.double().unsqueeze(1)
        self.std = torch.exp(0.5 * self.log_var)
        self.from_prior = from_prior

    def __call__(self, u: Tensor) -> Point:
        z = self.mean + self.std * u
        at = z.to(self.dtype)
        value, slope = self._log_likelihood(at)
        value = value + 0.5 * (u.square() - z.square() + self.log_var).sum(-1)
        point = from_normal(u, value, self.std * (slope - z) + u)
        if self.evaluated.log_ratio_above is None:
            return point
        # log p(z) − log N(z; 0, I), and its gradient in u
        above, slope = self._log_prior(at)
        above = above + 0.5 * (z.square() + math.log(2 * math.pi)).sum(-1)
        slope = self.std * (slope + z)
        if self.from_prior:
            return point._replace(base=point.base + above, base_slope=point.base_slope + slope)
        return point._replace(value=point.value + above, slope=point.slope + slope)

    def whitened(self, z: Tensor) -> Tensor:
        """u of z (B, Z), (B, Z)."""
        return ((z.double().unsqueeze(1) - self.mean) / self.std).squeeze(1)

    def _log_likelihood(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """log p(x|z) and ∂/∂z in float64, from one decode: z (B, C, Z) → (B, C) and (B, C, Z).

        Over logits that are held: at 2,500 rows of 784 they cost 33 ms for value and gradient,
        where `linear_log_weights`, which makes them again to go back, costs 51 (and decoding alone
        15).
        """
        x, mask = self.batch.x.flatten(1), self.batch.mask
        mask = None if mask is None else mask.flatten(1)

        def log_p(z: Tensor) -> Tensor:
            params = self.evaluated.params(z, x.shape[1], self.batch.context)
            none = z.new_zeros(z.shape[:-1])
            return functional.log_weights(params, x, none, self.evaluated.likelihood, mask)

        return _with_gradient(log_p, z, "decoder", "what it returned")

    def _log_prior(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """log p(z) by the model's own prior, and ∂/∂z, as there."""
        model, context = self.evaluated.own, self.batch.context
        assert model is not None
        told = None if context is None else context.unsqueeze(1)
        return _with_gradient(lambda z: model.log_prior(z, told), z, "prior", "its log_prob")


def _with_gradient(
    function: Callable[[Tensor], Tensor], z: Tensor, part: str, what: str
) -> tuple[Tensor, Tensor]:
    """Its value (B, C) and its gradient in z (B, C, Z), float64."""
    with torch.enable_grad():
        z = z.detach().requires_grad_()
        value = function(z)
        grad = None
        if value.requires_grad:
            (grad,) = torch.autograd.grad(value, z, torch.ones_like(value), allow_unused=True)
    if grad is None:
        raise ValueError(
            f"model's {part} must be differentiable in z for Hamiltonian moves, but {what} has no "
            "gradient"
        )
    return value.detach().double(), grad.double()


def prior_draws(
    evaluated: Evaluated, batch: Given, chains: int, like: Tensor, key: Tensor, first: int, run: int
) -> Tensor:
    """z ~ p(z) by the model's own prior, (B, C, Z) in float64: a function of the example, the run
    and the number of chains alone."""
    model, context = evaluated.own, batch.context
    assert model is not None
    drawn = []
    for i in range(len(batch)):
        own = seed_tensor(generator_seed(key, first + i, run), like.device)
        told = None if context is None else context[i].expand(chains, -1)
        drawn.append(model.draw_prior(chains, model.latent_size, own, like, told))
    return torch.stack(drawn).double()
