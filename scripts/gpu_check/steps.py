"""The steps, in their order; each is bounded, and says what it found in a line."""

from __future__ import annotations

import json
import os
import re
import sys
import time
import xml.etree.ElementTree as ElementTree
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gpu_check.library import library
from gpu_check.process import Outcome, run
from gpu_check.targets import read
from gpu_check.verdict import FAILED, PASSED, SKIPPED, TIMED_OUT, Verdict

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

#: what the steps write into the output folder, beside verdict.json
LIBRARY_LOG, BENCH_LOG, TESTS_LOG = "library.log", "bench.log", "tests.log"
CHECK_JSON, BENCH_JSON, TESTS_XML = "check.json", "bench.json", "tests.xml"
FILES = (LIBRARY_LOG, BENCH_LOG, TESTS_LOG, CHECK_JSON, BENCH_JSON, TESTS_XML, "verdict.json")

#: of a test with many cases, one of so many runs: test_operators has thousands
SAMPLE, DRY_SAMPLE = 7, 211

#: why tests/conftest.py skips a test
NO_TIME = "no time is left for it"

#: exit status of benchmarks/gpu.py where the GPU takes no more work, which a new process may
BROKEN = 3

#: exit status of compute-sanitizer where it finds something
FOUND = 9


@dataclass
class Context:
    """Where and with what the steps run."""

    root: Path
    out: Path
    device: str
    dry_run: bool = False
    python: str = sys.executable
    machine: dict[str, Any] = field(default_factory=dict)
    env: dict[str, str] = field(default_factory=dict)
    log: Path = Path(os.devnull)

    def __post_init__(self) -> None:
        self.env = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join(
                [str(self.root), *filter(None, [os.environ.get("PYTHONPATH")])]
            ),
            "PYTHONUNBUFFERED": "1",
            # What is measured and tested is the kernels, whatever a check of them remembers.
            "DVAE_FAST_CHECK": "0",
            **({"OMP_NUM_THREADS": "1"} if self.dry_run else {}),
            # ninja and the like of pip are beside the interpreter.
            "PATH": os.pathsep.join(
                [str(Path(self.python).parent), os.environ.get("PATH", ""), "/usr/local/cuda/bin"]
            ),
            **self.env,
        }

    def run(self, command: list[str], seconds: float, env: dict[str, str] | None = None) -> Outcome:
        whole = self.env | (env or {})
        return run(command, seconds=seconds, log=self.log, cwd=self.root, env=whole)

    def missing(self, modules: Iterable[str]) -> str:
        """Of the modules, those that are not installed, in words; "" if all are."""
        have = self.machine.get("modules", ())
        return ", ".join(m for m in modules if m not in have)


# --- machine --------------------------------------------------------------------------------------


def machine(context: Context, seconds: float) -> Verdict:
    script = "scripts/gpu_check/about.py"
    outcome = context.run([context.python, script, str(context.root), context.device], seconds)
    if outcome.status != PASSED:
        return Verdict(outcome.status, f"{outcome.ended()}: {outcome.last_lines()}")
    context.machine = facts = json.loads(outcome.last_lines())
    if facts["error"]:
        return Verdict(FAILED, facts["error"])
    driver = f", driver {facts['driver']}" if facts["driver"] else ""
    return Verdict(
        PASSED,
        f"{facts['device']}{driver}, torch {facts['torch']}, Python {facts['python']}, "
        f"{facts['cores']} cores",
    )


# --- check ----------------------------------------------------------------------------------------


def _checking(context: Context) -> list[str]:
    return [context.python, "-m", "dvae_fast.checking", "--device", context.device]


def check(context: Context, seconds: float) -> Verdict:
    path = context.out / CHECK_JSON
    path.unlink(missing_ok=True)
    small = ["--small"] if context.dry_run else []
    outcome = context.run([*_checking(context), "--json", str(path), *small], seconds)
    found = read(path)
    if found is None:
        return Verdict(
            outcome.status if outcome.status != PASSED else FAILED,
            f"no report: {outcome.ended()}: {outcome.last_lines()}",
        )
    rows = found["rows"]
    wrong = [row for row in rows if row["verdict"] == "failed"]
    details = {"failed_operators": found["failed_operators"], "incomplete": found["incomplete"]}
    summary = f"{sum(row['cases'] for row in rows)} cases"
    if wrong:
        first = wrong[0]
        summary += (
            f", wrong: {', '.join(found['failed_operators'])}; first {first['operator']} "
            f"{first['what']} {first['dtype']}: {first['detail']}"
        )
    if found["incomplete"]:
        summary += f", broken off: {found['incomplete']}"
    if outcome.status == FAILED and not (wrong or found["incomplete"]):
        summary += f", {outcome.ended()}: {outcome.last_lines()}"
    return Verdict(outcome.status, summary, details)


# --- benchmarks -----------------------------------------------------------------------------------


def _benchmark(context: Context, seconds: float, families: str, case: float) -> Verdict:
    """`case`: seconds that one of them may take; none is begun later than that before the end."""
    path = context.out / BENCH_JSON
    command = [context.python, "benchmarks/gpu.py", "--json", str(path), "--append"]
    command += ["--rivals", families, "--seconds", "0.15"]
    end = time.monotonic() + seconds
    if context.dry_run:
        command.append("--tiny")
    again: list[str] = []
    while True:
        left = end - time.monotonic()
        limit = ["--limit", f"{max(0.0, left - case):.0f}"]
        outcome = context.run([*command, *limit, *again], left)
        again = ["--resume"]
        if outcome.returncode != BROKEN or end - time.monotonic() < case:
            break
    found = read(path)
    if found is None:
        return Verdict(
            outcome.status if outcome.status != PASSED else FAILED,
            f"nothing measured: {outcome.ended()}: {outcome.last_lines()}",
        )
    wanted = families.split(",")
    results = {r["key"]: r for r in found["results"]}
    measured = [k for k, r in results.items() if any(_is_of(n, wanted) for n in r["seconds"])]
    errors = {
        f"{key}, {name}": text
        for key, r in results.items()
        for name, text in r["errors"].items()
        if _is_of(name, wanted)
    }
    parts = [f"{len(measured)} cases"]
    for key, work, unit in (("copy", "bytes", "TB/s"), ("product bfloat16", "flops", "TFLOP/s")):
        if key in measured and "ours" in results[key]["seconds"]:
            rate = results[key][work] / results[key]["seconds"]["ours"]
            parts.append(f"{key} {rate / 1e12:.4g} {unit}")
    complete = set(wanted) <= set(found["complete"])
    if not complete:
        parts.append("not all of them")
    for whole, text in found["failures"].items():  # of whole cases
        if set(whole.rpartition(", ")[2].split(" and ")) & set(wanted):
            errors[whole] = text
    parts += [f"{name}: {text}" for name, text in list(errors.items())[:3]]
    status = FAILED if errors and outcome.status == PASSED else outcome.status
    return Verdict(status, "; ".join(parts), {"complete": complete, "errors": errors})


def _is_of(rival: str, families: list[str]) -> bool:
    return rival.partition(",")[0] in families


def bench(context: Context, seconds: float) -> Verdict:
    verdict = _benchmark(context, seconds, "ours,eager", case=15)
    if verdict.status == PASSED and not verdict.details["complete"]:
        return replace(verdict, status=TIMED_OUT)
    return verdict


def compiled(context: Context, seconds: float) -> Verdict:
    """As many as there is time for."""
    families = "compile" if context.dry_run else "compile,max-autotune"
    return _benchmark(context, seconds, families, case=40)


# --- tests ----------------------------------------------------------------------------------------


def test_files(root: Path) -> list[str]:
    """Those with a test that takes a GPU; to collect the others takes longer than it is worth."""
    words = ("DEVICES", "each_device", "cuda.is_available")
    return [
        p.relative_to(root).as_posix()
        for p in sorted((root / "tests").rglob("test_*.py"))
        if "gpu_check" not in p.name and any(word in p.read_text() for word in words)
    ]


def _junit(path: Path) -> dict[str, int]:
    suites = ElementTree.parse(path).getroot().iter("testsuite")
    counts = {"tests": 0, "failures": 0, "errors": 0, "skipped": 0, "no_time": 0}
    for suite in suites:
        for name in counts:
            counts[name] += int(suite.get(name, 0))
        for case in suite.iter("testcase"):
            skipped = case.find("skipped")
            counts["no_time"] += skipped is not None and NO_TIME in (skipped.get("message") or "")
    return counts


def _failures(output: str) -> list[str]:
    """As tests/conftest.py prints them: the first tests that failed, each with a line of why.

    One whose process it took along is there again, without the reason.
    """
    found: dict[str, str] = {}
    for line in output.splitlines():
        match = re.match(r"FAILED (.+?): (.*)", line)
        if match:
            found.setdefault(match.group(1), match.group(2).strip())
    return [f"{test}: {why}"[:300] for test, why in list(found.items())[:20]]


def tests(context: Context, seconds: float) -> Verdict:
    path = context.out / TESTS_XML
    path.unlink(missing_ok=True)
    files, selected, sample = test_files(context.root), "cuda or gpu or graphed", SAMPLE
    if context.dry_run:
        files = [f for f in files if f.endswith("test_operators.py")]
        selected, sample = "agrees_with_float64_reference", DRY_SAMPLE
    command = [context.python, "-m", "pytest", "-q", "-p", "no:cacheprovider", *files]
    command += ["-k", selected, "--maxfail=50", "--tb=line", f"--junitxml={path}"]
    processes = min(14, context.machine["cores"] - 2)
    if processes > 1 and not context.missing(["xdist"]):
        command += ["-n", str(processes)]
    # What is left then is skipped, for a pytest that is killed writes no report.
    until = time.time() + seconds - max(15, 0.15 * seconds)
    env = {
        "DVAE_FAST_SAMPLE": str(sample),
        "DVAE_FAST_SAMPLE_UNTIL": f"{until:.0f}",
        "OMP_NUM_THREADS": "1",
    }
    outcome = context.run(command, seconds, env)
    failed = _failures(outcome.output)
    try:
        counts = _junit(path)
    except (OSError, ElementTree.ParseError):
        summary = f"no report: {outcome.ended()}: {'; '.join(failed[:1]) or outcome.last_lines()}"
        status = outcome.status if outcome.status != PASSED else FAILED
        return Verdict(status, summary, {"failed": failed})
    bad = counts["failures"] + counts["errors"]
    summary = f"{counts['tests']} tests, {bad} failed, {counts['skipped']} skipped"
    if counts["no_time"]:
        summary += f", {counts['no_time']} of them for lack of time"
    if failed:
        summary += f"; first {failed[0]}"
    elif outcome.status != PASSED:
        summary += f"; {outcome.ended()}: {outcome.last_lines()}"
    status = outcome.status
    if status == PASSED and counts["tests"] == counts["skipped"]:  # which shows nothing
        status = SKIPPED if counts["no_time"] else FAILED
    return Verdict(status, summary, {"counts": counts, "failed": failed})


# --- compute-sanitizer ----------------------------------------------------------------------------


def sanitizer(tool: str) -> Callable[[Context, float], Verdict]:
    def step(context: Context, seconds: float) -> Verdict:
        if context.device == "cpu":
            return Verdict(SKIPPED, "kernels of a GPU alone can be looked at")
        program = context.machine.get("compute_sanitizer")
        if not program:
            return Verdict(SKIPPED, "compute-sanitizer is not installed")
        start = time.monotonic()
        command = [program, "--tool", tool, "--error-exitcode", str(FOUND)]
        if "--kernel-name" in context.run([program, "--help"], 10).output:
            command += ["--kernel-name", "kns=dvae"]  # ours alone
        # Each tensor an allocation of its own, or a kernel could leave one unnoticed for what
        # torch's allocator has beside it.
        env = {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"} if tool == "memcheck" else {}
        left = seconds - (time.monotonic() - start)
        outcome = context.run([*command, *_checking(context), "--small"], left, env)
        lines = [line for line in outcome.output.splitlines() if line.startswith("=========")]
        errors = [line.strip("= ") for line in lines if "SUMMARY" in line]
        if outcome.status != PASSED and "Device not supported" in outcome.output:
            return Verdict(SKIPPED, "Device not supported, says compute-sanitizer")
        summary = "; ".join(errors[-1:]) or "no summary"
        if outcome.status != PASSED:
            summary += f"; {outcome.ended()}: {outcome.last_lines()}"
        return Verdict(outcome.status, summary, {"found": outcome.returncode == FOUND})

    return step


# --- the list -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Step:
    name: str
    action: Callable[[Context, float], Verdict]
    #: seconds at most; in a dry run, which may have half a core, as many as show that it hangs
    most: float
    dry: float
    log: str
    needs: tuple[str, ...] = ()
    #: gets its time whatever is asked for: other steps have what these leave
    important: bool = False


STEPS = (
    Step("machine", machine, 40, 60, LIBRARY_LOG, important=True),
    Step("library", library, 150, 120, LIBRARY_LOG, ("numpy",), important=True),
    Step("check", check, 40, 120, LIBRARY_LOG, ("numpy",), important=True),
    Step("bench", bench, 90, 120, BENCH_LOG, ("numpy",), important=True),
    Step(
        "tests",
        tests,
        110,
        120,
        TESTS_LOG,
        ("pytest", "pytest_benchmark", "scipy", "numpy"),
    ),
    Step("memcheck", sanitizer("memcheck"), 60, 10, TESTS_LOG, ("numpy",)),
    Step("racecheck", sanitizer("racecheck"), 60, 10, TESTS_LOG, ("numpy",)),
    Step("compile", compiled, 600, 120, BENCH_LOG, ("numpy",)),
)
