"""The command: which steps, in how much time, and what is printed in the end."""

from __future__ import annotations

import argparse
import contextlib
import os
import shutil
import signal
import time
import traceback
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gpu_check import sources
from gpu_check.steps import FILES, STEPS, Context
from gpu_check.targets import read, table, targets
from gpu_check.verdict import FAILED, KILLED, PASSED, SKIPPED, TIMED_OUT, Record, Verdict

if TYPE_CHECKING:
    from collections.abc import Sequence

    from gpu_check.steps import Step

#: seconds under which a step is not begun
LEAST = 3.0
#: what every run begins with: later steps rest on it, and it costs little the second time
ALWAYS = ("machine", "library")
#: what a dry run cannot do
NEED_GPU = ("memcheck", "racecheck")


def say(text: str) -> None:
    """Whoever was reading may be gone; the verdict is in the file."""
    with contextlib.suppress(OSError):
        print(text, flush=True)


class Stopped(BaseException):
    """Somebody wants the whole run to end."""


def limits(steps: Sequence[Step], done: int, left: float, dry_run: bool) -> float:
    """Seconds of step `done`: what it may take at most, and leaves the important ones theirs."""
    most = [s.dry if dry_run else s.most for s in steps]
    kept = sum(m for s, m in zip(steps[done + 1 :], most[done + 1 :], strict=True) if s.important)
    return min(most[done], left - kept)


def _reason_to_skip(context: Context, record: Record, step: Step, seconds: float) -> str:
    for name in ALWAYS[: ALWAYS.index(step.name)] if step.name in ALWAYS else ALWAYS:
        before = record.step(name)
        if before is None or before["status"] != PASSED:
            return f"the step {name} did not pass"
    missing = context.missing(step.needs)
    if missing:
        return f"not installed: {missing}"
    return f"no time is left for it ({max(0.0, seconds):.0f} s)" if seconds < LEAST else ""


def run_step(context: Context, record: Record, step: Step, seconds: float) -> Verdict:
    """One step, whatever it does: its verdict is in the record when this returns or raises."""
    context.log = context.out / step.log
    with context.log.open("a") as f:
        f.write(f"\n== {step.name}, {seconds:.0f} s at most\n")
    record.begin(step.name, seconds, step.log)
    start = time.monotonic()
    verdict = Verdict(KILLED, "the whole run was ended in this step")
    try:
        reason = _reason_to_skip(context, record, step, seconds)
        verdict = Verdict(SKIPPED, reason) if reason else step.action(context, seconds)
    except Exception as error:
        with context.log.open("a") as f:
            traceback.print_exc(file=f)
        text = f"{type(error).__name__}: {error}".splitlines()[0]
        verdict = Verdict(FAILED, f"gpu_check itself: {text}")
    finally:
        record.end(step.name, verdict, time.monotonic() - start)
    return verdict


def run_steps(context: Context, record: Record, steps: Sequence[Step], total: float) -> None:
    start = time.monotonic()
    for done, step in enumerate(steps):
        left = total - (time.monotonic() - start)
        seconds = limits(steps, done, left, context.dry_run)
        verdict = run_step(context, record, step, seconds)
        took = record.step(step.name)["seconds"]  # type: ignore[index]
        say(f"{step.name:10} {verdict.status:9} {took:7.1f} s  {verdict.summary}")
        if verdict.status in (FAILED, TIMED_OUT):
            say(_indented(_tail(context.log)))
        if step.name == "machine" and context.machine:
            begun = record.content["machine"]
            if begun and any(begun.get(k) != context.machine.get(k) for k in ("commit", "device")):
                say("another commit or device than before: its results are left out")
                record.content["steps"] = [record.step("machine")]
                for name in set(FILES) - {step.log, record.path.name}:
                    (context.out / name).unlink(missing_ok=True)
            record.content["machine"] = context.machine
        _conclude(context, record)


def _conclude(context: Context, record: Record) -> None:
    check, bench = (read(context.out / name) for name in ("check.json", "bench.json"))
    ran = {s["name"] for s in record.content["steps"]}
    record.content |= {
        "dry_run": context.dry_run,
        "targets": targets(check, bench, context.dry_run),
        "failed": record.bad(),
        "complete": all(step.name in ran for step in STEPS),
    }
    record.save()


def _left_out(record: Record) -> list[str]:
    """Steps that a dry run, which is to show that all of them work, has skipped without need."""
    skipped = [s["name"] for s in record.content["steps"] if s["status"] == SKIPPED]
    return [name for name in skipped if name not in NEED_GPU]


def _tail(log: Path) -> str:
    with log.open("rb") as f:
        f.seek(max(0, log.stat().st_size - 3000))
        return "\n".join(f.read().decode(errors="replace").splitlines()[-15:])


def _indented(text: str) -> str:
    return "\n".join(f"    | {line}" for line in text.splitlines())


def _steps(text: str) -> list[Step]:
    names = [part.strip() for part in text.split(",") if part.strip()]
    known = [s.name for s in STEPS]
    for name in names:
        if name not in known:
            raise argparse.ArgumentTypeError(f"must be of {', '.join(known)}, got {name!r}")
    return [s for s in STEPS if s.name in (*ALWAYS, *names)]


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="scripts/gpu_check.sh", description="What needs a GPU, in minutes. OUT names a folder."
    )
    parser.add_argument("--steps", type=_steps, default=list(STEPS), metavar="A,B")
    parser.add_argument("--dry-run", action="store_true", help="every step, small, on the CPU")
    parser.add_argument(
        "--from", type=Path, dest="earlier", metavar="FOLDER", help="go on from a run kept there"
    )
    return parser.parse_args(argv)


def _seconds() -> float:
    text = os.environ.get("GPU_CHECK_SECONDS", "540")
    try:
        seconds = float(text)
    except ValueError:
        seconds = -1.0
    if not 0 < seconds < 1e6:
        raise SystemExit(f"gpu_check: GPU_CHECK_SECONDS must be a number > 0, got {text!r}")
    return seconds


def _stop(*_: Any) -> None:
    raise Stopped


def main(argv: Sequence[str] | None = None) -> int:
    a = _arguments(argv)
    total, root = _seconds(), sources.ROOT
    default = "build/gpu_check" if a.dry_run else "benchmarks/gpu_check"
    out = Path(os.environ.get("OUT") or root / default).resolve()
    if a.dry_run and not os.environ.get("OUT"):
        shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True, exist_ok=True)
    if a.earlier is not None:
        if not (a.earlier / "verdict.json").exists():
            raise SystemExit(f"gpu_check: --from must hold a verdict.json, got {a.earlier}")
        for name in FILES:
            if (a.earlier / name).exists() and not (out / name).exists():
                shutil.copyfile(a.earlier / name, out / name)
    context = Context(root, out, "cpu" if a.dry_run else "cuda", a.dry_run)
    try:
        record = Record(out / "verdict.json")
    except (ValueError, KeyError, TypeError) as error:
        raise SystemExit(f"gpu_check: {out / 'verdict.json'} cannot be read ({error})") from None
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, _stop)
    stopped = False
    try:
        run_steps(context, record, a.steps, total)
    except Stopped:
        stopped = True
        _conclude(context, record)
    say(f"\n{table(record.content['targets'])}\n")
    bad = record.bad() + (_left_out(record) if a.dry_run else [])
    say(f"{'Not passed: ' + ', '.join(bad) if bad else 'All passed'}; {record.path}")
    return 130 if stopped else 1 if bad else 0
