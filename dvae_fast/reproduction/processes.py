"""Runs side by side, each in a process of its own, so that one that fails takes none along."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import traceback
from multiprocessing.connection import wait
from typing import TYPE_CHECKING, Any

from dvae_fast._extras import MissingExtraError
from dvae_fast.data import DataError
from dvae_fast.files import CheckpointError
from dvae_fast.reproduction.runs import run_one
from dvae_fast.training import NonFiniteError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from multiprocessing.connection import Connection
    from multiprocessing.context import SpawnProcess
    from pathlib import Path

    from dvae_fast.reproduction.runs import Run

__all__ = ["DONE", "FAILED", "PROGRESS", "run_all"]

#: kinds of what `run_all` reports: with a `Progress` or `EvaluationProgress`, with the run's
#: numbers, and with what went wrong
PROGRESS, DONE, FAILED = "progress", "done", "failed"

_EXPECTED = (CheckpointError, DataError, MissingExtraError, NonFiniteError, ValueError)


def run_all(
    runs: Iterable[Run], folder: Path, jobs: int, report: Callable[[Run, str, Any], None]
) -> None:
    """Do the runs, at most `jobs` at a time, in their order.

    A KeyboardInterrupt, Ctrl-C's or one that `report` raises, stops all of them, and is raised
    again when they have saved what is done.

    Args:
        runs: each as for `run_one`.
        folder: where their files are.
        jobs: >= 1.
        report: called with a run, one of `PROGRESS`, `DONE` and `FAILED`, and what belongs to it.
    """
    waiting = list(runs)[::-1]
    working: dict[Connection, tuple[Run, SpawnProcess]] = {}
    try:
        while waiting or working:
            while waiting and len(working) < jobs:
                run = waiting.pop()
                pipe, process = _start(run, folder)
                working[pipe] = run, process
            ready = wait(list(working))
            for pipe, (run, process) in list(working.items()):
                if pipe not in ready:
                    continue
                try:
                    kind, value = pipe.recv()
                except EOFError:
                    process.join()
                    kind, value = FAILED, f"its process ended with code {process.exitcode}"
                if kind != PROGRESS:
                    del working[pipe]
                    pipe.close()
                    process.join()
                report(run, kind, value)
    finally:
        for pipe in working:
            pipe.close()  # nobody listens any more: each saves and ends
        for _, process in working.values():
            process.join()


def _start(run: Run, folder: Path) -> tuple[Connection, SpawnProcess]:
    context = multiprocessing.get_context("spawn")
    listener, speaker = context.Pipe(duplex=False)
    process = context.Process(target=_work, args=(run, folder, speaker), daemon=True)
    # Ctrl-C goes to every process of the terminal's group. A child inherits that it is ignored, and
    # then leaves the group, for the trainer would listen to it; it stops when its pipe is closed
    # instead, as it does if this process is killed.
    old = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        process.start()
    finally:
        signal.signal(signal.SIGINT, old)
    speaker.close()
    return listener, process


def _work(run: Run, folder: Path, pipe: Connection) -> None:
    if hasattr(os, "setpgid"):
        os.setpgid(0, 0)

    def tell(kind: str, value: Any) -> None:
        try:
            pipe.send((kind, value))
        except OSError:
            raise KeyboardInterrupt from None

    try:
        tell(DONE, run_one(run, folder, lambda state: tell(PROGRESS, state)))
    except KeyboardInterrupt:
        with contextlib.suppress(KeyboardInterrupt):  # told only if this process alone was stopped
            tell(FAILED, "it was stopped; what is done is saved")
    except _EXPECTED as error:
        tell(FAILED, str(error))
    except Exception as error:
        traceback.print_exc()
        tell(FAILED, f"{type(error).__name__}: {error}")
