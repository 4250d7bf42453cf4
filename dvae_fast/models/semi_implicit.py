"""q̃(z|x) = E_p(x̃|x) q(z|x̃) in a model's bound, by J further corruptions of each example."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn

from dvae_fast import objectives
from dvae_fast.corruptions.basic import is_identity
from dvae_fast.models.base import Autoencoder
from dvae_fast.models.distributions import is_distribution
from dvae_fast.models.layers import by_rows
from dvae_fast.models.posterior import is_full
from dvae_fast.models.reverse import ReverseNetwork, draw_reversed, outputs_of
from dvae_fast.objectives.objective import check_posterior_objective
from dvae_fast.objectives.outer import Reversed

if TYPE_CHECKING:
    from typing import Unpack

    from dvae_fast.corruptions import Corruption
    from dvae_fast.models.context import Told
    from dvae_fast.objectives import Latents

__all__ = ["SemiImplicit"]


class SemiImplicit(Autoencoder):
    """A model of a Gaussian q(z|x̃), whose mixture over corruptions may be in the bound.

    ``reverse``, of the objectives that have one, maps rows z (N, Z) and x (N, D) to what moves
    p(x̃|x) to the reverse proposal; see `dvae_fast.models.reverse`.
    """

    reverse: nn.Module | None

    def _make_more(self) -> None:
        chosen = self.options
        if not self.objective.bound.reverse:
            if not isinstance(chosen.reverse, str):
                raise ValueError(
                    "reverse must be left out for an objective without a reverse proposal, "
                    f"{self.objective}"
                )
            self.reverse = None
        elif is_identity(self.corruption):  # nothing to reverse
            self.reverse = None
        elif not isinstance(chosen.reverse, str):
            outputs_of(cast("Corruption", self.corruption))
            self.reverse = self._part("reverse")
        else:
            self.reverse = ReverseNetwork(
                self.latent_size, self.data_size + self.context_size, chosen.reverse_hidden_sizes,
                outputs_of(cast("Corruption", self.corruption)) * self.data_size, chosen.activation,
            )  # fmt: skip

    def _has_outer(self) -> bool:
        return self.objective.bound.outer and not is_identity(self.corruption)

    def _sample_outer(
        self, x: Tensor, key: Tensor, first_example: int, **told: Unpack[Told]
    ) -> Latents:
        context, mask = told.get("context"), told.get("mask")
        count, groups = self.options.outer_samples, self.copies
        reverses = self.objective.bound.reverse
        copies = groups if reverses else groups + count
        noisy = self._corrupt(x, key, copies, first_example, mask)
        mean, log_var = self._components(noisy, context)

        def reversed_of(z: Tensor) -> Reversed:
            moves = self._moves(z, x, context)
            outer, log_weight, scored = draw_reversed(
                cast("Corruption", self.corruption), moves, x, noisy, count, key, first_example,
                mask,
            )  # fmt: skip
            if count == 0:
                nothing = z.new_empty(*z.shape[:-1], 0, z.shape[-1])
                return Reversed(nothing, nothing, log_weight)
            if mask is not None:
                outer = outer.masked_fill(~mask.unsqueeze(1), 0)
            each = None if context is None else context.unsqueeze(-2)
            return Reversed(*self._components(outer, each), log_weight, scored, self.kl_weight)

        return objectives.sample_latents(
            mean[:groups], log_var[:groups], self.samples, self.objective, key,
            first_example=first_example,
            outer=reversed_of if reverses else (mean[groups:], log_var[groups:]),
        )  # fmt: skip

    def _components(self, noisy: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor]:
        """Mean and log-variance of q(z|x̃), each (..., Z)."""
        encode: Any = self.encode  # a subclass has it
        encoded = encode(noisy, *(() if context is None else (context,)))
        if is_distribution(encoded):
            check_posterior_objective(self.objective, "a distribution of the encoder's own")
        mean, log_var = encoded
        if is_full(mean, log_var):
            check_posterior_objective(self.objective)
        return mean, log_var

    def _moves(self, z: Tensor, x: Tensor, context: Tensor | None) -> Tensor:
        """What ``reverse`` makes of z (S, B, Z) and x (B, D)."""
        if self.reverse is None:
            raise ValueError(
                f"objective {self.objective.name} must be the model's from its construction on, "
                "with its corruption, to have a reverse proposal"
            )
        given = x if context is None else torch.cat((x, context), -1)
        ready = isinstance(self.options.reverse, str)
        return cast("Tensor", self.reverse(z, given) if ready else by_rows(self.reverse, z, given))
