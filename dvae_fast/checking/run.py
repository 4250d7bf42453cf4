"""The check itself, in this process: every operator against the float64 reference."""

from __future__ import annotations

import contextlib
import os
import tempfile
import time
from typing import TYPE_CHECKING

import torch

from dvae_fast import ops
from dvae_fast.checking import levels
from dvae_fast.checking.cases import OPERATORS
from dvae_fast.checking.functions import check_functions
from dvae_fast.checking.graphs import check_graphs
from dvae_fast.checking.limits import Comparison
from dvae_fast.checking.machine import CheckError, describe
from dvae_fast.checking.many import MANY
from dvae_fast.checking.operands import LARGE, LONG_ROWS, named
from dvae_fast.checking.outcomes import (
    Aborted,
    Outcome,
    Tally,
    copied,
    expect,
    refuses,
    run_sample,
    threads,
)
from dvae_fast.checking.report import CheckReport
from dvae_fast.checking.select import samples
from dvae_fast.ops import CPU_ONLY

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from dvae_fast.checking.operands import Sample

#: seconds that the processes of the other ISA levels may take
_LEVEL_LIMIT = 120.0


def _silent(_: str) -> None:
    pass


def run_checks(
    device: torch.device,
    *,
    small: bool = False,
    operators: Sequence[str] = OPERATORS,
    all_levels: bool = True,
    note: Callable[[str], None] = _silent,
) -> CheckReport:
    """Checks `operators` on `device` and, if those are all, the public functions on top.

    Args:
        small: few cases of few elements, for compute-sanitizer.
        all_levels: on a CPU also the instruction sets that are not in use, in other processes.
        note: is told what is about to run.
    """
    start = time.monotonic()
    machine = describe(device)
    on_cpu = device.type == "cpu"
    level = (machine["isa"] or "cpu") if on_cpu else str(device)
    if on_cpu and not ops.library_loaded():
        level = "reference"
    tally, aborted, notes = Tally(), None, []
    count = torch.get_num_threads()
    with contextlib.ExitStack() as stack:
        # Whatever the caller is about: tensors are made, and derived, as the tests have it.
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.enable_grad())
        stack.enter_context(torch.device("cpu"))
        stack.enter_context(threads(1))
        others: list[levels.Level] = []
        if on_cpu and all_levels and ops.library_loaded():
            folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="dvae_fast_check_"))
            names = [name for name in levels.LEVELS if name != machine["isa"]]
            try:
                others = levels.start_levels(names, small, operators, folder)
            except CheckError as error:
                notes.append(f"Of the instruction sets only {level} was checked: {error}")
            for other in others:
                stack.callback(other.stop)
        try:
            every = samples(str(device), small=small, operators=operators)
            if set(operators) >= set(OPERATORS):
                check_functions(tally, str(device), level, small=small, note=note)
            found: dict[str, dict[str, list[Outcome]]] = {}
            for other in others:
                outcomes = other.outcomes(start + _LEVEL_LIMIT)
                if isinstance(outcomes, dict):
                    found[other.name] = outcomes
                elif outcomes is not None:
                    _blame(tally, other.name, outcomes, operators)
            _check_operators(tally, every, level, found, count, note)
            # A capture cannot allocate without torch's own allocator, as under compute-sanitizer.
            if not on_cpu and "PYTORCH_NO_CUDA_MEMORY_CACHING" not in os.environ:
                check_graphs(tally, every, level, note=note)
        except Aborted as error:
            aborted = error
    if not on_cpu:
        for op in set(CPU_ONLY).intersection(operators):
            tally.skip(op, "values", "float32", level, "has no kernel on a GPU")
    if on_cpu and machine["kernels"]:
        machine["isas"] = [level, *found]
    return CheckReport(
        machine=machine,
        rows=tally.rows(),
        seconds=time.monotonic() - start,
        small=small,
        incomplete=str(aborted) if aborted else "",
        incomplete_kind=aborted.kind if aborted else "",
        notes=tuple(notes),
    )


def _check_operators(
    tally: Tally,
    every: Sequence[Sample],
    level: str,
    found: dict[str, dict[str, list[Outcome]]],
    count: int,
    note: Callable[[str], None],
) -> None:
    at: dict[str, int] = {}
    for sample in every:
        index = at.setdefault(sample.op, 0)
        if index == 0:
            note(sample.op)
        at[sample.op] += 1
        # Only these have rows enough to share among threads.
        many = sample.label.startswith((named(LARGE), named(LONG_ROWS), MANY))
        with threads(count if sample.label.startswith(MANY) else 1):
            args = sample.args()
            expected = expect(sample, copied(args))
        with threads(count if many else 1):
            outcomes = {level: run_sample(sample, args)}
        outcomes |= {name: by_op[sample.op][index] for name, by_op in found.items()}
        for name, outcome in outcomes.items():
            if refuses(sample, outcome):
                why = "asks for a contiguous tensor"
                dtype = str(sample.dtype).removeprefix("torch.")
                tally.skip(sample.op, expected.what, dtype, name, why)
                continue
            comparison = expected.compare(outcome)
            tally.add(sample.op, expected.what, sample.dtype, name, comparison, (), sample.label)


def _blame(tally: Tally, level: str, what: str, operators: Sequence[str]) -> None:
    """The operator that ended its level's process failed; the others there were not checked."""
    name, _, how = what.partition(": ")
    for op in operators:
        if op == name or name not in operators:
            failure = Comparison(1, 1, float("inf"), float("inf"), 0.0, how)
            tally.add(op, "values", torch.float32, level, failure)
        else:
            tally.skip(op, "values", "float32", level, f"{name}: {how}")
