"""Running cases, and what came out: errors are collected, none stops the check."""

from __future__ import annotations

import contextlib
import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from dvae_fast._dtypes import accumulation_dtype
from dvae_fast.checking.cases import (
    KINDS,
    MUTATING,
    clone,
    map_tensors,
    run_operator,
    run_reference,
    upcast,
)
from dvae_fast.checking.limits import Comparison, allowed_error, compare
from dvae_fast.checking.machine import first_line
from dvae_fast.checking.operands import NO_EXAMPLES, named
from dvae_fast.checking.report import FAILED, PASSED, SKIPPED, Row
from dvae_fast.checking.terms import absolute_terms, rounded_intermediates

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from dvae_fast.checking.operands import Sample

#: What came of a call: its results on the CPU, or the error in one line.
Outcome = tuple[Tensor, ...] | str


class Aborted(Exception):  # noqa: N818  (not an error of the operator's)
    """The device cannot go on: `kind` is "crash" where a kernel did it, "device" where not."""

    def __init__(self, kind: str, reason: str) -> None:
        super().__init__(reason)
        self.kind = kind


@contextlib.contextmanager
def threads(count: int) -> Iterator[None]:
    """Where more of them run than cores are free, small tensors cost a wait for each operation."""
    before = torch.get_num_threads()
    if count == before:
        yield
        return
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def on_cpu(values: tuple[Any, ...]) -> tuple[Any, ...]:
    return map_tensors(lambda t: t.detach().cpu(), values)


def attempt(device: str, call: Callable[[], tuple[Any, ...]]) -> Outcome:
    """The results of `call`, on the CPU, after every kernel it started has ended.

    Raises:
        Aborted: if the GPU's memory is full, or its context is lost with whatever runs after it.
    """
    try:
        return on_cpu(call())
    except torch.OutOfMemoryError as error:
        raise Aborted("device", f"the GPU's memory is full: {first_line(error)}") from None
    except Exception as error:  # whatever an operator raises is its failure
        outcome = f"{type(error).__name__}: {first_line(error)}"
    if torch.device(device).type == "cuda":
        try:
            torch.cuda.synchronize(device)
        except Exception as error:
            raise Aborted("crash", first_line(error)) from None
    return outcome


def run_sample(sample: Sample, args: tuple[Any, ...]) -> Outcome:
    return attempt(sample.device, lambda: run_operator(sample.op, args))


@dataclass(frozen=True)
class Expected:
    """Results in float64, and the error allowed in each element."""

    what: str
    values: tuple[Tensor, ...]
    #: of output i where it has this dtype
    allowed: Callable[[int, torch.dtype], Tensor]

    def compare(self, outcome: Outcome) -> Comparison:
        if isinstance(outcome, str):
            return Comparison(1, 1, math.inf, math.inf, 0.0, outcome)
        if len(outcome) != len(self.values):
            message = f"{len(outcome)} results, not {len(self.values)}"
            return Comparison(1, 1, math.inf, math.inf, 0.0, message)
        found = [
            compare(got, value, self.allowed(i, got.dtype))
            for i, (got, value) in enumerate(zip(outcome, self.values, strict=True))
        ]
        i, worst = max(enumerate(found), key=lambda pair: (pair[1].wrong > 0, pair[1].worst))
        if not worst.wrong or len(found) == 1:
            return worst
        return replace(worst, detail=f"output {i}: {worst.detail}")


def expect(sample: Sample, args: tuple[Any, ...]) -> Expected:
    """What the reference makes of `args` (on the CPU), which it may change.

    A discrete corruption is compared bit for bit with what the reference draws in its dtype.
    """
    op = sample.op
    if op == "corrupt" and not KINDS[args[1]].additive:
        (values,) = run_reference(op, args)
        zeros = torch.zeros(values.shape, dtype=torch.float64)
        what = "masks" if values.numel() else "empty"
        return Expected(what, (values.double(),), lambda i, dtype: zeros)
    args64 = upcast(args)
    sums = accumulation_dtype(sample.dtype)
    terms = absolute_terms(op, args64)
    extra = rounded_intermediates(op, args64, sample.dtype)
    values64 = tuple(v.detach().double() for v in run_reference(op, args64))
    what = "values" if sample.layout == "contiguous" else "layouts"
    if sample.label.startswith(named(NO_EXAMPLES)):
        what = "empty"
    return Expected(
        what,
        values64,
        lambda i, dtype: allowed_error(dtype, values64[i], terms[i], sums, extra[i]),
    )


def refuses(sample: Sample, outcome: Outcome) -> bool:
    """Whether an operator that writes into its argument says that it needs it in order."""
    return (
        sample.op in MUTATING
        and sample.layout != "contiguous"
        and isinstance(outcome, str)
        and "contiguous" in outcome
    )


class Tally:
    """Rows in the making: the cases of each, the worst of them and the first failure."""

    def __init__(self) -> None:
        self._rows: dict[tuple[str, str, str, str], list[Comparison]] = {}
        self._operators: dict[tuple[str, str, str, str], tuple[str, ...]] = {}
        self._skipped: dict[tuple[str, str, str, str], str] = {}

    def add(
        self,
        operator: str,
        what: str,
        dtype: torch.dtype,
        level: str,
        found: Comparison,
        operators: Iterable[str] = (),
        label: str = "",
    ) -> None:
        if found.detail and label:
            found = replace(found, detail=f"{label}: {found.detail}")
        key = (operator, what, str(dtype).removeprefix("torch."), level)
        self._rows.setdefault(key, []).append(found)
        self._operators[key] = tuple(operators) or (operator,)

    def skip(self, operator: str, what: str, dtype: str, level: str, why: str) -> None:
        self._skipped.setdefault((operator, what, dtype, level), why)

    def rows(self) -> tuple[Row, ...]:
        out = []
        for key, found in self._rows.items():
            worst = max(found, key=lambda c: (math.isnan(c.worst), c.worst))
            failure = next((c for c in found if c.wrong), None)
            verdict = FAILED if failure else PASSED
            detail = failure.detail if failure else ""
            numbers = (len(found), worst.worst, worst.error, worst.limit)
            out.append(Row(*key, *numbers, verdict, detail, self._operators[key]))
        for key, why in self._skipped.items():
            if key not in self._rows:
                out.append(Row(*key, 0, 0.0, 0.0, 0.0, SKIPPED, why, (key[0],)))
        return tuple(out)


def copied(args: tuple[Any, ...]) -> tuple[Any, ...]:
    """Arguments on the CPU that the operator cannot reach."""
    return clone(on_cpu(args))
