"""What every model shares: corruption, encoder, decoder, and the steps between them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn

from dvae_fast import functional, objectives
from dvae_fast._checks import check_float, check_size, check_sizes
from dvae_fast._seeds import seed_tensor
from dvae_fast.corruptions import (
    Corruption,
    Identity,
    Learnable,
    as_corruption,
    corrupt,
    score_function_surrogate,
)
from dvae_fast.likelihoods import get_likelihood
from dvae_fast.models.decoders import Decoder, splits
from dvae_fast.objectives.objective import check_score_objective

if TYPE_CHECKING:
    from collections.abc import Sequence

    from dvae_fast.corruptions import CorruptionFunction
    from dvae_fast.likelihoods import Likelihood
    from dvae_fast.objectives import Latents, Objective

__all__ = ["Autoencoder", "groups_of"]


class Autoencoder(nn.Module):
    """p(x|z), its data, corruption and objective, whatever the latents: the base of all models.

    ``decoder`` maps (..., Z) to the likelihood's parameters; it may be replaced by a module that
    does the same. A subclass says what ``encoder`` makes, and how z is drawn from that.
    """

    #: multiplies log p(z) − log q(z|x̃) in `loss`'s gradient alone; a trainer's to set
    kl_weight: Tensor | float = 1.0

    def __init__(
        self,
        data_size: int,
        latent_size: int,
        hidden_sizes: Sequence[int],
        *,
        activation: str,
        likelihood: str | Likelihood,
        corruption: Corruption | CorruptionFunction | None,
        M: int,
        K: int,
        data_mean: Tensor | None,
        objective: Objective,
        decoder_hidden_sizes: Sequence[int] | None = None,
    ) -> None:
        super().__init__()
        self.data_size = check_size("data_size", data_size)
        self.latent_size = check_size("latent_size", latent_size)
        self.hidden_sizes = check_sizes("hidden_sizes", hidden_sizes)
        self.decoder_hidden_sizes = (
            self.hidden_sizes[::-1]
            if decoder_hidden_sizes is None
            else check_sizes("decoder_hidden_sizes", decoder_hidden_sizes)
        )
        self.activation = activation
        self.likelihood = get_likelihood(likelihood)
        self.corruption = None if corruption is None else as_corruption(corruption)
        self.M = check_size("M", M)
        self.K = check_size("K", K)
        objective.check_samples(M, K)
        self.objective = objective
        if isinstance(self.corruption, Learnable):
            self.corruption.check_copies(M)
            if self.corruption.scores:
                check_score_objective(objective)
        # Typed as modules, not as the classes made here: both may be replaced.
        self.encoder: nn.Module = self._make_encoder()
        self.decoder: nn.Module = Decoder(
            latent_size,
            self.decoder_hidden_sizes,
            data_size,
            self.likelihood,
            activation,
            data_mean,
        )

    # --- the parts ----------------------------------------------------------------------------

    def _make_encoder(self) -> nn.Module:
        """The inference network of a new model: (..., D) → what `_sample_posterior` takes."""
        raise NotImplementedError

    def decode(self, z: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        """The likelihood's parameters: (..., Z) → logits (..., D), or a pair (mean, scale)."""
        return cast("Tensor | tuple[Tensor, Tensor]", self.decoder(z))

    def _check_data(self, x: Tensor, name: str = "x") -> None:
        check_float(name, x)
        if x.dim() != 2 or x.shape[1] != self.data_size:
            raise ValueError(
                f"{name} must have shape (B, D) with D = {self.data_size}, got {tuple(x.shape)}"
            )
        if x.shape[0] < 1:
            raise ValueError(f"{name} must hold B >= 1 examples, got shape {tuple(x.shape)}")
        like = next(self.parameters(), x)
        if x.device != like.device:
            raise ValueError(f"{name} must be on the model's device, {like.device}, got {x.device}")
        if x.dtype != like.dtype and not torch.is_autocast_enabled(x.device.type):
            raise TypeError(f"{name} must have the model's dtype, {like.dtype}, got {x.dtype}")

    def _corrupt(
        self, x: Tensor, key: Tensor, copies: int | None, first_example: int = 0
    ) -> Tensor:
        """(B, D) → x̃ of shape (copies, B, D), or of x's without copies or without corruption."""
        corruption = self.corruption
        if corruption is None or isinstance(corruption, Identity):
            return x  # M copies of it would be encoded M times
        if not isinstance(corruption, nn.Module) and corruption.parameter.device != x.device:
            corruption = corruption.to(x.device)
            if not corruption.parameter.requires_grad:  # else its owner will change the original
                self.corruption = corruption  # once, not at every step
        return corrupt(x, corruption, copies, key, first_example=first_example)

    def __setattr__(self, name: str, value: Any) -> None:
        # A learnt corruption is a module, and another may take its place.
        if name == "corruption" and not isinstance(value, nn.Module):
            self.__dict__.get("_modules", {}).pop(name, None)
        super().__setattr__(name, value)

    def _sample_posterior(self, x: Tensor, key: Tensor, first_example: int) -> Latents:
        """z and log_ratio for the objective: M corruptions encoded once, K samples of each."""
        raise NotImplementedError

    def split_decoder(self) -> Decoder | None:
        """The decoder, if trunk and then a linear output are all that calling `decode` does."""
        plain = type(self).decode is Autoencoder.decode and "decode" not in self.__dict__
        decoder = self.decoder
        return decoder if plain and splits(decoder) else None

    def _log_weights(self, z: Tensor, x: Tensor, log_ratio: Tensor) -> Tensor:
        """log w in the shape of log_ratio, not holding the logits of a Bernoulli."""
        decoder = self.split_decoder()
        if decoder is not None:
            output = decoder.output
            return functional.linear_log_weights(
                decoder.trunk(z), output.weight, output.bias, x, log_ratio, self.likelihood
            )
        return functional.log_weights(self.decode(z), x, log_ratio, self.likelihood)

    # --- the objective ------------------------------------------------------------------------

    def loss(
        self, x: Tensor, seed: int | Tensor | None = None, *, first_example: int = 0
    ) -> Tensor:
        """The negative bound in nats, a mean over examples; a scalar.

        Its value is the bound's whatever gives the gradient: see `dvae_fast.objectives.loss`.

        Args:
            x: (B, D), the clean data, which is the target and is never written to.
            seed: int, int64 tensor of one element, or None to draw one from torch's generator.
                One seed governs corruption and latents, which use different streams of it.
            first_example: index of x's first example in the noise: with the same seed, parts of
                a batch get the numbers that the batch would.

        Raises:
            TypeError, ValueError: if x is not (B, D) in the model's dtype and on its device, or
                the seed or first_example is wrong.
        """
        self._check_data(x)
        key = seed_tensor(seed, x.device)
        latents = self._sample_posterior(x, key, first_example)
        # The logits are what a linear layer returned, read by nobody else then or in backward (a
        # linear layer's needs its input and weight), so the gradient may overwrite them. A
        # pair's sigmoid (or exp) and softplus do read their results in backward.
        loss = objectives.loss(
            cast("Tensor | tuple[Tensor, Tensor | float]", self.decode(latents.z)),
            x,
            latents.log_ratio,
            self.likelihood,
            self.objective,
            inference=latents.inference,
            kl_weight=self.kl_weight,
            overwrite_params=self.split_decoder() is not None,
        )
        if isinstance(self.corruption, Learnable) and self.corruption.scores:
            loss = loss + self._score_term(self.corruption, x, key, first_example, latents)
        return loss

    def _score_term(
        self,
        corruption: Learnable,
        x: Tensor,
        key: Tensor,
        first_example: int,
        latents: Latents,
    ) -> Tensor:
        """0, with the gradient of a rate that the copies' bounds give by the score function."""
        corruption.check_copies(self.M)
        if not torch.is_grad_enabled():
            return x.new_zeros(())
        with torch.no_grad():
            log_w = self._log_weights(latents.z, x, latents.log_ratio)  # (M, ..., B, K)
            bounds = torch.stack([objectives.bound(copy, self.objective) for copy in log_w])
        noisy = self._corrupt(x, key, self.M, first_example)  # the same numbers again
        return score_function_surrogate(-bounds, corruption.log_prob(x, noisy))

    def forward(
        self, x: Tensor, seed: int | Tensor | None = None, *, first_example: int = 0
    ) -> Tensor:
        """`loss`, so that wrappers which call a module (compilation, data parallel) can."""
        return self.loss(x, seed, first_example=first_example)

    @torch.no_grad()
    def bound(
        self, x: Tensor, seed: int | Tensor | None = None, *, first_example: int = 0
    ) -> Tensor:
        """The bound of each example, (B, D) → (B,), in nats and without a gradient.

        Arguments as for `loss`; with the same seed its mean is minus `loss`. Holds no (B, K, D)
        for a Bernoulli.
        """
        self._check_data(x)
        key = seed_tensor(seed, x.device)
        z, log_ratio, _ = self._sample_posterior(x, key, first_example)
        return objectives.bound(self._log_weights(z, x, log_ratio), self.objective)

    def extra_repr(self) -> str:
        """What the parts do not show."""
        parts = [f"M={self.M}", f"K={self.K}", f"objective={self.objective}"]
        return ", ".join([f"corruption={self.corruption}"] * (self.corruption is not None) + parts)


def groups_of(t: Tensor, groups: int, dims: int = 1) -> Tensor:
    """(B, *dims) of a posterior without corruptions → (M, B, *dims) without a copy, if M > 1."""
    return t.expand(groups, *t.shape) if groups > 1 and t.dim() == 1 + dims else t
