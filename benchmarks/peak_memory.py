"""Peak memory of a training step, and of `linear_log_weights`, each in a process of its own.

    python benchmarks/peak_memory.py [--json FILE]
    python benchmarks/peak_memory.py --growth [--json FILE]

The second measures the points of `bench_growth.py` instead, all in one process.

The figure is the growth of the resident set: VmHWM, the largest the process has been since it was
reset just before the work, less VmRSS then. It is the kernel's own account, so it includes what
torch's allocator does not see: scratch memory of C++ code, packing buffers of the matrix products.
Its weakness is memory that malloc keeps after it was freed, which makes it depend on history; so
the processes run with MALLOC_MMAP_THRESHOLD_ at 64 KiB, which gives every larger block its own
mapping and returns it when it is freed. What else a first call loads (libraries, threads) is loaded
before by a small step of a plain torch model, the same for all, and Adam's state exists by then.

torch's profiler gives the peak of tensors alone; it is printed next to it as a check, from a
second process, because profiling takes memory itself.
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

from figures import MIB

FOLDER = Path(__file__).resolve().parent
STEPS = 5
#: bytes of data below which the growth of the resident set is noise
LEAST_DATA = MIB // 4
#: The step's model is that of bench_training; so many samples an example.
K = 50


def _status(name: str) -> int:
    """A field of /proc/self/status in bytes."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(name + ":"):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"/proc/self/status must have a line {name}: Linux only")


def _warm_up_torch() -> None:
    """Load what any training needs: the matrix library, threads, autograd, fused Adam."""
    import torch
    from torch import nn

    model = nn.Sequential(nn.Linear(64, 32), nn.Softplus(), nn.Linear(32, 48))
    optimiser = torch.optim.Adam(model.parameters(), fused=True)
    for _ in range(2):
        optimiser.zero_grad()
        nn.functional.softplus(model(torch.randn(128, 64))).sum().backward()
        optimiser.step()


def _step(rival: str) -> Callable[[], None]:
    import rivals
    from bench_training import B, make_data, make_model, make_rival

    ours = make_model(K)
    x = make_data(B)
    if rival == "ours":
        return rivals.training_step(ours.loss, rivals.adam(ours), x)
    plain = make_rival(ours)
    if rival == "compile":
        plain.density = rivals.density_softplus
        return rivals.training_step(rivals.compiled(plain.loss), rivals.adam(plain), x)
    plain.density = rivals.EAGER_DENSITIES[rival.partition(", ")[2]]
    plain.reparameterise = rivals.reparameterise_dot  # keeps less than the sum does
    return rivals.training_step(plain.loss, rivals.adam(plain), x)


def _linear(rival: str) -> Callable[[], None]:
    import torch
    from bench_operators import LinearLogWeightsCase

    import dvae_fast

    case = LinearLogWeightsCase()
    case.logits = case.expected = torch.empty(0)

    def ours() -> None:
        with torch.no_grad():
            dvae_fast.linear_log_weights(
                case.hidden, case.weight, case.bias, case.x, case.log_ratio
            )

    def addmm() -> None:
        with torch.no_grad():
            torch.addmm(case.bias, case.hidden.flatten(0, 1), case.weight.t())

    return ours if rival == "ours" else addmm


def _evaluation(rival: str) -> Callable[[], None]:
    from bench_training import make_data, make_model

    import dvae_fast

    model, x, k = make_model(1), make_data(50), int(rival.split()[-1])

    def call() -> None:
        dvae_fast.estimate_log_likelihood(model, x, k, seed=1)

    return call


#: growth of the resident set, tensors alone; a third, "process", is all of the resident set
METHODS = ("resident", "tensors")
#: by what is measured: how a rival's call is made, and the rivals, each with its methods
WORK: dict[str, tuple[Callable[[str], Callable[[], None]], dict[str, tuple[str, ...]]]] = {
    "training step": (
        _step,
        dict.fromkeys(("ours", "eager, softplus+bmm", "eager, bce", "compile"), METHODS),
    ),
    "linear_log_weights": (_linear, dict.fromkeys(("ours", "addmm"), METHODS)),
    "evaluation": (
        _evaluation,
        {
            "k = 50": ("process",),
            "k = 5000": ("tensors", "process"),
            "k = 50000": ("tensors",),
        },
    ),
}


def _allocator_peak(run: Callable[[], None]) -> int:
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


def _child(work: str, rival: str, method: str) -> int:
    """Bytes, measured in this process."""
    import torch

    sys.path[:0] = [str(FOLDER), str(FOLDER.parent / "tests")]
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    torch.manual_seed(0)
    _warm_up_torch()
    call = WORK[work][0](rival)
    # Makes what stays: Adam's state, the same for all; threads, and pages of code, of which more
    # are run at k = 5000. A compiler's own memory is not the step's either.
    call()
    gc.collect()
    if method == "tensors":
        return _allocator_peak(call)
    grown = _resident_peak(call, STEPS)
    return grown if method == "resident" else _status("VmHWM")


def _resident_peak(call: Callable[[], object], calls: int) -> int:
    """Growth of the resident set at its largest."""
    Path("/proc/self/clear_refs").write_text("5")  # VmHWM starts again from VmRSS
    before = _status("VmRSS")
    for _ in range(calls):
        call()
    return _status("VmHWM") - before


def _growth() -> list[dict[str, Any]]:
    """Every point of an axis that is a size, from 1/4 MiB of data on; smaller peaks are noise."""
    import rivals
    import torch
    from bench_growth import GrowthCase, groups, rivals_at, values
    from growth import CONDITIONS

    torch.set_num_threads(len(os.sched_getaffinity(0)))
    rivals.choosing_seconds = 0
    rows = []
    for operator, axis in groups():
        if axis in CONDITIONS:
            continue
        for value in values(operator, axis):
            for who in rivals_at(operator, axis, value):
                torch.manual_seed(0)
                rival = GrowthCase(operator, axis).build(f"{who}, {axis}={value}")
                assert rival.case is not None
                if 4 * rival.case.elements < LEAST_DATA:
                    continue
                peak = 0
                for warm in (True, False):  # the first makes what stays: threads, Adam's state
                    if rival.prepare is not None:
                        rival.prepare()
                    gc.collect()
                    if warm:
                        rival.call()
                    else:
                        peak = _resident_peak(rival.call, 1)
                rows.append({**rival.extra, "resident": peak})
                print(f"{operator}, {who}, {axis}={value}: {peak / MIB:.1f} MiB", flush=True)
    return rows


#: every larger block is a mapping of its own, gone when it is freed
MALLOC = {"MALLOC_MMAP_THRESHOLD_": "65536"}


def measure(work: str, rival: str, method: str) -> int | None:
    """Bytes, measured in a new process; None where this system cannot tell."""
    environment = {**os.environ, **MALLOC}
    command = [sys.executable, __file__, "--child", work, rival, method]
    process = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if process.returncode != 0:
        print(f"{work}, {rival}, {method}: {process.stderr.strip()[-300:]}", file=sys.stderr)
        return None
    return int(process.stdout.split()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description="Peak memory, ours and others.")
    parser.add_argument("--json", type=Path, help="where to write the figures")
    parser.add_argument("--growth", action="store_true", help="the points of bench_growth.py")
    parser.add_argument("--child", nargs=3, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.growth:
        if any(os.environ.get(name) != value for name, value in MALLOC.items()):
            command = [sys.executable, *sys.argv]  # malloc reads it when a process starts
            sys.exit(subprocess.run(command, env={**os.environ, **MALLOC}, check=False).returncode)
        sys.path[:0] = [str(FOLDER), str(FOLDER.parent / "tests")]
        points = _growth()
        if arguments.json:
            arguments.json.write_text(json.dumps(points, indent=1))
        return
    if arguments.child:
        print(_child(*arguments.child))
        return
    results: list[dict[str, Any]] = []
    for work, (_, methods_of) in WORK.items():
        for rival, methods in methods_of.items():
            row: dict[str, Any] = {"work": work, "rival": rival}
            for method in methods:
                row[method] = measure(work, rival, method)
            results.append(row)
            shown = ", ".join(f"{m} {row[m] / MIB:.1f} MiB" for m in methods if row[m] is not None)
            print(f"{work}, {rival}: {shown}", flush=True)
    if arguments.json:
        arguments.json.write_text(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
