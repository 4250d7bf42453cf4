"""scripts/gpu_check, step by step: which library it takes, and what it makes of what it reads."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
from check_rows import row

if TYPE_CHECKING:
    from collections.abc import Callable

sys.path.append(str(Path(__file__).parents[2] / "scripts"))

from gpu_check import library, steps
from gpu_check.process import Outcome
from gpu_check.sources import ROOT, sources_hash
from gpu_check.steps import Context
from gpu_check.verdict import FAILED, PASSED, SKIPPED

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


def test_build_that_takes_too_long_or_gives_no_library(fake: FakeContext) -> None:
    (fake.root / "prebuilt/_C.abi3.so").unlink()
    fake.answer(("setup.py", None, "nvcc ..."))
    assert library.library(fake, 150).status == "timed out"
    fake.answer(("setup.py", 0, ""), ("probe.py", None, ""))
    verdict = library.library(fake, 150)
    assert verdict.status == FAILED
    assert "its kernel had not run after" in verdict.summary
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
    <testcase classname="tests.test_a" name="test_x[cuda]"><failure message="crashed"/></testcase>
    <testcase><skipped message="no time is left for it"/></testcase>
    <testcase><skipped message="no GPU"/></testcase>
    </testsuite></testsuites>"""
    (fake.root / "tests").mkdir()
    (fake.root / "tests/test_a.py").write_text('@pytest.mark.parametrize("device", DEVICES)')
    (fake.root / "tests/test_c.py").write_text("def test_of_the_cpu(): ...")
    output = """..F
FAILED tests/test_a.py::test_x[cuda-a: b]: E   RuntimeError: off by 3
FAILED tests/test_a.py::test_x[cuda-a: b]: worker 'gw1' crashed while running it
FAILED tests/test_b.py::test_y: lost
FAILED tests/test_b.py::test_y - lost
1 failed"""
    asked = []

    def answer(command: list[str], seconds: float, env: dict[str, str]) -> Outcome:
        asked.append((command, env))
        (fake.out / "tests.xml").write_text(xml)
        return Outcome(1, 1.0, output)

    fake.run = answer  # type: ignore[method-assign]
    verdict = steps.tests(fake, 100)
    assert verdict.status == FAILED
    assert verdict.summary == (
        "7 tests, 2 failed, 2 skipped, 1 of them for lack of time; "
        "first tests/test_a.py::test_x[cuda-a: b]: E   RuntimeError: off by 3"
    )
    assert verdict.details["failed"][1:] == ["tests/test_b.py::test_y: lost"]
    ((command, env),) = asked
    assert [part for part in command if part.startswith("tests/")] == ["tests/test_a.py"]
    assert "-n" not in command  # no xdist here
    assert env["DVAE_FAST_SAMPLE"] == str(steps.SAMPLE)
    fake.machine["modules"].append("xdist")
    steps.tests(fake, 100)
    assert asked[1][0][-2:] == ["-n", "14"]


@pytest.mark.parametrize("step, status", [(steps.bench, "timed out"), (steps.compiled, PASSED)])
def test_benchmarks_go_on_after_an_illegal_access_and_say_what_is_left(
    step: Callable[[Context, float], Any], status: str, fake: FakeContext
) -> None:
    names = ("ours", "eager") if step is steps.bench else ("compile", "max-autotune")
    copy = {"key": "copy", "bytes": 10**12, "seconds": {names[0]: 0.5}, "errors": {}}
    bad = {"key": "iwae", "bytes": 1, "seconds": {}, "errors": {names[0]: "an illegal access"}}
    whole = {f"mixture, {' and '.join(names)}": "OutOfMemoryError", "copy, none": "of others"}
    asked = []

    def answers(codes: list[int], results: list[Any], failures: dict[str, str]) -> None:
        def answer(command: list[str], seconds: float) -> Outcome:
            asked.append(command)
            content = {"results": results, "failures": failures, "complete": []}
            (fake.out / "bench.json").write_text(json.dumps(content))
            return Outcome(codes.pop(0), 1.0, "")

        fake.run = answer  # type: ignore[assignment, method-assign]

    answers([steps.BROKEN, steps.BROKEN, 1], [copy, bad], whole)
    verdict = step(fake, 90)
    assert verdict.status == FAILED
    assert set(verdict.details["errors"]) == {f"iwae, {names[0]}", next(iter(whole))}
    assert ["--resume" in command for command in asked] == [False, True, True]
    assert 45 <= float(asked[0][asked[0].index("--limit") + 1]) <= 75
    answers([0], [copy], {})
    verdict = step(fake, 90)
    assert verdict.status == status
    assert "1 cases" in verdict.summary
    assert "not all of them" in verdict.summary


# --- the sample of the tests ----------------------------------------------------------------------


def sample_module() -> Any:
    spec = importlib.util.spec_from_file_location("tests_conftest", ROOT / "tests" / "conftest.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def sampled(every: str, monkeypatch: pytest.MonkeyPatch) -> tuple[list[str], int]:
    names = [f"test_many[{d}-{i}]" for d in ("float64", "float32") for i in range(50)]
    names += [f"test_few[{i}]" for i in range(3)] + ["test_one"]
    items = [
        SimpleNamespace(nodeid=f"tests/a.py::{n}", name=n, originalname=n.partition("[")[0])
        for n in names
    ]
    left_out: list[Any] = []
    hook = SimpleNamespace(pytest_deselected=lambda items: left_out.extend(items))
    monkeypatch.setenv("DVAE_FAST_SAMPLE", every)
    sample_module().pytest_collection_modifyitems(SimpleNamespace(hook=hook), items)
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


def test_tests_are_skipped_when_the_time_is_up(monkeypatch: pytest.MonkeyPatch) -> None:
    module = sample_module()
    monkeypatch.setenv("DVAE_FAST_SAMPLE_UNTIL", str(time.time() + 100))
    module.pytest_runtest_setup()
    monkeypatch.setenv("DVAE_FAST_SAMPLE_UNTIL", str(time.time() - 1))
    with pytest.raises(pytest.skip.Exception, match=steps.NO_TIME):
        module.pytest_runtest_setup()


@pytest.mark.parametrize(
    "message, status", [("no GPU", FAILED), ("no time is left for it", SKIPPED)]
)
def test_tests_that_were_all_skipped_are_no_pass(
    message: str, status: str, fake: FakeContext
) -> None:
    case = f'<testcase><skipped message="{message}"/></testcase>'
    xml = f'<testsuites><testsuite tests="1" skipped="1">{case}</testsuite></testsuites>'

    def answer(command: list[str], seconds: float, env: dict[str, str]) -> Outcome:
        (fake.out / "tests.xml").write_text(xml)
        return Outcome(0, 1.0, "")

    fake.run = answer  # type: ignore[method-assign]
    (fake.root / "tests").mkdir()
    assert steps.tests(fake, 100).status == status
