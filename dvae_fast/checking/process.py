"""Processes of the check's own: what they inherit, and that they always end."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from dvae_fast.checking.machine import CheckError

__all__ = ["ended", "environment", "interpreter", "signal_name"]

#: would change what a process does or how it ends
_NOT_INHERITED = ("PYTHONWARNINGS", "PYTHONSAFEPATH", "PYTHONINSPECT", "PYTHONOPTIMIZE")


def interpreter() -> str:
    """The program to start Python with.

    Raises:
        CheckError: where there is none: an application that has Python in it would start itself.
    """
    if not sys.executable:
        raise CheckError("sys.executable is not set, so no process can be started")
    if getattr(sys, "frozen", False) or "py" not in Path(sys.executable).name.lower():
        raise CheckError(
            f"sys.executable is no Python interpreter ({sys.executable}), so no process can be "
            "started"
        )
    return sys.executable


def environment() -> dict[str, str]:
    """This process's, such that modules are found where it finds them, whatever the folder."""
    found = {k: v for k, v in os.environ.items() if k not in _NOT_INHERITED}
    # The package's own folder last: it may have left the path since, but must hide nothing there.
    places = [*sys.path, str(Path(__file__).parents[2])]
    found["PYTHONPATH"] = os.pathsep.join(os.path.abspath(p) for p in places)
    found["DVAE_FAST_CHECK"] = "0"
    return found


def ended(process: subprocess.Popen[bytes], deadline: float) -> int | None:
    """The exit status; None where it had to be ended, with all it started, at `deadline` (of
    `time.monotonic`)."""
    try:
        return process.wait(max(0.0, deadline - time.monotonic()))
    except subprocess.TimeoutExpired:
        return None
    finally:
        if process.returncode is None:
            _end(process)


def _end(process: subprocess.Popen[bytes]) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    # A process that hangs in a driver call cannot be ended; it is not waited for.
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(5)


def signal_name(code: int) -> str:
    try:
        return signal.Signals(-code).name
    except ValueError:
        return f"signal {-code}"
