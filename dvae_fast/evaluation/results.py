"""What an evaluation returns, and whether to trust it."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, fields, replace
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor

from dvae_fast._extras import require
from dvae_fast._text import counted, some_have
from dvae_fast.evaluation.display import (
    as_html,
    as_text,
    estimate_rows,
    importance_rows,
    samples_text,
)
from dvae_fast.evaluation.statistics import ALIKE, MAX_PARETO_K, MIN_ESS, MIN_TAIL
from dvae_fast.evaluation.storing import arrays_of, load_estimate, save_estimate
from dvae_fast.plots import plot_bounds, plot_ess

if TYPE_CHECKING:
    import os
    from collections.abc import Iterable, Mapping
    from typing import Self

    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from pandas import DataFrame

__all__ = [
    "Estimate",
    "LikelihoodEstimate",
    "finite_or_none",
]

_NAMED = 5  # examples named in a warning


@dataclass(frozen=True, eq=False, repr=False)
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

    def warnings(self) -> list[str]:
        """In plain words, why not to trust the estimate; empty if there is no reason."""
        raise NotImplementedError

    def summary(self) -> dict[str, Any]:
        """Means over the examples, JSON-able; None stands for a number that is not finite."""
        raise NotImplementedError

    def _shown(self) -> tuple[str, list[tuple[str, str]], list[str]]:
        """Title and rows of what is printed, and the warnings."""
        report = self.summary()
        examples = counted(report["examples"], "example")
        title = f"{type(self).__name__} of {examples}, {samples_text(report)}"
        return title, estimate_rows(report, self._rows(report)), report["warnings"]

    def _rows(self, report: dict[str, Any]) -> list[tuple[str, str]]:
        """The diagnostics among them."""
        raise NotImplementedError

    def __repr__(self) -> str:
        return as_text(*self._shown())

    def _repr_html_(self) -> str:
        return as_html(*self._shown())

    def to_dataframe(self) -> DataFrame:
        """A row for each example, by its index in the noise: all that has a number an example, and
        of an importance sampling ``bound_1``, … for each k of the curve.

        Raises:
            MissingExtraError: if pandas is not installed.
        """
        pandas = require("pandas", "pandas", "a table of the examples")
        columns: dict[str, Any] = {}
        for name, values in arrays_of(self).items():
            if values.ndim == 1 and len(values) == len(self.log_likelihood):
                columns[name] = values
        columns.pop("curve_k", None)  # of as many k as there are examples
        index = pandas.RangeIndex(
            self.first_example, self.first_example + len(self.log_likelihood), name="example"
        )
        frame: DataFrame = pandas.DataFrame(columns | self._more_columns(), index=index)
        return frame

    def _more_columns(self) -> dict[str, Any]:
        return {}

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write all of it as one ``.npz`` file, whose arrays NumPy reads too.

        Raises:
            CheckpointError: if the file cannot be written.
        """
        save_estimate(self, path)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Self:
        """What :meth:`save` wrote; of a run, its evaluation.npz.

        Raises:
            CheckpointError: if the file cannot be read, or holds something else.
        """
        return load_estimate(cls, path)

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
            f"{some_have(bad, len(finite))} no finite log-likelihood: {named}"
            f"{', …' if bad > _NAMED else ''}. They are in the mean, which has none either."
        ]


def finite_or_none(numbers: Mapping[str, float]) -> dict[str, float | None]:
    """For JSON, which has neither NaN nor infinity."""
    return {name: value if math.isfinite(value) else None for name, value in numbers.items()}


@dataclass(frozen=True, eq=False, repr=False)
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
                f"{some_have(heavy, n)} weights with too heavy a tail (Pareto k̂ > "
                f"{MAX_PARETO_K}): their log-likelihood is likely too low and its standard error "
                "too small. A posterior q closer to the true one helps more than a larger k."
            )
        if few:
            out.append(
                f"{some_have(few, n)} fewer than {MIN_ESS:g} effective samples: their "
                "estimates hang on a few weights. Raise k."
            )
        return out + self._biased("more samples")

    def _rows(self, report: dict[str, Any]) -> list[tuple[str, str]]:
        return importance_rows(report)

    def _more_columns(self) -> dict[str, Any]:
        return {f"bound_{k}": self.curve[:, i].numpy() for i, k in enumerate(self.curve_k)}

    def plot(
        self,
        path: str | os.PathLike[str] | None = None,
        *,
        ax: Axes | None = None,
        title: str = "",
    ) -> Figure:
        """The mean bound against k, with two standard errors as a band.

        Arguments, result and errors as for `dvae_fast.plots.plot_bounds`.

        Raises:
            ValueError: if the curve has no k.
        """
        if not self.curve_k:
            raise ValueError("curve must have a k to be drawn, and was asked to have none")
        errors = self.curve_standard_error
        return plot_bounds(self.curve_k, self.curve, errors, path, ax=ax, title=title)

    def plot_ess(
        self,
        path: str | os.PathLike[str] | None = None,
        *,
        ax: Axes | None = None,
        title: str = "",
    ) -> Figure:
        """How many examples have how many effective samples.

        Arguments, result and errors as for `dvae_fast.plots.plot_ess`.
        """
        return plot_ess(self.ess, self.spent, path, few=MIN_ESS, ax=ax, title=title)

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


# So that torch.load reads it back as it reads tensors, running no code of the file's.
torch.serialization.add_safe_globals([LikelihoodEstimate])
