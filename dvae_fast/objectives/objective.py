"""The bounds, the estimators of their gradients, and which go together."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Any, NamedTuple, cast

__all__ = [
    "ESTIMATORS",
    "OBJECTIVES",
    "OUTSIDE",
    "Objective",
    "Term",
    "as_objective",
    "check_discrete",
    "check_posterior_objective",
    "check_score_objective",
]

ESTIMATORS = ("standard", "stl", "dreg", "vimco")
#: The objectives, and the estimators that each is defined with.
OBJECTIVES: dict[str, tuple[str, ...]] = {
    "elbo": ESTIMATORS,
    "elbo-kl": ("standard",),
    "iwae": ESTIMATORS,
    "iwae-joint": ESTIMATORS,
    "ciwae": ESTIMATORS,
    "piwae": ESTIMATORS,
    "vr": ESTIMATORS,
    "vr-max": ("standard", "stl"),
    "mixture": ("standard", "stl"),
    "mixture-elbo": ("standard", "stl"),
}

#: Objectives whose K samples are outside the logarithm.
OUTSIDE = ("elbo", "elbo-kl", "mixture-elbo")
#: objectives whose log-weights keep the corruptions apart: a mean of one bound a copy
_BY_COPY = ("elbo", "iwae", "ciwae", "vr")


class Term(NamedTuple):
    """share · T_temperature, nested or joint."""

    share: float
    temperature: float
    joint: bool = False


@dataclass(frozen=True)
class Objective:
    """What is maximised, and how the inference network's gradient is estimated.

    Args:
        name: one of `OBJECTIVES`.
        estimator: one of `ESTIMATORS`, and of those that `OBJECTIVES` lists for the name.
        beta: of "ciwae" alone, in [0, 1]: 0 is the IWAE's bound, 1 the ELBO. Default 0.5.
        alpha: of "vr" alone, finite: 0 is the IWAE's bound, 1 the ELBO. Default 0.5.
        free_bits: of "elbo-kl" alone: λ >= 0 nats a latent dimension. The loss's gradient is that
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
        if self.name not in OBJECTIVES:
            raise ValueError(f"objective must be one of {', '.join(OBJECTIVES)}; got {self.name!r}")
        if self.estimator not in ESTIMATORS:
            raise ValueError(
                f"estimator must be one of {', '.join(ESTIMATORS)}; got {self.estimator!r}"
            )
        if self.estimator not in (known := OBJECTIVES[self.name]):
            others = [name for name, of in OBJECTIVES.items() if self.estimator in of]
            raise ValueError(
                f"estimator must be one of {', '.join(known)} for {self.name} ({self.estimator} "
                f"is defined for {', '.join(others)}); got {self.estimator!r}"
            )
        self._check_parameter("beta", "ciwae", 0.0, 1.0)
        self._check_parameter("alpha", "vr", -math.inf, math.inf)
        if not _is_number(self.free_bits) or not 0 <= self.free_bits < math.inf:
            raise ValueError(
                f"free_bits must be a finite number >= 0, in nats; got {self.free_bits!r}"
            )
        if self.free_bits and self.name != "elbo-kl":
            raise ValueError(
                "free_bits must be 0 unless the objective is elbo-kl, which alone has a "
                f"divergence for each latent dimension; got {self.free_bits!r} for {self.name}"
            )

    def _check_parameter(self, argument: str, owner: str, lower: float, upper: float) -> None:
        value = getattr(self, argument)
        if self.name != owner:
            if value is not None:
                raise ValueError(
                    f"{argument} must be None unless the objective is {owner}; "
                    f"got {value!r} for {self.name}"
                )
        elif value is None:
            object.__setattr__(self, argument, 0.5)
        elif not _is_number(value) or not lower <= value <= upper or math.isinf(value):
            rule = "finite" if math.isinf(lower) else f"in [{lower:g}, {upper:g}]"
            raise ValueError(f"{argument} must be a number, {rule}; got {value!r}")

    def check_samples(self, groups: int, samples: int) -> None:
        """Raise ValueError unless M = `groups` and K = `samples` are enough for the estimator."""
        if self.estimator != "vimco":
            return
        if self.name == "iwae-joint":
            name, count = "M·K", groups * samples
        else:
            name, count = "K", samples
        if count < 2:
            raise ValueError(
                f"{name} must be >= 2 for vimco, whose baseline is made of the other samples; "
                f"got {count}"
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
    def analytic(self) -> bool:
        """Whether log p(z) − log q(z|x̃) is replaced by minus the divergence, from N(0, I)."""
        return self.name == "elbo-kl"

    @property
    def _generative(self) -> tuple[Term, ...]:
        """The bound, whose gradient the generative network has."""
        if self.name == "ciwae":
            beta = cast("float", self.beta)
            return Term(beta, 0.0), Term(1 - beta, 1.0)
        if self.name == "vr":
            return (Term(1.0, 1 - cast("float", self.alpha)),)
        if self.name == "vr-max":
            return (Term(1.0, math.inf),)
        joint = self.name in ("iwae-joint", "piwae", "mixture", "mixture-elbo")
        return (Term(1.0, 0.0 if self.name in OUTSIDE else 1.0, joint),)

    @property
    def _inference(self) -> tuple[Term, ...]:
        """What the inference network ascends."""
        return (Term(1.0, 1.0),) if self.name == "piwae" else self._generative

    @property
    def _mixed(self) -> bool:
        """Whether the density below is that of the mixture over corruptions."""
        return self.name.startswith("mixture")

    @property
    def _rescales(self) -> bool:
        """Whether z's gradient has coefficients other than the generative network's."""
        return self.name == "piwae" or (self.estimator == "dreg" and self.name not in OUTSIDE)


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


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
    if objective.estimator != "vimco":
        others = [name for name, of in OBJECTIVES.items() if "vimco" in of]
        raise ValueError(
            "estimator must be vimco for Bernoulli latents, which have no reparameterisation "
            f"(with one of {', '.join(others)}); got {objective.estimator!r}"
        )


def check_posterior_objective(objective: Objective) -> None:
    """Raise ValueError unless the objective is defined for a full covariance."""
    if objective.name not in ("elbo", "iwae") or objective.estimator != "standard":
        raise ValueError(
            "objective must be elbo or iwae with the standard estimator for a full covariance; "
            f"got {objective}"
        )


def check_score_objective(objective: Objective) -> None:
    """Raise ValueError unless the objective is a mean over corruptions, each with its own bound."""
    if objective.name not in _BY_COPY:
        raise ValueError(
            "objective must be a mean over corruptions for a level learnt by the score function, "
            f"one of {', '.join(_BY_COPY)}; got {objective.name}"
        )
