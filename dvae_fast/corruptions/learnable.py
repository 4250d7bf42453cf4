"""Corruptions whose level is learnt with the model, by one of three estimators of its gradient."""

from __future__ import annotations

import math
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dvae_fast._checks import check_choice, check_size, is_number
from dvae_fast._dtypes import accumulation_dtype
from dvae_fast._seeds import derived_key
from dvae_fast.corruptions.base import Corruption, check_baseline
from dvae_fast.corruptions.basic import AdditiveGaussian, FusedCorruption, RateCorruption
from dvae_fast.functional._autograd import FirstOrder

__all__ = ["LEVEL_ESTIMATORS", "Learnable", "score_function_surrogate"]

#: "pathwise": x̃ = x + std · n is differentiable. "score": the score function of a rate, unbiased.
#: "relaxed": hits between 0 and 1, which a rate moves; biased.
LEVEL_ESTIMATORS = ("pathwise", "score", "relaxed")

_FIRST_ORDER = (
    "the score function's gradient of a rate is an estimate of first order, in reverse mode: there "
    "is nothing to differentiate again, and no forward mode"
)

_SALT_KEY = -1  # its index among a seed's keys


def score_function_surrogate(per_copy_loss: Tensor, log_prob: Tensor) -> Tensor:
    """A scalar of value 0 whose gradient is the score function's, with a leave-one-out baseline:

        1/M Σ_m (ℓ_m − mean_(j≠m) ℓ_j) ∇ log p(x̃_m|x),  a mean over examples.

    Unbiased for the gradient, through the distribution of x̃ alone, of E[1/M Σ_m ℓ_m], because the
    copies are independent. Add it to the loss. An example with a loss that is not finite passes
    nothing.

    Args:
        per_copy_loss: ℓ, (M, B) with M >= 2; its own gradient is not used.
        log_prob: log p(x̃_m|x), (M, B).

    Raises:
        ValueError: if the shapes differ, or M < 2.

    Source: Kool, van Hoof, Welling, "Buy 4 REINFORCE samples, get a baseline for free!" (2019),
    equation 8.
    """
    if per_copy_loss.dim() != 2 or per_copy_loss.shape != log_prob.shape:
        raise ValueError(
            "per_copy_loss and log_prob must have one shape (M, B), got "
            f"{tuple(per_copy_loss.shape)} and {tuple(log_prob.shape)}"
        )
    copies = per_copy_loss.shape[0]
    check_baseline(copies)
    loss = per_copy_loss.detach()
    advantage = (loss - loss.mean(0)) * (copies / (copies - 1))
    advantage = torch.where(advantage.isfinite(), advantage, 0.0)
    log_prob = cast("Tensor", FirstOrder.apply(log_prob, _FIRST_ORDER))
    return (advantage * (log_prob - log_prob.detach())).mean()


class Learnable(nn.Module, Corruption):
    """A corruption whose rate or standard deviation is a parameter, kept in range.

    A model that is given one has the parameter among its own. The rate is σ(a), the standard
    deviation log(1 + e^a), of an unconstrained a. A salt probability is not learnt.

    What is learnt ascends the model's bound, and with an encoder that can do anything no
    corruption has the highest: q(z|x̃) knows no more than q(z|x). So expect the level to fall
    towards 0, as far as the encoder's limits let it, unless the loss has a term to hold it up.
    Im et al. (arXiv 1511.06406) leave open how it should be learnt.

    Args:
        corruption: Masking, SaltAndPepper, BitFlip or AdditiveGaussian, at the level to start
            from: within (0, 1), or > 0; one for all dimensions or one for each.
        estimator: of the level's gradient, one of `LEVEL_ESTIMATORS`. None: "pathwise" for
            AdditiveGaussian, which has no other, and "score" for rates.
            "score" is unbiased and needs M >= 2 copies in the model. "relaxed" draws hits from the
            concrete distribution while training (Maddison et al., arXiv 1611.00712): x̃ lies
            between x and what a hit would make of it, the same numbers as without only as the
            temperature tends to 0; in evaluation mode hits are whole.
        size: D, to make of one level at the start one for each dimension.
        temperature: > 0, only of "relaxed".

    Raises:
        TypeError, ValueError: naming the argument, the rule and the value.
    """

    def __init__(
        self,
        corruption: Corruption,
        estimator: str | None = None,
        *,
        size: int | None = None,
        temperature: float = 0.5,
    ) -> None:
        super().__init__()
        if not isinstance(corruption, FusedCorruption) or not corruption.estimators:
            got = corruption if isinstance(corruption, Corruption) else type(corruption).__name__
            raise TypeError(
                "corruption must be a Masking, SaltAndPepper, BitFlip or AdditiveGaussian, "
                f"got {got}"
            )
        if estimator is None:
            estimator = corruption.estimators[0]
        check_choice("estimator", estimator, LEVEL_ESTIMATORS)
        if estimator not in corruption.estimators:
            raise ValueError(
                f"estimator must be one of {', '.join(corruption.estimators)} for "
                f"{type(corruption).__name__}; got {estimator!r}"
            )
        if not is_number(temperature):
            raise TypeError(f"temperature must be a number, got {type(temperature).__name__}")
        if not 0 < temperature < float("inf"):
            raise ValueError(f"temperature must be finite and > 0, got {temperature:g}")
        level = corruption.parameter.detach().reshape(-1)
        if size is not None:
            size = check_size("size", size)
            if level.numel() not in (1, size):
                raise ValueError(
                    f"size must be the number of levels given, {level.numel()}, got {size}"
                )
            level = level.expand(size)
        level = level.reshape(() if level.numel() == 1 else (-1,)).clone()
        if not bool(((level > 0) & (level < corruption.level_limit)).all()):
            raise ValueError(
                f"{corruption.level_name} must be {corruption.level_rule} to be learnt, got values "
                f"from {level.min().item():g} to {level.max().item():g}"
            )
        #: the corruption it starts from
        self.start = corruption.at(level, corruption.salt)
        self.estimator = estimator
        self.temperature = float(temperature)
        self.unconstrained = nn.Parameter(corruption.unconstrained(level))
        self._salt: Tensor | None
        self.register_buffer("_salt", corruption.salt, persistent=False)

    # --- the level ----------------------------------------------------------------------------

    @property
    def level(self) -> Tensor:
        """The rate or standard deviation, differentiable: of one element or (D,)."""
        return self.start.constrained(self.unconstrained)

    @property
    def salt(self) -> Tensor | None:
        """The salt probability, of salt and pepper only."""
        return self._salt

    @property
    def scores(self) -> bool:
        """Whether the loss must add `score_function_surrogate`."""
        return self.estimator == "score"

    def fixed(self) -> FusedCorruption:
        """The corruption at the present level, to be learnt no more."""
        return self._at(self.level.detach().clone())

    def _at(self, level: Tensor) -> FusedCorruption:
        return self.start.at(level, self._salt)

    def check(self, x: Tensor) -> None:
        self.start.check(x)

    # --- drawing ------------------------------------------------------------------------------

    def draw(
        self, x: Tensor, copies: int, key: Tensor, first_example: int, first_copy: int
    ) -> Tensor:
        """x (B, ...) → x̃ (M, B, ...); see `Corruption`."""
        first = (first_example, first_copy)
        if self.estimator == "relaxed" and self.training:
            return self._relaxed(x.flatten(1), copies, key, first).view(copies, *x.shape)
        level = self.level if self.estimator == "pathwise" else self.level.detach()
        return self._at(level).draw(x, copies, key, *first)

    def _relaxed(self, x: Tensor, copies: int, key: Tensor, first: tuple[int, int]) -> Tensor:
        clean = x.to(accumulation_dtype(x.dtype))
        zero = torch.zeros(clean.shape, dtype=clean.dtype, device=clean.device)
        normal = AdditiveGaussian.at(zero.new_ones(())).draw(zero, copies, key, *first)
        # logit Φ(n), from the tails: a logistic number.
        tail = normal * math.sqrt(0.5)
        logistic = torch.log(torch.erfc(-tail) / torch.erfc(tail))
        hit = torch.sigmoid((self.unconstrained + logistic) / self.temperature)
        plain = cast("RateCorruption", self._at(self.level.detach()))
        struck = plain.hit(clean, copies, derived_key(key, _SALT_KEY), *first)
        return torch.lerp(clean.expand_as(hit), struck.expand_as(hit), hit).to(x.dtype)

    # --- the density --------------------------------------------------------------------------

    def log_prob(self, noisy: Tensor, x: Tensor) -> Tensor:
        """log p(x̃|x) of whole hits: (M, B, D) and (B, D) → (M, B); differentiable in the rate.

        Where being hit or not gives the same x̃, both count: masking has P(0|0) = 1, and
        salt and pepper P(1|1) = 1 − rate · (1 − salt).

        Raises:
            ValueError: for a Gaussian, or if the shapes do not fit.
        """
        plain = self._at(self.level.detach())
        if not isinstance(plain, RateCorruption):
            raise ValueError(f"log_prob must be asked of a rate, got {self}")
        if noisy.dim() != 3 or noisy.shape[1:] != x.shape:
            raise ValueError(
                "noisy must have shape (M, B, D) and x (B, D), got "
                f"{tuple(noisy.shape)} and {tuple(x.shape)}"
            )
        a = self.unconstrained
        struck = plain.hit_probability(noisy, x).to(a.dtype)
        kept = (noisy == x).to(a.dtype)
        # log(rate · P(x̃|hit) + (1 − rate) · P(x̃|kept)), where rate or 1 − rate may be tiny.
        each = torch.logaddexp(F.logsigmoid(a) + struck.log(), F.logsigmoid(-a) + kept.log())
        return each.sum(-1)

    def __repr__(self) -> str:
        return f"Learnable({self.fixed()!r}, {self.estimator!r})"
