"""Run every benchmark but the likelihoods' and write report/: some 10 minutes on two cores that do
nothing else. Those: python -m pytest benchmarks/bench_likelihoods.py

python benchmarks/run.py [--quick] [--output FOLDER]
"""

from __future__ import annotations

import argparse
import os
import shlex
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

from cases import THREADS
from report import write

from dvae_fast import ops

if TYPE_CHECKING:
    from collections.abc import Sequence

FOLDER = Path(__file__).resolve().parent
ROOT = FOLDER.parent
RAW = ROOT / "build" / "benchmarks"
STUDY = FOLDER / "bench_growth.py"
# The likelihoods', of which half is compiled with long formulas, would take as long as all others.
LIKELIHOODS = FOLDER / "bench_likelihoods.py"
OTHERS = (str(FOLDER), f"--ignore={STUDY}", f"--ignore={LIKELIHOODS}")

# Large blocks from the heap too, and no memory back to the system: see results.md.
KEPT = {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": str(1 << 40)}
KEPT_CASES = "(iwae_loss and 50 and not overwrite) or (log_weights and not linear)"

# Of the growth study, whose slopes are of many points, each in one turn: the share of --seconds.
GROWTH_SHARE = 0.1


def run(*commands: Sequence[str], **environment: str) -> None:
    """Commands side by side; fails when all have ended, if one did."""
    begun, shown = time.monotonic(), [shlex.join(command) for command in commands]
    print("$", " & ".join(shown), flush=True)
    whole = {**os.environ, **environment}
    processes = [subprocess.Popen(command, cwd=ROOT, env=whole) for command in commands]
    statuses = [process.wait() for process in processes]
    print(f"took {(time.monotonic() - begun) / 60:.1f} minutes", flush=True)
    for command, status in zip(shown, statuses, strict=True):
        if status != 0:
            sys.exit(f"benchmarks: {command} failed with status {status}")


def pytest(*arguments: str, **options: object) -> tuple[str, ...]:
    given = [f"--{name}={value}" for name, value in options.items()]
    return (sys.executable, "-m", "pytest", "-x", "-q", *arguments, *given)


def script(name: str, json: str, *arguments: str) -> tuple[str, ...]:
    return (sys.executable, str(FOLDER / name), f"--json={RAW / json}", *arguments)


def main() -> None:
    parser = argparse.ArgumentParser(description="Run every benchmark and write a report.")
    parser.add_argument("--turns", type=int, default=3, help="times each rival gets its turn")
    parser.add_argument("--seconds", type=float, default=0.2, help="timed seconds a rival and turn")
    parser.add_argument("--quick", action="store_true", help="one short turn, to see that it works")
    parser.add_argument("--output", type=Path, default=FOLDER / "report", help="report's folder")
    a = parser.parse_args()
    if a.turns < 1 or a.seconds <= 0:
        parser.error(f"--turns and --seconds must be > 0, got {a.turns} and {a.seconds}")
    if not ops.library_loaded():
        why = f"no compiled kernels ({ops.LIBRARY_ERROR})"
        sys.exit(f"benchmarks: {why}; build them with: {ops.BUILD_COMMAND}")
    busy = os.getloadavg()[0]
    if busy > 0.5:
        print(f"The load average is {busy:.2f}: others use the machine, and figures will tell.")
    turns, seconds = (1, 0.05) if a.quick else (a.turns, a.seconds)

    begun = time.monotonic()
    RAW.mkdir(parents=True, exist_ok=True)
    for old in RAW.glob("*.json"):
        old.unlink()  # a report is of one run
    passive = {"OMP_WAIT_POLICY": "PASSIVE"}  # of what times nothing, with more threads than cores

    # The compiler works on one core while a benchmark waits: its cache is filled on all before.
    with tempfile.TemporaryDirectory() as folder:
        once = {"turns": 1, "choose": 0.001, "ahead": folder}
        run(*[pytest(*OTHERS, "--benchmark-disable", **once)] * min(THREADS, 8), **passive)

    def timed(name: str, *arguments: str, share: float = 1, **options: object) -> tuple[str, ...]:
        """`choose` is how long each way to write plain code is tried."""
        shown = ("--benchmark-enable", "--benchmark-columns=median,iqr,rounds")
        spent = (f"--benchmark-max-time={seconds * share}", "--benchmark-min-time=0.001")
        usual = {"turns": turns, "choose": seconds / 2, "load": busy, "benchmark-json": RAW / name}
        return pytest(*shown, *spent, *arguments, **usual | options)

    run(timed("times.json", *OTHERS))
    operators = str(FOLDER / "bench_operators.py")
    run(timed("kept.json", operators, "-k", KEPT_CASES, share=0.5), **KEPT)
    run(timed("growth.json", str(STUDY), share=GROWTH_SHARE, turns=1, choose=0))
    growth = script("peak_memory.py", "growth_memory.json", "--growth")
    run(script("peak_memory.py", "memory.json"), growth, **passive)
    write(RAW, a.output, shlex.join(["python", "benchmarks/run.py", *sys.argv[1:]]))
    print(f"Wrote {a.output} after {(time.monotonic() - begun) / 60:.1f} minutes.")


if __name__ == "__main__":
    main()
