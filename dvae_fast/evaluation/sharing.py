"""Several processes that evaluate together: what each does, and how they put it together."""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, distributed

from dvae_fast._dtypes import accumulation_dtype
from dvae_fast.distributed import patience

if TYPE_CHECKING:
    from collections.abc import Callable

    from dvae_fast.distributed import World
    from dvae_fast.evaluation.partial import PartialResults

    #: (samples, first_sample) → their log-weights, (B, samples)
    Draw = Callable[[int, int], Tensor]

__all__ = ["Share", "divide", "exchange", "gather_all", "smallest"]


class Share:
    """What this process does of the samples of a chunk, which all of a group put together again."""

    def __init__(self, rank: int = 0, size: int = 1, group: Any = None) -> None:
        self.rank, self.size, self.group = rank, size, group

    def log_weights(
        self, draw: Draw, x: Tensor, k: int, first_sample: int, unit: int | None = None
    ) -> Tensor:
        """(B, k) of the samples first_sample, first_sample + 1, …, the same on all of the group;
        draw(k, first_sample) makes those of this process: `unit` of them, if given, as far as they
        go, and else as many as the others do."""
        if self.size == 1:
            return draw(k, first_sample)
        if unit is None:
            edges = [i * k // self.size for i in range(self.size + 1)]
        else:
            edges = [min(i * unit, k) for i in range(self.size + 1)]
        begin, end = edges[self.rank], edges[self.rank + 1]
        widest = max(b - a for a, b in pairwise(edges))
        wide = x.dtype if x.is_floating_point() and unit is None else torch.float64
        mine = x.new_zeros(len(x), widest, dtype=accumulation_dtype(wide))
        if end > begin:
            mine[:, : end - begin] = draw(end - begin, first_sample + begin)
        parts = [torch.empty_like(mine) for _ in range(self.size)]
        distributed.all_gather(parts, mine, group=self.group)
        return torch.cat([parts[i][:, : edges[i + 1] - edges[i]] for i in range(self.size)], 1)


def divide(world: World | None, examples: int) -> tuple[int, int, Share]:
    """(which part of the examples, of how many, and the share of each one's samples).

    Processes divide the examples; only where those are fewer does a group divide the samples too.
    """
    if world is None or world.size == 1:
        return 0, 1, Share()
    parts = max(n for n in range(1, world.size + 1) if world.size % n == 0 and n <= examples)
    size = world.size // parts
    if size == 1:
        return world.rank, parts, Share()
    mine = None
    for part in range(parts):  # every process must take part in making every group
        ranks = list(range(part * size, (part + 1) * size))
        group = distributed.new_group(ranks, timeout=patience())
        mine = group if part == world.rank // size else mine
    return world.rank // size, parts, Share(world.rank % size, size, mine)


def smallest(world: World | None, sizes: tuple[int, ...]) -> tuple[int, ...]:
    """Those of all processes, which must divide the work alike: their GPUs may not be."""
    if world is None or world.size == 1:
        return sizes
    return tuple(min(one) for one in zip(*gather_all(sizes, world), strict=True))


def exchange(results: PartialResults, world: World | None) -> None:
    """Give each process the results of all."""
    if world is None or world.size == 1:
        return
    rows = results.done.nonzero().flatten()
    mine = (rows, {name: values[rows] for name, values in results.fields.items()})
    for rows, fields in gather_all(mine, world):
        results.merge(rows, fields)


def gather_all(mine: Any, world: World | None) -> list[Any]:
    """What each process has, in order."""
    if world is None or world.size == 1:
        return [mine]
    everyone: list[Any] = [None] * world.size
    distributed.all_gather_object(everyone, mine)
    return everyone
