"""Every operator, a training step and an evaluation on a GPU, against eager and torch.compile.

python benchmarks/gpu.py --json FILE [--rivals ours,eager] [--append|--resume] [--tiny]

Times are medians by CUDA events; what a call takes of the host's time stands beside them. The file
is written after every case; `--append` adds to what it has, so that the compiled rivals, which take
minutes to compile, can be measured by themselves, and `--resume` leaves out what it has, as after
an illegal access, which no process survives. `--tiny` runs small sizes, on the CPU if there is
no GPU, to see that everything works; its times mean nothing.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import subprocess
import time
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from gpu_bench import BROKEN, FAMILIES, Bench, BrokenError, Store
from gpu_cases import all_cases

import dvae_fast
from dvae_fast import ops


def _said(*command: str) -> str:
    try:
        process = subprocess.run(command, capture_output=True, text=True, timeout=30)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return process.stdout.strip()


def machine(device: torch.device) -> dict[str, Any]:
    gpu = device.type == "cuda"
    root = str(Path(__file__).resolve().parent.parent)
    return {
        "device": torch.cuda.get_device_name(device) if gpu else "CPU",
        "driver": _said("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"),
        "cuda_kernels": ops.cuda_kernels(),
        "build": {name: str(value) for name, value in dvae_fast.build_info().items()},
        "commit": os.environ.get("DVAE_FAST_COMMIT")
        or _said("git", "-C", root, "rev-parse", "HEAD"),
        "date": time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime()),
    }


def _families(text: str) -> list[str]:
    chosen = [part.strip() for part in text.split(",")]
    for part in chosen:
        if part not in FAMILIES:
            raise argparse.ArgumentTypeError(f"must be of {', '.join(FAMILIES)}, got {part!r}")
    return chosen


def main() -> None:
    start = time.monotonic()
    parser = argparse.ArgumentParser(description="GPU benchmarks, as one JSON file.")
    parser.add_argument("--json", type=Path, required=True)
    parser.add_argument("--rivals", type=_families, default=list(FAMILIES), metavar="A,B")
    parser.add_argument("--cases", default="", help="of these names, or parts of names, alone: A,B")
    parser.add_argument("--append", action="store_true", help="add to what the file has")
    parser.add_argument("--resume", action="store_true", help="add what the file has not")
    parser.add_argument("--seconds", type=float, default=1.0, help="timed seconds of each rival")
    parser.add_argument("--limit", type=float, default=math.inf, help="seconds to begin cases in")
    parser.add_argument("--tiny", action="store_true", help="small sizes, to see that it works")
    a = parser.parse_args()
    if not torch.cuda.is_available() and not a.tiny:
        parser.error("torch sees no GPU")
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if device.type == "cuda" and not ops.cuda_kernels():
        parser.error(f"the library has no CUDA kernels ({ops.LIBRARY_ERROR or 'built without'})")
    about = machine(device)
    print(json.dumps(about, indent=2), flush=True)
    store = Store(a.json, about, a.append or a.resume)
    parts = [part.strip() for part in a.cases.split(",") if part.strip()]
    b = Bench(device, 0.01 if a.tiny else a.seconds, a.tiny, store, a.resume)
    cases = {n: f for n, f in all_cases().items() if not parts or any(part in n for part in parts)}
    if not cases:
        parser.error(f"--cases must name one of {', '.join(all_cases())}, got {a.cases!r}")
    # One that interests most is not to wait for another's compiling: ours and eager together.
    turns = [tuple(f for f in a.rivals if f in ("ours", "eager"))]
    turns += [(f,) for f in a.rivals if f not in turns[0]]
    with torch.cuda.device(device) if device.type == "cuda" else nullcontext():
        for b.families in [turn for turn in turns if turn]:
            store.complete = [f for f in store.complete if f not in b.families]
            for name, case in cases.items():
                whole = f"{name}, {' and '.join(b.families)}"
                if a.resume and whole in store.failures:
                    continue
                if time.monotonic() - start > a.limit:
                    print(f"no time is left for {whole}", flush=True)
                    continue
                store.failures.pop(whole, None)
                b.key = name
                try:
                    case(b)
                    continue
                except BrokenError:
                    raise SystemExit(BROKEN) from None
                except Exception as error:  # what was measured is kept all the same
                    store.failures[whole] = b.failure(error)
                    store.write()
                try:
                    b.assert_alive()
                except BrokenError:
                    raise SystemExit(BROKEN) from None
            if not parts and time.monotonic() - start <= a.limit:
                store.complete += b.families
    store.write()
    if b.failed:
        raise SystemExit("benchmarks: some failed, see above and the JSON")


if __name__ == "__main__":
    main()
