"""Run every benchmark and write RESULTS.md: about 25 minutes on two cores that do nothing else.

python benchmarks/run.py [--quick] [--output FILE]
"""

from __future__ import annotations

import argparse
import os
import shlex
import subprocess
import sys
from pathlib import Path

from report import report

FOLDER = Path(__file__).resolve().parent
ROOT = FOLDER.parent
RAW = ROOT / "build" / "benchmarks"

# Large blocks from the heap too, and no memory back to the system: see report.py.
KEPT = {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": str(1 << 40)}
KEPT_BENCHMARKS = ("bench_iwae_loss", "bench_log_weights")


def fail(message: str) -> None:
    sys.exit(f"benchmarks: {message}")


def run(*command: str, environment: dict[str, str] | None = None) -> None:
    print("$", shlex.join(command), flush=True)
    process = subprocess.run(command, cwd=ROOT, env={**os.environ, **(environment or {})})
    if process.returncode != 0:
        fail(f"{shlex.join(command)} failed with status {process.returncode}")


def benchmark(
    json: Path, turns: int, seconds: float, *names: str, environment: dict[str, str] | None = None
) -> None:
    run(
        *(sys.executable, "-m", "pytest", *(names or (str(FOLDER),)), "-x", "-q"),
        *(
            "--benchmark-enable",
            f"--benchmark-json={json}",
            "--benchmark-columns=median,iqr,rounds",
        ),
        *(f"--turns={turns}", f"--seconds={seconds}"),
        environment=environment,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description="Run every benchmark and write RESULTS.md.")
    parser.add_argument("--turns", type=int, default=3, help="times each rival gets its turn")
    parser.add_argument("--seconds", type=float, default=1.5, help="timed seconds a rival and turn")
    parser.add_argument("--quick", action="store_true", help="one short turn, to see that it works")
    parser.add_argument(
        "--run", type=Path, help="folder of a run on MNIST, to try a tolerance on (evaluator.py)"
    )
    parser.add_argument("--output", type=Path, default=FOLDER / "RESULTS.md")
    parser.add_argument(
        "--allow-reference", action="store_true", help="run without compiled kernels too"
    )
    a = parser.parse_args()
    if a.turns < 1 or a.seconds <= 0:
        parser.error(f"--turns and --seconds must be > 0, got {a.turns} and {a.seconds}")
    turns, seconds = (1, 0.1) if a.quick else (a.turns, a.seconds)

    from dvae_fast import ops

    if not ops.library_loaded() and not a.allow_reference:
        fail(f"no compiled kernels ({ops.LIBRARY_ERROR}); build them with: {ops.BUILD_COMMAND}")
    load = os.getloadavg()[0]
    if load > 0.5:
        print(f"The load average is {load:.2f}: others use the machine, and figures will tell.")

    RAW.mkdir(parents=True, exist_ok=True)
    times, kept, memory, accuracy, evaluator = (
        RAW / f"{name}.json" for name in ("times", "kept", "memory", "accuracy", "evaluator")
    )
    benchmark(times, turns, seconds)
    operators = FOLDER / "bench_operators.py"
    names = [f"{operators}::{name}" for name in KEPT_BENCHMARKS]
    benchmark(kept, turns, seconds / 2, *names, environment=KEPT)
    run(sys.executable, str(FOLDER / "peak_memory.py"), f"--json={memory}")
    run(sys.executable, str(FOLDER / "accuracy.py"), f"--json={accuracy}")
    judged = ("--run", str(a.run)) if a.run else ()
    run(sys.executable, str(FOLDER / "evaluator.py"), f"--json={evaluator}", *judged)
    command = shlex.join(["python", "benchmarks/run.py", *sys.argv[1:]])
    a.output.write_text(report(times, memory, accuracy, kept, evaluator, command))
    print(f"Wrote {a.output}")


if __name__ == "__main__":
    main()
