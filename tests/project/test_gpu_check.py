"""scripts/gpu_check: what it records when steps fail, hang, are killed, or have no time."""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable

sys.path.append(str(Path(__file__).parents[2] / "scripts"))

from gpu_check import main, process, steps
from gpu_check.main import limits, run_step, run_steps
from gpu_check.process import Outcome, run
from gpu_check.sources import ROOT
from gpu_check.steps import STEPS, Context, Step
from gpu_check.verdict import FAILED, KILLED, PASSED, SKIPPED, Record, Verdict


def shell(tmp_path: Path, script: str, seconds: float = 20) -> Outcome:
    return run(["bash", "-c", script], seconds=seconds, log=tmp_path / "log", cwd=tmp_path)


def is_running(pid: int) -> bool:
    """A zombie, which nobody may have waited for, is not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


# --- a command with a limit -----------------------------------------------------------------------


@pytest.mark.parametrize(
    "script, status, ended",
    [
        ("echo out; echo err >&2", "passed", "exit 0"),
        ("echo out; echo err >&2; exit 3", "failed", "exit 3"),
        ("echo out; echo err >&2; kill -SEGV $$", "failed", "killed by SIGSEGV"),
    ],
)
def test_command_ends_and_its_output_is_kept(
    script: str, status: str, ended: str, tmp_path: Path
) -> None:
    outcome = shell(tmp_path, script)
    assert (outcome.status, outcome.ended()) == (status, ended)
    assert outcome.output == "out\nerr\n"
    assert outcome.last_lines() == "err"
    assert "out\nerr\n" in (tmp_path / "log").read_text()


def test_command_that_is_not_there(tmp_path: Path) -> None:
    outcome = run(["no-such-program"], seconds=5, log=tmp_path / "log", cwd=tmp_path)
    assert (outcome.status, outcome.returncode) == ("failed", 127)
    assert "no-such-program" in (tmp_path / "log").read_text()


def test_command_out_of_time_is_stopped_with_its_children(tmp_path: Path) -> None:
    start = time.monotonic()
    outcome = shell(tmp_path, "sleep 100 & echo $!; trap '' INT; wait", seconds=1)
    assert time.monotonic() - start < 10
    assert outcome.status == "timed out"
    assert "stopped after" in outcome.ended()
    deadline = time.monotonic() + 5
    while is_running(int(outcome.output)) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not is_running(int(outcome.output))


def test_command_out_of_time_may_say_its_last(tmp_path: Path) -> None:
    outcome = shell(tmp_path, "trap 'echo so far: 7; exit 0' INT; sleep 100 & wait", seconds=2)
    assert outcome.status == "timed out"
    assert outcome.output == "so far: 7\n"


def test_child_that_leaves_the_group_is_not_waited_for(tmp_path: Path) -> None:
    start = time.monotonic()
    outcome = shell(tmp_path, "setsid sleep 60 & echo $!", seconds=30)
    try:
        assert outcome.status == "passed"
        assert time.monotonic() - start < 15
    finally:
        os.kill(int(outcome.output.split()[0]), signal.SIGKILL)


def test_output_without_end_is_cut_in_the_middle(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(process, "HEAD", 10_000)
    monkeypatch.setattr(process, "TAIL", 5_000)
    outcome = shell(tmp_path, "seq 1000000; echo the end")
    assert outcome.status == "passed"
    text = (tmp_path / "log").read_text()
    assert len(text) < 100_000
    assert "\n1\n2\n3\n" in text
    assert "bytes are left out here" in text
    assert outcome.last_lines(2) == "1000000\nthe end"


# --- the record -----------------------------------------------------------------------------------


def test_record_tells_of_a_step_from_its_start_and_of_a_kill(tmp_path: Path) -> None:
    path = tmp_path / "verdict.json"
    record = Record(path)
    record.begin("bench", 90.0, "bench.log")
    (step,) = json.loads(path.read_text())["steps"]
    assert (step["status"], step["limit"], step["log"]) == ("running", 90.0, "bench.log")
    # Killed here; the next run finds this.
    again = Record(path)
    found = again.step("bench")
    assert found is not None
    assert found["status"] == KILLED
    assert again.bad() == ["bench"]
    again.begin("bench", 60.0, "bench.log")
    again.end("bench", Verdict(PASSED, "well", {"cases": 3}), 1.234)
    (step,) = json.loads(path.read_text())["steps"]
    assert (step["status"], step["seconds"], step["details"]) == (PASSED, 1.23, {"cases": 3})
    assert os.listdir(tmp_path) == ["verdict.json"]


# --- steps ----------------------------------------------------------------------------------------


def no_step(context: Context, seconds: float) -> Verdict:
    raise AssertionError("must not run")


def stub(name: str, action: Callable[[Context, float], Verdict], **options: Any) -> Step:
    return Step(name, action, **({"most": 20, "dry": 20, "log": f"{name}.log"} | options))


def passes(context: Context, seconds: float) -> Verdict:
    context.machine = {"modules": ["numpy"], "device": "CPU", "commit": "abc", "cores": 1}
    return Verdict(PASSED, "well")


def context_in(tmp_path: Path, **options: Any) -> Context:
    out = tmp_path / "out"
    out.mkdir(exist_ok=True)
    return Context(tmp_path, out, options.pop("device", "cpu"), **options)


def statuses(record: Record) -> dict[str, str]:
    content = json.loads(record.path.read_text())
    return {step["name"]: step["status"] for step in content["steps"]}


def test_a_step_that_fails_or_hangs_leaves_the_others_theirs(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def fails(context: Context, seconds: float) -> Verdict:
        outcome = context.run(["bash", "-c", "echo no such kernel; exit 2"], seconds)
        return Verdict(outcome.status, outcome.last_lines())

    def hangs(context: Context, seconds: float) -> Verdict:
        outcome = context.run(["sleep", "100"], seconds)
        return Verdict(outcome.status, outcome.ended())

    def raises(context: Context, seconds: float) -> Verdict:
        raise KeyError("rows")

    context = context_in(tmp_path)
    record = Record(context.out / "verdict.json")
    chosen = [
        stub("machine", passes),
        stub("library", passes),
        stub("check", fails),
        stub("bench", hangs, most=4),
        stub("tests", raises),
        stub("memcheck", no_step, needs=("numpy", "absent_package")),
        stub("compile", passes),
    ]
    run_steps(context, record, chosen, total=100)
    assert statuses(record) == {
        "machine": "passed",
        "library": "passed",
        "check": "failed",
        "bench": "timed out",
        "tests": "failed",
        "memcheck": "skipped",
        "compile": "passed",
    }
    content = json.loads(record.path.read_text())
    assert content["failed"] == ["check", "bench", "tests"]
    assert content["machine"]["commit"] == "abc"
    assert [t["met"] for t in content["targets"]] == [None] * len(content["targets"])
    summaries = {step["name"]: step["summary"] for step in content["steps"]}
    assert summaries["check"] == "no such kernel"
    assert summaries["tests"] == "gpu_check itself: KeyError: 'rows'"
    assert summaries["memcheck"] == "not installed: absent_package"
    assert "Traceback" in (context.out / "tests.log").read_text()
    assert "    | no such kernel" in capsys.readouterr().out


@pytest.mark.parametrize("bad", ["machine", "library"])
def test_nothing_is_run_on_kernels_that_are_not_there(bad: str, tmp_path: Path) -> None:
    def fails(context: Context, seconds: float) -> Verdict:
        passes(context, seconds)
        return Verdict(FAILED, "torch must see a GPU")

    context = context_in(tmp_path)
    record = Record(context.out / "verdict.json")
    chosen = [
        stub("machine", fails if bad == "machine" else passes),
        stub("library", no_step if bad == "machine" else fails),
        stub("check", no_step),
    ]
    run_steps(context, record, chosen, total=100)
    assert statuses(record)["check"] == SKIPPED
    assert statuses(record)[bad] == FAILED


def test_a_second_run_adds_to_the_first_and_drops_another_commit(tmp_path: Path) -> None:
    context = context_in(tmp_path)
    always = [stub("machine", passes), stub("library", passes)]
    run_steps(context, Record(context.out / "verdict.json"), [*always, stub("check", passes)], 50)
    (context.out / "bench.json").write_text("{}")
    record = Record(context.out / "verdict.json")
    run_steps(context, record, [*always, stub("bench", passes)], 50)
    assert set(statuses(record)) == {"machine", "library", "check", "bench"}
    assert (context.out / "bench.json").exists()

    def other(context: Context, seconds: float) -> Verdict:
        verdict = passes(context, seconds)
        context.machine["commit"] = "def"
        return verdict

    record = Record(context.out / "verdict.json")
    run_steps(context, record, [stub("machine", other), stub("library", passes)], 50)
    assert set(statuses(record)) == {"machine", "library"}
    assert not (context.out / "bench.json").exists()


def test_no_time_left_is_said(tmp_path: Path) -> None:
    context = context_in(tmp_path)
    record = Record(context.out / "verdict.json")
    passes(context, 0)
    verdict = run_step(context, record, stub("machine", no_step), 1.0)
    assert verdict == Verdict(SKIPPED, "no time is left for it (1 s)")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_a_kill_leaves_a_verdict_and_no_process(number: signal.Signals, tmp_path: Path) -> None:
    script = """
import sys
from gpu_check import main
from gpu_check.steps import Step
from gpu_check.verdict import Verdict

def machine(context, seconds):
    context.machine = {"modules": [], "device": "CPU", "commit": "abc"}
    return Verdict("passed", "well")

def sleeps(context, seconds):
    context.run(["bash", "-c", "echo $$ >pid.new; mv pid.new pid; sleep 100"], seconds)

main.STEPS = [Step("machine", machine, 9, 9, "a.log"), Step("library", sleeps, 90, 90, "b.log")]
main.sources.ROOT = __import__("pathlib").Path.cwd()
sys.exit(main.main(["--dry-run", "--steps", "library"]))
"""
    env = os.environ | {"PYTHONPATH": str(ROOT / "scripts"), "OUT": str(tmp_path / "out")}
    process = subprocess.Popen([sys.executable, "-c", script], cwd=tmp_path, env=env)
    pid_file = tmp_path / "pid"
    deadline = time.monotonic() + 60
    while not pid_file.exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    child = int(pid_file.read_text())
    try:
        process.send_signal(number)
        code = process.wait(timeout=30)
        content = json.loads((tmp_path / "out" / "verdict.json").read_text())
        last = content["steps"][-1]
        assert last["name"] == "library"
        if number == signal.SIGKILL:  # nothing could be written any more
            assert (code, last["status"]) == (-number, "running")
            return
        assert (code, last["status"]) == (130, KILLED)
        assert not is_running(child)
    finally:
        if is_running(child):
            os.killpg(child, signal.SIGKILL)


@pytest.mark.parametrize("total", [540, 300, 150, 60])
def test_important_steps_have_their_time_whatever_others_take(total: int) -> None:
    left, given = float(total), {}
    for i, step in enumerate(STEPS):
        given[step.name] = max(0.0, limits(STEPS, i, left, dry_run=False))
        left -= given[step.name]  # each takes all it may
    assert left >= 0
    if total >= 400:
        assert all(given[s.name] == s.most for s in STEPS if s.important)
        assert given["tests"] >= 100
        assert min(given["memcheck"], given["racecheck"]) > 10
    if total >= 150:
        assert given["check"] == 40
        assert given["bench"] == 90


def test_files_fit_what_is_brought_back() -> None:
    assert len(steps.FILES) <= 7  # and one while verdict.json is replaced
    assert {step.log for step in STEPS} < set(steps.FILES)


@pytest.mark.parametrize("name, code", [("check", 1), ("racecheck", 0)])
def test_dry_run_that_leaves_a_step_out_does_not_pass(
    name: str, code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def machine(context: Context, seconds: float) -> Verdict:
        context.machine = {"modules": [], "device": "CPU", "commit": "abc"}
        return Verdict(PASSED, "well")

    chosen = [stub("machine", machine), stub("library", passes), stub(name, passes, needs=("no",))]
    monkeypatch.setattr(main, "STEPS", chosen)
    monkeypatch.setattr(main.signal, "signal", lambda *_: None)
    monkeypatch.setenv("OUT", str(tmp_path))
    monkeypatch.setattr(
        main, "_arguments", lambda _: argparse.Namespace(steps=chosen, dry_run=True, earlier=None)
    )
    assert main.main([]) == code
