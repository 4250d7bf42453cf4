"""Kernels that wait for their check, through the real gate, with the CPU as the GPU."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import pytest
from forks import Program

pytestmark = pytest.mark.process

STANDIN = Path(__file__).with_name("standin.py")


class User:
    """Starts processes that use the package, with a cache of their own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.cache = folder / "cache"
        self.runs_file = folder / "runs"

    def start(self, **environment: str) -> Program:
        inherited = {k: v for k, v in os.environ.items() if k != "DVAE_FAST_CHECK"}
        own = {
            "XDG_CACHE_HOME": str(self.cache),
            "STANDIN_RUNS": str(self.runs_file),
            "OMP_NUM_THREADS": "1",
            "PYTHONPATH": os.pathsep.join(p for p in sys.path if p),
        }
        return Program(str(STANDIN), "use", env={**inherited, **own, **environment})

    @staticmethod
    def result(process: Program) -> dict[str, Any]:
        done = process.result()
        assert done.returncode == 0, done.stderr
        found: dict[str, Any] = json.loads(done.stdout)
        return found

    def __call__(self, **environment: str) -> dict[str, Any]:
        return self.result(self.start(**environment))

    @property
    def runs(self) -> int:
        return len(self.runs_file.read_text().splitlines()) if self.runs_file.exists() else 0


@pytest.fixture
def use(tmp_path: Path) -> User:
    return User(tmp_path)


USED = ["corrupt", "iwae", "rescale_", "softplus"]


def test_kernels_that_pass_run_from_the_first_call_on_and_no_one_is_told(use: User) -> None:
    for _ in range(2):  # the second process remembers
        found = use(STANDIN_FAKE="1")
        assert found["untouched"], "a fake or meta tensor asked for the check"
        assert found["decided"]
        assert found["kernels"] == USED
        assert found["warnings"] == []
        assert all(found["right"].values()), found["right"]
    assert use.runs == 1


def test_wrong_kernels_are_left_out_named_once_and_remembered(use: User) -> None:
    """By two processes that start at once: one of them checks, and the other waits for it."""
    for process in [use.start(STANDIN_WRONG="iwae,corrupt") for _ in range(2)]:
        found = use.result(process)
        assert found["kernels"] == ["rescale_", "softplus"]
        assert all(found["right"].values()), found["right"]
        (warning,) = found["warnings"]
        assert "the CUDA kernels of corrupt, iwae failed the check" in warning
        report = Path(warning.split("Report: stand-in: ")[1])
        saved = json.loads(report.read_text())["report"]
        assert saved["failed_operators"] == ["corrupt", "iwae"]
    assert use.runs == 1


@pytest.mark.slow
def test_another_library_is_another_matter(use: User) -> None:
    assert use(STANDIN_WRONG="iwae")["kernels"] == ["corrupt", "rescale_", "softplus"]
    assert use(STANDIN_LIBRARY="b")["kernels"] == USED
    assert use.runs == 2


@pytest.mark.parametrize(
    "environment, reason",
    [
        ({"STANDIN_CRASH": "softplus"}, "ended with SIGABRT in softplus"),
        ({"STANDIN_HANG": "softplus", "STANDIN_LIMIT": "8"}, "took more than 8 s"),
    ],
)
@pytest.mark.slow
def test_crash_or_hang_puts_all_on_the_reference(
    environment: dict[str, str], reason: str, use: User
) -> None:
    found = use(**environment)
    assert found["kernels"] == []
    assert all(found["right"].values()), found["right"]
    (warning,) = found["warnings"]
    assert reason in warning
    assert "dvae-fast check" in warning
    log = Path(warning.split("; see ")[1].split(". The slower")[0])
    assert "> " in log.read_text()


@pytest.mark.slow
def test_crash_is_remembered_by_the_next_process(use: User) -> None:
    for _ in range(2):
        assert use(STANDIN_CRASH="softplus")["kernels"] == []
    assert use.runs == 1


@pytest.mark.slow
def test_many_processes_that_start_at_once_run_one_check(use: User) -> None:
    processes = [use.start(STANDIN_WRONG="iwae") for _ in range(6)]
    for process in processes:
        assert use.result(process)["kernels"] == ["corrupt", "rescale_", "softplus"]
    assert use.runs == 1


def test_check_can_be_left_out(use: User) -> None:
    found = use(DVAE_FAST_CHECK="0", STANDIN_WRONG="iwae")
    assert found["kernels"] == USED
    assert not found["right"]["iwae"]
    assert found["warnings"] == []
    assert use.runs == 0
