"""scripts/gpu_check: what it records when steps fail, hang, are killed, or lack what they need."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable

sys.path.append(str(Path(__file__).parent.parent / "scripts"))
sys.path.append(str(Path(__file__).parent.parent / "benchmarks"))

from gpu_check import library, process, steps, targets
from gpu_check.main import limits, run_step, run_steps
from gpu_check.process import Outcome, run
from gpu_check.sources import ROOT, sources_hash
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
        stub("memcheck", no_step, needs=("numpy", "hypothesis")),
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
    assert summaries["memcheck"] == "not installed: hypothesis"
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


# --- the library ----------------------------------------------------------------------------------


class FakeContext(Context):
    """Answers commands instead of running them; keeps what was asked."""

    def answer(self, *outcomes: tuple[str, int | None, str]) -> None:
        """(part of the command, exit status, output), the first that fits."""
        self.outcomes, self.asked = list(outcomes), []

    def run(self, command: list[str], seconds: float, env: dict[str, str] | None = None) -> Outcome:
        self.asked.append((" ".join(command), seconds, env or {}))
        for part, code, output in self.outcomes:
            if part in " ".join(command):
                return Outcome(code, 1.0, output)
        raise AssertionError(f"unexpected: {command}")


@pytest.fixture
def fake(tmp_path: Path) -> FakeContext:
    for name in ("csrc/core", "csrc/cuda", "dvae_fast", "prebuilt", "out"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "csrc/core/math.h").write_text("float f();")
    (tmp_path / "csrc/cuda/iwae.cu").write_text("__global__ void g();")
    (tmp_path / "dvae_fast/_C.abi3.so").write_bytes(b"old")
    (tmp_path / "prebuilt/_C.abi3.so").write_bytes(b"brought")
    (tmp_path / "prebuilt/SOURCES.sha256").write_text(sources_hash(tmp_path) + "  csrc\n")
    context = FakeContext(tmp_path, tmp_path / "out", "cuda")
    context.log = tmp_path / "out" / "log"
    context.machine = {
        "modules": ["setuptools", "ninja", "pybind11", "numpy", "pytest"],
        "capability": [9, 0],
        "cores": 16,
        "compute_sanitizer": "/bin/compute-sanitizer",
    }
    context.env["CUDA_HOME"] = "/opt/cuda"
    context.env.pop("TORCH_CUDA_ARCH_LIST", None)
    return context


def content(context: Context) -> bytes:
    return (context.root / library.LIBRARY).read_bytes()


def test_hash_of_the_sources_is_of_paths_and_contents_alone(tmp_path: Path) -> None:
    (tmp_path / "a/csrc/x").mkdir(parents=True)
    (tmp_path / "a/csrc/x/b.h").write_bytes(b"1")
    (tmp_path / "a/csrc/a.h").write_bytes(b"2")
    known = hashlib.sha256(b"csrc/a.h\x002\x00csrc/x/b.h\x001\x00").hexdigest()
    assert sources_hash(tmp_path / "a") == known
    (tmp_path / "a").rename(tmp_path / "b")
    assert sources_hash(tmp_path / "b") == known
    (tmp_path / "b/csrc/a.h").rename(tmp_path / "b/csrc/c.h")
    assert sources_hash(tmp_path / "b") != known


def test_prebuilt_library_is_taken_and_known_the_next_time(fake: FakeContext) -> None:
    fake.answer(("probe.py cuda", 0, "{}"))
    verdict = library.library(fake, 150)
    assert (verdict.status, verdict.summary) == (PASSED, "prebuilt/_C.abi3.so, brought along")
    assert content(fake) == b"brought"
    assert library.library(fake, 150).summary == "in place already"
    (fake.root / "csrc/core/math.h").write_text("double f();")
    assert not library.stamped(fake.root)


@pytest.mark.parametrize(
    "change, reason",
    [
        (lambda r: (r / "csrc/new.h").write_text(""), "is of other sources than csrc"),
        (lambda r: (r / "prebuilt/SOURCES.sha256").unlink(), "no prebuilt/SOURCES.sha256"),
        (lambda r: (r / "prebuilt/SOURCES.sha256").write_text(""), "is of other sources"),
        (lambda r: (r / "prebuilt/_C.abi3.so").unlink(), "no prebuilt/_C.abi3.so"),
    ],
)
def test_library_is_built_where_the_prebuilt_one_does_not_fit(
    change: Callable[[Path], object], reason: str, fake: FakeContext
) -> None:
    change(fake.root)
    fake.answer(("setup.py", 0, ""), ("probe.py", 0, "{}"))
    verdict = library.library(fake, 150)
    assert verdict.status == PASSED
    assert reason in verdict.summary
    command, seconds, env = fake.asked[0]
    assert command.endswith("setup.py --quiet build_ext --inplace")
    assert 100 < seconds <= 120
    assert (env["DVAE_FAST_CUDA"], env["TORCH_CUDA_ARCH_LIST"]) == ("1", "9.0a")
    assert library.stamped(fake.root)


def test_prebuilt_library_that_does_not_run_gives_way_to_the_one_before(fake: FakeContext) -> None:
    wrong = "RuntimeError: no kernel image is available for execution on the device"
    fake.answer(("probe.py", 1, f"Traceback\n{wrong}\n"), ("setup.py", 1, "nvcc: out of memory"))
    verdict = library.library(fake, 150)
    assert verdict.status == FAILED
    assert wrong in verdict.summary
    assert "nvcc: out of memory" in verdict.summary
    assert content(fake) == b"old"
    assert not library.stamped(fake.root)


def test_library_without_what_a_build_needs(fake: FakeContext) -> None:
    (fake.root / "prebuilt/_C.abi3.so").unlink()
    fake.machine["modules"].remove("pybind11")
    fake.answer()
    verdict = library.library(fake, 150)
    assert verdict.status == FAILED
    assert "cannot build without pybind11" in verdict.summary


def test_architecture_has_hoppers_own_instructions() -> None:
    assert [library.architecture(c) for c in ([9, 0], [8, 6], [10, 0])] == ["9.0a", "8.6", "10.0"]


# --- what the steps read --------------------------------------------------------------------------


@pytest.mark.parametrize(
    "code, output, status, summary",
    [
        (0, "========= ERROR SUMMARY: 0 errors\n", PASSED, "ERROR SUMMARY: 0 errors"),
        (9, "========= ERROR SUMMARY: 2 errors\nx\n", FAILED, "ERROR SUMMARY: 2 errors; exit 9: x"),
        (1, "========= Error: Device not supported\n", SKIPPED, "Device not supported, says"),
        (None, "", "timed out", "no summary; stopped after 1 s"),
    ],
)
def test_sanitizer(
    code: int | None, output: str, status: str, summary: str, fake: FakeContext
) -> None:
    fake.answer(("--help", 0, "--kernel-name"), ("--tool memcheck", code, output))
    verdict = steps.sanitizer("memcheck")(fake, 40)
    assert verdict.status == status
    assert verdict.summary.startswith(summary)
    command, _, env = fake.asked[1]
    assert "--kernel-name kns=dvae" in command
    assert "-m dvae_fast.checking --device cuda --small" in command
    assert env == {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}


def test_sanitizer_that_is_not_there_or_has_nothing_to_look_at(fake: FakeContext) -> None:
    fake.answer()
    fake.machine["compute_sanitizer"] = ""
    assert steps.sanitizer("racecheck")(fake, 40).status == SKIPPED
    assert (
        steps.sanitizer("racecheck")(FakeContext(fake.root, fake.out, "cpu"), 40).status == SKIPPED
    )


def row(**values: Any) -> dict[str, Any]:
    return {
        "operator": "log_weights",
        "what": "values",
        "dtype": "float32",
        "cases": 5,
        "worst": 0.5,
        "verdict": "passed",
        "detail": "",
    } | values


def test_check_names_what_is_wrong(fake: FakeContext) -> None:
    fake.answer(("dvae_fast.checking", 1, ""))
    report = {
        "rows": [row(), row(operator="iwae", verdict="failed", detail="3 of 9 elements off")],
        "failed_operators": ["iwae"],
        "incomplete": "",
    }
    path = fake.out / "check.json"
    fake.run = lambda *a, **k: (path.write_text(json.dumps(report)), Outcome(1, 1.0, ""))[1]  # type: ignore[method-assign]
    verdict = steps.check(fake, 40)
    assert verdict.status == FAILED
    assert verdict.summary == (
        "10 cases, wrong: iwae; first iwae values float32: 3 of 9 elements off"
    )
    assert verdict.details["failed_operators"] == ["iwae"]


def test_check_without_a_report_is_no_pass(fake: FakeContext) -> None:
    (fake.out / "check.json").write_text("{}")  # of a run before
    fake.answer(("dvae_fast.checking", 0, "well"))
    assert steps.check(fake, 40).status == FAILED


def test_tests_are_counted_and_the_failed_named(fake: FakeContext) -> None:
    xml = """<testsuites><testsuite tests="7" failures="1" errors="1" skipped="2">
    <testcase classname="tests.test_a" name="test_x[cuda]"><failure message="off by 3&#10;more"/>
    </testcase><testcase classname="tests.test_b" name="test_y"><error message="lost"/></testcase>
    <testcase><skipped message="no time is left for it"/></testcase>
    <testcase><skipped message="no GPU"/></testcase>
    </testsuite></testsuites>"""
    (fake.root / "tests").mkdir()
    (fake.root / "tests/test_a.py").write_text('@pytest.mark.parametrize("device", DEVICES)')
    (fake.root / "tests/test_c.py").write_text("def test_of_the_cpu(): ...")
    asked = []

    def answer(command: list[str], seconds: float, env: dict[str, str]) -> Outcome:
        asked.append((command, env))
        (fake.out / "tests.xml").write_text(xml)
        return Outcome(1, 1.0, "1 failed")

    fake.run = answer  # type: ignore[method-assign]
    verdict = steps.tests(fake, 100)
    assert verdict.status == FAILED
    assert verdict.summary == (
        "7 tests, 2 failed, 2 skipped, 1 of them for lack of time; "
        "first tests.test_a::test_x[cuda]: off by 3"
    )
    assert len(verdict.details["failed"]) == 2
    ((command, env),) = asked
    assert [part for part in command if part.startswith("tests/")] == ["tests/test_a.py"]
    assert "-n" not in command  # no xdist here
    assert env["DVAE_FAST_SAMPLE"] == str(steps.SAMPLE)
    fake.machine["modules"].append("xdist")
    steps.tests(fake, 100)
    assert asked[1][0][-2:] == ["-n", "14"]


# --- targets --------------------------------------------------------------------------------------


def result(key: str, seconds: float, eager: float = 1.0, **more: Any) -> dict[str, Any]:
    times = {"ours": seconds, "eager, a": eager, "eager, b": 2 * eager, "compile": 1e-9}
    return {"key": key, "bytes": 100, "seconds": times, "wall_seconds": times, "errors": {}} | more


def measured() -> dict[str, Any]:
    return {
        "results": [
            result("copy", 1.0),
            result("log_weights float32", 1 / 0.86),
            result("log_weights bfloat16", 1 / 0.84),
            result("iwae_loss K=50 float32", 1 / 0.81, eager=6.1 / 0.81),
            result("evaluation bfloat16", 0.29),
            result("training K=5", 101e-6),
        ]
    }


def met(rows: list[dict[str, Any]]) -> list[bool | None]:
    return [r["met"] for r in rows]


def test_targets_are_met_or_missed_or_unknown() -> None:
    check = {"rows": [row(), row(operator="corrupt", what="masks"), row(dtype="bfloat16", worst=9)]}
    rows = targets.targets(check, measured())
    assert met(rows) == [True, True, True, False, True, True, True, False]
    table = targets.table(rows)
    assert [line.split()[-1] for line in table.splitlines()] == [
        *("met", "met", "met", "MISSED", "met", "met", "met", "MISSED")
    ]
    assert "84.0 %" in table
    assert "101.0 µs" in table
    assert met(targets.targets(None, None)) == [None] * 8
    assert met(targets.targets(check, measured(), dry_run=True)) == [None] * 8


def test_targets_of_wrong_results_are_missed() -> None:
    check = {
        "rows": [
            row(worst="inf", verdict="failed"),
            row(operator="corrupt", what="masks", verdict="failed"),
        ]
    }
    bench = measured()
    bench["results"][1]["errors"] = {"ours, result": "AssertionError: must agree"}
    rows = targets.targets(check, bench)
    assert met(rows)[:4] == [False, False, False, False]
    assert rows[2]["shown"] == "AssertionError: must agree"
    # Nothing was compared where no case ran.
    check = {"rows": [row(cases=0), row(operator="corrupt", what="masks", cases=0)]}
    assert met(targets.targets(check, None))[:2] == [None, None]


# --- the sample of the tests ----------------------------------------------------------------------


def sampled(every: str, monkeypatch: pytest.MonkeyPatch) -> tuple[list[str], int]:
    spec = importlib.util.spec_from_file_location("tests_conftest", ROOT / "tests" / "conftest.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    names = [f"test_many[{d}-{i}]" for d in ("float64", "float32") for i in range(50)]
    names += [f"test_few[{i}]" for i in range(3)] + ["test_one"]
    items = [
        SimpleNamespace(nodeid=f"tests/a.py::{n}", name=n, originalname=n.partition("[")[0])
        for n in names
    ]
    left_out: list[Any] = []
    hook = SimpleNamespace(pytest_deselected=lambda items: left_out.extend(items))
    monkeypatch.setenv("DVAE_FAST_SAMPLE", every)
    module.pytest_collection_modifyitems(SimpleNamespace(hook=hook), items)
    return [item.name for item in items], len(left_out)


def test_sample_takes_every_nth_case_and_small_tests_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    kept, left_out = sampled("20", monkeypatch)
    assert kept == [
        *("test_many[float32-10]", "test_many[float32-30]"),
        *("test_few[0]", "test_few[1]", "test_few[2]", "test_one"),
        *("test_many[float64-0]", "test_many[float64-20]", "test_many[float64-40]"),
    ]
    assert left_out == 95
    kept, left_out = sampled("1", monkeypatch)
    assert (len(kept), left_out) == (104, 0)


@pytest.mark.parametrize("wrong", ["0", "-3", "two", ""])
def test_sample_must_be_a_number(wrong: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(pytest.UsageError, match="DVAE_FAST_SAMPLE must be an integer >= 1"):
        sampled(wrong, monkeypatch)


# --- the benchmarks -------------------------------------------------------------------------------


def test_benchmarks_keep_what_others_failed_at_and_add_to_the_file(tmp_path: Path) -> None:
    import torch
    from gpu_bench import Bench, Store, assert_agrees

    path, x = tmp_path / "bench.json", torch.ones(3)

    def fails() -> None:
        raise RuntimeError("no kernel image\nmore")

    def bench(families: tuple[str, ...], append: bool) -> dict[str, Any]:
        b = Bench(torch.device("cpu"), 0.001, True, Store(path, {"device": "CPU"}, append))
        b.families = families
        wrong = lambda: assert_agrees("sum", x.sum(), x.double().sum() + 1e-3, torch.float32)
        calls = {"ours": lambda: x.sum(), "eager, a": fails, "compile": lambda: x + 1}
        b.run("sum", "sum of 3", calls, bytes=12, agrees=wrong)
        assert b.failed == ("ours" in families)
        (found,) = json.loads(path.read_text())["results"]
        return found

    first = bench(("ours", "eager"), append=False)
    assert set(first["seconds"]) == set(first["wall_seconds"]) == {"ours"}
    assert first["errors"]["eager, a"] == "RuntimeError: no kernel image"
    assert "must agree with float64 to 0.0001, got 0.000" in first["errors"]["ours, result"]
    both = bench(("compile",), append=True)
    assert set(both["seconds"]) == {"ours", "compile"}
    assert both["errors"] == first["errors"]
    assert set(bench(("compile",), append=False)["seconds"]) == {"compile"}
    assert os.listdir(tmp_path) == ["bench.json"]
