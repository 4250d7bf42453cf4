"""log p(x) of a model by importance sampling, streamed over as many samples as wanted."""

from __future__ import annotations

import math
import warnings
from collections import deque
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, distributed

from dvae_fast import reference
from dvae_fast._checks import check_index, check_size, check_sizes, is_number
from dvae_fast._seeds import derived_key, seed_tensor
from dvae_fast.corruptions import describe_corruption
from dvae_fast.evaluation import batching
from dvae_fast.evaluation.batching import Launched, Limits, fitting, moved
from dvae_fast.evaluation.partial import PartialResults, fingerprint, read_settings
from dvae_fast.evaluation.proposals import Proposal
from dvae_fast.evaluation.results import LikelihoodEstimate, Meter
from dvae_fast.evaluation.sharing import Share, divide, exchange, gather_all, smallest
from dvae_fast.evaluation.statistics import (
    MIN_TAIL,
    PENDING,
    PENDING_CHUNKS,
    Statistics,
    samples_wanted,
    shapes_of,
)
from dvae_fast.evaluation.target import Evaluated, has_bfloat16, precision

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Iterator, Sequence

    from dvae_fast.corruptions import Corruption
    from dvae_fast.distributed import World
    from dvae_fast.evaluation.proposals import Drawer
    from dvae_fast.evaluation.results import EvaluationProgress
    from dvae_fast.evaluation.target import Model
    from dvae_fast.functional.linear import Scale
    from dvae_fast.likelihoods import Likelihood

__all__ = ["CURVE", "DTYPES", "estimate_log_likelihood"]

_op: Any = torch.ops.dvae_fast

# The key of a pilot's draws, among those of a seed.
_PILOT_KEY = 1 << 20

#: of the decoder's matrix products, by name
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
#: k of the curve of bounds, where nothing else is asked for; those above k are left out
CURVE = (1, 5, 50, 500, 5000)


def _at(rows: list[int], device: torch.device) -> slice | Tensor:
    """An index of those rows."""
    return slice(rows[0], rows[0] + 1) if len(rows) == 1 else torch.tensor(rows, device=device)


# --- drawing --------------------------------------------------------------------------------------


def _log_weights(
    evaluated: Evaluated,
    drawers: Sequence[Drawer],
    x: Tensor,
    k: int,
    first_sample: int,
    dtype: torch.dtype | None,
) -> Tensor:
    """(B, k) of the samples first_sample, first_sample + 1, … of what each of `drawers` draws."""
    drawn = []
    for drawer in drawers:
        z, log_ratio = drawer.draw(k, first_sample)
        if evaluated.log_ratio_above is not None:
            log_ratio = log_ratio + evaluated.log_ratio_above(
                z, drawer.key, first_example=drawer.first_example, first_sample=first_sample
            )
        drawn.append((z, log_ratio))
    if len(drawn) == 1:
        ((z, log_ratio),) = drawn
    else:
        z, log_ratio = (torch.cat(parts) for parts in zip(*drawn, strict=True))
    with precision(x.device, dtype):
        return evaluated.log_weights(z, x, log_ratio)


@dataclass(frozen=True)
class _Evaluation:
    """One evaluation's settings, and how it evaluates a batch."""

    evaluated: Evaluated
    proposal: Proposal
    key: Tensor
    k: int
    max_k: int
    tolerance: float | None
    ks: tuple[int, ...]
    chunk: int  # samples at once of a whole batch
    alone: int  # samples at once of an example that is unsure
    dtype: torch.dtype | None
    share: Share
    limits: Limits
    large: bool  # as a GPU wants it: what is launched pays, not what it holds

    def batch(self, x: Tensor, first_example: int) -> Launched:
        """x, (B, *shape), evaluated; without a tolerance nothing is waited for."""
        drawer = self.proposal.encode(self.evaluated, x, self.key, first_example)
        wanted = [self.k] * len(x) if self.tolerance is None else self._wanted(drawer, x)
        pending = max(PENDING, PENDING_CHUNKS * self.chunk) if self.large else PENDING
        statistics = Statistics(len(x), self.max_k, self.ks, x.device, pending)
        for log_w in self._draw([drawer], x, self.chunk, 0, self.k):
            statistics.add(log_w)
        rows = list(range(len(x)))
        more = [i for i in rows if wanted[i] > self.k]
        if not more:
            return Launched([(statistics, rows)])
        done = sorted({*rows} - {*more})
        parts = [(statistics.take(_at(done, x.device)), done)] if done else []
        at = _at(more, x.device)
        drawers = [drawer.row(i) for i in more]
        parts += self._go_on(statistics.take(at), drawers, x[at], more, wanted)
        return Launched(parts)

    def _wanted(self, drawer: Drawer, x: Tensor) -> list[int]:
        """How many samples each example is to have. Draws of their own tell, not those of the
        estimate: stopping where a sum looks good would make it too large."""
        if self.k == self.max_k:
            return [self.k] * len(x)
        pilot = drawer.with_key(derived_key(self.key, _PILOT_KEY))
        state = reference.lse_init(len(x), x.device)
        for log_w in self._draw([pilot], x, self.chunk, 0, min(max(self.k, MIN_TAIL), self.max_k)):
            state = _op.lse_update(state, log_w)
        return samples_wanted(state, cast("float", self.tolerance), self.k, self.max_k)

    def _go_on(
        self,
        statistics: Statistics,
        drawers: list[Drawer],
        x: Tensor,
        rows: list[int],
        wanted: list[int],
    ) -> Iterator[tuple[Statistics, list[int]]]:
        """As many samples again, and again, of those of `rows` that want more."""
        while rows:
            most = max(1, self.alone // len(rows))
            stop = min(2 * statistics.count, self.max_k)
            for log_w in self._draw(drawers, x, most, statistics.count, stop):
                statistics.add(log_w)
            left = [i for i, row in enumerate(rows) if wanted[row] > stop]
            if len(left) == len(rows):
                continue
            done = [i for i in range(len(rows)) if i not in {*left}]
            yield statistics.take(_at(done, x.device)), [rows[i] for i in done]
            if left:
                at = _at(left, x.device)
                statistics, x = statistics.take(at), x[at]
            rows, drawers = [rows[i] for i in left], [drawers[i] for i in left]

    def _draw(
        self, drawers: list[Drawer], x: Tensor, most: int, start: int, stop: int
    ) -> Iterator[Tensor]:
        """Log-weights of samples [start, stop), at most `most` at once in a process."""

        def mine(k: int, first_sample: int) -> Tensor:
            return self.limits.in_parts(
                lambda n, first: _log_weights(
                    self.evaluated, drawers, x, n, first_sample + first, self.dtype
                ),
                len(x),
                k,
            )

        for sample in range(start, stop, most * self.share.size):
            n = min(most * self.share.size, stop - sample)
            yield self.share.log_weights(mine, x, n, sample)


def _split(k: int, batch_size: int | None, chunk: int | None, rows: int) -> tuple[int, int]:
    """(batch_size, chunk) with about `rows` rows between them, all of one's own choice kept.

    Long chunks rather than large batches: consecutive rows share x.
    """
    if chunk is None:
        chunk = max(1, min(k, rows // (batch_size or 10)))
    chunk = min(chunk, k)
    return batch_size or max(1, rows // chunk), chunk


def _memory(
    evaluated: Evaluated,
    proposal: Proposal,
    x: Tensor,
    key: Tensor,
    dtype: torch.dtype | None,
    limits: Limits,
) -> tuple[int, int]:
    """Bytes that an example holds, and a sample of it, as x, (1, D), tells."""

    def look() -> tuple[int, int]:
        drawers: list[Drawer] = []
        example = (
            batching.held(lambda: drawers.append(proposal.encode(evaluated, x, key, 0)))
            + x.numel() * x.element_size()
        )
        z, _ = drawers[0].draw(1, 0)
        row = batching.memory_of(
            lambda n: _log_weights(evaluated, drawers, x, n, 0, dtype),
            z.shape[-1],
            x.device,
            limits,
        )
        return example, row

    with evaluated.evaluating():
        found = limits.attempt(look)
    if found is None:
        limits.fewer_examples(1)
    return cast("tuple[int, int]", found)


# --- the estimate ---------------------------------------------------------------------------------


@torch.no_grad()
def estimate_log_likelihood(
    model: Model,
    x: Tensor,
    k: int = 5000,
    *,
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
    progress: Callable[[EvaluationProgress], None] | None = None,
    partial: str | os.PathLike[str] | None = None,
    world: World | None = None,
) -> LikelihoodEstimate:
    """log p(x) ≈ log 1/k Σ w, z ~ q, for each example.

    Every example is encoded once. Samples are drawn and evaluated `chunk` at a time and folded into
    float64 statistics, so memory depends on batch_size · chunk and not on k or N. Any split gives
    the same numbers up to the rounding of the decoder's matrix products.

    Args:
        model: a `dvae_fast.models.LatentVariableModel`; or anything with methods ``encode(x)`` →
            (mean, log_var), (B, Z) each, and ``decode(z)`` → params (R, D) or (R, *shape), for
            rows z (R, Z), R = B·K; or a pair of such callables; or a wrapper that has one of these
            as ``module``. With an attribute ``takes_samples = True``, the model's or the second
            callable's, ``decode`` gets z as (B, K, Z). Modules are evaluated in evaluation mode
            and get their own back. Where `decode` is an ``nn.Sequential`` that ends in an
            ``nn.Linear`` without hooks, the logits of a Bernoulli, or a Gaussian's mean with
            `scale`, are never held: see `linear_log_weights`. Modules that callables refer to are
            found and evaluated likewise; those hidden deeper must be in evaluation mode.
        x: (N, D), or (N, *shape) of D elements each as `encode` takes it, N >= 1, on any device.
            Batches move to the model's device; `encode` sees them in the model's dtype, that of
            most of its numbers, and the likelihood as they are.
        k: importance samples an example, >= 1, 5000 by default; need not be a multiple of `chunk`.
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
            `pareto_k` for what came of it.
        max_k: >= k. Default with a tolerance: 20 k.
        curve: the k at which to report the bound too, each >= 1.
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
        progress: called with an `EvaluationProgress` after each batch; on a GPU, when the next
            one is under way.
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
    k = check_size("k", k)
    evaluated = Evaluated(model, likelihood, scale)
    size = evaluated.check_data(x)
    check_index("first_example", first_example, x.shape[0])
    first_example = int(first_example)
    batch_size, chunk, max_k = (
        value if value is None else check_size(name, value)
        for name, value in (("batch_size", batch_size), ("chunk", chunk), ("max_k", max_k))
    )
    curve = check_sizes("curve", curve)
    if tolerance is None:
        if max_k is not None:
            raise ValueError(f"max_k must come with a tolerance, got {max_k} without one")
        max_k = k
    else:
        if not is_number(tolerance):
            raise TypeError(f"tolerance must be a number, got {type(tolerance).__name__}")
        if not 0 < tolerance < math.inf:
            raise ValueError(f"tolerance must be > 0 and finite, got {tolerance}")
        tolerance = float(tolerance)
        max_k = 20 * k if max_k is None else max_k
        if max_k < k:
            raise ValueError(f"max_k must be >= k = {k}, got {max_k}")
    if corruption is None and proposal != "posterior":
        corruption = getattr(evaluated.model, "corruption", None)
    how = Proposal(proposal, corruption, copies)
    like = evaluated.like(x)
    matrices = _matrix_dtype(dtype, like)
    if seed is None and partial is not None and (earlier := read_settings(partial)):
        seed = earlier.get("seed")
    if seed is None and world is not None and world.size > 1:
        raise ValueError("seed must be given where several processes share the work, got None")
    key = seed_tensor(seed, like.device)
    ks = tuple(sorted({one for one in curve if one <= max_k}))

    examples = x.shape[0]
    part, parts, share = divide(world, examples)
    settings: dict[str, Any] = {}
    if partial is not None:
        settings = {
            "seed": int(key), "first_example": first_example, "k": k, "max_k": max_k,
            "tolerance": tolerance, "proposal": proposal, "curve": list(ks),
            "copies": how.copies if proposal == "mixture" else None,
            "corruption": None if proposal == "posterior" else _described(how.corruption),
            "likelihood": evaluated.likelihood.kind, "scale": fingerprint(evaluated.scales),
            "dtype": str(matrices), "data": fingerprint([x]),
            **evaluated.identity(x),
        }  # fmt: skip
    process = world.rank if world is not None and world.size > 1 else None
    results = PartialResults(examples, partial, settings, process, shapes_of(ks))
    # Before any of them writes: all must agree on what is left, whatever files each one sees.
    exchange(results, world)
    left = max(1, -(-int((~results.done).sum()) // parts))  # for each process
    given = {"batch_size": batch_size, "chunk": chunk}
    words = ", ".join(f"{name} = {value}" for name, value in given.items() if value is not None)
    limits = Limits(words, whole=share.size > 1)
    free = None if bool(results.done.all()) else batching.free_memory(like.device)
    if free is None:
        rows = evaluated.rows_at_once(like, held=compile or matrices is not None)
        batch_size, step = _split(k, batch_size, chunk, rows)
    else:
        example, row = _memory(evaluated, how, moved(x[:1], like.device), key, matrices, limits)
        batch_size, step, rows = batching.plan(
            left, k, row=row, example=example, free=free, several=batching.several(like.device),
            batch_size=batch_size, chunk=chunk,
        )  # fmt: skip
    batch_size, step, rows = smallest(world, (batch_size, step, rows))
    if compile:
        evaluated.compile()
    evaluation = _Evaluation(
        evaluated, how, key, k, max_k, tolerance, ks, step, chunk or rows, matrices, share, limits,
        large=free is not None,
    )  # fmt: skip
    batches = results.batches(min(batch_size, left))[part::parts]
    meter = Meter(sum(stop - first for first, stop in batches), progress)
    launched: deque[tuple[int, Launched]] = deque()

    def take(*, tell: bool) -> None:
        first, batch = launched.popleft()
        fields = batch.fields()
        results.put(first, fields)
        if tell:
            samples = int(fields["spent"].sum())
            meter.advance(fields["log_likelihood"], fields["standard_error"], samples)

    def run(first: int, stop: int) -> Launched:
        return evaluation.batch(moved(x[first:stop], like.device), first_example + first)

    try:
        with evaluated.evaluating():
            for one in fitting(batches, limits, run):
                launched.append(one)
                if len(launched) > evaluation.large:  # a GPU has the next one to work on
                    take(tell=True)
            while launched:
                take(tell=True)
    finally:
        # Of an interrupt, or an error of a later batch; where the GPU is lost, so are these.
        with suppress(RuntimeError):
            while launched:
                take(tell=False)
        if share.rank == 0:
            results.save()
        if share.group is not None:
            distributed.destroy_process_group(share.group)
    exchange(results, world)
    return LikelihoodEstimate(
        **results.fields,
        curve_k=ks,
        k=k,
        seed=int(key),
        first_example=first_example,
        data_size=size,
        proposal=proposal,
        remarks=_remarks(evaluated, x, world),
    )


def _remarks(evaluated: Evaluated, x: Tensor, world: World | None) -> tuple[str, ...]:
    """Those of all processes, each once: not all have seen what one has."""
    every = gather_all(evaluated.remarks(x), world)
    return tuple(dict.fromkeys(remark for remarks in every for remark in remarks))


def _described(corruption: Corruption) -> Any:
    """For a comparison; exact where that can be."""
    try:
        return describe_corruption(corruption)
    except (TypeError, ValueError):
        return repr(corruption)


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
    if wanted == torch.bfloat16 and not has_bfloat16(like.device):
        warnings.warn(
            "dtype bfloat16 is far slower than float32 on this CPU, which has no instructions for "
            "it",
            RuntimeWarning,
            stacklevel=4,
        )
    return wanted
