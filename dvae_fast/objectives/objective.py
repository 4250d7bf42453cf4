"""The bounds, the estimators of their gradients, and which go together."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple, cast

from dvae_fast._checks import check_choice, is_number

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = [
    "ESTIMATORS",
    "OBJECTIVES",
    "Bound",
    "Estimator",
    "Objective",
    "Parameter",
    "Term",
    "as_objective",
    "check_discrete",
    "check_posterior_objective",
    "check_score_objective",
    "names_of",
]


class Term(NamedTuple):
    """share · T_temperature, nested or joint."""

    share: float
    temperature: float
    joint: bool = False


class Estimator(NamedTuple):
    """How the inference network's gradient is estimated; see `dvae_fast.objectives`.

    Attributes:
        drops_score: log q's explicit dependence on φ is dropped.
        doubly: the path's coefficients are c − ∂c/∂log w, where that is not c.
        score_function: through log q with a baseline of the other samples, and no path.
    """

    drops_score: bool = False
    doubly: bool = False
    score_function: bool = False


ESTIMATORS = {
    "standard": Estimator(),
    "stl": Estimator(drops_score=True),
    "dreg": Estimator(drops_score=True, doubly=True),
    "vimco": Estimator(score_function=True),
}


class Parameter(NamedTuple):
    """A bound's own argument of `Objective`: its name, where it must lie, and its default."""

    name: str
    lower: float
    upper: float
    default: float = 0.5


@dataclass(frozen=True)
class Bound:
    """A row of `OBJECTIVES`: what a bound is made of, and what goes with it.

    Attributes:
        terms: (share, temperature) of each log-mean; a function of the parameter, if it has one.
        joint: the log-means are over all M·K samples and not over each group's K.
        outside: the K samples are outside the logarithm.
        mixture: the density below is that of the mixture over corruptions.
        outer: whose components besides a sample's own are J further corruptions.
        reverse: those are drawn from a reverse proposal, for each sample of its own.
        analytic: the divergence is exact, and known for each latent dimension.
        parameter: its own argument, if any.
        estimators: those that it is defined with.
        inference: terms that the inference network ascends, nested, where they are its own.
        by_copy: a mean of one bound a corruption, so that a rate can be learnt from their
            differences.
        full_covariance: defined for posteriors of full covariance.
    """

    terms: tuple[Term, ...] | Callable[[float], tuple[Term, ...]]
    joint: bool = False
    outside: bool = False
    mixture: bool = False
    outer: bool = False
    reverse: bool = False
    analytic: bool = False
    parameter: Parameter | None = None
    estimators: tuple[str, ...] = tuple(ESTIMATORS)
    inference: tuple[Term, ...] | None = None
    by_copy: bool = False
    full_covariance: bool = False


_MEAN, _LOG_MEAN, _MAX = ((Term(1.0, t),) for t in (0.0, 1.0, math.inf))
_PATH = ("standard", "stl")

#: The bounds by name. A new one is a row here, and what it computes beside it.
OBJECTIVES: dict[str, Bound] = {
    "elbo": Bound(_MEAN, outside=True, by_copy=True, full_covariance=True),
    "elbo_kl": Bound(_MEAN, outside=True, analytic=True, estimators=("standard",)),
    "iwae": Bound(_LOG_MEAN, by_copy=True, full_covariance=True),
    "iwae_joint": Bound(_LOG_MEAN, joint=True),
    "ciwae": Bound(
        lambda beta: (Term(beta, 0.0), Term(1 - beta, 1.0)),
        parameter=Parameter("beta", 0.0, 1.0),
        by_copy=True,
    ),
    "piwae": Bound(_LOG_MEAN, joint=True, inference=_LOG_MEAN),
    "vr": Bound(
        lambda alpha: (Term(1.0, 1 - alpha),),
        parameter=Parameter("alpha", -math.inf, math.inf),
        by_copy=True,
    ),
    "vr_max": Bound(_MAX, estimators=_PATH),
    "mixture": Bound(_LOG_MEAN, joint=True, mixture=True, estimators=_PATH),
    "mixture_elbo": Bound(_MEAN, joint=True, outside=True, mixture=True, estimators=_PATH),
    "sivi": Bound(_LOG_MEAN, joint=True, mixture=True, outer=True, estimators=_PATH),
    "sivi_elbo": Bound(_MEAN, joint=True, outside=True, mixture=True, outer=True, estimators=_PATH),
    "iwhvi": Bound(_LOG_MEAN, joint=True, mixture=True, outer=True, reverse=True, estimators=_PATH),
    "iwhvi_elbo": Bound(
        _MEAN, joint=True, outside=True, mixture=True, outer=True, reverse=True, estimators=_PATH
    ),
}


def names_of(has: Callable[[Bound], Any]) -> str:
    """The names of the bounds of which that is so, for a message."""
    return ", ".join(name for name, bound in OBJECTIVES.items() if has(bound))


@dataclass(frozen=True)
class Objective:
    """What is maximised, and how the inference network's gradient is estimated.

    Args:
        name: one of `OBJECTIVES`.
        estimator: one of `ESTIMATORS`, and of those that the bound's row lists.
        beta: only of "ciwae", in [0, 1]: 0 is the IWAE's bound, 1 the ELBO. Default 0.5.
        alpha: only of "vr", finite: 0 is the IWAE's bound, 1 the ELBO. Default 0.5.
        free_bits: only of "elbo_kl": λ >= 0 nats a latent dimension. The loss's gradient is that
            of Σ_j max(λ, KL_j), KL_j the mean over the batch given (Kingma et al. 2016, arXiv
            1606.04934); its value stays the bound's.

    Raises:
        ValueError: naming the argument, the rule and the value.
    """

    name: str = "iwae"
    estimator: str = "standard"
    beta: float | None = None
    alpha: float | None = None
    free_bits: float = 0.0

    def __post_init__(self) -> None:
        check_choice("objective", self.name, OBJECTIVES)
        check_choice("estimator", self.estimator, ESTIMATORS)
        if self.estimator not in (known := self.bound.estimators):
            others = names_of(lambda bound: self.estimator in bound.estimators)
            raise ValueError(
                f"estimator must be one of {', '.join(known)} for {self.name} ({self.estimator} "
                f"is defined for {others}); got {self.estimator!r}"
            )
        for name, bound in OBJECTIVES.items():
            if bound.parameter is not None:
                self._check_parameter(bound.parameter, name)
        if not is_number(self.free_bits) or not 0 <= self.free_bits < math.inf:
            raise ValueError(
                f"free_bits must be a finite number >= 0, in nats; got {self.free_bits!r}"
            )
        object.__setattr__(self, "free_bits", float(self.free_bits))
        if self.free_bits and not self.bound.analytic:
            raise ValueError(
                "free_bits must be 0 unless the objective is "
                f"{names_of(lambda bound: bound.analytic)}, which alone has a divergence for each "
                f"latent dimension; got {self.free_bits!r} for {self.name}"
            )

    def _check_parameter(self, parameter: Parameter, owner: str) -> None:
        argument, lower, upper, default = parameter
        value = getattr(self, argument)
        if self.name != owner:
            if value is not None:
                raise ValueError(
                    f"{argument} must be None unless the objective is {owner}; "
                    f"got {value!r} for {self.name}"
                )
        elif value is None:
            object.__setattr__(self, argument, default)
        elif not is_number(value) or not lower <= value <= upper or math.isinf(value):
            rule = "finite" if math.isinf(lower) else f"in [{lower:g}, {upper:g}]"
            raise ValueError(f"{argument} must be a number, {rule}; got {value!r}")
        else:
            object.__setattr__(self, argument, float(value))

    def check_samples(self, groups: int, samples: int) -> None:
        """Raise ValueError unless M = `groups` and K = `samples` are enough for the estimator."""
        if not self.gradient.score_function:
            return
        if self.inference[0].joint:
            name, count = "M·K", groups * samples
        else:
            name, count = "K", samples
        if count < 2:
            raise ValueError(
                f"{name} must be >= 2 for {self.estimator}, whose baseline is made of the other "
                f"samples; got {count}"
            )

    def to_dict(self) -> dict[str, Any]:
        """The name, and the arguments that differ from their defaults; JSON-able."""
        default = Objective(self.name)
        values = dataclasses.asdict(self)
        return {k: v for k, v in values.items() if k == "name" or v != getattr(default, k)}

    def __str__(self) -> str:
        values = self.to_dict()
        name = values.pop("name")
        return f"{name} ({', '.join(f'{k} {v}' for k, v in values.items())})" if values else name

    # --- the formulas ---

    @property
    def bound(self) -> Bound:
        """Its row of `OBJECTIVES`."""
        return OBJECTIVES[self.name]

    @property
    def gradient(self) -> Estimator:
        """Its estimator's row of `ESTIMATORS`."""
        return ESTIMATORS[self.estimator]

    @property
    def plain(self) -> bool:
        """Whether its estimator is the reparameterised gradient, as it is."""
        return self.gradient == Estimator()

    @property
    def generative(self) -> tuple[Term, ...]:
        """The bound, whose gradient the generative network has."""
        terms, parameter = self.bound.terms, self.bound.parameter
        if callable(terms):
            terms = terms(getattr(self, cast("Parameter", parameter).name))
        return tuple(term._replace(joint=self.bound.joint) for term in terms)

    @property
    def inference(self) -> tuple[Term, ...]:
        """What the inference network ascends."""
        return self.generative if self.bound.inference is None else self.bound.inference

    @property
    def splits(self) -> bool:
        """Whether the two networks ascend different bounds."""
        return self.bound.inference is not None

    @property
    def rescales(self) -> bool:
        """Whether z's gradient has coefficients other than the generative network's."""
        return self.splits or (self.gradient.doubly and not self.bound.outside)


def as_objective(objective: str | Objective, estimator: str | None = None) -> Objective:
    """The `Objective` of a name or an object, with another estimator if one is given.

    Raises:
        TypeError, ValueError: if it is neither, or not known.
    """
    if isinstance(objective, str):
        return Objective(objective) if estimator is None else Objective(objective, estimator)
    if not isinstance(objective, Objective):
        raise TypeError(
            f"objective must be a string or an Objective, got {type(objective).__name__}"
        )
    return objective if estimator is None else dataclasses.replace(objective, estimator=estimator)


def check_discrete(objective: Objective) -> None:
    """Raise ValueError unless the objective needs no reparameterisation of z."""
    if not objective.gradient.score_function:
        known = [name for name, one in ESTIMATORS.items() if one.score_function]
        others = names_of(lambda bound: set(known) & set(bound.estimators))
        raise ValueError(
            f"estimator must be {' or '.join(known)} for Bernoulli latents, which have no "
            f"reparameterisation (with one of {others}); got {objective.estimator!r}"
        )


def check_posterior_objective(objective: Objective, what: str = "a full covariance") -> None:
    """Raise ValueError unless the objective is defined for posteriors of any dependence."""
    if not objective.bound.full_covariance or not objective.plain:
        known = names_of(lambda bound: bound.full_covariance).replace(", ", " or ")
        raise ValueError(
            f"objective must be {known} with the standard estimator for {what}; got {objective}"
        )


def check_score_objective(objective: Objective) -> None:
    """Raise ValueError unless the objective is a mean over corruptions, each with its own bound."""
    if not objective.bound.by_copy:
        raise ValueError(
            "objective must be a mean over corruptions for a level learnt by the score function, "
            f"one of {names_of(lambda bound: bound.by_copy)}; got {objective.name}"
        )
