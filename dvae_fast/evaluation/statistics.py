"""What tells whether an importance-sampling estimate can be trusted, folded chunk by chunk.

Each class takes log-weights (N, c) of the next c samples at a time, in any chunks, and needs memory
that does not grow with the number of samples (`ParetoTail`: with its square root).
"""

from __future__ import annotations

import copy
import math
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor

from dvae_fast import reference

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = [
    "ALIKE",
    "MAX_PARETO_K",
    "MIN_ESS",
    "MIN_TAIL",
    "PENDING",
    "PENDING_CHUNKS",
    "BoundCurve",
    "ParetoTail",
    "Statistics",
    "from_state",
    "pareto_fit",
    "pareto_shape",
    "samples_wanted",
    "shapes_of",
    "standard_error",
    "tail_size",
]

#: above this k̂, and below this effective sample size, an estimate should not be trusted
MAX_PARETO_K = 0.7
MIN_ESS = 10.0
MIN_TAIL = 21  # samples, of which five are the tail
#: weights that vary by no more, relative to their mean, are as good as equal: the best case
ALIKE = 1e-3

_LEAST = math.log(torch.finfo(torch.float64).tiny)  # of a weight, relative to the largest

_op: Any = torch.ops.dvae_fast

# Of the samples that a pilot asks for, because it may see too little of a tail.
_MARGIN = 1.25

# Elements of an intermediate: on a CPU they stay in cache; a GPU wants few operators.
_PIECE, _PIECE_GPU = 1 << 14, 1 << 23
# Samples of an example that are kept before the diagnostics take them in, all together; on a GPU,
# as many chunks of a batch.
PENDING, PENDING_CHUNKS = 8192, 4


# --- the bound against k ----------------------------------------------------------------------


class _Groups:
    """Σ over finished groups of k consecutive samples of log 1/k Σ w, and the group in progress.

    Made from log-sums of `unit` samples, where a smaller k that divides this one has made them.
    """

    def __init__(self, k: int, unit: int, examples: int, device: torch.device | str) -> None:
        self.k, self.size = k, k // unit
        self.filled, self.groups = 0, 0
        self.total = zero = torch.zeros(examples, dtype=torch.float64, device=device)
        # Σ (l − c) and Σ (l − c)² of the groups' l, about the first one: no cancellation.
        self.centre = torch.full_like(self.total, math.nan)
        self.shifted = self.squares = zero  # none is written to
        # log Σ w of the group in progress
        self.open = torch.full((examples,), -math.inf, dtype=torch.float64, device=device)

    def add(self, units: Tensor) -> Tensor:
        """Take in (N, c); the log-sums of the groups this has finished, (N, g)."""
        if self.size == 1:
            return self._close(units)
        head, rest = units.tensor_split([(self.size - self.filled) % self.size], 1)
        done = []
        if head.shape[1] > 0:
            self._fill(head)
            if self.filled == self.size:
                done.append(self.open[:, None])
                self.open, self.filled = torch.full_like(self.open, -math.inf), 0
        whole = rest.shape[1] // self.size
        body, tail = rest.tensor_split([whole * self.size], 1)
        done.append(torch.logsumexp(body.unflatten(1, (whole, self.size)), -1))
        if tail.shape[1] > 0:
            self._fill(tail)
        return self._close(torch.cat(done, 1))

    def _fill(self, units: Tensor) -> None:
        self.open = torch.logaddexp(self.open, torch.logsumexp(units, 1))
        self.filled += units.shape[1]

    def _close(self, log_sums: Tensor) -> Tensor:
        if log_sums.shape[1] == 0:
            return log_sums
        if self.groups == 0:
            self.centre = log_sums[:, 0]
        centred = log_sums - self.centre[:, None]
        self.total = self.total + log_sums.sum(1)
        self.shifted = self.shifted + centred.sum(1)
        self.squares = self.squares + centred.square().sum(1)
        self.groups += log_sums.shape[1]
        return log_sums

    def take(self, rows: slice | Tensor) -> _Groups:
        other = copy.copy(self)
        for name in ("open", "total", "centre", "shifted", "squares"):
            setattr(other, name, getattr(self, name)[rows])
        return other

    def mean(self) -> Tensor:
        if self.groups == 0:
            return torch.full_like(self.total, math.nan)
        return self.total / self.groups - math.log(self.k)

    def standard_error(self) -> Tensor:
        n = self.groups
        if n < 2:
            return torch.full_like(self.total, math.nan)
        variance = (self.squares - self.shifted.square() / n).clamp(min=0) / (n - 1)
        return (variance / n).sqrt()


class BoundCurve:
    """The bounds L_k = E log 1/k Σ w of several k, from one stream of samples.

    Each is a mean over as many disjoint groups of k samples as there are, so that small k cost
    nothing and have little noise; samples that fill no whole group are not used for that k.

    Args:
        ks: the k wanted, each >= 1.
        examples: N.
        device: of the log-weights.

    Source: Burda, Grosse, Salakhutdinov (arXiv 1509.00519), theorem 1: L_k rises with k to log p.
    """

    def __init__(self, ks: Sequence[int], examples: int, device: torch.device | str) -> None:
        self._none = torch.empty(examples, 0, dtype=torch.float64, device=device)
        self.ks = tuple(ks)
        self._groups: list[_Groups] = []
        self._from: list[int] = []  # whose log-sums each is made from; −1: the samples
        for j, k in enumerate(ks):
            divisors = [i for i in range(j) if k % ks[i] == 0]
            self._from.append(max(divisors, key=lambda i: ks[i], default=-1))
            unit = ks[self._from[j]] if divisors else 1
            self._groups.append(_Groups(k, unit, examples, device))

    def add(self, log_w: Tensor) -> None:
        """Take in the next samples, (N, c)."""
        log_w = log_w.double()
        sums: list[Tensor] = []
        for groups, source in zip(self._groups, self._from, strict=True):
            sums.append(groups.add(log_w if source < 0 else sums[source]))

    def take(self, rows: slice | Tensor) -> BoundCurve:
        """That of some examples, to go on with by itself."""
        other = copy.copy(self)
        other._groups = [groups.take(rows) for groups in self._groups]
        other._none = self._none[rows]
        return other

    def bounds(self) -> Tensor:
        """(N, number of ks) in nats, float64; NaN where there were fewer than k samples."""
        means = [groups.mean() for groups in self._groups]
        return torch.stack(means, 1) if means else self._none

    def groups(self) -> list[int]:
        """How many there were, of each k."""
        return [groups.groups for groups in self._groups]

    def standard_errors(self) -> Tensor:
        """Those of `bounds`, over the groups; NaN where there were fewer than two."""
        errors = [groups.standard_error() for groups in self._groups]
        return torch.stack(errors, 1) if errors else self._none


# --- the tail of the weights ------------------------------------------------------------------


def pareto_shape(tail: Tensor) -> Tensor:
    """k̂ alone, (N,), of `pareto_fit`."""
    return pareto_fit(tail)[0]


def pareto_fit(tail: Tensor) -> tuple[Tensor, Tensor]:
    """A generalised Pareto distribution fitted to exceedances: its shape k̂, and θ = −k/σ.

    Args:
        tail: (N, n) float64, each row the exceedances over a threshold in ascending order; those
            at its beginning that are 0 are none, so that rows may have different numbers of them.

    Returns:
        (N,) and (N,): k̂, drawn towards 0.5 as 10 more observations would; +inf of fewer than 5,
        NaN where the tail holds one; and θ, for the k before that prior.

    Source: Zhang and Stephens (Technometrics 51, 2009), with the prior of Vehtari et al.
    (arXiv 1507.02646), appendix C.
    """
    width, device = tail.shape[1], tail.device
    if width < 5:
        none = torch.full(tail.shape[:1], math.inf, dtype=torch.float64, device=device)
        return none, none
    n = (tail != 0).sum(1, keepdim=True)
    enough = n.clamp(min=5)
    prior_b, prior_k = 3, 10
    guesses = 30 + enough.sqrt().floor()
    i = torch.arange(1, 31 + int(width**0.5), dtype=torch.float64, device=device)
    quartile = tail.gather(1, width - 1 - enough + (enough + 2) // 4)
    # Candidate θ = −k/σ, one row each; the mean over them by profile likelihood is the estimate.
    # One may be 0 but for the last term, and its logarithm below that of 0/0.
    theta = (1 - torch.sqrt(guesses / (i - 0.5))) / (prior_b * quartile) + 1 / tail[:, -1:] + 1e-99
    # −k of each θ; a few θ at a time, in place: all would take more memory than the evaluation.
    # What is 0 adds nothing.
    piece = _PIECE if device.type == "cpu" else _PIECE_GPU
    some = max(1, piece // max(1, tail.numel()))
    shape = torch.cat(
        [(-t[:, :, None] * tail[:, None, :]).log1p_().sum(-1) for t in theta.split(some, 1)], 1
    )
    shape = shape / enough
    profile = enough * (torch.log(-theta / shape) - shape - 1)
    weight = torch.softmax(profile.masked_fill(i > guesses, -math.inf), 1)
    best = (theta * weight).sum(1, keepdim=True)
    k = torch.log1p(-best * tail).sum(1) / enough[:, 0]
    k = (enough[:, 0] * k + prior_k * 0.5) / (enough[:, 0] + prior_k)
    return torch.where(n[:, 0] < 5, math.inf, k), best[:, 0]


class ParetoTail:
    """k̂ of the importance weights: below 0.7 an estimate of log p can be trusted.

    Args:
        most: how many samples there will be at most.
        examples: N.
        device: of the log-weights.

    Source: Vehtari, Simpson, Gelman, Yao, Gabry (arXiv 1507.02646), section 2.4.
    """

    def __init__(self, most: int, examples: int, device: torch.device | str) -> None:
        self._most, self._count = tail_size(most), 0
        self._top = torch.full((examples, 0), -math.inf, dtype=torch.float64, device=device)
        self._bad = torch.zeros(examples, dtype=torch.bool, device=device)

    def add(self, log_w: Tensor) -> None:
        """Take in the next samples, (N, c)."""
        both = torch.cat((self._top, log_w.double()), 1)
        self._bad = self._bad | both.isnan().any(1)
        self._count += log_w.shape[1]
        # One more than the tail: its threshold.
        self._top = both.topk(min(self._most + 1, both.shape[1]), 1).values

    def take(self, rows: slice | Tensor) -> ParetoTail:
        """That of some examples, to go on with by itself."""
        other = copy.copy(self)
        other._top, other._bad = self._top[rows], self._bad[rows]
        return other

    def shape(self) -> Tensor:
        """k̂ of each example, (N,) float64: +inf where fewer than 5 weights lie above the cutoff,
        NaN if a weight is, or all are 0.

        The cutoff is the largest weight that is not of the tail; those that equal it are no more
        above it than that one, and weights of less than 1e-308 of the largest are none.
        """
        size = min(tail_size(self._count), self._most)
        if size < 5 or self._count <= size:
            k = torch.full_like(self._bad, math.inf, dtype=torch.float64)
        else:
            log_relative = self._top[:, : size + 1] - self._top[:, :1]
            relative = torch.exp(log_relative.clamp(min=_LEAST))
            k = pareto_shape((relative[:, :-1] - relative[:, -1:]).flip(1))
        return torch.where(self._bad, torch.full_like(k, math.nan), k)


def tail_size(k: int) -> int:
    """Of the largest weights: min(k/5, 3 √k)."""
    return math.ceil(min(0.2 * k, 3 * math.sqrt(k)))


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


class Statistics:
    """All that is kept of the log-weights of some examples, whatever their number."""

    def __init__(
        self,
        examples: int,
        most: int,
        ks: Sequence[int],
        device: torch.device | str,
        pending: int = PENDING,
    ) -> None:
        self.most_pending = pending
        self.state = reference.lse_init(examples, device)
        self.curve = BoundCurve(ks, examples, device)
        self.tail = ParetoTail(most, examples, device)
        self.count = 0
        self._pending: list[Tensor] = []

    def add(self, log_w: Tensor) -> None:
        """Take in the next samples, (N, c)."""
        self.state = _op.lse_update(self.state, log_w)
        self.count += log_w.shape[1]
        self._pending.append(log_w)
        if sum(t.shape[1] for t in self._pending) >= self.most_pending:
            self.settle()

    def settle(self) -> None:
        if self._pending:
            log_w = torch.cat(self._pending, 1) if len(self._pending) > 1 else self._pending[0]
            self._pending = []
            self.curve.add(log_w)
            self.tail.add(log_w)

    def take(self, rows: slice | Tensor) -> Statistics:
        """Those of some examples, to go on with by themselves."""
        self.settle()
        other = copy.copy(self)
        other._pending = []
        other.state = self.state[rows].clone()
        other.curve, other.tail = self.curve.take(rows), self.tail.take(rows)
        return other

    def packed(self) -> Tensor:
        """All that `fields` needs, on the device: (N, 6 + 2 · number of ks), float64."""
        self.settle()
        tail = self.tail.shape()[:, None]
        return torch.cat((self.state, tail, self.curve.bounds(), self.curve.standard_errors()), 1)

    def fields(self, packed: Tensor) -> dict[str, Tensor]:
        """The fields of `LikelihoodEstimate` that have a number an example, of `packed` rows that
        are on the CPU."""
        state, tail, bounds, errors = packed.split((5, 1, *[len(self.curve.ks)] * 2), 1)
        fields = from_state(state)
        groups = torch.tensor(self.curve.groups(), dtype=torch.int64, device=packed.device)
        # A single group of k of the n samples: their error, times √(n/k).
        single = errors.isnan() & groups.eq(1)
        ratio = torch.tensor(
            [math.sqrt(self.count / k) for k in self.curve.ks], device=packed.device
        )
        alone = fields["standard_error"][:, None] * ratio
        return {
            **fields,
            "pareto_k": tail[:, 0],
            "spent": torch.full(
                (len(packed),), self.count, dtype=torch.int64, device=packed.device
            ),
            "curve": bounds,
            "curve_standard_error": torch.where(single, alone, errors),
            "curve_groups": groups.repeat(len(packed), 1),
        }


def shapes_of(ks: Sequence[int]) -> dict[str, tuple[tuple[int, ...], torch.dtype]]:
    """What `Statistics.fields` returns: of each name the shape for an example, and the dtype."""
    single = ("log_likelihood", "standard_error", "ess", "elbo", "pareto_k")
    return {
        **dict.fromkeys(single, ((), torch.float64)),
        "spent": ((), torch.int64),
        "curve": ((len(ks),), torch.float64),
        "curve_standard_error": ((len(ks),), torch.float64),
        "curve_groups": ((len(ks),), torch.int64),
    }


def samples_wanted(state: Tensor, tolerance: float, k: int, most: int) -> list[int]:
    """How many samples each example needs for a standard error below the tolerance that rests on
    enough weights, as the state (N, 5) of a pilot tells: k, or k doubled as often as it takes, or
    `most`."""
    _, s1, s2, _, count = state.unbind(1)
    error = standard_error(state) / tolerance
    more = torch.maximum(_MARGIN * error.square(), MIN_ESS * s2 / s1.square()) * count / k
    doubled = torch.log2(more.nan_to_num(math.inf).clamp(1, 2 * most / k)).ceil()
    wanted = (k * torch.exp2(doubled)).clamp(max=most)
    # Of NaN no sample will make a number.
    return cast("list[int]", torch.where(s1.isnan(), float(k), wanted).long().tolist())
