"""What an evaluation returns, and whether to trust it."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = [
    "MAX_PARETO_K",
    "MIN_ESS",
    "Estimate",
    "LikelihoodEstimate",
    "finite_or_none",
    "from_state",
    "standard_error",
]

#: above this k̂, and below this effective sample size, an estimate should not be trusted
MAX_PARETO_K = 0.7
MIN_ESS = 10.0
MIN_TAIL = 21  # samples, of which five are the tail
_NAMED = 5  # examples named in a warning


@dataclass(frozen=True, eq=False)
class Estimate:
    """log p(x) of N examples as some method estimates it, float64 and on the CPU."""

    #: in nats, (N,)
    log_likelihood: Tensor
    #: of log_likelihood, over draws of the noise, (N,): the delta method's
    #: sqrt(Σ w² / (Σ w)² − 1/k) for k weights. Too small where the effective sample size is. NaN
    #: for one weight, or if every weight is 0.
    standard_error: Tensor
    #: effective sample size (Σ w)² / Σ w², from 1 to the number of weights, (N,). NaN if every
    #: weight is 0.
    ess: Tensor
    #: gives the same numbers again, up to rounding
    seed: int = field(kw_only=True)
    #: D, the number of data dimensions
    data_size: int = field(kw_only=True)

    @property
    def mean(self) -> float:
        """Mean log-likelihood in nats. NaN or −inf if an example's is: see `non_finite`."""
        return float(self.log_likelihood.mean())

    @property
    def mean_standard_error(self) -> float:
        """Standard error of `mean` over draws of the noise, for these examples."""
        return float(self.standard_error.square().sum().sqrt()) / len(self.standard_error)

    @property
    def bits_per_dimension(self) -> float:
        """−mean / (D log 2): a code length where the likelihood is a probability, not a density."""
        return -self.mean / (self.data_size * math.log(2))

    @property
    def non_finite(self) -> int:
        """How many examples have a log-likelihood that is NaN or infinite."""
        return int((~self.log_likelihood.isfinite()).sum())

    def _means(self) -> dict[str, float]:
        """What every summary tells."""
        return {
            "log_likelihood": self.mean,
            "standard_error": self.mean_standard_error,
            "bits_per_dimension": self.bits_per_dimension,
            "ess_mean": float(self.ess.mean()),
            "ess_min": float(self.ess.min()),
        }

    def _not_finite(self) -> list[str]:
        """The warning of examples without a finite log-likelihood, if there are any."""
        if not (bad := self.non_finite):
            return []
        finite = self.log_likelihood.isfinite()
        where = cast("list[int]", (~finite).nonzero().flatten()[:_NAMED].tolist())
        named = ", ".join(f"{i} ({float(self.log_likelihood[i]):g})" for i in where)
        return [
            f"{bad} of {len(finite)} examples have no finite log-likelihood: {named}"
            f"{', …' if bad > _NAMED else ''}. They are in the mean, which has none either."
        ]


def finite_or_none(numbers: Mapping[str, float]) -> dict[str, float | None]:
    """For JSON, which has neither NaN nor infinity."""
    return {name: value if math.isfinite(value) else None for name, value in numbers.items()}


@dataclass(frozen=True, eq=False)
class LikelihoodEstimate(Estimate):
    """What `estimate_log_likelihood` returns: one float64 number an example, on the CPU.

    log_likelihood is log 1/k Σ w. Its expectation lies below log p(x), by about half the square
    of the standard error.
    """

    #: the mean of log w, the variational lower bound, in nats, (N,)
    elbo: Tensor
    #: Pareto k̂ of the largest weights, (N,): above 0.7 neither estimate nor error can be trusted.
    #: +inf for fewer than 21 samples, NaN if every weight is 0.
    pareto_k: Tensor
    #: samples spent on each example, int64 (N,): k, or up to max_k with a tolerance
    spent: Tensor
    #: the bounds L_k = E log 1/k Σ w at the k of `curve_k`, in nats, (N, len(curve_k)); NaN where
    #: fewer than k samples were spent
    curve: Tensor
    #: of `curve`, over draws of the samples, (N, len(curve_k)). NaN where it cannot be told.
    curve_standard_error: Tensor
    curve_k: tuple[int, ...]
    #: importance samples an example, the first k if there was a tolerance
    k: int
    #: what the samples were drawn from, one of `dvae_fast.proposals.PROPOSALS`
    proposal: str = "posterior"

    def _heavy(self) -> Tensor:
        """Where the tail is too heavy; of too few samples it cannot be told."""
        return (self.pareto_k > MAX_PARETO_K) & (self.spent >= MIN_TAIL)

    def warnings(self) -> list[str]:
        """In plain words, why not to trust the estimate; empty if there is no reason."""
        n = len(self.log_likelihood)
        finite = self.log_likelihood.isfinite()
        heavy = int((finite & self._heavy()).sum())
        few = int((finite & (self.ess < MIN_ESS)).sum())
        out = self._not_finite()
        if heavy:
            out.append(
                f"{heavy} of {n} examples have weights with too heavy a tail (Pareto k̂ > "
                f"{MAX_PARETO_K}): their log-likelihood is likely too low and its standard error "
                "too small. A posterior q closer to the true one helps more than a larger k."
            )
        if few:
            out.append(
                f"{few} of {n} examples have fewer than {MIN_ESS:g} effective samples: their "
                "estimates hang on a few weights. Raise k."
            )
        return out

    def summary(self) -> dict[str, Any]:
        """Means over the examples, JSON-able; None stands for a number that is not finite."""
        numbers = {
            **self._means(),
            "elbo": float(self.elbo.mean()),
            "pareto_k_median": float(self.pareto_k.median()),
        }
        ks, curve = [str(k) for k in self.curve_k], self.curve.mean(0).tolist()
        errors = (self.curve_standard_error.square().sum(0).sqrt() / len(self.curve)).tolist()
        return {
            **finite_or_none(numbers),
            "bounds": finite_or_none(dict(zip(ks, curve, strict=True))),
            "bound_standard_errors": finite_or_none(dict(zip(ks, errors, strict=True))),
            "examples": len(self.log_likelihood),
            "non_finite": self.non_finite,
            "pareto_k_above_0.7": int(self._heavy().sum()),
            "ess_below_10": int((self.ess < MIN_ESS).sum()),
            "method": "importance",
            "proposal": self.proposal,
            "k": self.k,
            "samples": int(self.spent.sum()),
            "seed": self.seed,
            "warnings": self.warnings(),
        }


def from_state(state: Tensor) -> dict[str, Tensor]:
    """What the (N, 5) of `lse_update` say: max m, Σ e^(w−m), Σ e^2(w−m), Σ w and the count."""
    m, s1, s2, total, count = state.unbind(1)
    return {
        "log_likelihood": m + s1.log() - count.log(),
        "standard_error": standard_error(state),
        "ess": s1.square() / s2,
        "elbo": total / count,
    }


def standard_error(state: Tensor) -> Tensor:
    """The delta method's, of log 1/k Σ w, (N,)."""
    _, s1, s2, _, count = state.unbind(1)
    variance = (s2 / s1.square() - 1 / count).clamp(min=0)  # rounding may leave −1e-16
    return torch.where(count > 1, variance.sqrt(), math.nan)
