"""What annealed importance sampling returns, and whether to trust it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from dvae_fast._text import counted, one_number, some_have
from dvae_fast.evaluation.display import annealed_rows, as_html, as_text, samples_text
from dvae_fast.evaluation.results import Estimate, finite_or_none

__all__ = ["MIN_AIS_ESS", "AISEstimate", "BidirectionalEstimate"]

#: the mean acceptance rates, and the effective number of chains, outside which to be warned
ACCEPTANCE = (0.4, 0.95)
MIN_AIS_ESS = 2.0


@dataclass(frozen=True, eq=False, repr=False)
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
                f"{some_have(few, len(finite))} an effective number of chains below "
                f"{MIN_AIS_ESS:g}: their estimates hang on one chain. Raise temperatures."
            )
        return out + self._biased("more temperatures, or chains,")

    def _rows(self, report: dict[str, Any]) -> list[tuple[str, str]]:
        return annealed_rows(report)

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


@dataclass(frozen=True, eq=False, repr=False)
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

    def _shown(self) -> tuple[str, list[tuple[str, str]], list[str]]:
        report = self.summary()
        error = one_number(report["gap_standard_error"], 3)
        rows = [
            ("log p(x) above", f"{one_number(report['lower'])} nats"),
            ("log p(x) below", f"{one_number(report['upper'])} nats"),
            ("gap", f"{one_number(report['gap'], 3)} ± {error} nats"),
        ]
        examples = counted(len(self.gap), "simulated example")
        title = f"BidirectionalEstimate of {examples}, {samples_text(self.forward.summary())}"
        return title, rows, self.warnings()

    def __repr__(self) -> str:
        return as_text(*self._shown())

    def _repr_html_(self) -> str:
        return as_html(*self._shown())

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


# So that torch.load reads them back as it reads tensors, running no code of the file's.
torch.serialization.add_safe_globals([AISEstimate, BidirectionalEstimate])
