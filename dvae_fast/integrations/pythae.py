"""Models of pythae, evaluated: log p(x) with its standard error, Pareto k̂ and the curve of bounds.

Its decoders give means: probabilities of a Bernoulli where the reconstruction loss is "bce", and of
a Gaussian of variance 1 where it is "mse", as `get_nll` has it::

    estimate = estimate_log_likelihood(model, x, k=5000)
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.distributions import Normal

from dvae_fast import evaluation
from dvae_fast._checks import check_dense
from dvae_fast.data.given import given_from
from dvae_fast.integrations import library
from dvae_fast.likelihoods import Bernoulli, Likelihood, get_likelihood

if TYPE_CHECKING:
    from collections.abc import Callable

    from dvae_fast.data.given import Data
    from dvae_fast.evaluation import LikelihoodEstimate

__all__ = ["LogWeights", "estimate_log_likelihood"]

_models: Any = library("pythae.models", "pythae", "0.1.2")


def _plain(model: Any, z: Tensor) -> tuple[Tensor, Tensor | float]:
    return z, 0.0


def _by_flow(model: Any, z: Tensor) -> tuple[Tensor, Tensor | float]:
    out = model.iaf_flow.inverse(z)
    return out.out, out.log_abs_det_jac


def _by_layers(model: Any, z: Tensor) -> tuple[Tensor, Tensor | float]:
    total: Tensor | float = 0.0
    for layer in model.net:
        out = layer(z)
        z, total = out.out, total + out.log_abs_det_jac
    return z, total


def _standard(model: Any, z: Tensor) -> Tensor:
    log_prob: Tensor = Normal(0.0, 1.0).log_prob(z).sum(-1)
    return log_prob


def _of_pseudo_inputs(model: Any, z: Tensor) -> Tensor:
    """The mean over the posteriors of the pseudo-inputs."""
    count = model.model_config.number_components
    inputs = model.pseudo_inputs(model.idle_input.to(z.device)).reshape(
        (count, *model.model_config.input_dim)
    )
    h = model.encoder(inputs)
    parts = Normal(h.embedding, torch.exp(0.5 * h.log_covariance)).log_prob(z.unsqueeze(1))
    return torch.logsumexp(parts.sum(-1), 1) - math.log(count)


_Posterior = tuple[
    "Callable[[Any, Tensor], tuple[Tensor, Tensor | float]]", "Callable[[Any, Tensor], Tensor]"
]
#: of each kind what it makes of the encoder's Gaussian samples, with the logarithm of the
#: determinant, and its prior. Of all of them the encoder gives mean and log-variance.
_KINDS: dict[str, _Posterior] = {
    **dict.fromkeys(
        (
            "VAE", "BetaVAE", "BetaTCVAE", "FactorVAE", "DisentangledBetaVAE", "INFOVAE_MMD",
            "IWAE", "MIWAE", "PIWAE", "CIWAE",
        ),
        (_plain, _standard),
    ),
    "VAMP": (_plain, _of_pseudo_inputs),
    "VAE_IAF": (_by_flow, _standard),
    "VAE_LinNF": (_by_layers, _standard),
}  # fmt: skip


def _kind(model: Any) -> _Posterior:
    """The nearest class of the model's that is known; TypeError if none is."""
    for cls in type(model).__mro__:
        if cls.__name__ in _KINDS and cls.__module__.startswith("pythae."):
            return _KINDS[cls.__name__]
        if cls.__module__.startswith("pythae."):
            break  # a kind of its own, whatever it derives from
    raise TypeError(
        f"model must be one of pythae's {', '.join(_KINDS)}, got {type(model).__name__}: for "
        "another with a density, give its log-weights to dvae_fast.estimate_from_log_weights"
    )


def _likelihood(model: Any, given: str | Likelihood | None) -> tuple[Likelihood, bool]:
    """p(x|z), and whether the decoder gives a mean that wants a scale of 1."""
    if given is not None:
        likelihood = get_likelihood(given)
        return likelihood, len(likelihood.params) == 2
    loss = model.model_config.reconstruction_loss
    if loss not in _LIKELIHOODS:
        raise ValueError(
            f"likelihood must be given for a model with the reconstruction loss {loss!r}, which is "
            f"neither of {', '.join(_LIKELIHOODS)}"
        )
    return _LIKELIHOODS[loss]


_LIKELIHOODS: dict[str, tuple[Likelihood, bool]] = {
    "bce": (Bernoulli(probabilities=True), False),
    "mse": (get_likelihood("gaussian_real"), True),
}


class LogWeights:
    """Log-weights of a model of pythae, for `dvae_fast.estimate_from_log_weights`.

    Raises:
        TypeError: for a model without a density that is known here.
        ValueError: for a reconstruction loss that is no likelihood.
    """

    def __init__(self, model: Any, likelihood: str | Likelihood | None = None) -> None:
        self.model = model
        self._flow, self._prior = _kind(model)
        self.likelihood, self._scaled = _likelihood(model, likelihood)

    def __call__(self, x: Tensor, k: int, seed: int) -> Tensor:
        """(B, k) of the examples x (B, *shape)."""
        h = self.model.encoder(x)
        q = Normal(h.embedding, torch.exp(0.5 * h.log_covariance))
        first = q.sample((k,))  # (k, B, Z)
        z, log_determinant = self._flow(self.model, first.flatten(0, 1))
        means = self.model.decoder(z)["reconstruction"].reshape(k, len(x), -1)
        params = (means, torch.ones_like(means)) if self._scaled else (means,)
        log_p = self.likelihood.log_prob(params, x.flatten(1)).sum(-1)
        log_p = log_p + (self._prior(self.model, z) + log_determinant).view(k, len(x))
        log_w: Tensor = log_p - q.log_prob(first).sum(-1)
        return log_w.T


def estimate_log_likelihood(
    model: Any,
    x: Data,
    k: int = 5000,
    *,
    likelihood: str | Likelihood | None = None,
    **options: Any,
) -> LikelihoodEstimate:
    """log p(x) of each example, by any model of pythae's that has a density.

    Args:
        model: VAE, BetaVAE, BetaTCVAE, FactorVAE, DisentangledBetaVAE, INFOVAE_MMD, IWAE, MIWAE,
            PIWAE, CIWAE, VAMP, VAE_IAF or VAE_LinNF, or a class of one's own that derives from one.
        x: (N, *input_dim).
        k: importance samples an example.
        likelihood: of the decoder's means, where the reconstruction loss does not say it.
        options: as for `dvae_fast.estimate_from_log_weights`.

    Raises:
        TypeError: for a model without a density, such as an autoencoder.
        ValueError: for data that its likelihood cannot have, or of another shape.
    """
    weights = LogWeights(model, likelihood)
    values, _ = given_from(x, None)
    check_dense("x", values)
    wanted = tuple(model.model_config.input_dim)
    if tuple(values.shape[1:]) != wanted:
        rule = f"(N, {', '.join(map(str, wanted))})"
        raise ValueError(f"x must have shape {rule}, got {tuple(values.shape)}")
    weights.likelihood.check_support(values)
    return evaluation.estimate_from_log_weights(weights, values, k, **options)
