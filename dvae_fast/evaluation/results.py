"""What an evaluation returns, and whether to trust it."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, fields, replace
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor

from dvae_fast.evaluation.statistics import ALIKE, MAX_PARETO_K, MIN_ESS, MIN_TAIL

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

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
    data_size: float = field(kw_only=True)
    #: index of the first example in the noise
    first_example: int = field(default=0, kw_only=True)
    #: what looks wrong about model or data, in plain words; part of `warnings`
    remarks: tuple[str, ...] = field(default=(), kw_only=True)

    @property
    def mean(self) -> float:
        """Mean log-likelihood in nats. NaN or −inf if an example's is: see `non_finite`."""
        return float(self.log_likelihood.mean())

    @property
    def mean_standard_error(self) -> float:
        """Standard error of `mean` over draws of the noise, for these examples; of its bias see
        `mean_bias`."""
        return float(self.standard_error.square().sum().sqrt()) / len(self.standard_error)

    @property
    def bias(self) -> Tensor:
        """By how much the expectation of `log_likelihood` lies above log p(x), about, (N,): minus
        half its variance, the mean of weights being unbiased and its logarithm not (delta method).
        NaN where the standard error is."""
        return -0.5 * self.standard_error.square() * (self._count / (self._count - 1))

    @property
    def mean_bias(self) -> float:
        """Of `mean`: unlike its standard error it does not fall with the number of examples."""
        return float(self.bias.mean())

    @property
    def _count(self) -> Tensor:
        """Weights that an example's numbers are made of, (N,)."""
        raise NotImplementedError

    @property
    def bits_per_dimension(self) -> float:
        """−mean / (D log 2): a code length where the likelihood is a probability, not a density.
        NaN where a mask leaves no dimension."""
        if self.data_size == 0:
            return math.nan
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
            "bias": self.mean_bias,
            "bits_per_dimension": self.bits_per_dimension,
            "ess_mean": float(self.ess.mean()),
            "ess_min": float(self.ess.min()),
        }

    def _biased(self, more: str) -> list[str]:
        """The warning of a bias above the standard error, which more of something makes smaller."""
        bias, error = self.mean_bias, self.mean_standard_error
        if not abs(bias) > error:
            return []
        side = "below" if bias < 0 else "above"
        return [
            f"The mean lies some {abs(bias):.2g} nats {side} log p(x) on average, the logarithm of "
            f"a mean of few weights being biased: more than its standard error, {error:.2g}. More "
            f"examples do not change that; {more} do."
        ]

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
    of the standard error: see `bias`.
    """

    #: the mean of log w, the variational lower bound, in nats, (N,)
    elbo: Tensor
    #: Pareto k̂ of the largest weights, (N,): above 0.7 neither estimate nor error can be trusted.
    #: +inf for fewer than 21 samples, and where fewer than 5 weights lie above the cutoff, as of
    #: weights that are all equal; NaN if every weight is 0.
    pareto_k: Tensor
    #: samples that each example's numbers are of, int64 (N,): k, or up to max_k with a tolerance,
    #: whose pilot is not counted
    spent: Tensor
    #: the bounds L_k = E log 1/k Σ w at the k of `curve_k`, in nats, (N, len(curve_k)); NaN where
    #: fewer than k samples were spent
    curve: Tensor
    #: of `curve`, over draws of the samples, (N, len(curve_k)). NaN where it cannot be told. Of g
    #: groups of k samples, it has g − 1 degrees of freedom: ± 2 of it cover the bound in 70 % of
    #: all cases if g = 2, for which Student's t takes ± 12.7. The mean over many examples has as
    #: many degrees of freedom as all of them.
    curve_standard_error: Tensor
    curve_k: tuple[int, ...]
    #: importance samples an example, the first k if there was a tolerance
    k: int
    #: what the samples were drawn from, one of `dvae_fast.evaluation.PROPOSALS`, or "function" for
    #: `estimate_from_log_weights`
    proposal: str = "posterior"
    #: disjoint groups of samples that each number of `curve` is a mean over, int64 (N,
    #: len(curve_k)). Of one, its standard error is that of log_likelihood, times √(spent / k)
    curve_groups: Tensor | None = None
    #: in nats, that examples were given samples by; None: k samples each
    tolerance: float | None = None

    @property
    def mean_standard_error(self) -> float:
        """Of `mean`, for these examples: over draws of the noise at a fixed k, where `mean_bias`
        stands beside it. With a tolerance, which is chosen for an error, it is both added up: a
        bias is the same in every example. `mean` ± 1.96 of it then covers the mean of log p(x) in
        95 % of all cases, or more, however many examples there are."""
        noise = super().mean_standard_error
        return noise if self.tolerance is None else noise + abs(self.mean_bias)

    @classmethod
    def concat(cls, estimates: Iterable[LikelihoodEstimate]) -> LikelihoodEstimate:
        """One estimate of examples that were evaluated in several calls, each with the same
        arguments but its own `first_example`, in order: that of one call with all of them.

        Raises:
            ValueError: if there are none, or they are of other settings, or do not follow one
                another in the noise: of one seed and first_example they would share it.
        """
        parts = list(estimates)
        if not parts:
            raise ValueError("estimates must hold one at least, got none")
        for part in parts:
            if not isinstance(part, cls):
                raise TypeError(f"estimates must hold {cls.__name__}s, got {type(part).__name__}")
        first, begin = parts[0], parts[0].first_example
        at = begin
        for i, part in enumerate(parts):
            for name in ("seed", "k", "curve_k", "proposal", "tolerance"):
                if getattr(part, name) != getattr(first, name):
                    raise ValueError(
                        f"estimates must have one {name}, got {getattr(first, name)} and, at {i}, "
                        f"{getattr(part, name)}"
                    )
            if part.first_example != at:
                raise ValueError(
                    "estimates must follow one another in the noise: first_example must be "
                    f"{at} at {i}, got {part.first_example}"
                )
            at += len(part.log_likelihood)
        every = {f.name: [getattr(part, f.name) for part in parts] for f in fields(cls)}
        joined: dict[str, Any] = {
            name: torch.cat(values)
            for name, values in every.items()
            if all(isinstance(value, Tensor) for value in values)
        }
        remarks = dict.fromkeys(remark for part in parts for remark in part.remarks)
        # With masks each part has a mean number of observed dimensions of its own.
        sizes = {part.data_size for part in parts}
        size = sum(part.data_size * len(part.log_likelihood) for part in parts)
        joined["data_size"] = sizes.pop() if len(sizes) == 1 else size / max(at - begin, 1)
        return replace(first, **joined, remarks=tuple(remarks))

    @property
    def _count(self) -> Tensor:
        return self.spent

    def _alike(self) -> Tensor:
        """Where weights are equal, or differ by no more than float32 rounds their logarithms: the
        best case, whatever the shape of what is left."""
        variation = (self.spent / self.ess - 1).clamp(min=0).sqrt()
        rounding = 4 * torch.finfo(torch.float32).eps * self.elbo.abs()
        return (self.spent > 1) & (variation <= rounding.clamp(min=ALIKE))

    def _heavy(self) -> Tensor:
        """Where the tail is too heavy; of too few samples it cannot be told."""
        heavy = (self.pareto_k > MAX_PARETO_K) & (self.spent >= MIN_TAIL)
        # Nothing to fit a tail to is no sign of one, unless hardly any weight counts.
        return heavy & ~self._alike() & (self.pareto_k.isfinite() | (self.ess < MIN_ESS))

    def _few(self) -> Tensor:
        """Where few weights count, but for those that are as good as exact."""
        return (self.ess < MIN_ESS) & ~self._alike()

    def warnings(self) -> list[str]:
        """In plain words, why not to trust the estimate; empty if there is no reason."""
        n = len(self.log_likelihood)
        finite = self.log_likelihood.isfinite()
        heavy = int((finite & self._heavy()).sum())
        few = int((finite & self._few()).sum())
        out = [*self._not_finite(), *self.remarks]
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
        return out + self._biased("more samples")

    def _least_groups(self) -> list[int | None]:
        """Of each k of the curve, the least number of groups of an example."""
        if self.curve_groups is None:
            return [None] * len(self.curve_k)
        return cast("list[int | None]", self.curve_groups.amin(0).tolist())

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
            "bound_groups": dict(zip(ks, self._least_groups(), strict=True)),
            "examples": len(self.log_likelihood),
            "non_finite": self.non_finite,
            "pareto_k_above_0.7": int(self._heavy().sum()),
            "ess_below_10": int(self._few().sum()),
            "method": "importance",
            "proposal": self.proposal,
            "k": self.k,
            "tolerance": self.tolerance,
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

    @property
    def bias(self) -> Tensor:
        """As of every estimate; in reverse above log p(x), and at least this much."""
        bias = super().bias
        return -bias if self.reverse else bias

    @property
    def _count(self) -> Tensor:
        return torch.full_like(self.ess, self.chains)

    def warnings(self) -> list[str]:
        """In plain words, why not to trust the estimate; empty if there is no reason."""
        finite = self.log_likelihood.isfinite()
        few = int((finite & (self.ess < MIN_AIS_ESS)).sum()) if self.chains > 1 else 0
        rate = float(self.acceptance[finite].mean())
        out = [*self._not_finite(), *self.remarks]
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
        return out + self._biased("more temperatures, or chains,")

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
    """What `bidirectional_monte_carlo` returns: log p(x) of simulated data between two bounds."""

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


# So that torch.load reads them back as it reads tensors, running no code of the file's.
torch.serialization.add_safe_globals([LikelihoodEstimate, AISEstimate, BidirectionalEstimate])
