"""How `gpu.py` times a case: which rivals, what is recorded of each, and where it is kept.

A rival's family is its name up to the first comma: "ours", "eager", "compile" or "max-autotune".
A run measures some families and adds them to what the file has of others.
"""

from __future__ import annotations

import json
import os
import statistics
import time
import traceback
from dataclasses import asdict, dataclass, field
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    Calls = dict[str, Callable[[], object]]

FAMILIES = ("ours", "eager", "compile", "max-autotune")

#: exit status of a process whose GPU takes no more work, as after an illegal access: another one
#: can go on, with `--resume`
BROKEN = 3

#: of results of a dtype, beside float64: the largest difference over 1 + |expected|
AGREEMENT = {torch.float32: 1e-4, torch.bfloat16: 2e-2}


def family(rival: str) -> str:
    return rival.partition(",")[0]


@dataclass
class Result:
    """Of one case, by rival: seconds, or what one that failed said; and the work of one call.

    `host_seconds` is what a call takes until it returns, with the GPU left behind; `wall_seconds`
    is what each of several calls in a row takes with the wait for the last one.
    """

    key: str
    case: str
    bytes: int = 0
    flops: int = 0
    seconds: dict[str, float] = field(default_factory=dict)
    host_seconds: dict[str, float] = field(default_factory=dict)
    wall_seconds: dict[str, float] = field(default_factory=dict)
    errors: dict[str, str] = field(default_factory=dict)


class BrokenError(RuntimeError):
    """The GPU takes no more work in this process."""


class Timer:
    def __init__(self, device: torch.device, seconds: float) -> None:
        self.gpu, self.seconds = device.type == "cuda", seconds

    def __call__(self, call: Callable[[], object]) -> float:
        """Median seconds of a call, after it has been warmed up (and compiled)."""
        call()
        once = statistics.median(self._times(call, 1 if self.gpu else 3))
        if once > self.seconds:  # all the cases are to fit in minutes
            return statistics.median([once, *self._times(call, 2)])
        rounds = max(5, min(200, int(self.seconds / max(once, 1e-6))))
        return statistics.median(self._times(call, rounds))

    def _times(self, call: Callable[[], object], rounds: int) -> list[float]:
        if not self.gpu:
            times = []
            for _ in range(rounds):
                start = time.perf_counter()
                call()
                times.append(time.perf_counter() - start)
            return times
        marks = [torch.cuda.Event(enable_timing=True) for _ in range(rounds + 1)]
        torch.cuda.synchronize()
        marks[0].record()
        for mark in marks[1:]:
            call()
            mark.record()
        torch.cuda.synchronize()
        return [a.elapsed_time(b) / 1e3 for a, b in pairwise(marks)]

    def by_clock(self, call: Callable[[], object], once: float) -> tuple[float, float]:
        """Seconds a call until it returns, and with the wait; the least of three spells.

        Few calls a spell, or the queue of launches is full and the host waits for the GPU.
        """
        rounds = 1 if once > min(0.05, self.seconds) else 20
        spells = []
        for _ in range(1 if once > 0.2 else 3):
            self._wait()
            start = time.perf_counter()
            for _ in range(rounds):
                call()
            returned = time.perf_counter() - start
            self._wait()
            spells.append((returned / rounds, (time.perf_counter() - start) / rounds))
        return min(s[0] for s in spells), min(s[1] for s in spells)

    def _wait(self) -> None:
        if self.gpu:
            torch.cuda.synchronize()


class Store:
    """The JSON file: replaced whole after every case, so that it can be read at any moment."""

    def __init__(self, path: Path, machine: dict[str, Any], append: bool) -> None:
        self.path, self.machine = path, machine
        self.results: dict[str, Result] = {}
        #: of whole cases, by their name and families
        self.failures: dict[str, str] = {}
        #: families of which every case has been run
        self.complete: list[str] = []
        if append and path.exists():
            content = json.loads(path.read_text())
            self.results = {r["key"]: Result(**r) for r in content["results"]}
            self.failures, self.complete = content["failures"], content["complete"]

    def result(self, key: str, case: str, bytes: int, flops: int) -> Result:
        known = self.results.setdefault(key, Result(key, case))
        known.case, known.bytes, known.flops = case, bytes, flops
        return known

    def write(self) -> None:
        content = {
            "machine": self.machine,
            "results": [asdict(r) for r in self.results.values()],
            "failures": self.failures,
            "complete": self.complete,
        }
        part = self.path.with_name(self.path.name + ".part")
        part.write_text(json.dumps(content, indent=2) + "\n")
        os.replace(part, self.path)


class Bench:
    def __init__(
        self,
        device: torch.device,
        seconds: float,
        tiny: bool,
        store: Store,
        resume: bool = False,
    ) -> None:
        self.device, self.tiny, self.store, self.resume = device, tiny, store, resume
        #: of the case that is run, and the families that are measured
        self.key, self.families = "", tuple(FAMILIES)
        self.time = Timer(device, seconds)
        self.failed = False

    def wants(self, rival: str) -> bool:
        return family(rival) in self.families

    def size(self, full: int, tiny: int) -> int:
        return tiny if self.tiny else full

    def tensor(self, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.randn(*shape, device=self.device).to(dtype)

    def compiled(self, function: Callable[..., Any]) -> dict[str, Callable[..., Any]]:
        """torch.compile as it comes, and told to try everything, for products in minutes."""
        how: dict[str, dict[str, Any]] = {
            "compile": {},
            "max-autotune": {"mode": "max-autotune-no-cudagraphs"},
        }
        if self.tiny:  # traced, without the minutes that making code takes
            how = {name: {"backend": "aot_eager"} for name in how}
        return {
            name: torch.compile(function, dynamic=False, fullgraph=True, **options)
            for name, options in how.items()
            if self.wants(name)
        }

    def run(
        self,
        case: str,
        calls: Calls,
        *,
        bytes: int = 0,
        flops: int = 0,
        agrees: Callable[[], None] | None = None,
    ) -> None:
        """Time the rivals that are wanted; `agrees` raises where ours is wrong on these operands.

        The operators' tests have small operands: here are the large ones.
        """
        if agrees is not None and "ours" in calls:
            calls = {"ours, result": agrees, **calls}
        known = self.store.results.get(self.key)
        done = {*known.seconds, *known.errors} if known and self.resume else set()
        calls = {n: call for n, call in calls.items() if self.wants(n) and n not in done}
        if not calls:
            return
        result = self.store.result(self.key, case, bytes, flops)
        for name, call in calls.items():
            result.errors.pop(name, None)  # of a run before
            try:
                if name == "ours, result":
                    call()
                    continue
                result.seconds[name] = once = self.time(call)
                result.host_seconds[name], result.wall_seconds[name] = self.time.by_clock(
                    call, once
                )
            except Exception as error:  # one that fails must not take the others along
                result.errors[name] = self.failure(error)
                self.store.write()
                self.assert_alive()
        torch._dynamo.reset()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
        self._print(result, calls)
        self.store.write()

    def failure(self, error: Exception) -> str:
        """A line of it; the whole is printed."""
        traceback.print_exc()
        self.failed = True
        return f"{type(error).__name__}: {error}".splitlines()[0]

    def assert_alive(self) -> None:
        if self.device.type != "cuda":
            return
        try:
            torch.cuda.synchronize()
        except Exception as error:
            raise BrokenError(str(error)) from None

    def _print(self, result: Result, calls: Calls) -> None:
        rates, ours = "", result.seconds.get("ours")
        if ours:
            rates += f", {result.bytes / ours / 1e9:.0f} GB/s" if result.bytes else ""
            rates += f", {result.flops / ours / 1e12:.1f} TFLOP/s" if result.flops else ""
        print(f"{result.case}{rates}", flush=True)
        for name in calls:
            if name in result.seconds:
                host = result.host_seconds.get(name, 0.0)
                print(
                    f"    {name:24} {result.seconds[name] * 1e6:12.1f} µs"
                    f"   returns after {host * 1e6:10.1f} µs",
                    flush=True,
                )


def assert_agrees(what: str, actual: Tensor, expected: Tensor, within: float) -> None:
    """`expected` is the same of some of the rows, in float64 or by themselves."""
    expected = expected.detach().double()
    worst = ((actual.detach().double() - expected).abs() / (1 + expected.abs())).max().item()
    if not worst <= within:
        raise AssertionError(f"{what} must be as expected to {within:g}, got {worst:g}")
