"""Decoder likelihoods p(x|z) the kernels can evaluate.

A likelihood names its formula in ``csrc/core/likelihoods.h`` (log-density and derivative per
element) and knows what the kernels need not: how many decoder outputs it takes, its support,
its mean, and how to draw from it.
"""

from __future__ import annotations

from dvae_fast.likelihoods.base import Likelihood
from dvae_fast.likelihoods.bernoulli import Bernoulli
from dvae_fast.likelihoods.counts import NegativeBinomial
from dvae_fast.likelihoods.discretised import DiscretisedLogistic
from dvae_fast.likelihoods.gaussian import Gaussian

__all__ = [
    "LIKELIHOODS",
    "Bernoulli",
    "DiscretisedLogistic",
    "Gaussian",
    "Likelihood",
    "NegativeBinomial",
    "get_likelihood",
]

LIKELIHOODS: dict[str, Likelihood] = {
    likelihood.kind: likelihood
    for likelihood in (Bernoulli(), Gaussian(), DiscretisedLogistic(), NegativeBinomial())
}


def get_likelihood(likelihood: str | Likelihood) -> Likelihood:
    """The likelihood object for a name or an object.

    Raises:
        ValueError: if the name is not one of :data:`LIKELIHOODS`.
        TypeError: if it is neither a string nor a :class:`Likelihood`.
    """
    if isinstance(likelihood, Likelihood):
        return likelihood
    if not isinstance(likelihood, str):
        raise TypeError(
            f"likelihood must be a string or a Likelihood, got {type(likelihood).__name__}"
        )
    if likelihood not in LIKELIHOODS:
        raise ValueError(f"likelihood must be one of {', '.join(LIKELIHOODS)}; got {likelihood!r}")
    return LIKELIHOODS[likelihood]
