"""A command with a limit of time: stopped with all its children, what it printed kept."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import threading
import time
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

#: bytes of what a command prints that are kept: at first, and in the end
HEAD, TAIL = 3 << 20, 1 << 18

#: seconds between the request to stop and the end, of which pytest needs some to say what failed
GRACE = 5.0


@dataclass(frozen=True)
class Outcome:
    returncode: int | None  # None: it was stopped for its time
    seconds: float
    output: str

    @property
    def timed_out(self) -> bool:
        return self.returncode is None

    @property
    def status(self) -> str:
        return "timed out" if self.timed_out else "failed" if self.returncode else "passed"

    def ended(self) -> str:
        """How, in words."""
        if self.returncode is None:
            return f"stopped after {self.seconds:.0f} s"
        if self.returncode < 0:
            try:
                name = signal.Signals(-self.returncode).name
            except ValueError:
                name = str(-self.returncode)
            return f"killed by {name}"
        return f"exit {self.returncode}"

    def last_lines(self, count: int = 1) -> str:
        lines = [line for line in self.output.splitlines() if line.strip()]
        return "\n".join(lines[-count:])


class _Output:
    """What is read from a pipe: written to the log as it comes, to a limit, then its end."""

    def __init__(self, pipe: int, log: Path) -> None:
        self._pipe, self._log = pipe, log
        self._head = bytearray()
        self._tail: deque[bytes] = deque()
        self._dropped, self._waiting = 0, 0
        self._lock, self._open = threading.Lock(), True
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def _read(self) -> None:
        while True:
            try:
                block = os.read(self._pipe, 1 << 16)
            except OSError:
                return
            if not block:
                return
            with self._lock:
                if not self._open:
                    return
                self._take(block)

    def _take(self, block: bytes) -> None:
        kept = block[: max(0, HEAD - len(self._head))]
        if kept:
            self._head += kept
            with self._log.open("ab") as f:
                f.write(kept)
        rest = block[len(kept) :]
        if rest:
            self._tail.append(rest)
            self._waiting += len(rest)
            while self._waiting - len(self._tail[0]) >= TAIL:
                first = self._tail.popleft()
                self._waiting -= len(first)
                self._dropped += len(first)

    def close(self) -> str:
        """All that it printed, but for what is left out of the middle.

        A child that left the process group may hold the pipe open; nobody waits for it.
        """
        self._thread.join(timeout=2)
        with self._lock:
            self._open = False
            end = b"".join(self._tail)
            if self._dropped:
                end = f"\n[{self._dropped:,} bytes are left out here]\n".encode() + end
            if end:
                with self._log.open("ab") as f:
                    f.write(end)
        return (bytes(self._head) + end).decode(errors="replace")


def _begin() -> None:
    """A group of its own, which heeds an interrupt: what a shell starts in the background ignores
    them, and so does all that it starts."""
    os.setpgrp()
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def run(
    command: Sequence[str],
    *,
    seconds: float,
    log: Path,
    cwd: Path,
    env: Mapping[str, str] | None = None,
) -> Outcome:
    """In a process group of its own, which is killed whole in the end, however that comes.

    Not in a session of its own: who ends the session of this process is to end the command too.

    The command is interrupted, for its own children are its own to stop, a little before its time
    is up, then killed. A command that is not there has the shell's exit status, 127.
    """
    grace = min(GRACE, 0.2 * seconds)
    start = time.monotonic()
    with log.open("a") as f:
        f.write(f"\n$ {' '.join(command)}\n")
    try:
        process = subprocess.Popen(
            list(command),
            cwd=cwd,
            env=env,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            preexec_fn=_begin,
        )
    except OSError as error:
        with log.open("a") as f:
            f.write(f"{error}\n")
        return Outcome(127, time.monotonic() - start, str(error))
    assert process.stdout is not None
    output = _Output(process.stdout.fileno(), log)
    returncode: int | None = None
    try:
        try:
            returncode = process.wait(timeout=max(0.1, seconds - grace))
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGINT)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(timeout=grace)
    finally:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(timeout=5)
        text = output.close()
        process.stdout.close()
    return Outcome(returncode, time.monotonic() - start, text)
