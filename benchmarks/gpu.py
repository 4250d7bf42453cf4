"""Every operator, a training step and an evaluation on a GPU, against eager and torch.compile.

python benchmarks/gpu.py --json FILE [--rivals ours,eager] [--append|--resume] [--tiny]

Times are medians of many calls in a row by torch's own timer, which waits for the GPU; what a call
takes by itself stands beside them. The file is written after every case; `--append` adds to what it
has, so that the compiled rivals, which take minutes to compile, can be measured by themselves, and
`--resume` leaves out what it has, as after an illegal access, which no process survives. `--tiny`
runs small sizes, on the CPU if there is no GPU, to see that everything works; its times mean
nothing.
"""

from __future__ import annotations

import argparse
import json
import math
import time
import traceback
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import rivals
import torch
from gpu_cases import all_cases
from torch.utils import benchmark

import dvae_fast
from dvae_fast import ops
from dvae_fast.files import read_json, write_json

if TYPE_CHECKING:
    from collections.abc import Callable

    from cases import Calls

#: a rival's name up to the first comma; a run measures some and adds them to what the file has
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

    def write(self) -> None:
        found = {"machine": self.machine, "results": [*self.results.values()]}
        write_json(self.path, found | {"failures": self.failures, "complete": self.complete})


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
        new: dict[str, Any] = {"seconds": {}, "wall_seconds": {}, "errors": {}}
        result = self.store.results.setdefault(self.key, new)
        result.update(key=self.key, case=case, bytes=bytes, flops=flops)
        for name, call in calls.items():
            result["errors"].pop(name, None)  # of a run before
            try:
                if name == "ours, result":
                    call()
                    continue
                call()  # compiles
                timer = benchmark.Timer(  # which waits for the GPU
                    "call()", globals={"call": call}, num_threads=torch.get_num_threads()
                )
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
        try:
            if self.device.type == "cuda":
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


def machine(device: torch.device) -> dict[str, Any]:
    return {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU",
        "cuda_kernels": ops.cuda_kernels(),
        "build": {name: str(value) for name, value in dvae_fast.build_info().items()},
        "date": time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime()),
    }


def main() -> None:
    start = time.monotonic()
    parser = argparse.ArgumentParser(description="GPU benchmarks, as one JSON file.")
    parser.add_argument("--json", type=Path, required=True)
    parser.add_argument(
        "--rivals", type=lambda text: text.split(","), default=list(FAMILIES), metavar="A,B"
    )
    parser.add_argument(
        "--cases", type=lambda text: text.split(","), default=[], help="parts of names: no others"
    )
    parser.add_argument("--append", action="store_true", help="add to what the file has")
    parser.add_argument("--resume", action="store_true", help="add what the file has not")
    parser.add_argument("--seconds", type=float, default=1.0, help="timed seconds of each rival")
    parser.add_argument("--limit", type=float, default=math.inf, help="seconds to begin cases in")
    parser.add_argument("--tiny", action="store_true", help="small sizes, to see that it works")
    a = parser.parse_args()
    if wrong := [family for family in a.rivals if family not in FAMILIES]:
        parser.error(f"--rivals must be of {', '.join(FAMILIES)}, got {wrong[0]!r}")
    if not torch.cuda.is_available() and not a.tiny:
        parser.error("torch sees no GPU")
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if device.type == "cuda" and not ops.cuda_kernels():
        parser.error(f"the library has no CUDA kernels ({ops.LIBRARY_ERROR or 'built without'})")
    cases = {n: f for n, f in all_cases().items() if not a.cases or any(p in n for p in a.cases)}
    if not cases:
        parser.error(f"--cases must name one of {', '.join(all_cases())}, got {a.cases!r}")
    rivals.fused_alone = True
    if a.tiny:  # traced, without the minutes that making code takes
        rivals.COMPILERS = {how: {"backend": "aot_eager"} for how in rivals.COMPILERS}
    about = machine(device)
    print(json.dumps(about, indent=2), flush=True)
    store = Store(a.json, about, a.append or a.resume)
    b = Bench(device, 0.01 if a.tiny else a.seconds, a.tiny, store, a.resume)
    # One that interests most is not to wait for another's compiling: ours and eager together.
    turns = [tuple(f for f in a.rivals if f in ("ours", "eager"))]
    turns += [(f,) for f in a.rivals if f not in turns[0]]
    with torch.cuda.device(device) if device.type == "cuda" else nullcontext():
        for b.families in filter(None, turns):
            store.complete = [f for f in store.complete if f not in b.families]
            for b.key, case in cases.items():
                whole = f"{b.key}, {' and '.join(b.families)}"
                if a.resume and whole in store.failures:
                    continue
                if time.monotonic() - start > a.limit:
                    print(f"no time is left for {whole}", flush=True)
                    continue
                store.failures.pop(whole, None)
                try:
                    case(b)
                except Exception as error:  # what was measured is kept all the same
                    store.failures[whole] = b.failure(error)
                    store.write()
                    b.assert_alive()
            if not a.cases and time.monotonic() - start <= a.limit:
                store.complete += b.families
    store.write()
    if b.failed:
        raise SystemExit("benchmarks: some failed, see above and the JSON")


if __name__ == "__main__":
    main()
