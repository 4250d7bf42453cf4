"""Log-weights of some source, streamed over as many samples as wanted: the work of every estimate.

A `Source` says where they come from: a model (`dvae_fast.evaluation.importance`) or any function
(`dvae_fast.evaluation.function`).
"""

from __future__ import annotations

import math
from collections import deque
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, cast

import torch
from torch import Tensor, distributed

from dvae_fast import reference
from dvae_fast._checks import check_index, check_size, check_sizes, is_number
from dvae_fast._seeds import derived_key, seed_tensor
from dvae_fast.evaluation.batching import Launched, Limits, fitting
from dvae_fast.evaluation.partial import PartialResults, fingerprint, read_settings
from dvae_fast.evaluation.progress import Meter, progress_callback
from dvae_fast.evaluation.results import LikelihoodEstimate
from dvae_fast.evaluation.sharing import Share, divide, exchange, gather_all, smallest
from dvae_fast.evaluation.statistics import (
    MIN_TAIL,
    PENDING,
    PENDING_CHUNKS,
    Statistics,
    samples_wanted,
    shapes_of,
)

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Iterator, Sequence
    from contextlib import AbstractContextManager

    from dvae_fast.data.given import Given
    from dvae_fast.distributed import World
    from dvae_fast.evaluation.progress import EvaluationProgress
    from dvae_fast.evaluation.sharing import Draw

__all__ = ["CURVE", "Drawer", "Evaluation", "Request", "Sizes", "Source", "run"]

_op: Any = torch.ops.dvae_fast

# The key of a pilot's draws, among those of a seed.
_PILOT_KEY = 1 << 20
# Samples of an example: each has an index of 32 bits in the noise.
_MOST_SAMPLES = 1 << 32

#: k of the curve of bounds beside the one that is asked for, which is always there; larger ones
#: are left out
CURVE = (1, 5, 50, 500, 5000)


class Drawer(Protocol):
    """What samples of some examples are drawn from; `key` and `first_example` are their noise's."""

    key: Tensor
    first_example: int

    def row(self, i: int) -> Drawer:
        """That of the i-th example alone."""

    def with_key(self, key: Tensor) -> Drawer:
        """The same, for other draws."""


class Asked(NamedTuple):
    """The sizes of `Sizes` that the caller chose, None where the choice is left."""

    batch_size: int | None
    chunk: int | None


class Sizes(NamedTuple):
    """How much of an evaluation to take at once.

    Attributes:
        batch_size: examples.
        chunk: samples of a whole batch.
        alone: samples of an example that is unsure.
        large: as a GPU wants it: what is launched pays, not what it holds.
    """

    batch_size: int
    chunk: int
    alone: int
    large: bool = False


class Source(Protocol):
    """Where log-weights come from."""

    #: what the samples are drawn from, for the result
    proposal: str
    #: whether noise depends on what is asked for at once, so that this must not depend on anything
    #: else than batch_size and chunk: ranges of examples and samples begin at their multiples
    fixed: bool
    #: D, the number of data dimensions, or of a mask the mean number of observed ones
    data_size: float
    #: where batches are to be
    device: torch.device

    def encode(self, batch: Given, key: Tensor, first_example: int) -> Any:
        """The `Drawer` of a batch, the examples first_example, … of the noise."""

    def log_weights(
        self, drawers: Sequence[Any], batch: Given, k: int, first_sample: int
    ) -> Tensor:
        """(B, k) of the samples first_sample, … of what each of `drawers` draws."""

    def sizes(
        self, data: Given, key: Tensor, k: int, left: int, limits: Limits, asked: Asked
    ) -> Sizes:
        """How much to take at once, with `left` examples to be done; what is given is kept."""

    def evaluating(self) -> AbstractContextManager[object]:
        """The models behind it in evaluation mode."""

    def identity(self, data: Given) -> dict[str, Any]:
        """What tells it from another; JSON-able."""

    def remarks(self, data: Given) -> tuple[str, ...]:
        """What looks wrong, in plain words, after an evaluation."""


@dataclass(frozen=True)
class Evaluation:
    """One evaluation's settings, and how it evaluates a batch."""

    source: Source
    key: Tensor
    k: int
    max_k: int
    tolerance: float | None
    ks: tuple[int, ...]
    sizes: Sizes
    share: Share
    limits: Limits

    def batch(self, batch: Given, first_example: int) -> Launched:
        """A batch evaluated; without a tolerance nothing is waited for."""
        drawer = self.source.encode(batch, self.key, first_example)
        device = batch.x.device
        wanted = [self.k] * len(batch) if self.tolerance is None else self._wanted(drawer, batch)
        chunk = self.sizes.chunk
        pending = max(PENDING, PENDING_CHUNKS * chunk) if self.sizes.large else PENDING
        statistics = Statistics(len(batch), self.max_k, self.ks, device, pending)
        for log_w in self._draw([drawer], batch, chunk, 0, self.k):
            statistics.add(log_w)
        rows = list(range(len(batch)))
        more = [i for i in rows if wanted[i] > self.k]
        if not more:
            return Launched([(statistics, rows)])
        done = sorted({*rows} - {*more})
        parts = [(statistics.take(_at(done, device)), done)] if done else []
        at = _at(more, device)
        drawers = [drawer.row(i) for i in more]
        parts += self._go_on(statistics.take(at), drawers, batch[at], more, wanted)
        return Launched(parts)

    def _wanted(self, drawer: Drawer, batch: Given) -> list[int]:
        """How many samples each example is to have. Draws of their own tell, not those of the
        estimate: stopping where a sum looks good would make it too large."""
        if self.k == self.max_k:
            return [self.k] * len(batch)
        pilot = drawer.with_key(derived_key(self.key, _PILOT_KEY))
        state = reference.lse_init(len(batch), batch.x.device)
        most = min(max(self.k, MIN_TAIL), self.max_k)
        for log_w in self._draw([pilot], batch, self.sizes.chunk, 0, most):
            state = _op.lse_update(state, log_w)
        return samples_wanted(state, cast("float", self.tolerance), self.k, self.max_k)

    def _go_on(
        self,
        statistics: Statistics,
        drawers: list[Drawer],
        batch: Given,
        rows: list[int],
        wanted: list[int],
    ) -> Iterator[tuple[Statistics, list[int]]]:
        """As many samples again, and again, of those of `rows` that want more."""
        device = batch.x.device
        while rows:
            most = max(1, self.sizes.alone // len(rows))
            if self.source.fixed:
                most = self.sizes.chunk
            stop = min(2 * statistics.count, self.max_k)
            for log_w in self._draw(drawers, batch, most, statistics.count, stop):
                statistics.add(log_w)
            left = [i for i, row in enumerate(rows) if wanted[row] > stop]
            if len(left) == len(rows):
                continue
            done = [i for i in range(len(rows)) if i not in {*left}]
            yield statistics.take(_at(done, device)), [rows[i] for i in done]
            if left:
                at = _at(left, device)
                statistics, batch = statistics.take(at), batch[at]
            rows, drawers = [rows[i] for i in left], [drawers[i] for i in left]

    def _draw(
        self, drawers: list[Drawer], batch: Given, most: int, start: int, stop: int
    ) -> Iterator[Tensor]:
        """Log-weights of samples [start, stop), at most `most` at once in a process."""

        def mine(k: int, first_sample: int) -> Tensor:
            return self.limits.in_parts(
                lambda n, first: self.source.log_weights(drawers, batch, n, first_sample + first),
                len(batch),
                k,
            )

        draw: Draw = mine
        for sample in range(start, stop, most * self.share.size):
            n = min(most * self.share.size, stop - sample)
            unit = most if self.source.fixed else None
            yield self.share.log_weights(draw, batch.x, n, sample, unit)


def _at(rows: list[int], device: torch.device) -> slice | Tensor:
    """An index of those rows."""
    return slice(rows[0], rows[0] + 1) if len(rows) == 1 else torch.tensor(rows, device=device)


# --- what is asked for ----------------------------------------------------------------------------


@dataclass(frozen=True)
class Request:
    """The arguments that all estimates share; checked, once `checked` has been called."""

    k: int
    tolerance: float | None
    max_k: int | None
    curve: Sequence[int]
    batch_size: int | None
    chunk: int | None
    seed: int | Tensor | None
    first_example: int
    progress: bool | Callable[[EvaluationProgress], None] | None
    partial: str | os.PathLike[str] | None
    world: World | None

    def checked(self, examples: int) -> Request:
        """The same, in plain numbers.

        Raises:
            TypeError, ValueError: naming the argument, the rule and the value.
        """
        k = check_size("k", self.k)
        check_index("first_example", self.first_example, examples)
        batch_size, chunk, max_k = (
            value if value is None else check_size(name, value)
            for name, value in (
                ("batch_size", self.batch_size), ("chunk", self.chunk), ("max_k", self.max_k),
            )
        )  # fmt: skip
        for name, value in (("k", k), ("max_k", max_k)):
            if value is not None and value > _MOST_SAMPLES:
                raise ValueError(
                    f"{name} must be <= 2**32, the samples of an example that noise has an index "
                    f"for, got {value}"
                )
        curve = check_sizes("curve", self.curve)
        tolerance = self.tolerance
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
            max_k = min(20 * k, _MOST_SAMPLES) if max_k is None else max_k
            if max_k < k:
                raise ValueError(f"max_k must be >= k = {k}, got {max_k}")
        tell = progress_callback(self.progress)
        if self.progress is True and self.world is not None and not self.world.is_main:
            tell = None
        seed = self.seed
        if seed is None and self.partial is not None and (saved := read_settings(self.partial)):
            seed = saved.get("seed")
        if seed is None and self.world is not None and self.world.size > 1:
            raise ValueError("seed must be given where several processes share the work, got None")
        return Request(
            k, tolerance, max_k, curve, batch_size, chunk, seed, int(self.first_example),
            tell, self.partial, self.world,
        )  # fmt: skip


def run(source: Source, data: Given, request: Request) -> LikelihoodEstimate:
    """The estimate of `data` that a checked `request` asks for."""
    k, max_k, first_example = request.k, cast("int", request.max_k), request.first_example
    world, partial, examples = request.world, request.partial, len(data)
    key = seed_tensor(request.seed, source.device)
    ks = (
        tuple(sorted({one for one in request.curve if one <= max_k} | {k})) if request.curve else ()
    )
    part, parts, share = divide(world, examples)
    settings: dict[str, Any] = {}
    if partial is not None:
        settings = {
            "seed": int(key), "first_example": first_example, "k": k, "max_k": max_k,
            "tolerance": request.tolerance, "proposal": source.proposal, "curve": list(ks),
            "data": fingerprint(data.tensors), **source.identity(data),
        }  # fmt: skip
    process = world.rank if world is not None and world.size > 1 else None
    results = PartialResults(examples, partial, settings, process, shapes_of(ks))
    # Before any of them writes: all must agree on what is left, whatever files each one sees.
    exchange(results, world)
    left = max(1, -(-int((~results.done).sum()) // parts))  # for each process
    asked = Asked(request.batch_size, request.chunk)
    told = asked._asdict().items()
    words = ", ".join(f"{name} = {value}" for name, value in told if value is not None)
    limits = Limits(words, whole=share.size > 1)
    anything = not bool(results.done.all())
    sizes = source.sizes(data, key, k, left if anything else 0, limits, asked)
    batch_size, chunk, alone = smallest(world, sizes[:3])
    sizes = Sizes(batch_size, chunk, alone, sizes.large)
    evaluation = Evaluation(
        source, key, k, max_k, request.tolerance, ks, sizes, share, limits
    )  # fmt: skip
    grid = first_example % batch_size if source.fixed else None
    most = batch_size if source.fixed else min(batch_size, left)
    batches = results.batches(most, grid)[part::parts]
    meter = Meter(sum(stop - first for first, stop in batches), progress_callback(request.progress))
    launched: deque[tuple[int, Launched]] = deque()

    def take(*, tell: bool) -> None:
        first, batch = launched.popleft()
        fields = batch.fields()
        results.put(first, fields)
        if tell:
            samples = int(fields["spent"].sum())
            meter.advance(fields["log_likelihood"], fields["standard_error"], samples)

    def one(first: int, stop: int) -> Launched:
        return evaluation.batch(data[first:stop].to(source.device), first_example + first)

    try:
        with source.evaluating():
            for done in fitting(batches, limits, one):
                launched.append(done)
                if len(launched) > sizes.large:  # a GPU has the next one to work on
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
    # Those of all processes, each once: not all have seen what one has.
    every = gather_all(source.remarks(data), world)
    return LikelihoodEstimate(
        **results.fields,
        curve_k=ks,
        k=k,
        seed=int(key),
        first_example=first_example,
        data_size=source.data_size,
        proposal=source.proposal,
        tolerance=request.tolerance,
        remarks=tuple(dict.fromkeys(remark for remarks in every for remark in remarks)),
    )
