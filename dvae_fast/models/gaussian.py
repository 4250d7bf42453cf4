"""VAE, IWAE, DVAE and DIWAE: Gaussian latents, over the fused operators."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, cast

import torch
from torch import Tensor

from dvae_fast import objectives
from dvae_fast._checks import check_dense, check_float, check_same, check_size
from dvae_fast._seeds import seed_tensor
from dvae_fast.corruptions import SaltAndPepper
from dvae_fast.models.base import Autoencoder, groups_of
from dvae_fast.models.config import register
from dvae_fast.models.distributions import Sampled, is_distribution
from dvae_fast.models.one_pass import one_pass
from dvae_fast.models.posterior import is_full, sample_gaussian
from dvae_fast.models.priors import is_fused
from dvae_fast.models.semi_implicit import SemiImplicit
from dvae_fast.objectives import Latents
from dvae_fast.objectives.objective import check_posterior_objective

if TYPE_CHECKING:
    from typing import Unpack

    from dvae_fast._seeds import First
    from dvae_fast.models.config import ModelConfig
    from dvae_fast.models.context import Told
    from dvae_fast.models.one_pass import Pass
    from dvae_fast.objectives import Objective

__all__ = ["DIWAE", "DVAE", "IWAE", "VAE", "LatentVariableModel"]


class LatentVariableModel(SemiImplicit):
    """p(x, z) = p(x|z) p(z) with a Gaussian q(z|x̃); the base of all models of such latents.

    ``encoder`` maps (..., D) to (mean, log_var) and ``decoder`` maps (..., Z) to the likelihood's
    parameters; either may be replaced by a module that does the same.
    """

    # --- the parts ----------------------------------------------------------------------------

    @classmethod
    def check_options(cls, options: ModelConfig, objective: Objective) -> None:
        """Raise ValueError unless the model has the objective with these options."""
        super().check_options(options, objective)
        if options.covariance == "full":
            check_posterior_objective(objective)

    def encode(self, x: Tensor, context: Tensor | None = None) -> Any:
        """q(z|x) for x exactly as given, without corruption: (..., D) → mean, log_var (..., Z).

        A full posterior has L, (..., Z, Z), in the place of log_var: its covariance is L Lᵀ. An
        encoder of one's own may return a distribution with ``rsample`` and ``log_prob``, of the
        rows of x. A context is (..., C), and broadcasts to the leading dimensions of x.

        Raises:
            TypeError: if the encoder is one's own and returns neither.
        """
        encoded = self._encoded(x, context)
        if is_distribution(encoded):
            return encoded
        if not isinstance(encoded, (tuple, list)) or len(encoded) != 2:
            raise TypeError(
                f"encoder must return two tensors, mean and log_var, got {type(encoded).__name__}; "
                "or one distribution, with rsample and log_prob"
            )
        mean, spread = encoded
        return mean, spread

    def _sample_posterior(
        self, x: Tensor, key: Tensor, first_example: int, **told: Unpack[Told]
    ) -> Latents:
        context = told.get("context")
        if self._has_outer():
            latents = self._sample_outer(x, key, first_example, **told)
            return self._with_prior(latents, key, first_example, context)
        noisy, encoded = self._encoded_noisy(x, key, first_example, told)
        if not isinstance(encoded, tuple):
            latents = self._sample_distribution(encoded, noisy, key, first_example)
            return self._with_prior(latents, key, first_example, context)
        mean, spread = encoded
        full = is_full(mean, spread)
        mean, spread = (groups_of(t, self.copies, d) for t, d in ((mean, 1), (spread, 1 + full)))
        if full:
            latents = self._sample_full(mean, spread, key, first_example)
        else:
            latents = objectives.sample_latents(
                mean, spread, self.samples, self.objective, key, first_example=first_example
            )
        return self._with_prior(latents, key, first_example, context)

    def _loss(self, x: Tensor, key: Tensor, first_example: int, **told: Unpack[Told]) -> Tensor:
        found = self._one_pass(x, key, first_example, **told)
        return super()._loss(x, key, first_example, **told) if found is None else found.loss()

    def _pass_of(
        self, x: Tensor, seed: int | Tensor | None, mask: Tensor | None, first_example: int
    ) -> tuple[Pass | None, Tensor]:
        """What makes `loss` of the same arguments in one pass, where that can be; and the seed."""
        x, mask = self._observed(x, mask)
        context, key = self._context(None, x), seed_tensor(seed, x.device)
        if "loss" in self.__dict__ or type(self).loss is not Autoencoder.loss:
            return None, key
        return self._one_pass(x, key, first_example, context=context, mask=mask), key

    def _one_pass(
        self, x: Tensor, key: Tensor, first_example: int, **told: Unpack[Told]
    ) -> Pass | None:
        """What makes the loss in one pass, where that can be."""
        plain = all(t is None for t in told.values())
        if plain and self.prior_is_fused and self._is_as_built():
            return one_pass(self, x, key, first_example)
        return None

    def _is_as_built(self) -> bool:
        """Whether what stands between the networks is this class's own."""
        own, kind = self.__dict__, type(self)
        for name, method in _BETWEEN:
            if name in own or getattr(kind, name) is not method:
                return False
        return True

    def _sample_full(
        self, mean: Tensor, spread: Tensor, key: Tensor, first_example: int
    ) -> Latents:
        check_posterior_objective(self.objective)
        k = self.samples
        if self.objective.bound.outside and k > 1:  # outside, as `sample_latents` does
            mean, spread, k = _repeated(mean, -3, k), _repeated(spread, -4, k), 1
        return Latents(*sample_gaussian(mean, spread, k, key, first_example=first_example))

    def _sample_distribution(
        self, q: Any, noisy: Tensor, key: Tensor, first_example: int
    ) -> Latents:
        """Of the rows of x̃, (B, D) or (M, B, D), by torch's generator."""
        check_posterior_objective(self.objective, "a distribution of the encoder's own")
        groups, b = self.copies, noisy.shape[-2]
        encoded = noisy.shape[:-1].numel() // b  # M, or 1 where all groups are of one posterior
        each = self.samples * (groups // encoded)
        z, ratio = Sampled(q, encoded * b).sample(each, key, first_example=first_example)
        if encoded == groups:
            z, ratio = (t.unflatten(0, (groups, b)) for t in (z, ratio))
        else:
            z, ratio = (t.unflatten(1, (groups, self.samples)).transpose(0, 1) for t in (z, ratio))
        if self.objective.bound.outside and self.samples > 1:
            z, ratio = z.transpose(1, 2).unsqueeze(3), ratio.transpose(1, 2).unsqueeze(3)
        if groups == 1:
            z, ratio = z.squeeze(0), ratio.squeeze(0)
        return Latents(z, ratio)

    def _middle(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        encoded = self.encode(x, *(() if context is None else (context,)))
        if isinstance(encoded, tuple):
            return cast("Tensor", encoded[0])
        return Sampled(encoded, len(x)).middle()

    def log_weights(
        self,
        x: Tensor,
        mean: Tensor,
        spread: Tensor,
        k: int,
        seed: int | Tensor | None = None,
        *,
        context: Tensor | None = None,
        mask: Tensor | None = None,
        **first: Unpack[First],
    ) -> Tensor:
        """log p(x|z) + log p(z) − log q(z) for K samples of a posterior already encoded.

        Args:
            x: (B, D).
            mean, spread: as `encode` returns them.
            k: K >= 1.
            context, mask: as for `loss`, of x (B, D).
            seed, first: first_example and first_sample, as for `dvae_fast.sample_latent`; any split
                of the work over examples and samples gives the same numbers.

        Returns:
            (B, K) in nats, float32 (float64 for a float64 model); differentiable.
        """
        check_dense("x", x)
        check_float("mean", mean)
        check_float("spread", spread)
        check_same("spread", spread, "mean", mean)
        if spread.dtype != mean.dtype:
            raise TypeError(f"spread must have mean's dtype, {mean.dtype}, got {spread.dtype}")
        if x.dim() != 2:
            raise ValueError(f"x must have shape (B, D), got {tuple(x.shape)}")
        key = seed_tensor(seed, mean.device)
        context = self._context(context, x)
        z, log_ratio = sample_gaussian(mean, spread, k, key, **first)
        if not self.prior_is_fused:
            more = {} if context is None else {"context": context}
            log_ratio = log_ratio + self.log_ratio_above(z, key, **more, **first)
        return self._log_weights(z, x, log_ratio, context, mask)

    # --- pictures -----------------------------------------------------------------------------

    @torch.no_grad()
    def interpolate(
        self, start: Tensor, end: Tensor, steps: int, *, context: Tensor | None = None
    ) -> Tensor:
        """The means of p(x|z) on the straight lines between the means of q(z|x) of two images.

        Args:
            start, end: (B, D) or (B, *shape); the first and last of each line are their
                reconstructions.
            steps: >= 2 images a line.
            context: of each line, as for `loss`.

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
        if check_size("steps", steps, most=2**32) < 2:
            raise ValueError(f"steps must be >= 2, got {steps}")
        context = self._context(context, start)
        told = () if context is None else (context,)
        first, last = (self._middle(x, *told).unsqueeze(1) for x in (start, end))
        weight = torch.linspace(0, 1, steps, dtype=first.dtype, device=first.device).unsqueeze(1)
        means = self.likelihood.mean(
            self.decode(torch.lerp(first, last, weight), *self._by_sample(context))
        )
        return means.reshape(*means.shape[:-1], *given.shape[1:])

    @property
    def has_plane(self) -> bool:
        """Whether `manifold` can be drawn: two latents of a standard normal."""
        return self.latent_size == 2 and self.prior_is_fused

    @torch.no_grad()
    def manifold(self, n: int, *, context: Tensor | None = None) -> Tensor:
        """The means of p(x|z) over a plane of latents, for a model with two of them.

        z lies at the normal quantiles (i + ½)/n, so that each image stands for as much of the
        prior as any other (Kingma and Welling, arXiv 1312.6114, figure 4).

        Args:
            n: n >= 1 images a side.
            context: the one of all of them, (1, C) or a label (1,).

        Returns:
            (n, n, D), or (n, n, *shape) as `sample`: the second latent falls from row to row, the
            first rises within one.

        Raises:
            ValueError: if the model has not two latents of a standard normal, or n < 1.
        """
        check_size("n", n, most=2**16)
        if not self.prior_is_fused:
            above = self if is_fused(self.options.prior) else self.prior
            raise ValueError(
                "prior must be the standard normal for the plane of its quantiles, "
                f"got {type(above).__name__}"
            )
        if self.latent_size != 2:
            raise ValueError(
                f"latent_size must be 2 for a plane of latents, got {self.latent_size}"
            )
        like = next(self.parameters())
        steps = torch.arange(n, dtype=torch.float64, device=like.device) + 0.5
        quantiles = torch.special.ndtri(steps / n).to(like)
        z = torch.stack(torch.meshgrid(quantiles, quantiles.flip(0), indexing="xy"), -1)
        context = self._context(context, like.new_empty(1, 0))
        told = () if context is None else (context,)
        return self._as_built(self.likelihood.mean(self.decode(z, *told)))


# What the loss is made of besides the networks.
_BETWEEN = tuple(
    (name, getattr(LatentVariableModel, name))
    for name in (
        "encode", "decode", "flatten", "_encoded", "_encoded_noisy", "_corrupt", "_decoded",
        "_sample_posterior", "_posterior_of", "_with_prior", "_loss", "split_decoder",
    )
)  # fmt: skip


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
