"""log p(x) of a model by importance sampling, streamed over as many samples as wanted."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor

from dvae_fast._checks import check_size
from dvae_fast.evaluation import batching
from dvae_fast.evaluation.engine import CURVE, Request, Sizes, run
from dvae_fast.evaluation.partial import fingerprint
from dvae_fast.evaluation.precision import has_bfloat16, precision
from dvae_fast.evaluation.proposals import Proposal
from dvae_fast.evaluation.target import Evaluated
from dvae_fast.ops import library_loaded

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Sequence
    from contextlib import AbstractContextManager

    import numpy as np

    from dvae_fast.corruptions import Corruption
    from dvae_fast.data.given import Data, Given
    from dvae_fast.distributed import World
    from dvae_fast.evaluation.batching import Limits
    from dvae_fast.evaluation.engine import Asked
    from dvae_fast.evaluation.progress import EvaluationProgress
    from dvae_fast.evaluation.proposals import ModelDrawer
    from dvae_fast.evaluation.results import LikelihoodEstimate
    from dvae_fast.evaluation.target import Model
    from dvae_fast.functional.linear import Scale
    from dvae_fast.likelihoods import Likelihood

__all__ = ["DTYPES", "ModelSource", "estimate_log_likelihood"]

#: of the decoder's matrix products, by name
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


class ModelSource:
    """The log-weights of a model, its latents drawn from a proposal.

    Args:
        evaluated: the model.
        how: what z is drawn from.
        like: an empty tensor on the model's device, of the dtype that its encoder is given.
        data_size: D, or the mean number of those that are observed.
        dtype: of the decoder's matrix products; None for the model's.
        compiled: whether its decoder is to be run through ``torch.compile``.
    """

    fixed = False

    def __init__(
        self,
        evaluated: Evaluated,
        how: Proposal,
        like: Tensor,
        data_size: float,
        dtype: torch.dtype | None = None,
        compiled: bool = False,
    ) -> None:
        self.evaluated, self.how, self.like, self.data_size = evaluated, how, like, data_size
        self.dtype, self.compiled = dtype, compiled
        self.proposal, self.device = how.name, like.device

    def encode(self, batch: Given, key: Tensor, first_example: int) -> ModelDrawer:
        return self.how.encode(self.evaluated, batch, key, first_example)

    def log_weights(
        self, drawers: Sequence[ModelDrawer], batch: Given, k: int, first_sample: int
    ) -> Tensor:
        evaluated, context = self.evaluated, batch.context
        drawn = []
        for i, drawer in enumerate(drawers):
            z, log_ratio = drawer.draw(k, first_sample)
            if evaluated.log_ratio_above is not None:
                mine = context if context is None or len(drawers) == 1 else context[i : i + 1]
                log_ratio = log_ratio + evaluated.log_ratio_above(
                    z, drawer.key, first_example=drawer.first_example, first_sample=first_sample,
                    **({} if mine is None else {"context": mine}),
                )  # fmt: skip
            drawn.append((z, log_ratio))
        if len(drawn) == 1:
            ((z, log_ratio),) = drawn
        else:
            z, log_ratio = (torch.cat(parts) for parts in zip(*drawn, strict=True))
        with precision(self.device, self.dtype):
            return evaluated.log_weights(z, batch, log_ratio)

    def evaluating(self) -> AbstractContextManager[object]:
        return self.evaluated.evaluating()

    def identity(self, data: Given) -> dict[str, Any]:
        evaluated = self.evaluated
        return {
            **self.how.settings,
            "likelihood": evaluated.likelihood.kind,
            "scale": fingerprint(evaluated.scales),
            "dtype": str(self.dtype),
            **evaluated.identity(data),
        }

    def remarks(self, data: Given) -> tuple[str, ...]:
        return self.evaluated.remarks(data.x)

    # --- how much at once ---

    def sizes(
        self, data: Given, key: Tensor, k: int, left: int, limits: Limits, asked: Asked
    ) -> Sizes:
        batch_size, chunk = asked
        free = batching.free_memory(self.device) if left else None
        large = free is not None
        if free is None:
            dtype = self.dtype or self.like.dtype
            rows = self.evaluated.rows_at_once(self.device, dtype, held=self.compiled)
            batch_size, step = split(k, batch_size, chunk, rows)
        else:
            example, row = self.memory(data[:1].to(self.device), key, limits)
            batch_size, step, rows = batching.plan(
                left, k, row=row, example=example, free=free,
                several=batching.several(self.device), batch_size=batch_size, chunk=chunk,
            )  # fmt: skip
        if self.compiled:  # from now on: the trial was of its layers
            self.evaluated.compile()
        return Sizes(batch_size, step, chunk or rows, large)

    def memory(self, one: Given, key: Tensor, limits: Limits) -> tuple[int, int]:
        """Bytes that an example holds, and a sample of it, as one example tells."""

        def look() -> tuple[int, int]:
            drawers: list[ModelDrawer] = []
            example = batching.held(lambda: drawers.append(self.encode(one, key, 0))) + sum(
                t.numel() * t.element_size() for t in one.tensors
            )
            z, _ = drawers[0].draw(1, 0)
            row = batching.memory_of(
                lambda n: self.log_weights(drawers, one, n, 0), z.shape[-1], self.device, limits
            )
            return example, row

        with self.evaluating():
            found = limits.attempt(look)
        if found is None:
            limits.fewer_examples(1)
        return cast("tuple[int, int]", found)


def split(k: int, batch_size: int | None, chunk: int | None, rows: int) -> tuple[int, int]:
    """(batch_size, chunk) with about `rows` rows between them, all of one's own choice kept.

    Long chunks rather than large batches: consecutive rows share x.
    """
    if chunk is None:
        chunk = max(1, min(k, rows // (batch_size or 10)))
    chunk = min(chunk, k)
    return batch_size or max(1, rows // chunk), chunk


# --- the estimate ---------------------------------------------------------------------------------


@torch.no_grad()
def estimate_log_likelihood(
    model: Model,
    x: Data,
    k: int = 5000,
    *,
    context: Tensor | np.ndarray[Any, Any] | None = None,
    mask: Tensor | np.ndarray[Any, Any] | None = None,
    likelihood: str | Likelihood | None = None,
    scale: Scale | None = None,
    proposal: str = "posterior",
    corruption: Corruption | None = None,
    copies: int = 10,
    tolerance: float | None = None,
    max_k: int | None = None,
    curve: Sequence[int] = CURVE,
    batch_size: int | None = None,
    chunk: int | None = None,
    dtype: str | torch.dtype | None = None,
    compile: bool = False,
    seed: int | Tensor | None = None,
    first_example: int = 0,
    progress: bool | Callable[[EvaluationProgress], None] | None = None,
    partial: str | os.PathLike[str] | None = None,
    world: World | None = None,
) -> LikelihoodEstimate:
    """log p(x) ≈ log 1/k Σ w, z ~ q, for each example.

    Every example is encoded once. Samples are drawn and evaluated `chunk` at a time and folded into
    float64 statistics, so memory depends on batch_size · chunk and not on k or N. Any split gives
    the same numbers up to the rounding of the decoder's matrix products.

    Args:
        model: a `dvae_fast.models.LatentVariableModel`; or anything with methods ``encode(x)`` →
            (mean, log_var), (B, Z) each, or one distribution with ``rsample`` and ``log_prob``,
            such as a flow; and ``decode(z)`` → params (R, D) or (R, *shape), for rows z (R, Z),
            R = B·K; or a pair of such callables; or a wrapper that has one of these
            as ``module``. With an attribute ``takes_samples = True``, the model's or the second
            callable's, ``decode`` gets z as (B, K, Z). Modules are evaluated in evaluation mode
            and get their own back. Where `decode` is an ``nn.Sequential`` that ends in an
            ``nn.Linear`` without hooks, the logits of a Bernoulli, or a Gaussian's mean with
            `scale`, are never held: see `linear_log_weights`. Modules that callables refer to are
            found and evaluated likewise; those hidden deeper must be in evaluation mode.
        x: (N, D), or (N, *shape) of D elements each as `encode` takes it, N >= 1: a tensor on any
            device, a NumPy array, or a Dataset or DataLoader of such examples, or of tuples (x, y,
            …), which is read into memory in its order. Batches move to the model's device;
            `encode` sees them in the model's dtype, that of most of its numbers, and the likelihood
            as they are.
        k: importance samples an example, >= 1, 5000 by default; need not be a multiple of `chunk`.
        context: what the model is told besides x, (N, C) or, of one of N labels, (N,): sliced with
            its examples and repeated with their samples. A model of this package has a
            ``context_size``, and takes the y of pairs (x, y) for it; any other is called as
            ``encode(x, context)`` and ``decode(z, context)``, with one row of it for each of z
            (given samples (B, K, Z): (B, 1, C) or (B, 1)).
        mask: bool in x's shape, True where x was observed: log p of that alone (Mattei and
            Frellsen, arXiv 1812.02633). The encoder sees zeros elsewhere, whatever x has there, and
            bits per dimension are of the observed ones.
        likelihood: as for `dvae_fast.log_weights`. Default: the model's ``likelihood``
            if it has one, else "bernoulli".
        scale: a Gaussian's, where `decode` returns the mean alone: a number, or a tensor of 1 or D
            elements; of a likelihood of more than two parameters, a tuple of all but the first.
        proposal: what z is drawn from: "posterior", q(z|x) on the clean input; "corrupted",
            q(z|x̃) with a fresh x̃ for each sample, encoded as often; or "mixture",
            1/M Σ_m q(z|x̃_m) with that whole density in the weights.
        corruption: p(x̃|x) of the latter two. Default: the model's.
        copies: M of "mixture".
        tolerance: in nats. Given, examples get k samples, 2 k, 4 k, … up to `max_k`, as many as
            bring the standard error below it and the effective sample size to 10. A pilot of k
            other samples (21 at least) tells how many, for an estimate that stops on its own
            samples is too large. It may see too little of a heavy tail: see `standard_error` and
            `pareto_k` for what came of it. The `mean_standard_error` then counts the bias of the
            logarithm too.
        max_k: >= k. Default with a tolerance: 20 k.
        curve: the k at which to report the bound too, each >= 1; `k` is always among them. ()
            for none.
        batch_size, chunk: examples and samples at once. Default on a CPU: about 2,500 rows
            together (10 examples by 250 samples at k = 5,000), so that the decoder's activations
            stay in cache; 8,000 where those are not held. On a CUDA GPU: about a million rows (500
            examples by 1,667 samples), or as many as half of the free memory takes, told from what
            a trial of the model holds. Where memory runs out all the same, half of that, and half
            again, for the rest of the evaluation: the results do not change. Sizes that are given
            are kept as long as they fit; it warns where they do not.
        dtype: of the decoder's matrix products, "bfloat16" or "float16" by autocast; sums stay in
            float32. Pays on GPUs and on CPUs with instructions for it. Default: the model's.
        compile: run the decoder through ``torch.compile``, which takes up to a minute at first and
            pays for a decoder of many small operations.
        seed: int, int64 tensor of one element, or None to draw one from torch's generator; the
            result tells which.
        first_example: index of x's first example in the noise. Data evaluated batch by batch with
            one seed needs it: two batches that both start at 0 share their noise, so that the
            error of their mean is larger than it seems. With it the numbers are those of all the
            data at once; `LikelihoodEstimate.concat` puts them together.
        progress: True for a line that says how far it is; or a function, called with an
            `EvaluationProgress` after each batch; on a GPU, when the next one is under way.
        partial: a file to keep finished examples in, written every 10 seconds and when
            interrupted. Found there, they are not evaluated again.
        world: the processes that share the work, of `dvae_fast.distributed.join`. Each calls this
            with the same arguments (and a seed) and gets the whole result.

    Returns:
        A `LikelihoodEstimate`. NaN in an example is that example's alone;
        none is left out.

    Raises:
        TypeError, ValueError: naming the argument, the rule and the value.
        CheckpointError: if `partial` cannot be read or written.
        OutOfMemoryError: torch's, if not one sample of one example fits.

    Source: Burda, Grosse, Salakhutdinov (arXiv 1509.00519), section 5; Rezende, Mohamed, Wierstra
    (arXiv 1401.4082), appendix E; for the mixture, Im et al. (arXiv 1511.06406), section 3.
    """
    check_size("k", k)
    evaluated = Evaluated(model, likelihood, scale)
    data = evaluated.examples(x, context, mask)
    request = Request(
        k, tolerance, max_k, curve, batch_size, chunk, seed, first_example, progress, partial, world
    ).checked(len(data))
    how = Proposal.of(evaluated, proposal, corruption, copies)
    like = evaluated.like(data.x)
    matrices = _matrix_dtype(dtype, like)
    _warn_of_slow(evaluated, like.device, matrices, compile)
    source = ModelSource(evaluated, how, like, data.size, matrices, compile)
    return run(source, data, request)


def _matrix_dtype(dtype: str | torch.dtype | None, like: Tensor) -> torch.dtype | None:
    """The dtype of matrix products if it is not that of the model."""
    wanted = DTYPES.get(dtype, dtype) if isinstance(dtype, str) else dtype
    if wanted is None or wanted == like.dtype:
        return None
    if wanted not in (torch.bfloat16, torch.float16):
        raise ValueError(
            f"dtype must be bfloat16, float16 or the model's, {like.dtype}; got {dtype!r}"
        )
    if like.dtype != torch.float32:
        raise ValueError(f"dtype must be the model's, {like.dtype}, or the model float32")
    return wanted


def _warn_of_slow(
    evaluated: Evaluated, device: torch.device, dtype: torch.dtype | None, compiled: bool
) -> None:
    """Where bfloat16 has no instructions; a decoder that is taken whole runs in float32 there."""
    whole = evaluated.takes_layers_whole(device, torch.bfloat16) and library_loaded()
    if dtype == torch.bfloat16 and not has_bfloat16(device) and (compiled or not whole):
        warnings.warn(
            "dtype bfloat16 is far slower than float32 on this CPU, which has no instructions for "
            "it",
            RuntimeWarning,
            stacklevel=4,
        )
