"""Processes of the check's own: what they inherit, and that they always end."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time

__all__ = ["ended", "environment", "signal_name"]


def environment() -> dict[str, str]:
    """This process's, such that modules are found where it finds them, whatever the folder."""
    found = {k: v for k, v in os.environ.items() if k not in ("PYTHONWARNINGS", "PYTHONSAFEPATH")}
    found["PYTHONPATH"] = os.pathsep.join(os.path.abspath(p) for p in sys.path)
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
