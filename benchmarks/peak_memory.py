"""Peak memory of a training step, of `linear_log_weights` and of an evaluation.

    python benchmarks/peak_memory.py [--growth] [--json FILE]

Each is measured in a process of its own; --growth measures the points of `bench_growth.py` instead,
all in one process.

The figure is the growth of the resident set: VmHWM, the largest the process has been since it was
reset just before the work, less VmRSS then. So it includes what torch's allocator does not see:
scratch memory of C++ code, packing buffers of the matrix products. What malloc keeps after it was
freed would make it depend on history, so every larger block is a mapping of its own (MALLOC). What
a first call loads is loaded before by a small step of a plain torch model, the same for all.
torch's profiler gives the peak of tensors alone, as a check.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import subprocess
import sys
from functools import partial
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING, Any

import rivals
import torch
from bench_growth import AXES
from bench_operators import LinearLogWeightsCase
from cases import THREADS, B, Call, Step, make_data, make_model, make_rival
from figures import MIB, mebibytes
from growth import CONDITIONS
from torch import nn
from torch.profiler import ProfilerActivity, profile

import dvae_fast

if TYPE_CHECKING:
    from collections.abc import Callable

STEPS = 5
#: bytes of data below which the growth of the resident set is noise
LEAST_DATA = MIB // 4
#: every larger block is a mapping of its own, gone when it is freed
MALLOC = {"MALLOC_MMAP_THRESHOLD_": "65536"}


def _status(name: str) -> int:
    """A field of /proc/self/status in bytes."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(name + ":"):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"/proc/self/status must have a line {name}: Linux only")


def _resident_peak(call: Call, calls: int) -> int:
    """Growth of the resident set at its largest."""
    gc.collect()
    Path("/proc/self/clear_refs").write_text("5")  # VmHWM starts again from VmRSS
    before = _status("VmRSS")
    for _ in range(calls):
        call()
    return _status("VmHWM") - before


def _allocator_peak(call: Call) -> int:
    """The largest sum of live tensors during a call, less that before it."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        call()
    events = [e for e in profiler.profiler.kineto_results.events() if e.name() == "[memory]"]
    ordered = sorted(events, key=lambda e: e.start_ns())
    return max(accumulate((e.nbytes() for e in ordered), initial=0))


def _warm_up_torch() -> None:
    """Load what any training needs: the matrix library, threads, autograd, fused Adam."""
    model = nn.Sequential(nn.Linear(64, 32), nn.Softplus(), nn.Linear(32, 48))
    step = Step(model, torch.randn(128, 64), lambda x: nn.functional.softplus(model(x)).sum())
    for _ in range(2):
        step()


def _step(rival: str) -> Call:
    """Of K = 50; eager's formulas are named, with the samples that keep least."""
    ours, x = make_model(50), make_data(B)
    if rival == "ours":
        return Step(ours, x)
    plain = make_rival(ours)
    if rival == "compile":
        return Step(plain, x, rivals.compiled(plain.loss))
    plain.density = rivals.DENSITIES[rival.partition(", ")[2]]
    plain.reparameterise = rivals.reparameterise_dot
    return Step(plain, x)


def _evaluation(rival: str) -> Call:
    k = int(rival.split()[-1])
    return partial(dvae_fast.estimate_log_likelihood, make_model(1), make_data(50), k, seed=1)


#: growth of the resident set, tensors alone; a third, "process", is all of the resident set
METHODS = ("resident", "tensors")
#: by what is measured: how a rival's call is made, and the rivals, each with its methods
WORK: dict[str, tuple[Callable[[str], Call], dict[str, tuple[str, ...]]]] = {
    "training step": (
        _step,
        dict.fromkeys(("ours", "eager, softplus+bmm", "eager, bce", "compile"), METHODS),
    ),
    "linear_log_weights": (
        lambda rival: LinearLogWeightsCase().build(rival).call,
        dict.fromkeys(("ours", "addmm"), METHODS),
    ),
    "evaluation": (
        _evaluation,
        {"k = 50": ("process",), "k = 5000": ("tensors", "process"), "k = 50000": ("tensors",)},
    ),
}


def _child(work: str, rival: str) -> dict[str, int]:
    """Bytes by method, measured in this process."""
    torch.manual_seed(0)
    _warm_up_torch()
    make, methods_of = WORK[work]
    call, methods = make(rival), methods_of[rival]
    # Makes what stays: Adam's state, the same for all; threads, and pages of code, of which more
    # are run at k = 5000. A compiler's own memory is not the step's either.
    call()
    grown = _resident_peak(call, STEPS) if methods != ("tensors",) else 0
    found = {"resident": grown, "process": _status("VmHWM")}
    if "tensors" in methods:  # last, for profiling takes memory itself
        found["tensors"] = _allocator_peak(call)
    return {method: found[method] for method in methods}


def _again(*arguments: str, **options: Any) -> subprocess.CompletedProcess[str]:
    """This file in a new process, for malloc reads its settings when one starts."""
    command = [sys.executable, __file__, *arguments]
    return subprocess.run(command, env={**os.environ, **MALLOC}, text=True, check=False, **options)


def measure_all() -> list[dict[str, Any]]:
    """Bytes by method; none where this system cannot tell."""
    results = []
    for work, rival in ((work, rival) for work, (_, all) in WORK.items() for rival in all):
        process = _again("--child", work, rival, capture_output=True)
        if process.returncode != 0:
            print(f"{work}, {rival}: {process.stderr.strip()[-300:]}", file=sys.stderr)
        found = json.loads(process.stdout.splitlines()[-1]) if process.returncode == 0 else {}
        results.append({"work": work, "rival": rival, **found})
        shown = ", ".join(f"{method} {mebibytes(size)}" for method, size in found.items())
        print(f"{work}, {rival}: {shown}", flush=True)
    return results


def measure_growth() -> list[dict[str, Any]]:
    """Every point of an axis that is a size, from 1/4 MiB of data on; smaller peaks are noise."""
    rivals.choosing_seconds = 0
    rows = []
    for case in (make() for make in AXES.values()):
        for name in case.points() if case.axis not in CONDITIONS else ():
            torch.manual_seed(0)
            rival = case.build(name)
            if 4 * rival.case.elements < LEAST_DATA:
                continue
            prepare = rival.prepare or (lambda: None)
            prepare()
            rival.call()  # makes what stays: threads, Adam's state
            prepare()
            rows.append({**rival.extra, "resident": _resident_peak(rival.call, 1)})
            print(f"{case.operator}, {name}: {mebibytes(rows[-1]['resident'])}", flush=True)
        case.cases.clear()
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description="Peak memory, ours and others.")
    parser.add_argument("--json", type=Path, help="where to write the figures")
    parser.add_argument("--growth", action="store_true", help="the points of bench_growth.py")
    parser.add_argument("--child", nargs=2, help=argparse.SUPPRESS)
    a = parser.parse_args()
    torch.set_num_threads(THREADS)
    if a.child:
        print(json.dumps(_child(*a.child)))
        return
    if a.growth and any(os.environ.get(name) != value for name, value in MALLOC.items()):
        sys.exit(_again(*sys.argv[1:]).returncode)
    results = measure_growth() if a.growth else measure_all()
    if a.json:
        a.json.write_text(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
