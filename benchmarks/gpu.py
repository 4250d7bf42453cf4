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
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import rivals
import torch
from gpu_bench import FAMILIES, Bench, Store
from gpu_cases import all_cases

import dvae_fast
from dvae_fast import ops


def machine(device: torch.device) -> dict[str, Any]:
    return {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU",
        "cuda_kernels": ops.cuda_kernels(),
        "build": {name: str(value) for name, value in dvae_fast.build_info().items()},
        "date": time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime()),
    }


def _list(text: str) -> list[str]:
    return [part.strip() for part in text.split(",") if part.strip()]


def main() -> None:
    start = time.monotonic()
    parser = argparse.ArgumentParser(description="GPU benchmarks, as one JSON file.")
    parser.add_argument("--json", type=Path, required=True)
    parser.add_argument("--rivals", type=_list, default=list(FAMILIES), metavar="A,B")
    parser.add_argument("--cases", type=_list, default=[], help="parts of names, to run no others")
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
