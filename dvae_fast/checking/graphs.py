"""Operators inside a captured CUDA graph: replayed with other numbers, and other seeds."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from dvae_fast.checking.cases import clone, map_tensors, run_operator
from dvae_fast.checking.outcomes import Outcome, Tally, attempt, copied, expect, on_cpu
from dvae_fast.checking.select import for_graphs, with_other_values

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from dvae_fast.checking.operands import Sample


class Graph:
    """`call` captured once; `replay` runs it again on whatever its arguments hold then."""

    def __init__(self, call: Callable[[], Any], device: str) -> None:
        with torch.cuda.device(device):
            stream = torch.cuda.Stream()
            stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(stream):  # what is only done at a first call
                call()
            torch.cuda.current_stream().wait_stream(stream)
            self._graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(self._graph):
                self.out = call()

    def replay(self) -> None:
        self._graph.replay()


def _another(sample: Sample) -> tuple[Any, ...]:
    """Arguments of the same shapes, of other values and seeds."""
    args = with_other_values(sample).args()
    return map_tensors(lambda t: t + 12345 if t.dtype == torch.int64 else t, args)


def _replayed(
    sample: Sample, calls: list[tuple[Any, ...]], record: Callable[[Any, str], Any]
) -> list[tuple[Tensor, ...]]:
    static = clone(calls[0])
    graph = record(lambda: run_operator(sample.op, static), sample.device)
    out = []
    for args in calls:
        for held, new in zip(static, args, strict=True):
            if isinstance(held, Tensor):
                held.copy_(new)
        graph.replay()
        out.append(clone(on_cpu(graph.out)))  # a replay overwrites its results
    return out


def check_graphs(
    tally: Tally,
    every: Iterable[Sample],
    level: str,
    *,
    note: Callable[[str], None],
    record: Callable[[Any, str], Any] = Graph,
) -> None:
    """Each of a choice of cases is captured, and replayed twice."""
    for sample in for_graphs(every):
        note(f"{sample.op} in a graph")
        calls = [sample.args(), _another(sample)]
        expected = [expect(sample, copied(args)) for args in calls]
        outcome = attempt(
            sample.device,
            lambda s=sample, c=calls: tuple(  # type: ignore[misc]
                t for results in _replayed(s, c, record) for t in results
            ),
        )
        for i, one in enumerate(expected):
            part: Outcome = outcome
            if not isinstance(outcome, str):
                count = len(one.values)
                part = outcome[i * count : (i + 1) * count]
            label = f"{sample.label}, replay {i + 1}"
            tally.add(sample.op, "graph", sample.dtype, level, one.compare(part), (), label)
