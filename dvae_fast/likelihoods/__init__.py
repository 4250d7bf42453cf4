"""Decoder likelihoods p(x|z): those that are ready, and the base of your own.

Each knows its log-density per element and that one's derivatives, its support, mean and draws, and
what a decoder's head makes of its outputs (`dvae_fast.likelihoods.links`). One with a kernel also
names its formula in ``csrc/core/likelihoods.h``.
"""

from __future__ import annotations

from typing import Any

from dvae_fast._checks import check_choice
from dvae_fast.likelihoods.base import Likelihood
from dvae_fast.likelihoods.bernoulli import Bernoulli
from dvae_fast.likelihoods.categorical import Categorical
from dvae_fast.likelihoods.continuous_bernoulli import ContinuousBernoulli
from dvae_fast.likelihoods.counts import (
    NegativeBinomial,
    Poisson,
    ZeroInflatedNegativeBinomial,
)
from dvae_fast.likelihoods.discretised import DiscretisedLogistic
from dvae_fast.likelihoods.gaussian import Gaussian, RealGaussian
from dvae_fast.likelihoods.laplace import Laplace
from dvae_fast.likelihoods.links import Link, exponential, identity, positive, sigmoid

__all__ = [
    "FUSED",
    "LIKELIHOODS",
    "NAMED",
    "Bernoulli",
    "Categorical",
    "ContinuousBernoulli",
    "DiscretisedLogistic",
    "Gaussian",
    "Laplace",
    "Likelihood",
    "Link",
    "NegativeBinomial",
    "Poisson",
    "RealGaussian",
    "ZeroInflatedNegativeBinomial",
    "exponential",
    "get_likelihood",
    "identity",
    "positive",
    "sigmoid",
]

#: By name.
LIKELIHOODS: dict[str, Likelihood] = {
    likelihood.kind: likelihood
    for likelihood in (
        Bernoulli(),
        Gaussian(),
        DiscretisedLogistic(),
        NegativeBinomial(),
        Poisson(),
        ZeroInflatedNegativeBinomial(),
        Laplace(),
        ContinuousBernoulli(),
        Bernoulli(probabilities=True),
    )
}

#: Those with a kernel.
FUSED = {name: row for name, row in LIKELIHOODS.items() if row.kernel is not None}
#: All that have a name: those, and others that share a kernel with one of them.
NAMED: dict[str, Likelihood] = LIKELIHOODS | {real.kind: real for real in (RealGaussian(),)}


def get_likelihood(likelihood: str | Likelihood, name: str = "likelihood") -> Likelihood:
    """The likelihood object for a name or an object; `name` is the argument's, for errors.

    Raises:
        ValueError: if the name is not one of `NAMED`.
        TypeError: if it is neither a string nor a `Likelihood`, or defines no density.
    """
    if isinstance(likelihood, str):
        found = NAMED.get(likelihood)
        if found is None:
            check_choice(name, likelihood, NAMED)
        assert found is not None
        return found
    if isinstance(likelihood, Likelihood) and likelihood.params:
        if type(likelihood).log_prob is not Likelihood.log_prob:
            return likelihood
        raise TypeError(f"{name} {type(likelihood).__name__} must define log_prob(params, x)")
    raise TypeError(f"{name} must be a string or a Likelihood, {_what_else(likelihood)}")


def _what_else(thing: Any) -> str:
    """What is to be said of something that is no likelihood."""
    if isinstance(thing, Likelihood):
        return f"and define params; {type(thing).__name__} has none"
    named = thing if isinstance(thing, type) else type(thing)
    got = f"got {'the class ' if isinstance(thing, type) else ''}{named.__name__}"
    if isinstance(thing, type) and issubclass(thing, Likelihood):
        return f"{got}; an object of it is {named.__name__}()"
    if hasattr(thing, "log_prob"):
        return (
            f"{got}; subclass Likelihood and call that log_prob in yours, or take one of "
            f"{', '.join(NAMED)}"
        )
    return got
