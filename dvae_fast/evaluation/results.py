"""What an evaluation returns, and whether to trust it."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, cast

from dvae_fast.evaluation.statistics import MAX_PARETO_K, MIN_ESS, MIN_TAIL

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from torch import Tensor

__all__ = [
    "MIN_AIS_ESS",
    "AISEstimate",
    "BidirectionalEstimate",
    "Estimate",
    "EvaluationProgress",
    "LikelihoodEstimate",
    "Meter",
    "finite_or_none",
]

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
    #: what the samples were drawn from, one of `dvae_fast.evaluation.PROPOSALS`
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


#: the mean acceptance rates, and the effective number of chains, outside which to be warned
ACCEPTANCE = (0.4, 0.95)
MIN_AIS_ESS = 2.0


@dataclass(frozen=True, eq=False)
class AISEstimate(Estimate):
    """What `annealed_importance_sampling` returns: one float64 number an example, on the CPU.

    log_likelihood is log 1/C Σ w over C chains, whose expectation lies below log p(x), E w being
    p(x). If `reverse`, it is −log 1/C Σ 1/w, whose expectation lies above, E 1/w being 1/p(x);
    `ess` and `standard_error` are then those of 1/w given z, where an example's chains all start.
    """

    #: mean acceptance probability of the moves, (N,). NaN if temperatures = 1, which has none.
    acceptance: Tensor
    #: mean over temperatures of the step size, in standard deviations of f_0, (N,). NaN likewise.
    step_size: Tensor
    chains: int
    temperatures: int
    leapfrog: int
    start: str
    schedule: str
    #: whether the chains went from the posterior to f_0
    reverse: bool = False

    def warnings(self) -> list[str]:
        """In plain words, why not to trust the estimate; empty if there is no reason."""
        finite = self.log_likelihood.isfinite()
        few = int((finite & (self.ess < MIN_AIS_ESS)).sum()) if self.chains > 1 else 0
        rate = float(self.acceptance[finite].mean())
        out = self._not_finite()
        if rate < ACCEPTANCE[0]:
            out.append(
                f"The mean acceptance rate, {rate:.2f}, is below {ACCEPTANCE[0]:g}: the chains "
                "hardly move. Take smaller steps, or tune them."
            )
        if rate > ACCEPTANCE[1]:
            out.append(
                f"The mean acceptance rate, {rate:.2f}, is above {ACCEPTANCE[1]:g}: the chains "
                "could go further. Take larger steps, or tune them."
            )
        if few:
            out.append(
                f"{few} of {len(finite)} examples have an effective number of chains below "
                f"{MIN_AIS_ESS:g}: their estimates hang on one chain. Raise temperatures."
            )
        return out

    def summary(self) -> dict[str, Any]:
        """Means over the examples, JSON-able; None stands for a number that is not finite."""
        numbers = {
            **self._means(),
            "acceptance": float(self.acceptance.mean()),
            "step_size": float(self.step_size.mean()),
        }
        return {
            **finite_or_none(numbers),
            "examples": len(self.log_likelihood),
            "non_finite": self.non_finite,
            "method": "ais",
            "chains": self.chains,
            "temperatures": self.temperatures,
            "leapfrog": self.leapfrog,
            "start": self.start,
            "schedule": self.schedule,
            "reverse": self.reverse,
            "seed": self.seed,
            "warnings": self.warnings(),
        }


@dataclass(frozen=True, eq=False)
class BidirectionalEstimate:
    """What `bidirectional` returns: log p(x) of simulated data between two stochastic bounds."""

    #: the simulated examples (N, D) and the latents they came from (N, Z), on the CPU; given x,
    #: z is a draw of the exact posterior
    x: Tensor
    z: Tensor
    forward: AISEstimate
    reverse: AISEstimate

    @property
    def lower(self) -> Tensor:
        """Below log p(x) in expectation, (N,)."""
        return self.forward.log_likelihood

    @property
    def upper(self) -> Tensor:
        """Above log p(x) in expectation over z too, (N,)."""
        return self.reverse.log_likelihood

    @property
    def gap(self) -> Tensor:
        """upper − lower, (N,). Its mean bounds the error of either; one alone may be negative."""
        return self.upper - self.lower

    def warnings(self) -> list[str]:
        """Those of both directions, each with its name."""
        return [
            f"{name}: {warning}"
            for name, estimate in (("forward", self.forward), ("reverse", self.reverse))
            for warning in estimate.warnings()
        ]

    def summary(self) -> dict[str, Any]:
        """Means over the examples, JSON-able; None stands for a number that is not finite."""
        n = len(self.gap)
        numbers = {
            "lower": self.forward.mean,
            "upper": self.reverse.mean,
            "gap": float(self.gap.mean()),
            # Over examples, not chains: the chains of a reverse estimate share their start.
            "gap_standard_error": float(self.gap.std()) / math.sqrt(n) if n > 1 else math.nan,
        }
        return {
            **finite_or_none(numbers),
            "forward": self.forward.summary(),
            "reverse": self.reverse.summary(),
        }


@dataclass(frozen=True)
class EvaluationProgress:
    """How far an evaluation is: of this process's share, if several share the work."""

    #: examples done, and to be done
    examples: int
    total: int
    #: importance samples, or annealed chains, drawn so far
    samples: int
    #: mean over the examples done in nats, and its standard error over draws of the samples
    log_likelihood: float
    standard_error: float


class Meter:
    """Tells `callback` an `EvaluationProgress` after each batch.

    Args:
        total: examples to be done.
        callback: None to tell nobody.
    """

    def __init__(self, total: int, callback: Callable[[EvaluationProgress], None] | None) -> None:
        self._total, self._callback = total, callback
        self._examples = self._samples = 0
        self._sum = self._variance = 0.0

    def advance(self, log_likelihood: Tensor, standard_error: Tensor, samples: int) -> None:
        """A batch is done: its numbers (B,), and the samples it took in all."""
        if self._callback is None:
            return
        self._examples += len(log_likelihood)
        self._samples += samples
        self._sum += float(log_likelihood.sum())
        self._variance += float(standard_error.square().sum())
        n = self._examples
        self._callback(
            EvaluationProgress(
                n, self._total, self._samples, self._sum / n, self._variance**0.5 / n
            )
        )
