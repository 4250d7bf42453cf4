"""Expectations under a model's posterior p(z|x), by importance sampling; missing values too."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, TypedDict, cast

import torch
from torch import Tensor

from dvae_fast._checks import check_index, check_size
from dvae_fast._seeds import seed_tensor
from dvae_fast._text import some_have
from dvae_fast.evaluation.importance import ModelSource, split
from dvae_fast.evaluation.proposals import Proposal
from dvae_fast.evaluation.smoothing import pareto_smoothed
from dvae_fast.evaluation.statistics import ALIKE, MAX_PARETO_K
from dvae_fast.evaluation.target import Evaluated, rows_at_once

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Unpack

    import numpy as np

    from dvae_fast.corruptions import Corruption
    from dvae_fast.data.given import Data, Given
    from dvae_fast.evaluation.proposals import ModelDrawer
    from dvae_fast.evaluation.target import Model
    from dvae_fast.functional.linear import Scale
    from dvae_fast.likelihoods import Likelihood

    # Of latents (B, n, Z) of a batch: (B, n, *shape).
    _Function = Callable[[Tensor, Given, Evaluated], Tensor]

__all__ = ["Expectation", "ExpectationOptions", "importance_expectation", "impute"]


class ExpectationOptions(TypedDict, total=False):
    """How `importance_expectation` and `impute` draw and weigh.

    Attributes:
        context, likelihood, scale, proposal, corruption, copies: as for `estimate_log_likelihood`,
            with its defaults.
        smooth: False, the plain weights w / Σ w; by default their tail is Pareto-smoothed.
        batch_size, chunk: examples, and samples of each, at once. The log-weights of a batch are
            held, (batch_size, k).
        seed, first_example: as for `estimate_log_likelihood`: the samples are the same ones.
    """

    context: Tensor | np.ndarray[Any, Any] | None
    likelihood: str | Likelihood | None
    scale: Scale | None
    proposal: str
    corruption: Corruption | None
    copies: int
    smooth: bool
    batch_size: int | None
    chunk: int | None
    seed: int | Tensor | None
    first_example: int


@dataclass(frozen=True, eq=False)
class Expectation:
    """E_{p(z|x)} f(z) of N examples.

    Attributes:
        value: (N, *shape) of f's results, float64.
        standard_error: of value, the same shape: of the samples drawn, not of the model.
        pareto_k: (N,) k̂ of the importance weights; above 0.7 neither value nor error should be
            trusted.
        ess: (N,) effective sample size, 1/Σ w̃², of the weights used.
        k: samples of each example.
        seed: of the noise.
    """

    value: Tensor
    standard_error: Tensor
    pareto_k: Tensor
    ess: Tensor
    k: int
    seed: int

    def __repr__(self) -> str:
        return (
            f"Expectation({len(self.value)} of shape {tuple(self.value.shape[1:])}, k={self.k}, "
            f"mean ess {float(self.ess.mean()):.1f})"
        )

    def warnings(self) -> list[str]:
        """In plain words, why not to trust the values; empty if there is no reason."""
        n, out = len(self.value), []
        lost = ~self.value.isfinite().flatten(1).all(1)
        if int(lost.sum()):
            out.append(f"{some_have(int(lost.sum()), n)} values that are not finite.")
        unlike = (self.k / self.ess - 1).clamp(min=0).sqrt() > ALIKE
        heavy = int((~lost & unlike & (self.pareto_k > MAX_PARETO_K)).sum())
        if heavy:
            out.append(
                f"{some_have(heavy, n)} weights with too heavy a tail (Pareto k̂ > "
                f"{MAX_PARETO_K}): their values hang on few samples, their errors are too small."
            )
        return out


class _Moments:
    """Σ w̃ f, Σ w̃² f and Σ w̃² f², of f less a constant near its mean, so that nothing cancels."""

    def __init__(self) -> None:
        self.sums: tuple[Tensor, ...] = ()
        self.shift: Any = None

    def add(self, weights: Tensor, values: Tensor) -> None:
        """Take in weights (B, c) and f's values (B, c, *shape)."""
        if not self.sums:
            first = values[:, :1]
            self.shift = torch.where(first.isfinite(), first, 0)
            self.sums = (torch.zeros_like(values[:, 0]),) * 3
        weights = weights.view(*weights.shape, *(1,) * (values.dim() - 2))
        # A weight of 0 is a sample that is none, whatever f makes of it.
        values = torch.where(weights == 0, 0, values - self.shift)
        new = (weights * values, weights**2 * values, weights**2 * values**2)
        self.sums = tuple(s + t.sum(1) for s, t in zip(self.sums, new, strict=True))

    def results(self, squares: Tensor) -> tuple[Tensor, Tensor]:
        """E f and its standard error, sqrt(Σ w̃² (f − E f)²), with squares = Σ w̃² (B,)."""
        mean, first, second = self.sums
        squares = squares.view(-1, *(1,) * (mean.dim() - 1))
        variance = second - 2 * mean * first + mean**2 * squares
        return mean + self.shift[:, 0], variance.clamp(min=0).sqrt()


@torch.no_grad()
def importance_expectation(
    model: Model,
    x: Data,
    f: Callable[[Tensor], Tensor],
    k: int = 5000,
    *,
    mask: Tensor | np.ndarray[Any, Any] | None = None,
    **options: Unpack[ExpectationOptions],
) -> Expectation:
    """E_{p(z|x)} f(z), by self-normalised and Pareto-smoothed importance weights.

    Args:
        model, x, k, mask: as for `estimate_log_likelihood`.
        f: of rows of latents, (n, Z) → (n, *shape), a floating-point tensor. No latent is held:
            they are drawn once for the weights, and again for f from the same counters.
        options: the fields of `ExpectationOptions`.

    Returns:
        An `Expectation`; what its `warnings()` say is worth reading.

    Raises:
        TypeError, ValueError: naming the argument, the rule and the value.

    Source: Vehtari et al. (arXiv 1507.02646) for the weights; of the error, Owen, Monte Carlo
    theory, methods and examples (2013), equation 9.8.
    """
    if not callable(f):
        raise TypeError(f"f must be a function of z, got {type(f).__name__}")

    def of_batch(z: Tensor, batch: Given, evaluated: Evaluated) -> Tensor:
        n = z.shape[0] * z.shape[1]
        values = f(z.flatten(0, 1))
        if not isinstance(values, Tensor) or not values.is_floating_point():
            got = values.dtype if isinstance(values, Tensor) else type(values).__name__
            raise TypeError(f"f must return a floating-point tensor, got {got}")
        if values.dim() < 1 or len(values) != n:
            raise ValueError(
                f"f must return one row for each of the {n} of z, got shape {tuple(values.shape)}"
            )
        rows: Tensor = values.unflatten(0, z.shape[:2])
        return rows

    return _expectation("importance_expectation", of_batch, model, x, mask, k, options)[0]


@torch.no_grad()
def impute(
    model: Model,
    x: Data,
    mask: Tensor | np.ndarray[Any, Any],
    k: int = 5000,
    **options: Unpack[ExpectationOptions],
) -> Expectation:
    """The means of what was not observed given what was, E[x_missing | x_observed].

    That is E_{p(z|x_observed)} E[x|z], by `importance_expectation`.

    Args:
        mask: bool in x's shape, True where x was observed; the others are imputed, whatever x has
            there (Mattei and Frellsen, arXiv 1812.02633, section 3.3).
        model, x, k: as for `importance_expectation`.
        options: the fields of `ExpectationOptions`.

    Returns:
        An `Expectation` in x's shape: what was observed as it is, with an error of 0. The error of
        the others is that of their mean, not how far x may lie from it.

    Raises:
        TypeError, ValueError: naming the argument, the rule and the value.
    """
    if mask is None:
        raise TypeError("mask must be a bool tensor in x's shape, got None")

    def of_batch(z: Tensor, batch: Given, evaluated: Evaluated) -> Tensor:
        size = batch.x[0].numel()
        params = evaluated.params(z, size, batch.context)
        return evaluated.likelihood.mean(params).expand(*z.shape[:2], size)

    found, data = _expectation("impute", of_batch, model, x, mask, k, options)
    given, seen = data.x.double().cpu(), cast("Tensor", data.mask).cpu()
    value, error = (t.reshape(given.shape) for t in (found.value, found.standard_error))
    return replace(
        found, value=torch.where(seen, given, value), standard_error=error.masked_fill(seen, 0)
    )


def _expectation(
    name: str,
    f: _Function,
    model: Model,
    x: Data,
    mask: Any,
    k: int,
    options: ExpectationOptions,
) -> tuple[Expectation, Given]:
    """E f, and the examples as they are evaluated, for the function called `name`."""
    if unknown := sorted(options.keys() - ExpectationOptions.__annotations__.keys()):
        raise TypeError(f"{name}() got an unexpected keyword argument {unknown[0]!r}")
    evaluated = Evaluated(model, options.get("likelihood"), options.get("scale"))
    data = evaluated.examples(x, options.get("context"), mask)
    how = Proposal.of(
        evaluated, options.get("proposal", "posterior"), options.get("corruption"),
        options.get("copies", 10),
    )  # fmt: skip
    k = check_size("k", k)
    batch_size, chunk = (
        size if size is None else check_size(of, size)
        for of, size in (("batch_size", options.get("batch_size")), ("chunk", options.get("chunk")))
    )
    start, smooth = options.get("first_example", 0), options.get("smooth", True)
    check_index("first_example", start, len(data))
    like = evaluated.like(data.x)
    source = ModelSource(evaluated, how, like, data.size)
    key = seed_tensor(options.get("seed"), like.device)
    batch_size, chunk = split(k, batch_size, chunk, rows_at_once(like.device))
    parts = []
    with evaluated.evaluating():
        for first in range(0, len(data), batch_size):
            batch = data[first : first + batch_size].to(like.device)
            drawer = source.encode(batch, key, int(start) + first)
            parts.append(_of_batch(source, drawer, batch, f, k, chunk, smooth))
    value, error, pareto_k, ess = (torch.cat(each).cpu() for each in zip(*parts, strict=True))
    return Expectation(value, error, pareto_k, ess, k, int(key)), data


def _of_batch(
    source: ModelSource,
    drawer: ModelDrawer,
    batch: Given,
    f: _Function,
    k: int,
    chunk: int,
    smooth: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Value, error, k̂ and ess of a batch; its samples are drawn once for weights and once for f."""
    ranges = [(first, min(chunk, k - first)) for first in range(0, k, chunk)]
    log_w = torch.cat([source.log_weights([drawer], batch, n, first) for first, n in ranges], 1)
    smoothed, pareto_k = pareto_smoothed(log_w)
    if not smooth:
        smoothed = log_w.double()
        smoothed = smoothed - smoothed.logsumexp(1, keepdim=True)
    weights = smoothed.exp()
    moments = _Moments()
    for first, n in ranges:
        z, _ = drawer.draw(n, first)
        moments.add(weights[:, first : first + n], f(z, batch, source.evaluated).double())
    squares = weights.square().sum(1)
    value, error = moments.results(squares)
    return value, error, pareto_k, 1 / squares


# So that torch.load reads it back as it reads tensors.
torch.serialization.add_safe_globals([Expectation])
