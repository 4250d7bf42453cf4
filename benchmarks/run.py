"""Run every benchmark and write report/: some 11 minutes on two cores that do nothing else.

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
from dvae_fast.files import CheckpointError
from dvae_fast.models import load_model

if TYPE_CHECKING:
    from collections.abc import Sequence

FOLDER = Path(__file__).resolve().parent
ROOT = FOLDER.parent
RAW = ROOT / "build" / "benchmarks"
PYTEST = (sys.executable, "-m", "pytest", "-x", "-q")

# Large blocks from the heap too, and no memory back to the system: see results.md.
KEPT = {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": str(1 << 40)}
KEPT_BENCHMARKS = ("bench_iwae_loss", "bench_log_weights")
KEPT_SIZES = "50-ours or 50-eager or 50-compile or bench_log_weights"

# Of the growth study, whose slopes are of many points: the share of --seconds of each, and turns.
GROWTH_SHARE, GROWTH_TURNS = 0.1, 2


def run(*commands: Sequence[str], environment: dict[str, str] | None = None) -> None:
    """Commands side by side; fails when all have ended, if one did."""
    begun, shown = time.monotonic(), [shlex.join(command) for command in commands]
    print("$", " & ".join(shown), flush=True)
    whole = {**os.environ, **(environment or {})}
    processes = [subprocess.Popen(command, cwd=ROOT, env=whole) for command in commands]
    statuses = [process.wait() for process in processes]
    print(f"took {(time.monotonic() - begun) / 60:.1f} minutes", flush=True)
    for command, status in zip(shown, statuses, strict=True):
        if status != 0:
            sys.exit(f"benchmarks: {command} failed with status {status}")


def run_together(*commands: Sequence[str]) -> None:
    """Commands that time nothing, of more threads than cores."""
    run(*commands, environment={"OMP_WAIT_POLICY": "PASSIVE"})


def compile_ahead(*arguments: str) -> None:
    """Fill the compiler's cache, on all cores at once: it works on one while a benchmark waits."""
    once = ("--benchmark-disable", "--turns=1", "--seconds=0.001", "--choose=0.001")
    with tempfile.TemporaryDirectory() as folder:
        command = (*PYTEST, *arguments, *once, f"--ahead={folder}")
        run_together(*[command] * min(THREADS, 8))


def script(name: str, json: Path, *arguments: str) -> tuple[str, ...]:
    return (sys.executable, str(FOLDER / name), f"--json={json}", *arguments)


def main() -> None:
    parser = argparse.ArgumentParser(description="Run every benchmark and write a report.")
    parser.add_argument("--turns", type=int, default=3, help="times each rival gets its turn")
    parser.add_argument("--seconds", type=float, default=0.3, help="timed seconds a rival and turn")
    parser.add_argument("--quick", action="store_true", help="one short turn, to see that it works")
    parser.add_argument("--output", type=Path, default=FOLDER / "report", help="report's folder")
    parser.add_argument(
        "--run", type=Path, help="folder of a run on MNIST, to try a tolerance on (evaluator.py)"
    )
    parser.add_argument(
        "--allow-reference", action="store_true", help="run without compiled kernels too"
    )
    a = parser.parse_args()
    if a.turns < 1 or a.seconds <= 0:
        parser.error(f"--turns and --seconds must be > 0, got {a.turns} and {a.seconds}")
    if a.run is not None:  # it is read last, after all the rest
        try:
            load_model(a.run)
        except CheckpointError as error:
            parser.error(f"--run: {error}")
    if not ops.library_loaded() and not a.allow_reference:
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

    def timed(name: str, *arguments: str, choose: float = seconds / 2) -> tuple[str, ...]:
        """`choose` is how long each way to write plain code is tried."""
        shown = ("--benchmark-enable", "--benchmark-columns=median,iqr,rounds")
        options = (f"--benchmark-json={RAW / name}.json", f"--choose={choose}")
        return (*PYTEST, *shown, f"--turns={turns}", f"--seconds={seconds}", *options, *arguments)

    study = FOLDER / "bench_growth.py"
    others = (str(FOLDER), f"--ignore={study}")
    compile_ahead(*others)
    run(timed("times", *others, f"--load={busy}"))
    names = [f"{FOLDER / 'bench_operators.py'}::{name}" for name in KEPT_BENCHMARKS]
    run(timed("kept", *names, "-k", KEPT_SIZES, f"--seconds={seconds / 2}"), environment=KEPT)
    shorter = (f"--seconds={seconds * GROWTH_SHARE}", f"--turns={min(turns, GROWTH_TURNS)}")
    run(timed("growth", str(study), *shorter, choose=0))
    run_together(
        script("peak_memory.py", RAW / "memory.json"),
        script("peak_memory.py", RAW / "growth_memory.json", "--growth"),
    )
    run(script("evaluator.py", RAW / "evaluator.json", *(("--run", str(a.run)) if a.run else ())))
    write(RAW, a.output, shlex.join(["python", "benchmarks/run.py", *sys.argv[1:]]))
    print(f"Wrote {a.output} after {(time.monotonic() - begun) / 60:.1f} minutes.")


if __name__ == "__main__":
    main()
