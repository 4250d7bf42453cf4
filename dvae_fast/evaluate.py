"""log p(x) of a model by importance sampling, streamed over as many samples as wanted."""

from __future__ import annotations

import copy
import functools
import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor

from dvae_fast import functional, reference
from dvae_fast.diagnostics import BoundCurve, ParetoTail
from dvae_fast.judged import Judged
from dvae_fast.networks import check_size

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from dvae_fast.judged import EncoderDecoder
    from dvae_fast.likelihoods import Likelihood
    from dvae_fast.models import LatentVariableModel

__all__ = ["Estimate", "LikelihoodEstimate", "estimate_log_likelihood"]

_op: Any = torch.ops.dvae_fast

# Rows (examples x samples) decoded at once. A row of the usual network holds some 2 kB of latents
# and hidden activations: on a CPU a few thousand rows stay in a shared cache of 8 MB, and make
# the cost of launching the dozen operators (about 0.1 ms of 10 ms) vanish; a GPU wants more.
_ROWS_CPU = 2500
_ROWS_GPU = 65536
# Samples of an example that are kept before the diagnostics take them in, all together.
_PENDING = 4096

#: k of the curve of bounds, where nothing else is asked for; those above k are left out
CURVE = (1, 5, 50, 500, 5000)
#: above this k̂, and below this effective sample size, an estimate should not be trusted
MAX_PARETO_K = 0.7
MIN_ESS = 10.0


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

    def _not_finite(self) -> list[str]:
        """The warning of examples without a finite log-likelihood, if there are any."""
        if not (bad := self.non_finite):
            return []
        finite = self.log_likelihood.isfinite()
        first = int((~finite).nonzero()[0])
        return [
            f"{bad} of {len(finite)} examples have no finite log-likelihood (the first is example "
            f"{first}: {float(self.log_likelihood[first])}); they are in the mean, which has none "
            "either."
        ]


def finite_or_none(numbers: dict[str, float]) -> dict[str, float | None]:
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
    #: +inf for fewer than 25 samples.
    pareto_k: Tensor
    #: samples spent on each example, int64 (N,): k, or up to max_k with a tolerance
    spent: Tensor
    #: the bounds L_k = E log 1/k Σ w at the k of `curve_k`, in nats, (N, len(curve_k)); NaN where
    #: fewer than k samples were spent
    curve: Tensor
    curve_k: tuple[int, ...]
    #: importance samples an example, the first k if there was a tolerance
    k: int

    def warnings(self) -> list[str]:
        """In plain words, why not to trust the estimate; empty if there is no reason."""
        n = len(self.log_likelihood)
        finite = self.log_likelihood.isfinite()
        heavy = int((finite & (self.pareto_k > MAX_PARETO_K)).sum())
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
            "log_likelihood": self.mean,
            "standard_error": self.mean_standard_error,
            "bits_per_dimension": self.bits_per_dimension,
            "elbo": float(self.elbo.mean()),
            "ess_mean": float(self.ess.mean()),
            "ess_min": float(self.ess.min()),
            "pareto_k_median": float(self.pareto_k.median()),
        }
        curve = self.curve.mean(0).tolist()
        return {
            **finite_or_none(numbers),
            "bounds": finite_or_none(dict(zip(map(str, self.curve_k), curve, strict=True))),
            "examples": len(self.log_likelihood),
            "non_finite": self.non_finite,
            "pareto_k_above_0.7": int((self.pareto_k > MAX_PARETO_K).sum()),
            "ess_below_10": int((self.ess < MIN_ESS).sum()),
            "k": self.k,
            "samples": int(self.spent.sum()),
            "seed": self.seed,
            "warnings": self.warnings(),
        }


# --- statistics of one batch ----------------------------------------------------------------------


class _Statistics:
    """All that is kept of the log-weights of some examples, whatever their number."""

    def __init__(
        self, examples: int, most: int, ks: Sequence[int], device: torch.device | str
    ) -> None:
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
        if sum(t.shape[1] for t in self._pending) >= _PENDING:
            self.settle()

    def settle(self) -> None:
        if self._pending:
            log_w = torch.cat(self._pending, 1)
            self._pending = []
            self.curve.add(log_w)
            self.tail.add(log_w)

    def row(self, i: int) -> _Statistics:
        """Those of the i-th example alone, to go on with by itself."""
        self.settle()
        other = copy.copy(self)
        other._pending = []
        other.state = self.state[i : i + 1].clone()
        other.curve, other.tail = self.curve.row(i), self.tail.row(i)
        return other

    def result(self) -> dict[str, Tensor]:
        """On the CPU: the fields of `LikelihoodEstimate` that have a number an example."""
        self.settle()
        return {
            **_from_state(self.state.cpu()),
            "pareto_k": self.tail.shape().cpu(),
            "spent": torch.full((len(self.state),), self.count, dtype=torch.int64),
            "curve": self.curve.bounds().cpu(),
        }


def _from_state(state: Tensor) -> dict[str, Tensor]:
    """From max m, Σ e^(w−m), Σ e^2(w−m), Σ w and count, each example's."""
    m, s1, s2, total, count = state.unbind(1)
    return {
        "log_likelihood": m + s1.log() - count.log(),
        "standard_error": _standard_error(state),
        "ess": s1.square() / s2,
        "elbo": total / count,
    }


def _standard_error(state: Tensor) -> Tensor:
    _, s1, s2, _, count = state.unbind(1)
    variance = (s2 / s1.square() - 1 / count).clamp(min=0)  # rounding may leave −1e-16
    return torch.where(count > 1, variance.sqrt(), math.nan)


def _unsure(statistics: _Statistics, tolerance: float) -> list[int]:
    """The examples whose standard error is above the tolerance, or rests on too few weights."""
    _, s1, s2, _, _ = statistics.state.unbind(1)
    sure = (_standard_error(statistics.state) <= tolerance) & (s1.square() / s2 >= MIN_ESS)
    return cast("list[int]", (~sure).nonzero().flatten().tolist())


def _draw(
    judged: Judged,
    x: Tensor,
    mean: Tensor,
    log_var: Tensor,
    k: int,
    key: Tensor,
    first_example: int,
    first_sample: int,
) -> Tensor:
    z, log_ratio = functional.sample_latent(
        mean, log_var, k, key, first_example=first_example, first_sample=first_sample
    )
    return judged.log_weights(z, x, log_ratio)


def _draw_one(
    judged: Judged,
    batch: Tensor,
    mean: Tensor,
    log_var: Tensor,
    key: Tensor,
    first: int,
    most: int,
    i: int,
    start: int,
    stop: int,
) -> Iterator[Tensor]:
    """Log-weights of samples [start, stop) of the i-th example, at most `most` at once."""
    x, mean, log_var = batch[i : i + 1], mean[i : i + 1], log_var[i : i + 1]
    for sample in range(start, stop, most):
        n = min(most, stop - sample)
        yield _draw(judged, x, mean, log_var, n, key, first + i, sample)


def _until_sure(
    statistics: _Statistics,
    draw: Callable[[int, int], Iterator[Tensor]],
    tolerance: float,
    max_k: int,
) -> None:
    """As many samples again, and again, of one example."""
    while statistics.count < max_k and _unsure(statistics, tolerance):
        for log_w in draw(statistics.count, min(2 * statistics.count, max_k)):
            statistics.add(log_w)


# --- the estimate ---------------------------------------------------------------------------------


def _split(k: int, batch_size: int | None, chunk: int | None, rows: int) -> tuple[int, int]:
    """(batch_size, chunk) with about `rows` rows between them, all of one's own choice kept.

    Long chunks rather than large batches: consecutive rows share x.
    """
    if chunk is None:
        chunk = max(1, min(k, rows // (batch_size or 10)))
    chunk = min(chunk, k)
    return batch_size or max(1, rows // chunk), chunk


@torch.no_grad()
def estimate_log_likelihood(
    model: LatentVariableModel | EncoderDecoder | tuple[Callable[..., Any], Callable[..., Any]],
    x: Tensor,
    k: int = 5000,
    *,
    likelihood: str | Likelihood | None = None,
    tolerance: float | None = None,
    max_k: int | None = None,
    curve: Sequence[int] = CURVE,
    batch_size: int | None = None,
    chunk: int | None = None,
    seed: int | Tensor | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> LikelihoodEstimate:
    """log p(x) ≈ log 1/k Σ w, z ~ q(z|x), for each example; x is not corrupted.

    Every example is encoded once. Samples are drawn and judged `chunk` at a time and folded into
    float64 statistics, so memory depends on batch_size · chunk and not on k or N. Any split gives
    the same numbers up to the rounding of the decoder's matrix products.

    Args:
        model: a `dvae_fast.models.LatentVariableModel`; or anything with methods ``encode(x)`` →
            (mean, log_var), (B, Z) each, and ``decode(z)`` → params, for z (B, K, Z); or a pair of
            such callables. Modules are judged in evaluation mode and get their own back. Where
            `decode` is an ``nn.Sequential`` that ends in an ``nn.Linear`` without hooks, the
            logits of a Bernoulli are never held: see `linear_log_weights`.
        x: (N, D), N >= 1, on any device; batches move to the model's device and dtype.
        k: importance samples an example, >= 1; need not be a multiple of `chunk`.
        likelihood: "bernoulli", "gaussian" or a `Likelihood`. Default: the model's ``likelihood``
            if it has one, else "bernoulli".
        tolerance: in nats. Given, samples are added, as many again each time, to the examples
            whose standard error is above it or whose effective sample size is below 10, up to
            `max_k`. An error from few samples of a heavy tail is too small, so this stops too
            early for some; see `pareto_k`.
        max_k: >= k. Default with a tolerance: 20 k.
        curve: the k at which to report the bound too, each >= 1.
        batch_size, chunk: examples and samples at once. Default: about 2,500 rows together on a
            CPU (10 examples by 250 samples at k = 5,000), 65,536 on a GPU, so that the decoder's
            activations stay in cache.
        seed: int, int64 tensor of one element, or None to draw one from torch's generator; the
            result tells which.
        progress: called with (examples done, N) after each batch.

    Returns:
        A `LikelihoodEstimate`. NaN in an example is that example's alone; none is left out.

    Raises:
        TypeError, ValueError: naming the argument, the rule and the value.

    Source: Burda, Grosse, Salakhutdinov (arXiv 1509.00519), section 5; Rezende, Mohamed, Wierstra
    (arXiv 1401.4082), appendix E.
    """
    judged = Judged(model, likelihood)
    size = judged.check_data(x)
    check_size("k", k)
    for name, value in (("batch_size", batch_size), ("chunk", chunk), ("max_k", max_k)):
        if value is not None:
            check_size(name, value)
    for one in curve:
        check_size("each of curve", one)
    if tolerance is None:
        if max_k is not None:
            raise ValueError(f"max_k must come with a tolerance, got {max_k} without one")
        max_k = k
    else:
        if not 0 < tolerance < math.inf:
            raise ValueError(f"tolerance must be > 0 and finite, got {tolerance}")
        max_k = 20 * k if max_k is None else max_k
        if max_k < k:
            raise ValueError(f"max_k must be >= k = {k}, got {max_k}")
    like = judged.like(x)
    key = functional._seed_tensor(seed, like.device)
    rows = _ROWS_CPU if like.device.type == "cpu" else _ROWS_GPU
    batch_size, step = _split(k, batch_size, chunk, rows)
    alone = chunk or rows  # samples at once of an example that is unsure
    ks = tuple(sorted({one for one in curve if one <= max_k}))

    examples = x.shape[0]
    results: list[dict[str, Tensor]] = []
    with judged.evaluating():
        for first in range(0, examples, batch_size):
            batch = x[first : first + batch_size].to(like.device, like.dtype)
            mean, log_var = judged.posterior(batch)
            statistics = _Statistics(batch.shape[0], max_k, ks, like.device)
            for sample in range(0, k, step):
                n = min(step, k - sample)
                statistics.add(_draw(judged, batch, mean, log_var, n, key, first, sample))
            if tolerance is None or not (unsure := _unsure(statistics, tolerance)):
                results.append(statistics.result())
            else:
                draw = functools.partial(_draw_one, judged, batch, mean, log_var, key, first, alone)
                parts = [statistics.row(i) for i in range(batch.shape[0])]
                for i in unsure:
                    _until_sure(parts[i], functools.partial(draw, i), tolerance, max_k)
                results += [part.result() for part in parts]
            if progress is not None:
                progress(first + batch.shape[0], examples)
    fields = {name: torch.cat([result[name] for result in results]) for name in results[0]}
    return LikelihoodEstimate(**fields, curve_k=ks, k=k, seed=int(key), data_size=size)
