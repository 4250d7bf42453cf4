"""The command line of the check, as ``python -m dvae_fast.checking``.

Exit codes: 0 all passed; 1 an operator failed, or the check broke off; 2 it cannot be made.
"""

from __future__ import annotations

import argparse
import contextlib
import faulthandler
import json
import os
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from dvae_fast import ops
from dvae_fast.checking import CheckError, check
from dvae_fast.checking.machine import resolve_device

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from dvae_fast.checking.report import CheckReport


def run_command(
    device: str | None = None,
    json_file: str | None = None,
    *,
    small: bool = False,
    here: bool = False,
) -> int:
    """Run the check, print its table or JSON, and return the exit code.

    `here`: a GPU is checked by this process, which is one of the check's own.
    """
    try:
        if json_file not in (None, "-"):
            _check_writable(Path(str(json_file)))
        where = resolve_device(device)
        if here or small:
            report = _in_this_process(str(where), small, _Progress() if here else None)
        else:
            report = check(where)
    except CheckError as error:
        print(f"dvae-fast check: {error}", file=sys.stderr)
        return 2
    text = json.dumps(report.to_dict(), indent=2, allow_nan=False) + "\n"
    try:
        if json_file not in (None, "-"):
            Path(str(json_file)).write_text(text)
    except OSError as error:
        _print(f"{report}\n")
        print(f"dvae-fast check: cannot write {json_file}: {error}", file=sys.stderr)
        return 2
    printed = _print(text if json_file == "-" else f"{report}\n")
    return 2 if not printed else 0 if report.passed else 1


def _print(text: str) -> bool:
    """Whether it could be. A reader who has gone, as `head` does, had enough: no failure."""
    try:
        sys.stdout.write(text)
        sys.stdout.flush()
    except OSError as error:
        with contextlib.suppress(OSError, ValueError):  # or Python writes it again when it ends
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if not isinstance(error, BrokenPipeError):
            print(f"dvae-fast check: cannot print: {error}", file=sys.stderr)
            return False
    return True


#: seconds after which a process of the check ends itself
_ALONE = 600.0


class _Progress:
    """Tells the log what is running, once for several cases of it."""

    def __init__(self) -> None:
        self._last = ""

    def __call__(self, what: str) -> None:
        if what != self._last:
            print(f"> {what}", file=sys.stderr, flush=True)
        self._last = what


def _in_this_process(device: str, small: bool, note: Callable[[str], None] | None) -> CheckReport:
    import torch

    from dvae_fast.checking.run import run_checks

    if note is not None:
        faulthandler.enable()  # where a crash was, in the log
        # Whoever ends this process in time may have been killed.
        faulthandler.dump_traceback_later(_ALONE, exit=True)
    ops.trust_all_kernels()
    try:
        return run_checks(torch.device(device), small=small, note=note or (lambda what: None))
    except (torch.AcceleratorError, torch.OutOfMemoryError) as error:
        # The device, before any kernel of ours ran on it.
        raise CheckError(f"{device} cannot be used: {str(error).splitlines()[0]}") from None
    finally:
        if note is not None:
            faulthandler.cancel_dump_traceback_later()


def _check_writable(path: Path) -> None:
    """Before the work, not after it. Nothing that stands at `path` is touched."""
    try:
        if path.is_dir():
            raise CheckError(f"--json must name a file, got the folder {path}")
        if path.exists():
            if not os.access(path, os.W_OK):
                raise CheckError(f"--json cannot be written: {path}: Permission denied")
        else:
            with tempfile.TemporaryFile(dir=path.parent):
                pass
    except OSError as error:
        raise CheckError(f"--json cannot be written: {path}: {error.strerror or error}") from None


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m dvae_fast.checking",
        description="Hold every operator to the float64 reference on this machine.",
    )
    parser.add_argument("--device", help="cpu, cuda or cuda:N; by default a GPU if there is one")
    parser.add_argument("--json", metavar="FILE", help="write the report there; - for stdout")
    parser.add_argument("--small", action="store_true", help="few cases of few elements")
    parser.add_argument("--here", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args(arguments)
    return run_command(given.device, given.json, small=given.small, here=given.here)
