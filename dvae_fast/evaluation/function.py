"""log p(x) from any function that gives importance weights."""

from __future__ import annotations

import copy
import inspect
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from dvae_fast._checks import check_dense, check_size
from dvae_fast.data.given import Given, as_tensor, given_from
from dvae_fast.evaluation.engine import CURVE, Request, Sizes, run
from dvae_fast.evaluation.modules import (
    always_training,
    evaluating_all,
    modules_behind,
    place_of,
)
from dvae_fast.evaluation.partial import fingerprint
from dvae_fast.evaluation.target import rows_at_once
from dvae_fast.models.distributions import torch_seed

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Sequence
    from contextlib import AbstractContextManager

    import numpy as np

    from dvae_fast.data.given import Data
    from dvae_fast.distributed import World
    from dvae_fast.evaluation.batching import Limits
    from dvae_fast.evaluation.engine import Asked
    from dvae_fast.evaluation.progress import EvaluationProgress
    from dvae_fast.evaluation.results import LikelihoodEstimate

__all__ = ["FunctionSource", "estimate_from_log_weights"]


class _Call:
    """What a function is called with, of some examples; it keeps no latents."""

    def __init__(self, batch: Given, key: Tensor, first_example: int) -> None:
        self.batch, self.key, self.first_example = batch, key, first_example

    def row(self, i: int) -> _Call:
        return _Call(self.batch[i : i + 1], self.key, self.first_example + i)

    def with_key(self, key: Tensor) -> _Call:
        other = copy.copy(self)
        other.key = key
        return other


class FunctionSource:
    """The log-weights that a function gives.

    Args:
        log_weights: (x, k, seed) → (B, k), with a context (x, k, seed, context).
        data: of which shapes and device are looked at.
    """

    fixed = True
    #: not one of `PROPOSALS`: the function's own
    proposal = "function"

    def __init__(self, log_weights: Callable[..., Any], data: Given) -> None:
        self.call = log_weights
        self.modules = modules_behind((log_weights,))
        self.data_size: float = data.x[0].numel()
        self.device = place_of(self.modules) or data.x.device
        self._before: Tensor | None = None
        self._repeats = self._varies = False

    def encode(self, batch: Given, key: Tensor, first_example: int) -> _Call:
        return _Call(batch, key, first_example)

    def log_weights(
        self, drawers: Sequence[_Call], batch: Given, k: int, first_sample: int
    ) -> Tensor:
        parts = [self._of(drawer, k, first_sample) for drawer in drawers]
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def _of(self, drawer: _Call, k: int, first_sample: int) -> Tensor:
        x, context = drawer.batch.x, drawer.batch.context
        more = () if context is None else (context,)
        with torch_seed(drawer.key, drawer.first_example, first_sample) as seed:
            log_w = _checked(self.call(x, k, seed, *more), (len(x), k))
        log_w = log_w.to(x.device)
        self._compare(log_w, drawer.first_example, first_sample)
        return log_w

    def _compare(self, log_w: Tensor, first_example: int, first_sample: int) -> None:
        """Note whether other samples of an example are those of before again."""
        if first_sample == 0:
            self._before = log_w[0]
        elif self._before is not None and not self._varies:
            n = min(len(self._before), log_w.shape[1])
            before, now = self._before[:n], log_w[0, :n]
            if n > 1 and bool((before != before[0]).any()):
                self._repeats = torch.equal(before, now)
                self._varies = not self._repeats

    def sizes(
        self, data: Given, key: Tensor, k: int, left: int, limits: Limits, asked: Asked
    ) -> Sizes:
        """One example at a time: a function's noise depends on what it is given together."""
        batch_size, chunk = asked
        if chunk is None:
            parts = -(-k * (batch_size or 1) // rows_at_once(self.device))
            chunk = -(-k // min(parts, k))
        return Sizes(batch_size or 1, min(chunk, k), min(chunk, k))

    def evaluating(self) -> AbstractContextManager[object]:
        return evaluating_all(self.modules)

    def identity(self, data: Given) -> dict[str, Any]:
        states = [(m, name, t) for m in self.modules for name, t in m.state_dict().items()]
        return {
            "parameters": fingerprint(
                part for m, name, t in states for part in (type(m).__name__, name, t)
            )
        }

    def remarks(self, data: Given) -> tuple[str, ...]:
        said = []
        if self._repeats and not self._varies:
            said.append(
                "log_weights gives the same samples whatever the seed: those of one call count "
                "several times, and the standard error is too small. Draw from the seed, or from "
                "torch's generators, which start at it."
            )
        if names := always_training(self.modules):
            said.append(
                f"{names[0]} was exported in training mode, which no evaluation mode changes: "
                "export it after eval()."
            )
        return tuple(said)


def _checked(log_w: Any, shape: tuple[int, int]) -> Tensor:
    """What a function returned, if that are B rows of k log-weights; float32 at least."""
    log_w = as_tensor("what log_weights returns", log_w)
    if not isinstance(log_w, Tensor):
        raise TypeError(f"log_weights must return a tensor, got {type(log_w).__name__}")
    check_dense("what log_weights returns", log_w)
    if log_w.is_meta:
        raise ValueError("log_weights must return values, got a tensor on meta")
    if log_w.shape != shape:
        raise ValueError(
            f"log_weights must return shape (B, k) = {shape}, one log-weight of each sample of "
            f"each example, got {tuple(log_w.shape)}"
        )
    if not log_w.is_floating_point():
        raise TypeError(f"log_weights must return floating-point numbers, got {log_w.dtype}")
    wide = log_w.dtype in (torch.float32, torch.float64)
    return log_w.detach() if wide else log_w.detach().float()


def _check_takes(log_weights: Any, context: Any) -> None:
    names = ["x", "k", "seed", *["context"] * (context is not None)]
    if not callable(log_weights):
        raise TypeError(
            f"log_weights must be a function of ({', '.join(names)}), "
            f"got {type(log_weights).__name__}"
        )
    try:
        signature = inspect.signature(log_weights)
    except (TypeError, ValueError):  # not every callable tells
        return
    try:
        signature.bind(*names)
    except TypeError as error:
        raise TypeError(
            f"log_weights must take ({', '.join(names)}), got {signature}: {error}"
        ) from None


@torch.no_grad()
def estimate_from_log_weights(
    log_weights: Callable[..., Tensor],
    x: Data,
    k: int = 5000,
    *,
    context: Tensor | np.ndarray[Any, Any] | None = None,
    tolerance: float | None = None,
    max_k: int | None = None,
    curve: Sequence[int] = CURVE,
    batch_size: int | None = None,
    chunk: int | None = None,
    seed: int | Tensor | None = None,
    first_example: int = 0,
    progress: bool | Callable[[EvaluationProgress], None] | None = None,
    partial: str | os.PathLike[str] | None = None,
    world: World | None = None,
) -> LikelihoodEstimate:
    """log p(x) ≈ log 1/k Σ w for each example, of any model whose importance weights one can have.

    Pareto k̂, the curve of bounds, stopping by tolerance, partial results and several processes are
    those of `estimate_log_likelihood`; only the log-weights are the caller's::

        def log_weights(x, k, seed):
            q = guide(x)
            z = q.rsample((k,))  # (k, B, Z)
            return (log_joint(x, z) - q.log_prob(z)).T

        estimate = dvae_fast.estimate_from_log_weights(log_weights, x, k=5000, seed=0)

    Args:
        log_weights: (x, k, seed) → (B, k): log p(x, z) − log q(z|x) in nats for k samples z ~
            q(z|x) of each of the B examples in x, float32 or float64. `seed` is an int from 0 to
            2**32 − 1, another for every call; torch's own generators start at it too, so that a
            function that draws from those need not look at it. With a `context` it is called as
            (x, k, seed, context). Modules that it refers to are found and are in evaluation mode;
            those hidden deeper must be.
        x: (N, *shape), N >= 1, of any dtype: a tensor, a NumPy array, or a Dataset or DataLoader of
            such examples, or of tuples (x, y, …), which is read into memory in its order. Batches
            move to the device of the modules; nothing else is changed.
        k: importance samples an example, >= 1; need not be a multiple of `chunk`.
        context: (N, *shape), sliced with its examples.
        tolerance, max_k, curve: as for `estimate_log_likelihood`.
        batch_size: examples in a call, 1 by default: what a function draws for an example may
            depend on what it is given with it, and one at a time the numbers are the same in any
            parts and processes, with the same `chunk`. With more, batches begin at multiples of it,
            counted from example 0 of the noise; parts that begin there have the same numbers.
        chunk: samples in a call. Default: k in equal parts of at most 2,500 rows (examples by
            samples) on a CPU, and 65,536 on a GPU. Where that does not fit in memory, smaller ones:
            other draws, as good. Other chunks draw other samples.
        seed: int, int64 tensor of one element, or None to draw one from torch's generator; the
            result tells which.
        first_example: index of x's first example in the noise, as for `estimate_log_likelihood`;
            `LikelihoodEstimate.concat` puts estimates of parts together.
        progress, partial, world: as for `estimate_log_likelihood`.

    Returns:
        A `LikelihoodEstimate`. A NaN among an example's log-weights makes it NaN, which its
        `warnings` say; it is that example's alone.

    Raises:
        TypeError, ValueError: naming the argument, the rule and the value, before any work; what
            `log_weights` returns is looked at at every call.
    """
    check_size("k", k)
    _check_takes(log_weights, context)
    values, told = given_from(x, context)
    check_dense("x", values)
    if values.is_meta:
        raise ValueError("x must hold values to be evaluated, got a tensor on meta")
    if values.dim() < 1 or len(values) < 1:
        raise ValueError(f"x must have shape (N, *shape) with N >= 1, got {tuple(values.shape)}")
    data = Given(values, told).checked()
    request = Request(
        k, tolerance, max_k, curve, batch_size, chunk, seed, first_example, progress, partial, world
    ).checked(len(data))
    return run(FunctionSource(log_weights, data), data, request)
