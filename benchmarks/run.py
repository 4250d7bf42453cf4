"""Run every benchmark and write report/: some 14 minutes on two cores that do nothing else.

python benchmarks/run.py [--quick] [--output FOLDER] [--compare BEFORE.json [--threshold 1.1]]
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

from compare import compare
from figures import load
from report import write

if TYPE_CHECKING:
    from collections.abc import Sequence

FOLDER = Path(__file__).resolve().parent
ROOT = FOLDER.parent
RAW = ROOT / "build" / "benchmarks"

# Large blocks from the heap too, and no memory back to the system: see report.py.
KEPT = {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": str(1 << 40)}
KEPT_BENCHMARKS = ("bench_iwae_loss", "bench_log_weights")
KEPT_SIZES = "50-ours or 50-eager or 50-compile or bench_log_weights"

# On two quiet cores with AVX-512: minutes that do not depend on --turns and --seconds (formulas
# compiled and chosen from, results checked, memory, accuracy, the evaluator), and how many rivals
# are timed beside the points of the growth study.
FIXED_MINUTES, RIVALS = 10.7, 95

# The share of --seconds that a point of the growth study gets.
GROWTH_SHARE = 0.1


def fail(message: str) -> None:
    sys.exit(f"benchmarks: {message}")


def run(*command: str, environment: dict[str, str] | None = None) -> None:
    """One command, alone on the machine."""
    _run([command], environment or {})


def run_together(commands: Sequence[Sequence[str]]) -> None:
    """Commands that time nothing, side by side; fails when all have ended, if one did."""
    _run(commands, {"OMP_WAIT_POLICY": "PASSIVE"})  # more threads than cores


def _run(commands: Sequence[Sequence[str]], environment: dict[str, str]) -> None:
    begun, shown = time.monotonic(), [shlex.join(command) for command in commands]
    print("$", " & ".join(shown), flush=True)
    whole = {**os.environ, **environment}
    processes = [subprocess.Popen(command, cwd=ROOT, env=whole) for command in commands]
    statuses = [process.wait() for process in processes]
    print(f"took {(time.monotonic() - begun) / 60:.1f} minutes", flush=True)
    for command, status in zip(shown, statuses, strict=True):
        if status != 0:
            fail(f"{command} failed with status {status}")


def compile_ahead(*arguments: str) -> None:
    """Fill the compiler's cache, on all cores at once: it works on one while a benchmark waits."""
    from conftest import THREADS

    once = ("--benchmark-disable", "--turns=1", "--seconds=0.001", "--choose=0.001")
    with tempfile.TemporaryDirectory() as folder:
        command = (sys.executable, "-m", "pytest", *arguments, *once, "-x", "-q")
        run_together([(*command, f"--ahead={folder}")] * min(THREADS, 8))


def benchmark(
    json: Path,
    turns: int,
    seconds: float,
    *arguments: str,
    choose: float | None = None,
    environment: dict[str, str] | None = None,
) -> None:
    """`choose` is how long each way to write plain code is tried, --seconds if not given."""
    run(
        *(sys.executable, "-m", "pytest", *arguments, "-x", "-q"),
        *(
            "--benchmark-enable",
            f"--benchmark-json={json}",
            "--benchmark-columns=median,iqr,rounds",
        ),
        *(f"--turns={turns}", f"--seconds={seconds}"),
        f"--choose={seconds if choose is None else choose}",
        environment=environment,
    )


def expected_minutes(turns: int, seconds: float, points: int) -> float:
    """How long a run takes on two quiet cores, with so many points of the growth study."""
    timed = turns * seconds * 1.3 * (RIVALS + GROWTH_SHARE * points)  # warm-up and planning too
    return FIXED_MINUTES + timed / 60


def main() -> None:
    parser = argparse.ArgumentParser(description="Run every benchmark and write a report.")
    parser.add_argument("--turns", type=int, default=3, help="times each rival gets its turn")
    parser.add_argument("--seconds", type=float, default=0.4, help="timed seconds a rival and turn")
    parser.add_argument("--quick", action="store_true", help="one short turn, to see that it works")
    parser.add_argument(
        "--run", type=Path, help="folder of a run on MNIST, to try a tolerance on (evaluator.py)"
    )
    parser.add_argument(
        "--output", type=Path, default=FOLDER / "report", help="the report's folder"
    )
    parser.add_argument("--compare", type=Path, help="times.json of a run before, to compare with")
    parser.add_argument("--threshold", type=float, default=1.1, help="of --compare")
    parser.add_argument(
        "--allow-reference", action="store_true", help="run without compiled kernels too"
    )
    a = parser.parse_args()
    if a.turns < 1 or a.seconds <= 0:
        parser.error(f"--turns and --seconds must be > 0, got {a.turns} and {a.seconds}")
    if a.threshold < 1:
        parser.error(f"--threshold must be >= 1, got {a.threshold}")
    before = None
    if a.compare is not None:  # read first: it may be the file that is about to be written
        try:
            load(a.compare)
            before = a.compare.read_bytes()
        except (OSError, ValueError, KeyError, TypeError) as error:
            parser.error(f"--compare must be a benchmarks' times.json, got {a.compare}: {error!r}")
    turns, seconds = (1, 0.05) if a.quick else (a.turns, a.seconds)

    from dvae_fast import ops
    from dvae_fast.files import CheckpointError
    from dvae_fast.models import load_model

    if a.run is not None:  # it is read last, after all the rest
        try:
            load_model(a.run)
        except CheckpointError as error:
            parser.error(f"--run: {error}")
    if not ops.library_loaded() and not a.allow_reference:
        fail(f"no compiled kernels ({ops.LIBRARY_ERROR}); build them with: {ops.BUILD_COMMAND}")
    busy = os.getloadavg()[0]
    if busy > 0.5:
        print(f"The load average is {busy:.2f}: others use the machine, and figures will tell.")

    from bench_growth import points

    expected = expected_minutes(turns, seconds, len(points()))
    print(f"Expected: about {expected:.0f} minutes on two quiet cores.", flush=True)
    begun = time.monotonic()
    RAW.mkdir(parents=True, exist_ok=True)
    for old in RAW.glob("*.json"):
        old.unlink()  # a report is of one run
    kept_before = RAW / "before.json"
    if before is not None:
        kept_before.write_bytes(before)
    times, kept, growth, memory, growth_memory, accuracy, evaluator = (
        RAW / f"{name}.json"
        for name in ["times", "kept", "growth", "memory", "growth_memory", "accuracy", "evaluator"]
    )
    study = str(FOLDER / "bench_growth.py")
    compile_ahead(str(FOLDER), f"--ignore={study}")
    benchmark(times, turns, seconds, str(FOLDER), f"--ignore={study}", f"--load={busy}")
    operators = FOLDER / "bench_operators.py"
    names = [f"{operators}::{name}" for name in KEPT_BENCHMARKS]
    benchmark(kept, turns, seconds / 2, *names, "-k", KEPT_SIZES, environment=KEPT)
    benchmark(growth, turns, seconds * GROWTH_SHARE, study, choose=0)
    peak_memory = str(FOLDER / "peak_memory.py")
    run_together(
        [
            (sys.executable, peak_memory, f"--json={memory}"),
            (sys.executable, peak_memory, "--growth", f"--json={growth_memory}"),
            (sys.executable, str(FOLDER / "accuracy.py"), f"--json={accuracy}"),
        ]
    )
    judged = ("--run", str(a.run)) if a.run else ()
    run(sys.executable, str(FOLDER / "evaluator.py"), f"--json={evaluator}", *judged)
    command = shlex.join(["python", "benchmarks/run.py", *sys.argv[1:]])
    write(RAW, a.output, command)
    taken = (time.monotonic() - begun) / 60
    print(f"Wrote {a.output} after {taken:.1f} minutes, {expected:.0f} expected.")
    if before is not None:
        sys.exit(compare(kept_before, times, a.threshold))


if __name__ == "__main__":
    main()
