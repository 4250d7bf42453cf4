"""log p(x) of a model by importance sampling, streamed over as many samples as wanted."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from dvae_fast import functional, reference
from dvae_fast.networks import check_size, evaluating

if TYPE_CHECKING:
    from collections.abc import Callable

    from dvae_fast.models import LatentVariableModel

__all__ = ["LikelihoodEstimate", "estimate_log_likelihood"]

_op: Any = torch.ops.dvae_fast

# Rows (examples x samples) decoded at once. A row of the usual network holds some 2 kB of latents
# and hidden activations: on a CPU a few thousand rows stay in a shared cache of 8 MB, and make
# the cost of launching the dozen operators (about 0.1 ms of 10 ms) vanish; a GPU wants more.
_ROWS_CPU = 2500
_ROWS_GPU = 65536


@dataclass(frozen=True, eq=False)
class LikelihoodEstimate:
    """What `estimate_log_likelihood` returns: one float64 number an example, on the CPU."""

    #: log 1/k Σ w in nats, (N,). Its expectation lies below log p(x), by about half the square of
    #: the standard error.
    log_likelihood: Tensor
    #: of log_likelihood, over draws of the k samples, (N,): the delta method's
    #: sqrt(Σ w² / (Σ w)² − 1/k). Too small where the effective sample size is. NaN if k = 1, or
    #: if every weight is 0.
    standard_error: Tensor
    #: effective sample size (Σ w)² / Σ w², from 1 to k, (N,). NaN if every weight is 0.
    ess: Tensor
    #: the mean of log w, the variational lower bound, in nats, (N,)
    elbo: Tensor
    #: importance samples an example
    k: int
    #: gives the same numbers again, up to rounding
    seed: int

    @property
    def mean(self) -> float:
        """Mean log-likelihood in nats. NaN or −inf if an example's is: see `non_finite`."""
        return float(self.log_likelihood.mean())

    @property
    def mean_standard_error(self) -> float:
        """Standard error of `mean` over draws of the importance samples, for these examples."""
        return float(self.standard_error.square().sum().sqrt()) / len(self.standard_error)

    @property
    def non_finite(self) -> int:
        """How many examples have a log-likelihood that is NaN or infinite."""
        return int((~self.log_likelihood.isfinite()).sum())

    def summary(self) -> dict[str, Any]:
        """Means over the examples, JSON-able; None stands for a number that is not finite."""
        numbers = {
            "log_likelihood": self.mean,
            "standard_error": self.mean_standard_error,
            "elbo": float(self.elbo.mean()),
            "ess_mean": float(self.ess.mean()),
            "ess_min": float(self.ess.min()),
        }
        return {
            **{name: value if math.isfinite(value) else None for name, value in numbers.items()},
            "examples": len(self.log_likelihood),
            "non_finite": self.non_finite,
            "k": self.k,
            "seed": self.seed,
        }


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
    model: LatentVariableModel,
    x: Tensor,
    k: int = 5000,
    *,
    batch_size: int | None = None,
    chunk: int | None = None,
    seed: int | Tensor | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> LikelihoodEstimate:
    """log p(x) ≈ log 1/k Σ w, z ~ q(z|x), for each example; x is not corrupted.

    Every example is encoded once. Samples are drawn and judged `chunk` at a time and folded into
    a float64 state, so memory depends on batch_size · chunk and not on k or N. Any split gives
    the same numbers up to the rounding of the decoder's matrix products.

    Args:
        model: a `dvae_fast.models.LatentVariableModel`.
        x: (N, D), N >= 1, on any device; batches move to the model's device and dtype.
        k: importance samples an example, >= 1; need not be a multiple of `chunk`.
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
    functional._check_float("x", x)
    if x.dim() != 2 or x.shape[1] != model.data_size or x.shape[0] < 1:
        raise ValueError(
            f"x must have shape (N, D) with N >= 1 and D = {model.data_size}, got {tuple(x.shape)}"
        )
    check_size("k", k)
    for name, value in (("batch_size", batch_size), ("chunk", chunk)):
        if value is not None:
            check_size(name, value)
    like = next(model.parameters(), x)
    key = functional._seed_tensor(seed, like.device)
    rows = _ROWS_CPU if like.device.type == "cpu" else _ROWS_GPU
    batch_size, chunk = _split(k, batch_size, chunk, rows)

    examples = x.shape[0]
    states = []
    with evaluating(model):
        for first in range(0, examples, batch_size):
            batch = x[first : first + batch_size].to(like.device, like.dtype)
            mean, log_var = model.encode(batch)
            state = reference.lse_init(batch.shape[0], like.device)
            for sample in range(0, k, chunk):
                log_w = model.log_weights(
                    batch,
                    mean,
                    log_var,
                    min(chunk, k - sample),
                    key,
                    first_example=first,
                    first_sample=sample,
                )
                state = _op.lse_update(state, log_w)
            states.append(state)
            if progress is not None:
                progress(first + batch.shape[0], examples)
    return _estimate(torch.cat(states).cpu(), k, int(key))


def _estimate(state: Tensor, k: int, seed: int) -> LikelihoodEstimate:
    """From max m, Σ e^(w−m), Σ e^2(w−m), Σ w and count, each example's."""
    m, s1, s2, total, count = state.unbind(1)
    variance = (s2 / s1.square() - 1 / count).clamp(min=0)  # rounding may leave −1e-16
    if k == 1:
        variance = torch.full_like(variance, math.nan)
    return LikelihoodEstimate(
        log_likelihood=m + s1.log() - count.log(),
        standard_error=variance.sqrt(),
        ess=s1.square() / s2,
        elbo=total / count,
        k=k,
        seed=seed,
    )
