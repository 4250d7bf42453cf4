"""VAE, IWAE, DVAE and DIWAE: Gaussian latents, over the fused operators."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn

from dvae_fast import functional, objectives
from dvae_fast._checks import check_size
from dvae_fast._seeds import seed_tensor
from dvae_fast.corruptions import (
    Corruption,
    Identity,
    SaltAndPepper,
    corruption_from,
    describe_corruption,
)
from dvae_fast.models.base import Autoencoder, groups_of
from dvae_fast.models.encoders import check_inference, make_encoder
from dvae_fast.models.posterior import check_posterior, is_full, sample_gaussian
from dvae_fast.objectives import Latents, Objective, as_objective
from dvae_fast.objectives.objective import check_posterior_objective

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from dvae_fast.corruptions import CorruptionFunction
    from dvae_fast.likelihoods import Likelihood

__all__ = ["DIWAE", "DVAE", "IWAE", "MODELS", "VAE", "LatentVariableModel", "make_model"]


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
        likelihood: str | Likelihood,
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
        key = seed_tensor(seed, like.device)
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
            x = self._corrupt(x, seed_tensor(seed, x.device), None)
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
        likelihood: str | Likelihood = "bernoulli",
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
        likelihood: str | Likelihood = "bernoulli",
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
        activation: one of `dvae_fast.models.ACTIVATIONS`.
        inference: the encoder, one of `dvae_fast.models.INFERENCES`; "gru" and "gru-2d" take the
            first of hidden_sizes for their recurrent layer.
        image_shape: (H, W), H · W = D; needed by every encoder but "mlp".
        posterior: the covariance of q(z|x), one of `dvae_fast.models.POSTERIORS`; for "full"
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
            `dvae_fast.corruptions.Learnable` is among the model's parameters; a standard
            deviation that requires a gradient otherwise stays its owner's. A callable is taken as
            `dvae_fast.corruptions.FunctionCorruption` takes it.
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
