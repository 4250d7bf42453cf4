"""VAE, IWAE, DVAE and DIWAE: an encoder, a decoder and the loss, over the fused operators.

The denoising models encode a corrupted x̃ and are judged on the clean x (Im, Ahn, Memisevic,
Bengio, arXiv 1511.06406); VAE and IWAE are the same without corruption. VAE and DVAE average
log w over K samples, IWAE and DIWAE take the logarithm of the mean of w over K samples (Burda,
Grosse, Salakhutdinov, arXiv 1509.00519). Shapes as everywhere: B examples, M corruptions, K
samples, Z latent and D data dimensions.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, cast

import torch
from torch import Tensor, nn

from dvae_fast import functional, objectives
from dvae_fast.composed_corruptions import as_corruption
from dvae_fast.corruption_config import corruption_from, describe_corruption
from dvae_fast.corruptions import Corruption, Identity, SaltAndPepper
from dvae_fast.gaussian_posterior import is_full, sample_gaussian
from dvae_fast.inference import check_inference, make_encoder
from dvae_fast.learnable_corruptions import Learnable, score_function_surrogate
from dvae_fast.likelihoods import get_likelihood
from dvae_fast.networks import DECODERS, check_posterior, check_size, check_sizes, splits

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from dvae_fast.composed_corruptions import CorruptionFunction

__all__ = ["DIWAE", "DVAE", "IWAE", "MODELS", "VAE", "LatentVariableModel", "make_model"]


class LatentVariableModel(nn.Module):
    """p(x, z) = p(x|z) N(z; 0, I) with q(z|x̃); the base of the four models.

    ``encoder`` maps (..., D) to (mean, log_var) and ``decoder`` maps (..., Z) to the likelihood's
    parameters; either may be replaced by a module that does the same.
    """

    #: the name in configurations, a key of `MODELS`
    name: ClassVar[str] = ""
    #: one of `dvae_fast.objectives.OBJECTIVES`
    objective: ClassVar[str] = ""
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
    ) -> None:
        super().__init__()
        self.data_size = check_size("data_size", data_size)
        self.latent_size = check_size("latent_size", latent_size)
        self.hidden_sizes = check_sizes("hidden_sizes", hidden_sizes)
        self.activation = activation
        self.inference = inference
        self.posterior = check_posterior(posterior)
        self.image_shape = check_inference(inference, data_size, image_shape)
        self.likelihood = get_likelihood(likelihood)
        self.corruption = None if corruption is None else as_corruption(corruption)
        self.M = check_size("M", M)
        self.K = check_size("K", K)
        if isinstance(self.corruption, Learnable):
            self.corruption.check_copies(M)
        # Typed as modules, not as the classes made here: both may be replaced.
        self.encoder: nn.Module = make_encoder(
            inference, data_size, self.image_shape, self.hidden_sizes, latent_size, activation,
            posterior,
        )  # fmt: skip
        self.decoder: nn.Module = DECODERS[self.likelihood.kind](
            latent_size, self.hidden_sizes[::-1], data_size, activation, data_mean
        )

    # --- the parts ----------------------------------------------------------------------------

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """q(z|x) for x exactly as given, without corruption: (..., D) → mean, log_var (..., Z).

        A full posterior has L, (..., Z, Z), in the place of log_var: its covariance is L Lᵀ.
        """
        mean, spread = self.encoder(x)
        return mean, spread

    def decode(self, z: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        """The likelihood's parameters: (..., Z) → logits (..., D), or a Gaussian's pair."""
        return cast("Tensor | tuple[Tensor, Tensor]", self.decoder(z))

    def _check_data(self, x: Tensor) -> None:
        functional._check_float("x", x)
        if x.dim() != 2 or x.shape[1] != self.data_size:
            raise ValueError(
                f"x must have shape (B, D) with D = {self.data_size}, got {tuple(x.shape)}"
            )
        if x.shape[0] < 1:
            raise ValueError(f"x must hold B >= 1 examples, got shape {tuple(x.shape)}")
        like = next(self.parameters(), x)
        if x.device != like.device:
            raise ValueError(f"x must be on the model's device, {like.device}, got {x.device}")
        if x.dtype != like.dtype and not torch.is_autocast_enabled(x.device.type):
            raise TypeError(f"x must have the model's dtype, {like.dtype}, got {x.dtype}")

    def _corrupt(
        self, x: Tensor, key: Tensor, copies: int | None, first_example: int = 0
    ) -> Tensor:
        corruption = self.corruption
        if corruption is None:
            return x
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

    def _sample_posterior(
        self, x: Tensor, key: Tensor, first_example: int
    ) -> tuple[Tensor, Tensor]:
        """z and log_ratio for the objective: M corruptions encoded once, K samples of each."""
        noisy = self._corrupt(x, key, self.M if self.M > 1 else None, first_example)
        mean, spread = self.encode(noisy)
        if not is_full(mean, spread):
            return objectives.sample_latents(
                mean, spread, self.K, self.objective, key, first_example=first_example
            )
        k = self.K
        if self.objective == "elbo" and k > 1:  # outside the logarithm, as `sample_latents` does
            mean, spread, k = _repeated(mean, -3, k), _repeated(spread, -4, k), 1
        return sample_gaussian(mean, spread, k, key, first_example=first_example)

    def _log_weights(self, z: Tensor, x: Tensor, log_ratio: Tensor) -> Tensor:
        """log w in the shape of log_ratio, not holding the logits of a Bernoulli."""
        decoder = self.decoder
        if splits(decoder):
            output = decoder.output
            return functional.linear_log_weights(
                decoder.trunk(z), output.weight, output.bias, x, log_ratio, self.likelihood
            )
        return functional.log_weights(self.decode(z), x, log_ratio, self.likelihood)

    # --- the objective ------------------------------------------------------------------------

    def loss(
        self, x: Tensor, seed: int | Tensor | None = None, *, first_example: int = 0
    ) -> Tensor:
        """The negative bound in nats, a mean over examples and corruptions; a scalar.

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
        z, log_ratio = self._sample_posterior(x, key, first_example)
        # The logits are what a linear layer returned, read by nobody else then or in backward (a
        # linear layer's needs its input and weight), so the gradient may overwrite them. A
        # Gaussian decoder's sigmoid and softplus do read their results in backward.
        loss = objectives.loss(
            cast("Tensor | tuple[Tensor, Tensor | float]", self.decode(z)),
            x,
            log_ratio,
            self.likelihood,
            self.objective,
            overwrite_params=splits(self.decoder),
        )
        if isinstance(self.corruption, Learnable) and self.corruption.scores:
            loss = loss + self._score_term(self.corruption, x, key, first_example, z, log_ratio)
        return loss

    def _score_term(
        self,
        corruption: Learnable,
        x: Tensor,
        key: Tensor,
        first_example: int,
        z: Tensor,
        log_ratio: Tensor,
    ) -> Tensor:
        """0, with the gradient of a rate that the copies' bounds give by the score function."""
        corruption.check_copies(self.M)
        if not torch.is_grad_enabled():
            return x.new_zeros(())
        with torch.no_grad():
            log_w = self._log_weights(z, x, log_ratio)  # (M, ..., B, K)
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
        z, log_ratio = self._sample_posterior(x, key, first_example)
        return objectives.bound(self._log_weights(z, x, log_ratio), self.objective)

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
        if self.posterior != "diagonal":
            config["posterior"] = self.posterior
        if self.denoising:
            assert self.corruption is not None
            config |= {"corruption": describe_corruption(self.corruption), "M": self.M}
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
        known = {"data_size", "latent_size", "hidden_sizes", "activation", "likelihood", "K"}
        known |= {"inference", "image_shape", "posterior"}
        if MODELS[name].denoising:
            known |= {"corruption", "M"}
        if unknown := sorted(options.keys() - known):
            raise ValueError(f"config of a {name} must not have the keys {', '.join(unknown)}")
        if "data_size" not in options:
            raise ValueError(f"config must have the key data_size, got {', '.join(config)}")
        if options.get("corruption") is not None:
            options["corruption"] = corruption_from(options["corruption"])
        return _construct(name, **options)

    def extra_repr(self) -> str:
        """What the parts do not show."""
        return ", ".join(
            [f"corruption={self.corruption}, M={self.M}"] * self.denoising + [f"K={self.K}"]
        )


class VAE(LatentVariableModel):
    """The variational autoencoder: E_q(z|x) [log w], estimated with K samples.

    Args:
        data_size: D.
        latent_size: Z.
        hidden_sizes: of the encoder, from the data on; the decoder mirrors them. May be empty.
        activation: one of `dvae_fast.networks.ACTIVATIONS`.
        inference: the encoder, one of `dvae_fast.inference.INFERENCES`; "gru" and "gru-2d" take the
            first of hidden_sizes for their recurrent layer.
        image_shape: (H, W), H · W = D; needed by every encoder but "mlp".
        posterior: the covariance of q(z|x), one of `dvae_fast.networks.POSTERIORS`; for "full"
            `encode` returns a triangular factor (..., Z, Z) in the place of log_var.
        likelihood: "bernoulli" (x in [0, 1]) or "gaussian" (mean a sigmoid, scale learnt).
        K: samples of z an example, over which log w is averaged.
        data_mean: (D,) in [0, 1], where the decoder's bias starts.

    Raises:
        TypeError, ValueError: naming the argument, the rule and the value.

    Source: Kingma and Welling (arXiv 1312.6114), equation 3.
    """

    name = "vae"
    objective = "elbo"

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
        K: int = 1,
        data_mean: Tensor | None = None,
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
            M=1,
            K=K,
            data_mean=data_mean,
        )


class IWAE(LatentVariableModel):
    """The importance-weighted autoencoder: E [log 1/K Σ_k w]. Arguments as for `VAE`.

    Source: Burda, Grosse, Salakhutdinov (arXiv 1509.00519), equation 8.
    """

    name = "iwae"
    objective = "iwae"

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
        K: int = 5,
        data_mean: Tensor | None = None,
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
            M=1,
            K=K,
            data_mean=data_mean,
        )


class DVAE(LatentVariableModel):
    """The denoising variational autoencoder: E_p(x̃|x) E_q(z|x̃) [log w], judged on the clean x.

    Args:
        data_size, latent_size, hidden_sizes, activation, inference, image_shape, posterior,
            likelihood, data_mean: as for `VAE`.
        corruption: p(x̃|x), one of `dvae_fast.corruptions`; None for SaltAndPepper(0.1), the
            paper's kind of noise for binary images. The level of a
            `dvae_fast.learnable_corruptions.Learnable` is among the model's parameters; a standard
            deviation that requires a gradient otherwise stays its owner's. A callable is taken as
            `dvae_fast.composed_corruptions.FunctionCorruption` takes it.
        M: corruptions an example, K: samples of z a corruption; log w is averaged over both.

    Raises:
        TypeError, ValueError: naming the argument, the rule and the value.

    Source: arXiv 1511.06406, section 3.
    """

    name = "dvae"
    objective = "elbo"
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
        K: int = 1,
        data_mean: Tensor | None = None,
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
            K=K,
            data_mean=data_mean,
        )


class DIWAE(LatentVariableModel):
    """The denoising importance-weighted autoencoder: E_p(x̃|x) E_q(z|x̃) [log 1/K Σ_k w].

    Arguments as for `DVAE`; the mean over M is outside the logarithm, that over K inside.

    Source: arXiv 1511.06406, section 3.1.
    """

    name = "diwae"
    objective = "iwae"
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
        K: int = 5,
        data_mean: Tensor | None = None,
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
            K=K,
            data_mean=data_mean,
        )


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

    For a model without corruption ``corruption`` may be None or Identity and ``M`` 1.

    Raises:
        TypeError, ValueError: if the name is not one of `MODELS`, or an argument is wrong.
    """
    if name not in MODELS:
        raise ValueError(f"model must be one of {', '.join(MODELS)}; got {name!r}")
    options = {key: value for key, value in options.items() if value is not None}
    if not MODELS[name].denoising:
        corruption, copies = options.pop("corruption", None), options.pop("M", 1)
        if corruption is not None and not isinstance(corruption, Identity):
            raise ValueError(f"corruption must be None for {name}, got {corruption}")
        if copies != 1:
            raise ValueError(f"M must be 1 for {name}, which has no corruption; got {copies}")
    return _construct(name, data_size, latent_size, hidden_sizes, **options)
