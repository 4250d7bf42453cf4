"""What every model shares: corruption, encoder, decoder, and the steps between them."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any, ClassVar, cast

import torch
from torch import Tensor, nn

from dvae_fast import functional, objectives
from dvae_fast._checks import check_choice, check_size
from dvae_fast._dtypes import accumulation_dtype
from dvae_fast._seeds import derived_key, seed_tensor
from dvae_fast.corruptions import (
    Identity,
    as_corruption,
    corrupt,
    score_function_surrogate,
)
from dvae_fast.functional._autograd import autocast_dtype, without_autocast
from dvae_fast.likelihoods import get_likelihood
from dvae_fast.models.config import (
    MODELS,
    ConstructorSignature,
    ModelConfig,
    bind_options,
    default_samples,
    describe_option,
    option_from,
    options_of,
)
from dvae_fast.models.decoders import Decoder, splits
from dvae_fast.models.encoders import make_encoder
from dvae_fast.models.layers import by_rows
from dvae_fast.models.priors import (
    PRIORS,
    StandardNormal,
    check_prior,
    standard_normal_log_prob,
)
from dvae_fast.models.shapes import Shaped
from dvae_fast.objectives import as_objective
from dvae_fast.objectives.objective import check_score_objective

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from typing import Unpack

    from dvae_fast._seeds import First
    from dvae_fast.corruptions import Corruption
    from dvae_fast.models.priors import Prior
    from dvae_fast.objectives import Latents, Objective

__all__ = ["Autoencoder", "groups_of"]

#: parts that may be a module of one's own
_PARTS = ("encoder", "decoder", "prior")
# The key of draws from a prior of one's own, among those of a seed.
_PRIOR_KEY = 3


class Autoencoder(Shaped):
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
        self.prior: Prior = cast("Prior", self._part("prior"))
        self._make_more()

    # --- the parts ----------------------------------------------------------------------------

    @classmethod
    def check_options(cls, options: ModelConfig, objective: Objective) -> None:
        """Raise ValueError unless the model has the objective with these options."""
        if objective.bound.analytic and not isinstance(options.prior, str):
            raise ValueError(
                f"objective must not be {objective.name} with a prior of one's own: its divergence "
                "is that from the standard normal"
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
                return self._make_prior(part)
            hidden = chosen.decoder_hidden_sizes
            return Decoder(
                self.latent_size, chosen.hidden_sizes[::-1] if hidden is None else hidden,
                self.data_size, self.likelihood, chosen.activation, data_mean,
            )  # fmt: skip
        if name == "prior":
            check_prior(part)
        elif not isinstance(part, nn.Module):
            raise TypeError(f"{name} must be a name or a module, got {type(part).__name__}")
        if data_mean is not None:
            raise ValueError(
                "data_mean must be left out with a decoder of one's own, whose bias it cannot start"
            )
        return part

    def _make_encoder(self, name: str) -> nn.Module:
        chosen = self.options
        return make_encoder(
            name, self.data_size, self.image_shape, chosen.hidden_sizes, self.latent_size,
            chosen.activation, chosen.covariance,
        )  # fmt: skip

    def _make_prior(self, name: str) -> nn.Module:
        return PRIORS[name](self.latent_size)

    def _make_more(self) -> None:
        """The networks that a subclass has in addition."""

    def _encoded(self, x: Tensor) -> Any:
        """What ``encoder`` makes of x, (..., D)."""
        x, ready = self.flatten(x), isinstance(self.options.encoder, str)
        return self.encoder(x) if ready else by_rows(self.encoder, x)

    def decode(self, z: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        """The likelihood's parameters: (..., Z) → logits (..., D), or a pair (mean, scale)."""
        ready = isinstance(self.options.decoder, str)
        params = self.decoder(z) if ready else by_rows(self.decoder, z)
        return cast("Tensor | tuple[Tensor, Tensor]", params)

    @property
    def prior_is_fused(self) -> bool:
        """Whether p(z) is what the operators take it for, so that nothing is to be added."""
        return isinstance(self.options.prior, str)

    def log_ratio_above(
        self,
        z: Tensor,
        seed: int | Tensor | None = None,
        **first: Unpack[First],
    ) -> Tensor:
        """What p(z) adds to log N(z; 0, I) − log q(z|x̃): log p(z) − log N(z; 0, I).

        Args:
            z: (*L, B, K, Z).
            seed, first: first_example and first_sample, of what a model draws in addition; unused
                here.

        Returns:
            (*L, B, K) in nats, differentiable.
        """
        return self.log_prior(z) - self.log_fused_prior(z)

    def log_prior(self, z: Tensor) -> Tensor:
        """log p(z) by ``prior``: (..., Z) → (...).

        Raises:
            ValueError: if it gives another shape.
        """
        with without_autocast(z):
            log_prob = self.prior.log_prob(z.to(accumulation_dtype(z.dtype)))
        if log_prob.shape != z.shape[:-1]:
            raise ValueError(
                f"prior's log_prob must return shape {tuple(z.shape[:-1])} for z of shape "
                f"{tuple(z.shape)}, got {tuple(log_prob.shape)}"
            )
        return log_prob

    def log_fused_prior(self, z: Tensor) -> Tensor:
        """The log-density that the log-ratios of ``Latents`` hold in the place of log p(z)."""
        return standard_normal_log_prob(z.to(accumulation_dtype(z.dtype)))

    def _with_prior(self, latents: Latents, key: Tensor, first_example: int) -> Latents:
        if self.prior_is_fused:
            return latents
        above = self.log_ratio_above(latents.z, key, first_example=first_example)
        return latents._replace(log_ratio=latents.log_ratio + above)

    def _draw_latents(self, n: int, key: Tensor, like: Tensor) -> Tensor:
        """n draws of p(z), (n, Z), the decoder's input."""
        return self._draw_prior(n, self.latent_size, key, like)

    def _draw_prior(self, n: int, size: int, key: Tensor, like: Tensor) -> Tensor:
        """n draws by ``prior``, (n, size)."""
        if isinstance(self.prior, StandardNormal):
            zero = like.new_zeros(n, size)
            return functional.sample_latent(zero, zero, 1, key)[0].squeeze(1)
        seed = int(derived_key(key, _PRIOR_KEY))
        z = self.prior.sample(n, generator=torch.Generator(like.device).manual_seed(seed))
        if z.shape != (n, size):
            raise ValueError(f"prior's sample must return shape {(n, size)}, got {tuple(z.shape)}")
        return z.to(like)

    @property
    def wants_context(self) -> bool:
        """Whether it is told something besides x."""
        return False

    def as_context(self, context: Any, examples: int, like: Tensor) -> Tensor | None:
        """The context of so many examples, as the networks take it.

        Raises:
            TypeError, ValueError: if it is given to a model without, or the other way round.
        """
        if context is not None:
            raise ValueError(f"context must be None for a {type(self).__name__}, which takes none")
        return None

    def _corrupt(
        self, x: Tensor, key: Tensor, copies: int | None, first_example: int = 0
    ) -> Tensor:
        """(B, D) → x̃ of shape (copies, B, D), or of x's without copies or without corruption."""
        corruption = self.corruption
        if corruption is None or isinstance(corruption, Identity):
            return x  # M copies of it would be encoded M times
        return corrupt(x, corruption, copies, key, first_example=first_example)

    def __setattr__(self, name: str, value: Any) -> None:
        # A part replaced is one's own from here on.
        if name in _PARTS and (name in self.__dict__ or name in self.__dict__.get("_modules", {})):
            self.options = dataclasses.replace(self.options, **{name: value})
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
            x: (B, D) or (B, *shape), the clean data, which is the target and is never written to.
            seed: int, int64 tensor of one element, or None to draw one from torch's generator.
                One seed governs corruption and latents, which use different streams of it.
            first_example: index of x's first example in the noise: with the same seed, parts of
                a batch get the numbers that the batch would.

        Raises:
            TypeError, ValueError: if x is of another shape, not in the model's dtype or not on its
                device, or the seed or first_example is wrong.
        """
        x = self._rows(x)
        key = seed_tensor(seed, x.device)
        latents = self._sample_posterior(x, key, first_example)
        params, again = self._decoded(latents.z)
        loss = objectives.loss(
            cast("Tensor | tuple[Tensor, Tensor | float]", params),
            x,
            latents.log_ratio,
            self.likelihood,
            self.objective,
            inference=latents.inference,
            kl_weight=self.kl_weight,
            overwrite_params=False if again is None else again,
        )
        if self.corruption is not None and self.corruption.scores:
            loss = loss + self._score_term(self.corruption, x, key, first_example, latents)
        return loss

    def _decoded(self, z: Tensor) -> tuple[Any, Callable[[], Tensor] | None]:
        """`decode`, and if its result may be overwritten what makes it again.

        Logits are what a linear layer returned, read by nobody else then or in backward (a linear
        layer's needs its input and weight), so the gradient may overwrite them. A pair's sigmoid
        (or exp) and softplus do read their results in backward.
        """
        decoder = self.split_decoder()
        if decoder is None:
            return self.decode(z), None
        hidden, dtype = decoder.trunk(z), autocast_dtype(z)

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
    ) -> Tensor:
        """0, with the gradient of a rate that the copies' bounds give by the score function.

        The bounds are those whose gradient the loss has: of the divergence as it is weighted.
        """
        corruption.check_copies(self.copies)
        if not torch.is_grad_enabled():
            return x.new_zeros(())
        with torch.no_grad():
            log_ratio = self.kl_weight * latents.log_ratio
            log_w = self._log_weights(latents.z, x, log_ratio)  # (M, ..., B, K)
            bounds = torch.stack([objectives.bound(copy, self.objective) for copy in log_w])
        noisy = self._corrupt(x, key, self.copies, first_example)  # the same numbers again
        return score_function_surrogate(-bounds, corruption.log_prob(noisy, x))

    def forward(
        self, x: Tensor, seed: int | Tensor | None = None, *, first_example: int = 0
    ) -> Tensor:
        """`loss`, so that wrappers which call a module (compilation, data parallel) can."""
        return self.loss(x, seed, first_example=first_example)

    @torch.no_grad()
    def bound(
        self, x: Tensor, seed: int | Tensor | None = None, *, first_example: int = 0
    ) -> Tensor:
        """The bound of each example, (B,), in nats and without a gradient.

        Arguments as for `loss`; with the same seed its mean is minus `loss`. Holds no (B, K, D)
        for a Bernoulli.
        """
        x = self._rows(x)
        key = seed_tensor(seed, x.device)
        z, log_ratio, _ = self._sample_posterior(x, key, first_example)
        return objectives.bound(self._log_weights(z, x, log_ratio), self.objective)

    # --- pictures -----------------------------------------------------------------------------

    @torch.no_grad()
    def sample(self, n: int, seed: int | Tensor | None = None, *, draw: bool = False) -> Tensor:
        """The means of p(x|z) for n latents z ~ p(z): (n, D), or (n, *shape) of a model built of a
        shape.

        Args:
            n: n >= 1.
            seed: as for `loss`.
            draw: return draws x ~ p(x|z) instead of the means. They are governed by the seed too,
                but by torch's generator, so unlike the latents they depend on n and the device.
        """
        check_size("n", n)
        like = next(self.parameters(), torch.empty(0))
        key = seed_tensor(seed, like.device)
        params = self.decode(self._draw_latents(n, key, like))
        if not draw:
            return self._as_built(self.likelihood.mean(params))
        with torch.random.fork_rng([like.device] if like.is_cuda else []):
            torch.manual_seed(int(key))
            return self._as_built(self.likelihood.sample(params))

    @torch.no_grad()
    def reconstruct(
        self, x: Tensor, seed: int | Tensor | None = None, *, corrupt: bool = False
    ) -> Tensor:
        """The mean of p(x|z) at the middle of q(z|x), or of q(z|x̃), in the shape of x.

        The middle is the mean of a Gaussian, and the likelier value of each binary latent.

        Args:
            x: (B, D) or (B, *shape).
            seed: as for `loss`; used only with `corrupt`.
            corrupt: encode a draw of x̃ rather than x.
        """
        given, x = x, self._rows(x)
        if corrupt:
            x = self._corrupt(x, seed_tensor(seed, x.device), None)
        return self.likelihood.mean(self.decode(self._middle(x))).reshape(given.shape)

    def _middle(self, x: Tensor) -> Tensor:
        """The likeliest z of q(z|x): (B, D) → (B, Z)."""
        raise NotImplementedError

    # --- configuration ------------------------------------------------------------------------

    def config(self) -> dict[str, Any]:
        """What `from_config` needs to build this model again, parameters apart; JSON-able.

        A module of one's own is there by the name of its class, which cannot be built again.
        """
        size = list(self.shape) if self._shaped else self.data_size
        config: dict[str, Any] = {"model": self.name, "data_size": size}
        if self.image_shape is not None:
            config["image_shape"] = list(self.image_shape)
        now = {"objective": self.objective, "estimator": self.objective.estimator}
        for name in options_of(type(self)):
            value = getattr(self.options, name)
            if name in ("copies", "samples", "likelihood", "corruption"):
                value = getattr(self, name)  # may have changed since
            config[name] = describe_option(name, now.get(name, value))
        return config

    @classmethod
    def from_config(cls, config: Mapping[str, Any], **own: Any) -> Autoencoder:
        """The model that `config` describes, with fresh parameters.

        Args:
            config: of `config`.
            own: by the option's name, each module that the model has of one's own.

        Raises:
            ValueError: if the model is not this class (any, from the base), a key is missing or
                unknown, a value is wrong, or a module of one's own is not given.
        """
        options = dict(config)
        name = options.pop("model", None)
        check_choice("config's model", name, [n for n, c in MODELS.items() if issubclass(c, cls)])
        model = MODELS[name]
        known = {"data_size", "image_shape", *options_of(model)}
        for key in options:
            check_choice(f"a key in the config of a {name}", key, known)
        if "data_size" not in options:
            raise ValueError(f"config must have the key data_size, got {', '.join(config)}")
        options = {key: option_from(key, value, own) for key, value in options.items()}
        if own:
            raise ValueError(
                f"{next(iter(own))} must be left out: the model's is made by name, not one's own"
            )
        return model(**options)

    def extra_repr(self) -> str:
        """What the parts do not show."""
        parts = [f"copies={self.copies}", f"samples={self.samples}", f"objective={self.objective}"]
        return ", ".join([f"corruption={self.corruption}"] * (self.corruption is not None) + parts)


def groups_of(t: Tensor, groups: int, dims: int = 1) -> Tensor:
    """(B, *dims) of a posterior without corruptions → (M, B, *dims) without a copy, if M > 1."""
    return t.expand(groups, *t.shape) if groups > 1 and t.dim() == 1 + dims else t
