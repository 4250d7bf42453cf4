"""How `gpu.py` times a case: which rivals, what is recorded of each, and where it is kept.

A rival's family is its name up to the first comma: "ours", "eager", "compile" or "max-autotune".
A run measures some families and adds them to what the file has of others.
"""

from __future__ import annotations

import traceback
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch.utils import benchmark

from dvae_fast.files import read_json, write_json

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    Calls = dict[str, Callable[[], object]]

FAMILIES = ("ours", "eager", "compile", "max-autotune")

#: exit status of a process whose GPU takes no more work, as after an illegal access: another one
#: can go on, with `--resume`
BROKEN = 3


def family(rival: str) -> str:
    return rival.partition(",")[0]


class Store:
    """The JSON file: replaced whole after every case, so that it can be read at any moment."""

    def __init__(self, path: Path, machine: dict[str, Any], append: bool) -> None:
        self.path, self.machine = path, machine
        #: of each case, by rival: seconds, or what one that failed said; and the work of one call.
        #: `wall_seconds` is what a single call takes with the wait for it.
        self.results: dict[str, dict[str, Any]] = {}
        #: of whole cases, by their name and families
        self.failures: dict[str, str] = {}
        #: families of which every case has been run
        self.complete: list[str] = []
        if append and path.exists():
            content = read_json(path)
            self.results = {r["key"]: r for r in content["results"]}
            self.failures, self.complete = content["failures"], content["complete"]

    def result(self, key: str, **about: Any) -> dict[str, Any]:
        known = self.results.setdefault(key, {"seconds": {}, "wall_seconds": {}, "errors": {}})
        known.update(about, key=key)
        return known

    def write(self) -> None:
        content = {
            "machine": self.machine,
            "results": [*self.results.values()],
            "failures": self.failures,
            "complete": self.complete,
        }
        write_json(self.path, content)


@dataclass
class Bench:
    device: torch.device
    seconds: float
    tiny: bool
    store: Store
    resume: bool = False
    #: of the case that is run, and the families that are measured
    key: str = ""
    families: tuple[str, ...] = FAMILIES
    failed: bool = False

    def run(
        self,
        case: str,
        calls: Calls,
        bytes: int = 0,
        flops: int = 0,
        agrees: Callable[[], None] | None = None,
    ) -> None:
        """Time the rivals that are wanted; `agrees` raises where ours is wrong on these operands.

        The operators' tests have small operands: here are the large ones.
        """
        if agrees is not None and "ours" in calls:
            calls = {"ours, result": agrees, **calls}
        known = self.store.results.get(self.key) if self.resume else None
        done = {*known["seconds"], *known["errors"]} if known else set()
        left = (n for n in calls if family(n) in self.families and n not in done)
        if not (calls := {n: calls[n] for n in left}):
            return
        result = self.store.result(self.key, case=case, bytes=bytes, flops=flops)
        for name, call in calls.items():
            result["errors"].pop(name, None)  # of a run before
            try:
                if name == "ours, result":
                    call()
                    continue
                call()  # compiles
                timer = benchmark.Timer(
                    "call()", globals={"call": call}, num_threads=torch.get_num_threads()
                )  # which waits for the GPU
                result["seconds"][name] = timer.blocked_autorange(min_run_time=self.seconds).median
                result["wall_seconds"][name] = min(timer.timeit(1).median for _ in range(3))
            except Exception as error:  # one that fails must not take the others along
                result["errors"][name] = self.failure(error)
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
        except Exception:
            raise SystemExit(BROKEN) from None

    def _print(self, result: dict[str, Any], calls: Calls) -> None:
        print(result["case"])
        for name in (n for n in calls if n in result["wall_seconds"]):
            once, wall = result["seconds"][name], result["wall_seconds"][name]
            rates = f"{result['bytes'] / once / 1e9:.0f} GB/s, {result['flops'] / once / 1e12:.1f}"
            print(
                f"    {name:24} {once * 1e6:12.1f} µs, alone {wall * 1e6:12.1f} µs   {rates} TF/s"
            )
