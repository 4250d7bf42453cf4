"""Peak memory of a training step, of `linear_log_weights` and of an evaluation.

    python benchmarks/peak_memory.py [--json FILE]
    python benchmarks/peak_memory.py --growth [--json FILE]

Each is measured in a process of its own; --growth measures the points of `bench_growth.py` instead,
all in one process.

The figure is the growth of the resident set: VmHWM, the largest the process has been since it was
reset just before the work, less VmRSS then. It is the kernel's own account, so it includes what
torch's allocator does not see: scratch memory of C++ code, packing buffers of the matrix products.
Its weakness is memory that malloc keeps after it was freed, which makes it depend on history; so
the processes run with MALLOC_MMAP_THRESHOLD_ at 64 KiB, which gives every larger block its own
mapping and returns it when it is freed. What else a first call loads (libraries, threads) is loaded
before by a small step of a plain torch model, the same for all, and Adam's state exists by then.

torch's profiler gives the peak of tensors alone; it is printed next to it as a check, and taken
last, because profiling takes memory itself.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

from figures import MIB, mebibytes

FOLDER = Path(__file__).resolve().parent
sys.path[:0] = [str(FOLDER), str(FOLDER.parent / "tests")]

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


def _resident_peak(call: Callable[[], object], calls: int) -> int:
    """Growth of the resident set at its largest."""
    Path("/proc/self/clear_refs").write_text("5")  # VmHWM starts again from VmRSS
    before = _status("VmRSS")
    for _ in range(calls):
        call()
    return _status("VmHWM") - before


def _allocator_peak(run: Callable[[], object]) -> int:
    """The largest sum of live tensors during `run`, less that before it."""
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        run()
    events = [e for e in profiler.profiler.kineto_results.events() if e.name() == "[memory]"]
    live = peak = 0
    for event in sorted(events, key=lambda e: e.start_ns()):
        live += event.nbytes()
        peak = max(peak, live)
    return peak


# --- one work of one rival, in a process of its own -----------------------------------------------


def _warm_up_torch() -> None:
    """Load what any training needs: the matrix library, threads, autograd, fused Adam."""
    import rivals
    import torch
    from torch import nn

    model = nn.Sequential(nn.Linear(64, 32), nn.Softplus(), nn.Linear(32, 48))
    step = rivals.training_step(
        lambda x: nn.functional.softplus(model(x)).sum(), rivals.adam(model), torch.randn(128, 64)
    )
    for _ in range(2):
        step()


def _step(rival: str) -> Callable[[], None]:
    """Of K = 50; eager's formulas are named, with the samples that keep least."""
    import rivals
    from cases import B, Step, make_data, make_model, make_rival

    ours, x = make_model(50), make_data(B)
    if rival == "ours":
        return Step(ours, x)
    plain = make_rival(ours)
    if rival == "compile":
        plain.density = rivals.density_softplus
        return Step(plain, x, rivals.compiled(plain.loss))
    plain.density = rivals.EAGER_DENSITIES[rival.partition(", ")[2]]
    plain.reparameterise = rivals.reparameterise_dot
    return Step(plain, x)


def _linear(rival: str) -> Callable[[], object]:
    from bench_operators import LinearLogWeightsCase

    return LinearLogWeightsCase().build(rival).call


def _evaluation(rival: str) -> Callable[[], object]:
    from cases import make_data, make_model

    import dvae_fast

    model, x, k = make_model(1), make_data(50), int(rival.split()[-1])
    return lambda: dvae_fast.estimate_log_likelihood(model, x, k, seed=1)


#: growth of the resident set, tensors alone; a third, "process", is all of the resident set
METHODS = ("resident", "tensors")
#: by what is measured: how a rival's call is made, and the rivals, each with its methods
WORK: dict[str, tuple[Callable[[str], Callable[[], object]], dict[str, tuple[str, ...]]]] = {
    "training step": (
        _step,
        dict.fromkeys(("ours", "eager, softplus+bmm", "eager, bce", "compile"), METHODS),
    ),
    "linear_log_weights": (_linear, dict.fromkeys(("ours", "addmm"), METHODS)),
    "evaluation": (
        _evaluation,
        {"k = 50": ("process",), "k = 5000": ("tensors", "process"), "k = 50000": ("tensors",)},
    ),
}


def _child(work: str, rival: str) -> dict[str, int]:
    """Bytes by method, measured in this process."""
    import torch
    from cases import THREADS

    torch.set_num_threads(THREADS)
    torch.manual_seed(0)
    _warm_up_torch()
    make, methods_of = WORK[work]
    call, methods = make(rival), methods_of[rival]
    # Makes what stays: Adam's state, the same for all; threads, and pages of code, of which more
    # are run at k = 5000. A compiler's own memory is not the step's either.
    call()
    gc.collect()
    grown = _resident_peak(call, STEPS) if methods != ("tensors",) else 0
    found = {"resident": grown, "process": _status("VmHWM")}
    if "tensors" in methods:  # last, for profiling takes memory itself
        found["tensors"] = _allocator_peak(call)
    return {method: found[method] for method in methods}


def measure(work: str, rival: str) -> dict[str, int]:
    """Bytes by method, measured in a new process; nothing where this system cannot tell."""
    environment = {**os.environ, **MALLOC}
    command = [sys.executable, __file__, "--child", work, rival]
    process = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if process.returncode != 0:
        print(f"{work}, {rival}: {process.stderr.strip()[-300:]}", file=sys.stderr)
        return {}
    return json.loads(process.stdout.splitlines()[-1])


def measure_all() -> list[dict[str, Any]]:
    results = []
    for work, (_, methods_of) in WORK.items():
        for rival in methods_of:
            found = measure(work, rival)
            results.append({"work": work, "rival": rival, **found})
            shown = ", ".join(f"{method} {mebibytes(size)}" for method, size in found.items())
            print(f"{work}, {rival}: {shown}", flush=True)
    return results


# --- the points of the growth study ---------------------------------------------------------------


def measure_growth() -> list[dict[str, Any]]:
    """Every point of an axis that is a size, from 1/4 MiB of data on; smaller peaks are noise."""
    import rivals
    import torch
    from bench_growth import AXES, GrowthCase
    from cases import THREADS
    from growth import CONDITIONS

    torch.set_num_threads(THREADS)
    rivals.choosing_seconds = 0
    rows = []
    for axis in AXES:
        for name in axis.points() if axis.name not in CONDITIONS else ():
            torch.manual_seed(0)
            rival = GrowthCase(axis).build(name)
            if 4 * rival.case.elements < LEAST_DATA:
                continue
            prepare = rival.prepare or (lambda: None)
            prepare()
            rival.call()  # makes what stays: threads, Adam's state
            prepare()
            gc.collect()
            rows.append({**rival.extra, "resident": _resident_peak(rival.call, 1)})
            print(f"{axis.operator}, {name}: {mebibytes(rows[-1]['resident'])}", flush=True)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description="Peak memory, ours and others.")
    parser.add_argument("--json", type=Path, help="where to write the figures")
    parser.add_argument("--growth", action="store_true", help="the points of bench_growth.py")
    parser.add_argument("--child", nargs=2, help=argparse.SUPPRESS)
    a = parser.parse_args()
    if a.child:
        print(json.dumps(_child(*a.child)))
        return
    if a.growth and any(os.environ.get(name) != value for name, value in MALLOC.items()):
        command = [sys.executable, *sys.argv]  # malloc reads it when a process starts
        sys.exit(subprocess.run(command, env={**os.environ, **MALLOC}, check=False).returncode)
    results = measure_growth() if a.growth else measure_all()
    if a.json:
        a.json.write_text(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
