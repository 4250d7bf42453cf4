"""What every model shares: corruption, encoder, decoder, and the steps between them."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any, ClassVar, cast

import torch
from torch import Tensor, nn

from dvae_fast import functional, objectives
from dvae_fast._checks import check_same, check_size
from dvae_fast._seeds import derived_key, seed_tensor, torch_seeded
from dvae_fast.corruptions import (
    as_corruption,
    corrupt,
    score_function_surrogate,
)
from dvae_fast.corruptions.basic import is_identity
from dvae_fast.functional._autograd import autocast_dtype, recordable
from dvae_fast.likelihoods import get_likelihood
from dvae_fast.models.config import (
    ConstructorSignature,
    ModelConfig,
    bind_options,
    default_samples,
)
from dvae_fast.models.context import as_context
from dvae_fast.models.decoders import Decoder, splits
from dvae_fast.models.encoders import make_encoder
from dvae_fast.models.priors import PRIORS, PriorSizes, check_prior, is_fused
from dvae_fast.models.with_prior import WithPrior
from dvae_fast.objectives import as_objective
from dvae_fast.objectives.objective import check_score_objective

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from typing import Unpack

    from dvae_fast.corruptions import Corruption
    from dvae_fast.evaluation import Expectation
    from dvae_fast.models.context import Told
    from dvae_fast.models.priors import Prior
    from dvae_fast.objectives import Latents, Objective

__all__ = ["Autoencoder", "groups_of"]

#: parts that may be a module of one's own
_PARTS = ("encoder", "decoder", "prior", "reverse")
_OWN = "a prior of one's own"
_SAMPLE_KEY = 1 << 22  # index among a seed's keys


class Autoencoder(WithPrior):
    """p(x|z), its data, corruption and objective, whatever the latents: the base of all models.

    ``encoder``, ``decoder`` and ``prior`` may be replaced by modules of one's own, at construction
    or after it; those see rows, (N, D) or (N, Z). A subclass says what ``encoder`` makes, and how z
    is drawn from that.
    """

    #: the name in configurations, a key of `MODELS`
    name: ClassVar[str] = ""
    #: options that are not as in `ModelConfig` where none are given
    defaults: ClassVar[Mapping[str, Any]] = {}
    #: whether the encoder sees corrupted data unless asked not to
    denoising: ClassVar[bool] = False
    __signature__ = ConstructorSignature()

    #: multiplies log p(z) − log q(z|x̃) in `loss`'s gradient alone; a trainer's to set
    kl_weight: Tensor | float = 1.0

    def __init__(
        self,
        data_size: int | Sequence[int],
        *sizes: Any,
        image_shape: Sequence[int] | None = None,
        data_mean: Tensor | None = None,
        **options: Any,
    ) -> None:
        super().__init__()
        given = bind_options(type(self), sizes, options)
        self._take_shape(data_size, image_shape)
        self.options = chosen = ModelConfig(**{**self.defaults, **given})
        self.latent_size = chosen.latent_size
        self.context_size = chosen.context_size
        self.likelihood = get_likelihood(chosen.likelihood)
        self.objective = self.objective_of(chosen, given.get("estimator"))
        self.copies = chosen.copies
        self.samples = default_samples(self.objective) if chosen.samples is None else chosen.samples
        self.corruption = None if chosen.corruption is None else as_corruption(chosen.corruption)
        self.objective.check_samples(self.copies, self.samples)
        self.check_options(chosen, self.objective)
        if self.corruption is not None:
            self.corruption.check_copies(self.copies)
            if self.corruption.scores:
                check_score_objective(self.objective)
        # Typed as modules, not as the classes made here: any module may take their place.
        self.encoder: nn.Module = self._part("encoder")
        self.decoder: nn.Module = self._part("decoder", data_mean)
        self.prior: Prior = cast("Prior", self._part("prior", data_mean))
        self._make_more()

    # --- the parts ----------------------------------------------------------------------------

    @classmethod
    def check_options(cls, options: ModelConfig, objective: Objective) -> None:
        """Raise ValueError unless the model has the objective with these options."""
        if objective.bound.analytic and not is_fused(options.prior):
            what = f"the prior {options.prior}" if isinstance(options.prior, str) else _OWN
            raise ValueError(
                f"objective must not be {objective.name} with {what}: "
                "its divergence is that from the standard normal"
            )

    @classmethod
    def objective_of(cls, options: ModelConfig, estimator: str | None = None) -> Objective:
        """The objective that the options name, or the model's own; an `estimator` given replaces
        that of an `Objective`."""
        objective = cls.defaults["objective"] if options.objective is None else options.objective
        if isinstance(objective, str):
            estimator = options.estimator
        return as_objective(objective, estimator)

    def _part(self, name: str, data_mean: Tensor | None = None) -> Any:
        """What the option called `name` says: made by name, or the module given."""
        chosen = self.options
        part = getattr(chosen, name)
        if isinstance(part, str):
            if name == "encoder":
                return self._make_encoder(part)
            if name == "prior":
                return self._make_prior(part, data_mean)
            hidden = chosen.decoder_hidden_sizes
            return Decoder(
                self.latent_size, chosen.hidden_sizes[::-1] if hidden is None else hidden,
                self.data_size, self.likelihood, chosen.activation, data_mean, self.context_size,
            )  # fmt: skip
        if name == "prior":
            check_prior(part)
        elif not isinstance(part, nn.Module):
            raise TypeError(f"{name} must be a name or a module, got {type(part).__name__}")
        if data_mean is not None and name == "decoder":
            raise ValueError(
                "data_mean must be left out with a decoder of one's own, whose bias it cannot start"
            )
        return part

    def _make_encoder(self, name: str) -> nn.Module:
        chosen = self.options
        return make_encoder(
            name, self.data_size, self.image_shape, chosen.hidden_sizes, self.latent_size,
            chosen.activation, chosen.covariance, self.context_size,
        )  # fmt: skip

    def _make_prior(self, name: str, data_mean: Tensor | None = None) -> nn.Module:
        return self._prior_of(name, self.latent_size, data_mean)

    def _prior_of(self, name: str, latent_size: int, data_mean: Tensor | None) -> nn.Module:
        chosen = self.options
        sizes = PriorSizes(
            latent_size, chosen.prior_components, self.data_size, self.context_size,
            self.likelihood.interval, data_mean,
        )  # fmt: skip
        return PRIORS[name].make(sizes)

    def _make_more(self) -> None:
        """The networks that a subclass has in addition."""

    def _encoded(self, x: Tensor, context: Tensor | None = None) -> Any:
        """What ``encoder`` makes of x, (..., D), with a context (..., C) that broadcasts to it."""
        told, ready = self._told(context), isinstance(self.options.encoder, str)
        x = self._input("x", self.flatten(x), self.data_size, "D")
        return self._through(self.encoder, ready, "x", x, told)

    def decode(self, z: Tensor, context: Tensor | None = None) -> Tensor | tuple[Tensor, Tensor]:
        """The likelihood's parameters: (..., Z) → logits (..., D), or a pair (mean, scale).

        A context is (..., C), and broadcasts to the leading dimensions of z: (B, 1, C) for z of
        (B, K, Z).
        """
        told, ready = self._told(context), isinstance(self.options.decoder, str)
        z = self._input("z", z, self.latent_size, "Z")
        params = self._through(self.decoder, ready, "z", z, told)
        return cast("Tensor | tuple[Tensor, Tensor]", params)

    def _told(self, context: Tensor | None) -> tuple[Tensor, ...]:
        """What a network is called with besides its input."""
        if (context is None) != (self.context_size == 0):
            as_context(context, 0, self.context_size)
        if context is None:
            return ()
        return (self._input("context", context, self.context_size, "C"),)

    def as_context(self, context: Any, examples: int, like: Tensor) -> Tensor | None:
        """The context of so many examples, as the networks take it: (B, C), or None without one.

        Raises:
            TypeError, ValueError: unless it is (B, C), or labels (B,) of C classes; or if it is
                given to a model without, or the other way round.
        """
        return as_context(context, examples, self.context_size, like.dtype)

    def _context(self, context: Any, x: Tensor) -> Tensor | None:
        """The context of x."""
        if isinstance(context, Tensor):
            check_same("context", context, "x", x)
        told = self.as_context(context, len(x), x)
        return None if told is None else recordable(told)

    def _corrupt(
        self,
        x: Tensor,
        key: Tensor,
        copies: int | None,
        first_example: int = 0,
        mask: Tensor | None = None,
    ) -> Tensor:
        """(B, D) → x̃ of shape (copies, B, D), or of x's without copies or without corruption; 0
        where nothing was observed."""
        corruption = self.corruption
        if is_identity(corruption):
            return x  # M copies of it would be encoded M times
        noisy = corrupt(x, cast("Corruption", corruption), copies, key, first_example=first_example)
        return noisy if mask is None else noisy.masked_fill(~mask, 0)

    def __setattr__(self, name: str, value: Any) -> None:
        # A part replaced is one's own from here on.
        if name in _PARTS and (name in self.__dict__ or name in self.__dict__.get("_modules", {})):
            self.options = dataclasses.replace(self.options, **{name: value})
        # A learnt corruption is a module, and another may take its place.
        if name == "corruption" and not isinstance(value, nn.Module):
            self.__dict__.get("_modules", {}).pop(name, None)
        super().__setattr__(name, value)
        if name == "prior" and hasattr(value, "bind"):
            value.bind(self)

    def _sample_posterior(
        self, x: Tensor, key: Tensor, first_example: int, **told: Unpack[Told]
    ) -> Latents:
        """z and log_ratio for the objective: M corruptions encoded once, K samples of each."""
        raise NotImplementedError

    def _encoded_noisy(
        self, x: Tensor, key: Tensor, first_example: int, told: Told
    ) -> tuple[Tensor, Any]:
        """x̃, of M copies where there are several, and what is encoded of it."""
        context, copies = told.get("context"), self.copies if self.copies > 1 else None
        noisy = self._corrupt(x, key, copies, first_example, told.get("mask"))
        encode: Any = self.encode  # a subclass has it
        return noisy, encode(noisy, *(() if context is None else (context,)))

    def split_decoder(self) -> Decoder | None:
        """The decoder, if trunk and then a linear output are all that calling `decode` does."""
        plain = type(self).decode is Autoencoder.decode and "decode" not in self.__dict__
        decoder = self.decoder
        return decoder if plain and splits(decoder) else None

    def _log_weights(
        self,
        z: Tensor,
        x: Tensor,
        log_ratio: Tensor,
        context: Tensor | None = None,
        mask: Tensor | None = None,
    ) -> Tensor:
        """log w in the shape of log_ratio, not holding the logits of a Bernoulli."""
        decoder, told = self.split_decoder(), self._by_sample(context)
        if decoder is not None:
            output = decoder.output
            return functional.linear_log_weights(
                decoder.hidden(z, *told), output.weight, output.bias, x, log_ratio,
                self.likelihood, mask,
            )  # fmt: skip
        return functional.log_weights(self.decode(z, *told), x, log_ratio, self.likelihood, mask)

    def _by_sample(self, context: Tensor | None) -> tuple[Tensor, ...]:
        """A context (B, C) as the decoder of (*L, B, K, Z) is told it: (B, 1, C), not repeated."""
        return () if context is None else (context.unsqueeze(-2),)

    # --- the objective ------------------------------------------------------------------------

    def loss(
        self,
        x: Tensor,
        seed: int | Tensor | None = None,
        *,
        context: Tensor | None = None,
        mask: Tensor | None = None,
        first_example: int = 0,
    ) -> Tensor:
        """The negative bound in nats, a mean over examples; a scalar.

        Its value is the bound's whatever gives the gradient: see `dvae_fast.objectives.loss`.

        Args:
            x: (B, D) or (B, *shape), the clean data, which is the target and is never written to.
            seed: int, int64 tensor of one element, or None to draw one from torch's generator.
                One seed governs corruption and latents, which use different streams of it.
            context: what encoder, decoder and prior are told besides x, for a model with a
                ``context_size`` C: (B, C), or labels (B,) from 0 to C − 1, which stand for as many
                zeros and a one. It is corrupted by nothing.
            mask: bool in x's shape, True where x was observed: the bound is then of log p of that
                alone, and the encoder sees zeros elsewhere, whatever x has there (Mattei and
                Frellsen, arXiv 1812.02633, section 3).
            first_example: index of x's first example in the noise: with the same seed, parts of
                a batch get the numbers that the batch would.

        Raises:
            TypeError, ValueError: if x or the context is of another shape, x not in the model's
                dtype or either not on its device, or the seed or first_example is wrong.
        """
        x, mask = self._observed(x, mask)
        context, key = self._context(context, x), seed_tensor(seed, x.device)
        return self._loss(x, key, first_example, context=context, mask=mask)

    def _loss(self, x: Tensor, key: Tensor, first_example: int, **told: Unpack[Told]) -> Tensor:
        latents = self._posterior_of(x, key, first_example, **told)
        context, mask = told.get("context"), told.get("mask")
        params, again = self._decoded(latents.z, context)
        loss = objectives.loss(
            cast("Tensor | tuple[Tensor, Tensor | float]", params),
            x,
            latents.log_ratio,
            self.likelihood,
            self.objective,
            inference=latents.inference,
            kl_weight=self.kl_weight,
            mask=mask,
            overwrite_params=False if again is None else again,
        )
        if self.corruption is not None and self.corruption.scores:
            if mask is not None:
                raise ValueError("mask must be None where a rate is learnt by the score function")
            term = self._score_term(self.corruption, x, key, first_example, latents, context)
            loss = loss + term
        return loss

    def _posterior_of(
        self, x: Tensor, key: Tensor, first_example: int, **told: Unpack[Told]
    ) -> Latents:
        """`_sample_posterior`, which a subclass without them need not be told of either."""
        some = cast("Told", {name: t for name, t in told.items() if t is not None})
        return self._sample_posterior(x, key, first_example, **some)

    def _decoded(
        self, z: Tensor, context: Tensor | None
    ) -> tuple[Any, Callable[[], Tensor] | None]:
        """`decode`, and if its result may be overwritten what makes it again.

        Logits are what a linear layer returned, read by nobody else then or in backward (a linear
        layer's needs its input and weight), so the gradient may overwrite them. A pair's sigmoid
        (or exp) and softplus do read their results in backward.
        """
        decoder, told = self.split_decoder(), self._by_sample(context)
        if decoder is None:
            return self.decode(z, *told), None
        hidden, dtype = decoder.hidden(z, *told), autocast_dtype(z)

        def output() -> Tensor:
            if dtype is None:
                return cast("Tensor", decoder.output(hidden))
            with torch.autocast(z.device.type, dtype):
                return cast("Tensor", decoder.output(hidden))

        return decoder.output(hidden), output

    def _score_term(
        self,
        corruption: Corruption,
        x: Tensor,
        key: Tensor,
        first_example: int,
        latents: Latents,
        context: Tensor | None,
    ) -> Tensor:
        """0, with the gradient of a rate that the copies' bounds give by the score function.

        The bounds are those whose gradient the loss has: of the divergence as it is weighted.
        """
        corruption.check_copies(self.copies)
        if not torch.is_grad_enabled():
            return x.new_zeros(())
        with torch.no_grad():
            log_ratio = self.kl_weight * latents.log_ratio
            log_w = self._log_weights(latents.z, x, log_ratio, context)  # (M, ..., B, K)
            bounds = torch.stack([objectives.bound(copy, self.objective) for copy in log_w])
        noisy = self._corrupt(x, key, self.copies, first_example)  # the same numbers again
        return score_function_surrogate(-bounds, corruption.log_prob(noisy, x))

    def forward(
        self,
        x: Tensor,
        seed: int | Tensor | None = None,
        *,
        context: Tensor | None = None,
        mask: Tensor | None = None,
        first_example: int = 0,
    ) -> Tensor:
        """`loss`, so that wrappers which call a module (compilation, data parallel) can."""
        return self.loss(x, seed, context=context, mask=mask, first_example=first_example)

    @torch.no_grad()
    def bound(
        self,
        x: Tensor,
        seed: int | Tensor | None = None,
        *,
        context: Tensor | None = None,
        mask: Tensor | None = None,
        first_example: int = 0,
    ) -> Tensor:
        """The bound of each example, (B,), in nats and without a gradient.

        Arguments as for `loss`; with the same seed its mean is minus `loss`. Holds no (B, K, D)
        for a Bernoulli.
        """
        x, mask = self._observed(x, mask)
        context, key = self._context(context, x), seed_tensor(seed, x.device)
        z, log_ratio, _ = self._posterior_of(x, key, first_example, context=context, mask=mask)
        return objectives.bound(self._log_weights(z, x, log_ratio, context, mask), self.objective)

    # --- pictures -----------------------------------------------------------------------------

    @torch.no_grad()
    def sample(
        self,
        n: int,
        seed: int | Tensor | None = None,
        *,
        context: Tensor | None = None,
        draw: bool = False,
    ) -> Tensor:
        """The means of p(x|z) for n latents z ~ p(z): (n, D), or (n, *shape) of a model built of a
        shape.

        Args:
            n: n >= 1.
            seed: as for `loss`.
            context: (n, C) or labels (n,), of a model that has one.
            draw: return draws x ~ p(x|z) instead of the means. They are governed by the seed too,
                but by torch's generator, so unlike the latents they depend on n and the device.
        """
        check_size("n", n, most=2**32)
        like = next(self.parameters(), torch.empty(0))
        # Not the seed's own, by which an evaluation of what is drawn here has its latents.
        key = derived_key(seed_tensor(seed, like.device), _SAMPLE_KEY)
        context = self._context(context, like.new_empty(n, 0))
        told = () if context is None else (context,)
        params = self.decode(self._draw_latents(n, key, like, *told), *told)
        if not draw:
            return self._as_built(self.likelihood.mean(params))
        with torch_seeded(int(key), like.device):
            return self._as_built(self.likelihood.sample(params))

    @torch.no_grad()
    def reconstruct(
        self,
        x: Tensor,
        seed: int | Tensor | None = None,
        *,
        context: Tensor | None = None,
        mask: Tensor | None = None,
        corrupt: bool = False,
    ) -> Tensor:
        """The mean of p(x|z) at the middle of q(z|x), or of q(z|x̃), in the shape of x.

        The middle is the mean of a Gaussian, and the likelier value of each binary latent.

        Args:
            x: (B, D) or (B, *shape).
            seed: as for `loss`; used only with `corrupt`.
            context, mask: as for `loss`.
            corrupt: encode a draw of x̃ rather than x.
        """
        given, (x, mask) = x, self._observed(x, mask)
        context = self._context(context, x)
        told = () if context is None else (context,)
        if corrupt:
            x = self._corrupt(x, seed_tensor(seed, x.device), None, mask=mask)
        return self.likelihood.mean(self.decode(self._middle(x, *told), *told)).reshape(given.shape)

    def impute(self, x: Tensor, mask: Tensor, k: int = 5000, **options: Any) -> Expectation:
        """`dvae_fast.impute` of this model: the means of what was not observed, given what was."""
        from dvae_fast.evaluation import impute  # which stands on models

        return impute(self, x, mask, k, **options)

    def _middle(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """The likeliest z of q(z|x): (B, D) → (B, Z)."""
        raise NotImplementedError


def groups_of(t: Tensor, groups: int, dims: int = 1) -> Tensor:
    """(B, *dims) of a posterior without corruptions → (M, B, *dims) without a copy, if M > 1."""
    return t.expand(groups, *t.shape) if groups > 1 and t.dim() == 1 + dims else t
