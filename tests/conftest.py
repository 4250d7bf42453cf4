"""What every test has, what runs at night only, and a sample for machines that are had for minutes.

Tests marked `slow` run where `DVAE_FAST_SLOW=1`.

`DVAE_FAST_SAMPLE=n` runs every n-th case of a test that has many, those in float64 and float16
last. It prints each failure at once, for the run may be killed; and a process of pytest-xdist whose
GPU takes no more work, as after an illegal access, makes way for a new one.

`DVAE_FAST_SAMPLE_UNTIL` is the time, in seconds as of `time.time()`, after which tests are skipped.
Without either nothing changes.
"""

from __future__ import annotations

import contextlib
import fcntl
import gc
import importlib
import os
import sys
import time
from typing import TYPE_CHECKING, Any

import pytest

# Before torch is loaded. Threads cost small calls more than they save; the tests of what threads do
# start their own, which wait without turning.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
# Torch's compiler writes plain C++ then: it does not try out which instructions the CPU has.
os.environ.setdefault("TORCHINDUCTOR_VEC_ISA_OK", "0")
# What is imported is compiled once, and not by every process of the tests: half a second in each
# for the package alone.
sys.dont_write_bytecode = False
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)

import forks  # noqa: E402
import torch  # noqa: E402

if not torch.accelerator.is_available():
    # Else it keeps three stacks of who asked, as deep as pytest's, for devices yet to come.
    torch.manual_seed = torch.default_generator.manual_seed

if TYPE_CHECKING:
    from collections.abc import Generator

#: cases up to which a test is run whole
WHOLE = 24

NO_TIME = "no time is left for it"
AT_NIGHT = "at night scale: DVAE_FAST_SLOW=1 runs it"


@pytest.fixture(autouse=True)
def _seed() -> None:
    """Torch's own generators start the same in every test."""
    torch.default_generator.manual_seed(0)  # torch.manual_seed asks for every kind of device
    if torch.cuda.is_initialized():
        torch.cuda.manual_seed_all(0)


def pytest_configure(config: pytest.Config) -> None:
    """Starts the server of the tests' processes before the package is loaded; where all tests run,
    with what they will load in this process too."""
    if config.args_source is config.ArgsSource.TESTPATHS:
        for name in forks.LOADED:
            with contextlib.suppress(ImportError):
                importlib.import_module(name)
    if "dvae_fast" not in sys.modules:
        forks.start()


def _sample() -> int:
    text = os.environ.get("DVAE_FAST_SAMPLE", "1")
    if not text.isdecimal() or int(text) < 1:
        raise pytest.UsageError(f"DVAE_FAST_SAMPLE must be an integer >= 1, got {text!r}")
    return int(text)


def _is_late(item: Any) -> bool:
    return "float64" in item.name or "float16" in item.name.replace("bfloat16", "")


def _test(item: Any) -> tuple[str, str]:
    """The function that it is a case of."""
    return item.nodeid.partition("::")[0], getattr(item, "originalname", item.name)


@pytest.hookimpl(specname="pytest_collection_modifyitems")
def pytest_leave_slow_to_the_night(items: list[Any]) -> None:
    if os.environ.get("DVAE_FAST_SLOW") == "1":
        return
    for item in items:
        if item.get_closest_marker("slow"):
            item.add_marker(pytest.mark.skip(reason=AT_NIGHT))


@pytest.hookimpl(trylast=True)  # of what -k has selected
def pytest_collection_modifyitems(config: Any, items: list[Any]) -> None:
    every = _sample()
    if every == 1:
        return
    counts: dict[Any, int] = {}
    for item in items:
        counts[_test(item)] = counts.get(_test(item), 0) + 1
    kept, left_out, seen = [], [], dict.fromkeys(counts, 0)
    for item in items:
        number, seen[_test(item)] = seen[_test(item)], seen[_test(item)] + 1
        whole = counts[_test(item)] <= WHOLE
        (kept if whole or number % every == 0 else left_out).append(item)
    items[:] = sorted(kept, key=_is_late)
    if left_out:
        config.hook.pytest_deselected(items=left_out)


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup() -> None:
    if time.time() > float(os.environ.get("DVAE_FAST_SAMPLE_UNTIL", "inf")):
        pytest.skip(NO_TIME)


def pytest_collection_finish() -> None:
    """What has been imported stays: the collector of garbage need not look at it again, and at the
    rest seldom."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 50)


def _failed(report: Any) -> str:
    said = str(report.longrepr).strip().splitlines() or [""]
    return f"\nFAILED {report.nodeid}: {said[-1]}\n"


def pytest_runtest_logreport(report: Any) -> None:
    # Of pytest-xdist's processes the first one alone prints.
    if report.failed and _sample() > 1 and "PYTEST_XDIST_WORKER" not in os.environ:
        print(_failed(report), end="", flush=True)


def _gpu_is_lost() -> bool:
    if not torch.cuda.is_initialized():
        return False
    try:
        torch.cuda.synchronize()
    except Exception:
        return True
    return False


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, Any, Any]:
    report = yield
    if report.failed and _sample() > 1 and "PYTEST_XDIST_WORKER" in os.environ and _gpu_is_lost():
        # All that follow would fail. pytest-xdist says that this test was running.
        os.write(2, _failed(report).encode())
        os._exit(1)
    return report


@pytest.fixture
def no_locks(monkeypatch: pytest.MonkeyPatch) -> None:
    """A file system without locks."""

    def flock(*_: object) -> None:
        raise OSError(37, "No locks available")

    monkeypatch.setattr(fcntl, "flock", flock)
