"""What is remembered of a check, for how long, and what stands in for one that cannot be made."""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import json
import subprocess
import sys
import time
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch

import dvae_fast
from dvae_fast import ops
from dvae_fast.checking import CheckError, trust
from dvae_fast.checking.cases import OPERATORS
from dvae_fast.checking.machine import Kind, cuda_kinds
from dvae_fast.checking.process import ended, environment
from dvae_fast.checking.report import FAILED, PASSED, CheckReport, Row
from dvae_fast.checking.trust import Backend, Entry

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

OLD, NEW = Kind("old GPU", "8.0", "cuda:0"), Kind("new GPU", "9.0", "cuda:3")


def report_of(*failed: str, operators: tuple[str, ...] = OPERATORS) -> CheckReport:
    rows = tuple(
        Row(op, "values", "float32", "cuda:0", 1, *((9.0, 9.0, 1.0) if op in failed else (0, 0, 1)),
            FAILED if op in failed else PASSED, operators=(op,))
        for op in operators
    )  # fmt: skip
    return CheckReport({"name": OLD.name}, rows, 1.0)


#: a report without its rows
HALF = '{"format": 1, "outcome": "report", "reason": "", "path": "", "time": 9, "report": null}'


class Checks:
    """Stands for the process: what it finds, by kind, and how often it was asked."""

    def __init__(self) -> None:
        self.found: dict[str, Callable[[], Entry]] = {}
        self.asked: list[str] = []

    def __call__(self, kind: Kind, folder: Path, key: str, small: bool = False) -> Entry:
        self.asked.append(kind.name)
        return self.found.get(kind.name, lambda: Entry("report", report=report_of()))()


@pytest.fixture
def checks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Checks:
    made = Checks()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(trust, "_run", made)
    backend = Backend(kinds=lambda: [OLD], driver=lambda: "1", library=lambda: "a", wait=0.3)
    monkeypatch.setattr(trust, "BACKEND", backend)
    return made


def test_report_is_kept_for_good(checks: Checks, monkeypatch: pytest.MonkeyPatch) -> None:
    assert trust.remembered() is None
    first = trust.verdict()
    assert first == trust.Verdict(trusted=True)
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now + 1e8)
    assert trust.verdict() == trust.remembered() == first
    assert checks.asked == ["old GPU"]


@pytest.mark.parametrize("outcome", ["crash", "timeout"])
def test_crash_is_tried_again_after_a_day(
    outcome: str, checks: Checks, monkeypatch: pytest.MonkeyPatch
) -> None:
    checks.found["old GPU"] = lambda: Entry(outcome, "it died", "/the/log")
    for _ in range(2):
        verdict = trust.verdict()
        assert not verdict.trusted
        assert "could not be checked on old GPU: it died; see /the/log" in verdict.warning
        assert "tried again after a day" in verdict.warning
    assert len(checks.asked) == 1
    remembered = trust.remembered()
    assert remembered is not None
    assert remembered.reason == "it died"
    now = time.time()
    checks.found.clear()
    monkeypatch.setattr(time, "time", lambda: now + 86_401)
    assert trust.verdict().trusted
    # A clock that was put back does not make the entry last.
    checks.found["old GPU"] = lambda: Entry(outcome, "it died")
    monkeypatch.setattr(trust.BACKEND, "driver", lambda: "2")
    assert not trust.verdict().trusted
    monkeypatch.setattr(time, "time", lambda: now - 1e6)
    trust.verdict()
    assert len(checks.asked) == 4


def test_what_says_nothing_of_the_kernels_is_not_remembered(checks: Checks) -> None:
    checks.found["old GPU"] = lambda: Entry("device", "the GPU's memory is full: 3 MiB free")
    for _ in range(2):
        verdict = trust.verdict()
        assert not verdict.trusted
        assert "memory is full" in verdict.warning
        assert "day" not in verdict.warning
    assert len(checks.asked) == 2


def test_who_waited_for_a_check_that_cannot_be_made_does_not_try_it_again(
    checks: Checks, monkeypatch: pytest.MonkeyPatch
) -> None:
    def once() -> Entry:
        if len(checks.asked) == 1:  # another process asks meanwhile, and gets to it afterwards
            other = trust.verdict()
            assert "busy" in other.warning
        return Entry("device", "the GPU is busy")

    @contextlib.contextmanager
    def unlocked(_: Path) -> Iterator[bool]:
        yield True

    monkeypatch.setattr(trust, "_locked", unlocked)
    checks.found["old GPU"] = once
    assert "busy" in trust.verdict().warning
    assert len(checks.asked) == 2
    (file,) = trust.cache_folder().glob("*.json")
    assert json.loads(file.read_text())["outcome"] == "device"
    entry, _ = trust._obtain(OLD)
    assert len(checks.asked) == 3, "one that came later tries"
    monkeypatch.setattr(trust, "_read", lambda _: Entry("device", "busy", time=time.time() + 1))
    entry, _ = trust._obtain(OLD)
    assert (entry.reason, len(checks.asked)) == ("busy", 3)


def test_gpu_that_torch_has_no_code_for_does_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    class Properties:
        def __init__(self, name: str, major: int, minor: int) -> None:
            self.name, self.major, self.minor = name, major, minor

    found = [Properties("screen", 6, 1), Properties("new", 9, 0), Properties("newest", 13, 0)]
    monkeypatch.setattr(torch.cuda, "device_count", lambda: len(found))
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda i: found[i])
    monkeypatch.setattr(torch.cuda, "get_arch_list", lambda: ["sm_80", "sm_90a", "compute_120"])
    assert cuda_kinds() == [Kind("new", "9.0", "cuda:1"), Kind("newest", "13.0", "cuda:2")]
    del found[1:]
    assert cuda_kinds() == [Kind("screen", "6.1", "cuda:0")]


def test_operator_must_pass_on_every_kind_of_gpu(checks: Checks) -> None:
    trust.BACKEND.kinds = lambda: [OLD, NEW]
    checks.found["old GPU"] = lambda: Entry("report", report=report_of("iwae"))
    checks.found["new GPU"] = lambda: Entry("report", report=report_of("softplus"))
    verdict = trust.verdict()
    assert verdict.failed == ("iwae", "softplus")
    assert "iwae, softplus failed" in verdict.warning
    assert "old GPU: " in verdict.warning
    assert "new GPU: " in verdict.warning
    trust.BACKEND.kinds = lambda: [NEW]  # of which the report is there already
    assert trust.verdict().failed == ("softplus",)
    assert checks.asked == ["old GPU", "new GPU"]


def test_operator_that_was_not_reached_is_not_trusted(checks: Checks) -> None:
    reached = tuple(op for op in OPERATORS if op != "rescale_")
    checks.found["old GPU"] = lambda: Entry("report", report=report_of(operators=reached))
    assert trust.verdict().failed == ("rescale_",)


@pytest.mark.parametrize(
    "change",
    [
        {"library": lambda: "b"},
        {"driver": lambda: "2"},
        {"kinds": lambda: [OLD._replace(name="other")]},
        {"kinds": lambda: [OLD._replace(capability="8.6")]},
    ],
)
def test_another_library_driver_or_device_is_checked_anew(
    change: dict[str, Any], checks: Checks, monkeypatch: pytest.MonkeyPatch
) -> None:
    trust.verdict()
    monkeypatch.setattr(trust, "BACKEND", dataclasses.replace(trust.BACKEND, **change))
    trust.verdict()
    assert len(checks.asked) == 2


def test_another_torch_is_checked_anew(checks: Checks, monkeypatch: pytest.MonkeyPatch) -> None:
    trust.verdict()
    monkeypatch.setattr(torch, "__version__", "9.9")
    trust.verdict()
    assert len(checks.asked) == 2


@pytest.mark.parametrize(
    "content", [HALF, "", "{}", "[1]", '{"format": 1}', '{"format": 0}', "\x00"]
)
def test_file_that_cannot_be_read_is_made_anew(content: str, checks: Checks) -> None:
    trust.verdict()
    (file,) = trust.cache_folder().glob("*.json")
    file.write_text(content)
    assert trust.remembered() is None
    assert trust.verdict().trusted
    assert len(checks.asked) == 2
    assert json.loads(file.read_text())["outcome"] == "report"


def test_lock_that_is_never_free_is_not_waited_for_for_ever(checks: Checks) -> None:
    trust.verdict()
    (file,) = trust.cache_folder().glob("*.json")
    file.unlink()
    (lock,) = trust.cache_folder().glob("*.lock")
    with lock.open("wb") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        verdict = trust.verdict()
    assert not verdict.trusted
    assert "another process has been at it for more than 0.3 s" in verdict.warning
    assert len(checks.asked) == 1
    assert trust.verdict().trusted


@pytest.mark.usefixtures("no_locks")
def test_file_system_without_locks_is_done_without(checks: Checks) -> None:
    assert trust.verdict().trusted
    assert trust.remembered() is not None


def test_cache_that_cannot_be_written_is_said_and_the_check_still_runs(
    checks: Checks, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("where the folder should be")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    checks.found["old GPU"] = lambda: Entry("report", report=report_of("iwae"))
    for _ in range(2):
        warning = trust.verdict().warning
        assert "iwae failed the check" in warning
        assert "cannot be remembered" in warning
        assert "runs at each start" in warning
        assert "XDG_CACHE_HOME" in warning
    assert len(checks.asked) == 2


def test_relative_cache_home_is_ignored(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    for value in ("", "relative/folder"):
        monkeypatch.setenv("XDG_CACHE_HOME", value)
        assert trust.cache_folder() == tmp_path / ".cache" / "dvae_fast" / "checks"


# --- the process ------------------------------------------------------------------------------


def _entry(tmp_path: Path, program: str, limit: float = 60.0) -> Entry:
    """What comes of a check whose process is this program."""
    backend = Backend(worker=lambda: [sys.executable, "-S", "-c", program], limit=limit)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trust, "BACKEND", backend)
        return trust._run(OLD, tmp_path, "key")


def test_report_of_the_process_is_read(tmp_path: Path) -> None:
    text = json.dumps(report_of("iwae").to_dict())
    program = f"import sys; open(sys.argv[sys.argv.index('--json') + 1], 'w').write({text!r})"
    entry = _entry(tmp_path, program)
    assert entry.outcome == "report"
    assert entry.report == report_of("iwae")


def test_process_that_breaks_off_says_why(tmp_path: Path) -> None:
    broken = dataclasses.replace(
        report_of(), incomplete="an illegal memory access", incomplete_kind="crash"
    )
    text = json.dumps(broken.to_dict())
    program = (
        "import sys; print('> iwae', file=sys.stderr); "
        f"open(sys.argv[sys.argv.index('--json') + 1], 'w').write({text!r})"
    )
    entry = _entry(tmp_path, program)
    assert (entry.outcome, entry.reason) == ("crash", "an illegal memory access in iwae")
    assert entry.report is None


@pytest.mark.parametrize(
    "program, outcome, reason",
    [
        ("import os; os.kill(os.getpid(), 11)", "crash", "ended with SIGSEGV"),
        ("print('no module')", "device", "left no report (exit code 0): no module"),
        ("raise SystemExit(3)", "device", "left no report (exit code 3): nothing was written"),
        ("import sys; sys.exit('dvae-fast check: the driver is too old')", "device", "too old"),
        (
            "import sys; print('> iwae', file=sys.stderr); sys.exit('gone')",
            "crash",
            "left no report (exit code 1): gone",
        ),
        (
            "import sys; print('dvae-fast check: no GPU', file=sys.stderr); sys.exit(2)",
            "device",
            "no GPU",
        ),
        ("import sys; sys.stdin.read(); sys.exit(2)", "device", "it cannot be made"),
    ],
)
def test_process_without_a_report(program: str, outcome: str, reason: str, tmp_path: Path) -> None:
    entry = _entry(tmp_path, program)
    assert entry.outcome == outcome
    assert reason in entry.reason
    assert Path(entry.path).exists()


@pytest.mark.parametrize("what, word", [("library", "compiled library"), ("name", "GPU")])
def test_report_of_something_else_is_not_taken(what: str, word: str, tmp_path: Path) -> None:
    other = dataclasses.replace(report_of(), machine={"name": OLD.name, what: "another"})
    text = json.dumps(other.to_dict())
    program = f"import sys; open(sys.argv[sys.argv.index('--json') + 1], 'w').write({text!r})"
    entry = _entry(tmp_path, program)
    assert entry.outcome == "device"
    assert f"saw another {word} (another, not " in entry.reason


def test_process_finds_the_package_wherever_it_is_started(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = Path(dvae_fast.__file__).parents[1]
    monkeypatch.setattr(sys, "path", [p for p in sys.path if Path(p or ".").resolve() != root])
    monkeypatch.setenv("PYTHONINSPECT", "1")
    program = "from importlib.util import find_spec; print(find_spec('dvae_fast').origin)"
    done = subprocess.run(
        [sys.executable, "-c", program],
        env=environment(), cwd=tmp_path, capture_output=True, text=True, stdin=subprocess.DEVNULL,
        timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert Path(done.stdout.strip()).parents[1] == root
    assert "PYTHONINSPECT" not in environment()


def test_process_that_hangs_is_ended_with_all_it_started(tmp_path: Path) -> None:
    pid = tmp_path / "pid"
    program = (
        "import subprocess, sys, time; "
        "p = subprocess.Popen([sys.executable, '-S', '-c', 'import time; time.sleep(600)']); "
        f"open({str(pid)!r}, 'w').write(str(p.pid)); time.sleep(600)"
    )
    start = time.monotonic()
    entry = _entry(tmp_path, program, limit=3.0)
    assert time.monotonic() - start < 60
    assert entry.outcome == "timeout"
    assert "more than 3 s" in entry.reason
    state = Path(f"/proc/{pid.read_text()}/stat")
    deadline = time.monotonic() + 10
    while state.exists() and " Z " not in state.read_text() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not state.exists() or " Z " in state.read_text(), "the grandchild still runs"


def test_ended_gives_the_exit_status() -> None:
    process = subprocess.Popen([sys.executable, "-S", "-c", "raise SystemExit(5)"])
    assert ended(process, time.monotonic() + 60) == 5


def test_without_an_interpreter_nothing_is_started(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "executable", "")
    entry = trust._run(OLD, tmp_path, "key")
    assert entry.outcome == "device"
    assert "sys.executable" in entry.reason
    with pytest.raises(CheckError, match=r"sys\.executable"):
        trust.BACKEND.worker()


@pytest.mark.parametrize("name", ["/usr/bin/uwsgi", "/opt/blender/blender"])
def test_an_application_is_not_started_as_if_it_were_python(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "executable", name)
    assert name in trust._run(OLD, tmp_path, "key").reason
    monkeypatch.undo()
    monkeypatch.setattr(sys, "frozen", True, raising=False)
    assert "no Python interpreter" in trust._run(OLD, tmp_path, "key").reason


def test_check_by_hand_is_remembered_and_tells_of_a_crash(
    checks: Checks, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Properties:
        name, major, minor = "old GPU", 8, 0

    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: Properties)
    checks.found["old GPU"] = lambda: Entry("crash", "it died", "/the/log")
    assert not trust.verdict().trusted
    report = trust.renew("cuda:0")
    assert not report.passed
    assert report.incomplete == "it died; see /the/log"
    checks.found["old GPU"] = lambda: Entry("device", "no GPU")
    with pytest.raises(CheckError, match="no GPU"):
        trust.renew("cuda:0")
    remembered = trust.remembered()
    assert remembered is not None
    assert remembered.reason == "it died"
    checks.found["old GPU"] = lambda: Entry("report", report=report_of("iwae"))
    assert trust.renew("cuda:0").failed_operators == ("iwae",)
    assert trust.verdict().failed == ("iwae",)
    assert len(checks.asked) == 4
    checks.found["old GPU"] = lambda: Entry("report", report=report_of())
    assert trust.renew("cuda:0", small=True).passed
    assert trust.verdict().failed == ("iwae",), "a small check is not remembered"


# --- the gate ---------------------------------------------------------------------------------


def test_verdict_that_cannot_be_had_leaves_the_reference(monkeypatch: pytest.MonkeyPatch) -> None:
    enabled: list[str] = []
    for name in ("_gate", "_enable", "_decision"):
        monkeypatch.setattr(ops, name, None)
    ops.hold_back(("cpu",), enabled.extend)

    def broken() -> trust.Verdict:
        raise RuntimeError("the driver shut down")

    monkeypatch.setattr(trust, "verdict", broken)
    gate = ops._gate
    assert gate is not None
    with pytest.warns(RuntimeWarning, match="the driver shut down"):
        gate.open()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        gate.open()  # decided
    assert ops._gate is None
    assert enabled == []


def test_first_call_is_not_lost_where_warnings_are_errors(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(ops, "_gate", ops.Gate(("cpu",), lambda: "dvae_fast: not all is well"))
    gate = ops._gate
    assert gate is not None
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        gate.open()
    assert ops._gate is None
    assert capsys.readouterr().err == "dvae_fast: not all is well\n"


@pytest.mark.parametrize("value, said", [("off", True), ("2", True), ("1", False), ("", False)])
def test_wrong_switch_is_said(
    value: str, said: bool, checks: Checks, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("_gate", "_enable", "_decision"):
        monkeypatch.setattr(ops, name, None)
    monkeypatch.setenv("DVAE_FAST_CHECK", value)
    text = f"dvae_fast: DVAE_FAST_CHECK must be 0 or 1, or unset, got {value!r}"
    assert ops._ask_for_verdict().startswith(text) == said


def test_gate_holds_tensors_of_its_devices_alone() -> None:
    gate = ops.Gate(("meta",), lambda: "")
    assert gate.holds((None, "kind", torch.empty(1, device="meta")))
    assert not gate.holds((None, torch.empty(1)))
    assert not gate.holds(("kind", 3))


@pytest.mark.parametrize(
    "decision, state",
    [
        (None, "not yet checked"),
        ("unchecked (DVAE_FAST_CHECK=0)", "unchecked (DVAE_FAST_CHECK=0)"),
        (trust.Verdict(True), "checked"),
        (trust.Verdict(True, ("iwae", "softplus")), "failed: iwae, softplus"),
        (trust.Verdict(False, (), "it died"), "failed: it died"),
    ],
)
def test_state_of_the_kernels_is_told(
    decision: Any, state: str, checks: Checks, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ops, "cuda_kernels", lambda: True)
    monkeypatch.setattr(ops, "cuda_architectures", lambda: ["9.0a"])
    for remembered in (False, True):  # this process's verdict, or that of another
        monkeypatch.setattr(ops, "_decision", None if remembered else decision)
        monkeypatch.setattr(torch.cuda, "is_available", lambda r=remembered: r)
        if remembered and isinstance(decision, str):
            continue
        monkeypatch.setattr(trust, "remembered", lambda: decision)
        info = dvae_fast.build_info()
        assert info["cuda_kernels"] == state
        assert info["cuda_architectures"] == ["9.0a"]
        assert any(state in m for m in info["missing"]) == state.startswith("failed")
