"""VAE, IWAE, DVAE and DIWAE: an encoder, a decoder and the loss, over the fused operators.

The denoising models encode a corrupted x̃ and are judged on the clean x (Im, Ahn, Memisevic,
Bengio, arXiv 1511.06406); VAE and IWAE are the same without corruption. VAE and DVAE average
log w over K samples, IWAE and DIWAE take the logarithm of the mean of w over K samples (Burda,
Grosse, Salakhutdinov, arXiv 1509.00519); any other bound of `dvae_fast.objectives` is one argument
away. `BernoulliLatentModel` has binary latents. Shapes as everywhere: B examples, M groups (one a
corruption), K samples, Z latent and D data dimensions.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any, ClassVar, cast

import torch
from torch import Tensor, nn

from dvae_fast.corruptions.basic import Corruption, Identity, SaltAndPepper
from dvae_fast.corruptions.compose import as_corruption
from dvae_fast.corruptions.config import corruption_from, describe_corruption
from dvae_fast.corruptions.learnable import Learnable, score_function_surrogate
from dvae_fast.functional import log_weights as functional
from dvae_fast.likelihoods.base import get_likelihood
from dvae_fast.models.decoders import (
    DECODERS,
    MLP,
    check_posterior,
    check_size,
    check_sizes,
    linear,
    splits,
)
from dvae_fast.models.encoders import check_inference, make_encoder
from dvae_fast.models.posterior import is_full, sample_gaussian
from dvae_fast.objectives import loss as objectives
from dvae_fast.objectives.loss import Latents, Objective, as_objective

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from dvae_fast.corruptions.compose import CorruptionFunction
    from dvae_fast.models.decoders import BernoulliDecoder

__all__ = [
    "DIWAE",
    "DVAE",
    "IWAE",
    "MODELS",
    "VAE",
    "Autoencoder",
    "BernoulliLatentModel",
    "LatentVariableModel",
    "make_model",
]


#: objectives whose log-weights keep the corruptions apart: a mean of one bound a copy
_BY_COPY = ("elbo", "iwae", "ciwae", "vr")


def check_posterior_objective(objective: Objective) -> None:
    """Raise ValueError unless the objective is defined for a full covariance."""
    if objective.name not in ("elbo", "iwae") or objective.estimator != "standard":
        raise ValueError(
            "objective must be elbo or iwae with the standard estimator for a full covariance; "
            f"got {objective}"
        )


def check_score_objective(objective: Objective) -> None:
    """Raise ValueError unless the objective is a mean over corruptions, each with its own bound."""
    if objective.name not in _BY_COPY:
        raise ValueError(
            "objective must be a mean over corruptions for a level learnt by the score function, "
            f"one of {', '.join(_BY_COPY)}; got {objective.name}"
        )


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
        likelihood: str,
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
        self.decoder: nn.Module = DECODERS[self.likelihood.kind](
            latent_size, self.decoder_hidden_sizes, data_size, activation, data_mean
        )

    # --- the parts ----------------------------------------------------------------------------

    def _make_encoder(self) -> nn.Module:
        """The inference network of a new model: (..., D) → what `_sample_posterior` takes."""
        raise NotImplementedError

    def decode(self, z: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        """The likelihood's parameters: (..., Z) → logits (..., D), or a pair (mean, scale)."""
        return cast("Tensor | tuple[Tensor, Tensor]", self.decoder(z))

    def _check_data(self, x: Tensor, name: str = "x") -> None:
        functional._check_float(name, x)
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
        return functional.corrupt(x, corruption, copies, key, first_example=first_example)

    def __setattr__(self, name: str, value: Any) -> None:
        # A learnt corruption is a module, and another may take its place.
        if name == "corruption" and not isinstance(value, nn.Module):
            self.__dict__.get("_modules", {}).pop(name, None)
        super().__setattr__(name, value)

    def _sample_posterior(self, x: Tensor, key: Tensor, first_example: int) -> Latents:
        """z and log_ratio for the objective: M corruptions encoded once, K samples of each."""
        raise NotImplementedError

    def split_decoder(self) -> BernoulliDecoder | None:
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
        key = functional._seed_tensor(seed, x.device)
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
        key = functional._seed_tensor(seed, x.device)
        z, log_ratio, _ = self._sample_posterior(x, key, first_example)
        return objectives.bound(self._log_weights(z, x, log_ratio), self.objective)

    def extra_repr(self) -> str:
        """What the parts do not show."""
        parts = [f"M={self.M}", f"K={self.K}", f"objective={self.objective}"]
        return ", ".join([f"corruption={self.corruption}"] * (self.corruption is not None) + parts)


class LatentVariableModel(Autoencoder):
    """p(x, z) = p(x|z) N(z; 0, I) with q(z|x̃); the base of the four models.

    ``encoder`` maps (..., D) to (mean, log_var) and ``decoder`` maps (..., Z) to the likelihood's
    parameters; either may be replaced by a module that does the same.
    """

    #: the name in configurations, a key of `MODELS`
    name: ClassVar[str] = ""
    #: one of `dvae_fast.objectives.OBJECTIVES`
    default_objective: ClassVar[str] = ""
    #: K where none is given
    default_k: ClassVar[int] = 1
    #: whether the encoder sees corrupted data
    denoising: ClassVar[bool] = False

    def __init__(
        self,
        data_size: int,
        latent_size: int,
        hidden_sizes: Sequence[int],
        *,
        activation: str,
        inference: str,
        image_shape: Sequence[int] | None,
        posterior: str,
        likelihood: str,
        corruption: Corruption | CorruptionFunction | None,
        M: int,
        K: int,
        data_mean: Tensor | None,
        objective: str | Objective | None,
        estimator: str | None,
        decoder_hidden_sizes: Sequence[int] | None,
    ) -> None:
        # What `_make_encoder` asks for, before it is called.
        self.inference = inference
        self.posterior = check_posterior(posterior)
        self.image_shape = check_inference(
            inference, check_size("data_size", data_size), image_shape
        )
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
            objective=as_objective(
                self.default_objective if objective is None else objective, estimator
            ),
            decoder_hidden_sizes=decoder_hidden_sizes,
        )
        if self.posterior == "full":
            check_posterior_objective(self.objective)

    # --- the parts ----------------------------------------------------------------------------

    def _make_encoder(self) -> nn.Module:
        return make_encoder(
            self.inference, self.data_size, self.image_shape, self.hidden_sizes, self.latent_size,
            self.activation, self.posterior,
        )  # fmt: skip

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """q(z|x) for x exactly as given, without corruption: (..., D) → mean, log_var (..., Z).

        A full posterior has L, (..., Z, Z), in the place of log_var: its covariance is L Lᵀ.
        """
        mean, spread = self.encoder(x)
        return mean, spread

    def _sample_posterior(self, x: Tensor, key: Tensor, first_example: int) -> Latents:
        noisy = self._corrupt(x, key, self.M if self.M > 1 else None, first_example)
        mean, spread = self.encode(noisy)
        full = is_full(mean, spread)
        mean, spread = groups_of(mean, self.M, 1), groups_of(spread, self.M, 2 if full else 1)
        if not full:
            return objectives.sample_latents(
                mean, spread, self.K, self.objective, key, first_example=first_example
            )
        check_posterior_objective(self.objective)
        k = self.K
        if self.objective.name == "elbo" and k > 1:  # outside, as `sample_latents` does
            mean, spread, k = _repeated(mean, -3, k), _repeated(spread, -4, k), 1
        return Latents(*sample_gaussian(mean, spread, k, key, first_example=first_example))

    def log_weights(
        self,
        x: Tensor,
        mean: Tensor,
        spread: Tensor,
        k: int,
        seed: int | Tensor | None = None,
        *,
        first_example: int = 0,
        first_sample: int = 0,
    ) -> Tensor:
        """log p(x|z) + log p(z) − log q(z) for K samples of a posterior already encoded.

        Args:
            x: (B, D).
            mean, spread: as `encode` returns them.
            k: K >= 1.
            seed, first_example, first_sample: as for `dvae_fast.sample_latent`; any split of the
                work over examples and samples gives the same numbers.

        Returns:
            (B, K) in nats, float32 (float64 for a float64 model); differentiable.
        """
        z, log_ratio = sample_gaussian(
            mean, spread, k, seed, first_example=first_example, first_sample=first_sample
        )
        return self._log_weights(z, x, log_ratio)

    # --- pictures -----------------------------------------------------------------------------

    @torch.no_grad()
    def sample(self, n: int, seed: int | Tensor | None = None, *, draw: bool = False) -> Tensor:
        """The means of p(x|z) for n latents z ~ p(z): (n, D).

        Args:
            n: n >= 1.
            seed: as for `loss`.
            draw: return draws x ~ p(x|z) instead of the means. They are governed by the seed too,
                but by torch's generator, so unlike the latents they depend on n and the device.
        """
        check_size("n", n)
        like = next(self.parameters())
        key = functional._seed_tensor(seed, like.device)
        prior = like.new_zeros(n, self.latent_size)
        z = functional.sample_latent(prior, prior, 1, key)[0].squeeze(1)
        params = self.decode(z)
        if not draw:
            return self.likelihood.mean(params)
        with torch.random.fork_rng([like.device] if like.is_cuda else []):
            torch.manual_seed(int(key))
            return self.likelihood.sample(params)

    @torch.no_grad()
    def reconstruct(
        self, x: Tensor, seed: int | Tensor | None = None, *, corrupt: bool = False
    ) -> Tensor:
        """The mean of p(x|z) at the mean of q(z|x), or of q(z|x̃): (B, D) → (B, D).

        Args:
            x: (B, D).
            seed: as for `loss`; used only with `corrupt`.
            corrupt: encode a draw of x̃ rather than x.
        """
        self._check_data(x)
        if corrupt:
            x = self._corrupt(x, functional._seed_tensor(seed, x.device), None)
        return self.likelihood.mean(self.decode(self.encode(x)[0]))

    @torch.no_grad()
    def interpolate(self, start: Tensor, end: Tensor, steps: int) -> Tensor:
        """The means of p(x|z) on the straight lines between the means of q(z|x) of two images.

        Args:
            start, end: (B, D); the first and last of each line are their reconstructions.
            steps: >= 2 images a line.

        Returns:
            (B, steps, D).

        Raises:
            TypeError, ValueError: naming the argument, the rule and the value.
        """
        self._check_data(start, "start")
        self._check_data(end, "end")
        if end.shape != start.shape:
            raise ValueError(
                f"start and end must have one shape, got {tuple(start.shape)} and "
                f"{tuple(end.shape)}"
            )
        if check_size("steps", steps) < 2:
            raise ValueError(f"steps must be >= 2, got {steps}")
        first, last = (self.encode(x)[0].unsqueeze(1) for x in (start, end))
        weight = torch.linspace(0, 1, steps, dtype=first.dtype, device=first.device).unsqueeze(1)
        return self.likelihood.mean(self.decode(torch.lerp(first, last, weight)))

    @torch.no_grad()
    def manifold(self, n: int) -> Tensor:
        """The means of p(x|z) over a plane of latents, for a model with two of them.

        z lies at the normal quantiles (i + ½)/n, so that each image stands for as much of the
        prior as any other (Kingma and Welling, arXiv 1312.6114, figure 4).

        Args:
            n: n >= 1 images a side.

        Returns:
            (n, n, D): the second latent falls from row to row, the first rises within one.

        Raises:
            ValueError: if the model has not two latents, or n < 1.
        """
        check_size("n", n)
        if self.latent_size != 2:
            raise ValueError(
                f"latent_size must be 2 for a plane of latents, got {self.latent_size}"
            )
        like = next(self.parameters())
        steps = torch.arange(n, dtype=torch.float64) + 0.5
        quantiles = torch.special.ndtri(steps / n).to(like)
        z = torch.stack(torch.meshgrid(quantiles, quantiles.flip(0), indexing="xy"), -1)
        return self.likelihood.mean(self.decode(z))

    # --- configuration ------------------------------------------------------------------------

    def config(self) -> dict[str, Any]:
        """What `from_config` needs to build this model again, parameters apart; JSON-able."""
        config: dict[str, Any] = {
            "model": self.name,
            "data_size": self.data_size,
            "latent_size": self.latent_size,
            "hidden_sizes": list(self.hidden_sizes),
            "activation": self.activation,
            "likelihood": self.likelihood.kind,
            "K": self.K,
        }
        if self.inference != "mlp":
            assert self.image_shape is not None
            config |= {"inference": self.inference, "image_shape": list(self.image_shape)}
        if self.decoder_hidden_sizes != self.hidden_sizes[::-1]:
            config["decoder_hidden_sizes"] = list(self.decoder_hidden_sizes)
        if self.posterior != "diagonal":
            config["posterior"] = self.posterior
        if self.denoising:
            assert self.corruption is not None
            config |= {"corruption": describe_corruption(self.corruption), "M": self.M}
        elif self.M > 1:
            config["M"] = self.M
        if self.objective != Objective(self.default_objective):
            config["objective"] = self.objective.to_dict()
        return config

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> LatentVariableModel:
        """The model that `config` describes, with fresh parameters.

        Raises:
            ValueError: if the model is not this class (any, from the base), a key is missing or
                unknown, or a value is wrong.
        """
        options = dict(config)
        name = options.pop("model", None)
        if name not in MODELS or not issubclass(MODELS[name], cls):
            valid = [n for n, c in MODELS.items() if issubclass(c, cls)]
            raise ValueError(f"config's model must be one of {', '.join(valid)}; got {name!r}")
        known = {"data_size", "latent_size", "hidden_sizes", "activation", "likelihood", "M", "K"}
        known |= {"inference", "image_shape", "posterior", "objective", "decoder_hidden_sizes"}
        if MODELS[name].denoising:
            known |= {"corruption"}
        if unknown := sorted(options.keys() - known):
            raise ValueError(f"config of a {name} must not have the keys {', '.join(unknown)}")
        if "data_size" not in options:
            raise ValueError(f"config must have the key data_size, got {', '.join(config)}")
        if options.get("corruption") is not None:
            options["corruption"] = corruption_from(options["corruption"])
        if "objective" in options:
            options["objective"] = _objective_from(options["objective"])
        return _construct(name, **options)


class _Plain(LatentVariableModel):
    """VAE and IWAE."""

    def __init__(
        self,
        data_size: int,
        latent_size: int = 50,
        hidden_sizes: Sequence[int] = (200, 200),
        *,
        activation: str = "softplus",
        inference: str = "mlp",
        image_shape: Sequence[int] | None = None,
        posterior: str = "diagonal",
        likelihood: str = "bernoulli",
        M: int = 1,
        K: int | None = None,
        data_mean: Tensor | None = None,
        objective: str | Objective | None = None,
        estimator: str | None = None,
        decoder_hidden_sizes: Sequence[int] | None = None,
    ) -> None:
        super().__init__(
            data_size,
            latent_size,
            hidden_sizes,
            activation=activation,
            inference=inference,
            image_shape=image_shape,
            posterior=posterior,
            likelihood=likelihood,
            corruption=None,
            M=M,
            K=self.default_k if K is None else K,
            data_mean=data_mean,
            objective=objective,
            estimator=estimator,
            decoder_hidden_sizes=decoder_hidden_sizes,
        )


class _Denoising(LatentVariableModel):
    """DVAE and DIWAE."""

    denoising = True

    def __init__(
        self,
        data_size: int,
        latent_size: int = 50,
        hidden_sizes: Sequence[int] = (200, 200),
        *,
        activation: str = "softplus",
        inference: str = "mlp",
        image_shape: Sequence[int] | None = None,
        posterior: str = "diagonal",
        likelihood: str = "bernoulli",
        corruption: Corruption | CorruptionFunction | None = None,
        M: int = 1,
        K: int | None = None,
        data_mean: Tensor | None = None,
        objective: str | Objective | None = None,
        estimator: str | None = None,
        decoder_hidden_sizes: Sequence[int] | None = None,
    ) -> None:
        super().__init__(
            data_size,
            latent_size,
            hidden_sizes,
            activation=activation,
            inference=inference,
            image_shape=image_shape,
            posterior=posterior,
            likelihood=likelihood,
            corruption=SaltAndPepper(0.1) if corruption is None else corruption,
            M=M,
            K=self.default_k if K is None else K,
            data_mean=data_mean,
            objective=objective,
            estimator=estimator,
            decoder_hidden_sizes=decoder_hidden_sizes,
        )


class VAE(_Plain):
    """The variational autoencoder: E_q(z|x) [log w], estimated with K samples.

    Args:
        data_size: D.
        latent_size: Z.
        hidden_sizes: of the encoder, from the data on. May be empty.
        activation: one of `dvae_fast.networks.ACTIVATIONS`.
        inference: the encoder, one of `dvae_fast.inference.INFERENCES`; "gru" and "gru-2d" take the
            first of hidden_sizes for their recurrent layer.
        image_shape: (H, W), H · W = D; needed by every encoder but "mlp".
        posterior: the covariance of q(z|x), one of `dvae_fast.networks.POSTERIORS`; for "full"
            `encode` returns a triangular factor (..., Z, Z) in the place of log_var.
        likelihood: "bernoulli" (x in [0, 1]); "gaussian" or "discretised_logistic" (x in
            {0, 1/255, …, 1}), mean a sigmoid and scale learnt; or "negative_binomial" (counts),
            mean an exponential and dispersion learnt.
        M: groups of K samples, all from the one posterior; with K inside a logarithm and M
            outside (objective "iwae") that is MIWAE(M, K).
        K: samples of z a group, over which log w is averaged. Default: 1, of an IWAE 5.
        data_mean: (D,) in [0, 1] (counts: >= 0), where the decoder's bias starts.
        objective: one of `dvae_fast.objectives.OBJECTIVES` or an `Objective`; None for the model's
            own, the one its name stands for.
        estimator: of the encoder's gradient, one of `dvae_fast.objectives.ESTIMATORS`; None for
            the objective's.
        decoder_hidden_sizes: of the decoder, from z on, and maybe empty; None for the encoder's
            in reverse.

    Raises:
        TypeError, ValueError: naming the argument, the rule and the value, or saying which
            estimators the objective has.

    Source: Kingma and Welling (arXiv 1312.6114), equation 3.
    """

    name = "vae"
    default_objective = "elbo"


class IWAE(_Plain):
    """The importance-weighted autoencoder: E [log 1/K Σ_k w]. Arguments as for `VAE`.

    Source: Burda, Grosse, Salakhutdinov (arXiv 1509.00519), equation 8.
    """

    name = "iwae"
    default_objective = "iwae"
    default_k = 5


class DVAE(_Denoising):
    """The denoising variational autoencoder: E_p(x̃|x) E_q(z|x̃) [log w], judged on the clean x.

    Args:
        data_size, latent_size, hidden_sizes, activation, inference, image_shape, posterior,
            likelihood, data_mean, objective, estimator, decoder_hidden_sizes: as for `VAE`.
        corruption: p(x̃|x), one of `dvae_fast.corruptions`; None for SaltAndPepper(0.1), the
            paper's kind of noise for binary images. The level of a
            `dvae_fast.learnable_corruptions.Learnable` is among the model's parameters; a standard
            deviation that requires a gradient otherwise stays its owner's. A callable is taken as
            `dvae_fast.composed_corruptions.FunctionCorruption` takes it.
        M: corruptions an example, K: samples of z a corruption, 1 by default and 5 of a DIWAE; log
            w is averaged over both.

    Raises:
        TypeError, ValueError: naming the argument, the rule and the value.

    Source: arXiv 1511.06406, section 3.
    """

    name = "dvae"
    default_objective = "elbo"


class DIWAE(_Denoising):
    """The denoising importance-weighted autoencoder: E_p(x̃|x) E_q(z|x̃) [log 1/K Σ_k w].

    Arguments as for `DVAE`; the mean over M is outside the logarithm, that over K inside.

    Source: arXiv 1511.06406, section 3.1.
    """

    name = "diwae"
    default_objective = "iwae"
    default_k = 5


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
        likelihood: str = "bernoulli",
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
        objectives.check_discrete(chosen)
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
        return objectives.sample_bernoulli_latents(
            groups_of(self.encode(noisy), self.M), self.prior_logits, self.K, self.objective, key,
            first_example=first_example,
        )  # fmt: skip

    @torch.no_grad()
    def sample(self, n: int, seed: int | Tensor | None = None) -> Tensor:
        """The means of p(x|h) for n latents h ~ p(h): (n, D). Arguments as for `VAE.sample`."""
        check_size("n", n)
        like = next(self.parameters())
        prior = like.new_zeros(self.latent_size) if self.prior_logits is None else self.prior_logits
        key = functional._seed_tensor(seed, like.device)
        h = objectives.draw_bernoulli(prior.expand(n, -1), 1, key).squeeze(1)
        return self.likelihood.mean(self.decode(h.to(like.dtype)))

    @torch.no_grad()
    def reconstruct(self, x: Tensor) -> Tensor:
        """The mean of p(x|h) at the likelier value of each h: (B, D) → (B, D)."""
        self._check_data(x)
        logits = self.encode(x)
        return self.likelihood.mean(self.decode((logits > 0).to(logits.dtype)))


def groups_of(t: Tensor, groups: int, dims: int = 1) -> Tensor:
    """(B, *dims) of a posterior without corruptions → (M, B, *dims) without a copy, if M > 1."""
    return t.expand(groups, *t.shape) if groups > 1 and t.dim() == 1 + dims else t


#: The models by the name used in configurations and on the command line.
MODELS: dict[str, type[LatentVariableModel]] = {c.name: c for c in (VAE, IWAE, DVAE, DIWAE)}


def _repeated(t: Tensor, before: int, k: int) -> Tensor:
    """t with a new dimension of k, of no memory of its own."""
    t = t.unsqueeze(before)
    return t.expand(*(k if i == t.dim() + before else n for i, n in enumerate(t.shape)))


def _construct(name: str, *args: Any, **options: Any) -> LatentVariableModel:
    # The classes differ in what their constructors take.
    make: Callable[..., LatentVariableModel] = MODELS[name]
    return make(*args, **options)


def make_model(
    name: str,
    data_size: int,
    latent_size: int = 50,
    hidden_sizes: Sequence[int] = (200, 200),
    **options: Any,
) -> LatentVariableModel:
    """The model called `name`; `options` are its constructor's, None meaning its default.

    For a model without corruption ``corruption`` may be None or Identity.

    Raises:
        TypeError, ValueError: if the name is not one of `MODELS`, or an argument is wrong.
    """
    if name not in MODELS:
        raise ValueError(f"model must be one of {', '.join(MODELS)}; got {name!r}")
    options = {key: value for key, value in options.items() if value is not None}
    if not MODELS[name].denoising:
        corruption = options.pop("corruption", None)
        if corruption is not None and not isinstance(corruption, Identity):
            raise ValueError(f"corruption must be None for {name}, got {corruption}")
    return _construct(name, data_size, latent_size, hidden_sizes, **options)


def _objective_from(config: Any) -> Objective:
    if isinstance(config, Objective):
        return config
    known = [field.name for field in dataclasses.fields(Objective)]
    if not isinstance(config, dict) or "name" not in config or config.keys() - set(known):
        raise ValueError(
            f"config's objective must have the key name and of {', '.join(known)} no others, "
            f"got {config!r}"
        )
    return Objective(**config)
